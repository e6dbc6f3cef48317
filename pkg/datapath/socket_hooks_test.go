// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net/netip"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/maps"
)

var protocols = map[int]uint8{unix.SOCK_STREAM: unix.IPPROTO_TCP, unix.SOCK_DGRAM: unix.IPPROTO_UDP}

// lead makes a port of the host lead to another, for TCP and UDP.
func lead(t *testing.T, d *Datapath, from, to netip.AddrPort, flags uint8) {
	t.Helper()
	for kind := range protocols {
		leadOne(t, d, kind, from, to, flags)
	}
}

func leadOne(t *testing.T, d *Datapath, kind int, from, to netip.AddrPort, flags uint8) {
	t.Helper()
	must(t, d.maps.Ports.Put(
		maps.PortKey{Address: maps.NewAddress(from.Addr()), Port: maps.Port(from.Port()), Protocol: protocols[kind], Flags: flags},
		maps.MappedPort{Address: maps.NewAddress(to.Addr()), Port: maps.Port(to.Port()), Endpoint: 1}))
}

// Ports of the host that newMapped maps.
const (
	anyAddress      = 8080 // all addresses -> a
	hostAddress     = 8081 // the uplink's address -> a
	loopbackAddress = 8082 // 127.0.0.1 or ::1 -> a
	exactFirst      = 8083 // all addresses -> a, the uplink's -> b
	tcpOnly         = 8084 // all addresses, TCP -> a
	guarded         = 8085 // the uplink's address, PORT_LOOPBACK_ONLY -> a
	hosts           = 8086 // a server of the host
	containerPort   = 80   // the containers' servers
)

// newMapped is a site with servers in its containers and ports that lead there.
func newMapped(t *testing.T) (*site, *Datapath) {
	t.Helper()
	s := newSite(t, "")
	d := s.open(t)
	t.Cleanup(func() { _ = d.Close() })
	if flaw := d.SocketFlaw(); flaw != "" {
		t.Fatal(flaw)
	}
	for _, w := range ways()[:2] {
		a, b := netip.AddrPortFrom(w.a, containerPort), netip.AddrPortFrom(w.b, containerPort)
		answer(t, s.a, a, "a")
		answer(t, s.b, b, "b")
		answer(t, s.node, netip.AddrPortFrom(w.loopback(), hosts), "host")
		answer(t, s.node, netip.AddrPortFrom(w.host, hosts), "host")
		must(t, d.maps.HostAddresses.Put(maps.NewAddress(w.host), uint8(1)))
		lead(t, d, netip.AddrPortFrom(w.nobody(), anyAddress), a, 0)
		lead(t, d, netip.AddrPortFrom(w.host, hostAddress), a, 0)
		lead(t, d, netip.AddrPortFrom(w.loopback(), loopbackAddress), a, 0)
		lead(t, d, netip.AddrPortFrom(w.nobody(), exactFirst), a, 0)
		lead(t, d, netip.AddrPortFrom(w.host, exactFirst), b, 0)
		leadOne(t, d, unix.SOCK_STREAM, netip.AddrPortFrom(w.nobody(), tcpOnly), a, 0)
		lead(t, d, netip.AddrPortFrom(w.host, guarded), a, maps.PortLoopbackOnly)
	}
	return s, d
}

// eachWay runs a test for all ways, by TCP and UDP.
func eachWay(t *testing.T, test func(t *testing.T, w way, kind int)) {
	t.Helper()
	for _, w := range ways() {
		for kind, protocol := range protocols {
			t.Run(w.name+" "+ProtocolName(protocol), func(t *testing.T) { test(t, w, kind) })
		}
	}
}

// TestSocketHooks has processes of the host dial what leads to a container, and what does
// not. One datapath is opened for all; what spoils and mends its links comes last, and what
// ends it at the very end.
func TestSocketHooks(t *testing.T) {
	nstest.LeaveTo(t, "7")
	s, d := newMapped(t)
	for _, table := range []struct {
		name string
		test func(*testing.T, *site, *Datapath)
	}{
		{"dial", testHooksDial},
		{"loopback net", testHooksLoopbackNet},
		{"again", testHooksAgain},
		{"many", testHooksMany},
		{"former peer", testHooksFormerPeer},
		{"connected", testHooksConnected},
		{"bound", testHooksBound},
		{"elsewhere", testHooksElsewhere},
		{"repair", testHooksRepair},
		{"groups", testHooksGroups},
		{"life", testHooksLife},
	} {
		t.Run(table.name, func(t *testing.T) { table.test(t, s, d) })
	}
}

