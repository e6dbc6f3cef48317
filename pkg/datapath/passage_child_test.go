// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/tendril-net/tendril/internal/packet"
)

// ofChild are the ends of what a child sends that its parent's program knows better than to carry.
func ofChild() ends {
	martian, spoofed := as(shut(fromContainer, "decided", "martian")), as(shut(fromContainer, "decided", "source_address"))
	tag := as(shut(fromContainer, "vlan"))
	return ends{
		senseless: as(shut(fromContainer, "invalid")), tagged: tag, inTag: tag,
		toMartian: martian, toGroup: martian, toAll: martian, ofMartian: spoofed, ofGroup: spoofed, ofNobody: spoofed,
	}
}

// parentPassages are those by the programs of a parent: out to siblings, wire and host, and in.
func parentPassages(p *parent, f family) []passage {
	x, y := f.child(1), f.child(2)
	fromX := func(to Endpoint) func(...packet.Layer) run {
		return func(layers ...packet.Layer) run { return p.out(p.x.MAC, to.MAC, layers...) }
	}
	martian := as(shut(toContainer, "decided", "martian"))
	known := as(intoChild("decided"))
	return []passage{
		{
			name: "child to child", node: p.node, family: f, came: pair{x, y}, went: pair{x, y},
			in: fromX(p.y), back: func(layers ...packet.Layer) run { return p.out(p.y.MAC, p.x.MAC, layers...) },
			good: toSibling(), decided: of(fromContainer, []string{"decided"}), others: ofChild(),
		}, {
			name: "child to wire", node: p.node, family: f, came: pair{x, f.world}, went: pair{x, f.world},
			in: fromX(Endpoint{MAC: routerMAC()}), back: func(layers ...packet.Layer) run { return p.in(routerMAC(), p.x.MAC, layers...) },
			good: toWire(), decided: of(fromContainer, []string{"decided"}), others: ofChild(),
		}, {
			name: "child to host", node: p.node, family: f, came: pair{x, f.host}, went: pair{x, f.host},
			in:   fromX(Endpoint{MAC: p.uplink.MAC}),
			good: toHost(), decided: of(fromContainer, []string{"decided"}), asks: always, others: ofChild(),
		}, {
			name: "wire to child", node: p.node, family: f, came: pair{f.world, x}, went: pair{f.world, x}, speakers: []netip.Addr{f.router},
			in: func(layers ...packet.Layer) run { return p.in(routerMAC(), p.x.MAC, layers...) }, back: fromX(Endpoint{MAC: routerMAC()}),
			good: intoChild(), decided: of(toContainer, []string{"decided"}),
			others: ends{
				senseless: as(intoChild()), tagged: as(intoChild()), inTag: as(intoChild()),
				toMartian: known, toGroup: known, toAll: known, ofMartian: martian, ofGroup: martian, ofNobody: martian,
			},
		}, {
			name: "stack to child", node: p.node, family: f, came: pair{f.elsewhere, x}, went: pair{f.elsewhere, x}, speakers: []netip.Addr{f.router},
			in:   func(layers ...packet.Layer) run { return p.by(p.other.Attrs().Index, p.uplink.MAC, p.x.MAC, layers...) },
			back: fromX(Endpoint{MAC: p.uplink.MAC}),
			good: ofHost("passed"), others: ends{senseless: as(ofHost("passed")), tagged: as(untouched())},
		}, {
			name: "host to child", node: p.node, family: f, came: pair{f.host, x}, went: pair{f.host, x},
			in:   func(layers ...packet.Layer) run { return p.out(p.uplink.MAC, p.x.MAC, layers...) },
			good: ofHost("host"), others: ends{senseless: as(ofHost("host")), tagged: as(untouched())},
		},
	}
}

