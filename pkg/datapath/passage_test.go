// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
)

// passage is a way that packets take through a program, and what becomes of each kind there. The tables of
// kinds are functions of it (testPassage), so that a further program gets all of them by one more value.
// Those of a node are in passage_node_test.go, of a bridge and of a parent in files named so.
type passage struct {
	name string
	*node
	family
	// came are the ends of a packet, went those with which it goes on.
	came, went pair
	// dialled are the ports of the server, before and after; 0 for server.
	dialled struct{ came, went uint16 }
	// carries tells the transports that pass; nil: all.
	carries func(transport) bool
	// answers says that its packets are those of a server.
	answers bool
	// open brings about what has to be known before the first of them, on a node without memory,
	// and returns the port of who began, before and after. With nil that is nothing, and the port stays.
	open func(t *testing.T, w passage, tr transport, port uint16) (came, went uint16)
	// policy, where it is not nil, is asked of all of them. It knows nothing of what has no ports.
	policy func() Policy
	// in is a packet before the program, out the frame after; nil where nothing changes.
	in  func(layers ...packet.Layer) run
	out func(layers ...packet.Layer) []byte
	// back is a packet of the other end.
	back func(layers ...packet.Layer) run
	// stays is the frame that the stack gets of a packet that would have gone on, where that changes.
	stays func(layers ...packet.Layer) []byte
	// turned is the frame that the stack gets of one that is not for it, to say something of it; nil where it stays as it is.
	turned func(frame []byte) []byte
	// hops are taken off the TTL.
	hops uint8
	// strange is the passage of what is of no flow that is known; nil for this one.
	strange *passage
	// speakers may speak of what was sent to the end that packets come from.
	speakers []netip.Addr

	// good is the end of a packet as it should be, without its frame, and without decided:
	// what counts besides that nothing is known of its flow.
	good    want
	decided []string
	// asks tells the transports of which each packet is decided by itself; nil for none.
	asks func(transport) bool
	// others are the ends of all other packets.
	others ends
}

// pair are the addresses of a packet.
type pair struct{ src, dst netip.Addr }

// swapped is that of a packet back.
func (p pair) swapped() pair { return pair{p.dst, p.src} }

// ends are what becomes of packets that are not as most; nil is what becomes of one that is, but for
// senseless, which every passage has.
type ends struct {
	// senseless is the end of packets that contradict themselves, or do not say what they are.
	senseless *want
	// early is that of a fragment that overtakes the first one, earlyAgain of another one, if that differs.
	early, earlyAgain *want
	// unasked is that of an error about what the receiver has not sent, untold of one about what it has.
	unasked, untold *want
	// lastHop is that of a packet whose TTL is 0 or 1, lastHopKnown in a flow that is known.
	lastHop, lastHopKnown *want
	// tooBig is that of segments that do not fit.
	tooBig *want
	// tagged has a tag beside the frame, inTag in it.
	tagged, inTag *want
	// toMartian, and the others, have such an address for one of the passage's.
	toMartian, toGroup, toAll, ofMartian, ofGroup, ofNobody *want
}

// as is a want for ends.
func as(w want) *want { return &w }

// ip is an IP packet between two ends.
func (p pair) ip(ttl uint8, inner ...packet.Layer) []packet.Layer {
	return ip(p.src, p.dst, ttl, inner...)
}

// with is a packet with options, and behind its header what a transport says.
func (p pair) with(inner []packet.Layer, options ...packet.IPOption) []packet.Layer {
	return append([]packet.Layer{packet.IP(p.src, p.dst, options...)}, inner...)
}

// comes is what packets of the passage say before, leaves what they say after.
func (w passage) comes(tr transport, port uint16) []packet.Layer {
	return says(tr.at(cmp.Or(w.dialled.came, server)), port, w.answers)
}

func (w passage) leaves(tr transport, port uint16) []packet.Layer {
	return says(tr.at(cmp.Or(w.dialled.went, server)), port, w.answers)
}

func says(tr transport, port uint16, answers bool) []packet.Layer {
	if answers {
		return tr.back(port)
	}
	return tr.there(port)
}

// ofStranger is the passage of what is of no flow that is known.
func (w passage) ofStranger() passage {
	if w.strange != nil {
		return *w.strange
	}
	return w
}

// begin has the node know what the packets need, and nothing else.
func (w passage) begin(t *testing.T, tr transport, port uint16) (came, went uint16) {
	t.Helper()
	w.forget(t)
	if w.open == nil {
		return port, port
	}
	return w.open(t, w, tr, port)
}

// goes is the end of a good packet, of which this comes out.
func (w passage) goes(out []packet.Layer, counters ...string) want {
	end := w.good
	end.counters = slices.Concat(counters, w.good.counters)
	if w.out != nil {
		end.out = w.out(out...)
	}
	return end
}

// first is the end of the first packet of a flow, and again of the next.
func (w passage) first(out []packet.Layer) want { return w.goes(out, w.decided...) }

func (w passage) again(tr transport, out []packet.Layer) want {
	if w.asks != nil && w.asks(tr) {
		return w.first(out)
	}
	return w.goes(out)
}

// or is one of the others, if the passage has it, and else the end given.
func (w passage) or(end *want, other want) want {
	if end != nil {
		return *end
	}
	return other
}

