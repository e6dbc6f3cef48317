// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	gomaps "maps"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/pkg/maps"
)

// Policy is what the programs ask. Sets and identities are numbers for contents, and no
// number is used again for another one.
type Policy struct {
	// Active says that somebody is restricted. If not, nothing is asked.
	Active bool
	// Subjects has each endpoint that is served, by id.
	Subjects map[uint16]Subject
	// Identities of addresses that are no endpoint's of the node, by longest prefix.
	Identities map[netip.Prefix]uint32
	// Entries are what a set lets through for an identity; 0 is everybody.
	Entries map[PolicyPair][]PolicyRange
}

// Subject is what policy says of an endpoint.
type Subject struct {
	// Ingress and Egress are sets, 0 where nothing restricts.
	Ingress, Egress uint32
	Identity        uint32
	// ByAddress says that Identities has that of each address.
	ByAddress bool
	// Network is the number of its network, whose endpoints NoOwn refuses; NoOthers
	// refuses those of other networks.
	Network         uint32
	NoOthers, NoOwn bool
}

func (s Subject) value() maps.Subject {
	value := maps.Subject{Ingress: s.Ingress, Egress: s.Egress, Identity: s.Identity, Network: s.Network}
	for flag, set := range map[uint32]bool{
		maps.SubjectNoOthers: s.NoOthers, maps.SubjectNoOwn: s.NoOwn, maps.SubjectByAddress: s.ByAddress,
	} {
		if set {
			value.Flags |= flag
		}
	}
	return value
}

// PolicyPair is a set and an identity.
type PolicyPair struct{ Set, Identity uint32 }

// PolicyRange are destination ports that a rule lets through.
type PolicyRange struct {
	First, Last uint16
	// Protocol is 0 for all, whatever the ports.
	Protocol uint8
	// Rule is the key of the rule's hits, not 0.
	Rule uint64
}

// Bounds of a policy. The maps hold two of each kind but the rules, because the next one
// is written before this one goes.
const (
	// PolicyPrefixes bounds Policy.Identities.
	PolicyPrefixes = 65536
	// PolicyEntries bounds the values of map policies: one for four ranges of a pair.
	PolicyEntries = 65536
	// PolicyPairRanges bounds the ranges of a pair.
	PolicyPairRanges = 4 * 128
	// PolicyRules bounds the rules, each of which is counted.
	PolicyRules = 131072
	// PolicySubjects bounds Policy.Subjects.
	PolicySubjects = 16384
)

// rangesPerEntry is POLICY_RANGES of bpf/lib/types.h.
const rangesPerEntry = len(maps.Policy{}.Ranges)

// TooBigError is a policy that the maps have no room for. The one before stays.
type TooBigError struct {
	// What there is too much of, and of whom.
	What        string
	Need, Limit int
}

func (e *TooBigError) Error() string {
	return fmt.Sprintf("policy needs %d %s, and %d fit", e.Need, e.What, e.Limit)
}

// writtenPolicy is what the maps hold.
type writtenPolicy struct {
	known bool
	// generation is the last that was written, whether or not it counts.
	generation uint32
	now        Policy
}

func (p *Policy) check() error {
	chunks := 0
	for pair, ranges := range p.Entries {
		if len(ranges) > PolicyPairRanges {
			return &TooBigError{What: fmt.Sprintf("ranges of ports for identity %d in set %d", pair.Identity, pair.Set), Need: len(ranges), Limit: PolicyPairRanges}
		}
		chunks += (len(ranges) + rangesPerEntry - 1) / rangesPerEntry
	}
	switch {
	case chunks > PolicyEntries:
		return &TooBigError{What: "entries", Need: chunks, Limit: PolicyEntries}
	case len(p.Subjects) > PolicySubjects:
		return &TooBigError{What: "subjects", Need: len(p.Subjects), Limit: PolicySubjects}
	case len(p.rules()) > PolicyRules:
		return &TooBigError{What: "rules", Need: len(p.rules()), Limit: PolicyRules}
	case len(p.Identities) >= PolicyPrefixes:
		return &TooBigError{What: "prefixes", Need: len(p.Identities), Limit: PolicyPrefixes}
	}
	return nil
}

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
	waitForPrograms()
	errs := []error{changed, d.bumpEpoch(0), d.removeGenerations(func(g uint32) bool { return g != next })}
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
	for i := 0; i < len(ranges); i += rangesPerEntry {
		var value maps.Policy
		for j, r := range ranges[i:min(len(ranges), i+rangesPerEntry)] {
			value.Ranges[j] = maps.PolicyRange{Rule: r.Rule, First: r.First, Last: r.Last, Protocol: r.Protocol}
		}
		if i+rangesPerEntry < len(ranges) {
			value.More = 1
		}
		keys = append(keys, maps.PolicyKey{Set: pair.Set, Identity: pair.Identity, Chunk: uint32(i / rangesPerEntry)})
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
	var stale []maps.PolicyKey
	err := each(d.maps.Policies, func(key maps.PolicyKey, _ maps.Policy) bool {
		if !wanted[key] {
			stale = append(stale, key)
		}
		return true
	})
	return errors.Join(err, d.removeEntries(stale))
}

// removeGenerations removes subjects and identities of the generations for which gone holds.
func (d *Datapath) removeGenerations(gone func(uint32) bool) error {
	var subjects []maps.SubjectKey
	err := each(d.maps.Subjects, func(key maps.SubjectKey, _ maps.Subject) bool {
		if gone(key.Generation) {
			subjects = append(subjects, key)
		}
		return true
	})
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

// waitForPrograms returns when all programs that were running have ended. TC programs run
// with bottom halves off, which a grace period of RCU waits for (since Linux 4.20); a global
// memory barrier is one. Where the kernel has none (nohz_full), a moment serves: a program
// runs for microseconds.
func waitForPrograms() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL of linux/membarrier.h
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		time.Sleep(50 * time.Millisecond) //nolint:forbidigo // there is nothing to wait for
	}
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
