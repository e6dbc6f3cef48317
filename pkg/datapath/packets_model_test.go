// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/maps"
)

// seenPacket is what a reader of the RFCs sees in a frame: slow, and with nothing in
// common with the programs.
type seenPacket struct {
	frame []byte
	// kind is what the frame carries.
	kind packetKind
	// fault says why a receiver would make nothing of an IP or ARP packet; "" for none.
	fault    string
	v6, gso  bool
	src, dst netip.Addr
	protocol uint8
	ttl      uint8
	// length is from the IP header on, as the header says; end where it ends in the frame.
	length, end int
	// network and transport are the offsets of the headers.
	network, transport int
	// first and later tell fragments; id is what they share.
	first, later bool
	id           uint32
	// extensions counts the extension headers of IPv6; headers is the length of what each
	// segment of a GSO packet repeats.
	extensions, headers int
	// sourceRouted: IPv6 with segments left, so checksums cover another destination.
	sourceRouted bool
	// sport and dport are ports, or the identifier of an echo: the request's is its source.
	sport, dport uint16
	tcpFlags     byte
	icmpType     byte
	icmp         icmpSort
	// quote is the packet that an ICMP error speaks of, when it tells a flow.
	quote *seenPacket
}

type packetKind int

const (
	otherKind packetKind = iota
	arpKind
	ipKind
)

type icmpSort int

const (
	noICMP icmpSort = iota // or an echo
	errorICMP
	linkICMP
	otherICMP
)

// see dissects a frame; of a GSO packet the IP header's length means nothing.
func see(frame []byte, gso bool) *seenPacket {
	p := &seenPacket{frame: frame, network: 14, gso: gso}
	if len(frame) < 14 {
		return p
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_ARP:
		p.kind = arpKind
		if len(frame) < 42 {
			p.fault = "cut ARP"
		} else if binary.BigEndian.Uint64(frame[14:])>>16 != 0x0001_0800_0604 {
			p.fault = "ARP, not for IPv4 over Ethernet"
		}
	case unix.ETH_P_IP:
		p.kind = ipKind
		p.fault = p.see4(len(frame), gso)
	case unix.ETH_P_IPV6:
		p.kind, p.v6 = ipKind, true
		p.fault = p.see6(len(frame), gso)
	}
	if p.kind == ipKind && p.fault == "" {
		switch {
		case !p.later:
			p.fault = p.seeTransport(false)
		case gso:
			p.fault = "segments of a later fragment"
		}
	}
	if p.fault == "" && p.icmp == errorICMP {
		p.quote = p.seeQuote()
	}
	return p
}

func (p *seenPacket) dstMAC() net.HardwareAddr { return p.frame[:6] }
func (p *seenPacket) srcMAC() net.HardwareAddr { return p.frame[6:12] }

// seeQuote returns nil where no flow can be told.
func (p *seenPacket) seeQuote() *seenPacket {
	q := &seenPacket{frame: p.frame, kind: ipKind, v6: p.v6, network: p.transport + 8}
	fault := ""
	if p.v6 {
		fault = q.see6(p.end, true)
	} else {
		fault = q.see4(p.end, true)
	}
	if fault != "" || q.later {
		return nil
	}
	q.end = min(p.end, q.network+q.length)
	if q.end < q.transport+20 {
		q.end = p.end // a length that leaves no room for a header is not believed
	}
	if q.seeTransport(true) != "" || q.icmp != noICMP {
		return nil
	}
	switch q.protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, q.icmpNumber():
		return q
	}
	return nil
}

func (p *seenPacket) icmpNumber() uint8 {
	if p.v6 {
		return unix.IPPROTO_ICMPV6
	}
	return unix.IPPROTO_ICMP
}

// see4 reads the IPv4 header; limit is where the bytes end, and with loose the
// length in the header may be anything.
func (p *seenPacket) see4(limit int, loose bool) string {
	b := p.frame[p.network:limit]
	if len(b) < 20 || b[0]>>4 != 4 {
		return "no IPv4 header"
	}
	header := int(b[0]&15) * 4
	p.length = int(binary.BigEndian.Uint16(b[2:]))
	p.end = p.network + p.length
	if loose {
		p.end = limit
	} else if p.length < header || p.end > limit {
		return "length"
	}
	if header < 20 || header > len(b) {
		return "header length"
	}
	p.src, p.dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	p.ttl, p.protocol = b[8], b[9]
	flags := binary.BigEndian.Uint16(b[6:])
	p.later = flags&0x1fff != 0
	p.first = !p.later && flags&0x2000 != 0
	p.id = uint32(binary.BigEndian.Uint16(b[4:]))
	p.transport = p.network + header
	return ""
}

