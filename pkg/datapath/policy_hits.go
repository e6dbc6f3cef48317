// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	gomaps "maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/maps"
)

// PolicyHits are the numbers of new flows, by rule and by endpoint.
type PolicyHits struct {
	// Rules has those that a rule has let through, by PolicyRange.Rule.
	Rules map[uint64]uint64
	// IngressDenied and EgressDenied have those that no rule let through, by endpoint.
	IngressDenied, EgressDenied map[uint16]uint64
}

// PolicyHits reads what the programs have counted.
func (d *Datapath) PolicyHits() (PolicyHits, error) {
	h, err := d.PolicyDenied()
	if err != nil {
		return h, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	current := d.policy.generation
	counted, err := d.counted(func(generation uint32) bool { return generation == current })
	if err != nil {
		return h, err
	}
	h.Rules = make(map[uint64]uint64)
	for rule, n := range counted[current] {
		h.Rules[rule] = n
	}
	err = each(d.maps.Hits, func(rule uint64, hit maps.Hit) bool {
		h.Rules[rule] += hit.Flows
		return true
	})
	return h, err
}

// PolicyDenied reads what no rule has let through, and leaves out Rules.
func (d *Datapath) PolicyDenied() (PolicyHits, error) {
	h := PolicyHits{IngressDenied: make(map[uint16]uint64), EgressDenied: make(map[uint16]uint64)}
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

// flowsByRule are numbers of new flows.
type flowsByRule map[uint64]uint64

func (f flowsByRule) add(value maps.Policy) {
	for _, r := range value.Ranges {
		if r.Rule != 0 && r.Flows != 0 {
			f[r.Rule] += r.Flows
		}
	}
}

// counted reads what the rules of the generations for which which holds have let through.
func (d *Datapath) counted(which func(uint32) bool) (map[uint32]flowsByRule, error) {
	counted := make(map[uint32]flowsByRule)
	err := each(d.maps.Policies, func(key maps.PolicyKey, value maps.Policy) bool {
		if which(key.Generation) {
			if counted[key.Generation] == nil {
				counted[key.Generation] = make(flowsByRule)
			}
			counted[key.Generation].add(value)
		}
		return true
	})
	return counted, err
}

// settleHits adds to map hits what the rules have let through in the generations for which
// gone holds: no program asks these any more. If it is done again, or was interrupted,
// nothing counts twice. Rules that are not wanted are left out; nil wants all.
func (d *Datapath) settleHits(gone func(uint32) bool, wanted map[uint64]bool) error {
	counted, err := d.counted(gone)
	if err != nil {
		return err
	}
	for _, generation := range slices.Sorted(gomaps.Keys(counted)) {
		if err := d.addHits(counted[generation], generation, wanted); err != nil {
			return err
		}
	}
	return nil
}

// addHits adds what the rules of a generation have let through, unless that is in already. Of more
// rules than there is room for some are left out: that is no reason to refuse a policy.
func (d *Datapath) addHits(flows flowsByRule, generation uint32, wanted map[uint64]bool) error {
	// Those that are there have room.
	var there, others struct {
		rules  []uint64
		values []maps.Hit
	}
	for rule, n := range flows {
		if wanted != nil && !wanted[rule] {
			continue
		}
		var hit maps.Hit
		err := d.maps.Hits.Lookup(rule, &hit)
		if err := ignoreMissing(err); err != nil {
			return fmt.Errorf("read map hits: %w", err)
		}
		if hit.Generation >= generation {
			continue
		}
		some := &there
		if err != nil {
			some = &others
		}
		some.rules = append(some.rules, rule)
		some.values = append(some.values, maps.Hit{Flows: hit.Flows + n, Generation: generation})
	}
	err := writeAll(d.maps.Hits, there.rules, there.values)
	if err == nil {
		err = writeAll(d.maps.Hits, others.rules, others.values)
	}
	if errors.Is(err, unix.E2BIG) {
		d.log.Warn("new flows of some rules are not counted any more: map hits is full", "of", len(others.rules))
		return nil
	}
	if err != nil {
		return fmt.Errorf("write map hits: %w", err)
	}
	return nil
}

// keepHits forgets what all rules have let through but those.
func (d *Datapath) keepHits(wanted map[uint64]bool) error {
	stale, err := keysWhere[uint64, maps.Hit](d.maps.Hits, func(rule uint64) bool { return !wanted[rule] })
	return errors.Join(err, removeAll(d.maps.Hits, stale))
}
