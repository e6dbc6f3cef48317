// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
)

// A socket belongs to the network namespace of the thread that made it, and may
// be used from any.

// must ends the test on an error.
func must[T any](value T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return value
	}
}

// in makes something in a namespace.
func in[T any](t *testing.T, ns *nstest.NS, f func() (T, error)) T {
	t.Helper()
	var value T
	var err error
	ns.Do(t, func() { value, err = f() })
	return must(value, err)(t)
}

func closeAtEnd(t *testing.T, c io.Closer) {
	t.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
}

// roomy are the bytes of a socket's buffers where not one datagram may be lost
// for want of room.
const roomy = 32 << 20

func enlarge(t *testing.T, c syscall.Conn) {
	t.Helper()
	control(t, c, func(fd int) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, roomy),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, roomy))
	})
}

func control(t *testing.T, c syscall.Conn, f func(fd int) error) {
	t.Helper()
	raw := must(c.SyscallConn())(t)
	var inner error
	if err := errors.Join(raw.Control(func(fd uintptr) { inner = f(int(fd)) }), inner); err != nil {
		t.Fatal(err)
	}
}

// listenUDP opens an unconnected socket; port 0 takes any.
func listenUDP(t *testing.T, ns *nstest.NS, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	conn := in(t, ns, func() (*net.UDPConn, error) { return net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)) })
	closeAtEnd(t, conn)
	enlarge(t, conn)
	return conn
}

// dialUDP opens a connected socket, which hears nobody else and is told of ICMP
// errors. from may be zero.
func dialUDP(t *testing.T, ns *nstest.NS, from, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	var local *net.UDPAddr
	if from.IsValid() {
		local = net.UDPAddrFromAddrPort(from)
	}
	conn := in(t, ns, func() (*net.UDPConn, error) { return net.DialUDP("udp", local, net.UDPAddrFromAddrPort(to)) })
	closeAtEnd(t, conn)
	enlarge(t, conn)
	return conn
}

// serveUDP echoes datagrams behind 18 bytes that say from where they came, until
// the test ends. It returns the address it serves at.
func serveUDP(t *testing.T, ns *nstest.NS, at netip.AddrPort) netip.AddrPort {
	t.Helper()
	return watchUDP(t, ns, at, func(netip.AddrPort) {})
}

// watchUDP is serveUDP, and tells of each datagram from where it came before it
// answers.
func watchUDP(t *testing.T, ns *nstest.NS, at netip.AddrPort, saw func(from netip.AddrPort)) netip.AddrPort {
	t.Helper()
	conn := listenUDP(t, ns, at)
	var group sync.WaitGroup
	group.Go(func() {
		buffer := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buffer[seenSize:])
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // an ICMP error about an answer
			}
			saw(from)
			copy(buffer, encodeSeen(from))
			_, _ = conn.WriteToUDPAddrPort(buffer[:seenSize+n], from)
		}
	})
	t.Cleanup(func() {
		_ = conn.Close()
		group.Wait()
	})
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// seenSize is the length of what encodeSeen makes: address and port.
const seenSize = 18

func encodeSeen(a netip.AddrPort) []byte {
	bytes16 := a.Addr().As16()
	return binary.BigEndian.AppendUint16(bytes16[:], a.Port())
}

func decodeSeen(b []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[:16])).Unmap(), binary.BigEndian.Uint16(b[16:]))
}

// askUDP sends a datagram to a serveUDP and returns from where it came there.
func askUDP(t *testing.T, conn *net.UDPConn, payload []byte) netip.AddrPort {
	t.Helper()
	seen, err := tryUDP(conn, payload, nodetest.Patience)
	if err != nil {
		t.Fatalf("%d bytes by UDP from %s to %s: %v", len(payload), conn.LocalAddr(), conn.RemoteAddr(), err)
	}
	return seen
}

func tryUDP(conn *net.UDPConn, payload []byte, patience time.Duration) (netip.AddrPort, error) {
	if _, err := conn.Write(payload); err != nil {
		return netip.AddrPort{}, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return netip.AddrPort{}, err
	}
	answer := make([]byte, 1<<16)
	n, err := conn.Read(answer)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if n < seenSize || !bytes.Equal(answer[seenSize:n], payload) {
		return netip.AddrPort{}, fmt.Errorf("the answer of %d bytes has another payload", n)
	}
	return decodeSeen(answer), nil
}

// pattern is a payload in which bytes that were lost or moved show.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8*31)
	}
	return b
}

