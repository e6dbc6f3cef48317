// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// hostPort leads to port server of endpoint b, at every address of the host; localPort
// to the same at one loopback address only, other to port 81 at one address of the
// host; onePort to port server of b, too.
const (
	hostPort  = 8080
	onePort   = 8081
	localPort = 8082
	shutPort  = 82
)

// withPorts is a node where ports of the host lead to b.
func withPorts(t *testing.T, cfg Config) *node {
	t.Helper()
	n := newNode(t, cfg)
	var addresses []netip.Addr
	for _, f := range []family{v4(), v6()} {
		loopback, every := addr("127.0.0.1"), netip.IPv4Unspecified()
		if f.host.Is6() {
			loopback, every = netip.IPv6Loopback(), netip.IPv6Unspecified()
		}
		for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			n.b.Ports = append(n.b.Ports,
				Port{every, hostPort, protocol, f.b, server},
				Port{f.host, onePort, protocol, f.b, server},
				Port{loopback, localPort, protocol, f.b, shutPort},
			)
		}
		addresses = append(addresses, f.host, f.second())
	}
	n.do(t, func() error {
		if err := n.AttachEndpoint(n.b); err != nil {
			return err
		}
		return n.ReconcileHostAddresses(addresses)
	})
	return n
}

// second is another address of the host.
func (f family) second() netip.Addr {
	if f.host.Is4() {
		return addr("192.0.2.2")
	}
	return addr("2001:db8:0:2::2")
}

// mapped are the protocols whose ports can be mapped, as packets between two ports.
type mappedProtocol struct {
	name     string
	number   uint8
	tcp      bool
	datagram func(from, to uint16) []packet.Layer
}

func mappedProtocols() []mappedProtocol {
	return []mappedProtocol{
		{"TCP", unix.IPPROTO_TCP, true, func(from, to uint16) []packet.Layer { return tcp(from, to, packet.ACK) }},
		{"UDP", unix.IPPROTO_UDP, false, udp},
	}
}

func TestPorts(t *testing.T) {
	n := withPorts(t, Config{Masquerade: true})
	eachFamily(t, func(t *testing.T, f family) {
		for _, p := range mappedProtocols() {
			t.Run(p.name, func(t *testing.T) {
				for name, test := range map[string]func(*testing.T, *node, family, mappedProtocol){
					"from the world":     testPortFromWorld,
					"from an endpoint":   testPortFromEndpoint,
					"of itself":          testPortOfItself,
					"none":               testNoPort,
					"clash":              testPortClash,
					"container replaced": testPortReplaced,
					"errors":             testPortErrors,
					"fragments":          testPortFragments,
					"way back":           testPortWayBack,
					"client moves":       testPortClientMoves,
					"by the stack":       testPortByStack,
					"astray":             testPortAstray,
					"shut":               testPortShut,
					"host's connection":  testPortOfHostsConnection,
					"orphan":             testPortOrphan,
				} {
					t.Run(name, func(t *testing.T) { n.forget(t); test(t, n, f, p) })
				}
			})
		}
		for _, w := range portPassages(n, f) {
			t.Run(w.name, func(t *testing.T) { testPassage(t, w) })
		}
		testPassages(t, slices.Concat(localPortPassages(n, f), policedLocalPortPassages(n, f)))
	})
}

// handshake is what goes before data, with the counters of each packet.
func (p mappedProtocol) handshake(client, dialled, seen, inside netip.AddrPort, ask, answer func(...packet.Layer) run,
	asked, answered func(out []packet.Layer, counters ...string) want,
) []step {
	if !p.tcp {
		return nil
	}
	return []step{
		{
			"SYN", ask(ip(client.Addr(), dialled.Addr(), 58, tcp(client.Port(), dialled.Port(), packet.SYN)...)...),
			asked(ip(seen.Addr(), inside.Addr(), 57, tcp(seen.Port(), inside.Port(), packet.SYN)...), "decided"),
		},
		{
			"SYN, ACK", answer(ip(inside.Addr(), seen.Addr(), 64, tcp(inside.Port(), seen.Port(), packet.SYN, packet.ACK)...)...),
			answered(ip(dialled.Addr(), client.Addr(), 63, tcp(dialled.Port(), client.Port(), packet.SYN, packet.ACK)...), "decided"),
		},
	}
}

