// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/socktest"
)

// Addresses of what lies behind a router.
var (
	far4 = netip.MustParseAddr("198.51.100.2")
	far6 = netip.MustParseAddr("2001:db8:1::2")
)

// newFar puts a host behind the world, which becomes its router; mtu is that of
// the link between them.
func newFar(t *testing.T, s *site, mtu int) *nstest.NS {
	t.Helper()
	far := nstest.New(t, "far")
	settle(t, far)
	nstest.Veth(t, s.world, "eth1", far, "eth0")
	nodetest.Address(t, s.world, "eth1", "198.51.100.1/24", "2001:db8:1::1/64")
	nodetest.Address(t, far, "eth0", far4.String()+"/24", far6.String()+"/64")
	s.world.Run(t, "ip", "link", "set", "eth1", "mtu", strconv.Itoa(mtu))
	far.Run(t, "ip", "link", "set", "eth0", "mtu", strconv.Itoa(mtu))
	nodetest.Route(t, far, []string{"default", "via", "198.51.100.1"}, []string{"default", "via", "2001:db8:1::1"})
	s.world.Run(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; "+
		"echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit")
	return far
}

func (f family) far() netip.Addr { return f.choose(far4, far6) }

// A smaller link behind the uplink is found out by masqueraded connections: the
// router's complaint reaches the container's socket.
func TestPathMTU(t *testing.T) {
	nstest.Halve(t, 0)
	s := running(t)
	far := newFar(t, s, 1300)
	c := s.Attach(t, "c", s.pods)
	eachFamily(t, func(t *testing.T, f family) {
		udp := serveUDP(t, far, netip.AddrPortFrom(f.far(), 0))
		conn := dialUDP(t, c.NS, netip.AddrPort{}, udp)
		discover(t, conn, unix.IP_PMTUDISC_DO)
		if _, err := conn.Write(pattern(1400)); err != nil {
			t.Fatalf("before the MTU is known: %v", err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(nodetest.Patience))
		if n, err := conn.Read(make([]byte, 2000)); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("a datagram of 1400 bytes, not to be fragmented: got %d bytes, %v, want %v", n, err, unix.EMSGSIZE)
		}
		if _, err := conn.Write(pattern(1400)); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("once the MTU is known: %v, want %v", err, unix.EMSGSIZE)
		}
		if mtu := socktest.PathMTU(t, conn); mtu != 1300 {
			t.Errorf("the container's socket knows an MTU of %d, not 1300", mtu)
		}
		if got := askUDP(t, conn, pattern(1200)).Addr(); got != f.uplink {
			t.Errorf("the far host saw %s, not %s", got, f.uplink)
		}

		// A server of large answers has to be told, too: by its own router.
		other := s.Attach(t, "tcp"+f.name, s.pods)
		tcp := dialTCP(t, other.NS, serveTCP(t, far, netip.AddrPortFrom(f.far(), 0)))
		if err := tcp.Exchange(pattern(4 << 20)); err != nil {
			t.Errorf("4 MiB by TCP there and back: %v", err)
		}
		if tcp.Seen.Addr() != f.uplink {
			t.Errorf("the far host saw %s, not %s", tcp.Seen.Addr(), f.uplink)
		}
	})
	t.Run("mapped ports", func(t *testing.T) { testPortsPathMTU(t, s, far) })
	if drops := s.Drops(t); len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}
}

// A container's interface may be larger than the uplink. What may be fragmented
// is, by the node's stack, and each fragment is masqueraded; what may not be is
// complained of.
func TestUplinkMTU(t *testing.T) {
	s := newSite(t)
	s.Run(t, "ip", "link", "set", "up0", "mtu", "1300")
	s.world.Run(t, "ip", "link", "set", "eth0", "mtu", "1300")
	s.Start(t)
	c := s.Attach(t, "c", s.pods.With("mtu", 1500))
	if link := must(c.Handle.LinkByName("eth0"))(t); link.Attrs().MTU != 1500 {
		t.Errorf("the container's MTU is %d, not 1500", link.Attrs().MTU)
	}
	tooBig := s.Counter(t, "from_container", "too_big")
	eachFamily(t, func(t *testing.T, f family) {
		conn := dialUDP(t, c.NS, netip.AddrPort{}, serveUDP(t, s.world, netip.AddrPortFrom(f.world, 0)))
		if f.world.Is4() {
			discover(t, conn, unix.IP_PMTUDISC_DONT)
			before := tooBig()
			for _, size := range []int{1400, 60000} {
				if got := askUDP(t, conn, pattern(size)).Addr(); got != f.uplink {
					t.Errorf("%d bytes: the world saw %s, not %s", size, got, f.uplink)
				}
			}
			if tooBig() == before {
				t.Error("nothing was too big for the uplink")
			}
		}
		strict := dialUDP(t, c.NS, netip.AddrPort{}, serveUDP(t, s.world, netip.AddrPortFrom(f.world, 0)))
		discover(t, strict, unix.IP_PMTUDISC_DO)
		if _, err := strict.Write(pattern(1400)); err != nil {
			t.Fatalf("before the MTU is known: %v", err)
		}
		_ = strict.SetReadDeadline(time.Now().Add(nodetest.Patience))
		if n, err := strict.Read(make([]byte, 2000)); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("a datagram of 1400 bytes, not to be fragmented: got %d bytes, %v, want %v", n, err, unix.EMSGSIZE)
		}
		// Now the container knows, and fragments by itself: the only way of IPv6.
		for _, size := range []int{1400, 60000} {
			if got := askUDP(t, conn, pattern(size)).Addr(); got != f.uplink {
				t.Errorf("%d bytes: the world saw %s, not %s", size, got, f.uplink)
			}
		}
		tcp := dialTCP(t, c.NS, serveTCP(t, s.world, netip.AddrPortFrom(f.world, 0)))
		if err := tcp.Exchange(pattern(4 << 20)); err != nil {
			t.Errorf("4 MiB by TCP there and back: %v", err)
		}
	})
	if drops := s.Drops(t); len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}
}

