// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

func testTranslations(t *testing.T, n *node) {
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range transports() {
			t.Run(tr.name, func(t *testing.T) {
				t.Run("port taken", func(t *testing.T) { testPortTaken(t, n, f, tr) })
				t.Run("ends of the range", func(t *testing.T) { testRange(t, n, f, tr) })
				t.Run("new epoch", func(t *testing.T) { testTranslationEpoch(t, n, f, tr) })
				t.Run("expired", func(t *testing.T) { testTakeover(t, n, f, tr) })
				t.Run("uplink's address changes", func(t *testing.T) { testUplinkAddress(t, n, f, tr) })
				t.Run("way out moves and comes back", func(t *testing.T) { testWayMoves(t, n, f, tr) })
				t.Run("host's own packet", func(t *testing.T) { testHostClaims(t, n, f, tr) })
			})
		}
		t.Run("host's socket", func(t *testing.T) { testHostSocket(t, n, f) })
		t.Run("TCP", func(t *testing.T) { testTCPStates(t, n, f) })
		t.Run("closed after idleness", func(t *testing.T) { testIdleClose(t, n, f) })
		t.Run("lifetimes", func(t *testing.T) { testLifetimes(t, n, f) })
		t.Run("seen by decisions", func(t *testing.T) { testKeptAlive(t, n, f) })
	})
}

// of finds the one translation of an endpoint's address and port.
func (n *node) of(t *testing.T, inside netip.AddrPort, world netip.AddrPort) translation {
	t.Helper()
	var found []translation
	for _, tr := range n.translations(t) {
		if tr.inside == inside && tr.world == world {
			found = append(found, tr)
		}
	}
	if len(found) != 1 {
		t.Fatalf("translations of %s to %s: got %+v, want one", inside, world, found)
	}
	return found[0]
}

// testPortTaken: two endpoints with one port, to one place and to two.
func testPortTaken(t *testing.T, n *node, f family, tr transport) {
	n.forget(t)
	n.open(t, f, tr, inside)
	second := n.run(t, n.from(n.b, ip(f.b, f.world, 64, tr.begin(inside)...)...))
	if tr.keeps {
		second.compare(t, drops("decided", "ports_exhausted"))
	} else {
		other := n.of(t, port(f.b, inside), tr.server(f.world)).outside.Port()
		first, last := n.config.MasqueradePorts[0], n.config.MasqueradePorts[1]
		if other == inside || other < first || other > last {
			t.Errorf("outside port: got %d, want another than %d of %d to %d", other, inside, first, last)
		}
		second.compare(t, forwarded(sent(n.b, ip(f.host, f.world, 63, tr.begin(other)...)...), "decided"))
		n.story(t,
			step{
				"answer to the second", n.fromWorld(ip(f.world, f.host, 58, tr.back(other)...)...),
				deliveredAs(delivered(n.b, ip(f.world, f.b, 57, tr.back(inside)...)...), "decided"),
			},
		)
	}
	n.story(t,
		step{
			"answer to the first", n.fromWorld(ip(f.world, f.host, 58, tr.back(inside)...)...),
			deliveredAs(delivered(n.a, ip(f.world, f.a, 57, tr.back(inside)...)...), "decided"),
		},
		step{
			"to another place", n.from(n.b, ip(f.b, f.neighbour, 64, tr.begin(inside)...)...),
			forwarded(sent(n.b, ip(f.host, f.neighbour, 63, tr.begin(inside)...)...), "decided"),
		},
	)
}

// testRange: a port at either end of the range is kept, those beyond are not.
func testRange(t *testing.T, n *node, f family, tr transport) {
	first, last := n.config.MasqueradePorts[0], n.config.MasqueradePorts[1]
	for _, c := range []struct {
		from uint16
		kept bool
	}{{first, true}, {last, true}, {first - 1, false}, {last + 1, false}} {
		n.forget(t)
		if outside := n.open(t, f, tr, c.from); !tr.keeps && (outside == c.from) != c.kept {
			t.Errorf("outside port for %d: got %d, kept: want %t", c.from, outside, c.kept)
		}
	}
}