func testPortFromWorld(t *testing.T, n *node, f family, p mappedProtocol) {
	for _, dialled := range []netip.AddrPort{port(f.host, hostPort), port(f.second(), hostPort), port(f.host, onePort)} {
		n.forget(t)
		client, inside := port(f.world, low), port(f.b, server)
		fromB := func(layers ...packet.Layer) run { return n.from(n.b, layers...) }
		toB := func(out []packet.Layer, counters ...string) want {
			return deliveredAs(delivered(n.b, out...), counters...)
		}
		toWorld := func(out []packet.Layer, counters ...string) want {
			return forwarded(sent(n.b, out...), counters...)
		}
		ask := n.fromWorld(ip(client.Addr(), dialled.Addr(), 58, p.datagram(low, dialled.Port())...)...)
		asked := ip(client.Addr(), inside.Addr(), 57, p.datagram(low, server)...)
		answer := fromB(ip(inside.Addr(), client.Addr(), 64, p.datagram(server, low)...)...)
		answered := ip(dialled.Addr(), client.Addr(), 63, p.datagram(dialled.Port(), low)...)
		steps := p.handshake(client, dialled, client, inside, n.fromWorld, fromB, toB, toWorld)
		n.story(t, append(steps,
			step{"first", ask, toB(asked, "decided")},
			step{"second", ask, toB(asked)},
			step{"answer", answer, toWorld(answered, "decided")},
			step{"second answer", answer, toWorld(answered)},
			step{"third", ask, toB(asked, p.decidedUnlessTCP()...)},
			step{"fourth", ask, toB(asked)},
			step{"third answer", answer, toWorld(answered)},
		)...)
		n.wantTranslations(t, translation{
			protocol: p.number, inside: inside, outside: dialled, world: client,
			state: maps.TranslationEstablished, flags: translationPort | translationAnswered,
		})
	}
}

func testPortFromEndpoint(t *testing.T, n *node, f family, p mappedProtocol) {
	client, dialled, inside := port(f.a, low), port(f.host, hostPort), port(f.b, server)
	fromB := func(layers ...packet.Layer) run { return n.from(n.b, layers...) }
	toB := func(out []packet.Layer, counters ...string) want {
		return deliveredAs(delivered(n.b, out...), counters...)
	}
	toA := func(out []packet.Layer, counters ...string) want {
		return deliveredAs(delivered(n.a, out...), counters...)
	}
	ask := n.fromA(ip(client.Addr(), dialled.Addr(), 58, p.datagram(low, hostPort)...)...)
	asked := ip(client.Addr(), inside.Addr(), 57, p.datagram(low, server)...)
	answer := fromB(ip(inside.Addr(), client.Addr(), 64, p.datagram(server, low)...)...)
	answered := ip(dialled.Addr(), client.Addr(), 63, p.datagram(hostPort, low)...)
	steps := p.handshake(client, dialled, client, inside, n.fromA, fromB, toB, toA)
	n.story(t, append(steps,
		step{"first", ask, toB(asked, "decided")},
		step{"second", ask, toB(asked)},
		step{"answer", answer, toA(answered, "decided")},
		step{"second answer", answer, toA(answered)},
	)...)
}

// testPortOfItself: the endpoint must not see its own address, and the port that stands
// for the client's is one of the range.
func testPortOfItself(t *testing.T, n *node, f family, p mappedProtocol) {
	client, dialled, inside := port(f.b, low), port(f.host, hostPort), port(f.b, server)
	fromB := func(layers ...packet.Layer) run { return n.from(n.b, layers...) }
	toB := func(out []packet.Layer, counters ...string) want {
		return deliveredAs(delivered(n.b, out...), counters...)
	}
	first := p.datagram
	if p.tcp {
		first = func(from, to uint16) []packet.Layer { return tcp(from, to, packet.SYN) }
	}
	got := n.run(t, fromB(ip(client.Addr(), dialled.Addr(), 58, first(low, hostPort)...)...))
	var seen netip.AddrPort
	must(t, each(n.maps.Translations, func(key maps.FlowKey, _ maps.Translation) bool {
		if key.SourcePort == maps.Port(server) {
			seen = netip.AddrPortFrom(maps.Addr(key.Destination), maps.Port(key.DestinationPort))
		}
		return true
	}))
	if first, last := n.config.MasqueradePorts[0], n.config.MasqueradePorts[1]; seen.Addr() != f.host || seen.Port() < first || seen.Port() > last {
		t.Fatalf("seen by the endpoint: %v, verdict %d, %v", seen, got.verdict, got.counts)
	}
	got.compare(t, toB(ip(seen.Addr(), inside.Addr(), 57, first(seen.Port(), server)...), "decided"))
	ask := fromB(ip(client.Addr(), dialled.Addr(), 58, p.datagram(low, hostPort)...)...)
	asked := ip(seen.Addr(), inside.Addr(), 57, p.datagram(seen.Port(), server)...)
	answer := fromB(ip(inside.Addr(), seen.Addr(), 64, p.datagram(server, seen.Port())...)...)
	answered := ip(dialled.Addr(), client.Addr(), 63, p.datagram(hostPort, low)...)
	n.story(t,
		step{"answer", answer, toB(answered, "decided")},
		step{"second answer", answer, toB(answered)},
		step{"second", ask, toB(asked)},
		step{
			"error", fromB(ip(inside.Addr(), seen.Addr(), 64, packet.Unreachable(packet.PortUnreachable), packet.Quote(delivered(n.b, asked...)))...),
			toB(ip(dialled.Addr(), client.Addr(), 63, packet.Unreachable(packet.PortUnreachable),
				packet.Quote(sent(n.b, ip(client.Addr(), dialled.Addr(), 57, p.datagram(low, hostPort)...)...))), "decided"),
		},
	)
}

