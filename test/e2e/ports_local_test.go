// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
)

// Processes of the host reach mapped ports at loopback and at every address of the
// host, and getpeername and recvfrom tell them what they dialled.
func TestPortsFromHost(t *testing.T) {
	nstest.Halve(t, 0)
	s, _ := twoUplinks(t)
	c := s.publish(t, "c", s.pods, both()...)
	eachFamily(t, func(t *testing.T, f family) {
		for _, at := range []netip.Addr{f.loopback(), f.uplink, f.another(), f.second(), f.gateway(c)} {
			portWay{name: "host", from: s.NS, at: at, seen: f.gateway(c)}.check(t)
		}
		testMovedSocket(t, s, f, c)
		// Ports that are not mapped are the host's.
		own := netip.AddrPortFrom(f.loopback(), containerTCP)
		serveTCP(t, s.NS, own)
		if got := dialTCP(t, s.NS, own).Seen.Addr(); got != own.Addr() {
			t.Errorf("a service of the host at %s saw %s", own, got)
		}
	})
	t.Run("IPv4 by a socket of IPv6", func(t *testing.T) { testMappedAddress(t, s, c) })
}

// testMovedSocket connects one UDP socket to a mapped port and then to one that is
// not, and asks several in turn with one that is not connected.
func testMovedSocket(t *testing.T, s *site, f family, c *nodetest.Container) {
	t.Helper()
	plain := serveUDP(t, s.NS, netip.AddrPortFrom(f.loopback(), 0))
	mapped := netip.AddrPortFrom(f.loopback(), hostUDP)
	conn := dialUDP(t, s.NS, netip.AddrPort{}, mapped)
	// The source address is chosen once, by the first connect.
	source := netip.AddrPortFrom(f.gateway(c), portOf(conn.LocalAddr()))
	for _, want := range []sight{{mapped, source}, {plain, source}} {
		var got sight
		control(t, conn, func(fd int) error {
			if err := unix.Connect(fd, sockaddr(want.Peer)); err != nil {
				return err
			}
			peer, err := unix.Getpeername(fd)
			got.Peer = addrPortOf(peer)
			return err
		})
		seen, err := tryUDP(conn, pattern(100), portPatience)
		got.Client = seen
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" || err != nil {
			t.Errorf("a socket that was connected anew: %v (-want +got):\n%s", err, diff)
		}
	}
	free := freeUDP(t, s.NS, f.world)
	port := portOf(free.LocalAddr())
	for _, want := range []sight{
		{mapped, netip.AddrPortFrom(f.gateway(c), port)},
		{plain, netip.AddrPortFrom(f.loopback(), port)},
		{netip.AddrPortFrom(f.uplink, hostUDP), netip.AddrPortFrom(f.gateway(c), port)},
		{netip.AddrPortFrom(f.of(c), containerUDP), netip.AddrPortFrom(f.gateway(c), port)},
		{mapped, netip.AddrPortFrom(f.gateway(c), port)},
	} {
		got, err := askFrom(free, want.Peer, pattern(100))
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" || err != nil {
			t.Errorf("one socket, in turn to %s: %v (-want +got):\n%s", want.Peer, err, diff)
		}
	}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func addrPortOf(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(addressOf(a), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(addressOf(a), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// testMappedAddress reaches IPv4 ports by sockets of IPv6, as programs do that
// know one kind of socket only.
func testMappedAddress(t *testing.T, s *site, c *nodetest.Container) {
	for _, at := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), uplink4} {
		to := netip.AddrPortFrom(netip.AddrFrom16(at.As16()), hostUDP) // ::ffff:a.b.c.d
		free := listenUDP(t, s.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), 0))
		want := sight{netip.AddrPortFrom(at, hostUDP), netip.AddrPortFrom(c.Gateway4, portOf(free.LocalAddr()))}
		got, err := askFrom(free, to, pattern(4000))
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" || err != nil {
			t.Errorf("UDP: %v (-want +got):\n%s", err, diff)
		}
		var peer netip.AddrPort
		fd := in(t, s.NS, func() (int, error) { return unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) })
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 10})
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrInet6{Addr: at.As16(), Port: hostTCP})
		}
		if err == nil {
			var address unix.Sockaddr
			address, err = unix.Getpeername(fd)
			peer = addrPortOf(address)
		}
		_ = unix.Close(fd)
		if peer != netip.AddrPortFrom(at, hostTCP) || err != nil {
			t.Errorf("TCP to %s: %v; the peer is %s", at, err, peer)
		}
	}
}

// Who has a connection to a container from the host learns that it is gone, and
// who comes back finds the next one, also with a socket that was never connected.
func TestPortsFromHostReplaced(t *testing.T) {
	s := running(t)
	network := publishing(s.pods, both()...)
	start := func(name string) *nodetest.Container {
		c := s.Attach(t, name, network)
		serveNamed(t, c.NS, name)
		return c
	}
	old := start("old")
	var clients []*hostClient
	for _, f := range families() {
		one := &hostClient{family: f, tied: dialUDP(t, s.NS, netip.AddrPort{}, netip.AddrPortFrom(f.loopback(), hostUDP))}
		one.free = freeUDP(t, s.NS, f.world)
		name, conn, err := greetTCP(t, s.NS, netip.AddrPort{}, netip.AddrPortFrom(f.loopback(), hostTCP))
		if err != nil || name != "old" {
			t.Fatalf("%s: TCP: answered by %q, %v", f.name, name, err)
		}
		one.tcp = conn
		if name, err := greetUDP(one.tied, 1); err != nil || name != "old" {
			t.Fatalf("%s: UDP: answered by %q, %v", f.name, name, err)
		}
		one.greetFree(t, "old")
		clients = append(clients, one)
	}
	s.Delete(t, old)
	for _, one := range clients {
		for what, conn := range map[string]net.Conn{"TCP": one.tcp, "UDP": one.tied} {
			_ = conn.SetReadDeadline(time.Now().Add(portPatience))
			if _, err := io.ReadFull(conn, make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
				t.Errorf("%s: %s to the container that is gone: %v, want %v", one.name, what, err, unix.ECONNABORTED)
			}
		}
	}
	start("new")
	for _, one := range clients {
		one.greetFree(t, "new")
		if got := greeted(t, s.NS, one.loopback()); !slices.Equal(got, []string{"new", "new"}) {
			t.Errorf("%s: answered by %q", one.name, got)
		}
	}
}

