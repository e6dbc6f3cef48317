// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	gomaps "maps"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/pkg/maps"
)

// ReconcilePolicy has the programs ask this policy, from one packet to the next: each
// packet is judged by all of the policy before or by all of this one. Where it only has
// subjects more or less, nothing else is judged anew, as a rule, and those that are gone stay
// in the map until Purge. If it fails, the policy before stays, or counts for what it has
// decided already. The error is a *TooBigError where the maps have no room.
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
	if err := d.finishPolicy(); err != nil {
		return err
	}
	if d.policy.now.Active && p.Active && d.policy.now.grewTo(p) {
		if grown, err := d.growPolicy(p); grown || err != nil {
			return err
		}
	}
	return d.replacePolicy(p)
}

// grewTo tells whether next differs from p in subjects that came or went, and what they need. What they
// do not need any more nobody asks for: nothing is gone that lets one who is still there through.
func (p Policy) grewTo(next Policy) bool {
	for id, subject := range p.Subjects {
		if now, there := next.Subjects[id]; there && now != subject {
			return false
		}
	}
	if !gomaps.Equal(p.Identities, next.Identities) {
		return false
	}
	sets, identities := next.sets(), next.numbers()
	for pair := range p.Entries {
		if _, there := next.Entries[pair]; !there && sets[pair.Set] && identities[pair.Identity] {
			return false
		}
	}
	return true
}

// learnPolicy finds out which generation of a predecessor counts, and removes what it has left half
// done.
func (d *Datapath) learnPolicy() error {
	var current uint32
	if err := d.maps.PolicyGeneration.Lookup(uint32(0), &current); err != nil {
		return fmt.Errorf("read map policy_generation: %w", err)
	}
	// A program that still asks the others must have ended before they are counted.
	if err := d.grace(); err != nil {
		return err
	}
	if err := d.endGenerations(func(generation uint32) bool { return generation != current }, nil); err != nil {
		return err
	}
	// No number is used again that hits have counted for, just now or before.
	last := current
	if err := each(d.maps.Hits, func(_ uint64, hit maps.Hit) bool {
		last = max(last, hit.Generation)
		return true
	}); err != nil {
		return err
	}
	d.policy.generation, d.policy.last = current, last
	return nil
}

// endGenerations removes all of the generations for which gone holds and which no program asks any more,
// and keeps what their rules have counted. It stops at the first step that fails, and can be repeated.
func (d *Datapath) endGenerations(gone func(uint32) bool, wanted map[uint64]bool) error {
	left, err := d.keysOf(gone)
	if err != nil || left.none() {
		return err
	}
	if err := d.settleHits(gone, wanted); err != nil {
		return err
	}
	return d.remove(left)
}

// finishPolicy ends what a change of policy has left to be done, if anything.
func (d *Datapath) finishPolicy() error {
	if !d.policy.unfinished {
		return nil
	}
	if err := d.decideAnew(); err != nil {
		return err
	}
	return d.endFormer()
}

// decideAnew has all decisions of the former policy taken again. No program asks that any more then.
func (d *Datapath) decideAnew() error {
	// A packet under way may still ask the one before, and another CPU's may have seen the new
	// epoch before the new policy: what they have decided is decided again.
	return errors.Join(d.bumpEpoch(0), d.grace(), d.bumpEpoch(0))
}

// endFormer keeps what the former policy has counted, and removes it.
func (d *Datapath) endFormer() error {
	rules := d.policy.now.rules()
	if err := d.keepHits(rules); err != nil {
		return err
	}
	current := d.policy.generation
	if err := d.endGenerations(func(generation uint32) bool { return generation != current }, rules); err != nil {
		return err
	}
	d.policy.unfinished = false
	return nil
}

