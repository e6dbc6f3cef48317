// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// TestPolicyMore has policy meet what is translated, what is spoken of, and what a cache has
// learnt without it.
func TestPolicyMore(t *testing.T) {
	nstest.LeaveTo(t, "6.1")
	n := withPorts(t, Config{Masquerade: true})
	eachFamily(t, func(t *testing.T, f family) {
		for _, p := range mappedProtocols() {
			t.Run(p.name, func(t *testing.T) {
				t.Run("port, from the world", func(t *testing.T) { testPolicyPortFromWorld(t, n, f, p) })
				t.Run("port, from an endpoint", func(t *testing.T) { testPolicyPortFromEndpoint(t, n, f, p) })
				t.Run("port, by the stack", func(t *testing.T) { testPolicyPortByStack(t, n, f, p) })
				t.Run("port, errors", func(t *testing.T) { testPolicyPortErrors(t, n, f, p) })
			})
		}
		for _, tr := range transports() {
			t.Run("of "+tr.name, func(t *testing.T) {
				t.Run("masqueraded, errors", func(t *testing.T) { testPolicyMasqueradedErrors(t, n, f, tr) })
				t.Run("masqueraded, tracked once", func(t *testing.T) { testPolicyTrackedOnce(t, n, f, tr) })
				t.Run("errors after a change", func(t *testing.T) { testPolicyErrorsChange(t, n, f, tr) })
				t.Run("learnt without a policy", func(t *testing.T) { testPolicyLearnt(t, n, f, tr) })
				t.Run("by the stack", func(t *testing.T) { testPolicyByStack(t, n, f, tr) })
				t.Run("hidden by the stack", func(t *testing.T) { testPolicyHidden(t, n, f, tr) })
				t.Run("late answer", func(t *testing.T) { testPolicyLate(t, n, f, tr) })
				t.Run("unasked answer", func(t *testing.T) { testPolicyUnasked(t, n, f, tr) })
			})
		}
		t.Run("port, fragments", func(t *testing.T) { testPolicyPortFragments(t, n, f) })
		t.Run("masqueraded, fragments", func(t *testing.T) { testPolicyMasqueradedFragments(t, n, f) })
	})
}

// begin is the first packet of a connection to a mapped port.
func (p mappedProtocol) begin(from, to uint16) []packet.Layer {
	if p.tcp {
		return tcp(from, to, packet.SYN)
	}
	return udp(from, to)
}

// only lets one port of a protocol through.
func only(port uint16, protocol uint8) PolicyRange {
	return PolicyRange{First: port, Last: port, Protocol: protocol, Rule: ruleOne}
}

// shutAll is a policy that lets nothing begin at or from an endpoint.
func (n *node) shutAll(e Endpoint) Policy {
	return n.policy().restrict(e, func(s *Subject) { s.Ingress, s.Egress = setOne+50, setOne+51 })
}

// testPolicyPortFromWorld: policy is asked for the endpoint and its own port, not for what
// was dialled, and b's answers need no rule. A change cuts both directions.
func testPolicyPortFromWorld(t *testing.T, n *node, f family, p mappedProtocol) {
	n.enforce(t, n.policy().restrict(n.b, func(s *Subject) { s.Ingress, s.Egress = setOne, setOne+1 }).
		allow(setOne, ofWorld, only(server, p.number)))
	ask := n.fromWorld(ip(f.world, f.host, 58, p.begin(low, hostPort)...)...)
	asked := delivered(n.b, ip(f.world, f.b, 57, p.begin(low, server)...)...)
	answer := n.from(n.b, ip(f.b, f.world, 64, p.datagram(server, low)...)...)
	answered := sent(n.b, ip(f.host, f.world, 63, p.datagram(hostPort, low)...)...)
	other := n.fromWorld(ip(f.neighbour, f.host, 58, p.begin(low, hostPort)...)...)
	n.story(t,
		step{"kept out", other, denied("policy_ingress")},
		step{"kept out again", other, denied("policy_ingress")},
	)
	n.wantTranslations(t)
	n.story(t,
		step{"let in", ask, deliveredAs(asked, "decided")},
		step{"answer", answer, forwarded(answered, "decided")},
		step{"own", n.from(n.b, ip(f.b, f.world, 64, p.begin(inside, server)...)...), denied("policy_egress", "decided")},
	)
	n.wantHits(t, PolicyHits{
		Rules: map[uint64]uint64{ruleOne: 1}, IngressDenied: map[uint16]uint64{n.b.ID: 1}, EgressDenied: map[uint16]uint64{n.b.ID: 1},
	})
	must(t, n.ReconcilePolicy(n.shutAll(n.b)))
	n.story(t,
		step{"answer after a change", answer, denied("policy_ingress", "decided")},
		step{"more after a change", n.fromWorld(ip(f.world, f.host, 58, p.datagram(low, hostPort)...)...), denied("policy_ingress")},
	)
	n.enforce(t, n.policy().restrict(n.b, func(s *Subject) { s.Ingress = setOne + 2 }).allow(setOne+2, ofWorld, only(hostPort, p.number)))
	n.story(t, step{"the port that was dialled is nobody's", ask, denied("policy_ingress")})
}

