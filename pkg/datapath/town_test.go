// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
)

// town is a node with endpoints of many kinds, whose hooks are all shown packets by stories
// (FuzzTown).
type town struct {
	*node
	name string
	// residents are its endpoints, hosts the addresses of the host itself.
	residents []Endpoint
	hosts     []netip.Addr
	// policies are those that are written, policy 1 first.
	policies []housePolicy
	palette  *palette
	bases    [2][]base
}

// housePolicy lets some residents begin nothing, and some be begun nothing with.
type housePolicy struct {
	name string
	// mute are those that may begin nothing, deaf those with whom nobody may.
	mute, deaf map[uint16]bool
}

// towns are all that stories are told of; where all is emulated one, another on the next kernel: to load the programs
// of each takes longer than its stories.
func towns(tb testing.TB) (all []*town) {
	builders := []func(testing.TB) *town{linkTown, uplinkTown, insideTown}
	share, shares := nstest.Share(tb)
	if shares > 1 {
		builders = builders[share%len(builders):][:1]
	}
	for _, build := range builders {
		all = append(all, build(tb))
	}
	return all
}

func townConfig() Config { return Config{Masquerade: true, FlowsMax: 1024, TranslationsMax: 256} }

// linkTown has a routed endpoint, two on a bridge, one of which has mapped ports, and macvlan
// children of the uplink.
func linkTown(tb testing.TB) *town {
	p := &parent{node: newNodeBeside(tb, townConfig())}
	n := &town{node: p.node, name: "link"}
	p.makeChildren(tb)
	p.y.Ports = mappedTo(onePort, p.y.Addresses...)
	n.b.Bridge, n.c.Bridge = bridgeIndex, bridgeIndex
	n.b.Ports = mappedTo(hostPort, v4().b, v6().b)
	n.residents = []Endpoint{p.x, p.y, p.z, p.w}
	n.do(tb, func() error {
		return errors.Join(n.load(limitIngress), n.load(limitEgress), n.load(pacerIn), n.load(pacerOut))
	})
	n.settle(tb)
	return n
}

// uplinkTown has endpoints on a bridge that is the uplink itself, and a routed one.
func uplinkTown(tb testing.TB) *town {
	n := &town{node: newNodeBeside(tb, townConfig()), name: "uplink"}
	n.b.Bridge, n.c.Bridge = n.uplink.IfIndex, n.uplink.IfIndex
	n.b.Ports = mappedTo(hostPort, v4().b, v6().b)
	for _, f := range []family{v4(), v6()} {
		for _, a := range []netip.Addr{f.b, f.c} {
			must(tb, n.ns.Handle.RouteAdd(&netlink.Route{Dst: ipNet(netip.PrefixFrom(a, a.BitLen())), LinkIndex: n.uplink.IfIndex}))
		}
	}
	n.settle(tb)
	return n
}

// insideTown has a macvlan child whose parent is in the container, which is this node, and routed
// endpoints, one with mapped ports.
func insideTown(tb testing.TB) *town {
	p := &parent{node: newNodeBeside(tb, townConfig())}
	n := &town{node: p.node, name: "inside"}
	n.b.Ports = mappedTo(hostPort, v4().b, v6().b)
	n.residents = []Endpoint{p.makeInside(tb)}
	n.settle(tb)
	return n
}

// mappedTo are a port of the host, at all its addresses, that leads to port server of addresses.
func mappedTo(port uint16, addresses ...netip.Addr) (all []Port) {
	for _, a := range addresses {
		every := netip.IPv4Unspecified()
		if a.Is6() {
			every = netip.IPv6Unspecified()
		}
		for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			all = append(all, Port{every, port, protocol, a, server})
		}
	}
	return all
}

// settle attaches the residents, and writes the policies.
func (n *town) settle(tb testing.TB) {
	n.residents = append([]Endpoint{n.a, n.b, n.c}, n.residents...)
	for _, f := range []family{v4(), v6()} {
		n.hosts = append(n.hosts, f.host, f.second())
	}
	n.do(tb, func() error {
		errs := []error{n.ReconcileHostAddresses(n.hosts)}
		for _, e := range n.residents {
			errs = append(errs, n.AttachEndpoint(e), n.CheckEndpoint(e))
		}
		return errors.Join(errs...)
	})
	n.preludes = newPreludes(tb, n.Datapath)
	n.policies = n.housePolicies()
	var written []Policy
	for i, w := range n.policies {
		written = append(written, n.written(w, uint32(i+1)))
	}
	n.writePolicies(tb, written)
	n.palette = n.townPalette()
	n.bases = [2][]base{n.townBases(v4()), n.townBases(v6())}
}

func (n *town) housePolicies() []housePolicy {
	all, odd, even := make(map[uint16]bool), make(map[uint16]bool), make(map[uint16]bool)
	for i, e := range n.residents {
		all[e.ID] = true
		if i%2 == 0 {
			even[e.ID] = true
		} else {
			odd[e.ID] = true
		}
	}
	return []housePolicy{
		{name: "none may be begun with", deaf: all},
		{name: "none may begin", mute: all},
		{name: "nothing may begin", mute: all, deaf: all},
		{name: "every other", mute: even, deaf: odd},
		{name: "every one between", mute: odd, deaf: even},
	}
}