// growPolicy changes the generation that counts, where nothing that is in it needs to be
// another. What nobody needs any more stays in it. If it fails, whom it should have added is
// shut, though the endpoint may have been in it before.
func (d *Datapath) growPolicy(p Policy) (grown bool, err error) {
	before, places := d.policy.now, d.policy.places
	numbers := p.numbers()
	places.give(numbers)
	entries := policyEntries(d.policy.generation, pairsBesides(before.Entries, p.Entries), places)
	for key, value := range entries {
		if there, ok := d.policy.entries[key]; ok {
			if !contains(there, value) {
				return false, nil // the next generation has them in order
			}
			delete(entries, key)
		}
	}
	gone := d.policy.goneBy(p)
	if places.next >= maxPlace || places.isLoose(numbers) || len(d.policy.entries)+len(entries) > d.policy.growth || len(p.Subjects)+len(gone) > PolicySubjects {
		return false, nil
	}
	var keys []maps.SubjectKey
	var values []maps.Subject
	for id, subject := range p.Subjects {
		if _, there := before.Subjects[id]; !there {
			keys = append(keys, maps.SubjectKey{Generation: d.policy.generation, Endpoint: uint32(id)})
			values = append(values, subject.value(places))
		}
	}
	if err = errors.Join(d.writeEntries(entries), d.clearDenied(before, p)); err == nil {
		if err = writeAll(d.maps.Subjects, keys, values); err != nil {
			err = fmt.Errorf("write map subjects: %w", err)
		}
	}
	if err != nil {
		return false, errors.Join(err, removeAll(d.maps.Subjects, keys), removeAll(d.maps.Policies, slices.Collect(gomaps.Keys(entries))))
	}
	gomaps.Copy(d.policy.entries, entries)
	d.policy.now, d.policy.gone = p, gone
	return true, nil
}

// goneBy is what gone is when p has taken the place of now.
func (w *writtenPolicy) goneBy(p Policy) map[uint16]bool {
	gone := make(map[uint16]bool)
	keep := func(id uint16) {
		if _, there := p.Subjects[id]; !there {
			gone[id] = true
		}
	}
	for id := range w.gone {
		keep(id)
	}
	for id := range w.now.Subjects {
		keep(id)
	}
	return gone
}

// purgeSubjects removes the subjects of endpoints that no program knows any more. Of one that is in now the policy
// has not been told that it is gone: whoever gets its id is told of first, and written over it.
func (d *Datapath) purgeSubjects(ids []uint16) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var keys []maps.SubjectKey
	for _, id := range ids {
		if d.policy.gone[id] {
			keys = append(keys, maps.SubjectKey{Generation: d.policy.generation, Endpoint: uint32(id)})
		}
	}
	if err := removeAll(d.maps.Subjects, keys); err != nil {
		return fmt.Errorf("write map subjects: %w", err)
	}
	for _, key := range keys {
		delete(d.policy.gone, uint16(key.Endpoint))
	}
	return nil
}

// contains says whether an entry has the ranges of another.
func contains(entry, other maps.Policy) bool {
	for i, r := range other.Ranges {
		if r.Rule != 0 && entry.Ranges[i] != r {
			return false
		}
	}
	return true
}

// pairsBesides are the pairs of b that a has not.
func pairsBesides(a, b map[PolicyPair][]PolicyRange) map[PolicyPair][]PolicyRange {
	out := make(map[PolicyPair][]PolicyRange)
	for pair, ranges := range b {
		if _, there := a[pair]; !there {
			out[pair] = ranges
		}
	}
	return out
}

// replacePolicy writes a generation of its own for a policy, and has it count.
func (d *Datapath) replacePolicy(p Policy) error {
	next := writtenPolicy{known: true, now: p, last: d.policy.last}
	if p.Active {
		d.policy.last++ // whatever becomes of this one
		next.last, next.generation = d.policy.last, d.policy.last
		next.places = newIdentityPlaces(p)
		next.entries = policyEntries(next.generation, p.Entries, next.places)
		next.growth = min(2*len(next.entries)+4096, PolicyEntries)
		if err := d.writeGeneration(&next); err != nil {
			return errors.Join(err, d.abandon(&next))
		}
	}
	failpoint.Hit(failpoint.AgentPolicyWritten)
	// Who has found an endpoint that is gone asks the generation before, or none.
	if p.Active {
		if err := d.grace(); err != nil {
			return errors.Join(err, d.abandon(&next))
		}
	}
	// One write, and all of it counts.
	if err := d.maps.PolicyGeneration.Put(uint32(0), next.generation); err != nil {
		return errors.Join(fmt.Errorf("write map policy_generation: %w", err), d.abandon(&next))
	}
	closed := d.policy.tree.Close()
	d.policy, d.policy.unfinished = next, true
	failpoint.Hit(failpoint.AgentPolicyCounts)
	if err := d.decideAnew(); err != nil {
		return errors.Join(fmt.Errorf("what the former policy has decided may still count: %w", err), closed)
	}
	// That the former one is still there is no failure of this one.
	if err := errors.Join(closed, d.endFormer()); err != nil {
		d.log.Error("the former policy is not removed yet", "error", err)
	}
	return nil
}

