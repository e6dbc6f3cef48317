// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/packet"
)

// extensionsMax is how many extension headers the programs follow
// (IPV6_EXTENSIONS_MAX of bpf/lib/parse.h).
const extensionsMax = 8

func testParsing(t *testing.T, n *node) {
	n.table(t,
		step{"EtherType of experiments", n.fromA(packet.Payload(50)), passed(seenNot)},
		step{"nothing but a link header", n.fromA(packet.Payload(0)), passed(seenNot)},
	)
}

// testMalformed: packets that contradict themselves, of which nothing is kept.
func testMalformed(t *testing.T, w passage) {
	w.forget(t)
	for name, r := range w.malformed() {
		t.Run(name, func(t *testing.T) { w.check(t, r, *w.others.senseless) })
	}
	w.wantFlows(t)
}

func (w passage) malformed() map[string]run {
	datagram := w.comes(transports()[1], inside)
	header := func(options ...packet.IPOption) run { return w.in(w.came.with(datagram, options...)...) }
	good := header()
	all := map[string]run{
		"longer by far": header(packet.Length(65535)),
		"version 0":     change1(good, 14, 0x05),
		"version 15":    change1(good, 14, 0xf5),
		"data offset 4": w.in(w.came.with(tcp(inside, server, packet.HeaderWords(4)))...),
	}
	if w.v6() {
		all["version 4"] = change1(good, 14, 0x40)
		all["longer than the frame"] = header(packet.Length(len(good.in) - 14 - 40 + 1))
		all["without transport header"] = header(packet.Length(0))
		all["with half a transport header"] = header(packet.Length(7))
		// The fragment header is no part of a packet that ends before.
		for _, bytes := range []int{0, 7} {
			r := w.in(packet.IP(w.came.src, w.came.dst, packet.Proto(unix.IPPROTO_FRAGMENT)), packet.Payload(16))
			copy(r.in[14+40:], []byte{unix.IPPROTO_UDP, 0, 1, 0, 0, 0, 0, 77})
			binary.BigEndian.PutUint16(r.in[14+4:], uint16(bytes))
			all[fmt.Sprint("fragment behind the end at ", bytes)] = r
		}
		return all
	}
	all["version 6"] = change1(good, 14, 0x65)
	all["longer than the frame"] = header(packet.Length(len(good.in) - 14 + 1))
	all["header of 16 bytes"] = header(packet.HeaderWords(4))
	all["no header"] = header(packet.HeaderWords(0xf0))
	all["header longer than the frame"] = change1(good, 14, 0x4f)
	all["shorter than its header"] = header(packet.Length(19))
	all["of no length"] = header(packet.Length(0))
	all["without transport header"] = header(packet.Length(20))
	all["with half a transport header"] = header(packet.Length(27))
	all["with options beyond its length"] = header(packet.NOPs(8), packet.Length(24))
	return all
}

// testCut: frames that end within the transport header. What follows the packet in its frame is no
// part of it.
func testCut(t *testing.T, w passage) {
	w.forget(t)
	headers := map[string]int{"TCP": 20, "SCTP": 12}
	for _, tr := range transports() {
		header := cmp.Or(headers[tr.name], 8)
		for _, keep := range []int{0, 1, header / 2, header - 1} {
			t.Run(fmt.Sprint(tr.name, " after ", keep, " bytes"), func(t *testing.T) {
				r := w.in(w.came.ip(64, w.comes(tr, inside)...)...)
				if w.v6() {
					r = shorten(r, len(r.in)-14-40-keep)
				} else {
					r = shorten4(r, len(r.in)-14-20-keep)
				}
				w.check(t, r, *w.others.senseless)
				r.in = append(slices.Clone(r.in), make([]byte, header)...)
				w.check(t, r, *w.others.senseless)
			})
		}
	}
	w.wantFlows(t)
}

