// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// A dissection is all that Diff, Verify and Summary know of a frame. It is made
// from the bytes alone and in one pass, with no code in common with the
// builders.
type dissection struct {
	headers []*header
	// faults are what Verify reports.
	faults []error
	// summary is what Summary returns.
	summary strings.Builder
	// frame is the length of the whole frame.
	frame int
	// quoted counts the ICMP errors around the current header.
	quoted int
}

// header is one header of a frame with its fields in the order of the bytes.
type header struct {
	name   string
	fields []field
}

// field is a value of a header: text, or bytes, not nil, where there may be many.
type field struct {
	name  string
	text  string
	bytes []byte
}

// reader adds the fields of a header that lie within the bytes there are.
type reader struct {
	*header
	b []byte
}

func dissect(frame []byte) *dissection {
	d := &dissection{frame: len(frame)}
	d.ethernet(frame)
	return d
}

func (d *dissection) open(name string, b []byte) reader {
	h := &header{name: strings.Repeat("quoted ", d.quoted) + name}
	d.headers = append(d.headers, h)
	return reader{header: h, b: b}
}

func (d *dissection) fault(where reader, format string, args ...any) {
	d.faults = append(d.faults, errors.New(where.name+": "+fmt.Sprintf(format, args...)))
}

func (d *dissection) say(format string, args ...any) { fmt.Fprintf(&d.summary, format, args...) }

func (r reader) add(name, format string, args ...any) {
	r.fields = append(r.fields, field{name: name, text: fmt.Sprintf(format, args...)})
}

// number adds an unsigned field of size bytes, when it is there, and returns
// it.
func (r reader) number(name, format string, offset, size int) uint64 {
	if offset+size > len(r.b) {
		return 0
	}
	var v uint64
	for _, c := range r.b[offset : offset+size] {
		v = v<<8 | uint64(c)
	}
	r.add(name, format, v)
	return v
}

