// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

func TestPolicy(t *testing.T) {
	n := newNode(t, Config{Masquerade: true})
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range transports() {
			t.Run(tr.name, func(t *testing.T) {
				t.Run("receiver", func(t *testing.T) { testReceiver(t, n, f, tr) })
				t.Run("sender", func(t *testing.T) { testSender(t, n, f, tr) })
				t.Run("both ends", func(t *testing.T) { testBothEnds(t, n, f, tr) })
				t.Run("masqueraded", func(t *testing.T) { testPolicyMasqueraded(t, n, f, tr) })
				t.Run("from the world", func(t *testing.T) { testPolicyFromWorld(t, n, f, tr) })
				t.Run("to the world", func(t *testing.T) { testPolicyToWorld(t, n, f, tr) })
				t.Run("by the stack", func(t *testing.T) { testPolicyForwarded(t, n, f, tr) })
				t.Run("change", func(t *testing.T) { testPolicyChange(t, n, f, tr) })
				t.Run("from before", func(t *testing.T) { testPolicyFromBefore(t, n, f, tr) })
				t.Run("networks", func(t *testing.T) { testNetworks(t, n, f, tr) })
			})
		}
		t.Run("ports", func(t *testing.T) { testPolicyPorts(t, n, f) })
		t.Run("fragments", func(t *testing.T) { testPolicyFragments(t, n, f) })
		t.Run("ICMP errors", func(t *testing.T) { testPolicyErrors(t, n, f) })
		t.Run("connection", func(t *testing.T) { testPolicyConnection(t, n, f) })
		t.Run("connection that nobody has seen begin", func(t *testing.T) { testPolicyStranger(t, n, f) })
		t.Run("host", func(t *testing.T) { testPolicyHost(t, n, f) })
		t.Run("services of others", func(t *testing.T) { testPolicyServices(t, n, f) })
		t.Run("by address", func(t *testing.T) { testPolicyByAddress(t, n, f) })
		t.Run("unreadable", func(t *testing.T) { testPolicyUnreadable(t, n, f) })
		t.Run("unknown subject", func(t *testing.T) { testUnknownSubject(t, n, f) })
		t.Run("bounds", func(t *testing.T) { testPolicyBounds(t, n, f) })
	})
}

// testReceiver: b lets a begin and nobody else; its own answers and what it begins pass.
func testReceiver(t *testing.T, n *node, f family, tr transport) {
	n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofA))
	ask, asked := n.between(n.a, n.b, f.a, f.b, tr.begin(low))
	answer, answered := n.between(n.b, n.a, f.b, f.a, tr.back(low))
	other, _ := n.between(n.c, n.b, f.c, f.b, tr.begin(low))
	own, begun := n.between(n.b, n.c, f.b, f.c, tr.begin(inside))
	n.story(t,
		step{"let in", ask, deliveredAs(asked, "decided")},
		step{"answer", answer, deliveredAs(answered, "decided")},
		step{"kept out", other, denied("policy_ingress", "decided")},
		step{"kept out by what is known", other, denied("policy_ingress")},
		step{"goes out", own, deliveredAs(begun, "decided")},
	)
	n.wantHits(t, PolicyHits{Rules: map[uint64]uint64{ruleOne: 1}, IngressDenied: map[uint16]uint64{n.b.ID: 1}})
}

// testSender: a may begin to b only. Who began is known after the cache has forgotten.
func testSender(t *testing.T, n *node, f family, tr transport) {
	n.enforce(t, n.policy().restrict(n.a, egress).allow(setOne, ofB))
	ask, asked := n.between(n.a, n.b, f.a, f.b, tr.begin(low))
	stray, _ := n.between(n.a, n.c, f.a, f.c, tr.begin(low))
	call, called := n.between(n.c, n.a, f.c, f.a, tr.begin(inside))
	answer, answered := n.between(n.a, n.c, f.a, f.c, tr.back(inside))
	n.story(t,
		step{"let out", ask, deliveredAs(asked, "decided")},
		step{"not let out", stray, denied("policy_egress", "decided")},
		step{"called", call, deliveredAs(called, "decided")},
	)
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	n.story(t, step{"answer", answer, deliveredAs(answered, "decided")})
	n.elapse(t, 10+1)
	n.story(t,
		step{"answer later", answer, deliveredAs(answered, "decided")},
		step{"to the world", n.fromA(ip(f.a, f.world, 64, tr.begin(low)...)...), denied("policy_egress", "decided")},
	)
	n.wantTranslations(t)
}

