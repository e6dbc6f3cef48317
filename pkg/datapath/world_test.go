// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// node is a network namespace with a loaded datapath, three endpoints, an uplink
// and a device that is neither. The endpoints' devices are down, so that nothing
// but the packets under test is counted.
type node struct {
	*Datapath
	ns     *nstest.NS
	config Config
	// a and b are masqueraded, c is not and has a smaller MTU.
	a, b, c Endpoint
	uplink  Uplink
	other   netlink.Link
	// preludes run the programs, by name.
	preludes map[string]*prelude
	// tally is what all runs have added to the counters of their journeys, by journey and name; nil where
	// the stack has real packets for the programs as well.
	tally map[string]maps.Count
}

// family is one address family of the world that the tests live in.
type family struct {
	name string
	// a, b and c are the endpoints' addresses, unknown lies in their range.
	a, b, c, unknown netip.Addr
	// host is the uplink's address, router the next hop of the default route.
	host, router netip.Addr
	// world lies behind router, neighbour on the uplink's own link, narrow behind
	// router by a route with an MTU of 1300, elsewhere behind the device other.
	world, neighbour, narrow, elsewhere netip.Addr
	// multicast is a group, martian what may be on no wire, linkLocal one of those.
	multicast, martian, linkLocal netip.Addr
	// echo and unreachable are the numbers of the ICMP protocol.
	icmp uint8
}

// v4 and v6 are the two families.
func v4() family {
	return family{
		name: "IPv4",
		a:    addr("10.10.0.2"), b: addr("10.10.0.3"), c: addr("10.10.0.4"), unknown: addr("10.10.0.99"),
		host: addr("192.0.2.1"), router: addr("192.0.2.254"),
		world: addr("198.51.100.9"), neighbour: addr("192.0.2.77"), narrow: addr("198.51.100.200"), elsewhere: addr("203.0.113.9"),
		multicast: addr("239.1.2.3"), martian: addr("127.0.0.5"), linkLocal: addr("169.254.7.7"),
		icmp: unix.IPPROTO_ICMP,
	}
}

func v6() family {
	return family{
		name: "IPv6",
		a:    addr("fd00:10::2"), b: addr("fd00:10::3"), c: addr("fd00:10::4"), unknown: addr("fd00:10::99"),
		host: addr("2001:db8::1"), router: addr("2001:db8::fe"),
		world: addr("2001:db8:1::9"), neighbour: addr("2001:db8::77"), narrow: addr("2001:db8:1::c8"), elsewhere: addr("2001:db8:3::9"),
		multicast: addr("ff0e::123"), martian: addr("::1"), linkLocal: addr("fe80::7"),
		icmp: unix.IPPROTO_ICMPV6,
	}
}

