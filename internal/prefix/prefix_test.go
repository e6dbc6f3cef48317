// SPDX-License-Identifier: Apache-2.0

package prefix

import (
	"net/netip"
	"testing"
)

func TestLast(t *testing.T) {
	for p, want := range map[string]string{
		"0.0.0.0/0": "255.255.255.255", "10.1.2.3/15": "10.1.255.255", "192.0.2.7/32": "192.0.2.7", "192.0.2.0/31": "192.0.2.1",
		"::/0": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8::1/63": "2001:db8:0:1:ffff:ffff:ffff:ffff", "::1/128": "::1",
	} {
		if got := Last(netip.MustParsePrefix(p)); got != netip.MustParseAddr(want) {
			t.Errorf("%s: %s, want %s", p, got, want)
		}
	}
	if got := Last(netip.Prefix{}); got.IsValid() {
		t.Errorf("no prefix: %s, want none", got)
	}
}
