// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// key is of a stream of bytes that looks random and that nobody else has.
type key uint64

// newKey makes the key of what belongs to all parts together.
func newKey(parts ...uint64) key {
	var k uint64
	for _, p := range parts {
		k = mix(k ^ p)
	}
	return key(k)
}

// mix is a step of splitmix64: a bijection in which every bit of x changes about
// half of those of the result.
func mix(x uint64) uint64 {
	x += golden
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

const golden = 0x9e3779b97f4a7c15

// fill writes the stream's bytes from an offset on.
func (k key) fill(b []byte, offset uint64) {
	for len(b) > 0 {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], mix(uint64(k)+offset/8*golden))
		n := copy(b, word[offset%8:])
		b, offset = b[n:], offset+uint64(n)
	}
}

// check compares bytes with the stream's from an offset on. scratch has at least
// their length.
func (k key) check(b []byte, offset uint64, scratch []byte) error {
	want := scratch[:len(b)]
	k.fill(want, offset)
	if bytes.Equal(b, want) {
		return nil
	}
	at := 0
	for b[at] == want[at] {
		at++
	}
	end := min(at+16, len(b))
	return fmt.Errorf("byte %d and what follows is % x, not % x", offset+uint64(at), b[at:end], want[at:end])
}