// testBothEnds: one end that agrees is not enough, and the sender's is asked first.
func testBothEnds(t *testing.T, n *node, f family, tr transport) {
	n.enforce(t, n.policy().restrict(n.a, egress).restrict(n.b, func(s *Subject) { s.Ingress = setOne + 1 }).
		allow(setOne, ofB).allow(setOne+1, ofC))
	ask, _ := n.between(n.a, n.b, f.a, f.b, tr.begin(low))
	other, arrives := n.between(n.c, n.b, f.c, f.b, tr.begin(low))
	n.story(t,
		step{"sender agrees, receiver does not", ask, denied("policy_ingress", "decided")},
		step{"receiver agrees, sender has no policy", other, deliveredAs(arrives, "decided")},
	)
	n.wantHits(t, PolicyHits{Rules: map[uint64]uint64{ruleOne: 2}, IngressDenied: map[uint16]uint64{n.b.ID: 1}})
	n.enforce(t, n.policy().restrict(n.a, egress).restrict(n.b, ingress))
	n.story(t, step{"neither agrees", ask, denied("policy_egress", "decided")})
}

func testPolicyMasqueraded(t *testing.T, n *node, f family, tr transport) {
	n.enforce(t, n.policy().restrict(n.a, func(s *Subject) { s.Egress, s.Ingress = setOne, setOne+1 }).allow(setOne, ofWorld))
	outside := n.open(t, f, tr, inside)
	answer := n.fromWorld(ip(f.world, f.host, 58, tr.back(outside)...)...)
	stray := n.fromA(ip(f.a, f.neighbour, 64, tr.begin(inside)...)...)
	n.story(t,
		step{"answer", answer, deliveredAs(delivered(n.a, ip(f.world, f.a, 57, tr.back(inside)...)...), "decided")},
		step{"elsewhere", stray, denied("policy_egress", "decided")},
	)
	must(t, n.ReconcilePolicy(n.policy().restrict(n.a, egress)))
	n.story(t,
		step{"answer after a change", answer, denied("policy_egress")},
		step{"more after a change", n.fromA(ip(f.a, f.world, 64, tr.there(inside)...)...), denied("policy_egress", "decided")},
	)
}

func testPolicyFromWorld(t *testing.T, n *node, f family, tr transport) {
	n.enforce(t, n.policy().restrict(n.c, func(s *Subject) { s.Egress, s.Ingress = setOne, setOne+1 }).allow(setOne+1, ofWorld))
	in := n.fromWorld(ip(f.world, f.c, 58, tr.begin(low)...)...)
	answer := n.from(n.c, ip(f.c, f.world, 64, tr.back(low)...)...)
	n.story(t,
		step{"let in", in, deliveredAs(delivered(n.c, ip(f.world, f.c, 57, tr.begin(low)...)...), "decided")},
		step{"answer", answer, forwarded(sent(n.c, ip(f.c, f.world, 63, tr.back(low)...)...), "decided")},
		step{"kept out", n.fromWorld(ip(f.neighbour, f.c, 58, tr.begin(low)...)...), denied("policy_ingress")},
		step{"kept out again", n.fromWorld(ip(f.neighbour, f.c, 58, tr.begin(low)...)...), denied("policy_ingress")},
		step{"own", n.from(n.c, ip(f.c, f.world, 64, tr.begin(inside)...)...), denied("policy_egress", "decided")},
	)
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	n.story(t, step{"answer that only the tracked know", answer, forwarded(sent(n.c, ip(f.c, f.world, 63, tr.back(low)...)...), "decided")})
}

