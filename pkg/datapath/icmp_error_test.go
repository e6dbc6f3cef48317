// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"fmt"
	"net/netip"
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
				testErrorsOfStack(t, n, f, tr, inside)
				testErrorsOfStack(t, n, f, tr, low)
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

// testErrorKinds: errors about what goes back.
func testErrorKinds(t *testing.T, w passage) {
	for _, tr := range w.those(transports()) {
		t.Run(tr.name, func(t *testing.T) { testErrors(t, w, tr, low) })
	}
	t.Run("unasked", func(t *testing.T) { testUnaskedErrors(t, w) })
}

// quote is what was sent to the end that a passage's packets come from, as an error of there has it. With
// dialled 0 that was at port server.
func (w passage) quote(ends pair, dialled uint16, tr transport, port uint16, options ...packet.QuoteOption) packet.Layer {
	told := says(tr.at(cmp.Or(dialled, server)), port, !w.answers)
	return packet.Quote(packet.New(append([]packet.Layer{packet.Eth(routerMAC(), routerMAC())}, ends.swapped().ip(9, told...)...)...), options...)
}

// quoted is such a quote before, quotedAfter after.
func (w passage) quoted(tr transport, port uint16, options ...packet.QuoteOption) packet.Layer {
	return w.quote(w.came, w.dialled.came, tr, port, options...)
}

func (w passage) quotedAfter(tr transport, port uint16, options ...packet.QuoteOption) packet.Layer {
	return w.quote(w.went, w.dialled.went, tr, port, options...)
}

// testErrors: each error about a flow of the passage, by its end and by others who may speak of it.
func testErrors(t *testing.T, w passage, tr transport, port uint16) {
	came, went := w.begin(t, tr, port)
	flows, err := w.Flows(10)
	must(t, err)
	for _, e := range w.errorsOf(tr) {
		for _, c := range cuts() {
			if spoils(tr, c) {
				continue
			}
			for _, speaker := range append([]netip.Addr{w.came.src}, w.speakers...) {
				t.Run(fmt.Sprint(e.name, ", ", c.name, ", of ", speaker, ", port ", port), func(t *testing.T) {
					before, after := pair{speaker, w.came.dst}, pair{speaker, w.went.dst}
					if speaker == w.came.src {
						after = w.went
					}
					in := w.in(before.ip(64, e.layer, w.quoted(tr, came, c.options...))...)
					w.check(t, in, w.or(w.others.untold, w.first(after.ip(64-w.hops, e.layer, w.quotedAfter(tr, went, c.options...)))))
				})
			}
		}
	}
	w.wantFlows(t, flows...) // errors are no flows
}

// errorsOf are the errors to try about a transport: under a policy, to which a datagram without its checksum is one
// like any, and an echo has no port, one about these.
func (w passage) errorsOf(tr transport) []icmpError {
	if w.policy != nil && (tr.echo || tr.name == "UDP without checksum") {
		return icmpErrors()[2:3]
	}
	return icmpErrors()
}

// testUnaskedErrors: who has sent nothing is told nothing.
func testUnaskedErrors(t *testing.T, w passage) {
	tr := transports()[1]
	came, _ := w.begin(t, tr, low)
	strange := func(name string, quote packet.Layer) {
		t.Run(name, func(t *testing.T) {
			in, end := w.ofStranger().frames(64, []packet.Layer{packet.TTLExceeded(), quote}, []packet.Layer{packet.TTLExceeded(), quote})
			w.check(t, in, w.or(w.others.unasked, end))
		})
	}
	strange("another port", w.quoted(tr, came+1))
	strange("another protocol", w.quoted(transports()[4], came))
	strange("of others", w.quote(pair{w.came.src, w.neighbour}, w.dialled.came, tr, came))
	strange("7 bytes of transport", w.quoted(tr, came, packet.L4Bytes(7)))
	strange("no transport", w.quoted(tr, came, packet.L4Bytes(0)))
	whole := packet.New(append([]packet.Layer{packet.Eth(routerMAC(), routerMAC())}, w.came.swapped().ip(9, says(bulky()[0], came, !w.answers)...)...)...)
	strange("later fragment", packet.Quote(packet.Fragment(whole, 400)[1]))
}

// spoils says that without its checksum the quote is one that no host sends: only that of
// UDP may be absent.
func spoils(tr transport, c cut) bool {
	return len(c.options) > 0 && c.options[len(c.options)-1] == packet.QuoteOption(packet.NoChecksum) && tr.name != "UDP"
}

// testErrorsOfStack: the host cannot forward to a what it got translated.
func testErrorsOfStack(t *testing.T, n *node, f family, tr transport, from uint16) {
	n.forget(t)
	outside := n.open(t, f, tr, from)
	for _, e := range icmpErrors() {
		for _, c := range cuts() {
			if spoils(tr, c) {
				continue
			}
			t.Run(fmt.Sprint(e.name, ", ", c.name, ", port ", from), func(t *testing.T) {
				outside := n.arrived(ip(f.world, f.host, 57, tr.back(outside)...)...)
				within := n.arrived(ip(f.world, f.a, 57, tr.back(from)...)...)
				in := n.toWorld(seenNot, ip(f.host, f.world, 64, e.layer, packet.Quote(within, c.options...))...)
				n.check(t, in, leaves(n.left(ip(f.host, f.world, 64, e.layer, packet.Quote(outside, c.options...))...)))
			})
		}
	}
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
