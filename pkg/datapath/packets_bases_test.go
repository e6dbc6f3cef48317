// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/packet"
)

// base is a packet that stories are made of.
type base struct {
	name string
	run  run
}

// bases are packets of every kind that the programs tell apart, of one family. New ones
// go to the end: stories name them by number.
func (n *node) bases(f family) []base {
	var all []base
	add := func(name string, r run) { all = append(all, base{name, r}) }
	for _, tr := range transports() {
		for _, from := range []uint16{inside, low} {
			add(tr.name+" begins", n.fromA(ip(f.a, f.world, 64, tr.begin(from)...)...))
			add(tr.name+" to world", n.fromA(ip(f.a, f.world, 64, tr.there(from)...)...))
			add(tr.name+" begins, of another", n.from(n.b, ip(f.b, f.world, 64, tr.begin(from)...)...))
			add(tr.name+" begins, of another, beside", n.from(n.b, ip(f.b, f.world, 64, tr.begin(from+1)...)...))
		}
		add(tr.name+" not masqueraded", n.from(n.c, ip(f.c, f.world, 64, tr.there(low)...)...))
		add(tr.name+" to excluded", n.fromA(ip(f.a, f.neighbour, 64, tr.there(low)...)...))
		add(tr.name+" to narrow", n.fromA(ip(f.a, f.narrow, 64, tr.begin(inside)...)...))
		add(tr.name+" to host", n.fromA(ip(f.a, f.host, 64, tr.there(low)...)...))
		add(tr.name+" by another device", n.fromA(ip(f.a, f.elsewhere, 64, tr.there(low)...)...))
		add(tr.name+" to container", n.fromA(ip(f.a, f.b, 64, tr.there(low)...)...))
		add(tr.name+" back to container", n.from(n.b, ip(f.b, f.a, 64, tr.back(low)...)...))
		add(tr.name+" from world to host", n.fromWorld(ip(f.world, f.host, 58, tr.back(inside)...)...))
		add(tr.name+" from world to container", n.fromWorld(ip(f.world, f.a, 58, tr.there(low)...)...))
		add(tr.name+" reply to world", n.fromA(ip(f.a, f.world, 64, tr.back(low)...)...))
		add(tr.name+" forwarded to container", n.toA(n.other.Attrs().Index, ip(f.world, f.a, 60, tr.there(low)...)...))
		add(tr.name+" forwarded between containers", n.toA(n.b.IfIndex, ip(f.b, f.a, 63, tr.there(low)...)...))
		add(tr.name+" of the host to container", n.toA(0, ip(f.host, f.a, 64, tr.there(low)...)...))
		add(tr.name+" by the stack", n.toWorld(seenNot, ip(f.a, f.world, 63, tr.begin(inside)...)...))
		add(tr.name+" by the stack, decided", n.toWorld(seenDecided, ip(f.a, f.world, 63, tr.there(inside)...)...))
		add(tr.name+" reply by the stack", n.toWorld(seenNot, ip(f.a, f.world, 63, tr.back(low)...)...))
		add(tr.name+" of the host", n.toWorld(seenNot, ip(f.host, f.world, 64, tr.there(inside)...)...))
	}
	all = append(all, n.connectionBases(f)...)
	all = append(all, n.errorBases(f)...)
	all = append(all, n.fragmentBases(f)...)
	all = append(all, n.sizeBases(f)...)
	all = append(all, n.linkBases(f)...)
	all = append(all, n.headerBases(f)...)
	return append(all, n.policyBases(f)...)
}

