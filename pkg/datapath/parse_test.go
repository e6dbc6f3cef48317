// SPDX-License-Identifier: Apache-2.0

package datapath

import (
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
	t.Run("IPv4 headers", func(t *testing.T) { testIPv4Headers(t, n, v4()) })
	t.Run("IPv6 headers", func(t *testing.T) { testIPv6Headers(t, n, v6()) })
	t.Run("IPv6 extensions", func(t *testing.T) { testExtensions(t, n, v6()) })
	t.Run("IPv4 options", func(t *testing.T) { testOptions(t, n, v4()) })
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range transports() {
			t.Run(tr.name, func(t *testing.T) { testCut(t, n, f, tr) })
		}
		t.Run("TCP", func(t *testing.T) { testTCPHeaders(t, n, f) })
		t.Run("padding", func(t *testing.T) { testPadding(t, n, f) })
		t.Run("wrong checksums", func(t *testing.T) { testWrongChecksums(t, n, f) })
	})
	t.Run("fragment behind the end", func(t *testing.T) { testFragmentBehindEnd(t, n, v6()) })
	t.Run("other protocols", func(t *testing.T) { testOtherProtocols(t, n) })
}

// everywhere checks a packet that makes no sense: from a container it is dropped,
// all other programs leave it to the stack.
func everywhere(t *testing.T, n *node, f family, name string, spoil func(src, dst family) []packet.Layer) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		world := f
		world.a = f.world
		uplink := f
		uplink.a = f.host
		n.table(t,
			step{"from container to world", n.fromA(spoil(f, world)...), drops("invalid")},
			step{"from world to container", n.fromWorld(spoil(world, f)...), untouched()},
			step{"from world to host", n.fromWorld(spoil(world, uplink)...), untouched()},
			step{"from the stack", n.toWorld(seenNot, spoil(f, world)...), untouched()},
			step{"to container", n.toA(0, spoil(world, f)...), want{verdict: passOn, counters: []string{"host"}}},
		)
		n.wantFlows(t)
	})
}

func testIPv4Headers(t *testing.T, n *node, f family) {
	with := func(options ...packet.IPOption) func(src, dst family) []packet.Layer {
		return func(src, dst family) []packet.Layer {
			return append([]packet.Layer{packet.IP(src.a, dst.a, options...)}, udp(inside, server)...)
		}
	}
	everywhere(t, n, f, "header of 16 bytes", with(packet.HeaderWords(4)))
	everywhere(t, n, f, "no header", with(packet.HeaderWords(0xf0)))
	everywhere(t, n, f, "longer than the frame", with(packet.Length(39)))
	everywhere(t, n, f, "longer by far", with(packet.Length(65535)))
	everywhere(t, n, f, "shorter than its header", with(packet.Length(19)))
	everywhere(t, n, f, "of no length", with(packet.Length(0)))
	everywhere(t, n, f, "without transport header", with(packet.Length(20)))
	everywhere(t, n, f, "with half a transport header", with(packet.Length(27)))
	everywhere(t, n, f, "with options beyond its length", with(packet.NOPs(8), packet.Length(24)))
	spoilt := n.fromA(ip(f.a, f.world, 64, udp(inside, server)...)...)
	n.table(t,
		step{"version 6", change1(spoilt, 14, 0x65), drops("invalid")},
		step{"version 0", change1(spoilt, 14, 0x05), drops("invalid")},
		step{"version 15", change1(spoilt, 14, 0xf5), drops("invalid")},
		step{"header longer than the frame", trim(change1(spoilt, 14, 0x4f), 1), drops("invalid")},
	)
}

func testIPv6Headers(t *testing.T, n *node, f family) {
	with := func(options ...packet.IPOption) func(src, dst family) []packet.Layer {
		return func(src, dst family) []packet.Layer {
			return append([]packet.Layer{packet.IP(src.a, dst.a, options...)}, udp(inside, server)...)
		}
	}
	everywhere(t, n, f, "longer than the frame", with(packet.Length(19)))
	everywhere(t, n, f, "longer by far", with(packet.Length(65535)))
	everywhere(t, n, f, "without transport header", with(packet.Length(0)))
	everywhere(t, n, f, "with half a transport header", with(packet.Length(7)))
	spoilt := n.fromA(ip(f.a, f.world, 64, udp(inside, server)...)...)
	n.table(t,
		step{"version 4", change1(spoilt, 14, 0x40), drops("invalid")},
		step{"version 0", change1(spoilt, 14, 0x00), drops("invalid")},
	)
}

