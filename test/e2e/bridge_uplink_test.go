// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// bridgeUplink makes the node's uplink a port of br0, which is the uplink from then on.
func (s *site) bridgeUplink(t *testing.T) {
	t.Helper()
	s.Run(t, "ip", "address", "flush", "dev", "up0")
	s.Run(t, "ip", "-6", "route", "del", "default")
	s.Run(t, "ip", "link", "add", "br0", "up", "type", "bridge")
	s.Run(t, "ip", "link", "set", "up0", "master", "br0")
	nodetest.Address(t, s.NS, "br0", "192.0.2.1/24", "2001:db8::1/64")
	nodetest.Route(t, s.NS, []string{"default", "via", "192.0.2.2"}, []string{"default", "via", "2001:db8::2"})
	const want = "br0 192.0.2.1 2001:db8::1"
	nodetest.Eventually(t, "uplink", func() error {
		var got []string
		for _, u := range s.Status(t).Uplinks {
			got = append(got, fmt.Sprintf("%s %s %s", u.Name, u.IPv4, u.IPv6))
		}
		return nodetest.Unlike(strings.Join(got, ", "), want)
	})
}

// amongStations is a network of ports of br0, with addresses from .first on among those of the
// stations of the uplink, and a router there.
func (s *site) amongStations(name string, router4, router6 netip.Addr, first, last string) nodetest.Network {
	ranges := func(subnet, prefix string, router netip.Addr) []any {
		return []any{map[string]any{"subnet": subnet, "rangeStart": prefix + first, "rangeEnd": prefix + last, "gateway": router.String()}}
	}
	return s.Network(name).With("driver", api.DriverBridge).With("bridge", "br0").With("routes", []any{
		map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "::/0"},
	}).With("ipam", map[string]any{
		"type": "tendril", "ranges": []any{ranges("192.0.2.0/24", "192.0.2.", router4), ranges("2001:db8::/64", "2001:db8::", router6)},
	})
}

// The bridge is the node's uplink, and containers are stations beside it: those whose router is the
// uplink's, and those whose router is the node, hidden or not.
func TestBridgeOnUplink(t *testing.T) {
	nstest.Halve(t, 0)
	g := newGuarded(t)
	s := g.site
	s.bridgeUplink(t)
	lan := s.amongStations("lan", world4, world6, "50", "69").With("ipMasq", false)
	x := s.Attach(t, "x", wearing(lan, map[string]string{"app": "x"}))
	s.publish(t, "y", lan, both()...)
	hidden := s.Attach(t, "hidden", s.amongStations("hidden", uplink4, uplink6, "70", "79").With("ipMasq", true).With("isGateway", true))
	routed := s.Attach(t, "routed", s.pods)
	dealFamilies(t, func(t *testing.T, f family) {
		for _, w := range []portWay{
			{name: "a station of the link", from: s.world, at: f.uplink, seen: f.world},
			{name: "a neighbour", from: x.NS, at: f.uplink, seen: f.of(x)},
			{name: "one whose router is the node", from: hidden.NS, at: f.uplink, seen: f.of(hidden)},
			{name: "a routed container", from: routed.NS, at: f.uplink, seen: f.of(routed)},
		} {
			t.Run(w.name, func(t *testing.T) { w.check(t) })
		}
		for _, w := range []struct {
			name     string
			from, to *nstest.NS
			at, seen netip.Addr
		}{
			{"to the world", x.NS, s.world, f.world, f.of(x)},
			{"from the world", s.world, x.NS, f.of(x), f.world},
			{"to the host", x.NS, s.NS, f.uplink, f.of(x)},
			{"from the host", s.NS, x.NS, f.of(x), f.uplink},
			{"host to the world", s.NS, s.world, f.world, f.uplink},
			{"from the world to the host", s.world, s.NS, f.uplink, f.world},
			{"to a neighbour", x.NS, hidden.NS, f.of(hidden), f.of(x)},
			{"hidden to the link", hidden.NS, s.world, f.world, f.of(hidden)},
			{"from the link to one that is hidden", s.world, hidden.NS, f.of(hidden), f.world},
			{"hidden to routed", hidden.NS, routed.NS, f.of(routed), f.of(hidden)},
			{"routed to hidden", routed.NS, hidden.NS, f.of(hidden), f.uplink},
			{"routed to one beside another router", routed.NS, x.NS, f.of(x), f.uplink},
			{"routed to the world", routed.NS, s.world, f.world, f.uplink},
		} {
			t.Run(w.name, func(t *testing.T) { testWay(t, w.from, w.to, w.at, w.seen) })
		}
	})
	dealFamilies(t, func(t *testing.T, f family) { g.testUplinkPolicy(t, f, x, routed) })
}

// testUplinkPolicy: policy counts for a container on the uplink, whoever asks it, and by what way.
func (g *guarded) testUplinkPolicy(t *testing.T, f family, x, routed *nodetest.Container) {
	at := serveUDP(t, x.NS, netip.AddrPortFrom(f.of(x), 0))
	there := serveUDP(t, g.world, netip.AddrPortFrom(f.world, 0))
	asks := func(from *nstest.NS) func() string { return func() string { return g.udp(t, from, at) } }
	trials := func(world, routedTo, host, out string) {
		t.Helper()
		try(
			t, trial{"world", asks(g.world), world}, trial{"routed", asks(routed.NS), routedTo},
			trial{"host", asks(g.NS), host},
			trial{"to the world", func() string { return g.udp(t, x.NS, there) }, out},
		)
	}
	defer g.delete(t, "x")
	g.apply(t, networkPolicy("x", "{podSelector: {matchLabels: {app: x}}, policyTypes: [Ingress]}"))
	trials(byIngress, byIngress, "", "")
	g.apply(t, networkPolicy("x", "{podSelector: {matchLabels: {app: x}}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: "+netip.PrefixFrom(f.world, f.world.BitLen()).String()+"}}]}]}"))
	trials("", byIngress, "", "")
	g.apply(t, networkPolicy("x", "{podSelector: {matchLabels: {app: x}}, policyTypes: [Egress]}"))
	trials("", "", "", byEgress)
}