// testPolicyToWorld: c, which is not masqueraded, may begin to the world, which may not
// begin to c.
func testPolicyToWorld(t *testing.T, n *node, f family, tr transport) {
	n.enforce(t, n.policy().restrict(n.c, func(s *Subject) { s.Egress, s.Ingress = setOne, setOne+1 }).allow(setOne, ofWorld))
	ask := n.from(n.c, ip(f.c, f.world, 64, tr.begin(inside)...)...)
	more := n.from(n.c, ip(f.c, f.world, 64, tr.there(inside)...)...)
	answer := n.fromWorld(ip(f.world, f.c, 58, tr.back(inside)...)...)
	answered := delivered(n.c, ip(f.world, f.c, 57, tr.back(inside)...)...)
	n.story(t,
		step{"unasked", answer, denied("policy_ingress")},
		step{"let out", ask, forwarded(sent(n.c, ip(f.c, f.world, 63, tr.begin(inside)...)...), "decided")},
	)
	n.elapse(t, 10+1)
	n.story(t,
		step{"answer", answer, deliveredAs(answered, "decided")},
		step{"more", more, forwarded(sent(n.c, ip(f.c, f.world, 63, tr.there(inside)...)...), "decided")},
		step{"answer again", answer, deliveredAs(answered, tr.settles()...)},
	)
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	n.story(t, step{"answer after an eviction", answer, deliveredAs(answered, "decided")})
	must(t, n.ReconcilePolicy(n.policy().restrict(n.c, egress)))
	n.story(t,
		step{"answer after a change", answer, denied("policy_egress")},
		step{"more after a change", more, denied("policy_egress", "decided")},
	)
}

// settles are the counters of an answer to what its client has confirmed just now: of a TCP
// connection nothing was kept before.
func (tr transport) settles() []string {
	if tr.first != nil {
		return []string{"decided"}
	}
	return nil
}

// testPolicyForwarded: the stack forwards from a device that is none of ours.
func testPolicyForwarded(t *testing.T, n *node, f family, tr transport) {
	n.enforce(t, n.policy().restrict(n.a, func(s *Subject) { s.Egress, s.Ingress = setOne, setOne+1 }).
		allow(setOne+1, ofWorld).allow(setOne, ofWorld))
	other := n.other.Attrs().Index
	in := n.toA(other, ip(f.world, f.a, 60, tr.begin(low)...)...)
	n.story(t,
		step{"let in", in, passed(seenNot)},
		step{"answer", n.fromA(ip(f.a, f.world, 64, tr.back(low)...)...), passed(seenNot)},
		step{"kept out", n.toA(other, ip(f.neighbour, f.a, 60, tr.begin(low)...)...), denied("policy_ingress")},
		step{"as another endpoint", n.toA(other, ip(f.b, f.a, 60, tr.begin(low)...)...), denied("martian")},
		step{"by the host", n.toA(0, ip(f.neighbour, f.a, 60, tr.begin(low)...)...), want{verdict: passOn, counters: []string{"host"}}},
		step{"to where nothing leads", n.fromA(ip(f.a, f.elsewhere, 64, tr.begin(inside)...)...), denied("policy_egress", "decided")},
	)
}

// testPolicyChange: what is known is decided anew by the next packet, in both directions.
func testPolicyChange(t *testing.T, n *node, f family, tr transport) {
	n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofA))
	ask, asked := n.between(n.a, n.b, f.a, f.b, tr.begin(low))
	more, mored := n.between(n.a, n.b, f.a, f.b, tr.there(low))
	answer, answered := n.between(n.b, n.a, f.b, f.a, tr.back(low))
	n.story(t,
		step{"let in", ask, deliveredAs(asked, "decided")},
		step{"answer", answer, deliveredAs(answered, "decided")},
	)
	must(t, n.ReconcilePolicy(n.policy().restrict(n.b, func(s *Subject) { s.Ingress = setOne + 1 }).allow(setOne+1, ofC)))
	n.story(t,
		step{"cut", more, denied("policy_ingress", "decided")},
		step{"answer cut", answer, denied("policy_ingress", "decided")},
	)
	must(t, n.ReconcilePolicy(n.policy().restrict(n.b, func(s *Subject) { s.Ingress = setOne + 2 }).allow(setOne+2, ofA)))
	n.story(t,
		step{"opened", more, deliveredAs(mored, "decided")},
		step{"answer", answer, deliveredAs(answered, "decided")},
	)
	must(t, n.ReconcilePolicy(Policy{}))
	n.story(t, step{"no policy", more, deliveredAs(mored, "decided")})
}

