// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

const fragmentSeconds = 30 // FRAGMENT_SECONDS of bpf/lib/fragment.h

func testFragments(t *testing.T, n *node) {
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range bulky() {
			t.Run(tr.name, func(t *testing.T) {
				for _, from := range []uint16{inside, low} {
					t.Run("to world in order", func(t *testing.T) { testFragmentsOut(t, n, f, tr, from, 0, 1, 2, 3) })
					t.Run("to world, first before others", func(t *testing.T) { testFragmentsOut(t, n, f, tr, from, 0, 3, 1, 2) })
					t.Run("from world in order", func(t *testing.T) { testFragmentsIn(t, n, f, tr, from, 0, 1, 2, 3) })
					t.Run("from world, first before others", func(t *testing.T) { testFragmentsIn(t, n, f, tr, from, 0, 2, 3, 1) })
					t.Run("by the stack", func(t *testing.T) { testFragmentsOfStack(t, n, f, tr, from) })
				}
				t.Run("to container", func(t *testing.T) { testFragmentsBetween(t, n, f, tr) })
				t.Run("unknown", func(t *testing.T) { testUnknownFragments(t, n, f, tr) })
				t.Run("decided again", func(t *testing.T) { testFragmentsDecidedAgain(t, n, f, tr) })
				t.Run("of a reply", func(t *testing.T) { testFragmentsOfReply(t, n, f, tr) })
			})
		}
		t.Run("identification used again", func(t *testing.T) { testIdentificationAgain(t, n, f) })
		t.Run("tiny", func(t *testing.T) { testTinyFragments(t, n, f) })
	})
	t.Run("atomic", func(t *testing.T) { testAtomicFragment(t, n, v6()) })
}

// bulky are the transports with payloads that make four fragments at 400 bytes.
func bulky() []transport {
	const size = 1300
	return []transport{
		{
			name: "UDP", protocol: number(unix.IPPROTO_UDP),
			there: func(port uint16) []packet.Layer {
				return []packet.Layer{packet.UDP(port, server), packet.Payload(size)}
			},
			back: func(port uint16) []packet.Layer {
				return []packet.Layer{packet.UDP(server, port), packet.Payload(size)}
			},
		},
		{
			name: "TCP", protocol: number(unix.IPPROTO_TCP),
			first: transports()[0].first,
			there: func(port uint16) []packet.Layer {
				return []packet.Layer{packet.TCP(port, server, packet.ACK), packet.Payload(size)}
			},
			back: func(port uint16) []packet.Layer {
				return []packet.Layer{packet.TCP(server, port, packet.ACK), packet.Payload(size)}
			},
		},
		{
			name: "ICMP echo", protocol: func(f family) uint8 { return f.icmp }, echo: true,
			there: func(port uint16) []packet.Layer { return []packet.Layer{packet.Echo(port, 3), packet.Payload(size)} },
			back: func(port uint16) []packet.Layer {
				return []packet.Layer{packet.EchoReply(port, 3), packet.Payload(size)}
			},
		},
	}
}

// pieces cuts a packet at 400 bytes; the fragments get the identification 0x1d00
// plus id in both families.
func pieces(frame []byte, id byte) [][]byte {
	fragments := packet.Fragment(frame, 400)
	for i, b := range fragments {
		if b[14]>>4 == 6 {
			copy(b[14+40+4:], []byte{0, 0, 0x1d, id})
			continue
		}
		b[14+4], b[14+5] = 0x1d, id
		b[14+10], b[14+11] = 0, 0
		var sum uint32
		for at := 14; at < 34; at += 2 {
			sum += uint32(b[at])<<8 | uint32(b[at+1])
		}
		sum = ^(sum>>16 + sum&0xffff)
		b[14+10], b[14+11] = byte(sum>>8), byte(sum)
		fragments[i] = b
	}
	return fragments
}