// address adds an IP address of size bytes, when it is there, and returns it.
func (r reader) address(name string, offset, size int) netip.Addr {
	if offset+size > len(r.b) {
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(r.b[offset : offset+size])
	r.add(name, "%s", a)
	return a
}

func (r reader) mac(name string, offset int) {
	if offset+6 <= len(r.b) {
		r.add(name, "%s", net.HardwareAddr(r.b[offset:offset+6]))
	}
}

func (r reader) data(name string, b []byte) {
	if b == nil {
		b = []byte{} // nil stands for text
	}
	r.fields = append(r.fields, field{name: name, bytes: b})
}

// payload is what no header describes.
func (d *dissection) payload(b []byte) {
	if len(b) > 0 {
		d.open("Payload", b).data("Data", b)
	}
}

func (d *dissection) ethernet(b []byte) {
	r := d.open("Ethernet", b)
	if len(b) < 14 {
		r.data("Data", b)
		d.fault(r, "%d bytes, a header has 14", len(b))
		d.say("frame of %d bytes", len(b))
		return
	}
	r.mac("Dst", 0)
	r.mac("Src", 6)
	d.link(uint16(r.number("Type", "0x%04x", 12, 2)), b[14:])
}

// link continues behind an EtherType.
func (d *dissection) link(etherType uint16, b []byte) {
	switch etherType {
	case 0x8100, 0x88a8:
		r := d.open("VLAN", b)
		if len(b) < 4 {
			r.data("Data", b)
			d.fault(r, "%d bytes, a tag has 4", len(b))
			return
		}
		tag := binary.BigEndian.Uint16(b)
		r.add("Priority", "%d", tag>>13)
		r.add("DropEligible", "%d", tag>>12&1)
		r.add("ID", "%d", tag&0xfff)
		d.say("vlan %d, ", tag&0xfff)
		d.link(uint16(r.number("Type", "0x%04x", 2, 2)), b[4:])
	case 0x0806:
		d.arp(b)
	case 0x0800:
		d.ipv4(b)
	case 0x86dd:
		d.ipv6(b)
	default:
		d.say("ethertype 0x%04x, length %d", etherType, len(b))
		d.payload(b)
	}
}

func (d *dissection) arp(b []byte) {
	r := d.open("ARP", b)
	if len(b) < 28 {
		r.data("Data", b)
		d.fault(r, "%d bytes, a message has 28", len(b))
		d.say("ARP")
		return
	}
	if binary.BigEndian.Uint64(b)>>16 != 0x0001_0800_0604 {
		d.fault(r, "not for IPv4 over Ethernet")
	}
	r.number("HardwareType", "%d", 0, 2)
	r.number("ProtocolType", "0x%04x", 2, 2)
	r.number("AddressSizes", "0x%04x", 4, 2)
	op := r.number("Operation", "%d", 6, 2)
	r.mac("SenderMAC", 8)
	sender := r.address("SenderIP", 14, 4)
	r.mac("TargetMAC", 18)
	target := r.address("TargetIP", 24, 4)
	switch op {
	case 1:
		d.say("ARP, Request who-has %s tell %s", target, sender)
	case 2:
		d.say("ARP, Reply %s is-at %s", sender, net.HardwareAddr(b[8:14]))
	default:
		d.say("ARP, operation %d", op)
	}
	d.trailing(b[28:])
}

// trailing judges what comes after the end of a packet: in a frame of the least
// length that Ethernet knows it is padding.
func (d *dissection) trailing(b []byte) {
	if len(b) == 0 {
		return
	}
	r := d.open("Trailing", b)
	r.data("Data", b)
	if d.quoted > 0 || d.frame > 60 {
		d.fault(r, "%d bytes after the end of the packet", len(b))
		return
	}
	for _, c := range b {
		if c != 0 {
			d.fault(r, "padding is not zero")
			return
		}
	}
}

// segment is what an IP header says about the transport header behind it.
type segment struct {
	v6       bool
	protocol uint8
	src, dst netip.Addr
	// length is the one that the IP header gives, bytes that are missing included.
	length int
	// first: the transport header is here, not in an earlier fragment.
	first bool
	// whole: nothing is missing, by fragmentation or by quoting.
	whole bool
	// fragment describes the fragment in a summary; "" for a whole packet.
	fragment string
	// ttl is for the summary.
	ttl uint8
}

func (d *dissection) ipv4(b []byte) {
	r := d.open("IPv4", b)
	if len(b) < 20 {
		r.data("Data", b)
		d.fault(r, "%d bytes, a header has 20", len(b))
		d.say("IP")
		return
	}
	size := int(b[0]&15) * 4
	r.add("Version", "%d", b[0]>>4)
	r.add("HeaderLength", "%d", size)
	r.number("TOS", "0x%02x", 1, 1)
	total := int(r.number("Length", "%d", 2, 2))
	id := r.number("ID", "%d", 4, 2)
	flags := binary.BigEndian.Uint16(b[6:])
	r.add("Flags", "%s", ipFlags(flags))
	offset, more := int(flags&0x1fff)*8, flags&0x2000 != 0
	r.add("FragOffset", "%d", offset)
	ttl := uint8(r.number("TTL", "%d", 8, 1))
	protocol := uint8(r.number("Protocol", "%d", 9, 1))
	r.number("Checksum", "0x%04x", 10, 2)
	src, dst := r.address("Src", 12, 4), r.address("Dst", 16, 4)
	if b[0]>>4 != 4 {
		d.fault(r, "version is %d", b[0]>>4)
	}
	if size < 20 || size > len(b) || size > total {
		d.fault(r, "header length %d in a packet of %d, %d bytes are there", size, total, len(b))
		d.say("IP %s > %s", src, dst)
		d.payload(b[20:])
		return
	}
	if size > 20 {
		r.data("Options", b[20:size])
		if !wellFormed(b[20:size], 0, 1) {
			d.fault(r, "options do not fill their room")
		}
	}
	d.checkSum(r, b[10:12], sum(b[:size], 0))
	s := segment{
		protocol: protocol, src: src, dst: dst, ttl: ttl,
		length: total - size, first: offset == 0, whole: offset == 0 && !more,
	}
	if !s.whole {
		s.fragment = fragmentText(id, s.length, offset, more)
	}
	d.checkFragment(r, s.length, offset, more)
	body, trailing := d.cut(r, &s, b[size:])
	d.transport(s, body)
	d.trailing(trailing)
}

func ipFlags(flags uint16) string {
	var on []string
	for i, name := range []string{"reserved", "DF", "MF"} {
		if flags&(0x8000>>i) != 0 {
			on = append(on, name)
		}
	}
	if len(on) == 0 {
		return "none"
	}
	return strings.Join(on, "|")
}

func fragmentText(id uint64, length, offset int, more bool) string {
	plus := ""
	if more {
		plus = "+"
	}
	return fmt.Sprintf("frag %d:%d@%d%s", id, length, offset, plus)
}

// checkFragment judges the length of a fragment.
func (d *dissection) checkFragment(r reader, length, offset int, more bool) {
	if more && length%8 != 0 {
		d.fault(r, "fragment of %d bytes that is not the last", length)
	}
	if offset+length > 65535 {
		d.fault(r, "fragment ends at %d", offset+length)
	}
}

// cut compares the length in an IP header with what is there, and separates
// what follows the packet. In an ICMP error the packet may be incomplete.
func (d *dissection) cut(r reader, s *segment, b []byte) (body, trailing []byte) {
	if s.length > len(b) {
		if d.quoted == 0 {
			d.fault(r, "%d bytes follow the header, its length says %d", len(b), s.length)
		}
		s.whole = false
		return b, nil
	}
	return b[:s.length], b[s.length:]
}

// wellFormed tells whether options of type, length (both included) and value
// fill their room. An option of type end ends them, one of type single has no
// length.
func wellFormed(b []byte, end, single byte) bool {
	for len(b) > 0 {
		switch {
		case b[0] == end:
			return true
		case b[0] == single:
			b = b[1:]
		case len(b) < 2 || b[1] < 2 || int(b[1]) > len(b):
			return false
		default:
			b = b[b[1]:]
		}
	}
	return true
}
