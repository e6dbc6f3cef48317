// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/internal/vlan"
	"github.com/tendril-net/tendril/pkg/maps"
)

// Tags of these tests besides VLAN numbers: VLAN 0 with a bit beside it, and 802.1ad.
const (
	dropEligible = 1 << 12
	serviceTag   = 0xa888 << 16
)

func (r run) tagged(tag uint32) run {
	r.vlan = tag
	return r
}

// marked is the packet with a mark of the datapath's.
func marked(seen uint32, r run) run {
	r.seen, r.mark = seen, uint32(r.device)
	return r
}

// TestTrunk: what an endpoint sends with the tag of a VLAN in its trunk is the bridge's, with its
// MAC and whatever address; no other tag leads out of it.
func TestTrunk(t *testing.T) {
	n := withBridge(t, Config{Masquerade: true})
	n.a.Trunk = vlan.Of(vlan.Range{First: 5, Last: 5}, vlan.Range{First: 63, Last: 65}, vlan.Range{First: 4094, Last: 4094})
	n.do(t, func() error { return n.AttachEndpoint(n.a) })
	n.do(t, func() error { return n.CheckEndpoint(n.a) })
	eachFamily(t, func(t *testing.T, f family) {
		own := n.onBridge(n.a, stationMAC(), ip(f.a, f.unknown, 64, udp(low, server)...)...)
		foreign := n.onBridge(n.a, n.b.MAC, ip(f.unknown, f.b, 64, udp(low, server)...)...)
		var steps []step
		for _, tag := range []uint32{5, 63, 64, 65, 4094, 5 | dropEligible} {
			steps = append(steps,
				step{fmt.Sprint("own address in ", tag), own.tagged(tag), passed(seenNot)},
				step{fmt.Sprint("any address in ", tag), foreign.tagged(tag), passed(seenNot)})
		}
		for _, tag := range []uint32{1, 4, 6, 62, 66, 4093, 4095, dropEligible, 5 | serviceTag} {
			steps = append(steps, step{fmt.Sprintf("not %#x", tag), own.tagged(tag), drops("vlan")})
		}
		n.table(t, append(steps,
			step{"another tag behind it", n.onBridge(n.a, stationMAC(), append([]packet.Layer{packet.VLAN(6)}, ip(f.a, f.unknown, 64, udp(low, server)...)...)...).tagged(5), drops("vlan")},
			step{"any address without a tag", foreign, drops("decided", "source_address")},
			step{"for the gateway", n.fromA(ip(f.unknown, f.world, 64, udp(low, server)...)...).tagged(5), passed(seenNot)},
			step{"for the gateway, as itself", n.fromA(ip(f.a, f.world, 64, udp(low, server)...)...).tagged(5), passed(seenNot)},
			step{"for the gateway, as another", n.fromA(ip(f.b, f.world, 64, udp(low, server)...)...).tagged(5), drops("source_address")},
			step{"as another, on the link", n.onBridge(n.a, stationMAC(), ip(f.b, f.unknown, 64, udp(low, server)...)...).tagged(5), passed(seenNot)},
			step{"to no link", n.fromA(ip(f.a, f.martian, 64, udp(low, server)...)...).tagged(5), drops("martian")},
			step{"another's MAC", n.as(n.b.MAC, ip(f.a, f.b, 64, udp(low, server)...)...).tagged(5), drops("source_mac")},
			step{"of an endpoint without a trunk", n.onBridge(n.b, stationMAC(), ip(f.b, f.unknown, 64, udp(low, server)...)...).tagged(5), drops("vlan")},
			step{"with a mark", marked(seenOwn, own.tagged(5)), passed(seenNot)},
			step{"by the pacer", marked(pacedSent, own.tagged(5)), passed(seenNot)},
			step{"to it", n.byBridge(n.a, ip(f.unknown, f.multicast, 1, udp(low, server)...)...).tagged(5), passed(seenNot)},
		)...)
		t.Run("egress", func(t *testing.T) {
			n.enforce(t, n.policy().restrict(n.a, egress).allow(setOne, 0))
			n.story(t, step{"policy cannot tell", own.tagged(5), denied("policy_egress")})
		})
		t.Run("ingress", func(t *testing.T) {
			n.enforce(t, n.policy().restrict(n.a, ingress).allow(setOne, ofB))
			n.story(t,
				step{"sent", own.tagged(5), passed(seenNot)},
				step{"to its address", n.byBridge(n.a, ip(f.unknown, f.a, 64, udp(low, server)...)...).tagged(5), denied("policy_ingress")},
				step{"to another", n.byBridge(n.a, ip(f.unknown, f.elsewhere, 64, udp(low, server)...)...).tagged(5), denied("policy_ingress")},
			)
		})
	})
	t.Run("unknown device", func(t *testing.T) {
		device := uint32(n.a.IfIndex)
		var entry maps.Interface
		must(t, n.maps.Interfaces.Lookup(device, &entry))
		must(t, n.maps.Interfaces.Delete(device))
		defer func() { must(t, n.maps.Interfaces.Put(device, entry)) }()
		n.story(t, step{"nobody's", n.onBridge(n.a, stationMAC(), ip(v4().a, v4().unknown, 64, udp(low, server)...)...).tagged(5), drops("unknown_sender")})
	})
	of := func(dst net.HardwareAddr) run {
		return run{program: fromContainer, device: n.a.IfIndex, in: strange(n.a.MAC, dst)}.tagged(5)
	}
	n.table(t,
		step{"no IP", of(stationMAC()), passed(seenNot)},
		step{"spanning tree", of(packet.MAC("01:80:c2:00:00:00")), drops("martian")},
	)
	n.claims(t, n.a, func(r run) run { return r.tagged(5) })
	n.a.Trunk = vlan.Of(vlan.Range{First: 64, Last: 64})
	n.do(t, func() error { return n.AttachEndpoint(n.a) })
	eachFamily(t, func(t *testing.T, f family) { testPassages(t, stationPassages(n, f, n.a, 64)) })
}

