// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/tendril-net/tendril/internal/packet"
)

// townBases are packets of every resident and neighbour to every other, and what a link needs.
// New ones go to the end: stories name them by number.
func (n *town) townBases(f family) (all []base) {
	add := func(name string, r run) { all = append(all, base{name, r}) }
	people := []netip.Addr{f.host, f.world, f.neighbour, f.unknown, f.elsewhere}
	for _, e := range n.residents {
		people = append(people, e.addressOf(f))
	}
	for _, from := range people {
		for _, to := range people {
			if from == to {
				continue
			}
			for _, tr := range transports() {
				add(fmt.Sprintf("%s from %s to %s begins", tr.name, from, to), n.utter(from, to, tr.begin(low)...))
				add(fmt.Sprintf("%s from %s to %s", tr.name, from, to), n.utter(from, to, tr.there(low)...))
				add(fmt.Sprintf("%s from %s answers %s", tr.name, from, to), n.utter(from, to, tr.back(low)...))
			}
		}
		for _, dialled := range []uint16{hostPort, onePort} {
			for _, p := range mappedProtocols() {
				name := fmt.Sprintf("%s from %s to port %d", p.name, from, dialled)
				if p.tcp {
					add(name+" begins", n.utter(from, f.host, tcp(low, dialled, packet.SYN)...))
				}
				add(name, n.utter(from, f.host, p.datagram(low, dialled)...))
			}
		}
		add("to a group from "+from.String(), n.utter(from, f.multicast, udp(low, server)...))
	}
	for _, e := range n.residents {
		all = append(all, n.linkTalk(f, e)...)
	}
	return slices.Concat(all, n.hookBases(f), n.forgeries(f))
}

// forgeries come from the wire in the name of a resident.
func (n *town) forgeries(f family) (all []base) {
	for _, e := range n.residents {
		for _, as := range n.residents {
			if as.ID == e.ID {
				continue
			}
			layers := ip(as.addressOf(f), e.addressOf(f), 64, udp(low, server)...)
			name := fmt.Sprintf("for endpoint %d as endpoint %d", e.ID, as.ID)
			switch {
			case e.Child == nil:
				all = append(all, base{name, n.fromWorld(layers...)}, base{name, n.toResident(&e, n.other.Attrs().Index, e.HostMAC, layers)})
				continue
			case e.Child.InContainer:
				all = append(all, base{name, run{program: childIngress, device: e.Child.Parent, in: frame(stationMAC(), e.MAC, layers...)}})
				continue
			}
			for _, mac := range []net.HardwareAddr{as.MAC, routerMAC(), n.node.uplink.MAC} {
				all = append(all, base{name, run{program: fromParent, device: e.Child.Parent, in: frame(mac, e.MAC, layers...)}})
			}
		}
	}
	return all
}

// linkTalk is what an endpoint's link needs, and groups of it.
func (n *town) linkTalk(f family, e Endpoint) (all []base) {
	program, device := fromContainer, e.IfIndex
	if e.Child != nil {
		program, device = toParent, e.Child.Parent
		if e.Child.InContainer {
			program = childEgress
		}
	}
	add := func(name string, to net.HardwareAddr, layers ...packet.Layer) {
		all = append(all, base{fmt.Sprintf("%s of endpoint %d", name, e.ID), run{program: program, device: device, in: frame(e.MAC, to, layers...)}})
	}
	own := e.addressOf(f)
	add("group by the gateway", e.HostMAC, ip(own, f.multicast, 8, udp(low, server)...)...)
	add("broadcast", everybody(), ip(own, f.unknown, 64, udp(low, server)...)...)
	add("strange", everybody(), packet.Payload(46))
	if !f.v6() {
		self := packet.Station{MAC: e.MAC, IP: own}
		add("ARP request", everybody(), packet.ARPRequest(self, f.host))
		add("ARP reply", e.HostMAC, packet.ARPReply(self, packet.Station{MAC: e.HostMAC, IP: f.host}))
		add("ARP as another", everybody(), packet.ARPRequest(packet.Station{MAC: e.MAC, IP: f.world}, f.host))
		add("lease", everybody(), ip(f.nobody(), addr("255.255.255.255"), 64, udp(68, 67)...)...)
		return all
	}
	group := packet.MAC("33:33:00:00:00:01")
	add("solicitation", group, ip(own, addr("ff02::1"), 255, packet.NeighborSolicit(f.host, packet.SourceLinkAddr(e.MAC)))...)
	add("advertisement", e.HostMAC, ip(own, f.host, 255, packet.NeighborAdvert(own, packet.NASolicited, packet.TargetLinkAddr(e.MAC)))...)
	add("advertisement as another", group, ip(own, addr("ff02::1"), 255, packet.NeighborAdvert(f.host, 0, packet.TargetLinkAddr(e.MAC)))...)
	add("link-local", group, ip(f.linkLocal, addr("ff02::1"), 1, udp(546, 547)...)...)
	return all
}

// hookBases are what hooks meet that no resident or neighbour says first.
func (n *town) hookBases(f family) (all []base) {
	add := func(name string, r run) { all = append(all, base{name, r}) }
	if n.preludes[limitEgress] != nil {
		for _, program := range []string{limitEgress, limitIngress, pacerIn, pacerOut} {
			for _, tr := range transports() {
				add(tr.name+" at "+program, run{program: program, device: n.a.IfIndex, in: sent(n.a, ip(f.a, f.world, 64, tr.there(low)...)...)})
			}
		}
	}
	for _, e := range n.residents {
		switch {
		case e.Bridge != 0:
			add("strange by the bridge", run{program: toContainer, device: e.IfIndex, ingress: n.other.Attrs().Index, in: strange(stationMAC(), e.MAC)})
			add("group of a routed endpoint", n.toResident(&e, n.a.IfIndex, e.HostMAC, ip(f.a, f.multicast, 7, udp(low, server)...)))
			add("group by the bridge", n.toResident(&e, n.other.Attrs().Index, stationMAC(), ip(f.unknown, f.multicast, 1, udp(low, server)...)))
			continue
		case e.Child == nil:
			continue
		}
		own := e.addressOf(f)
		if !e.Child.InContainer {
			add("group of the wire", run{program: fromParent, device: e.Child.Parent, in: frame(routerMAC(), everybody(), ip(f.neighbour, f.multicast, 1, udp(low, server)...)...)})
			add("strange of the wire", run{program: fromParent, device: e.Child.Parent, in: strange(routerMAC(), e.MAC)})
			add("group of the host", run{program: toParent, device: e.Child.Parent, in: frame(e.HostMAC, everybody(), ip(f.host, f.multicast, 1, udp(low, server)...)...)})
			continue
		}
		for _, tr := range transports() {
			add(tr.name+" by the master", run{program: masterEgress, device: n.uplink.IfIndex, in: frame(n.uplink.MAC, routerMAC(), ip(own, f.world, 64, tr.there(low)...)...)})
			add(tr.name+" to the master", run{program: masterIngress, device: n.uplink.IfIndex, in: frame(routerMAC(), n.uplink.MAC, ip(f.world, own, 64, tr.back(low)...)...)})
		}
		add("group of the link", run{program: childIngress, device: e.Child.Parent, in: frame(stationMAC(), everybody(), ip(f.unknown, f.multicast, 1, udp(low, server)...)...)})
	}
	return all
}
