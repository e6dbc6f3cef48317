// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"
)

const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132
)

func (d *dissection) transport(s segment, b []byte) {
	d.heading(s, s.dst, b)
	d.transportHeader(s, b)
}

// heading says in the summary who sends to whom.
func (d *dissection) heading(s segment, dst netip.Addr, b []byte) {
	from, to := s.src.String(), dst.String()
	if s.first && len(b) >= 4 && (s.protocol == protoTCP || s.protocol == protoUDP || s.protocol == protoSCTP) {
		from += fmt.Sprintf(".%d", binary.BigEndian.Uint16(b))
		to += fmt.Sprintf(".%d", binary.BigEndian.Uint16(b[2:]))
	}
	family := "IP"
	if s.v6 {
		family = "IP6"
	}
	d.say("%s %s > %s ttl %d: ", family, from, to, s.ttl)
	if s.fragment != "" {
		d.say("%s, ", s.fragment)
	}
}

func (d *dissection) transportHeader(s segment, b []byte) {
	if !s.first {
		d.say("protocol %d", s.protocol)
		d.payload(b)
		return
	}
	switch {
	case s.protocol == protoTCP:
		d.tcp(s, b)
	case s.protocol == protoUDP:
		d.udp(s, b)
	case s.protocol == protoSCTP:
		d.sctp(s, b)
	case s.protocol == protoICMP && !s.v6:
		d.icmp(s, b)
	case s.protocol == protoICMPv6 && s.v6:
		d.icmpv6(s, b)
	default:
		d.say("protocol %d, length %d", s.protocol, len(b))
		d.payload(b)
	}
}

// short tells whether the fixed part of a header is incomplete, which is a
// fault where the packet is said to be whole.
func (d *dissection) short(r reader, s segment, size int) bool {
	if len(r.b) >= size {
		return false
	}
	if s.whole || s.length < size && s.fragment == "" {
		d.fault(r, "%d bytes, a header has %d", len(r.b), size)
	}
	return true
}

func (d *dissection) tcp(s segment, b []byte) {
	r := d.open("TCP", b)
	r.number("SrcPort", "%d", 0, 2)
	r.number("DstPort", "%d", 2, 2)
	seq := r.number("Seq", "%d", 4, 4)
	ack := r.number("Ack", "%d", 8, 4)
	if len(b) >= 14 {
		r.add("HeaderLength", "%d", b[12]>>4*4)
		r.add("Flags", "%s", tcpFlags(b[13]))
		if b[12]&15 != 0 {
			r.add("Reserved", "%d", b[12]&15)
		}
	}
	window := r.number("Window", "%d", 14, 2)
	r.number("Checksum", "0x%04x", 16, 2)
	r.number("Urgent", "%d", 18, 2)
	if d.short(r, s, 20) {
		d.say("TCP, cut at %d", len(b))
		return
	}
	size := int(b[12]>>4) * 4
	d.say("Flags [%s], seq %d", tcpFlags(b[13]), seq)
	if b[13]&0x10 != 0 {
		d.say(", ack %d", ack)
	}
	d.say(", win %d", window)
	if size < 20 || size > s.length && s.fragment == "" {
		d.fault(r, "header length %d in %d bytes", size, s.length)
		size = 20
	}
	size = min(size, len(b))
	if size > 20 {
		r.data("Options", b[20:size])
		if s.whole && !wellFormed(b[20:size], 0, 1) {
			d.fault(r, "options do not fill their room")
		}
		d.say(", options %d", size-20)
	}
	if s.whole {
		d.checkSum(r, b[16:18], sum(b, pseudoSum(s, len(b))))
	}
	d.say(", length %d", s.length-size)
	d.payload(b[size:])
}

func tcpFlags(flags byte) string {
	const letters = "FSRP.UEW" // as tcpdump has them, from the lowest bit
	var on strings.Builder
	for i := range letters {
		if flags&(1<<i) != 0 {
			on.WriteByte(letters[i])
		}
	}
	if on.Len() == 0 {
		return "none"
	}
	return on.String()
}

func (d *dissection) udp(s segment, b []byte) {
	r := d.open("UDP", b)
	r.number("SrcPort", "%d", 0, 2)
	r.number("DstPort", "%d", 2, 2)
	length := int(r.number("Length", "%d", 4, 2))
	checksum := r.number("Checksum", "0x%04x", 6, 2)
	if d.short(r, s, 8) {
		d.say("UDP, cut at %d", len(b))
		return
	}
	d.say("UDP, length %d", length-8)
	switch {
	case s.fragment == "" && length != s.length:
		d.fault(r, "length %d in %d bytes", length, s.length)
	case s.fragment != "" && length < s.length || length < 8:
		d.fault(r, "length %d in a fragment of %d bytes", length, s.length)
	}
	switch {
	case checksum != 0:
		if s.whole {
			d.checkSum(r, b[6:8], sum(b, pseudoSum(s, len(b))))
		}
	case s.v6 && d.quoted == 0:
		// Senders quote what a device has not finished yet, so a quote is let
		// through. Elsewhere IPv6 needs the checksum (RFC 8200 section 8.1).
		d.fault(r, "no checksum")
	}
	d.payload(b[8:])
}

func (d *dissection) sctp(s segment, b []byte) {
	r := d.open("SCTP", b)
	r.number("SrcPort", "%d", 0, 2)
	r.number("DstPort", "%d", 2, 2)
	r.number("Tag", "0x%08x", 4, 4)
	r.number("Checksum", "0x%08x", 8, 4)
	if d.short(r, s, 12) {
		d.say("SCTP, cut at %d", len(b))
		return
	}
	d.say("SCTP, length %d", s.length-12)
	if s.whole {
		have := binary.LittleEndian.Uint32(b[8:])
		zeroed := append([]byte(nil), b...)
		clear(zeroed[8:12])
		if want := crc32.Checksum(zeroed, crc32.MakeTable(crc32.Castagnoli)); have != want {
			d.fault(r, "checksum 0x%08x, want 0x%08x", be32(have), be32(want))
		}
	}
	for rest := b[12:]; len(rest) > 0; {
		c := d.open("SCTPChunk", rest)
		kind := c.number("Type", "%d", 0, 1)
		c.number("Flags", "0x%02x", 1, 1)
		length := int(c.number("Length", "%d", 2, 2))
		padded := (length + 3) &^ 3
		if len(rest) < 4 || length < 4 || padded > len(rest) {
			if s.whole {
				d.fault(c, "length %d in %d bytes", length, len(rest))
			}
			c.data("Data", rest[min(4, len(rest)):])
			return
		}
		d.say(", chunk %d", kind)
		c.data("Data", rest[4:padded])
		rest = rest[padded:]
	}
}

// be32 turns a checksum that was read as little endian into the order of its
// bytes.
func be32(v uint32) uint32 {
	return binary.BigEndian.Uint32(binary.LittleEndian.AppendUint32(nil, v))
}