// testHooksDial dials all that leads to a container, and what does not.
func testHooksDial(t *testing.T, s *site, _ *Datapath) {
	eachWay(t, func(t *testing.T, w way, kind int) {
		tcp := kind == unix.SOCK_STREAM
		for _, test := range []struct {
			name string
			to   netip.Addr
			port uint16
			who  string     // answers; "" when nobody does
			peer netip.Addr // if it is not to
		}{
			{"loopback", w.loopback(), anyAddress, "a", netip.Addr{}},
			{"own address", w.host, anyAddress, "a", netip.Addr{}},
			{"no address", w.nobody(), anyAddress, "a", w.loopback()},
			{"the one address", w.host, hostAddress, "a", netip.Addr{}},
			{"loopback, of another address", w.loopback(), hostAddress, "", netip.Addr{}},
			{"the one loopback", w.loopback(), loopbackAddress, "a", netip.Addr{}},
			{"own address, of loopback", w.host, loopbackAddress, "", netip.Addr{}},
			{"the exact one first", w.host, exactFirst, "b", netip.Addr{}},
			{"all others then", w.loopback(), exactFirst, "a", netip.Addr{}},
			{"one protocol", w.loopback(), tcpOnly, map[bool]string{true: "a"}[tcp], netip.Addr{}},
			{"guard", w.host, guarded, "", netip.Addr{}},
			{"host's own server", w.loopback(), hosts, "host", netip.Addr{}},
			{"host's own server at its address", w.host, hosts, "host", netip.Addr{}},
			{"unmapped", w.loopback(), containerPort, "", netip.Addr{}},
			{"container itself", w.a, containerPort, "a", netip.Addr{}},
			{"container itself, mapped port", w.a, anyAddress, "", netip.Addr{}},
		} {
			t.Run(test.name, func(t *testing.T) {
				want := nobody
				if test.who != "" {
					at := netip.AddrPortFrom(test.to, test.port)
					if test.peer.IsValid() {
						at = netip.AddrPortFrom(test.peer, test.port)
					}
					want = heardOf(kind, at, test.who)
				}
				to := netip.AddrPortFrom(test.to, test.port)
				w.socket(t, s.node, kind).connect(t, to).want(t, want)
				if tcp || test.who == "" { // only connected sockets hear of errors
					return
				}
				want.Peer = netip.AddrPort{}
				w.socket(t, s.node, kind).send(t, to).want(t, want)
			})
		}
	})
}

// testHooksLoopbackNet dials other addresses of 127.0.0.0/8.
func testHooksLoopbackNet(t *testing.T, s *site, _ *Datapath) {
	w := ways()[0]
	for kind := range protocols {
		to := netip.AddrPortFrom(addr("127.3.2.1"), anyAddress)
		w.socket(t, s.node, kind).connect(t, to).want(t, heardOf(kind, to, "a"))
		to = netip.AddrPortFrom(addr("127.3.2.1"), loopbackAddress)
		w.socket(t, s.node, kind).connect(t, to).want(t, nobody)
	}
}

// testHooksAgain dials one way after another with one socket: what is shown is
// what was dialled last.
func testHooksAgain(t *testing.T, s *site, _ *Datapath) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			const kind = unix.SOCK_DGRAM
			connected, loose := w.socket(t, s.node, kind), w.socket(t, s.node, kind)
			for _, to := range []netip.AddrPort{
				netip.AddrPortFrom(w.host, anyAddress),
				netip.AddrPortFrom(w.a, containerPort),
				netip.AddrPortFrom(w.host, hostAddress),
				netip.AddrPortFrom(w.host, anyAddress),
				netip.AddrPortFrom(w.a, containerPort),
			} {
				connected.connect(t, to).want(t, heardOf(kind, to, "a"))
				loose.send(t, to).want(t, heard{Source: to, Message: "a"})
			}
			// A connection stays what it was, whatever else is sent.
			for _, first := range []netip.AddrPort{netip.AddrPortFrom(w.host, anyAddress), netip.AddrPortFrom(w.a, containerPort)} {
				both := w.socket(t, s.node, kind)
				both.connect(t, first).want(t, heardOf(kind, first, "a"))
				for _, to := range []netip.AddrPort{first, netip.AddrPortFrom(w.host, hostAddress), netip.AddrPortFrom(w.a, containerPort)} {
					if got := both.send(t, to); got.Message != "a" {
						t.Errorf("connected to %s, sent to %s: heard %+v", first, to, got)
					}
				}
				must(t, unix.Send(both.fd, []byte("who?"), 0))
				both.receive(t).want(t, heard{Source: first, Message: "a"})
				peer, err := unix.Getpeername(both.fd)
				must(t, err)
				if got := addrPort(t, peer); got != first {
					t.Errorf("peer: got %s, want %s", got, first)
				}
			}
			// Another port's server is not taken for the mapped one.
			other := netip.AddrPortFrom(w.b, containerPort)
			loose.send(t, netip.AddrPortFrom(w.host, anyAddress)).want(t, heard{Source: netip.AddrPortFrom(w.host, anyAddress), Message: "a"})
			loose.send(t, other).want(t, heard{Source: other, Message: "b"})
			// Nor is another socket's.
			w.socket(t, s.node, kind).send(t, netip.AddrPortFrom(w.a, containerPort)).want(t, heard{Source: netip.AddrPortFrom(w.a, containerPort), Message: "a"})
		})
	}
}