// testPolicyPortFromEndpoint: both ends are asked, and their networks.
func testPolicyPortFromEndpoint(t *testing.T, n *node, f family, p mappedProtocol) {
	both := n.policy().restrict(n.b, ingress).restrict(n.a, func(s *Subject) { s.Egress, s.Ingress = setOne+1, setOne+2 }).
		allow(setOne, ofA, only(server, p.number)).allow(setOne+1, ofB, only(server, p.number))
	n.enforce(t, both)
	ask := n.fromA(ip(f.a, f.host, 64, p.begin(low, hostPort)...)...)
	asked := delivered(n.b, ip(f.a, f.b, 63, p.begin(low, server)...)...)
	answer := n.from(n.b, ip(f.b, f.a, 64, p.datagram(server, low)...)...)
	answered := delivered(n.a, ip(f.host, f.a, 63, p.datagram(hostPort, low)...)...)
	other := n.from(n.c, ip(f.c, f.host, 64, p.begin(low, hostPort)...)...)
	n.story(t,
		step{"let in", ask, deliveredAs(asked, "decided")},
		step{"answer", answer, deliveredAs(answered, "decided")},
		step{"kept out", other, denied("policy_ingress", "decided")},
		step{"kept out again", other, denied("policy_ingress")},
	)
	must(t, n.ReconcilePolicy(n.shutAll(n.a)))
	n.story(t,
		step{"answer after a change", answer, denied("policy_egress", "decided")},
		step{"more after a change", n.fromA(ip(f.a, f.host, 64, p.datagram(low, hostPort)...)...), denied("policy_egress", "decided")},
	)
	n.enforce(t, n.policy().restrict(n.b, func(s *Subject) { s.NoOthers = true }))
	n.story(t,
		step{"of another network", other, denied("network_isolation", "decided")},
		step{"of its own", ask, deliveredAs(asked, "decided")},
	)
}

// testPolicyPortByStack: an answer that the stack sends on is asked for as well.
func testPolicyPortByStack(t *testing.T, n *node, f family, p mappedProtocol) {
	n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofWorld, only(server, p.number)))
	answer := n.toWorld(seenDecided, ip(f.b, f.world, 63, p.datagram(server, low)...)...)
	n.story(t,
		step{
			"let in", n.fromWorld(ip(f.world, f.host, 58, p.begin(low, hostPort)...)...),
			deliveredAs(delivered(n.b, ip(f.world, f.b, 57, p.begin(low, server)...)...), "decided"),
		},
		step{"answer", answer, leaves(n.left(ip(f.host, f.world, 63, p.datagram(hostPort, low)...)...))},
	)
	must(t, n.ReconcilePolicy(n.shutAll(n.b)))
	n.story(t, step{"answer after a change", answer, denied("policy_ingress")})
}

