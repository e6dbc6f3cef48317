// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"slices"
	"testing"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// hiddenAs has an endpoint begin a connection, of which no decision is left, and returns the port of the host that
// stands for its own.
func (n *node) hiddenAs(t *testing.T, ask run, tr transport) (outside uint16) {
	t.Helper()
	if got := n.run(t, ask); got.verdict != redirect {
		t.Fatalf("verdict %d, %v: %s", got.verdict, got.counts, packet.Summary(ask.in))
	}
	all := n.translations(t)
	if len(all) != 1 {
		t.Fatalf("%s: translations %v, want one", tr.name, all)
	}
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	return all[0].outside.Port()
}

// ofUplinkPort are the ends of what a port of a bridge that is an uplink sends to the node. What is left to the stack
// has the port's mark, and the bit that the bridge's own program takes away.
func ofUplinkPort() ends {
	e := ofContainer()
	left := as(ownedBy(seenDecided, "decided"))
	// Of groups and of what is sent to all the bridge has a copy, too.
	e.lastHop, e.toGroup, e.toAll = left, left, left
	e.lastHopKnown, e.inTag = as(ownedBy(seenDecided)), as(ownedBy(seenOwn))
	big := tooBig(nil)
	big.mark = ownMark
	e.tooBig = &big
	return e
}

// uplinkPassages are those of ports of a bridge that is the uplink: among each other, to and from the world by its
// router and by the node, and to and from a, which is elsewhere.
func uplinkPassages(n *node, f family) []passage {
	byRouter := func(layers ...packet.Layer) run { return n.onBridge(n.b, routerMAC(), layers...) }
	byNode := func(layers ...packet.Layer) run { return n.from(n.b, layers...) }
	byWire := func(layers ...packet.Layer) run { return n.byBridge(n.b, layers...) }
	onLink := bridgePassages(n, f)
	straight, out, in := onLink[0], onLink[1], onLink[2]
	straight.came, straight.went = pair{f.b, f.c}, pair{f.b, f.c}
	straight.in = func(layers ...packet.Layer) run { return n.onBridge(n.b, n.c.MAC, layers...) }
	straight.back = func(layers ...packet.Layer) run { return n.onBridge(n.c, n.b.MAC, layers...) }
	out.name, out.came, out.went, out.in, out.back = "port to world", pair{f.b, f.world}, pair{f.b, f.world}, byRouter, byWire
	in.name, in.came, in.went, in.back = "world to port", pair{f.world, f.b}, pair{f.world, f.b}, byRouter

	routed := translatedPassages(n, f)
	masked, answer, stack := routed[0], routed[1], routed[2]
	masked.name, masked.came, masked.in, masked.others = "port to world, by the node", pair{f.b, f.world}, byNode, ofUplinkPort()
	masked.others.early, masked.others.unasked = routed[0].others.early, routed[0].others.unasked
	masked.out = func(layers ...packet.Layer) []byte { return sent(n.b, layers...) }
	masked.open = func(t *testing.T, _ passage, tr transport, port uint16) (came, went uint16) {
		return port, n.hiddenAs(t, byNode(ip(f.b, f.world, 64, tr.begin(port)...)...), tr)
	}
	answer.name, answer.went = "answer of the world, to a port", pair{f.world, f.b}
	answer.out = func(layers ...packet.Layer) []byte { return delivered(n.b, layers...) }
	answer.open = func(t *testing.T, _ passage, tr transport, port uint16) (came, went uint16) {
		return n.hiddenAs(t, byNode(ip(f.b, f.world, 64, tr.begin(port)...)...), tr), port
	}
	stack.name, stack.came, stack.open = "stack to world, for a port", masked.came, masked.open
	stack.in = func(layers ...packet.Layer) run {
		r := n.toWorld(seenOwn, layers...)
		r.ingress = n.uplink.IfIndex
		return r
	}
	all := []passage{straight, out, in, masked, answer, stack}
	for i := range all {
		all[i].name += ", on an uplink"
	}
	return append(all, elsewherePassages(n, f)...)
}

