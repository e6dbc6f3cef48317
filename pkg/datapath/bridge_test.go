// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// The bridge of these tests, and another: no device needs to exist for an index.
const (
	bridgeIndex  = 4242
	anotherIndex = 4243
)

// stationMAC is that of a station on the bridge which is no endpoint; it has family.unknown.
func stationMAC() net.HardwareAddr { return packet.MAC("02:00:00:00:0b:0b") }

// onBridge is a packet of an endpoint for another station.
func (n *node) onBridge(from Endpoint, to net.HardwareAddr, layers ...packet.Layer) run {
	return run{
		program: fromContainer, device: from.IfIndex,
		in: packet.New(append([]packet.Layer{packet.Eth(from.MAC, to)}, layers...)...),
	}
}

// byBridge is a packet of the station that the bridge hands to an endpoint.
func (n *node) byBridge(to Endpoint, layers ...packet.Layer) run {
	return run{
		program: toContainer, device: to.IfIndex, ingress: n.other.Attrs().Index,
		in: packet.New(append([]packet.Layer{packet.Eth(stationMAC(), to.MAC)}, layers...)...),
	}
}

// across is what the bridge would make of a packet: nothing.
func across(counters ...string) want {
	return want{verdict: redirect, counters: append(counters, "delivered")}
}

// igmp is a message of group membership.
func igmp(src, dst netip.Addr) []packet.Layer {
	return []packet.Layer{packet.IP(src, dst, packet.TTL(1), packet.Proto(unix.IPPROTO_IGMP)), packet.Payload(8)}
}

// strange is a frame of a protocol that nobody knows.
func strange(src, dst net.HardwareAddr) []byte {
	return slices.Concat(dst, src, []byte{0x88, 0xb5}, make([]byte, 46))
}

func withBridge(t *testing.T, cfg Config) *node {
	t.Helper()
	n := newNode(t, cfg)
	must(t, n.ReconcileHostAddresses([]netip.Addr{v4().host, v6().host}))
	n.a.Bridge, n.b.Bridge, n.c.Bridge = bridgeIndex, bridgeIndex, anotherIndex
	for _, e := range []Endpoint{n.a, n.b, n.c} {
		n.do(t, func() error { return errors.Join(n.AttachEndpoint(e), n.CheckEndpoint(e)) })
	}
	return n
}

func TestBridge(t *testing.T) {
	n := withBridge(t, Config{Masquerade: true})
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range transports() {
			t.Run(tr.name, func(t *testing.T) { testBridgeStraight(t, n, f, tr) })
		}
		t.Run("other ways", func(t *testing.T) { testBridgeWays(t, n, f) })
		t.Run("close", func(t *testing.T) { testBridgeClose(t, n, f) })
		t.Run("groups", func(t *testing.T) { testBridgeGroups(t, n, f) })
		t.Run("policy", func(t *testing.T) { testBridgePolicy(t, n, f) })
		t.Run("groups under a policy", func(t *testing.T) { testBridgeGroupsPolicy(t, n, f) })
		t.Run("note", func(t *testing.T) { testBridgeNote(t, n, f) })
		t.Run("service", func(t *testing.T) { testBridgeService(t, n, f) })
		t.Run("by the stack", func(t *testing.T) { testBridgeStack(t, n, f) })
		t.Run("passages", func(t *testing.T) { testBridgePassages(t, n, f) })
	})
	t.Run("no IP", func(t *testing.T) { testBridgeStrange(t, n) })
	eachFamily(t, func(t *testing.T, f family) {
		t.Run("isolated", func(t *testing.T) { testBridgeIsolated(t, n, f) })
	})
}

