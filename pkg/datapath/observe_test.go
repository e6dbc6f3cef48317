// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"

	"github.com/cilium/ebpf"

	"github.com/tendril-net/tendril/internal/nstest"
)

// TestEach: an entry of a map is seen once, however many there are.
func TestEach(t *testing.T) {
	nstest.Root(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 8192})
	must(t, err)
	t.Cleanup(func() { _ = m.Close() })
	filled := uint32(0)
	for _, entries := range []uint32{0, 1, 64, 65, 5000, 8192} {
		for ; filled < entries; filled++ {
			must(t, m.Put(filled, uint64(filled)+1))
		}
		seen := make(map[uint32]bool)
		must(t, each(m, func(key uint32, value uint64) bool {
			if seen[key] || value != uint64(key)+1 {
				t.Errorf("entry %d: seen before: %t, value %d", key, seen[key], value)
			}
			seen[key] = true
			return true
		}))
		if len(seen) != int(entries) {
			t.Errorf("saw %d entries of %d", len(seen), entries)
		}
	}
}