// testPolicyPortErrors: what is said about a connection to a mapped port passes as long as
// the connection does.
func testPolicyPortErrors(t *testing.T, n *node, f family, p mappedProtocol) {
	n.enforce(t, n.policy().restrict(n.b, func(s *Subject) { s.Ingress, s.Egress = setOne, setOne+1 }).
		allow(setOne, ofWorld, only(server, p.number)))
	n.story(t,
		step{
			"let in", n.fromWorld(ip(f.world, f.host, 58, p.begin(low, hostPort)...)...),
			deliveredAs(delivered(n.b, ip(f.world, f.b, 57, p.begin(low, server)...)...), "decided"),
		},
		step{
			"answer", n.from(n.b, ip(f.b, f.world, 64, p.datagram(server, low)...)...),
			forwarded(sent(n.b, ip(f.host, f.world, 63, p.datagram(hostPort, low)...)...), "decided"),
		},
	)
	n.portErrors(t, f, p, port(f.world, low), port(f.host, hostPort), port(f.world, low))
	quoted := delivered(n.b, ip(f.world, f.b, 57, p.datagram(low, server)...)...)
	n.story(t, step{
		"of b, to another than it quotes", n.from(n.b, ip(f.b, f.narrow, 64, packet.Unreachable(packet.PortUnreachable), packet.Quote(quoted))...),
		denied("policy_egress", "decided"),
	})
	must(t, n.ReconcilePolicy(n.shutAll(n.b)))
	answered := n.left(ip(f.host, f.world, 63, p.datagram(hostPort, low)...)...)
	toB := delivered(n.b, ip(f.world, f.b, 57, p.datagram(low, server)...)...)
	n.story(t,
		step{
			"of a router, after a change", n.fromWorld(ip(f.router, f.host, 58, packet.TTLExceeded(), packet.Quote(answered))...),
			denied("policy_ingress"),
		},
		step{
			"of b, after a change", n.from(n.b, ip(f.b, f.world, 64, packet.Unreachable(packet.PortUnreachable), packet.Quote(toB))...),
			denied("policy_ingress", "decided"),
		},
	)
}

// testPolicyMasqueradedErrors: the same for what is masqueraded. Only the protocol of the
// connection is let out, which is not that of the errors.
func testPolicyMasqueradedErrors(t *testing.T, n *node, f family, tr transport) {
	n.enforce(t, n.policy().restrict(n.a, func(s *Subject) { s.Egress, s.Ingress = setOne, setOne+1 }).
		allow(setOne, ofWorld, PolicyRange{Last: 65535, Protocol: tr.protocol(f), Rule: ruleOne}))
	outside := n.open(t, f, tr, inside)
	router := n.fromWorld(ip(f.router, f.host, 58, packet.TTLExceeded(), packet.Quote(n.left(ip(f.host, f.world, 1, tr.there(outside)...)...)))...)
	routed := delivered(n.a, ip(f.router, f.a, 57, packet.TTLExceeded(), packet.Quote(n.left(ip(f.a, f.world, 1, tr.there(inside)...)...)))...)
	own := n.fromA(ip(f.a, f.world, 64, packet.Unreachable(packet.PortUnreachable), packet.Quote(n.arrived(ip(f.world, f.a, 57, tr.back(inside)...)...)))...)
	left := sent(n.a, ip(f.host, f.world, 63, packet.Unreachable(packet.PortUnreachable), packet.Quote(n.arrived(ip(f.world, f.host, 57, tr.back(outside)...)...)))...)
	n.story(t,
		step{"of a router", router, deliveredAs(routed, "decided")},
		step{"of a", own, forwarded(left, "decided")},
	)
	must(t, n.ReconcilePolicy(n.shutAll(n.a)))
	n.story(t,
		step{"of a router, after a change", router, denied("policy_egress")},
		step{"of a, after a change", own, denied("policy_egress", "decided")},
	)
}

// testPolicyTrackedOnce: who began what is masqueraded, the translation knows.
func testPolicyTrackedOnce(t *testing.T, n *node, f family, tr transport) {
	n.enforce(t, n.policy().restrict(n.a, func(s *Subject) { s.Egress, s.Ingress = setOne, setOne+1 }).allow(setOne, ofWorld))
	n.open(t, f, tr, inside)
	var held uint32
	must(t, n.maps.Held.Lookup(uint32(n.a.ID), &held))
	if held != 1 {
		t.Errorf("a holds %d translations, want 1", held)
	}
}

