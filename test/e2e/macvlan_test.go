// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// joinLAN puts the node into the network of its macvlan devices, as its router: lan0 is on
// a wire to a switch, where a neighbour is, too. The neighbour has a station's addresses.
func (s *site) joinLAN(t *testing.T) {
	t.Helper()
	s.switched, s.neighbour = nstest.New(t, "switch"), nstest.New(t, "neighbour")
	settle(t, s.switched)
	settle(t, s.neighbour)
	s.switched.Run(t, "ip", "link", "add", "sw0", "up", "type", "bridge")
	s.plug(t, s.NS, "lan0", "p0")
	s.plug(t, s.neighbour, "eth0", "p1")
	nodetest.Address(t, s.NS, "lan0", "10.10.0.1/16", "fd00:10::1/64")
	nodetest.Address(t, s.neighbour, "eth0", station4.String()+"/16", station6.String()+"/64")
	// Containers are shown to the world as they are.
	s.world.Run(t, "ip", "route", "replace", pods4, "via", uplink4.String())
	s.world.Run(t, "ip", "route", "replace", pods6, "via", uplink6.String())
	nodetest.Route(t, s.neighbour, []string{"default", "via", "10.10.0.1"}, []string{"default", "via", "fd00:10::1"})
}

// plug gives somebody a device on the switch.
func (s *site) plug(t *testing.T, ns *nstest.NS, device, port string) {
	t.Helper()
	nstest.Veth(t, ns, device, s.switched, port)
	s.switched.Run(t, "ip", "link", "set", port, "master", "sw0")
}

// Two nodes and a machine on one switch: containers, nodes and the machine reach each other at their own
// addresses, and policy of one node judges what the other sends.
func TestMacvlanTwoNodes(t *testing.T) {
	nstest.LeaveTo(t, "6.1")
	g := newGuarded(t)
	g.drive(t, api.DriverMacvlan)
	second := running(t)
	g.plug(t, second.NS, "lan0", "p2")
	second4, second6 := netip.MustParseAddr("10.10.0.240"), netip.MustParseAddr("fd00:10::f0")
	nodetest.Address(t, second.NS, "lan0", second4.String()+"/16", second6.String()+"/64")
	part := func(subnet, gateway, first, last string) []any {
		return []any{map[string]any{"subnet": subnet, "gateway": gateway, "rangeStart": first, "rangeEnd": last}}
	}
	theirs := driver(api.DriverMacvlan).of(second.Network("pods")).With("ipam", map[string]any{"type": "tendril", "ranges": []any{
		part(pods4, "10.10.0.1", "10.10.2.1", "10.10.2.9"), part(pods6, "fd00:10::1", "fd00:10::2:1", "fd00:10::2:9"),
	}})
	a, b := g.dress(t, "a"), second.Attach(t, "b", theirs)
	eachFamily(t, func(t *testing.T, f family) {
		host := f.choose(second4, second6)
		for name, way := range map[string]struct {
			from, to *nstest.NS
			at, seen netip.Addr
		}{
			"container to container": {a.NS, b.NS, f.of(b), f.of(a)},
			"back":                   {b.NS, a.NS, f.of(a), f.of(b)},
			"to the other node":      {a.NS, second.NS, host, f.of(a)},
			"of the other node":      {second.NS, a.NS, f.of(a), host},
			"its own node":           {second.NS, b.NS, f.of(b), host},
			"the machine":            {g.neighbour, b.NS, f.of(b), f.station()},
		} {
			t.Run(name, func(t *testing.T) { testWay(t, way.from, way.to, way.at, way.seen) })
		}
		atA := serveUDP(t, a.NS, netip.AddrPortFrom(f.of(a), 0))
		g.apply(t, networkPolicy("some", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: "+
			netip.PrefixFrom(f.of(b), f.of(b).BitLen()).String()+"}}]}]}"))
		try(t,
			trial{"who may, of the other node", func() string { return g.udp(t, b.NS, atA) }, ""},
			trial{"the other node", func() string { return g.udp(t, second.NS, atA) }, byIngress},
			trial{"the machine", func() string { return g.udp(t, g.neighbour, atA) }, byIngress},
			trial{"its own node", func() string { return g.udp(t, g.NS, atA) }, ""},
		)
		g.delete(t, "some")
	})
	if drops := second.Drops(t); len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}
}

// The neighbour is reached, and reaches a container at its own address.
func TestMacvlanNeighbour(t *testing.T) {
	s := drivenBy(t, api.DriverMacvlan)
	a := s.Attach(t, "a", s.pods)
	eachFamily(t, func(t *testing.T, f family) {
		t.Run("to it", func(t *testing.T) { testWay(t, a.NS, s.neighbour, f.station(), f.of(a)) })
		t.Run("from it", func(t *testing.T) { testWay(t, s.neighbour, a.NS, f.of(a), f.station()) })
	})
	if drops := s.Drops(t); len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}
}

