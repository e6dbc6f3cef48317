// SPDX-License-Identifier: Apache-2.0

package wiring_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/wiring"
)

const bridgeName = "tdlbr0"

// newNode is a node with nothing but its loopback.
func newNode(t *testing.T) (*nstest.NS, *wiring.Namespace) {
	t.Helper()
	ns := nstest.New(t, "node")
	return ns, open(t, ns.Path)
}

// seen is what tests want to know of a link.
type seen struct {
	Link        wiring.BridgeLink
	Kind        string
	Up, Promisc bool
}

func look(t *testing.T, ns *nstest.NS, name string) seen {
	t.Helper()
	link, err := ns.Handle.LinkByName(name)
	must(t, err)
	attrs := link.Attrs()
	return seen{
		Link: wiring.BridgeLink{Index: attrs.Index, MAC: attrs.HardwareAddr, MTU: attrs.MTU},
		Kind: link.Type(), Up: attrs.Flags&net.FlagUp != 0, Promisc: attrs.Promisc != 0,
	}
}

// addressesOf are all but the link-local ones of IPv6.
func addressesOf(t *testing.T, ns *nstest.NS, name string) []string {
	t.Helper()
	link, err := ns.Handle.LinkByName(name)
	must(t, err)
	list, err := ns.Handle.AddrList(link, netlink.FAMILY_ALL)
	must(t, err)
	var found []string
	for _, a := range list {
		if a.IP.To4() != nil || !a.IP.IsLinkLocalUnicast() {
			found = append(found, a.IPNet.String())
		}
	}
	slices.Sort(found)
	return found
}

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func setting(t *testing.T, ns *nstest.NS, path string) string {
	t.Helper()
	var text []byte
	ns.Do(t, func() {
		var err error
		if text, err = os.ReadFile(filepath.Join("/proc/sys/net", path)); err != nil {
			t.Error(err)
		}
	})
	return strings.TrimSpace(string(text))
}

func TestBridgeIsMade(t *testing.T) {
	ns, node := newNode(t)
	for _, name := range []string{"accept_ra", "accept_dad"} {
		if got := setting(t, ns, "ipv6/conf/default/"+name); got != "1" {
			t.Fatalf("default %s is %s: this test could not fail", name, got)
		}
	}
	got, err := wiring.EnsureBridge(node, wiring.Bridge{Name: bridgeName, MTU: 1400, Promisc: true})
	must(t, err)
	if len(got.MAC) != 6 || got.MAC[0]&3 != 2 {
		t.Errorf("MAC is %s, want one of one station, locally administered", got.MAC)
	}
	if !got.Made {
		t.Error("the bridge was there, it seems")
	}
	want := seen{Link: wiring.BridgeLink{Index: got.Index, MAC: got.MAC, MTU: 1400}, Kind: "bridge", Up: true, Promisc: true}
	if diff := cmp.Diff(want, look(t, ns, bridgeName)); diff != "" {
		t.Errorf("bridge (-want +got):\n%s", diff)
	}
	for _, name := range []string{"accept_ra", "accept_dad"} {
		if got := setting(t, ns, "ipv6/conf/"+bridgeName+"/"+name); got != "0" {
			t.Errorf("%s is %s, want 0", name, got)
		}
	}
	// The kernel's own choice of a MAC is the least of the ports', in which a 0 in front
	// wins.
	ns.Run(t, "ip", "link", "add", "port", "address", "00:00:00:00:00:01", "type", "veth")
	ns.Run(t, "ip", "link", "set", "port", "master", bridgeName)
	again, err := wiring.EnsureBridge(node, wiring.Bridge{Name: bridgeName, MTU: 1400})
	must(t, err)
	if diff := cmp.Diff(got.MAC, again.MAC); diff != "" {
		t.Errorf("MAC with a port (-want +got):\n%s", diff)
	}
	if !look(t, ns, bridgeName).Promisc {
		t.Error("promiscuous mode that is not asked for was turned off")
	}
}

