// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/socktest"
)

// way is how a process names addresses: by the family's own sockets, or IPv4 by
// those of IPv6.
type way struct {
	family
	name   string
	domain int
}

func ways() []way {
	return []way{
		{v4(), "IPv4", unix.AF_INET}, {v6(), "IPv6", unix.AF_INET6}, {v4(), "IPv4 by IPv6 sockets", unix.AF_INET6},
	}
}

func (w way) loopback() netip.Addr {
	if w.v6() {
		return netip.IPv6Loopback()
	}
	return addr("127.0.0.1")
}

// sockaddr is the address as the way's sockets take it.
func (w way) sockaddr(at netip.AddrPort) unix.Sockaddr {
	if w.domain == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
	}
	return &unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())}
}

// addrPort is what a socket tells; a v4-mapped address as the IPv4 one.
func addrPort(t *testing.T, s unix.Sockaddr) netip.AddrPort {
	t.Helper()
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr).Unmap(), uint16(s.Port))
	}
	t.Fatalf("socket tells %+v", s)
	return netip.AddrPort{}
}

// socket is one of a process in a namespace.
type socket struct {
	way
	fd int
}

func (w way) socket(t *testing.T, ns *nstest.NS, kind int) *socket {
	t.Helper()
	s := &socket{way: w}
	var err error
	ns.Do(t, func() { s.fd, err = unix.Socket(w.domain, kind|unix.SOCK_CLOEXEC, 0) })
	must(t, err)
	t.Cleanup(func() { must(t, unix.Close(s.fd)) })
	return s
}

// heard is what a process learns from a socket: whom it dialled and who answers.
type heard struct {
	Peer, Source netip.AddrPort
	Message      string
	Err          error
}

func (h heard) want(t *testing.T, want heard) {
	t.Helper()
	if diff := cmp.Diff(want, h, cmpopts.EquateErrors(), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("heard (-want +got):\n%s", diff)
	}
}

// heardOf is what is heard of a server that was dialled at an address.
func heardOf(kind int, at netip.AddrPort, name string) heard {
	h := heard{Peer: at, Message: name}
	if kind == unix.SOCK_DGRAM {
		h.Source = at
	}
	return h
}

var nobody = heard{Err: unix.ECONNREFUSED}

// connect dials, asks and reads the answer.
func (s *socket) connect(t *testing.T, to netip.AddrPort) heard {
	t.Helper()
	if err := unix.Connect(s.fd, s.sockaddr(to)); err != nil {
		return heard{Err: err}
	}
	peer, err := unix.Getpeername(s.fd)
	must(t, err)
	must(t, unix.Send(s.fd, []byte("who?"), 0))
	h := s.receive(t)
	if h.Err == nil {
		h.Peer = addrPort(t, peer)
	}
	return h
}

// disconnect ends what connect has begun.
func (s *socket) disconnect(t *testing.T) {
	t.Helper()
	nowhere := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(s.fd), uintptr(unsafe.Pointer(&nowhere)), unsafe.Sizeof(nowhere))
	if errno != 0 {
		t.Fatal(errno)
	}
}

// send asks without a connection.
func (s *socket) send(t *testing.T, to netip.AddrPort) heard {
	t.Helper()
	must(t, unix.Sendto(s.fd, []byte("who?"), 0, s.sockaddr(to)))
	return s.receive(t)
}

func (s *socket) receive(t *testing.T) heard {
	t.Helper()
	ready, err := socktest.Wait(s.fd, unix.POLLIN, patience)
	must(t, err)
	if !ready {
		return heard{Err: unix.ETIMEDOUT}
	}
	buffer := make([]byte, 64)
	n, from, err := unix.Recvfrom(s.fd, buffer, 0)
	if err != nil {
		return heard{Err: err}
	}
	h := heard{Message: string(buffer[:n])}
	if from != nil { // TCP does not tell
		h.Source = addrPort(t, from)
	}
	return h
}

// answer answers whoever asks at an address, by TCP and UDP, with a name.
func answer(t *testing.T, ns *nstest.NS, at netip.AddrPort, name string) {
	t.Helper()
	var (
		listener  net.Listener
		server    *net.UDPConn
		err, err2 error
	)
	ns.Do(t, func() {
		listener, err = net.Listen("tcp", at.String())
		server, err2 = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	})
	must(t, errors.Join(err, err2))
	done := make(chan struct{})
	t.Cleanup(func() {
		_, _ = listener.Close(), server.Close()
		<-done
		<-done
	})
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(conn, make([]byte, len("who?")))
			_, _ = conn.Write([]byte(name))
			_ = conn.Close()
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			_, from, err := server.ReadFromUDPAddrPort(make([]byte, 64))
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort([]byte(name), from)
		}
	}()
}
