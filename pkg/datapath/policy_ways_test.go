// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// TestPolicyWays: ways round a policy that are none, and what a policy must not break.
func TestPolicyWays(t *testing.T) {
	nstest.Halve(t, 0)
	n := newNode(t, Config{Masquerade: true})
	bothFamilies(t, func(t *testing.T, f family) {
		for name, test := range map[string]func(*testing.T, *node, family){
			"endpoint among services":      testPolicyEndpointAmongServices,
			"service that is none":         testPolicyServiceThatIsNone,
			"source replaced by the stack": testPolicyHiddenSource,
			"address at another device":    testPolicyForgedSource,
			"error about another's flow":   testPolicyForeignError,
			"echo request as answer":       testPolicyEcho,
			"SYN over a note":              testPolicySYNOverNote,
			"mark without judgement":       testPolicyMark,
			"reset before the policy":      testPolicyReset,
			"closed by the world":          testPolicyClosed,
			"called at its own address":    testPolicyCalled,
			"protocol without ports":       testPolicyWithoutPorts,
			"denied, then an answer":       testPolicyDeniedThenAnswer,
			"denied for long":              testPolicyDeniedForLong,
			"repair that fails":            testPolicyRepairFails,
			"answer to an heir":            testPolicyHeir,
		} {
			t.Run(name, func(t *testing.T) { test(t, n, f) })
		}
	})
}

// forwardedBy has the stack forward a packet from an endpoint's device.
func (r run) forwardedBy(e Endpoint) run {
	r.ingress = e.IfIndex
	return r
}

// testPolicyEndpointAmongServices: an endpoint is judged as one, also where a prefix that is
// left to others has its address.
func testPolicyEndpointAmongServices(t *testing.T, n *node, f family) {
	n.services(t, netip.PrefixFrom(f.b, f.b.BitLen()-8).Masked())
	n.enforce(t, n.policy().restrict(n.a, egress))
	n.check(t, n.fromA(ip(f.a, f.b, 64, udp(low, server)...)...), denied("policy_egress", "decided"))
}

// testPolicyServiceThatIsNone: what nobody has translated does not leave.
func testPolicyServiceThatIsNone(t *testing.T, n *node, f family) {
	n.services(t, netip.PrefixFrom(f.neighbour, f.neighbour.BitLen()))
	n.enforce(t, n.policy().restrict(n.a, egress).restrict(n.c, egress))
	n.story(t,
		step{"left to others", n.fromA(ip(f.a, f.neighbour, 64, udp(inside, server)...)...), passed(seenLed, "decided")},
		step{"masqueraded", n.toWorld(seenNot, ip(f.a, f.neighbour, 63, udp(inside, server)...)...).forwardedBy(n.a), denied("policy_egress")},
		step{"not masqueraded", n.toWorld(seenNot, ip(f.c, f.neighbour, 63, udp(inside, server)...)...).forwardedBy(n.c), denied("policy_egress")},
	)
}

// testPolicyHiddenSource: who sends is known by the device, where the stack has replaced the
// address.
func testPolicyHiddenSource(t *testing.T, n *node, f family) {
	toB := func(port uint16) run {
		return run{program: toContainer, device: n.b.IfIndex, in: delivered(n.b, ip(f.host, f.b, 63, udp(port, server)...)...)}.forwardedBy(n.a)
	}
	toWorld := n.toWorld(seenNot, ip(f.host, f.world, 63, udp(low, server)...)...).forwardedBy(n.a)
	n.enforce(t, n.policy().restrict(n.a, egress))
	n.table(t,
		step{"to an endpoint", toB(low), denied("policy_egress")},
		step{"to the world", toWorld, denied("policy_egress")},
	)
	n.enforce(t, n.policy().restrict(n.a, func(s *Subject) { s.Egress = setOne + 2 }).restrict(n.b, func(s *Subject) { s.Ingress = setOne + 3 }).
		allow(setOne+2, ofB).allow(setOne+2, ofWorld).allow(setOne+3, ofA))
	n.table(t,
		step{"to an endpoint that lets it in", toB(low), passed(seenNot)},
		step{"to a world that may be called", toWorld, untouched()},
	)
	n.enforce(t, n.policy().restrict(n.b, func(s *Subject) { s.NoOwn = true }))
	n.table(t, step{"to a network that is shut", toB(low), denied("network_isolation")})
}