func testNoPort(t *testing.T, n *node, f family, p mappedProtocol) {
	n.table(t,
		step{"not mapped", n.fromWorld(ip(f.world, f.host, 58, p.datagram(low, 8099)...)...), untouched()},
		step{"no address of the host", n.fromWorld(ip(f.world, f.neighbour, 58, p.datagram(low, hostPort)...)...), untouched()},
		step{"mapped at another address", n.fromWorld(ip(f.world, f.second(), 58, p.datagram(low, onePort)...)...), untouched()},
		step{"mapped at a loopback address", n.fromWorld(ip(f.world, f.host, 58, p.datagram(low, localPort)...)...), untouched()},
		step{"from the host's own address", n.fromWorld(ip(f.host, f.host, 58, p.datagram(low, hostPort)...)...), untouched()},
		step{"from an endpoint's address", n.fromWorld(ip(f.a, f.host, 58, p.datagram(low, hostPort)...)...), untouched()},
		step{"at the end of its life", n.fromWorld(ip(f.world, f.host, 1, p.datagram(low, hostPort)...)...), drops("decided", "ttl")},
		step{"endpoint, not mapped", n.fromA(ip(f.a, f.host, 58, p.datagram(low, 8099)...)...), passed(seenNot, "decided")},
		step{"endpoint, at a loopback address", n.fromA(ip(f.a, f.host, 58, p.datagram(low, localPort)...)...), passed(seenNot, "decided")},
	)
}

// testPortClash: one port of a client is used towards two ports or addresses of the host
// that lead to one of b. An answer of b could not be told from another's, so b sees another
// client's port of the second; both go on side by side, and close by themselves.
func testPortClash(t *testing.T, n *node, f family, p mappedProtocol) {
	client, first := port(f.world, low), port(f.host, hostPort)
	for _, second := range []netip.AddrPort{port(f.host, onePort), port(f.second(), hostPort)} {
		n.forget(t)
		n.connect(t, f, p, client, first, client)
		begin := p.datagram
		if p.tcp {
			begin = func(from, to uint16) []packet.Layer { return tcp(from, to, packet.SYN) }
		}
		n.run(t, n.fromWorld(ip(client.Addr(), second.Addr(), 58, begin(low, second.Port())...)...))
		seen := n.seenOf(t, p, client, second)
		if seen.Port() == low || seen.Port() < 1024 {
			t.Fatalf("b sees %s, which is to be neither the other's port nor below 1024", seen)
		}
		n.connect(t, f, p, client, second, seen)
		n.connect(t, f, p, client, first, client)
		flags := uint8(translationPort | translationAnswered)
		both := []translation{
			{p.number, port(f.b, server), first, client, maps.TranslationEstablished, flags},
			{p.number, port(f.b, server), second, client, maps.TranslationEstablished, flags | translationRemapped},
		}
		n.wantTranslations(t, both...)
		n.portErrors(t, f, p, client, second, seen)
		n.portErrors(t, f, p, client, first, client)
		n.wantTranslations(t, both...)
		n.check(t, n.toWorld(seenDecided, ip(f.b, seen.Addr(), 63, p.datagram(server, seen.Port())...)...),
			leaves(n.left(ip(second.Addr(), client.Addr(), 63, p.datagram(second.Port(), low)...)...)))
		if !p.tcp {
			n.portFragments(t, f, client, second, seen)
			continue
		}
		n.run(t, n.fromWorld(ip(client.Addr(), second.Addr(), 58, tcp(low, second.Port(), packet.FIN, packet.ACK)...)...))
		n.run(t, n.from(n.b, ip(f.b, client.Addr(), 64, tcp(server, seen.Port(), packet.FIN, packet.ACK)...)...))
		both[1].state, both[1].flags = maps.TranslationClosed, both[1].flags|translationFinIn|translationFinOut
		n.wantTranslations(t, both...)
		n.connect(t, f, p, client, first, client)
		// What is closed gives way: the client's port is kept where it can be.
		n.elapse(t, 300)
		n.connect(t, f, p, client, first, client)
	}
}

// seenOf is the client's address and port as b sees it of a connection.
func (n *node) seenOf(t *testing.T, p mappedProtocol, client, dialled netip.AddrPort) netip.AddrPort {
	t.Helper()
	var reply maps.Translation
	must(t, n.maps.Translations.Lookup(maps.FlowKey{
		Source: maps.NewAddress(client.Addr()), SourcePort: maps.Port(client.Port()),
		Destination: maps.NewAddress(dialled.Addr()), DestinationPort: maps.Port(dialled.Port()), Protocol: p.number,
	}, &reply))
	if reply.Flags&translationRemapped == 0 {
		return client
	}
	return netip.AddrPortFrom(client.Addr(), maps.Port(reply.Mapped))
}

