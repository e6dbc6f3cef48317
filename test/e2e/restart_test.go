// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// Without an agent, what was connected stays so, and new connections of every
// kind can be made.
func TestAgentKilled(t *testing.T) { eachDriver(t, testAgentKilled) }

func testAgentKilled(t *testing.T, d driver) {
	switch d {
	case api.DriverBridge:
		nstest.LeaveTo(t, "5.10") // its ports have clsact on all kernels
	case api.DriverMacvlan:
		nstest.Deal(t, 1)
	}
	s := drivenBy(t, d)
	a, b := s.Attach(t, "a", s.pods), s.Attach(t, "b", s.pods)
	type service struct{ udp, tcp netip.AddrPort }
	type old struct {
		udp  *net.UDPConn
		tcp  *stream
		seen netip.AddrPort
	}
	type way struct {
		family
		name   string
		from   *nstest.NS
		want   netip.Addr
		at     service
		before old
	}
	serve := func(ns *nstest.NS, at netip.Addr) service {
		return service{serveUDP(t, ns, netip.AddrPortFrom(at, 0)), serveTCP(t, ns, netip.AddrPortFrom(at, 0))}
	}
	var ways []*way
	for _, f := range families() {
		ways = append(ways,
			&way{family: f, name: "container to world", from: a.NS, want: d.shown(f, a), at: serve(s.world, f.world)},
			&way{family: f, name: "container to container", from: a.NS, want: f.of(a), at: serve(b.NS, f.of(b))},
			&way{family: f, name: "container to host", from: a.NS, want: f.of(a), at: serve(s.NS, f.uplink)},
			&way{family: f, name: "host to container", from: s.NS, want: f.gateway(a), at: serve(a.NS, f.of(a))})
	}
	for _, w := range ways {
		w.before.udp = dialUDP(t, w.from, netip.AddrPort{}, w.at.udp)
		w.before.seen = askUDP(t, w.before.udp, pattern(100))
		w.before.tcp = dialTCP(t, w.from, w.at.tcp)
	}
	s.Kill(t)
	for _, w := range ways {
		t.Run(w.family.name+" "+w.name, func(t *testing.T) {
			if got := askUDP(t, w.before.udp, pattern(100)); got != w.before.seen {
				t.Errorf("old UDP flow: seen as %s, before the kill as %s", got, w.before.seen)
			}
			if err := w.before.tcp.Exchange(pattern(1 << 20)); err != nil {
				t.Errorf("old TCP connection: %v", err)
			}
			for range 10 {
				if got := askUDP(t, dialUDP(t, w.from, netip.AddrPort{}, w.at.udp), pattern(100)).Addr(); got != w.want {
					t.Errorf("new UDP flow: seen as %s, not %s", got, w.want)
				}
				tcp := dialTCP(t, w.from, w.at.tcp)
				if got := tcp.Seen.Addr(); got != w.want {
					t.Errorf("new TCP connection: seen as %s, not %s", got, w.want)
				}
				if err := tcp.Exchange(pattern(1 << 16)); err != nil {
					t.Errorf("new TCP connection: %v", err)
				}
			}
			ping := openEcho(t, w.from, w.at.udp.Addr())
			_, reply := ping.Types()
			if err := ping.Send(w.at.udp.Addr(), 1, 100); err != nil {
				t.Fatal(err)
			}
			if _, err := ping.Await(reply, 1, 100); err != nil {
				t.Errorf("ICMP echo: %v", err)
			}
		})
	}
}

// An agent that stops, is killed and comes back loses no packet: every datagram
// that was sent meanwhile is heard, and so is every answer.
func TestRestart(t *testing.T) {
	nstest.LeaveTo(t, "6.1")
	s := running(t)
	a, b := s.Attach(t, "a", s.pods), s.Attach(t, "b", s.pods)
	nodetest.Route(t, s.world, []string{pods4, "via", uplink4.String()}, []string{pods6, "via", uplink6.String()})
	before := endpoints(t, s)

	var all []*load
	for _, f := range families() {
		all = append(all,
			newLoad(t, f.name+" container to world", a.NS, s.world, f.world),
			newLoad(t, f.name+" container to container", a.NS, b.NS, f.of(b)),
			newLoad(t, f.name+" host to container", s.NS, b.NS, f.of(b)),
			newLoad(t, f.name+" world to container", s.world, b.NS, f.of(b)))
	}
	var group sync.WaitGroup
	stop := make(chan struct{})
	for _, l := range all {
		group.Go(func() { l.old(stop) })
		group.Go(func() { l.fresh(t, stop) })
		group.Go(func() { l.tcp(stop) })
	}
	cycles := 4
	if small() {
		cycles = 2
	}
	for i := range cycles {
		// Traffic is under way, before the next agent ends and after.
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
	if diff := cmp.Diff(before, endpoints(t, s), cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
		t.Errorf("endpoints after the restarts (-before +after):\n%s", diff)
	}
	if drops := s.Drops(t); len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}
	var want []string
	for _, pool := range s.Status(t).Pools {
		want = append(want, fmt.Sprintf("%s leased %d", pool.Network, pool.Leased))
	}
	if diff := cmp.Diff([]string{"pods leased 2", "pods leased 2"}, want); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
}

// endpoints are those that the agent knows, by name.
func endpoints(t *testing.T, s *site) []api.Endpoint {
	t.Helper()
	list := must(s.API.Endpoints(t.Context()))(t)
	slices.SortFunc(list, func(a, b api.Endpoint) int { return strings.Compare(a.ContainerID, b.ContainerID) })
	return list
}

