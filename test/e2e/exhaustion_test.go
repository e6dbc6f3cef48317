// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nodetest"
)

// A question is the port of the socket that asks; the answer is the question
// and the port from where it was seen to come.
const (
	questionSize = 2
	answerSize   = 4
)

// ledger is the world's record of who asked from which port. A port must stand
// for one asking socket only.
type ledger struct {
	mu    sync.Mutex
	by    map[netip.AddrPort]uint16
	wrong []string
}

// note writes a question down and returns the answer.
func (l *ledger) note(question []byte, from netip.AddrPort) []byte {
	port := binary.BigEndian.Uint16(question)
	l.mu.Lock()
	defer l.mu.Unlock()
	if before, ok := l.by[from]; ok && before != port {
		l.wrong = append(l.wrong, fmt.Sprintf("%s was port %d of the container and became port %d", from, before, port))
	}
	l.by[from] = port
	return binary.BigEndian.AppendUint16(slices.Clone(question), from.Port())
}

// flood is many flows from one container to one address and port of the world.
type flood struct {
	*site
	// flows is how many, first the source port of the first.
	flows, first int
	// range of the source ports for masquerade, both included.
	low, high int
	from      *nodetest.Container
	to        netip.AddrPort
	ledger    ledger
	// seen are the source ports that the world saw, by the container's port.
	seen map[uint16]uint16
	// dropped counts the flows that got no port.
	dropped int
}

func (f *flood) ports() int { return f.high - f.low + 1 }

// counter counts the packets for which there was no port, for want of a port or
// of room to remember it.
func (f *flood) counter(t *testing.T) func() uint64 {
	t.Helper()
	var counters []func() uint64
	for _, reason := range []string{"ports_exhausted", "endpoint_limit", "translations_full"} {
		counters = append(counters, f.Counter(t, "from_container", reason))
	}
	return func() (sum uint64) {
		for _, one := range counters {
			sum += one()
		}
		return sum
	}
}

// newFlood makes a node with room for too few flows.
func newFlood(t *testing.T, flows, low, high int) *flood {
	t.Helper()
	f := &flood{
		site:  running(t, "--masquerade-ports", fmt.Sprintf("%d-%d", low, high)),
		flows: flows, first: 1024, low: low, high: high, seen: make(map[uint16]uint16),
	}
	f.ledger.by = make(map[netip.AddrPort]uint16)
	f.from = f.Attach(t, "flooder", f.pods)
	return f
}