// testPolicyFromBefore: flows from before the first policy go on if it lets them, whichever
// end speaks first.
func testPolicyFromBefore(t *testing.T, n *node, f family, tr transport) {
	for _, first := range []string{"client", "server"} {
		n.forget(t)
		ask, asked := n.between(n.a, n.b, f.a, f.b, tr.begin(low))
		more, mored := n.between(n.a, n.b, f.a, f.b, tr.there(low))
		answer, answered := n.between(n.b, n.a, f.b, f.a, tr.back(low))
		out := n.from(n.c, ip(f.c, f.world, 64, tr.begin(inside)...)...)
		back := n.fromWorld(ip(f.world, f.c, 58, tr.back(inside)...)...)
		backed := delivered(n.c, ip(f.world, f.c, 57, tr.back(inside)...)...)
		n.story(t,
			step{"asked", ask, deliveredAs(asked, "decided")},
			step{"answer", answer, deliveredAs(answered, "decided")},
			step{"to the world", out, forwarded(sent(n.c, ip(f.c, f.world, 63, tr.begin(inside)...)...), "decided")},
			step{"back", back, deliveredAs(backed, "decided")},
		)
		both := func(s *Subject) { s.Egress, s.Ingress = setOne, setOne+1 }
		must(t, n.ReconcilePolicy(n.policy().restrict(n.a, both).restrict(n.c, both).allow(setOne, ofB).allow(setOne, ofWorld)))
		t.Cleanup(func() { must(t, n.ReconcilePolicy(Policy{})) })
		steps := []step{
			{"more", more, deliveredAs(mored, "decided")},
			{"answer goes on", answer, deliveredAs(answered, "decided")},
			{"from the world", back, deliveredAs(backed, "decided")},
			{
				"more to the world", n.from(n.c, ip(f.c, f.world, 64, tr.there(inside)...)...),
				forwarded(sent(n.c, ip(f.c, f.world, 63, tr.there(inside)...)...), "decided"),
			},
		}
		if first == "server" {
			steps[0], steps[1] = steps[1], steps[0]
		}
		n.story(t, steps...)
		must(t, n.ReconcilePolicy(Policy{}))
	}
}

func testNetworks(t *testing.T, n *node, f family, tr transport) {
	n.enforce(t, n.policy().restrict(n.a, func(s *Subject) { s.NoOthers = true }))
	fromC, _ := n.between(n.c, n.a, f.c, f.a, tr.begin(low))
	fromB, arrives := n.between(n.b, n.a, f.b, f.a, tr.begin(low))
	toC, called := n.between(n.a, n.c, f.a, f.c, tr.begin(low))
	n.story(t,
		step{"of another", fromC, denied("network_isolation", "decided")},
		step{"of its own", fromB, deliveredAs(arrives, "decided")},
		step{"to another", toC, deliveredAs(called, "decided")},
	)
	n.enforce(t, n.policy().restrict(n.a, func(s *Subject) { s.NoOwn = true }))
	n.story(t, step{"of its own, shut", fromB, denied("network_isolation", "decided")})
}

// testPolicyPorts: of several ranges, over more than one value of the map.
func testPolicyPorts(t *testing.T, n *node, f family) {
	var ranges []PolicyRange
	for i := range uint16(9) {
		ranges = append(ranges, PolicyRange{First: 1000 + 10*i, Last: 1001 + 10*i, Protocol: unix.IPPROTO_TCP, Rule: ruleOne})
	}
	ranges = append(ranges, PolicyRange{First: 5000, Last: 6000, Protocol: unix.IPPROTO_UDP, Rule: ruleTwo})
	n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofA, ranges...).
		allow(setOne, 0, PolicyRange{First: 53, Last: 53, Protocol: unix.IPPROTO_UDP, Rule: ruleTwo}))
	for _, one := range []struct {
		name   string
		from   Endpoint
		src    netip.Addr
		inner  []packet.Layer
		passes bool
	}{
		{"first", n.a, f.a, tcp(low, 1000, packet.SYN), true},
		{"below", n.a, f.a, tcp(low, 999, packet.SYN), false},
		{"above", n.a, f.a, tcp(low, 1002, packet.SYN), false},
		{"last of the ninth", n.a, f.a, tcp(low, 1081, packet.SYN), true},
		{"after the ninth", n.a, f.a, tcp(low, 1082, packet.SYN), false},
		{"UDP, first", n.a, f.a, udp(low, 5000), true},
		{"UDP, last", n.a, f.a, udp(low, 6000), true},
		{"UDP, above", n.a, f.a, udp(low, 6001), false},
		{"TCP to a port of UDP", n.a, f.a, tcp(low, 5000, packet.SYN), false},
		{"UDP to a port of TCP", n.a, f.a, udp(low, 1000), false},
		{"rule for everybody", n.c, f.c, udp(low, 53), true},
		{"rule for everybody, and more", n.a, f.a, udp(low, 53), true},
		{"not for everybody", n.c, f.c, udp(low, 5000), false},
		{"no ports", n.a, f.a, []packet.Layer{packet.Echo(7, 1), packet.Payload(8)}, false},
	} {
		in, out := n.between(one.from, n.b, one.src, f.b, one.inner)
		w := denied("policy_ingress", "decided")
		if one.passes {
			w = deliveredAs(out, "decided")
		}
		n.table(t, step{one.name, in, w})
	}
}