// testBridgeIsolated: what two isolated ports send each other is left to the bridge, which
// drops it, whatever went straight before; one that is not isolated is reached.
func testBridgeIsolated(t *testing.T, n *node, f family) {
	n.forget(t)
	there := n.onBridge(n.a, n.b.MAC, ip(f.a, f.b, 64, udp(low, server)...)...)
	isolate := func(e Endpoint, isolated bool) {
		t.Helper()
		e.Isolated = isolated
		n.do(t, func() error { return errors.Join(n.AttachEndpoint(e), n.CheckEndpoint(e)) })
	}
	t.Cleanup(func() {
		isolate(n.a, false)
		isolate(n.b, false)
	})
	n.story(t, step{"before", there, across("decided")})
	isolate(n.a, true)
	n.story(t, step{"one", there, across("decided")}, step{"more", there, across()})
	isolate(n.b, true)
	n.story(t,
		step{"both", there, passed(seenOwn, "decided")}, step{"more", there, passed(seenOwn)},
		step{"back", n.onBridge(n.b, n.a.MAC, ip(f.b, f.a, 64, udp(server, low)...)...), passed(seenOwn, "decided")},
	)
	isolate(n.a, false)
	n.story(t, step{"the other one", there, across("decided")})
}

// testBridgeStraight: what is for another endpoint of the bridge goes there as it is, and
// what is for the gateway is routed.
func testBridgeStraight(t *testing.T, n *node, f family, tr transport) {
	n.forget(t)
	there := n.onBridge(n.a, n.b.MAC, ip(f.a, f.b, 1, tr.there(low)...)...)
	n.story(t,
		step{"first", n.onBridge(n.a, n.b.MAC, ip(f.a, f.b, 64, tr.begin(low)...)...), across("decided")},
		step{"more", there, across()},
		step{"answer", n.onBridge(n.b, n.a.MAC, ip(f.b, f.a, 64, tr.back(low)...)...), across("decided")},
		step{"more answers", n.onBridge(n.b, n.a.MAC, ip(f.b, f.a, 64, tr.back(low)...)...), across()},
		step{
			"by the gateway", n.fromA(ip(f.a, f.b, 64, tr.there(low)...)...),
			deliveredAs(delivered(n.b, ip(f.a, f.b, 63, tr.there(low)...)...), "decided"),
		},
		step{"straight again", there, across("decided")},
		step{"to another station with the address", n.onBridge(n.a, stationMAC(), ip(f.a, f.b, 64, tr.there(low)...)...), passed(seenOwn, "decided")},
	)
	n.wantTranslations(t)
	n.forget(t)
	n.story(t, step{
		"to the world", n.fromA(ip(f.a, f.world, 64, tr.begin(inside)...)...),
		forwarded(sent(n.a, ip(f.host, f.world, 63, tr.begin(inside)...)...), "decided"),
	})
}

// testBridgeWays: what has no straight way is left to the bridge, unless it is forged.
func testBridgeWays(t *testing.T, n *node, f family) {
	big := []packet.Layer{packet.UDP(low, server), packet.Payload(1500)}
	n.table(t,
		step{"station", n.onBridge(n.a, stationMAC(), ip(f.a, f.unknown, 64, udp(low, server)...)...), passed(seenOwn, "decided")},
		step{"world by a router on the bridge", n.onBridge(n.a, stationMAC(), ip(f.a, f.world, 64, udp(low, server)...)...), passed(seenOwn, "decided")},
		step{"endpoint of another bridge", n.onBridge(n.a, n.c.MAC, ip(f.a, f.c, 64, udp(low, server)...)...), passed(seenOwn, "decided")},
		step{"too big for the other port", n.onBridge(n.a, n.b.MAC, ip(f.a, f.b, 64, big...)...), want{verdict: passOn, counters: []string{"decided", "too_big"}, seen: seenOwn}},
		step{"another's address", n.onBridge(n.a, stationMAC(), ip(f.b, f.unknown, 64, udp(low, server)...)...), drops("decided", "source_address")},
		step{"nobody's address", n.onBridge(n.a, n.b.MAC, ip(f.unknown, f.b, 64, udp(low, server)...)...), drops("decided", "source_address")},
		step{"martian", n.onBridge(n.a, n.b.MAC, ip(f.a, f.martian, 64, udp(low, server)...)...), drops("decided", "martian")},
		step{
			"another's MAC",
			run{program: fromContainer, device: n.a.IfIndex, in: packet.New(append([]packet.Layer{packet.Eth(stationMAC(), n.b.MAC)}, ip(f.a, f.b, 64, udp(low, server)...)...)...)},
			drops("decided", "source_mac"),
		},
	)
	// The station answers, and asks.
	n.forget(t)
	n.story(t,
		step{"question", n.onBridge(n.a, stationMAC(), ip(f.a, f.unknown, 64, udp(low, server)...)...), passed(seenOwn, "decided")},
		step{"more", n.onBridge(n.a, stationMAC(), ip(f.a, f.unknown, 1, udp(low, server)...)...), passed(seenOwn)},
		step{"to another", n.onBridge(n.a, routerMAC(), ip(f.a, f.unknown, 64, udp(low, server)...)...), passed(seenOwn, "decided")},
		step{"to the gateway", n.fromA(ip(f.a, f.unknown, 64, udp(low, server)...)...), passed(seenOwn, "decided")},
		step{"answer", n.byBridge(n.a, ip(f.unknown, f.a, 64, udp(server, low)...)...), passed(seenNot)},
		step{"question of the station", n.byBridge(n.b, ip(f.unknown, f.b, 64, udp(low, server)...)...), passed(seenNot)},
		step{"answer to it", n.onBridge(n.b, stationMAC(), ip(f.b, f.unknown, 64, udp(server, low)...)...), passed(seenOwn, "decided")},
	)
}

