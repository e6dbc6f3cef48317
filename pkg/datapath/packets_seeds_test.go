// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"slices"
	"strings"
)

// writer writes stories about one family.
type writer struct {
	bases   []base
	version byte
}

func (w writer) op(kind, mutations int) byte { return byte(kind) | w.version<<4 | byte(mutations)<<5 }

// packet is a step with a base and the bytes of one mutation, or none.
func (w writer) packet(index int, mutation ...byte) []byte {
	step := binary.BigEndian.AppendUint16([]byte{w.op(stepBase, min(1, len(mutation)))}, uint16(index))
	return append(step, mutation...)
}

// named is packet for a base by its name.
func (w writer) named(name string, mutation ...byte) []byte {
	index := slices.IndexFunc(w.bases, func(b base) bool { return b.name == name })
	if index < 0 {
		panic("no base is named " + name)
	}
	return w.packet(index, mutation...)
}

// number is a mutation's, by its place in mutations.
const (
	numberFragment = 12
	numberChecksum = 13
)

// seeds tell each kind of packet twice, each mutation, and the stories that few
// mutations of others would make.
func (s *teller) seeds() (all [][]byte) {
	for version, bases := range s.all {
		w := writer{bases: bases, version: byte(version)}
		for i := 0; i < len(bases); i += 4 {
			var story []byte
			for j := i; j < min(i+4, len(bases)); j++ {
				story = append(append(story, w.packet(j)...), w.op(stepAgain, 0))
			}
			all = append(all, story)
		}
		for i, b := range bases {
			if strings.HasSuffix(b.name, " begins") {
				all = append(all, w.lives(i)...)
			}
		}
		for _, tr := range bulky() {
			all = append(all, w.fragments(tr.name)...)
		}
		for number := range byte(len(s.firewalls)) {
			for _, tr := range transports() {
				all = append(all, w.policed(number, tr.name)...)
			}
		}
	}
	return all
}

// lives are stories of a flow that begins with a base.
func (w writer) lives(begin int) (all [][]byte) {
	first := w.packet(begin)
	for how := range byte(8) {
		all = append(all, slices.Concat(first, []byte{
			w.op(stepAnswer, 0), how, w.op(stepError, 0), how, w.op(stepElapse, 0), how, w.op(stepAgain, 0),
			w.op(stepEndpoint, 0), how, w.op(stepUplink, 0), how, w.op(stepEpoch, 0), how,
		}))
	}
	for m := range byte(len(mutations())) {
		all = append(all, slices.Concat(w.packet(begin, m, m, 1, m), []byte{w.op(stepRelay, 0), 0}))
	}
	// Checksums at the edges of their arithmetic, right or wrong, and addresses of all kinds.
	for i, edge := range edges() {
		high, low := byte(edge>>8), byte(edge)
		for which := range byte(2) {
			all = append(all, w.packet(begin, numberChecksum, which, high, low))
		}
		for _, other := range []byte{0x0f, 0xf0, 0xff} {
			all = append(all, slices.Concat([]byte{w.op(stepUplink, 0), 3, high ^ other, low ^ byte(37*i)}, first,
				[]byte{w.op(stepError, 0), 0, w.op(stepError, 0), 4}))
		}
	}
	return all
}

// policed are stories of flows under a policy, and its changes.
func (w writer) policed(number byte, name string) [][]byte {
	policy := func(number byte) []byte { return []byte{w.op(stepEpoch, 0), policyChanges + number} }
	evicted, later := []byte{w.op(stepEpoch, 0), 3}, []byte{w.op(stepElapse, 0), 1}
	at := func(name string) []byte { return w.named(name) }
	there, back := at(name+" to container"), at(name+" back to container")
	in, reply := at(name+" from world to container"), at(name+" reply to world")
	stack, between := at(name+" forwarded to container"), at(name+" forwarded between containers")
	return [][]byte{
		slices.Concat(policy(number), there, back, evicted, back, later, there, back),
		slices.Concat(there, back, policy(number), back, there, policy(number+1), there, back),
		slices.Concat(policy(number), back, there, policy(0), back, there, policy(number), there, back),
		slices.Concat(policy(number), in, reply, evicted, reply, policy(number+1), reply, in),
		slices.Concat(policy(number), stack, reply, evicted, reply, later, reply, between, there),
		slices.Concat(policy(number), at(name+" begins"), []byte{w.op(stepAnswer, 0), 0}, policy(number+1), []byte{w.op(stepAnswer, 0), 0, w.op(stepError, 0), 2}),
		slices.Concat(policy(number), at(name+" not masqueraded"), at(name+" unreachable to container"), there, at(name+" unreachable to container")),
		slices.Concat(policy(number), at(name+" not masqueraded"), at(name+" answer to c"), evicted, at(name+" answer to c"), at(name+" refused by c"), at(name+" of c refused by the world"), policy(number+1), at(name+" answer to c")),
		slices.Concat(policy(number), at(name+" from world to c"), at(name+" answer of c"), evicted, at(name+" answer of c"), later, at(name+" answer of c"), at(name+" not masqueraded")),
		slices.Concat(policy(number), at(name+" from a to c"), at(name+" from c to a"), evicted, at(name+" from c to a"), policy(number+1), at(name+" from a to c"), at(name+" from c to a")),
		slices.Concat(policy(number), at(name+" from b to a"), at(name+" from a to b"), evicted, at(name+" from a to b"), there, at(name+" refused by a")),
		slices.Concat(policy(number), at(name+" refused by b"), there, at(name+" refused by b"), back, at(name+" refused by a"), policy(number+1), at(name+" refused by b"), at(name+" refused by a")),
		slices.Concat(policy(number), at(name+" by another device"), at(name+" from another device"), evicted, at(name+" from another device"), later, at(name+" from another device")),
		slices.Concat(policy(number), at(name+" by the stack"), at(name+" reply by the stack"), at(name+" by another device"), at(name+" to excluded")),
	}
}

// fragments are stories in which the fragments of several packets meet.
func (w writer) fragments(name string) [][]byte {
	first, second := name+" begins", name+" begins, of another, beside"
	at := func(way string, index int) string { return name + " fragment " + way + " " + string(rune('0'+index)) }
	return [][]byte{
		slices.Concat(w.named(first), w.named(second), w.named(at("from world", 0)), w.named(at("from world, beside", 0)),
			w.named(at("from world", 1)), w.named(at("from world, beside", 3))),
		slices.Concat(w.named(first), w.named(at("to world", 0)), w.named(at("to world", 1)), w.named(at("to world", 1), numberFragment, 0x33, 1, 1)),
		slices.Concat(w.named(first), w.named(at("from world", 0)), w.named(at("from world", 1)), w.named(at("from world", 1), numberFragment, 0x33, 1, 1)),
		slices.Concat(w.named(first), w.named(at("to world", 0)), []byte{w.op(stepElapse, 0), 2}, w.named(at("to world", 1))),
	}
}