// testPolicyErrorsChange: an error about a flow that policy lets through no more, whichever
// end it comes from.
func testPolicyErrorsChange(t *testing.T, n *node, f family, tr transport) {
	n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofA))
	ask, asked := n.between(n.a, n.b, f.a, f.b, tr.begin(low))
	answer, answered := n.between(n.b, n.a, f.b, f.a, tr.back(low))
	about := func(inner []packet.Layer) []packet.Layer {
		return []packet.Layer{packet.Unreachable(packet.PortUnreachable), packet.Quote(delivered(n.b, inner...))}
	}
	ofServer, serves := n.between(n.b, n.a, f.b, f.a, about(ip(f.a, f.b, 63, tr.there(low)...)))
	ofClient, calls := n.between(n.a, n.b, f.a, f.b, about(ip(f.b, f.a, 63, tr.back(low)...)))
	n.story(t,
		step{"asked", ask, deliveredAs(asked, "decided")},
		step{"answer", answer, deliveredAs(answered, "decided")},
		step{"of the server", ofServer, deliveredAs(serves, "decided")},
		step{"of the client", ofClient, deliveredAs(calls, "decided")},
	)
	must(t, n.ReconcilePolicy(n.shutAll(n.b)))
	n.story(t,
		step{"of the server, after a change", ofServer, denied("policy_ingress", "decided")},
		step{"of the client, after a change", ofClient, denied("policy_ingress", "decided")},
	)
}

// testPolicyLearnt: while no policy is asked, a cache learns that the world began what c did.
// What is tracked knows better when policy is asked again.
func testPolicyLearnt(t *testing.T, n *node, f family, tr transport) {
	toWorld := n.policy().restrict(n.c, func(s *Subject) { s.Egress, s.Ingress = setOne, setOne+1 }).allow(setOne, ofWorld)
	n.enforce(t, toWorld)
	ask := n.from(n.c, ip(f.c, f.world, 64, tr.begin(inside)...)...)
	more := n.from(n.c, ip(f.c, f.world, 64, tr.there(inside)...)...)
	answer := n.fromWorld(ip(f.world, f.c, 58, tr.back(inside)...)...)
	answered := delivered(n.c, ip(f.world, f.c, 57, tr.back(inside)...)...)
	n.story(t, step{"asked", ask, forwarded(sent(n.c, ip(f.c, f.world, 63, tr.begin(inside)...)...), "decided")})
	must(t, n.ReconcilePolicy(Policy{}))
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	n.story(t, step{"answer while there is none", answer, deliveredAs(answered, "decided")})
	must(t, n.ReconcilePolicy(toWorld))
	n.story(t,
		step{"more", more, forwarded(sent(n.c, ip(f.c, f.world, 63, tr.there(inside)...)...), "decided")},
		step{"answer", answer, deliveredAs(answered, "decided")},
	)
}

// testPolicyByStack: what the stack sends to the world is asked for unless from_container
// was sure of its destination.
func testPolicyByStack(t *testing.T, n *node, f family, tr transport) {
	n.enforce(t, n.policy().restrict(n.c, egress).allow(setOne, ofWorld))
	n.table(t,
		step{"let out", n.toWorld(seenNot, ip(f.c, f.world, 63, tr.begin(inside)...)...), untouched()},
		step{"not let out", n.toWorld(seenNot, ip(f.c, f.neighbour, 63, tr.begin(inside)...)...), denied("policy_egress")},
		step{"asked for before", n.toWorld(seenDecided, ip(f.c, f.neighbour, 63, tr.begin(inside)...)...), untouched()},
		step{"the host's own", n.toWorld(seenNot, ip(f.host, f.neighbour, 64, tr.begin(low)...)...), untouched()},
	)
}

// testPolicyHidden: where the stack has replaced an endpoint's address, the device tells.
func testPolicyHidden(t *testing.T, n *node, f family, tr transport) {
	n.enforce(t, n.policy().restrict(n.c, egress).allow(setOne, ofWorld))
	let := n.toWorld(seenNot, ip(f.host, f.world, 63, tr.begin(low)...)...)
	not := n.toWorld(seenNot, ip(f.host, f.neighbour, 63, tr.begin(low)...)...)
	let.ingress, not.ingress = n.c.IfIndex, n.c.IfIndex
	n.table(t,
		step{"let out", let, untouched()},
		step{"not let out", not, denied("policy_egress")},
	)
}

