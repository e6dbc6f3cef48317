// SPDX-License-Identifier: Apache-2.0

package wiring_test

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// pair is a node and a container, each with its open namespace.
type pair struct {
	nodeNS, containerNS *nstest.NS
	node, container     *wiring.Namespace
}

func newPair(t *testing.T) pair {
	t.Helper()
	p := pair{nodeNS: nstest.New(t, "node"), containerNS: nstest.New(t, "c")}
	p.node, p.container = open(t, p.nodeNS.Path), open(t, p.containerNS.Path)
	// A node has a device before it has a container, and the two ends of that have other indices.
	first := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "first"}}
	must(t, p.nodeNS.Handle.LinkAdd(first))
	must(t, p.nodeNS.Handle.LinkDel(first))
	return p
}

// another is a second container of the node.
func (p pair) another(t *testing.T, name string) pair {
	t.Helper()
	other := pair{nodeNS: p.nodeNS, node: p.node, containerNS: nstest.New(t, name)}
	other.container = open(t, other.containerNS.Path)
	return other
}

func open(t *testing.T, path string) *wiring.Namespace {
	t.Helper()
	n, err := wiring.Open(path)
	must(t, err)
	t.Cleanup(func() { must(t, n.Close()) })
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testVeth() wiring.Veth {
	return wiring.Veth{
		HostName: "tdl0123456789ab", Name: "eth0", MTU: 1400,
		HostMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2},
	}
}

// testRouted has both families, and routes with all that a route can have.
func testRouted() wiring.Routed {
	gw4, gw6 := netip.MustParseAddr("10.10.0.1"), netip.MustParseAddr("fd00:10::1")
	return wiring.Routed{
		MTU: 1400,
		Addresses: []wiring.Address{
			{Addr: netip.MustParseAddr("10.10.0.5"), Gateway: gw4},
			{Addr: netip.MustParseAddr("fd00:10::5"), Gateway: gw6},
		},
		Routes: []wiring.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: gw4},
			{Dst: netip.MustParsePrefix("::/0"), Gateway: gw6},
			{Dst: netip.MustParsePrefix("192.0.2.0/24"), Gateway: gw4, MTU: 1300, AdvMSS: 1200, Priority: 77},
			{Dst: netip.MustParsePrefix("2001:db8::/32"), Gateway: gw6, MTU: 1300, AdvMSS: 1200, Priority: 77},
			{Dst: netip.MustParsePrefix("198.51.100.0/24"), Gateway: gw4, Table: 1000},
			{Dst: netip.MustParsePrefix("203.0.113.0/24"), Scope: 253},
		},
	}
}

func (p pair) wire(t *testing.T, v wiring.Veth, r wiring.Routed) (wiring.Links, []wiring.Route) {
	t.Helper()
	links, err := wiring.CreateVeth(p.node, p.container, v)
	must(t, err)
	routes, err := wiring.Configure(p.node, p.container, links, r, netip.Addr{})
	must(t, err)
	must(t, wiring.Settle(p.node, p.container, links, r))
	return links, routes
}

