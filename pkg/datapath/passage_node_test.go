// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// opened has a begin a connection to the world, of which no decision is known.
func opened(t *testing.T, w passage, tr transport, port uint16) (outside uint16) {
	t.Helper()
	outside = w.node.open(t, w.family, tr, port)
	clearMap[maps.FlowKey, maps.Flow](t, w.maps.Flows)
	return outside
}

// openedOut is for what a sends to the world, openedIn for what answers it.
func openedOut(t *testing.T, w passage, tr transport, port uint16) (came, went uint16) {
	return port, opened(t, w, tr, port)
}

func openedIn(t *testing.T, w passage, tr transport, port uint16) (came, went uint16) {
	return opened(t, w, tr, port), port
}

// ofContainer are the ends of what a container sends that the programs know better than to carry.
func ofContainer() ends {
	spoofed := as(drops("decided", "source_address"))
	left := as(passed(seenDecided, "decided"))
	return ends{
		senseless: as(drops("invalid")),
		lastHop:   left, lastHopKnown: as(passed(seenDecided)), tooBig: as(tooBig(nil)),
		tagged: as(drops("vlan")), inTag: as(passed(seenNot)),
		toMartian: as(drops("decided", "martian")), toGroup: left, toAll: left,
		ofMartian: spoofed, ofGroup: spoofed, ofNobody: spoofed,
	}
}

// ofWire are the ends of what comes by an uplink that are the stack's business.
func ofWire() ends {
	all := as(untouched())
	return ends{
		senseless: all, tagged: all, inTag: all, toMartian: all, toGroup: all, toAll: all,
		ofMartian: all, ofGroup: all, ofNobody: all,
	}
}

// translatedPassages are those on which an address of the node's takes the place of a's, or a's of it.
func translatedPassages(n *node, f family) []passage {
	out := passage{
		name: "container to world", node: n, family: f, came: pair{f.a, f.world}, went: pair{f.host, f.world}, open: openedOut,
		in: n.fromA, out: func(layers ...packet.Layer) []byte { return sent(n.a, layers...) },
		hops: 1, good: forwarded(nil), decided: []string{"decided"}, others: ofContainer(),
	}
	out.others.early, out.others.unasked = as(drops("decided", "fragment")), as(drops("decided", "no_translation"))
	in := passage{
		name: "answer of the world", node: n, family: f, came: pair{f.world, f.host}, went: pair{f.world, f.a}, answers: true, open: openedIn,
		in: n.fromWorld, out: func(layers ...packet.Layer) []byte { return delivered(n.a, layers...) }, stays: n.arrived,
		hops: 1, speakers: []netip.Addr{f.router}, good: deliveredAs(nil), decided: []string{"decided"}, others: ofWire(),
	}
	in.others.early, in.others.unasked = as(untouched()), as(untouched())
	in.others.lastHop, in.others.lastHopKnown, in.others.tooBig = as(drops("decided", "ttl")), as(drops("ttl")), as(tooBig(nil))
	stack := passage{
		name: "stack to world", node: n, family: f, came: pair{f.a, f.world}, went: pair{f.host, f.world}, open: openedOut,
		in:   func(layers ...packet.Layer) run { return n.toWorld(seenNot, layers...) },
		out:  n.left,
		good: leaves(nil), others: ofWire(),
	}
	stack.others.early, stack.others.unasked = as(drops("fragment")), as(drops("no_translation"))
	// Which no stack routes to the world; but it would not go unhidden.
	stack.others.toMartian, stack.others.toGroup, stack.others.toAll = nil, nil, nil
	return []passage{out, in, stack}
}

