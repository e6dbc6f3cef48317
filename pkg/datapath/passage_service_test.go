// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"github.com/tendril-net/tendril/internal/packet"
)

// servicePassages are those of c, which is not masqueraded, to the service f.neighbour of others, who lead it to
// f.world, and of what answers it.
func servicePassages(n *node, f family) []passage {
	toService := passage{
		name: "container to service", node: n, family: f, came: pair{f.c, f.neighbour}, went: pair{f.c, f.neighbour},
		in:   func(layers ...packet.Layer) run { return n.from(n.c, layers...) },
		good: passed(seenLed), decided: []string{"decided"}, asks: always, others: ofContainer(),
	}
	toService.others.tooBig = nil
	led := passage{
		name: "service to world", node: n, family: f, came: pair{f.c, f.world}, went: pair{f.c, f.world},
		in:   func(layers ...packet.Layer) run { return n.toWorld(seenLed, layers...).forwardedBy(n.c) },
		good: untouched(), others: ofWire(),
	}
	straight := plainPassages(n, f)[2]
	straight.came.dst, straight.went.dst = f.c, f.c
	straight.out = func(layers ...packet.Layer) []byte { return delivered(n.c, layers...) }
	answer := straight
	answer.name, answer.answers, answer.out, answer.hops, answer.strange = "answer of service", true, nil, 0, &straight
	answer.good, answer.open, answer.back = passed(seenNot), talked, led.in
	answer.others.lastHop, answer.others.lastHopKnown, answer.others.tooBig = nil, nil, nil
	return []passage{toService, led, answer}
}