func TestWire(t *testing.T) {
	p := newPair(t)
	v, r := testVeth(), testRouted()
	links, routes := p.wire(t, v, r)
	if diff := cmp.Diff(r.Routes, routes, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	for _, side := range []struct {
		ns    *nstest.NS
		name  string
		index int
	}{{p.nodeNS, v.HostName, links.HostIndex}, {p.containerNS, v.Name, links.Index}} {
		link, err := side.ns.Handle.LinkByName(side.name)
		must(t, err)
		if link.Attrs().Index != side.index {
			t.Errorf("index of %s: want %d, got %d", side.name, link.Attrs().Index, side.index)
		}
	}
	must(t, wiring.Check(p.node, p.container, v, r))

	// Both addresses work at once, in both directions, without a neighbour
	// ever being looked for.
	p.containerNS.Run(t, "ping", "-c1", "-W2", "10.10.0.1")
	p.containerNS.Run(t, "ping", "-c1", "-W2", "fd00:10::1")
	p.nodeNS.Run(t, "ping", "-c1", "-W2", "10.10.0.5")
	p.nodeNS.Run(t, "ping", "-c1", "-W2", "fd00:10::5")
	if got := p.nodeNS.Run(t, "ip", "-6", "addr", "show", "dev", v.HostName, "scope", "link"); got != "" {
		t.Errorf("the host's side has a link-local address:\n%s", got)
	}

	must(t, wiring.RemoveVeth(p.node, v.HostName))
	must(t, wiring.RemoveVeth(p.node, v.HostName)) // again
	for _, ns := range []*nstest.NS{p.nodeNS, p.containerNS} {
		links, err := ns.Handle.LinkList()
		must(t, err)
		if len(links) != 1 {
			t.Errorf("%s has %d links, want only lo", ns.Name, len(links))
		}
		for _, family := range []string{"-4", "-6"} {
			if left := ns.Run(t, "ip", family, "route", "show", "table", "all", "proto", "84"); left != "" {
				t.Errorf("routes left in %s:\n%s", ns.Name, left)
			}
		}
	}
}

func TestCheckNamesWhatDiffers(t *testing.T) {
	nstest.LeaveTo(t, "6.12")
	p := newPair(t)
	v, r := testVeth(), testRouted()
	tests := []spoiled{
		{
			"address", "c",
			[]string{"addr", "del", "10.10.0.5/32", "dev", "eth0"},
			// The kernel drops all of IPv4 with a link's last address.
			[]string{
				"address 10.10.0.5/32 is missing on eth0 in the container",
				"route 10.10.0.1/32 is missing on eth0 in the container",
				"permanent neighbour 10.10.0.1 is missing on eth0 in the container",
				"route 0.0.0.0/0 via 10.10.0.1 is missing on eth0 in the container",
				"route 192.0.2.0/24 via 10.10.0.1 metric 77 mtu 1300 advmss 1200 is missing on eth0 in the container",
				"route 198.51.100.0/24 via 10.10.0.1 table 1000 is missing on eth0 in the container",
				"route 203.0.113.0/24 scope 253 is missing on eth0 in the container",
			},
		},
		{
			"IPv6 address", "c",
			[]string{"addr", "del", "fd00:10::5/128", "dev", "eth0"},
			[]string{"address fd00:10::5/128 is missing on eth0 in the container"},
		},
		{
			"default route", "c",
			[]string{"route", "del", "default"},
			[]string{"route 0.0.0.0/0 via 10.10.0.1 is missing on eth0 in the container"},
		},
		{
			"metric", "c",
			[]string{"route", "change", "192.0.2.0/24", "via", "10.10.0.1", "metric", "77", "mtu", "1299"},
			[]string{"route 192.0.2.0/24 via 10.10.0.1 metric 77 mtu 1300 advmss 1200 is missing on eth0 in the container"},
		},
		{
			"table", "c",
			[]string{"route", "del", "198.51.100.0/24", "table", "1000"},
			[]string{"route 198.51.100.0/24 via 10.10.0.1 table 1000 is missing on eth0 in the container"},
		},
		{
			"mtu", "c",
			[]string{"link", "set", "eth0", "mtu", "1390"},
			[]string{"mtu of eth0 in the container is 1390, not 1400"},
		},
		{
			"MAC", "c",
			[]string{"link", "set", "eth0", "address", "02:00:00:00:00:99"},
			// The kernel forgets a link's neighbours with its MAC.
			[]string{
				"MAC of eth0 in the container is 02:00:00:00:00:99, not 02:00:00:00:00:02",
				"permanent neighbour 10.10.0.1 is missing on eth0 in the container",
				"permanent neighbour fd00:10::1 is missing on eth0 in the container",
			},
		},
		{
			"neighbour", "c",
			[]string{"neigh", "del", "10.10.0.1", "dev", "eth0"},
			[]string{"permanent neighbour 10.10.0.1 is missing on eth0 in the container"},
		},
		{
			"neighbour's MAC", "c",
			[]string{"neigh", "replace", "fd00:10::1", "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "permanent"},
			[]string{"MAC of neighbour fd00:10::1 on eth0 in the container is 02:00:00:00:00:99, not 02:00:00:00:00:01"},
		},
		{
			"host route", "node",
			[]string{"route", "del", "10.10.0.5/32"},
			[]string{"route 10.10.0.5/32 is missing on tdl0123456789ab on the host"},
		},
		{
			"host IPv6 route", "node",
			[]string{"route", "del", "fd00:10::5/128"},
			[]string{"route fd00:10::5/128 is missing on tdl0123456789ab on the host"},
		},
		{
			"host gateway address", "node",
			[]string{"addr", "del", "fd00:10::1/128", "dev", "tdl0123456789ab"},
			[]string{"gateway address fd00:10::1/128 is missing on tdl0123456789ab on the host"},
		},
		{
			"host neighbour", "node",
			[]string{"neigh", "del", "10.10.0.5", "dev", "tdl0123456789ab"},
			[]string{"permanent neighbour 10.10.0.5 is missing on tdl0123456789ab on the host"},
		},
		{
			"host mtu", "node",
			[]string{"link", "set", "tdl0123456789ab", "mtu", "1390"},
			[]string{"mtu of tdl0123456789ab on the host is 1390, not 1400"},
		},
		{
			"container link renamed", "c",
			// Before Linux 6.2 a link must be down for that.
			[]string{"link", "set", "eth0", "down", "&&", "ip", "link", "set", "eth0", "name", "eth9"},
			[]string{"link eth0 is missing in the container"},
		},
		{
			"pair gone", "node",
			[]string{"link", "del", "tdl0123456789ab"},
			[]string{"link eth0 is missing in the container", "link tdl0123456789ab is missing on the host"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p.wire(t, v, r)
			defer func() { must(t, wiring.RemoveVeth(p.node, v.HostName)) }()
			test.check(t, p, func() error { return wiring.Check(p.node, p.container, v, r) })
		})
	}
}

// spoiled is what somebody does to what was wired, and what a check says then.
type spoiled struct {
	name string
	// where is "c" or "node", then follow arguments of ip(8).
	where string
	spoil []string
	want  []string
}

func (s spoiled) check(t *testing.T, p pair, check func() error) {
	t.Helper()
	must(t, check())
	ns := p.containerNS
	if s.where == "node" {
		ns = p.nodeNS
	}
	ns.Run(t, "sh", "-c", "ip "+strings.Join(s.spoil, " "))
	var mismatch *wiring.MismatchError
	if err := check(); !errors.As(err, &mismatch) {
		t.Fatalf("want a MismatchError, got %v", err)
	}
	if diff := cmp.Diff(s.want, mismatch.Differences); diff != "" {
		t.Errorf("differences (-want +got):\n%s", diff)
	}
}

func TestNamesTaken(t *testing.T) {
	p := newPair(t)
	v := testVeth()
	for _, test := range []struct {
		ns         *nstest.NS
		name, want string
	}{
		{p.containerNS, "eth0", "create eth0 in the container"},
		{p.nodeNS, v.HostName, "create tdl0123456789ab in the host"},
	} {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = test.name
		other := &netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}
		must(t, test.ns.Handle.LinkAdd(other))
		_, err := wiring.CreateVeth(p.node, p.container, v)
		if !errors.Is(err, wiring.ErrTaken) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("want ErrTaken with %q, got %v", test.want, err)
		}
		must(t, test.ns.Handle.LinkDel(other))
	}
	exists, err := wiring.LinkExists(p.node, v.HostName)
	must(t, err)
	if exists {
		t.Error("a failed CreateVeth left its link")
	}
}

