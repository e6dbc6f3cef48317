// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// ICMPOption changes an ICMP or ICMPv6 header: NoChecksum or BadChecksum.
type ICMPOption interface{ icmp(*icmp) }

func (o ChecksumFault) icmp(l *icmp) { l.fault = o }

// icmp is an ICMP message up to its payload, in one form per family.
type icmp struct {
	unannounced
	name   string
	v4, v6 icmpForm
	// hops is the hop limit the message needs, 0 for the usual one.
	hops  uint8
	fault ChecksumFault
}

type icmpForm struct {
	known     bool
	typ, code uint8
	// rest is what follows the checksum: 4 bytes, and in ICMPv6 maybe more.
	rest func() gopacket.SerializableLayer
}

func form(typ, code uint8, rest uint32) icmpForm {
	return icmpForm{known: true, typ: typ, code: code, rest: func() gopacket.SerializableLayer {
		return gopacket.Payload(binary.BigEndian.AppendUint32(nil, rest))
	}}
}

func newICMP(l icmp, options []ICMPOption) Layer {
	for _, o := range options {
		o.icmp(&l)
	}
	return l
}

func (l icmp) String() string { return l.name }

func (l icmp) protocol(v6 bool) (layers.IPProtocol, bool) {
	if v6 {
		return layers.IPProtocolICMPv6, l.v6.known
	}
	return layers.IPProtocolICMPv4, l.v4.known
}

func (l icmp) serialize(e *encoder) error {
	pseudo, err := e.pseudo()
	if err != nil {
		return err
	}
	f := l.v4
	if e.ip.v6() {
		f = l.v6
	}
	if !f.known {
		return fmt.Errorf("does not exist in %s", e.ip)
	}
	if err := f.rest().SerializeTo(e, computed()); err != nil {
		return err
	}
	if e.ip.v6() {
		header := layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(f.typ, f.code)}
		if err := header.SetNetworkLayerForChecksum(pseudo); err != nil {
			return err
		}
		err = header.SerializeTo(e, computed())
	} else {
		// gopacket writes all 8 bytes of the header; the rest is there already.
		rest := binary.BigEndian.Uint32(e.Bytes())
		inside := append([]byte(nil), e.Bytes()[4:]...)
		if err := e.Clear(); err != nil {
			return err
		}
		if err := gopacket.Payload(inside).SerializeTo(e, computed()); err != nil {
			return err
		}
		header := layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(f.typ, f.code), Id: uint16(rest >> 16), Seq: uint16(rest)}
		err = header.SerializeTo(e, computed())
	}
	if err != nil {
		return err
	}
	l.fault.spoil(e.Bytes()[2:4])
	return nil
}

// ICMP is a message of any type and code; rest are the 4 bytes after the
// checksum. The numbers belong to the family of the IP header.
func ICMP(typ, code uint8, rest uint32, options ...ICMPOption) Layer {
	return newICMP(icmp{name: "ICMP", v4: form(typ, code, rest), v6: form(typ, code, rest)}, options)
}

// Echo is an echo request.
func Echo(id, seq uint16, options ...ICMPOption) Layer {
	rest := uint32(id)<<16 | uint32(seq)
	return newICMP(icmp{name: "Echo", v4: form(8, 0, rest), v6: form(128, 0, rest)}, options)
}

// EchoReply is the answer to Echo.
func EchoReply(id, seq uint16, options ...ICMPOption) Layer {
	rest := uint32(id)<<16 | uint32(seq)
	return newICMP(icmp{name: "EchoReply", v4: form(0, 0, rest), v6: form(129, 0, rest)}, options)
}

// UnreachableCode says why a destination is unreachable: the code of ICMP in
// the high byte, that of ICMPv6 in the low byte.
type UnreachableCode uint16

// The reasons that both families know, and the one of ICMP for protocols.
const (
	NetUnreachable      UnreachableCode = 0        // no route, in ICMPv6
	HostUnreachable     UnreachableCode = 1<<8 | 3 // address unreachable, in ICMPv6
	ProtocolUnreachable UnreachableCode = 2<<8 | noCode
	PortUnreachable     UnreachableCode = 3<<8 | 4
	AdminProhibited     UnreachableCode = 13<<8 | 1

	noCode = 0xff
)

// Code is any code of a destination unreachable message: 0 to 15 in ICMP, 0 to
// 8 in ICMPv6.
func Code(code uint8) UnreachableCode { return UnreachableCode(code)<<8 | UnreachableCode(code) }