func TestUnusedBridgeIsRemoved(t *testing.T) {
	ns, node := newNode(t)
	made, err := wiring.EnsureBridge(node, wiring.Bridge{Name: bridgeName})
	must(t, err)
	ns.Run(t, "ip", "link", "add", "port", "master", bridgeName, "type", "veth")
	must(t, wiring.RemoveUnusedBridge(node, wiring.Bridge{Name: bridgeName}, made))
	if got := look(t, ns, bridgeName).Link.Index; got != made.Index {
		t.Errorf("bridge with a port: index %d, not %d", got, made.Index)
	}
	ns.Run(t, "ip", "link", "del", "port")
	ns.Run(t, "ip", "link", "add", "link", bridgeName, "name", "rider", "type", "macvlan")
	must(t, wiring.RemoveUnusedBridge(node, wiring.Bridge{Name: bridgeName}, made))
	if got := look(t, ns, bridgeName).Link.Index; got != made.Index {
		t.Errorf("bridge with a macvlan device: index %d, not %d", got, made.Index)
	}
	ns.Run(t, "ip", "link", "del", "rider")
	other := made
	other.Index++ // another of its name
	must(t, wiring.RemoveUnusedBridge(node, wiring.Bridge{Name: bridgeName}, other))
	if got := look(t, ns, bridgeName).Link.Index; got != made.Index {
		t.Errorf("another's bridge: index %d, not %d", got, made.Index)
	}
	must(t, wiring.RemoveUnusedBridge(node, wiring.Bridge{Name: bridgeName}, made))
	if exists, err := wiring.LinkExists(node, bridgeName); err != nil || exists {
		t.Errorf("bridge without a port: %v, %v", exists, err)
	}
	must(t, wiring.RemoveUnusedBridge(node, wiring.Bridge{Name: bridgeName}, made))
}

