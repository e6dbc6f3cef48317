// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"testing"

	"github.com/tendril-net/tendril/internal/packet"
)

// icmpError is one kind of error.
type icmpError struct {
	name  string
	layer packet.Layer
}

func icmpErrors() []icmpError {
	return []icmpError{
		{"net unreachable", packet.Unreachable(packet.NetUnreachable)},
		{"host unreachable", packet.Unreachable(packet.HostUnreachable)},
		{"port unreachable", packet.Unreachable(packet.PortUnreachable)},
		{"prohibited", packet.Unreachable(packet.AdminProhibited)},
		{"too big", packet.TooBig(1400)},
		{"TTL exceeded", packet.TTLExceeded()},
		{"reassembly exceeded", packet.ReassemblyExceeded()},
		{"parameter problem", packet.ParameterProblem(0, 6)},
	}
}

// cut is how much an error quotes, and in which state.
type cut struct {
	name    string
	options []packet.QuoteOption
}

func cuts() []cut {
	return []cut{
		{"whole", nil},
		{"8 bytes", []packet.QuoteOption{packet.L4Bytes(8)}},
		{"checksum zero", []packet.QuoteOption{packet.NoChecksum}},
		{"8 bytes, checksum zero", []packet.QuoteOption{packet.L4Bytes(8), packet.NoChecksum}},
	}
}

func testICMPErrors(t *testing.T, n *node) {
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range transports() {
			t.Run(tr.name, func(t *testing.T) {
				testErrors(t, n, f, tr, inside)
				testErrors(t, n, f, tr, low)
			})
		}
		t.Run("not translated", func(t *testing.T) { testPlainErrors(t, n, f) })
		t.Run("of nothing", func(t *testing.T) { testErrorsOfNothing(t, n, f) })
		t.Run("strange quotes", func(t *testing.T) { testStrangeQuotes(t, n, f) })
		t.Run("about what others translate", func(t *testing.T) { testErrorsOfStackFlows(t, n, f) })
		t.Run("about replies", func(t *testing.T) { testErrorsOfReplies(t, n, f) })
		t.Run("too big themselves", func(t *testing.T) { testErrorsTooBig(t, n, f) })
	})
}

// testErrors: every error about a translated flow, whose port inside may differ
// from that outside.
func testErrors(t *testing.T, n *node, f family, tr transport, from uint16) {
	n.forget(t)
	ports := ends{inside: from, outside: n.open(t, f, tr, from)}
	n.check(t, n.fromWorld(ip(f.world, f.host, 58, tr.back(ports.outside)...)...),
		deliveredAs(delivered(n.a, ip(f.world, f.a, 57, tr.back(ports.inside)...)...), "decided"))
	flows, err := n.Flows(10)
	must(t, err)
	for _, e := range icmpErrors() {
		for _, c := range cuts() {
			if spoils(tr, c) {
				continue
			}
			t.Run(fmt.Sprint(e.name, ", ", c.name, ", port ", from), func(t *testing.T) {
				t.Run("from world", func(t *testing.T) { testErrorIn(t, n, f, tr, ports, e, c) })
				t.Run("from container", func(t *testing.T) { testErrorOut(t, n, f, tr, ports, e, c) })
				t.Run("from the stack", func(t *testing.T) { testErrorOfStack(t, n, f, tr, ports, e, c) })
			})
		}
	}
	n.wantFlows(t, flows...) // errors are no flows
}

// ends are the two source ports of a translated flow.
type ends struct{ inside, outside uint16 }

// spoils says that without its checksum the quote is one that no host sends: only that of
// UDP may be absent.
func spoils(tr transport, c cut) bool {
	return len(c.options) > 0 && c.options[len(c.options)-1] == packet.QuoteOption(packet.NoChecksum) && tr.name != "UDP"
}