// written is a policy as the programs have it. No two use the same sets.
func (n *town) written(w housePolicy, number uint32) Policy {
	p := n.policy()
	for i, e := range n.residents {
		s := p.Subjects[e.ID]
		s.Identity, s.Network = ofX+uint32(i), uint32(i+1)
		if w.mute[e.ID] {
			s.Egress = 10000*number + 2*uint32(i)
		}
		if w.deaf[e.ID] {
			s.Ingress = 10000*number + 2*uint32(i) + 1
		}
		p.Subjects[e.ID] = s
	}
	return p
}

func (n *town) townPalette() *palette {
	p := n.node.palette()
	p.devices = append(p.devices, 0, bridgeIndex)
	p.ports = append(p.ports, hostPort, onePort, 67, 68)
	p.macs = append(p.macs, stationMAC(), net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0})
	p.notes = append(p.notes, seenOwn, pacedIn, pacedSent, pacedIn|pacedHeld, pacedSent|pacedHeld)
	p.marks = []uint32{0, putBack, putBackChildren, putBackHost, sentMark, ownMark, uint32(n.a.IfIndex), 1 << 14}
	for _, e := range n.residents {
		p.macs = append(p.macs, e.MAC)
		if e.Child != nil && e.Child.InContainer {
			p.devices = append(p.devices, e.Child.Parent)
		}
	}
	p.addresses = func(f family) []netip.Addr {
		all := []netip.Addr{f.unknown, f.host, f.second(), f.router, f.world, f.neighbour, f.narrow, f.elsewhere, f.multicast, f.martian, f.linkLocal, f.nobody()}
		for _, e := range n.residents {
			all = append(all, e.addressOf(f))
		}
		if !f.v6() {
			all = append(all, addr("255.255.255.255"))
		}
		return all
	}
	return p
}

// addressOf is the endpoint's address of a family.
func (e Endpoint) addressOf(f family) netip.Addr {
	return e.Addresses[slices.IndexFunc(e.Addresses, func(a netip.Addr) bool { return a.Is6() == f.v6() })]
}

// resident is the attached endpoint that fits; nil for none.
func resident(all []Endpoint, fits func(Endpoint) bool) *Endpoint {
	if i := slices.IndexFunc(all, fits); i >= 0 {
		return &all[i]
	}
	return nil
}

// addressee is the endpoint with an address; nil for none.
func addressee(all []Endpoint, a netip.Addr) *Endpoint {
	return resident(all, func(e Endpoint) bool { return slices.Contains(e.Addresses, a) })
}

// utter is a packet from one address to another, at the hook that it meets first.
func (n *town) utter(from, to netip.Addr, inner ...packet.Layer) run {
	f := v4()
	if from.Is6() {
		f = v6()
	}
	sender, receiver := addressee(n.residents, from), addressee(n.residents, to)
	layers := ip(from, to, 64, inner...)
	isChild := func(e *Endpoint) bool { return e != nil && e.Child != nil }
	switch {
	case isChild(sender) && sender.Child.InContainer:
		return run{program: childEgress, device: sender.Child.Parent, in: frame(sender.MAC, stationMAC(), layers...)}
	case isChild(sender):
		next := routerMAC()
		switch {
		case isChild(receiver):
			next = receiver.MAC
		case to == f.host || receiver != nil:
			next = n.uplink.MAC
		}
		return run{program: toParent, device: n.uplink.IfIndex, in: frame(sender.MAC, next, layers...)}
	case sender != nil:
		next := sender.HostMAC
		switch {
		case sender.Bridge == 0:
		case receiver != nil && receiver.Bridge == sender.Bridge:
			next = receiver.MAC
		case to == f.unknown || to.IsMulticast():
			next = stationMAC()
		}
		return run{program: fromContainer, device: sender.IfIndex, in: frame(sender.MAC, next, layers...)}
	}
	host := slices.Contains(n.hosts, from)
	switch {
	case isChild(receiver) && receiver.Child.InContainer:
		return run{program: childIngress, device: receiver.Child.Parent, in: frame(stationMAC(), receiver.MAC, layers...)}
	case isChild(receiver) && host:
		return run{program: toParent, device: n.uplink.IfIndex, in: frame(n.uplink.MAC, receiver.MAC, layers...)}
	case isChild(receiver):
		return run{program: fromParent, device: n.uplink.IfIndex, in: frame(routerMAC(), receiver.MAC, layers...)}
	case receiver != nil && host:
		return n.toResident(receiver, 0, receiver.HostMAC, layers)
	case receiver != nil && from == f.unknown && receiver.Bridge != 0:
		return n.toResident(receiver, n.other.Attrs().Index, stationMAC(), layers)
	case receiver != nil && from == f.elsewhere:
		return n.toResident(receiver, n.other.Attrs().Index, receiver.HostMAC, layers)
	case host:
		return n.toWorld(seenNot, layers...)
	}
	return n.fromWorld(layers...)
}

func (*town) toResident(e *Endpoint, ingress int, from net.HardwareAddr, layers []packet.Layer) run {
	return run{program: toContainer, device: e.IfIndex, ingress: ingress, in: frame(from, e.MAC, layers...)}
}