// TestTrunkEntries: an entry that is lost, and one that nobody is to have, are found and mended.
func TestTrunkEntries(t *testing.T) {
	n := withBridge(t, Config{})
	plain := n.a
	trunked := n.a
	trunked.Trunk = vlan.Of(vlan.Range{First: 1, Last: 64})
	want := maps.Trunk{Vlans: [64]uint64{0xfffffffffffffffe, 1}}
	entries := func() map[uint32]maps.Trunk {
		t.Helper()
		all := make(map[uint32]maps.Trunk)
		must(t, each(n.maps.Trunks, func(ifindex uint32, trunk maps.Trunk) bool { all[ifindex] = trunk; return true }))
		return all
	}
	is := func(what string, want map[uint32]maps.Trunk) {
		t.Helper()
		if diff := cmp.Diff(want, entries()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	device := uint32(n.a.IfIndex)
	mend := func(e Endpoint, fault string) {
		t.Helper()
		n.do(t, func() error {
			if err := n.CheckEndpoint(e); err == nil || err.Error() != fault {
				t.Errorf("check says %v, want %s", err, fault)
			}
			found, err := n.RepairEndpoint(e)
			if diff := cmp.Diff([]string{fault}, found); diff != "" {
				t.Errorf("found (-want +got):\n%s", diff)
			}
			return err
		})
		n.do(t, func() error { return n.CheckEndpoint(e) })
	}
	n.do(t, func() error { return n.AttachEndpoint(trunked) })
	is("attached", map[uint32]maps.Trunk{device: want})
	must(t, n.maps.Trunks.Delete(device))
	mend(trunked, trunkEntry(n.a.IfIndex)+" is missing")
	is("put back", map[uint32]maps.Trunk{device: want})
	must(t, n.maps.Trunks.Put(device, maps.Trunk{Vlans: [64]uint64{2}}))
	mend(trunked, trunkEntry(n.a.IfIndex)+" has 1, not 1-64")
	mend(plain, trunkEntry(n.a.IfIndex)+" is there without a trunk")
	is("taken away", map[uint32]maps.Trunk{})

	must(t, n.maps.Trunks.Put(device, want))
	must(t, n.maps.Trunks.Put(uint32(1<<30), want))
	trunked.IfIndex = n.b.IfIndex
	trunked.ID, trunked.Addresses, trunked.MAC = n.b.ID, n.b.Addresses, n.b.MAC
	n.do(t, func() error { return restart(n.Datapath, []Endpoint{plain, trunked, n.c}) })
	is("reconciled", map[uint32]maps.Trunk{uint32(n.b.IfIndex): want})
	n.do(t, func() error { return n.DetachEndpoint(trunked) })
	is("detached", map[uint32]maps.Trunk{})

	for text, e := range map[string]Endpoint{
		"endpoint 1: 0-3 of its trunk is not between 1 and 4094": {Bridge: 1, Trunk: vlan.Set{{First: 0, Last: 3}}},
		"endpoint 1 has a trunk without a bridge":                {Trunk: vlan.Set{{First: 1, Last: 3}}},
	} {
		e.ID, e.IfIndex, e.MAC, e.HostMAC, e.MTU, e.Addresses = 1, 1, n.a.MAC, n.a.HostMAC, 1500, []netip.Addr{v4().a}
		if err := n.AttachEndpoint(e); err == nil || err.Error() != text {
			t.Errorf("got %v, want %s", err, text)
		}
	}
}

// claims: a station says by ARP and neighbour discovery that it has what addresses it likes, but
// for those of the host and of endpoints.
func (n *node) claims(t *testing.T, e Endpoint, as func(run) run) {
	t.Helper()
	arp := func(sender netip.Addr) run {
		return as(n.fromA(packet.ARPReply(packet.Station{MAC: e.MAC, IP: sender}, packet.Station{MAC: n.b.MAC, IP: v4().unknown})))
	}
	advert := func(target netip.Addr) run {
		return as(n.onBridge(e, stationMAC(), packet.IP(addr("fe80::7"), addr("fe80::8")), packet.NeighborAdvert(target, packet.NAOverride, packet.TargetLinkAddr(e.MAC))))
	}
	group := packet.MAC("33:33:ff:00:00:01")
	solicit := func(source netip.Addr) run {
		return as(n.onBridge(e, group, packet.IP(source, addr("ff02::1:ff00:1")), packet.NeighborSolicit(v6().b, packet.SourceLinkAddr(e.MAC))))
	}
	for _, a := range []netip.Addr{v4().host, v6().host} {
		must(t, n.maps.HostAddresses.Put(maps.NewAddress(a), uint8(1)))
		defer func() { must(t, n.maps.HostAddresses.Delete(maps.NewAddress(a))) }()
	}
	n.table(t,
		step{"ARP", arp(v4().unknown), passed(seenNot)},
		step{"ARP probe", arp(netip.IPv4Unspecified()), passed(seenNot)},
		step{"ARP as another", arp(v4().b), drops("neighbour")},
		step{"ARP as the host", arp(v4().host), drops("neighbour")},
		step{"neighbour", advert(v6().unknown), passed(seenNot)},
		step{"neighbour on the link", advert(addr("fe80::7")), passed(seenNot)},
		step{"neighbour as another", advert(v6().b), drops("neighbour")},
		step{"neighbour as the host", advert(v6().host), drops("neighbour")},
		step{"solicitation", solicit(v6().unknown), passed(seenNot)},
		step{"solicitation of one to be", solicit(netip.IPv6Unspecified()), passed(seenNot)},
		step{"solicitation as another", solicit(v6().b), drops("neighbour")},
		step{"solicitation as the host", solicit(v6().host), drops("neighbour")},
		step{"router solicitation as another", as(n.onBridge(e, group, packet.IP(v6().b, addr("ff02::2")), packet.RouterSolicit())), drops("neighbour")},
		step{"router", as(n.onBridge(e, stationMAC(), packet.IP(addr("fe80::7"), addr("ff02::1")), packet.RouterAdvert(1800))), passed(seenNot)},
		step{"redirect", as(n.onBridge(e, stationMAC(), ip(v4().unknown, v4().b, 64, packet.Redirect(1, v4().unknown), packet.Quote(sent(n.a, ip(v4().host, v4().a, 3, udp(low, server)...)...)))...)), drops("neighbour")},
	)
	for _, f := range []family{v4(), v6()} {
		everybody, own := packet.MAC("ff:ff:ff:ff:ff:ff"), e.HostMAC
		dhcp := func(source, destination netip.Addr, to net.HardwareAddr) run {
			client, server := uint16(68), uint16(67)
			if f.v6() {
				client, server = 546, 547
			}
			return as(n.onBridge(e, to, ip(source, destination, 64, udp(client, server)...)...))
		}
		says := func(source netip.Addr, to net.HardwareAddr) run {
			return as(n.onBridge(e, to, ip(source, f.host, 64, udp(low, server)...)...))
		}
		pieces := packet.Fragment(packet.New(append([]packet.Layer{packet.Eth(e.MAC, own)}, ip(f.b, f.host, 64, packet.UDP(low, server), packet.Payload(3000))...)...), 1500)
		later := as(run{program: fromContainer, device: e.IfIndex, in: pieces[1]})
		n.table(t,
			step{"to the node", says(f.unknown, own), passed(seenNot)},
			step{"to the node, by all", says(f.unknown, everybody), passed(seenNot)},
			step{"to the node as another", says(f.b, own), drops("source_address")},
			step{"to the node as another, by all", says(f.b, everybody), drops("source_address")},
			step{"to the node as the node", says(f.host, own), drops("source_address")},
			step{"to the node as the node, by all", says(f.host, everybody), drops("source_address")},
			step{"in pieces", later, drops("source_address")},
			step{"error as another", as(n.onBridge(e, own, ip(f.b, f.world, 64, packet.Unreachable(packet.PortUnreachable), packet.Quote(sent(n.b, ip(f.world, f.b, 64, udp(low, server)...)...)))...)), drops("source_address")},
			step{"renews its lease", dhcp(f.unknown, f.host, own), passed(seenNot)},
		)
		if !f.v6() {
			n.table(t, step{"asks for a lease", dhcp(netip.IPv4Unspecified(), addr("255.255.255.255"), everybody), passed(seenNot)})
		}
	}
	t.Run("egress", func(t *testing.T) {
		n.enforce(t, n.policy().restrict(e, egress).allow(setOne, 0))
		n.story(t,
			step{"ARP", arp(v4().unknown), denied("policy_egress")},
			step{"neighbour", advert(v6().unknown), denied("policy_egress")},
		)
	})
}
