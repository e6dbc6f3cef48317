// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"slices"
	"testing"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// localPortPassages are those of what a container sends to a port of the host that leads to b, and of what b answers:
// of a, and of b itself.
func localPortPassages(n *node, f family) []passage {
	fromB := func(layers ...packet.Layer) run { return n.from(n.b, layers...) }
	toB := func(layers ...packet.Layer) []byte { return delivered(n.b, layers...) }
	in := plainPassages(n, f)[0]
	in.name, in.came, in.went = "container to mapped port", pair{f.a, f.host}, pair{f.a, f.b}
	in.dialled.came, in.carries, in.open, in.back = hostPort, isMapped, talked, fromB
	in.others.lastHopKnown = as(drops("ttl"))
	// No size is asked of what the stack could say nothing of.
	in.others.tooBig = nil
	// What leads nowhere is the host's.
	nobodys := as(passed(seenNot, "decided"))
	in.others.early, in.others.earlyAgain, in.others.unasked = nobodys, as(passed(seenNot)), nobodys
	out := in
	out.name, out.came, out.went = "answer of mapped port to a container", pair{f.b, f.a}, pair{f.host, f.a}
	out.answers, out.dialled.came, out.dialled.went = true, 0, hostPort
	out.in, out.back = fromB, n.fromA
	out.out = func(layers ...packet.Layer) []byte { return delivered(n.a, layers...) }
	out.others = ofContainer()
	out.others.tooBig = nil
	// What is no answer goes straight, with b's own address.
	straight := out
	straight.went.src, out.strange = f.b, &straight

	own := in
	own.name, own.came, own.went = "container to mapped port of its own", pair{f.b, f.host}, pair{f.host, f.b}
	own.in, own.out, own.back, own.open = fromB, toB, nil, func(t *testing.T, _ passage, tr transport, port uint16) (came, went uint16) {
		return port, n.turnedAs(t, f, tr, port)
	}
	// What it says of its own answers nobody translates: the host has it.
	own.others.untold = nobodys
	ownBack := own
	ownBack.name, ownBack.answers, ownBack.dialled.came, ownBack.dialled.went = "answer of mapped port of its own", true, 0, hostPort
	ownBack.open = func(t *testing.T, _ passage, tr transport, port uint16) (came, went uint16) {
		return n.turnedAs(t, f, tr, port), port
	}
	ownBack.others.untold = nil
	return []passage{in, out, own, ownBack}
}

// policedLocalPortPassages are those of which a policy has a say: of b, which is asked, and of a, which asks.
func policedLocalPortPassages(n *node, f family) []passage {
	all := localPortPassages(n, f)
	for i := range all {
		left := ofPoliced()
		all[i].others.lastHop, all[i].others.toGroup, all[i].others.toAll = left.lastHop, left.toGroup, left.toAll
	}
	in, out, own, ownBack := all[0], all[1], all[2], all[3]
	restrict, allow := policies(n.policy).restrict, policies(n.policy).allow
	answer := out.letIn(allow(n.a, ingress, ofC), drops("decided", "policy_ingress"), drops("decided", "fragment"))
	answer.carries = isMapped
	free := func(w passage) passage {
		w.name, w.policy = w.name+", restricted by policy", restrict(n.b, func(s *Subject) { ingress(s); egress(s) })
		return w
	}
	return []passage{
		in.keptFromPort(restrict(n.b, ingress), drops("policy_ingress")),
		in.keptFromPort(restrict(n.a, egress), drops("policy_egress")),
		in.letToPort(allow(n.b, ingress, ofA)), in.letToPort(allow(n.a, egress, ofB)), answer,
		free(own), free(ownBack),
	}
}

// keptFromPort is kept, of a passage to a mapped port: what leads to none is the host's, of which no policy is.
func (w passage) keptFromPort(policy func() Policy, end want) passage {
	kept := w.kept(policy, end, *w.others.early)
	kept.others.unasked, kept.others.untold = w.others.unasked, w.others.unasked
	return kept
}

// letToPort is letIn, of a passage to a mapped port.
func (w passage) letToPort(policy func() Policy) passage {
	let := w.letIn(policy, *w.others.unasked, *w.others.early)
	let.carries = isMapped
	return let
}

// turnedAs has b dial a port that leads to itself, of which no decision is left, and returns the port of the host by
// which it sees itself.
func (n *node) turnedAs(t *testing.T, f family, tr transport, port uint16) (seen uint16) {
	t.Helper()
	at := tr.at(hostPort)
	if got := n.run(t, n.from(n.b, ip(f.b, f.host, 64, at.begin(port)...)...)); got.verdict != redirect {
		t.Fatalf("verdict %d, %v", got.verdict, got.counts)
	}
	must(t, each(n.maps.Translations, func(key maps.FlowKey, _ maps.Translation) bool {
		if key.SourcePort == maps.Port(server) {
			seen = maps.Port(key.DestinationPort)
		}
		return true
	}))
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	return seen
}

