// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
)

// The second uplink of a site, and an address that both worlds have.
var (
	second4   = netip.MustParseAddr("203.0.113.1")
	second6   = netip.MustParseAddr("2001:db8:2::1")
	anywhere4 = netip.MustParseAddr("198.18.0.1")
	anywhere6 = netip.MustParseAddr("2001:db8:ffff::1")
)

func (f family) second() netip.Addr { return f.choose(second4, second6) }

func (f family) anywhere() netip.Addr { return f.choose(anywhere4, anywhere6) }

// newSecond gives the site another uplink, up1, with a world of its own. Both
// worlds answer at the addresses "anywhere", from one port.
func newSecond(t *testing.T, s *site) *nstest.NS {
	t.Helper()
	other := nstest.New(t, "world2")
	settle(t, other)
	connectSecond(t, s, other)
	for _, world := range []*nstest.NS{s.world, other} {
		nodetest.Address(t, world, "lo", anywhere4.String()+"/32", anywhere6.String()+"/128")
	}
	return other
}

func connectSecond(t *testing.T, s *site, other *nstest.NS) {
	t.Helper()
	nstest.Veth(t, s.NS, "up1", other, "eth0")
	nodetest.Address(t, s.NS, "up1", "203.0.113.1/24", "2001:db8:2::1/64")
	nodetest.Address(t, other, "eth0", "203.0.113.2/24", "2001:db8:2::2/64")
}

// anywherePort is where both worlds answer.
const anywherePort = 4000

// awaitUplinks waits until the agent serves exactly these devices.
func awaitUplinks(t *testing.T, s *site, names ...string) {
	t.Helper()
	nodetest.Eventually(t, "uplinks", func() error {
		var got []string
		for _, u := range s.Status(t).Uplinks {
			if u.IPv4.IsValid() && u.IPv6.IsValid() {
				got = append(got, u.Name)
			}
		}
		slices.Sort(got)
		return nodetest.Unlike(strings.Join(got, " "), strings.Join(names, " "))
	})
}

// sees waits until an answer on the flow tells that it leaves by the uplink with that
// address. The agent hears of a route a moment after it was changed: the first answers may
// still be those of the old way, and what is decided anew in that moment is dropped, since
// it would leave unhidden.
func sees(t *testing.T, what string, conn *net.UDPConn, want netip.Addr) {
	t.Helper()
	nodetest.Eventually(t, what, func() error {
		got, err := tryUDP(conn, pattern(10), time.Second)
		if err != nil {
			return err
		}
		return nodetest.Unlike(got.Addr(), want)
	})
}

// The default route moves to another uplink: flows follow it, under the new
// uplink's address, and back.
func TestDefaultRouteMoves(t *testing.T) {
	nstest.Halve(t, 0)
	s := running(t)
	other := newSecond(t, s)
	c := s.Attach(t, "c", s.pods)
	conns := make(map[string]*net.UDPConn)
	for _, f := range families() {
		at := netip.AddrPortFrom(f.anywhere(), anywherePort)
		serveUDP(t, s.world, at)
		serveUDP(t, other, at)
		conns[f.name] = dialUDP(t, c.NS, netip.AddrPort{}, at)
		sees(t, "before", conns[f.name], f.uplink)
	}
	awaitUplinks(t, s, "up0")
	s.Run(t, "ip", "route", "replace", "default", "via", "203.0.113.2", "dev", "up1")
	s.Run(t, "ip", "-6", "route", "add", "default", "via", "2001:db8:2::2", "dev", "up1", "metric", "10")
	s.Run(t, "ip", "-6", "route", "del", "default", "via", "2001:db8::2", "dev", "up0")
	for _, f := range families() {
		sees(t, f.name+" after the move", conns[f.name], f.second())
		fresh := dialUDP(t, c.NS, netip.AddrPort{}, netip.AddrPortFrom(f.anywhere(), anywherePort))
		sees(t, f.name+" new flow after the move", fresh, f.second())
	}
	awaitUplinks(t, s, "up1")
	s.Run(t, "ip", "route", "replace", "default", "via", "192.0.2.2", "dev", "up0")
	s.Run(t, "ip", "-6", "route", "add", "default", "via", "2001:db8::2", "dev", "up0", "metric", "5")
	s.Run(t, "ip", "-6", "route", "del", "default", "via", "2001:db8:2::2", "dev", "up1")
	for _, f := range families() {
		sees(t, f.name+" after the move back", conns[f.name], f.uplink)
	}
	awaitUplinks(t, s, "up0")
}

