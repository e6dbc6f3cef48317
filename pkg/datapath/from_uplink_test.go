// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

func testFromUplink(t *testing.T, n *node) {
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range transports() {
			t.Run(tr.name, func(t *testing.T) {
				t.Run("answer", func(t *testing.T) { n.forget(t); testAnswer(t, n, f, tr, inside) })
				t.Run("answer to another port", func(t *testing.T) { n.forget(t); testAnswer(t, n, f, tr, low) })
				t.Run("to container", func(t *testing.T) { n.forget(t); testDirect(t, n, f, tr) })
				t.Run("to host", func(t *testing.T) { n.forget(t); testHostTraffic(t, n, f, tr) })
				t.Run("answer by way of the stack", func(t *testing.T) { n.forget(t); testAnswerToStack(t, n, f, tr) })
			})
		}
		t.Run("not ours", func(t *testing.T) { testNotOurs(t, n, f) })
		t.Run("endpoint gone", func(t *testing.T) { testEndpointGone(t, n, f) })
		t.Run("asker gone", func(t *testing.T) { testAskerGone(t, n, f) })
		t.Run("answers that are none", func(t *testing.T) { testNoAnswers(t, n, f) })
		t.Run("evicted decision", func(t *testing.T) { testEvicted(t, n, f) })
		t.Run("evicted note", func(t *testing.T) { testAskedThenEvicted(t, n, f) })
		t.Run("echoes without identifier", func(t *testing.T) { testEchoesWithoutIdentifier(t, n, f) })
	})
}

// open makes a send a packet from a port to the world, so that it has a
// translation, and returns the source port that the world sees.
func (n *node) open(t *testing.T, f family, tr transport, from uint16) uint16 {
	t.Helper()
	got := n.run(t, n.fromA(ip(f.a, f.world, 64, tr.begin(from)...)...))
	for _, held := range n.translations(t) {
		if held.inside != port(f.a, from) || held.world != tr.server(f.world) || held.protocol != tr.protocol(f) {
			continue
		}
		outside := held.outside.Port()
		got.compare(t, forwarded(sent(n.a, ip(f.host, f.world, 63, tr.begin(outside)...)...), "decided"))
		first, last := n.config.MasqueradePorts[0], n.config.MasqueradePorts[1]
		if tr.keeps && outside != from || !tr.keeps && (outside < first || outside > last) {
			t.Errorf("outside port: got %d for %d, want one of %d to %d", outside, from, first, last)
		}
		return outside
	}
	t.Fatalf("no translation for %s from port %d; verdict %d, %v", tr.name, from, got.verdict, got.counts)
	return 0
}

func testAnswer(t *testing.T, n *node, f family, tr transport, from uint16) {
	outside := n.open(t, f, tr, from)
	in := n.fromWorld(ip(f.world, f.host, 58, tr.back(outside)...)...)
	in.seen = seenTranslated // by another on the wire
	out := delivered(n.a, ip(f.world, f.a, 57, tr.back(from)...)...)
	n.story(t,
		step{"first", in, deliveredAs(out, "decided")},
		step{"second", in, deliveredAs(out)},
	)
	source, destination := tr.server(f.world), port(f.host, outside)
	flows, err := n.Flows(10)
	must(t, err)
	flows = filter(flows, func(f Flow) bool { return f.IfIndex == 0 })
	for i := range flows {
		flows[i].Idle = 0
	}
	want := Flow{
		Protocol: tr.protocol(f), Source: source, Destination: destination,
		Action: "deliver", TranslatesDestination: true, To: port(f.a, from), OutIfIndex: n.a.IfIndex,
		Packets: 2, Bytes: 2 * uint64(len(in.in)-14), Current: true,
	}
	if len(flows) != 1 || flows[0] != want {
		t.Errorf("flows from the uplink:\ngot  %+v\nwant %+v", flows, want)
	}
	n.wantTranslations(t, translation{
		protocol: tr.protocol(f), inside: port(f.a, from), outside: destination, world: source,
		state: maps.TranslationEstablished,
	})
}

func filter(flows []Flow, keep func(Flow) bool) []Flow {
	var kept []Flow
	for _, f := range flows {
		if keep(f) {
			kept = append(kept, f)
		}
	}
	return kept
}

