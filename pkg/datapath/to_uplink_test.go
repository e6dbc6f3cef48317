// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"

	"github.com/tendril-net/tendril/internal/packet"
)

func testToUplink(t *testing.T, n *node) {
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range transports() {
			t.Run(tr.name, func(t *testing.T) {
				t.Run("masqueraded", func(t *testing.T) { testStackMasquerade(t, n, f, tr) })
				t.Run("left alone", func(t *testing.T) { testLeftAlone(t, n, f, tr) })
			})
		}
		t.Run("refused", func(t *testing.T) { testRefused(t, n, f) })
	})
}

// testStackMasquerade: what the stack forwards for an endpoint does not leave
// with the endpoint's address.
func testStackMasquerade(t *testing.T, n *node, f family, tr transport) {
	out := n.left(ip(f.host, f.world, 63, tr.begin(inside)...)...)
	for _, c := range []struct {
		name  string
		seen  uint32
		flags uint8
	}{
		{"decided here", seenDecided, 0},
		{"decided by others", seenNot, translationStack},
	} {
		t.Run(c.name, func(t *testing.T) {
			n.forget(t)
			in := n.toWorld(c.seen, ip(f.a, f.world, 63, tr.begin(inside)...)...)
			w := leaves(out)
			n.story(t, step{"first", in, w}, step{"second", in, w})
			n.wantFlows(t)
			n.wantTranslations(t, translation{
				protocol: tr.protocol(f), inside: port(f.a, inside), outside: port(f.host, inside), world: tr.server(f.world),
				flags: c.flags,
			})
		})
	}
	t.Run("in a known flow", func(t *testing.T) {
		n.forget(t)
		n.open(t, f, tr, inside)
		n.check(t, n.toWorld(seenDecided, ip(f.a, f.world, 63, tr.begin(inside)...)...), leaves(out))
		n.wantTranslations(t, translation{
			protocol: tr.protocol(f), inside: port(f.a, inside), outside: port(f.host, inside), world: tr.server(f.world),
		})
	})
}

func testLeftAlone(t *testing.T, n *node, f family, tr transport) {
	from := func(src netip.Addr) run { return n.toWorld(seenNot, ip(src, f.world, 63, tr.there(inside)...)...) }
	done := from(f.a)
	done.seen = seenTranslated
	tagged := from(f.a)
	tagged.vlan = 9
	n.table(t,
		step{"the host's", from(f.host), untouched()},
		step{"the host's, marked", n.toWorld(seenDecided, ip(f.host, f.world, 63, tr.there(inside)...)...), untouched()},
		step{"translated before", done, untouched()},
		step{"not masqueraded", from(f.c), untouched()},
		step{"nobody's", from(f.unknown), untouched()},
		step{"tagged", tagged, untouched()},
	)
	t.Run("excluded destination", func(t *testing.T) {
		n.forget(t)
		n.exclude(t, netip.PrefixFrom(f.world, f.world.BitLen()))
		n.check(t, from(f.a), untouched())
	})
	t.Run("reply", func(t *testing.T) {
		n.forget(t)
		n.check(t, n.fromWorld(ip(f.world, f.a, 60, tr.there(low)...)...),
			deliveredAs(delivered(n.a, ip(f.world, f.a, 59, tr.there(low)...)...), "decided"))
		n.check(t, n.toWorld(seenDecided, ip(f.a, f.world, 63, tr.back(low)...)...), untouched())
	})
	n.forget(t)
	n.check(t, from(f.host), untouched())
	n.wantFlows(t)
	n.wantTranslations(t)
}

func testRefused(t *testing.T, n *node, f family) {
	const gre = 47
	n.table(t,
		step{"GRE", n.toWorld(seenNot, packet.IP(f.a, f.world, packet.Proto(gre)), packet.Payload(40)), drops("unsupported_protocol")},
		step{"another ICMP", n.toWorld(seenNot, ip(f.a, f.world, 63, packet.ICMP(200, 0, 77))...), drops("unsupported_protocol")},
		step{"ARP", n.toWorld(seenNot, packet.ARPRequest(packet.Station{MAC: n.uplink.MAC, IP: v4().host}, v4().router)), untouched()},
	)
	// Answers that nobody asked for must not leave unhidden, nor begin anything.
	n.table(t,
		step{"SYN ACK", n.toWorld(seenNot, ip(f.a, f.world, 63, packet.TCP(inside, server, packet.SYN, packet.ACK))...), drops("no_translation")},
		step{"echo reply", n.toWorld(seenNot, ip(f.a, f.world, 63, packet.EchoReply(inside, 1))...), drops("no_translation")},
		step{"TCP in the middle", n.toWorld(seenNot, ip(f.a, f.world, 63, tcp(inside, server, packet.ACK)...)...), drops("no_translation")},
	)
	n.wantTranslations(t)
	bare := n.uplink
	bare.IPv4, bare.IPv6 = netip.Addr{}, netip.Addr{}
	n.do(t, func() error { return n.ReconcileUplinks([]Uplink{bare}) })
	defer n.do(t, func() error { return n.ReconcileUplinks([]Uplink{n.uplink}) })
	n.table(t, step{"uplink without address", n.toWorld(seenNot, ip(f.a, f.world, 63, udp(inside, server)...)...), drops("no_uplink_address")})
}
