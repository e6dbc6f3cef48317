// SPDX-License-Identifier: Apache-2.0

package packet_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/packet"
)

func TestFragmentReassemble(t *testing.T) {
	for name, stack := range map[string][]packet.Layer{
		"udp4":    {packet.IP(a4, b4, packet.ID(9)), packet.UDP(1, 2), packet.Payload(4001)},
		"options": {packet.IP(a4, b4, packet.ID(9), packet.NOPs(3), packet.RecordRoute(3)), packet.UDP(1, 2), packet.Payload(4001)},
		"echo4":   {packet.IP(a4, b4, packet.ID(9)), packet.Echo(1, 2), packet.Payload(65000)},
		"udp6":    {packet.IP(a6, b6), packet.UDP(1, 2), packet.Payload(4001)},
		"chain":   {packet.IP(a6, b6), packet.HopByHop(8), packet.DestinationOptions(16), packet.Routing(0, b6), packet.DestinationOptions(24), packet.TCP(1, 2), packet.Payload(4001)},
		"tagged":  {packet.VLAN(5), packet.IP(a6, b6), packet.Echo(1, 2), packet.Payload(3000)},
	} {
		for _, mtu := range []int{136, 576, 1280, 1500} {
			t.Run(fmt.Sprintf("%s/%d", name, mtu), func(t *testing.T) {
				frame := packet.New(append([]packet.Layer{eth}, stack...)...)
				fragments := packet.Fragment(frame, mtu)
				for i, f := range fragments {
					if err := packet.Verify(f); err != nil {
						t.Errorf("fragment %d: %v", i, err)
					}
					if len(f) > 14+4+mtu {
						t.Errorf("fragment %d has %d bytes", i, len(f))
					}
				}
				slices.Reverse(fragments)
				whole, err := packet.Reassemble(fragments...)
				if err != nil {
					t.Fatal(err)
				}
				if diff := packet.Diff(frame, whole); diff != "" {
					t.Errorf("reassembled:\n%s", diff)
				}
			})
		}
	}
}

func TestFragmentSummaries(t *testing.T) {
	frame := packet.New(eth, packet.IP(a4, b4, packet.ID(9)), packet.UDP(1, 2), packet.Payload(2000))
	var got []string
	for _, f := range packet.Fragment(frame, 1000) {
		got = append(got, packet.Summary(f))
	}
	want := []string{
		"IP 10.0.0.1.1 > 10.0.0.2.2 ttl 64: frag 9:976@0+, UDP, length 2000",
		"IP 10.0.0.1 > 10.0.0.2 ttl 64: frag 9:976@976+, protocol 17",
		"IP 10.0.0.1 > 10.0.0.2 ttl 64: frag 9:56@1952, protocol 17",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fragments (-want +got):\n%s", diff)
	}
}

// What fits is not touched; a fragment cut again joins with its siblings; tiny
// fragments have 8 bytes of transport header.
func TestFragmentEdges(t *testing.T) {
	frame := packet.New(eth, packet.IP(a4, b4, packet.ID(9)), packet.UDP(1, 2), packet.Payload(100))
	if diff := cmp.Diff([][]byte{frame}, packet.Fragment(frame, 128)); diff != "" {
		t.Errorf("a packet that fits (-want +got):\n%s", diff)
	}
	halves := packet.Fragment(frame, 100)
	tiny := append(packet.Fragment(halves[0], 28), packet.Fragment(halves[1], 28)...)
	if len(tiny[0]) != 14+28 {
		t.Errorf("first fragment has %d bytes, want 42", len(tiny[0]))
	}
	whole, err := packet.Reassemble(tiny...)
	if err != nil {
		t.Fatal(err)
	}
	if diff := packet.Diff(frame, whole); diff != "" {
		t.Errorf("reassembled:\n%s", diff)
	}
}

func TestFragmentRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		frame []byte
		mtu   int
		want  string
	}{
		"df":       {packet.New(eth, packet.IP(a4, b4, packet.DF), packet.UDP(1, 2), packet.Payload(100)), 60, "DF is set"},
		"no room":  {packet.New(eth, packet.IP(a6, b6), packet.UDP(1, 2), packet.Payload(100)), 55, "no room after headers of 48 bytes"},
		"fragment": {packet.New(eth, packet.IP(a6, b6), packet.FragmentHeader(1, 0, true), packet.UDP(1, 2), packet.Payload(100)), 60, "it is a fragment"},
		"arp":      {packet.New(eth, packet.ARPRequest(packet.Station{MAC: macA, IP: a4}, b4)), 20, "not an IP packet"},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if said := fmt.Sprint(recover()); !strings.Contains(said, test.want) {
					t.Errorf("panic %q, want it to say %q", said, test.want)
				}
			}()
			packet.Fragment(test.frame, test.mtu)
		})
	}
}

func TestReassembleRefuses(t *testing.T) {
	big := func(id packet.ID) [][]byte {
		return packet.Fragment(packet.New(eth, packet.IP(a4, b4, id), packet.UDP(1, 2), packet.Payload(200)), 100)
	}
	f, other := big(1), big(2)
	for name, test := range map[string]struct {
		fragments [][]byte
		want      string
	}{
		"none":    {nil, "no fragments"},
		"hole":    {[][]byte{f[0], f[2]}, "fragment at 160 does not continue at 80"},
		"no end":  {[][]byte{f[0], f[1]}, "fragment at 80: more fragments is true"},
		"twice":   {[][]byte{f[0], f[0], f[1], f[2]}, "fragment at 0 does not continue at 80"},
		"mixed":   {[][]byte{f[0], other[1], f[2]}, "fragment at 80 belongs to another packet"},
		"whole 6": {[][]byte{udp6}, "read fragment 0: no fragment header"},
		"empty":   {[][]byte{nil}, "read fragment 0: frame is cut"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := packet.Reassemble(test.fragments...)
			if diff := cmp.Diff(test.want, fmt.Sprint(err)); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}