// fragments shows fragments in the given order to a program, the first of them by
// the slow path, and verifies what they make together.
func (n *node) fragments(t *testing.T, r run, in, out []byte, w want, first []string, order ...int) {
	t.Helper()
	froms, tos := pieces(in, 1), pieces(out, 1)
	if len(froms) != 4 {
		t.Fatalf("%d fragments, want 4", len(froms))
	}
	var arrived [][]byte
	for i, index := range order {
		this, wanted := r, w
		this.in, wanted.out = froms[index], tos[index]
		wanted.counters = slices.Clone(w.counters)
		if i == 0 {
			wanted.counters = append(wanted.counters, first...)
		}
		got := n.run(t, this)
		got.compare(t, wanted)
		arrived = append(arrived, got.out)
	}
	whole, err := packet.Reassemble(arrived...)
	must(t, err)
	if err := packet.Verify(whole); err != nil {
		t.Errorf("reassembled packet: %v\n%s", err, packet.Summary(whole))
	}
}

func testFragmentsOut(t *testing.T, n *node, f family, tr transport, from uint16, order ...int) {
	n.forget(t)
	outside := n.open(t, f, tr, from)
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	r := n.fromA(ip(f.a, f.world, 64, tr.there(from)...)...)
	out := sent(n.a, ip(f.host, f.world, 63, tr.there(outside)...)...)
	n.fragments(t, r, r.in, out, forwarded(nil), []string{"decided"}, order...)
}

func testFragmentsIn(t *testing.T, n *node, f family, tr transport, from uint16, order ...int) {
	n.forget(t)
	outside := n.open(t, f, tr, from)
	r := n.fromWorld(ip(f.world, f.host, 58, tr.back(outside)...)...)
	out := delivered(n.a, ip(f.world, f.a, 57, tr.back(from)...)...)
	n.fragments(t, r, r.in, out, deliveredAs(nil), []string{"decided"}, order...)
}

// testFragmentsOfStack: the stack cuts what is too big for the way out.
func testFragmentsOfStack(t *testing.T, n *node, f family, tr transport, from uint16) {
	n.forget(t)
	outside := n.open(t, f, tr, from)
	r := n.toWorld(seenDecided, ip(f.a, f.world, 63, tr.there(from)...)...)
	out := n.left(ip(f.host, f.world, 63, tr.there(outside)...)...)
	n.fragments(t, r, r.in, out, leaves(nil), nil, 0, 1, 2, 3)
}

func testFragmentsBetween(t *testing.T, n *node, f family, tr transport) {
	r := n.fromA(ip(f.a, f.b, 64, tr.there(low)...)...)
	out := delivered(n.b, ip(f.a, f.b, 63, tr.there(low)...)...)
	n.forget(t)
	n.fragments(t, r, r.in, out, deliveredAs(nil), []string{"decided"}, 0, 1, 2, 3)
	// No ports are needed, so any order will do; fragments without them are a flow of their
	// own, or, of ICMP, none: nothing tells an echo's request from its answer then.
	n.forget(t)
	for i, index := range []int{3, 1, 0, 2} {
		this, w := r, deliveredAs(nil)
		this.in, w.out = pieces(r.in, 1)[index], pieces(out, 1)[index]
		if i == 0 || index == 0 || i == 1 && tr.echo {
			w.counters = append(w.counters, "decided")
		}
		n.check(t, this, w)
	}
}

// testUnknownFragments: whose ports nobody knows.
func testUnknownFragments(t *testing.T, n *node, f family, tr transport) {
	n.forget(t)
	outside := n.open(t, f, tr, low)
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	r := n.fromA(ip(f.a, f.world, 64, tr.there(low)...)...)
	froms := pieces(r.in, 9)
	tos := pieces(sent(n.a, ip(f.host, f.world, 63, tr.there(outside)...)...), 9)
	with := func(r run, frame []byte) run { r.in = frame; return r }
	n.story(t,
		step{"later first", with(r, froms[1]), drops("decided", "fragment")},
		step{"first", with(r, froms[0]), forwarded(tos[0], "decided")},
		step{"later", with(r, froms[1]), forwarded(tos[1])},
	)
	n.elapse(t, fragmentSeconds+1)
	n.story(t, step{"much later", with(r, froms[2]), drops("decided", "fragment")})

	n.forget(t)
	outside = n.open(t, f, tr, low)
	n.forgetFragments(t)
	answer := n.fromWorld(ip(f.world, f.host, 58, tr.back(outside)...)...)
	direct := n.fromWorld(ip(f.world, f.b, 58, tr.there(low)...)...)
	stack := n.toWorld(seenDecided, ip(f.a, f.world, 63, tr.there(low)...)...)
	n.story(t,
		step{"later of an answer", with(answer, pieces(answer.in, 5)[1]), untouched()},
		step{
			"later to container", with(direct, pieces(direct.in, 6)[1]),
			deliveredAs(pieces(delivered(n.b, ip(f.world, f.b, 57, tr.there(low)...)...), 6)[1], "decided"),
		},
		step{"later from the stack", with(stack, pieces(stack.in, 7)[1]), drops("fragment")},
	)
}

