// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// inContainers is a site with a LAN that the node has no macvlan parent on: containers have a device of
// their own there, as a VF that was given to them, and the node has an address.
type inContainers struct {
	*guarded
	network nodetest.Network
}

var (
	lanHost4 = netip.MustParseAddr("10.66.0.201")
	lanHost6 = netip.MustParseAddr("fd00:66::c9")
	lanPeer4 = netip.MustParseAddr("10.66.0.200")
	lanPeer6 = netip.MustParseAddr("fd00:66::c8")
)

func newInContainers(t *testing.T) *inContainers {
	t.Helper()
	s := &inContainers{guarded: newGuarded(t)}
	s.switched, s.neighbour = nstest.New(t, "switch"), nstest.New(t, "neighbour")
	settle(t, s.switched)
	settle(t, s.neighbour)
	s.switched.Run(t, "ip", "link", "add", "sw0", "up", "type", "bridge")
	s.plug(t, s.NS, "lan0", "p0")
	s.plug(t, s.neighbour, "eth0", "p1")
	nodetest.Address(t, s.NS, "lan0", lanHost4.String()+"/24", lanHost6.String()+"/64")
	nodetest.Address(t, s.neighbour, "eth0", lanPeer4.String()+"/24", lanPeer6.String()+"/64")
	ranges := func(subnet, end string) []any { return []any{map[string]any{"subnet": subnet, "rangeEnd": end}} }
	s.network = s.Network("inner").With("driver", api.DriverMacvlan).With("ipMasq", false).With("master", "eth1").With("linkInContainer", true).
		With("ipam", map[string]any{"type": "tendril", "ranges": []any{ranges("10.66.0.0/24", "10.66.0.99"), ranges("fd00:66::/64", "fd00:66::63")}})
	return s
}

// dress makes a container with a device on the LAN, and attaches it there.
func (s *inContainers) dress(t *testing.T, id string) *nodetest.Container {
	t.Helper()
	ns := nstest.New(t, id)
	settle(t, ns)
	s.plug(t, ns, "eth1", "p-"+id)
	return s.AttachTo(t, ns, id, "net1", wearing(s.network, map[string]string{"app": id}))
}

func TestMacvlanInContainer(t *testing.T) {
	nstest.LeaveTo(t, "6.12")
	s := newInContainers(t)
	a, b := s.dress(t, "a"), s.dress(t, "b")
	other := s.Network("other", "10.67.0.0/24", "fd00:67::/64").With("driver", api.DriverMacvlan).With("ipMasq", false).With("master", "eth1").
		With("linkInContainer", true)
	again := s.AttachTo(t, a.NS, "a", "net2", other)
	nodetest.Address(t, s.neighbour, "eth0", "10.67.0.200/24", "fd00:67::c8/64")
	peer := func(f family) netip.Addr { return f.choose(lanPeer4, lanPeer6) }
	host := func(f family) netip.Addr { return f.choose(lanHost4, lanHost6) }
	dealFamilies(t, func(t *testing.T, f family) {
		for name, way := range map[string]struct {
			from, to *nstest.NS
			at, seen netip.Addr
		}{
			"to the LAN":        {a.NS, s.neighbour, peer(f), f.of(a)},
			"of the LAN":        {s.neighbour, a.NS, f.of(a), peer(f)},
			"container":         {a.NS, b.NS, f.of(b), f.of(a)},
			"to the host":       {b.NS, s.NS, host(f), f.of(b)},
			"of the host":       {s.NS, b.NS, f.of(b), host(f)},
			"another interface": {s.neighbour, a.NS, f.of(again), f.choose(netip.MustParseAddr("10.67.0.200"), netip.MustParseAddr("fd00:67::c8"))},
		} {
			t.Run(name, func(t *testing.T) { testWay(t, way.from, way.to, way.at, way.seen) })
		}
	})
	// The container's stack answers for each address by each device: a child for others', too.
	drops := s.Drops(t)
	delete(drops, "from_container neighbour")
	if len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}
	for _, c := range []*nodetest.Container{a, b, again} {
		if got := refusalOf(s.Call(t, checked(c))); got != (refusal{}) {
			t.Errorf("CHECK of %s %s: %+v", c.ContainerID, c.IfName, got)
		}
	}
	judged := func(t *testing.T, ingress, egress, answers string) {
		t.Helper()
		dealFamilies(t, func(t *testing.T, f family) {
			asks := func(from *nstest.NS, at netip.AddrPort) func() string {
				return func() string { return s.udp(t, from, at) }
			}
			atA, atB := serveUDP(t, a.NS, netip.AddrPortFrom(f.of(a), 0)), serveUDP(t, b.NS, netip.AddrPortFrom(f.of(b), 0))
			atPeer := serveUDP(t, s.neighbour, netip.AddrPortFrom(peer(f), 0))
			try(t,
				trial{"the LAN to a", asks(s.neighbour, atA), ingress}, trial{"the host to a", asks(s.NS, atA), ingress},
				trial{"a to the LAN", asks(a.NS, atPeer), egress}, trial{"b to a", asks(b.NS, atA), answers}, trial{"a to b", asks(a.NS, atB), egress},
			)
		})
	}
	t.Run("open", func(t *testing.T) { judged(t, "", "", "") })
	s.apply(t, networkPolicy("p", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: b}}}]}]}"))
	t.Run("ingress", func(t *testing.T) { judged(t, byIngress, "", "") })
	s.apply(t, networkPolicy("p", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress]}"))
	t.Run("egress", func(t *testing.T) { judged(t, "", byEgress, "") })

	// The agent that comes after one that was killed is obeyed.
	s.Kill(t)
	t.Run("without an agent", func(t *testing.T) {
		f := families()[0]
		atA, atPeer := serveUDP(t, a.NS, netip.AddrPortFrom(f.of(a), 0)), serveUDP(t, s.neighbour, netip.AddrPortFrom(peer(f), 0))
		askUDP(t, dialUDP(t, s.neighbour, netip.AddrPort{}, atA), pattern(10))
		if _, err := tryUDP(dialUDP(t, a.NS, netip.AddrPort{}, atPeer), pattern(10), time.Second); err == nil {
			t.Error("what policy denies passes")
		}
	})
	s.Start(t)
	t.Run("as before", func(t *testing.T) { judged(t, "", byEgress, "") })
	s.apply(t, networkPolicy("p", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress]}"))
	t.Run("ingress again", func(t *testing.T) { judged(t, byIngress, "", byIngress) })
	s.delete(t, "p")
	t.Run("open again", func(t *testing.T) { judged(t, "", "", "") })

	t.Run("by the master", func(t *testing.T) { testInContainerMaster(t, s, b) })
	t.Run("spoofed", func(t *testing.T) { testInContainerSpoof(t, s, b) })
	a.Run(t, "tc", "qdisc", "del", "dev", "net1", "clsact")
	if got := refusalOf(s.Call(t, checked(a))); !strings.Contains(got.Msg, "program child_ingress on net1 in the container is missing; program child_egress on net1 in the container is missing") {
		t.Errorf("CHECK without programs: %+v", got)
	}
	for _, c := range []*nodetest.Container{a, b, again} {
		s.Delete(t, c)
		if out := c.Run(t, "ip", "-br", "link", "show", "type", "macvlan"); strings.Contains(out, c.IfName) {
			t.Errorf("after DEL: %s", out)
		}
	}
	if out := a.Run(t, "ip", "-br", "link", "show", "eth1"); !strings.Contains(out, "eth1") {
		t.Errorf("the master is gone: %s", out)
	}
}

