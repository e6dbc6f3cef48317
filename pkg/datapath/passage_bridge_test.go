// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"slices"
	"testing"

	"github.com/tendril-net/tendril/internal/packet"
)

// ofPort are the ends of what a port of a bridge sends to another station that its program knows better than to
// carry.
func ofPort() ends {
	e := ofContainer()
	left := as(passed(seenOwn, "decided"))
	e.lastHop, e.lastHopKnown = nil, nil // no hop on a link
	e.inTag, e.toGroup, e.toAll = as(passed(seenOwn)), left, left
	return e
}

// bridgePassages are those between the ports of a bridge, and to and from its other stations.
func bridgePassages(n *node, f family) []passage {
	toStation := func(e Endpoint, to Endpoint) func(...packet.Layer) run {
		return func(layers ...packet.Layer) run { return n.onBridge(e, to.MAC, layers...) }
	}
	station := Endpoint{MAC: stationMAC()}
	byStation := func(layers ...packet.Layer) run { return n.byBridge(n.b, layers...) }
	straight := passage{
		name: "port to port", node: n, family: f, came: pair{f.a, f.b}, went: pair{f.a, f.b},
		in: toStation(n.a, n.b), back: toStation(n.b, n.a), good: across(), decided: []string{"decided"}, others: ofPort(),
	}
	straight.others.tooBig = as(want{verdict: passOn, counters: []string{"too_big"}, seen: seenOwn})
	out := passage{
		name: "port to station", node: n, family: f, came: pair{f.a, f.unknown}, went: pair{f.a, f.unknown},
		in: toStation(n.a, station), back: func(layers ...packet.Layer) run { return n.byBridge(n.a, layers...) },
		good: passed(seenOwn), decided: []string{"decided"}, others: ofPort(),
	}
	out.others.tooBig = nil
	return []passage{straight, out, {
		name: "station to port", node: n, family: f, came: pair{f.unknown, f.b}, went: pair{f.unknown, f.b},
		in: byStation, back: toStation(n.b, station), good: passed(seenNot), others: ends{senseless: as(passed(seenNot))},
	}}
}

// policedBridgePassages are those of which a policy has a say.
func policedBridgePassages(n *node, f family) []passage {
	all := bridgePassages(n, f)
	straight, out, in := all[0], all[1], all[2]
	answer, answerOut, answerIn := straight, out, in
	answer.name, answer.answers = "answer of a port", true
	answerOut.name, answerOut.answers = "answer to a station", true
	answerIn.name, answerIn.answers = "answer of a station", true
	restrict, allow := policies(n.policy).restrict, policies(n.policy).allow
	refused, lacking := drops("policy_ingress"), drops("fragment")
	for _, w := range []*passage{&in, &answerIn} {
		w.others = ends{senseless: as(drops("invalid")), inTag: &refused, toMartian: &refused, toGroup: &refused, toAll: &refused}
	}
	answerIn.others.ofMartian, answerIn.others.ofGroup, answerIn.others.ofNobody = &refused, &refused, &refused
	unsent := as(drops("decided", "policy_egress"))
	out.others.inTag, out.others.toGroup, out.others.toAll = as(drops("policy_egress")), unsent, unsent
	unasked, outLacking := drops("decided", "policy_ingress"), drops("decided", "fragment")
	return []passage{
		straight.kept(restrict(n.b, ingress), refused, outLacking),
		out.kept(restrict(n.a, egress), drops("policy_egress"), outLacking),
		in.kept(restrict(n.b, ingress), refused, lacking),
		straight.letIn(allow(n.b, ingress, ofA), unasked, outLacking),
		answer.letIn(allow(n.b, ingress, ofC), unasked, outLacking),
		answerIn.letIn(allow(n.b, ingress, ofC), refused, lacking),
	}
}

// gatewayPassages are those of ports by the node, to which their frames are: the ways of routed endpoints.
func gatewayPassages(n *node, f family) []passage {
	all := slices.Concat(translatedPassages(n, f)[:2], plainPassages(n, f)[:3])
	own := as(passed(seenOwn))
	for _, i := range []int{0, 2, 3} { // of those that begin at a port: what is left to the stack bears the port's mark
		all[i].others.inTag = own
	}
	all[3].good, all[3].others.lastHopKnown = *own, own
	for i := range all {
		all[i].name += ", of ports"
	}
	return all
}

func testBridgePassages(t *testing.T, n *node, f family) {
	testPassages(t, slices.Concat(bridgePassages(n, f), policedBridgePassages(n, f), gatewayPassages(n, f)))
}

// stationPassages are those of an endpoint that is to its link what a VM behind a tap is: of what it sends there, of what
// it sends to the node, and of what it gets; vlan is the tag of its frames, 0 for none. A policy knows of it that it is
// there, and not what it says.
func stationPassages(n *node, f family, e Endpoint, vlan uint32) []passage {
	out := passage{
		name: "station to station", node: n, family: f, came: pair{f.unknown, f.neighbour}, went: pair{f.unknown, f.neighbour},
		in:   func(layers ...packet.Layer) run { return n.onBridge(e, stationMAC(), layers...).tagged(vlan) },
		good: passed(seenNot), others: ends{senseless: as(drops("invalid")), tagged: as(drops("vlan")), toMartian: as(drops("martian"))},
	}
	if vlan != 0 { // a second tag might count where the bridge takes the first away
		out.others.inTag = out.others.tagged
	}
	toNode := out
	toNode.name, toNode.came, toNode.went = "station to node", pair{f.unknown, f.world}, pair{f.unknown, f.world}
	toNode.in = func(layers ...packet.Layer) run { return n.from(e, layers...).tagged(vlan) }
	in := passage{
		name: "station of the link to it", node: n, family: f, came: pair{f.neighbour, f.unknown}, went: pair{f.neighbour, f.unknown},
		in:   func(layers ...packet.Layer) run { return n.byBridge(e, layers...).tagged(vlan) },
		good: passed(seenNot), others: ends{senseless: as(passed(seenNot))},
	}
	allow := policies(n.policy).allow
	shutOut, shutIn := out, in
	shutOut.others.toMartian = nil
	shutIn.others = ends{senseless: as(drops("invalid"))}
	unsent, refused := drops("policy_egress"), drops("policy_ingress")
	return []passage{out, toNode, in, shutOut.kept(allow(e, egress, 0), unsent, unsent), shutIn.kept(allow(e, ingress, 0), refused, refused)}
}
