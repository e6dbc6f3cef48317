// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
)

// A container with two interfaces of one network is reached and reaches others
// by the first, and by the second where a socket is bound to it. Either goes
// without the other.
func TestTwoInterfacesOfANetwork(t *testing.T) {
	for name, routes := range map[string][]any{
		"default routes": {},
		"given routes":   {map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "::/0"}},
	} {
		t.Run(name, func(t *testing.T) { testTwoInterfaces(t, routes) })
	}
}

func testTwoInterfaces(t *testing.T, routes []any) {
	s := running(t)
	s.pods = s.pods.With("routes", routes)
	other := s.Attach(t, "other", s.pods)
	before := s.State(t)
	ns := nstest.New(t, "c")
	first := s.AttachTo(t, ns, "c", "eth0", s.pods)
	second := s.AttachTo(t, ns, "c", "eth1", s.pods)
	check := func(all ...*nodetest.Container) {
		t.Helper()
		for _, c := range all {
			if diff := cmp.Diff(refusal{}, refusalOf(s.Call(t, checked(c)))); diff != "" {
				t.Errorf("CHECK of %s (-want +got):\n%s", c.IfName, diff)
			}
			eachFamily(t, func(t *testing.T, f family) {
				ns.Run(t, "ping", "-c1", "-W2", "-I", c.IfName, f.of(other).String())
				ns.Run(t, "ping", "-c1", "-W2", "-I", c.IfName, f.gateway(c).String())
			})
		}
	}
	check(first, second)
	eachFamily(t, func(t *testing.T, f family) {
		for _, way := range []struct {
			name     string
			from, to *nodetest.Container
		}{{"out", first, other}, {"in", other, first}} {
			t.Run(way.name, func(t *testing.T) { testWay(t, way.from.NS, way.to.NS, f.of(way.to), f.of(way.from)) })
		}
		ns.Run(t, "ping", "-c1", "-W2", f.world.String())
	})
	if drops := s.Drops(t); len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}
	s.Delete(t, second)
	check(first)
	second = s.AttachTo(t, ns, "c", "eth1", s.pods)
	s.Delete(t, first)
	check(second)
	s.Delete(t, second)
	s.BecomesRecorded(t, before)
}
