// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"net/netip"
	"testing"

	"github.com/tendril-net/tendril/pkg/maps"
)

func TestPrefixKeyAndBack(t *testing.T) {
	for _, tt := range []struct {
		prefix string
		length uint32
	}{
		{"0.0.0.0/0", 96},
		{"10.0.0.0/8", 104},
		{"192.0.2.1/32", 128},
		{"::/0", 0},
		{"2001:db8::/32", 32},
		{"2001:db8::1/128", 128},
	} {
		p := netip.MustParsePrefix(tt.prefix)
		key := maps.NewPrefixKey(p)
		if key.Length != tt.length {
			t.Errorf("length of %s is %d, want %d", p, key.Length, tt.length)
		}
		if got := maps.Prefix(key); got != p {
			t.Errorf("prefix of the key of %s is %s", p, got)
		}
	}
}

func TestAddressAndBack(t *testing.T) {
	for _, a := range []netip.Addr{{}, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")} {
		if got := maps.Addr(maps.NewAddress(a)); got != a {
			t.Errorf("address of %v came back as %v", a, got)
		}
	}
}

func TestPortIsItsOwnInverse(t *testing.T) {
	for _, p := range []uint16{0, 1, 80, 256, 40960, 65535} {
		if got := maps.Port(maps.Port(p)); got != p {
			t.Errorf("port %d came back as %d", p, got)
		}
	}
}