// testPolicyFragments: a later fragment needs the first, where policy needs its ports.
func testPolicyFragments(t *testing.T, n *node, f family) {
	whole := ip(f.a, f.b, 64, packet.UDP(low, server), packet.Payload(1300))
	n.enforce(t, n.policy().restrict(n.b, ingress).
		allow(setOne, ofA, PolicyRange{First: server, Last: server, Protocol: unix.IPPROTO_UDP, Rule: ruleOne}))
	frames := pieces(sent(n.a, whole...), 1)
	arrive := pieces(delivered(n.b, ip(f.a, f.b, 63, packet.UDP(low, server), packet.Payload(1300))...), 1)
	in := func(i int) run { return run{program: fromContainer, device: n.a.IfIndex, in: frames[i]} }
	counted := func() PolicyHits {
		t.Helper()
		hits, err := n.PolicyHits()
		must(t, err)
		return hits
	}
	before := counted()
	n.story(t, step{"later before the first", in(1), denied("fragment", "decided")})
	if diff := gocmp.Diff(before, counted()); diff != "" {
		t.Errorf("hits of a fragment that begins nothing (-before +after):\n%s", diff)
	}
	n.story(t,
		step{"first", in(0), deliveredAs(arrive[0], "decided")},
		step{"later", in(1), deliveredAs(arrive[1])},
		step{"last", in(2), deliveredAs(arrive[2])},
	)
	n.enforce(t, n.policy().restrict(n.b, func(s *Subject) { s.Ingress = setOne + 1 }).allow(setOne+1, ofA))
	n.story(t, step{"no port needed", in(1), deliveredAs(arrive[1], "decided")})
	n.enforce(t, n.policy().restrict(n.b, func(s *Subject) { s.Ingress = setOne + 2 }).
		allow(setOne+2, ofA, PolicyRange{First: 81, Last: 81, Protocol: unix.IPPROTO_UDP, Rule: ruleOne}))
	n.story(t,
		step{"first to a wrong port", in(0), denied("policy_ingress", "decided")},
		step{"later to a wrong port", in(1), denied("policy_ingress")},
	)
}