// testTranslationEpoch: translations die with the epoch of their endpoint.
func testTranslationEpoch(t *testing.T, n *node, f family, tr transport) {
	n.forget(t)
	n.open(t, f, tr, inside)
	answer := n.fromWorld(ip(f.world, f.host, 58, tr.back(inside)...)...)
	arrived := deliveredAs(delivered(n.a, ip(f.world, f.a, 57, tr.back(inside)...)...), "decided")
	n.story(t, step{"answer", answer, arrived})
	must(t, n.bumpEpoch(uint32(n.b.ID)))
	must(t, n.Invalidate())
	n.story(t, step{"after other epochs", answer, arrived})
	must(t, n.bumpEpoch(uint32(n.a.ID)))
	n.story(t, step{"after its own", answer, untouched()})
	// Its next packet takes the same port again.
	n.open(t, f, tr, inside)
	n.wantTranslations(t, translation{
		protocol: tr.protocol(f), inside: port(f.a, inside), outside: port(f.host, inside), world: tr.server(f.world),
	})
	n.story(t, step{"then", answer, arrived})
}

// testTakeover: who needs the port of a dead translation takes it.
func testTakeover(t *testing.T, n *node, f family, tr transport) {
	n.forget(t)
	n.open(t, f, tr, inside)
	n.elapse(t, 121) // longer than any protocol's opening
	n.check(t, n.from(n.b, ip(f.b, f.world, 64, tr.begin(inside)...)...),
		forwarded(sent(n.b, ip(f.host, f.world, 63, tr.begin(inside)...)...), "decided"))
	n.wantTranslations(t, translation{
		protocol: tr.protocol(f), inside: port(f.b, inside), outside: port(f.host, inside), world: tr.server(f.world),
	})
	n.check(t, n.fromWorld(ip(f.world, f.host, 58, tr.back(inside)...)...),
		deliveredAs(delivered(n.b, ip(f.world, f.b, 57, tr.back(inside)...)...), "decided"))
}

// testUplinkAddress: the old address's answers are nobody's, the next packet takes
// the new one.
func testUplinkAddress(t *testing.T, n *node, f family, tr transport) {
	n.forget(t)
	n.open(t, f, tr, inside)
	changed := n.uplink
	renumbered := f
	if f.v6() {
		changed.IPv6 = addr("2001:db8::1001")
		renumbered.host = changed.IPv6
	} else {
		changed.IPv4 = addr("192.0.2.101")
		renumbered.host = changed.IPv4
	}
	n.do(t, func() error { return n.ReconcileUplinks([]Uplink{changed}) })
	defer n.do(t, func() error { return n.ReconcileUplinks([]Uplink{n.uplink}) })
	n.open(t, renumbered, tr, inside)
	n.wantTranslations(t, translation{
		protocol: tr.protocol(f), inside: port(f.a, inside), outside: port(renumbered.host, inside), world: tr.server(f.world),
	})
	n.story(t,
		step{"answer to the old address", n.fromWorld(ip(f.world, f.host, 58, tr.back(inside)...)...), untouched()},
		step{
			"answer to the new address", n.fromWorld(ip(f.world, renumbered.host, 58, tr.back(inside)...)...),
			deliveredAs(delivered(n.a, ip(f.world, f.a, 57, tr.back(inside)...)...), "decided"),
		},
	)
}

// testHostClaims: what the host sends itself with a port that an endpoint was
// given is never changed, and the answer will be the host's.
func testHostClaims(t *testing.T, n *node, f family, tr transport) {
	n.forget(t)
	n.open(t, f, tr, inside)
	answer := n.fromWorld(ip(f.world, f.host, 58, tr.back(inside)...)...)
	// Both directions are in the cache when the host comes.
	arrived := deliveredAs(delivered(n.a, ip(f.world, f.a, 57, tr.back(inside)...)...), "decided")
	n.story(t, step{"answer before", answer, arrived})
	held := n.translations(t)
	n.story(t,
		step{"to another place", n.toWorld(seenNot, ip(f.host, f.neighbour, 64, tr.there(inside)...)...), untouched()},
		step{"from another port", n.toWorld(seenNot, ip(f.host, f.world, 64, tr.there(inside+1)...)...), untouched()},
		step{"from another address", n.toWorld(seenNot, ip(f.unknown, f.world, 64, tr.there(inside)...)...), untouched()},
	)
	n.wantTranslations(t, held...)
	n.story(t, step{"from the same", n.toWorld(seenNot, ip(f.host, f.world, 64, tr.there(inside)...)...), untouched()})
	n.wantTranslations(t)
	n.story(t, step{"answer", answer, untouched()})
	n.wantFlows(t)
}

