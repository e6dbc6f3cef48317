// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

func (d *dissection) ipv6(b []byte) {
	r := d.open("IPv6", b)
	if len(b) < 40 {
		r.data("Data", b)
		d.fault(r, "%d bytes, a header has 40", len(b))
		d.say("IP6")
		return
	}
	word := binary.BigEndian.Uint32(b)
	r.add("Version", "%d", word>>28)
	r.add("TrafficClass", "0x%02x", word>>20&0xff)
	r.add("FlowLabel", "0x%05x", word&0xfffff)
	length := int(r.number("Length", "%d", 4, 2))
	next := uint8(r.number("NextHeader", "%d", 6, 1))
	hops := uint8(r.number("HopLimit", "%d", 7, 1))
	src, dst := r.address("Src", 8, 16), r.address("Dst", 24, 16)
	if word>>28 != 6 {
		d.fault(r, "version is %d", word>>28)
	}
	s := segment{
		v6: true, protocol: next, src: src, dst: dst, ttl: hops,
		length: length, first: true, whole: true,
	}
	body, trailing := d.cut(r, &s, b[40:])
	if final, rest, ok := d.extensions(&s, body); ok {
		s.dst, dst = final, s.dst
		d.transport6(s, dst, rest)
	} else {
		d.say("IP6 %s > %s", src, dst)
	}
	d.trailing(trailing)
}

// transport6 is transport with the destination of the IPv6 header in the summary;
// that of s may be the end of a source route.
func (d *dissection) transport6(s segment, shown netip.Addr, b []byte) {
	d.heading(s, shown, b)
	d.transportHeader(s, b)
}

// extensions walks the extension headers: s gets what they change, final is the
// last destination. ok is false when they break off.
func (d *dissection) extensions(s *segment, b []byte) (final netip.Addr, rest []byte, ok bool) {
	final = s.dst
	for position := 0; ; position++ {
		var r reader
		switch s.protocol {
		case 0:
			r = d.open("HopByHop", b)
			if position > 0 {
				d.fault(r, "it is not the first extension header")
			}
		case 43:
			r = d.open("Routing", b)
		case 44:
			r = d.open("FragmentHeader", b)
		case 51:
			r = d.open("Authentication", b)
		case 60:
			r = d.open("DestinationOptions", b)
		default:
			return final, b, true
		}
		size := 8
		if len(b) >= 2 {
			switch s.protocol {
			case 44:
			case 51:
				size = (int(b[1]) + 2) * 4
			default:
				size += int(b[1]) * 8
			}
		}
		if len(b) < size {
			r.data("Data", b)
			if s.whole || s.length < size {
				d.fault(r, "%d bytes, it has %d", len(b), size)
			}
			return final, nil, false
		}
		next := uint8(r.number("NextHeader", "%d", 0, 1))
		switch s.protocol {
		case 0, 60:
			r.data("Options", b[2:size])
			if !optionsFill(b[2:size]) {
				d.fault(r, "options do not fill their room")
			}
		case 43:
			if hop, ok := d.routing(r, b[:size]); ok {
				final = hop
			}
		case 44:
			flags := binary.BigEndian.Uint16(b[2:])
			offset, more := int(flags&^7), flags&1 != 0
			r.add("FragOffset", "%d", offset)
			r.add("MoreFragments", "%t", more)
			id := r.number("ID", "%d", 4, 4)
			if offset > 0 || more {
				s.first, s.whole = offset == 0, false
				s.fragment = fragmentText(id, s.length-size, offset, more)
				d.checkFragment(r, s.length-size, offset, more)
			}
		default:
			r.data("Data", b[2:size])
		}
		s.protocol = next
		s.length -= size
		b = b[size:]
		if !s.first {
			return final, b, true
		}
	}
}

// routing reads a routing header. ok tells that there are segments left, so
// that the final destination is in the header.
func (d *dissection) routing(r reader, b []byte) (final netip.Addr, ok bool) {
	kind := r.number("Type", "%d", 2, 1)
	left := r.number("SegmentsLeft", "%d", 3, 1)
	r.number("Flags", "0x%08x", 4, 4)
	var hops []netip.Addr
	for at := 8; at+16 <= len(b); at += 16 {
		hops = append(hops, r.address(fmt.Sprintf("Segment%d", at/16), at, 16))
	}
	if left == 0 || len(hops) == 0 {
		return netip.Addr{}, false
	}
	if left > uint64(len(hops)) {
		d.fault(r, "%d segments left of %d", left, len(hops))
	}
	switch kind {
	case 0, 2: // source route (RFC 2460), mobility (RFC 6275)
		return hops[len(hops)-1], true
	case 4: // segment routing (RFC 8754), in reverse order
		return hops[0], true
	default:
		return netip.Addr{}, false
	}
}

// optionsFill is wellFormed for the options of IPv6, whose length counts only
// the value.
func optionsFill(b []byte) bool {
	for len(b) > 0 {
		switch {
		case b[0] == 0:
			b = b[1:]
		case len(b) < 2 || 2+int(b[1]) > len(b):
			return false
		default:
			b = b[2+int(b[1]):]
		}
	}
	return true
}