// testPolicyErrors: an ICMP error passes with the flow that it speaks of, and not without.
func testPolicyErrors(t *testing.T, n *node, f family) {
	ask, asked := n.between(n.a, n.b, f.a, f.b, udp(low, server))
	quoted := delivered(n.b, ip(f.a, f.b, 63, udp(low, server)...)...)
	refused, refuses := n.between(n.b, n.a, f.b, f.a, []packet.Layer{packet.Unreachable(packet.PortUnreachable), packet.Quote(quoted)})
	about, _ := n.between(n.c, n.a, f.c, f.a, []packet.Layer{
		packet.Unreachable(packet.PortUnreachable),
		packet.Quote(delivered(n.c, ip(f.a, f.c, 63, udp(low, server)...)...)),
	})
	another, _ := n.between(n.c, n.a, f.c, f.a, []packet.Layer{packet.Unreachable(packet.PortUnreachable), packet.Quote(quoted)})
	both := func(s *Subject) { s.Egress, s.Ingress = setOne, setOne+1 }
	n.enforce(t, n.policy().restrict(n.a, both).restrict(n.b, both).
		allow(setOne, ofB).allow(setOne+1, ofA, PolicyRange{First: server, Last: server, Protocol: unix.IPPROTO_UDP, Rule: ruleOne}))
	n.story(t,
		step{"of what was not sent", refused, denied("policy_egress", "decided")},
		step{"asked", ask, deliveredAs(asked, "decided")},
		step{"of what was sent", refused, deliveredAs(refuses, "decided")},
		step{"of what was sent to nobody", about, denied("policy_ingress", "decided")},
		step{"of what was sent to another", another, denied("policy_ingress", "decided")},
	)
	n.forget(t)
	out := n.fromA(ip(f.a, f.world, 64, udp(inside, server)...)...)
	router := n.fromWorld(ip(f.router, f.host, 60, packet.TTLExceeded(), packet.Quote(sent(n.a, ip(f.host, f.world, 1, udp(inside, server)...)...)))...)
	must(t, n.ReconcilePolicy(n.policy().restrict(n.a, both).allow(setOne, ofWorld)))
	n.story(t,
		step{"unasked", router, untouched()},
		step{"to the world", out, forwarded(sent(n.a, ip(f.host, f.world, 63, udp(inside, server)...)...), "decided")},
		step{
			"of a router", router,
			deliveredAs(delivered(n.a, ip(f.router, f.a, 59, packet.TTLExceeded(),
				packet.Quote(sent(n.a, ip(f.a, f.world, 1, udp(inside, server)...)...)))...), "decided"),
		},
	)
}

// testPolicyConnection: a connection's end is followed, and the other end does not begin
// by its ports.
func testPolicyConnection(t *testing.T, n *node, f family) {
	both := func(s *Subject) { s.Egress, s.Ingress = setOne, setOne+1 }
	n.enforce(t, n.policy().restrict(n.a, both).allow(setOne, ofB))
	there := func(name string, counters []string, options ...packet.TCPOption) step {
		in, out := n.between(n.a, n.b, f.a, f.b, tcp(low, server, options...))
		return step{name, in, deliveredAs(out, counters...)}
	}
	back := func(name string, counters []string, options ...packet.TCPOption) step {
		in, out := n.between(n.b, n.a, f.b, f.a, tcp(server, low, options...))
		return step{name, in, deliveredAs(out, counters...)}
	}
	decided := []string{"decided"}
	call, _ := n.between(n.b, n.a, f.b, f.a, tcp(server, low, packet.SYN))
	n.story(t,
		there("SYN", decided, packet.SYN),
		back("SYN ACK", decided, packet.SYN, packet.ACK),
		there("ACK", decided, packet.ACK),
		back("data", decided, packet.ACK),
		back("more", nil, packet.ACK),
		there("acknowledged", nil, packet.ACK),
	)
	n.wantHits(t, PolicyHits{Rules: map[uint64]uint64{ruleOne: 1}})
	n.story(t,
		step{"the other way round", call, denied("policy_ingress", "decided")},
	)
	n.wantTracked(t, tracked1{f.a, f.b, maps.TranslationEstablished})
	n.story(t,
		back("answer goes on", decided, packet.ACK),
		there("FIN", nil, packet.FIN, packet.ACK),
		back("FIN too", nil, packet.FIN, packet.ACK),
		there("last ACK", nil, packet.ACK),
	)
	n.wantTracked(t, tracked1{f.a, f.b, maps.TranslationClosed})
	n.story(t, there("SYN again", decided, packet.SYN))
	n.wantTracked(t, tracked1{f.a, f.b, maps.TranslationOpening})
	n.story(t, back("RST", decided, packet.RST, packet.ACK))
	n.wantTracked(t, tracked1{f.a, f.b, maps.TranslationClosed})
}

