// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/tendril-net/tendril/pkg/maps"
)

// RepairPolicy writes the policy anew where others took something of it. What was found is
// logged. Before the first ReconcilePolicy there is nothing to repair.
func (d *Datapath) RepairPolicy() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.policy.known {
		return nil
	}
	if err := d.finishPolicy(); err != nil {
		return err
	}
	err := d.comparePolicy()
	if mismatch := (*MismatchError)(nil); !errors.As(err, &mismatch) {
		return err
	}
	d.log.Warn("policy is repaired", "found", err)
	return d.replacePolicy(d.policy.now)
}

// comparePolicy is a *MismatchError where the maps are not as they were written.
func (d *Datapath) comparePolicy() error {
	want, have := d.policy.generation, uint32(0)
	if err := compare(d.maps.PolicyGeneration, uint32(0), &have, want, "map policy_generation"); err != nil || want == 0 {
		return err
	}
	missing := make(map[uint32]bool, len(d.policy.now.Subjects))
	for id := range d.policy.now.Subjects {
		missing[uint32(id)] = true
	}
	if err := each(d.maps.Subjects, func(key maps.SubjectKey, value maps.Subject) bool {
		if key.Generation == want && value == d.policy.now.Subjects[uint16(key.Endpoint)].value(d.policy.places) {
			delete(missing, key.Endpoint)
		}
		return true
	}); err != nil {
		return err
	}
	for id := range missing {
		return &MismatchError{What: subjectEntry(id)}
	}
	if err := d.compareTree(); err != nil {
		return err
	}
	if same, err := d.policy.nodes.isIn(d.policy.tree); err != nil {
		return err
	} else if !same {
		return &MismatchError{What: treeOf(want)}
	}
	matching := 0
	if err := each(d.maps.Policies, func(key maps.PolicyKey, value maps.Policy) bool {
		if wanted, there := d.policy.entries[key]; there && uncounted(value) == wanted {
			matching++
		}
		return true
	}); err != nil || matching == len(d.policy.entries) {
		return err
	}
	return d.compareEntries(func(maps.PolicyKey) bool { return true })
}

// compareTree compares which tree the programs ask with the one that was written.
func (d *Datapath) compareTree() error {
	info, err := d.policy.tree.Info()
	if err != nil {
		return fmt.Errorf("read map identity_tree: %w", err)
	}
	want, _ := info.ID()
	var got uint32
	err = ignoreMissing(d.maps.Identities.Lookup(d.policy.generation, &got))
	if err != nil {
		return fmt.Errorf("read map identities: %w", err)
	}
	if got != uint32(want) {
		return &MismatchError{What: treeOf(d.policy.generation)}
	}
	return nil
}

// compareEntries compares some entries of map policies.
func (d *Datapath) compareEntries(which func(maps.PolicyKey) bool) error {
	for key, want := range d.policy.entries {
		if !which(key) {
			continue
		}
		var got maps.Policy
		switch err := d.maps.Policies.Lookup(key, &got); {
		case err != nil && !errors.Is(err, ebpf.ErrKeyNotExist):
			return fmt.Errorf("read map policies: %w", err)
		case err != nil || uncounted(got) != want:
			return &MismatchError{What: policyEntry(key)}
		}
	}
	return nil
}

func subjectEntry(id uint32) string { return fmt.Sprintf("entry of endpoint %d in map subjects", id) }

func treeOf(generation uint32) string {
	return fmt.Sprintf("tree of generation %d in map identities", generation)
}

// uncounted is an entry as it was written.
func uncounted(value maps.Policy) maps.Policy {
	for i := range value.Ranges {
		value.Ranges[i].Flows = 0
	}
	return value
}

func policyEntry(key maps.PolicyKey) string {
	return fmt.Sprintf("entry %d, chunk %d, of set %d in map policies", key.Identity, key.Chunk, key.Set)
}

// checkPolicy compares what the kernel has of an endpoint's policy with what was written.
func (d *Datapath) checkPolicy(id uint16) error {
	subject, there := d.policy.now.Subjects[id]
	if !d.policy.now.Active || !there {
		return nil
	}
	var (
		generation uint32
		value      maps.Subject
	)
	if err := compare(d.maps.PolicyGeneration, uint32(0), &generation, d.policy.generation, "map policy_generation"); err != nil {
		return err
	}
	if err := compare(d.maps.Subjects, maps.SubjectKey{Generation: generation, Endpoint: uint32(id)}, &value, subject.value(d.policy.places), subjectEntry(uint32(id))); err != nil {
		return err
	}
	if err := d.compareTree(); err != nil {
		return err
	}
	return d.compareEntries(func(key maps.PolicyKey) bool { return key.Set == subject.Ingress || key.Set == subject.Egress })
}