// policedParentPassages are those of which a policy has a say.
func policedParentPassages(p *parent, f family) []passage {
	all := parentPassages(p, f)
	sibling, out, in, byStack := all[0], all[1], all[3], all[4]
	answer := sibling
	answer.name, answer.answers = "answer of a child", true
	answerOfWire := in
	answerOfWire.name, answerOfWire.answers = "answer of the wire", true
	restrict, allow := policies(p.subjects).restrict, policies(func() Policy {
		policy := p.subjects()
		policy.Identities[netip.PrefixFrom(f.elsewhere, f.elsewhere.BitLen())] = ofWorld
		return policy
	}).allow
	refused, lacking := shut(toContainer, "decided", "policy_ingress"), shut(toContainer, "decided", "fragment")
	keptOut := in
	keptOut.others.senseless = as(shut(toContainer, "invalid"))
	keptOut.others.tagged, keptOut.others.inTag = as(shut(toContainer, "policy_ingress")), as(shut(toContainer, "policy_ingress"))
	keptOut.others.toMartian, keptOut.others.toGroup, keptOut.others.toAll = &refused, &refused, &refused
	answerOfWire.others = keptOut.others
	unknown := shut(toContainer, "policy_ingress")
	byStack.others.senseless = &unknown
	letByStack := byStack
	letByStack.others = ends{
		senseless: &unknown, tagged: as(untouched()), inTag: &unknown, toMartian: &unknown, toGroup: &unknown, toAll: &unknown,
		ofMartian: &unknown, ofGroup: &unknown, ofNobody: &unknown,
	}
	out.others.inTag = as(shut(fromContainer, "policy_egress"))
	outUnasked, outLacking := shut(fromContainer, "decided", "policy_ingress"), shut(fromContainer, "decided", "fragment")
	return []passage{
		sibling.kept(restrict(p.y, ingress), shut(fromContainer, "policy_ingress"), outLacking),
		out.kept(restrict(p.x, egress), shut(fromContainer, "policy_egress"), outLacking),
		keptOut.kept(restrict(p.x, ingress), shut(toContainer, "policy_ingress"), lacking),
		byStack.kept(restrict(p.x, ingress), unknown, shut(toContainer, "fragment")),
		sibling.letIn(allow(p.y, ingress, ofX), outUnasked, outLacking),
		answer.letIn(allow(p.y, ingress, ofC), outUnasked, outLacking),
		keptOut.letIn(allow(p.x, ingress, ofWorld), refused, lacking),
		answerOfWire.letIn(allow(p.x, ingress, ofC), refused, lacking),
		letByStack.letIn(allow(p.x, ingress, ofWorld), unknown, shut(toContainer, "fragment")),
	}
}

// childPortPassages are those of what the world sends to a port of the host that leads to y, and of what y
// answers.
func childPortPassages(p *parent, f family) []passage {
	all := portPassages(p.node, f)
	in, out := all[0], all[1]
	in.went.dst = f.child(2)
	in.back = func(layers ...packet.Layer) run { return p.out(p.y.MAC, stationMAC(), layers...) }
	in.out = func(layers ...packet.Layer) []byte { return frame(p.uplink.MAC, p.y.MAC, layers...) }
	in.good = want{verdict: redirect, counters: []string{"delivered"}, mark: putBack}
	out.came.src, out.in = f.child(2), in.back
	out.out = func(layers ...packet.Layer) []byte { return frame(p.y.MAC, stationMAC(), layers...) }
	out.good, out.decided, out.others = byParent(nil), of(fromContainer, []string{"decided"}), ofChild()
	// A router of y's has what is no answer, with y's own address.
	out.others.early, out.others.earlyAgain, out.others.unasked = as(toWire("decided")), as(toWire()), as(toWire("decided"))
	out.others.lastHop, out.others.lastHopKnown = as(shut(fromContainer, "decided", "ttl")), as(shut(fromContainer, "ttl"))
	out.others.tooBig = as(shut(fromContainer, "no_uplink"))
	return []passage{in, out}
}

func testParentPassages(t *testing.T, p *parent, f family) {
	testPassages(t, slices.Concat(parentPassages(p, f), policedParentPassages(p, f)))
}