// connect has a client in the world, whom b sees as another perhaps, and b speak with
// each other by a port of the host.
func (n *node) connect(t *testing.T, f family, p mappedProtocol, client, dialled, seen netip.AddrPort) {
	t.Helper()
	segment := func(name string, inbound bool, layers func(from, to uint16) []packet.Layer) {
		t.Helper()
		r := n.fromWorld(ip(client.Addr(), dialled.Addr(), 58, layers(client.Port(), dialled.Port())...)...)
		out := delivered(n.b, ip(seen.Addr(), f.b, 57, layers(seen.Port(), server)...)...)
		if !inbound {
			r = n.from(n.b, ip(f.b, seen.Addr(), 64, layers(server, seen.Port())...)...)
			out = sent(n.b, ip(dialled.Addr(), client.Addr(), 63, layers(dialled.Port(), client.Port())...)...)
		}
		got := n.run(t, r)
		if diff := packet.Diff(out, got.out); diff != "" || got.verdict != redirect {
			t.Fatalf("%s of %s by %s: verdict %d, %v\n%s", name, client, dialled, got.verdict, got.counts, diff)
		}
	}
	if p.tcp {
		segment("SYN", true, func(from, to uint16) []packet.Layer { return tcp(from, to, packet.SYN) })
		segment("SYN, ACK", false, func(from, to uint16) []packet.Layer { return tcp(from, to, packet.SYN, packet.ACK) })
	}
	for range 3 { // by the slow path, and by the fast
		segment("question", true, p.datagram)
		segment("answer", false, p.datagram)
	}
}

// decidedUnlessTCP is for what comes after the answer: it makes a stream of the flow,
// which for TCP the end of the handshake has done.
func (p mappedProtocol) decidedUnlessTCP() []string {
	if p.tcp {
		return nil
	}
	return []string{"decided"}
}

// testPortReplaced: the next packet of an old client finds the endpoint that has the
// port now.
func testPortReplaced(t *testing.T, n *node, f family, p mappedProtocol) {
	in := n.fromWorld(ip(f.world, f.host, 58, p.datagram(low, hostPort)...)...)
	n.story(t,
		step{"before", in, deliveredAs(delivered(n.b, ip(f.world, f.b, 57, p.datagram(low, server)...)...), "decided")},
		step{
			"answer", n.from(n.b, ip(f.b, f.world, 64, p.datagram(server, low)...)...),
			forwarded(sent(n.b, ip(f.host, f.world, 63, p.datagram(hostPort, low)...)...), "decided"),
		},
	)
	old, next := n.b, n.c
	next.Ports = []Port{{n.b.Ports[0].HostIP, hostPort, p.number, f.c, server}}
	if f.host.Is6() {
		next.Ports[0].HostIP = netip.IPv6Unspecified()
	}
	n.do(t, func() error { return n.DetachEndpoint(old) })
	n.check(t, in, untouched())
	n.do(t, func() error { return n.AttachEndpoint(next) })
	n.check(t, in, deliveredAs(delivered(n.c, ip(f.world, f.c, 57, p.datagram(low, server)...)...), "decided"))
	n.do(t, func() error {
		if err := n.DetachEndpoint(next); err != nil {
			return err
		}
		return restart(n.Datapath, []Endpoint{n.a, n.b, n.c})
	})
}

// testPortOrphan: a connection that was entered in the moment in which its endpoint went,
// and has the epoch from after it, is not in the way of who has the port next.
func testPortOrphan(t *testing.T, n *node, f family, p mappedProtocol) {
	in := n.fromWorld(ip(f.world, f.host, 58, p.datagram(low, hostPort)...)...)
	n.check(t, in, deliveredAs(delivered(n.b, ip(f.world, f.b, 57, p.datagram(low, server)...)...), "decided"))
	old, next := n.b, n.c
	next.Ports = []Port{{f.nobody(), hostPort, p.number, f.c, server}}
	n.do(t, func() error { return n.DetachEndpoint(old) })
	var epoch uint32
	must(t, n.maps.Epochs.Lookup(uint32(old.ID), &epoch))
	change(t, n.maps.Translations, func(_ maps.FlowKey, v *maps.Translation) {
		if v.Seen != 0 {
			v.Epoch, v.State = epoch, maps.TranslationEstablished
		}
	})
	n.check(t, in, untouched())
	n.do(t, func() error { return n.AttachEndpoint(next) })
	n.check(t, in, deliveredAs(delivered(n.c, ip(f.world, f.c, 57, p.datagram(low, server)...)...), "decided"))
	n.do(t, func() error {
		if err := n.DetachEndpoint(next); err != nil {
			return err
		}
		return restart(n.Datapath, []Endpoint{n.a, n.b, n.c})
	})
}