func (n *node) forgetFragments(t *testing.T) {
	t.Helper()
	clearMap[maps.FragmentKey, maps.Fragment](t, n.maps.Fragments)
}

// testFragmentsDecidedAgain: a decision may become old between two fragments.
func testFragmentsDecidedAgain(t *testing.T, n *node, f family, tr transport) {
	n.forget(t)
	outside := n.open(t, f, tr, low)
	r := n.fromA(ip(f.a, f.world, 64, tr.there(low)...)...)
	out := sent(n.a, ip(f.host, f.world, 63, tr.there(outside)...)...)
	with := func(index int) run { r := r; r.in = pieces(r.in, 3)[index]; return r }
	n.story(t, step{"first", with(0), forwarded(pieces(out, 3)[0])})
	n.elapse(t, 10+1)
	n.story(t, step{"later, to world", with(1), forwarded(pieces(out, 3)[1], "decided")})
	n.elapse(t, 10+1)

	r = n.fromWorld(ip(f.world, f.host, 58, tr.back(outside)...)...)
	out = delivered(n.a, ip(f.world, f.a, 57, tr.back(low)...)...)
	n.story(t, step{"first, from world", with(0), deliveredAs(pieces(out, 3)[0], "decided")})
	must(t, n.Invalidate())
	n.story(t, step{"later, from world", with(1), deliveredAs(pieces(out, 3)[1], "decided")})

	r = n.toWorld(seenDecided, ip(f.a, f.world, 63, tr.there(low)...)...)
	out = n.left(ip(f.host, f.world, 63, tr.there(outside)...)...)
	n.story(t,
		step{"first, from the stack", with(0), leaves(pieces(out, 3)[0])},
		step{"later, from the stack", with(1), leaves(pieces(out, 3)[1])},
	)
}

// testFragmentsOfReply: an answer in fragments is an answer.
func testFragmentsOfReply(t *testing.T, n *node, f family, tr transport) {
	n.forget(t)
	request := ip(f.world, f.a, 60, udp(low, server)...)
	if tr.echo {
		request = ip(f.world, f.a, 60, packet.Echo(low, 3))
	} else if tr.name == "TCP" {
		request = ip(f.world, f.a, 60, tcp(low, server, packet.ACK)...)
	}
	if got := n.run(t, n.fromWorld(request...)); got.verdict != redirect {
		t.Fatalf("request: verdict %d", got.verdict)
	}
	r := n.fromA(ip(f.a, f.world, 64, tr.back(low)...)...)
	n.fragments(t, r, r.in, sent(n.a, ip(f.a, f.world, 63, tr.back(low)...)...), forwarded(nil), []string{"decided"}, 0, 1, 2, 3)
	n.wantTranslations(t)
}