// frames are a good packet, the first of its flow, and what becomes of it.
func (w passage) frames(ttl uint8, came, went []packet.Layer) (in run, out want) {
	return w.in(w.came.ip(ttl, came...)...), w.first(w.went.ip(ttl-w.hops, went...))
}

// always, and inTheMiddle, tell of which transports each packet is decided by itself.
func always(transport) bool { return true }

// inTheMiddle: that a segment of TCP is denied says nothing of others, unless it begins.
func inTheMiddle(tr transport) bool { return tr.protocol(v4()) == unix.IPPROTO_TCP }

// those are the transports that pass.
func (w passage) those(all []transport) []transport {
	if w.carries == nil {
		return all
	}
	return slices.DeleteFunc(all, func(tr transport) bool { return !w.carries(tr) })
}

// hasPorts tells what a policy of ports may let in, isMapped what comes to a mapped port.
func hasPorts(tr transport) bool { return !tr.echo }

func isMapped(tr transport) bool { return !tr.echo && !tr.keeps }

// isForwarded says that the stack has what it shows, or what has to be known before, from a device.
func (w passage) isForwarded() bool {
	layers := w.came.ip(64, w.comes(transports()[1], low)...)
	return w.in(layers...).ingress != 0 || w.open != nil && w.back != nil && w.back(layers...).ingress != 0
}

// testPassages shows packets of all kinds on some passages; where all is emulated, each on one of the two kernels that
// see its family. Linux 5.10 cannot run some.
func testPassages(t *testing.T, passages []passage) {
	t.Helper()
	for i, w := range passages {
		t.Run(w.name, func(t *testing.T) {
			if !w.isForwarded() {
				nstest.Halve(t, i%2)
			} else {
				nstest.LeaveTo(t, []string{"6.1", "6.12"}[i%2], "7")
			}
			testPassage(t, w)
		})
	}
}

// testPassage shows packets of all kinds on a passage.
func testPassage(t *testing.T, w passage) {
	if w.policy != nil {
		w.enforce(t, w.policy())
	}
	for _, kind := range []struct {
		name string
		test func(*testing.T, passage)
	}{
		{"whole", testWhole},
		{"malformed", testMalformed},
		{"cut", testCut},
		{"extensions", testExtensions},
		{"options and padding", testOptions},
		{"fragments", testFragmentOrders},
		{"tiny fragments", testTinyFragments},
		{"errors", testErrorKinds},
		{"wrong checksums", testWrongChecksums},
		{"last hops", testLastHops},
		{"segments", testSegments},
		{"tags", testTags},
		{"addresses", testAddresses},
	} {
		t.Run(kind.name, func(t *testing.T) { kind.test(t, w) })
	}
}

// testWhole: each transport, first in a new flow and then in that.
func testWhole(t *testing.T, w passage) {
	for _, tr := range w.those(transports()) {
		came, went := w.begin(t, tr, low)
		in, out := w.frames(64, w.comes(tr, came), w.leaves(tr, went))
		w.story(t, step{tr.name, in, out}, step{tr.name + " again", in, w.again(tr, w.went.ip(64-w.hops, w.leaves(tr, went)...))})
	}
}

// testTags: a VLAN is another link.
func testTags(t *testing.T, w passage) {
	tr := transports()[1]
	came, went := w.begin(t, tr, low)
	good, out := w.frames(64, w.comes(tr, came), w.leaves(tr, went))
	const ofProvider = 0xa888 // 802.1ad, in network order
	inFrame := w.in(append([]packet.Layer{packet.VLAN(5)}, w.came.ip(64, w.comes(tr, came)...)...)...)
	for _, s := range []struct {
		name string
		run
		end *want
	}{
		{"beside the frame", good.tagged(5), w.others.tagged},
		{"of a provider", good.tagged(ofProvider<<16 | 5), w.others.tagged},
		{"in the frame", inFrame, w.others.inTag},
	} {
		t.Run(s.name, func(t *testing.T) {
			w.begin(t, tr, low)
			w.check(t, s.run, w.or(s.end, out))
		})
	}
}

// testAddresses: ends that are on no wire, or that many have.
func testAddresses(t *testing.T, w passage) {
	tr := transports()[1]
	all := addr("255.255.255.255")
	if w.v6() {
		all = addr("ff02::1")
	}
	for _, s := range []struct {
		name string
		came pair
		end  *want
	}{
		{"to a martian", pair{w.came.src, w.martian}, w.others.toMartian},
		{"to a group", pair{w.came.src, w.multicast}, w.others.toGroup},
		{"to all", pair{w.came.src, all}, w.others.toAll},
		{"of a martian", pair{w.martian, w.came.dst}, w.others.ofMartian},
		{"of a group", pair{w.multicast, w.came.dst}, w.others.ofGroup},
		{"of nobody", pair{w.nobody(), w.came.dst}, w.others.ofNobody},
	} {
		t.Run(s.name, func(t *testing.T) {
			w.begin(t, tr, low)
			changed := w
			changed.came = s.came
			if changed.went.src == w.came.src {
				changed.went.src = s.came.src
			}
			if changed.went.dst == w.came.dst {
				changed.went.dst = s.came.dst
			}
			in, out := changed.frames(64, w.comes(tr, inside), w.leaves(tr, inside))
			w.check(t, in, w.or(s.end, out))
		})
	}
}
