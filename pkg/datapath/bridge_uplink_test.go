// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/tendril-net/tendril/internal/packet"
)

// ownMark is skb->mark of what an endpoint on an uplink says to the node (MARK_OWN of bpf/lib/apply.h).
const ownMark = 0x1000

// ownedBy is the end of what such an endpoint says to the node.
func ownedBy(seen uint32, counters ...string) want {
	w := passed(seen, counters...)
	w.mark = ownMark
	return w
}

// given is a packet as the bridge gives it to the uplink's program, which it is itself: to the
// node's MAC, with what from_container has noted.
func (n *node) given(from Endpoint, seen uint32, layers ...packet.Layer) run {
	return run{
		program: fromUplink, device: n.uplink.IfIndex, seen: seen, mark: ownMark,
		in: packet.New(append([]packet.Layer{packet.Eth(from.MAC, n.uplink.MAC)}, layers...)...),
	}
}

// onUplink is a node whose endpoints b, with mapped ports, and c are ports of a bridge that is the
// uplink. Endpoint a is elsewhere.
func onUplink(t *testing.T) *node {
	t.Helper()
	n := withPorts(t, Config{Masquerade: true})
	n.b.Bridge, n.c.Bridge = n.uplink.IfIndex, n.uplink.IfIndex
	for _, e := range []Endpoint{n.b, n.c} {
		n.do(t, func() error { return n.AttachEndpoint(e) })
	}
	for _, f := range []family{v4(), v6()} {
		for _, a := range []netip.Addr{f.b, f.c} {
			must(t, n.ns.Handle.RouteAdd(&netlink.Route{Dst: ipNet(netip.PrefixFrom(a, a.BitLen())), LinkIndex: n.uplink.IfIndex}))
		}
	}
	return n
}

func TestBridgeUplink(t *testing.T) {
	n := onUplink(t)
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range transports() {
			t.Run(tr.name, func(t *testing.T) { testUplinkReached(t, n, f, tr) })
		}
		t.Run("error", func(t *testing.T) { testUplinkError(t, n, f) })
		t.Run("begins", func(t *testing.T) { testUplinkBegins(t, n, f) })
		t.Run("neighbour", func(t *testing.T) { testUplinkNeighbour(t, n, f) })
		t.Run("policy", func(t *testing.T) { testUplinkPolicy(t, n, f) })
		t.Run("mapped port", func(t *testing.T) { testUplinkPort(t, n, f) })
		t.Run("marks", func(t *testing.T) { testUplinkMarks(t, n, f) })
		t.Run("passages", func(t *testing.T) { testUplinkPassages(t, n, f) })
	})
}

// testUplinkReached: endpoints that are elsewhere reach one on the uplink as they reach all there,
// hidden, and its answer to the node finds back.
func testUplinkReached(t *testing.T, n *node, f family, tr transport) {
	n.forget(t)
	hidden := delivered(n.b, ip(f.host, f.b, 63, tr.begin(inside)...)...)
	arrives := delivered(n.a, ip(f.b, f.a, 62, tr.back(inside)...)...)
	n.story(t,
		step{
			"question", n.fromA(ip(f.a, f.b, 64, tr.begin(inside)...)...),
			forwarded(sent(n.a, ip(f.host, f.b, 63, tr.begin(inside)...)...), "decided"),
		},
		step{"at the bridge", run{program: toUplink, device: n.uplink.IfIndex, in: hidden, seen: seenTranslated, ingress: n.a.IfIndex}, untouched()},
		step{"at its port", run{program: toContainer, device: n.b.IfIndex, in: hidden, seen: seenTranslated, ingress: n.a.IfIndex}, passed(seenTranslated)},
		step{"answer", n.from(n.b, ip(f.b, f.host, 63, tr.back(inside)...)...), ownedBy(seenOwn, "decided")},
		step{"by the bridge", n.given(n.b, seenOwn, ip(f.b, f.host, 63, tr.back(inside)...)...), seenAs(deliveredAs(arrives, "decided"))},
		step{"more", n.from(n.b, ip(f.b, f.host, 63, tr.back(inside)...)...), ownedBy(seenOwn)},
		step{"by the bridge", n.given(n.b, seenOwn, ip(f.b, f.host, 63, tr.back(inside)...)...), seenAs(deliveredAs(arrives))},
	)
}

