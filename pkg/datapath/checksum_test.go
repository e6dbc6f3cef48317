// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// edges are checksums where carries and zeros are easily got wrong.
func edges() []uint16 {
	return []uint16{0x0000, 0x0001, 0x00ff, 0x0100, 0xfeff, 0xff00, 0xfffe, 0xffff}
}

// testChecksums makes packets whose checksums, before or after the translation,
// are at the edges of their arithmetic.
func testChecksums(t *testing.T, n *node) {
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range transports() {
			offset, has := map[string]int{"TCP": 16, "UDP": 6, "ICMP echo": 2}[tr.name]
			if !has {
				continue
			}
			t.Run(tr.name, func(t *testing.T) {
				for _, from := range []uint16{inside, low} {
					testChecksumEdges(t, n, f, tr, from, offset)
				}
			})
		}
	})
	t.Run("IPv4 header", func(t *testing.T) { testHeaderEdges(t, n, v4()) })
	eachFamily(t, func(t *testing.T, f family) {
		for _, a := range f.carrying() {
			t.Run(a.String(), func(t *testing.T) { testAddressCarries(t, n, f, a) })
		}
	})
}

// carrying are addresses whose difference to the uplink's makes carries of each
// kind, from the lower half of the sum, from the upper, from both and from none.
func (f family) carrying() []netip.Addr {
	if f.v6() {
		return []netip.Addr{addr("fd00:10::1"), addr("fd00:10::ffff:ffff:ffff:ffff"), addr("fd00:10::8000:7fff:8000:7fff"), addr("fd00:10::fffe:1:feff:100")}
	}
	return []netip.Addr{addr("10.10.0.255"), addr("10.10.255.1"), addr("10.10.128.127"), addr("10.10.254.253")}
}

// testAddressCarries gives an endpoint another address, by which packets and quotes
// are translated in both directions.
func testAddressCarries(t *testing.T, n *node, f family, a netip.Addr) {
	e := n.a
	e.Addresses = []netip.Addr{a}
	n.do(t, func() error { return n.AttachEndpoint(e) })
	t.Cleanup(func() { must(t, n.maps.Endpoints.Delete(maps.NewAddress(a))) })
	f.a = a
	for _, w := range translatedPassages(n, f) {
		t.Run(w.name, func(t *testing.T) { testErrors(t, w, transports()[1], low) })
	}
}

// word is a payload of one number, by which a test steers the checksum.
func word(w uint16) packet.Layer { return packet.Data(binary.BigEndian.AppendUint16(nil, w)) }

// steer returns the number that makes the checksum of a packet a wanted one, when
// it is have with the number 0 (RFC 1624, equation 3: have = want + number).
func steer(have, want uint16) uint16 {
	sum := uint32(have) + uint32(^want)
	return uint16(sum>>16 + sum&0xffff)
}

func testChecksumEdges(t *testing.T, n *node, f family, tr transport, from uint16, offset int) {
	n.forget(t)
	outside := n.open(t, f, tr, from)
	at := 14 + 20 + offset
	if f.v6() {
		at += 20
	}
	before := func(w uint16) []packet.Layer { return ip(f.a, f.world, 64, tr.there(from)[0], word(w)) }
	after := func(w uint16) []packet.Layer { return ip(f.host, f.world, 63, tr.there(outside)[0], word(w)) }
	answer := func(w uint16) []packet.Layer { return ip(f.world, f.host, 58, tr.back(outside)[0], word(w)) }
	answered := func(w uint16) []packet.Layer { return ip(f.world, f.a, 57, tr.back(from)[0], word(w)) }
	sum := func(layers []packet.Layer) uint16 { return binary.BigEndian.Uint16(sent(n.a, layers...)[at:]) }
	first := true
	for _, edge := range edges() {
		for name, of := range map[string]func(uint16) []packet.Layer{"before": before, "after": after, "before back": answer, "after back": answered} {
			w := steer(sum(of(0)), edge)
			t.Run(fmt.Sprintf("%#04x %s", edge, name), func(t *testing.T) {
				n.check(t, n.fromA(before(w)...), forwarded(sent(n.a, after(w)...)))
				wanted := deliveredAs(delivered(n.a, answered(w)...))
				if first {
					wanted.counters = append(wanted.counters, "decided")
				}
				first = false
				n.check(t, n.fromWorld(answer(w)...), wanted)
			})
		}
	}
}

// testHeaderEdges steers the header's checksum by the identification.
func testHeaderEdges(t *testing.T, n *node, f family) {
	n.forget(t)
	packets := func(src family, ttl uint8, id uint16) []packet.Layer {
		return append([]packet.Layer{packet.IP(src.a, f.world, packet.TTL(ttl), packet.ID(id))}, udp(inside, server)...)
	}
	uplink := f
	uplink.a = f.host
	n.open(t, f, transports()[1], inside)
	sum := func(layers []packet.Layer) uint16 { return binary.BigEndian.Uint16(sent(n.a, layers...)[14+10:]) }
	for _, edge := range edges() {
		for _, ttl := range []uint8{2, 64, 255} {
			for name, id := range map[string]uint16{
				"before": steer(sum(packets(f, ttl, 0)), edge),
				"after":  steer(sum(packets(uplink, ttl-1, 0)), edge),
			} {
				t.Run(fmt.Sprintf("%#04x %s, TTL %d", edge, name, ttl), func(t *testing.T) {
					n.check(t, n.fromA(packets(f, ttl, id)...), forwarded(sent(n.a, packets(uplink, ttl-1, id)...)))
				})
			}
		}
	}
}

// skewed is a frame with a number added to a checksum at an offset (RFC 1071).
func skewed(frame []byte, at int, by uint16) []byte {
	if frame == nil {
		return nil
	}
	frame = slices.Clone(frame)
	sum := uint32(binary.BigEndian.Uint16(frame[at:])) + uint32(by)
	binary.BigEndian.PutUint16(frame[at:], uint16(sum>>16+sum&0xffff))
	return frame
}

// testWrongChecksums: a checksum is as wrong after a translation as it was before, so that the
// receiver drops the packet.
func testWrongChecksums(t *testing.T, w passage) {
	header := 14 + 20
	if w.v6() {
		header = 14 + 40
	}
	check := func(t *testing.T, name string, in run, out want, at int) {
		t.Run(name, func(t *testing.T) {
			for _, by := range []uint16{1, 0x5555, 0xfffe} {
				in, out := in, out
				in.in, out.out = skewed(in.in, at, by), skewed(out.out, at, by)
				w.check(t, in, out)
			}
		})
	}
	for _, tr := range w.those(transports()) {
		offset, has := map[string]int{"TCP": 16, "UDP": 6, "ICMP echo": 2}[tr.name]
		if !has {
			continue
		}
		came, went := w.begin(t, tr, low)
		in, out := w.frames(64, w.comes(tr, came), w.leaves(tr, went))
		w.check(t, in, out) // and is known now
		known := w.again(tr, w.went.ip(64-w.hops, w.leaves(tr, went)...))
		check(t, tr.name, in, known, header+offset)
		if !w.v6() {
			check(t, tr.name+", header", in, known, 14+10)
		}
		refused := packet.Unreachable(packet.PortUnreachable)
		in, out = w.frames(64, []packet.Layer{refused, w.quoted(tr, came)}, []packet.Layer{refused, w.quotedAfter(tr, went)})
		out = w.or(w.others.untold, out)
		check(t, tr.name+", error", in, out, header+2)
		check(t, tr.name+", quote", in, out, header+8+header-14+offset)
	}
}
