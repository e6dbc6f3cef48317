// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net"
	"net/netip"
	"testing"

	"github.com/tendril-net/tendril/internal/packet"
)

func testSpoofing(t *testing.T, n *node) {
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range transports() {
			t.Run(tr.name, func(t *testing.T) { testForgedSender(t, n, f, tr) })
		}
		t.Run("known flow", func(t *testing.T) { testForgedInFlow(t, n, f) })
		t.Run("link", func(t *testing.T) { testLinkTalk(t, n, f) })
		t.Run("tagged", func(t *testing.T) { testTagged(t, n, f) })
	})
	t.Run("ARP", func(t *testing.T) { testARP(t, n, v4()) })
	t.Run("neighbour discovery", func(t *testing.T) { testNeighbourDiscovery(t, n, v6()) })
	t.Run("v4-mapped", func(t *testing.T) { testMapped(t, n, v4(), v6()) })
	t.Run("DHCP", func(t *testing.T) { testDHCP(t, n) })
}

// as is a frame of a's with another source MAC.
func (n *node) as(mac net.HardwareAddr, layers ...packet.Layer) run {
	return run{program: fromContainer, device: n.a.IfIndex, in: packet.New(append([]packet.Layer{packet.Eth(mac, n.a.HostMAC)}, layers...)...)}
}

func testForgedSender(t *testing.T, n *node, f family, tr transport) {
	for _, destination := range []netip.Addr{f.b, f.world, f.host, f.elsewhere} {
		from := func(src netip.Addr) run { return n.fromA(ip(src, destination, 64, tr.there(inside)...)...) }
		n.table(t,
			step{"a neighbour's address", from(f.c), drops("decided", "source_address")},
			step{"nobody's address", from(f.unknown), drops("decided", "source_address")},
			step{"the world's address", from(f.world), drops("decided", "source_address")},
			step{"the host's address", from(f.host), drops("decided", "source_address")},
			step{"loopback", from(f.martian), drops("decided", "source_address")},
			step{"a group", from(f.multicast), drops("decided", "source_address")},
			step{"a link-local address", from(f.linkLocal), drops("decided", "source_address")},
			step{"a neighbour's MAC", n.as(n.b.MAC, ip(f.a, destination, 64, tr.there(inside)...)...), drops("decided", "source_mac")},
			step{"a neighbour's MAC and address", n.as(n.b.MAC, ip(f.b, destination, 64, tr.there(inside)...)...), drops("decided", "source_mac")},
			step{"the host's MAC", n.as(n.a.HostMAC, ip(f.a, destination, 64, tr.there(inside)...)...), drops("decided", "source_mac")},
		)
		n.wantFlows(t)
		n.wantTranslations(t)
	}
	unknown := run{program: fromContainer, device: n.other.Attrs().Index, in: sent(n.a, ip(f.a, f.world, 64, tr.there(inside)...)...)}
	uplink := run{program: fromContainer, device: n.uplink.IfIndex, in: sent(n.a, ip(f.a, f.world, 64, tr.there(inside)...)...)}
	n.table(t,
		step{"device without endpoint", unknown, drops("decided", "unknown_sender")},
		step{"uplink", uplink, drops("decided", "unknown_sender")},
	)
}

// testForgedInFlow: a decision for a sender is for no other.
func testForgedInFlow(t *testing.T, n *node, f family) {
	n.forget(t)
	packetOf := func(ttl uint8) []packet.Layer { return ip(f.a, f.b, ttl, udp(low, server)...) }
	forged := n.from(n.c, packetOf(64)...)
	n.story(t,
		step{"honest", n.fromA(packetOf(64)...), deliveredAs(delivered(n.b, packetOf(63)...), "decided")},
		step{"another's MAC", n.as(n.b.MAC, packetOf(64)...), drops("decided", "source_mac")},
		step{"from another device", forged, drops("decided", "source_address")},
		step{"honest again", n.fromA(packetOf(64)...), deliveredAs(delivered(n.b, packetOf(63)...))},
	)
	// Other bytes of the MAC count as well.
	for i := range 6 {
		mac := append(net.HardwareAddr(nil), n.a.MAC...)
		mac[i] ^= 4
		n.check(t, n.as(mac, packetOf(64)...), drops("decided", "source_mac"))
	}
}