// Two uplinks at once, chosen by destination and by a rule for a source. Each
// flow keeps to its own, both ways.
func TestTwoUplinks(t *testing.T) {
	nstest.LeaveTo(t, "7")
	s := newSite(t)
	other := newSecond(t, s)
	s.Run(t, "ip", "route", "add", "default", "via", "203.0.113.2", "dev", "up1", "metric", "500")
	s.Run(t, "ip", "-6", "route", "add", "default", "via", "2001:db8:2::2", "dev", "up1", "metric", "5000")
	s.Start(t)
	awaitUplinks(t, s, "up0", "up1")
	plain, ruled := s.Attach(t, "plain", s.pods), s.Attach(t, "ruled", s.pods)
	s.Run(t, "ip", "route", "add", "198.18.0.0/24", "via", "203.0.113.2")
	s.Run(t, "ip", "-6", "route", "add", "2001:db8:ffff::/64", "via", "2001:db8:2::2")
	s.Run(t, "ip", "route", "add", "default", "via", "203.0.113.2", "table", "100")
	s.Run(t, "ip", "-6", "route", "add", "default", "via", "2001:db8:2::2", "table", "100")
	s.Run(t, "ip", "rule", "add", "from", ruled.IPv4.String(), "table", "100")
	s.Run(t, "ip", "-6", "rule", "add", "from", ruled.IPv6.String(), "table", "100")
	nodetest.Route(t, other, []string{"192.0.2.0/24", "via", "203.0.113.1"}, []string{"2001:db8::/64", "via", "2001:db8:2::1"})
	eachFamily(t, func(t *testing.T, f family) {
		specific, world := netip.AddrPortFrom(f.anywhere(), anywherePort), netip.AddrPortFrom(f.world, anywherePort)
		for _, ns := range []*nstest.NS{s.world, other} {
			serveUDP(t, ns, specific)
		}
		serveUDP(t, s.world, world)
		// The other world has the first one's address as well.
		nodetest.Address(t, other, "lo", fmt.Sprintf("%s/%d", f.world, f.world.BitLen()))
		serveUDP(t, other, world)
		type flow struct {
			name string
			conn *net.UDPConn
			want netip.Addr
		}
		var flows []flow
		for _, one := range []struct {
			name string
			from *nodetest.Container
			to   netip.AddrPort
			want netip.Addr
		}{
			{"by the default route", plain, world, f.uplink},
			{"by the route for the destination", plain, specific, f.second()},
		} {
			flows = append(flows, flow{one.name, dialUDP(t, one.from.NS, netip.AddrPort{}, one.to), one.want})
		}
		elsewhere := netip.AddrPortFrom(f.elsewhere(), anywherePort)
		for _, ns := range []*nstest.NS{s.world, other} {
			nodetest.Address(t, ns, "lo", fmt.Sprintf("%s/%d", f.elsewhere(), f.elsewhere().BitLen()))
			serveUDP(t, ns, elsewhere)
		}
		flows = append(flows,
			flow{"without a rule", dialUDP(t, plain.NS, netip.AddrPort{}, elsewhere), f.uplink},
			flow{"by the rule for the source", dialUDP(t, ruled.NS, netip.AddrPort{}, elsewhere), f.second()})
		for _, one := range flows {
			sees(t, one.name, one.conn, one.want)
		}
		for range 5 { // and it stays so, in turn
			for _, one := range flows {
				if got := askUDP(t, one.conn, pattern(1000)).Addr(); got != one.want {
					t.Errorf("%s: seen as %s, not %s", one.name, got, one.want)
				}
			}
		}
	})
}

func (f family) elsewhere() netip.Addr {
	return f.choose(netip.MustParseAddr("198.19.0.1"), netip.MustParseAddr("2001:db8:eeee::1"))
}

// An uplink that goes, with its device, and comes back under another number
// serves the containers that were there all the time.
func TestUplinkComesBack(t *testing.T) {
	s := newSite(t)
	other := newSecond(t, s)
	// A metric of 0, which cannot be undercut, becomes one that can.
	s.Run(t, "ip", "route", "del", "default")
	s.Run(t, "ip", "route", "add", "default", "via", "192.0.2.2", "metric", "100")
	route := func() {
		s.Run(t, "ip", "route", "add", "default", "via", "203.0.113.2", "dev", "up1", "metric", "1")
		s.Run(t, "ip", "-6", "route", "add", "default", "via", "2001:db8:2::2", "dev", "up1", "metric", "1")
	}
	route()
	s.Start(t)
	c := s.Attach(t, "c", s.pods)
	conns := make(map[string]*net.UDPConn)
	leak := openWatch(t, other)
	t.Cleanup(func() {
		for _, frame := range append(leak.find(c.IPv4.AsSlice()), leak.find(c.IPv6.AsSlice())...) {
			t.Errorf("the world saw the container's own address: %s", packet.Summary(frame))
		}
	})
	for _, f := range families() {
		at := netip.AddrPortFrom(f.anywhere(), anywherePort)
		serveUDP(t, s.world, at)
		serveUDP(t, other, at)
		conns[f.name] = dialUDP(t, c.NS, netip.AddrPort{}, at)
		sees(t, f.name+" before", conns[f.name], f.second())
	}
	for range 2 {
		s.Run(t, "ip", "link", "del", "up1")
		for _, f := range families() {
			// What is sent before the agent hears of it is lost with the device.
			nodetest.Eventually(t, f.name+" by the uplink that is left", func() error {
				got, err := tryUDP(conns[f.name], pattern(10), time.Second)
				if err != nil {
					return err
				}
				return nodetest.Unlike(got.Addr(), f.uplink)
			})
		}
		awaitUplinks(t, s, "up0")
		connectSecond(t, s, other)
		route()
		for _, f := range families() {
			// What meets the new route before the agent hears of it is dropped: it
			// must not leave unhidden.
			nodetest.Eventually(t, f.name+" after the uplink came back", func() error {
				got, err := tryUDP(conns[f.name], pattern(10), time.Second)
				if err != nil {
					return err
				}
				return nodetest.Unlike(got.Addr(), f.second())
			})
		}
		awaitUplinks(t, s, "up0", "up1")
	}
	if got := s.State(t).Entries["interfaces"]; got != 3 {
		t.Errorf("the map of interfaces has %d entries, not 3: two uplinks and a container", got)
	}
}