// elsewherePassages are those between a port of a bridge that is the uplink and who is elsewhere on the node.
func elsewherePassages(n *node, f family) []passage {
	toB := func(t *testing.T, tr transport, port uint16) uint16 {
		return n.hiddenAs(t, n.fromA(ip(f.a, f.b, 64, tr.begin(port)...)...), tr)
	}
	routed := translatedPassages(n, f)
	there, back := routed[0], routed[1]
	there.name, there.came.dst, there.went.dst = "elsewhere to port", f.b, f.b
	there.open = func(t *testing.T, _ passage, tr transport, port uint16) (came, went uint16) {
		return port, toB(t, tr, port)
	}
	hidden := passage{
		name: "elsewhere to port, at its port", node: n, family: f, came: pair{f.host, f.b}, went: pair{f.host, f.b},
		in: func(layers ...packet.Layer) run {
			return run{program: toContainer, device: n.b.IfIndex, in: delivered(n.b, layers...), seen: seenTranslated, ingress: n.a.IfIndex}
		},
		good: passed(seenTranslated), others: ends{senseless: as(passed(seenTranslated))},
	}
	back.name, back.came, back.went = "answer of a port, at the bridge", pair{f.b, f.host}, pair{f.b, f.a}
	back.in = func(layers ...packet.Layer) run { return n.given(n.b, seenOwn, layers...) }
	back.good, back.speakers = seenAs(deliveredAs(nil)), nil
	back.stays = func(layers ...packet.Layer) []byte { return frame(n.b.MAC, n.uplink.MAC, layers...) }
	back.open = func(t *testing.T, _ passage, tr transport, port uint16) (came, went uint16) {
		return toB(t, tr, port), port
	}
	// For a VLAN device, which has its own program.
	forVLAN := as(want{verdict: passOn, seen: seenAsBefore, mark: ownMark})
	back.others.tagged = forVLAN
	left := passage{
		name: "port to elsewhere, by the stack", node: n, family: f, came: pair{f.b, f.a}, went: pair{f.b, f.a},
		in:   func(layers ...packet.Layer) run { return n.given(n.b, seenDecided, layers...) },
		good: untouched(), others: ofWire(),
	}
	left.others.tagged = forVLAN
	answers := passage{
		name: "answer of a port", node: n, family: f, came: pair{f.b, f.host}, went: pair{f.b, f.host}, answers: true,
		in: func(layers ...packet.Layer) run { return n.from(n.b, layers...) }, good: ownedBy(seenOwn), decided: []string{"decided"},
		others: ofUplinkPort(),
	}
	answers.others.lastHopKnown, answers.others.tooBig = &answers.good, nil
	begins := plainPassages(n, f)[0]
	begins.name, begins.came, begins.went = "port to elsewhere", pair{f.b, f.a}, pair{f.b, f.a}
	begins.in, begins.others = answers.in, ofUplinkPort()
	begins.out = func(layers ...packet.Layer) []byte { return delivered(n.a, layers...) }
	begins.back = n.fromA
	answered := begins
	answered.name, answered.answers, answered.came, answered.went = "elsewhere's answer to a port", true, pair{f.a, f.b}, pair{f.a, f.b}
	answered.in, answered.good, answered.others = n.fromA, forwarded(nil), ofContainer()
	answered.out = func(layers ...packet.Layer) []byte { return sent(n.a, layers...) }
	answered.back, answered.open = begins.in, asked
	// What cannot be told for an answer begins, and would be hidden.
	answered.others.early, answered.others.unasked = routed[0].others.early, routed[0].others.unasked
	return []passage{there, hidden, back, answers, begins, answered, left}
}

// asked has the other end of a passage of answers ask.
func asked(t *testing.T, w passage, tr transport, port uint16) (came, went uint16) {
	t.Helper()
	if got := w.run(t, w.back(w.went.swapped().ip(64, tr.begin(port)...)...)); got.verdict == dropped {
		t.Errorf("dropped, %v: %s", got.counts, packet.Summary(got.in))
	}
	return port, port
}

