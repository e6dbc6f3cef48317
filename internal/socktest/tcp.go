// SPDX-License-Identifier: Apache-2.0

package socktest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
)

// ServeTCP serves connections until the test ends: it sends one line that says
// from where the connection came, then echoes. It returns the address it serves at.
func ServeTCP(tb testing.TB, ns *nstest.NS, at netip.AddrPort) netip.AddrPort {
	tb.Helper()
	listener := In(tb, ns, func() (*net.TCPListener, error) { return net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)) })
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
	tb.Cleanup(func() {
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

// Stream is a connection to a ServeTCP.
type Stream struct {
	*net.TCPConn
	from *bufio.Reader
	// Seen is from where it came there.
	Seen netip.AddrPort
}

// DialTCP connects to a ServeTCP.
func DialTCP(tb testing.TB, ns *nstest.NS, to netip.AddrPort) *Stream {
	tb.Helper()
	s, err := TryTCP(tb, ns, netip.AddrPort{}, to)
	if err != nil {
		tb.Fatalf("TCP to %s: %v", to, err)
	}
	return s
}

// TryTCP is DialTCP that says what went wrong. from may be zero.
func TryTCP(tb testing.TB, ns *nstest.NS, from, to netip.AddrPort) (*Stream, error) {
	tb.Helper()
	return TryTCPWithin(tb, ns, from, to, nodetest.Patience)
}

// TryTCPWithin is TryTCP; patience bounds the wait for the connection.
func TryTCPWithin(tb testing.TB, ns *nstest.NS, from, to netip.AddrPort, patience time.Duration) (s *Stream, err error) {
	tb.Helper()
	dialer := net.Dialer{Timeout: patience}
	if from.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(from)
	}
	if from.Port() != 0 {
		dialer.Control = reuse
	}
	var conn net.Conn
	ns.Do(tb, func() { conn, err = dialer.Dial("tcp", to.String()) })
	if err != nil {
		return nil, err
	}
	CloseAtEnd(tb, conn)
	s = &Stream{TCPConn: conn.(*net.TCPConn), from: bufio.NewReader(conn)}
	_ = s.SetDeadline(time.Now().Add(nodetest.Patience))
	line, err := s.from.ReadString('\n')
	if err != nil {
		return nil, err
	}
	if s.Seen, err = netip.ParseAddrPort(strings.TrimSpace(line)); err != nil {
		return nil, err
	}
	return s, nil
}

// reuse lets a socket have a port from which there are connections to elsewhere.
func reuse(_, _ string, conn syscall.RawConn) (err error) {
	controlErr := conn.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	return errors.Join(controlErr, err)
}

// Exchange sends bytes both ways.
func (s *Stream) Exchange(payload []byte) error {
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
