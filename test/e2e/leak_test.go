// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
)

// sources serves at an address as serveUDP does, and returns a function that lists
// from whom datagrams have come so far.
func sources(t *testing.T, ns *nstest.NS, at netip.AddrPort) func() []netip.Addr {
	t.Helper()
	var (
		mu   sync.Mutex
		seen []netip.Addr
	)
	watchUDP(t, ns, at, func(from netip.AddrPort) {
		mu.Lock()
		defer mu.Unlock()
		if a := from.Addr().Unmap(); !slices.Contains(seen, a) {
			seen = append(seen, a)
		}
	})
	return func() []netip.Addr {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

// Flows that had no way are left to the stack. When one appears while no agent runs, by
// a device that is no uplink yet, nothing leaves with the container's address.
func TestNothingLeavesUnhidden(t *testing.T) {
	nstest.LeaveTo(t, "6.1")
	s := running(t)
	other := newSecond(t, s)
	c := s.Attach(t, "c", s.pods)
	send := func(conn *net.UDPConn) {
		for range 20 {
			_, _ = conn.Write(pattern(10)) // an ICMP error about the one before is no failure
		}
	}
	conns := make(map[string]*net.UDPConn)
	seen := make(map[string]func() []netip.Addr)
	for _, f := range families() {
		at := netip.AddrPortFrom(f.anywhere(), anywherePort)
		seen[f.name] = sources(t, other, at)
		conns[f.name] = dialUDP(t, c.NS, netip.AddrPort{}, at)
	}
	s.Run(t, "ip", "route", "del", "default")
	s.Run(t, "ip", "-6", "route", "del", "default")
	awaitUplinks(t, s)
	s.Kill(t)
	for _, f := range families() {
		send(conns[f.name])
	}
	s.Run(t, "ip", "route", "add", "default", "via", "203.0.113.2", "dev", "up1")
	s.Run(t, "ip", "-6", "route", "add", "default", "via", "2001:db8:2::2", "dev", "up1")
	for _, f := range families() {
		send(conns[f.name])
	}
	// What was sent before has arrived before what is answered now.
	s.Start(t)
	for _, f := range families() {
		nodetest.Eventually(t, f.name+" by the new uplink", func() error {
			got, err := tryUDP(conns[f.name], pattern(10), nodetest.Patience)
			if err != nil {
				return err
			}
			return nodetest.Unlike(got.Addr(), f.second())
		})
		if diff := cmp.Diff([]netip.Addr{f.second()}, seen[f.name](), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s: sources that the world saw (-want +got):\n%s", f.name, diff)
		}
	}
}
