// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/socktest"
)

// A client whose datagram finds no listener in the container is told so by whom it
// sent to, and about what it sent.
func TestPortUnreachable(t *testing.T) {
	s := running(t)
	c, near := s.Attach(t, "c", publishing(s.pods, both()...)), s.Attach(t, "near", s.pods)
	tellAll(t, c.NS)
	eachFamily(t, func(t *testing.T, f family) {
		for _, one := range []struct {
			name string
			from *nstest.NS
		}{{"world", s.world}, {"container", near.NS}, {"itself", c.NS}} {
			refuses(t, one.name, one.from, f.uplink)
			want := hop{f.uplink.String(), 3, 3}
			if f.world.Is6() {
				want = hop{f.uplink.String(), 1, 4}
			}
			if diff := cmp.Diff(want, complaint(t, one.from, netip.AddrPortFrom(f.uplink, hostUDP))); diff != "" {
				t.Errorf("%s: the ICMP error (-want +got):\n%s", one.name, diff)
			}
		}
		refuses(t, "host", s.NS, f.loopback())
	})
}

// complaint sends a datagram and reads the ICMP error that it makes.
func complaint(t *testing.T, from *nstest.NS, to netip.AddrPort) (got hop) {
	t.Helper()
	conn := dialUDP(t, from, netip.AddrPort{}, to)
	control(t, conn, func(fd int) error {
		if to.Addr().Is4() {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	})
	sent := pattern(40)
	if _, err := conn.Write(sent); err != nil {
		t.Error(err)
		return got
	}
	control(t, conn, func(fd int) error {
		// The error queue is readable as an error of the socket.
		ready, err := socktest.Wait(fd, unix.POLLERR, portPatience)
		if err == nil && !ready {
			err = errors.New("no error came")
		}
		if err == nil {
			got, err = readError(fd, to.Addr(), sent)
		}
		if err != nil {
			t.Errorf("an ICMP error about a datagram to %s: %v", to, err)
		}
		return nil
	})
	return got
}

// A link on the way that is narrower than both ends know is found out by the
// container: the router's complaint, which is to the host, reaches it.
func testPortsPathMTU(t *testing.T, s *site, far *nstest.NS) {
	// The client announces segments for which its own link is too narrow.
	far.Run(t, "ip", "route", "change", "default", "via", "198.51.100.1", "advmss", "1460")
	far.Run(t, "ip", "-6", "route", "change", "default", "via", "2001:db8:1::1", "advmss", "1440")
	c := s.publish(t, "server", s.pods, both()...)
	eachFamily(t, func(t *testing.T, f family) {
		tcp, err := tryTCP(t, far, netip.AddrPort{}, netip.AddrPortFrom(f.uplink, hostTCP))
		if err != nil {
			t.Fatal(err)
		}
		if err := tcp.Exchange(pattern(4 << 20)); err != nil {
			t.Errorf("4 MiB by TCP there and back: %v", err)
		}
		if want := addrPort(tcp.LocalAddr()); tcp.Seen != want {
			t.Errorf("the container saw %s, not %s", tcp.Seen, want)
		}
		if mtu := mtuOf(c.Run(t, "ip", "route", "get", f.far().String())); mtu != "1300" {
			t.Errorf("the container knows an MTU of %q to the client, not 1300", mtu)
		}
	})
}

// mtuOf finds the MTU in what `ip route get` prints.
func mtuOf(route string) string {
	_, rest, _ := strings.Cut(route, " mtu ")
	mtu, _, _ := strings.Cut(rest, " ")
	return mtu
}
