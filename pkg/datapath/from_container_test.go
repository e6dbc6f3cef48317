// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vishvananda/netlink"

	"github.com/tendril-net/tendril/internal/packet"
)

func testFromContainer(t *testing.T, n *node) {
	eachFamily(t, func(t *testing.T, f family) {
		t.Run("a way appears", func(t *testing.T) { testWayAppears(t, n, f) })
		for _, tr := range transports() {
			t.Run(tr.name, func(t *testing.T) {
				t.Run("to container", func(t *testing.T) { n.forget(t); testToNeighbour(t, n, f, tr) })
				t.Run("to world", func(t *testing.T) { n.forget(t); testToWorld(t, n, f, tr, inside) })
				t.Run("to world, from another port", func(t *testing.T) { n.forget(t); testToWorld(t, n, f, tr, low) })
				t.Run("to world, not masqueraded", func(t *testing.T) { n.forget(t); testUnmasked(t, n, f, tr) })
				t.Run("to host", func(t *testing.T) { n.forget(t); testToHost(t, n, f, tr) })
			})
		}
		t.Run("ways", func(t *testing.T) { testWays(t, n, f) })
		t.Run("protocols", func(t *testing.T) { testProtocols(t, n, f) })
		t.Run("replies", func(t *testing.T) { testReplies(t, n, f) })
		t.Run("decided again", func(t *testing.T) { testDecidedAgain(t, n, f) })
		t.Run("left to the stack", func(t *testing.T) { testStackDestinations(t, n, f) })
		t.Run("uplink without address", func(t *testing.T) { testNoUplinkAddress(t, n, f) })
	})
}

func testToNeighbour(t *testing.T, n *node, f family, tr transport) {
	in := n.fromA(ip(f.a, f.b, 64, tr.there(low)...)...)
	out := delivered(n.b, ip(f.a, f.b, 63, tr.there(low)...)...)
	n.story(t,
		step{"first", in, deliveredAs(out, "decided")},
		step{"second", in, deliveredAs(out)},
	)
	n.wantFlows(t, Flow{
		Protocol: tr.protocol(f), Source: port(f.a, low), Destination: tr.server(f.b), IfIndex: n.a.IfIndex,
		Action: "deliver", OutIfIndex: n.b.IfIndex, Packets: 2, Bytes: 2 * uint64(len(in.in)-14), Current: true,
	})
	n.wantTranslations(t)
}

func testToWorld(t *testing.T, n *node, f family, tr transport, from uint16) {
	outside := n.open(t, f, tr, from)
	in := n.fromA(ip(f.a, f.world, 64, tr.there(from)...)...)
	out := sent(n.a, ip(f.host, f.world, 63, tr.there(outside)...)...)
	n.story(t, step{"second", in, forwarded(out)})
	first := sent(n.a, ip(f.a, f.world, 64, tr.begin(from)...)...)
	n.wantFlows(t, Flow{
		Protocol: tr.protocol(f), Source: port(f.a, from), Destination: tr.server(f.world), IfIndex: n.a.IfIndex,
		Action: "forward", TranslatesSource: true, To: port(f.host, outside),
		OutIfIndex: n.uplink.IfIndex, NextHop: f.router,
		Packets: 2, Bytes: uint64(len(first) - 14 + len(in.in) - 14), Current: true,
	})
	n.wantTranslations(t, translation{
		protocol: tr.protocol(f), inside: port(f.a, from), outside: port(f.host, outside), world: tr.server(f.world),
	})
}

func testUnmasked(t *testing.T, n *node, f family, tr transport) {
	check := func(t *testing.T, e Endpoint, src, dst, hop netip.Addr) {
		t.Helper()
		in := n.from(e, ip(src, dst, 64, tr.there(low)...)...)
		out := sent(e, ip(src, dst, 63, tr.there(low)...)...)
		n.story(t,
			step{"first", in, forwarded(out, "decided")},
			step{"second", in, forwarded(out)},
		)
		n.wantFlows(t, Flow{
			Protocol: tr.protocol(f), Source: port(src, low), Destination: tr.server(dst), IfIndex: e.IfIndex,
			Action: "forward", OutIfIndex: n.uplink.IfIndex, NextHop: hop,
			Packets: 2, Bytes: 2 * uint64(len(in.in)-14), Current: true,
		})
		n.wantTranslations(t)
	}
	t.Run("endpoint without", func(t *testing.T) { check(t, n.c, f.c, f.world, f.router) })
	n.forget(t)
	t.Run("excluded destination", func(t *testing.T) {
		n.exclude(t, netip.PrefixFrom(f.neighbour, f.neighbour.BitLen()-3).Masked())
		check(t, n.a, f.a, f.neighbour, f.neighbour)
	})
}