// testBridgeClose: a connection that closes leaves nothing in the cache.
func testBridgeClose(t *testing.T, n *node, f family) {
	n.forget(t)
	there := func(options ...packet.TCPOption) run {
		return n.onBridge(n.a, n.b.MAC, ip(f.a, f.b, 64, tcp(low, server, options...)...)...)
	}
	back := func(options ...packet.TCPOption) run {
		return n.onBridge(n.b, n.a.MAC, ip(f.b, f.a, 64, tcp(server, low, options...)...)...)
	}
	n.story(t,
		step{"SYN", there(packet.SYN), across("decided")},
		step{"SYN, ACK", back(packet.SYN, packet.ACK), across("decided")},
		step{"ACK", there(packet.ACK), across()},
		step{"FIN", there(packet.FIN, packet.ACK), across()},
		step{"FIN back", back(packet.FIN, packet.ACK), across()},
		step{"last ACK", there(packet.ACK), across()},
	)
	n.wantFlows(t)
	station := func(options ...packet.TCPOption) run {
		return n.onBridge(n.a, stationMAC(), ip(f.a, f.unknown, 64, tcp(low, server, options...)...)...)
	}
	n.story(t,
		step{"SYN to a station", station(packet.SYN), passed(seenOwn, "decided")},
		step{"ACK", station(packet.ACK), passed(seenOwn)},
		step{"FIN", station(packet.FIN, packet.ACK), passed(seenOwn)},
		step{"last ACK", station(packet.ACK), passed(seenOwn)},
	)
	n.wantFlows(t)
}

// testBridgeLodger: what a socket sends by the bridge is the host's, unless somebody else has a device on
// it: with a MAC of its own, or with the bridge's and another address.
func testBridgeLodger(t *testing.T, n *node, f family) {
	ofSocket := func(from net.HardwareAddr, seen uint32, layers ...packet.Layer) run {
		return run{
			program: toContainer, device: n.b.IfIndex, seen: seen,
			in: packet.New(append([]packet.Layer{packet.Eth(from, n.b.MAC)}, layers...)...),
		}
	}
	asks := func(from net.HardwareAddr, source netip.Addr) run {
		return ofSocket(from, seenNot, ip(source, f.b, 64, udp(low, server)...)...)
	}
	ofHost := want{verdict: passOn, counters: []string{"host"}}
	n.enforce(t, n.policy())
	n.story(t, step{"who may be reached by all", asks(stationMAC(), f.unknown), passed(seenNot)})
	n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofWorld))
	n.story(t,
		step{"the host", asks(n.b.HostMAC, f.host), ofHost},
		step{"macvlan", asks(stationMAC(), f.unknown), denied("policy_ingress")},
		step{"macvlan, as the host", asks(stationMAC(), f.host), denied("policy_ingress")},
		step{"macvlan, as who may, from elsewhere", asks(stationMAC(), f.world), denied("martian")},
		step{"macvlan, as an endpoint", ofSocket(stationMAC(), seenOwn, ip(f.a, f.b, 64, udp(low, server)...)...), denied("martian")},
		step{"macvlan, as if decided", ofSocket(stationMAC(), seenTranslated, ip(f.unknown, f.b, 64, udp(low, server)...)...), denied("policy_ingress")},
		step{"ipvlan", asks(n.b.HostMAC, f.unknown), denied("policy_ingress")},
		step{"ipvlan, as who may", asks(n.b.HostMAC, f.world), passed(seenNot)},
		step{"ipvlan, by its link-local address", asks(n.b.HostMAC, f.linkLocal), denied("policy_ingress")},
		step{"neither", run{program: toContainer, device: n.b.IfIndex, in: strange(stationMAC(), n.b.MAC)}, denied("policy_ingress")},
		step{"the host's", run{program: toContainer, device: n.b.IfIndex, in: strange(n.b.HostMAC, n.b.MAC)}, ofHost},
	)
	if f.v6() {
		// Without which nobody that it dials would be found.
		answer := []packet.Layer{packet.IP(f.unknown, f.b), packet.NeighborAdvert(f.unknown, packet.NASolicited, packet.TargetLinkAddr(stationMAC()))}
		n.story(t,
			step{"advertisement of macvlan", ofSocket(stationMAC(), seenNot, answer...), passed(seenNot)},
			step{"advertisement of a station", n.byBridge(n.b, answer...), passed(seenNot)},
		)
	}
	n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, 0))
	n.story(t, step{"macvlan, where all may", asks(stationMAC(), f.unknown), passed(seenNot)})
}