// testPolicyStranger: either end may have begun what is met in its middle, so both must be
// allowed to.
func testPolicyStranger(t *testing.T, n *node, f family) {
	both := func(s *Subject) { s.Egress, s.Ingress = setOne, setOne+1 }
	n.enforce(t, n.policy().restrict(n.a, both).allow(setOne, ofB))
	there, arrives := n.between(n.a, n.b, f.a, f.b, tcp(low, server, packet.ACK))
	back, _ := n.between(n.b, n.a, f.b, f.a, tcp(server, low, packet.ACK))
	n.story(t,
		step{"of who may begin", there, denied("policy_ingress", "decided")},
		step{"of who may not", back, denied("policy_ingress", "decided")},
	)
	n.wantTracked(t)
	n.enforce(t, n.policy().restrict(n.a, both).allow(setOne, ofB).allow(setOne+1, ofB))
	n.story(t, step{"either may", there, deliveredAs(arrives, "decided")})
	n.wantTracked(t, tracked1{f.a, f.b, maps.TranslationOpening})
}

// testPolicyHost: between a container and its host everything passes.
func testPolicyHost(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.a, func(s *Subject) { s.Egress, s.Ingress, s.NoOthers, s.NoOwn = setOne, setOne, true, true }))
	n.story(t,
		step{"from the host", n.toA(0, ip(f.host, f.a, 64, udp(low, server)...)...), want{verdict: passOn, counters: []string{"host"}}},
		step{"to the host", n.fromA(ip(f.a, f.host, 64, udp(low, server)...)...), passed(seenNot, "decided")},
		step{"to a group", n.fromA(ip(f.a, f.multicast, 64, udp(low, server)...)...), passed(seenNot, "decided")},
	)
}

// testPolicyByAddress: an endpoint whose addresses are of different identities.
func testPolicyByAddress(t *testing.T, n *node, f family) {
	p := n.policy().restrict(n.a, func(s *Subject) { s.ByAddress, s.Identity = true, 0 }).restrict(n.b, ingress).allow(setOne, ofWorld)
	for _, one := range []family{v4(), v6()} {
		p.Identities[netip.PrefixFrom(one.a, one.a.BitLen())] = ofA
	}
	p.Identities[netip.PrefixFrom(f.a, f.a.BitLen())] = ofWorld
	n.enforce(t, p)
	bothFamilies(t, func(t *testing.T, other family) {
		in, out := n.between(n.a, n.b, other.a, other.b, udp(low, server))
		w := denied("policy_ingress", "decided")
		if other.a == f.a {
			w = deliveredAs(out, "decided")
		}
		n.check(t, in, w)
	})
}

// testPolicyUnreadable: what the stack forwards to an endpoint with a policy must be readable,
// and talk on links is no way round.
func testPolicyUnreadable(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.a, ingress))
	other := n.other.Attrs().Index
	broken := n.toA(other, ip(f.world, f.a, 60, packet.UDP(low, server), packet.Payload(10))...)
	broken.in = broken.in[:len(broken.in)-12]
	free := broken
	free.device = n.b.IfIndex
	n.table(t,
		step{"cut", broken, drops("invalid")},
		step{"cut, to one without a policy", free, passed(seenNot)},
	)
	if !f.v6() {
		return
	}
	solicitation := func(src, dst netip.Addr) []packet.Layer {
		return ip(src, dst, 60, packet.NeighborSolicit(dst))
	}
	n.table(t,
		step{"solicitation to another", n.from(n.b, solicitation(f.b, f.a)...), passed(seenNot, "decided")},
		step{"as the stack would forward it", n.toA(n.b.IfIndex, solicitation(f.b, f.a)...), denied("policy_ingress")},
	)
}

// testUnknownSubject: where policy is asked, an endpoint that it does not know is shut.
func testUnknownSubject(t *testing.T, n *node, f family) {
	p := n.policy()
	delete(p.Subjects, n.b.ID)
	n.enforce(t, p)
	to, _ := n.between(n.a, n.b, f.a, f.b, udp(low, server))
	from, _ := n.between(n.b, n.a, f.b, f.a, udp(low, server))
	n.story(t,
		step{"to it", to, denied("policy_ingress", "decided")},
		step{"from it", from, denied("policy_egress", "decided")},
	)
}

// testPolicyBounds: an endpoint's tracked flows count as its translations do.
func testPolicyBounds(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofA))
	for i := range uint16(5) {
		in, out := n.between(n.a, n.b, f.a, f.b, udp(low+i, server))
		n.check(t, in, deliveredAs(out, "decided"))
	}
	var held uint32
	must(t, n.maps.Held.Lookup(uint32(n.a.ID), &held))
	if held != 5 {
		t.Errorf("a holds %d translations, want 5", held)
	}
	n.elapse(t, 301)
	if _, err := n.Reclaim(); err != nil {
		t.Fatal(err)
	}
	must(t, n.maps.Held.Lookup(uint32(n.a.ID), &held))
	if held != 0 {
		t.Errorf("a holds %d translations after they are dead, want none", held)
	}
	n.wantTracked(t)
}

