// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// The addresses of a machine on the bridge that is no container: a VM behind its tap.
var (
	station4 = netip.MustParseAddr("10.10.200.1")
	station6 = netip.MustParseAddr("fd00:10::c8:1")
)

func (f family) station() netip.Addr { return f.choose(station4, station6) }

// newStation puts a machine on the bridge of the network "pods", which has to be there.
func newStation(t *testing.T, s *site) *nstest.NS {
	t.Helper()
	station := nstest.New(t, "station")
	settle(t, station)
	nstest.Veth(t, s.NS, "tap0", station, "eth0")
	s.Run(t, "ip", "link", "set", "tap0", "master", "tendril0")
	nodetest.Address(t, station, "eth0", station4.String()+"/16", station6.String()+"/64")
	return station
}

// A machine on the bridge reaches containers and is reached, under its own address and
// theirs; policy counts for it, both ways.
func TestBridgeStation(t *testing.T) {
	nstest.Halve(t, 1)
	g := newGuarded(t)
	g.pods = driver(api.DriverBridge).of(g.pods)
	a := g.dress(t, "a")
	station := newStation(t, g.site)
	eachFamily(t, func(t *testing.T, f family) {
		serveUDP(t, station, netip.AddrPortFrom(f.station(), 53))
		serveUDP(t, a.NS, netip.AddrPortFrom(f.of(a), 53))
		toStation := func() string { return g.udp(t, a.NS, netip.AddrPortFrom(f.station(), 53)) }
		toA := func() string { return g.udp(t, station, netip.AddrPortFrom(f.of(a), 53)) }
		trials := func(name string, all ...trial) {
			t.Run(name, func(t *testing.T) { try(t, all...) })
		}
		trials("open", trial{"a to the station", toStation, ""}, trial{"the station to a", toA, ""})
		g.apply(t, networkPolicy("shut", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress]}"))
		trials("ingress", trial{"a to the station", toStation, ""}, trial{"the station to a", toA, byIngress})
		g.apply(t, networkPolicy("shut", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress]}"))
		trials("egress", trial{"a to the station", toStation, byEgress}, trial{"the station to a", toA, ""})
		g.delete(t, "shut")
	})
	t.Run("isolation", func(t *testing.T) { testBridgeIsolation(t, g.site, station) })
}

// Containers of an isolated network do not reach each other, whichever way frames take; they
// reach the world, and a machine on the bridge that is not isolated.
func testBridgeIsolation(t *testing.T, s *site, station *nstest.NS) {
	isolated := s.pods.With("portIsolation", true)
	a, b := s.Attach(t, "alone1", isolated), s.Attach(t, "alone2", isolated)
	eachFamily(t, func(t *testing.T, f family) {
		// Neighbours are known, so that the question itself is sent.
		a.Run(t, "ip", "neigh", "replace", f.of(b).String(), "lladdr", b.MAC.String(), "dev", "eth0")
		inside := serveUDP(t, b.NS, netip.AddrPortFrom(f.of(b), 0))
		conn := dialUDP(t, a.NS, netip.AddrPort{}, inside)
		_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
		_, err := conn.Write(pattern(10))
		if _, read := conn.Read(make([]byte, 64)); err != nil || !errors.Is(read, os.ErrDeadlineExceeded) {
			t.Errorf("a reached b: %v, %v", err, read)
		}
		for _, at := range []netip.AddrPort{
			serveUDP(t, s.world, netip.AddrPortFrom(f.world, 0)), serveUDP(t, station, netip.AddrPortFrom(f.station(), 0)),
		} {
			askUDP(t, dialUDP(t, a.NS, netip.AddrPort{}, at), pattern(10))
		}
	})
	for _, c := range []*nodetest.Container{a, b} {
		if got := refusalOf(s.Call(t, checked(c))); got != (refusal{}) {
			t.Errorf("CHECK of %s: %+v", c.ContainerID, got)
		}
	}
}