// seenAs is w with skb->tc_index as it was.
func seenAs(w want) want {
	w.seen = seenAsBefore
	return w
}

// testUplinkError: an error about what was hidden finds back, too.
func testUplinkError(t *testing.T, n *node, f family) {
	n.forget(t)
	asked := ip(f.host, f.c, 63, udp(inside, server)...)
	told := ip(f.a, f.c, 63, udp(inside, server)...)
	n.story(t,
		step{"question", n.fromA(ip(f.a, f.c, 64, udp(inside, server)...)...), forwarded(sent(n.a, asked...), "decided")},
		step{
			"refused", n.from(n.c, ip(f.c, f.host, 63, packet.Unreachable(packet.PortUnreachable), packet.Quote(delivered(n.c, asked...)))...),
			ownedBy(seenOwn, "decided"),
		},
		step{
			"by the bridge", n.given(n.c, seenOwn, ip(f.c, f.host, 63, packet.Unreachable(packet.PortUnreachable), packet.Quote(delivered(n.c, asked...)))...),
			seenAs(deliveredAs(delivered(n.a, ip(f.c, f.a, 62, packet.Unreachable(packet.PortUnreachable), packet.Quote(delivered(n.c, told...)))...), "decided")),
		},
	)
}

// testUplinkBegins: what one on the uplink sends to the node for an endpoint elsewhere goes
// straight, and is answered as it asked.
func testUplinkBegins(t *testing.T, n *node, f family) {
	n.forget(t)
	n.story(t,
		step{"question", n.from(n.c, ip(f.c, f.a, 64, udp(low, server)...)...), deliveredAs(delivered(n.a, ip(f.c, f.a, 63, udp(low, server)...)...), "decided")},
		step{"answer", n.fromA(ip(f.a, f.c, 64, udp(server, low)...)...), forwarded(sent(n.a, ip(f.a, f.c, 63, udp(server, low)...)...), "decided")},
		step{"more", n.fromA(ip(f.a, f.c, 64, udp(server, low)...)...), forwarded(sent(n.a, ip(f.a, f.c, 63, udp(server, low)...)...))},
	)
	n.forget(t)
	// Later, and what has no ports, too.
	n.story(t, step{"question", n.from(n.c, ip(f.c, f.a, 64, udp(low, server)...)...), deliveredAs(delivered(n.a, ip(f.c, f.a, 63, udp(low, server)...)...), "decided")})
	n.elapse(t, 40)
	asked := ip(f.c, f.a, 63, udp(low, server)...)
	n.story(t,
		step{"late answer", n.fromA(ip(f.a, f.c, 64, udp(server, low)...)...), forwarded(sent(n.a, ip(f.a, f.c, 63, udp(server, low)...)...), "decided")},
		step{
			"refused", n.fromA(ip(f.a, f.c, 64, packet.Unreachable(packet.PortUnreachable), packet.Quote(delivered(n.a, asked...)))...),
			forwarded(sent(n.a, ip(f.a, f.c, 63, packet.Unreachable(packet.PortUnreachable), packet.Quote(delivered(n.a, asked...)))...), "decided"),
		},
	)
	n.wantTranslations(t)
	n.forget(t)
	n.story(t,
		step{"question of a", n.fromA(ip(f.a, f.c, 64, udp(inside, server)...)...), forwarded(sent(n.a, ip(f.host, f.c, 63, udp(inside, server)...)...), "decided")},
		step{"another of c, with the same ports", n.from(n.c, ip(f.c, f.a, 64, udp(server, inside)...)...), deliveredAs(delivered(n.a, ip(f.c, f.a, 63, udp(server, inside)...)...), "decided")},
		step{"a asks on", n.fromA(ip(f.a, f.c, 64, udp(inside, server)...)...), forwarded(sent(n.a, ip(f.host, f.c, 63, udp(inside, server)...)...))},
	)
	n.forget(t)
	n.story(t,
		step{"among each other", n.onBridge(n.b, n.c.MAC, ip(f.b, f.c, 64, udp(low, server)...)...), across("decided")},
		step{"more", n.onBridge(n.b, n.c.MAC, ip(f.b, f.c, 64, udp(low, server)...)...), across()},
		step{"to the world, by the node", n.from(n.b, ip(f.b, f.world, 64, udp(inside, server)...)...), forwarded(sent(n.b, ip(f.host, f.world, 63, udp(inside, server)...)...), "decided")},
		step{"to the world, by its router", n.onBridge(n.b, routerMAC(), ip(f.b, f.world, 64, udp(inside, server)...)...), passed(seenOwn, "decided")},
		step{"and by a port that was the uplink", run{
			program: toUplink, device: n.uplink.IfIndex, seen: seenOwn, ingress: n.b.IfIndex,
			in: packet.New(append([]packet.Layer{packet.Eth(n.b.MAC, routerMAC())}, ip(f.b, f.world, 64, udp(inside, server)...)...)...),
		}, untouched()},
	)
	n.forget(t)
	n.story(t,
		step{"as if of a by its bridge, which it has not", run{
			program: toUplink, device: n.uplink.IfIndex, ingress: n.a.IfIndex,
			in: packet.New(append([]packet.Layer{packet.Eth(n.a.MAC, routerMAC())}, ip(f.a, f.world, 64, udp(inside, server)...)...)...),
		}, leaves(packet.New(append([]packet.Layer{packet.Eth(n.a.MAC, routerMAC())}, ip(f.host, f.world, 64, udp(inside, server)...)...)...))},
	)
}