// A container may have been given net.ipv6.conf.*.disable_ipv6=1, and so may
// the node.
func TestIPv6DisabledByDefault(t *testing.T) {
	p := newPair(t)
	for _, ns := range []*nstest.NS{p.nodeNS, p.containerNS} {
		ns.Do(t, func() {
			for _, which := range []string{"all", "default"} {
				must(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", []byte("1"), 0))
			}
		})
	}
	p.wire(t, testVeth(), testRouted())
	p.containerNS.Run(t, "ping", "-c1", "-W2", "fd00:10::1")
	for _, setting := range []struct {
		ns   *nstest.NS
		path string
	}{{p.nodeNS, "tdl0123456789ab/accept_ra"}, {p.containerNS, "eth0/accept_ra"}} {
		setting.ns.Do(t, func() {
			text, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv6/conf", setting.path))
			must(t, err)
			if got := strings.TrimSpace(string(text)); got != "0" {
				t.Errorf("%s: want 0, got %s", setting.path, got)
			}
		})
	}
}

// The container of a second network keeps the default route of the first.
func TestOptionalRoute(t *testing.T) {
	p := newPair(t)
	first, r := testVeth(), testRouted()
	p.wire(t, first, r)
	second := wiring.Veth{HostName: "tdl0123456789ac", Name: "eth1", HostMAC: first.HostMAC, MAC: first.MAC}
	gateway := netip.MustParseAddr("10.20.0.1")
	subnet := wiring.Route{Dst: netip.MustParsePrefix("10.20.0.0/16"), Gateway: gateway}
	routed := wiring.Routed{
		Addresses: []wiring.Address{{Addr: netip.MustParseAddr("10.20.0.5"), Gateway: gateway}},
		Routes:    []wiring.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: gateway, Optional: true}, subnet},
	}
	_, routes := p.wire(t, second, routed)
	if diff := cmp.Diff([]wiring.Route{subnet}, routes, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	must(t, wiring.Check(p.node, p.container, first, r))
}

