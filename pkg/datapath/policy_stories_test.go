// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// TestPolicyStories has what the packet fuzzer has found.
func TestPolicyStories(t *testing.T) {
	nstest.Halve(t, 1)
	n := newNode(t, Config{Masquerade: true})
	eachFamily(t, func(t *testing.T, f family) {
		t.Run("SYN after a denied answer", func(t *testing.T) { testPolicyDeniedAnswer(t, n, f) })
		for _, tr := range transports() {
			t.Run(tr.name+" answer, masqueraded after an eviction", func(t *testing.T) { testPolicyAnswerEvicted(t, n, f, tr) })
		}
		if !f.v6() {
			t.Run("protocol 0", func(t *testing.T) { testPolicyProtocolZero(t, n, f) })
		}
	})
}

// testPolicyDeniedAnswer: that an answer is denied says nothing of a connection that the same
// end begins, by the same ports.
func testPolicyDeniedAnswer(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofA))
	ask, asked := n.between(n.a, n.b, f.a, f.b, tcp(low, server, packet.SYN))
	answer, _ := n.between(n.b, n.a, f.b, f.a, tcp(server, low, packet.ACK))
	begin, begun := n.between(n.b, n.a, f.b, f.a, tcp(server, low, packet.SYN))
	n.story(t, step{"asked", ask, deliveredAs(asked, "decided")})
	must(t, n.ReconcilePolicy(n.policy().restrict(n.b, func(s *Subject) { s.Ingress = setOne + 1 })))
	n.story(t,
		step{"answer after a change", answer, denied("policy_ingress", "decided")},
		step{"the other end begins", begin, deliveredAs(begun, "decided")},
	)
}

// testPolicyAnswerEvicted: a's answer to what the world began at a's own address is not
// masqueraded, as long as the flow is tracked.
func testPolicyAnswerEvicted(t *testing.T, n *node, f family, tr transport) {
	n.enforce(t, n.policy().restrict(n.a, ingress).allow(setOne, ofWorld))
	n.story(t, step{
		"let in", n.fromWorld(ip(f.world, f.a, 58, tr.begin(low)...)...),
		deliveredAs(delivered(n.a, ip(f.world, f.a, 57, tr.begin(low)...)...), "decided"),
	})
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	n.story(t, step{
		"answer", n.fromA(ip(f.a, f.world, 64, tr.back(low)...)...),
		forwarded(sent(n.a, ip(f.a, f.world, 63, tr.back(low)...)...), "decided"),
	})
}

// testPolicyProtocolZero: what policy lets through passes, whatever its protocol.
func testPolicyProtocolZero(t *testing.T, n *node, f family) {
	n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofA))
	ask, asked := n.between(n.a, n.b, f.a, f.b, nil)
	for _, frame := range [][]byte{ask.in, asked} {
		s := see(frame, false)
		frame[s.network+9] = 0
		s.repair()
	}
	n.check(t, ask, deliveredAs(asked, "decided"))
}
