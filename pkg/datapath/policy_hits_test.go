// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/maps"
)

// TestPolicyHits: what rules have let through counts once, whatever becomes of the policy, of the agent, or
// of a change that fails after it counts.
func TestPolicyHits(t *testing.T) {
	nstest.Halve(t, 0)
	n := newNode(t, Config{Masquerade: true})
	f := v4()
	port := uint16(low)
	// begin has a flow of its own begin from an endpoint to b.
	begin := func(from Endpoint) {
		t.Helper()
		port++
		ask, asked := n.between(from, n.b, from.Addresses[0], f.b, udp(port, server))
		n.check(t, ask, deliveredAs(asked, "decided"))
	}
	p := func() Policy {
		return n.policy().restrict(n.b, ingress).allow(setOne, ofA).
			allow(setOne, ofC, PolicyRange{Last: 65535, Rule: ruleTwo})
	}
	want := func(when string, one, two uint64) {
		t.Helper()
		got, err := n.PolicyHits()
		must(t, err)
		if got.Rules[ruleOne] != one || got.Rules[ruleTwo] != two {
			t.Errorf("%s: rules have let through %d and %d, want %d and %d", when, got.Rules[ruleOne], got.Rules[ruleTwo], one, two)
		}
	}
	alone := func(when string) {
		t.Helper()
		left, err := n.keysOf(func(g uint32) bool { return g != n.generation() })
		must(t, err)
		if !left.none() {
			t.Errorf("%s: of other generations there are %+v", when, left)
		}
		must(t, n.comparePolicy())
	}
	must(t, n.ReconcilePolicy(p()))
	begin(n.a)
	begin(n.a)
	begin(n.c)
	want("in the first generation", 2, 1)

	other := p()
	other.Identities[netip.PrefixFrom(f.world, f.world.BitLen())] = ofC
	must(t, n.ReconcilePolicy(other)) // another generation
	want("in the second", 2, 1)
	begin(n.a)
	want("in both", 3, 1)
	alone("in the second")

	grown := p()
	grown.Identities[netip.PrefixFrom(f.world, f.world.BitLen())] = ofC
	grown.Subjects[7] = Subject{Identity: 7}
	grown.allow(setOne, 7, PolicyRange{Last: 65535, Rule: ruleTwo})
	must(t, n.ReconcilePolicy(grown))
	begin(n.c)
	want("grown", 3, 2)
	must(t, n.ReconcilePolicy(other))
	want("shrunk", 3, 2)
	begin(n.c)
	must(t, n.ReconcilePolicy(grown)) // as before, where it was
	want("grown again", 3, 3)
	alone("grown again")

	must(t, n.maps.Subjects.Delete(maps.SubjectKey{Generation: n.generation(), Endpoint: uint32(n.c.ID)}))
	must(t, n.RepairPolicy())
	want("repaired", 3, 3)
	must(t, n.maps.PolicyGeneration.Put(uint32(0), uint32(1)))
	must(t, n.RepairPolicy())
	begin(n.a)
	want("repaired after another number", 4, 3)
	alone("repaired")

	// What has counted before it fails counts once.
	unlock := locked(t, &n.maps.Hits)
	must(t, n.ReconcilePolicy(p()))
	begin(n.a)
	if err := n.RepairPolicy(); err == nil {
		t.Error("a repair that cannot keep what was counted says nothing of it")
	}
	if err := n.ReconcilePolicy(other); err == nil {
		t.Error("a policy was taken while the former one cannot be ended")
	}
	unlock()
	must(t, n.RepairPolicy())
	want("after a change that was not ended", 5, 3)
	alone("after a change that was not ended")

	unlock = locked(t, &n.maps.Policies) // so that nothing can be removed after it has been counted
	if err := n.endGenerations(func(uint32) bool { return true }, nil); err == nil {
		t.Error("a map that is read only was written")
	}
	unlock()
	must(t, n.maps.Subjects.Put(maps.SubjectKey{Generation: n.generation(), Endpoint: 4711}, maps.Subject{}))
	n.Datapath.policy = writtenPolicy{} // another agent
	must(t, n.ReconcilePolicy(p()))
	want("of another agent", 5, 3)
	begin(n.c)
	want("with another agent", 5, 4)
	alone("with another agent")

	must(t, n.maps.PolicyGeneration.Put(uint32(0), uint32(0))) // the last policy went, and the agent died
	n.Datapath.policy = writtenPolicy{}
	must(t, n.ReconcilePolicy(p()))
	begin(n.a)
	must(t, n.ReconcilePolicy(other))
	want("after a policy that was not ended", 6, 4)
	alone("after a policy that was not ended")

	must(t, n.ReconcilePolicy(n.policy().restrict(n.b, ingress).allow(setOne, ofA)))
	want("without the second rule", 6, 0)
	must(t, n.ReconcilePolicy(Policy{}))
	want("without a policy", 0, 0)
	must(t, n.ReconcilePolicy(p()))
	begin(n.a)
	want("with a policy again", 1, 0)
	must(t, n.ReconcilePolicy(Policy{}))
	alone("without a policy")
}

