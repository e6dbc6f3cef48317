// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
)

func testTTL(t *testing.T, n *node) {
	eachFamily(t, func(t *testing.T, f family) {
		t.Run("errors", func(t *testing.T) { testErrorTTL(t, n, f) })
	})
}

func testErrorTTL(t *testing.T, n *node, f family) {
	tr := transports()[1]
	n.forget(t)
	n.open(t, f, tr, inside)
	quote := packet.Quote(n.left(ip(f.host, f.world, 3, tr.there(inside)...)...))
	n.story(t,
		step{"at its end", n.fromWorld(ip(f.router, f.host, 1, packet.TTLExceeded(), quote)...), drops("ttl")},
		step{"from container", n.fromA(ip(f.a, f.world, 1, packet.Unreachable(packet.PortUnreachable),
			packet.Quote(n.arrived(ip(f.world, f.a, 3, tr.back(inside)...)...)))...), passed(seenDecided, "decided")},
	)
}

func testMTU(t *testing.T, n *node) {
	eachFamily(t, func(t *testing.T, f family) {
		for _, from := range []uint16{inside, low} {
			t.Run("packets", func(t *testing.T) { testPacketSizes(t, n, f, from) })
			t.Run("GSO", func(t *testing.T) { testGSOSizes(t, n, f, from) })
		}
		t.Run("route", func(t *testing.T) { testRouteMTU(t, n, f) })
		t.Run("local", func(t *testing.T) { testLocalMTU(t, n, f) })
	})
}

// sized is a UDP packet of that many bytes from the IP header on.
func (f family) sized(size int, port, peer uint16) []packet.Layer {
	header := 28
	if f.v6() {
		header = 48
	}
	return []packet.Layer{packet.UDP(port, peer), packet.Payload(size - header)}
}

func tooBig(out []byte, counters ...string) want {
	return want{verdict: passOn, out: out, counters: append(counters, "too_big"), seen: seenDecided}
}

// testPacketSizes: up to the MTU is sent, more is left to the stack, which cuts it
// or tells the sender.
func testPacketSizes(t *testing.T, n *node, f family, from uint16) {
	tr := transports()[1]
	n.forget(t)
	outside := n.open(t, f, tr, from)
	big := func(size int) run { return n.fromA(ip(f.a, f.world, 64, f.sized(size, from, server)...)...) }
	answer := func(size int) run { return n.fromWorld(ip(f.world, f.host, 58, f.sized(size, server, outside)...)...) }
	n.story(t,
		step{"fits", big(1500), forwarded(sent(n.a, ip(f.host, f.world, 63, f.sized(1500, outside, server)...)...))},
		step{"too big", big(1501), tooBig(nil)},
		step{"too big, in the stack's hands", n.toWorld(seenDecided, ip(f.a, f.world, 63, f.sized(1501, from, server)...)...), leaves(n.left(ip(f.host, f.world, 63, f.sized(1501, outside, server)...)...))},
		step{"answer fits", answer(1500), deliveredAs(delivered(n.a, ip(f.world, f.a, 57, f.sized(1500, server, from)...)...), "decided")},
		step{"answer too big", answer(1501), tooBig(n.arrived(ip(f.world, f.a, 58, f.sized(1501, server, from)...)...))},
	)
	n.forget(t)
	n.story(t, step{"first is too big", big(1501), tooBig(nil, "decided")})
}

// testGSOSizes: of a GSO packet, what counts is the packets that it will be.
func testGSOSizes(t *testing.T, n *node, f family, from uint16) {
	n.forget(t)
	tr := transports()[0]
	outside := n.open(t, f, tr, from)
	headers := 40 // IP and TCP
	if f.v6() {
		headers = 60
	}
	gso := func(r run, size int) run {
		r.gsoSize, r.gsoSegs = uint32(size), 3
		return r
	}
	data := func(src, dst uint16) []packet.Layer {
		return []packet.Layer{packet.TCP(src, dst, packet.ACK), packet.Payload(3000)}
	}
	out := n.fromA(ip(f.a, f.world, 64, data(from, server)...)...)
	in := n.fromWorld(ip(f.world, f.host, 58, data(server, outside)...)...)
	inside := delivered(n.a, ip(f.world, f.a, 57, data(server, from)...)...)
	n.story(t,
		step{"fits", gso(out, 1500-headers), forwarded(sent(n.a, ip(f.host, f.world, 63, data(outside, server)...)...))},
		step{"too big", gso(out, 1501-headers), tooBig(nil)},
		step{"answer fits", gso(in, 1500-headers), deliveredAs(inside, "decided")},
		step{"answer too big", gso(in, 1501-headers), tooBig(n.arrived(ip(f.world, f.a, 58, data(server, from)...)...))},
	)
	// Options are repeated in every packet.
	timestamps := []packet.Layer{packet.TCP(from, server, packet.ACK, packet.Timestamps{Value: 1}), packet.Payload(3000)}
	stamped := n.fromA(ip(f.a, f.world, 64, timestamps...)...)
	n.story(t, step{"too big by its options", gso(stamped, 1500-headers), tooBig(nil)})
	// UDP, too.
	datagrams := []packet.Layer{packet.UDP(from, server), packet.Payload(3000)}
	n.table(t,
		step{
			"UDP fits", gso(n.fromA(ip(f.a, f.b, 64, datagrams...)...), 1500-headers+12),
			deliveredAs(delivered(n.b, ip(f.a, f.b, 63, datagrams...)...), "decided"),
		},
		step{"UDP too big", gso(n.fromA(ip(f.a, f.b, 64, datagrams...)...), 1501-headers+12), tooBig(nil, "decided")},
	)
	// The accounts are of packets on the wire.
	n.forget(t)
	n.check(t, gso(n.fromA(ip(f.a, f.b, 64, data(from, server)...)...), 1000),
		deliveredAs(delivered(n.b, ip(f.a, f.b, 63, data(from, server)...)...), "decided"))
	flows, err := n.Flows(10)
	must(t, err)
	if len(flows) != 1 || flows[0].Packets != 3 {
		t.Errorf("flows: got %+v, want one of 3 packets", flows)
	}
}