func TestBridgeIsUsedAsItIs(t *testing.T) {
	ns, node := newNode(t)
	ns.Run(t, "ip", "link", "add", bridgeName, "address", "02:00:00:00:00:aa", "mtu", "1450", "type", "bridge")
	ns.Run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", bridgeName)
	before := look(t, ns, bridgeName)
	for _, test := range []struct {
		name          string
		bridge        wiring.Bridge
		spoil         []string
		want, promisc bool
	}{
		{"down", wiring.Bridge{Name: bridgeName, MTU: 1300}, nil, false, false},
		{"up", wiring.Bridge{Name: bridgeName, MTU: 1300}, nil, false, false},
		{"promiscuous", wiring.Bridge{Name: bridgeName, MTU: 1300, Promisc: true}, nil, false, true},
		{"down again", wiring.Bridge{Name: bridgeName}, []string{"link", "set", bridgeName, "down"}, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.spoil != nil {
				ns.Run(t, "ip", test.spoil...)
			}
			got, err := wiring.EnsureBridge(node, test.bridge)
			must(t, err)
			if diff := cmp.Diff(before.Link, got); diff != "" {
				t.Errorf("returned (-want +got):\n%s", diff)
			}
			want := seen{Link: before.Link, Kind: "bridge", Up: true, Promisc: test.promisc}
			if diff := cmp.Diff(want, look(t, ns, bridgeName)); diff != "" {
				t.Errorf("bridge (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]string{"192.0.2.1/24"}, addressesOf(t, ns, bridgeName)); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
		})
	}
	if got := setting(t, ns, "ipv6/conf/"+bridgeName+"/accept_ra"); got != "1" {
		t.Errorf("accept_ra of somebody's bridge is %s now", got)
	}
}

func TestNoBridge(t *testing.T) {
	p := newPair(t)
	v := testVeth()
	links, err := wiring.CreateVeth(p.node, p.container, v)
	must(t, err)
	p.nodeNS.Run(t, "ip", "link", "add", "other", "type", "veth")
	for _, test := range []struct {
		name, want string
		is         error
	}{
		{"other", "use veth other: not a bridge", wiring.ErrNotBridge},
		{"lo", "use device lo: not a bridge", wiring.ErrNotBridge},
		{"absent", "look up link absent: no such device", unix.ENODEV},
	} {
		is := func(from string, err error, want string) {
			t.Helper()
			if !errors.Is(err, test.is) || err.Error() != want {
				t.Errorf("%s of %s: want %q, got %v", from, test.name, want, err)
			}
		}
		is("EnsureGateways", wiring.EnsureGateways(p.node, wiring.Bridge{Name: test.name}, prefixes("10.10.0.1/16"), true), test.want)
		_, err := wiring.ConfigureBridged(p.node, p.container, links, wiring.Bridged{Bridge: test.name})
		is("ConfigureBridged", err, "configure the host's side: "+test.want)
		if test.name != "absent" {
			_, err := wiring.EnsureBridge(p.node, wiring.Bridge{Name: test.name})
			is("EnsureBridge", err, test.want)
		}
	}
}

// As when several containers start at once on a node that has just booted.
func TestBridgeRace(t *testing.T) {
	ns := nstest.New(t, "node")
	for range 10 {
		const racers = 8
		var got [racers]wiring.BridgeLink
		var failed [2 * racers]error
		var all sync.WaitGroup
		start := make(chan struct{})
		for i := range racers {
			node := open(t, ns.Path) // as of another process
			all.Go(func() {
				<-start
				got[i], failed[2*i] = wiring.EnsureBridge(node, wiring.Bridge{Name: bridgeName, MTU: 1400})
				failed[2*i+1] = wiring.EnsureGateways(node, wiring.Bridge{Name: bridgeName}, prefixes("10.10.0.1/16", "fd00:10::1/64"), false)
			})
		}
		close(start)
		all.Wait()
		must(t, errors.Join(failed[:]...))
		want := look(t, ns, bridgeName)
		if !want.Up {
			t.Error("the bridge is down")
		}
		made := 0
		for _, bridge := range got {
			if bridge.Made {
				made++
			}
			bridge.Made = false
			if diff := cmp.Diff(want.Link, bridge); diff != "" {
				t.Errorf("bridge (-want +got):\n%s", diff)
			}
		}
		if made != 1 {
			t.Errorf("%d say that they have made it", made)
		}
		if diff := cmp.Diff([]string{"10.10.0.1/16", "fd00:10::1/64"}, addressesOf(t, ns, bridgeName)); diff != "" {
			t.Errorf("addresses (-want +got):\n%s", diff)
		}
		ns.Run(t, "ip", "link", "del", bridgeName)
	}
}

// With /proc/sys read-only the bridge can be made, but not its settings.
func TestBridgeIsTakenBack(t *testing.T) {
	const child = "TENDRIL_TEST_READ_ONLY_SYSCTL"
	nstest.Root(t)
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Errorf("with a read-only /proc/sys: %v\n%s", err, out)
		}
		return
	}
	ns, node := newNode(t)
	must(t, unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""))
	must(t, unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if _, err := wiring.EnsureBridge(node, wiring.Bridge{Name: bridgeName}); !errors.Is(err, unix.EROFS) {
		t.Errorf("want %v, got %v", unix.EROFS, err)
	}
	links, err := ns.Handle.LinkList()
	must(t, err)
	if len(links) != 1 {
		t.Errorf("there are %d links, want only lo", len(links))
	}
}

// testBridged has both families, and routes with all that a route can have.
func testBridged() wiring.Bridged {
	return wiring.Bridged{
		Bridge: bridgeName, MTU: 1400,
		Addresses: prefixes("10.10.0.5/16", "fd00:10::5/64"),
		Routes:    testRouted().Routes,
	}
}

// bridgedVeth is the pair of the nth container.
func bridgedVeth(n int) wiring.Veth {
	return wiring.Veth{
		HostName: fmt.Sprintf("tdl0123456789%02x", n), Name: "eth0", MTU: 1400,
		HostMAC: net.HardwareAddr{2, 0, 0, 0, 1, byte(n)}, MAC: net.HardwareAddr{2, 0, 0, 0, 2, byte(n)},
	}
}