// plainPassages are those on which addresses stay.
func plainPassages(n *node, f family) []passage {
	between := passage{
		name: "container to container", node: n, family: f, came: pair{f.a, f.b}, went: pair{f.a, f.b},
		in: n.fromA, out: func(layers ...packet.Layer) []byte { return delivered(n.b, layers...) },
		hops: 1, good: deliveredAs(nil), decided: []string{"decided"}, others: ofContainer(),
	}
	toHost := passage{
		name: "container to host", node: n, family: f, came: pair{f.a, f.host}, went: pair{f.a, f.host},
		in: n.fromA, good: passed(seenNot), decided: []string{"decided"}, others: ofContainer(),
	}
	toHost.others.lastHopKnown, toHost.others.tooBig = as(passed(seenNot)), nil
	direct := passage{
		name: "world to container", node: n, family: f, came: pair{f.world, f.b}, went: pair{f.world, f.b},
		in: n.fromWorld, out: func(layers ...packet.Layer) []byte { return delivered(n.b, layers...) },
		hops: 1, speakers: []netip.Addr{f.router}, good: deliveredAs(nil), decided: []string{"decided"}, others: ofWire(),
	}
	martian := as(drops("martian"))
	direct.others.ofMartian, direct.others.ofGroup, direct.others.ofNobody = martian, martian, martian
	direct.others.lastHop, direct.others.lastHopKnown, direct.others.tooBig = as(passed(seenDecided, "decided")), as(passed(seenDecided)), as(tooBig(nil))
	ofHost := as(want{verdict: passOn, counters: []string{"host"}})
	return []passage{
		between, toHost, direct, {
			name: "world to host", node: n, family: f, came: pair{f.world, f.host}, went: pair{f.world, f.host},
			in: n.fromWorld, good: untouched(), others: ofWire(),
		}, {
			name: "stack to container", node: n, family: f, came: pair{f.world, f.a}, went: pair{f.world, f.a},
			in:       func(layers ...packet.Layer) run { return n.toA(n.other.Attrs().Index, layers...) },
			speakers: []netip.Addr{f.router}, good: passed(seenNot), others: ends{senseless: as(passed(seenNot))},
		}, {
			name: "host to container", node: n, family: f, came: pair{f.host, f.a}, went: pair{f.host, f.a},
			in:   func(layers ...packet.Layer) run { return n.toA(0, layers...) },
			good: *ofHost, others: ends{senseless: ofHost},
		}, {
			name: "host to world", node: n, family: f, came: pair{f.host, f.world}, went: pair{f.host, f.world},
			in:   func(layers ...packet.Layer) run { return n.toWorld(seenNot, layers...) },
			good: untouched(), others: ofWire(),
		},
	}
}

// policedPassages are those of which a policy has a say.
func policedPassages(n *node, f family) []passage {
	translated := translatedPassages(n, f)
	out, direct := translated[0], plainPassages(n, f)[2]
	between, byStack := plainPassages(n, f)[0], plainPassages(n, f)[4]
	between.others, out.others = ofPoliced(), ofPoliced()
	between.back = func(layers ...packet.Layer) run { return n.from(n.b, layers...) }
	direct.back = between.back
	byStack.back = n.fromA
	answer := between
	answer.name, answer.answers = "answer of a container", true
	byStack.others.senseless, byStack.others.inTag = as(drops("invalid")), as(passed(seenNot))
	leaving := passage{
		name: "stack to world", node: n, family: f, came: pair{f.a, f.world},
		in:     func(layers ...packet.Layer) run { return n.toWorld(seenNot, layers...) },
		others: ofWire(),
	}
	leaving.others.toMartian, leaving.others.toGroup, leaving.others.toAll = nil, nil, nil
	restrict, allow := policies(n.policy).restrict, policies(n.policy).allow
	masked, maskedLate := out, translated[2]
	masked.others.early = translated[0].others.early
	unsent := drops("policy_egress")
	maskedLate.others.toMartian, maskedLate.others.toGroup, maskedLate.others.toAll = &unsent, &unsent, &unsent
	ask := allow(n.a, egress, ofWorld)
	refused := drops("policy_ingress")
	routed := direct // where a policy is asked before all else
	routed.decided, routed.others.lastHop = nil, nil
	byStack.others.toMartian = as(passed(seenNot)) // which no stack does
	fromOther := byStack
	fromOther.others.toGroup, fromOther.others.toAll = &refused, &refused
	fromOther.others.ofMartian, fromOther.others.ofGroup, fromOther.others.ofNobody = &refused, &refused, &refused
	return []passage{
		between.kept(restrict(n.b, ingress), refused, drops("decided", "fragment")),
		out.kept(restrict(n.a, egress), drops("policy_egress"), drops("decided", "fragment")),
		routed.kept(restrict(n.b, ingress), refused, drops("fragment")),
		byStack.kept(restrict(n.a, ingress), refused, drops("fragment")),
		leaving.kept(restrict(n.a, egress), drops("policy_egress"), drops("fragment")),
		between.letIn(allow(n.b, ingress, ofA), drops("decided", "policy_ingress"), drops("decided", "fragment")),
		answer.letIn(allow(n.b, ingress, ofC), drops("decided", "policy_ingress"), drops("decided", "fragment")),
		direct.letIn(allow(n.b, ingress, ofWorld), refused, drops("fragment")),
		fromOther.letIn(allow(n.a, ingress, ofWorld), refused, drops("fragment")),
		masked.letOut(ask, drops("decided", "policy_egress")), maskedLate.letOut(ask, unsent),
		translated[1].letOut(ask, untouched()),
	}
}

