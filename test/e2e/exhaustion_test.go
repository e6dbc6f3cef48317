// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/pkg/api"
)

// asker is a socket that asks: the number of its container, the host's being 0,
// and its port.
type asker uint32

func newAsker(container, port int) asker { return asker(container<<16 | port) }

func (a asker) port() int { return int(a & 0xffff) }

func (a asker) String() string { return fmt.Sprintf("port %d of container %d", a.port(), a>>16) }

// A question is the asker's number; the answer is that and the port from where
// it was seen to come.
const (
	questionSize = 4
	answerSize   = 6
)

func (a asker) question() []byte { return binary.BigEndian.AppendUint32(nil, uint32(a)) }

func (a asker) answer(seen uint16) []byte { return binary.BigEndian.AppendUint16(a.question(), seen) }

// read takes the port out of an answer to the asker.
func (a asker) read(answer []byte) (uint16, error) {
	if len(answer) != answerSize || binary.BigEndian.Uint32(answer) != uint32(a) {
		return 0, fmt.Errorf("%s got %v", a, answer)
	}
	return binary.BigEndian.Uint16(answer[questionSize:]), nil
}

// ledger is the world's record of who asked from which port. A port must stand
// for one asker only.
type ledger struct {
	mu    sync.Mutex
	by    map[netip.AddrPort]asker
	wrong []string
}

// note writes a question down and returns the answer.
func (l *ledger) note(question []byte, from netip.AddrPort) []byte {
	who := asker(binary.BigEndian.Uint32(question))
	l.mu.Lock()
	defer l.mu.Unlock()
	if before, ok := l.by[from]; ok && before != who {
		l.wrong = append(l.wrong, fmt.Sprintf("%s was %s and became %s", from, before, who))
	}
	l.by[from] = who
	return who.answer(from.Port())
}

// flood is many flows to one address and port of the world.
type flood struct {
	*site
	// low and high are the source ports for masquerade, both included.
	low, high int
	// greedy is a container that alone wants more ports than there are; modest
	// wants some when it has taken its share.
	greedy, modest *nodetest.Container
	to             netip.AddrPort
	ledger         ledger
	// seen are the source ports that the world saw.
	seen map[asker]uint16
	// refused counts the packets that got no port.
	refused func() uint64
}

func (f *flood) ports() int { return f.high - f.low + 1 }

// judgeShare looks at what one container got of the ports: about three quarters. Which
// ports those are is as good as chance, and the search for them is bounded.
func (f *flood) judgeShare(t *testing.T, got int) {
	t.Helper()
	if least, most := f.ports()*65/100, f.ports()*80/100; got < least || got > most {
		t.Errorf("the greedy container got %d of %d ports, not %d to %d", got, f.ports(), least, most)
	}
}

func newFlood(t *testing.T, d driver, low, high int) *flood {
	t.Helper()
	f := &flood{site: running(t, "--masquerade-ports", fmt.Sprintf("%d-%d", low, high)), low: low, high: high, seen: make(map[asker]uint16)}
	f.pods = d.of(f.pods)
	f.ledger.by = make(map[netip.AddrPort]asker)
	f.greedy, f.modest = f.Attach(t, "greedy", f.pods), f.Attach(t, "modest", f.pods)
	var counters []func() uint64
	for _, reason := range []string{"ports_exhausted", "endpoint_limit", "translations_full"} {
		counters = append(counters, f.Counter(t, "from_container", reason))
	}
	f.refused = func() (sum uint64) {
		for _, one := range counters {
			sum += one()
		}
		return sum
	}
	return f
}

// askers are the first ports of a container, from 1024 on.
func (f *flood) askers(container, count int) []asker {
	var all []asker
	for port := 1024; port < 1024+count; port++ {
		all = append(all, newAsker(container, port))
	}
	return all
}

// of returns a container by its number.
func (f *flood) of(a asker) *nodetest.Container {
	if a>>16 == 1 {
		return f.greedy
	}
	return f.modest
}

// One container asks from 64,000 ports and gets its share of the ports for
// masquerade, another takes the rest. What goes short is counted, nobody is
// taken for anybody else, and the host's own sockets are spared.
func TestUDPPortsExhausted(t *testing.T) {
	flows, low, high := 64000, 40960, 65535
	if small() {
		flows, low, high = 8000, 50000, 51999
	}
	f := newFlood(t, api.DriverRouted, low, high)
	f.serveUDP(t)
	// The host's own: one with a port of the kernel's choice, one bound within
	// the range although that is reserved, one bound there to every address.
	hosts := []*net.UDPConn{
		dialUDP(t, f.NS, netip.AddrPort{}, f.to),
		dialUDP(t, f.NS, netip.AddrPortFrom(uplink4, uint16(low+100)), f.to),
	}
	every := listenUDP(t, f.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(low+101)))
	own := hostPorts(hosts[0].LocalAddr(), hosts[1].LocalAddr(), every.LocalAddr())
	if own[0] >= low && own[0] <= high {
		t.Errorf("the host's own socket got port %d, which is reserved", own[0])
	}
	askHosts := func() {
		t.Helper()
		for i, conn := range hosts {
			f.askFromHost(t, own[i], conn, conn.Write)
		}
		f.askFromHost(t, own[2], every, func(b []byte) (int, error) { return every.WriteToUDPAddrPort(b, f.to) })
	}
	flood := func(askers []asker) (short int) {
		t.Helper()
		for batch := range slices.Chunk(askers, 500) {
			f.of(batch[0]).Do(t, func() { short += f.ask(t, batch) })
			if t.Failed() {
				t.FailNow()
			}
			askHosts()
		}
		return short
	}
	askHosts()
	shortGreedy := flood(f.askers(1, flows))
	f.judgeShare(t, len(f.seen))
	shortModest := flood(f.askers(2, f.ports()/2))
	f.judge(t, own)
	want := map[string]uint64{"from_container ports_exhausted": uint64(shortGreedy + shortModest)}
	if diff := cmp.Diff(want, f.Drops(t)); diff != "" {
		t.Errorf("drops, of %d datagrams of the greedy and %d of the modest container (-want +got):\n%s", shortGreedy, shortModest, diff)
	}

	// What has a port keeps it: asked again, with new sockets on the same
	// ports, each is seen as before and gets its own answer.
	before := f.seen
	f.seen = make(map[asker]uint16)
	again := make(map[asker][]asker)
	for who := range before {
		if container := who >> 16; len(again[container]) < 500 {
			again[container] = append(again[container], who)
		}
	}
	for _, askers := range again {
		flood(askers)
		for _, who := range askers {
			if f.seen[who] != before[who] {
				t.Errorf("%s was seen as %d, later as %d", who, before[who], f.seen[who])
			}
		}
	}
	// Ports are taken per destination: others are not short of them.
	elsewhere := dialUDP(t, f.modest.NS, netip.AddrPort{}, serveUDP(t, f.world, netip.AddrPortFrom(world4, 0)))
	if got := askUDP(t, elsewhere, pattern(10)).Addr(); got != uplink4 {
		t.Errorf("another port of the world saw %s, not %s", got, uplink4)
	}
}

