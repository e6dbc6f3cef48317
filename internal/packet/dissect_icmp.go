// SPDX-License-Identifier: Apache-2.0

package packet

func (d *dissection) icmp(s segment, b []byte) {
	r := d.open("ICMP", b)
	if d.icmpStart(r, s, 8) {
		return
	}
	if s.whole {
		d.checkSum(r, b[2:4], sum(b, 0))
	}
	typ, code := b[0], b[1]
	switch typ {
	case 0, 8:
		d.echo(r, s, typ == 8)
	case 3, 4, 5, 11, 12:
		switch {
		case typ == 3 && code == 4:
			r.number("Unused", "%d", 4, 2)
			d.say("ICMP too big, mtu %d", r.number("MTU", "%d", 6, 2))
		case typ == 5:
			d.say("ICMP redirect to %s", r.address("Gateway", 4, 4))
		case typ == 12:
			pointer := r.number("Pointer", "%d", 4, 1)
			r.number("Unused", "%d", 5, 3)
			d.say("ICMP parameter problem at %d", pointer)
		default:
			r.number("Unused", "%d", 4, 4)
			name := map[uint8]string{3: "unreachable", 4: "source quench", 11: "time exceeded"}[typ]
			d.say("ICMP %s, code %d", name, code)
		}
		d.quote(s, b[8:])
	default:
		r.number("Rest", "0x%08x", 4, 4)
		d.say("ICMP type %d code %d, length %d", typ, code, s.length)
		d.payload(b[8:])
	}
}

func (d *dissection) icmpv6(s segment, b []byte) {
	r := d.open("ICMPv6", b)
	if d.icmpStart(r, s, 8) {
		return
	}
	if s.whole {
		d.checkSum(r, b[2:4], sum(b, pseudoSum(s, len(b))))
	}
	typ, code := b[0], b[1]
	switch typ {
	case 128, 129:
		d.echo(r, s, typ == 128)
	case 1, 2, 3, 4:
		switch typ {
		case 2:
			d.say("ICMP6 too big, mtu %d", r.number("MTU", "%d", 4, 4))
		case 4:
			d.say("ICMP6 parameter problem at %d", r.number("Pointer", "%d", 4, 4))
		default:
			r.number("Unused", "%d", 4, 4)
			name := map[uint8]string{1: "unreachable", 3: "time exceeded"}[typ]
			d.say("ICMP6 %s, code %d", name, code)
		}
		d.quote(s, b[8:])
	case 130, 131, 132, 143:
		d.listener(r, s, typ)
	case 133, 134, 135, 136, 137:
		d.neighbor(r, s, typ)
	default:
		r.number("Rest", "0x%08x", 4, 4)
		d.say("ICMP6 type %d code %d, length %d", typ, code, s.length)
		d.payload(b[8:])
	}
}

// icmpStart reads what all messages have; it returns true when nothing more can
// be read.
func (d *dissection) icmpStart(r reader, s segment, size int) bool {
	r.number("Type", "%d", 0, 1)
	r.number("Code", "%d", 1, 1)
	r.number("Checksum", "0x%04x", 2, 2)
	if d.short(r, s, size) {
		d.say("%s, cut at %d", r.name, len(r.b))
		return true
	}
	return false
}

func (d *dissection) echo(r reader, s segment, request bool) {
	kind := "reply"
	if request {
		kind = "request"
	}
	id := r.number("ID", "%d", 4, 2)
	seq := r.number("Seq", "%d", 6, 2)
	family := "ICMP"
	if s.v6 {
		family = "ICMP6"
	}
	d.say("%s echo %s, id %d, seq %d, length %d", family, kind, id, seq, s.length)
	d.payload(r.b[8:])
}

// quote reads the packet within an ICMP error.
func (d *dissection) quote(s segment, b []byte) {
	if !s.whole || d.quoted > 0 {
		// In a fragment the quote has no end, and nobody answers an error with
		// an error: there is nothing to hold such bytes against.
		d.payload(b)
		return
	}
	d.say(", quoting [")
	d.quoted++
	if s.v6 {
		d.ipv6(b)
	} else {
		d.ipv4(b)
	}
	d.quoted--
	d.say("]")
}

// listener reads a message of multicast listener discovery.
func (d *dissection) listener(r reader, s segment, typ uint8) {
	size := 24
	if typ == 143 {
		size = 8
	}
	if d.short(r, s, size) {
		d.say("MLD, cut at %d", len(r.b))
		return
	}
	if typ != 143 {
		r.number("Delay", "%d", 4, 2)
		r.number("Reserved", "%d", 6, 2)
		group := r.address("Group", 8, 16)
		kind := map[uint8]string{130: "query", 131: "report", 132: "done"}[typ]
		d.say("MLD %s %s", kind, group)
		d.payload(r.b[24:])
		return
	}
	r.number("Reserved", "%d", 4, 2)
	count := int(r.number("Records", "%d", 6, 2))
	d.say("MLDv2 report, %d groups", count)
	r.data("Data", r.b[8:])
	if !s.whole {
		return
	}
	rest := r.b[8:]
	for i := range count {
		if len(rest) < 20 {
			d.fault(r, "record %d of %d is cut", i+1, count)
			return
		}
		record := 20 + int(rest[1])*4 + (int(rest[2])<<8|int(rest[3]))*16
		if record > len(rest) {
			d.fault(r, "record %d of %d is cut", i+1, count)
			return
		}
		rest = rest[record:]
	}
	if len(rest) > 0 {
		d.fault(r, "%d bytes after the last record", len(rest))
	}
}

// neighbor reads a message of neighbour discovery.
func (d *dissection) neighbor(r reader, s segment, typ uint8) {
	size := map[uint8]int{133: 8, 134: 16, 135: 24, 136: 24, 137: 40}[typ]
	if d.short(r, s, size) {
		d.say("neighbour discovery, cut at %d", len(r.b))
		return
	}
	switch typ {
	case 133:
		r.number("Reserved", "%d", 4, 4)
		d.say("router solicitation")
	case 134:
		r.number("RouterHopLimit", "%d", 4, 1)
		r.number("Flags", "0x%02x", 5, 1)
		d.say("router advertisement, lifetime %d", r.number("Lifetime", "%d", 6, 2))
		r.number("Reachable", "%d", 8, 4)
		r.number("Retransmit", "%d", 12, 4)
	case 135:
		r.number("Reserved", "%d", 4, 4)
		d.say("neighbor solicitation, who has %s", r.address("Target", 8, 16))
	case 136:
		r.number("Flags", "0x%08x", 4, 4)
		d.say("neighbor advertisement, tgt is %s", r.address("Target", 8, 16))
	case 137:
		r.number("Reserved", "%d", 4, 4)
		target, destination := r.address("Target", 8, 16), r.address("Destination", 24, 16)
		d.say("redirect %s to %s", destination, target)
	}
	for rest := r.b[size:]; len(rest) > 0; {
		o := d.open("NDOption", rest)
		kind := o.number("Type", "%d", 0, 1)
		length := int(o.number("Length", "%d", 1, 1)) * 8
		if length == 0 || length > len(rest) {
			if s.whole {
				d.fault(o, "length %d in %d bytes", length, len(rest))
			}
			o.data("Data", rest[min(2, len(rest)):])
			return
		}
		if (kind == 1 || kind == 2) && length == 8 {
			o.mac("LinkAddr", 2)
		} else {
			o.data("Data", rest[2:length])
		}
		rest = rest[length:]
	}
}