// exclude sets the destinations that are not masqueraded until the test ends.
func (n *node) exclude(t *testing.T, prefixes ...netip.Prefix) {
	t.Helper()
	must(t, n.ReconcileExcludes(prefixes))
	t.Cleanup(func() { must(t, n.ReconcileExcludes(nil)) })
}

func testToHost(t *testing.T, n *node, f family, tr transport) {
	in := n.fromA(ip(f.a, f.host, 64, tr.there(low)...)...)
	// A mark that somebody set before is taken off.
	forged := in
	forged.seen = seenTranslated
	n.story(t,
		step{"first", in, passed(seenNot, "decided")},
		step{"second", forged, passed(seenNot)},
	)
	n.wantFlows(t, Flow{
		Protocol: tr.protocol(f), Source: port(f.a, low), Destination: tr.server(f.host), IfIndex: n.a.IfIndex,
		Action: "pass", Packets: 2, Bytes: 2 * uint64(len(in.in)-14), Current: true,
	})
}

// Destinations of all kinds, and what is left to the stack.
func testWays(t *testing.T, n *node, f family) {
	to := func(dst netip.Addr) run { return n.fromA(ip(f.a, dst, 64, udp(low, server)...)...) }
	stranger := to(f.world)
	stranger.in = packet.New(append([]packet.Layer{packet.Eth(n.a.MAC, packet.MAC("02:00:00:00:00:99"))}, ip(f.a, f.world, 64, udp(low, server)...)...)...)
	broadcast := to(f.world)
	broadcast.in = packet.New(append([]packet.Layer{packet.Eth(n.a.MAC, packet.MAC("ff:ff:ff:ff:ff:ff"))}, ip(f.a, f.world, 64, udp(low, server)...)...)...)
	n.table(t,
		step{"by another device", to(f.elsewhere), passed(seenNot, "decided")},
		step{"unreachable", to(f.unknown), passed(seenNot, "decided")},
		step{"multicast", to(f.multicast), passed(seenDecided, "decided")},
		step{"martian", to(f.martian), drops("decided", "martian")},
		step{"frame for another", stranger, passed(seenDecided, "decided")},
		step{"broadcast frame", broadcast, passed(seenDecided, "decided")},
	)
	if f.v6() {
		n.table(t,
			step{"link-local", to(f.linkLocal), passed(seenDecided, "decided")},
			step{"unspecified", to(netip.IPv6Unspecified()), drops("decided", "martian")},
		)
	} else {
		n.table(t,
			step{"limited broadcast", to(addr("255.255.255.255")), passed(seenDecided, "decided")},
			step{"directed broadcast", to(addr("192.0.2.255")), passed(seenNot, "decided")},
			step{"this network", to(addr("0.1.2.3")), drops("decided", "martian")},
		)
	}
	// A frame for another does not profit from a decision.
	n.forget(t)
	n.story(t,
		step{"known flow", n.fromA(ip(f.a, f.b, 64, udp(low, server)...)...), deliveredAs(delivered(n.b, ip(f.a, f.b, 63, udp(low, server)...)...), "decided")},
		step{"frame for another in it", run{
			program: fromContainer, device: n.a.IfIndex,
			in: packet.New(append([]packet.Layer{packet.Eth(n.a.MAC, packet.MAC("02:00:00:00:00:99"))}, ip(f.a, f.b, 64, udp(low, server)...)...)...),
		}, passed(seenDecided, "decided")},
	)
}

