// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"math/bits"
	"slices"
)

// idPool hands out the numbers 1 to 65535, the lowest free one first. A number
// given back drains: it is free only after the datapath has been purged of it.
// It is not safe for concurrent use.
type idPool struct {
	taken    [1 << 16 / 64]uint64 // bit set: in use or draining
	lowest   int                  // no word below this one has a free bit
	draining []uint16
}

func newIDPool() *idPool {
	p := &idPool{}
	p.set(0) // 0 means "no endpoint" in the datapath
	return p
}

func (p *idPool) set(id uint16) { p.taken[id/64] |= 1 << (id % 64) }

// claim marks a number read from the state file; false when it was marked.
func (p *idPool) claim(id uint16) bool {
	if p.taken[id/64]&(1<<(id%64)) != 0 {
		return false
	}
	p.set(id)
	return true
}

// take returns the lowest free number, or 0 when there is none.
func (p *idPool) take() uint16 {
	for ; p.lowest < len(p.taken); p.lowest++ {
		if free := ^p.taken[p.lowest]; free != 0 {
			id := uint16(p.lowest*64 + bits.TrailingZeros64(free))
			p.set(id)
			return id
		}
	}
	return 0
}

// drain gives a number back that the datapath may still know.
func (p *idPool) drain(id uint16) { p.draining = append(p.draining, id) }

// free gives a number back that the datapath does not know.
func (p *idPool) free(ids ...uint16) {
	for _, id := range ids {
		p.taken[id/64] &^= 1 << (id % 64)
		p.lowest = min(p.lowest, int(id/64))
	}
}

// batch takes up to n draining numbers, to be purged and then freed.
func (p *idPool) batch(n int) []uint16 {
	n = min(n, len(p.draining))
	ids := slices.Clone(p.draining[:n])
	p.draining = slices.Delete(p.draining, 0, n)
	return ids
}