// A container without an mtu of its own has the uplink's.
func TestMTUFollowsUplink(t *testing.T) {
	s := newSite(t)
	s.Run(t, "ip", "link", "set", "up0", "mtu", "1400")
	s.Start(t)
	c := s.Attach(t, "c", s.pods)
	if got := must(c.Handle.LinkByName("eth0"))(t).Attrs().MTU; got != 1400 {
		t.Errorf("the container's MTU is %d, not 1400", got)
	}
}

// hop is who complained about a probe, and of what.
type hop struct {
	Who        string
	Type, Code uint8
}

// A traceroute from a container shows the host, the router and the far host.
func TestTraceroute(t *testing.T) {
	nstest.Halve(t, 1)
	s := running(t)
	newFar(t, s, 1500)
	c := s.Attach(t, "c", s.pods)
	eachFamily(t, func(t *testing.T, f family) {
		var got []hop
		for ttl := 1; ttl <= 3; ttl++ {
			got = append(got, probe(t, c.NS, f, ttl))
		}
		want := []hop{
			{f.gateway(c).String(), 11, 0}, // time exceeded
			{f.world.String(), 11, 0},
			{f.far().String(), 3, 3}, // port unreachable
		}
		if f.world.Is6() {
			for i, numbers := range [][2]uint8{{3, 0}, {3, 0}, {1, 4}} {
				want[i].Type, want[i].Code = numbers[0], numbers[1]
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("hops (-want +got):\n%s", diff)
		}
	})
}

// probe sends a datagram that lives for ttl hops to a port that nobody has, and
// reads the ICMP error that comes back from the socket's error queue (ip(7),
// IP_RECVERR).
func probe(t *testing.T, ns *nstest.NS, f family, ttl int) hop {
	t.Helper()
	conn := dialUDP(t, ns, netip.AddrPort{}, netip.AddrPortFrom(f.far(), 33434))
	control(t, conn, func(fd int) error {
		if f.world.Is4() {
			return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, ttl), unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
		}
		return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, ttl),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
	})
	sent := pattern(40)
	if _, err := conn.Write(sent); err != nil {
		t.Fatal(err)
	}
	var answer hop
	nodetest.Eventually(t, fmt.Sprintf("%s: an error about a probe of %d hops", f.name, ttl), func() (err error) {
		control(t, conn, func(fd int) error {
			answer, err = readError(fd, f.far(), sent)
			return nil
		})
		return err
	})
	return answer
}

// readError reads an ICMP error about what was sent to an address.
func readError(fd int, want netip.Addr, sent []byte) (hop, error) {
	data, oob := make([]byte, 200), make([]byte, 512)
	n, oobn, _, to, err := unix.Recvmsg(fd, data, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		return hop{}, err
	}
	// The quoted packet is the container's own: to whom it sent, and what.
	if addressOf(to) != want {
		return hop{}, fmt.Errorf("the error is about a packet to %v, not to %s", to, want)
	}
	if !slices.Equal(data[:n], sent[:min(n, len(sent))]) || n == 0 {
		return hop{}, fmt.Errorf("the error quotes %d bytes of another payload", n)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return hop{}, err
	}
	for _, m := range messages {
		if m.Header.Type != unix.IP_RECVERR && m.Header.Type != unix.IPV6_RECVERR {
			continue
		}
		// struct sock_extended_err, then the offender's sockaddr.
		const size = 16
		family := binary.NativeEndian.Uint16(m.Data[size:])
		at, length := size+4, 4
		if family == unix.AF_INET6 {
			at, length = size+8, 16
		}
		who, _ := netip.AddrFromSlice(m.Data[at : at+length])
		return hop{Who: who.String(), Type: m.Data[5], Code: m.Data[6]}, nil
	}
	return hop{}, errors.New("the error queue holds no ICMP error")
}

func addressOf(a unix.Sockaddr) netip.Addr {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(a.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(a.Addr).Unmap()
	}
	return netip.Addr{}
}
