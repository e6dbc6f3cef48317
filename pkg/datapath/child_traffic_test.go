// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// wired is a node whose parent p0 is on one wire with a neighbour, and has children whose
// frames are the kernel's.
type wired struct {
	*Datapath
	node, neighbour *nstest.NS
	containers      map[string]*nstest.NS
	endpoints       map[string]Endpoint
}

// wiredAddresses are those of IPv4 and IPv6 of one on the wire.
func wiredAddresses(i int) []netip.Addr {
	return []netip.Addr{addr(fmt.Sprintf("10.9.0.%d", i)), addr(fmt.Sprintf("fd00:9::%d", i))}
}

func addWired(t *testing.T, ns *nstest.NS, device string, i int) {
	t.Helper()
	for _, a := range wiredAddresses(i) {
		bits := a.BitLen() - 8
		if a.Is6() {
			bits = 64
		}
		ns.Run(t, "ip", "addr", "add", netip.PrefixFrom(a, bits).String(), "dev", device, "nodad")
	}
}

func newWired(t *testing.T, children map[string]Child) *wired {
	t.Helper()
	nstest.Root(t)
	w := &wired{
		node: nstest.New(t, "node"), neighbour: nstest.New(t, "wire"),
		containers: make(map[string]*nstest.NS), endpoints: make(map[string]Endpoint),
	}
	nstest.Veth(t, w.node, "p0", w.neighbour, "p0")
	addWired(t, w.node, "p0", 1)
	addWired(t, w.neighbour, "p0", 9)
	w.node.Run(t, "ip", "link", "set", "lo", "up")
	parent, err := w.node.Handle.LinkByName("p0")
	must(t, err)
	w.open(t)
	i := 1
	for _, name := range []string{"x", "y", "z"} {
		child, ok := children[name]
		if !ok {
			continue
		}
		i++
		ns := nstest.New(t, name)
		w.containers[name] = ns
		mac := net.HardwareAddr{2, 0, 0, 0, 0xcd, byte(i)}
		w.node.Run(t, "ip", "link", "add", "link", "p0", "name", "tmp0", "address", mac.String(), "type", "macvlan", "mode", "vepa")
		w.node.Run(t, "ip", "link", "set", "tmp0", "netns", ns.Name)
		ns.Run(t, "ip", "link", "set", "tmp0", "name", "eth0")
		addWired(t, ns, "eth0", i)
		child.Parent = parent.Attrs().Index
		ns.Do(t, func() { child.NetNS, err = netnsInode() })
		must(t, err)
		e := Endpoint{
			ID: uint16(i), IfIndex: ChildIndex(uint16(i)), IfName: "p0", MAC: mac, HostMAC: parent.Attrs().HardwareAddr,
			MTU: 1500, Addresses: wiredAddresses(i), Child: &child,
		}
		w.endpoints[name] = e
		w.node.Do(t, func() { err = w.AttachEndpoint(e) })
		must(t, err)
		ns.Run(t, "ip", "link", "set", "eth0", "up")
	}
	w.node.Do(t, func() { err = w.ReconcileHostAddresses(wiredAddresses(1)) })
	must(t, err)
	return w
}

// open has the node's datapath there until the test ends.
func (w *wired) open(t *testing.T) {
	t.Helper()
	root := filepath.Join(nstest.BPFFS(t), "tendril")
	w.node.Do(t, func() {
		var err error
		w.Datapath, err = Open(Config{Root: root, Masquerade: true, FlowsMax: 1024, TranslationsMax: 1024})
		must(t, err)
	})
	t.Cleanup(func() {
		must(t, w.Close())
		w.node.Do(t, func() { must(t, Remove(root)) })
	})
}

// pings tells whether one reaches another by both families, with a packet and with one that
// is sent in fragments.
func (w *wired) pings(t *testing.T, from *nstest.NS, to int) (reached []bool) {
	t.Helper()
	for _, a := range wiredAddresses(to) {
		for _, size := range []string{"10", "4000"} {
			one := from.Command("ping", "-c", "1", "-W", "1", "-s", size, a.String()).Run() == nil
			reached = append(reached, one)
			if !one {
				break
			}
		}
	}
	return reached
}