// testPolicyLate: what was tracked ends with its timeout, or with its endpoint's epoch, and
// what was its answer is something that the world begins.
func testPolicyLate(t *testing.T, n *node, f family, tr transport) {
	ask := n.from(n.c, ip(f.c, f.world, 64, tr.begin(inside)...)...)
	asked := sent(n.c, ip(f.c, f.world, 63, tr.begin(inside)...)...)
	answer := n.fromWorld(ip(f.world, f.c, 58, tr.back(inside)...)...)
	for name, end := range map[string]func(){
		"too late":      func() { n.elapse(t, lifetime(tr.protocol(f), maps.TranslationOpening)+slack) },
		"of one before": func() { must(t, n.bumpEpoch(uint32(n.c.ID))) },
	} {
		n.enforce(t, n.policy().restrict(n.c, func(s *Subject) { s.Egress, s.Ingress = setOne, setOne+1 }).allow(setOne, ofWorld))
		n.story(t, step{"asked", ask, forwarded(asked, "decided")})
		clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
		end()
		n.story(t, step{name, answer, denied("policy_ingress")})
	}
}

// testPolicyUnasked: an answer that came before the question was let out is forgotten.
func testPolicyUnasked(t *testing.T, n *node, f family, tr transport) {
	n.enforce(t, n.policy().restrict(n.a, func(s *Subject) { s.Egress, s.Ingress = setOne, setOne+1 }).allow(setOne, ofB))
	ask, asked := n.between(n.a, n.b, f.a, f.b, tr.begin(low))
	answer, answered := n.between(n.b, n.a, f.b, f.a, tr.back(low))
	n.story(t,
		step{"unasked", answer, denied("policy_ingress", "decided")},
		step{"asked", ask, deliveredAs(asked, "decided")},
		step{"answer", answer, deliveredAs(answered, "decided")},
	)
}

// testPolicyPortFragments: of a datagram to a mapped port and of its answer.
func testPolicyPortFragments(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.b, func(s *Subject) { s.Ingress, s.Egress = setOne, setOne+1 }).
		allow(setOne, ofWorld, only(server, unix.IPPROTO_UDP)))
	in := pieces(n.arrived(ip(f.world, f.host, 58, packet.UDP(low, hostPort), packet.Payload(1300))...), 1)
	arrive := pieces(delivered(n.b, ip(f.world, f.b, 57, packet.UDP(low, server), packet.Payload(1300))...), 1)
	out := pieces(sent(n.b, ip(f.b, f.world, 64, packet.UDP(server, low), packet.Payload(1300))...), 2)
	world := func(i int) run { return run{program: fromUplink, device: n.uplink.IfIndex, in: in[i]} }
	answer := func(i int) run { return run{program: fromContainer, device: n.b.IfIndex, in: out[i]} }
	n.story(t,
		step{"an answer's later before its first", answer(1), denied("fragment", "decided")},
		step{"first", world(0), deliveredAs(arrive[0], "decided")},
		step{"later", world(1), deliveredAs(arrive[1])},
	)
	for i := range 2 {
		if got := n.run(t, answer(i)); got.verdict != redirect {
			t.Errorf("fragment %d of the answer: verdict %d, %v", i, got.verdict, got.counts)
		}
	}
	must(t, n.ReconcilePolicy(n.shutAll(n.b)))
	n.story(t,
		step{"later after a change", world(1), denied("policy_ingress")},
		step{"an answer's later after a change", answer(1), denied("policy_ingress", "decided")},
	)
}

// testPolicyMasqueradedFragments: what is masqueraded needs its ports, and so does policy.
func testPolicyMasqueradedFragments(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.a, egress).allow(setOne, ofWorld, only(server, unix.IPPROTO_UDP)))
	piece := func(to uint16, i int) run {
		frames := pieces(sent(n.a, ip(f.a, f.world, 64, packet.UDP(inside, to), packet.Payload(1300))...), byte(to))
		return run{program: fromContainer, device: n.a.IfIndex, in: frames[i]}
	}
	left := pieces(sent(n.a, ip(f.host, f.world, 63, packet.UDP(inside, server), packet.Payload(1300))...), server)
	n.story(t,
		step{"later before the first", piece(server, 1), denied("fragment", "decided")},
		step{"first", piece(server, 0), want{verdict: redirect, out: left[0], counters: []string{"decided", "forwarded"}, seen: seenTranslated}},
		step{"later", piece(server, 1), want{verdict: redirect, out: left[1], counters: []string{"forwarded"}, seen: seenTranslated}},
		step{"first to a wrong port", piece(81, 0), denied("policy_egress", "decided")},
		step{"later to a wrong port", piece(81, 1), denied("policy_egress")},
	)
}