// testErrorIn: a router speaks of a packet that a sent.
func testErrorIn(t *testing.T, n *node, f family, tr transport, ports ends, e icmpError, c cut) {
	outside := n.left(ip(f.host, f.world, 3, tr.there(ports.outside)...)...)
	within := n.left(ip(f.a, f.world, 3, tr.there(ports.inside)...)...)
	in := n.fromWorld(ip(f.router, f.host, 58, e.layer, packet.Quote(outside, c.options...))...)
	out := delivered(n.a, ip(f.router, f.a, 57, e.layer, packet.Quote(within, c.options...))...)
	n.check(t, in, deliveredAs(out, "decided"))
}

// testErrorOut: a speaks of a packet that the world sent.
func testErrorOut(t *testing.T, n *node, f family, tr transport, ports ends, e icmpError, c cut) {
	outside := n.arrived(ip(f.world, f.host, 57, tr.back(ports.outside)...)...)
	within := n.arrived(ip(f.world, f.a, 57, tr.back(ports.inside)...)...)
	in := n.fromA(ip(f.a, f.world, 64, e.layer, packet.Quote(within, c.options...))...)
	out := sent(n.a, ip(f.host, f.world, 63, e.layer, packet.Quote(outside, c.options...))...)
	n.check(t, in, forwarded(out, "decided"))
	// The same, when the stack forwards it.
	in = n.toWorld(seenDecided, ip(f.a, f.world, 63, e.layer, packet.Quote(within, c.options...))...)
	out = n.left(ip(f.host, f.world, 63, e.layer, packet.Quote(outside, c.options...))...)
	n.check(t, in, leaves(out))
}

// testErrorOfStack: the host cannot forward to a what it got translated.
func testErrorOfStack(t *testing.T, n *node, f family, tr transport, ports ends, e icmpError, c cut) {
	outside := n.arrived(ip(f.world, f.host, 57, tr.back(ports.outside)...)...)
	within := n.arrived(ip(f.world, f.a, 57, tr.back(ports.inside)...)...)
	in := n.toWorld(seenNot, ip(f.host, f.world, 64, e.layer, packet.Quote(within, c.options...))...)
	out := n.left(ip(f.host, f.world, 64, e.layer, packet.Quote(outside, c.options...))...)
	n.check(t, in, leaves(out))
}

// testPlainErrors: where nothing was translated, nothing is.
func testPlainErrors(t *testing.T, n *node, f family) {
	about := func(layers ...packet.Layer) packet.Layer { return packet.Quote(sent(n.b, layers...)) }
	between := func(ttl uint8) []packet.Layer {
		return ip(f.a, f.b, ttl, packet.Unreachable(packet.PortUnreachable), about(ip(f.b, f.a, 63, udp(low, server)...)...))
	}
	direct := func(ttl uint8) []packet.Layer {
		return ip(f.router, f.c, ttl, packet.TTLExceeded(), about(ip(f.c, f.world, 1, udp(low, server)...)...))
	}
	open := func(ttl uint8) []packet.Layer {
		return ip(f.c, f.world, ttl, packet.Unreachable(packet.PortUnreachable), about(ip(f.world, f.c, 9, udp(low, server)...)...))
	}
	toHost := ip(f.a, f.host, 64, packet.Unreachable(packet.PortUnreachable), about(ip(f.host, f.a, 63, udp(low, server)...)...))
	n.table(t,
		step{"container to container", n.fromA(between(64)...), deliveredAs(delivered(n.b, between(63)...), "decided")},
		step{"world to container", n.fromWorld(direct(60)...), deliveredAs(delivered(n.c, direct(59)...), "decided")},
		step{"container to world", n.from(n.c, open(64)...), forwarded(sent(n.c, open(63)...), "decided")},
		step{"container to host", n.fromA(toHost...), passed(seenNot, "decided")},
		step{"stack to world, of a container", n.toWorld(seenNot, ip(f.host, f.world, 64, packet.Unreachable(packet.HostUnreachable),
			about(ip(f.world, f.c, 9, udp(low, server)...)...))...), untouched()},
	)
}

