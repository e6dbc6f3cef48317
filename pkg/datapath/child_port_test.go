// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// TestChildPorts: a port of the host leads to a macvlan child, which answers by the way that
// its client came.
func TestChildPorts(t *testing.T) {
	nstest.LeaveTo(t, "6.1")
	p := withChildren(t, Config{Masquerade: true})
	for _, f := range []family{v4(), v6()} {
		every := netip.IPv4Unspecified()
		if f.v6() {
			every = netip.IPv6Unspecified()
		}
		for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			p.y.Ports = append(p.y.Ports, Port{every, hostPort, protocol, f.child(2), server})
		}
	}
	p.do(t, func() error { return p.AttachEndpoint(p.y) })
	eachFamily(t, func(t *testing.T, f family) {
		for _, protocol := range mappedProtocols() {
			t.Run(protocol.name, func(t *testing.T) {
				t.Run("from the world", func(t *testing.T) { testChildPort(t, p, f, protocol) })
				t.Run("from others of the node", func(t *testing.T) { testChildPortLocal(t, p, f, protocol) })
			})
		}
		for _, w := range childPortPassages(p, f) {
			t.Run(w.name, func(t *testing.T) { testPassage(t, w) })
		}
		testPassages(t, slices.Concat(localChildPortPassages(p, f), policedChildPortPassages(p, f)))
	})
}

// intoY is a packet as it is put back for y.
func (p *parent) intoY(counters []string, layers ...packet.Layer) want {
	return want{verdict: redirect, out: frame(p.uplink.MAC, p.y.MAC, layers...), counters: append(counters, "delivered"), mark: putBack}
}

// byParent is an answer of y as the host sends it.
func byParent(out []byte, counters ...string) want {
	return want{verdict: redirect, out: out, counters: of(fromContainer, append(counters, "forwarded")), seen: seenTranslated, mark: sentMark}
}

func testChildPort(t *testing.T, p *parent, f family, protocol mappedProtocol) {
	p.forget(t)
	client, dialled, inside := port(f.world, low), port(f.host, hostPort), port(f.child(2), server)
	// y sends its answers to a router of its own.
	fromY := func(layers ...packet.Layer) run { return p.out(p.y.MAC, stationMAC(), layers...) }
	toY := func(out []packet.Layer, counters ...string) want { return p.intoY(slices.Clone(counters), out...) }
	toWorld := func(out []packet.Layer, counters ...string) want {
		return byParent(frame(p.y.MAC, stationMAC(), out...), counters...)
	}
	ask := p.fromWorld(ip(client.Addr(), dialled.Addr(), 58, protocol.datagram(low, hostPort)...)...)
	asked := ip(client.Addr(), inside.Addr(), 57, protocol.datagram(low, server)...)
	answer := fromY(ip(inside.Addr(), client.Addr(), 64, protocol.datagram(server, low)...)...)
	answered := ip(dialled.Addr(), client.Addr(), 63, protocol.datagram(hostPort, low)...)
	steps := protocol.handshake(client, dialled, client, inside, p.fromWorld, fromY, toY, toWorld)
	p.story(t, append(steps,
		step{"first", ask, toY(asked, "decided")},
		step{"second", ask, toY(asked)},
		step{"answer", answer, toWorld(answered, "decided")},
		step{"second answer", answer, toWorld(answered)},
		step{"third", ask, toY(asked, protocol.decidedUnlessTCP()...)},
		step{"answer at the end of its life", fromY(ip(inside.Addr(), client.Addr(), 1, protocol.datagram(server, low)...)...), shut(fromContainer, "ttl")},
	)...)
	p.wantTranslations(t, translation{
		protocol: protocol.number, inside: inside, outside: dialled, world: client,
		state: maps.TranslationEstablished, flags: translationPort | translationAnswered,
	})
	p.enforce(t, p.subjects().restrict(p.y, ingress))
	p.story(t, step{"kept out by policy", p.fromWorld(ip(client.Addr(), dialled.Addr(), 58, protocol.datagram(low+1, hostPort)...)...), shut(fromUplink, "policy_ingress")})
}

// testChildPortLocal: a routed container dials, a sibling dials, and y itself.
func testChildPortLocal(t *testing.T, p *parent, f family, protocol mappedProtocol) {
	begin := protocol.datagram
	if protocol.tcp {
		begin = func(from, to uint16) []packet.Layer { return tcp(from, to, packet.SYN) }
	}
	back := protocol.datagram
	if protocol.tcp {
		back = func(from, to uint16) []packet.Layer { return tcp(from, to, packet.SYN, packet.ACK) }
	}
	p.forget(t)
	x, y := f.child(1), f.child(2)
	toSender := func(from net.HardwareAddr, layers ...packet.Layer) run { return p.out(p.y.MAC, from, layers...) }
	p.story(t,
		step{
			"routed container", p.fromA(ip(f.a, f.host, 64, begin(low, hostPort)...)...),
			p.intoY([]string{"decided"}, ip(f.a, y, 63, begin(low, server)...)...),
		},
		step{
			"which is answered", toSender(routerMAC(), ip(y, f.a, 64, back(server, low)...)...),
			byParent(delivered(p.a, ip(f.host, f.a, 63, back(hostPort, low)...)...), "decided"),
		},
		step{
			"sibling", backed(p.fromChild(ip(x, f.host, 64, begin(low, hostPort)...)...)),
			p.intoY([]string{"decided"}, ip(x, y, 63, begin(low, server)...)...),
		},
		step{
			"which is answered", toSender(p.x.MAC, ip(y, x, 64, back(server, low)...)...),
			want{
				verdict: redirect, out: frame(p.uplink.MAC, p.x.MAC, ip(f.host, x, 63, back(hostPort, low)...)...),
				counters: of(fromContainer, []string{"decided", "delivered"}), mark: putBack,
			},
		},
		step{"the same of the wire", p.fromChild(ip(x, f.host, 64, begin(low, hostPort)...)...), untouched()},
		step{
			"itself", backed(run{program: fromUplink, device: p.uplink.IfIndex, in: frame(p.y.MAC, p.uplink.MAC, ip(y, f.host, 64, begin(low, hostPort)...)...)}),
			want{verdict: passOn, mark: putBack},
		},
	)
}
