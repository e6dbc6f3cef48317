// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// insider is a node with a child whose parent is in the container, which this node is in these tests: the
// child's device is in0.
type insider struct {
	*parent
	e Endpoint
	// other is one in another container.
	other Endpoint
}

func withInside(t *testing.T) *insider {
	t.Helper()
	n := &insider{parent: &parent{node: newNode(t, Config{Masquerade: true})}}
	n.e = n.makeInside(t)
	n.other = n.e
	id := n.e.ID + 1
	n.other.ID, n.other.IfIndex, n.other.MAC = id, ChildIndex(id), net.HardwareAddr{2, 0, 0, 0, 0xcd, byte(id)}
	n.other.Child = &Child{Parent: n.e.Child.Parent + 1, InContainer: true, NetNS: n.e.Child.NetNS + 2}
	n.other.Addresses = []netip.Addr{v4().child(8), v6().child(8)}
	n.do(t, func() error {
		return errors.Join(n.AttachEndpoint(n.e), n.AttachEndpoint(n.other), n.CheckEndpoint(n.e), n.ReconcileHostAddresses([]netip.Addr{v4().host, v6().host}))
	})
	n.preludes = newPreludes(t, n.Datapath)
	return n
}

// makeInside has the programs of parents loaded for the hooks of a child in the container, and says
// who the child is.
func (p *parent) makeInside(t testing.TB) (e Endpoint) {
	t.Helper()
	const id = 77
	index := insideIndex | id
	p.ns.Run(t, "ip", "link", "add", "in0", "index", strconv.Itoa(index), "type", "bridge")
	p.do(t, func() error {
		inode, err := netnsInode()
		if err != nil {
			return err
		}
		p.loadParents(t, inode+1) // the node is another one
		e = Endpoint{
			ID: id, IfIndex: ChildIndex(id), IfName: "eth1", MAC: net.HardwareAddr{2, 0, 0, 0, 0xcd, id}, HostMAC: net.HardwareAddr{2, 0, 0, 0, 0xcd, id},
			MTU: 1500, Child: &Child{Parent: index, InContainer: true, NetNS: inode},
			Addresses: []netip.Addr{v4().child(7), v6().child(7)},
		}
		_, err = p.HooksInContainer()
		return err
	})
	return e
}

// at is a frame that meets a program at the child, or at its parent.
func (n *insider) at(program string, from, to net.HardwareAddr, layers ...packet.Layer) run {
	return run{program: program, device: n.e.Child.Parent, in: frame(from, to, layers...)}
}

func (n *insider) out(to net.HardwareAddr, layers ...packet.Layer) run {
	return n.at(childEgress, n.e.MAC, to, layers...)
}

func (n *insider) in(layers ...packet.Layer) run {
	return n.at(childIngress, stationMAC(), n.e.MAC, layers...)
}

func TestChildInside(t *testing.T) {
	n := withInside(t)
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range transports() {
			t.Run(tr.name, func(t *testing.T) { testInsideWays(t, n, f, tr) })
		}
		t.Run("policy", func(t *testing.T) { testInsidePolicy(t, n, f) })
		t.Run("by the parent", func(t *testing.T) { testInsideParent(t, n, f) })
		t.Run("frames", func(t *testing.T) { testInsideFrames(t, n, f) })
		t.Run("passages", func(t *testing.T) { testInsidePassages(t, n, f) })
	})
	t.Run("no IP", func(t *testing.T) { testInsideStrange(t, n) })
	t.Run("repair", func(t *testing.T) { testInsideRepair(t, n) })
	t.Run("nothing in place", func(t *testing.T) { testInsideNothing(t, n) })
}

// testInsideWays: what the container says and is told.
func testInsideWays(t *testing.T, n *insider, f family, tr transport) {
	n.forget(t)
	own := f.child(7)
	marked := n.in(ip(f.unknown, own, 64, tr.back(low)...)...)
	marked.mark = putBack
	n.story(t,
		step{"to the link", n.out(stationMAC(), ip(own, f.unknown, 64, tr.begin(low)...)...), toWire("decided")},
		step{"more", n.out(stationMAC(), ip(own, f.unknown, 64, tr.there(low)...)...), toWire()},
		step{"answer", n.in(ip(f.unknown, own, 64, tr.back(low)...)...), intoChild("decided")},
		step{"more answers", n.in(ip(f.unknown, own, 64, tr.back(low)...)...), intoChild()},
		step{"with a mark of another's", marked, intoChild()},
		step{"another's address", n.out(stationMAC(), ip(f.unknown, f.world, 64, tr.begin(low)...)...), shut(fromContainer, "decided", "source_address")},
		step{"an endpoint's address", n.out(stationMAC(), ip(f.a, f.world, 64, tr.begin(low)...)...), shut(fromContainer, "decided", "source_address")},
		step{"another MAC", n.at(childEgress, stationMAC(), routerMAC(), ip(own, f.world, 64, tr.begin(low)...)...), shut(fromContainer, "source_mac")},
		step{"from its own address", n.in(ip(own, own, 64, tr.begin(low)...)...), shut(toContainer, "decided", "martian")},
		step{"from one that no link with it has", n.in(ip(f.a, own, 64, tr.begin(low)...)...), shut(toContainer, "decided", "martian")},
	)
	n.wantTranslations(t)
}