// testErrorsOfNothing: errors that speak of what never was.
func testErrorsOfNothing(t *testing.T, n *node, f family) {
	tr := transports()[1]
	n.forget(t)
	n.open(t, f, tr, inside)
	ours := ip(f.host, f.world, 3, tr.there(inside)...)
	quote := func(layers ...packet.Layer) packet.Layer { return packet.Quote(n.left(layers...)) }
	for _, s := range []step{
		{"another port", n.fromWorld(ip(f.router, f.host, 58, packet.TTLExceeded(), quote(ip(f.host, f.world, 3, udp(inside+1, server)...)...))...), untouched()},
		{"another destination", n.fromWorld(ip(f.router, f.host, 58, packet.TTLExceeded(), quote(ip(f.host, f.narrow, 3, udp(inside, server)...)...))...), untouched()},
		{"another protocol", n.fromWorld(ip(f.router, f.host, 58, packet.TTLExceeded(), quote(ip(f.host, f.world, 3, tcp(inside, server)...)...))...), untouched()},
		{"to another than it quotes", n.fromWorld(ip(f.router, f.neighbour, 58, packet.TTLExceeded(), quote(ours...))...), untouched()},
		{"its answer", n.fromWorld(ip(f.router, f.host, 58, packet.TTLExceeded(), quote(ip(f.world, f.host, 3, tr.back(inside)...)...))...), untouched()},
		{"of a container", n.fromA(ip(f.a, f.world, 64, packet.Unreachable(packet.PortUnreachable),
			quote(ip(f.world, f.a, 3, udp(server, inside+1)...)...))...), drops("decided", "no_translation")},
		{"of a container, to another than it quotes", n.fromA(ip(f.a, f.narrow, 64, packet.Unreachable(packet.PortUnreachable),
			quote(ip(f.world, f.a, 3, tr.back(inside)...)...))...), drops("decided", "no_translation")},
		{"of a container, of another's", n.from(n.b, ip(f.b, f.world, 64, packet.Unreachable(packet.PortUnreachable),
			quote(ip(f.world, f.a, 3, tr.back(inside)...)...))...), drops("decided", "no_translation")},
		{"of a container, about itself", n.fromA(ip(f.a, f.world, 64, packet.Unreachable(packet.PortUnreachable),
			quote(ip(f.a, f.world, 3, tr.there(inside)...)...))...), drops("decided", "no_translation")},
		{"the host's own", n.toWorld(seenNot, ip(f.host, f.world, 64, packet.Unreachable(packet.PortUnreachable),
			quote(ip(f.world, f.host, 3, udp(server, inside)...)...))...), untouched()},
	} {
		t.Run(s.name, func(t *testing.T) { n.check(t, s.run, s.want) })
	}
	n.elapse(t, 31)
	t.Run("dead translation", func(t *testing.T) {
		n.check(t, n.fromWorld(ip(f.router, f.host, 58, packet.TTLExceeded(), quote(ours...))...), untouched())
	})
}

