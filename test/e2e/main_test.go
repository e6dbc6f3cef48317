// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// programs are what TestMain found; nothing changes them afterwards.
var programs nodetest.Programs

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == ipamName {
		os.Exit(ipamMain()) // tendril-cni has run us as its IPAM plugin
	}
	os.Exit(mainWithPrograms(m))
}

func mainWithPrograms(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run() // every test says that it needs root
	}
	dir, err := os.MkdirTemp("", "tendril-e2e-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		programs, err = nodetest.Find("../..", dir)
	}
	if err == nil {
		err = chooseForKernel()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// small says that a test had better do less of the same.
func small() bool { return testing.Short() || nstest.Emulated() }

// Addresses of every site. The world is the node's default router and the
// only other host on the uplink.
var (
	uplink4 = netip.MustParseAddr("192.0.2.1")
	uplink6 = netip.MustParseAddr("2001:db8::1")
	world4  = netip.MustParseAddr("192.0.2.2")
	world6  = netip.MustParseAddr("2001:db8::2")
)

// Ranges of the network "pods".
const (
	pods4 = "10.10.0.0/16"
	pods6 = "fd00:10::/64"
)

// site is a node, its agent not started, and the world behind its one uplink.
type site struct {
	*nodetest.Node
	world *nstest.NS
	pods  nodetest.Network
	// neighbour is a machine in the network of lan0, with the driver macvlan, and switched where the
	// switch between them is, sw0.
	neighbour, switched *nstest.NS
}

func newSite(t *testing.T, flags ...string) *site {
	t.Helper()
	if small() { // maps that are made, and walked, sooner
		flags = append([]string{"--flows-max=16384", "--translations-max=16384"}, flags...)
	}
	s := &site{Node: nodetest.New(t, nodetest.Options{Programs: programs, Flags: flags}), world: nstest.New(t, "world")}
	settle(t, s.NS)
	settle(t, s.world)
	nstest.Veth(t, s.NS, "up0", s.world, "eth0")
	nodetest.Address(t, s.NS, "up0", "192.0.2.1/24", "2001:db8::1/64")
	nodetest.Address(t, s.world, "eth0", "192.0.2.2/24", "2001:db8::2/64")
	nodetest.Route(t, s.NS, []string{"default", "via", "192.0.2.2"}, []string{"default", "via", "2001:db8::2"})
	s.pods = s.Network("pods", pods4, pods6)
	return s
}

// settle has links made later in a namespace use their addresses at once. While
// duplicate address detection takes its second, neighbours are not asked for.
func settle(t *testing.T, ns *nstest.NS) {
	t.Helper()
	ns.Do(t, func() {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0); err != nil {
			t.Error(err)
		}
	})
}

// notBuilt skips a test when ip or tc has said in out that the kernel does not have a kind of device or of
// queue. Whatever else they said is a failure.
func notBuilt(t *testing.T, out []byte, feature, option string) {
	t.Helper()
	if !bytes.Contains(out, []byte("Unknown device type")) && !bytes.Contains(out, []byte("qdisc kind is unknown")) {
		t.Fatalf("make %s: %s", feature, out)
	}
	nstest.NotBuilt(t, feature, option)
}

// drivenBy is a site whose agent serves, and attaches to the network "pods" by a driver.
func drivenBy(t *testing.T, d driver) *site {
	t.Helper()
	s := running(t)
	s.drive(t, d)
	return s
}

// drive has the network "pods" attached by a driver.
func (s *site) drive(t *testing.T, d driver) {
	t.Helper()
	if d == api.DriverMacvlan {
		s.joinLAN(t)
	}
	s.pods = d.of(s.pods)
}