// testInContainerMaster: what the container's routes, and the link's caches, send by the master with the
// child's address reaches it, and policy is asked as by the child.
func testInContainerMaster(t *testing.T, s *inContainers, c *nodetest.Container) {
	master, err := c.Handle.LinkByName("eth1")
	if err != nil {
		t.Fatal(err)
	}
	nodetest.Address(t, c.NS, "eth1", "10.66.0.150/24", "fd00:66::96/64")
	dealFamilies(t, func(t *testing.T, f family) {
		peer := f.choose(lanPeer4, lanPeer6)
		c.Run(t, "ip", "route", "add", peer.String(), "dev", "eth1")
		s.neighbour.Run(t, "ip", "neigh", "replace", f.of(c).String(), "lladdr", master.Attrs().HardwareAddr.String(), "dev", "eth0")
		atC, atPeer := serveUDP(t, c.NS, netip.AddrPortFrom(f.of(c), 0)), serveUDP(t, s.neighbour, netip.AddrPortFrom(peer, 0))
		toC := func() string { return s.udp(t, s.neighbour, atC) }
		ofC := func() string {
			return s.ask(t, dialUDP(t, c.NS, netip.AddrPortFrom(f.of(c), 0), atPeer))
		}
		try(t, trial{"open, to it", toC, ""}, trial{"open, of it", ofC, ""})
		s.apply(t, networkPolicy("p", "{podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress]}"))
		try(t, trial{"ingress, to it", toC, byIngress}, trial{"ingress, of it", ofC, ""})
		s.apply(t, networkPolicy("p", "{podSelector: {matchLabels: {app: b}}, policyTypes: [Egress]}"))
		try(t, trial{"egress, to it", toC, ""}, trial{"egress, of it", ofC, byEgress})
		s.delete(t, "p")
		c.Run(t, "ip", "route", "del", peer.String(), "dev", "eth1")
	})
	c.Run(t, "ip", "address", "flush", "dev", "eth1")
}

// testInContainerSpoof: who has the device writes neither another's address nor another's MAC.
func testInContainerSpoof(t *testing.T, s *inContainers, c *nodetest.Container) {
	f := families()[0]
	atPeer := serveUDP(t, s.neighbour, netip.AddrPortFrom(lanPeer4, 0))
	send := func(from *nstest.NS, source netip.AddrPort, to netip.AddrPort) func() {
		return func() {
			if _, err := dialUDP(t, from, source, to).Write(pattern(10)); err != nil {
				t.Fatal(err)
			}
		}
	}
	macOf := func(ns *nstest.NS, device string) string {
		link, err := ns.Handle.LinkByName(device)
		if err != nil {
			t.Fatal(err)
		}
		return link.Attrs().HardwareAddr.String()
	}
	c.Run(t, "ip", "neigh", "replace", lanPeer4.String(), "lladdr", macOf(s.neighbour, "eth0"), "dev", "net1")
	own := netip.AddrPortFrom(f.of(c), 0)
	for _, one := range []struct {
		what, journey, reason string
		before                []string
		do                    func()
	}{
		{"another's address", "from_container", "source_address", []string{"address", "add", "10.66.0.99/32", "dev", "net1"}, send(c.NS, netip.MustParseAddrPort("10.66.0.99:0"), atPeer)},
		{"another MAC", "from_container", "source_mac", []string{"link", "set", "net1", "address", "02:00:00:00:00:99"}, send(c.NS, own, atPeer)},
	} {
		if one.before != nil {
			c.Run(t, "ip", one.before...)
		}
		dropped := s.Counter(t, one.journey, one.reason)
		before := dropped()
		one.do()
		nodetest.Eventually(t, one.what+" dropped", func() error {
			if dropped() == before {
				return errors.New("it is not")
			}
			return nil
		})
	}
	c.Run(t, "ip", "link", "set", "net1", "address", c.MAC.String())
}