func testDirect(t *testing.T, n *node, f family, tr transport) {
	in := n.fromWorld(ip(f.world, f.b, 58, tr.there(low)...)...)
	out := delivered(n.b, ip(f.world, f.b, 57, tr.there(low)...)...)
	n.story(t,
		step{"first", in, deliveredAs(out, "decided")},
		step{"second", in, deliveredAs(out)},
	)
	n.wantFlows(t,
		Flow{
			Protocol: tr.protocol(f), Source: port(f.world, low), Destination: tr.server(f.b),
			Action: "deliver", OutIfIndex: n.b.IfIndex, Packets: 2, Bytes: 2 * uint64(len(in.in)-14), Current: true,
		},
		Flow{ // remembers whose the other direction is
			Protocol: tr.protocol(f), Source: tr.server(f.b), Destination: port(f.world, low), IfIndex: n.b.IfIndex, Reply: true,
		},
	)
	n.wantTranslations(t)
}

func testHostTraffic(t *testing.T, n *node, f family, tr transport) {
	in := n.fromWorld(ip(f.world, f.host, 58, tr.there(low)...)...)
	n.story(t, step{"first", in, untouched()}, step{"second", in, untouched()})
	n.wantFlows(t)
}

// testAnswerToStack: others translated the packet after the container's own
// decision, so they must see the answer.
func testAnswerToStack(t *testing.T, n *node, f family, tr transport) {
	n.check(t, n.toWorld(seenNot, ip(f.a, f.world, 63, tr.begin(inside)...)...), leaves(n.left(ip(f.host, f.world, 63, tr.begin(inside)...)...)))
	in := n.fromWorld(ip(f.world, f.host, 58, tr.back(inside)...)...)
	out := n.arrived(ip(f.world, f.a, 58, tr.back(inside)...)...)
	n.story(t,
		step{"first", in, want{verdict: passOn, out: out, counters: []string{"decided", "translated_to_stack"}, seen: seenDecided}},
		step{"second", in, want{verdict: passOn, out: out, counters: []string{"translated_to_stack"}, seen: seenDecided}},
	)
}

func testNotOurs(t *testing.T, n *node, f family) {
	tr := transports()[1]
	n.forget(t)
	n.open(t, f, tr, inside)
	answer := ip(f.world, f.host, 58, tr.back(inside)...)
	tagged := n.fromWorld(answer...)
	tagged.vlan = 7
	for _, s := range []step{
		{"tagged frame", tagged, untouched()},
		{"frame for another", run{
			program: fromUplink, device: n.uplink.IfIndex,
			in: packet.New(append([]packet.Layer{packet.Eth(routerMAC(), packet.MAC("02:00:00:00:00:99"))}, answer...)...),
		}, untouched()},
		{"broadcast frame", run{
			program: fromUplink, device: n.uplink.IfIndex,
			in: packet.New(append([]packet.Layer{packet.Eth(routerMAC(), packet.MAC("ff:ff:ff:ff:ff:ff"))}, answer...)...),
		}, untouched()},
		{"another protocol", n.fromWorld(packet.Payload(40)), untouched()},
		{"ARP", n.fromWorld(packet.ARPRequest(packet.Station{MAC: routerMAC(), IP: v4().router}, v4().host)), untouched()},
	} {
		t.Run(s.name, func(t *testing.T) { n.check(t, s.run, s.want) })
	}
	n.table(t,
		step{"martian source", n.fromWorld(ip(f.martian, f.a, 58, tr.there(low)...)...), drops("martian")},
		step{"no source", n.fromWorld(ip(f.nobody(), f.a, 58, tr.there(low)...)...), drops("martian")},
		step{"multicast source", n.fromWorld(ip(f.multicast, f.a, 58, tr.there(low)...)...), drops("martian")},
		step{"the host's source", n.fromWorld(ip(f.host, f.a, 58, tr.there(low)...)...), drops("martian")},
		step{"an unreachable source", n.fromWorld(ip(f.unknown, f.a, 58, tr.there(low)...)...), drops("martian")},
		step{"the receiver's source", n.fromWorld(ip(f.a, f.a, 58, tr.there(low)...)...), drops("martian")},
		step{"unknown address", n.fromWorld(ip(f.world, f.unknown, 58, tr.there(low)...)...), untouched()},
	)
	t.Run("an endpoint's source", func(t *testing.T) {
		// An endpoint on the node has a route, by a device.
		route := &netlink.Route{Dst: ipNet(netip.PrefixFrom(f.b, f.b.BitLen())), LinkIndex: n.other.Attrs().Index}
		must(t, n.ns.Handle.RouteAdd(route))
		defer func() { must(t, n.ns.Handle.RouteDel(route)) }()
		n.forget(t)
		n.check(t, n.fromWorld(ip(f.b, f.a, 58, tr.there(low)...)...), drops("martian"))
	})
	if f.v6() {
		n.table(t,
			step{"neighbour advertisement", n.fromWorld(ip(f.router, f.host, 255, packet.NeighborAdvert(f.router, packet.NASolicited))...), untouched()},
			step{"router advertisement", n.fromWorld(ip(f.linkLocal, addr("ff02::1"), 255, packet.RouterAdvert(1800))...), untouched()},
			step{"neighbour solicitation for an endpoint", n.fromWorld(ip(f.router, f.a, 255, packet.NeighborSolicit(f.a))...), untouched()},
		)
	} else {
		n.table(t, step{"redirect", n.fromWorld(ip(f.router, f.host, 64, packet.Redirect(1, f.neighbour), packet.Quote(n.left(answer...)))...), untouched()})
	}
}