// testBridgeGroups: what is for all, or for many, is left to the bridge.
func testBridgeGroups(t *testing.T, n *node, f family) {
	everybody := packet.MAC("ff:ff:ff:ff:ff:ff")
	group := packet.MAC("33:33:00:00:00:fb")
	n.table(t,
		step{"broadcast", n.onBridge(n.a, everybody, ip(f.a, f.unknown, 64, udp(low, server)...)...), passed(seenDecided, "decided")},
		step{"multicast", n.onBridge(n.a, group, ip(f.a, f.multicast, 1, udp(low, server)...)...), passed(seenDecided, "decided")},
		step{"link-local", n.onBridge(n.a, stationMAC(), ip(f.a, f.linkLocal, 64, udp(low, server)...)...), passed(seenOwn, "decided")},
		step{"broadcast to an endpoint", n.byBridge(n.b, ip(f.unknown, f.multicast, 1, udp(low, server)...)...), passed(seenNot)},
	)
}

// testBridgePolicy: policy is asked on the sender's side for both, also where the way leads
// to who is no endpoint, and at the receiver's for what comes from there.
func testBridgePolicy(t *testing.T, n *node, f family) {
	toB := n.onBridge(n.a, n.b.MAC, ip(f.a, f.b, 64, udp(low, server)...)...)
	toA := n.onBridge(n.b, n.a.MAC, ip(f.b, f.a, 64, udp(server, low)...)...)
	toStation := n.onBridge(n.a, stationMAC(), ip(f.a, f.unknown, 64, udp(low, server)...)...)
	ofStation := n.byBridge(n.a, ip(f.unknown, f.a, 64, udp(server, low)...)...)
	t.Run("ingress", func(t *testing.T) {
		n.enforce(t, n.policy().restrict(n.b, ingress))
		n.story(t,
			step{"kept out", toB, denied("policy_ingress", "decided")},
			step{"kept out again", toB, denied("policy_ingress")},
			step{"by the gateway", n.fromA(ip(f.a, f.b, 64, udp(low, server)...)...), denied("policy_ingress")},
			step{"b begins", toA, across("decided")},
			step{"and is answered", toB, across("decided")},
		)
		n.wantTracked(t, tracked1{f.b, f.a, maps.TranslationOpening})
	})
	t.Run("let in", func(t *testing.T) {
		n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofA))
		n.story(t,
			step{"let in", toB, across("decided")},
			step{"answer", toA, across("decided")},
			step{"more", toB, across("decided")},
			step{"and more", toB, across()},
		)
	})
	t.Run("egress", func(t *testing.T) {
		n.enforce(t, n.policy().restrict(n.a, egress).allow(setOne, ofB))
		n.story(t,
			step{"to whom it may", toB, across("decided")},
			step{"to whom it may not", toStation, denied("policy_egress", "decided")},
			step{"to a router on the bridge", n.onBridge(n.a, stationMAC(), ip(f.a, f.world, 64, udp(low, server)...)...), denied("policy_egress", "decided")},
			step{"the station asks", ofStation, passed(seenNot)},
			step{"and is answered", toStation, passed(seenOwn, "decided")},
		)
	})
	t.Run("services of others", func(t *testing.T) {
		n.services(t, netip.PrefixFrom(f.neighbour, f.neighbour.BitLen()))
		ask := n.fromA(ip(f.a, f.neighbour, 64, udp(low, server)...)...)
		n.enforce(t, n.policy().restrict(n.a, egress).allow(setOne, ofB))
		n.story(t, step{"judged by its address", ask, denied("policy_egress", "decided")})
		n.enforce(t, n.policy().restrict(n.a, egress).allow(setOne, 0))
		n.story(t, step{"which may be all", ask, passed(seenLed, "decided")})
	})
	t.Run("lodger", func(t *testing.T) { testBridgeLodger(t, n, f) })
	t.Run("begun before", func(t *testing.T) {
		n.forget(t)
		n.story(t, step{"question", toB, across("decided")}, step{"answer", toA, across("decided")})
		must(t, n.ReconcilePolicy(n.policy().restrict(n.b, egress)))
		defer func() { must(t, n.ReconcilePolicy(Policy{})) }()
		n.story(t, step{"answer under the policy", toA, across("decided")})
	})
	t.Run("of the station", func(t *testing.T) {
		n.enforce(t, n.policy().restrict(n.a, ingress))
		n.story(t,
			step{"kept out", ofStation, denied("policy_ingress")},
			step{"a asks", toStation, passed(seenOwn, "decided")},
			step{"and is answered", ofStation, passed(seenNot)},
		)
	})
}

