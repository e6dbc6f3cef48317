// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"testing"

	"github.com/tendril-net/tendril/internal/packet"
)

// TestPortsScarce has more clients than an endpoint may hold translations, which is two.
func TestPortsScarce(t *testing.T) {
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