// testPolicyForgedSource: an endpoint's address is believed where the endpoint is.
func testPolicyForgedSource(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.a, ingress).allow(setOne, ofB))
	n.table(t,
		step{"at another device", n.toA(n.other.Attrs().Index, ip(f.b, f.a, 60, tcp(low, server, packet.SYN)...)...), drops("martian")},
		step{"at its own", n.toA(n.b.IfIndex, ip(f.b, f.a, 60, tcp(low, server, packet.SYN)...)...), passed(seenNot)},
	)
}

// testPolicyForeignError: an endpoint may speak of what it was sent, and not of what others
// were.
func testPolicyForeignError(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.c, egress).restrict(n.b, func(s *Subject) { s.Ingress = setOne + 1 }))
	ask, asked := n.between(n.b, n.a, f.b, f.a, udp(low, server))
	refuse := func(from netip.Addr) []packet.Layer {
		return ip(from, f.b, 64, packet.Unreachable(packet.PortUnreachable), packet.Quote(delivered(n.a, ip(f.b, f.a, 63, udp(low, server)...)...)))
	}
	n.story(t,
		step{"asked", ask, deliveredAs(asked, "decided")},
		step{"another speaks of it", n.from(n.c, refuse(f.c)...), denied("policy_egress", "decided")},
		step{"who was asked", n.fromA(refuse(f.a)...), deliveredAs(delivered(n.b, ip(f.a, f.b, 63, packet.Unreachable(packet.PortUnreachable),
			packet.Quote(delivered(n.a, ip(f.b, f.a, 63, udp(low, server)...)...)))...), "decided")},
	)
}

// testPolicyEcho: an echo request begins, whatever was said before without an identifier,
// where no port tells it from an answer.
func testPolicyEcho(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.a, both).allow(setOne, ofB))
	ask, asked := n.between(n.a, n.b, f.a, f.b, []packet.Layer{packet.Echo(0, 1), packet.Payload(8)})
	call, _ := n.between(n.b, n.a, f.b, f.a, []packet.Layer{packet.Echo(0, 1), packet.Payload(8)})
	answer, answered := n.between(n.b, n.a, f.b, f.a, []packet.Layer{packet.EchoReply(0, 1), packet.Payload(8)})
	n.story(t,
		step{"asked", ask, deliveredAs(asked, "decided")},
		step{"called", call, denied("policy_ingress", "decided")},
		step{"answer", answer, deliveredAs(answered, "decided")},
		step{"called, although that was an answer", call, denied("policy_ingress", "decided")},
		step{"answer, although that was denied", answer, deliveredAs(answered, "decided")},
		step{"asked again", ask, deliveredAs(asked, "decided")},
	)
	n.wantHits(t, PolicyHits{Rules: map[uint64]uint64{ruleOne: 1}, IngressDenied: map[uint16]uint64{n.a.ID: 2}})
	n.table(t, step{"answer to nobody", answer, denied("policy_ingress", "decided")})
	n.story(t,
		step{"asked after that", ask, deliveredAs(asked, "decided")},
		step{"answer after that", answer, deliveredAs(answered, "decided")},
	)
}

// testPolicySYNOverNote: that the stack took part in a flow does not let the other end begin.
func testPolicySYNOverNote(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.a, both).allow(setOne+1, 0))
	answer := n.fromA(ip(f.a, f.elsewhere, 64, tcp(server, low, packet.SYN, packet.ACK)...)...)
	n.story(t,
		step{"let in", n.toA(n.other.Attrs().Index, ip(f.elsewhere, f.a, 60, tcp(low, server, packet.SYN)...)...), passed(seenNot)},
		step{"answer", answer, passed(seenNot, "decided")},
		step{"the other way round", n.fromA(ip(f.a, f.elsewhere, 64, tcp(server, low, packet.SYN)...)...), denied("policy_egress", "decided")},
	)
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	n.story(t, step{"answer, when the cache has forgotten", answer, passed(seenNot, "decided")})
}

// testPolicyMark: what was left to the stack unjudged has no mark that says otherwise.
func testPolicyMark(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.a, egress))
	n.story(t,
		step{"at the end of its life", n.fromA(ip(f.a, f.world, 1, udp(low, server)...)...), passed(seenNot, "decided")},
		step{"which somebody has prolonged", n.toWorld(seenNot, ip(f.a, f.world, 63, udp(low, server)...)...).forwardedBy(n.a), denied("policy_egress")},
	)
}