func TestUDPPortsExhausted(t *testing.T) {
	flows, low, high := 64000, 40960, 65535
	if small() {
		flows, low, high = 8000, 50000, 51999
	}
	f := newFlood(t, flows, low, high)
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
				_, _ = server.WriteToUDPAddrPort(f.ledger.note(question[:n], from), from)
			}
		}
	})
	t.Cleanup(func() {
		_ = server.Close()
		group.Wait()
	})

	// The host's own: one with a port of the kernel's choice, one bound within
	// the range although that is reserved, one bound there to every address.
	hosts := []*net.UDPConn{
		dialUDP(t, f.NS, netip.AddrPort{}, f.to),
		dialUDP(t, f.NS, netip.AddrPortFrom(uplink4, uint16(f.low+100)), f.to),
	}
	every := listenUDP(t, f.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(f.low+101)))
	own := hostPorts(hosts[0].LocalAddr(), hosts[1].LocalAddr(), every.LocalAddr())
	if own[0] >= uint16(f.low) && own[0] <= uint16(f.high) {
		t.Errorf("the host's own socket got port %d, which is reserved", own[0])
	}
	askAll := func() {
		t.Helper()
		for i, conn := range hosts {
			f.askFromHost(t, own[i], conn.Read, conn.Write, conn)
		}
		f.askFromHost(t, own[2], every.Read, func(b []byte) (int, error) { return every.WriteToUDPAddrPort(b, f.to) }, every)
	}
	askAll()
	exhausted := f.counter(t)
	for done := 0; done < f.flows; {
		size := min(500, f.flows-done)
		f.from.Do(t, func() { f.batch(t, f.first+done, size, exhausted) })
		if done += size; t.Failed() {
			return
		}
		if done/size%16 == 0 {
			askAll()
		}
	}
	askAll()
	f.judge(t, own)
	if diff := cmp.Diff(map[string]uint64{"from_container ports_exhausted": uint64(f.dropped)}, f.Drops(t)); diff != "" {
		t.Errorf("drops (-want +got):\n%s", diff)
	}

	// What has a port keeps it: asked again, with new sockets on the same
	// ports, each is seen as before and gets its own answer.
	before := f.seen
	f.seen = make(map[uint16]uint16)
	var again []uint16
	for port := range before {
		if again = append(again, port); len(again) == 500 {
			break
		}
	}
	f.from.Do(t, func() { f.ask(t, again, exhausted) })
	for _, port := range again {
		if f.seen[port] != before[port] {
			t.Errorf("port %d of the container was seen as %d, later as %d", port, before[port], f.seen[port])
		}
	}
	// Ports are taken per destination: others are not short of them.
	elsewhere := dialUDP(t, f.from.NS, netip.AddrPort{}, serveUDP(t, f.world, netip.AddrPortFrom(world4, 0)))
	if got := askUDP(t, elsewhere, pattern(10)).Addr(); got != uplink4 {
		t.Errorf("another port of the world saw %s, not %s", got, uplink4)
	}
}

func hostPorts(addresses ...net.Addr) []uint16 {
	var ports []uint16
	for _, a := range addresses {
		ports = append(ports, netip.MustParseAddrPort(a.String()).Port())
	}
	return ports
}

// askFromHost has one of the host's own sockets ask: the world must see its
// own port.
func (f *flood) askFromHost(t *testing.T, port uint16, read, write func([]byte) (int, error), conn interface{ SetReadDeadline(time.Time) error }) {
	t.Helper()
	answer := make([]byte, 64)
	_ = conn.SetReadDeadline(time.Now().Add(nodetest.Patience))
	_, err := write(binary.BigEndian.AppendUint16(nil, port))
	if err != nil {
		t.Fatalf("the host asks from port %d: %v", port, err)
	}
	n, err := read(answer)
	if want := answerOf(port, port); err != nil || !slices.Equal(answer[:n], want) {
		t.Fatalf("the host's question from port %d: got %v, %v, want %v", port, answer[:n], err, want)
	}
}

func answerOf(port, seen uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, port), seen)
}

func (f *flood) batch(t *testing.T, first, size int, exhausted func() uint64) {
	var ports []uint16
	for port := first; port < first+size; port++ {
		ports = append(ports, uint16(port))
	}
	f.ask(t, ports, exhausted)
}

// ask asks once from each port and waits until each has an answer or was
// counted as dropped. It runs on a thread in the container's namespace.
func (f *flood) ask(t *testing.T, ports []uint16, exhausted func() uint64) {
	before := exhausted()
	to := &unix.SockaddrInet4{Port: int(f.to.Port()), Addr: f.to.Addr().As4()}
	open := make(map[uint16]int)
	defer func() {
		for _, fd := range open {
			_ = unix.Close(fd)
		}
	}()
	for _, port := range ports {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			open[port] = fd
			err = errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: int(port), Addr: f.from.IPv4.As4()}),
				unix.Connect(fd, to))
		}
		if err == nil {
			_, err = unix.Write(fd, binary.BigEndian.AppendUint16(nil, port))
		}
		if err != nil {
			t.Errorf("ask from port %d: %v", port, err)
			return
		}
	}
	answer := make([]byte, 64)
	dropped := 0
	for end := time.Now().Add(nodetest.Patience); ; time.Sleep(time.Millisecond) {
		for port, fd := range open {
			n, err := unix.Read(fd, answer)
			if errors.Is(err, unix.EAGAIN) {
				continue
			}
			if err != nil || n != answerSize || binary.BigEndian.Uint16(answer) != port {
				t.Errorf("port %d of the container got %v, %v", port, answer[:max(n, 0)], err)
				return
			}
			f.seen[port] = binary.BigEndian.Uint16(answer[questionSize:])
			delete(open, port)
			_ = unix.Close(fd)
		}
		dropped = int(exhausted() - before)
		if len(open) <= dropped {
			break
		}
		if time.Now().After(end) {
			t.Errorf("of %d datagrams %d were neither answered nor counted as dropped; without answer are those from ports %v",
				len(ports), len(open)-dropped, slices.Sorted(maps.Keys(open)))
			return
		}
	}
	if len(open) != dropped {
		t.Errorf("%d datagrams were not answered, but %d counted as dropped", len(open), dropped)
	}
	f.dropped += dropped
}

