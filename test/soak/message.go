// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// identity names who asks or answers. None is used twice in a run.
type identity uint32

// message is a question or an answer. In bytes it is a header and padding that
// depends on all of the header.
type message struct {
	kind          kind
	asker, target identity
	// nonce is the question's own, and its answer's.
	nonce uint64
	// seen is from where the question seemed to come; of an answer.
	seen netip.AddrPort
}

type kind byte

const (
	question kind = iota + 1
	answer
	// hello is a question after which both ends send a stream.
	hello
)

// The header: 4 bytes to know it by, kind, 3 bytes of length, asker, target,
// nonce, and address and port.
const (
	magic      = 0x736f616b
	headerSize = 42
	maxMessage = 1 << 16
)

// encode makes a message of a size, at least headerSize and at most maxMessage.
func (m message) encode(size int) []byte {
	b := make([]byte, 0, size)
	b = binary.BigEndian.AppendUint32(b, magic)
	b = binary.BigEndian.AppendUint32(b, uint32(m.kind)<<24|uint32(size))
	b = binary.BigEndian.AppendUint32(b, uint32(m.asker))
	b = binary.BigEndian.AppendUint32(b, uint32(m.target))
	b = binary.BigEndian.AppendUint64(b, m.nonce)
	var address [16]byte
	if m.seen.IsValid() {
		address = m.seen.Addr().As16()
	}
	b = append(b, address[:]...)
	b = binary.BigEndian.AppendUint16(b, m.seen.Port())
	b = b[:size]
	m.padding().fill(b[headerSize:], 0)
	return b
}

func (m message) padding() key {
	parts := []uint64{uint64(m.kind), uint64(m.asker)<<32 | uint64(m.target), m.nonce, uint64(m.seen.Port())}
	if m.seen.IsValid() {
		a := m.seen.Addr().As16()
		parts = append(parts, binary.BigEndian.Uint64(a[:]), binary.BigEndian.Uint64(a[8:]))
	}
	return newKey(parts...)
}

// errForeign is of bytes that are no message at all.
var errForeign = errors.New("no message")

// sizeOf reads a message's size from its header.
func sizeOf(header []byte) (int, error) {
	if len(header) < headerSize || binary.BigEndian.Uint32(header) != magic {
		return 0, fmt.Errorf("%w: % x", errForeign, header[:min(16, len(header))])
	}
	size := int(binary.BigEndian.Uint32(header[4:]) & 0xffffff)
	if size < headerSize || size > maxMessage {
		return 0, fmt.Errorf("%w: it would have %d bytes", errForeign, size)
	}
	return size, nil
}

// decode reads a whole message and compares each byte of its padding.
func decode(b []byte) (message, error) {
	size, err := sizeOf(b)
	if err != nil {
		return message{}, err
	}
	m := message{
		kind:   kind(b[4]),
		asker:  identity(binary.BigEndian.Uint32(b[8:])),
		target: identity(binary.BigEndian.Uint32(b[12:])),
		nonce:  binary.BigEndian.Uint64(b[16:]),
	}
	if seen := netip.AddrFrom16([16]byte(b[24:])).Unmap(); m.kind == answer {
		m.seen = netip.AddrPortFrom(seen, binary.BigEndian.Uint16(b[40:]))
	}
	if size != len(b) {
		return m, fmt.Errorf("a message of %d bytes came as %d", size, len(b))
	}
	if err := m.padding().check(b[headerSize:], 0, make([]byte, size)); err != nil {
		return m, fmt.Errorf("padding: %w", err)
	}
	return m, nil
}
