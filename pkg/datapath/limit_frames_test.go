// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// limitFrame is a frame that meets a limit.
type limitFrame struct {
	name string
	in   []byte
	// vlan is a tag beside it.
	vlan uint32
	// exempt says that no limit counts for it.
	exempt bool
}

// limitFrames are of all kinds that a limit tells apart, and of none.
func limitFrames(e Endpoint) []limitFrame {
	f4, f6 := v4(), v6()
	who := packet.ARPRequest(packet.Station{MAC: e.MAC, IP: f4.a}, f4.gateway())
	discovery := func(hops uint8, layers ...packet.Layer) []byte {
		return sent(e, append([]packet.Layer{packet.IP(f6.a, f6.b, packet.TTL(hops))}, layers...)...)
	}
	solicit := packet.NeighborSolicit(f6.b)
	message := func(kind uint8) []byte { return discovery(255, packet.ICMP(kind, 0, 0), packet.Payload(20)) }
	long := func(size int) []byte { return discovery(255, solicit, packet.Payload(size-14-40-24)) }
	frames := []limitFrame{
		{name: "ARP", in: sent(e, who), exempt: true},
		{name: "ARP for all", in: frame(e.MAC, everybody(), who), exempt: true},
		{name: "ARP that answers", in: sent(e, packet.ARPReply(packet.Station{MAC: e.MAC, IP: f4.a}, packet.Station{MAC: e.HostMAC, IP: f4.gateway()})), exempt: true},
		{name: "ARP with a tag beside it", in: sent(e, who), vlan: 5, exempt: true},
		{name: "ARP behind a tag", in: sent(e, packet.VLAN(5), who)},
		{name: "cut ARP", in: sent(e, who)[:14+9], exempt: true},
		{name: "the longest ARP", in: sent(e, who, packet.Payload(256-42)), exempt: true},
		{name: "longer ARP", in: sent(e, who, packet.Payload(257-42))},
		{name: "router solicitation", in: discovery(255, packet.RouterSolicit()), exempt: true},
		{name: "router advertisement", in: discovery(255, packet.RouterAdvert(30)), exempt: true},
		{name: "neighbour solicitation", in: discovery(255, solicit), exempt: true},
		{name: "neighbour advertisement", in: discovery(255, packet.NeighborAdvert(f6.a, packet.NAOverride)), exempt: true},
		{name: "redirect", in: discovery(255, packet.NDRedirect(f6.b, f6.world)), exempt: true},
		{name: "solicitation with a tag beside it", in: discovery(255, solicit), vlan: 5, exempt: true},
		{name: "solicitation behind a tag", in: sent(e, packet.VLAN(5), packet.IP(f6.a, f6.b), solicit)},
		{name: "solicitation behind options", in: discovery(255, packet.HopByHop(8), solicit)},
		{name: "solicitation from afar", in: discovery(254, solicit)},
		{name: "solicitation without hops", in: discovery(0, solicit)},
		{name: "cut behind its type", in: discovery(255, solicit)[:14+41], exempt: true},
		{name: "cut before its type", in: discovery(255, solicit)[:14+40]},
		{name: "cut in its addresses behind a tag", in: sent(e, packet.VLAN(5), packet.IP(f6.a, f6.b), solicit)[:18+39]},
		{name: "the longest solicitation", in: long(256), exempt: true},
		{name: "longer solicitation", in: long(257)},
		{name: "type before those of discovery", in: message(132)},
		{name: "type behind those of discovery", in: message(138)},
		{name: "group membership", in: sent(e, packet.IP(f6.a, f6.multicast, packet.TTL(1)), packet.RouterAlert(), packet.MLDReport(f6.multicast))},
		{name: "ICMP with the type of a solicitation", in: sent(e, packet.IP(f4.a, f4.b, packet.TTL(255)), packet.ICMP(135, 0, 0), packet.Payload(20))},
		{name: "solicitation by UDP", in: sent(e, packet.IP(f6.a, f6.b, packet.TTL(255), packet.Proto(unix.IPPROTO_UDP)), packet.Payload(24))},
		{name: "no protocol", in: sent(e, packet.Payload(50))},
		{name: "nothing but addresses", in: sent(e)},
		{name: "tag and no more", in: sent(e, packet.VLAN(5), packet.Payload(0))},
	}
	for _, f := range []family{f4, f6} {
		whole := sent(e, ip(f.a, f.world, 64, udp(low, server)...)...)
		network := len(whole) - 18
		later := packet.Fragment(sent(e, packet.IP(f.a, f.world), packet.UDP(low, server), packet.Payload(300)), 256)
		frames = append(
			frames,
			limitFrame{name: f.name + " with a tag beside it", in: whole, vlan: 5},
			limitFrame{name: f.name + " behind tags", in: sent(e, append([]packet.Layer{packet.VLAN(5), packet.VLAN(6)}, ip(f.a, f.world, 64, udp(low, server)...)...)...)},
			// BPF_PROG_TEST_RUN takes none that is cut before the end of its header.
			limitFrame{name: f.name + " cut behind its header", in: whole[:network]},
			limitFrame{name: f.name + " longer than its frame", in: sent(e, packet.IP(f.a, f.world, packet.Length(9000)), packet.UDP(low, server), packet.Payload(10))},
			limitFrame{name: f.name + " of no length", in: sent(e, packet.IP(f.a, f.world, packet.Length(0)), packet.UDP(low, server), packet.Payload(10))},
			limitFrame{name: f.name + " without hops", in: sent(e, ip(f.a, f.world, 0, udp(low, server)...)...)},
			limitFrame{name: f.name + ", first fragment", in: later[0]},
			limitFrame{name: f.name + ", later fragment", in: later[1]},
		)
	}
	return frames
}