// policyBases are the other ends of other bases, and connections between those of whom
// policies speak.
func (n *node) policyBases(f family) (all []base) {
	add := func(name string, r run) { all = append(all, base{name, r}) }
	other := n.other.Attrs().Index
	refused := func(e Endpoint, inner ...packet.Layer) []packet.Layer {
		return []packet.Layer{packet.Unreachable(packet.PortUnreachable), packet.Quote(delivered(e, inner...))}
	}
	for _, tr := range transports() {
		add(tr.name+" answer to c", n.fromWorld(ip(f.world, f.c, 58, tr.back(low)...)...))
		add(tr.name+" from world to c", n.fromWorld(ip(f.world, f.c, 58, tr.begin(low)...)...))
		add(tr.name+" answer of c", n.from(n.c, ip(f.c, f.world, 64, tr.back(low)...)...))
		add(tr.name+" from a to c", n.fromA(ip(f.a, f.c, 64, tr.begin(low)...)...))
		add(tr.name+" from c to a", n.from(n.c, ip(f.c, f.a, 64, tr.back(low)...)...))
		add(tr.name+" from b to a", n.from(n.b, ip(f.b, f.a, 64, tr.begin(low)...)...))
		add(tr.name+" from a to b", n.fromA(ip(f.a, f.b, 64, tr.back(low)...)...))
		add(tr.name+" from another device", n.toA(other, ip(f.elsewhere, f.a, 60, tr.back(low)...)...))
		add(tr.name+" refused by b", n.from(n.b, ip(f.b, f.a, 64, refused(n.b, ip(f.a, f.b, 63, tr.there(low)...)...)...)...))
		add(tr.name+" refused by a", n.fromA(ip(f.a, f.b, 64, refused(n.a, ip(f.b, f.a, 63, tr.back(low)...)...)...)...))
		add(tr.name+" refused by c", n.from(n.c, ip(f.c, f.world, 64, refused(n.c, ip(f.world, f.c, 57, tr.back(low)...)...)...)...))
		add(tr.name+" of c refused by the world", n.fromWorld(ip(f.world, f.c, 58, refused(n.c, ip(f.c, f.world, 57, tr.there(low)...)...)...)...))
	}
	add("name asked", n.fromA(ip(f.a, f.b, 64, udp(low, 53)...)...))
	add("name answered", n.from(n.b, ip(f.b, f.a, 64, udp(53, low)...)...))
	return all
}

// connectionBases open and close TCP connections.
func (n *node) connectionBases(f family) (all []base) {
	for _, flags := range []struct {
		name string
		set  packet.TCPFlags
	}{{"SYN", packet.SYN}, {"SYN ACK", packet.SYN | packet.ACK}, {"FIN", packet.FIN | packet.ACK}, {"RST", packet.RST}, {"ACK", packet.ACK}} {
		for _, d := range []struct {
			name string
			run  run
		}{
			{"to world", n.fromA(ip(f.a, f.world, 64, tcp(inside, server, flags.set)...)...)},
			{"from world", n.fromWorld(ip(f.world, f.host, 58, tcp(server, inside, flags.set)...)...)},
			{"from world to container", n.fromWorld(ip(f.world, f.a, 58, tcp(low, server, flags.set)...)...)},
			{"to container", n.fromA(ip(f.a, f.b, 64, tcp(low, server, flags.set)...)...)},
			{"back", n.from(n.b, ip(f.b, f.a, 64, tcp(server, low, flags.set)...)...)},
		} {
			all = append(all, base{flags.name + " " + d.name, d.run})
		}
	}
	return all
}

// errorBases are ICMP errors about packets of other bases.
func (n *node) errorBases(f family) (all []base) {
	add := func(name string, r run) { all = append(all, base{name, r}) }
	for _, tr := range transports() {
		out := n.left(ip(f.host, f.world, 3, tr.there(inside)...)...)
		for _, options := range [][]packet.QuoteOption{nil, {packet.L4Bytes(8)}} {
			add(tr.name+" exceeded", n.fromWorld(ip(f.router, f.host, 58, packet.TTLExceeded(), packet.Quote(out, options...))...))
			add(tr.name+" too big", n.fromWorld(ip(f.router, f.host, 58, packet.TooBig(1400), packet.Quote(out, options...))...))
		}
		answer := n.arrived(ip(f.world, f.a, 3, tr.back(inside)...)...)
		request := n.arrived(ip(f.world, f.a, 3, tr.there(low)...)...)
		add(tr.name+" answer unreachable", n.fromA(ip(f.a, f.world, 64, packet.Unreachable(packet.PortUnreachable), packet.Quote(answer))...))
		add(tr.name+" request unreachable", n.fromA(ip(f.a, f.world, 64, packet.Unreachable(packet.PortUnreachable), packet.Quote(request))...))
		add(tr.name+" answer unreachable, by the stack", n.toWorld(seenNot, ip(f.a, f.world, 63, packet.Unreachable(packet.PortUnreachable), packet.Quote(answer))...))
		add(tr.name+" answer too big for the host", n.toWorld(seenNot, ip(f.host, f.world, 64, packet.TooBig(1400), packet.Quote(answer, packet.L4Bytes(8)))...))
		add(tr.name+" unreachable to container", n.fromA(ip(f.a, f.b, 64, packet.Unreachable(packet.PortUnreachable),
			packet.Quote(delivered(n.a, ip(f.b, f.a, 3, tr.there(low)...)...)))...))
	}
	return all
}