// judge looks at all that the world has seen.
func (f *flood) judge(t *testing.T, own []uint16) {
	t.Helper()
	for _, wrong := range f.ledger.wrong {
		t.Error(wrong)
	}
	if f.dropped == 0 {
		t.Error("the ports were not exhausted")
	}
	// The search for a port is bounded, so the last few may stay unused.
	if got := len(f.seen); got < f.ports()*9/10 || got > f.ports() {
		t.Errorf("%d flows got a port, of %d ports", got, f.ports())
	}
	byPort := make(map[uint16]uint16)
	for port, seen := range f.seen {
		if other, taken := byPort[seen]; taken {
			t.Errorf("ports %d and %d of the container were both seen as %d", port, other, seen)
		}
		byPort[seen] = port
		if int(seen) < f.low || int(seen) > f.high {
			t.Errorf("port %d of the container was seen as %d, which is not in the range", port, seen)
		}
		if slices.Contains(own, seen) {
			t.Errorf("port %d of the container was seen as %d, which is a socket of the host", port, seen)
		}
	}
	t.Logf("of %d flows %d got one of %d ports, %d were dropped", f.flows, len(f.seen), f.ports(), f.dropped)
}

func TestTCPPortsExhausted(t *testing.T) {
	flows, low, high := 4000, 50000, 51999
	if small() {
		flows, high = 600, 50299
	}
	f := newFlood(t, flows, low, high)
	listener := in(t, f.world, func() (*net.TCPListener, error) {
		return net.ListenTCP("tcp", &net.TCPAddr{IP: world4.AsSlice()})
	})
	f.to = listener.Addr().(*net.TCPAddr).AddrPort()
	var serving, accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := listener.AcceptTCP()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer func() { _ = conn.Close() }()
				question := make([]byte, questionSize)
				for {
					if _, err := io.ReadFull(conn, question); err != nil {
						return
					}
					if _, err := conn.Write(f.ledger.note(question, conn.RemoteAddr().(*net.TCPAddr).AddrPort())); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		accepting.Wait()
		serving.Wait()
	})

	dialHost := func(port int) *net.TCPConn {
		t.Helper()
		from := &net.TCPAddr{IP: uplink4.AsSlice(), Port: port}
		conn := in(t, f.NS, func() (*net.TCPConn, error) { return net.DialTCP("tcp", from, net.TCPAddrFromAddrPort(f.to)) })
		closeAtEnd(t, conn)
		return conn
	}
	listenHost := in(t, f.NS, func() (*net.TCPListener, error) { return net.ListenTCP("tcp", &net.TCPAddr{Port: f.low + 101}) })
	closeAtEnd(t, listenHost)
	hosts := []*net.TCPConn{dialHost(0), dialHost(f.low + 100)}
	own := append(hostPorts(hosts[0].LocalAddr(), hosts[1].LocalAddr()), uint16(f.low+101))
	askAll := func() {
		t.Helper()
		for i, conn := range hosts {
			f.askFromHost(t, own[i], conn.Read, conn.Write, conn)
		}
		fresh := dialHost(0)
		f.askFromHost(t, hostPorts(fresh.LocalAddr())[0], fresh.Read, fresh.Write, fresh)
		_ = fresh.Close()
	}
	askAll()
	exhausted := f.counter(t)
	open := make(map[uint16]int)
	closeAll := func() {
		for port, fd := range open {
			_ = unix.Close(fd)
			delete(open, port)
		}
	}
	defer closeAll()
	for done := 0; done < f.flows; {
		size := min(200, f.flows-done)
		f.from.Do(t, func() { f.connect(t, f.first+done, size, open, exhausted) })
		if done += size; t.Failed() {
			return
		}
		askAll()
	}
	f.dropped = f.flows - len(open)
	f.judge(t, own)
	if counted := exhausted(); counted < uint64(f.dropped) {
		t.Errorf("%d connections got no port, but %d packets were counted", f.dropped, counted)
	}
	// Every connection still carries what is its own.
	for port, fd := range open {
		f.question(t, port, fd)
	}

	// Closed connections give their ports back at once.
	closeAll()
	fresh := make(map[uint16]int)
	f.from.Do(t, func() { f.connect(t, f.first+f.flows, 100, fresh, exhausted) })
	if len(fresh) != 100 {
		t.Errorf("of 100 new connections %d were made after all others had been closed", len(fresh))
	}
	for _, fd := range fresh {
		_ = unix.Close(fd)
	}
	askAll()
	for _, conn := range hosts {
		_ = conn.Close()
	}
}

