// SPDX-License-Identifier: Apache-2.0

package socktest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
)

// ListenUDP opens an unconnected socket; port 0 takes any.
func ListenUDP(tb testing.TB, ns *nstest.NS, at netip.AddrPort) *net.UDPConn {
	tb.Helper()
	conn := In(tb, ns, func() (*net.UDPConn, error) { return net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)) })
	CloseAtEnd(tb, conn)
	enlarge(tb, conn)
	return conn
}

// DialUDP opens a connected socket, which hears nobody else and is told of ICMP
// errors. from may be zero.
func DialUDP(tb testing.TB, ns *nstest.NS, from, to netip.AddrPort) *net.UDPConn {
	tb.Helper()
	var local *net.UDPAddr
	if from.IsValid() {
		local = net.UDPAddrFromAddrPort(from)
	}
	conn := In(tb, ns, func() (*net.UDPConn, error) { return net.DialUDP("udp", local, net.UDPAddrFromAddrPort(to)) })
	CloseAtEnd(tb, conn)
	enlarge(tb, conn)
	return conn
}

// ServeUDP echoes datagrams behind 18 bytes that say from where they came, until
// the test ends. It returns the address it serves at.
func ServeUDP(tb testing.TB, ns *nstest.NS, at netip.AddrPort) netip.AddrPort {
	tb.Helper()
	return WatchUDP(tb, ns, at, func(netip.AddrPort) {})
}

// WatchUDP is ServeUDP, and tells of each datagram from where it came before it
// answers.
func WatchUDP(tb testing.TB, ns *nstest.NS, at netip.AddrPort, saw func(from netip.AddrPort)) netip.AddrPort {
	tb.Helper()
	conn := ListenUDP(tb, ns, at)
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
	tb.Cleanup(func() {
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

// FreeUDP opens a socket of the address's family alone that is not connected.
func FreeUDP(tb testing.TB, ns *nstest.NS, of netip.Addr) *net.UDPConn {
	tb.Helper()
	network := "udp4"
	if of.Is6() {
		network = "udp6"
	}
	conn := In(tb, ns, func() (*net.UDPConn, error) { return net.ListenUDP(network, nil) })
	CloseAtEnd(tb, conn)
	enlarge(tb, conn)
	return conn
}

// TryUDPTo is TryUDP with a socket that is not connected. It returns also who answered.
func TryUDPTo(conn *net.UDPConn, to netip.AddrPort, payload []byte, patience time.Duration) (peer, seen netip.AddrPort, err error) {
	if _, err := conn.WriteToUDPAddrPort(payload, to); err != nil {
		return peer, seen, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return peer, seen, err
	}
	answer := make([]byte, 1<<16)
	n, peer, err := conn.ReadFromUDPAddrPort(answer)
	if err != nil {
		return peer, seen, err
	}
	peer = netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
	if n < seenSize || !bytes.Equal(answer[seenSize:n], payload) {
		return peer, seen, fmt.Errorf("the answer of %d bytes has another payload", n)
	}
	return peer, decodeSeen(answer), nil
}

// AskUDP sends a datagram to a ServeUDP and returns from where it came there.
func AskUDP(tb testing.TB, conn *net.UDPConn, payload []byte) netip.AddrPort {
	tb.Helper()
	seen, err := TryUDP(conn, payload, nodetest.Patience)
	if err != nil {
		tb.Fatalf("%d bytes by UDP from %s to %s: %v", len(payload), conn.LocalAddr(), conn.RemoteAddr(), err)
	}
	return seen
}

// TryUDP is AskUDP that says what went wrong; patience bounds the wait for the answer.
func TryUDP(conn *net.UDPConn, payload []byte, patience time.Duration) (netip.AddrPort, error) {
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