func TestChildTraffic(t *testing.T) {
	nstest.Halve(t, 0)
	w := newWired(t, map[string]Child{
		"x": {Bridged: true, HostAccess: true}, "y": {Bridged: true, HostAccess: true}, "z": {},
	})
	x, y, z := w.containers["x"], w.containers["y"], w.containers["z"]
	type call struct {
		name string
		from *nstest.NS
		to   int
	}
	for _, calls := range []struct {
		name string
		want bool
		all  []call
	}{
		{"reached", true, []call{
			{"child to child", x, 3},
			{"child to child back", y, 2},
			{"child to host", x, 1},
			{"host to child", w.node, 3},
			{"child to wire", x, 9},
			{"wire to child", w.neighbour, 3},
			{"alone to wire", z, 9},
			{"wire to alone", w.neighbour, 4},
		}},
		{"not reached", false, []call{
			{"child to alone", x, 4},
			{"alone to child", z, 2},
			{"alone to host", z, 1},
			{"host to alone", w.node, 4},
		}},
	} {
		t.Run(calls.name, func(t *testing.T) {
			for _, c := range calls.all {
				t.Run(c.name, func(t *testing.T) {
					if !calls.want {
						t.Parallel() // each is waited for
					}
					for i, reached := range w.pings(t, c.from, c.to) {
						if reached != calls.want {
							t.Errorf("ping %d: reached %t, want %t", i, reached, calls.want)
						}
					}
				})
			}
		})
	}
	t.Run("forwarded by a child", func(t *testing.T) { testChildForwards(t, w) })
	t.Run("forged", func(t *testing.T) { testChildSockets(t, w) })
	t.Run("forged by a ring", func(t *testing.T) { testChildRing(t, w) })
	t.Run("not linear", func(t *testing.T) { testNonLinearChildren(t, w) })
	t.Run("last child", func(t *testing.T) {
		for _, e := range w.endpoints {
			var err error
			w.node.Do(t, func() { err = w.DetachEndpoint(e) })
			must(t, err)
		}
		attached, err := w.hooks.uplinks.list()
		must(t, err)
		if len(attached) != 0 {
			t.Errorf("attached still: %v", attached)
		}
		must(t, each(w.maps.Children, func(key maps.ChildKey, _ maps.Child) bool { t.Errorf("still in children: %v", key); return true }))
	})
}

// testChildForwards: what a container's stack forwards has no socket, and is the container's by
// its route.
func testChildForwards(t *testing.T, w *wired) {
	x, inner, behind := w.containers["x"], nstest.New(t, "inner"), addr("10.9.0.66")
	e := w.endpoints["x"]
	e.Addresses = append(slices.Clone(e.Addresses), behind)
	w.node.Do(t, func() { must(t, errors.Join(w.DetachEndpoint(e), w.AttachEndpoint(e))) })
	w.endpoints["x"] = e
	nstest.Veth(t, x, "in0", inner, "eth0")
	x.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	x.Run(t, "ip", "route", "add", behind.String(), "dev", "in0")
	x.Run(t, "ip", "neigh", "add", behind.String(), "lladdr", "02:00:00:00:00:66", "dev", "in0")
	link, err := x.Handle.LinkByName("in0")
	must(t, err)
	inner.Run(t, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:66")
	inner.Run(t, "ip", "addr", "add", behind.String()+"/8", "dev", "eth0")
	inner.Run(t, "ip", "neigh", "add", wiredAddresses(9)[0].String(), "lladdr", link.Attrs().HardwareAddr.String(), "dev", "eth0")
	w.neighbour.Run(t, "ip", "route", "add", behind.String(), "via", wiredAddresses(2)[0].String())
	inner.Run(t, "ping", "-c", "1", "-W", "5", wiredAddresses(9)[0].String())
}

// testChildSockets: a frame with the MAC and the address of another is none of its, whatever
// process writes it, and one with its own is.
func testChildSockets(t *testing.T, w *wired) {
	x, y := w.endpoints["x"], w.endpoints["y"]
	host := Endpoint{MAC: x.HostMAC, Addresses: wiredAddresses(1)}
	for _, c := range []struct {
		name       string
		from       *nstest.NS
		device     string
		as         Endpoint
		wantForged uint64
	}{
		{"as itself", w.containers["x"], "eth0", x, 0},
		{"as a sibling", w.containers["x"], "eth0", y, 1},
		{"as the host", w.containers["x"], "eth0", host, 1},
		{"as a stranger", w.containers["x"], "eth0", Endpoint{MAC: stationMAC(), Addresses: wiredAddresses(77)}, 1},
		{"the host as itself", w.node, "p0", host, 0},
		{"the host as a child", w.node, "p0", x, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := w.count(t, "from_container source_mac")
			raw(t, c.from, c.device, c.as, wiredAddresses(9)[0])
			if got := w.count(t, "from_container source_mac") - before; got != c.wantForged {
				t.Errorf("%d were counted as forged, want %d", got, c.wantForged)
			}
		})
	}
}

