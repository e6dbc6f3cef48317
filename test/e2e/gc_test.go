// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
)

// GC takes all from containers of a network that the runtime does not name, and nothing from those that
// it does, or from another network.
func TestGC(t *testing.T) {
	nstest.LeaveTo(t, "7")
	s := running(t)
	other := s.Attach(t, "other", s.Network("other", "10.20.0.0/24", "fd00:20::/64"))
	eachDriver(t, func(t *testing.T, d driver) {
		s.lend(t, d)
		testGC(t, s, other)
	})
}

func testGC(t *testing.T, s *site, other *nodetest.Container) {
	const rate = 1_000_000_000
	limits := map[string]any{"ingressRate": rate, "egressRate": rate, "ingressBurst": rate, "egressBurst": rate}
	// It has a limit, too: the pacer is there before and after.
	keeper := s.Attach(t, "keeper", s.pods.With("runtimeConfig", map[string]any{"bandwidth": limits}))
	before := s.State(t)
	stale := s.Attach(t, "stale", s.pods.With("runtimeConfig", map[string]any{"bandwidth": limits, "portMappings": both()}))
	ended := nstest.New(t, "ended")
	s.AttachTo(t, ended, "ended", "eth0", s.pods)
	ended.Unlink(t)
	worldAt := serveUDP(t, s.world, netip.AddrPortFrom(world4, 0))
	askUDP(t, dialUDP(t, stale.NS, netip.AddrPort{}, worldAt), pattern(10))

	valid := []any{map[string]any{"containerID": keeper.ContainerID, "ifname": keeper.IfName}}
	gc := nodetest.Call{Command: "GC", Network: s.pods.With("cni.dev/valid-attachments", valid)}
	if got := refusalOf(s.Call(t, gc)); got != (refusal{}) {
		t.Errorf("GC: %+v", got)
	}
	for _, c := range []*nodetest.Container{keeper, other} {
		if got := refusalOf(s.Call(t, checked(c))); got != (refusal{}) {
			t.Errorf("CHECK of %s: %+v", c.ContainerID, got)
		}
		askUDP(t, dialUDP(t, c.NS, netip.AddrPort{}, worldAt), pattern(10))
	}
	if diff := cmp.Diff([]string{"lo"}, linksOf(t, stale.NS)); diff != "" {
		t.Errorf("links of the container that is gone (-want +got):\n%s", diff)
	}
	s.BecomesRecorded(t, before)
}

// linksOf are the names of a namespace's links.
func linksOf(t *testing.T, ns *nstest.NS) []string {
	t.Helper()
	var names []string
	for _, link := range must(ns.Handle.LinkList())(t) {
		names = append(names, link.Attrs().Name)
	}
	return names
}