// testIdentificationAgain: fragments of two packets with one identification.
func testIdentificationAgain(t *testing.T, n *node, f family) {
	n.forget(t)
	with := func(r run, index int) run { r.in = pieces(r.in, 4)[index]; return r }
	tr := bulky()[0]
	outside := n.open(t, f, tr, inside)
	second := n.open(t, f, tr, inside+1)
	one := n.fromA(ip(f.a, f.world, 64, tr.there(inside)...)...)
	two := n.fromA(ip(f.a, f.world, 64, tr.there(inside+1)...)...)
	elsewhere := n.fromA(ip(f.a, f.neighbour, 64, tr.there(inside)...)...)
	out := func(port uint16, index int) []byte {
		return pieces(sent(n.a, ip(f.host, f.world, 63, tr.there(port)...)...), 4)[index]
	}
	n.story(t,
		step{"first of one", with(one, 0), forwarded(out(outside, 0))},
		step{"later of one", with(one, 1), forwarded(out(outside, 1))},
		step{"to another destination", with(elsewhere, 1), drops("decided", "fragment")},
		step{"first of two", with(two, 0), forwarded(out(second, 0))},
		step{"later of two", with(two, 1), forwarded(out(second, 1))},
	)
	// Answers to two containers, on their way at once: all but the identification is
	// the same in their later fragments.
	n.check(t, n.from(n.b, ip(f.b, f.world, 64, udp(inside+2, server)...)...),
		forwarded(sent(n.b, ip(f.host, f.world, 63, udp(inside+2, server)...)...), "decided"))
	answer := func(to uint16, id byte, index int) run {
		r := n.fromWorld(ip(f.world, f.host, 58, tr.back(to)...)...)
		r.in = pieces(r.in, id)[index]
		return r
	}
	atA := pieces(delivered(n.a, ip(f.world, f.a, 57, tr.back(inside)...)...), 20)
	atB := pieces(delivered(n.b, ip(f.world, f.b, 57, tr.back(inside+2)...)...), 21)
	n.story(t,
		step{"first to the one", answer(outside, 20, 0), deliveredAs(atA[0], "decided")},
		step{"first to the other", answer(inside+2, 21, 0), deliveredAs(atB[0], "decided")},
		step{"later to the one", answer(outside, 20, 1), deliveredAs(atA[1])},
		step{"later to the other", answer(inside+2, 21, 1), deliveredAs(atB[1])},
	)
	// The same numbers, in another protocol and from another container.
	n.open(t, f, bulky()[1], inside)
	other := n.fromA(ip(f.a, f.world, 64, bulky()[1].there(inside)...)...)
	b := n.from(n.b, ip(f.b, f.world, 64, tr.there(inside)...)...)
	n.story(t,
		step{"another protocol", with(other, 1), drops("decided", "fragment")},
		step{"another container", with(b, 1), drops("decided", "fragment")},
	)
}

// testTinyFragments: a first fragment without all of the transport header hides
// what it is.
func testTinyFragments(t *testing.T, n *node, f family) {
	tr := bulky()[1]
	tiny := func(frame []byte, header int) []byte { return packet.Fragment(frame, header+8)[0] }
	header := 20
	if f.v6() {
		header = 48
	}
	out := sent(n.a, ip(f.a, f.world, 64, tr.there(inside)...)...)
	between := sent(n.a, ip(f.a, f.b, 64, tr.there(inside)...)...)
	in := n.arrived(ip(f.world, f.a, 64, tr.there(inside)...)...)
	n.table(t,
		step{"to world", run{program: fromContainer, device: n.a.IfIndex, in: tiny(out, header)}, drops("invalid")},
		step{"to container", run{program: fromContainer, device: n.a.IfIndex, in: tiny(between, header)}, drops("invalid")},
		step{"from world", run{program: fromUplink, device: n.uplink.IfIndex, in: tiny(in, header)}, untouched()},
	)
}

// testAtomicFragment: a packet with a fragment header that is whole (RFC 6946).
func testAtomicFragment(t *testing.T, n *node, f family) {
	atomic := func(src, dst family, ttl uint8, port uint16) []packet.Layer {
		return []packet.Layer{packet.IP(src.a, dst.world, packet.TTL(ttl)), packet.FragmentHeader(9, 0, false), packet.UDP(port, server), packet.Payload(20)}
	}
	masked := f
	masked.a = f.host
	n.table(t, step{"to world", n.fromA(atomic(f, f, 64, inside)...), forwarded(sent(n.a, atomic(masked, f, 63, inside)...), "decided")})
	if usage := n.fragmentCount(t); usage != 0 {
		t.Errorf("%d entries in map fragments, want none", usage)
	}
}

func (n *node) fragmentCount(t *testing.T) int {
	t.Helper()
	count := 0
	must(t, each(n.maps.Fragments, func(maps.FragmentKey, maps.Fragment) bool { count++; return true }))
	return count
}
