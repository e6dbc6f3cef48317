// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"errors"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/maps"
)

// TestPolicyGrows: endpoints that come and go, and what is let through to them, are added to the generation that
// counts, unless it has been written otherwise, or what nobody needs any more is most of it.
func TestPolicyGrows(t *testing.T) {
	nstest.Halve(t, 1)
	n := newNode(t, Config{Masquerade: true})
	with := func(id uint16, pairs ...PolicyPair) Policy {
		p := n.policy().restrict(n.b, ingress).allow(setOne, ofA)
		p.Subjects[id] = Subject{Identity: 1000 + uint32(id), Ingress: setOne}
		for _, pair := range pairs {
			p.allow(pair.Set, pair.Identity)
		}
		return p
	}
	changes := func(when string, p Policy, want uint32) {
		t.Helper()
		before := n.generation()
		must(t, n.ReconcilePolicy(p))
		if got := n.generation() - before; got != want {
			t.Errorf("%s: %d generations, want %d", when, got, want)
		}
		must(t, n.comparePolicy())
		f := v4()
		ask, asked := n.between(n.a, n.b, f.a, f.b, udp(low, server))
		n.check(t, ask, deliveredAs(asked, "decided"))
		ask, _ = n.between(n.c, n.b, f.c, f.b, udp(low, server))
		n.check(t, ask, denied("policy_ingress", "decided"))
		n.forget(t)
	}
	changes("the first", n.policy().restrict(n.b, ingress).allow(setOne, ofA), 1)
	changes("another endpoint", with(7), 0)
	changes("what one of the first may", with(7, PolicyPair{setOne, ofB}), 1)
	changes("what it may no more", with(7), 1)
	changes("what the other may", with(7, PolicyPair{setOne, 1007}), 1)
	changes("one that may", with(8, PolicyPair{setOne, 1008}), 0)
	changes("the other again", with(7, PolicyPair{setOne, 1007}), 0)

	// A packet under way may have found an endpoint that goes: its subject goes when no program knows it any more.
	subjects := func(when string, want ...uint16) {
		t.Helper()
		all, err := keysWhere[maps.SubjectKey, maps.Subject](n.maps.Subjects, func(key maps.SubjectKey) bool { return key.Generation == n.generation() })
		must(t, err)
		var got []uint16
		for _, key := range all {
			got = append(got, uint16(key.Endpoint))
		}
		slices.Sort(got)
		if diff := gocmp.Diff(append(want, n.a.ID, n.b.ID, n.c.ID), got); diff != "" {
			t.Errorf("subjects %s (-want +got):\n%s", when, diff)
		}
	}
	changes("another goes", with(8), 0)
	changes("it is back", with(7), 0)
	subjects("of one that is back", 7, 8)
	must(t, n.Purge([]uint16{7, 8, n.a.ID}))
	subjects("after the purge of the other", 7)
	changes("one more", with(9), 0)
	subjects("of one that has gone", 7, 9)
	for id := range PolicySubjects - 4 { // with those of now
		n.Datapath.policy.gone[uint16(10000+id)] = true
	}
	changes("no room for one more", with(10), 1)
	subjects("in a new generation", 10)

	// A write that fails in the middle takes back what it has written, and the next one begins anew.
	unlock := locked(t, &n.maps.Subjects)
	if err := n.ReconcilePolicy(with(9, PolicyPair{setOne, 1009})); err == nil {
		t.Error("a map that is read only was written")
	}
	unlock()
	if got, err := keysWhere[maps.PolicyKey, maps.Policy](n.maps.Policies, func(maps.PolicyKey) bool { return true }); err != nil || len(got) != len(n.Datapath.policy.entries) {
		t.Errorf("after a failed write there are %d entries and %v, want %d", len(got), err, len(n.Datapath.policy.entries))
	}
	must(t, n.comparePolicy())
	changes("after a failed write", with(9, PolicyPair{setOne, 1009}), 0)

	generations := n.generation()
	const first, comers = 2000, 1200
	for id := range uint16(comers) {
		must(t, n.ReconcilePolicy(with(first+id, PolicyPair{setOne, 1000 + uint32(first+id)})))
	}
	if got := n.generation() - generations; got != 1 {
		t.Errorf("%d who came and went took %d generations, want 1", comers, got)
	}
	changes("at last", with(first+comers-1, PolicyPair{setOne, 1000 + first + comers - 1}), 0)
	n.Datapath.policy.growth = len(n.Datapath.policy.entries)
	changes("without room", with(7, PolicyPair{setOne, 1007}), 1)
	must(t, n.ReconcilePolicy(Policy{}))
}

// TestPolicyGrace: no policy counts, and no subject is purged, before those have ended who may have found an endpoint
// that goes.
func TestPolicyGrace(t *testing.T) {
	nstest.Halve(t, 0)
	n := newNode(t, Config{Masquerade: true})
	state := func() (generation uint32, subjects []maps.SubjectKey) {
		// Of all generations: what was begun is to be taken back.
		subjects, err := keysWhere[maps.SubjectKey, maps.Subject](n.maps.Subjects, func(maps.SubjectKey) bool { return true })
		must(t, err)
		slices.SortFunc(subjects, func(a, b maps.SubjectKey) int {
			return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Endpoint, b.Endpoint))
		})
		return n.generation(), subjects
	}
	refused := errors.New("no grace")
	waits := func(when string, call func() error) {
		t.Helper()
		generation, subjects := state()
		n.grace = func() error { return refused }
		err := call()
		n.grace = waitForPrograms
		if !errors.Is(err, refused) {
			t.Errorf("%s: %v, want %v", when, err, refused)
		}
		stillCounts, still := state()
		if diff := gocmp.Diff(subjects, still); diff != "" || stillCounts != generation {
			t.Errorf("%s: generation %d instead of %d, subjects (-want +got):\n%s", when, stillCounts, generation, diff)
		}
		must(t, call())
	}
	with := func(id uint16) Policy {
		p := n.policy().restrict(n.b, ingress).allow(setOne, ofA)
		p.Subjects[id] = Subject{Identity: 1000 + uint32(id)}
		return p
	}
	must(t, n.ReconcilePolicy(Policy{}))
	waits("the first", func() error { return n.ReconcilePolicy(with(7)) })
	waits("another", func() error { return n.ReconcilePolicy(with(7).restrict(n.c, egress)) })
	must(t, n.ReconcilePolicy(n.policy().restrict(n.b, ingress).allow(setOne, ofA).restrict(n.c, egress)))
	if _, subjects := state(); subjects[0].Endpoint != 7 {
		t.Errorf("subjects of those who were there: %v", subjects)
	}
	waits("a purge", func() error { return n.Purge([]uint16{7}) })
	if _, subjects := state(); len(subjects) != 3 {
		t.Errorf("subjects after the purge: %v", subjects)
	}
	must(t, n.ReconcilePolicy(Policy{}))
}
