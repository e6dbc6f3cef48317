// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

func testToContainer(t *testing.T, n *node) {
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range transports() {
			t.Run(tr.name, func(t *testing.T) {
				t.Run("from host", func(t *testing.T) { n.forget(t); testFromHost(t, n, f, tr) })
				t.Run("forwarded", func(t *testing.T) { n.forget(t); testForwarded(t, n, f, tr) })
				t.Run("decided before", func(t *testing.T) { n.forget(t); testDecidedBefore(t, n, f, tr) })
				t.Run("of a masqueraded flow", func(t *testing.T) { n.forget(t); testOwnFlow(t, n, f, tr) })
			})
		}
		t.Run("local service", func(t *testing.T) { n.forget(t); testLocalService(t, n, f) })
		t.Run("nothing to remember", func(t *testing.T) { testNothingToRemember(t, n, f) })
		t.Run("forwarded groups", func(t *testing.T) { testForwardedGroups(t, n, f) })
	})
}

// toA is a packet that the stack sends to a, forwarded from a device or, with 0,
// of the host's own.
func (n *node) toA(ingress int, layers ...packet.Layer) run {
	return run{program: toContainer, device: n.a.IfIndex, ingress: ingress, in: delivered(n.a, layers...)}
}

func testFromHost(t *testing.T, n *node, f family, tr transport) {
	n.story(t,
		step{"request", n.toA(0, ip(f.host, f.a, 64, tr.there(low)...)...), want{verdict: passOn, counters: []string{"host"}, seen: seenNot}},
		step{"answer", n.fromA(ip(f.a, f.host, 64, tr.back(low)...)...), passed(seenNot, "decided")},
	)
	n.wantTranslations(t)
}

// testForwarded: what the stack forwards may have been translated by others, so
// the answer goes back through it.
func testForwarded(t *testing.T, n *node, f family, tr transport) {
	n.story(t,
		step{"request", n.toA(n.other.Attrs().Index, ip(f.world, f.a, 60, tr.there(low)...)...), passed(seenNot)},
		step{"answer", n.fromA(ip(f.a, f.world, 64, tr.back(low)...)...), passed(seenNot)},
		step{"answer, in the stack's hands", n.toWorld(seenNot, ip(f.a, f.world, 63, tr.back(low)...)...), untouched()},
	)
	n.wantTranslations(t)
	n.elapse(t, 10+1)
	n.story(t,
		step{"answer later", n.fromA(ip(f.a, f.world, 64, tr.back(low)...)...), passed(seenNot, "decided")},
		step{"answer then", n.fromA(ip(f.a, f.world, 64, tr.back(low)...)...), passed(seenNot)},
	)
	must(t, n.Invalidate())
	n.story(t,
		step{"answer in a new epoch", n.fromA(ip(f.a, f.world, 64, tr.back(low)...)...), passed(seenNot, "decided")},
		step{"request again", n.toA(n.other.Attrs().Index, ip(f.world, f.a, 60, tr.there(low)...)...), passed(seenNot)},
	)
	n.wantTranslations(t)
}

// testDecidedBefore: what the datapath left to the stack is not the stack's own.
func testDecidedBefore(t *testing.T, n *node, f family, tr transport) {
	in := n.toA(n.uplink.IfIndex, ip(f.world, f.a, 60, tr.there(low)...)...)
	in.seen = seenDecided
	n.story(t, step{"request", in, passed(seenDecided)})
	n.wantFlows(t)
}

// testOwnFlow: the answer to what the endpoint began does not make it a reply.
func testOwnFlow(t *testing.T, n *node, f family, tr transport) {
	n.open(t, f, tr, inside)
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	n.story(t,
		step{"answer by way of the stack", n.toA(n.uplink.IfIndex, ip(f.world, f.a, 57, tr.back(inside)...)...), passed(seenNot)},
		step{
			"sent", n.fromA(ip(f.a, f.world, 64, tr.there(inside)...)...),
			forwarded(sent(n.a, ip(f.host, f.world, 63, tr.there(inside)...)...), "decided"),
		},
	)
}

// testLocalService: b reached a through an address that others translate (a
// service, a node port), so the answer must not go straight to b, who does not
// know a's address, also when the decision is old.
func testLocalService(t *testing.T, n *node, f family) {
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			n.forget(t)
			answer := n.fromA(ip(f.a, f.b, 64, tr.back(low)...)...)
			n.story(t,
				step{"request", n.toA(n.b.IfIndex, ip(f.b, f.a, 63, tr.there(low)...)...), passed(seenNot)},
				step{"answer", answer, passed(seenNot)},
			)
			n.elapse(t, 10+1)
			n.story(t, step{"answer later", answer, passed(seenNot, "decided")})
		})
	}
}

func testNothingToRemember(t *testing.T, n *node, f family) {
	for _, s := range []step{
		{"unknown address", n.toA(n.other.Attrs().Index, ip(f.world, f.unknown, 60, udp(low, server)...)...), passed(seenNot)},
		{"ICMP error", n.toA(n.other.Attrs().Index, ip(f.router, f.a, 60, packet.TTLExceeded(),
			packet.Quote(sent(n.a, ip(f.a, f.world, 1, udp(low, server)...)...)))...), passed(seenNot)},
		{"another protocol", n.toA(n.other.Attrs().Index, packet.Payload(50)), passed(seenNot)},
	} {
		t.Run(s.name, func(t *testing.T) {
			n.forget(t)
			n.check(t, s.run, s.want)
			n.wantFlows(t)
		})
	}
}

// testForwardedGroups: who may not speak to all, or be spoken to, has no part in what the stack forwards
// to groups.
func testForwardedGroups(t *testing.T, n *node, f family) {
	message := ip(f.b, f.multicast, 8, udp(low, server)...)
	ofB, ofWorld := n.toA(n.b.IfIndex, message...), n.toA(n.uplink.IfIndex, ip(f.world, f.multicast, 8, udp(low, server)...)...)
	membership := n.toA(n.uplink.IfIndex, igmp(v4().world, v4().multicast)...)
	n.table(t, step{"no policy", ofB, passed(seenNot)})
	n.enforce(t, n.policy().restrict(n.b, egress).allow(setOne, 0))
	n.table(t,
		step{"sender that may not", ofB, denied("policy_egress")},
		step{"another", ofWorld, passed(seenNot)},
		step{"at the sender's port", n.from(n.b, message...), passed(seenNot, "decided")},
	)
	n.enforce(t, n.policy().restrict(n.a, ingress).allow(setOne, 0))
	n.table(t,
		step{"receiver that may not", ofB, denied("policy_ingress")},
		step{"of the world", ofWorld, denied("policy_ingress")},
		step{"group membership that is forwarded", membership, denied("policy_ingress")},
		step{"of the host", n.toA(0, ip(f.host, f.multicast, 8, udp(low, server)...)...), want{verdict: passOn, counters: []string{"host"}}},
	)
}