// testLinkTalk: what stays on the link may come from no address, or one of the
// link's.
func testLinkTalk(t *testing.T, n *node, f family) {
	if !f.v6() {
		n.table(t,
			step{"redirect", n.fromA(ip(f.a, f.host, 64, packet.Redirect(1, f.b), packet.Quote(sent(n.a, ip(f.host, f.a, 3, udp(low, server)...)...)))...), drops("decided", "neighbour")},
			step{"no address", n.fromA(ip(netip.IPv4Unspecified(), f.world, 64, udp(low, server)...)...), drops("decided", "source_address")},
			step{"no address, to a group", n.fromA(ip(netip.IPv4Unspecified(), f.multicast, 64, udp(low, server)...)...), drops("decided", "source_address")},
		)
		return
	}
	unspecified := netip.IPv6Unspecified()
	n.table(t,
		step{"from the link to a group", n.fromA(ip(f.linkLocal, addr("ff02::fb"), 1, udp(5353, 5353)...)...), passed(seenDecided, "decided")},
		step{"from the link to the link", n.fromA(ip(f.linkLocal, addr("fe80::1"), 64, udp(546, 547)...)...), passed(seenDecided, "decided")},
		step{"from the link to the world", n.fromA(ip(f.linkLocal, f.world, 64, udp(546, 547)...)...), drops("decided", "source_address")},
		step{"from the link to a container", n.fromA(ip(f.linkLocal, f.b, 64, udp(546, 547)...)...), drops("decided", "source_address")},
		step{"from nowhere to the world", n.fromA(ip(unspecified, f.world, 64, udp(546, 547)...)...), drops("decided", "source_address")},
		step{"to the link", n.fromA(ip(f.a, addr("fe80::1"), 64, udp(546, 547)...)...), passed(seenDecided, "decided")},
		step{"from the link with another's MAC", n.as(n.b.MAC, ip(f.linkLocal, addr("fe80::1"), 64, udp(546, 547)...)...), drops("decided", "source_mac")},
	)
}

// testTagged: a VLAN tag is another link.
func testTagged(t *testing.T, n *node, f family) {
	tagged := n.fromA(ip(f.a, f.b, 64, udp(low, server)...)...)
	tagged.vlan = 5
	arp := n.fromA(packet.ARPRequest(packet.Station{MAC: n.a.MAC, IP: v4().a}, v4().host))
	arp.vlan = 5
	n.table(t, step{"IP", tagged, drops("vlan")}, step{"ARP", arp, drops("vlan")})
	n.forget(t)
	plain := tagged
	plain.vlan = 0
	n.story(t,
		step{"untagged", plain, deliveredAs(delivered(n.b, ip(f.a, f.b, 63, udp(low, server)...)...), "decided")},
		step{"tagged in the flow", tagged, drops("vlan")},
	)
}