// letOut is a translated passage under a policy that lets services be asked, and what they answer come. Errors about
// nothing of that end so.
func (w passage) letOut(policy func() Policy, unasked want) passage {
	w.name += ", let out by policy"
	w.policy, w.carries = policy, hasPorts
	w.others.unasked = &unasked
	return w
}

// ofPoliced are as ofContainer, where there is a policy: what is left to the stack is judged, should that
// send it on.
func ofPoliced() ends {
	e := ofContainer()
	e.lastHop = as(passed(seenNot, "decided"))
	e.toGroup, e.toAll = e.lastHop, e.lastHop
	return e
}

// kept is a passage under a policy that lets nothing through. Its packets end so, and those that lack ports.
func (w passage) kept(policy func() Policy, end, lacking want) passage {
	w.name += ", kept by policy"
	w.policy, w.open, w.good = policy, nil, end
	w.went, w.out, w.hops, w.stays = w.came, nil, 0, nil
	w.others.early, w.others.unasked, w.others.tooBig, w.others.lastHopKnown = &lacking, nil, nil, nil
	if w.decided != nil {
		w.asks = inTheMiddle
	}
	return w
}

// letIn is a passage under a policy that lets services through, and what answers. Errors about nothing
// of that end so, and what lacks ports.
func (w passage) letIn(policy func() Policy, unasked, lacking want) passage {
	w.name += ", let in by policy"
	w.policy, w.open, w.carries = policy, talked, hasPorts
	w.others.early, w.others.unasked = &lacking, &unasked
	return w
}

// talked has both ends of a passage say something, of which no decision is left.
func talked(t *testing.T, w passage, tr transport, port uint16) (came, went uint16) {
	t.Helper()
	at := tr.at(cmp.Or(w.dialled.came, server))
	ask := func(inner []packet.Layer) run { return w.in(w.came.ip(64, inner...)...) }
	answer := func(inner []packet.Layer) run { return w.back(w.went.swapped().ip(64, inner...)...) }
	asked, told := at, tr.at(cmp.Or(w.dialled.went, server))
	if w.answers {
		ask, answer, asked, told = answer, ask, told, at
	}
	for _, r := range []run{ask(asked.begin(port)), answer(told.back(port)), ask(asked.there(port))} {
		if got := w.run(t, r); got.verdict == dropped {
			t.Errorf("dropped, %v: %s", got.counts, packet.Summary(r.in))
		}
	}
	clearMap[maps.FlowKey, maps.Flow](t, w.maps.Flows)
	return port, port
}

// services lets an identity reach the ports that transports name as their server's, and nothing else.
func (p Policy) services(identity uint32) Policy {
	for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP} {
		p = p.allow(setOne, identity, PolicyRange{First: server, Last: server, Protocol: protocol, Rule: ruleOne})
	}
	return p
}

func testNodePassages(t *testing.T, n *node) {
	eachFamily(t, func(t *testing.T, f family) {
		testPassages(t, slices.Concat(translatedPassages(n, f), plainPassages(n, f), policedPassages(n, f)))
	})
}

// portPassages are those of what the world sends to a port of the host that leads to b, and of what b answers.
func portPassages(n *node, f family) []passage {
	in := translatedPassages(n, f)[1]
	in.name, in.came, in.went = "world to mapped port", pair{f.world, f.host}, pair{f.world, f.b}
	in.answers, in.dialled.came, in.carries, in.open = false, hostPort, isMapped, talked
	in.back = func(layers ...packet.Layer) run { return n.from(n.b, layers...) }
	in.out = func(layers ...packet.Layer) []byte { return delivered(n.b, layers...) }
	out := translatedPassages(n, f)[0]
	out.name, out.came, out.went = "answer of mapped port", pair{f.b, f.world}, pair{f.host, f.world}
	out.answers, out.dialled.went, out.carries, out.open = true, hostPort, isMapped, talked
	out.in, out.back = in.back, n.fromWorld
	out.out = func(layers ...packet.Layer) []byte { return sent(n.b, layers...) }
	return []passage{in, out}
}