// Protocols without ports are forwarded, and not masqueraded.
func testProtocols(t *testing.T, n *node, f family) {
	const gre, ah = 47, 51
	raw := func(src, dst netip.Addr, protocol, ttl uint8) []packet.Layer {
		return []packet.Layer{packet.IP(src, dst, packet.Proto(protocol), packet.TTL(ttl)), packet.Payload(40)}
	}
	query := func(src, dst netip.Addr, ttl uint8) []packet.Layer {
		return ip(src, dst, ttl, packet.ICMP(200, 0, 77), packet.Payload(8))
	}
	n.table(t,
		step{"GRE to container", n.fromA(raw(f.a, f.b, gre, 64)...), deliveredAs(delivered(n.b, raw(f.a, f.b, gre, 63)...), "decided")},
		step{"GRE to world", n.fromA(raw(f.a, f.world, gre, 64)...), drops("decided", "unsupported_protocol")},
		step{"AH to world", n.fromA(raw(f.a, f.world, ah, 64)...), drops("decided", "unsupported_protocol")},
		step{"GRE to world, not masqueraded", n.from(n.c, raw(f.c, f.world, gre, 64)...), forwarded(sent(n.c, raw(f.c, f.world, gre, 63)...), "decided")},
		step{"another ICMP to container", n.fromA(query(f.a, f.b, 64)...), deliveredAs(delivered(n.b, query(f.a, f.b, 63)...), "decided")},
		step{"another ICMP to world", n.fromA(query(f.a, f.world, 64)...), drops("decided", "unsupported_protocol")},
		step{"the other family's ICMP to world", n.fromA(raw(f.a, f.world, unix.IPPROTO_ICMP+unix.IPPROTO_ICMPV6-f.icmp, 64)...), drops("decided", "unsupported_protocol")},
	)
}

// What answers others is not masqueraded.
func testReplies(t *testing.T, n *node, f family) {
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			n.forget(t)
			request := func(ttl uint8) []packet.Layer { return ip(f.world, f.a, ttl, tr.there(low)...) }
			answer := func(ttl uint8) []packet.Layer { return ip(f.a, f.world, ttl, tr.back(low)...) }
			n.story(t,
				step{"request", n.fromWorld(request(60)...), deliveredAs(delivered(n.a, request(59)...), "decided")},
				step{"answer", n.fromA(answer(64)...), forwarded(sent(n.a, answer(63)...), "decided")},
				step{"answer again", n.fromA(answer(64)...), forwarded(sent(n.a, answer(63)...))},
			)
			n.wantTranslations(t)
			n.elapse(t, 10+1)
			n.story(t, step{"answer later", n.fromA(answer(64)...), forwarded(sent(n.a, answer(63)...), "decided")})
			n.wantTranslations(t)
		})
	}
	t.Run("new connection on the ports of a reply", func(t *testing.T) {
		n.forget(t)
		request := func(ttl uint8) []packet.Layer { return ip(f.world, f.a, ttl, tcp(server, inside, packet.SYN)...) }
		n.story(t,
			step{"request", n.fromWorld(request(60)...), deliveredAs(delivered(n.a, request(59)...), "decided")},
			step{
				"SYN", n.fromA(ip(f.a, f.world, 64, tcp(inside, server, packet.SYN)...)...),
				forwarded(sent(n.a, ip(f.host, f.world, 63, tcp(inside, server, packet.SYN)...)...), "decided"),
			},
		)
	})
	// The datapath did not see it begin: the stack may know what it answers.
	n.table(t,
		step{"in the middle of TCP", n.fromA(ip(f.a, f.world, 64, tcp(inside, server, packet.ACK)...)...), passed(seenNot, "decided")},
		step{"in the middle of TCP, nobody knows it", n.toWorld(seenNot, ip(f.a, f.world, 63, tcp(inside, server, packet.ACK)...)...), drops("no_translation")},
		step{"RST of nothing", n.fromA(ip(f.a, f.world, 64, tcp(inside, server, packet.RST)...)...), passed(seenNot, "decided")},
		step{"SYN ACK of nothing", n.fromA(ip(f.a, f.world, 64, tcp(server, low, packet.SYN, packet.ACK)...)...), passed(seenNot, "decided")},
		step{"echo reply of nothing, identifier 0", n.fromA(ip(f.a, f.world, 64, packet.EchoReply(0, 7))...), passed(seenNot, "decided")},
		step{"echo reply of nothing", n.fromA(ip(f.a, f.world, 64, packet.EchoReply(7, 7))...), passed(seenNot, "decided")},
	)
}

