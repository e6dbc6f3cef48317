// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/gopacket/gopacket/layers"
)

// IPOption changes an IPv4 or IPv6 header.
type IPOption interface{ ip(*ipHeader) }

// TTL is the time to live, or the hop limit.
type TTL uint8

// TOS is the type of service, or the traffic class: DSCP and ECN.
type TOS uint8

// ID is the identification of an IPv4 packet. IPv6 has it in FragmentHeader.
type ID uint16

// FragOffset is an IPv4 fragment offset in bytes, a multiple of 8.
type FragOffset uint16

// FlowLabel is the flow label of an IPv6 header, 20 bits.
type FlowLabel uint32

// Proto is the protocol number of what follows the IP header and its
// extensions: needed before a payload, and wrong on purpose before all else.
type Proto uint8

// Length replaces a computed length in bytes: the total length of IPv4, the
// payload length of IPv6, the length of UDP.
type Length uint16

// HeaderWords replaces a computed header length in units of 4 bytes: the IHL
// of IPv4, the data offset of TCP.
type HeaderWords uint8

// NOPs is that many no-operation options in an IPv4 header, 40 at most.
type NOPs uint8

// RecordRoute is a record route option with that many empty slots, 9 at most,
// in an IPv4 header.
type RecordRoute uint8

// IPFlag is a flag of the IPv4 header.
type IPFlag uint8

const (
	// DF forbids fragmenting. In IPv6, where routers never fragment, it is
	// accepted and does nothing.
	DF IPFlag = 1 << 1
	// MF says that more fragments follow; IPv6 has it in FragmentHeader.
	MF IPFlag = 1 << 0
)

func (o TTL) ip(h *ipHeader)         { v := uint8(o); h.ttl = &v }
func (o TOS) ip(h *ipHeader)         { h.tos = uint8(o) }
func (o FlowLabel) ip(h *ipHeader)   { h.only("FlowLabel", 6); h.label = uint32(o) }
func (o ID) ip(h *ipHeader)          { h.only("ID", 4); h.id = uint16(o) }
func (o FragOffset) ip(h *ipHeader)  { h.only("FragOffset", 4); h.offset = uint16(o) }
func (o Proto) ip(h *ipHeader)       { v := layers.IPProtocol(o); h.proto = &v }
func (o Length) ip(h *ipHeader)      { v := uint16(o); h.length = &v }
func (o HeaderWords) ip(h *ipHeader) { h.only("HeaderWords", 4); h.words = uint8(o) }
func (o ChecksumFault) ip(h *ipHeader) {
	h.only("checksum", 4)
	h.fault = o
}

func (o IPFlag) ip(h *ipHeader) {
	if o&MF != 0 {
		h.only("MF", 4)
	}
	h.flags |= o
}

func (o NOPs) ip(h *ipHeader) {
	h.only("NOPs", 4)
	for range o {
		h.options = append(h.options, layers.IPv4Option{OptionType: 1, OptionLength: 1})
	}
}

func (o RecordRoute) ip(h *ipHeader) {
	h.only("RecordRoute", 4)
	data := make([]byte, 1+4*int(o))
	data[0] = 4 // the first free slot, counted from the option's type, from 1
	h.options = append(h.options, layers.IPv4Option{OptionType: 7, OptionLength: uint8(2 + len(data)), OptionData: data})
}

// IP is an IPv4 or IPv6 header, as the addresses are. The protocol is that of
// the next layer.
func IP(src, dst netip.Addr, options ...IPOption) Layer {
	h := ipHeader{src: src, dst: dst}
	if src.Is4() != dst.Is4() || src.Is4In6() || dst.Is4In6() || !src.IsValid() || !dst.IsValid() {
		h.err = fmt.Errorf("addresses %s and %s are not of one family", src, dst)
	}
	for _, o := range options {
		o.ip(&h)
	}
	return h
}

// IPv4 is IP where only IPv4 is meant.
func IPv4(src, dst netip.Addr, options ...IPOption) Layer {
	return ofFamily(IP(src, dst, options...).(ipHeader), 4)
}