// While a DHCP client asks, both sides are up and the host's has an address;
// afterwards it has only that of the gateway.
func TestUpHelper(t *testing.T) {
	p := newPair(t)
	v := testVeth()
	helper := netip.MustParseAddr("169.254.1.1")
	links, err := wiring.CreateVeth(p.node, p.container, v)
	must(t, err)
	must(t, wiring.Up(p.node, p.container, links, helper))
	addresses := func() []string {
		t.Helper()
		link, err := p.nodeNS.Handle.LinkByName(v.HostName)
		must(t, err)
		list, err := p.nodeNS.Handle.AddrList(link, netlink.FAMILY_ALL)
		must(t, err)
		var found []string
		for _, a := range list {
			found = append(found, a.IPNet.String())
		}
		return found
	}
	if diff := cmp.Diff([]string{"169.254.1.1/32"}, addresses()); diff != "" {
		t.Errorf("addresses on the host's side while up (-want +got):\n%s", diff)
	}
	_, err = wiring.Configure(p.node, p.container, links, testRouted(), helper)
	must(t, err)
	must(t, wiring.Settle(p.node, p.container, links, testRouted()))
	if diff := cmp.Diff([]string{"10.10.0.1/32", "fd00:10::1/128"}, addresses()); diff != "" {
		t.Errorf("addresses on the host's side in the end (-want +got):\n%s", diff)
	}
	must(t, wiring.Check(p.node, p.container, v, testRouted()))
}

func TestConfigureNamesWhatFails(t *testing.T) {
	p := newPair(t)
	v, r := testVeth(), testRouted()
	p.wire(t, v, r)
	second := v
	second.HostName, second.Name = "tdl0123456789ac", "eth1"
	links, err := wiring.CreateVeth(p.node, p.container, second)
	must(t, err)
	_, err = wiring.Configure(p.node, p.container, links, r, netip.Addr{})
	const want = "configure the host's side: add route 10.10.0.5/32 scope 253 to tdl0123456789ac: file exists"
	if err == nil || err.Error() != want {
		t.Errorf("want %q, got %v", want, err)
	}
}

func TestUnreachable(t *testing.T) {
	ns := nstest.New(t, "node")
	n := open(t, ns.Path)
	subnets := []netip.Prefix{netip.MustParsePrefix("10.10.0.0/16"), netip.MustParsePrefix("fd00:10::/64")}
	for range 2 { // twice, because it is idempotent
		for _, subnet := range subnets {
			must(t, wiring.EnsureUnreachable(n, subnet))
		}
	}
	ns.Run(t, "ip", "route", "add", "unreachable", "10.99.0.0/16", "metric", "5") // somebody else's
	got, err := wiring.ListUnreachable(n)
	must(t, err)
	if diff := cmp.Diff(subnets, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("unreachable subnets (-want +got):\n%s", diff)
	}
	if out, err := ns.Command("ip", "route", "get", "10.10.0.77").CombinedOutput(); err == nil || !strings.Contains(string(out), "No route to host") {
		t.Errorf("route to an address that nobody has: want unreachable, got %v: %s", err, out)
	}
	for range 2 {
		must(t, wiring.RemoveUnreachable(n, subnets[0]))
	}
	got, err = wiring.ListUnreachable(n)
	must(t, err)
	if diff := cmp.Diff(subnets[1:], got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("unreachable subnets after removal (-want +got):\n%s", diff)
	}
}

func TestOpenRefuses(t *testing.T) {
	nstest.Root(t)
	if _, err := wiring.Open(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent path: want fs.ErrNotExist, got %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := wiring.Open(file); !errors.Is(err, wiring.ErrNotNamespace) {
		t.Errorf("regular file: want ErrNotNamespace, got %v", err)
	}
}

func TestSame(t *testing.T) {
	ns := nstest.New(t, "a")
	a, b, current := open(t, ns.Path), open(t, ns.Path), open(t, "/proc/self/ns/net")
	for _, test := range []struct {
		name string
		with *wiring.Namespace
		want bool
	}{{"same path", b, true}, {"another", current, false}} {
		if got, err := a.Same(test.with); err != nil || got != test.want {
			t.Errorf("%s: want %v, got %v, %v", test.name, test.want, got, err)
		}
	}
}