// see6 is see4 for IPv6 with its extension headers.
func (p *seenPacket) see6(limit int, loose bool) string {
	b := p.frame[p.network:limit]
	if len(b) < 40 || b[0]>>4 != 6 {
		return "no IPv6 header"
	}
	p.length = 40 + int(binary.BigEndian.Uint16(b[4:]))
	p.end = p.network + p.length
	if loose {
		p.end = limit
	} else if p.end > limit {
		return "length"
	}
	p.src, p.dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	if p.src.Is4In6() || p.dst.Is4In6() {
		return "v4-mapped address" // RFC 4942 section 2.2: never on a wire
	}
	p.ttl, p.protocol = b[7], b[6]
	for at := 40; ; p.extensions++ {
		p.transport = p.network + at
		switch p.protocol {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS, unix.IPPROTO_FRAGMENT:
		default:
			return ""
		}
		if p.transport+8 > p.end {
			return "cut extension header"
		}
		size := 8 + int(b[at+1])*8
		switch p.protocol {
		case unix.IPPROTO_FRAGMENT:
			size = 8
			flags := binary.BigEndian.Uint16(b[at+2:])
			p.later = flags&^7 != 0
			p.first = !p.later && flags&1 != 0
			p.id = binary.BigEndian.Uint32(b[at+4:])
		case unix.IPPROTO_ROUTING:
			p.sourceRouted = b[at+3] > 0
		}
		if p.transport+size > p.end {
			return "cut extension header"
		}
		if p.extensions == extensionsMax {
			return "too many extension headers"
		}
		p.protocol = b[at]
		at += size
		if p.later {
			p.transport = p.network + at
			return ""
		}
	}
}

// seeTransport reads what follows; of a quote, no more than 8 bytes are needed.
func (p *seenPacket) seeTransport(quoted bool) string {
	least := map[uint8]int{unix.IPPROTO_TCP: 20, unix.IPPROTO_UDP: 8, unix.IPPROTO_SCTP: 12, p.icmpNumber(): 8}[p.protocol]
	if quoted {
		least = 8
	}
	if p.transport+least > p.end {
		return "cut transport header"
	}
	b := p.frame[p.transport:p.end]
	p.headers = p.transport - p.network + least
	switch p.protocol {
	case unix.IPPROTO_TCP:
		if !quoted {
			p.tcpFlags = b[13]
			p.headers = p.transport - p.network + int(b[12]>>4)*4
			if b[12]>>4 < 5 || !p.gso && p.network+p.headers > p.end {
				return "TCP header length"
			}
		}
		fallthrough
	case unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
		p.sport, p.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	case p.icmpNumber():
		p.seeICMP(b)
	}
	return ""
}

func (p *seenPacket) seeICMP(b []byte) {
	p.icmpType = b[0]
	request, reply, last := byte(8), byte(0), byte(0)
	if p.v6 {
		request, reply, last = 128, 129, 4
	}
	switch id := binary.BigEndian.Uint16(b[4:]); {
	case b[0] == request:
		p.sport = id
	case b[0] == reply:
		p.dport = id
	case !p.v6 && (b[0] == 3 || b[0] == 11 || b[0] == 12), p.v6 && b[0] >= 1 && b[0] <= last:
		p.icmp = errorICMP
	case !p.v6 && b[0] == 5, p.v6 && (b[0] >= 130 && b[0] <= 137 || b[0] == 143):
		p.icmp = linkICMP
	default:
		p.icmp = otherICMP
	}
}

// isEchoReply tells it by its type, which later fragments lack.
func (p *seenPacket) isEchoReply() bool {
	return p.protocol == p.icmpNumber() && p.fault == "" && !p.later && (p.v6 && p.icmpType == 129 || !p.v6 && p.icmpType == 0)
}

// hasPorts tells whether the packet belongs to a flow that can be masqueraded.
func (p *seenPacket) hasPorts() bool {
	switch p.protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
		return true
	}
	return p.protocol == p.icmpNumber() && p.icmp == noICMP
}