// A macvlan or ipvlan device of other software on the bridge has its frames come to the ports as those
// of the host do, with a socket: policy counts for it all the same, and not for the host.
func TestBridgeLodger(t *testing.T) {
	nstest.LeaveTo(t, "7")
	g := newGuarded(t)
	g.pods = driver(api.DriverBridge).of(g.pods)
	a := g.dress(t, "a")
	for _, kind := range [][]string{{"macvlan", "mode", "bridge"}, {"macvlan", "mode", "vepa"}, {"ipvlan", "mode", "l2"}} {
		t.Run(strings.Join(kind, " "), func(t *testing.T) {
			lodger := nstest.New(t, "lodger")
			settle(t, lodger)
			make := append([]string{"link", "add", "lodger0", "link", "tendril0", "type"}, kind...)
			out, err := g.Command("ip", make...).CombinedOutput()
			if err != nil {
				notBuilt(t, out, kind[0], "CONFIG_"+strings.ToUpper(kind[0]))
			}
			g.Run(t, "ip", "link", "set", "lodger0", "netns", lodger.Name)
			lodger.Run(t, "ip", "link", "set", "lodger0", "up")
			nodetest.Address(t, lodger, "lodger0", station4.String()+"/16", station6.String()+"/64")
			eachFamily(t, func(t *testing.T, f family) {
				at := serveUDP(t, a.NS, netip.AddrPortFrom(f.of(a), 0))
				lodgerToA := func() string { return g.udp(t, lodger, at) }
				hostToA := func() string { return g.udp(t, g.NS, at) }
				try(t, trial{"open, the lodger", lodgerToA, ""}, trial{"open, the host", hostToA, ""})
				g.apply(t, networkPolicy("shut", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress]}"))
				try(t, trial{"shut, the lodger", lodgerToA, byIngress}, trial{"shut, the host", hostToA, ""},
					trial{"shut, ping of the host", func() string { return g.ping(t, g.NS, f.of(a)) }, ""})
				allowed := "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: " +
					netip.PrefixFrom(f.station(), f.station().BitLen()).String() + "}}]}]}"
				g.apply(t, networkPolicy("shut", allowed))
				try(t, trial{"allowed, the lodger", lodgerToA, ""})
				g.delete(t, "shut")
			})
		})
	}
}

// A container whose router is another machine on the bridge is reached at ports of the host
// all the same: its answers are caught on their way there.
func TestBridgePortsBesideARouter(t *testing.T) {
	s := running(t)
	s.pods = s.pods.With("driver", api.DriverBridge)
	s.Run(t, "ip", "link", "add", "tendril0", "type", "bridge")
	newStation(t, s)
	s.pods = s.pods.With("routes", []any{
		map[string]any{"dst": "0.0.0.0/0", "gw": station4.String()}, map[string]any{"dst": "::/0", "gw": station6.String()},
	}).With("capabilities", map[string]any{"portMappings": true}).With("runtimeConfig", map[string]any{
		"portMappings": []any{map[string]any{"hostPort": 8080, "containerPort": 53, "protocol": "udp"}},
	})
	c := s.Attach(t, "c", s.pods)
	eachFamily(t, func(t *testing.T, f family) {
		serveUDP(t, c.NS, netip.AddrPortFrom(f.of(c), 53))
		dialled := netip.AddrPortFrom(f.uplink, 8080)
		if got := askUDP(t, dialUDP(t, s.world, netip.AddrPort{}, dialled), pattern(10)).Addr(); got != f.world {
			t.Errorf("the container saw the world as %s", got)
		}
	})
}

// What somebody took from a bridge and its ports, the agent puts back; meanwhile and later
// the containers keep what they have.
func TestBridgeRepaired(t *testing.T) {
	s := drivenBy(t, api.DriverBridge)
	a, b := s.Attach(t, "a", s.pods), s.Attach(t, "b", s.pods)
	at := serveUDP(t, s.world, netip.AddrPortFrom(world4, 0))
	works := func() {
		t.Helper()
		for _, c := range []*nodetest.Container{a, b} {
			if got := refusalOf(s.Call(t, checked(c))); got != (refusal{}) {
				t.Errorf("CHECK of %s: %+v", c.ContainerID, got)
			}
			if got := askUDP(t, dialUDP(t, c.NS, netip.AddrPort{}, at), pattern(10)).Addr(); got != uplink4 {
				t.Errorf("the world saw %s as %s", c.ContainerID, got)
			}
		}
		inside := serveUDP(t, b.NS, netip.AddrPortFrom(b.IPv6, 0))
		if got := askUDP(t, dialUDP(t, a.NS, netip.AddrPort{}, inside), pattern(10)).Addr(); got != a.IPv6 {
			t.Errorf("b saw a as %s", got)
		}
	}
	works()
	for _, damage := range []string{
		"address del 10.10.0.1/16 dev tendril0", "link set tendril0 down", "link set " + a.HostIfName + " nomaster", "link del tendril0",
	} {
		t.Run(damage, func(t *testing.T) {
			s.Stop(t)
			s.Run(t, "ip", strings.Fields(damage)...)
			s.Start(t) // which does at once what it does each minute
			works()
		})
	}
	var want api.Health
	want.OK = true
	if diff := cmp.Diff(want, s.Status(t).Health); diff != "" {
		t.Errorf("health (-want +got):\n%s", diff)
	}
}