// Two networks on one parent: of one, the host is no part.
func TestMacvlanWithoutHost(t *testing.T) {
	s := drivenBy(t, api.DriverMacvlan)
	apart := s.Network("apart", "10.11.0.0/24", "fd00:11::/64").With("driver", "macvlan").With("master", "lan0").With("ipMasq", false).
		With("hostAccess", false)
	a, b := s.Attach(t, "a", s.pods), s.Attach(t, "b", apart)
	nodetest.Address(t, s.neighbour, "eth0", "10.11.0.200/24", "fd00:11::200/64")
	nodetest.Address(t, s.NS, "lan0", "10.11.0.201/24", "fd00:11::201/64")
	const patience = 2 * time.Second
	eachFamily(t, func(t *testing.T, f family) {
		there, host := f.choose(netip.MustParseAddr("10.11.0.200"), netip.MustParseAddr("fd00:11::200")),
			f.choose(netip.MustParseAddr("10.11.0.201"), netip.MustParseAddr("fd00:11::201"))
		atB := serveUDP(t, b.NS, netip.AddrPortFrom(f.of(b), 0))
		atHost := serveUDP(t, s.NS, netip.AddrPortFrom(host, 0))
		if got := askUDP(t, dialUDP(t, s.neighbour, netip.AddrPort{}, atB), pattern(100)).Addr(); got != there {
			t.Errorf("the neighbour is seen as %s, not %s", got, there)
		}
		for what, way := range map[string]struct {
			from *nstest.NS
			to   netip.AddrPort
		}{"host to container": {s.NS, atB}, "container to host": {b.NS, atHost}} {
			if seen, err := tryUDP(dialUDP(t, way.from, netip.AddrPort{}, way.to), pattern(100), patience); err == nil {
				t.Errorf("%s: reached, and seen as %s", what, seen)
			}
		}
		// The other network has the host still.
		testWay(t, s.NS, a.NS, f.of(a), f.gateway(a))
	})
}

// A parent may go down and come back, and have another name and MAC: what connects its
// children goes on. Without it they are gone, and somebody says so.
func TestMacvlanParent(t *testing.T) {
	s := drivenBy(t, api.DriverMacvlan)
	a := s.Attach(t, "a", s.pods)
	asked := make(map[string]netip.AddrPort)
	for _, f := range families() {
		asked[f.name] = serveUDP(t, a.NS, netip.AddrPortFrom(f.of(a), 0))
	}
	answers := func(t *testing.T, what string) {
		t.Helper()
		eachFamily(t, func(t *testing.T, f family) {
			for from, ns := range map[string]*nstest.NS{"host": s.NS, "neighbour": s.neighbour} {
				nodetest.Eventually(t, what+": "+from+" to container", func() error {
					_, err := tryUDP(dialUDP(t, ns, netip.AddrPort{}, asked[f.name]), pattern(100), time.Second)
					return err
				})
			}
		})
	}
	parent := "lan0"
	change := func(what string, args ...string) {
		t.Run(what, func(t *testing.T) {
			s.Run(t, "ip", "link", "set", parent, "down")
			if args != nil {
				s.Run(t, "ip", append([]string{"link", "set", parent}, args...)...)
			}
			if what == "another name" {
				parent = args[1]
			}
			s.Run(t, "ip", "link", "set", parent, "up")
			// Down, it has lost its IPv6 address.
			s.Run(t, "ip", "address", "replace", "fd00:10::1/64", "dev", parent, "nodad")
			answers(t, what)
		})
	}
	answers(t, "at first")
	change("down and up")
	change("another name", "name", "lan1")
	change("another MAC", "address", "02:00:00:00:00:97")
	nodetest.Eventually(t, "the parent as it is", func() error {
		e, err := s.API.Endpoint(t.Context(), a.Attachment)
		if err != nil {
			return err
		}
		return nodetest.Unlike(e.Parent+" "+e.HostMAC, "lan1 02:00:00:00:00:97")
	})

	s.Run(t, "ip", "link", "del", "lan1")
	nodetest.Eventually(t, "word of the parent's end", func() error {
		return nodetest.Unlike(strings.Join(s.Status(t).Reasons, ";"),
			"macvlan devices: device lan1 is gone, and with it the interfaces of 1 containers: attach them again")
	})
	e := must(s.API.Endpoint(t.Context(), a.Attachment))(t)
	if e.State != api.Detached {
		t.Errorf("the endpoint is %s, not %s", e.State, api.Detached)
	}
	s.Delete(t, a)
}

// addVLAN gives eth0 a VLAN, up, or skips where the kernel has none; those of the matrix have.
func addVLAN(t *testing.T, ns *nstest.NS, id int) {
	t.Helper()
	name, number := fmt.Sprintf("eth0.%d", id), strconv.Itoa(id)
	if out, err := ns.Command("ip", "link", "add", "link", "eth0", "name", name, "up", "type", "vlan", "id", number).CombinedOutput(); err != nil {
		notBuilt(t, out, "a VLAN device", "CONFIG_VLAN_8021Q")
	}
}

// A VLAN comes with its first container and goes with its last.
func TestMacvlanOnVLAN(t *testing.T) {
	nstest.LeaveTo(t, "5.10")
	s := drivenBy(t, api.DriverMacvlan)
	addVLAN(t, s.neighbour, 50)
	nodetest.Address(t, s.neighbour, "eth0.50", "10.12.0.200/24", "fd00:12::200/64")
	tagged := s.Network("tagged", "10.12.0.0/24", "fd00:12::/64").With("driver", "macvlan").With("master", "lan0").With("vlan", 50).With("ipMasq", false)
	a, b := s.Attach(t, "a", tagged), s.Attach(t, "b", tagged)
	eachFamily(t, func(t *testing.T, f family) {
		there := f.choose(netip.MustParseAddr("10.12.0.200"), netip.MustParseAddr("fd00:12::200"))
		t.Run("neighbour", func(t *testing.T) { testWay(t, s.neighbour, a.NS, f.of(a), there) })
		t.Run("sibling", func(t *testing.T) { testWay(t, a.NS, b.NS, f.of(b), f.of(a)) })
	})
	s.Run(t, "ip", "link", "show", "lan0.50")
	for _, c := range []*nodetest.Container{a, b} {
		s.Delete(t, c)
	}
	if out, err := s.NS.Command("ip", "link", "show", "lan0.50").CombinedOutput(); err == nil {
		t.Errorf("the VLAN is left: %s", out)
	}
}