func testARP(t *testing.T, n *node, f family) {
	self := packet.Station{MAC: n.a.MAC, IP: f.a}
	host := packet.Station{MAC: n.a.HostMAC, IP: f.host}
	n.table(t,
		step{"request", n.fromA(packet.ARPRequest(self, f.host)), passed(seenNot)},
		step{"reply", n.fromA(packet.ARPReply(self, host)), passed(seenNot)},
		step{"probe", n.fromA(packet.ARPRequest(packet.Station{MAC: n.a.MAC, IP: netip.IPv4Unspecified()}, f.a)), passed(seenNot)},
		step{"announcement", n.fromA(packet.ARPRequest(self, f.a)), passed(seenNot)},
		step{"reply for a neighbour", n.fromA(packet.ARPReply(packet.Station{MAC: n.a.MAC, IP: f.b}, host)), drops("neighbour")},
		step{"request as a neighbour", n.fromA(packet.ARPRequest(packet.Station{MAC: n.a.MAC, IP: f.b}, f.host)), drops("neighbour")},
		step{"reply for the router", n.fromA(packet.ARPReply(packet.Station{MAC: n.a.MAC, IP: f.router}, host)), drops("neighbour")},
		step{"another's MAC inside", n.fromA(packet.ARPReply(packet.Station{MAC: n.b.MAC, IP: f.a}, host)), drops("source_mac")},
		step{"another's MAC outside", n.as(n.b.MAC, packet.ARPReply(self, host)), drops("source_mac")},
		step{"cut", trim(n.fromA(packet.ARPReply(self, host)), 1), drops("invalid")},
		step{"of another hardware", change1(n.fromA(packet.ARPReply(self, host)), 15, 6), drops("invalid")},
		step{"of another protocol", change1(n.fromA(packet.ARPReply(self, host)), 16, 0x86), drops("invalid")},
		step{"of longer addresses", change1(n.fromA(packet.ARPReply(self, host)), 18, 8), drops("invalid")},
		step{"of longer names", change1(n.fromA(packet.ARPReply(self, host)), 19, 16), drops("invalid")},
		step{"from a device without endpoint", run{program: fromContainer, device: n.uplink.IfIndex, in: sent(n.a, packet.ARPReply(self, host))}, drops("unknown_sender")},
	)
}

// change1 sets one byte of a frame.
func change1(r run, offset int, value byte) run {
	r.in = append([]byte(nil), r.in...)
	r.in[offset] = value
	return r
}

func testNeighbourDiscovery(t *testing.T, n *node, f family) {
	own := packet.TargetLinkAddr(n.a.MAC)
	groups := addr("ff02::1")
	unspecified := netip.IPv6Unspecified()
	quoted := sent(n.a, ip(f.host, f.a, 3, udp(low, server)...)...)
	nd := func(src, dst netip.Addr, message packet.Layer) run { return n.fromA(packet.IP(src, dst), message) }
	kept := passed(seenDecided, "decided")
	unmarked := passed(seenNot, "decided") // from an address of its own: might be forwarded
	n.table(t,
		step{"solicitation", nd(f.a, f.host, packet.NeighborSolicit(f.host, packet.SourceLinkAddr(n.a.MAC))), unmarked},
		step{"solicitation from the link", nd(f.linkLocal, addr("ff02::1:ff00:1"), packet.NeighborSolicit(f.host, packet.SourceLinkAddr(n.a.MAC))), kept},
		step{"duplicate address detection", nd(unspecified, addr("ff02::1:ff00:2"), packet.NeighborSolicit(f.a)), kept},
		step{"advertisement", nd(f.a, f.host, packet.NeighborAdvert(f.a, packet.NASolicited|packet.NAOverride, own)), unmarked},
		step{"advertisement from the link", nd(f.linkLocal, groups, packet.NeighborAdvert(f.a, packet.NAOverride, own)), kept},
		step{"advertisement of a link-local address", nd(f.linkLocal, groups, packet.NeighborAdvert(f.linkLocal, packet.NAOverride, own)), kept},
		step{"router solicitation", nd(f.linkLocal, addr("ff02::2"), packet.RouterSolicit()), kept},
		step{"MLD report", n.fromA(packet.IP(f.linkLocal, addr("ff02::16")), packet.RouterAlert(), packet.MLDv2Report(f.multicast)), kept},
		step{"MLDv1 report", n.fromA(packet.IP(f.linkLocal, f.multicast), packet.RouterAlert(), packet.MLDReport(f.multicast)), kept},

		step{"advertisement for a neighbour", nd(f.a, f.host, packet.NeighborAdvert(f.b, packet.NAOverride, own)), drops("decided", "neighbour")},
		step{"advertisement for the host", nd(f.a, groups, packet.NeighborAdvert(f.host, packet.NAOverride, own)), drops("decided", "neighbour")},
		step{"advertisement for the router, from the link", nd(f.linkLocal, groups, packet.NeighborAdvert(f.router, packet.NAOverride, own)), drops("decided", "neighbour")},
		step{"advertisement from a neighbour's address", nd(f.b, f.host, packet.NeighborAdvert(f.b, packet.NAOverride, own)), drops("decided", "source_address")},
		step{"cut advertisement", shorten(nd(f.a, f.host, packet.NeighborAdvert(f.a, packet.NAOverride)), 4), drops("decided", "invalid")},
		step{"router advertisement", nd(f.linkLocal, groups, packet.RouterAdvert(1800, packet.SourceLinkAddr(n.a.MAC))), drops("decided", "neighbour")},
		step{"router advertisement from its own address", nd(f.a, groups, packet.RouterAdvert(1800)), drops("decided", "neighbour")},
		step{"redirect", nd(f.linkLocal, f.host, packet.NDRedirect(f.a, f.world, packet.RedirectedPacket(quoted))), drops("decided", "neighbour")},
		step{"hidden router advertisement", n.fromA(packet.IP(f.linkLocal, groups, packet.TTL(255)), packet.HopByHop(16), packet.DestinationOptions(8), packet.RouterAdvert(1800)), drops("decided", "neighbour")},
		step{"router advertisement in a fragment", n.fromA(packet.IP(f.linkLocal, groups, packet.TTL(255)), packet.FragmentHeader(3, 0, false), packet.RouterAdvert(1800)), drops("decided", "neighbour")},
	)
}

