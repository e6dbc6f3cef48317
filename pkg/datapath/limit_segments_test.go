// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// segmented is a GSO packet of 601 bytes in segments of 200, the last of which has but one.
type segmented struct {
	name string
	// before and behind stand around its IP header; options are of that.
	before, behind []packet.Layer
	options        []packet.IPOption
	// headers is how many bytes of them each segment has, but for those of Ethernet and IP.
	headers int
	// vlan is a tag beside the frame.
	vlan uint32
}

func segmentedOf(f family) []segmented {
	tcp, udp, sctp := packet.TCP(low, server), packet.UDP(low, server), packet.SCTP(low, server, 5)
	stamped := packet.TCP(low, server, packet.Timestamps{Value: 7, Echo: 9})
	all := []segmented{
		{name: "TCP", behind: []packet.Layer{tcp}, headers: 20},
		{name: "TCP with options", behind: []packet.Layer{stamped}, headers: 32},
		{name: "UDP", behind: []packet.Layer{udp}, headers: 8},
		{name: "SCTP", behind: []packet.Layer{sctp}, headers: 12},
		{name: "tag beside the frame", behind: []packet.Layer{tcp}, headers: 20, vlan: 5},
		{name: "tag in the frame", before: []packet.Layer{packet.VLAN(5)}, behind: []packet.Layer{tcp}, headers: 4 + 20},
		{name: "tag in the frame and beside", before: []packet.Layer{packet.VLAN(5)}, behind: []packet.Layer{udp}, headers: 4 + 8, vlan: 6},
		{name: "two tags in the frame", before: []packet.Layer{packet.VLAN(5), packet.VLAN(6)}, behind: []packet.Layer{stamped}, headers: 8 + 32},
	}
	if !f.v6() {
		return append(all,
			segmented{name: "IPv4 options", options: []packet.IPOption{packet.NOPs(4)}, behind: []packet.Layer{tcp}, headers: 4 + 20},
			segmented{name: "all IPv4 options", options: []packet.IPOption{packet.NOPs(40)}, behind: []packet.Layer{udp}, headers: 40 + 8},
			segmented{name: "IPv4 options behind a tag", before: []packet.Layer{packet.VLAN(5)}, options: []packet.IPOption{packet.NOPs(8)}, behind: []packet.Layer{tcp}, headers: 4 + 8 + 20},
		)
	}
	chain := append([]packet.Layer{packet.HopByHop(8)}, slices.Repeat([]packet.Layer{packet.DestinationOptions(16)}, extensionsMax-1)...)
	return append(all,
		segmented{name: "hop-by-hop options", behind: []packet.Layer{packet.HopByHop(8), tcp}, headers: 8 + 20},
		segmented{name: "destination options", behind: []packet.Layer{packet.DestinationOptions(24), stamped}, headers: 24 + 32},
		segmented{name: "long destination options", behind: []packet.Layer{packet.DestinationOptions(1024), tcp}, headers: 1024 + 20},
		segmented{name: "routing", behind: []packet.Layer{packet.Routing(0, f.neighbour), udp}, headers: 24 + 8},
		segmented{name: "all kinds", behind: []packet.Layer{packet.HopByHop(16), packet.DestinationOptions(8), packet.Routing(0, f.neighbour), packet.FragmentHeader(5, 0, false), packet.DestinationOptions(32), udp}, headers: 16 + 8 + 24 + 8 + 32 + 8},
		segmented{name: "as many extensions as are looked behind", behind: slices.Concat(chain, []packet.Layer{tcp}), headers: 8 + 16*(extensionsMax-1) + 20},
		segmented{name: "extension behind a tag", before: []packet.Layer{packet.VLAN(5)}, behind: []packet.Layer{packet.HopByHop(8), tcp}, headers: 4 + 8 + 20},
	)
}

