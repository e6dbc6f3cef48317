// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Layer is one header of a frame, or its payload. A Layer may be used in any
// number of frames, by any number of goroutines.
type Layer interface {
	// String names the layer where New panics.
	String() string
	// etherType is the number that announces the layer in a link header.
	etherType() (layers.EthernetType, bool)
	// protocol is the number that announces the layer in an IP header.
	protocol(v6 bool) (layers.IPProtocol, bool)
	// serialize prepends the layer to what e holds already.
	serialize(e *encoder) error
}

// unannounced is embedded by layers that link headers or IP headers have no
// number for.
type unannounced struct{}

func (unannounced) etherType() (layers.EthernetType, bool)  { return 0, false }
func (unannounced) protocol(bool) (layers.IPProtocol, bool) { return 0, false }

// encoder is what a layer sees while it is written: frames grow from the
// inside out.
type encoder struct {
	gopacket.SerializeBuffer
	// ip is the closest IP header outside the layer, or the layer itself.
	ip *enclosing
	// next is the layer inside, nil for the innermost.
	next Layer
}

// enclosing is an IP header with what the layers inside it decide.
type enclosing struct {
	ipHeader
	// hops is the TTL or hop limit where the test gave none.
	hops uint8
	// final is the last destination: behind a routing header it differs from
	// the destination in the IP header (RFC 8200 section 8.1).
	final netip.Addr
}

// New builds a frame from its layers, the first of which is Eth. It panics
// when they do not make a frame.
func New(stack ...Layer) []byte {
	if len(stack) == 0 {
		panic("packet: no layers")
	}
	if _, ok := stack[0].(ethernet); !ok {
		panic(fmt.Sprintf("packet: the first layer is %s, want Ethernet", stack[0]))
	}
	var ip *enclosing
	inside := make([]*enclosing, len(stack))
	for i, layer := range stack {
		switch l := layer.(type) {
		case ipHeader:
			if l.err != nil {
				panic(fmt.Sprintf("packet: build layer %d, %s: %v", i+1, l, l.err))
			}
			ip = &enclosing{ipHeader: l, hops: 64, final: l.dst}
		case routing:
			if ip != nil && l.segmentsLeft > 0 {
				ip.final = l.last()
			}
		case icmp:
			if ip != nil && l.hops != 0 {
				ip.hops = l.hops
			}
		}
		inside[i] = ip
	}
	e := &encoder{SerializeBuffer: gopacket.NewSerializeBuffer()}
	for i, layer := range slices.Backward(stack) {
		e.ip = inside[i]
		if err := layer.serialize(e); err != nil {
			panic(fmt.Sprintf("packet: build layer %d, %s: %v", i+1, layer, err))
		}
		e.next = layer
	}
	return slices.Clone(e.Bytes())
}

// computed fills in lengths and checksums.
func computed() gopacket.SerializeOptions {
	return gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
}

// checksums fills in checksums and leaves lengths as the layer has them.
func checksums() gopacket.SerializeOptions {
	return gopacket.SerializeOptions{ComputeChecksums: true}
}

// nextEtherType is the number of the layer inside a link header.
func (e *encoder) nextEtherType() (layers.EthernetType, error) {
	switch l := e.next.(type) {
	case nil, payload:
		return localExperimental, nil
	default:
		if number, ok := l.etherType(); ok {
			return number, nil
		}
		return 0, fmt.Errorf("%s cannot follow", l)
	}
}

// nextProtocol is the number of the layer inside an IP header or extension.
func (e *encoder) nextProtocol() (layers.IPProtocol, error) {
	if e.ip == nil {
		return 0, errors.New("no IP header outside")
	}
	if e.next != nil {
		if number, ok := e.next.protocol(e.ip.v6()); ok {
			if _, extension := e.next.(extension); extension || e.ip.proto == nil {
				return number, nil
			}
		}
	}
	if e.ip.proto != nil {
		return *e.ip.proto, nil
	}
	if e.next == nil {
		return layers.IPProtocolNoNextHeader, nil
	}
	return 0, fmt.Errorf("%s cannot follow without Proto", e.next)
}

// pseudo is the network layer whose addresses the checksum of a transport
// header covers.
func (e *encoder) pseudo() (gopacket.NetworkLayer, error) {
	if e.ip == nil {
		return nil, errors.New("no IP header outside")
	}
	if e.ip.v6() {
		return &layers.IPv6{SrcIP: e.ip.src.AsSlice(), DstIP: e.ip.final.AsSlice()}, nil
	}
	return &layers.IPv4{SrcIP: e.ip.src.AsSlice(), DstIP: e.ip.final.AsSlice()}, nil
}

// A ChecksumFault is an option of every layer that has a checksum.
type ChecksumFault uint8

const (
	// BadChecksum makes the checksum wrong, and not zero.
	BadChecksum ChecksumFault = iota + 1
	// NoChecksum makes it zero: "not computed" in UDP over IPv4, wrong
	// elsewhere. In Quote it is the checksum of the quoted transport header.
	NoChecksum
)

// spoil applies the fault to a checksum that was just written.
func (f ChecksumFault) spoil(sum []byte) {
	switch f {
	case BadChecksum:
		sum[0] ^= 0x55
		if sum[0] == 0 && sum[1] == 0 {
			sum[1] = 0x55
		}
	case NoChecksum:
		clear(sum)
	}
}

// Payload is that many bytes of a pattern that no two blocks of 256 bytes share,
// so that bytes that were moved or lost show.
func Payload(n int) Layer {
	b := make([]byte, n)
	for i := range b {
		// The index of the byte's block is mixed in, so the pattern does not
		// repeat after 256 bytes.
		b[i] = byte(i) ^ byte(i>>8*31)
	}
	return payload{data: b}
}

// Data is a payload of exactly these bytes.
func Data[B ~string | ~[]byte](b B) Layer { return payload{data: []byte(b)} }

type payload struct {
	unannounced
	data []byte
}

func (p payload) String() string { return fmt.Sprintf("Payload(%d)", len(p.data)) }

func (p payload) serialize(e *encoder) error {
	return gopacket.Payload(p.data).SerializeTo(e, computed())
}
