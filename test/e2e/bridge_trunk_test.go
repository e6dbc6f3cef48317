// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// router is a container with a trunk, at these addresses of the networks of VLAN 10 and 20.
var (
	router10 = [2]netip.Addr{netip.MustParseAddr("10.10.200.9"), netip.MustParseAddr("fd00:10::c8:9")}
	router20 = [2]netip.Addr{netip.MustParseAddr("10.13.0.200"), netip.MustParseAddr("fd00:13::c8")}
)

// rises waits until a counter is beyond what it was.
func rises(t *testing.T, counter func() uint64, before uint64) {
	t.Helper()
	nodetest.Eventually(t, "a packet is counted", func() error {
		if counter() == before {
			return errors.New("not yet")
		}
		return nil
	})
}

// A container with a trunk is a neighbour of who is in its VLANs, by tags, and of nobody else;
// without a tag it is as any container. Its tags open no way past the checks of senders.
func TestBridgeTrunk(t *testing.T) {
	nstest.LeaveTo(t, "7")
	g := newGuarded(t)
	s := g.site
	addVLAN(t, s.world, 9) // before there is a bridge
	trunk := driver(api.DriverBridge).of(s.Network("trunks", "10.14.0.0/24", "fd00:14::/64")).
		With("vlanTrunk", []any{map[string]any{"id": 10}, map[string]any{"minID": 20, "maxID": 29}}).
		With("ingressRate", 400_000_000).With("egressRate", 400_000_000)
	blue := driver(api.DriverBridge).of(s.Network("blue", "10.13.0.0/24", "fd00:13::/64")).With("vlan", 20).With("preserveDefaultVlan", false)
	red := driver(api.DriverBridge).of(g.pods).With("vlan", 10).With("preserveDefaultVlan", false)
	g.pods = trunk
	r := g.dress(t, "r")
	g.pods = red
	a, b := g.dress(t, "a"), g.dress(t, "b")
	c := s.Attach(t, "c", blue)
	for _, id := range []int{10, 20, 30} {
		addVLAN(t, r.NS, id)
	}
	nodetest.Address(t, r.NS, "eth0.10", router10[0].String()+"/16", router10[1].String()+"/64")
	nodetest.Address(t, r.NS, "eth0.20", router20[0].String()+"/24", router20[1].String()+"/64")
	settle(t, r.NS)

	dealFamilies(t, func(t *testing.T, f family) {
		in10, in20 := f.choose(router10[0], router10[1]), f.choose(router20[0], router20[1])
		t.Run("by a tag", func(t *testing.T) { testWay(t, r.NS, a.NS, f.of(a), in10) })
		t.Run("by another", func(t *testing.T) { testWay(t, r.NS, c.NS, f.of(c), in20) })
		t.Run("reached by a tag", func(t *testing.T) { testWay(t, a.NS, r.NS, in10, f.of(a)) })
		t.Run("without a tag", func(t *testing.T) { testWay(t, r.NS, s.world, f.world, f.uplink) })
		t.Run("reached without a tag", func(t *testing.T) { testWay(t, a.NS, r.NS, f.of(r), f.of(a)) })
		t.Run("outside of the trunk", func(t *testing.T) {
			dropped := s.Counter(t, "from_container", "vlan")
			before := dropped()
			to := netip.PrefixFrom(f.of(b), f.of(b).BitLen()).String()
			r.NS.Run(t, "ip", "neigh", "replace", f.of(b).String(), "lladdr", b.MAC.String(), "dev", "eth0.30")
			r.NS.Run(t, "ip", "route", "replace", to, "dev", "eth0.30", "src", in10.String())
			if _, err := dialUDP(t, r.NS, netip.AddrPort{}, netip.AddrPortFrom(f.of(b), 53)).Write(pattern(10)); err != nil {
				t.Error(err)
			}
			rises(t, dropped, before)
			r.NS.Run(t, "ip", "route", "del", to, "dev", "eth0.30")
		})
		t.Run("policy", func(t *testing.T) {
			at, inTrunk := serveUDP(t, a.NS, netip.AddrPortFrom(f.of(a), 0)), serveUDP(t, r.NS, netip.AddrPortFrom(in10, 0))
			asks := func(from *nstest.NS, at netip.AddrPort) func() string {
				return func() string { return g.udp(t, from, at) }
			}
			g.apply(t, networkPolicy("a", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: b}}}]}]}"))
			try(t, trial{"who may", asks(b.NS, at), ""}, trial{"by the tag", asks(r.NS, at), byIngress})
			// With the address of who may.
			spoofed := netip.PrefixFrom(f.of(b), f.of(b).BitLen()).String()
			nodetest.Address(t, r.NS, "eth0.10", spoofed)
			settle(t, r.NS)
			martian := s.Counter(t, "to_container", "martian")
			before := martian()
			if _, err := dialUDP(t, r.NS, netip.AddrPortFrom(f.of(b), 0), at).Write(pattern(10)); err != nil {
				t.Error(err)
			}
			rises(t, martian, before)
			r.NS.Run(t, "ip", "addr", "del", spoofed, "dev", "eth0.10")
			g.delete(t, "a")
			g.apply(t, networkPolicy("r", "{podSelector: {matchLabels: {app: r}}, policyTypes: [Egress], egress: [{}]}"))
			try(t, trial{"policy cannot see into a tag", asks(r.NS, at), byEgress}, trial{"without a tag", asks(r.NS, serveUDP(t, s.world, netip.AddrPortFrom(f.world, 0))), ""})
			g.delete(t, "r")
			g.apply(t, networkPolicy("r", "{podSelector: {matchLabels: {app: r}}, policyTypes: [Ingress], ingress: [{}]}"))
			try(t, trial{"nor into one that it gets", asks(a.NS, inTrunk), byIngress})
			g.delete(t, "r")
			try(t, trial{"again", asks(r.NS, at), ""})
		})
	})
	for _, one := range []*nodetest.Container{r, a, b, c} {
		if got := refusalOf(s.Call(t, checked(one))); got != (refusal{}) {
			t.Errorf("CHECK of %s: %+v", one.ContainerID, got)
		}
		s.Delete(t, one)
	}
}
