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
