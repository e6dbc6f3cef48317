// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// Whoever is on the node or behind its uplink reaches whoever should be
// reachable, and is seen there with the address that it should have.
func TestConnectivity(t *testing.T) {
	s := running(t)
	nodetest.Route(t, s.world, []string{pods4, "via", uplink4.String()}, []string{pods6, "via", uplink6.String()})
	eachDriver(t, func(t *testing.T, d driver) {
		if half, dealt := map[driver]int{api.DriverMacvlan: 0, api.DriverBridge: 1}[d]; dealt { // whose traffic pkg/datapath tries
			nstest.Halve(t, half)
		}
		s.lend(t, d)
		testConnectivity(t, s, d)
	})
}

func testConnectivity(t *testing.T, s *site, d driver) {
	before := s.Drops(t)
	a, b := s.Attach(t, "a", s.pods), s.Attach(t, "b", s.pods)
	eachFamily(t, func(t *testing.T, f family) {
		for _, way := range []struct {
			name     string
			from, to *nstest.NS
			// at is asked, and sees the asking come from seen.
			at, seen netip.Addr
		}{
			{"container to container", a.NS, b.NS, f.of(b), f.of(a)},
			{"container to itself", a.NS, a.NS, f.of(a), f.of(a)},
			{"container to its gateway", a.NS, s.NS, f.gateway(a), f.of(a)},
			{"container to the host's uplink", a.NS, s.NS, f.uplink, f.of(a)},
			{"host to container", s.NS, a.NS, f.of(a), f.gateway(a)},
			{"container to world", a.NS, s.world, f.world, d.shown(f, a)},
			{"host to world", s.NS, s.world, f.world, f.uplink},
			// The container's answer must not be masqueraded: nobody would
			// know it.
			{"world to container", s.world, a.NS, f.of(a), f.world},
		} {
			t.Run(way.name, func(t *testing.T) { testWay(t, way.from, way.to, way.at, way.seen) })
		}
	})
	if drops := s.dropsSince(t, before); len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}
}

func testWay(t *testing.T, from, to *nstest.NS, at, seen netip.Addr) {
	udp := serveUDP(t, to, netip.AddrPortFrom(at, 0))
	conn := dialUDP(t, from, netip.AddrPort{}, udp)
	// 60 kB take 42 fragments, each way.
	for _, size := range []int{0, 1, 1400, 9000, 60000} {
		if got := askUDP(t, conn, pattern(size)).Addr(); got != seen {
			t.Errorf("UDP of %d bytes: %s saw it come from %s, not %s", size, at, got, seen)
		}
	}

	tcp := dialTCP(t, from, serveTCP(t, to, netip.AddrPortFrom(at, 0)))
	if got := tcp.Seen.Addr(); got != seen {
		t.Errorf("TCP: %s saw it come from %s, not %s", at, got, seen)
	}
	if err := tcp.Exchange(pattern(4 << 20)); err != nil {
		t.Errorf("4 MiB by TCP to %s and back: %v", at, err)
	}

	asking, asked := openEcho(t, from, at), openEcho(t, to, at)
	request, reply := asking.Types()
	for seq, size := range []int{0, 1000, 9000, 60000} {
		if err := asking.Send(at, uint16(seq), size); err != nil {
			t.Fatal(err)
		}
		got, err := asked.Await(request, uint16(seq), size)
		if err != nil || got != seen {
			t.Errorf("ICMP echo of %d bytes: %s saw it come from %s (%v), not %s", size, at, got, err, seen)
		}
		if got, err := asking.Await(reply, uint16(seq), size); err != nil || got != at {
			t.Errorf("ICMP echo of %d bytes: the answer came from %s (%v), not %s", size, got, err, at)
		}
	}
}

// Without ipMasq a container is seen with its own address, and one network of a
// node may have it while another has not.
func TestWithoutMasquerade(t *testing.T) {
	s := running(t)
	c := s.Attach(t, "c", s.pods.With("ipMasq", false))
	other := s.Attach(t, "other", s.Network("other", "10.20.0.0/24", "fd00:20::/64"))
	nodetest.Route(t, s.world, []string{pods4, "via", uplink4.String()}, []string{pods6, "via", uplink6.String()})
	eachFamily(t, func(t *testing.T, f family) {
		at := serveUDP(t, s.world, netip.AddrPortFrom(f.world, 0))
		for _, one := range []struct {
			from *nodetest.Container
			want netip.Addr
		}{{c, f.of(c)}, {other, f.uplink}} {
			if got := askUDP(t, dialUDP(t, one.from.NS, netip.AddrPort{}, at), pattern(100)).Addr(); got != one.want {
				t.Errorf("the world saw %s as %s, not %s", one.from.ContainerID, got, one.want)
			}
		}
	})
}
