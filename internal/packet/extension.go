// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/gopacket/gopacket/layers"
)

// extension is an IPv6 extension header: the number before it is always its
// own, also where Proto was given.
type extension interface {
	Layer
	isExtension()
}

// HopByHop is a hop-by-hop options header of size bytes, header included,
// filled with padding options; size is a multiple of 8 from 8 to 2048.
func HopByHop(size int) Layer {
	return optionsHeader{number: layers.IPProtocolIPv6HopByHop, size: size}
}

// DestinationOptions is a destination options header of size bytes, header
// included, filled with padding options; size is a multiple of 8 from 8 to 2048.
func DestinationOptions(size int) Layer {
	return optionsHeader{number: layers.IPProtocolIPv6Destination, size: size}
}

// RouterAlert is a hop-by-hop header with the router alert option that MLD
// messages carry (RFC 2711).
func RouterAlert() Layer {
	return optionsHeader{number: layers.IPProtocolIPv6HopByHop, size: 8, alert: true}
}

type optionsHeader struct {
	unannounced
	number layers.IPProtocol
	size   int
	alert  bool
}

func (optionsHeader) isExtension() {}

func (l optionsHeader) String() string {
	if l.number == layers.IPProtocolIPv6HopByHop {
		return "HopByHop"
	}
	return "DestinationOptions"
}

func (l optionsHeader) protocol(v6 bool) (layers.IPProtocol, bool) { return l.number, v6 }

func (l optionsHeader) serialize(e *encoder) error {
	if l.size < 8 || l.size > 2048 || l.size%8 != 0 {
		return fmt.Errorf("size %d is not a multiple of 8 from 8 to 2048", l.size)
	}
	next, err := e.nextProtocol()
	if err != nil {
		return err
	}
	b, err := e.PrependBytes(l.size)
	if err != nil {
		return err
	}
	clear(b)
	b[0], b[1] = byte(next), byte(l.size/8-1)
	rest := b[2:]
	if l.alert {
		rest[0], rest[1] = 5, 2 // router alert: MLD, value 0
		rest = rest[4:]
	}
	// gopacket's own padding is skipped: for a length of 6 modulo 8 it adds 6
	// bytes where 2 are missing.
	for len(rest) > 0 {
		n := min(len(rest), 2+255)
		if len(rest)-n == 1 {
			n-- // PadN needs two bytes; the next round takes them
		}
		rest[0], rest[1] = 1, byte(n-2)
		rest = rest[n:]
	}
	return nil
}

// Routing is a routing header of type 4 (segment routing, RFC 8754). The
// segments are in the order of the header, the last one to be visited first:
// while segmentsLeft is not 0, transport checksums cover segments[0] as the
// destination.
func Routing(segmentsLeft uint8, segments ...netip.Addr) Layer {
	return routing{segmentsLeft: segmentsLeft, segments: segments}
}

type routing struct {
	unannounced
	segmentsLeft uint8
	segments     []netip.Addr
}

func (routing) isExtension()   {}
func (routing) String() string { return "Routing" }

func (routing) protocol(v6 bool) (layers.IPProtocol, bool) { return layers.IPProtocolIPv6Routing, v6 }

func (l routing) last() netip.Addr {
	if len(l.segments) == 0 {
		return netip.IPv6Unspecified()
	}
	return l.segments[0]
}

func (l routing) serialize(e *encoder) error {
	if len(l.segments) == 0 {
		return errors.New("no segments")
	}
	next, err := e.nextProtocol()
	if err != nil {
		return err
	}
	header := layers.IPv6Routing{
		RoutingType: 4, SegmentsLeft: l.segmentsLeft,
		Reserved: []byte{byte(len(l.segments) - 1), 0, 0, 0}, // last entry, flags, tag
	}
	for _, s := range l.segments {
		if !s.Is6() {
			return fmt.Errorf("segment %s is not an IPv6 address", s)
		}
		header.SourceRoutingIPs = append(header.SourceRoutingIPs, net.IP(s.AsSlice()))
	}
	header.NextHeader = next // of an embedded struct that is not exported
	return header.SerializeTo(e, computed())
}