func testPortErrors(t *testing.T, n *node, f family, p mappedProtocol) {
	inbound := ip(f.world, f.host, 58, p.datagram(low, hostPort)...)
	toB := ip(f.world, f.b, 57, p.datagram(low, server)...)
	n.check(t, n.fromWorld(inbound...), deliveredAs(delivered(n.b, toB...), "decided"))
	answer := ip(f.b, f.world, 64, p.datagram(server, low)...)
	answered := ip(f.host, f.world, 63, p.datagram(hostPort, low)...)
	n.check(t, n.from(n.b, answer...), forwarded(sent(n.b, answered...), "decided"))
	n.check(t, n.fromWorld(inbound...), deliveredAs(delivered(n.b, toB...), "decided"))
	n.portErrors(t, f, p, port(f.world, low), port(f.host, hostPort), port(f.world, low))
}

// portErrors has the endpoint complain about what the client sent, a router about what the
// endpoint answered, and the host's stack about what it should have delivered.
func (n *node) portErrors(t *testing.T, f family, p mappedProtocol, client, dialled, seen netip.AddrPort) {
	t.Helper()
	toB := ip(seen.Addr(), f.b, 57, p.datagram(seen.Port(), server)...)
	toHost := n.arrived(ip(client.Addr(), dialled.Addr(), 57, p.datagram(client.Port(), dialled.Port())...)...)
	answered := ip(dialled.Addr(), client.Addr(), 63, p.datagram(dialled.Port(), client.Port())...)
	n.check(t,
		n.from(n.b, ip(f.b, seen.Addr(), 64, packet.Unreachable(packet.PortUnreachable), packet.Quote(delivered(n.b, toB...)))...),
		forwarded(sent(n.b, ip(dialled.Addr(), client.Addr(), 63, packet.Unreachable(packet.PortUnreachable), packet.Quote(toHost))...), "decided"))
	n.check(t,
		n.fromWorld(ip(f.router, dialled.Addr(), 58, packet.TTLExceeded(), packet.Quote(n.left(answered...)))...),
		deliveredAs(delivered(n.b, ip(f.router, f.b, 57, packet.TTLExceeded(),
			packet.Quote(sent(n.b, ip(f.b, seen.Addr(), 63, p.datagram(server, seen.Port())...)...)))...), "decided"))
	n.check(t,
		n.toWorld(seenNot, ip(f.host, client.Addr(), 64, packet.Unreachable(packet.HostUnreachable), packet.Quote(delivered(n.b, toB...)))...),
		leaves(n.left(ip(f.host, client.Addr(), 64, packet.Unreachable(packet.HostUnreachable), packet.Quote(toHost))...)))
}

func testPortFragments(t *testing.T, n *node, f family, p mappedProtocol) {
	if p.tcp {
		return
	}
	n.portFragments(t, f, port(f.world, low), port(f.host, hostPort), port(f.world, low), "decided")
}

func (n *node) portFragments(t *testing.T, f family, client, dialled, seen netip.AddrPort, counters ...string) {
	t.Helper()
	bulk := func(from, to uint16) []packet.Layer {
		return []packet.Layer{packet.UDP(from, to), packet.Payload(1300)}
	}
	in := n.fromWorld(ip(client.Addr(), dialled.Addr(), 58, bulk(client.Port(), dialled.Port())...)...)
	out := delivered(n.b, ip(seen.Addr(), f.b, 57, bulk(seen.Port(), server)...)...)
	n.fragments(t, in, in.in, out, deliveredAs(nil), counters, 0, 2, 3, 1)
	back := n.from(n.b, ip(f.b, seen.Addr(), 64, bulk(server, seen.Port())...)...)
	out = sent(n.b, ip(dialled.Addr(), client.Addr(), 63, bulk(dialled.Port(), client.Port())...)...)
	n.fragments(t, back, back.in, out, forwarded(nil), counters, 0, 1, 2, 3)
}

// testPortWayBack: the answer leaves by the uplink that the client came by, although
// the routes lead to the client by another device.
// With IPv6 the kernel finds no other way than the best, so it is the neighbour's.
func testPortWayBack(t *testing.T, n *node, f family, p mappedProtocol) {
	answered := ip(f.host, f.elsewhere, 63, p.datagram(hostPort, low)...)
	out := sent(n.b, answered...)
	if f.host.Is6() {
		out = n.left(answered...)
	}
	n.story(t,
		step{
			"from elsewhere", n.fromWorld(ip(f.elsewhere, f.host, 58, p.datagram(low, hostPort)...)...),
			deliveredAs(delivered(n.b, ip(f.elsewhere, f.b, 57, p.datagram(low, server)...)...), "decided"),
		},
		step{
			"answer", n.from(n.b, ip(f.b, f.elsewhere, 64, p.datagram(server, low)...)...),
			forwarded(out, "decided"),
		},
	)
}