// testHooksMany connects a socket each way, and then more others than any map has room for:
// the first are still told whom they dialled, as far as a note of it goes with the socket.
func testHooksMany(t *testing.T, s *site, d *Datapath) {
	var first []*socket
	to := func(w way) netip.AddrPort { return netip.AddrPortFrom(w.loopback(), anyAddress) }
	for _, w := range ways() {
		for kind := range protocols {
			one := w.socket(t, s.node, kind)
			one.connect(t, to(w)).want(t, heardOf(kind, to(w), "a"))
			noted, err := d.maps.Peers.LookupBytes(uint32(one.fd))
			must(t, err)
			switch {
			case noted != nil:
				first = append(first, one)
			case nstest.Emulated() && nstest.KernelVersion(t)[0] >= 7:
				// Without cmpxchg16b, which the emulated processor lacks, its allocator has
				// no memory for a program now and then: then the map that forgets has it.
				t.Logf("%s: no memory for a note of the peer", w.name)
			default:
				t.Errorf("%s: the socket has no note of its peer", w.name)
			}
		}
	}
	s.node.Do(t, func() {
		for i := range 2 * int(d.maps.Sockets.MaxEntries()) {
			w := ways()[i%len(ways())]
			fd, err := unix.Socket(w.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				err = errors.Join(unix.Connect(fd, w.sockaddr(to(w))), unix.Close(fd))
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	for _, one := range first {
		peer, err := unix.Getpeername(one.fd)
		must(t, err)
		if got := addrPort(t, peer); got != to(one.way) {
			t.Errorf("%s: peer: got %s, want %s", one.name, got, to(one.way))
		}
	}
}

// testHooksFormerPeer sends with a socket that is not connected any more: what is
// shown is what was dialled last, and of another server its own address.
func testHooksFormerPeer(t *testing.T, s *site, _ *Datapath) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			one := w.socket(t, s.node, unix.SOCK_DGRAM)
			for _, next := range []struct {
				to  netip.AddrPort
				who string
			}{
				{netip.AddrPortFrom(w.a, containerPort), "a"},
				{netip.AddrPortFrom(w.host, hostAddress), "a"},
				{netip.AddrPortFrom(w.b, containerPort), "b"},
				{netip.AddrPortFrom(w.host, exactFirst), "b"},
				{netip.AddrPortFrom(w.host, hosts), "host"},
			} {
				if next.who != "a" && w.v6() {
					continue // the kernel lets it hear its former peer alone: __udp_disconnect leaves sk_v6_daddr
				}
				first := netip.AddrPortFrom(w.host, anyAddress)
				one.connect(t, first).want(t, heardOf(unix.SOCK_DGRAM, first, "a"))
				one.disconnect(t)
				one.send(t, next.to).want(t, heard{Source: next.to, Message: next.who})
			}
		})
	}
}

