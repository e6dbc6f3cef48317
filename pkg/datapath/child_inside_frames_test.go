// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/packet"
)

// insideKind is a way to write a packet of an address for another.
type insideKind struct {
	name   string
	layers func(src, dst netip.Addr) []packet.Layer
	// end is what the child's programs count, whatever policy says; "" where it is asked.
	end string
	// segment is the size of its segments, 0 for one that is none.
	segment uint32
}

// insideKinds are packets of all kinds, each of which a stack may take for its own.
func insideKinds(f family) []insideKind {
	with := func(name, end string, behind []packet.Layer, options ...packet.IPOption) insideKind {
		return insideKind{name, func(src, dst netip.Addr) []packet.Layer {
			return append([]packet.Layer{packet.IP(src, dst, options...)}, behind...)
		}, end, 0}
	}
	message := udp(low, server)
	behind := func(extensions ...packet.Layer) []packet.Layer { return slices.Concat(extensions, message) }
	middle := []packet.Layer{packet.Payload(64)}
	echo := []packet.Layer{packet.Echo(7, 1), packet.Payload(56)}
	kinds := []insideKind{
		with("UDP", "", message),
		with("TCP", "", tcp(low, server, packet.SYN)),
		with("TCP that answers", "", tcp(low, server, packet.SYN, packet.ACK)),
		with("echo", "", echo),
		with("echo that answers", "", []packet.Layer{packet.EchoReply(7, 1)}),
		with("SCTP", "", []packet.Layer{packet.SCTP(low, server, 5), packet.SCTPData(1, 20)}),
		with("protocol without ports", "", middle, packet.Proto(254)),
		with("without hops", "", message, packet.TTL(0)),
		with("with one hop", "", message, packet.TTL(1)),
		with("wrong checksum", "", []packet.Layer{packet.UDP(low, server, packet.BadChecksum), packet.Payload(10)}),
		with("longer than its frame", "invalid", message, packet.Length(9000)),
		with("of no length", "invalid", message, packet.Length(0)),
		with("cut in its transport header", "invalid", []packet.Layer{packet.Payload(7)}, packet.Proto(unix.IPPROTO_UDP)),
		with("nothing behind its header", "invalid", []packet.Layer{packet.Payload(0)}, packet.Proto(unix.IPPROTO_TCP)),
	}
	for _, e := range icmpErrors() {
		for _, c := range cuts() {
			kinds = append(kinds, insideKind{e.name + ", " + c.name, func(src, dst netip.Addr) []packet.Layer {
				return ip(src, dst, 64, e.layer, packet.Quote(frame(routerMAC(), routerMAC(), ip(dst, src, 9, udp(server, low)...)...), c.options...))
			}, "", 0})
		}
	}
	for _, tr := range large() {
		kinds = append(kinds, insideKind{"segments of " + tr.name, func(src, dst netip.Addr) []packet.Layer {
			return ip(src, dst, 64, tr.there(low)...)
		}, "", segment})
	}
	if !f.v6() {
		return append(kinds,
			with("options", "", message, packet.NOPs(40)),
			with("route that is recorded", "", message, packet.RecordRoute(3)),
			with("first fragment", "", message, packet.ID(9), packet.MF),
			with("later fragment", "fragment", middle, packet.ID(9), packet.FragOffset(64), packet.MF, packet.Proto(unix.IPPROTO_UDP)),
			with("last fragment", "fragment", middle, packet.ID(9), packet.FragOffset(128), packet.Proto(unix.IPPROTO_UDP)),
			with("header of 16 bytes", "invalid", message, packet.HeaderWords(4)),
			with("header longer than the packet", "invalid", message, packet.HeaderWords(15)),
		)
	}
	fragment := func(offset uint16, more bool, inner ...packet.Layer) []packet.Layer {
		return append([]packet.Layer{packet.FragmentHeader(9, offset, more)}, inner...)
	}
	udpBehind := packet.Proto(unix.IPPROTO_UDP)
	return append(kinds,
		with("hop-by-hop options", "", behind(packet.HopByHop(8))),
		with("destination options", "", behind(packet.DestinationOptions(24))),
		with("routing", "", behind(packet.Routing(0, f.neighbour))),
		with("atomic fragment", "", fragment(0, false, message...)),
		with("first fragment", "", fragment(0, true, message...)),
		with("first fragment without its header", "invalid", fragment(0, true, packet.DestinationOptions(8)), udpBehind),
		with("later fragment", "fragment", fragment(64, true, middle...), udpBehind),
		with("last fragment", "fragment", fragment(128, false, middle...), udpBehind),
		with("as many extensions as are looked behind", "", behind(slices.Repeat([]packet.Layer{packet.DestinationOptions(8)}, extensionsMax)...)),
		with("one more", "invalid", behind(slices.Repeat([]packet.Layer{packet.DestinationOptions(8)}, extensionsMax+1)...)),
	)
}