// testPortClientMoves: the answers follow a client that comes by another uplink, and one
// whose packets somebody else hands over.
func testPortClientMoves(t *testing.T, n *node, f family, p mappedProtocol) {
	other := Uplink{Name: "other0", IfIndex: n.other.Attrs().Index, MTU: 1500, MAC: n.other.Attrs().HardwareAddr}
	n.do(t, func() error { return n.ReconcileUplinks([]Uplink{n.uplink, other}) })
	defer n.do(t, func() error { return n.ReconcileUplinks([]Uplink{n.uplink}) })
	client, inside := port(f.elsewhere, low), port(f.b, server)
	by := func(u Uplink, neighbour string) run {
		frame := append([]packet.Layer{packet.Eth(packet.MAC(neighbour), u.MAC)}, ip(f.elsewhere, f.host, 58, p.datagram(low, hostPort)...)...)
		return run{program: fromUplink, device: u.IfIndex, in: packet.New(frame...)}
	}
	for _, way := range []struct {
		Uplink
		neighbour string
	}{
		{n.uplink, "02:00:00:00:fe:01"},
		{other, "02:00:00:00:fe:02"},
		{n.uplink, "02:00:00:00:fe:03"},
		{n.uplink, "02:00:00:00:fe:04"},
		{other, "02:00:00:00:fe:05"},
	} {
		for range 3 { // the last by the fast path
			if got := n.run(t, by(way.Uplink, way.neighbour)); got.verdict != redirect {
				t.Fatalf("by %s from %s: verdict %d, %v", way.Name, way.neighbour, got.verdict, got.counts)
			}
			answer := n.run(t, n.from(n.b, ip(f.b, f.elsewhere, 64, p.datagram(server, low)...)...))
			// With IPv6 the kernel finds no other way than the best, so it is the neighbour's.
			want := packet.New(append([]packet.Layer{packet.Eth(way.MAC, packet.MAC(way.neighbour))},
				ip(f.host, f.elsewhere, 63, p.datagram(hostPort, low)...)...)...)
			if f.v6() && way.IfIndex == n.uplink.IfIndex && !bytes.Equal(answer.out, want) {
				t.Errorf("by %s from %s, the answer:\n%s", way.Name, way.neighbour, packet.Diff(want, answer.out))
			}
			flows, err := n.Flows(100)
			must(t, err)
			for _, flow := range flows {
				if flow.Source == inside && flow.Destination == client && flow.OutIfIndex != way.IfIndex {
					t.Errorf("answered by device %d, and the client came by %s, %d", flow.OutIfIndex, way.Name, way.IfIndex)
				}
			}
		}
		n.elapse(t, 11) // it moves: what comes next is decided anew
	}
}

// testPortByStack: what is too big for the way is fragmented by the stack, and is an
// answer of the port all the same. A question with its answer is no connection yet.
func testPortByStack(t *testing.T, n *node, f family, p mappedProtocol) {
	question, reply := p.datagram, p.datagram
	if p.tcp {
		question = func(from, to uint16) []packet.Layer { return tcp(from, to, packet.SYN) }
		reply = func(from, to uint16) []packet.Layer { return tcp(from, to, packet.SYN, packet.ACK) }
	}
	n.story(t,
		step{
			"question", n.fromWorld(ip(f.world, f.host, 58, question(low, hostPort)...)...),
			deliveredAs(delivered(n.b, ip(f.world, f.b, 57, question(low, server)...)...), "decided"),
		},
		step{
			"answer", n.toWorld(seenDecided, ip(f.b, f.world, 63, reply(server, low)...)...),
			leaves(n.left(ip(f.host, f.world, 63, reply(hostPort, low)...)...)),
		},
	)
	n.wantTranslations(t, translation{
		protocol: p.number, inside: port(f.b, server), outside: port(f.host, hostPort), world: port(f.world, low),
		state: maps.TranslationOpening, flags: translationPort | translationAnswered,
	})
}

// testPortAstray: an answer that is too big for the uplink its client came by is left to
// the stack, whose routes lead by another uplink, where it is counted and does not leave.
func testPortAstray(t *testing.T, n *node, f family, p mappedProtocol) {
	other := Uplink{Name: "other0", IfIndex: n.other.Attrs().Index, MTU: 1500, MAC: n.other.Attrs().HardwareAddr}
	n.do(t, func() error { return n.ReconcileUplinks([]Uplink{n.uplink, other}) })
	defer n.do(t, func() error { return n.ReconcileUplinks([]Uplink{n.uplink}) })
	frame := append([]packet.Layer{packet.Eth(routerMAC(), other.MAC)}, ip(f.elsewhere, f.host, 58, p.datagram(low, hostPort)...)...)
	ask := run{program: fromUplink, device: other.IfIndex, in: packet.New(frame...)}
	bulk := func(from, to uint16) []packet.Layer {
		return []packet.Layer{packet.UDP(from, to), packet.Payload(1300)}
	}
	if p.tcp {
		bulk = func(from, to uint16) []packet.Layer {
			return []packet.Layer{packet.TCP(from, to, packet.ACK), packet.Payload(1300)}
		}
	}
	inside, outside := ip(f.b, f.elsewhere, 63, bulk(server, low)...), ip(f.host, f.elsewhere, 63, bulk(hostPort, low)...)
	right := n.toWorld(seenDecided, inside...)
	right.device = other.IfIndex
	n.story(t,
		step{"question", ask, deliveredAs(delivered(n.b, ip(f.elsewhere, f.b, 57, p.datagram(low, server)...)...), "decided")},
		step{"by the other uplink", n.toWorld(seenDecided, inside...), drops("no_uplink")},
		step{"by the client's", right, leaves(n.left(outside...))},
	)
	// One that has been none for a while has nothing to be kept for.
	n.do(t, func() error { return n.ReconcileUplinks([]Uplink{n.uplink}) })
	n.check(t, n.toWorld(seenDecided, inside...), drops("no_uplink"))
	before := n.now
	defer func() { n.now = before }()
	n.now = func() time.Time { return before().Add(Linger) }
	n.do(t, func() error { return n.ReconcileUplinks([]Uplink{n.uplink}) })
	n.check(t, n.toWorld(seenDecided, inside...), leaves(n.left(outside...)))
}

