// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// Marks (enum mark of bpf/lib/apply.h) of programs that are loaded by tests.
const (
	putBack = 0x7e4e0000 + iota
	putBackChildren
	putBackHost
	sentMark
)

func init() { markBase = func(uint32) (uint32, error) { return putBack, nil } }

// parent is a node whose uplink has macvlan children: x and y are bridged and reach the
// host, z is alone, and w speaks to others by way of a switch.
type parent struct {
	*node
	x, y, z, w Endpoint
}

// Addresses of the children, on the uplink's link.
func (f family) child(i byte) netip.Addr {
	a := f.host.AsSlice()
	a[len(a)-1] = 20 + i
	all, _ := netip.AddrFromSlice(a)
	return all
}

func withChildren(t *testing.T, cfg Config) *parent {
	t.Helper()
	n := newNode(t, cfg)
	p := &parent{node: n}
	p.makeChildren(t)
	p.do(t, func() error {
		for _, e := range []Endpoint{p.x, p.y, p.z, p.w} {
			if err := n.AttachEndpoint(e); err != nil {
				return err
			}
			if err := n.CheckEndpoint(e); err != nil {
				return err
			}
		}
		return n.ReconcileHostAddresses([]netip.Addr{v4().host, v6().host})
	})
	n.preludes = newPreludes(t, n.Datapath)
	return p
}

// makeChildren has the programs of parents loaded, and says who the children are.
func (p *parent) makeChildren(t testing.TB) {
	t.Helper()
	p.do(t, func() error {
		inode, err := netnsInode()
		if err != nil {
			return err
		}
		p.loadParents(t, inode)
		for i, one := range []struct {
			endpoint *Endpoint
			child    Child
		}{
			{&p.x, Child{Bridged: true, HostAccess: true}},
			{&p.y, Child{Bridged: true, HostAccess: true}},
			{&p.z, Child{}},
			{&p.w, Child{Reflected: true, HostAccess: true}},
		} {
			id := uint16(201 + i)
			child := one.child
			child.Parent, child.NetNS = p.uplink.IfIndex, inode
			*one.endpoint = Endpoint{
				ID: id, IfIndex: ChildIndex(id), IfName: p.uplink.Name, MAC: net.HardwareAddr{2, 0, 0, 0, 0xcd, byte(id)},
				HostMAC: p.uplink.MAC, MTU: 1500, Child: &child,
				Addresses: []netip.Addr{v4().child(byte(i + 1)), v6().child(byte(i + 1))},
			}
		}
		return nil
	})
}

// loadParents has the programs of parents loaded for this node's namespace: what else is
// loaded is other tests' too, and does not care. They meet what the node's own stack sends by the uplink, too.
func (p *parent) loadParents(t testing.TB, inode uint32) {
	t.Helper()
	p.tally = nil
	before := p.programs.settings["netns_inode"]
	p.programs.settings["netns_inode"] = inode
	must(t, errors.Join(p.load(fromParent), p.load(toParent)))
	t.Cleanup(func() {
		p.programs.settings["netns_inode"] = before
		for _, name := range []string{fromParent, toParent} {
			must(t, p.programs.byName[name].Close())
			delete(p.programs.byName, name)
		}
	})
}

// frame is one from MAC to MAC.
func frame(from, to net.HardwareAddr, layers ...packet.Layer) []byte {
	return packet.New(append([]packet.Layer{packet.Eth(from, to)}, layers...)...)
}

// out is a frame that leaves by the parent, as somebody of the node sends it.
func (p *parent) out(from, to net.HardwareAddr, layers ...packet.Layer) run {
	return run{program: toParent, device: p.uplink.IfIndex, in: frame(from, to, layers...)}
}

// in is a frame that the wire brings.
func (p *parent) in(from, to net.HardwareAddr, layers ...packet.Layer) run {
	return run{program: fromParent, device: p.uplink.IfIndex, in: frame(from, to, layers...)}
}

// What becomes of a child's frame: to the wire, into another child, to the host.
func toWire(counters ...string) want {
	return want{verdict: passOn, counters: of(fromContainer, append(counters, "forwarded")), seen: seenTranslated, mark: sentMark}
}