func testExtensions(t *testing.T, n *node, f family) {
	chain := func(src, dst family, ttl uint8, port uint16, extensions ...packet.Layer) []packet.Layer {
		layers := append([]packet.Layer{packet.IP(src.a, dst.a, packet.TTL(ttl))}, extensions...)
		return append(layers, udp(port, server)...)
	}
	world, uplink := f, f
	world.a, uplink.a = f.world, f.host
	repeat := func(count int) []packet.Layer {
		extensions := []packet.Layer{packet.HopByHop(8)}
		return append(extensions, slices.Repeat([]packet.Layer{packet.DestinationOptions(8)}, count)...)[:count]
	}
	good := map[string][]packet.Layer{
		"hop-by-hop":            {packet.HopByHop(8)},
		"long hop-by-hop":       {packet.HopByHop(256)},
		"destination options":   {packet.DestinationOptions(24)},
		"routing":               {packet.Routing(0, addr("2001:db8::77"))},
		"all kinds":             {packet.HopByHop(16), packet.DestinationOptions(8), packet.Routing(0, addr("2001:db8::77")), packet.FragmentHeader(5, 0, false), packet.DestinationOptions(32)},
		"very long":             {packet.HopByHop(1024)},
		"as many as are looked": repeat(extensionsMax),
	}
	for count := range extensionsMax {
		good[fmt.Sprint(count)] = repeat(count)
	}
	for name, extensions := range good {
		n.table(t, step{
			name, n.fromA(chain(f, world, 64, inside, extensions...)...),
			forwarded(sent(n.a, chain(uplink, world, 63, inside, extensions...)...), "decided"),
		})
		t.Run(name+", answer", func(t *testing.T) {
			n.forget(t)
			outside := n.open(t, f, transports()[1], low)
			back := func(dst family, ttl uint8, port uint16) []packet.Layer {
				layers := append([]packet.Layer{packet.IP(f.world, dst.a, packet.TTL(ttl))}, extensions...)
				return append(layers, udp(server, port)...)
			}
			n.check(t, n.fromWorld(back(uplink, 60, outside)...), deliveredAs(delivered(n.a, back(f, 59, low)...), "decided"))
		})
	}
	bad := func(name string, extensions ...packet.Layer) {
		everywhere(t, n, f, name, func(src, dst family) []packet.Layer { return chain(src, dst, 64, inside, extensions...) })
	}
	bad("one too many", repeat(extensionsMax+1)...)
	bad("far too many", repeat(3*extensionsMax)...)
	// Headers that reach beyond the packet.
	whole := n.fromA(chain(f, world, 64, inside, packet.HopByHop(8))...)
	n.table(t,
		step{"beyond the frame", change1(whole, 14+41, 200), drops("invalid")},
		step{"up to its end", change1(whole, 14+41, byte((len(whole.in)-14-40)/8-1)), drops("invalid")},
		step{"cut after the first byte", shorten(whole, len(whole.in)-14-41), drops("invalid")},
		step{"cut in the fragment header", shorten(n.fromA(chain(f, world, 64, inside, packet.FragmentHeader(1, 0, false))...), 8+10+1), drops("invalid")},
	)
}

func testOptions(t *testing.T, n *node, f family) {
	for _, count := range []packet.NOPs{4, 20, 40} {
		layers := func(src, dst family, ttl uint8) []packet.Layer {
			return append([]packet.Layer{packet.IP(src.a, dst.a, packet.TTL(ttl), count)}, tcp(inside, server, packet.SYN)...)
		}
		world, uplink := f, f
		world.a, uplink.a = f.world, f.host
		n.table(t, step{fmt.Sprint(count), n.fromA(layers(f, world, 64)...), forwarded(sent(n.a, layers(uplink, world, 63)...), "decided")})
	}
}

