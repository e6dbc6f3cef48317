// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// TestPortsScarce has more clients than an endpoint may hold translations, which is two.
func TestPortsScarce(t *testing.T) {
	nstest.LeaveTo(t, "5.10")
	n := withPorts(t, Config{Masquerade: true, FlowsMax: 256, TranslationsMax: 8, EndpointTranslations: 2})
	eachFamily(t, func(t *testing.T, f family) {
		t.Run("clients that ask once", func(t *testing.T) { testOneShots(t, n, f) })
		t.Run("streams", func(t *testing.T) { testStreams(t, n, f) })
		t.Run("lifetimes", func(t *testing.T) { testPortLifetimes(t, n, f) })
	})
}

// ask and reply are a datagram of a client in the world and the answer to it.
func (n *node) ask(f family, from uint16) run {
	return n.fromWorld(ip(f.world, f.host, 58, udp(from, hostPort)...)...)
}

func (n *node) asked(f family, from uint16, counters ...string) want {
	return deliveredAs(delivered(n.b, ip(f.world, f.b, 57, udp(from, server)...)...), counters...)
}

func (n *node) reply(f family, to uint16) run {
	return n.from(n.b, ip(f.b, f.world, 64, udp(server, to)...)...)
}

func (n *node) replied(f family, to uint16, counters ...string) want {
	return forwarded(sent(n.b, ip(f.host, f.world, 63, udp(hostPort, to)...)...), counters...)
}

// testOneShots: who has been answered and says no more gives way to the next client, by
// UDP or TCP.
func testOneShots(t *testing.T, n *node, f family) {
	n.restart(t)
	for client := range uint16(10) {
		from := low + client
		n.story(t,
			step{"question", n.ask(f, from), n.asked(f, from, "decided")},
			step{"answer", n.reply(f, from), n.replied(f, from, "decided")},
		)
	}
	n.check(t, n.fromWorld(ip(f.world, f.host, 58, tcp(low, hostPort, packet.SYN)...)...),
		deliveredAs(delivered(n.b, ip(f.world, f.b, 57, tcp(low, server, packet.SYN)...)...), "decided"))
	n.wantSlots(t, 2)
}

// testStreams: who has gone on after an answer keeps its place until it has rested, and
// the next packet of one that gave way begins it anew.
func testStreams(t *testing.T, n *node, f family) {
	n.restart(t)
	for _, from := range []uint16{low, low + 1} {
		n.story(t,
			step{"question", n.ask(f, from), n.asked(f, from, "decided")},
			step{"answer", n.reply(f, from), n.replied(f, from, "decided")},
			step{"next question", n.ask(f, from), n.asked(f, from, "decided")},
		)
	}
	full := step{"a third client", n.ask(f, low+2), drops("endpoint_limit")}
	n.story(t, full)
	n.elapse(t, 9) // as old as the fast path lets it look
	n.story(t, full)
	n.elapse(t, 7)
	n.story(t, step{"after a rest", n.ask(f, low+2), n.asked(f, low+2, "decided")})
	n.elapse(t, 16)
	for _, from := range []uint16{low, low + 1} {
		n.check(t, n.ask(f, from), n.asked(f, from, "decided"))
		n.check(t, n.reply(f, from), n.replied(f, from, "decided"))
	}
	n.wantSlots(t, 2)
}

// testPortLifetimes: one that asked once is forgotten after 30 s, a stream after 300.
func testPortLifetimes(t *testing.T, n *node, f family) {
	for _, c := range []struct {
		name    string
		stream  bool
		seconds uint32
	}{{"asked once", false, 30}, {"stream", true, 300}} {
		t.Run(c.name, func(t *testing.T) {
			for _, late := range []bool{false, true} {
				n.restart(t)
				n.check(t, n.ask(f, low), n.asked(f, low, "decided"))
				n.check(t, n.reply(f, low), n.replied(f, low, "decided"))
				if c.stream {
					n.check(t, n.ask(f, low), n.asked(f, low, "decided"))
				}
				if !late {
					n.elapse(t, c.seconds-5)
					n.check(t, n.reply(f, low), n.replied(f, low, "decided"))
					continue
				}
				n.elapse(t, c.seconds+2)
				if got := n.run(t, n.reply(f, low)); bytes.Equal(got.out, n.replied(f, low).out) {
					t.Error("the answer left from the mapped port although its time was over")
				}
			}
		})
	}
}

// TestPortsFull attaches an endpoint to which more ports lead than there is room for.
func TestPortsFull(t *testing.T) {
	n := newNode(t, Config{Masquerade: true})
	if got := n.maps.Ports.MaxEntries(); got != PortsMax {
		t.Fatalf("PortsMax is %d, and the map takes %d", PortsMax, got)
	}
	const left = 10
	keys := make([]maps.PortKey, PortsMax-left)
	for i := range keys {
		address := netip.AddrFrom4([4]byte{203, 0, 113, byte(i >> 16)})
		keys[i] = maps.PortKey{Address: maps.NewAddress(address), Port: uint16(i), Protocol: unix.IPPROTO_TCP}
	}
	_, err := n.maps.Ports.BatchUpdate(keys, make([]maps.MappedPort, len(keys)), nil)
	must(t, err)
	before := n.served(t)
	full := n.a
	for i := range uint16(left + 1) {
		full.Ports = append(full.Ports, Port{netip.IPv4Unspecified(), 8000 + i, unix.IPPROTO_TCP, v4().a, 80})
	}
	n.do(t, func() error {
		err := n.AttachEndpoint(full)
		want := FullError{Map: "ports", Entries: PortsMax - left, Max: PortsMax, Wanted: left + 1}
		if got := (*FullError)(nil); !errors.As(err, &got) {
			t.Errorf("attach: %v, want %v", err, &want)
		} else if diff := gocmp.Diff(want, *got); diff != "" {
			t.Errorf("attach (-want +got):\n%s", diff)
		}
		return n.DetachEndpoint(full)
	})
	if got := n.served(t); got != [3]int{before[0] - 1, before[1] - 2, before[2]} {
		t.Errorf("entries of interfaces, endpoints and ports: before %v, after the attach that failed was undone %v", before, got)
	}
}

// served counts the entries of interfaces, endpoints and ports.
func (n *node) served(t *testing.T) (found [3]int) {
	t.Helper()
	must(t, each(n.maps.Interfaces, func(uint32, maps.Interface) bool { found[0]++; return true }))
	must(t, each(n.maps.Endpoints, func(maps.Address, maps.Endpoint) bool { found[1]++; return true }))
	must(t, each(n.maps.Ports, func(maps.PortKey, maps.MappedPort) bool { found[2]++; return true }))
	return found
}