// testSegmentsCost: a GSO packet costs what its segments will, headers and all, whether the kernel has counted
// them or not. The run is what else a program is shown of the packet.
func testSegmentsCost(t *testing.T, n *node, direction uint32, r run, w want) {
	eachFamily(t, func(t *testing.T, f family) {
		charged := func(t *testing.T, headers, segments, payload, paid int) {
			t.Helper()
			n.credit(t, direction, 50*time.Minute)
			before := n.bucket(t, direction, nil)
			n.check(t, r, w)
			after := n.bucket(t, direction, nil)
			want := bound(before)
			want.Empty, want.Packets, want.Bytes = before.Empty+priceOf(paid), uint64(segments), uint64(payload+segments*headers)
			if diff := gocmp.Diff(want, after, cmpopts.IgnoreUnexported(maps.Limit{})); diff != "" {
				t.Errorf("limit (-want +got):\n%s", diff)
			}
		}
		const payload, size, segments = 601, 200, 4
		network := 14 + 20
		if f.v6() {
			network = 14 + 40
		}
		for _, one := range segmentedOf(f) {
			r.in = sent(n.a, slices.Concat(one.before, []packet.Layer{packet.IP(f.a, f.world, one.options...)}, one.behind, []packet.Layer{packet.Payload(payload)})...)
			r.gsoSize, r.vlan = size, one.vlan
			headers := network + one.headers
			test := func(t *testing.T) { charged(t, headers, segments, payload, payload+segments*headers) }
			r.gsoSegs = segments
			t.Run(one.name, test)
			r.gsoSegs = 0
			t.Run(one.name+", not counted", test)
		}
		r.in, r.vlan = sent(n.a, packet.IP(f.a, f.world), packet.TCP(low, server), packet.Payload(1000)), 0
		headers := network + 20
		r.gsoSize, r.gsoSegs = 1000, 0
		t.Run("one segment, not counted", func(t *testing.T) { charged(t, headers, 1, 1000, 1000+headers) })
		r.gsoSize = 1
		t.Run("segments of a byte, not counted", func(t *testing.T) { charged(t, headers, 1000, 1000, 1000+1000*headers) })
		r.gsoSegs = 60000
		t.Run("megabytes of headers", func(t *testing.T) {
			n.credit(t, direction, 50*time.Minute)
			before := n.bucket(t, direction, nil)
			got := n.run(t, r)
			want := bound(before)
			want.Empty, want.Dropped = before.Empty, 60000
			if diff := gocmp.Diff(want, n.bucket(t, direction, nil), cmpopts.IgnoreUnexported(maps.Limit{}), cmpopts.IgnoreFields(maps.Limit{}, "DroppedAt")); diff != "" || got.verdict != dropped {
				t.Errorf("verdict %d, limit (-want +got):\n%s", got.verdict, diff)
			}
		})
	})
}

// Kinds of linux/virtio_net.h.
const (
	virtioTCP4 = 1
	virtioTCP6 = 4
)

// testForgedSegments: a child pays for the segments of what its packet socket writes, which nobody but the
// kernel's last device would count.
func testForgedSegments(t *testing.T, w *wired, x Endpoint) {
	options := packet.DestinationOptions(24)
	for i, test := range []struct {
		name    string
		kind    byte
		network int
		layers  []packet.Layer
	}{
		{"IPv4", virtioTCP4, 14 + 20, nil},
		{"IPv6", virtioTCP6, 14 + 40, nil},
		{"IPv6 with options", virtioTCP6, 14 + 40 + 24, []packet.Layer{options}},
	} {
		t.Run(test.name, func(t *testing.T) {
			const payload, size, segments = 1001, 100, 11
			key, value := maps.LimitKey{Ifindex: uint32(x.IfIndex), Direction: maps.LimitEgress}, slow.value(false, 0)
			value.Empty = monotonic(t) - uint64(time.Minute)
			must(t, w.maps.Bandwidth.Put(key, value))
			family := min(i, 1)
			layers := append([]packet.Layer{packet.Eth(x.MAC, routerMAC()), packet.IP(x.Addresses[family], wiredAddresses(9)[family])}, test.layers...)
			frame := packet.New(append(layers, packet.TCP(low, server, packet.ACK), packet.Payload(payload))...)
			header := []byte{virtioNeedsChecksum, test.kind}
			for _, field := range []int{test.network + 20, size, test.network, 16} {
				header = binary.NativeEndian.AppendUint16(header, uint16(field))
			}
			sendByRing(t, w.containers["x"], "eth0", []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6}[family], header, frame)
			bytes := payload + segments*(test.network+20)
			want := value
			want.Empty, want.Packets, want.Bytes = value.Empty+priceOf(bytes), segments, uint64(bytes)
			must(t, w.maps.Bandwidth.Lookup(key, &value))
			if diff := gocmp.Diff(want, value, cmpopts.IgnoreUnexported(maps.Limit{})); diff != "" {
				t.Errorf("limit (-want +got):\n%s", diff)
			}
		})
	}
}