func toSibling(counters ...string) want {
	return want{verdict: redirect, counters: of(fromContainer, append(counters, "delivered")), seen: seenTranslated, mark: putBack}
}

func toHost(counters ...string) want {
	return want{verdict: redirect, counters: of(fromContainer, append(counters, "passed")), seen: seenTranslated, mark: putBack}
}

// ofHost is a frame for a child that the host sends, intoChild one that the wire brings.
func ofHost(counter string) want {
	return want{verdict: redirect, counters: of(toContainer, []string{counter}), seen: seenAsBefore, mark: putBack}
}

func intoChild(counters ...string) want {
	return want{verdict: passOn, counters: of(toContainer, append(counters, "passed"))}
}

func shut(journey string, counters ...string) want {
	return want{verdict: dropped, counters: of(journey, counters)}
}

// of gives counters their journey.
func of(journey string, counters []string) (all []string) {
	for _, c := range counters {
		all = append(all, journey+" "+c)
	}
	return all
}

// TestChildForgotten: of a child that is forgotten at an agent's start nothing is left when a policy comes to count,
// and the others are served as before.
func TestChildForgotten(t *testing.T) {
	p := withChildren(t, Config{Masquerade: true})
	others := []Endpoint{p.a, p.b, p.c, p.y, p.z, p.w}
	p.do(t, func() error { return p.PruneEndpoints(others) })
	if value, err := p.maps.Children.LookupBytes(maps.ChildKey{Parent: uint32(p.x.Child.Parent), Mac: maps.NewMAC(p.x.MAC)}); err != nil || value != nil {
		t.Errorf("map children has it: %x, %v", value, err)
	}
	p.do(t, func() error {
		for _, e := range others {
			if err := p.CheckEndpoint(e); err != nil {
				return err
			}
		}
		return nil
	})
}

func TestChild(t *testing.T) {
	p := withChildren(t, Config{Masquerade: true})
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range transports() {
			t.Run(tr.name, func(t *testing.T) { testChildWays(t, p, f, tr) })
		}
		t.Run("forged", func(t *testing.T) { testChildForged(t, p, f) })
		t.Run("host", func(t *testing.T) { testChildHost(t, p, f) })
		t.Run("wire", func(t *testing.T) { testChildWire(t, p, f) })
		t.Run("policy", func(t *testing.T) { testChildPolicy(t, p, f) })
		t.Run("policy of the other end", func(t *testing.T) { testChildPolicyWays(t, p, f) })
		t.Run("groups", func(t *testing.T) { testChildGroups(t, p, f) })
		t.Run("forwarded groups", func(t *testing.T) { testChildForwardedGroups(t, p, f) })
		t.Run("routed", func(t *testing.T) { testChildRouted(t, p, f) })
		t.Run("passages", func(t *testing.T) { testParentPassages(t, p, f) })
	})
	t.Run("no IP", func(t *testing.T) { testChildStrange(t, p) })
}

// testChildWays: each direction of a connection, to each kind of other end.
func testChildWays(t *testing.T, p *parent, f family, tr transport) {
	p.forget(t)
	x, y := f.child(1), f.child(2)
	p.story(t,
		step{"to a sibling", p.out(p.x.MAC, p.y.MAC, ip(x, y, 1, tr.begin(low)...)...), toSibling("decided")},
		step{"more", p.out(p.x.MAC, p.y.MAC, ip(x, y, 64, tr.there(low)...)...), toSibling()},
		step{"answer", p.out(p.y.MAC, p.x.MAC, ip(y, x, 64, tr.back(low)...)...), toSibling("decided")},
		step{"more answers", p.out(p.y.MAC, p.x.MAC, ip(y, x, 64, tr.back(low)...)...), toSibling()},
		step{"by a router instead", p.out(p.x.MAC, routerMAC(), ip(x, y, 64, tr.there(low)...)...), toWire("decided")},
		step{"to the world", p.out(p.x.MAC, routerMAC(), ip(x, f.world, 64, tr.begin(low)...)...), toWire("decided")},
		step{"more", p.out(p.x.MAC, routerMAC(), ip(x, f.world, 64, tr.there(low)...)...), toWire()},
		step{"answer of the world", p.in(routerMAC(), p.x.MAC, ip(f.world, x, 64, tr.back(low)...)...), intoChild("decided")},
		step{"more answers", p.in(routerMAC(), p.x.MAC, ip(f.world, x, 64, tr.back(low)...)...), intoChild()},
		step{"question of a neighbour", p.in(routerMAC(), p.z.MAC, ip(f.neighbour, f.child(3), 64, tr.begin(low)...)...), intoChild("decided")},
		step{"answer to it", p.out(p.z.MAC, routerMAC(), ip(f.child(3), f.neighbour, 64, tr.back(low)...)...), toWire("decided")},
	)
	p.wantTranslations(t)
}

