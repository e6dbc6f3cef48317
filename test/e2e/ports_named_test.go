// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
)

// named is a server that tells its name: on a TCP connection in a first line,
// before it echoes, and in each answer by UDP, in front of what it was sent.
type named struct{ name string }

// serveNamed serves at all addresses of a namespace, also those it gets later.
func serveNamed(t *testing.T, ns *nstest.NS, name string) *named {
	t.Helper()
	all := netip.IPv6Unspecified() // of both families
	listener := in(t, ns, func() (*net.TCPListener, error) {
		return net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(all, containerTCP)))
	})
	udp := listenUDP(t, ns, netip.AddrPortFrom(all, containerUDP))
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		open  []net.Conn
	)
	group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
			group.Go(func() {
				_, _ = fmt.Fprintln(conn, name)
				_, _ = io.Copy(conn, struct{ io.Reader }{conn})
				_ = conn.Close()
			})
		}
	})
	group.Go(func() {
		buffer := make([]byte, 1500)
		for {
			n, from, err := udp.ReadFromUDPAddrPort(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = udp.WriteToUDPAddrPort(append([]byte(name+"\n"), buffer[:n]...), from)
			}
		}
	})
	t.Cleanup(func() {
		_, _ = listener.Close(), udp.Close()
		mu.Lock()
		for _, conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		group.Wait()
	})
	return &named{name}
}

// greetTCP connects to a named server and returns its name. from may be zero.
func greetTCP(t *testing.T, ns *nstest.NS, from, to netip.AddrPort) (name string, conn *net.TCPConn, err error) {
	t.Helper()
	dialer := net.Dialer{Timeout: portPatience}
	if from.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(from)
	}
	var made net.Conn
	ns.Do(t, func() { made, err = dialer.Dial("tcp", to.String()) })
	if err != nil {
		return "", nil, err
	}
	closeAtEnd(t, made)
	conn = made.(*net.TCPConn)
	_ = conn.SetReadDeadline(time.Now().Add(portPatience))
	name, err = bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(name), conn, err
}

// greetUDP sends a number to a named server and returns its name.
func greetUDP(conn *net.UDPConn, number uint64) (string, error) {
	if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, number)); err != nil {
		return "", err
	}
	_ = conn.SetReadDeadline(time.Now().Add(portPatience))
	buffer := make([]byte, 100)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return "", err
		}
		if name, got := readGreeting(buffer[:n]); got == number {
			return name, nil
		}
	}
}

func readGreeting(answer []byte) (name string, number uint64) {
	name, rest, _ := strings.Cut(string(answer), "\n")
	if len(rest) == 8 {
		number = binary.BigEndian.Uint64([]byte(rest))
	}
	return name, number
}

// steady sends numbered datagrams from one socket, and knows who answered which.
type steady struct {
	name string
	conn *net.UDPConn
	mu   sync.Mutex
	next uint64
	by   map[uint64]string
}

func startSteady(t *testing.T, name string, from *nstest.NS, to netip.AddrPort) *steady {
	t.Helper()
	s := &steady{name: name, conn: dialUDP(t, from, netip.AddrPort{}, to), next: 1, by: make(map[uint64]string)}
	var group sync.WaitGroup
	stop := make(chan struct{})
	group.Go(func() {
		ticker := time.NewTicker(2 * pace())
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
				s.send()
			}
		}
	})
	group.Go(func() {
		buffer := make([]byte, 100)
		for {
			n, err := s.conn.Read(buffer)
			if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			if err != nil {
				continue // an ICMP error: nobody has the port just now
			}
			name, number := readGreeting(buffer[:n])
			s.mu.Lock()
			s.by[number] = name
			s.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		close(stop)
		_ = s.conn.SetReadDeadline(time.Now())
		group.Wait()
	})
	return s
}

func (s *steady) send() {
	s.mu.Lock()
	defer s.mu.Unlock()
	number := binary.BigEndian.AppendUint64(nil, s.next)
	s.next++
	// The error about an earlier datagram is told instead of sending this one.
	for range 10 {
		if _, err := s.conn.Write(number); err == nil {
			return
		}
	}
}

// mark is the number of the next datagram.
func (s *steady) mark() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}

// answered waits until datagrams from that on have been answered, each of them, and
// checks by whom.
func (s *steady) answered(t *testing.T, since uint64, by string) {
	t.Helper()
	const count = 30
	want := map[string]int{by: count}
	var got map[string]int
	deadline := time.Now().Add(portPatience)
	err := nodetest.Poll(func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		got = make(map[string]int)
		for n := since; n < since+count; n++ {
			if name, ok := s.by[n]; ok {
				got[name]++
			} else {
				got["nobody"]++
			}
		}
		if got["nobody"] > 0 && time.Now().Before(deadline) {
			return errors.New("not all were answered")
		}
		return nil
	})
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%s: who answered datagrams %d and on (%v) (-want +got):\n%s", s.name, since, err, diff)
	}
}
