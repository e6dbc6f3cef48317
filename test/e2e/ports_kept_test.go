// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/tendril-net/tendril/internal/nstest"
)

// What the host itself has begun from a port that is mapped later goes on.
func TestPortsLeaveTheHostsOwn(t *testing.T) {
	s := running(t)
	type own struct {
		family
		udp *net.UDPConn
		tcp *stream
	}
	var all []own
	for _, f := range families() {
		udp := dialUDP(t, s.NS, netip.AddrPortFrom(f.uplink, hostUDP), serveUDP(t, s.world, netip.AddrPortFrom(f.world, 0)))
		tcp, err := tryTCP(t, s.NS, netip.AddrPortFrom(f.uplink, hostTCP), serveTCP(t, s.world, netip.AddrPortFrom(f.world, 0)))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, own{f, udp, tcp})
	}
	s.publish(t, "c", s.pods, both()...)
	for _, o := range all {
		portWay{name: "world", from: s.world, at: o.uplink, seen: o.world}.check(t)
		if err := o.tcp.Exchange(pattern(1 << 20)); err != nil {
			t.Errorf("%s: the host's own TCP connection: %v", o.name, err)
		}
		for _, size := range datagrams() {
			seen, err := tryUDP(o.udp, pattern(size), portPatience)
			if want := addrPort(o.udp.LocalAddr()); err != nil || seen != want {
				t.Errorf("%s: the host's own UDP flow, %d bytes: %v; seen as %s, not %s", o.name, size, err, seen, want)
			}
		}
	}
}

// A client that uses one port towards several addresses of the host, which lead to one
// port of a container, has as many connections, and each gets its own answers.
func TestPortsOfOneClientPort(t *testing.T) {
	s, _ := twoUplinks(t)
	s.publish(t, "c", s.pods, both()...)
	near := s.Attach(t, "near", s.pods)
	eachFamily(t, func(t *testing.T, f family) {
		for _, client := range []struct {
			name string
			from *nstest.NS
			addr netip.Addr
		}{{"world", s.world, f.world}, {"container", near.NS, f.of(near)}} {
			var streams []*stream
			free := freeUDP(t, client.from, f.uplink)
			for i, at := range []netip.Addr{f.uplink, f.another(), f.second()} {
				way := portWay{name: client.name, from: client.from, at: at, seen: client.addr, otherPort: i > 0}
				tcp, err := tryTCPWithin(t, client.from, netip.AddrPortFrom(client.addr, 30001), way.tcp(), portPatience)
				if err != nil {
					t.Fatalf("%s: TCP to %s: %v", client.name, at, err)
				}
				way.compare(t, "TCP", sight{addrPort(tcp.RemoteAddr()), tcp.Seen}, tcp.LocalAddr())
				streams = append(streams, tcp)
				for range 3 {
					got, err := askFrom(free, way.udp(), pattern(4000))
					if err != nil {
						t.Fatalf("%s: UDP to %s: %v", client.name, at, err)
					}
					way.compare(t, "UDP", got, free.LocalAddr())
				}
			}
			for range 3 {
				for _, tcp := range streams {
					if err := tcp.Exchange(pattern(1 << 16)); err != nil {
						t.Errorf("%s: TCP to %s: %v", client.name, tcp.RemoteAddr(), err)
					}
				}
			}
			for _, tcp := range streams {
				_ = tcp.Close()
			}
		}
	})
	if drops := s.Drops(t); len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}
}

// A server that has asked somebody from the port it serves at is asked by the same
// socket: it answers from the port that was asked.
func TestPortsOfAServerThatAsks(t *testing.T) {
	s := running(t)
	c := s.Attach(t, "c", publishing(s.pods, both()...))
	eachFamily(t, func(t *testing.T, f family) {
		server := listenUDP(t, c.NS, netip.AddrPortFrom(f.of(c), containerUDP))
		peer := listenUDP(t, s.world, netip.AddrPortFrom(f.world, 0))
		at, mapped := addrPort(peer.LocalAddr()), netip.AddrPortFrom(f.uplink, hostUDP)
		asked := passUDP(t, "the server asks", server, peer, at)
		if asked.Addr() != f.uplink {
			t.Errorf("the peer was asked by %s, not %s", asked, f.uplink)
		}
		for range 3 {
			if from := passUDP(t, "the peer asks", peer, server, mapped); from != at {
				t.Errorf("the server was asked by %s, not %s", from, at)
			}
			if from := passUDP(t, "the server answers", server, peer, at); from != mapped {
				t.Errorf("the peer was answered by %s, not %s", from, mapped)
			}
		}
	})
}

// passUDP sends from one socket to another and returns from where it came.
func passUDP(t *testing.T, what string, from, into *net.UDPConn, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	if _, err := from.WriteToUDPAddrPort(pattern(100), to); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	_ = into.SetReadDeadline(time.Now().Add(portPatience))
	n, source, err := into.ReadFromUDPAddrPort(make([]byte, 1500))
	if err != nil || n != 100 {
		t.Fatalf("%s: got %d bytes, %v", what, n, err)
	}
	return netip.AddrPortFrom(source.Addr().Unmap(), source.Port())
}
