// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/internal/socktest"
)

// mapping is an entry of portMappings, as runtimes send it.
type mapping struct {
	HostIP        string `json:"hostIP,omitempty"`
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol,omitempty"`
}

// Ports of the host, and those at which containers serve.
const (
	hostTCP, containerTCP = 8080, 80
	hostUDP, containerUDP = 5300, 53
)

// both maps a port of each protocol, of all addresses of the host or of these.
func both(hostIPs ...netip.Addr) []mapping {
	var all []mapping
	for _, ip := range hostIPs {
		all = append(all, mapping{ip.String(), hostTCP, containerTCP, "tcp"}, mapping{ip.String(), hostUDP, containerUDP, "udp"})
	}
	if len(hostIPs) == 0 {
		all = []mapping{{"", hostTCP, containerTCP, "tcp"}, {"", hostUDP, containerUDP, "udp"}}
	}
	return all
}

func publishing(network nodetest.Network, ports ...mapping) nodetest.Network {
	return network.With("runtimeConfig", map[string]any{"portMappings": ports})
}

// publish attaches a container to which ports of the host lead, and has it serve.
func (s *site) publish(t *testing.T, id string, network nodetest.Network, ports ...mapping) *nodetest.Container {
	t.Helper()
	c := s.Attach(t, id, publishing(network, ports...))
	serve(t, c)
	return c
}

// serve has a container serve both protocols at its addresses.
func serve(t *testing.T, c *nodetest.Container) {
	t.Helper()
	for _, f := range families() {
		serveTCP(t, c.NS, netip.AddrPortFrom(f.of(c), containerTCP))
		serveUDP(t, c.NS, netip.AddrPortFrom(f.of(c), containerUDP))
	}
}

// sight is what the ends of an exchange saw of each other.
type sight struct {
	// Peer is who answered, or whom the client's socket is connected to.
	Peer netip.AddrPort
	// Client is whom the server saw.
	Client netip.AddrPort
}

// portWay is how somebody gets to the mapped ports of an address.
type portWay struct {
	name string
	from *nstest.NS
	// at is dialled, and seen is the client's address as the server has it.
	at, seen netip.Addr
	// otherPort says that the client's port is not kept.
	otherPort bool
}

func (w portWay) tcp() netip.AddrPort { return netip.AddrPortFrom(w.at, hostTCP) }
func (w portWay) udp() netip.AddrPort { return netip.AddrPortFrom(w.at, hostUDP) }

func (w portWay) check(t *testing.T) {
	t.Helper()
	w.checkTCP(t)
	w.checkUDP(t)
}

func (w portWay) compare(t *testing.T, what string, got sight, local net.Addr) {
	t.Helper()
	port := portOf(local)
	if w.otherPort {
		port = got.Client.Port()
	}
	at := w.tcp()
	if local.Network() == "udp" {
		at = w.udp()
	}
	if diff := cmp.Diff(sight{at, netip.AddrPortFrom(w.seen, port)}, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("%s: %s to %s (-want +got):\n%s", w.name, what, w.at, diff)
	}
}

func (w portWay) checkTCP(t *testing.T) {
	t.Helper()
	tcp, err := tryTCPWithin(t, w.from, netip.AddrPort{}, w.tcp(), portPatience)
	if err != nil {
		t.Errorf("%s: TCP to %s: %v", w.name, w.tcp(), err)
		return
	}
	w.compare(t, "TCP", sight{addrPort(tcp.RemoteAddr()), tcp.Seen}, tcp.LocalAddr())
	if err := tcp.Exchange(pattern(1 << 20)); err != nil {
		t.Errorf("%s: 1 MiB by TCP to %s and back: %v", w.name, w.tcp(), err)
	}
	_ = tcp.Close()
}

// datagrams are sizes that fit one packet, and that need 3, 7 and 42 fragments.
func datagrams() []int { return []int{0, 1, 1400, 4000, 9000, 60000} }

// checkUDP leaves its sockets open: the kernel gives their ports to no later client.
func (w portWay) checkUDP(t *testing.T) {
	t.Helper()
	free := freeUDP(t, w.from, w.at)
	tied := dialUDP(t, w.from, netip.AddrPort{}, w.udp())
	for _, size := range datagrams() {
		got, err := askFrom(free, w.udp(), pattern(size))
		if err != nil {
			t.Errorf("%s: UDP of %d bytes to %s: %v", w.name, size, w.udp(), err)
			break
		}
		w.compare(t, "UDP", got, free.LocalAddr())
		seen, err := tryUDP(tied, pattern(size), portPatience)
		if err != nil {
			t.Errorf("%s: UDP of %d bytes to %s by a connected socket: %v", w.name, size, w.udp(), err)
			break
		}
		w.compare(t, "UDP by a connected socket", sight{addrPort(tied.RemoteAddr()), seen}, tied.LocalAddr())
	}
}