// testChildRing: the same, of a process whose frames lose its socket on the way.
func testChildRing(t *testing.T, w *wired) {
	x := w.containers["x"]
	for name, as := range map[string]Endpoint{
		"as a sibling": w.endpoints["y"], "as the host": {MAC: w.endpoints["x"].HostMAC, Addresses: wiredAddresses(1)},
		"as a stranger": {MAC: stationMAC(), Addresses: wiredAddresses(77)},
	} {
		t.Run(name, func(t *testing.T) {
			before := w.count(t, "from_container source_mac")
			ringed(t, x, "eth0", as, wiredAddresses(9)[0])
			if got := w.count(t, "from_container source_mac") - before; got != 2 {
				t.Errorf("%d fragments were counted as forged, want 2", got)
			}
		})
	}
}

// TestChildJumbo: where frames are large, what has lost its socket may look like ARP of the kernel.
func TestChildJumbo(t *testing.T) {
	nstest.Halve(t, 1)
	w := newWired(t, map[string]Child{"x": {Bridged: true, HostAccess: true}})
	x := w.containers["x"]
	w.neighbour.Run(t, "ip", "link", "set", "p0", "mtu", "9000")
	w.node.Run(t, "ip", "link", "set", "p0", "mtu", "9000")
	x.Run(t, "ip", "link", "set", "eth0", "mtu", "9000")
	for name, as := range map[string]packet.Station{
		"as the host":   {MAC: w.endpoints["x"].HostMAC, IP: wiredAddresses(1)[0]},
		"as a stranger": {MAC: stationMAC(), IP: wiredAddresses(1)[0]},
	} {
		t.Run(name, func(t *testing.T) {
			before := w.count(t, "from_container source_mac")
			ringedARP(t, x, "eth0", as, wiredAddresses(9)[0])
			if got := w.count(t, "from_container source_mac") - before; got != 2 {
				t.Errorf("%d fragments were counted as forged, want 2", got)
			}
		})
	}
}

// TestChildOnUplink: of a parent that is an uplink, too, the uplink's program does not believe
// what a child sends before it was judged; whichever of them was attached first.
func TestChildOnUplink(t *testing.T) {
	nstest.LeaveTo(t, "6.12")
	w := newWired(t, map[string]Child{"x": {Bridged: true, HostAccess: true}})
	x := w.endpoints["x"]
	routed := addr("10.10.0.2")
	must(t, w.maps.Endpoints.Put(maps.NewAddress(routed), maps.Endpoint{Ifindex: 99, Id: 50, Mtu: 1500, Flags: maps.EndpointMasquerade}))
	forged := Endpoint{MAC: x.MAC, Addresses: []netip.Addr{routed}}
	uplink := Uplink{Name: "p0", IfIndex: x.Child.Parent, MTU: 1500, MAC: x.HostMAC, IPv4: wiredAddresses(1)[0], IPv6: wiredAddresses(1)[1]}
	check := func(t *testing.T) {
		before := w.count(t, "from_container source_address")
		raw(t, w.containers["x"], "eth0", forged, wiredAddresses(9)[0])
		if got := w.count(t, "from_container source_address") - before; got != 1 {
			t.Errorf("%d were counted as forged, want 1", got)
		}
		must(t, each(w.maps.Translations, func(key maps.FlowKey, _ maps.Translation) bool { t.Errorf("translated: %v", key); return true }))
	}
	w.node.Do(t, func() { must(t, w.ReconcileUplinks([]Uplink{uplink})) })
	t.Run("parent first", check)
	w.node.Do(t, func() { must(t, errors.Join(w.DetachEndpoint(x), w.AttachEndpoint(x))) })
	t.Run("uplink first", check)
	t.Run("not linear, to a mapped port", func(t *testing.T) { testNonLinearChildPort(t, w, x) })
}

// raw has a process send a datagram in the name of somebody.
func raw(t *testing.T, from *nstest.NS, device string, as Endpoint, to netip.Addr) {
	t.Helper()
	fd, ifindex := packetSocket(t, from, device)
	forged := frame(as.MAC, routerMAC(), ip(as.Addresses[0], to, 64, udp(inside, server)...)...)
	// ENOBUFS: dropped before it left the sender's side.
	if err := unix.Sendto(fd, forged, 0, &unix.SockaddrLinklayer{Ifindex: ifindex}); err != nil && !errors.Is(err, unix.ENOBUFS) {
		t.Fatal(err)
	}
}

// count reads a counter, named with its journey.
func (w *wired) count(t *testing.T, name string) uint64 {
	t.Helper()
	counters, err := w.Counters()
	must(t, err)
	for _, c := range counters {
		if c.Journey+" "+c.Reason == name {
			return c.Packets
		}
	}
	return 0
}
