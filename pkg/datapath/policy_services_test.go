// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"

	"github.com/tendril-net/tendril/internal/packet"
)

// testPolicyServices: what others translate is judged where its destination is known.
func testPolicyServices(t *testing.T, n *node, f family) {
	service := netip.PrefixFrom(f.neighbour, f.neighbour.BitLen())
	n.services(t, service)
	n.enforce(t, n.policy().restrict(n.b, both).allow(setOne, ofA))
	n.story(t,
		step{"to a service", n.from(n.b, ip(f.b, f.neighbour, 64, udp(low, server)...)...), passed(seenLed, "decided")},
		step{"which is a", n.toA(n.b.IfIndex, ip(f.b, f.a, 63, udp(low, server)...)...), passed(seenNot)},
		step{"answer of a", n.fromA(ip(f.a, f.b, 64, udp(server, low)...)...), passed(seenNot)},
		step{
			"as the service's",
			run{program: toContainer, device: n.b.IfIndex, ingress: n.a.IfIndex, in: delivered(n.b, ip(f.neighbour, f.b, 62, udp(server, low)...)...)},
			passed(seenNot),
		},
	)
	n.enforce(t, n.policy().restrict(n.b, both).allow(setOne, ofC))
	n.story(t,
		step{"to a service again", n.from(n.b, ip(f.b, f.neighbour, 64, udp(low, server)...)...), passed(seenLed, "decided")},
		step{"which may not be a", n.toA(n.b.IfIndex, ip(f.b, f.a, 63, udp(low, server)...)...), denied("policy_egress")},
		step{
			"nor the world", n.toWorld(seenNot, ip(f.b, f.world, 63, udp(low, server)...)...),
			denied("policy_egress"),
		},
		step{
			"that nobody has translated", n.toWorld(seenNot, ip(f.b, f.neighbour, 63, udp(low, server)...)...),
			denied("policy_egress"),
		},
	)
	// An endpoint is one, whatever range its address lies in.
	n.services(t, service, netip.PrefixFrom(f.a, f.a.BitLen()))
	n.story(t, step{"endpoint among the services", n.toA(n.b.IfIndex, ip(f.b, f.a, 63, udp(inside, server)...)...), denied("policy_egress")})
	// Nobody may begin to c, but what it was led to may answer.
	n.enforce(t, n.policy().restrict(n.c, both).allow(setOne, ofWorld))
	answer := n.fromWorld(ip(f.world, f.c, 60, udp(server, low)...)...)
	n.story(t,
		step{"of c, straight", n.from(n.c, ip(f.c, f.world, 64, udp(low, server)...)...), forwarded(sent(n.c, ip(f.c, f.world, 63, udp(low, server)...)...), "decided")},
		step{"answer, straight", answer, deliveredAs(delivered(n.c, ip(f.world, f.c, 59, udp(server, low)...)...), "decided")},
		step{"of c, to a service", n.from(n.c, ip(f.c, f.neighbour, 64, udp(low, server)...)...), passed(seenLed, "decided")},
		step{"which is the world", n.toWorld(seenLed, ip(f.c, f.world, 63, udp(low, server)...)...), untouched()},
		step{"answer of the world", answer, passed(seenNot, "decided")},
		step{"answer of another", n.fromWorld(ip(f.neighbour, f.c, 60, udp(server, inside)...)...), denied("policy_ingress")},
	)
	// Of what is masqueraded there, the translation knows that a began.
	n.enforce(t, n.policy().restrict(n.a, both).allow(setOne, ofWorld))
	syn, ack := tcp(inside, server, packet.SYN), tcp(inside, server, packet.ACK)
	n.story(t,
		step{"of a, to a service", n.fromA(ip(f.a, f.neighbour, 64, syn...)...), passed(seenLed, "decided")},
		step{"which is the world", n.toWorld(seenLed, ip(f.a, f.world, 63, syn...)...), leaves(n.left(ip(f.host, f.world, 63, syn...)...))},
		step{"and after an answer", n.fromA(ip(f.a, f.neighbour, 64, ack...)...), passed(seenLed, "decided")},
		step{"to the world", n.toWorld(seenLed, ip(f.a, f.world, 63, ack...)...), leaves(n.left(ip(f.host, f.world, 63, ack...)...))},
	)
}