// testBridgeGroupsPolicy: who may not speak to everybody speaks to no group, and who is not
// to be spoken to by everybody is not by groups. What keeps the link alive passes.
func testBridgeGroupsPolicy(t *testing.T, n *node, f family) {
	everybody := packet.MAC("ff:ff:ff:ff:ff:ff")
	group := packet.MAC("33:33:00:00:00:fb")
	linkLocal := addr("fe80::1234")
	t.Run("egress", func(t *testing.T) {
		n.enforce(t, n.policy().restrict(n.a, egress).allow(setOne, ofB))
		n.story(t,
			step{"broadcast", n.onBridge(n.a, everybody, ip(f.a, f.unknown, 64, udp(low, server)...)...), denied("policy_egress", "decided")},
			step{"multicast", n.onBridge(n.a, group, ip(f.a, f.multicast, 1, udp(low, server)...)...), denied("policy_egress", "decided")},
			step{"multicast by the gateway", n.fromA(ip(f.a, f.multicast, 8, udp(low, server)...)...), denied("policy_egress", "decided")},
			step{"link-local", n.onBridge(n.a, stationMAC(), ip(f.a, f.linkLocal, 64, udp(low, server)...)...), denied("policy_egress", "decided")},
			step{"multicast of another", n.onBridge(n.b, group, ip(f.b, f.multicast, 1, udp(low, server)...)...), passed(seenOwn, "decided")},
			step{"multicast that it hears", n.byBridge(n.a, ip(f.unknown, f.multicast, 1, udp(low, server)...)...), passed(seenNot)},
			step{"no IP", run{program: fromContainer, device: n.a.IfIndex, in: strange(n.a.MAC, stationMAC())}, denied("policy_egress")},
		)
		if !f.v6() {
			n.story(t,
				step{"membership", n.onBridge(n.a, group, igmp(f.a, addr("239.1.2.3"))...), passed(seenOwn, "decided")},
				step{"renewal", n.onBridge(n.a, everybody, ip(f.a, addr("255.255.255.255"), 64, udp(68, 67)...)...), passed(seenOwn, "decided")},
				step{"broadcast to another port", n.onBridge(n.a, everybody, ip(f.a, addr("255.255.255.255"), 64, udp(68, 69)...)...), denied("policy_egress", "decided")},
				step{"offer", n.onBridge(n.a, everybody, ip(f.a, addr("255.255.255.255"), 64, udp(67, 68)...)...), denied("policy_egress", "decided")},
				step{"offer of another", n.onBridge(n.b, everybody, ip(f.b, addr("255.255.255.255"), 64, udp(67, 68)...)...), passed(seenOwn, "decided")},
			)
		} else {
			n.story(t,
				step{"from link-local", n.onBridge(n.a, stationMAC(), ip(linkLocal, f.linkLocal, 64, udp(low, server)...)...), denied("policy_egress", "decided")},
				step{"solicitation", n.onBridge(n.a, group, ip(f.a, f.linkLocal, 255, packet.NeighborSolicit(f.b, packet.SourceLinkAddr(n.a.MAC)))...), passed(seenOwn, "decided")},
			)
		}
	})
	t.Run("ingress", func(t *testing.T) {
		n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, 0))
		n.story(t,
			step{"to itself", n.byBridge(n.b, ip(f.unknown, f.b, 64, udp(low, server)...)...), passed(seenNot)},
			step{"multicast", n.byBridge(n.b, ip(f.unknown, f.multicast, 1, udp(low, server)...)...), denied("policy_ingress")},
			step{"link-local", n.byBridge(n.b, ip(f.unknown, f.linkLocal, 64, udp(low, server)...)...), denied("policy_ingress")},
			step{"for another endpoint", n.byBridge(n.b, ip(f.unknown, f.a, 64, udp(low, server)...)...), denied("policy_ingress")},
			step{"no IP", run{program: toContainer, device: n.b.IfIndex, ingress: n.other.Attrs().Index, in: strange(stationMAC(), n.b.MAC)}, denied("policy_ingress")},
			step{"multicast to another", n.byBridge(n.a, ip(f.unknown, f.multicast, 1, udp(low, server)...)...), passed(seenNot)},
			step{"multicast of the host", run{program: toContainer, device: n.b.IfIndex, in: delivered(n.b, ip(f.host, f.multicast, 1, udp(low, server)...)...)}, want{verdict: passOn, counters: []string{"host"}}},
		)
		if !f.v6() {
			n.story(t,
				step{"membership query", n.byBridge(n.b, igmp(f.unknown, addr("224.0.0.1"))...), passed(seenNot)},
				step{"offer", n.byBridge(n.b, ip(f.unknown, addr("255.255.255.255"), 64, udp(67, 68)...)...), passed(seenNot)},
				step{"broadcast to another port", n.byBridge(n.b, ip(f.unknown, addr("255.255.255.255"), 64, udp(67, 69)...)...), denied("policy_ingress")},
			)
		} else {
			n.story(t, step{"solicitation", n.byBridge(n.b, ip(f.unknown, f.multicast, 255, packet.NeighborSolicit(f.b, packet.SourceLinkAddr(stationMAC())))...), passed(seenNot)})
		}
	})
}

