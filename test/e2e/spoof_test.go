// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
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
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/internal/socktest"
	"github.com/tendril-net/tendril/pkg/api"
)

// link is an AF_PACKET socket that sends whole frames by one device.
type link struct {
	fd, index int
}

func openLink(t *testing.T, ns *nstest.NS, device string) *link {
	t.Helper()
	index := must(ns.Handle.LinkByName(device))(t).Attrs().Index
	fd := in(t, ns, func() (int, error) { return unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) })
	t.Cleanup(func() { _ = unix.Close(fd) })
	return &link{fd, index}
}

func (l *link) send(t *testing.T, frame []byte) {
	t.Helper()
	// ENOBUFS: it was dropped before it left the sender's side.
	if err := unix.Sendto(l.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.index}); err != nil && !errors.Is(err, unix.ENOBUFS) {
		t.Fatalf("send %s: %v", packet.Summary(frame), err)
	}
}

// watch sees every frame that a namespace's stack takes in, behind all that the
// datapath does at ingress: a socket for one protocol, unlike one for all, is
// served after the classifiers.
type watch struct {
	mu     sync.Mutex
	frames [][]byte
	more   chan struct{}
}

func openWatch(t *testing.T, ns *nstest.NS) *watch {
	t.Helper()
	w := &watch{more: make(chan struct{}, 1)}
	var group sync.WaitGroup
	stop := make(chan struct{})
	for _, protocol := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6, unix.ETH_P_ARP} {
		network := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))
		fd := in(t, ns, func() (int, error) {
			return unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(network))
		})
		group.Go(func() {
			defer func() { _ = unix.Close(fd) }()
			w.read(fd, stop)
		})
	}
	t.Cleanup(func() {
		close(stop)
		group.Wait()
	})
	return w
}

func (w *watch) read(fd int, stop <-chan struct{}) {
	buffer := make([]byte, 1<<16)
	for {
		select {
		case <-stop:
			return
		default:
		}
		if ready, err := socktest.Wait(fd, unix.POLLIN, 20*time.Millisecond); err != nil || !ready {
			continue
		}
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		if err != nil {
			continue
		}
		w.mu.Lock()
		w.frames = append(w.frames, slices.Clone(buffer[:n]))
		w.mu.Unlock()
		select {
		case w.more <- struct{}{}:
		default:
		}
	}
}

// find returns the frames that hold the bytes.
func (w *watch) find(mark []byte) (found [][]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, frame := range w.frames {
		if bytes.Contains(frame, mark) {
			found = append(found, frame)
		}
	}
	return found
}

func (w *watch) await(t *testing.T, where string, mark []byte) {
	t.Helper()
	end := time.After(nodetest.Patience)
	for len(w.find(mark)) == 0 {
		select {
		case <-w.more:
		case <-end:
			t.Fatalf("%s never saw the frame %q", where, mark)
		}
	}
}

// A container that forges its source address or MAC, or speaks for others on
// its link, is heard by nobody, and each frame is counted.
func TestSpoofing(t *testing.T) {
	nstest.Halve(t, 0)
	s := running(t)
	eachDriver(t, func(t *testing.T, d driver) {
		s.lend(t, d)
		testSpoofing(t, s, d)
	})
}