// fragmentBases are three of the four pieces of a packet, in each direction.
func (n *node) fragmentBases(f family) (all []base) {
	for i, tr := range bulky() {
		for name, r := range map[string]run{
			"to world":           n.fromA(ip(f.a, f.world, 64, tr.there(inside)...)...),
			"to world, low":      n.fromA(ip(f.a, f.world, 64, tr.there(low)...)...),
			"of another":         n.from(n.b, ip(f.b, f.world, 64, tr.there(low)...)...),
			"from world":         n.fromWorld(ip(f.world, f.host, 58, tr.back(inside)...)...),
			"to container":       n.fromA(ip(f.a, f.b, 64, tr.there(low)...)...),
			"world to one":       n.fromWorld(ip(f.world, f.a, 58, tr.there(low)...)...),
			"reply":              n.fromA(ip(f.a, f.world, 64, tr.back(low)...)...),
			"by the stack":       n.toWorld(seenDecided, ip(f.a, f.world, 63, tr.there(low)...)...),
			"stack to one":       n.toA(n.other.Attrs().Index, ip(f.world, f.a, 60, tr.there(low)...)...),
			"from world, beside": n.fromWorld(ip(f.world, f.host, 58, tr.back(inside+1)...)...),
		} {
			id := byte(i)
			if name == "from world, beside" {
				id += 16
			}
			for _, index := range []int{0, 1, 3} {
				r := r
				r.in = pieces(r.in, id)[index]
				all = append(all, base{tr.name + " fragment " + name + " " + string(rune('0'+index)), r})
			}
		}
		header := 28
		if f.v6() {
			header = 56
		}
		tiny := n.fromA(ip(f.a, f.world, 64, tr.there(inside)...)...)
		tiny.in = packet.Fragment(tiny.in, header)[0]
		all = append(all, base{tr.name + " tiny fragment", tiny})
	}
	// Maps have no order.
	slices.SortStableFunc(all, func(a, b base) int { return slices.Compare([]byte(a.name), []byte(b.name)) })
	return all
}

// sizeBases are packets at an MTU, and GSO packets.
func (n *node) sizeBases(f family) (all []base) {
	for _, size := range []int{1300, 1301, 1400, 1401, 1500, 1501} {
		all = append(all,
			base{"sized to world", n.fromA(ip(f.a, f.world, 64, f.sized(size, inside, server)...)...)},
			base{"sized to narrow", n.fromA(ip(f.a, f.narrow, 64, f.sized(size, inside, server)...)...)},
			base{"sized to container", n.fromA(ip(f.a, f.c, 64, f.sized(size, low, server)...)...)},
			base{"sized from world", n.fromWorld(ip(f.world, f.host, 58, f.sized(size, server, inside)...)...)},
		)
	}
	for _, size := range []uint32{1000, 1440, 1448, 1460} {
		data := func(src, dst uint16) []packet.Layer {
			return []packet.Layer{packet.TCP(src, dst, packet.ACK, packet.Timestamps{Value: 1}), packet.Payload(2900)}
		}
		for _, r := range []run{
			n.fromA(ip(f.a, f.world, 64, data(inside, server)...)...),
			n.fromA(ip(f.a, f.b, 64, data(low, server)...)...),
			n.fromWorld(ip(f.world, f.host, 58, data(server, inside)...)...),
			n.fromA(ip(f.a, f.world, 64, packet.UDP(inside, server), packet.Payload(2900))...),
		} {
			r.gsoSize, r.gsoSegs = size, 3
			all = append(all, base{"GSO", r})
		}
	}
	return all
}