// insideWay is one by the parent, and the same at the child.
type insideWay struct {
	name                string
	src, dst            netip.Addr
	master, child       string // programs
	from, to            net.HardwareAddr
	childFrom, childTo  net.HardwareAddr
	journey, policyDrop string
}

func (n *insider) ways(f family) []insideWay {
	own, parentMAC := f.child(7), packet.MAC("02:00:00:00:0e:0e")
	return []insideWay{
		{"in", f.unknown, own, masterIngress, childIngress, stationMAC(), parentMAC, stationMAC(), n.e.MAC, toContainer, "policy_ingress"},
		{"in, for all stations", f.unknown, own, masterIngress, childIngress, stationMAC(), everybody(), stationMAC(), n.e.MAC, toContainer, "policy_ingress"},
		{"out", own, f.unknown, masterEgress, childEgress, parentMAC, stationMAC(), n.e.MAC, stationMAC(), fromContainer, "policy_egress"},
	}
}

// testInsideFrames: whatever a packet is like, it is brought to the child's own programs, and judged there. With
// a tag, whose device is the container's, it is dropped.
func testInsideFrames(t *testing.T, n *insider, f family) {
	policy := n.policy()
	policy.Subjects[n.e.ID] = Subject{Identity: ofX, Network: 3}
	n.enforce(t, policy.restrict(n.e, func(s *Subject) { ingress(s); egress(s) }))
	for _, kind := range insideKinds(f) {
		t.Run(kind.name, func(t *testing.T) {
			for _, way := range n.ways(f) {
				layers := kind.layers(way.src, way.dst)
				meets, brought := n.at(way.master, way.from, way.to, layers...), n.at(way.child, way.childFrom, way.childTo, layers...)
				if kind.segment != 0 {
					meets.gsoSize, meets.gsoSegs = kind.segment, 3
					brought.gsoSize, brought.gsoSegs = meets.gsoSize, meets.gsoSegs
				}
				end := shut(way.journey, "decided", way.policyDrop)
				switch kind.end {
				case "":
				case "invalid":
					end = shut(way.journey, kind.end)
				default:
					end = shut(way.journey, "decided", kind.end)
				}
				n.table(t,
					step{way.name, meets, want{verdict: redirect, out: brought.in}},
					step{way.name + ", at the child", brought, end},
				)
			}
		})
	}
	message := udp(low, server)
	for _, way := range n.ways(f) {
		r := n.at(way.master, way.from, way.to, ip(way.src, way.dst, 64, message...)...)
		tagged := func(beside uint32, tags ...uint16) run {
			r := r
			r.vlan = beside
			for _, tag := range tags {
				r.in = slices.Concat(r.in[:12], []byte{0x81, 0, 0, byte(tag)}, r.in[12:])
			}
			return r
		}
		cut := func(r run, bytes int) run { return trim(r, len(r.in)-bytes) }
		header := 20
		if f.v6() {
			header = 40
		}
		drop, untouched := shut(way.journey, "vlan"), want{verdict: passOn}
		n.table(t,
			step{way.name + ", tag beside", tagged(5), drop},
			step{way.name + ", tag", tagged(0, 5), drop},
			step{way.name + ", tag of no VLAN", tagged(0, 0), drop},
			step{way.name + ", two tags", tagged(0, 5, 6), drop},
			step{way.name + ", two tags and one beside", tagged(7, 5, 6), drop},
			step{way.name + ", tag and a cut header", cut(tagged(0, 5), 18+header), drop},
			// No stack takes what follows.
			step{way.name + ", three tags", tagged(0, 5, 6, 7), untouched},
			step{way.name + ", cut before its addresses", cut(tagged(0, 5), 18+8), untouched},
			step{way.name + ", cut in its addresses", cut(tagged(0, 5), 18+header-17), untouched},
			step{way.name + ", cut in its tag", cut(tagged(0, 5), 16), untouched},
			step{way.name + ", tag and no more", cut(tagged(0, 5), 18), untouched},
			step{way.name + ", cut in the second of its tags", cut(tagged(5, 5, 6), 21), untouched},
		)
	}
	testInsideTalk(t, n, f)
}