// TestReconcilePolicy: the maps hold what the policy needs and nothing else, whatever it
// was before, and a policy that does not fit changes nothing.
func TestReconcilePolicy(t *testing.T) {
	n := newNode(t, Config{Masquerade: true})
	entries := func() map[string]uint64 {
		t.Helper()
		usages, err := n.Maps()
		must(t, err)
		sizes := make(map[string]uint64)
		for _, u := range usages {
			switch u.Name {
			case "subjects", "identities", "policies", "hits":
				sizes[u.Name] = u.Entries
			}
		}
		return sizes
	}
	check := func(name string, want map[string]uint64) {
		t.Helper()
		if diff := gocmp.Diff(want, entries()); diff != "" {
			t.Errorf("%s: entries (-want +got):\n%s", name, diff)
		}
	}
	check("nothing", map[string]uint64{"subjects": 0, "identities": 0, "policies": 0, "hits": 0})
	first := n.policy().restrict(n.b, ingress).allow(setOne, ofA)
	must(t, n.ReconcilePolicy(first))
	check("first", map[string]uint64{"subjects": 3, "identities": 1, "policies": 1, "hits": 0})

	grown := n.policy().restrict(n.b, ingress).allow(setOne, ofA).allow(setOne+1, ofB)
	grown.Subjects[7] = Subject{Identity: 7, Ingress: setOne + 1}
	must(t, n.ReconcilePolicy(grown))
	check("grown", map[string]uint64{"subjects": 4, "identities": 1, "policies": 2, "hits": 0})
	must(t, n.ReconcilePolicy(first))
	// What nobody needs any more goes with the next generation, and subjects when no packet can ask for them.
	check("shrunk", map[string]uint64{"subjects": 4, "identities": 1, "policies": 2, "hits": 0})
	must(t, n.Purge([]uint16{7}))
	check("purged", map[string]uint64{"subjects": 3, "identities": 1, "policies": 2, "hits": 0})

	big := n.policy()
	for i := range PolicyPairRanges + 1 {
		big.allow(setOne+2, ofC, PolicyRange{First: uint16(2 * i), Last: uint16(2 * i), Protocol: 6, Rule: ruleTwo})
	}
	if err := n.ReconcilePolicy(big); err == nil {
		t.Error("a policy that does not fit was taken")
	}
	check("refused", map[string]uint64{"subjects": 3, "identities": 1, "policies": 2, "hits": 0})
	must(t, n.comparePolicy())

	must(t, n.maps.Subjects.Delete(maps.SubjectKey{Generation: n.generation(), Endpoint: uint32(n.a.ID)}))
	if n.comparePolicy() == nil {
		t.Error("a subject that was removed is not missed")
	}
	must(t, n.RepairPolicy())
	must(t, n.comparePolicy())
	check("repaired", map[string]uint64{"subjects": 3, "identities": 1, "policies": 1, "hits": 0})

	// What another version, or a crash, has left.
	must(t, n.maps.Subjects.Put(maps.SubjectKey{Generation: 4711, Endpoint: 3}, maps.Subject{}))
	must(t, n.maps.Policies.Put(maps.PolicyKey{Generation: 4711, Set: 4711}, maps.Policy{}))
	nobody, err := newIdentityTree(nil)
	must(t, err)
	left, err := n.writeIdentities(4711, nobody)
	must(t, err)
	must(t, left.Close())
	must(t, n.maps.Hits.Put(uint64(1<<63|4711), maps.Hit{Flows: 1}))
	n.Datapath.policy = writtenPolicy{}
	must(t, n.ReconcilePolicy(first))
	check("after a restart", map[string]uint64{"subjects": 3, "identities": 1, "policies": 1, "hits": 0})
	must(t, n.ReconcilePolicy(Policy{}))
	check("none", map[string]uint64{"subjects": 0, "identities": 0, "policies": 0, "hits": 0})
}