// testCut: frames that end within the transport header.
func testCut(t *testing.T, n *node, f family, tr transport) {
	header := map[string]int{"TCP": 20, "SCTP": 12}[tr.name]
	if header == 0 {
		header = 8
	}
	for keep := range header {
		world := ip(f.a, f.world, 64, tr.there(inside)...)
		r := n.fromA(world...)
		end := 14 + 20 + keep
		if f.v6() {
			end += 20
			r = shorten(r, len(r.in)-end)
		} else {
			r = shorten4(r, len(r.in)-end)
		}
		n.forget(t)
		n.check(t, r, drops("invalid"))
		in := r
		in.program, in.device = fromUplink, n.uplink.IfIndex
		n.check(t, in, want{verdict: passOn})
		in.program = toUplink
		n.check(t, in, want{verdict: passOn})
		// What follows the packet in its frame is no part of it.
		r.in = append(slices.Clone(r.in), make([]byte, header)...)
		n.check(t, r, drops("invalid"))
		if t.Failed() {
			t.Fatalf("with %d bytes of transport header", keep)
		}
	}
}

// shorten4 cuts bytes off the end of an IPv4 packet and sets its length.
func shorten4(r run, bytes int) run {
	r = trim(r, bytes)
	length := len(r.in) - 14
	return change1(change1(r, 14+2, byte(length>>8)), 14+3, byte(length))
}

func testTCPHeaders(t *testing.T, n *node, f family) {
	everywhere(t, n, f, "data offset 4", func(src, dst family) []packet.Layer {
		return ip(src.a, dst.a, 64, tcp(inside, server, packet.HeaderWords(4))...)
	})
}

// testPadding: a frame may be longer than its packet.
// testFragmentBehindEnd: the fragment header is no part of a packet that ends before.
func testFragmentBehindEnd(t *testing.T, n *node, f family) {
	for _, bytes := range []int{0, 7} {
		r := n.fromA(packet.IP(f.a, f.b, packet.TTL(64), packet.Proto(unix.IPPROTO_FRAGMENT)), packet.Payload(16))
		copy(r.in[14+40:], []byte{unix.IPPROTO_UDP, 0, 1, 0, 0, 0, 0, 77})
		binary.BigEndian.PutUint16(r.in[14+4:], uint16(bytes))
		n.forget(t)
		n.check(t, r, drops("invalid"))
	}
}

func testPadding(t *testing.T, n *node, f family) {
	n.forget(t)
	tr := transports()[1]
	outside := n.open(t, f, tr, low)
	pad := func(frame []byte) []byte { return append(slices.Clone(frame), 1, 2, 3, 4, 5, 6, 7) }
	out, in := n.fromA(ip(f.a, f.world, 64, tr.there(low)...)...), n.fromWorld(ip(f.world, f.host, 58, tr.back(outside)...)...)
	out.in, in.in = pad(out.in), pad(in.in)
	n.story(t,
		step{"to world", out, forwarded(pad(sent(n.a, ip(f.host, f.world, 63, tr.there(outside)...)...)))},
		step{"from world", in, deliveredAs(pad(delivered(n.a, ip(f.world, f.a, 57, tr.back(low)...)...)), "decided")},
	)
}

// testWrongChecksums: a translation keeps a wrong checksum wrong, and its receiver
// drops the packet.
func testWrongChecksums(t *testing.T, n *node, f family) {
	for _, bad := range []struct {
		name string
		make func(port uint16) packet.Layer
	}{
		{"TCP", func(port uint16) packet.Layer { return packet.TCP(port, server, packet.SYN, packet.BadChecksum) }},
		{"UDP", func(port uint16) packet.Layer { return packet.UDP(port, server, packet.BadChecksum) }},
		{"ICMP echo", func(port uint16) packet.Layer { return packet.Echo(port, 1, packet.BadChecksum) }},
	} {
		t.Run(bad.name, func(t *testing.T) {
			n.forget(t)
			got := n.run(t, n.fromA(ip(f.a, f.world, 64, bad.make(low), packet.Payload(30))...))
			if got.verdict != redirect {
				t.Errorf("verdict: got %d, want %d", got.verdict, redirect)
			}
			if packet.Verify(got.out) == nil {
				t.Errorf("the checksum has become right: %s", packet.Summary(got.out))
			}
		})
	}
}

func testOtherProtocols(t *testing.T, n *node) {
	n.table(t,
		step{"EtherType of experiments", n.fromA(packet.Payload(50)), passed(seenNot)},
		step{"nothing but a link header", n.fromA(packet.Payload(0)), passed(seenNot)},
		step{"tag within the frame", n.fromA(append([]packet.Layer{packet.VLAN(3)}, ip(v4().a, v4().world, 64, udp(inside, server)...)...)...), passed(seenNot)},
	)
}