// testPolicyReset: a RST that nobody heeds does not hide who began before the first policy,
// nor does an eviction.
func testPolicyReset(t *testing.T, n *node, f family) {
	there := func(name string, w func([]byte) want, options ...packet.TCPOption) step {
		in, out := n.between(n.a, n.b, f.a, f.b, tcp(low, server, options...))
		return step{name, in, w(out)}
	}
	back := func(name string, w func([]byte) want, options ...packet.TCPOption) step {
		in, out := n.between(n.b, n.a, f.b, f.a, tcp(server, low, options...))
		return step{name, in, w(out)}
	}
	passes := func(counters ...string) func([]byte) want {
		return func(out []byte) want { return deliveredAs(out, counters...) }
	}
	cut := func([]byte) want { return denied("policy_ingress", "decided") }
	for _, how := range []string{"reset", "evicted"} {
		n.forget(t)
		n.story(t,
			there("SYN", passes("decided"), packet.SYN),
			back("SYN ACK", passes("decided"), packet.SYN, packet.ACK),
			there("ACK", passes(), packet.ACK),
			back("data", passes(), packet.ACK),
		)
		if how == "reset" {
			n.story(t, there("RST", passes(), packet.RST, packet.ACK))
		} else {
			clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
		}
		must(t, n.ReconcilePolicy(n.policy().restrict(n.b, ingress)))
		n.story(t,
			back("data after the policy", cut, packet.ACK),
			there("goes on", cut, packet.ACK),
			back("data again", cut, packet.ACK),
		)
		must(t, n.ReconcilePolicy(Policy{}))
	}
}

// testPolicyHeir: who gets the address of one that has asked has not asked.
func testPolicyHeir(t *testing.T, n *node, f family) {
	inherit := func(address netip.Addr) (undo func()) {
		heir := n.c
		heir.Addresses = append([]netip.Addr{address}, heir.Addresses...)
		n.do(t, func() error { return n.AttachEndpoint(heir) })
		return func() {
			n.do(t, func() error {
				return errors.Join(n.DetachEndpoint(heir), n.AttachEndpoint(n.a), n.AttachEndpoint(n.c), n.ReconcilePolicy(Policy{}))
			})
		}
	}
	t.Run("of an endpoint", func(t *testing.T) {
		n.forget(t)
		ask, asked := n.between(n.a, n.b, f.a, f.b, udp(low, server))
		answer, answered := n.between(n.b, n.a, f.b, f.a, udp(server, low))
		n.story(t,
			step{"asked", ask, deliveredAs(asked, "decided")},
			step{"answer", answer, deliveredAs(answered, "decided")},
		)
		n.do(t, func() error { return n.DetachEndpoint(n.a) })
		defer inherit(f.a)()
		must(t, n.ReconcilePolicy(n.policy().restrict(n.c, ingress)))
		n.check(t, answer, denied("policy_ingress", "decided"))
	})
	t.Run("of the world", func(t *testing.T) {
		n.enforce(t, n.policy().restrict(n.b, ingress).restrict(n.c, func(s *Subject) { s.Ingress = setOne + 1 }).allow(setOne, 0))
		n.check(t, n.fromWorld(ip(f.world, f.b, 58, udp(low, server)...)...),
			deliveredAs(delivered(n.b, ip(f.world, f.b, 57, udp(low, server)...)...), "decided"))
		clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
		defer inherit(f.world)()
		n.check(t, n.from(n.b, ip(f.b, f.world, 64, udp(server, low)...)...), denied("policy_ingress", "decided"))
	})
}

// testPolicyClosed: connections of the world that both ends close give up their places.
func testPolicyClosed(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.c, ingress).allow(setOne, ofWorld))
	world := func(options ...packet.TCPOption) {
		n.run(t, n.fromWorld(ip(f.world, f.c, 58, tcp(low, server, options...)...)...))
	}
	c := func(options ...packet.TCPOption) {
		n.run(t, n.from(n.c, ip(f.c, f.world, 64, tcp(server, low, options...)...)...))
	}
	world(packet.SYN)
	c(packet.SYN, packet.ACK)
	world(packet.ACK)
	c(packet.ACK)
	world(packet.ACK)
	n.wantTracked(t, tracked1{f.world, f.c, maps.TranslationEstablished})
	world(packet.FIN, packet.ACK)
	c(packet.FIN, packet.ACK)
	world(packet.ACK)
	n.wantTracked(t, tracked1{f.world, f.c, maps.TranslationClosed})
}