// testChildForged: who is not who it says is dropped.
func testChildForged(t *testing.T, p *parent, f family) {
	x, y := f.child(1), f.child(2)
	message := udp(low, server)
	guessed := func(mark uint32) run {
		r := p.out(p.x.MAC, p.y.MAC, ip(f.neighbour, y, 64, message...)...)
		r.mark = mark
		return r
	}
	p.table(t,
		step{"with a mark that it has found out", guessed(putBack), shut(fromContainer, "decided", "source_address")},
		step{"with a mark of what leaves", guessed(sentMark), shut(fromContainer, "decided", "source_address")},
		step{"a sibling's address", p.out(p.x.MAC, routerMAC(), ip(y, f.world, 64, message...)...), shut(fromContainer, "decided", "source_address")},
		step{"nobody's address", p.out(p.x.MAC, p.y.MAC, ip(f.neighbour, y, 64, message...)...), shut(fromContainer, "decided", "source_address")},
		step{"the host's address", p.out(p.x.MAC, p.y.MAC, ip(f.host, y, 64, message...)...), shut(fromContainer, "decided", "source_address")},
		step{"martian", p.out(p.x.MAC, p.y.MAC, ip(x, f.martian, 64, message...)...), shut(fromContainer, "decided", "martian")},
		step{"group by a station's MAC", p.out(p.x.MAC, p.y.MAC, ip(x, f.multicast, 64, message...)...), shut(fromContainer, "decided", "martian")},
	)
}

// by is a frame that leaves by the parent and came in by a device.
func (p *parent) by(ingress int, from, to net.HardwareAddr, layers ...packet.Layer) run {
	r := p.out(from, to, layers...)
	r.ingress = ingress
	return r
}

// testChildHost: the host and a child, where they reach each other.
func testChildHost(t *testing.T, p *parent, f family) {
	x, z := f.child(1), f.child(3)
	host := p.uplink.MAC
	message := udp(low, server)
	p.table(t,
		step{"to the host", p.out(p.x.MAC, host, ip(x, f.host, 64, message...)...), toHost("decided")},
		step{"to the host, which it does not reach", p.out(p.z.MAC, host, ip(z, f.host, 64, message...)...), toWire("decided")},
		step{"to one that does not reach others", p.out(p.x.MAC, p.z.MAC, ip(x, z, 64, message...)...), toWire("decided")},
		step{"from one that does not reach others", p.out(p.z.MAC, p.x.MAC, ip(z, x, 64, message...)...), toWire("decided")},
		step{"of the host", p.out(host, p.x.MAC, ip(f.host, x, 64, message...)...), ofHost("host")},
		step{"of the host, which it does not reach", p.out(host, p.z.MAC, ip(f.host, z, 64, message...)...), untouched()},
		step{"of the host to the world", p.out(host, routerMAC(), ip(f.host, f.world, 64, message...)...), untouched()},
		step{"forwarded by the host", p.by(p.other.Attrs().Index, host, p.x.MAC, ip(f.elsewhere, x, 64, message...)...), ofHost("passed")},
		step{"of somebody else's child", p.out(stationMAC(), p.x.MAC, ip(f.neighbour, x, 64, message...)...), ofHost("passed")},
		step{"of somebody else's child to one alone", p.out(stationMAC(), p.z.MAC, ip(f.neighbour, z, 64, message...)...), untouched()},
	)
	// What was put back.
	came := func(mark uint32, to net.HardwareAddr) run {
		r := p.in(p.x.MAC, to, ip(x, f.host, 64, message...)...)
		r.mark = mark
		return r
	}
	group := packet.MAC("33:33:00:00:00:fb")
	own := p.out(p.x.MAC, routerMAC(), ip(x, f.world, 64, message...)...)
	own.mark = 0x4000
	elsewhere := run{program: fromParent, device: p.other.Attrs().Index, in: frame(routerMAC(), stationMAC(), ip(f.world, f.host, 64, message...)...), seen: seenTranslated}
	p.table(t,
		step{"a mark of its own", own, toWire("decided")},
		step{"mark of a stack, on a wire that no uplink's program sees", elsewhere, want{verdict: passOn}},
		step{"put back for the host", came(putBack, host), want{verdict: passOn, seen: seenOwn}},
		step{"put back for a child", came(putBack, p.y.MAC), want{verdict: passOn, seen: seenOwn}},
		step{"put back for a group", came(putBack, group), want{verdict: passOn, seen: seenOwn}},
		step{"put back for the children", came(putBackChildren, group), want{verdict: passOn, seen: seenOwn}},
		step{"put back for the host alone", came(putBackHost, group), want{verdict: passOn, out: frame(p.x.MAC, host, ip(x, f.host, 64, message...)...), seen: seenOwn}},
	)
}