// testHostSocket: a port that a socket of the host has is not taken.
func testHostSocket(t *testing.T, n *node, f family) {
	all := transports()
	for _, c := range []struct {
		name   string
		tr     transport
		kind   int
		bind   netip.Addr
		listen bool
	}{
		{"UDP, bound to the address", all[1], unix.SOCK_DGRAM, f.host, false},
		{"UDP, bound to all", all[1], unix.SOCK_DGRAM, netip.Addr{}, false},
		{"TCP, listening", all[0], unix.SOCK_STREAM, f.host, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			n.forget(t)
			closeSocket := n.socket(t, f, c.kind, c.bind, c.listen)
			outside := n.open(t, f, c.tr, inside)
			if outside == inside {
				t.Errorf("outside port %d is the socket's", outside)
			}
			closeSocket()
			n.forget(t)
			if outside := n.open(t, f, c.tr, inside); outside != inside {
				t.Errorf("outside port: got %d, want %d once the socket is closed", outside, inside)
			}
		})
	}
}

// socket makes a socket of the host on port inside, and returns what closes it.
func (n *node) socket(t *testing.T, f family, kind int, bind netip.Addr, listen bool) func() {
	t.Helper()
	var fd int
	n.do(t, func() (err error) {
		domain := unix.AF_INET
		var where unix.Sockaddr = &unix.SockaddrInet4{Port: inside}
		if f.v6() {
			domain = unix.AF_INET6
			where = &unix.SockaddrInet6{Port: inside}
		}
		if bind.Is4() {
			where = &unix.SockaddrInet4{Port: inside, Addr: bind.As4()}
		} else if bind.Is6() {
			where = &unix.SockaddrInet6{Port: inside, Addr: bind.As16()}
		}
		if fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.Bind(fd, where); err != nil {
			return err
		}
		if listen {
			return unix.Listen(fd, 1)
		}
		return nil
	})
	return func() { must(t, unix.Close(fd)) }
}

// tcpStep is a segment of one connection and the translation's state after it.
type tcpStep struct {
	name    string
	inbound bool
	flags   packet.TCPFlags
	state   uint8
	marks   uint8
	// decided says that the slow path sees it.
	decided bool
}

