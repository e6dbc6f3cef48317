// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/maps"
)

// newHoused is a node that has a container with a parent of its own, eth1, which is on one wire with the neighbour. Its
// child x is eth0, and both have their programs, as the plugin attaches them.
func newHoused(t *testing.T) *wired {
	t.Helper()
	nstest.Root(t)
	x := nstest.New(t, "x")
	w := &wired{
		node: nstest.New(t, "node"), neighbour: nstest.New(t, "wire"),
		containers: map[string]*nstest.NS{"x": x}, endpoints: make(map[string]Endpoint),
	}
	nstest.Veth(t, x, "eth1", w.neighbour, "p0")
	addWired(t, w.neighbour, "p0", 9)
	w.open(t)
	const id = 7
	mac := net.HardwareAddr{2, 0, 0, 0, 0xcd, id}
	x.Run(t, "ip", "link", "add", "link", "eth1", "name", "eth0", "index", strconv.Itoa(insideIndex|id), "address", mac.String(), "type", "macvlan", "mode", "bridge")
	child := &Child{Parent: insideIndex | id, InContainer: true}
	var err error
	x.Do(t, func() { child.NetNS, err = netnsInode() })
	must(t, err)
	e := Endpoint{
		ID: id, IfIndex: ChildIndex(id), IfName: "eth0", MAC: mac, HostMAC: mac, MTU: 1500,
		Addresses: wiredAddresses(2), Child: child,
	}
	w.endpoints["x"] = e
	w.node.Do(t, func() { err = w.AttachEndpoint(e) })
	must(t, err)
	hooks, err := w.HooksInContainer()
	must(t, err)
	for _, h := range hooks {
		must(t, hookIn(x, h))
	}
	addWired(t, x, "eth0", 2)
	x.Run(t, "ip", "link", "set", "eth0", "up")
	return w
}

// device is what a hook is for, in the container of newHoused.
func (h HookInContainer) device() string {
	if h.OnParent {
		return "eth1"
	}
	return "eth0"
}

// hookIn attaches a program by its number, which is all that the plugin knows of it.
func hookIn(ns *nstest.NS, h HookInContainer) error {
	link, err := ns.Handle.LinkByName(h.device())
	if err != nil {
		return err
	}
	program, err := ebpf.NewProgramFromID(ebpf.ProgramID(h.ID))
	if err != nil {
		return err
	}
	defer func() { _ = program.Close() }()
	index, parent := link.Attrs().Index, uint32(netlink.HANDLE_MIN_INGRESS)
	if h.Egress {
		parent = netlink.HANDLE_MIN_EGRESS
	}
	if err := ns.Handle.QdiscAdd(clsactQdisc(index)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact: %w", err)
	}
	return ns.Handle.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
		Name:        h.Name, DirectAction: true, Fd: program.FD(),
	})
}

// hooksOf are all programs that the kernel says are attached to these devices, in the order of hooksInContainer.
func hooksOf(t *testing.T, ns *nstest.NS) (found []HookInContainer) {
	t.Helper()
	for _, h := range []HookInContainer{{}, {Egress: true}, {OnParent: true}, {OnParent: true, Egress: true}} {
		link, err := ns.Handle.LinkByName(h.device())
		if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
			continue
		}
		must(t, err)
		parent := uint32(netlink.HANDLE_MIN_INGRESS)
		if h.Egress {
			parent = netlink.HANDLE_MIN_EGRESS
		}
		filters, err := ns.Handle.FilterList(link, parent)
		if errors.Is(err, unix.EINVAL) { // without clsact, on older kernels
			continue
		}
		must(t, err)
		for _, f := range filters {
			b := f.(*netlink.BpfFilter)
			h.Name, h.ID = b.Name, uint32(b.Id)
			found = append(found, h)
		}
	}
	return found
}

// counted are the names of all counters that are not 0.
func (w *wired) counted(t *testing.T) (names []string) {
	t.Helper()
	counters, err := w.Counters()
	must(t, err)
	for _, c := range counters {
		if c.Packets != 0 {
			names = append(names, c.Journey+" "+c.Reason)
		}
	}
	slices.Sort(names)
	return names
}

