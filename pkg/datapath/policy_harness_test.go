// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	gomaps "maps"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// Numbers of the sets and identities of these tests, and of the hits of their rules.
const (
	ofA = iota + 100
	ofB
	ofC
	ofWorld
	setOne // a set

	ruleOne = 1<<63 | iota
	ruleTwo
)

// policy is one where the endpoints have an identity each, no restriction, and networks of
// their own. The world has an identity without any rule.
func (n *node) policy() Policy {
	p := Policy{
		Active: true,
		Subjects: map[uint16]Subject{
			n.a.ID: {Identity: ofA, Network: 1}, n.b.ID: {Identity: ofB, Network: 1}, n.c.ID: {Identity: ofC, Network: 2},
		},
		Identities: make(map[netip.Prefix]uint32),
		Entries:    make(map[PolicyPair][]PolicyRange),
	}
	for _, f := range []family{v4(), v6()} {
		p.Identities[netip.PrefixFrom(f.world, f.world.BitLen()-4).Masked()] = ofWorld
	}
	return p
}

// allow lets an identity through in a set: all, or one port of a protocol.
func (p Policy) allow(set, identity uint32, ranges ...PolicyRange) Policy {
	if len(ranges) == 0 {
		ranges = []PolicyRange{{Last: 65535, Rule: ruleOne}}
	}
	pair := PolicyPair{set, identity}
	p.Entries[pair] = append(p.Entries[pair], ranges...)
	return p
}

// restrict changes what policy says of an endpoint.
func (p Policy) restrict(e Endpoint, change func(*Subject)) Policy {
	s := p.Subjects[e.ID]
	change(&s)
	p.Subjects[e.ID] = s
	return p
}

// policies makes a policy anew each time: one that is changed is changed for all who have it.
type policies func() Policy

// restrict is such a policy that restricts an endpoint, allow one that lets it talk with an identity's services alone.
func (of policies) restrict(e Endpoint, change func(*Subject)) func() Policy {
	return func() Policy { return of().restrict(e, change) }
}

func (of policies) allow(e Endpoint, change func(*Subject), identity uint32) func() Policy {
	return func() Policy { return of().restrict(e, change).services(identity) }
}

func ingress(s *Subject) { s.Ingress = setOne }
func egress(s *Subject)  { s.Egress = setOne }
func both(s *Subject)    { s.Egress, s.Ingress = setOne, setOne+1 }

// enforce has the programs ask the policy until the test ends.
func (n *node) enforce(t *testing.T, p Policy) {
	t.Helper()
	n.forget(t)
	must(t, n.ReconcilePolicy(p))
	t.Cleanup(func() { must(t, n.ReconcilePolicy(Policy{})) })
}

// denied is a packet that policy drops.
func denied(reason string, counters ...string) want { return drops(append(counters, reason)...) }

// services leaves prefixes to others until the test ends.
func (n *node) services(t *testing.T, prefixes ...netip.Prefix) {
	t.Helper()
	must(t, n.ReconcileStackDestinations(prefixes))
	t.Cleanup(func() { must(t, n.ReconcileStackDestinations(nil)) })
}

// between is a packet from one endpoint to another, and the frame that arrives.
func (n *node) between(from, to Endpoint, src, dst netip.Addr, inner []packet.Layer) (in run, out []byte) {
	return n.from(from, ip(src, dst, 64, inner...)...), delivered(to, ip(src, dst, 63, inner...)...)
}

// tracked1 is a flow that is tracked.
type tracked1 struct {
	client, server netip.Addr
	state          uint8
}

func (n *node) wantTracked(t *testing.T, want ...tracked1) {
	t.Helper()
	var got []tracked1
	must(t, each(n.maps.Translations, func(key maps.FlowKey, value maps.Translation) bool {
		if key.Kind == maps.KeyTracked {
			got = append(got, tracked1{maps.Addr(key.Destination), maps.Addr(key.Source), value.State})
		}
		return true
	}))
	if diff := gocmp.Diff(want, got, gocmp.AllowUnexported(tracked1{}), cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("tracked (-want +got):\n%s", diff)
	}
}

// wantHits compares the counters of rules and denials that are not zero.
func (n *node) wantHits(t *testing.T, want PolicyHits) {
	t.Helper()
	got, err := n.PolicyHits()
	must(t, err)
	for _, m := range []map[uint16]uint64{got.IngressDenied, got.EgressDenied} {
		gomaps.DeleteFunc(m, func(_ uint16, n uint64) bool { return n == 0 })
	}
	gomaps.DeleteFunc(got.Rules, func(_, n uint64) bool { return n == 0 })
	if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("hits (-want +got):\n%s", diff)
	}
}

// locked has a map refuse to be written, until it is called.
func locked(t *testing.T, m **ebpf.Map) (unlock func()) {
	t.Helper()
	good, pin := *m, filepath.Join(nstest.BPFFS(t), "locked")
	pinned, err := good.Clone()
	must(t, err)
	must(t, pinned.Pin(pin))
	bad, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
	must(t, errors.Join(err, pinned.Unpin(), pinned.Close()))
	*m = bad
	return func() {
		*m = good
		must(t, bad.Close())
	}
}

// generation is the generation that counts.
func (n *node) generation() (generation uint32) {
	if err := n.maps.PolicyGeneration.Lookup(uint32(0), &generation); err != nil {
		panic(fmt.Sprint(err))
	}
	return generation
}