func (p pair) makeBridge(t *testing.T) {
	t.Helper()
	_, err := wiring.EnsureBridge(p.node, wiring.Bridge{Name: bridgeName, MTU: 1400})
	must(t, err)
	must(t, wiring.EnsureGateways(p.node, wiring.Bridge{Name: bridgeName}, prefixes("10.10.0.1/16", "fd00:10::1/64"), false))
}

func (p pair) bridge(t *testing.T, v wiring.Veth, b wiring.Bridged) (wiring.Links, []wiring.Route) {
	t.Helper()
	links, err := wiring.CreateVeth(p.node, p.container, v)
	must(t, err)
	routes, err := wiring.ConfigureBridged(p.node, p.container, links, b)
	must(t, err)
	must(t, wiring.SettleBridged(p.node, p.container, links, b))
	return links, routes
}

func TestBridged(t *testing.T) {
	p := newPair(t)
	p.makeBridge(t)
	before := look(t, p.nodeNS, bridgeName)
	v, b := bridgedVeth(5), testBridged()
	_, routes := p.bridge(t, v, b)
	if diff := cmp.Diff(b.Routes, routes, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	must(t, wiring.CheckBridged(p.node, p.container, v, b))
	// At once, both ways: nothing waits for a carrier or for duplicate address detection.
	for _, a := range []string{"10.10.0.1", "fd00:10::1"} {
		p.containerNS.Run(t, "ping", "-c1", "-W2", a)
	}
	for _, a := range []string{"10.10.0.5", "fd00:10::5"} {
		p.nodeNS.Run(t, "ping", "-c1", "-W2", a)
	}

	other := p.another(t, "d")
	w, c := bridgedVeth(6), testBridged()
	c.Addresses, c.Hairpin = prefixes("10.10.0.6/16", "fd00:10::6/64"), true
	other.bridge(t, w, c)
	must(t, wiring.CheckBridged(p.node, other.container, w, c))
	for _, a := range []string{"10.10.0.6", "fd00:10::6", "10.10.0.1", "fd00:10::1"} {
		p.containerNS.Run(t, "ping", "-c1", "-W2", a)
	}
	for _, a := range []string{"10.10.0.5", "fd00:10::5"} {
		other.containerNS.Run(t, "ping", "-c1", "-W2", a)
	}

	for name, want := range map[string]bool{v.HostName: false, w.HostName: true} {
		link, err := p.nodeNS.Handle.LinkByName(name)
		must(t, err)
		port, err := p.nodeNS.Handle.LinkGetProtinfo(link)
		must(t, err)
		if port.Hairpin != want {
			t.Errorf("hairpin mode of %s: want %v, got %v", name, want, port.Hairpin)
		}
		if got := p.nodeNS.Run(t, "ip", "addr", "show", "dev", name); strings.Contains(got, "inet") {
			t.Errorf("the host's side has an address:\n%s", got)
		}
		if got := setting(t, p.nodeNS, "ipv6/conf/"+name+"/accept_ra"); got != "0" {
			t.Errorf("accept_ra of %s is %s, want 0", name, got)
		}
	}
	if got := setting(t, p.containerNS, "ipv6/conf/eth0/accept_ra"); got != "0" {
		t.Errorf("accept_ra of eth0 is %s, want 0", got)
	}
	if got := p.containerNS.Run(t, "ip", "addr", "show", "dev", "eth0"); !strings.Contains(got, "brd 10.10.255.255") {
		t.Errorf("no broadcast address:\n%s", got)
	}
	if diff := cmp.Diff(before, look(t, p.nodeNS, bridgeName)); diff != "" {
		t.Errorf("the bridge with its ports (-want +got):\n%s", diff)
	}
	if got := p.nodeNS.Run(t, "ip", "neigh", "show", "nud", "permanent"); got != "" {
		t.Errorf("permanent neighbours:\n%s", got)
	}
}

// TestBridgeKeepsWhatItKnows: neither the MAC of a bridge that the kernel chose follows its
// ports from then on, nor has the bridge to learn where a container is.
func TestBridgeKeepsWhatItKnows(t *testing.T) {
	p := newPair(t)
	p.nodeNS.Run(t, "ip", "link", "add", bridgeName, "type", "bridge")
	p.nodeNS.Run(t, "ip", "link", "set", bridgeName, "up")
	before := look(t, p.nodeNS, bridgeName).Link.MAC
	v := bridgedVeth(5)
	v.HostMAC = before
	links, _ := p.bridge(t, v, testBridged())
	nstest.Veth(t, p.nodeNS, "low0", p.nodeNS, "low1")
	p.nodeNS.Run(t, "ip", "link", "set", "low0", "address", "02:00:00:00:00:00", "master", bridgeName)
	if after := look(t, p.nodeNS, bridgeName).Link.MAC; after.String() != before.String() {
		t.Errorf("MAC of the bridge: was %s, is %s", before, after)
	}
	entries, err := p.nodeNS.Handle.NeighList(links.HostIndex, unix.AF_BRIDGE)
	must(t, err)
	known := slices.ContainsFunc(entries, func(n netlink.Neigh) bool {
		return n.HardwareAddr.String() == v.MAC.String() && n.State&unix.NUD_NOARP != 0 && n.MasterIndex != 0
	})
	if !known {
		t.Errorf("the bridge has no static entry of %s: %+v", v.MAC, entries)
	}
}

func TestCheckBridgedNamesWhatDiffers(t *testing.T) {
	nstest.LeaveTo(t, "7")
	p := newPair(t)
	v, b := bridgedVeth(5), testBridged()
	b.Hairpin, b.Isolated, b.Gateways = true, true, prefixes("10.10.0.1/16", "fd00:10::1/64")
	tests := []spoiled{
		{
			"isolation", "node",
			[]string{"link", "set", v.HostName, "type", "bridge_slave", "isolated", "off"},
			[]string{"port " + v.HostName + " is not isolated on the host"},
		},
		{
			"gateway address", "node",
			[]string{"addr", "del", "10.10.0.1/16", "dev", bridgeName},
			[]string{"gateway address 10.10.0.1/16 is missing on tdlbr0 on the host"},
		},
		{
			"detached", "node",
			[]string{"link", "set", v.HostName, "nomaster"},
			[]string{v.HostName + " is not a port of bridge tdlbr0 on the host"},
		},
		{
			"of another bridge", "node",
			[]string{"link", "add", "other", "type", "bridge", "&&", "ip", "link", "set", v.HostName, "master", "other"},
			[]string{v.HostName + " is not a port of bridge tdlbr0 on the host"},
		},
		{
			"bridge gone", "node",
			[]string{"link", "del", bridgeName},
			[]string{"bridge tdlbr0 is missing on the host"},
		},
		{
			"bridge down", "node",
			[]string{"link", "set", bridgeName, "down"},
			// The kernel takes IPv6 addresses from a link that is set down.
			[]string{"link tdlbr0 is down on the host", "gateway address fd00:10::1/64 is missing on tdlbr0 on the host"},
		},
		{
			"no bridge", "node",
			[]string{"link", "del", bridgeName, "&&", "ip", "link", "add", bridgeName, "type", "veth"},
			[]string{
				"link tdlbr0 on the host is a veth, not a bridge", "gateway address 10.10.0.1/16 is missing on tdlbr0 on the host",
				"gateway address fd00:10::1/64 is missing on tdlbr0 on the host",
			},
		},
		{
			"hairpin", "node",
			[]string{"link", "set", v.HostName, "type", "bridge_slave", "hairpin", "off"},
			[]string{"hairpin mode of " + v.HostName + " is off on the host"},
		},
		{
			"host mtu", "node",
			[]string{"link", "set", v.HostName, "mtu", "1390"},
			[]string{"mtu of " + v.HostName + " on the host is 1390, not 1400"},
		},
		{
			"host MAC", "node",
			[]string{"link", "set", v.HostName, "address", "02:00:00:00:00:99"},
			[]string{"MAC of " + v.HostName + " on the host is 02:00:00:00:00:99, not 02:00:00:00:01:05"},
		},
		{
			"pair gone", "node",
			[]string{"link", "del", v.HostName},
			[]string{"link eth0 is missing in the container", "link " + v.HostName + " is missing on the host"},
		},
		{
			"mtu", "c",
			[]string{"link", "set", "eth0", "mtu", "1390"},
			[]string{"mtu of eth0 in the container is 1390, not 1400"},
		},
		{
			"IPv6 address", "c",
			[]string{"addr", "del", "fd00:10::5/64", "dev", "eth0"},
			[]string{
				"address fd00:10::5/64 is missing on eth0 in the container",
			},
		},
		{
			"prefix length", "c",
			[]string{"addr", "add", "10.10.0.5/17", "dev", "eth0", "&&", "ip", "addr", "del", "10.10.0.5/16", "dev", "eth0"},
			[]string{"address 10.10.0.5/16 is missing on eth0 in the container"},
		},
		{
			"connected route", "c",
			[]string{"route", "del", "10.10.0.0/16"},
			[]string{"route 10.10.0.0/16 is missing on eth0 in the container"},
		},
		{
			"IPv6 default route", "c",
			[]string{"-6", "route", "del", "default"},
			[]string{"route ::/0 via fd00:10::1 is missing on eth0 in the container"},
		},
		{
			"route in a table", "c",
			[]string{"route", "del", "198.51.100.0/24", "table", "1000"},
			[]string{"route 198.51.100.0/24 via 10.10.0.1 table 1000 is missing on eth0 in the container"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p.makeBridge(t)
			p.bridge(t, v, b)
			defer func() {
				for _, name := range []string{v.HostName, bridgeName, "other"} {
					must(t, wiring.RemoveVeth(p.node, name))
				}
			}()
			test.check(t, p, func() error { return wiring.CheckBridged(p.node, p.container, v, b) })
		})
	}
}

// The container asks the link for its IPv6 addresses, if it is to.
func TestDuplicateAddressDetection(t *testing.T) {
	nstest.Halve(t, 0)
	for name, test := range map[string]struct {
		dad, taken bool
		want       string
	}{
		"not asked": {false, true, ""},
		"free":      {true, false, ""},
		"taken":     {true, true, "use fd00:10::5 on eth0: address is in use on the link\nwait for eth0: no carrier, or an address not in use, after 5s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			p.makeBridge(t)
			station := nstest.New(t, "station")
			nstest.Veth(t, p.nodeNS, "tap0", station, "eth0")
			p.nodeNS.Run(t, "ip", "link", "set", "tap0", "master", bridgeName)
			if test.taken {
				station.Run(t, "ip", "addr", "add", "fd00:10::5/64", "dev", "eth0", "nodad")
			}
			p.containerNS.Run(t, "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")
			v, b := bridgedVeth(5), testBridged()
			b.DAD = test.dad
			links, err := wiring.CreateVeth(p.node, p.container, v)
			must(t, err)
			_, err = wiring.ConfigureBridged(p.node, p.container, links, b)
			must(t, err)
			err = wiring.SettleBridged(p.node, p.container, links, b)
			said := ""
			if err != nil {
				said = err.Error()
			}
			if said != test.want || errors.Is(err, wiring.ErrDuplicate) != (test.want != "") {
				t.Errorf("error %q, want %q", said, test.want)
			}
		})
	}
}