func testSpoofing(t *testing.T, s *site, d driver) {
	start := s.Drops(t)
	a, b := s.Attach(t, "a", s.pods), s.Attach(t, "b", s.pods)
	wire := openLink(t, a.NS, "eth0")
	watches := map[string]*watch{"node": openWatch(t, s.NS), "world": openWatch(t, s.world), "b": openWatch(t, b.NS)}
	if d == api.DriverMacvlan {
		a.HostMAC = must(s.Handle.LinkByName("lan0"))(t).Attrs().HardwareAddr
		watches["neighbour"] = openWatch(t, s.neighbour)
	}

	foreign := packet.MAC("02:00:00:00:00:99")
	broadcast := packet.MAC("ff:ff:ff:ff:ff:ff")
	routers := packet.MAC("33:33:00:00:00:01")
	linkLocal, allNodes := netip.MustParseAddr("fe80::99"), netip.MustParseAddr("ff02::1")
	const drop = "from_container "
	forged := []byte("forged!!")
	type forgery struct {
		name   string
		frame  []byte
		mark   []byte
		reason string
	}
	var all []forgery
	udp := func(mac net.HardwareAddr, source, to netip.Addr, mark []byte) []byte {
		next := a.HostMAC
		if to == b.IPv4 || to == b.IPv6 {
			next = d.next(a, b)
		}
		return packet.New(packet.Eth(mac, next), packet.IP(source, to), packet.UDP(7777, 8888), packet.Data(mark))
	}
	honest := make(map[string]netip.Addr)
	for _, f := range families() {
		stranger := netip.MustParseAddr("10.99.0.1")
		if f.world.Is6() {
			stranger = netip.MustParseAddr("fd99::1")
		}
		targets := map[string]netip.Addr{"world": f.world, "b": f.of(b), "node": f.gateway(a)}
		maps.Copy(honest, map[string]netip.Addr{f.name + " world": f.world, f.name + " b": f.of(b), f.name + " node": f.gateway(a)})
		for name, to := range targets {
			for _, source := range []netip.Addr{stranger, f.of(b), f.uplink, f.gateway(a), f.world} {
				if source == to {
					continue
				}
				all = append(all, forgery{fmt.Sprintf("%s to %s", source, name), udp(a.MAC, source, to, forged), forged, drop + "source_address"})
			}
			for _, mac := range []net.HardwareAddr{foreign, b.MAC, a.HostMAC} {
				all = append(all, forgery{fmt.Sprintf("%s to %s", mac, name), udp(mac, f.of(a), to, forged), forged, drop + "source_mac"})
			}
		}
		for _, tag := range []uint16{1, 100} {
			all = append(all, forgery{
				f.name + " with a tag",
				packet.New(packet.Eth(a.MAC, a.HostMAC), packet.VLAN(tag), packet.IP(f.of(a), f.world), packet.UDP(7777, 8888), packet.Data(forged)),
				forged, drop + "vlan",
			})
		}
	}
	stranger := packet.Station{MAC: a.MAC, IP: netip.MustParseAddr("10.99.0.2")}
	other := packet.Station{MAC: a.MAC, IP: b.IPv4}
	liar := packet.Station{MAC: foreign, IP: a.IPv4}
	gateway := packet.Station{MAC: a.HostMAC, IP: a.Gateway4}
	bytesOf := func(ip netip.Addr) []byte { return ip.AsSlice() }
	all = append(all,
		forgery{"ARP reply for a stranger", packet.New(packet.Eth(a.MAC, a.HostMAC), packet.ARPReply(stranger, gateway)), bytesOf(stranger.IP), drop + "neighbour"},
		forgery{"ARP request as a stranger", packet.New(packet.Eth(a.MAC, broadcast), packet.ARPRequest(stranger, a.Gateway4)), bytesOf(stranger.IP), drop + "neighbour"},
		forgery{"ARP reply for another container", packet.New(packet.Eth(a.MAC, broadcast), packet.ARPReply(other, gateway)), bytesOf(other.IP), drop + "neighbour"},
		forgery{"ARP reply with another MAC", packet.New(packet.Eth(a.MAC, a.HostMAC), packet.ARPReply(liar, gateway)), foreign, drop + "source_mac"},
		forgery{"ARP from another MAC", packet.New(packet.Eth(foreign, a.HostMAC), packet.ARPReply(liar, gateway)), foreign, drop + "source_mac"},
		forgery{
			"router advertisement", packet.New(packet.Eth(a.MAC, routers), packet.IP(linkLocal, allNodes),
				packet.RouterAdvert(1800, packet.OnLinkPrefix(netip.MustParsePrefix("2001:db8:bad::/64")))),
			bytesOf(netip.MustParseAddr("2001:db8:bad::")), drop + "neighbour",
		},
		forgery{
			"router advertisement from its own address", packet.New(packet.Eth(a.MAC, routers), packet.IP(a.IPv6, allNodes),
				packet.RouterAdvert(1800, packet.OnLinkPrefix(netip.MustParsePrefix("2001:db8:bad::/64")))),
			bytesOf(netip.MustParseAddr("2001:db8:bad::")), drop + "neighbour",
		},
		forgery{"neighbour advertisement for another container", packet.New(packet.Eth(a.MAC, a.HostMAC), packet.IP(a.IPv6, a.Gateway6),
			packet.NeighborAdvert(b.IPv6, 0, packet.TargetLinkAddr(a.MAC))), bytesOf(b.IPv6), drop + "neighbour"},
		forgery{"neighbour advertisement for the gateway", packet.New(packet.Eth(a.MAC, routers), packet.IP(a.IPv6, allNodes),
			packet.NeighborAdvert(netip.MustParseAddr("fd00:10::77"), 0, packet.TargetLinkAddr(foreign))), foreign, drop + "neighbour"},
		forgery{
			"redirect", packet.New(packet.Eth(a.MAC, a.HostMAC), packet.IP(linkLocal, a.Gateway6),
				packet.NDRedirect(netip.MustParseAddr("fe80::bad"), netip.MustParseAddr("fd00:bad::"))),
			bytesOf(netip.MustParseAddr("fd00:bad::")), drop + "neighbour",
		},
	)

	// Flows that are established do not open a way for others.
	for name, to := range honest {
		wire.send(t, udp(a.MAC, ownOf(a, to), to, []byte("before "+name)))
	}
	for name := range honest {
		watches[whereOf(name)].await(t, name, []byte("before "+name))
	}
	if drops := s.dropsSince(t, start); len(drops) != 0 {
		t.Errorf("packets were dropped before anything was forged: %v", drops)
	}
	neighbours := nodetest.Lines(t, s.NS, "ip", "neigh", "show")
	want := make(map[string]uint64)
	for _, f := range all {
		wire.send(t, f.frame)
		want[f.reason]++
	}
	// What was sent behind them has arrived, so they would have, too.
	for name, to := range honest {
		wire.send(t, udp(a.MAC, ownOf(a, to), to, []byte("after "+name)))
	}
	for name := range honest {
		watches[whereOf(name)].await(t, name, []byte("after "+name))
	}
	if diff := cmp.Diff(want, s.dropsSince(t, start)); diff != "" {
		t.Errorf("drops (-want +got):\n%s", diff)
	}
	for _, f := range all {
		for where, w := range watches {
			for _, frame := range w.find(f.mark) {
				// What the host itself asks and answers may name b, and so may a.
				source := net.HardwareAddr(frame[6:12]).String()
				if bytes.Equal(f.mark, forged) || (source == a.MAC.String() || source == foreign.String()) && !isHonest(frame, a) {
					t.Errorf("%s: %s saw %s", f.name, where, packet.Summary(frame))
				}
			}
		}
	}
	for _, line := range nodetest.Lines(t, s.NS, "ip", "neigh", "show") {
		if !slices.Contains(neighbours, line) && (bytes.Contains([]byte(line), []byte(foreign.String())) || bytes.Contains([]byte(line), []byte(stranger.IP.String()))) {
			t.Errorf("the node has learnt a neighbour: %s", line)
		}
	}
}