// FragmentHeader is an IPv6 fragment header. The offset is in bytes, a multiple
// of 8. A whole packet is cut by Fragment; this is for atomic fragments and
// for headers that lie.
func FragmentHeader(id uint32, offset uint16, more bool) Layer {
	return fragmentHeader{id: id, offset: offset, more: more}
}

type fragmentHeader struct {
	unannounced
	id     uint32
	offset uint16
	more   bool
}

func (fragmentHeader) isExtension()   {}
func (fragmentHeader) String() string { return "FragmentHeader" }

func (fragmentHeader) protocol(v6 bool) (layers.IPProtocol, bool) {
	return layers.IPProtocolIPv6Fragment, v6
}

func (l fragmentHeader) serialize(e *encoder) error {
	next, err := e.nextProtocol()
	if err != nil {
		return err
	}
	if l.offset%8 != 0 {
		return fmt.Errorf("fragment offset %d is not a multiple of 8", l.offset)
	}
	return (&layers.IPv6Fragment{
		NextHeader: next, FragmentOffset: l.offset / 8, MoreFragments: l.more, Identification: l.id,
	}).SerializeTo(e, computed())
}

// ipEnd describes the header chain of an IP packet.
type ipEnd struct {
	// protocol of what the chain leads to.
	protocol uint8
	// offset where it begins.
	offset int
	// perFragment is where a fragment header of IPv6 belongs, and announce the
	// index of the next header field that leads there.
	perFragment, announce int
	// fragment is the offset of the fragment header of IPv6, or -1.
	fragment int
}

// endOfHeaders walks the headers of an IP packet up to its transport header.
func endOfHeaders(b []byte) (ipEnd, error) {
	if len(b) >= 20 && b[0]>>4 == 4 {
		end := ipEnd{protocol: b[9], offset: int(b[0]&15) * 4, fragment: -1}
		if end.offset < 20 || end.offset > len(b) {
			return ipEnd{}, fmt.Errorf("header length %d of IPv4 packet of %d bytes", end.offset, len(b))
		}
		return end, nil
	}
	if len(b) < 40 || b[0]>>4 != 6 {
		return ipEnd{}, errors.New("not an IP packet")
	}
	end := ipEnd{protocol: b[6], offset: 40, perFragment: 40, announce: 6, fragment: -1}
	for {
		switch layers.IPProtocol(end.protocol) {
		case layers.IPProtocolIPv6HopByHop, layers.IPProtocolIPv6Routing, layers.IPProtocolIPv6Destination, layers.IPProtocolIPv6Fragment:
		default:
			return end, nil
		}
		rest := b[end.offset:]
		if len(rest) < 8 {
			return ipEnd{}, errors.New("extension header is cut")
		}
		size := 8
		if layers.IPProtocol(end.protocol) == layers.IPProtocolIPv6Fragment {
			end.fragment = end.offset
		} else if size += int(rest[1]) * 8; size > len(rest) {
			return ipEnd{}, errors.New("extension header is cut")
		}
		kind := layers.IPProtocol(end.protocol)
		announce := end.offset
		end.protocol = rest[0]
		end.offset += size
		if kind == layers.IPProtocolIPv6HopByHop || kind == layers.IPProtocolIPv6Routing {
			// All headers up to the routing header are in each fragment (RFC
			// 8200 section 4.5).
			end.perFragment, end.announce = end.offset, announce
		}
		if end.fragment >= 0 && binary.BigEndian.Uint16(b[end.fragment+2:])&^7 != 0 {
			return end, nil // what follows is the middle of something
		}
	}
}

// network strips the link headers of a frame.
func network(frame []byte) ([]byte, error) {
	for offset := 12; len(frame) >= offset+2; offset += 4 {
		switch layers.EthernetType(binary.BigEndian.Uint16(frame[offset:])) {
		case layers.EthernetTypeDot1Q, layers.EthernetTypeQinQ:
		case layers.EthernetTypeIPv4, layers.EthernetTypeIPv6:
			return frame[offset+2:], nil
		default:
			return nil, errors.New("not an IP packet")
		}
	}
	return nil, errors.New("frame is cut")
}