// testUplinkNeighbour: what comes from the world by the bridge has begun there, and its answer is
// not hidden, whichever way it takes.
func testUplinkNeighbour(t *testing.T, n *node, f family) {
	n.forget(t)
	asks := n.byBridge(n.b, ip(f.world, f.b, 64, udp(low, server)...)...)
	answer := sent(n.b, ip(f.b, f.world, 63, udp(server, low)...)...)
	n.story(t,
		step{"question", asks, passed(seenNot)},
		step{"answer, by the node", n.from(n.b, ip(f.b, f.world, 64, udp(server, low)...)...), forwarded(answer, "decided")},
		step{"question", asks, passed(seenNot)},
		step{"more, by the node", n.from(n.b, ip(f.b, f.world, 64, udp(server, low)...)...), forwarded(answer)},
		step{"by its router", n.onBridge(n.b, routerMAC(), ip(f.b, f.world, 64, udp(server, low)...)...), passed(seenOwn, "decided")},
	)
	// What the endpoint began is answered, and asks nothing.
	n.forget(t)
	n.story(t,
		step{"of b", n.onBridge(n.b, routerMAC(), ip(f.b, f.world, 64, udp(inside, server)...)...), passed(seenOwn, "decided")},
		step{"answer", n.byBridge(n.b, ip(f.world, f.b, 64, udp(server, inside)...)...), passed(seenNot)},
		step{"the same, by the node", n.from(n.b, ip(f.b, f.world, 64, udp(inside, server)...)...), forwarded(sent(n.b, ip(f.host, f.world, 63, udp(inside, server)...)...), "decided")},
	)
	// Who is not masqueraded needs no note.
	n.forget(t)
	n.story(t, step{"question", n.byBridge(n.c, ip(f.world, f.c, 64, udp(low, server)...)...), passed(seenNot)})
	n.wantFlows(t)
}