// bridgePortPassages are those of what a port of a bridge sends by the gateway to a port of the host that leads to
// another, and of what that answers, to the station that has asked; and of one that dials itself.
func bridgePortPassages(n *node, f family) []passage {
	all := localPortPassages(n, f)
	in, out, own, ownBack := all[0], all[1], all[2], all[3]
	in.name, in.back = "port to mapped port, by the gateway", func(layers ...packet.Layer) run { return n.onBridge(n.b, n.a.MAC, layers...) }
	nobodys := as(passed(seenOwn, "decided"))
	in.others.early, in.others.earlyAgain, in.others.unasked, in.others.inTag = nobodys, as(passed(seenOwn)), nobodys, as(passed(seenOwn))
	out.name, out.in, out.strange, out.others = "answer of mapped port to a port", in.back, nil, ofPort()
	straight, turned := as(across("decided")), as(passed(seenOwn, "decided"))
	out.others.early, out.others.earlyAgain, out.others.unasked = straight, as(across()), straight
	out.others.lastHop, out.others.lastHopKnown, out.others.tooBig = turned, turned, nil
	out.turned = func(frame []byte) []byte { return slices.Concat(n.b.HostMAC, frame[6:]) }
	own.name, own.others = "port to mapped port of its own", in.others
	own.others.untold = nobodys
	ownBack.name, ownBack.others = "answer of mapped port of its own, of a port", in.others
	return []passage{in, out, own, ownBack}
}

// localChildPortPassages are those of what others of the node send to a port of the host that leads to y: a, which is
// routed, and the sibling x; and of what y answers.
func localChildPortPassages(p *parent, f family) []passage {
	all, world := localPortPassages(p.node, f), childPortPassages(p, f)
	in, out := all[0], world[1]
	y := f.child(2)
	in.name, in.went.dst, in.out, in.good = "container to mapped port of a child", y, world[0].out, world[0].good
	in.back = func(layers ...packet.Layer) run { return p.out(p.y.MAC, stationMAC(), layers...) }
	out.name, out.came.dst, out.went.dst, out.back = "answer of mapped port of a child, to a container", f.a, f.a, p.fromA
	out.out = func(layers ...packet.Layer) []byte { return delivered(p.a, layers...) }
	ofSibling := in
	ofSibling.name, ofSibling.came.src, ofSibling.went.src = "child to mapped port of a sibling", f.child(1), f.child(1)
	ofSibling.in = func(layers ...packet.Layer) run { return backed(p.fromChild(layers...)) }
	ofSibling.back = func(layers ...packet.Layer) run { return p.out(p.y.MAC, p.x.MAC, layers...) }
	ofSibling.stays = func(layers ...packet.Layer) []byte { return frame(p.x.MAC, p.uplink.MAC, layers...) }
	ofSibling.asks = always
	// The program of the parent takes its mark from what it leaves to the stack.
	stacks, big, over := as(want{verdict: passOn, seen: seenAsBefore, mark: putBack}), tooBig(nil, "decided"), as(drops("decided", "ttl"))
	big.mark = putBack
	ofSibling.others = ends{
		senseless: stacks, early: stacks, unasked: stacks, lastHop: over, lastHopKnown: over, tooBig: &big, tagged: stacks, inTag: stacks,
		toMartian: stacks, toGroup: stacks, toAll: stacks, ofMartian: stacks, ofGroup: stacks, ofNobody: stacks,
	}
	answer := out
	answer.name, answer.came.dst, answer.went.dst = "answer of mapped port of a child, to a sibling", f.child(1), f.child(1)
	answer.in, answer.back = ofSibling.back, ofSibling.in
	answer.out = func(layers ...packet.Layer) []byte { return frame(p.uplink.MAC, p.x.MAC, layers...) }
	straight := as(toSibling("decided"))
	answer.others.early, answer.others.earlyAgain, answer.others.unasked = straight, as(toSibling()), straight
	answer.good = want{verdict: redirect, counters: of(fromContainer, []string{"delivered"}), mark: putBack}
	return []passage{in, out, ofSibling, answer}
}

// policedChildPortPassages are those of which a policy has a say: of y, which is asked, and of who asks. What a sibling
// asks is judged when it comes by the uplink.
func policedChildPortPassages(p *parent, f family) []passage {
	all := localChildPortPassages(p, f)
	in, ofSibling := all[0], all[2]
	left := ofPoliced()
	in.others.lastHop, in.others.toGroup, in.others.toAll = left.lastHop, left.toGroup, left.toAll
	restrict, allow := policies(p.subjects).restrict, policies(p.subjects).allow
	keptSibling := func(policy func() Policy, reason string) passage {
		w := ofSibling.keptFromPort(policy, shut(fromUplink, reason))
		w.decided, w.asks, w.others.lastHop = nil, nil, nil
		return w
	}
	return []passage{
		in.keptFromPort(restrict(p.y, ingress), drops("policy_ingress")),
		in.keptFromPort(restrict(p.a, egress), drops("policy_egress")),
		keptSibling(restrict(p.y, ingress), "policy_ingress"),
		keptSibling(restrict(p.x, egress), "policy_egress"),
		in.letToPort(allow(p.y, ingress, ofA)), in.letToPort(allow(p.a, egress, ofX+1)),
		ofSibling.letToPort(allow(p.y, ingress, ofX)), ofSibling.letToPort(allow(p.x, egress, ofX+1)),
	}
}