// testChildWire: what the wire brings in the name of somebody of the node.
func testChildWire(t *testing.T, p *parent, f family) {
	x, y, w := f.child(1), f.child(2), f.child(4)
	message := udp(low, server)
	p.table(t,
		step{"for the host", p.in(routerMAC(), p.uplink.MAC, ip(f.world, f.host, 64, message...)...), untouched()},
		step{"for another station", p.in(routerMAC(), stationMAC(), ip(f.world, f.host, 64, message...)...), untouched()},
		step{"the host's address, by a router", p.in(routerMAC(), p.x.MAC, ip(f.host, x, 64, message...)...), intoChild("decided")},
		step{"the host's MAC", p.in(p.uplink.MAC, p.x.MAC, ip(f.world, x, 64, message...)...), shut(toContainer, "decided", "martian")},
		step{"a sibling's address", p.in(routerMAC(), p.x.MAC, ip(y, x, 64, message...)...), shut(toContainer, "decided", "martian")},
		step{"a sibling's address and MAC", p.in(p.y.MAC, p.x.MAC, ip(y, x, 64, message...)...), shut(toContainer, "decided", "martian")},
		step{"a routed container's address", p.in(routerMAC(), p.x.MAC, ip(f.a, x, 64, message...)...), shut(toContainer, "decided", "martian")},
		step{"sent back by a switch", p.in(p.w.MAC, p.x.MAC, ip(w, x, 64, message...)...), intoChild("decided")},
		step{"sent back with another's address", p.in(p.w.MAC, p.x.MAC, ip(y, x, 64, message...)...), shut(toContainer, "decided", "martian")},
		step{"for another address", p.in(routerMAC(), p.x.MAC, ip(f.world, f.neighbour, 64, message...)...), intoChild("decided")},
	)
}

// subjects is the policy that knows the children, too.
func (p *parent) subjects() Policy {
	policy := p.policy()
	for i, e := range []Endpoint{p.x, p.y, p.z, p.w} {
		policy.Subjects[e.ID] = Subject{Identity: ofX + uint32(i), Network: 3}
	}
	return policy
}

// ofX and those after it are the identities of the children.
const ofX = 300