// testUplinkPolicy: a neighbour on an uplink is of the world, and policy is asked once, wherever
// the packet goes by.
func testUplinkPolicy(t *testing.T, n *node, f family) {
	toB := n.fromA(ip(f.a, f.b, 64, udp(inside, server)...)...)
	hidden := delivered(n.b, ip(f.host, f.b, 63, udp(inside, server)...)...)
	atPort := func(device int) run {
		return run{program: toContainer, device: n.b.IfIndex, in: hidden, seen: seenTranslated, ingress: device}
	}
	t.Run("ingress", func(t *testing.T) {
		n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofWorld))
		n.story(t,
			step{"of the world", n.byBridge(n.b, ip(f.world, f.b, 64, udp(low, server)...)...), passed(seenNot)},
			step{"answer", n.onBridge(n.b, routerMAC(), ip(f.b, f.world, 64, udp(server, low)...)...), passed(seenOwn, "decided")},
			step{"of another neighbour", n.byBridge(n.b, ip(f.unknown, f.b, 64, udp(low, server)...)...), denied("policy_ingress")},
			step{"of a", toB, denied("policy_ingress", "decided")},
			step{"as if of the node, from elsewhere", atPort(n.other.Attrs().Index), denied("policy_ingress")},
			step{
				"for another, by all ports",
				run{program: toContainer, device: n.b.IfIndex, in: delivered(n.c, ip(f.host, f.c, 63, udp(inside, server)...)...), seen: seenTranslated, ingress: n.a.IfIndex},
				denied("policy_ingress"),
			},
		)
	})
	t.Run("labels", func(t *testing.T) {
		n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofA))
		n.story(t,
			step{"of a", toB, forwarded(sent(n.a, ip(f.host, f.b, 63, udp(inside, server)...)...), "decided")},
			step{"at its port", atPort(n.a.IfIndex), passed(seenTranslated)},
			step{"answer", n.from(n.b, ip(f.b, f.host, 64, udp(server, inside)...)...), ownedBy(seenOwn, "decided")},
			step{
				"by the bridge", n.given(n.b, seenOwn, ip(f.b, f.host, 64, udp(server, inside)...)...),
				seenAs(deliveredAs(delivered(n.a, ip(f.b, f.a, 63, udp(server, inside)...)...), "decided")),
			},
		)
	})
	t.Run("egress", func(t *testing.T) {
		n.enforce(t, n.policy().restrict(n.a, egress).allow(setOne, ofB))
		n.story(t,
			step{"to b", toB, forwarded(sent(n.a, ip(f.host, f.b, 63, udp(inside, server)...)...), "decided")},
			step{"to c", n.fromA(ip(f.a, f.c, 64, udp(inside, server)...)...), denied("policy_egress", "decided")},
		)
	})
}

// testUplinkPort: the answer of a mapped port is translated, although it is sent to the router and
// not to the node.
func testUplinkPort(t *testing.T, n *node, f family) {
	n.forget(t)
	answer := ip(f.b, f.world, 64, udp(server, low)...)
	hidden := n.onBridge(n.b, routerMAC(), ip(f.host, f.world, 63, udp(hostPort, low)...)...).in
	translated := forwarded(hidden, "decided")
	again := forwarded(hidden)
	toNode := func(ttl uint8, inner []packet.Layer) want {
		w := ownedBy(seenOwn, "decided")
		w.out = sent(n.b, ip(f.b, f.world, ttl, inner...)...)
		return w
	}
	n.story(t,
		step{"of the same client, at its own address", n.byBridge(n.b, ip(f.world, f.b, 64, udp(low, server)...)...), passed(seenNot)},
		step{"answer", n.onBridge(n.b, routerMAC(), answer...), passed(seenOwn, "decided")},
		step{"more", n.onBridge(n.b, routerMAC(), answer...), passed(seenOwn)},
		step{
			"question", n.fromWorld(ip(f.world, f.host, 64, udp(low, hostPort)...)...),
			deliveredAs(delivered(n.b, ip(f.world, f.b, 63, udp(low, server)...)...), "decided"),
		},
		step{"answer", n.onBridge(n.b, routerMAC(), answer...), translated},
		step{"more", n.onBridge(n.b, routerMAC(), answer...), again},
		step{"by the node", n.from(n.b, answer...), forwarded(sent(n.b, ip(f.host, f.world, 63, udp(hostPort, low)...)...))},
		step{"at its end, for the stack to say so", n.onBridge(n.b, routerMAC(), ip(f.b, f.world, 1, udp(server, low)...)...), toNode(1, udp(server, low))},
		step{"too big, for the stack to say so", n.onBridge(n.b, routerMAC(), ip(f.b, f.world, 64, f.sized(1501, server, low)...)...), toNode(64, f.sized(1501, server, low))},
		step{"of a", n.fromA(ip(f.a, f.host, 64, udp(inside, hostPort)...)...), deliveredAs(delivered(n.b, ip(f.a, f.b, 63, udp(inside, server)...)...), "decided")},
		step{"answer", n.onBridge(n.b, routerMAC(), ip(f.b, f.a, 64, udp(server, inside)...)...), deliveredAs(delivered(n.a, ip(f.host, f.a, 63, udp(hostPort, inside)...)...), "decided")},
	)
}