// linkBases are talk on the link.
func (n *node) linkBases(f family) (all []base) {
	add := func(name string, r run) { all = append(all, base{name, r}) }
	self := packet.Station{MAC: n.a.MAC, IP: v4().a}
	host := packet.Station{MAC: n.a.HostMAC, IP: v4().host}
	add("ARP request", n.fromA(packet.ARPRequest(self, v4().host)))
	add("ARP reply", n.fromA(packet.ARPReply(self, host)))
	add("ARP as another", n.fromA(packet.ARPReply(packet.Station{MAC: n.a.MAC, IP: v4().b}, host)))
	add("ARP probe", n.fromA(packet.ARPRequest(packet.Station{MAC: n.a.MAC, IP: netip.IPv4Unspecified()}, v4().a)))
	add("ARP from world", n.fromWorld(packet.ARPRequest(packet.Station{MAC: routerMAC(), IP: v4().router}, v4().host)))
	add("no IP", n.fromA(packet.Payload(40)))
	tag := n.fromA(append([]packet.Layer{packet.VLAN(3)}, ip(f.a, f.world, 64, udp(inside, server)...)...)...)
	add("tag in the frame", tag)
	tagged := n.fromA(ip(f.a, f.b, 64, udp(low, server)...)...)
	tagged.vlan = 5
	add("tagged", tagged)
	add("multicast", n.fromA(ip(f.a, f.multicast, 64, udp(low, server)...)...))
	add("martian", n.fromA(ip(f.a, f.martian, 64, udp(low, server)...)...))
	add("unknown", n.fromA(ip(f.a, f.unknown, 64, udp(low, server)...)...))
	if !f.v6() {
		add("DHCP", n.fromA(ip(netip.IPv4Unspecified(), addr("255.255.255.255"), 64, udp(68, 67)...)...))
		add("redirect", n.fromA(ip(f.a, f.host, 64, packet.Redirect(1, f.b), packet.Quote(sent(n.a, ip(f.host, f.a, 3, udp(low, server)...)...)))...))
		return all
	}
	groups, own := addr("ff02::1"), packet.TargetLinkAddr(n.a.MAC)
	add("solicitation", n.fromA(packet.IP(f.a, f.host), packet.NeighborSolicit(f.host, packet.SourceLinkAddr(n.a.MAC))))
	add("advertisement", n.fromA(packet.IP(f.a, f.host), packet.NeighborAdvert(f.a, packet.NASolicited, own)))
	add("advertisement as another", n.fromA(packet.IP(f.linkLocal, groups), packet.NeighborAdvert(f.b, packet.NAOverride, own)))
	add("router solicitation", n.fromA(packet.IP(f.linkLocal, addr("ff02::2")), packet.RouterSolicit()))
	add("router advertisement", n.fromA(packet.IP(f.linkLocal, groups), packet.RouterAdvert(1800)))
	add("MLD", n.fromA(packet.IP(f.linkLocal, addr("ff02::16")), packet.RouterAlert(), packet.MLDv2Report(f.multicast)))
	add("link-local", n.fromA(ip(f.linkLocal, addr("fe80::1"), 64, udp(546, 547)...)...))
	return all
}

// headerBases have options, extension headers, or no ports.
func (n *node) headerBases(f family) (all []base) {
	add := func(name string, layers func(src, dst netip.Addr, a, b uint16) []packet.Layer) {
		all = append(all,
			base{name + " to world", n.fromA(layers(f.a, f.world, inside, server)...)},
			base{name + " from world", n.fromWorld(layers(f.world, f.host, server, inside)...)},
			base{name + " to container", n.fromA(layers(f.a, f.b, low, server)...)},
			base{name + " by the stack", n.toWorld(seenNot, layers(f.a, f.world, inside, server)...)},
		)
	}
	const gre = 47
	add("GRE", func(src, dst netip.Addr, _, _ uint16) []packet.Layer {
		return []packet.Layer{packet.IP(src, dst, packet.Proto(gre)), packet.Payload(40)}
	})
	add("ICMP query", func(src, dst netip.Addr, _, _ uint16) []packet.Layer {
		return ip(src, dst, 64, packet.ICMP(200, 0, 77), packet.Payload(8))
	})
	add("the other ICMP", func(src, dst netip.Addr, _, _ uint16) []packet.Layer {
		return []packet.Layer{packet.IP(src, dst, packet.Proto(unix.IPPROTO_ICMP+unix.IPPROTO_ICMPV6-f.icmp)), packet.Payload(40)}
	})
	if !f.v6() {
		add("options", func(src, dst netip.Addr, a, b uint16) []packet.Layer {
			return append([]packet.Layer{packet.IP(src, dst, packet.NOPs(8), packet.RecordRoute(3))}, udp(a, b)...)
		})
		return all
	}
	for name, extensions := range map[string][]packet.Layer{
		"hop-by-hop": {packet.HopByHop(8)}, "atomic fragment": {packet.FragmentHeader(5, 0, false)},
		"long chain": {packet.HopByHop(16), packet.DestinationOptions(8), packet.Routing(0, f.neighbour), packet.FragmentHeader(5, 0, false), packet.DestinationOptions(32)},
		"routing":    {packet.Routing(1, f.neighbour)},
	} {
		add(name, func(src, dst netip.Addr, a, b uint16) []packet.Layer {
			return append(append([]packet.Layer{packet.IP(src, dst)}, extensions...), udp(a, b)...)
		})
	}
	slices.SortStableFunc(all, func(a, b base) int { return slices.Compare([]byte(a.name), []byte(b.name)) })
	return all
}