// serveUDP has the world answer.
func (f *flood) serveUDP(t *testing.T) {
	t.Helper()
	server := listenUDP(t, f.world, netip.AddrPortFrom(world4, 0))
	f.to = server.LocalAddr().(*net.UDPAddr).AddrPort()
	var group sync.WaitGroup
	group.Go(func() {
		question := make([]byte, 64)
		for {
			n, from, err := server.ReadFromUDPAddrPort(question)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && n == questionSize {
				_, _ = server.WriteToUDPAddrPort(f.ledger.note(question, from), from)
			}
		}
	})
	t.Cleanup(func() {
		_ = server.Close()
		group.Wait()
	})
}

func hostPorts(addresses ...net.Addr) []int {
	var ports []int
	for _, a := range addresses {
		ports = append(ports, int(netip.MustParseAddrPort(a.String()).Port()))
	}
	return ports
}

// askFromHost has one of the host's own sockets ask: the world must see its
// own port.
func (f *flood) askFromHost(t *testing.T, port int, conn net.Conn, write func([]byte) (int, error)) {
	t.Helper()
	who := newAsker(0, port)
	answer := make([]byte, 64)
	_ = conn.SetReadDeadline(time.Now().Add(nodetest.Patience))
	_, err := write(who.question())
	n := 0
	if err == nil {
		n, err = conn.Read(answer)
	}
	if want := who.answer(uint16(port)); err != nil || !slices.Equal(answer[:n], want) {
		t.Fatalf("the host asked from port %d: got %v, %v, want %v", port, answer[:n], err, want)
	}
}

// ask asks once from each port and waits until each has an answer or was
// refused. It returns how many were, and runs on a thread in the container's
// namespace.
func (f *flood) ask(t *testing.T, askers []asker) (short int) {
	before := f.refused()
	from := f.of(askers[0]).IPv4.As4()
	to := &unix.SockaddrInet4{Port: int(f.to.Port()), Addr: f.to.Addr().As4()}
	open := make(map[asker]int)
	defer func() {
		for _, fd := range open {
			_ = unix.Close(fd)
		}
	}()
	for _, who := range askers {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			open[who] = fd
			err = errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: who.port(), Addr: from}), unix.Connect(fd, to))
		}
		if err == nil {
			_, err = unix.Write(fd, who.question())
		}
		if err != nil {
			t.Errorf("ask from %s: %v", who, err)
			return 0
		}
	}
	answer := make([]byte, 64)
	err := nodetest.Poll(func() error {
		for who, fd := range open {
			n, err := unix.Read(fd, answer)
			if errors.Is(err, unix.EAGAIN) {
				continue
			}
			if err == nil {
				f.seen[who], err = who.read(answer[:n])
			}
			if err != nil {
				t.Error(err)
			}
			delete(open, who)
			_ = unix.Close(fd)
		}
		if short = int(f.refused() - before); len(open) > short {
			return fmt.Errorf("%d datagrams were neither answered nor counted; without answer are %v",
				len(open)-short, slices.Sorted(maps.Keys(open)))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	} else if len(open) != short {
		t.Errorf("%d datagrams were not answered, but %d counted", len(open), short)
	}
	return short
}

// judge looks at all that the world has seen. own are ports of the host.
func (f *flood) judge(t *testing.T, own []int) {
	t.Helper()
	for _, wrong := range f.ledger.wrong {
		t.Error(wrong)
	}
	// Some are neither container's, and the search for a port is bounded.
	if got := len(f.seen); got < f.ports()*85/100 || got > f.ports() {
		t.Errorf("%d flows got a port, of %d ports", got, f.ports())
	}
	byPort := make(map[uint16]asker)
	for who, seen := range f.seen {
		if other, taken := byPort[seen]; taken {
			t.Errorf("%s and %s were both seen as %d", who, other, seen)
		}
		byPort[seen] = who
		if int(seen) < f.low || int(seen) > f.high {
			t.Errorf("%s was seen as %d, which is not in the range", who, seen)
		}
		if slices.Contains(own, int(seen)) {
			t.Errorf("%s was seen as %d, which is a socket of the host", who, seen)
		}
	}
	t.Logf("%d of %d ports were taken", len(f.seen), f.ports())
}
