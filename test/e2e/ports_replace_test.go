// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
)

// forget closes a connection without a word to the other end, as a crash does.
func forget(t *testing.T, conn *net.TCPConn) {
	t.Helper()
	control(t, conn, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1) })
	_ = conn.Close()
}

// abort closes a connection with an RST, so that its port is free at once.
func abort(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}

// learns checks that the next segment on a connection is answered by an RST.
func learns(t *testing.T, what string, conn *net.TCPConn) {
	t.Helper()
	_, err := conn.Write([]byte("still there?"))
	if err == nil {
		_ = conn.SetReadDeadline(time.Now().Add(portPatience))
		_, err = io.ReadFull(conn, make([]byte, 12))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%s: a connection to the container that is gone: %v, want %v", what, err, unix.ECONNRESET)
	}
}

// replacement is a client that lives through it, with three old connections.
type replacement struct {
	name   string
	from   *nstest.NS
	self   netip.Addr
	to     netip.Addr
	stream *steady
	// lost is forgotten by the client, between and kept learn what happened.
	lost, between, kept *net.TCPConn
}

// Source ports of the three.
const lostPort, betweenPort, keptPort = 30001, 30002, 30003

func (r *replacement) dial(t *testing.T, port uint16, want string) *net.TCPConn {
	t.Helper()
	name, conn, err := greetTCP(t, r.from, netip.AddrPortFrom(r.self, port), netip.AddrPortFrom(r.to, hostTCP))
	if err != nil || name != want {
		t.Errorf("%s: TCP from port %d: answered by %q (%v), want %s", r.name, port, name, err, want)
	}
	return conn
}

func (r *replacement) dialAll(t *testing.T, want string) {
	t.Helper()
	r.lost, r.between, r.kept = r.dial(t, lostPort, want), r.dial(t, betweenPort, want), r.dial(t, keptPort, want)
	if t.Failed() {
		t.FailNow()
	}
}

// A container is replaced under a steady stream of datagrams and under connections
// whose clients come back from the same ports. The first datagram and the first
// connection after ADD reach the new one, and old connections are told.
func TestReplacedUnderTraffic(t *testing.T) {
	s := running(t)
	tellAll(t, s.NS)
	near := s.Attach(t, "near", s.pods)
	network := publishing(s.pods, both()...)
	start := func(name string) *nodetest.Container {
		ns := nstest.New(t, name)
		serveNamed(t, ns, name)
		return s.AttachTo(t, ns, name, "eth0", network)
	}
	current := start("c0")
	var clients []*replacement
	for _, f := range families() {
		clients = append(clients,
			&replacement{name: f.name + " world", from: s.world, self: f.world, to: f.uplink},
			&replacement{name: f.name + " container", from: near.NS, self: f.of(near), to: f.uplink})
	}
	for _, r := range clients {
		r.stream = startSteady(t, r.name, r.from, netip.AddrPortFrom(r.to, hostUDP))
		r.stream.answered(t, r.stream.mark(), "c0")
		r.dialAll(t, "c0")
	}
	for i := range 3 {
		name := fmt.Sprint("c", i+1)
		s.Delete(t, current)
		for _, r := range clients {
			learns(t, r.name+", before the ADD", r.between)
			forget(t, r.lost)
		}
		old := current
		current = start(name)
		if current.IPv4 == old.IPv4 || current.IPv6 == old.IPv6 {
			t.Fatalf("the new container has the address of the old one, %s or %s", old.IPv4, old.IPv6)
		}
		marks := make([]uint64, len(clients))
		for j, r := range clients {
			marks[j] = r.stream.mark()
		}
		for _, r := range clients {
			again := r.dial(t, lostPort, name)
			learns(t, r.name+", after the ADD", r.kept)
			for _, conn := range []*net.TCPConn{again, r.between, r.kept} {
				if conn != nil {
					abort(conn)
				}
			}
			r.dialAll(t, name)
		}
		for j, r := range clients {
			r.stream.answered(t, marks[j], name)
		}
	}
}