// key is the packet's flow, with the ports of a fragment where others have them.
func (p *seenPacket) key(ifindex int, ports [2]uint16) maps.FlowKey {
	return maps.FlowKey{
		Source: maps.NewAddress(p.src), Destination: maps.NewAddress(p.dst),
		SourcePort: maps.Port(ports[0]), DestinationPort: maps.Port(ports[1]),
		Ifindex: uint32(ifindex), Protocol: p.protocol,
	}
}

func (p *seenPacket) ports() [2]uint16 { return [2]uint16{p.sport, p.dport} }

// turned is the key of the other direction.
func turned(key maps.FlowKey, ifindex int) maps.FlowKey {
	key.Source, key.Destination = key.Destination, key.Source
	key.SourcePort, key.DestinationPort = key.DestinationPort, key.SourcePort
	key.Ifindex = uint32(ifindex)
	return key
}

// checksum is a field with what it covers.
type checksum struct {
	name     string
	at       int
	from, to int
	// pseudo is the header that is covered besides.
	pseudo []byte
	// udp: zero means that there is none.
	udp bool
}

// checksums are all fields of the packet and of its quote that depend on addresses
// and ports.
func (p *seenPacket) checksums() []checksum {
	var all []checksum
	if !p.v6 {
		all = append(all, checksum{name: "IPv4", at: p.network + 10, from: p.network, to: min(p.end, p.network+int(p.frame[p.network]&15)*4)})
	}
	at, known := map[uint8]int{unix.IPPROTO_TCP: 16, unix.IPPROTO_UDP: 6, p.icmpNumber(): 2}[p.protocol]
	if known && !p.later && p.transport+at+2 <= p.end {
		c := checksum{name: ProtocolName(p.protocol), at: p.transport + at, from: p.transport, to: p.end, udp: p.protocol == unix.IPPROTO_UDP}
		if p.protocol != unix.IPPROTO_ICMP {
			c.pseudo = append(append(p.src.AsSlice(), p.dst.AsSlice()...), 0, p.protocol)
			c.pseudo = binary.BigEndian.AppendUint16(c.pseudo, uint16(p.end-p.transport))
		}
		all = append(all, c)
	}
	if p.quote != nil {
		for _, c := range p.quote.checksums() {
			c.name = "quoted " + c.name
			all = append(all, c)
		}
	}
	return all
}

// residual is the sum over what is covered, the field included, from 0 to 0xfffe: 0
// when the checksum is right.
func (c checksum) residual(frame []byte) uint64 {
	var total uint64
	for _, b := range [][]byte{c.pseudo, frame[c.from:c.to]} {
		for i, v := range b {
			total += uint64(v) << (8 * (1 - i%2))
		}
	}
	return total % 0xffff
}

func (c checksum) value(frame []byte) uint16 { return binary.BigEndian.Uint16(frame[c.at:]) }

// repair makes every checksum right, the innermost first.
func (p *seenPacket) repair() {
	all := p.checksums()
	for i := len(all) - 1; i >= 0; i-- {
		c := all[i]
		binary.BigEndian.PutUint16(p.frame[c.at:], 0)
		binary.BigEndian.PutUint16(p.frame[c.at:], uint16(0xffff-c.residual(p.frame)))
	}
}

// sameSums compares the checksums of a packet before and after: each is as right or
// as wrong as it was, and UDP without one stays so.
func sameSums(before, after *seenPacket) error {
	was, is := before.checksums(), after.checksums()
	if len(was) != len(is) {
		return fmt.Errorf("%d checksums have become %d", len(was), len(is))
	}
	for i := range was {
		if was[i].at != is[i].at {
			return fmt.Errorf("checksum %s has moved from %d to %d", was[i].name, was[i].at, is[i].at)
		}
		old, now := was[i].value(before.frame), is[i].value(after.frame)
		if was[i].udp && (old == 0 || now == 0) {
			if old != now {
				return fmt.Errorf("checksum %s: %#04x has become %#04x", was[i].name, old, now)
			}
			continue
		}
		if a, b := was[i].residual(before.frame), is[i].residual(after.frame); a != b {
			return fmt.Errorf("checksum %s was wrong by %#04x and is by %#04x", was[i].name, a, b)
		}
	}
	return nil
}
