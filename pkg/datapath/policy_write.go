// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	gomaps "maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/pkg/maps"
)

// ReconcilePolicy has the programs ask this policy, from one packet to the next: each
// packet is judged by all of the policy before or by all of this one. Where it only has
// subjects more or less, nothing else is judged anew. If it fails, the policy before
// stays. The error is a *TooBigError where the maps have no room.
func (d *Datapath) ReconcilePolicy(p Policy) error {
	if err := p.check(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.policy.known {
		if err := d.learnPolicy(); err != nil {
			return err
		}
	}
	if d.policy.known && d.policy.now.Active && p.Active && d.policy.now.grewTo(p) {
		return d.growPolicy(p)
	}
	return d.replacePolicy(p)
}

// grewTo tells whether next differs from p in subjects that came or went, and what they need.
func (p Policy) grewTo(next Policy) bool {
	for id, subject := range p.Subjects {
		if now, there := next.Subjects[id]; there && now != subject {
			return false
		}
	}
	return gomaps.Equal(p.Identities, next.Identities)
}

// learnPolicy removes what a predecessor has left half done.
func (d *Datapath) learnPolicy() error {
	var current uint32
	if err := d.maps.PolicyGeneration.Lookup(uint32(0), &current); err != nil {
		return fmt.Errorf("read map policy_generation: %w", err)
	}
	d.policy.generation = current
	if err := d.removeGenerations(func(generation uint32) bool { return generation != current }); err != nil {
		return err
	}
	return nil
}

func (d *Datapath) growPolicy(p Policy) error {
	before := d.policy.now
	written, err := d.writeEntries(before, p)
	if err != nil {
		return errors.Join(err, d.removeEntries(written))
	}
	if err := errors.Join(d.writeHits(p), d.clearDenied(before, p)); err != nil {
		return errors.Join(err, d.removeEntries(written))
	}
	var keys []maps.SubjectKey
	var values []maps.Subject
	for id, subject := range p.Subjects {
		if _, there := before.Subjects[id]; !there {
			keys = append(keys, maps.SubjectKey{Generation: d.policy.generation, Endpoint: uint32(id)})
			values = append(values, subject.value())
		}
	}
	if err := writeAll(d.maps.Subjects, keys, values); err != nil {
		return errors.Join(fmt.Errorf("write map subjects: %w", err), removeAll(d.maps.Subjects, keys), d.removeEntries(written))
	}
	d.policy.now = p
	var gone []maps.SubjectKey
	for id := range before.Subjects {
		if _, there := p.Subjects[id]; !there {
			gone = append(gone, maps.SubjectKey{Generation: d.policy.generation, Endpoint: uint32(id)})
		}
	}
	return errors.Join(removeAll(d.maps.Subjects, gone), d.removeStale(before, p))
}

func (d *Datapath) replacePolicy(p Policy) error {
	before := d.policy.now
	next := uint32(0)
	var written []maps.PolicyKey
	if p.Active {
		next = max(1, d.policy.generation+1)
		var err error
		if written, err = d.writeGeneration(before, p, next); err != nil {
			return errors.Join(err, d.removeGenerations(func(g uint32) bool { return g == next }), d.removeEntries(written))
		}
	}
	failpoint.Hit(failpoint.AgentPolicyWritten)
	// One write, and all of it counts.
	if err := d.maps.PolicyGeneration.Put(uint32(0), next); err != nil {
		return errors.Join(fmt.Errorf("write map policy_generation: %w", err),
			d.removeGenerations(func(g uint32) bool { return g == next }), d.removeEntries(written))
	}
	known := d.policy.known
	d.policy.known, d.policy.now = true, p
	d.policy.generation = max(d.policy.generation, next)
	changed := d.bumpEpoch(0)
	failpoint.Hit(failpoint.AgentPolicyCounts)
	// A packet under way may still ask the one before, and another CPU's may have seen the new
	// epoch before the new policy: what they have decided is decided again.
	errs := []error{changed, waitForPrograms(), d.bumpEpoch(0), d.removeGenerations(func(g uint32) bool { return g != next })}
	if !p.Active {
		errs = append(errs, d.writeHits(Policy{}))
	}
	if known {
		errs = append(errs, d.removeStale(before, p))
	} else {
		errs = append(errs, d.removeUnknown(p))
	}
	return errors.Join(errs...)
}

func (d *Datapath) writeGeneration(before, p Policy, generation uint32) ([]maps.PolicyKey, error) {
	written, err := d.writeEntries(before, p)
	if err != nil {
		return written, err
	}
	if err := d.writeHits(p); err != nil {
		return written, err
	}
	if d.policy.known {
		if err := d.clearDenied(before, p); err != nil {
			return written, err
		}
	}
	for prefix, identity := range p.identities() {
		// A trie takes no batches on 5.10.
		if err := d.maps.Identities.Put(maps.NewIdentityKey(generation, prefix), identity); err != nil {
			return written, fmt.Errorf("write map identities: %w", err)
		}
	}
	keys := make([]maps.SubjectKey, 0, len(p.Subjects))
	values := make([]maps.Subject, 0, len(p.Subjects))
	for id, subject := range p.Subjects {
		keys = append(keys, maps.SubjectKey{Generation: generation, Endpoint: uint32(id)})
		values = append(values, subject.value())
	}
	if err := writeAll(d.maps.Subjects, keys, values); err != nil {
		return written, fmt.Errorf("write map subjects: %w", err)
	}
	return written, nil
}

// identities are those of the policy, as the trie has them.
func (p *Policy) identities() map[netip.Prefix]uint32 {
	everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if _, there := p.Identities[everything]; there {
		return p.Identities
	}
	for prefix := range p.Identities {
		if maps.CoversIPv4(prefix) {
			guarded := gomaps.Clone(p.Identities)
			guarded[everything] = 0
			return guarded
		}
	}
	return p.Identities
}

// chunks are the values of map policies that a pair has.
func chunks(pair PolicyPair, ranges []PolicyRange) (keys []maps.PolicyKey, values []maps.Policy) {
	for i := 0; i < len(ranges); i += PolicyEntryRanges {
		var value maps.Policy
		for j, r := range ranges[i:min(len(ranges), i+PolicyEntryRanges)] {
			value.Ranges[j] = maps.PolicyRange{Rule: r.Rule, First: r.First, Last: r.Last, Protocol: r.Protocol}
		}
		if i+PolicyEntryRanges < len(ranges) {
			value.More = 1
		}
		keys = append(keys, maps.PolicyKey{Set: pair.Set, Identity: pair.Identity, Chunk: uint32(i / PolicyEntryRanges)})
		values = append(values, value)
	}
	return keys, values
}

// writeEntries writes those that are not there yet. It returns their keys, also when it fails:
// nothing that counts needs them.
func (d *Datapath) writeEntries(before, p Policy) ([]maps.PolicyKey, error) {
	there := make(map[maps.PolicyKey]maps.Policy)
	if !d.policy.known {
		// Another agent has written some, or others have removed some of ours.
		if err := each(d.maps.Policies, func(key maps.PolicyKey, value maps.Policy) bool {
			there[key] = value
			return true
		}); err != nil {
			return nil, err
		}
	}
	var keys []maps.PolicyKey
	var values []maps.Policy
	for pair, ranges := range p.Entries {
		if _, known := before.Entries[pair]; known {
			continue
		}
		k, v := chunks(pair, ranges)
		for i := range k {
			if got, is := there[k[i]]; !is || got != v[i] {
				keys, values = append(keys, k[i]), append(values, v[i])
			}
		}
	}
	if err := writeAll(d.maps.Policies, keys, values); err != nil {
		return keys, fmt.Errorf("write map policies: %w", err)
	}
	return keys, nil
}

func (d *Datapath) removeEntries(keys []maps.PolicyKey) error {
	return removeAll(d.maps.Policies, keys)
}

// rules are those of a policy, by the keys of their counters.
func (p *Policy) rules() map[uint64]bool {
	rules := make(map[uint64]bool)
	for _, ranges := range p.Entries {
		for _, r := range ranges {
			rules[r.Rule] = true
		}
	}
	return rules
}

// writeHits makes the map of hits have the counters of the policy's rules, and of no others.
// What the rules that go still count is lost.
func (d *Datapath) writeHits(p Policy) error {
	wanted := p.rules()
	var stale []uint64
	if err := each(d.maps.Hits, func(rule, _ uint64) bool {
		if !wanted[rule] {
			stale = append(stale, rule)
		}
		delete(wanted, rule)
		return true
	}); err != nil {
		return err
	}
	if err := removeAll(d.maps.Hits, stale); err != nil {
		return fmt.Errorf("write map hits: %w", err)
	}
	keys := slices.Collect(gomaps.Keys(wanted))
	if err := writeAll(d.maps.Hits, keys, make([]uint64, len(keys))); err != nil {
		return fmt.Errorf("write map hits: %w", err)
	}
	return nil
}

// clearDenied lets the counters of endpoints begin that had no subject before: another may
// have had the id.
func (d *Datapath) clearDenied(before, p Policy) error {
	for id := range p.Subjects {
		if _, there := before.Subjects[id]; there {
			continue
		}
		for _, at := range []uint32{deniedAt(id, false), deniedAt(id, true)} {
			if err := d.maps.Denied.Put(at, uint64(0)); err != nil {
				return fmt.Errorf("write map denied: %w", err)
			}
		}
	}
	return nil
}

// deniedAt is DENIED_AT of bpf/lib/types.h.
func deniedAt(endpoint uint16, egress bool) uint32 {
	at := uint32(endpoint) << 1
	if egress {
		at |= 1
	}
	return at
}

// removeStale removes the entries that only the policy before needs.
func (d *Datapath) removeStale(before, p Policy) error {
	var keys []maps.PolicyKey
	for pair, ranges := range before.Entries {
		if _, there := p.Entries[pair]; !there {
			k, _ := chunks(pair, ranges)
			keys = append(keys, k...)
		}
	}
	return d.removeEntries(keys)
}

// removeUnknown removes what the policy does not need, of a predecessor's.
func (d *Datapath) removeUnknown(p Policy) error {
	wanted := make(map[maps.PolicyKey]bool)
	for pair, ranges := range p.Entries {
		keys, _ := chunks(pair, ranges)
		for _, key := range keys {
			wanted[key] = true
		}
	}
	stale, err := keysWhere[maps.PolicyKey, maps.Policy](d.maps.Policies, func(key maps.PolicyKey) bool { return !wanted[key] })
	return errors.Join(err, d.removeEntries(stale))
}

// removeGenerations removes subjects and identities of the generations for which gone holds.
func (d *Datapath) removeGenerations(gone func(uint32) bool) error {
	subjects, err := keysWhere[maps.SubjectKey, maps.Subject](d.maps.Subjects, func(key maps.SubjectKey) bool { return gone(key.Generation) })
	var identities []maps.IdentityKey
	_, err2 := walk(d.maps.Identities, func(key maps.IdentityKey, _ uint32) {
		if gone(key.Generation) {
			identities = append(identities, key)
		}
	})
	return errors.Join(err, err2, removeAll(d.maps.Subjects, subjects), removeAll(d.maps.Identities, identities))
}

// walk calls f for every entry of a trie, which takes no batches before Linux 5.16.
func walk[K, V any](m *ebpf.Map, f func(K, V)) (n uint64, err error) {
	var (
		key   K
		value V
	)
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		f(key, value)
		n++
	}
	if err := entries.Err(); err != nil {
		return n, fmt.Errorf("read %s: %w", m, err)
	}
	return n, nil
}

// writeAll writes many entries of a hash map in one call of the kernel.
func writeAll[K, V any](m *ebpf.Map, keys []K, values []V) error {
	if len(keys) == 0 {
		return nil
	}
	_, err := m.BatchUpdate(keys, values, nil)
	return err
}