// TestPolicyRanges: as many ranges as there may be are asked, each counts, and no other passes.
func TestPolicyRanges(t *testing.T) {
	nstest.Halve(t, 1)
	n := newNode(t, Config{Masquerade: true})
	f := v4()
	for _, count := range []int{1, 2, PolicyEntryRanges, PolicyEntryRanges + 1, PolicyEntryRanges + 2, 2*PolicyEntryRanges + 1, PolicyPairRanges} {
		p := n.policy().restrict(n.b, ingress)
		for i := range count {
			at := uint16(1000 + 2*i)
			p.allow(setOne, ofA, PolicyRange{First: at, Last: at, Protocol: 17, Rule: ruleOne + uint64(i)})
		}
		must(t, n.ReconcilePolicy(p))
		rules := make(map[uint64]uint64)
		for _, i := range []int{0, 1, count / 2, count - 1} {
			if i >= count || rules[ruleOne+uint64(i)] > 0 {
				continue
			}
			ask, asked := n.between(n.a, n.b, f.a, f.b, udp(low, uint16(1000+2*i)))
			n.check(t, ask, deliveredAs(asked, "decided"))
			rules[ruleOne+uint64(i)] = 1
		}
		n.wantHits(t, PolicyHits{Rules: rules})
		for _, port := range []uint16{999, uint16(1000 + 2*count - 1), uint16(1000 + 2*count)} {
			ask, _ := n.between(n.a, n.b, f.a, f.b, udp(low, port))
			n.check(t, ask, denied("policy_ingress", "decided"))
		}
		n.forget(t)
		must(t, n.ReconcilePolicy(Policy{}))
	}
}

// TestHitsFull: what a rule has counted before goes on where there is no room for others.
func TestHitsFull(t *testing.T) {
	n := newNode(t, Config{Masquerade: true})
	all := n.maps.Hits
	defer func() { n.maps.Hits = all }()
	spec := &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 16, MaxEntries: 1}
	var err error
	n.maps.Hits, err = ebpf.NewMap(spec)
	must(t, err)
	defer func() { must(t, n.maps.Hits.Close()) }()
	want := maps.Hit{Generation: 1, Flows: 5}
	must(t, n.maps.Hits.Put(uint64(ruleOne), want))
	for want.Generation < 10 { // whatever comes first
		want.Generation++
		want.Flows += 2
		must(t, n.addHits(flowsByRule{ruleOne: 2, ruleTwo: 1}, want.Generation, nil))
		var got maps.Hit
		must(t, n.maps.Hits.Lookup(uint64(ruleOne), &got))
		if got != want {
			t.Errorf("hits of the first rule: %+v, want %+v", got, want)
		}
	}
}