// testTCPStates follows connections as they open and close.
func testTCPStates(t *testing.T, n *node, f family) {
	const syn, ack, fin, rst = packet.SYN, packet.ACK, packet.FIN, packet.RST
	const opening, established, closing, closed = maps.TranslationOpening, maps.TranslationEstablished, maps.TranslationClosing, maps.TranslationClosed
	const out, in = translationFinOut, translationFinIn
	handshake := []tcpStep{
		{"SYN", false, syn, opening, 0, true},
		{"SYN again", false, syn, opening, 0, true},
		{"SYN ACK", true, syn | ack, established, 0, true},
		{"ACK", false, ack, established, 0, false},
		{"answer", true, ack, established, 0, false},
	}
	after := func(steps ...tcpStep) []tcpStep { return append(append([]tcpStep(nil), handshake...), steps...) }
	for _, story := range []struct {
		name  string
		steps []tcpStep
	}{
		{"container closes", after(
			tcpStep{"FIN", false, fin | ack, closing, out, false},
			tcpStep{"ACK of FIN", true, ack, closing, out, false},
			tcpStep{"FIN of the world", true, fin | ack, closed, out | in, false},
			tcpStep{"last ACK", false, ack, closed, out | in, false},
			tcpStep{"late ACK", false, ack, closed, out | in, true},
			tcpStep{"late segment", true, ack, closed, out | in, true},
			tcpStep{"late FIN", true, fin | ack, closed, out | in, true},
			tcpStep{"SYN again", false, syn, opening, 0, true},
			tcpStep{"SYN ACK again", true, syn | ack, established, 0, true},
			tcpStep{"ACK again", false, ack, established, 0, false},
		)},
		{"world closes", after(
			tcpStep{"FIN of the world", true, fin | ack, closing, in, false},
			tcpStep{"half closed", false, ack, closing, in, false},
			tcpStep{"FIN again", true, fin | ack, closing, in, false},
			tcpStep{"FIN", false, fin | ack, closed, out | in, false},
			tcpStep{"last ACK", true, ack, closed, out | in, false},
			tcpStep{"late segment", false, ack, closed, out | in, true},
			tcpStep{"late ACK", true, ack, closed, out | in, true},
		)},
		{"FIN that only the slow path sees", after(
			tcpStep{"RST", true, rst, closed, 0, true},
			tcpStep{"FIN", false, fin | ack, closing, out, true},
			tcpStep{"FIN of the world", true, fin | ack, closed, out | in, true},
			tcpStep{"last ACK", false, ack, closed, out | in, true},
		)},
		{"world resets", after(
			tcpStep{"RST", true, rst, closed, 0, true},
			tcpStep{"late segment", true, ack, closed, 0, true},
		)},
		{"a stranger resets", after(
			tcpStep{"RST", true, rst, closed, 0, true},
			tcpStep{"goes on", false, ack, established, 0, true},
			tcpStep{"answer", true, ack, established, 0, true},
			tcpStep{"answer again", true, ack, established, 0, false},
		)},
		{"container resets", after(
			tcpStep{"RST", false, rst | ack, closed, 0, true},
			tcpStep{"late segment", true, ack, closed, 0, true},
			tcpStep{"SYN again", false, syn, opening, 0, true},
		)},
		{"refused", []tcpStep{
			{"SYN", false, syn, opening, 0, true},
			{"RST", true, rst | ack, closed, 0, true},
			{"SYN again", false, syn, opening, 0, true},
		}},
		{"reset while closing", after(
			tcpStep{"FIN", false, fin | ack, closing, out, false},
			tcpStep{"RST", true, rst, closed, out, true},
			tcpStep{"late ACK", false, ack, closed, out, true},
		)},
	} {
		t.Run(story.name, func(t *testing.T) {
			n.forget(t)
			for _, s := range story.steps {
				var counters []string
				if s.decided {
					counters = append(counters, "decided")
				}
				if s.inbound {
					segment := func(port uint16) []packet.Layer { return tcp(server, port, s.flags) }
					n.check(t, n.fromWorld(ip(f.world, f.host, 58, segment(inside)...)...),
						deliveredAs(delivered(n.a, ip(f.world, f.a, 57, segment(inside)...)...), counters...))
				} else {
					segment := tcp(inside, server, s.flags)
					n.check(t, n.fromA(ip(f.a, f.world, 64, segment...)...),
						forwarded(sent(n.a, ip(f.host, f.world, 63, segment...)...), counters...))
				}
				n.wantTranslations(t, translation{
					protocol: unix.IPPROTO_TCP, inside: port(f.a, inside), outside: port(f.host, inside), world: port(f.world, server),
					state: s.state, flags: s.marks,
				})
				if t.Failed() {
					t.Fatalf("at %s", s.name)
				}
			}
		})
	}
}