// nobody is the unspecified address, which routes lead to the world.
func (f family) nobody() netip.Addr {
	if f.v6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func (f family) v6() bool { return f.a.Is6() }

// link is how many bits the addresses of the uplink's link have in common.
func (f family) link() int {
	bits := f.host.BitLen()
	return bits - 8*bits/32
}

// eachFamily runs a test for both families, which take the same paths of the same programs: where
// all is emulated, for one. What has to see both on each kernel is for bothFamilies.
func eachFamily(t *testing.T, test func(*testing.T, family)) {
	t.Helper()
	for i, f := range []family{v4(), v6()} {
		t.Run(f.name, func(t *testing.T) {
			nstest.Deal(t, i)
			test(t, f)
		})
	}
}

func bothFamilies(t *testing.T, test func(*testing.T, family)) {
	t.Helper()
	for _, f := range []family{v4(), v6()} {
		t.Run(f.name, func(t *testing.T) { test(t, f) })
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// routerMAC is the router's, and of every neighbour on the uplink's link.
func routerMAC() net.HardwareAddr { return packet.MAC("02:00:00:00:fe:fe") }

// newNode makes a node with the configuration, in which it fills in the default of
// MasqueradePorts, and sizes of maps that are walked in no time. Namespace and devices are
// the test's own, programs and maps are borrowed. The test has to be alone: newNodeBeside is
// for those that run side by side.
func newNode(t testing.TB, cfg Config) *node {
	t.Helper()
	n := newNodeBeside(t, cfg)
	n.ns.Enter(t)
	return n
}

func newNodeBeside(t testing.TB, cfg Config) *node {
	t.Helper()
	if cfg.MasqueradePorts == [2]uint16{} {
		cfg.MasqueradePorts = [2]uint16{40960, 65535}
	}
	const entries = 4096
	cfg.FlowsMax, cfg.TranslationsMax = cmp.Or(cfg.FlowsMax, entries), cmp.Or(cfg.TranslationsMax, entries)
	n := &node{ns: nstest.New(t, "node"), config: cfg, tally: make(map[string]maps.Count)}
	far := nstest.New(t, "far")
	for _, ns := range []*nstest.NS{n.ns, far} {
		ns.Do(t, func() {
			for _, setting := range []struct{ name, value string }{
				{"ipv4/ip_forward", "1"},
				{"ipv6/conf/all/forwarding", "1"},
				{"ipv6/conf/default/accept_dad", "0"},
				{"ipv6/conf/default/addr_gen_mode", "1"}, // none
			} {
				if err := os.WriteFile(filepath.Join("/proc/sys/net", setting.name), []byte(setting.value), 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	devices := make(map[string]netlink.Link)
	for _, name := range []string{"tdla", "tdlb", "tdlc", "up0", "other0"} {
		nstest.Veth(t, n.ns, name, far, name)
		device, err := n.ns.Handle.LinkByName(name)
		must(t, err)
		if name != "up0" && name != "other0" {
			must(t, n.ns.Handle.LinkSetDown(device))
		}
		devices[name] = device
	}
	up0, other := devices["up0"], devices["other0"]
	n.other = other
	for _, f := range []family{v4(), v6()} {
		bits := f.host.BitLen()
		must(t, n.ns.Handle.AddrAdd(up0, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(f.host, f.link())), Flags: unix.IFA_F_NODAD}))
		// The kernel makes the local route of IPv6 a moment after it has said yes.
		nodetest.Eventually(t, "local route", func() error {
			routes, err := n.ns.Handle.RouteGet(f.host.AsSlice())
			if err == nil && routes[0].Type != unix.RTN_LOCAL {
				err = errors.New("not there yet")
			}
			return err
		})
		for _, neighbour := range []netip.Addr{f.router, f.neighbour} {
			must(t, n.ns.Handle.NeighSet(&netlink.Neigh{
				LinkIndex: up0.Attrs().Index, State: netlink.NUD_PERMANENT,
				IP: neighbour.AsSlice(), HardwareAddr: routerMAC(),
			}))
		}
		everything, _ := f.host.Prefix(0)
		pods, _ := f.a.Prefix(bits - 8)
		for _, route := range []netlink.Route{
			{Dst: ipNet(everything), Gw: f.router.AsSlice()},
			{Dst: ipNet(netip.PrefixFrom(f.narrow, bits)), Gw: f.router.AsSlice(), MTU: 1300, MTULock: true},
			{Dst: ipNet(netip.PrefixFrom(f.elsewhere, bits)), LinkIndex: other.Attrs().Index},
			{Dst: ipNet(pods), Type: unix.RTN_UNREACHABLE},
		} {
			must(t, n.ns.Handle.RouteAdd(&route))
		}
	}
	n.uplink = Uplink{
		Name: "up0", IfIndex: up0.Attrs().Index, MTU: 1500, MAC: up0.Attrs().HardwareAddr,
		IPv4: v4().host, IPv6: v6().host,
	}
	endpoint := func(id uint16, name string, mtu int, masquerade bool, addresses ...netip.Addr) Endpoint {
		attrs := devices[name].Attrs()
		return Endpoint{
			ID: id, IfIndex: attrs.Index, IfName: name, HostMAC: attrs.HardwareAddr,
			MAC:       net.HardwareAddr{2, 0, 0, 0, 0xc0, byte(id)},
			Addresses: addresses, MTU: mtu, Masquerade: masquerade,
		}
	}
	n.a = endpoint(101, "tdla", 1500, true, v4().a, v6().a)
	n.b = endpoint(102, "tdlb", 1500, true, v4().b, v6().b)
	n.c = endpoint(103, "tdlc", 1400, false, v4().c, v6().c)
	n.Datapath = borrow(t, cfg).datapath(t)
	n.do(t, func() error {
		for _, e := range []Endpoint{n.a, n.b, n.c} {
			if err := n.AttachEndpoint(e); err != nil {
				return err
			}
		}
		return n.ReconcileUplinks([]Uplink{n.uplink})
	})
	// Whoever borrows them next is shown no packet of this node's devices.
	t.Cleanup(func() {
		n.do(t, func() error {
			attached, err := n.hooks.list()
			for _, a := range attached {
				err = errors.Join(err, n.hooks.of(a).detach(a))
			}
			return errors.Join(err, n.hooks.endpoints.close(), n.hooks.uplinks.close())
		})
	})
	n.preludes = newPreludes(t, n.Datapath)
	t.Cleanup(func() { n.wantTally(t) })
	return n
}

// do calls f in the node's namespace.
func (n *node) do(t testing.TB, f func() error) {
	var err error
	n.ns.Do(t, func() { err = f() })
	if err != nil {
		t.Helper()
		must(t, err)
	}
}

// restart does with the endpoints of a node what an agent does that starts.
func restart(d *Datapath, endpoints []Endpoint) error {
	return errors.Join(d.PruneEndpoints(endpoints), d.AttachEndpoints(endpoints))
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// must ends the test with an error, and with all that the verifier has to say of a program that it refuses.
func must(t testing.TB, err error) {
	if err == nil {
		return
	}
	t.Helper() // which costs more than all else here
	if refused := (*ebpf.VerifierError)(nil); errors.As(err, &refused) {
		t.Logf("%+v", refused)
	}
	t.Fatal(err)
}