// testChildPolicy: policy is asked of both ends on the sender's way.
func testChildPolicy(t *testing.T, p *parent, f family) {
	x, y := f.child(1), f.child(2)
	toY := p.out(p.x.MAC, p.y.MAC, ip(x, y, 64, udp(low, server)...)...)
	toX := p.out(p.y.MAC, p.x.MAC, ip(y, x, 64, udp(server, low)...)...)
	t.Run("ingress", func(t *testing.T) {
		p.enforce(t, p.subjects().restrict(p.y, ingress))
		p.story(t,
			step{"kept out", toY, shut(fromContainer, "decided", "policy_ingress")},
			step{"kept out again", toY, shut(fromContainer, "policy_ingress")},
			step{"y begins", toX, toSibling("decided")},
			step{"and is answered", toY, toSibling("decided")},
		)
		p.wantTracked(t, tracked1{y, x, maps.TranslationOpening})
	})
	t.Run("let in", func(t *testing.T) {
		p.enforce(t, p.subjects().restrict(p.y, ingress).allow(setOne, ofX))
		p.story(t,
			step{"let in", toY, toSibling("decided")},
			step{"answer", toX, toSibling("decided")},
			step{"more", toY, toSibling("decided")},
			step{"and more", toY, toSibling()},
		)
	})
	t.Run("egress", func(t *testing.T) {
		p.enforce(t, p.subjects().restrict(p.x, egress).allow(setOne, ofX+1))
		p.story(t,
			step{"to whom it may", toY, toSibling("decided")},
			step{"to the world, where it may not", p.out(p.x.MAC, routerMAC(), ip(x, f.world, 64, udp(low, server)...)...), shut(fromContainer, "decided", "policy_egress")},
			step{"to the host", p.out(p.x.MAC, p.uplink.MAC, ip(x, f.host, 64, udp(low, server)...)...), toHost("decided")},
			step{"by the host, where it may not", p.out(p.x.MAC, p.uplink.MAC, ip(x, f.elsewhere, 64, udp(low, server)...)...), shut(fromContainer, "decided", "policy_egress")},
		)
	})
	t.Run("services of others", func(t *testing.T) {
		p.services(t, netip.PrefixFrom(f.neighbour, f.neighbour.BitLen()))
		ask := p.out(p.x.MAC, p.uplink.MAC, ip(x, f.neighbour, 64, udp(low, server)...)...)
		p.enforce(t, p.subjects().restrict(p.x, egress).allow(setOne, ofX+1))
		p.story(t, step{"judged by its address", ask, shut(fromContainer, "decided", "policy_egress")})
		p.enforce(t, p.subjects().restrict(p.x, egress).allow(setOne, 0))
		p.story(t, step{"which may be all", ask, toHost("decided")})
	})
	t.Run("DHCP", func(t *testing.T) {
		offered := f.child(9)
		ofWire := func(from, to uint16) run {
			return p.in(routerMAC(), p.y.MAC, ip(f.world, offered, 64, udp(from, to)...)...)
		}
		ofSibling := p.out(p.x.MAC, p.y.MAC, ip(x, offered, 64, udp(67, 68)...)...)
		p.enforce(t, p.subjects().restrict(p.y, ingress))
		answer, answerOfSibling := intoChild("decided"), toSibling("decided")
		if f.v6() {
			answer, answerOfSibling = shut(toContainer, "decided", "policy_ingress"), shut(fromContainer, "decided", "policy_ingress")
		}
		p.story(t,
			step{"answer", ofWire(67, 68), answer},
			step{"answer of a sibling", ofSibling, answerOfSibling},
			step{"question", ofWire(68, 67), shut(toContainer, "decided", "policy_ingress")},
			step{"another port", ofWire(67, 69), shut(toContainer, "decided", "policy_ingress")},
		)
	})
	t.Run("begun before", func(t *testing.T) {
		p.forget(t)
		p.story(t, step{"question", toY, toSibling("decided")}, step{"answer", toX, toSibling("decided")})
		must(t, p.ReconcilePolicy(p.subjects().restrict(p.y, egress)))
		defer func() { must(t, p.ReconcilePolicy(Policy{})) }()
		p.story(t, step{"answer under the policy", toX, toSibling("decided")})
	})
	t.Run("begun before, of the wire", func(t *testing.T) {
		p.forget(t)
		question := p.out(p.x.MAC, routerMAC(), ip(x, f.world, 64, udp(low, server)...)...)
		answer := p.in(routerMAC(), p.x.MAC, ip(f.world, x, 64, udp(server, low)...)...)
		p.story(t, step{"question", question, toWire("decided")})
		must(t, p.ReconcilePolicy(p.subjects().restrict(p.x, ingress)))
		defer func() { must(t, p.ReconcilePolicy(Policy{})) }()
		p.story(t, step{"answer under the policy", answer, intoChild("decided")})
	})
}