// isHonest tells whether a frame is a container's own: a packet from its address, or what
// it says of itself when it asks for a neighbour, or answers one.
func isHonest(frame []byte, c *nodetest.Container) bool {
	const (
		arpSender, ipv4Source, ipv6Source, ipv6Next, icmpv6Type, ndTarget = 14 + 8, 14 + 12, 14 + 8, 14 + 6, 14 + 40, 14 + 48
		solicitation, advertisement                                       = 135, 136
	)
	at := func(offset int, what []byte) bool { return bytes.HasPrefix(frame[min(offset, len(frame)):], what) }
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_ARP:
		return at(arpSender, append(slices.Clone(c.MAC), c.IPv4.AsSlice()...))
	case unix.ETH_P_IP:
		return at(ipv4Source, c.IPv4.AsSlice())
	case unix.ETH_P_IPV6:
		return at(ipv6Source, c.IPv6.AsSlice()) && (!at(ipv6Next, []byte{unix.IPPROTO_ICMPV6}) || at(icmpv6Type, []byte{solicitation}) ||
			at(icmpv6Type, []byte{advertisement}) && at(ndTarget, c.IPv6.AsSlice()))
	}
	return false
}

// ownOf is the container's address of the other's family.
func ownOf(c *nodetest.Container, other netip.Addr) netip.Addr {
	if other.Is4() {
		return c.IPv4
	}
	return c.IPv6
}

// whereOf is the last word of "IPv4 world".
func whereOf(name string) string { return name[bytes.LastIndexByte([]byte(name), ' ')+1:] }