// testStrangeQuotes: quotes too short to name a flow, or with headers between.
func testStrangeQuotes(t *testing.T, n *node, f family) {
	tr := transports()[1]
	n.forget(t)
	n.open(t, f, tr, inside)
	quoted := n.left(ip(f.host, f.world, 3, tr.there(inside)...)...)
	steps := []step{
		{"4 bytes of transport", n.fromWorld(ip(f.router, f.host, 58, packet.TTLExceeded(), packet.Quote(quoted, packet.L4Bytes(4)))...), untouched()},
		{"7 bytes of transport", n.fromWorld(ip(f.router, f.host, 58, packet.TTLExceeded(), packet.Quote(quoted, packet.L4Bytes(7)))...), untouched()},
		{"no transport", n.fromWorld(ip(f.router, f.host, 58, packet.TTLExceeded(), packet.Quote(quoted, packet.L4Bytes(0)))...), untouched()},
		{"half an IP header", trim(n.fromWorld(ip(f.router, f.host, 58, packet.TTLExceeded(), packet.Quote(quoted))...), 8+1+10), untouched()},
		{"no quote", n.fromWorld(ip(f.router, f.host, 58, packet.TTLExceeded())...), untouched()},
	}
	behind := n.fromWorld(ip(f.router, f.host, 58, packet.TTLExceeded(), packet.Quote(quoted, packet.L4Bytes(7)))...)
	behind.in = append(behind.in, 9)
	steps = append(steps, step{"the eighth byte behind the packet's end", behind, untouched()})
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) { n.check(t, s.run, s.want) })
	}
	both := func(name string, headers func(inner family) []packet.Layer) {
		outside, within := f, f
		outside.a = f.host
		t.Run(name, func(t *testing.T) {
			in := n.fromWorld(ip(f.router, f.host, 58, packet.TTLExceeded(), packet.Quote(n.left(headers(outside)...)))...)
			out := delivered(n.a, ip(f.router, f.a, 57, packet.TTLExceeded(), packet.Quote(n.left(headers(within)...)))...)
			n.check(t, in, deliveredAs(out, "decided"))
		})
	}
	if f.v6() {
		chain := func(extensions ...packet.Layer) func(family) []packet.Layer {
			return func(f family) []packet.Layer {
				layers := append([]packet.Layer{packet.IP(f.a, f.world, packet.TTL(3))}, extensions...)
				return append(layers, tr.there(inside)...)
			}
		}
		both("hop-by-hop", chain(packet.HopByHop(8)))
		both("long options", chain(packet.HopByHop(16), packet.DestinationOptions(24)))
		both("first fragment", chain(packet.FragmentHeader(77, 0, false)))
		both("four extensions", chain(packet.HopByHop(8), packet.DestinationOptions(8), packet.FragmentHeader(1, 0, false), packet.DestinationOptions(8)))
		later := n.left(packet.IP(f.host, f.world, packet.TTL(3), packet.Proto(17)), packet.FragmentHeader(77, 800, true), packet.Payload(64))
		t.Run("later fragment", func(t *testing.T) {
			n.check(t, n.fromWorld(ip(f.router, f.host, 58, packet.ReassemblyExceeded(), packet.Quote(later))...), untouched())
		})
		return
	}
	both("options", func(f family) []packet.Layer {
		return append([]packet.Layer{packet.IP(f.a, f.world, packet.TTL(3), packet.NOPs(12))}, tr.there(inside)...)
	})
	both("first fragment", func(f family) []packet.Layer {
		return append([]packet.Layer{packet.IP(f.a, f.world, packet.TTL(3), packet.MF, packet.ID(7))}, packet.UDP(inside, server, packet.Length(900), packet.NoChecksum), packet.Payload(16))
	})
	later := n.left(packet.IP(f.host, f.world, packet.TTL(3), packet.Proto(17), packet.FragOffset(800)), packet.Payload(64))
	t.Run("later fragment", func(t *testing.T) {
		n.check(t, n.fromWorld(ip(f.router, f.host, 58, packet.ReassemblyExceeded(), packet.Quote(later))...), untouched())
	})
}

// trim cuts bytes off the end of a packet's frame, and leaves the lengths.
func trim(r run, bytes int) run {
	r.in = r.in[:len(r.in)-bytes]
	return r
}

// testErrorsOfStackFlows: others translated the packet as well, so its error goes
// back through them.
func testErrorsOfStackFlows(t *testing.T, n *node, f family) {
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			n.forget(t)
			n.check(t, n.toWorld(seenNot, ip(f.a, f.world, 63, tr.begin(inside)...)...), leaves(n.left(ip(f.host, f.world, 63, tr.begin(inside)...)...)))
			outside := packet.Quote(n.left(ip(f.host, f.world, 3, tr.there(inside)...)...))
			within := packet.Quote(n.left(ip(f.a, f.world, 3, tr.there(inside)...)...))
			n.check(t, n.fromWorld(ip(f.router, f.host, 58, packet.TTLExceeded(), outside)...), want{
				verdict: passOn, out: n.arrived(ip(f.router, f.a, 58, packet.TTLExceeded(), within)...),
				counters: []string{"decided", "translated_to_stack"}, seen: seenDecided,
			})
		})
	}
}