// testInsidePolicy: policy is asked at the child, for groups as for a parent that one child has to itself.
func testInsidePolicy(t *testing.T, n *insider, f family) {
	own := f.child(7)
	asks, answers := n.out(stationMAC(), ip(own, f.unknown, 64, udp(low, server)...)...), n.in(ip(f.unknown, own, 64, udp(server, low)...)...)
	begins := n.in(ip(f.unknown, own, 64, udp(inside, server)...)...)
	group := n.at(childIngress, stationMAC(), everybody(), ip(f.unknown, f.multicast, 1, udp(low, server)...)...)
	n.story(t, step{"group", group, want{verdict: passOn}})
	subjects := func() Policy {
		policy := n.policy()
		policy.Subjects[n.e.ID] = Subject{Identity: ofX, Network: 3}
		return policy
	}
	n.enforce(t, subjects().restrict(n.e, ingress))
	n.story(t,
		step{"ingress", begins, shut(toContainer, "decided", "policy_ingress")},
		step{"again", begins, shut(toContainer, "policy_ingress")},
		step{"the container asks", asks, toWire("decided")},
		step{"and is answered", answers, intoChild("decided")},
		step{"group", group, shut(toContainer, "policy_ingress")},
	)
	n.enforce(t, subjects().restrict(n.e, egress))
	byNode := run{
		program: toUplink, device: n.uplink.IfIndex, ingress: n.node.other.Attrs().Index,
		in: frame(n.uplink.MAC, routerMAC(), ip(own, f.world, 64, udp(low, server)...)...),
	}
	n.story(t,
		step{"egress", n.out(stationMAC(), ip(own, f.unknown, 64, udp(server, inside)...)...), shut(fromContainer, "decided", "policy_egress")},
		step{"the link asks", begins, intoChild("decided")},
		step{"by the node, as its router", byNode, untouched()},
	)
}

// testInsideParent: what is of the child's addresses by the parent goes by the child's hooks.
func testInsideParent(t *testing.T, n *insider, f family) {
	n.forget(t)
	own := f.child(7)
	parentMAC := packet.MAC("02:00:00:00:0e:0e")
	message := udp(low, server)
	in := func(to net.HardwareAddr, source, destination netip.Addr) run {
		return n.at(masterIngress, stationMAC(), to, ip(source, destination, 64, message...)...)
	}
	tagged, taggedToParent := in(n.e.MAC, f.unknown, own), in(parentMAC, f.unknown, own)
	tagged.vlan, taggedToParent.vlan = 50, 50
	out := func(from net.HardwareAddr, source netip.Addr, seen, mark uint32) run {
		r := n.at(masterEgress, from, stationMAC(), ip(source, f.unknown, 64, message...)...)
		r.seen, r.mark = seen, mark
		return r
	}
	// to what is taken as the child's, so that its own hooks see it.
	toChild := func(from, to net.HardwareAddr, source, destination netip.Addr) want {
		return want{verdict: redirect, out: frame(from, to, ip(source, destination, 64, message...)...), seen: seenAsBefore}
	}
	handed := func(w want, mark uint32) want {
		w.mark = mark
		return w
	}
	withTags := func(r run, tags ...byte) run {
		r.in = slices.Concat(r.in[:12], tags, r.in[12:])
		return r
	}
	untouched := want{verdict: passOn, seen: seenAsBefore}
	fromItsParent := toChild(n.e.MAC, stationMAC(), own, f.unknown)
	n.table(t,
		step{"to the child", in(n.e.MAC, f.unknown, own), untouched},
		step{"to the child by the parent's MAC", in(parentMAC, f.unknown, own), toChild(stationMAC(), n.e.MAC, f.unknown, own)},
		step{"to the child by a group's MAC", in(everybody(), f.unknown, own), toChild(stationMAC(), n.e.MAC, f.unknown, own)},
		step{"to the child by a tag", taggedToParent, shut(toContainer, "vlan")},
		step{"to the child by a tag of two", withTags(taggedToParent, 0x81, 0, 0, 60), shut(toContainer, "vlan")},
		step{"to the child of a VLAN", tagged, untouched},
		step{"to a child of another container", in(parentMAC, f.unknown, f.child(8)), untouched},
		step{"of a child of another container", out(parentMAC, f.child(8), seenNot, 0), untouched},
		step{"to the parent", in(parentMAC, f.unknown, f.neighbour), untouched},
		step{"to an endpoint elsewhere", in(parentMAC, f.unknown, f.a), untouched},
		step{"of the child", out(n.e.MAC, own, seenTranslated, sentMark), handed(untouched, sentMark)},
		step{"as of the child", out(n.e.MAC, own, seenNot, sentMark), handed(fromItsParent, sentMark)},
		step{"as judged", out(n.e.MAC, own, seenTranslated, 0), fromItsParent},
		step{"with the child's address", out(parentMAC, own, seenNot, 0), fromItsParent},
		step{"with the child's address and a tag", withTags(out(parentMAC, own, seenNot, 0), 0x81, 0, 0, 0), shut(fromContainer, "vlan")},
		step{"with the child's address and tags", withTags(out(parentMAC, own, seenNot, 0), 0x88, 0xa8, 0, 0, 0x81, 0, 0, 5), shut(fromContainer, "vlan")},
		step{"of the parent with a tag", withTags(out(parentMAC, f.unknown, seenNot, 0), 0x81, 0, 0, 5), untouched},
		step{"of the parent", out(parentMAC, f.unknown, seenNot, 7), handed(untouched, 7)},
	)
}