// portPatience is how long an answer may take. A test that has found one way
// broken goes on to the others, so it is shorter than nodetest.Patience.
const portPatience = 10 * time.Second

// askFrom asks a serveUDP with a socket that is not connected.
func askFrom(conn *net.UDPConn, to netip.AddrPort, payload []byte) (got sight, err error) {
	got.Peer, got.Client, err = socktest.TryUDPTo(conn, to, payload, portPatience)
	return got, err
}

func addrPort(a net.Addr) netip.AddrPort {
	var got netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		got = a.AddrPort()
	case *net.UDPAddr:
		got = a.AddrPort()
	}
	return netip.AddrPortFrom(got.Addr().Unmap(), got.Port())
}

func portOf(a net.Addr) uint16 { return addrPort(a).Port() }

// unspecified is the address of all of that family.
func unspecified(of netip.Addr) netip.Addr {
	if of.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// refuses checks that nobody serves there, and that the client is told at once.
func refuses(t *testing.T, what string, from *nstest.NS, at netip.Addr) {
	t.Helper()
	if _, err := tryTCPWithin(t, from, netip.AddrPort{}, netip.AddrPortFrom(at, hostTCP), portPatience); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("%s: TCP to %s: %v, want %v", what, at, err, unix.ECONNREFUSED)
	}
	conn := dialUDP(t, from, netip.AddrPort{}, netip.AddrPortFrom(at, hostUDP))
	if seen, err := tryUDP(conn, pattern(10), portPatience); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("%s: UDP to %s: %v (seen as %s), want %v", what, at, err, seen, unix.ECONNREFUSED)
	}
}

// tellAll has a namespace send every ICMP error that is due.
func tellAll(t *testing.T, ns *nstest.NS) {
	t.Helper()
	ns.Run(t, "sh", "-c", "echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit")
}