// testEndpointGone: what comes for an endpoint that left is nobody else's.
func testEndpointGone(t *testing.T, n *node, f family) {
	tr := transports()[0]
	n.forget(t)
	n.open(t, f, tr, inside)
	in := n.fromWorld(ip(f.world, f.host, 58, tr.back(inside)...)...)
	out := delivered(n.a, ip(f.world, f.a, 57, tr.back(inside)...)...)
	near := n.fromA(ip(f.a, f.c, 64, tr.begin(low)...)...)
	n.story(t,
		step{"there", in, deliveredAs(out, "decided")},
		step{"to another endpoint", near, deliveredAs(delivered(n.c, ip(f.a, f.c, 63, tr.begin(low)...)...), "decided")},
	)
	n.do(t, func() error { return n.DetachEndpoint(n.a) })
	n.story(t, step{"to another endpoint still", near, drops("decided", "unknown_sender")})
	n.story(t,
		step{"gone", in, untouched()},
		step{"gone, direct", n.fromWorld(ip(f.world, f.a, 58, tr.there(low)...)...), untouched()},
		step{"it sends still", n.fromA(ip(f.a, f.world, 64, tr.there(inside)...)...), drops("decided", "unknown_sender")},
	)
	// Another endpoint takes the address; the old one's connections are not its.
	heir := n.b
	heir.Addresses = append([]netip.Addr{f.a}, heir.Addresses...)
	n.do(t, func() error { return n.AttachEndpoint(heir) })
	n.story(t, step{"inherited address", in, untouched()})
	n.do(t, func() error { return n.DetachEndpoint(heir) })
	n.do(t, func() error { return n.AttachEndpoint(n.b) })
	n.do(t, func() error { return n.AttachEndpoint(n.a) })
	n.story(t, step{"attached again", in, untouched()})
	must(t, n.Purge([]uint16{n.a.ID, n.b.ID}))
}

// testAskerGone: what an endpoint still says to one that has left is no answer to who may have
// the address elsewhere: it must not leave with the endpoint's.
func testAskerGone(t *testing.T, n *node, f family) {
	for _, reset := range []bool{false, true} {
		n.forget(t)
		there := n.fromA(ip(f.a, f.b, 64, tcp(low, server, packet.ACK)...)...)
		back := n.from(n.b, ip(f.b, f.a, 64, tcp(server, low, packet.ACK)...)...)
		n.run(t, n.fromA(ip(f.a, f.b, 64, tcp(low, server, packet.SYN)...)...))
		n.run(t, n.from(n.b, ip(f.b, f.a, 64, tcp(server, low, packet.SYN, packet.ACK)...)...))
		n.run(t, there)
		n.run(t, back)
		if reset {
			n.run(t, n.fromA(ip(f.a, f.b, 64, tcp(low, server, packet.RST)...)...))
		}
		n.do(t, func() error { return n.DetachEndpoint(n.a) })
		n.story(t,
			step{"to who is gone", back, passed(seenNot, "decided")},
			step{"in the stack's hands", n.toWorld(seenNot, ip(f.b, f.a, 63, tcp(server, low, packet.ACK)...)...), drops("no_translation")},
		)
		n.do(t, func() error { return n.AttachEndpoint(n.a) })
	}
}