// testInsideStrange: what is not IP.
func testInsideStrange(t *testing.T, n *insider) {
	own, parentMAC := v4().child(7), packet.MAC("02:00:00:00:0e:0e")
	who := func(mac net.HardwareAddr, a netip.Addr) packet.Layer {
		return packet.ARPRequest(packet.Station{MAC: mac, IP: a}, v4().unknown)
	}
	who4 := func(mac net.HardwareAddr, a netip.Addr) []byte { return frame(mac, everybody(), who(mac, a)) }
	n.table(t,
		step{"ARP", n.out(everybody(), who(n.e.MAC, own)), toWire()},
		step{"ARP for another", n.out(everybody(), who(n.e.MAC, v4().a)), shut(fromContainer, "neighbour")},
		step{"ARP of the parent for the child", n.at(masterEgress, parentMAC, everybody(), who(parentMAC, own)), want{verdict: passOn}},
		step{"ARP of the parent for another container's", n.at(masterEgress, parentMAC, everybody(), who(parentMAC, v4().child(8))), shut(fromContainer, "neighbour")},
		step{"and with a tag", run{program: masterEgress, device: n.e.Child.Parent, in: slices.Concat(who4(parentMAC, own)[:12], []byte{0x81, 0, 0, 0}, who4(parentMAC, own)[12:])}, shut(fromContainer, "neighbour")},
		step{"ARP of the parent", n.at(masterEgress, parentMAC, everybody(), who(parentMAC, v4().unknown)), want{verdict: passOn}},
		step{"ARP for the child", n.at(masterIngress, stationMAC(), everybody(), who(stationMAC(), v4().unknown)), want{verdict: passOn}},
		step{"a frame", run{program: masterIngress, device: n.e.Child.Parent, in: strange(stationMAC(), parentMAC)}, want{verdict: passOn}},
		step{"a short one", run{program: masterIngress, device: n.e.Child.Parent, in: frame(stationMAC(), parentMAC)[:14]}, want{verdict: passOn}},
	)
}

// testInsideRepair: what the child's hooks lead to is put back, and leads nowhere without children.
func testInsideRepair(t *testing.T, n *insider) {
	must(t, n.maps.ChildPrograms.Delete(maps.ChildEgressHook))
	asks := n.out(stationMAC(), ip(v4().child(7), v4().unknown, 64, udp(low, server)...)...)
	n.forget(t)
	n.check(t, asks, shut(fromContainer, "unknown_sender"))
	var found []string
	n.do(t, func() (err error) {
		if mismatch := (*MismatchError)(nil); !errors.As(n.CheckEndpoint(n.e), &mismatch) {
			t.Error("nothing is missing")
		}
		found, err = n.RepairEndpoint(n.e)
		return errors.Join(err, n.CheckEndpoint(n.e))
	})
	if diff := cmp.Diff([]string{"entry of to_parent in map child_programs is missing"}, found); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
	n.check(t, asks, toWire("decided"))
	told := n.in(ip(v4().unknown, v4().child(7), 64, udp(low, server)...)...)
	n.do(t, func() error { return n.DetachEndpoint(n.e) })
	n.check(t, asks, shut(fromContainer, "source_mac"))
	n.check(t, told, shut(toContainer, "unknown_sender"))
	n.do(t, func() error { return n.DetachEndpoint(n.other) }) // nothing leads anywhere any more
	n.check(t, asks, shut(fromContainer, "unknown_sender"))
	n.check(t, told, shut(toContainer, "unknown_sender"))
}

// everybody is the MAC of all stations.
func everybody() net.HardwareAddr { return packet.MAC("ff:ff:ff:ff:ff:ff") }