// question asks on a connection and waits for the answer.
func (f *flood) question(t *testing.T, port uint16, fd int) {
	t.Helper()
	answer := make([]byte, answerSize)
	if _, err := unix.Write(fd, binary.BigEndian.AppendUint16(nil, port)); err != nil {
		t.Fatalf("ask on the connection from port %d: %v", port, err)
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	_, err := unix.Poll(poll, int(nodetest.Patience.Milliseconds()))
	n := 0
	if err == nil {
		n, err = unix.Read(fd, answer)
	}
	if err != nil || n != answerSize || binary.BigEndian.Uint16(answer) != port {
		t.Fatalf("the connection from port %d got %v, %v", port, answer[:max(n, 0)], err)
	}
	f.seen[port] = binary.BigEndian.Uint16(answer[questionSize:])
}

// connect opens connections from ports that follow each other; open gets those
// that were made. It runs on a thread in the container's namespace.
func (f *flood) connect(t *testing.T, first, size int, open map[uint16]int, exhausted func() uint64) {
	before := exhausted()
	to := &unix.SockaddrInet4{Port: int(f.to.Port()), Addr: f.to.Addr().As4()}
	pending := make(map[uint16]int)
	defer func() {
		for _, fd := range pending {
			_ = unix.Close(fd)
		}
	}()
	for port := first; port < first+size; port++ {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			pending[uint16(port)] = fd
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: f.from.IPv4.As4()})
		}
		if err == nil {
			err = unix.Connect(fd, to)
		}
		if err != nil && !errors.Is(err, unix.EINPROGRESS) {
			t.Errorf("connect from port %d: %v", port, err)
			return
		}
	}
	for end := time.Now().Add(nodetest.Patience); ; time.Sleep(time.Millisecond) {
		for port, fd := range pending {
			info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			if err != nil {
				t.Errorf("connection from port %d: %v", port, err)
				return
			}
			switch info.State {
			case unix.BPF_TCP_ESTABLISHED:
				open[port] = fd
				delete(pending, port)
				f.question(t, port, fd)
			case unix.BPF_TCP_SYN_SENT:
			default:
				t.Errorf("connection from port %d is in state %d", port, info.State)
				return
			}
		}
		// A SYN that is sent again may be counted again.
		if uint64(len(pending)) <= exhausted()-before {
			return
		}
		if time.Now().After(end) {
			t.Errorf("%d connections were neither made nor counted as dropped", len(pending))
			return
		}
	}
}
