// SPDX-License-Identifier: Apache-2.0

package nodetest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/maps"
)

// Patience bounds every wait for an event. It is no measure of anything: what
// has not happened by then, on the slowest of machines, never will.
const Patience = 3 * time.Minute

// Options say what a Node is like.
type Options struct {
	Programs Programs
	// Name becomes part of the names of its namespaces; "node" when empty.
	Name string
	// Flags of the agent besides those that give it its places.
	Flags []string
}

// Node is a network namespace in which an agent can run.
type Node struct {
	*nstest.NS
	Programs Programs
	// Flags of the next agent to be started; see Options.
	Flags []string
	// Dir is a folder of the node's own.
	Dir string
	// Socket, StateDir, BPFRoot and PolicyDir are the agent's places. There is no
	// PolicyDir at first.
	Socket, StateDir, BPFRoot, PolicyDir string
	// API is a client of whichever agent runs.
	API   *api.Client
	agent *Agent
}

// New makes a node, without an agent and without an uplink.
func New(tb testing.TB, opts Options) *Node {
	tb.Helper()
	if opts.Name == "" {
		opts.Name = "node"
	}
	n := &Node{NS: nstest.New(tb, opts.Name), Programs: opts.Programs, Flags: opts.Flags, Dir: tb.TempDir()}
	n.Socket, n.StateDir = filepath.Join(n.Dir, "agent.sock"), filepath.Join(n.Dir, "state")
	n.PolicyDir = filepath.Join(n.Dir, "policy.d")
	n.BPFRoot = filepath.Join(nstest.BPFFS(tb), "tendril")
	n.API = api.NewClient(n.Socket)
	tb.Cleanup(n.API.Close)
	tb.Cleanup(func() {
		if n.agent != nil {
			n.agent.kill()
		}
		if tb.Failed() {
			text, _ := os.ReadFile(n.logPath())
			tb.Logf("log of the agent of %s:\n%s", n.Name, text)
		}
	})
	return n
}

func (n *Node) logPath() string { return filepath.Join(n.Dir, "log") }

// Status asks the agent how the node is.
func (n *Node) Status(tb testing.TB) api.Status {
	tb.Helper()
	status, err := n.API.Status(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return status
}

// Counter returns a function that reads how many packets a journey has counted
// for a reason. It asks the kernel, so it may be called often, and while no agent
// runs.
func (n *Node) Counter(tb testing.TB, journey, reason string) func() uint64 {
	tb.Helper()
	all := n.Status(tb).Counters
	index := slices.IndexFunc(all, func(c api.Counter) bool { return c.Journey == journey && c.Reason == reason })
	if index < 0 {
		tb.Fatalf("there is no counter %s of %s", reason, journey)
	}
	m := n.Map(tb, "counters")
	tb.Cleanup(func() { _ = m.Close() })
	// A journey has more places than counters.
	each := slices.IndexFunc(all, func(c api.Counter) bool { return c.Journey != all[0].Journey })
	places := int(m.MaxEntries()) / (len(all) / each)
	index = index/each*places + index%each
	return func() (sum uint64) {
		var perCPU []maps.Count
		if err := m.Lookup(uint32(index), &perCPU); err != nil {
			tb.Errorf("read counters: %v", err)
		}
		for _, count := range perCPU {
			sum += count.Packets
		}
		return sum
	}
}

// Drops are the packets that a journey has dropped, by reason, without those
// reasons that have none.
func (n *Node) Drops(tb testing.TB) map[string]uint64 {
	tb.Helper()
	drops := make(map[string]uint64)
	for _, c := range n.Status(tb).Counters {
		if c.Dropped && c.Packets > 0 {
			drops[c.Journey+" "+c.Reason] = c.Packets
		}
	}
	return drops
}

// Address gives a link that is up addresses, and returns when they are usable: the
// kernel makes the local route of an IPv6 address a moment after it has said yes.
func Address(tb testing.TB, ns *nstest.NS, link string, prefixes ...string) {
	tb.Helper()
	// Not by ip(8): where all is emulated, a process takes longer than most of what a test tries.
	device, err := ns.Handle.LinkByName(link)
	if err != nil {
		tb.Fatalf("%s in %s: %v", link, ns.Name, err)
	}
	var local []*netlink.Route
	for _, p := range prefixes {
		address, err := netlink.ParseAddr(p)
		if err != nil {
			tb.Fatal(err)
		}
		address.Flags, address.Broadcast = unix.IFA_F_NODAD, net.IPv4zero // which is none
		if err := ns.Handle.AddrAdd(device, address); err != nil {
			tb.Fatalf("give %s of %s address %s: %v", link, ns.Name, p, err)
		}
		_, bits := address.Mask.Size()
		local = append(local, &netlink.Route{
			Dst: &net.IPNet{IP: address.IP, Mask: net.CIDRMask(bits, bits)}, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL,
		})
	}
	for _, route := range local {
		Eventually(tb, "local route of "+route.Dst.String(), func() error {
			found, err := ns.Handle.RouteListFiltered(netlink.FAMILY_ALL, route, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
			if err == nil && len(found) == 0 {
				err = errors.New("not there yet")
			}
			return err
		})
	}
}

// Route gives a namespace routes, each as `ip route add` takes it.
func Route(tb testing.TB, ns *nstest.NS, routes ...[]string) {
	tb.Helper()
	for _, r := range routes {
		ns.Run(tb, "ip", append([]string{"route", "add"}, r...)...)
	}
}

// Poll waits for something that no event tells of: what until returns is why it
// has not come yet, nil when it has. Poll returns what it was told last.
func Poll(until func() error) error {
	deadline := time.Now().Add(Patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := until()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause) //nolint:forbidigo // callers have no event to wait for
	}
}

// Eventually is Poll for what must come.
func Eventually(tb testing.TB, what string, until func() error) {
	tb.Helper()
	if err := Poll(until); err != nil {
		tb.Fatalf("%s: %v", what, err)
	}
}

// Unlike is an error for Eventually when two values differ.
func Unlike[T comparable](got, want T) error {
	if got != want {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	return nil
}