// shorten cuts bytes off the end of an IPv6 packet and sets its length.
func shorten(r run, bytes int) run {
	r = trim(r, bytes)
	length := len(r.in) - 14 - 40
	return change1(change1(r, 14+4, byte(length>>8)), 14+5, byte(length))
}

// testMapped: an IPv6 packet with v4-mapped addresses would pass for an IPv4 one in
// the maps.
func testMapped(t *testing.T, n *node, four, six family) {
	mapped := func(a netip.Addr) []byte { b := netip.AddrFrom16(a.As16()).As16(); return b[:] }
	patch := func(r run, src, dst []byte) run {
		r.in = append([]byte(nil), r.in...)
		if src != nil {
			copy(r.in[14+8:], src)
		}
		if dst != nil {
			copy(r.in[14+24:], dst)
		}
		return r
	}
	out := n.fromA(ip(six.a, six.world, 64, udp(inside, server)...)...)
	in := n.fromWorld(ip(six.world, six.a, 64, udp(server, inside)...)...)
	stack := n.toWorld(seenNot, ip(six.a, six.world, 63, udp(inside, server)...)...)
	n.table(t,
		step{"source", patch(out, mapped(four.a), nil), drops("invalid")},
		step{"source and destination", patch(out, mapped(four.a), mapped(four.b)), drops("invalid")},
		step{"destination", patch(out, nil, mapped(four.b)), drops("invalid")},
		step{"from world", patch(in, nil, mapped(four.a)), untouched()},
		step{"from world, as the world", patch(in, mapped(four.world), nil), untouched()},
		step{"from the stack", patch(stack, mapped(four.a), nil), untouched()},
	)
	// Also as an answer to an IPv4 flow.
	n.forget(t)
	n.open(t, four, transports()[1], inside)
	t.Run("answer", func(t *testing.T) {
		n.check(t, patch(in, mapped(four.world), mapped(four.host)), untouched())
	})
}

// testDHCP: a container may ask the host before it has an address.
func testDHCP(t *testing.T, n *node) {
	broadcast := addr("255.255.255.255")
	discover := func(src, dst uint16) run {
		r := n.fromA(ip(netip.IPv4Unspecified(), broadcast, 64, udp(src, dst)...)...)
		for i := range 6 {
			r.in[i] = 0xff
		}
		return r
	}
	n.table(t,
		step{"discover", discover(68, 67), passed(seenDecided, "decided")},
		step{"offer", discover(67, 68), drops("decided", "source_address")},
		step{"something else", discover(68, 69), drops("decided", "source_address")},
	)
}