// testBridgeService: others lead a question from the bridge back to it. The answer, for the
// station that asked, is theirs to translate first; a neighbour's own question is not.
func testBridgeService(t *testing.T, n *node, f family) {
	n.forget(t)
	n.services(t, netip.PrefixFrom(f.neighbour, f.neighbour.BitLen()))
	answer := ip(f.b, f.a, 64, udp(server, low)...)
	byStack := packet.New(append([]packet.Layer{packet.Eth(n.b.MAC, n.b.HostMAC)}, answer...)...)
	led := func(from net.HardwareAddr, layers ...packet.Layer) run {
		return run{
			program: toContainer, device: n.b.IfIndex, ingress: bridgeIndex, seen: seenLed,
			in: packet.New(append([]packet.Layer{packet.Eth(from, n.b.MAC)}, layers...)...),
		}
	}
	n.story(t,
		step{"question", n.fromA(ip(f.a, f.neighbour, 64, udp(low, server)...)...), passed(seenLed, "decided")},
		step{"led to b", led(n.b.HostMAC, ip(f.a, f.b, 63, udp(low, server)...)...), passed(seenLed)},
		step{"answer", n.onBridge(n.b, n.a.MAC, answer...), want{verdict: passOn, out: byStack, counters: []string{"decided", "passed"}, seen: seenOwn}},
		step{"again", n.onBridge(n.b, n.a.MAC, answer...), want{verdict: passOn, out: byStack, counters: []string{"decided", "passed"}, seen: seenOwn}},
	)
	n.forget(t)
	n.story(t,
		step{"led to b by the bridge", led(n.a.MAC, ip(f.a, f.b, 64, udp(low, server)...)...), passed(seenLed)},
		step{"answer", n.onBridge(n.b, n.a.MAC, answer...), want{verdict: passOn, out: byStack, counters: []string{"decided", "passed"}, seen: seenOwn}},
	)
	toStation := ip(f.b, f.unknown, 64, udp(server, low)...)
	n.forget(t)
	n.story(t,
		step{"of the station", n.byBridge(n.b, ip(f.unknown, f.b, 64, udp(low, server)...)...), passed(seenNot)},
		step{"answer to it", n.onBridge(n.b, stationMAC(), toStation...), passed(seenOwn, "decided")},
	)
	n.forget(t)
	n.story(t,
		step{"of the station, led", led(n.b.HostMAC, ip(f.unknown, f.b, 63, udp(low, server)...)...), passed(seenLed)},
		step{
			"answer to it", n.onBridge(n.b, stationMAC(), toStation...),
			want{verdict: passOn, out: packet.New(append([]packet.Layer{packet.Eth(n.b.MAC, n.b.HostMAC)}, toStation...)...), counters: []string{"decided", "passed"}, seen: seenOwn},
		},
	)
}