// testChildPolicyWays: policy for what others than children send.
func testChildPolicyWays(t *testing.T, p *parent, f family) {
	x := f.child(1)
	message := udp(low, server)
	host := p.uplink.MAC
	ofWire := p.in(routerMAC(), p.x.MAC, ip(f.world, x, 64, message...)...)
	answer := p.out(p.x.MAC, routerMAC(), ip(x, f.world, 64, udp(server, low)...)...)
	p.enforce(t, p.subjects().restrict(p.x, ingress))
	p.story(t,
		step{"of the wire", ofWire, shut(toContainer, "decided", "policy_ingress")},
		step{"of the wire again", ofWire, shut(toContainer, "policy_ingress")},
		step{"to another address", p.in(routerMAC(), p.x.MAC, ip(f.world, f.neighbour, 64, message...)...), shut(toContainer, "decided", "policy_ingress")},
		step{"of the host", p.out(host, p.x.MAC, ip(f.host, x, 64, message...)...), ofHost("host")},
		step{"of somebody else's child", p.out(stationMAC(), p.x.MAC, ip(f.neighbour, x, 64, message...)...), shut(toContainer, "policy_ingress")},
		step{"of a sibling for another address", p.out(p.y.MAC, p.x.MAC, ip(f.child(2), f.neighbour, 64, message...)...), shut(fromContainer, "decided", "policy_ingress")},
		step{"x begins", answer, toWire("decided")},
		step{"and is answered", ofWire, intoChild("decided")},
	)
	p.story(t,
		step{"forwarded by the host", p.by(p.other.Attrs().Index, host, p.x.MAC, ip(f.elsewhere, x, 64, message...)...), shut(toContainer, "policy_ingress")},
		step{"of a routed container", p.by(p.a.IfIndex, host, p.x.MAC, ip(f.a, x, 64, message...)...), shut(toContainer, "policy_ingress")},
	)
	p.enforce(t, p.subjects().restrict(p.x, ingress).allow(setOne, ofA))
	p.story(t,
		step{"of a routed container that may", p.by(p.a.IfIndex, host, p.x.MAC, ip(f.a, x, 64, message...)...), ofHost("passed")},
		step{"of one that is elsewhere", p.by(p.b.IfIndex, host, p.x.MAC, ip(f.a, x, 64, message...)...), shut(toContainer, "martian")},
	)
}

// testChildGroups: what is for all, or for many.
func testChildGroups(t *testing.T, p *parent, f family) {
	everybody := packet.MAC("ff:ff:ff:ff:ff:ff")
	group := packet.MAC("33:33:00:00:00:fb")
	x := f.child(1)
	message := ip(x, f.multicast, 1, udp(low, server)...)
	heard := ip(f.neighbour, f.multicast, 1, udp(low, server)...)
	p.table(t,
		step{"of a child", p.out(p.x.MAC, group, message...), toWire("decided")},
		step{"of the host", p.out(p.uplink.MAC, group, ip(f.host, f.multicast, 1, udp(low, server)...)...), untouched()},
		step{"of the wire", p.in(routerMAC(), group, heard...), untouched()},
		step{"martian for all", p.out(p.x.MAC, everybody, ip(x, f.martian, 64, udp(low, server)...)...), shut(fromContainer, "decided", "martian")},
		step{"another's address", p.out(p.x.MAC, everybody, ip(f.child(2), f.multicast, 1, udp(low, server)...)...), shut(fromContainer, "decided", "source_address")},
	)
	p.enforce(t, p.subjects().restrict(p.x, egress).allow(setOne, 0))
	p.table(t,
		step{"of a child under a policy", p.out(p.x.MAC, group, message...), shut(fromContainer, "decided", "policy_egress")},
		step{"of another", p.out(p.y.MAC, group, ip(f.child(2), f.multicast, 1, udp(low, server)...)...), toWire("decided")},
		step{"of the wire, where somebody has a policy", p.in(routerMAC(), group, heard...), want{verdict: passOn, out: frame(routerMAC(), p.uplink.MAC, heard...)}},
	)
	if f.v6() {
		p.table(t,
			step{"solicitation", p.out(p.x.MAC, group, ip(x, f.multicast, 255, packet.NeighborSolicit(f.child(2), packet.SourceLinkAddr(p.x.MAC)))...), toWire("decided")},
			step{"solicitation of the wire", p.in(routerMAC(), group, ip(f.neighbour, f.multicast, 255, packet.NeighborSolicit(x, packet.SourceLinkAddr(routerMAC())))...), untouched()},
			step{"advertisement", p.out(p.x.MAC, p.y.MAC, ip(x, f.child(2), 255, packet.NeighborAdvert(x, 0, packet.TargetLinkAddr(p.x.MAC)))...), toSibling("decided")},
			step{"advertisement of another's", p.out(p.x.MAC, p.y.MAC, ip(x, f.child(2), 255, packet.NeighborAdvert(f.child(2), 0, packet.TargetLinkAddr(p.x.MAC)))...), shut(fromContainer, "decided", "neighbour")},
			step{"link-local under a policy", p.out(p.x.MAC, p.y.MAC, ip(f.linkLocal, addr("fe80::99"), 64, udp(low, server)...)...), shut(fromContainer, "decided", "policy_egress")},
		)
	} else {
		p.table(t,
			step{"lease", p.out(p.x.MAC, everybody, ip(addr("0.0.0.0"), addr("255.255.255.255"), 64, udp(68, 67)...)...), toWire("decided")},
			step{"offer of the wire", p.in(routerMAC(), everybody, ip(f.neighbour, addr("255.255.255.255"), 64, udp(67, 68)...)...), untouched()},
		)
	}
	p.enforce(t, p.subjects().restrict(p.y, ingress))
	p.table(t, step{"to one that is kept", p.out(p.x.MAC, p.y.MAC, ip(x, f.linkLocal, 64, udp(low, server)...)...), shut(fromContainer, "decided", "policy_ingress")})
}