// testInsideTalk: what a link needs is the parent's, but what is of a child's address.
func testInsideTalk(t *testing.T, n *insider, f family) {
	own, others, parentMAC := f.child(7), f.child(8), packet.MAC("02:00:00:00:0e:0e")
	untouched, claims := want{verdict: passOn}, shut(fromContainer, "neighbour")
	toChild := func(from, to net.HardwareAddr, layers ...packet.Layer) want {
		return want{verdict: redirect, out: frame(from, to, layers...)}
	}
	in := func(to net.HardwareAddr, layers ...packet.Layer) run {
		return n.at(masterIngress, stationMAC(), to, layers...)
	}
	out := func(to net.HardwareAddr, layers ...packet.Layer) run {
		return n.at(masterEgress, parentMAC, to, layers...)
	}
	if !f.v6() {
		as := func(a netip.Addr) packet.Station { return packet.Station{MAC: parentMAC, IP: a} }
		tells := func(a netip.Addr) packet.Layer {
			return packet.ARPReply(as(a), packet.Station{MAC: stationMAC(), IP: f.unknown})
		}
		beside, more := out(stationMAC(), tells(others)), out(everybody(), packet.VLAN(5), packet.VLAN(6), packet.VLAN(7), packet.ARPRequest(as(others), others))
		beside.vlan = 5
		n.table(t,
			step{"ARP that answers for the child", out(stationMAC(), tells(own)), untouched},
			step{"ARP that answers for another container's", out(stationMAC(), tells(others)), claims},
			step{"and with a tag beside it", beside, claims},
			step{"and behind two tags", out(stationMAC(), packet.VLAN(5), packet.VLAN(6), tells(others)), claims},
			step{"and behind three", more, untouched},
			step{"ARP that answers for the child behind a tag", out(stationMAC(), packet.VLAN(5), tells(own)), claims},
			step{"ARP that announces another container's", out(everybody(), packet.ARPRequest(as(others), others)), claims},
			step{"ARP that probes another container's", out(everybody(), packet.ARPRequest(as(f.nobody()), others)), untouched},
			step{"ARP that asks for another container's", out(everybody(), packet.ARPRequest(as(f.unknown), others)), untouched},
			step{"ARP for another's of no link with it", out(stationMAC(), tells(f.a)), untouched},
			step{"ARP cut before its sender", trim(out(stationMAC(), tells(others)), 28-14), untouched},
			step{"ARP cut behind its sender", trim(out(stationMAC(), tells(others)), 10), claims},
			step{"ARP of the link for the child", in(parentMAC, packet.ARPReply(packet.Station{MAC: stationMAC(), IP: f.unknown}, as(own))), untouched},
			step{"broadcast", in(everybody(), ip(f.unknown, addr("255.255.255.255"), 64, udp(low, server)...)...), untouched},
			step{"group", in(packet.MAC("01:00:5e:01:02:03"), ip(f.unknown, f.multicast, 1, udp(low, server)...)...), untouched},
			step{"group, of the child", out(packet.MAC("01:00:5e:01:02:03"), ip(own, f.multicast, 1, udp(low, server)...)...), toChild(n.e.MAC, packet.MAC("01:00:5e:01:02:03"), ip(own, f.multicast, 1, udp(low, server)...)...)},
			step{"broadcast, of the child", out(everybody(), ip(own, addr("255.255.255.255"), 64, udp(low, server)...)...), toChild(n.e.MAC, everybody(), ip(own, addr("255.255.255.255"), 64, udp(low, server)...)...)},
		)
		return
	}
	nodes := addr("ff02::1")
	nodesMAC := packet.MAC("33:33:00:00:00:01")
	tells := func(from netip.Addr) []packet.Layer {
		return []packet.Layer{packet.IP(from, nodes), packet.NeighborAdvert(own, packet.NAOverride, packet.TargetLinkAddr(parentMAC))}
	}
	answer := []packet.Layer{packet.IP(f.unknown, own), packet.NeighborAdvert(f.unknown, packet.NASolicited)}
	mapped := func(r run) run {
		address := v4().child(7).As16()
		copy(r.in[14+24:], address[:])
		return r
	}
	message := ip(f.unknown, own, 64, udp(low, server)...)
	asMapped := mapped(n.in(message...))
	n.table(t,
		step{"advertisement of the child", out(nodesMAC, tells(own)...), toChild(n.e.MAC, nodesMAC, tells(own)...)},
		step{"advertisement for the child, of the parent", out(nodesMAC, tells(f.linkLocal)...), untouched},
		step{"solicitation that probes the child's", out(nodesMAC, packet.IP(f.nobody(), nodes), packet.NeighborSolicit(own)), untouched},
		step{"membership", out(nodesMAC, packet.IP(f.linkLocal, nodes), packet.RouterAlert(), packet.MLDReport(f.multicast)), untouched},
		step{"advertisement to the child", in(parentMAC, answer...), toChild(stationMAC(), n.e.MAC, answer...)},
		step{"solicitation for the child, to a group", in(nodesMAC, packet.IP(f.unknown, nodes), packet.NeighborSolicit(own)), untouched},
		step{"the child's address of IPv4 in IPv6", mapped(in(parentMAC, message...)), want{verdict: redirect, out: asMapped.in}},
		step{"and at the child", asMapped, shut(toContainer, "invalid")},
	)
}