// listenTCP serves connections until the test ends: it sends one line that says
// from where the connection came, then echoes.
func serveTCP(t *testing.T, ns *nstest.NS, at netip.AddrPort) netip.AddrPort {
	t.Helper()
	listener := in(t, ns, func() (*net.TCPListener, error) { return net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)) })
	var group sync.WaitGroup
	var mu sync.Mutex
	open := make(map[net.Conn]bool)
	group.Go(func() {
		for {
			conn, err := listener.AcceptTCP()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			group.Go(func() {
				_, _ = fmt.Fprintln(conn, conn.RemoteAddr())
				_, _ = io.Copy(conn, struct{ io.Reader }{conn}) // without splice(2)
				_ = conn.Close()
				mu.Lock()
				delete(open, conn)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		group.Wait()
	})
	return listener.Addr().(*net.TCPAddr).AddrPort()
}

// stream is a connection to a serveTCP.
type stream struct {
	*net.TCPConn
	from *bufio.Reader
	// seen is from where it came there.
	seen netip.AddrPort
}

func dialTCP(t *testing.T, ns *nstest.NS, to netip.AddrPort) *stream {
	t.Helper()
	s, err := tryTCP(t, ns, netip.AddrPort{}, to)
	if err != nil {
		t.Fatalf("TCP to %s: %v", to, err)
	}
	return s
}

func tryTCP(t *testing.T, ns *nstest.NS, from, to netip.AddrPort) (s *stream, err error) {
	t.Helper()
	dialer := net.Dialer{Timeout: nodetest.Patience}
	if from.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(from)
	}
	var conn net.Conn
	ns.Do(t, func() { conn, err = dialer.Dial("tcp", to.String()) })
	if err != nil {
		return nil, err
	}
	closeAtEnd(t, conn)
	s = &stream{TCPConn: conn.(*net.TCPConn), from: bufio.NewReader(conn)}
	_ = s.SetDeadline(time.Now().Add(nodetest.Patience))
	line, err := s.from.ReadString('\n')
	if err != nil {
		return nil, err
	}
	if s.seen, err = netip.ParseAddrPort(strings.TrimSpace(line)); err != nil {
		return nil, err
	}
	return s, nil
}

// exchange sends bytes both ways.
func (s *stream) exchange(payload []byte) error {
	_ = s.SetDeadline(time.Now().Add(nodetest.Patience))
	sent := make(chan error, 1)
	go func() {
		_, err := s.Write(payload)
		sent <- err
	}()
	answer := make([]byte, len(payload))
	_, err := io.ReadFull(s.from, answer)
	if err = errors.Join(err, <-sent); err != nil {
		return err
	}
	if !bytes.Equal(answer, payload) {
		return errors.New("the answer has another payload")
	}
	return nil
}

// echo is an ICMP socket that asks and hears of asking.
type echo struct {
	*net.IPConn
	v6 bool
	id uint16
}

// openEcho opens a raw socket for ICMP of the address's family.
func openEcho(t *testing.T, ns *nstest.NS, of netip.Addr) *echo {
	t.Helper()
	network := "ip4:icmp"
	if of.Is6() {
		network = "ip6:ipv6-icmp"
	}
	conn := in(t, ns, func() (*net.IPConn, error) { return net.ListenIP(network, &net.IPAddr{}) })
	closeAtEnd(t, conn)
	enlarge(t, conn)
	return &echo{IPConn: conn, v6: of.Is6(), id: uint16(os.Getpid())}
}

// Types of ICMP and ICMPv6.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

func (e *echo) types() (request, reply byte) {
	if e.v6 {
		return echoRequest6, echoReply6
	}
	return echoRequest4, echoReply4
}

// send sends a request; seq tells requests apart.
func (e *echo) send(to netip.Addr, seq uint16, size int) error {
	request, _ := e.types()
	message := append([]byte{request, 0, 0, 0, byte(e.id >> 8), byte(e.id), byte(seq >> 8), byte(seq)}, pattern(size)...)
	if !e.v6 { // for ICMPv6 the kernel does it
		binary.BigEndian.PutUint16(message[2:], internetChecksum(message))
	}
	_, err := e.WriteTo(message, &net.IPAddr{IP: to.AsSlice()})
	return err
}

// await waits for a message of the type with the sequence number and returns
// who sent it.
func (e *echo) await(kind byte, seq uint16, size int) (netip.Addr, error) {
	_ = e.SetReadDeadline(time.Now().Add(nodetest.Patience))
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := e.ReadFromIP(buffer)
		if err != nil {
			return netip.Addr{}, err
		}
		if n < 8 || buffer[0] != kind || binary.BigEndian.Uint16(buffer[6:]) != seq {
			continue
		}
		address, _ := netip.AddrFromSlice(from.IP)
		if !bytes.Equal(buffer[8:n], pattern(size)) {
			return address, fmt.Errorf("the message from %s has another payload", address)
		}
		return address.Unmap(), nil
	}
}

func internetChecksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