// lend is drive until the test ends, for tests of one driver after the other on a node that serves:
// nothing that one attached, or attached to, is there for the next.
func (s *site) lend(t *testing.T, d driver) {
	t.Helper()
	undriven := s.pods
	s.drive(t, d)
	t.Cleanup(func() {
		none := s.pods.With("cni.dev/valid-attachments", []any{})
		if got := refusalOf(s.Call(t, nodetest.Call{Command: "GC", Network: none})); got != (refusal{}) {
			t.Errorf("GC of all: %+v", got)
		}
		if device, made := map[driver]string{api.DriverBridge: "tendril0", api.DriverMacvlan: "lan0"}[d]; made {
			_ = s.Command("ip", "link", "del", device).Run() // the test may have done it
		}
		s.pods = undriven
	})
}

// dropsSince are the packets that were dropped since, by reason.
func (s *site) dropsSince(t *testing.T, before map[string]uint64) map[string]uint64 {
	t.Helper()
	drops := s.Drops(t)
	for reason, n := range before {
		if drops[reason] -= n; drops[reason] == 0 {
			delete(drops, reason)
		}
	}
	return drops
}

// running is a site whose agent serves.
func running(t *testing.T, flags ...string) *site {
	t.Helper()
	s := newSite(t, flags...)
	s.Start(t)
	return s
}

// family is what differs between the two families in a test.
type family struct {
	name          string
	uplink, world netip.Addr
	// of says which address of a container is meant.
	of func(*nodetest.Container) netip.Addr
	// gateway is the host's address towards a container.
	gateway func(*nodetest.Container) netip.Addr
}

func families() []family {
	return []family{
		{
			"IPv4", uplink4, world4, func(c *nodetest.Container) netip.Addr { return c.IPv4 },
			func(c *nodetest.Container) netip.Addr { return c.Gateway4 },
		},
		{
			"IPv6", uplink6, world6, func(c *nodetest.Container) netip.Addr { return c.IPv6 },
			func(c *nodetest.Container) netip.Addr { return c.Gateway6 },
		},
	}
}

// choose is the one of two addresses that is of the family.
func (f family) choose(ipv4, ipv6 netip.Addr) netip.Addr {
	if f.world.Is4() {
		return ipv4
	}
	return ipv6
}

// eachFamily runs a subtest for each.
func eachFamily(t *testing.T, test func(t *testing.T, f family)) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) { test(t, f) })
	}
}

// dealFamilies is eachFamily with each on half of the kernels: IPv6 where pkg/datapath has IPv4 in its
// tables, and the other way round. It is for journeys that take long there.
func dealFamilies(t *testing.T, test func(t *testing.T, f family)) {
	for i, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			nstest.Deal(t, 1-i)
			test(t, f)
		})
	}
}

// driver is how a network's containers are attached.
type driver string

// of is the network with the driver, and with a default route as each of them can
// give it.
func (d driver) of(n nodetest.Network) nodetest.Network {
	n = n.With("driver", string(d))
	switch d {
	case api.DriverBridge:
		n = n.With("isDefaultGateway", true)
	case api.DriverMacvlan:
		n = n.With("master", "lan0").With("ipMasq", false).With("routes", []any{map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "::/0"}})
	}
	return n
}

// shown is the address with which the world sees a container.
func (d driver) shown(f family, c *nodetest.Container) netip.Addr {
	if d == api.DriverMacvlan {
		return f.of(c)
	}
	return f.uplink
}

// next is the MAC to which a container sends what is for another container of its
// network.
func (d driver) next(from, to *nodetest.Container) net.HardwareAddr {
	if d == api.DriverRouted {
		return from.HostMAC
	}
	return to.MAC
}

// eachDriver runs a subtest for each, but for those that lack what is tried.
func eachDriver(t *testing.T, test func(t *testing.T, d driver), lacking ...driver) {
	for _, d := range []driver{api.DriverRouted, api.DriverBridge, api.DriverMacvlan} {
		if !slices.Contains(lacking, d) {
			t.Run(string(d), func(t *testing.T) { test(t, d) })
		}
	}
}

// dealDrivers is eachDriver, with each but the first on half of the kernels.
func dealDrivers(t *testing.T, half int, test func(t *testing.T, d driver)) {
	eachDriver(t, func(t *testing.T, d driver) {
		if d != api.DriverRouted {
			nstest.Halve(t, half)
		}
		test(t, d)
	})
}