// abandon removes a generation that does not count.
func (d *Datapath) abandon(w *writtenPolicy) error {
	err := w.tree.Close()
	left, err2 := d.keysOf(func(generation uint32) bool { return generation == w.generation })
	if err = errors.Join(err, err2, d.remove(left)); err != nil {
		d.policy.unfinished = d.policy.known // if not, all is learned again
	}
	return err
}

// writeGeneration writes all of a policy that is not asked yet.
func (d *Datapath) writeGeneration(w *writtenPolicy) (err error) {
	if len(w.entries) > PolicyEntries {
		return &TooBigError{What: "entries", Need: len(w.entries), Limit: PolicyEntries}
	}
	if err := d.writeEntries(w.entries); err != nil {
		return err
	}
	if d.policy.known {
		if err := d.clearDenied(d.policy.now, w.now); err != nil {
			return err
		}
	}
	if w.nodes, err = newIdentityTree(w.places.identities(w.now)); err != nil {
		return err
	}
	if w.tree, err = d.writeIdentities(w.generation, w.nodes); err != nil {
		return err
	}
	keys := make([]maps.SubjectKey, 0, len(w.now.Subjects))
	values := make([]maps.Subject, 0, len(w.now.Subjects))
	for id, subject := range w.now.Subjects {
		keys = append(keys, maps.SubjectKey{Generation: w.generation, Endpoint: uint32(id)})
		values = append(values, subject.value(w.places))
	}
	if err := writeAll(d.maps.Subjects, keys, values); err != nil {
		return fmt.Errorf("write map subjects: %w", err)
	}
	return nil
}

func (d *Datapath) writeEntries(entries map[maps.PolicyKey]maps.Policy) error {
	keys := make([]maps.PolicyKey, 0, len(entries))
	values := make([]maps.Policy, 0, len(entries))
	for key, value := range entries {
		keys, values = append(keys, key), append(values, value)
	}
	if err := writeAll(d.maps.Policies, keys, values); err != nil {
		return fmt.Errorf("write map policies: %w", err)
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

// policyKeys are what maps have of some generations.
type policyKeys struct {
	subjects []maps.SubjectKey
	entries  []maps.PolicyKey
	trees    []uint32
}

func (k *policyKeys) none() bool { return len(k.subjects)+len(k.entries)+len(k.trees) == 0 }

func (d *Datapath) keysOf(which func(generation uint32) bool) (k policyKeys, err error) {
	k.subjects, err = keysWhere[maps.SubjectKey, maps.Subject](d.maps.Subjects, func(key maps.SubjectKey) bool { return which(key.Generation) })
	if err != nil {
		return k, err
	}
	k.entries, err = keysWhere[maps.PolicyKey, maps.Policy](d.maps.Policies, func(key maps.PolicyKey) bool { return which(key.Generation) })
	if err != nil {
		return k, err
	}
	_, err = walk(d.maps.Identities, func(generation, _ uint32) {
		if which(generation) {
			k.trees = append(k.trees, generation)
		}
	})
	return k, err
}

func (d *Datapath) remove(k policyKeys) error {
	return errors.Join(removeAll(d.maps.Subjects, k.subjects), removeAll(d.maps.Policies, k.entries), removeAll(d.maps.Identities, k.trees))
}

// walk calls f for every entry of a map that takes no batches, as a trie before Linux 5.16.
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

// writeAll writes many entries of a map in one call of the kernel.
func writeAll[K, V any](m *ebpf.Map, keys []K, values []V) error {
	if len(keys) == 0 {
		return nil
	}
	_, err := m.BatchUpdate(keys, values, nil)
	return err
}