// TestPortsAndMasquerade: a port that leads to one endpoint is not taken for another;
// the endpoint itself calls from it where it has the same number.
func TestPortsAndMasquerade(t *testing.T) {
	nstest.LeaveTo(t, "6.1")
	n := newNode(t, Config{Masquerade: true, MasqueradePorts: [2]uint16{hostPort, onePort}})
	n.b.Ports = []Port{
		{netip.IPv4Unspecified(), hostPort, unix.IPPROTO_UDP, v4().b, server},
		{v4().host, onePort, unix.IPPROTO_UDP, v4().b, server},
		{v4().host, low, unix.IPPROTO_UDP, v4().b, low},
	}
	n.do(t, func() error { return n.AttachEndpoint(n.b) })
	f := v4()
	n.table(t,
		step{"another endpoint", n.fromA(ip(f.a, f.world, 64, udp(low, server)...)...), drops("decided", "ports_exhausted")},
		step{
			"another protocol", n.fromA(ip(f.a, f.world, 64, tcp(hostPort, server, packet.SYN)...)...),
			forwarded(sent(n.a, ip(f.host, f.world, 63, tcp(hostPort, server, packet.SYN)...)...), "decided"),
		},
		step{
			"the endpoint, from its port", n.from(n.b, ip(f.b, f.world, 64, udp(low, server)...)...),
			forwarded(sent(n.b, ip(f.host, f.world, 63, udp(low, server)...)...), "decided"),
		},
	)
}

// TestClientOfPortGone: a connection of an endpoint to another's port ends with either
// of them, and its place is given back; who has the address next is not taken for it.
func TestClientOfPortGone(t *testing.T) {
	n := withPorts(t, Config{Masquerade: true})
	f, p := v4(), mappedProtocols()[1]
	in := n.fromA(ip(f.a, f.host, 64, p.datagram(low, hostPort)...)...)
	answer := n.from(n.b, ip(f.b, f.a, 64, p.datagram(server, low)...)...)
	direct := deliveredAs(delivered(n.a, ip(f.b, f.a, 63, p.datagram(server, low)...)...), "decided")
	n.check(t, in, deliveredAs(delivered(n.b, ip(f.a, f.b, 63, p.datagram(low, server)...)...), "decided"))
	n.check(t, answer, deliveredAs(delivered(n.a, ip(f.host, f.a, 63, p.datagram(hostPort, low)...)...), "decided"))
	gone := n.a
	n.do(t, func() error {
		if err := n.DetachEndpoint(gone); err != nil {
			return err
		}
		next := n.c
		next.Addresses = append(next.Addresses, f.a)
		return n.AttachEndpoint(next)
	})
	direct.out = delivered(n.c, ip(f.b, f.a, 63, p.datagram(server, low)...)...)
	n.check(t, answer, direct)
	must(t, n.Purge([]uint16{gone.ID}))
	n.wantTranslations(t)
}

// testPortShut: what was mapped to loopback addresses only is not for the world,
// however it addresses it, but for the endpoints.
func testPortShut(t *testing.T, n *node, f family, p mappedProtocol) {
	n.table(t,
		step{"the world, by a route", n.fromWorld(ip(f.world, f.b, 58, p.datagram(low, shutPort)...)...), drops("loopback_only")},
		step{
			"the world, to an open port", n.fromWorld(ip(f.world, f.b, 58, p.datagram(low, server)...)...),
			deliveredAs(delivered(n.b, ip(f.world, f.b, 57, p.datagram(low, server)...)...), "decided"),
		},
		step{"the world, by the stack", run{
			program: toContainer, device: n.b.IfIndex, ingress: n.other.Attrs().Index,
			in: delivered(n.b, ip(f.world, f.b, 57, p.datagram(low, shutPort)...)...),
		}, drops("loopback_only")},
		step{"an endpoint's address by another device, by the stack", run{
			program: toContainer, device: n.b.IfIndex, ingress: n.other.Attrs().Index,
			in: delivered(n.b, ip(f.a, f.b, 57, p.datagram(low, shutPort)...)...),
		}, drops("loopback_only")},
		step{"an endpoint, by the stack", run{
			program: toContainer, device: n.b.IfIndex, ingress: n.a.IfIndex,
			in: delivered(n.b, ip(f.a, f.b, 57, p.datagram(low, shutPort)...)...),
		}, passed(seenNot)},
		step{
			"an endpoint", n.fromA(ip(f.a, f.b, 58, p.datagram(low, shutPort)...)...),
			deliveredAs(delivered(n.b, ip(f.a, f.b, 57, p.datagram(low, shutPort)...)...), "decided"),
		},
	)
}