// testChildForwardedGroups: a copy of what the host sends to a group is put back for its children; under a policy
// none of what it only forwards.
func testChildForwardedGroups(t *testing.T, p *parent, f family) {
	group := packet.MAC("33:33:00:00:00:fb")
	back := listenAt(t, p.ns, p.uplink.Name)
	message := func(src netip.Addr) []packet.Layer {
		return ip(src, f.multicast, 8, packet.UDP(low, server), packet.Payload(100))
	}
	hear := func(want []byte) {
		t.Helper()
		if diff := packet.Diff(want, back.hear(t, group, f)); diff != "" {
			t.Errorf("put back:\n%s", diff)
		}
	}
	own := p.out(p.uplink.MAC, group, message(f.host)...)
	forwarded := p.by(p.other.Attrs().Index, p.uplink.MAC, group, message(f.elsewhere)...)
	forwarded.require(t)
	p.table(t, step{"forwarded", forwarded, untouched()})
	hear(forwarded.in)
	p.enforce(t, p.subjects().restrict(p.x, ingress).allow(setOne, 0))
	p.table(t, step{"forwarded under a policy", forwarded, untouched()}, step{"the host's own", own, untouched()})
	hear(own.in)
}

// testChildRouted: routed containers and children, on one node.
func testChildRouted(t *testing.T, p *parent, f family) {
	x := f.child(1)
	p.forget(t)
	message := udp(low, server)
	p.story(t,
		step{
			"to a child, as to any station of the link", p.fromA(ip(f.a, x, 64, udp(inside, server)...)...),
			forwarded(sent(p.a, ip(f.host, x, 63, udp(inside, server)...)...), "decided"),
		},
		step{"which the host sends", sentOn(p.by(p.a.IfIndex, p.uplink.MAC, p.x.MAC, ip(f.host, x, 63, udp(inside, server)...)...)), ofHost("passed")},
		step{"answer", p.out(p.x.MAC, p.uplink.MAC, ip(x, f.host, 64, udp(server, inside)...)...), toHost("decided")},
		step{"answer at the uplink", backed(p.fromChild(ip(x, f.host, 64, udp(server, inside)...)...)), want{verdict: redirect, out: delivered(p.a, ip(x, f.a, 63, udp(server, inside)...)...), counters: []string{"decided", "delivered"}, mark: putBack}},
		step{"to a routed container by the host", p.out(p.x.MAC, p.uplink.MAC, ip(x, f.b, 64, message...)...), toHost("decided")},
		step{"which the uplink leaves to the stack", backed(p.fromChild(ip(x, f.b, 64, message...)...)), want{verdict: passOn, mark: putBack}},
	)
	// The uplink's programs leave what is of the link to those of the parent.
	p.story(t,
		step{"of the world", p.in(routerMAC(), p.x.MAC, ip(f.world, x, 64, message...)...), intoChild("decided")},
		step{"by the host as a router", p.fromWorld(ip(f.world, x, 64, message...)...), untouched()},
	)
	atUplink := func(src net.HardwareAddr, seen uint32, ingress int) run {
		return run{program: toUplink, device: p.uplink.IfIndex, seen: seen, ingress: ingress, in: frame(src, routerMAC(), ip(x, f.world, 64, message...)...)}
	}
	p.enforce(t, p.subjects().restrict(p.x, egress))
	p.story(t,
		step{"to the world", atUplink(p.x.MAC, seenNot, 0), untouched()},
		step{"and by the host, which the parent's program has judged", atUplink(p.uplink.MAC, seenOwn, p.uplink.IfIndex), untouched()},
	)
}