// testBridgeStack: what the bridge gives to the stack comes in by the bridge. An endpoint's
// address is believed there, and at no other device.
func testBridgeStack(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.a, both).allow(setOne, ofWorld).restrict(n.b, ingress).allow(setOne, ofA))
	by := func(index int, r run) run {
		r.ingress = index
		return r
	}
	toWorld := ip(f.a, f.world, 63, udp(inside, server)...)
	toB := func(seen uint32, client uint16) run {
		r := by(bridgeIndex, n.byBridge(n.b, ip(f.a, f.b, 63, udp(client, server)...)...))
		r.seen = seen
		return r
	}
	n.story(t,
		step{"forged, to the world", by(bridgeIndex, n.toWorld(seenNot, toWorld...)), drops("martian")},
		step{"to the world, by another bridge", by(anotherIndex, n.toWorld(seenOwn, toWorld...)), drops("martian")},
		step{"to the world", by(bridgeIndex, n.toWorld(seenOwn, toWorld...)), leaves(n.left(ip(f.host, f.world, 63, udp(inside, server)...)...))},
		step{"forged, to b", toB(seenNot, low), drops("martian")},
		step{"to b, by another bridge", by(anotherIndex, n.byBridge(n.b, ip(f.a, f.b, 63, udp(low, server)...)...)), drops("martian")},
	)
	n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofA))
	n.story(t,
		step{"forged, to b that lets a in", toB(seenNot, low), drops("martian")},
		step{"to b that lets a in", toB(seenOwn, low), passed(seenOwn)},
	)
}

// testBridgeNote: what a neighbour sends to an endpoint makes no answer of what the endpoint
// sends to the gateway, which would leave unhidden.
func testBridgeNote(t *testing.T, n *node, f family) {
	n.forget(t)
	forged := n.byBridge(n.b, ip(f.world, f.b, 64, udp(server, inside)...)...)
	out := n.from(n.b, ip(f.b, f.world, 64, udp(inside, server)...)...)
	hidden := sent(n.b, ip(f.host, f.world, 63, udp(inside, server)...)...)
	n.story(t,
		step{"of the world, by a neighbour", forged, passed(seenNot)},
		step{"to the world", out, forwarded(hidden, "decided")},
	)
	// Nor does one in the name of another endpoint, which goes straight.
	there := n.onBridge(n.a, n.b.MAC, ip(f.a, f.b, 64, udp(low, server)...)...)
	back := n.onBridge(n.b, n.a.MAC, ip(f.b, f.a, 64, udp(server, low)...)...)
	n.story(t,
		step{"to b", there, across("decided")}, step{"and back", back, across("decided")},
		step{"of a, by a neighbour", n.byBridge(n.b, ip(f.a, f.b, 64, udp(low, server)...)...), passed(seenNot)},
		step{"back again", back, across()},
	)
	n.enforce(t, n.policy().restrict(n.b, both).allow(setOne, ofWorld).allow(setOne+1, ofWorld))
	n.story(t,
		step{"under a policy", forged, drops("martian")},
		step{"to the world", out, forwarded(hidden, "decided")},
	)
	n.forget(t)
	n.story(t,
		step{"to a router on the bridge", n.onBridge(n.b, stationMAC(), ip(f.b, f.world, 64, udp(low, server)...)...), passed(seenOwn, "decided")},
		step{"which answers", n.byBridge(n.b, ip(f.world, f.b, 64, udp(server, low)...)...), passed(seenNot)},
	)
}