// testExtensions: chains of headers, up to as many as are looked at.
func testExtensions(t *testing.T, w passage) {
	if !w.v6() {
		return
	}
	tr := transports()[1]
	repeat := func(count int) []packet.Layer {
		extensions := []packet.Layer{packet.HopByHop(8)}
		return append(extensions, slices.Repeat([]packet.Layer{packet.DestinationOptions(8)}, count)...)[:count]
	}
	good := map[string][]packet.Layer{
		"hop-by-hop":          {packet.HopByHop(8)},
		"long hop-by-hop":     {packet.HopByHop(256)},
		"destination options": {packet.DestinationOptions(24)},
		"routing":             {packet.Routing(0, addr("2001:db8::77"))},
		"atomic fragment":     {packet.FragmentHeader(9, 0, false)}, // RFC 6946
		"all kinds":           {packet.HopByHop(16), packet.DestinationOptions(8), packet.Routing(0, addr("2001:db8::77")), packet.FragmentHeader(5, 0, false), packet.DestinationOptions(32)},
		"very long":           {packet.HopByHop(1024)},
	}
	for count := range extensionsMax {
		good[fmt.Sprint(count+1)] = repeat(count + 1)
	}
	for name, extensions := range good {
		t.Run(name, func(t *testing.T) {
			came, went := w.begin(t, tr, low)
			in, out := w.frames(64, slices.Concat(extensions, w.comes(tr, came)), slices.Concat(extensions, w.leaves(tr, went)))
			w.check(t, in, out)
			if usage := w.fragmentCount(t); usage != 0 {
				t.Errorf("%d entries in map fragments, want none", usage)
			}
		})
	}
	w.forget(t)
	chain := func(extensions ...packet.Layer) run {
		return w.in(w.came.ip(64, slices.Concat(extensions, w.comes(tr, inside))...)...)
	}
	whole, fragment := chain(packet.HopByHop(8)), chain(packet.FragmentHeader(1, 0, false))
	for name, r := range map[string]run{
		"one too many":               chain(repeat(extensionsMax + 1)...),
		"far too many":               chain(repeat(3 * extensionsMax)...),
		"beyond the frame":           change1(whole, 14+41, 200),
		"up to its end":              change1(whole, 14+41, byte((len(whole.in)-14-40)/8-1)),
		"cut after the first byte":   shorten(whole, len(whole.in)-14-41),
		"cut in the fragment header": shorten(fragment, len(fragment.in)-14-40-7),
	} {
		t.Run(name, func(t *testing.T) { w.check(t, r, *w.others.senseless) })
	}
	w.wantFlows(t)
}

// testOptions: headers and frames may be longer than they have to be.
func testOptions(t *testing.T, w passage) {
	tr := transports()[1]
	pad := func(frame []byte) []byte {
		if frame == nil {
			return nil
		}
		return append(slices.Clone(frame), 1, 2, 3, 4, 5, 6, 7)
	}
	t.Run("padding", func(t *testing.T) {
		came, went := w.begin(t, tr, low)
		in, out := w.frames(64, w.comes(tr, came), w.leaves(tr, went))
		in.in, out.out = pad(in.in), pad(out.out)
		w.check(t, in, out)
	})
	if w.v6() {
		return
	}
	for _, count := range []packet.NOPs{4, 20, 40} {
		t.Run(fmt.Sprint(count, " bytes of options"), func(t *testing.T) {
			came, went := w.begin(t, tr, low)
			w.check(t, w.in(w.came.with(w.comes(tr, came), count)...), w.first(w.went.with(w.leaves(tr, went), packet.TTL(64-w.hops), count)))
		})
	}
}

// shorten4 cuts bytes off the end of an IPv4 packet and sets its length.
func shorten4(r run, bytes int) run {
	r = trim(r, bytes)
	length := len(r.in) - 14
	return change1(change1(r, 14+2, byte(length>>8)), 14+3, byte(length))
}