// testInsideNothing: where nothing is led to, a child's programs let nothing by.
func testInsideNothing(t *testing.T, n *insider) {
	for _, f := range []family{v4(), v6()} {
		ways := n.ways(f)
		for _, way := range []insideWay{ways[0], ways[2]} {
			meets := func(to net.HardwareAddr, layers ...packet.Layer) run {
				return n.at(way.child, way.childFrom, to, layers...)
			}
			r := meets(way.childTo, ip(way.src, way.dst, 64, udp(low, server)...)...)
			beside, segments, judged, other := r, r, r, r
			beside.vlan = 5
			segments.gsoSize, segments.gsoSegs = 5, 2
			judged.seen, judged.mark = seenTranslated, sentMark
			other.in = strange(way.childFrom, way.childTo)
			who := packet.ARPRequest(packet.Station{MAC: way.childFrom, IP: v4().child(7)}, v4().unknown)
			refused := shut(way.journey, "unknown_sender")
			t.Run(f.name+", "+way.name, func(t *testing.T) {
				n.table(t,
					step{"a packet", r, refused},
					step{"judged", judged, refused},
					step{"with a tag beside it", beside, refused},
					step{"behind a tag", meets(way.childTo, append([]packet.Layer{packet.VLAN(5)}, ip(way.src, way.dst, 64, udp(low, server)...)...)...), refused},
					step{"segments", segments, refused},
					step{"ARP", meets(way.childTo, who), refused},
					step{"discovery", meets(way.childTo, packet.IP(v6().child(7), v6().unknown), packet.NeighborSolicit(v6().unknown)), refused},
					step{"to a group", meets(everybody(), ip(way.src, f.multicast, 1, udp(low, server)...)...), refused},
					step{"no IP", other, refused},
					step{"nothing but addresses", meets(way.childTo), refused},
				)
			})
		}
	}
}