// load is steady traffic on one way.
type load struct {
	name                  string
	from                  *nstest.NS
	conn                  *net.UDPConn
	at                    netip.AddrPort
	stream                *stream
	sent, heard, answered atomic.Int64
	asked, told, blocks   atomic.Int64
	wrong                 atomic.Pointer[error]
}

func newLoad(t *testing.T, name string, from, to *nstest.NS, at netip.Addr) *load {
	t.Helper()
	server := listenUDP(t, to, netip.AddrPortFrom(at, 0))
	return loadOn(t, name, from, server, addrPort(server.LocalAddr()), serveTCP(t, to, netip.AddrPortFrom(at, 0)))
}

// loadOn is traffic to a socket and a serveTCP by way of these addresses.
func loadOn(t *testing.T, name string, from *nstest.NS, server *net.UDPConn, udp, tcp netip.AddrPort) *load {
	t.Helper()
	l := &load{name: name, from: from, at: udp}
	var group sync.WaitGroup
	group.Go(func() {
		buffer := make([]byte, 1500)
		for {
			n, who, err := server.ReadFromUDPAddrPort(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			l.heard.Add(1)
			_, _ = server.WriteToUDPAddrPort(buffer[:n], who)
		}
	})
	t.Cleanup(func() {
		_ = server.Close()
		group.Wait()
	})
	l.conn = dialUDP(t, from, netip.AddrPort{}, udp)
	l.stream = dialTCP(t, from, tcp)
	return l
}

// pace is the time between two datagrams of a flow: as many as two emulated
// processors can carry without filling a queue somewhere, and start an agent besides.
func pace() time.Duration {
	if small() {
		return 60 * time.Millisecond
	}
	return time.Millisecond
}

// old sends on one flow until stop, and hears the answers.
func (l *load) old(stop <-chan struct{}) {
	var reader sync.WaitGroup
	reader.Go(func() {
		buffer := make([]byte, 1500)
		for {
			if _, err := l.conn.Read(buffer); errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
				return
			} else if err != nil {
				l.fail(fmt.Errorf("hear an answer: %w", err))
				continue
			}
			l.answered.Add(1)
		}
	})
	ticker := time.NewTicker(pace())
	defer ticker.Stop()
	for seq := uint64(0); ; seq++ {
		select {
		case <-stop:
			l.drain()
			_ = l.conn.SetReadDeadline(time.Now())
			reader.Wait()
			return
		case <-ticker.C:
			l.send(l.conn, seq)
		}
	}
}

func (l *load) send(conn *net.UDPConn, seq uint64) {
	if _, err := conn.Write(binary.BigEndian.AppendUint64(make([]byte, 0, 200), seq)[:200]); err != nil {
		l.fail(fmt.Errorf("send datagram %d: %w", seq, err))
		return
	}
	l.sent.Add(1)
}

// drain waits for the last answers; judge says whether they came.
func (l *load) drain() {
	_ = nodetest.Poll(func() error { return nodetest.Unlike(l.answered.Load(), l.sent.Load()) })
}

// fresh asks once on each of many new flows.
func (l *load) fresh(t *testing.T, stop <-chan struct{}) {
	ticker := time.NewTicker(5 * pace())
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
		var conn *net.UDPConn
		var err error
		l.from.Do(t, func() { conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(l.at)) })
		if err != nil {
			l.fail(err)
			return
		}
		l.asked.Add(1)
		_ = conn.SetDeadline(time.Now().Add(nodetest.Patience))
		_, err = conn.Write([]byte("new"))
		if err == nil {
			_, err = conn.Read(make([]byte, 10))
		}
		if err != nil {
			l.fail(fmt.Errorf("datagram of a new flow: %w", err))
		} else {
			l.told.Add(1)
		}
		_ = conn.Close()
	}
}

// tcp sends blocks there and back on one connection.
func (l *load) tcp(stop <-chan struct{}) {
	ticker := time.NewTicker(5 * pace())
	defer ticker.Stop()
	block := pattern(16 << 10)
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
		if err := l.stream.Exchange(block); err != nil {
			l.fail(fmt.Errorf("block %d by TCP: %w", l.blocks.Load(), err))
			return
		}
		l.blocks.Add(1)
	}
}

func (l *load) fail(err error) { l.wrong.CompareAndSwap(nil, &err) }

// advance returns when more has come through each of them in each manner.
func advance(t *testing.T, all []*load) {
	t.Helper()
	var more []func() error
	for _, l := range all {
		answered, told, blocks := l.answered.Load(), l.told.Load(), l.blocks.Load()
		more = append(more, func() error {
			if l.answered.Load() < answered+20 || l.told.Load() < told+4 || l.blocks.Load() < blocks+4 {
				return errors.New("too little has come through")
			}
			return nil
		})
	}
	for i, l := range all {
		nodetest.Eventually(t, l.name+": no traffic", more[i])
	}
}

func (l *load) judge(t *testing.T) {
	t.Helper()
	if err := l.wrong.Load(); err != nil {
		t.Errorf("%s: %v", l.name, *err)
	}
	type count struct{ Sent, Heard, Answered int64 }
	sent, asked := l.sent.Load(), l.asked.Load()
	want := count{sent + asked, sent + asked, sent + asked}
	got := count{sent + asked, l.heard.Load(), l.answered.Load() + l.told.Load()}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: datagrams (-want +got):\n%s", l.name, diff)
	}
	t.Logf("%s: %d datagrams, %d flows, %d blocks by TCP", l.name, sent, asked, l.blocks.Load())
}