// testUplinkMarks: what endpoints on the uplink say to the node is believed by its mark, which ends
// there; of what the wire brings, no note is.
func testUplinkMarks(t *testing.T, n *node, f family) {
	toHost := ip(f.b, f.host, 64, udp(low, server)...)
	toA := ip(f.b, f.a, 64, udp(low, server)...)
	wire := func(seen uint32, layers ...packet.Layer) run {
		r := n.given(n.b, seen, layers...)
		r.mark = 0
		return r
	}
	tagged := func(r run) run {
		r.vlan = 20
		return r
	}
	untagged := func(r run) run { // VLAN 0, with another bit of the tag
		r.vlan = 4096
		return r
	}
	everybody := packet.MAC("ff:ff:ff:ff:ff:ff")
	arp := func(dst net.HardwareAddr) []byte {
		return packet.New(packet.Eth(n.b.MAC, dst), packet.ARPRequest(packet.Station{MAC: n.b.MAC, IP: v4().b}, v4().host))
	}
	n.table(t,
		step{"to the host", n.from(n.b, toHost...), ownedBy(seenOwn, "decided")},
		step{"by the bridge", n.given(n.b, seenDecided, toHost...), untouched()},
		step{"to another, which the stack has", n.given(n.b, seenOwn, toA...), untouched()},
		step{"as if by the bridge", wire(seenOwn, toHost...), want{verdict: passOn}},
		step{"as if of b to another", wire(seenOwn, toA...), drops("martian")},
		step{"with a tag, for the VLAN's device", tagged(n.given(n.b, seenOwn, toA...)), want{verdict: passOn, seen: seenOwn, mark: ownMark}},
		step{"with a tag that is none", untagged(wire(seenOwn, toA...)), want{verdict: passOn}},
		step{"ARP to the host", run{program: fromContainer, device: n.b.IfIndex, in: arp(n.b.HostMAC)}, ownedBy(seenOwn)},
		step{"by the bridge", run{program: fromUplink, device: n.uplink.IfIndex, in: arp(n.uplink.MAC), seen: seenOwn, mark: ownMark}, untouched()},
		step{"ARP to all", run{program: fromContainer, device: n.b.IfIndex, in: arp(everybody)}, passed(seenOwn)},
		step{"to the router", n.onBridge(n.b, routerMAC(), ip(f.b, f.world, 64, udp(low, server)...)...), passed(seenOwn, "decided")},
		step{"elsewhere", n.fromA(ip(f.a, f.host, 64, udp(low, server)...)...), passed(seenNot, "decided")},
	)
}