// testPolicyCalled: an endpoint that is masqueraded answers from its own address who has
// called it there, also when only the tracked know.
func testPolicyCalled(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.a, ingress).allow(setOne, ofWorld))
	call := n.fromWorld(ip(f.world, f.a, 58, udp(low, server)...)...)
	answer := n.fromA(ip(f.a, f.world, 64, udp(server, low)...)...)
	answered := sent(n.a, ip(f.a, f.world, 63, udp(server, low)...)...)
	n.story(t,
		step{"called", call, deliveredAs(delivered(n.a, ip(f.world, f.a, 57, udp(low, server)...)...), "decided")},
		step{"answer", answer, forwarded(answered, "decided")},
	)
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	n.story(t,
		step{"answer after an eviction", answer, forwarded(answered, "decided")},
	)
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	n.story(t, step{
		"answer by the stack", n.toWorld(seenNot, ip(f.a, f.world, 63, udp(server, low)...)...).forwardedBy(n.a), untouched(),
	})
	n.wantTranslations(t)
}

// testPolicyWithoutPorts: a router's error about a protocol without ports passes with it.
func testPolicyWithoutPorts(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.c, ingress))
	esp := func(frame []byte) []byte {
		frame = slices.Clone(frame)
		if f.v6() {
			frame[14+6] = unix.IPPROTO_ESP
		} else {
			frame = packet.New(packet.Eth(n.c.MAC, n.c.HostMAC), packet.IP(f.c, f.world, packet.TTL(64), packet.Proto(unix.IPPROTO_ESP)), packet.Payload(30))
		}
		return frame
	}
	in := n.from(n.c, ip(f.c, f.world, 64, udp(low, server)...)...)
	in.in = esp(in.in)
	sentOut := n.run(t, in)
	if sentOut.verdict != redirect {
		t.Fatalf("ESP: verdict %d, %v", sentOut.verdict, sentOut.counts)
	}
	got := n.run(t, n.fromWorld(ip(f.router, f.c, 60, packet.TooBig(1400), packet.Quote(in.in))...))
	if got.verdict != redirect {
		t.Errorf("too big: verdict %d, %v", got.verdict, got.counts)
	}
	got = n.run(t, n.fromWorld(ip(f.router, f.c, 60, packet.TooBig(1400), packet.Quote(sent(n.c, ip(f.c, f.world, 64, udp(low, server)...)...)))...))
	if got.verdict != dropped {
		t.Errorf("too big, of what was not sent: verdict %d, %v", got.verdict, got.counts)
	}
}

// testPolicyDeniedThenAnswer: what was denied unasked passes once it is an answer.
func testPolicyDeniedThenAnswer(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.a, both).allow(setOne, ofB))
	early, _ := n.between(n.b, n.a, f.b, f.a, udp(server, low))
	ask, asked := n.between(n.a, n.b, f.a, f.b, udp(low, server))
	_, answered := n.between(n.b, n.a, f.b, f.a, udp(server, low))
	n.story(t,
		step{"unasked", early, denied("policy_ingress", "decided")},
		step{"asked", ask, deliveredAs(asked, "decided")},
		step{"the same as an answer", early, deliveredAs(answered, "decided")},
	)
}

// testPolicyDeniedForLong: what an endpoint may begin itself is not denied for ever because
// it once was an answer.
func testPolicyDeniedForLong(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.c, ingress).allow(setOne, ofWorld))
	in := n.fromWorld(ip(f.world, f.c, 58, udp(low, server)...)...)
	out := n.from(n.c, ip(f.c, f.world, 64, udp(server, low)...)...)
	n.run(t, in)
	n.run(t, out)
	must(t, n.ReconcilePolicy(n.policy().restrict(n.c, func(s *Subject) { s.Ingress = setOne + 5 })))
	n.story(t, step{"answer of what may not be", out, denied("policy_ingress", "decided")})
	for range 30 {
		n.elapse(t, 12)
		n.run(t, out)
	}
	n.check(t, out, forwarded(sent(n.c, ip(f.c, f.world, 63, udp(server, low)...)...)))
}

// testPolicyRepairFails: a repair that cannot be made leaves what counts as it is, and is
// tried again.
func testPolicyRepairFails(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofA))
	ask, asked := n.between(n.a, n.b, f.a, f.b, udp(low, server))
	must(t, n.maps.Subjects.Delete(maps.SubjectKey{Generation: n.generation(), Endpoint: uint32(n.c.ID)}))
	unlock := locked(t, &n.maps.Subjects)
	if n.RepairPolicy() == nil {
		t.Error("a map that is read only was written")
	}
	unlock()
	n.check(t, ask, deliveredAs(asked, "decided"))
	must(t, n.RepairPolicy())
	must(t, n.comparePolicy())
}
