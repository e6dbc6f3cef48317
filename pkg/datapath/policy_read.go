// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"

	"github.com/tendril-net/tendril/pkg/maps"
)

// FirstPolicyNumber is one above all numbers of sets and identities in the maps.
func (d *Datapath) FirstPolicyNumber() (uint32, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var most uint32
	err := each(d.maps.Policies, func(key maps.PolicyKey, _ maps.Policy) bool {
		most = max(most, key.Set, key.Identity)
		return true
	})
	if err != nil {
		return 0, err
	}
	err = each(d.maps.Subjects, func(_ maps.SubjectKey, value maps.Subject) bool {
		most = max(most, value.Ingress, value.Egress, value.Identity)
		return true
	})
	if err != nil {
		return 0, err
	}
	_, err = walk(d.maps.Identities, func(_ maps.IdentityKey, identity uint32) { most = max(most, identity) })
	return most + 1, err
}

// PolicyHits are the numbers of new flows, by rule and by endpoint.
type PolicyHits struct {
	// Rules has those that a rule has let through, by PolicyRange.Rule.
	Rules map[uint64]uint64
	// IngressDenied and EgressDenied have those that no rule let through, by endpoint.
	IngressDenied, EgressDenied map[uint16]uint64
}

// PolicyHits reads what the programs have counted.
func (d *Datapath) PolicyHits() (PolicyHits, error) {
	h := PolicyHits{Rules: make(map[uint64]uint64), IngressDenied: make(map[uint16]uint64), EgressDenied: make(map[uint16]uint64)}
	err := each(d.maps.Hits, func(rule, n uint64) bool {
		h.Rules[rule] = n
		return true
	})
	if err != nil {
		return h, err
	}
	d.mu.Lock()
	subjects := d.policy.now.Subjects
	d.mu.Unlock()
	for id := range subjects {
		for egress, numbers := range map[bool]map[uint16]uint64{false: h.IngressDenied, true: h.EgressDenied} {
			var n uint64
			if err := d.maps.Denied.Lookup(deniedAt(id, egress), &n); err != nil {
				return h, fmt.Errorf("read map denied: %w", err)
			}
			numbers[id] = n
		}
	}
	return h, nil
}

// RepairPolicy writes the policy anew where others took something of it. What was found is
// logged. Before the first ReconcilePolicy there is nothing to repair.
func (d *Datapath) RepairPolicy() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.policy.known {
		return nil
	}
	err := d.comparePolicy()
	if mismatch := (*MismatchError)(nil); !errors.As(err, &mismatch) {
		return err
	}
	d.log.Warn("policy is repaired", "found", err)
	was := d.policy
	d.policy = writtenPolicy{}
	err = d.learnPolicy()
	if err == nil {
		err = d.replacePolicy(was.now)
	}
	if err != nil {
		was.generation = max(was.generation, d.policy.generation)
		d.policy = was
	}
	return err
}

// comparePolicy is a *MismatchError where the maps are not as they were written.
func (d *Datapath) comparePolicy() error {
	want, have := uint32(0), uint32(0)
	if d.policy.now.Active {
		want = d.policy.generation
	}
	if err := compare(d.maps.PolicyGeneration, uint32(0), &have, want, "map policy_generation"); err != nil || want == 0 {
		return err
	}
	subjects := make(map[maps.SubjectKey]maps.Subject)
	err := each(d.maps.Subjects, func(key maps.SubjectKey, value maps.Subject) bool {
		subjects[key] = value
		return true
	})
	if err != nil {
		return err
	}
	for id, subject := range d.policy.now.Subjects {
		if subjects[maps.SubjectKey{Generation: want, Endpoint: uint32(id)}] != subject.value() {
			return &MismatchError{What: fmt.Sprintf("entry of endpoint %d in map subjects", id)}
		}
	}
	identities := make(map[maps.IdentityKey]uint32)
	if _, err := walk(d.maps.Identities, func(key maps.IdentityKey, value uint32) { identities[key] = value }); err != nil {
		return err
	}
	for prefix, identity := range d.policy.now.identities() {
		if got, there := identities[maps.NewIdentityKey(want, prefix)]; !there || got != identity {
			return &MismatchError{What: fmt.Sprintf("entry of %s in map identities", prefix)}
		}
	}
	entries := make(map[maps.PolicyKey]maps.Policy)
	err = each(d.maps.Policies, func(key maps.PolicyKey, value maps.Policy) bool {
		entries[key] = value
		return true
	})
	if err != nil {
		return err
	}
	for pair, ranges := range d.policy.now.Entries {
		keys, values := chunks(pair, ranges)
		for i, key := range keys {
			if entries[key] != values[i] {
				return &MismatchError{What: fmt.Sprintf("entry of set %d and identity %d in map policies", key.Set, key.Identity)}
			}
		}
	}
	return nil
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
	what := fmt.Sprintf("entry of endpoint %d in map subjects", id)
	if err := compare(d.maps.Subjects, maps.SubjectKey{Generation: generation, Endpoint: uint32(id)}, &value, subject.value(), what); err != nil {
		return err
	}
	for _, set := range []uint32{subject.Ingress, subject.Egress} {
		for pair, ranges := range d.policy.now.Entries {
			if set == 0 || pair.Set != set {
				continue
			}
			keys, values := chunks(pair, ranges)
			for i, key := range keys {
				var got maps.Policy
				what := fmt.Sprintf("entry of set %d and identity %d in map policies", key.Set, key.Identity)
				if err := compare(d.maps.Policies, key, &got, values[i], what); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