// Without an agent mapped ports go on, for old connections and new ones, and
// containers that come and go later disturb none.
func TestPortsWithoutAgent(t *testing.T) {
	s := running(t)
	c, near := s.publish(t, "c", s.pods, both()...), s.Attach(t, "near", s.pods)
	type old struct {
		portWay
		udp *net.UDPConn
		tcp *stream
	}
	var all []*old
	for _, f := range families() {
		for _, w := range []portWay{
			{name: "world", from: s.world, at: f.uplink, seen: f.world},
			{name: "container", from: near.NS, at: f.uplink, seen: f.of(near)},
			{name: "itself", from: c.NS, at: f.uplink, seen: f.uplink, otherPort: true},
			{name: "host", from: s.NS, at: f.loopback(), seen: f.gateway(c)},
		} {
			tcp, err := tryTCP(t, w.from, netip.AddrPort{}, w.tcp())
			if err != nil {
				t.Errorf("%s: TCP to %s: %v", w.name, w.tcp(), err)
				continue
			}
			all = append(all, &old{w, dialUDP(t, w.from, netip.AddrPort{}, w.udp()), tcp})
		}
	}
	goOn := func(when string) {
		t.Helper()
		for _, o := range all {
			if got, err := tryUDP(o.udp, pattern(1000), portPatience); err != nil || got.Addr() != o.seen {
				t.Errorf("%s: old UDP flow of %s to %s: %v, seen as %s, not %s", when, o.name, o.at, err, got, o.seen)
			}
			if err := o.tcp.Exchange(pattern(1 << 16)); err != nil {
				t.Errorf("%s: old TCP connection of %s to %s: %v", when, o.name, o.at, err)
			}
		}
		for _, o := range all {
			o.check(t)
		}
	}
	goOn("before")
	s.Kill(t)
	goOn("without an agent")
	s.Start(t)
	goOn("with the next agent")
	other := s.Attach(t, "other", publishing(s.pods, mapping{"", 8081, containerTCP, ""}))
	s.Delete(t, other)
	s.Attach(t, "again", publishing(s.pods, mapping{"", 8081, containerTCP, ""}))
	goOn("after others came and went")
	if drops := s.Drops(t); len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}

	// A container that goes while there is no agent leaves its port to the next.
	s.Kill(t)
	s.Delete(t, c)
	s.Start(t)
	next := s.publish(t, "next", s.pods, both()...)
	eachFamily(t, func(t *testing.T, f family) {
		portWay{name: "world", from: s.world, at: f.uplink, seen: f.world}.check(t)
		portWay{name: "container", from: near.NS, at: f.uplink, seen: f.of(near)}.check(t)
		portWay{name: "host", from: s.NS, at: f.loopback(), seen: f.gateway(next)}.check(t)
	})
}

// Agents come and go under traffic to mapped ports, and no datagram is lost.
func TestPortsRestart(t *testing.T) {
	nstest.LeaveTo(t, "6.12")
	s := running(t)
	clients := []string{"world", "container", "itself"}
	ports := []mapping{{"", hostTCP, containerTCP, "tcp"}}
	for i := range clients { // a port for each, so that each counts its own
		ports = append(ports, mapping{"", hostUDP + uint16(i), containerUDP + uint16(i), "udp"})
	}
	c, near := s.Attach(t, "c", publishing(s.pods, ports...)), s.Attach(t, "near", s.pods)
	var all []*load
	for _, f := range families() {
		serveTCP(t, c.NS, netip.AddrPortFrom(f.of(c), containerTCP))
		for i, from := range []*nstest.NS{s.world, near.NS, c.NS} {
			server := listenUDP(t, c.NS, netip.AddrPortFrom(f.of(c), containerUDP+uint16(i)))
			all = append(all, loadOn(t, f.name+" "+clients[i], from, server,
				netip.AddrPortFrom(f.uplink, hostUDP+uint16(i)), netip.AddrPortFrom(f.uplink, hostTCP)))
		}
	}
	var group sync.WaitGroup
	stop := make(chan struct{})
	for _, l := range all {
		group.Go(func() { l.old(stop) })
		group.Go(func() { l.fresh(t, stop) })
		group.Go(func() { l.tcp(stop) })
	}
	cycles := 2
	if small() {
		cycles = 1
	}
	for i := range cycles {
		advance(t, all)
		if i%2 == 0 {
			s.Kill(t)
		} else {
			s.Stop(t)
		}
		s.Start(t)
	}
	advance(t, all)
	close(stop)
	group.Wait()
	for _, l := range all {
		l.judge(t)
	}
	if drops := s.Drops(t); len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}
}