// testErrorsOfReplies: an error goes the way of the flow that it speaks of.
func testErrorsOfReplies(t *testing.T, n *node, f family) {
	tr := transports()[1]
	request := func(ttl uint8) []packet.Layer { return ip(f.world, f.a, ttl, tr.there(low)...) }
	answer := func(ttl uint8) []packet.Layer {
		return ip(f.a, f.world, ttl, packet.Unreachable(packet.PortUnreachable), packet.Quote(delivered(n.a, request(59)...)))
	}
	t.Run("direct", func(t *testing.T) {
		n.forget(t)
		n.story(t,
			step{"request", n.fromWorld(request(60)...), deliveredAs(delivered(n.a, request(59)...), "decided")},
			step{"error", n.fromA(answer(64)...), forwarded(sent(n.a, answer(63)...), "decided")},
		)
	})
	t.Run("by the stack", func(t *testing.T) {
		n.forget(t)
		n.story(t,
			step{"request", n.toA(n.other.Attrs().Index, request(59)...), passed(seenNot)},
			step{"error", n.fromA(answer(64)...), passed(seenNot, "decided")},
			step{"error, in the stack's hands", n.toWorld(seenNot, answer(63)...), untouched()},
		)
	})
	// With the address of a, which nobody there has asked.
	astray := func(ttl uint8) []packet.Layer {
		return ip(f.a, f.narrow, ttl, packet.Unreachable(packet.PortUnreachable), packet.Quote(delivered(n.a, request(59)...)))
	}
	t.Run("direct, to another than it quotes", func(t *testing.T) {
		n.forget(t)
		n.story(t,
			step{"request", n.fromWorld(request(60)...), deliveredAs(delivered(n.a, request(59)...), "decided")},
			step{"error", n.fromA(astray(64)...), drops("decided", "no_translation")},
			step{"error, in the stack's hands", n.toWorld(seenNot, astray(63)...), drops("no_translation")},
		)
	})
	t.Run("by the stack, to another than it quotes", func(t *testing.T) {
		n.forget(t)
		n.story(t,
			step{"request", n.toA(n.other.Attrs().Index, request(59)...), passed(seenNot)},
			step{"error", n.fromA(astray(64)...), drops("decided", "no_translation")},
			step{"error, in the stack's hands", n.toWorld(seenNot, astray(63)...), drops("no_translation")},
		)
	})
	t.Run("by the stack, of a local sender", func(t *testing.T) {
		n.forget(t)
		local := ip(f.b, f.a, 63, tr.there(low)...)
		n.story(t,
			step{"request", n.toA(n.b.IfIndex, local...), passed(seenNot)},
			step{"error", n.fromA(ip(f.a, f.b, 64, packet.Unreachable(packet.PortUnreachable), packet.Quote(delivered(n.a, local...)))...), passed(seenNot, "decided")},
		)
	})
}

// testErrorsTooBig: an error that does not fit its way is left to the stack as it is,
// quote and all.
func testErrorsTooBig(t *testing.T, n *node, f family) {
	n.forget(t)
	tr := transports()[1]
	n.open(t, f, tr, low)
	quoted := packet.New(append([]packet.Layer{packet.Eth(n.a.HostMAC, n.a.MAC)}, ip(f.world, f.a, 3, packet.UDP(server, low), packet.Payload(1500))...)...)
	n.check(t, n.fromA(ip(f.a, f.world, 64, packet.Unreachable(packet.PortUnreachable), packet.Quote(quoted))...),
		want{verdict: passOn, counters: []string{"decided", "too_big"}, seen: seenDecided})
}