// Two interfaces on one bridge have one gateway, and one subnet. The first stays the one
// that packets take; the second has its own way for packets that are bound to it.
func TestSecondInterfaceOfABridge(t *testing.T) {
	p := newPair(t)
	p.makeBridge(t)
	gw4, gw6 := netip.MustParseAddr("10.10.0.1"), netip.MustParseAddr("fd00:10::1")
	wanted := []wiring.Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: gw4, Optional: true},
		{Dst: netip.MustParsePrefix("::/0"), Gateway: gw6, Optional: true},
		{Dst: netip.MustParsePrefix("192.0.2.0/24"), Gateway: gw4},
		{Dst: netip.MustParsePrefix("2001:db8::/32"), Gateway: gw6},
		{Dst: netip.MustParsePrefix("203.0.113.0/24"), Scope: unix.RT_SCOPE_LINK, Behind: true},
	}
	for i, name := range []string{"eth0", "eth1"} {
		v, b := bridgedVeth(5+i), testBridged()
		v.Name, b.Routes = name, wanted
		b.Addresses = prefixes(fmt.Sprintf("10.10.0.%d/16", 5+i), fmt.Sprintf("fd00:10::%d/64", 5+i))
		links, routes := p.bridge(t, v, b)
		want := wanted
		if i > 0 {
			want = slices.Clone(wanted[2:])
			for j := range want {
				want[j].Priority += 1024 + links.Index
			}
		}
		if diff := cmp.Diff(want, routes, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
			t.Errorf("routes of %s (-want +got):\n%s", name, diff)
		}
		b.Routes = routes
		must(t, wiring.CheckBridged(p.node, p.container, v, b))
	}
	for _, to := range []string{"10.10.0.1", "fd00:10::1", "10.10.0.99", "fd00:10::99", "192.0.2.99", "2001:db8::99", "198.51.100.99"} {
		for _, bound := range []struct {
			args []string
			want string
		}{{nil, "eth0"}, {[]string{"oif", "eth0"}, "eth0"}, {[]string{"oif", "eth1"}, "eth1"}} {
			if to == "198.51.100.99" && bound.want == "eth1" {
				continue // by the default route, which eth1 has none of
			}
			route := p.containerNS.Run(t, "ip", append([]string{"route", "get", to}, bound.args...)...)
			if !strings.Contains(route, "dev "+bound.want+" ") {
				t.Errorf("%s %v: want it by %s, got %s", to, bound.args, bound.want, route)
			}
		}
	}
}