// A decision is taken anew when time or an epoch says so.
func testDecidedAgain(t *testing.T, n *node, f family) {
	n.forget(t)
	in := n.fromA(ip(f.a, f.world, 64, udp(inside, server)...)...)
	out := sent(n.a, ip(f.host, f.world, 63, udp(inside, server)...)...)
	n.story(t,
		step{"first", in, forwarded(out, "decided")},
		step{"second", in, forwarded(out)},
	)
	n.elapse(t, 10)
	n.story(t,
		step{"after some seconds", in, forwarded(out, "decided")},
		step{"then", in, forwarded(out)},
	)
	must(t, n.Invalidate())
	n.story(t,
		step{"in the node's new epoch", in, forwarded(out, "decided")},
		step{"then", in, forwarded(out)},
	)
	flows, err := n.Flows(10)
	must(t, err)
	if len(flows) != 1 || flows[0].Packets != 6 {
		t.Errorf("flows: got %+v, want one of 6 packets", flows)
	}
	n.forget(t)
	in = n.fromA(ip(f.a, f.b, 64, udp(inside, server)...)...)
	out = delivered(n.b, ip(f.a, f.b, 63, udp(inside, server)...)...)
	n.story(t,
		step{"to container", in, deliveredAs(out, "decided")},
		step{"second to container", in, deliveredAs(out)},
	)
	must(t, n.bumpEpoch(uint32(n.b.ID)))
	n.story(t, step{"in the receiver's new epoch", in, deliveredAs(out, "decided")})
}

// testStackDestinations: where other software translates, it must see the packet,
// and no decision is kept.
func testStackDestinations(t *testing.T, n *node, f family) {
	service := netip.PrefixFrom(f.neighbour, f.neighbour.BitLen()-3).Masked()
	must(t, n.ReconcileStackDestinations([]netip.Prefix{service}))
	defer func() { must(t, n.ReconcileStackDestinations(nil)) }()
	outside := service.Addr().Prev()
	for _, tr := range transports() {
		n.table(t,
			step{tr.name + " to a service", n.fromA(ip(f.a, f.neighbour, 64, tr.begin(inside)...)...), passed(seenLed, "decided")},
			step{
				tr.name + " beside it", n.fromA(ip(f.a, outside, 64, tr.begin(inside)...)...),
				forwarded(sent(n.a, ip(f.host, outside, 63, tr.begin(inside)...)...), "decided"),
			},
		)
	}
	n.forget(t)
	in := n.fromA(ip(f.a, f.neighbour, 64, udp(inside, server)...)...)
	n.check(t, in, passed(seenLed, "decided"))
	n.wantFlows(t, Flow{ // remembers who began
		Protocol: unix.IPPROTO_UDP, Source: port(f.a, inside), Destination: port(f.neighbour, server), IfIndex: n.a.IfIndex,
		Packets: 1, Bytes: uint64(len(in.in) - 14),
	})
}

func testNoUplinkAddress(t *testing.T, n *node, f family) {
	bare := n.uplink
	if f.v6() {
		bare.IPv6 = netip.Addr{}
	} else {
		bare.IPv4 = netip.Addr{}
	}
	n.do(t, func() error { return n.ReconcileUplinks([]Uplink{bare}) })
	defer n.do(t, func() error { return n.ReconcileUplinks([]Uplink{n.uplink}) })
	n.table(t,
		step{"to world", n.fromA(ip(f.a, f.world, 64, udp(inside, server)...)...), drops("decided", "no_uplink_address")},
		step{
			"not masqueraded", n.from(n.c, ip(f.c, f.world, 64, udp(inside, server)...)...),
			forwarded(sent(n.c, ip(f.c, f.world, 63, udp(inside, server)...)...), "decided"),
		},
	)
}

// testWayAppears: what was left to the stack for want of a route does not leave by one
// that comes later, and of which the agent has not heard.
func testWayAppears(t *testing.T, n *node, f family) {
	everything := netip.PrefixFrom(f.host, 0).Masked()
	home := &netlink.Route{Dst: ipNet(everything), Gw: f.router.AsSlice()}
	must(t, n.ns.Handle.RouteDel(home))
	defer func() { must(t, n.ns.Handle.RouteAdd(home)) }()
	n.forget(t)
	tr := transports()[1]
	there := n.fromA(ip(f.a, f.world, 64, tr.there(inside)...)...)
	n.story(t,
		step{"no way", there, passed(seenNot, "decided")},
		step{"known", there, passed(seenNot)},
	)
	elsewhere := &netlink.Route{
		Dst: ipNet(everything), Gw: f.elsewhere.AsSlice(), LinkIndex: n.other.Attrs().Index, Flags: int(netlink.FLAG_ONLINK),
	}
	must(t, n.ns.Handle.RouteAdd(elsewhere))
	defer func() { must(t, n.ns.Handle.RouteDel(elsewhere)) }()
	n.story(t, step{"a way by another device", there, drops("decided", "no_uplink")})
}