// testRouteMTU: a route may be narrower than its device.
func testRouteMTU(t *testing.T, n *node, f family) {
	nstest.NeedKernel(t, "the route's MTU in bpf_fib_lookup", 5, 12)
	to := func(size int) run { return n.fromA(ip(f.a, f.narrow, 64, f.sized(size, inside, server)...)...) }
	n.table(t,
		step{"fits", to(1300), forwarded(sent(n.a, ip(f.host, f.narrow, 63, f.sized(1300, inside, server)...)...), "decided")},
		step{"too big", to(1301), tooBig(nil, "decided")},
	)
}

// testLocalMTU: the receiving endpoint's MTU counts, not the sender's.
func testLocalMTU(t *testing.T, n *node, f family) {
	to := func(size int) run { return n.fromA(ip(f.a, f.c, 64, f.sized(size, low, server)...)...) }
	n.forget(t)
	n.story(t,
		step{"fits", to(1400), deliveredAs(delivered(n.c, ip(f.a, f.c, 63, f.sized(1400, low, server)...)...), "decided")},
		step{"too big", to(1401), tooBig(nil)},
		step{"from world too big", n.fromWorld(ip(f.world, f.c, 60, f.sized(1401, low, server)...)...), tooBig(nil, "decided")},
	)
}

// testLastHops: a TTL of 1, and of 0, which nobody sends, in a new flow and in one that is known.
func testLastHops(t *testing.T, w passage) {
	for _, tr := range w.those(transports()[:4]) {
		for _, ttl := range []uint8{0, 1} {
			t.Run(fmt.Sprint(tr.name, ", ", ttl), func(t *testing.T) {
				came, went := w.begin(t, tr, low)
				last := w.in(w.came.ip(ttl, w.comes(tr, came)...)...)
				stays := w.went.ip(ttl, w.leaves(tr, went)...) // where it is no matter
				first := w.or(w.others.lastHop, w.first(stays))
				if w.turned != nil {
					first.out = w.turned(last.in)
				}
				w.check(t, last, first)
				came, went = w.begin(t, tr, low)
				good, end := w.frames(2, w.comes(tr, came), w.leaves(tr, went))
				last.in, stays = w.in(w.came.ip(ttl, w.comes(tr, came)...)...).in, w.went.ip(ttl, w.leaves(tr, went)...)
				known := w.or(w.others.lastHopKnown, w.again(tr, stays))
				if w.asks != nil && w.asks(tr) {
					known = w.or(w.others.lastHop, known)
				}
				if w.turned != nil {
					known.out = w.turned(last.in)
				}
				w.story(t,
					step{"with two left", good, end},
					step{"in a known flow", last, known},
				)
			})
		}
	}
}

// large are transports with payloads of three segments.
func large() []transport { return served(largeAt) }

const segment = 1000

func largeAt(server uint16) []transport {
	return []transport{
		{
			name: "TCP", protocol: number(unix.IPPROTO_TCP),
			there: func(port uint16) []packet.Layer {
				return []packet.Layer{packet.TCP(port, server, packet.ACK), packet.Payload(3 * segment)}
			},
			back: func(port uint16) []packet.Layer {
				return []packet.Layer{packet.TCP(server, port, packet.ACK), packet.Payload(3 * segment)}
			},
		},
		{
			name: "UDP", protocol: number(unix.IPPROTO_UDP),
			there: func(port uint16) []packet.Layer {
				return []packet.Layer{packet.UDP(port, server), packet.Payload(3 * segment)}
			},
			back: func(port uint16) []packet.Layer {
				return []packet.Layer{packet.UDP(server, port), packet.Payload(3 * segment)}
			},
		},
	}
}

// testSegments: packets that are to be cut into segments, which a later fragment cannot be.
func testSegments(t *testing.T, w passage) {
	gso := func(r run, size uint32) run {
		r.gsoSize, r.gsoSegs = size, 3
		return r
	}
	for _, tr := range w.those(large()) {
		t.Run(tr.name, func(t *testing.T) {
			small := slices.IndexFunc(transports(), func(small transport) bool { return small.name == tr.name })
			came, went := w.begin(t, transports()[small], low)
			good, end := w.frames(64, w.comes(tr, came), w.leaves(tr, went))
			big := w.or(w.others.tooBig, w.again(tr, w.went.ip(64-w.hops, w.leaves(tr, went)...)))
			if w.stays != nil {
				big.out = w.stays(w.went.ip(64, w.leaves(tr, went)...)...)
			}
			if w.turned != nil && w.others.tooBig != nil {
				big.out = w.turned(good.in)
			}
			w.story(t, step{"that fit", gso(good, segment), end}, step{"too big", gso(good, 1500), big})
			w.forget(t)
			good.in = packet.Fragment(good.in, 1400)[1]
			w.check(t, gso(good, segment), *w.others.senseless)
		})
	}
}
