// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// led is a flow of c, which is not masqueraded, to the service f.neighbour of others, who
// lead it to f.world behind the uplink.
type led struct {
	ask, led, answer run
	// arrives is the answer that comes past those who have to translate it back.
	arrives []byte
	// straight goes to f.world without them.
	straight run
	leaves   []byte
}

func (n *node) led(f family, tr transport) led {
	return led{
		ask:      n.from(n.c, ip(f.c, f.neighbour, 64, tr.begin(low)...)...),
		led:      n.toWorld(seenLed, ip(f.c, f.world, 63, tr.begin(low)...)...).forwardedBy(n.c),
		answer:   n.fromWorld(ip(f.world, f.c, 60, tr.back(low)...)...),
		arrives:  delivered(n.c, ip(f.world, f.c, 59, tr.back(low)...)...),
		straight: n.from(n.c, ip(f.c, f.world, 64, tr.begin(low)...)...),
		leaves:   sent(n.c, ip(f.c, f.world, 63, tr.begin(low)...)...),
	}
}

// testServices: others lead an endpoint that is not masqueraded to somebody behind the
// uplink, and have to translate the answer back. It must not come past them.
func testServices(t *testing.T, n *node) {
	eachFamily(t, func(t *testing.T, f family) {
		n.services(t, netip.PrefixFrom(f.neighbour, f.neighbour.BitLen()))
		for _, tr := range transports() {
			t.Run(tr.name, func(t *testing.T) {
				l := n.led(f, tr)
				t.Run("answered", func(t *testing.T) { testServiceAnswered(t, n, f, l) })
				t.Run("and straight", func(t *testing.T) { testServiceAndStraight(t, n, l) })
				t.Run("unasked before", func(t *testing.T) { testServiceUnasked(t, n, l) })
				t.Run("forged", func(t *testing.T) { testServiceForged(t, n, f, tr, l) })
			})
		}
		t.Run("SYN on its ports", func(t *testing.T) { testServiceSYN(t, n, f) })
		t.Run("error under a policy", func(t *testing.T) { testServiceError(t, n, f) })
		testPassages(t, servicePassages(n, f))
	})
}

func testServiceAnswered(t *testing.T, n *node, f family, l led) {
	n.forget(t)
	quote := packet.Quote(l.led.in)
	n.story(t,
		step{"asked", l.ask, passed(seenLed, "decided")},
		step{"led to the world", l.led, untouched()},
		step{"answer", l.answer, passed(seenNot, "decided")},
		step{"error about it", n.fromWorld(ip(f.world, f.c, 60, packet.Unreachable(packet.PortUnreachable), quote)...), passed(seenNot, "decided")},
	)
	n.wantTracked(t, tracked1{f.c, f.world, maps.TranslationOpening})
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	n.story(t, step{"answer, when the cache has forgotten", l.answer, passed(seenNot, "decided")})
	other := ip(f.world, f.b, 60, packet.Unreachable(packet.PortUnreachable), quote)
	n.check(t, n.fromWorld(other...), deliveredAs(delivered(n.b, ip(f.world, f.b, 59, packet.Unreachable(packet.PortUnreachable), quote)...), "decided"))
	n.forget(t)
	n.story(t, step{"nobody's answer", l.answer, deliveredAs(l.arrives, "decided")})
}

// testServiceAndStraight: the same ports go straight before and after.
func testServiceAndStraight(t *testing.T, n *node, l led) {
	n.forget(t)
	n.story(t,
		step{"sent straight", l.straight, forwarded(l.leaves, "decided")},
		step{"answered straight", l.answer, deliveredAs(l.arrives, "decided")},
		step{"led there", l.led, untouched()},
		step{"answer by the stack", l.answer, passed(seenNot, "decided")},
	)
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	n.story(t,
		step{"sent straight again", l.straight, forwarded(l.leaves, "decided")},
		step{"answered straight again", l.answer, deliveredAs(l.arrives, "decided")},
	)
}

// testServiceUnasked: what came from there before makes no answer of what is led there.
func testServiceUnasked(t *testing.T, n *node, l led) {
	n.forget(t)
	n.story(t,
		step{"unasked", l.answer, deliveredAs(l.arrives, "decided")},
		step{"led there", l.led, untouched()},
		step{"answer", l.answer, passed(seenNot, "decided")},
	)
}

// testServiceForged: with an endpoint's address, from another device than its own, nobody
// makes an answer of what policy denies.
func testServiceForged(t *testing.T, n *node, f family, tr transport, l led) {
	forged := func(src netip.Addr) run {
		r := n.toWorld(seenNot, ip(src, f.world, 63, tr.begin(low)...)...)
		r.ingress = n.other.Attrs().Index
		return r
	}
	n.enforce(t, n.policy().restrict(n.a, ingress).restrict(n.c, func(s *Subject) { s.Ingress = setOne + 1 }))
	n.story(t,
		step{"as c", forged(f.c), drops("martian")},
		step{"to c", l.answer, denied("policy_ingress")},
		step{"as a, which is masqueraded", forged(f.a), drops("martian")},
	)
	n.wantTranslations(t)
	must(t, n.ReconcilePolicy(Policy{}))
	n.forget(t)
	n.story(t,
		step{"as c, whom nothing restricts", forged(f.c), untouched()},
		step{"to c, whom nothing restricts", l.answer, deliveredAs(l.arrives, "decided")},
	)
}

// testServiceSYN: who begins a connection with the ports of one to a service does not make
// that one's answers its own.
func testServiceSYN(t *testing.T, n *node, f family) {
	n.forget(t)
	tr := transports()[0]
	l := n.led(f, tr)
	syn := tcp(server, low, packet.SYN)
	n.story(t,
		step{"led", l.led, untouched()},
		step{"answer", l.answer, passed(seenNot, "decided")},
		step{"SYN", n.fromWorld(ip(f.world, f.c, 60, syn...)...), deliveredAs(delivered(n.c, ip(f.world, f.c, 59, syn...)...), "decided")},
		step{"answer after it", l.answer, passed(seenNot, "decided")},
	)
}

// testServiceError: an error about what others have led there comes back as one about the
// service, which policy does not know.
func testServiceError(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.c, egress).allow(setOne, ofWorld))
	l := n.led(f, transports()[0])
	back := func(quoted []byte) run {
		in := delivered(n.c, ip(f.router, f.c, 59, packet.Unreachable(packet.PortUnreachable), packet.Quote(quoted))...)
		return run{program: toContainer, device: n.c.IfIndex, ingress: n.uplink.IfIndex, in: in}
	}
	n.story(t,
		step{"asked", l.ask, passed(seenLed, "decided")},
		step{"led", l.led, untouched()},
		step{"error about the service", back(l.ask.in), passed(seenNot)},
	)
}

// TestServicesFull: what needs no translation goes on when there is no room to note it.
func TestServicesFull(t *testing.T) {
	nstest.LeaveTo(t, "6.1")
	n := newNode(t, Config{FlowsMax: 1024, TranslationsMax: 64})
	eachFamily(t, func(t *testing.T, f family) {
		n.forget(t)
		for p := range uint16(100) {
			n.check(t, n.toWorld(seenLed, ip(f.c, f.world, 63, udp(2000+p, server)...)...).forwardedBy(n.c), untouched())
		}
	})
}