// Unreachable is a destination unreachable message; Quote follows, as after
// all errors. "Fragmentation needed" is TooBig.
func Unreachable(code UnreachableCode, options ...ICMPOption) Layer {
	l := icmp{name: "Unreachable"}
	if c := uint8(code >> 8); c <= 15 {
		l.v4 = form(3, c, 0)
	}
	if c := uint8(code); c <= 8 {
		l.v6 = form(1, c, 0)
	}
	return newICMP(l, options)
}

// TooBig is "fragmentation needed and DF set" with the MTU of the next hop
// (RFC 1191), or an ICMPv6 packet too big. In ICMP it is cut to 16 bits.
func TooBig(mtu uint32, options ...ICMPOption) Layer {
	return newICMP(icmp{name: "TooBig", v4: form(3, 4, mtu&0xffff), v6: form(2, 0, mtu)}, options)
}

// TTLExceeded is "time exceeded in transit", or "hop limit exceeded".
func TTLExceeded(options ...ICMPOption) Layer {
	return newICMP(icmp{name: "TTLExceeded", v4: form(11, 0, 0), v6: form(3, 0, 0)}, options)
}

// ReassemblyExceeded says that fragments did not arrive in time.
func ReassemblyExceeded(options ...ICMPOption) Layer {
	return newICMP(icmp{name: "ReassemblyExceeded", v4: form(11, 1, 0), v6: form(3, 1, 0)}, options)
}

// ParameterProblem points to a byte of the quoted packet. In ICMP the pointer
// is cut to 8 bits.
func ParameterProblem(code uint8, pointer uint32, options ...ICMPOption) Layer {
	return newICMP(icmp{name: "ParameterProblem", v4: form(12, code, pointer<<24), v6: form(4, code, pointer)}, options)
}

// Redirect is the ICMP redirect; the one of IPv6 is NDRedirect. Code 0 is for
// a network, 1 for a host.
func Redirect(code uint8, gateway netip.Addr, options ...ICMPOption) Layer {
	l := icmp{name: "Redirect"}
	if gateway.Is4() {
		l.v4 = form(5, code, binary.BigEndian.Uint32(gateway.AsSlice()))
	}
	return newICMP(l, options)
}

// QuoteOption changes what an ICMP error quotes: L4Bytes, NoChecksum or
// BadChecksum.
type QuoteOption interface{ quote(*quote) }

// L4Bytes cuts a quote that many bytes after the IP header and its extensions.
// Lengths in the quoted headers stay as they were.
type L4Bytes int

func (o L4Bytes) quote(q *quote)       { v := int(o); q.l4 = &v }
func (o ChecksumFault) quote(q *quote) { q.fault = o }

// Quote is the IP packet of a frame, as an ICMP error quotes it: whole where no
// option says otherwise.
func Quote(frame []byte, options ...QuoteOption) Layer {
	q := quote{frame: frame}
	for _, o := range options {
		o.quote(&q)
	}
	return q
}

type quote struct {
	unannounced
	frame []byte
	l4    *int
	fault ChecksumFault
}

func (quote) String() string { return "Quote" }

func (q quote) serialize(e *encoder) error {
	b, err := network(q.frame)
	if err != nil {
		return err
	}
	b = append([]byte(nil), b...)
	end, err := endOfHeaders(b)
	if err != nil {
		return err
	}
	if q.fault != 0 {
		sum, err := checksumOf(end.protocol, b[end.offset:])
		if err != nil {
			return err
		}
		q.fault.spoil(sum)
	}
	if q.l4 != nil {
		if *q.l4 < 0 || end.offset+*q.l4 > len(b) {
			return fmt.Errorf("cut at byte %d of %d", *q.l4, len(b)-end.offset)
		}
		b = b[:end.offset+*q.l4]
	}
	return gopacket.Payload(b).SerializeTo(e, computed())
}

// checksumOf is the checksum within a transport header.
func checksumOf(protocol uint8, b []byte) ([]byte, error) {
	var from, to int
	switch layers.IPProtocol(protocol) {
	case layers.IPProtocolTCP:
		from, to = 16, 18
	case layers.IPProtocolUDP:
		from, to = 6, 8
	case layers.IPProtocolSCTP:
		from, to = 8, 12
	case layers.IPProtocolICMPv4, layers.IPProtocolICMPv6:
		from, to = 2, 4
	default:
		return nil, fmt.Errorf("protocol %d has no checksum", protocol)
	}
	if len(b) < to {
		return nil, errors.New("transport header is cut")
	}
	return b[from:to], nil
}