// fromChild is a frame of x for the host, at the uplink.
func (p *parent) fromChild(layers ...packet.Layer) run {
	return run{program: fromUplink, device: p.uplink.IfIndex, in: frame(p.x.MAC, p.uplink.MAC, layers...)}
}

// backed is a packet that was put back, sentOn one that another hook has translated.
func backed(r run) run {
	r.mark = putBack
	return r
}

func sentOn(r run) run {
	r.seen = seenTranslated
	return r
}

// testChildStrange: ARP, and protocols that nobody knows.
func testChildStrange(t *testing.T, p *parent) {
	everybody := packet.MAC("ff:ff:ff:ff:ff:ff")
	f := v4()
	x, y := f.child(1), f.child(2)
	arp := func(mac net.HardwareAddr, sender, target netip.Addr) run {
		return run{program: toParent, device: p.uplink.IfIndex, in: packet.New(packet.Eth(mac, everybody), packet.ARPRequest(packet.Station{MAC: mac, IP: sender}, target))}
	}
	asked := toWire()
	p.table(t,
		step{"ARP", arp(p.x.MAC, x, y), asked},
		step{"probe", arp(p.x.MAC, addr("0.0.0.0"), x), asked},
		step{"ARP with another's address", arp(p.x.MAC, y, x), shut(fromContainer, "neighbour")},
		step{"ARP of the host", arp(p.uplink.MAC, f.host, x), untouched()},
		step{"strange", run{program: toParent, device: p.uplink.IfIndex, in: strange(p.x.MAC, p.y.MAC)}, toSibling()},
		step{"tag in the frame", p.out(p.x.MAC, p.uplink.MAC, append([]packet.Layer{packet.VLAN(5)}, ip(x, f.host, 64, udp(low, server)...)...)...), shut(fromContainer, "vlan")},
		step{"strange of the wire", run{program: fromParent, device: p.uplink.IfIndex, in: strange(routerMAC(), p.y.MAC)}, intoChild()},
		step{"for bridges", run{program: toParent, device: p.uplink.IfIndex, in: strange(p.x.MAC, packet.MAC("01:80:c2:00:00:00"))}, shut(fromContainer, "martian")},
	)
	p.enforce(t, p.subjects().restrict(p.y, ingress).allow(setOne, 0))
	p.table(t,
		step{"strange to one that is kept", run{program: toParent, device: p.uplink.IfIndex, in: strange(p.x.MAC, p.y.MAC)}, shut(fromContainer, "policy_ingress")},
		step{"strange of the wire to it", run{program: fromParent, device: p.uplink.IfIndex, in: strange(routerMAC(), p.y.MAC)}, shut(toContainer, "policy_ingress")},
		step{"ARP to it", run{program: fromParent, device: p.uplink.IfIndex, in: packet.New(packet.Eth(routerMAC(), p.y.MAC), packet.ARPRequest(packet.Station{MAC: routerMAC(), IP: f.neighbour}, y))}, intoChild()},
	)
}
