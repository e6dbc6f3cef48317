// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/socktest"
	"github.com/tendril-net/tendril/pkg/api"
)

// As with UDP; and connections that are closed give their ports back at once.
func TestTCPPortsExhausted(t *testing.T) { eachDriver(t, testTCPPortsExhausted, api.DriverMacvlan) }

func testTCPPortsExhausted(t *testing.T, d driver) {
	flows, low, high := 4000, 50000, 51999
	if small() {
		flows, high = 600, 50299
	}
	f := newFlood(t, d, low, high)
	served := f.serveTCP(t)
	dialHost := func(port int) *net.TCPConn {
		t.Helper()
		from := &net.TCPAddr{IP: uplink4.AsSlice(), Port: port}
		conn := in(t, f.NS, func() (*net.TCPConn, error) { return net.DialTCP("tcp", from, net.TCPAddrFromAddrPort(f.to)) })
		closeAtEnd(t, conn)
		return conn
	}
	listener := in(t, f.NS, func() (*net.TCPListener, error) { return net.ListenTCP("tcp", &net.TCPAddr{Port: low + 101}) })
	closeAtEnd(t, listener)
	hosts := []*net.TCPConn{dialHost(0), dialHost(low + 100)}
	own := append(hostPorts(hosts[0].LocalAddr(), hosts[1].LocalAddr()), low+101)
	askHosts := func() {
		t.Helper()
		fresh := dialHost(0)
		f.askFromHost(t, hostPorts(fresh.LocalAddr())[0], fresh, fresh.Write)
		_ = fresh.Close()
		for i, conn := range hosts {
			f.askFromHost(t, own[i], conn, conn.Write)
		}
	}
	open := make(map[asker]int)
	closeAll := func() {
		for who, fd := range open {
			_ = unix.Close(fd)
			delete(open, who)
		}
	}
	defer closeAll()
	flood := func(askers []asker) {
		t.Helper()
		for batch := range slices.Chunk(askers, 200) {
			f.of(batch[0]).Do(t, func() { f.connect(t, batch, open) })
			if t.Failed() {
				t.FailNow()
			}
			askHosts()
		}
	}
	askHosts()
	flood(f.askers(1, flows))
	f.judgeShare(t, len(open))
	flood(f.askers(2, f.ports()/2))
	f.judge(t, own)
	drops := f.Drops(t)
	if reason := "from_container ports_exhausted"; drops[reason] == 0 || len(drops) != 1 {
		t.Errorf("drops are %v, not %s alone", drops, reason)
	}
	// Every connection still carries what is its own.
	for who, fd := range open {
		f.question(t, who, fd)
	}

	closeAll()
	nodetest.Eventually(t, "connections that the world still has", func() error {
		return nodetest.Unlike(served(), int64(len(hosts)))
	})
	for container := 1; container <= 2; container++ {
		fresh := f.askers(container, flows+100)[flows:]
		flood(fresh)
		made := 0
		for _, who := range fresh {
			if _, ok := open[who]; ok {
				made++
			}
		}
		if made != len(fresh) {
			t.Errorf("container %d made %d of %d connections although all others were closed", container, made, len(fresh))
		}
	}
}

// serveTCP has the world answer, and returns a function that counts its
// connections.
func (f *flood) serveTCP(t *testing.T) func() int64 {
	t.Helper()
	listener := in(t, f.world, func() (*net.TCPListener, error) { return net.ListenTCP("tcp", &net.TCPAddr{IP: world4.AsSlice()}) })
	f.to = listener.Addr().(*net.TCPAddr).AddrPort()
	var group sync.WaitGroup
	var served atomic.Int64
	var mu sync.Mutex
	open := make(map[net.Conn]bool)
	group.Go(func() {
		for {
			conn, err := listener.AcceptTCP()
			if err != nil {
				return
			}
			served.Add(1)
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			group.Go(func() {
				question := make([]byte, questionSize)
				for {
					_, err := io.ReadFull(conn, question)
					if err == nil {
						_, err = conn.Write(f.ledger.note(question, conn.RemoteAddr().(*net.TCPAddr).AddrPort()))
					}
					if err != nil {
						break
					}
				}
				mu.Lock()
				delete(open, conn)
				mu.Unlock()
				_ = conn.Close()
				served.Add(-1)
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
	return served.Load
}

// question asks on a connection and waits for the answer.
func (f *flood) question(t *testing.T, who asker, fd int) {
	t.Helper()
	_, err := unix.Write(fd, who.question())
	if err == nil {
		_, err = socktest.Wait(fd, unix.POLLIN, nodetest.Patience)
	}
	answer, n := make([]byte, 64), 0
	if err == nil {
		n, err = unix.Read(fd, answer)
	}
	if err == nil {
		f.seen[who], err = who.read(answer[:n])
	}
	if err != nil {
		t.Errorf("the connection from %s: %v", who, err)
	}
}

// connect opens connections; open gets those that were made, the others are
// given up. It runs on a thread in the container's namespace.
func (f *flood) connect(t *testing.T, askers []asker, open map[asker]int) {
	before := f.refused()
	from := f.of(askers[0]).IPv4.As4()
	to := &unix.SockaddrInet4{Port: int(f.to.Port()), Addr: f.to.Addr().As4()}
	pending := make(map[asker]int)
	defer func() {
		for _, fd := range pending {
			_ = unix.Close(fd)
		}
	}()
	for _, who := range askers {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			pending[who] = fd
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: who.port(), Addr: from})
		}
		if err == nil {
			err = unix.Connect(fd, to)
		}
		if err != nil && !errors.Is(err, unix.EINPROGRESS) {
			t.Errorf("connect from %s: %v", who, err)
			return
		}
	}
	err := nodetest.Poll(func() error {
		for who, fd := range pending {
			info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			if err == nil && info.State == unix.BPF_TCP_SYN_SENT {
				continue
			}
			delete(pending, who)
			if err != nil || info.State != unix.BPF_TCP_ESTABLISHED {
				t.Errorf("the connection from %s: %v, and it is in state %d", who, err, info.State)
				_ = unix.Close(fd)
				continue
			}
			open[who] = fd
			f.question(t, who, fd)
		}
		// A SYN that is sent again may be counted again.
		if more := uint64(len(pending)); more > f.refused()-before {
			return fmt.Errorf("%d connections were neither made nor counted", more)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
