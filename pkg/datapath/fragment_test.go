// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
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
				t.Run("unknown", func(t *testing.T) { testUnknownFragments(t, n, f, tr) })
				t.Run("decided again", func(t *testing.T) { testFragmentsDecidedAgain(t, n, f, tr) })
				t.Run("of a reply", func(t *testing.T) { testFragmentsOfReply(t, n, f, tr) })
			})
		}
		t.Run("identification used again", func(t *testing.T) { testIdentificationAgain(t, n, f) })
	})
}

// bulky are the transports with payloads that make four fragments at 400 bytes.
func bulky() []transport { return served(bulkyAt) }

func bulkyAt(server uint16) []transport {
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
			first: transportsAt(server)[0].first,
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
	if w.verdict == dropped {
		return
	}
	whole, err := packet.Reassemble(arrived...)
	must(t, err)
	if err := packet.Verify(whole); err != nil {
		t.Errorf("reassembled packet: %v\n%s", err, packet.Summary(whole))
	}
}

// testFragmentOrders: fragments of one packet, the first of which may come before all others or not.
func testFragmentOrders(t *testing.T, w passage) {
	for _, tr := range w.those(bulky()) {
		for _, order := range [][]int{{0, 1, 2, 3}, {0, 3, 1, 2}} {
			t.Run(fmt.Sprint(tr.name, " ", order), func(t *testing.T) { testInOrder(t, w, tr, order) })
		}
		t.Run(tr.name+", later before the first", func(t *testing.T) { testEarly(t, w, tr) })
	}
}

// cut are the fragments of a packet, and the ends that they have.
func (w passage) cut(t *testing.T, tr transport, came, went uint16) (in []run, out []want) {
	t.Helper()
	whole := w.in(w.came.ip(64, w.comes(tr, came)...)...)
	end := w.again(tr, w.went.ip(64-w.hops, w.leaves(tr, went)...))
	var after [][]byte
	if end.out != nil {
		after = pieces(end.out, 1)
	}
	for i, frame := range pieces(whole.in, 1) {
		whole.in = frame
		in = append(in, whole)
		if after != nil {
			end.out = after[i]
		}
		out = append(out, end)
	}
	if len(in) != 4 {
		t.Fatalf("%d fragments, want 4", len(in))
	}
	return in, out
}

// asFirst adds to an end what is counted where nothing is known of the flow.
func (w passage) asFirst(end want) want {
	end.counters = slices.Concat(w.decided, w.good.counters)
	return end
}

func testInOrder(t *testing.T, w passage, tr transport, order []int) {
	came, went := w.begin(t, tr, low)
	r := w.in(w.came.ip(64, w.comes(tr, came)...)...)
	end := w.again(tr, w.went.ip(64-w.hops, w.leaves(tr, went)...))
	out := end.out
	if out == nil {
		out = r.in
	}
	var first []string
	if w.asks == nil || !w.asks(tr) {
		first = w.decided
	}
	w.fragments(t, r, r.in, out, end, first, order...)
}

// testEarly: one that overtakes the first has no ports. Where none are needed it is of a flow of its
// own, or, of ICMP, of none: nothing tells an echo's request from its answer then.
func testEarly(t *testing.T, w passage, tr transport) {
	came, went := w.begin(t, tr, low)
	in, out := w.cut(t, tr, came, went)
	stranger := w.ofStranger()
	_, alone := stranger.cut(t, tr, came, went)
	early, second := stranger.asFirst(alone[3]), alone[1]
	if tr.echo {
		second = stranger.asFirst(second)
	}
	if w.others.early != nil {
		early, second = *w.others.early, w.or(w.others.earlyAgain, *w.others.early)
	}
	w.story(t,
		step{"last", in[3], early},
		step{"second", in[1], second},
		step{"first", in[0], w.asFirst(out[0])},
		step{"third", in[2], out[2]},
	)
}

// testTinyFragments: a first fragment without all of the transport header hides what it is.
func testTinyFragments(t *testing.T, w passage) {
	w.forget(t)
	whole := w.in(w.came.ip(64, w.comes(bulky()[1], inside)...)...)
	header := 20
	if w.v6() {
		header = 40 + 8
	}
	tiny := map[string]run{}
	for _, bytes := range []int{8, 16} {
		r := whole
		r.in = packet.Fragment(whole.in, header+bytes)[0]
		tiny[fmt.Sprint(bytes, " bytes")] = r
		r.in = append(slices.Clone(r.in), make([]byte, 60)...)
		tiny[fmt.Sprint(bytes, " bytes, padded")] = r
	}
	if w.v6() { // RFC 7112
		r := w.in(w.came.ip(64, append([]packet.Layer{packet.DestinationOptions(16)}, w.comes(bulky()[1], inside)...)...)...)
		r.in = packet.Fragment(r.in, header+16)[0]
		tiny["a chain that goes on in the next"] = r
	}
	for name, r := range tiny {
		t.Run(name, func(t *testing.T) { w.check(t, r, *w.others.senseless) })
	}
	w.wantFlows(t)
	if count := w.fragmentCount(t); count != 0 {
		t.Errorf("%d entries in map fragments, want none", count)
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

func (n *node) fragmentCount(t *testing.T) int {
	t.Helper()
	count := 0
	must(t, each(n.maps.Fragments, func(maps.FragmentKey, maps.Fragment) bool { count++; return true }))
	return count
}
