// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"fmt"
	"net/netip"

	"github.com/tendril-net/tendril/internal/packet"
)

// rewriting is what may be done to a packet, besides its checksums.
type rewriting struct {
	// source and destination replace an end, where they are valid.
	source, destination netip.AddrPort
	// quoteSource and quoteDestination do so in the quote of an ICMP error.
	quoteSource, quoteDestination netip.AddrPort
	// hop takes one off the TTL.
	hop bool
	// to is the receiver, whose MACs are written.
	to *Endpoint
}

// made compares the packet after with the one before and a change, byte for byte;
// checksums must be as right or wrong as they were.
func (p *outcome) made(c rewriting) error {
	want := bytes.Clone(p.result.in)
	replace := func(s *seenPacket, address, port int, to netip.AddrPort) {
		if !to.IsValid() {
			return
		}
		copy(want[address:], to.Addr().AsSlice())
		if !s.later && s.icmp != errorICMP && s.hasPorts() {
			if s.protocol == s.icmpNumber() {
				port = 4
			}
			want[s.transport+port], want[s.transport+port+1] = byte(to.Port()>>8), byte(to.Port())
		}
	}
	ends := func(s *seenPacket, source, destination netip.AddrPort) {
		at, size := s.network+12, 4
		if s.v6 {
			at, size = s.network+8, 16
		}
		replace(s, at, 0, source)
		replace(s, at+size, 2, destination)
	}
	if p.in.kind == ipKind {
		ends(p.in, c.source, c.destination)
		if p.in.quote != nil {
			ends(p.in.quote, c.quoteSource, c.quoteDestination)
		}
	}
	if c.hop {
		at := p.in.network + 8
		if p.in.v6 {
			at = p.in.network + 7
		}
		want[at]--
	}
	if c.to != nil {
		copy(want, c.to.MAC)
		copy(want[6:], c.to.HostMAC)
	}
	if c == (rewriting{}) {
		if !bytes.Equal(p.result.out, p.result.in) {
			return fmt.Errorf("it is changed:\n%s", packet.Diff(p.result.in, p.result.out))
		}
		return nil
	}
	got := bytes.Clone(p.result.out)
	for _, sum := range p.in.checksums() {
		for _, b := range [][]byte{got, want} {
			b[sum.at], b[sum.at+1] = 0, 0
		}
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("it is not as it should be, apart from checksums:\n%s", packet.Diff(want, p.result.out))
	}
	return sameSums(p.in, p.out)
}