// IPv6 is IP where only IPv6 is meant.
func IPv6(src, dst netip.Addr, options ...IPOption) Layer {
	return ofFamily(IP(src, dst, options...).(ipHeader), 6)
}

type ipHeader struct {
	src, dst netip.Addr
	ttl      *uint8
	tos      uint8
	id       uint16
	offset   uint16
	flags    IPFlag
	label    uint32
	options  []layers.IPv4Option
	proto    *layers.IPProtocol
	length   *uint16
	words    uint8
	fault    ChecksumFault
	err      error // of the constructor, reported by New, which knows the place
}

func (h *ipHeader) v6() bool { return h.src.Is6() }

func (h *ipHeader) only(option string, family int) {
	if h.v6() != (family == 6) {
		h.err = errors.Join(h.err, fmt.Errorf("option %s is for IPv%d", option, family))
	}
}

func ofFamily(h ipHeader, family int) Layer {
	if h.v6() != (family == 6) {
		h.err = errors.Join(h.err, fmt.Errorf("%s is not an IPv%d address", h.src, family))
	}
	return h
}

func (h ipHeader) String() string {
	if h.v6() {
		return "IPv6"
	}
	return "IPv4"
}

func (h ipHeader) etherType() (layers.EthernetType, bool) {
	if h.v6() {
		return layers.EthernetTypeIPv6, true
	}
	return layers.EthernetTypeIPv4, true
}

func (h ipHeader) protocol(bool) (layers.IPProtocol, bool) {
	if h.v6() {
		return layers.IPProtocolIPv6, true
	}
	return layers.IPProtocolIPv4, true
}

func (h ipHeader) serialize(e *encoder) error {
	next, err := e.nextProtocol()
	if err != nil {
		return err
	}
	ttl := e.ip.hops
	if h.ttl != nil {
		ttl = *h.ttl
	}
	if h.v6() {
		return h.serialize6(e, next, ttl)
	}
	return h.serialize4(e, next, ttl)
}

func (h ipHeader) serialize4(e *encoder, next layers.IPProtocol, ttl uint8) error {
	room := 0
	for _, o := range h.options {
		room += int(o.OptionLength)
	}
	room = (room + 3) / 4 * 4
	switch {
	case room > 40:
		return fmt.Errorf("%d bytes of options, at most 40 fit", room)
	case h.offset%8 != 0:
		return fmt.Errorf("fragment offset %d is not a multiple of 8", h.offset)
	case 20+room+len(e.Bytes()) > 65535:
		return fmt.Errorf("%d bytes, at most 65535 fit", 20+room+len(e.Bytes()))
	}
	header := layers.IPv4{
		Version: 4, IHL: uint8(5 + room/4), TOS: h.tos, Length: uint16(20 + room + len(e.Bytes())), Id: h.id,
		Flags: layers.IPv4Flag(h.flags), FragOffset: h.offset / 8, TTL: ttl, Protocol: next,
		SrcIP: h.src.AsSlice(), DstIP: h.dst.AsSlice(), Options: h.options,
	}
	if h.words != 0 {
		header.IHL = h.words
	}
	if h.length != nil {
		header.Length = *h.length
	}
	if err := header.SerializeTo(e, checksums()); err != nil {
		return err
	}
	h.fault.spoil(e.Bytes()[10:12])
	return nil
}

func (h ipHeader) serialize6(e *encoder, next layers.IPProtocol, ttl uint8) error {
	if len(e.Bytes()) > 65535 {
		return fmt.Errorf("%d bytes of payload, at most 65535 fit", len(e.Bytes()))
	}
	header := layers.IPv6{
		Version: 6, TrafficClass: h.tos, FlowLabel: h.label, Length: uint16(len(e.Bytes())), NextHeader: next,
		HopLimit: ttl, SrcIP: h.src.AsSlice(), DstIP: h.dst.AsSlice(),
	}
	if h.length != nil {
		header.Length = *h.length
	}
	return header.SerializeTo(e, checksums())
}