// TestBridgeForgedNotes: what a program notes of a packet counts where the packet has come in by a device
// that has programs, or by the bridge of the endpoint whose it is. Who is behind another device can
// write the same note.
func TestBridgeForgedNotes(t *testing.T) {
	n := onUplink(t)
	n.a.Bridge = bridgeIndex
	n.do(t, func() error { return n.AttachEndpoint(n.a) })
	eachFamily(t, func(t *testing.T, f family) {
		by := func(r run, device int, seen uint32) run {
			r.ingress, r.seen = device, seen
			return r
		}
		elsewhere := n.other.Attrs().Index
		direct := run{program: toContainer, device: n.b.IfIndex, in: delivered(n.b, ip(f.a, f.b, 63, udp(inside, server)...)...)}
		hidden := run{program: toContainer, device: n.b.IfIndex, in: delivered(n.b, ip(f.host, f.b, 62, udp(inside, server)...)...)}
		begin := func(t *testing.T, allowed uint32) {
			n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, allowed))
			n.story(t, step{
				"masqueraded at the uplink", by(n.toWorld(seenOwn, ip(f.a, f.b, 62, udp(inside, server)...)...), bridgeIndex, seenLed),
				leaves(n.left(ip(f.host, f.b, 62, udp(inside, server)...)...)),
			})
		}
		t.Run("let in", func(t *testing.T) {
			begin(t, ofA)
			n.story(t,
				step{"decided at its port", by(direct, n.a.IfIndex, seenDecided), passed(seenDecided)},
				step{"by its bridge", by(direct, bridgeIndex, seenDecided), passed(seenDecided)},
				step{"from elsewhere", by(direct, elsewhere, seenDecided), drops("martian")},
				step{"hidden, by its bridge", by(hidden, bridgeIndex, seenTranslated), passed(seenTranslated)},
				step{"answer", n.from(n.b, ip(f.b, f.host, 64, udp(server, inside)...)...), ownedBy(seenOwn, "decided")},
				step{"hidden, by another bridge", by(hidden, anotherIndex, seenTranslated), denied("policy_ingress")},
				step{"hidden, from elsewhere", by(hidden, elsewhere, seenTranslated), denied("policy_ingress")},
				step{"hidden, unnoted", by(hidden, bridgeIndex, seenOwn), denied("policy_ingress")},
			)
		})
		t.Run("kept out", func(t *testing.T) {
			n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofWorld))
			n.story(t,
				step{"decided at its port", by(direct, n.a.IfIndex, seenDecided), passed(seenDecided)},
				step{"by its bridge", by(direct, bridgeIndex, seenDecided), denied("policy_ingress")},
			)
		})
		t.Run("without a policy", func(t *testing.T) {
			n.forget(t)
			n.story(t, step{"by its bridge", by(direct, bridgeIndex, seenDecided), passed(seenDecided)})
			n.wantFlows(t)
			n.story(t, step{"from elsewhere", by(direct, elsewhere, seenDecided), passed(seenDecided)})
			n.wantFlows(t)
		})
		t.Run("from the world, as if decided", func(t *testing.T) {
			n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofA))
			world := run{program: toContainer, device: n.b.IfIndex, in: delivered(n.b, ip(f.world, f.b, 63, udp(low, server)...)...)}
			n.story(t,
				step{"by an uplink", by(world, n.uplink.IfIndex, seenDecided), passed(seenDecided)},
				step{"from elsewhere", by(world, elsewhere, seenDecided), denied("policy_ingress")},
				step{"from elsewhere, as if translated", by(world, elsewhere, seenTranslated), denied("policy_ingress")},
			)
		})
	})
}

// TestMarkOf: the bit of what endpoints on an uplink say to the node is in none of the marks of parents'
// programs, which meet the uplink's.
func TestMarkOf(t *testing.T) {
	bits := uint32(0)
	for netns := range uint32(1000) {
		mark := markOf([]byte("boot"), netns)
		if mark == 0 || mark&(ownMark|3) != 0 {
			t.Fatalf("mark %#x", mark)
		}
		bits |= mark
	}
	if want := ^uint32(ownMark | 3); bits != want {
		t.Errorf("bits that marks have: %#x, want %#x", bits, want)
	}
}