// testNoAnswers: each part of the key counts.
func testNoAnswers(t *testing.T, n *node, f family) {
	n.forget(t)
	tr := transports()[1]
	n.open(t, f, tr, inside)
	for _, s := range []step{
		{"another port", n.fromWorld(ip(f.world, f.host, 58, udp(server, inside+1)...)...), untouched()},
		{"from another port", n.fromWorld(ip(f.world, f.host, 58, udp(server+1, inside)...)...), untouched()},
		{"from another address", n.fromWorld(ip(f.neighbour, f.host, 58, udp(server, inside)...)...), untouched()},
		{"another protocol", n.fromWorld(ip(f.world, f.host, 58, tcp(server, inside, packet.ACK)...)...), untouched()},
		{"to another address", n.fromWorld(ip(f.world, f.neighbour, 58, udp(server, inside)...)...), untouched()},
		{"the same way as sent", n.fromWorld(ip(f.host, f.world, 58, udp(inside, server)...)...), untouched()},
		{"echo request with its identifier", n.fromWorld(ip(f.world, f.host, 58, packet.Echo(inside, 1))...), untouched()},
	} {
		t.Run(s.name, func(t *testing.T) { n.check(t, s.run, s.want) })
	}
}

// evict has the cache forget some of its flows.
func (n *node) evict(t *testing.T, which func(maps.FlowKey) bool) {
	t.Helper()
	gone, err := keysWhere[maps.FlowKey, maps.Flow](n.maps.Flows, which)
	must(t, err)
	must(t, removeAll(n.maps.Flows, gone))
}

// testAskedThenEvicted: the cache forgets that what the world has asked for at the
// endpoint's own address is an answer, before it comes.
func testAskedThenEvicted(t *testing.T, n *node, f family) {
	n.forget(t)
	n.check(t, n.fromWorld(ip(f.world, f.a, 58, udp(low, server)...)...),
		deliveredAs(delivered(n.a, ip(f.world, f.a, 57, udp(low, server)...)...), "decided"))
	n.evict(t, func(key maps.FlowKey) bool { return key.Ifindex != 0 })
	n.check(t, n.fromA(ip(f.a, f.world, 64, udp(server, low)...)...),
		forwarded(sent(n.a, ip(f.a, f.world, 63, udp(server, low)...)...), "decided"))
}

// testEchoesWithoutIdentifier: the requests of one end have the key of the other's answers.
// Each is masqueraded, or not, as what it is.
func testEchoesWithoutIdentifier(t *testing.T, n *node, f family) {
	n.forget(t)
	request, reply := []packet.Layer{packet.Echo(0, 1), packet.Payload(8)}, []packet.Layer{packet.EchoReply(0, 1), packet.Payload(8)}
	asked := step{"asked", n.fromWorld(ip(f.world, f.a, 58, request...)...), deliveredAs(delivered(n.a, ip(f.world, f.a, 57, request...)...), "decided")}
	answer := step{"answer", n.fromA(ip(f.a, f.world, 64, reply...)...), forwarded(sent(n.a, ip(f.a, f.world, 63, reply...)...), "decided")}
	n.story(t, asked, answer)
	own := n.run(t, n.fromA(ip(f.a, f.world, 64, request...)...))
	outside := see(own.out, false).sport
	own.compare(t, forwarded(sent(n.a, ip(f.host, f.world, 63, packet.Echo(outside, 1), packet.Payload(8))...), "decided"))
	n.evict(t, func(key maps.FlowKey) bool { return key.Ifindex == 0 })
	n.story(
		t, answer,
		step{
			"own answer", n.fromWorld(ip(f.world, f.host, 58, packet.EchoReply(outside, 1), packet.Payload(8))...),
			deliveredAs(delivered(n.a, ip(f.world, f.a, 57, reply...)...), "decided"),
		},
		asked, answer,
	)
}

// testEvicted: decisions are a cache, the packets of either side bring them back.
func testEvicted(t *testing.T, n *node, f family) {
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			n.forget(t)
			n.open(t, f, tr, inside)
			in := n.fromWorld(ip(f.world, f.host, 58, tr.back(inside)...)...)
			out := delivered(n.a, ip(f.world, f.a, 57, tr.back(inside)...)...)
			n.story(t, step{"answer", in, deliveredAs(out, "decided")})
			clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
			n.story(t,
				step{"answer after eviction", in, deliveredAs(out, "decided")},
				step{
					"sent after eviction", n.fromA(ip(f.a, f.world, 64, tr.there(inside)...)...),
					forwarded(sent(n.a, ip(f.host, f.world, 63, tr.there(inside)...)...), "decided"),
				},
			)
		})
	}
}
