// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink/nl"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// join makes tap a port of the bridge, in one VLAN, without a tag or with it, and nothing else.
func (s *site) join(t *testing.T, tap string, vlan uint16, untagged bool) {
	t.Helper()
	s.Run(t, "ip", "link", "set", tap, "master", "tendril0")
	port, err := s.Handle.LinkByName(tap)
	if err == nil {
		err = s.Handle.BridgeVlanDel(port, 1, true, true, false, true)
	}
	if err == nil {
		err = s.Handle.BridgeVlanAdd(port, vlan, untagged, untagged, false, true)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// unheard says that what is sent to an address by its MAC does not arrive.
func unheard(t *testing.T, from, to *nstest.NS, at netip.Addr, mac net.HardwareAddr) {
	t.Helper()
	listener := listenUDP(t, to, netip.AddrPortFrom(at, 0))
	there := netip.AddrPortFrom(at, listener.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	from.Run(t, "ip", "neigh", "replace", at.String(), "lladdr", mac.String(), "dev", "eth0")
	from.Run(t, "ip", "route", "replace", netip.PrefixFrom(at, at.BitLen()).String(), "dev", "eth0")
	if _, err := dialUDP(t, from, netip.AddrPort{}, there).Write(pattern(10)); err != nil {
		t.Error(err)
	}
	_ = listener.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if _, by, err := listener.ReadFrom(make([]byte, 64)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("heard at %s (%s) from %v: %v", at, mac, by, err)
	}
	from.Run(t, "ip", "route", "del", netip.PrefixFrom(at, at.BitLen()).String(), "dev", "eth0")
	from.Run(t, "ip", "neigh", "del", at.String(), "dev", "eth0")
}

// Containers in a VLAN of a bridge are neighbours of who is in it, and of nobody else on the
// bridge; by way of the node they reach all that others reach.
func TestBridgeVLAN(t *testing.T) {
	nstest.LeaveTo(t, "6.1")
	g := newGuarded(t)
	s := g.site
	addVLAN(t, s.world, 9) // before there is a bridge
	plain := driver(api.DriverBridge).of(s.Network("plain", "10.14.0.0/24", "fd00:14::/64"))
	blue := driver(api.DriverBridge).of(s.Network("blue", "10.13.0.0/24", "fd00:13::/64")).With("vlan", 20)
	g.pods = driver(api.DriverBridge).of(g.pods).With("vlan", 10).With("preserveDefaultVlan", false).
		With("capabilities", map[string]any{"portMappings": true})
	a := g.dress(t, "a")
	g.pods = g.pods.With("runtimeConfig", map[string]any{
		"portMappings": []any{map[string]any{"hostPort": 8080, "containerPort": 53, "protocol": "udp"}},
	})
	b := g.dress(t, "b")
	c, d := s.Attach(t, "c", blue), s.Attach(t, "d", plain)

	machine := func(name string, vlan uint16, untagged bool) *nstest.NS {
		m := nstest.New(t, name)
		settle(t, m)
		nstest.Veth(t, s.NS, "tap-"+name, m, "eth0")
		s.join(t, "tap-"+name, vlan, untagged)
		return m
	}
	station, stranger := machine("ten", 10, true), machine("twenty", 20, true)
	nodetest.Address(t, station, "eth0", station4.String()+"/16", station6.String()+"/64")
	nodetest.Address(t, stranger, "eth0", "10.10.200.3/16", "fd00:10::c8:3/64")
	trunk := machine("trunk", 10, false)
	addVLAN(t, trunk, 10)
	nodetest.Address(t, trunk, "eth0.10", "10.10.200.2/16", "fd00:10::c8:2/64")
	settle(t, trunk)

	dealFamilies(t, func(t *testing.T, f family) {
		t.Run("neighbour", func(t *testing.T) { testWay(t, a.NS, b.NS, f.of(b), f.of(a)) })
		t.Run("machine", func(t *testing.T) { testWay(t, a.NS, station, f.station(), f.of(a)) })
		t.Run("from a trunk", func(t *testing.T) {
			testWay(t, trunk, a.NS, f.of(a), f.choose(netip.MustParseAddr("10.10.200.2"), netip.MustParseAddr("fd00:10::c8:2")))
		})
		t.Run("host", func(t *testing.T) { testWay(t, s.NS, a.NS, f.of(a), f.choose(a.Gateway4, a.Gateway6)) })
		t.Run("to the host", func(t *testing.T) { testWay(t, a.NS, s.NS, f.choose(a.Gateway4, a.Gateway6), f.of(a)) })
		t.Run("world", func(t *testing.T) { testWay(t, a.NS, s.world, f.world, f.uplink) })
		t.Run("another VLAN, routed", func(t *testing.T) { testWay(t, a.NS, c.NS, f.of(c), f.of(a)) })
		t.Run("without a VLAN, routed", func(t *testing.T) { testWay(t, d.NS, a.NS, f.of(a), f.of(d)) })
		t.Run("port", func(t *testing.T) {
			serveUDP(t, b.NS, netip.AddrPortFrom(f.of(b), 53))
			if got := askUDP(t, dialUDP(t, s.world, netip.AddrPort{}, netip.AddrPortFrom(f.uplink, 8080)), pattern(10)).Addr(); got != f.world {
				t.Errorf("the container saw the world as %s", got)
			}
		})
		t.Run("by MAC", func(t *testing.T) {
			unheard(t, a.NS, c.NS, f.of(c), c.MAC)
			unheard(t, c.NS, a.NS, f.of(a), a.MAC)
			unheard(t, a.NS, d.NS, f.of(d), d.MAC)
			unheard(t, d.NS, a.NS, f.of(a), a.MAC)
			unheard(t, stranger, a.NS, f.of(a), a.MAC)
		})
		t.Run("policy", func(t *testing.T) {
			at := serveUDP(t, a.NS, netip.AddrPortFrom(f.of(a), 0))
			asks := func(from *nstest.NS) func() string { return func() string { return g.udp(t, from, at) } }
			g.apply(t, networkPolicy("shut", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress]}"))
			try(t, trial{"neighbour", asks(b.NS), byIngress}, trial{"machine", asks(station), byIngress},
				trial{"another VLAN", asks(c.NS), byIngress}, trial{"host", asks(s.NS), ""})
			g.delete(t, "shut")
			try(t, trial{"neighbour again", asks(b.NS), ""})
		})
	})

	all := []*nodetest.Container{a, b, c, d}
	for _, one := range all {
		if got := refusalOf(s.Call(t, checked(one))); got != (refusal{}) {
			t.Errorf("CHECK of %s: %+v", one.ContainerID, got)
		}
	}
	// What somebody changes is put back.
	vlans := func() (of []nl.BridgeVlanInfo) {
		t.Helper()
		port, err := s.Handle.LinkByName(a.HostIfName)
		if err != nil {
			t.Fatal(err)
		}
		all, err := s.Handle.BridgeVlanList()
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range all[int32(port.Attrs().Index)] {
			of = append(of, *v)
		}
		return of
	}
	before := vlans()
	port, err := s.Handle.LinkByName(a.HostIfName)
	if err == nil {
		err = s.Handle.BridgeVlanAdd(port, 20, true, true, false, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.Stop(t)
	s.Run(t, "ip", "link", "del", "tendril0.10")
	s.Start(t)
	if got := refusalOf(s.Call(t, checked(a))); got != (refusal{}) {
		t.Errorf("CHECK after the repair: %+v", got)
	}
	if diff := cmp.Diff(before, vlans()); diff != "" {
		t.Errorf("VLANs of the port after the repair (-want +got):\n%s", diff)
	}
	eachFamily(t, func(t *testing.T, f family) {
		testWay(t, a.NS, b.NS, f.of(b), f.of(a))
		testWay(t, a.NS, s.world, f.world, f.uplink)
	})
	want := api.Health{OK: true}
	if diff := cmp.Diff(want, s.Status(t).Health); diff != "" {
		t.Errorf("health (-want +got):\n%s", diff)
	}
	for _, one := range all {
		s.Delete(t, one)
	}
}