// uplinkPortPassages are those of a mapped port that leads to a port of a bridge that is the uplink. b sends its answers
// to the world to the router, past the node, or to the node.
func uplinkPortPassages(n *node, f family) []passage {
	all := portPassages(n, f)
	in, byNode := all[0], all[1]
	byRouter := byNode
	byRouter.in = func(layers ...packet.Layer) run { return n.onBridge(n.b, routerMAC(), layers...) }
	byRouter.out = func(layers ...packet.Layer) []byte { return frame(n.b.MAC, routerMAC(), layers...) }
	in.name, in.back = "world to mapped port, on an uplink", byRouter.in
	byNode.name, byNode.others = "answer of mapped port, on an uplink, by the node", ofUplinkPort()
	byNode.others.early, byNode.others.unasked = all[1].others.early, all[1].others.unasked
	// What fits, and is no answer that can be told, is the router's, with b's own address.
	own := as(passed(seenOwn, "decided"))
	turned := as(ownedBy(seenOwn, "decided"))
	byRouter.name, byRouter.others = "answer of mapped port, on an uplink", ofPort()
	byRouter.others.early, byRouter.others.earlyAgain, byRouter.others.unasked = own, as(passed(seenOwn)), own
	byRouter.others.lastHop, byRouter.others.lastHopKnown, byRouter.others.tooBig = turned, turned, turned
	byRouter.turned = func(frame []byte) []byte { return slices.Concat(n.b.HostMAC, frame[6:]) }
	return []passage{in, byRouter, byNode}
}

// policedUplinkPassages are those of which a policy has a say. Who comes by the bridge is of the world.
func policedUplinkPassages(n *node, f family) []passage {
	all, elsewhere := uplinkPassages(n, f), elsewherePassages(n, f)
	straight, out, in, masked := all[0], all[1], all[2], all[3]
	there, atPort := elsewhere[0], elsewhere[1]
	restrict, allow := policies(n.policy).restrict, policies(n.policy).allow
	refused, unsent := drops("policy_ingress"), drops("decided", "policy_egress")
	outLacking, inLacking := drops("decided", "fragment"), drops("fragment")
	in.others = ends{senseless: as(drops("invalid")), inTag: &refused, toMartian: &refused, toGroup: &refused, toAll: &refused}
	letIn := in
	letIn.others.ofMartian, letIn.others.ofGroup, letIn.others.ofNobody = &refused, &refused, &refused
	answerIn := letIn
	answerIn.name, answerIn.answers = "answer of the world to a port, on an uplink", true
	out.others.inTag, out.others.toGroup, out.others.toAll = as(drops("policy_egress")), &unsent, &unsent
	answer := out
	answer.name, answer.answers, answer.back = "answer of a port to the world, on an uplink", true, in.in
	left := passed(seenNot, "decided")
	there.others.lastHop, there.others.toGroup, there.others.toAll = &left, &left, &left
	masked.others.lastHop = as(ownedBy(seenOwn, "decided"))
	masked.others.inTag, masked.others.toGroup, masked.others.toAll = out.others.inTag, &unsent, &unsent
	// What has been judged is believed, but for what is none of b's.
	atPort.others.inTag, atPort.others.toMartian, atPort.others.toGroup, atPort.others.toAll = &refused, &refused, &refused, &refused
	atPort.policy, atPort.name = allow(n.b, ingress, ofC), atPort.name+", judged before"
	return []passage{
		straight.kept(restrict(n.c, ingress), refused, outLacking),
		out.kept(restrict(n.b, egress), drops("policy_egress"), outLacking),
		in.kept(restrict(n.b, ingress), refused, inLacking),
		there.kept(restrict(n.b, ingress), refused, outLacking),
		straight.letIn(allow(n.c, ingress, ofB), drops("decided", "policy_ingress"), outLacking),
		answer.letIn(allow(n.b, egress, ofC), unsent, outLacking),
		letIn.letIn(allow(n.b, ingress, ofWorld), refused, inLacking),
		answerIn.letIn(allow(n.b, ingress, ofC), refused, inLacking),
		masked.letOut(allow(n.b, egress, ofWorld), unsent),
		there.letOut(allow(n.b, ingress, ofA), drops("decided", "policy_ingress")),
		atPort,
	}
}

func testUplinkPassages(t *testing.T, n *node, f family) {
	testPassages(t, slices.Concat(uplinkPassages(n, f), uplinkPortPassages(n, f), policedUplinkPassages(n, f)))
}