// testWayMoves: a TCP connection cannot take another address in the middle, and lives on
// when its way comes back. All else moves at once.
func testWayMoves(t *testing.T, n *node, f family, tr transport) {
	n.forget(t)
	n.open(t, f, tr, inside)
	before := n.translations(t)
	moved := n.uplink
	moved.IPv4, moved.IPv6 = v4().neighbour, v6().neighbour
	n.do(t, func() error { return n.ReconcileUplinks([]Uplink{moved}) })
	there := ip(f.a, f.world, 64, tr.there(inside)...)
	if tr.name == "TCP" {
		n.story(t,
			step{"moved", n.fromA(there...), passed(seenNot, "decided")},
			step{"and the stack sends it on", n.toWorld(seenNot, ip(f.a, f.world, 63, tr.there(inside)...)...), drops("no_translation")},
		)
		n.wantTranslations(t, before...)
	} else {
		n.check(t, n.fromA(there...), forwarded(sent(n.a, ip(f.neighbour, f.world, 63, tr.there(inside)...)...), "decided"))
	}
	n.do(t, func() error { return n.ReconcileUplinks([]Uplink{n.uplink}) })
	n.check(t, n.fromA(there...), forwarded(sent(n.a, ip(f.host, f.world, 63, tr.there(inside)...)...), "decided"))
}

// testIdleClose: a connection that was idle, so that the slow path sees its FINs, leaves
// no decisions behind either.
func testIdleClose(t *testing.T, n *node, f family) {
	n.forget(t)
	tr := transports()[0]
	n.open(t, f, tr, inside)
	show := func(inbound bool, flags ...packet.TCPOption) {
		t.Helper()
		if inbound {
			n.run(t, n.fromWorld(ip(f.world, f.host, 58, tcp(server, inside, flags...)...)...))
		} else {
			n.run(t, n.fromA(ip(f.a, f.world, 64, tcp(inside, server, flags...)...)...))
		}
	}
	show(true, packet.SYN, packet.ACK)
	show(false, packet.ACK)
	n.elapse(t, 20)
	show(false, packet.FIN, packet.ACK)
	show(true, packet.ACK)
	show(true, packet.FIN, packet.ACK)
	show(false, packet.ACK)
	n.wantFlows(t)
}

// testLifetimes: how long a translation is kept in each state.
func testLifetimes(t *testing.T, n *node, f family) {
	all := transports()
	const opening, established, closing, closed = maps.TranslationOpening, maps.TranslationEstablished, maps.TranslationClosing, maps.TranslationClosed
	for _, c := range []struct {
		name    string
		tr      transport
		state   uint8
		seconds uint32
	}{
		{"TCP opening", all[0], opening, 120},
		{"TCP established", all[0], established, 7440},
		{"TCP closing", all[0], closing, 240},
		{"TCP closed", all[0], closed, 240},
		{"UDP one way", all[1], opening, 30},
		{"UDP both ways", all[1], established, 300},
		{"ICMP unanswered", all[3], opening, 60},
		{"ICMP answered", all[3], established, 60},
		{"SCTP one way", all[4], opening, 30},
		{"SCTP both ways", all[4], established, 300},
	} {
		t.Run(c.name, func(t *testing.T) {
			answer := n.fromWorld(ip(f.world, f.host, 58, c.tr.back(inside)...)...)
			for _, late := range []bool{false, true} {
				n.forget(t)
				n.open(t, f, c.tr, inside)
				change(t, n.maps.Translations, func(_ maps.FlowKey, v *maps.Translation) { v.State = c.state })
				if late {
					n.elapse(t, c.seconds+2) // a tick is longer than a second
					n.check(t, answer, untouched())
					continue
				}
				n.elapse(t, c.seconds-5) // the clock goes on meanwhile
				n.check(t, answer, deliveredAs(delivered(n.a, ip(f.world, f.a, 57, c.tr.back(inside)...)...), "decided"))
			}
		})
	}
}

// testKeptAlive: each decision shows that the translation is in use, in either direction.
func testKeptAlive(t *testing.T, n *node, f family) {
	n.forget(t)
	tr := transports()[1]
	n.open(t, f, tr, inside)
	answer := n.fromWorld(ip(f.world, f.host, 58, tr.back(inside)...)...)
	arrived := deliveredAs(delivered(n.a, ip(f.world, f.a, 57, tr.back(inside)...)...), "decided")
	for range 3 {
		n.elapse(t, 25)
		n.open(t, f, tr, inside)
	}
	n.check(t, answer, arrived)
	for range 3 {
		n.elapse(t, 290)
		n.check(t, answer, arrived)
	}
	if got := len(n.translations(t)); got != 1 {
		t.Errorf("translations: got %d, want 1", got)
	}
}