// The gateway of a second network is no other interface's, though another's route leads to
// it: a route that both have stands there twice, as with the reference plugins.
func TestSecondBridge(t *testing.T) {
	for name, lead := range map[string][]string{
		"default route":                   {"route", "replace", "default", "via", "10.10.0.1"},
		"default route without a gateway": {"route", "replace", "default", "dev", "eth0"},
		"route":                           {"route", "add", "10.20.0.0/24", "via", "10.10.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			p.makeBridge(t)
			const second = "tdlbr1"
			_, err := wiring.EnsureBridge(p.node, wiring.Bridge{Name: second})
			must(t, err)
			p.bridge(t, bridgedVeth(5), testBridged())
			p.containerNS.Run(t, "ip", lead...)
			v := bridgedVeth(6)
			v.Name = "eth1"
			gateway := netip.MustParseAddr("10.20.0.1")
			routes := []wiring.Route{
				{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: gateway, Optional: true},
				{Dst: netip.MustParsePrefix("203.0.113.0/24"), Gateway: gateway},
			}
			b := wiring.Bridged{Bridge: second, Addresses: prefixes("10.20.0.5/24"), Routes: routes}
			links, err := wiring.CreateVeth(p.node, p.container, v)
			must(t, err)
			got, err := wiring.ConfigureBridged(p.node, p.container, links, b)
			must(t, err)
			if diff := cmp.Diff(routes[1:], got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
				t.Errorf("routes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestConfigureBridgedNamesWhatIsGone(t *testing.T) {
	p := newPair(t)
	p.makeBridge(t)
	v, b := bridgedVeth(5), testBridged()
	links, err := wiring.CreateVeth(p.node, p.container, v)
	must(t, err)
	must(t, wiring.RemoveVeth(p.node, v.HostName))
	_, err = wiring.ConfigureBridged(p.node, p.container, links, b)
	if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), v.HostName) {
		t.Errorf("want %v of %s, got %v", unix.ENODEV, v.HostName, err)
	}
}