// testPortOfHostsConnection: what a socket of the host is connected to speaks with that
// socket, by the world or an endpoint, although its port is mapped. Others of the same
// peer are led to the endpoint.
func testPortOfHostsConnection(t *testing.T, n *node, f family, p mappedProtocol) {
	for _, peer := range []netip.Addr{f.a, f.b} {
		way := netlink.Route{Dst: ipNet(netip.PrefixFrom(peer, peer.BitLen())), LinkIndex: n.other.Attrs().Index}
		must(t, n.ns.Handle.RouteAdd(&way))
		defer func() { must(t, n.ns.Handle.RouteDel(&way)) }()
	}
	fromB := func(layers ...packet.Layer) run { return n.from(n.b, layers...) }
	for _, peer := range []struct {
		name string
		netip.Addr
		sends func(...packet.Layer) run
		own   want
	}{
		{"world", f.world, n.fromWorld, untouched()},
		{"endpoint", f.a, n.fromA, passed(seenNot, "decided")},
		{"the one that has the port", f.b, fromB, passed(seenNot, "decided")},
	} {
		closeSocket := n.connection(t, p, port(f.host, hostPort), port(peer.Addr, low))
		n.check(t, peer.sends(ip(peer.Addr, f.host, 58, p.datagram(low, hostPort)...)...), peer.own)
		const other = low + 1
		if got := n.run(t, peer.sends(ip(peer.Addr, f.host, 58, p.datagram(other, hostPort)...)...)); got.verdict != redirect {
			t.Errorf("%s, from another port: verdict %d, %v", peer.name, got.verdict, got.counts)
		}
		closeSocket()
	}
}

// connection makes a socket of the host that is connected, or with TCP about to be, and
// returns what closes it.
func (n *node) connection(t *testing.T, p mappedProtocol, from, to netip.AddrPort) func() {
	t.Helper()
	sockaddr := func(a netip.AddrPort) unix.Sockaddr {
		if a.Addr().Is4() {
			return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
		}
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	domain, kind := unix.AF_INET, unix.SOCK_DGRAM
	if from.Addr().Is6() {
		domain = unix.AF_INET6
	}
	if p.tcp {
		kind = unix.SOCK_STREAM
	}
	var fd int
	n.do(t, func() (err error) {
		if fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		if err := unix.Bind(fd, sockaddr(from)); err != nil {
			return err
		}
		if err := unix.Connect(fd, sockaddr(to)); !errors.Is(err, unix.EINPROGRESS) {
			return err
		}
		return nil
	})
	return func() { must(t, unix.Close(fd)) }
}

// TestPortShutWithoutMasquerade: that nobody is masqueraded does not open what is shut,
// but for those who are of the same cluster.
func TestPortShutWithoutMasquerade(t *testing.T) {
	nstest.LeaveTo(t, "5.10")
	n := withPorts(t, Config{})
	eachFamily(t, func(t *testing.T, f family) {
		for _, p := range mappedProtocols() {
			ask := n.fromWorld(ip(f.world, f.b, 58, p.datagram(low, shutPort)...)...)
			asked := deliveredAs(delivered(n.b, ip(f.world, f.b, 57, p.datagram(low, shutPort)...)...), "decided")
			n.table(t, step{p.name, ask, drops("loopback_only")})
			n.do(t, func() error { return n.ReconcileExcludes([]netip.Prefix{netip.PrefixFrom(f.world, f.world.BitLen())}) })
			n.table(t, step{p.name + " of the same cluster", ask, asked})
			n.do(t, func() error { return n.ReconcileExcludes(nil) })
		}
	})
}

// TestPortOfAnothersAddress: a mapping whose host address is another endpoint's does not
// open what that one has shut, nor does it end with it.
func TestPortOfAnothersAddress(t *testing.T) {
	n := withPorts(t, Config{Masquerade: true})
	eachFamily(t, func(t *testing.T, f family) {
		for _, p := range mappedProtocols() {
			shut := step{p.name + ", shut", n.fromWorld(ip(f.world, f.b, 58, p.datagram(low, shutPort)...)...), drops("loopback_only")}
			thief := n.a
			thief.Ports = []Port{{f.b, shutPort, p.number, f.a, server}}
			n.do(t, func() error { return n.AttachEndpoint(thief) })
			n.table(t, shut)
			n.do(t, func() error { return errors.Join(n.CheckEndpoint(n.b), n.CheckEndpoint(thief)) })
			n.do(t, func() error { return n.DetachEndpoint(thief) })
			n.table(t, shut)
			n.do(t, func() error { return n.AttachEndpoint(n.a) })
		}
	})
}
