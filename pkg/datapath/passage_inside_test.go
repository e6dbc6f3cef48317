// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/tendril-net/tendril/internal/packet"
)

// insidePassages are those of a child whose parent is in the container, which is alone with the link: by its own
// programs, which lead to those of parents.
func insidePassages(n *insider, f family) []passage {
	own := f.child(7)
	out, in := parentPassages(n.parent, f)[1], parentPassages(n.parent, f)[3]
	out.name, out.came, out.went = "child to link", pair{own, f.unknown}, pair{own, f.unknown}
	out.in = func(layers ...packet.Layer) run { return n.out(stationMAC(), layers...) }
	out.back = n.in
	in.name, in.came, in.went = "link to child", pair{f.unknown, own}, pair{f.unknown, own}
	in.in, in.back = n.in, out.in
	return []passage{out, in}
}

// policedInsidePassages are those of which a policy has a say.
func policedInsidePassages(n *insider, f family) []passage {
	out, in := insidePassages(n, f)[0], insidePassages(n, f)[1]
	known := policies(func() Policy {
		policy := n.policy()
		policy.Subjects[n.e.ID] = Subject{Identity: ofX, Network: 3}
		policy.Identities[netip.PrefixFrom(f.unknown, f.unknown.BitLen())] = ofWorld
		return policy
	})
	refused, lacking := shut(toContainer, "decided", "policy_ingress"), shut(toContainer, "decided", "fragment")
	tagged := as(shut(toContainer, "policy_ingress"))
	in.others.senseless, in.others.tagged, in.others.inTag = as(shut(toContainer, "invalid")), tagged, tagged
	in.others.toMartian, in.others.toGroup, in.others.toAll = &refused, &refused, &refused
	answerIn := in
	answerIn.name, answerIn.answers = "answer of the link", true
	out.others.inTag = as(shut(fromContainer, "policy_egress"))
	answerOut := out
	answerOut.name, answerOut.answers = "answer of a child to the link", true
	unsent, outLacking := shut(fromContainer, "decided", "policy_egress"), shut(fromContainer, "decided", "fragment")
	return []passage{
		out.kept(known.restrict(n.e, egress), shut(fromContainer, "policy_egress"), outLacking),
		in.kept(known.restrict(n.e, ingress), shut(toContainer, "policy_ingress"), lacking),
		out.letIn(known.allow(n.e, egress, ofWorld), unsent, outLacking),
		answerOut.letIn(known.allow(n.e, egress, ofC), unsent, outLacking),
		in.letIn(known.allow(n.e, ingress, ofWorld), refused, lacking),
		answerIn.letIn(known.allow(n.e, ingress, ofC), refused, lacking),
	}
}

func testInsidePassages(t *testing.T, n *insider, f family) {
	testPassages(t, slices.Concat(insidePassages(n, f), policedInsidePassages(n, f)))
}