// testBridgeStrange: no endpoint speaks with another's MAC, or as a bridge.
func testBridgeStrange(t *testing.T, n *node) {
	of := func(src, dst net.HardwareAddr) run {
		return run{program: fromContainer, device: n.a.IfIndex, in: strange(src, dst)}
	}
	n.table(t,
		step{"its own", of(n.a.MAC, stationMAC()), passed(seenOwn)},
		step{"another's MAC", of(stationMAC(), n.b.MAC), drops("source_mac")},
		step{"spanning tree", of(n.a.MAC, packet.MAC("01:80:c2:00:00:00")), drops("martian")},
		step{"link discovery", of(n.a.MAC, packet.MAC("01:80:c2:00:00:0e")), drops("martian")},
		step{"beyond", of(n.a.MAC, packet.MAC("01:80:c2:00:00:10")), passed(seenOwn)},
		step{"to an endpoint", run{program: toContainer, device: n.b.IfIndex, ingress: n.other.Attrs().Index, in: strange(stationMAC(), n.b.MAC)}, passed(seenNot)},
	)
}

// TestBridgePorts: the answer of a mapped port to a client on the same bridge is translated,
// although it is sent to the client's station.
func TestBridgePorts(t *testing.T) {
	n := withPorts(t, Config{Masquerade: true})
	n.a.Bridge, n.b.Bridge = bridgeIndex, bridgeIndex
	for _, e := range []Endpoint{n.a, n.b} {
		n.do(t, func() error { return n.AttachEndpoint(e) })
	}
	eachFamily(t, func(t *testing.T, f family) {
		testPassages(t, bridgePortPassages(n, f)) // first, since Linux 5.10 ends with the story
		n.forget(t)
		answer := n.onBridge(n.b, n.a.MAC, ip(f.b, f.a, 64, udp(server, low)...)...)
		arrives := delivered(n.a, ip(f.host, f.a, 63, udp(hostPort, low)...)...)
		n.story(t,
			step{
				"question", n.fromA(ip(f.a, f.host, 64, udp(low, hostPort)...)...),
				deliveredAs(delivered(n.b, ip(f.a, f.b, 63, udp(low, server)...)...), "decided"),
			},
			step{"answer", answer, deliveredAs(arrives, "decided")},
			step{"more", answer, deliveredAs(arrives)},
		)
		// Somebody else's answer does not leave as the host's.
		byStack := func(index int, seen uint32) run {
			r := n.toWorld(seen, ip(f.b, f.world, 63, udp(server, low)...)...)
			r.ingress = index
			return r
		}
		refused := func(index int) run {
			asked := delivered(n.b, ip(f.world, f.b, 63, udp(low, server)...)...)
			r := n.toWorld(seenNot, ip(f.b, f.world, 63, packet.Unreachable(packet.PortUnreachable), packet.Quote(asked))...)
			r.ingress = index
			return r
		}
		n.story(t,
			step{
				"question of the world", n.fromWorld(ip(f.world, f.host, 64, udp(low, hostPort)...)...),
				deliveredAs(delivered(n.b, ip(f.world, f.b, 63, udp(low, server)...)...), "decided"),
			},
			step{"answer of another on the bridge", byStack(bridgeIndex, seenNot), drops("martian")},
			step{"answer by another bridge", byStack(anotherIndex, seenOwn), drops("martian")},
			step{"error of another on the bridge", refused(bridgeIndex), drops("martian")},
			step{"answer by the stack", byStack(bridgeIndex, seenOwn), leaves(n.left(ip(f.host, f.world, 63, udp(hostPort, low)...)...))},
		)
	})
}