// hostClient is a process of the host with three sockets.
type hostClient struct {
	family
	tcp        *net.TCPConn
	tied, free *net.UDPConn
}

func (c *hostClient) greetFree(t *testing.T, want string) {
	t.Helper()
	to := netip.AddrPortFrom(c.loopback(), hostUDP)
	_, err := c.free.WriteToUDPAddrPort([]byte("whoareu?"), to)
	buffer, n, from := make([]byte, 100), 0, netip.AddrPort{}
	if err == nil {
		_ = c.free.SetReadDeadline(time.Now().Add(portPatience))
		n, from, err = c.free.ReadFromUDPAddrPort(buffer)
	}
	if name, _ := readGreeting(buffer[:n]); err != nil || name != want || from != to {
		t.Errorf("%s: an unconnected socket: answered by %q at %s, %v, want %s", c.name, name, from, err, want)
	}
}

// A port of loopback is the host's alone. Nobody else gets there: not by loopback
// addresses in packets, not by the host's other addresses, and from outside not by the
// container's own address.
func TestPortsOfLoopback(t *testing.T) {
	s, other := twoUplinks(t)
	var loopbacks []netip.Addr
	for _, f := range families() {
		loopbacks = append(loopbacks, f.loopback())
	}
	c, near := s.publish(t, "c", s.pods, both(loopbacks...)...), s.Attach(t, "near", s.pods)
	tellAll(t, near.NS)
	eachFamily(t, func(t *testing.T, f family) {
		portWay{name: "host", from: s.NS, at: f.loopback(), seen: f.gateway(c)}.check(t)
		refuses(t, "host at another address", s.NS, f.uplink)
		refuses(t, "world", s.world, f.uplink)
		refuses(t, "second world", other, f.uplink)
		for _, at := range []netip.Addr{f.uplink, f.gateway(near)} {
			refuses(t, "another container", near.NS, at)
			refuses(t, "itself", c.NS, at)
		}
		refuses(t, "itself at its own loopback", c.NS, f.loopback())
		before := s.Drops(t)["from_uplink loopback_only"]
		testLoopbackFrames(t, s, f, c, near)
		// From the world to the container's own address: by TCP and UDP.
		if got := s.Drops(t)["from_uplink loopback_only"] - before; got < 2 {
			t.Errorf("%d packets were counted as loopback_only, not 2 or more", got)
		}
	})
}

// testLoopbackFrames sends what no well-behaved stack sends.
func testLoopbackFrames(t *testing.T, s *site, f family, c, near *nodetest.Container) {
	t.Helper()
	inside, host := openWatch(t, c.NS), openWatch(t, s.NS)
	world, neighbour := openLink(t, s.world, "eth0"), openLink(t, near.NS, "eth0")
	up := must(s.Handle.LinkByName("up0"))(t).Attrs().HardwareAddr
	worldMAC := must(s.world.Handle.LinkByName("eth0"))(t).Attrs().HardwareAddr
	mark, last := []byte("not for you"), []byte("the last one")
	for _, to := range []struct {
		at       netip.Addr
		tcp, udp uint16
	}{{f.loopback(), hostTCP, hostUDP}, {f.uplink, hostTCP, hostUDP}, {f.of(c), containerTCP, containerUDP}} {
		for _, source := range []netip.Addr{f.world, f.loopback(), f.gateway(c)} {
			world.send(t, packet.New(packet.Eth(worldMAC, up), packet.IP(source, to.at),
				packet.UDP(40000, to.udp), packet.Data(mark)))
			world.send(t, packet.New(packet.Eth(worldMAC, up), packet.IP(source, to.at),
				packet.TCP(40000, to.tcp, packet.SYN), packet.Data(mark)))
		}
		if to.at == f.of(c) {
			continue // containers may speak to each other
		}
		for _, source := range []netip.Addr{f.of(near), f.loopback()} {
			neighbour.send(t, packet.New(packet.Eth(near.MAC, near.HostMAC), packet.IP(source, to.at),
				packet.UDP(40000, to.udp), packet.Data(mark)))
			neighbour.send(t, packet.New(packet.Eth(near.MAC, near.HostMAC), packet.IP(source, to.at),
				packet.TCP(40000, to.tcp, packet.SYN), packet.Data(mark)))
		}
	}
	// What is sent behind them arrives, so they would have, too.
	world.send(t, packet.New(packet.Eth(worldMAC, up), packet.IP(f.world, f.of(c)), packet.UDP(40000, 9), packet.Data(last)))
	neighbour.send(t, packet.New(packet.Eth(near.MAC, near.HostMAC), packet.IP(f.of(near), f.gateway(c)), packet.UDP(40000, 9), packet.Data(last)))
	inside.await(t, "the container", last)
	host.await(t, "the host", last)
	for _, frame := range inside.find(mark) {
		t.Errorf("the container was reached: %s", packet.Summary(frame))
	}
}