// eachLimitFrame runs a test for each, where all is emulated on one kernel.
func eachLimitFrame(t *testing.T, e Endpoint, test func(*testing.T, limitFrame)) {
	t.Helper()
	for i, one := range limitFrames(e) {
		t.Run(one.name, func(t *testing.T) {
			nstest.One(t, i)
			test(t, one)
		})
	}
}

// wantBucket compares all of a's limit.
func (n *node) wantBucket(t *testing.T, direction uint32, want maps.Limit) {
	t.Helper()
	if diff := gocmp.Diff(want, n.bucket(t, direction, nil), cmpopts.IgnoreUnexported(maps.Limit{})); diff != "" {
		t.Errorf("limit (-want +got):\n%s", diff)
	}
}

// testLimitFrames: each frame is exempt or pays for its length, whatever is in it.
func testLimitFrames(t *testing.T, n *node, program string, direction uint32, drop string) {
	eachLimitFrame(t, n.a, func(t *testing.T, one limitFrame) {
		r := run{program: program, device: n.a.IfIndex, in: one.in, vlan: one.vlan}
		n.credit(t, direction, -time.Hour)
		want, beyond := n.bucket(t, direction, nil), untouched()
		if !one.exempt {
			beyond, want.Dropped = drops(drop), 1
		}
		n.check(t, r, beyond)
		want.DroppedAt = n.bucket(t, direction, nil).DroppedAt // now
		n.wantBucket(t, direction, want)

		n.credit(t, direction, 50*time.Minute)
		want = n.bucket(t, direction, nil)
		n.check(t, r, untouched())
		if !one.exempt {
			want.Empty, want.Packets, want.Bytes = want.Empty+priceOf(len(one.in)), 1, uint64(len(one.in))
		}
		n.wantBucket(t, direction, want)
	})
}

// testMarkedFrames: what understands marks gets one wherever its header is found, and nothing else is
// written to. A frame meets a limit that little has made short of credit, and passes.
func testMarkedFrames(t *testing.T, n *node, direction uint32, meets func([]byte) run, passes *want, little func()) {
	const able, other, met = 2, 1, 3 // codepoints of RFC 3168, section 5
	eachFamily(t, func(t *testing.T, f family) {
		packetOf := func(class uint8, layers ...packet.Layer) []byte {
			return sent(n.a, slices.Concat(layers, []packet.Layer{packet.IP(f.a, f.world, packet.TOS(class)), packet.TCP(low, server), packet.Payload(10)})...)
		}
		header := 14 + 20
		if f.v6() {
			header = 14 + 40
		}
		later := func(class uint8) []byte {
			if f.v6() {
				return sent(n.a, packet.IP(f.a, f.world, packet.TOS(class), packet.Proto(unix.IPPROTO_UDP)), packet.FragmentHeader(1, 208, false), packet.Payload(100))
			}
			return sent(n.a, packet.IP(f.a, f.world, packet.TOS(class), packet.FragOffset(208), packet.Proto(unix.IPPROTO_UDP)), packet.Payload(100))
		}
		long := func(class uint8) []byte {
			if f.v6() {
				return sent(n.a, packet.IP(f.a, f.world, packet.TOS(class)), packet.HopByHop(8), packet.TCP(low, server))
			}
			return sent(n.a, packet.IP(f.a, f.world, packet.TOS(class), packet.NOPs(8)), packet.TCP(low, server))
		}
		whole := packetOf(able)
		for _, one := range []struct {
			name    string
			in, out []byte
			vlan    uint32
			marked  uint64
		}{
			{"one codepoint", whole, packetOf(met), 0, 1},
			{"the other", packetOf(other), packetOf(met), 0, 1},
			{"marked before", packetOf(met), packetOf(met), 0, 1},
			{"not able", packetOf(0), packetOf(0), 0, 0},
			{"other bits of the class", packetOf(0xb8 | able), packetOf(0xb8 | met), 0, 1},
			{"tag beside it", whole, packetOf(met), 5, 1},
			{"longer header", long(able), long(met), 0, 1},
			{"later fragment", later(able), later(met), 0, 1},
			{"cut behind its header", whole[:header], packetOf(met)[:header], 0, 1},
			{"tag that reads as a class", packetOf(able, packet.VLAN(0x26)), nil, 0, 0},
			{"tag that reads as the other", packetOf(able, packet.VLAN(0x15)), nil, 0, 0},
			{"tag beside one that reads as a class", packetOf(able, packet.VLAN(0x26)), nil, 5, 0},
			{"two tags that read as a class", packetOf(able, packet.VLAN(0x26), packet.VLAN(0x26)), nil, 0, 0},
			{"no IP", slices.Concat(whole[:12], []byte{0x88, 0xb5}, whole[14:]), nil, 0, 0},
			{"much of ARP", slices.Concat(whole[:12], []byte{8, 6}, whole[14:], make([]byte, 256)), nil, 0, 0},
		} {
			t.Run(one.name, func(t *testing.T) {
				little()
				r, w := meets(one.in), *passes
				r.vlan, w.out = one.vlan, one.out
				n.check(t, r, w)
				if got := n.bucket(t, direction, nil).Marked; got != one.marked {
					t.Errorf("%d are marked, not %d", got, one.marked)
				}
			})
		}
	})
}
