// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestMessage(t *testing.T) {
	for _, m := range []message{
		{kind: question, asker: 1, target: 2, nonce: 3},
		{kind: hello, asker: 1 << 31, target: 2, nonce: 1 << 63},
		{kind: answer, asker: 1, target: 2, nonce: 3, seen: netip.MustParseAddrPort("192.0.2.1:50000")},
		{kind: answer, asker: 1, target: 2, nonce: 3, seen: netip.MustParseAddrPort("[2001:db8::1]:0")},
	} {
		for _, size := range []int{headerSize, headerSize + 1, 1400, maxMessage} {
			got, err := decode(m.encode(size))
			if err != nil {
				t.Errorf("%+v of %d bytes: %v", m, size, err)
			}
			if diff := cmp.Diff(m, got, cmp.AllowUnexported(message{}), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Errorf("of %d bytes (-want +got):\n%s", size, diff)
			}
		}
	}
}

// Any bit that changes on the way is noticed.
func TestMessageDamaged(t *testing.T) {
	m := message{kind: answer, asker: 1, target: 2, nonce: 3, seen: netip.MustParseAddrPort("192.0.2.1:50000")}
	for bit := range 100 * 8 {
		b := m.encode(100)
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := decode(b); err == nil {
			t.Errorf("a change of bit %d of byte %d went unnoticed", bit%8, bit/8)
		}
	}
}