// Another address of the first uplink, and the second world.
func (f family) another() netip.Addr {
	return f.choose(netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11"))
}

func (f family) world2() netip.Addr {
	return f.choose(netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8:2::2"))
}

// twoUplinks is a site with another uplink in use, and another address of the first.
// The default route is the first's, and all know the ways to all.
func twoUplinks(t *testing.T) (s *site, other *nstest.NS) {
	t.Helper()
	s = newSite(t)
	other = newSecond(t, s)
	nodetest.Address(t, s.NS, "up0", "192.0.2.11/24", "2001:db8::11/64")
	s.Run(t, "ip", "route", "add", "default", "via", "203.0.113.2", "dev", "up1", "metric", "500")
	s.Run(t, "ip", "-6", "route", "add", "default", "via", "2001:db8:2::2", "dev", "up1", "metric", "5000")
	nodetest.Route(t, s.world, []string{"203.0.113.0/24", "via", "192.0.2.1"}, []string{"2001:db8:2::/64", "via", "2001:db8::1"},
		[]string{pods4, "via", "192.0.2.1"}, []string{pods6, "via", "2001:db8::1"})
	nodetest.Route(t, other, []string{"192.0.2.0/24", "via", "203.0.113.1"}, []string{"2001:db8::/64", "via", "2001:db8:2::1"})
	tellAll(t, s.NS)
	s.Start(t)
	awaitUplinks(t, s, "up0", "up1")
	return s, other
}

// The world reaches a mapped port by every uplink and at every address of the host,
// and the container sees the true client.
func TestPortsFromWorld(t *testing.T) {
	s, other := twoUplinks(t)
	dealDrivers(t, 0, func(t *testing.T, d driver) {
		s.lend(t, d)
		testPortsFromWorld(t, s, other)
	})
}

func testPortsFromWorld(t *testing.T, s *site, other *nstest.NS) {
	before := s.Drops(t)
	c := s.publish(t, "c", s.pods, both()...)
	b := s.Attach(t, "b", s.pods)
	eachFamily(t, func(t *testing.T, f family) {
		for _, at := range []netip.Addr{f.uplink, f.another(), f.second()} {
			portWay{name: "world", from: s.world, at: at, seen: f.world}.check(t)
			portWay{name: "second world", from: other, at: at, seen: f.world2()}.check(t)
		}
		portWay{name: "world to the gateway", from: s.world, at: f.gateway(c), seen: f.world}.check(t)
		// What is not for the host is left alone.
		refuses(t, "world to another container", s.world, f.of(b))
		refuses(t, "world to the container itself", s.world, f.of(c))
		refuses(t, "container to world", b.NS, f.world)
		refuses(t, "second world to world, by the node", other, f.world)
	})
	if drops := s.dropsSince(t, before); len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}
}

// A port of one address is that address's alone. The host may serve the same port at
// others, and may get the address later.
func TestPortsOfOneAddress(t *testing.T) {
	s, other := twoUplinks(t)
	var addresses []netip.Addr
	for _, f := range families() {
		addresses = append(addresses, f.another())
		serveTCP(t, s.NS, netip.AddrPortFrom(f.uplink, hostTCP))
		serveUDP(t, s.NS, netip.AddrPortFrom(f.uplink, hostUDP))
	}
	c := s.publish(t, "c", s.pods, both(addresses...)...)
	heard := openWatch(t, c.NS)
	eachFamily(t, func(t *testing.T, f family) {
		portWay{name: "world", from: s.world, at: f.another(), seen: f.world}.check(t)
		portWay{name: "second world", from: other, at: f.another(), seen: f.world2()}.check(t)
		portWay{name: "world to the host's own", from: s.world, at: f.uplink, seen: f.world}.check(t)
		refuses(t, "world", s.world, f.second())
		refuses(t, "second world", other, f.second())
		for _, at := range []netip.Addr{f.uplink, f.second()} {
			for _, frame := range heard.find(at.AsSlice()) {
				t.Errorf("the container was reached: %s", packet.Summary(frame))
			}
		}
	})

	for i, text := range []string{"192.0.2.12", "2001:db8::12"} {
		late := netip.MustParseAddr(text)
		d := s.Attach(t, "late"+families()[i].name, publishing(s.pods, mapping{text, hostTCP, containerTCP, "tcp"}))
		serve(t, d)
		nodetest.Address(t, s.NS, "up0", netip.PrefixFrom(late, late.BitLen()).String())
		nodetest.Eventually(t, "a port of an address that came later", func() error {
			tcp, err := tryTCP(t, s.world, netip.AddrPort{}, netip.AddrPortFrom(late, hostTCP))
			if err != nil {
				return err
			}
			return nodetest.Unlike(tcp.Seen.Addr(), families()[i].world)
		})
	}
}

// What came in by an uplink is answered by it, wherever the routes would lead to.
func TestPortsAnswerByTheSameUplink(t *testing.T) {
	s, other := twoUplinks(t)
	s.publish(t, "c", s.pods, both()...)
	wrong := openWatch(t, s.world)
	eachFamily(t, func(t *testing.T, f family) {
		// Both worlds have this address, and the route to it is the first's.
		for _, at := range []netip.Addr{f.second(), f.uplink} {
			for range 3 {
				tcp, err := tryTCPWithin(t, other, netip.AddrPortFrom(f.anywhere(), 0), netip.AddrPortFrom(at, hostTCP), portPatience)
				if err != nil {
					t.Errorf("TCP to %s: %v", at, err)
					break
				}
				if err := tcp.Exchange(pattern(1 << 20)); err != nil || tcp.Seen != addrPort(tcp.LocalAddr()) {
					t.Errorf("TCP to %s: %v; seen as %s, not %s", at, err, tcp.Seen, tcp.LocalAddr())
				}
				udp := dialUDP(t, other, netip.AddrPortFrom(f.anywhere(), 0), netip.AddrPortFrom(at, hostUDP))
				for _, size := range datagrams() {
					if got, err := tryUDP(udp, pattern(size), portPatience); err != nil || got != addrPort(udp.LocalAddr()) {
						t.Errorf("UDP of %d bytes to %s: %v; seen as %s, not %s", size, at, err, got, udp.LocalAddr())
						break
					}
				}
			}
		}
		if found := wrong.find(f.anywhere().AsSlice()); len(found) != 0 {
			t.Errorf("the other uplink's world saw %d packets of connections that are not its, such as %s", len(found), packet.Summary(found[0]))
		}
	})
	if drops := s.Drops(t); len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}
}