// TestChildInsideTraffic: the programs of a child whose parent is in the container, and those of the parent, are where they
// are to be, and meet what the kernel has for them: of sockets, and frames of which they can read no more than the
// Ethernet header at first. When the endpoint has gone they let nothing by.
func TestChildInsideTraffic(t *testing.T) {
	w := newHoused(t)
	x, e := w.containers["x"], w.endpoints["x"]
	want, err := w.HooksInContainer()
	must(t, err)
	if diff := cmp.Diff(want, hooksOf(t, x)); diff != "" {
		t.Errorf("attached (-want +got):\n%s", diff)
	}
	for _, way := range []struct {
		name string
		from *nstest.NS
		to   int
	}{{"to the link", x, 9}, {"of the link", w.neighbour, 2}} {
		if diff := cmp.Diff([]bool{true, true, true, true}, w.pings(t, way.from, way.to)); diff != "" {
			t.Errorf("%s, reached (-want +got):\n%s", way.name, diff)
		}
	}
	all := []string{"from_container decided", "from_container forwarded", "to_container decided", "to_container passed"}
	if diff := cmp.Diff(all, w.counted(t)); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
	if t.Failed() {
		return // all that does not come is waited for
	}
	// What each knows of the other it would ask again, in packets of which some are counted.
	for i := range wiredAddresses(2) {
		x.Run(t, "ip", "neigh", "replace", wiredAddresses(9)[i].String(), "lladdr", macOf(t, w.neighbour, "p0"), "dev", "eth0", "nud", "permanent")
		w.neighbour.Run(t, "ip", "neigh", "replace", wiredAddresses(2)[i].String(), "lladdr", e.MAC.String(), "dev", "p0", "nud", "permanent")
	}
	for i, f := range []family{v4(), v6()} {
		if !t.Run("not linear, "+f.name, func(t *testing.T) { testNonLinearInside(t, w, f, wiredAddresses(2)[i], wiredAddresses(9)[i]) }) {
			return
		}
	}
	w.node.Do(t, func() { must(t, w.DetachEndpoint(e)) })
	must(t, each(w.maps.Children, func(key maps.ChildKey, _ maps.Child) bool { t.Errorf("still in children: %v", key); return true }))
	for hook, name := range childSteps {
		var id uint32
		if err := w.maps.ChildPrograms.Lookup(hook, &id); !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Errorf("%s is still in child_programs: %v", name, err)
		}
	}
	// Of the parent's own, which has something to say of IPv6 at any time, nothing is to be counted.
	x.Run(t, "sysctl", "-qw", "net.ipv6.conf.eth1.disable_ipv6=1")
	before, onWire := w.count(t, "from_container unknown_sender"), receivedBy(t, w.neighbour, "p0")
	raw(t, x, "eth0", e, wiredAddresses(9)[0])
	// Its stack may have something to say as well, which is to come as far.
	if got := w.count(t, "from_container unknown_sender") - before; got < 1 {
		t.Errorf("of an endpoint that has gone, dropped: %d, want 1 or more", got)
	}
	if got := receivedBy(t, w.neighbour, "p0") - onWire; got != 0 {
		t.Errorf("of an endpoint that has gone, on the wire: %d, want 0", got)
	}
	// What the last child takes with it, and what the plugin takes from the parent then.
	x.Run(t, "ip", "link", "del", "eth0")
	x.Run(t, "tc", "qdisc", "del", "dev", "eth1", "clsact")
	if left := hooksOf(t, x); len(left) != 0 {
		t.Errorf("attached still: %v", left)
	}
}

// receivedBy are the frames that a device has been sent.
func receivedBy(t *testing.T, ns *nstest.NS, device string) uint64 {
	t.Helper()
	link, err := ns.Handle.LinkByName(device)
	must(t, err)
	return link.Attrs().Statistics.RxPackets
}

func macOf(t *testing.T, ns *nstest.NS, device string) string {
	t.Helper()
	link, err := ns.Handle.LinkByName(device)
	must(t, err)
	return link.Attrs().HardwareAddr.String()
}

// testNonLinearInside: frames of which only the Ethernet header is linear, by the child and by its parent.
func testNonLinearInside(t *testing.T, w *wired, f family, own, outside netip.Addr) {
	x, e := w.containers["x"], w.endpoints["x"]
	parent, err := x.Handle.LinkByName("eth1")
	must(t, err)
	neighbour, err := w.neighbour.Handle.LinkByName("p0")
	must(t, err)
	parentMAC, stranger := parent.Attrs().HardwareAddr, neighbour.Attrs().HardwareAddr
	onWire, inX := listenAt(t, w.neighbour, "p0"), listenRaw(t, x)
	policy := Policy{
		Active: true, Subjects: map[uint16]Subject{e.ID: {Identity: ofX, Ingress: setOne, Egress: setOne}},
		Identities: map[netip.Prefix]uint32{}, Entries: map[PolicyPair][]PolicyRange{},
	}
	must(t, w.ReconcilePolicy(policy.services(0)))
	defer func() { must(t, w.ReconcilePolicy(Policy{})) }()
	// No stack answers what nobody serves: of that nothing is to be counted.
	host := func(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }
	w.neighbour.Run(t, "ip", "route", "add", "blackhole", host(own))
	x.Run(t, "ip", "route", "add", "blackhole", host(outside))
	for _, name := range []string{"UDP", "TCP"} {
		layers := nonLinear()[name]
		out := func(mac net.HardwareAddr, from, to uint16) []byte {
			return frame(mac, stranger, ip(own, outside, 64, layers(from, to)...)...)
		}
		in := func(mac net.HardwareAddr, from, to uint16) []byte {
			return frame(stranger, mac, ip(outside, own, 64, layers(from, to)...)...)
		}
		for _, way := range []struct {
			device string
			mac    net.HardwareAddr
			port   uint16
		}{{"eth0", e.MAC, low}, {"eth1", parentMAC, low + 1}} {
			ok := t.Run(name+", by "+way.device, func(t *testing.T) {
				sendNonLinear(t, x, way.device, out(way.mac, way.port, server+1))
				sendNonLinear(t, x, way.device, out(way.mac, way.port, server))
				onWire.wantHeard(t, "to the wire", out(e.MAC, way.port, server), f, out(e.MAC, way.port, server+1), out(way.mac, way.port, server+1))
				denied, passed := w.count(t, "to_container policy_ingress"), w.count(t, "to_container passed")
				sendNonLinear(t, w.neighbour, "p0", in(way.mac, way.port, server+1))
				sendNonLinear(t, w.neighbour, "p0", in(way.mac, way.port, server))
				inX.wantHeard(t, "of the wire", in(e.MAC, way.port, server), f)
				nodetest.Eventually(t, "judged", func() error {
					return nodetest.Unlike([2]uint64{w.count(t, "to_container policy_ingress") - denied, w.count(t, "to_container passed") - passed}, [2]uint64{1, 1})
				})
			})
			if !ok {
				return // each of the others would be waited for
			}
		}
	}
}