// testHooksConnected maps a port that sockets are connected to: they stay with whom
// they have dialled, and what they send is not led elsewhere.
func testHooksConnected(t *testing.T, s *site, d *Datapath) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			at := netip.AddrPortFrom(w.host, hosts)
			key := maps.PortKey{Address: maps.NewAddress(at.Addr()), Port: maps.Port(at.Port()), Protocol: unix.IPPROTO_UDP}
			connected := w.socket(t, s.node, unix.SOCK_DGRAM)
			connected.connect(t, at).want(t, heardOf(unix.SOCK_DGRAM, at, "host"))
			leadOne(t, d, unix.SOCK_DGRAM, at, netip.AddrPortFrom(w.a, containerPort), 0)
			t.Cleanup(func() { must(t, d.maps.Ports.Delete(key)) })
			must(t, unix.Send(connected.fd, []byte("who?"), 0))
			connected.receive(t).want(t, heard{Source: at, Message: "host"})
			w.socket(t, s.node, unix.SOCK_DGRAM).send(t, at).want(t, heard{Source: at, Message: "a"})
		})
	}
}

// testHooksBound dials with sockets that have no way to a container: nobody
// answers, and nothing leaves by another device.
func testHooksBound(t *testing.T, s *site, _ *Datapath) {
	eachWay(t, func(t *testing.T, w way, kind int) {
		to := netip.AddrPortFrom(w.loopback(), anyAddress)
		bound := w.socket(t, s.node, kind)
		must(t, unix.Bind(bound.fd, w.sockaddr(netip.AddrPortFrom(w.loopback(), 0))))
		bound.connect(t, to).want(t, nobody)
		bound = w.socket(t, s.node, kind)
		must(t, unix.BindToDevice(bound.fd, "lo"))
		bound.connect(t, to).want(t, nobody)
		// To its own address a socket has a way.
		bound = w.socket(t, s.node, kind)
		must(t, unix.Bind(bound.fd, w.sockaddr(netip.AddrPortFrom(w.host, 0))))
		to = netip.AddrPortFrom(w.host, anyAddress)
		bound.connect(t, to).want(t, heardOf(kind, to, "a"))
		// Without an address the stack takes the sender's own for IPv4, loopback for IPv6.
		bound = w.socket(t, s.node, kind)
		must(t, unix.Bind(bound.fd, w.sockaddr(netip.AddrPortFrom(w.host, 0))))
		meant := w.host
		if w.v6() {
			meant = w.loopback()
		}
		bound.connect(t, netip.AddrPortFrom(w.nobody(), anyAddress)).want(t, heardOf(kind, netip.AddrPortFrom(meant, anyAddress), "a"))
		if w.domain == unix.AF_INET || w.v6() {
			return
		}
		bound = w.socket(t, s.node, kind)
		must(t, unix.Bind(bound.fd, w.sockaddr(netip.AddrPortFrom(w.host, 0))))
		bound.connect(t, netip.AddrPortFrom(netip.IPv6Unspecified(), anyAddress)).want(t, heardOf(kind, netip.AddrPortFrom(w.loopback(), anyAddress), "a"))
	})
}

// testHooksElsewhere dials in namespaces of others, without an agent and with one
// of their own that maps the same port.
func testHooksElsewhere(t *testing.T, s *site, _ *Datapath) {
	other := nstest.New(t, "other")
	eachWay(t, func(t *testing.T, w way, kind int) {
		to := netip.AddrPortFrom(w.loopback(), anyAddress)
		w.socket(t, s.b, kind).connect(t, to).want(t, nobody)
		w.socket(t, other, kind).connect(t, to).want(t, nobody)
	})
	var d *Datapath
	var err error
	other.Do(t, func() {
		d, err = Open(Config{Root: filepath.Join(nstest.BPFFS(t), "tendril"), FlowsMax: 256, TranslationsMax: 256})
	})
	must(t, err)
	t.Cleanup(func() { _ = d.Close() })
	for _, w := range ways()[:2] {
		at := netip.AddrPortFrom(w.loopback(), containerPort)
		answer(t, other, at, "other")
		lead(t, d, netip.AddrPortFrom(w.nobody(), hostAddress), at, 0)
		lead(t, d, netip.AddrPortFrom(w.nobody(), anyAddress), at, 0)
	}
	eachWay(t, func(t *testing.T, w way, kind int) {
		to := netip.AddrPortFrom(w.loopback(), anyAddress)
		w.socket(t, other, kind).connect(t, to).want(t, heardOf(kind, to, "other"))
		w.socket(t, s.node, kind).connect(t, to).want(t, heardOf(kind, to, "a"))
		w.socket(t, s.node, kind).connect(t, netip.AddrPortFrom(w.loopback(), hostAddress)).want(t, nobody)
	})
}
