// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"math/bits"
	"slices"
)

// maxResting bounds the queue of released addresses of one range set. Beyond
// it the oldest leaves the queue and is handed out when the walk comes by. That
// is less than a megabyte of memory, and no address comes back before 8,192
// others were released after it, unless all others are leased.
const maxResting = 8192

// addressSet knows which addresses of one range set are free, and which of them
// to hand out next. It knows nothing of owners. Its size follows the addresses
// that are in use, not those that could be.
//
// A released address rests in a queue. Free addresses that do not rest are
// handed out by a walk through the set that goes on where it left off, and only
// when there are none, the one that has rested longest. So what was never used
// comes first and what was just released comes last.
//
// Questions (choose, contains) change nothing; take and free do. So a caller
// can ask, commit a transaction, and only then act.
type addressSet struct {
	ranges RangeSet
	// spans are the addresses that may be handed out, in the order of the walk.
	spans []span
	// capacity is the number of addresses in spans, saturated at maxCapacity.
	capacity uint64
	// leased counts addresses in spans that are leased.
	leased uint64
	// busy marks addresses that the walk passes over: leased or resting.
	busy map[number]*chunk
	// resting are the released addresses that are still kept back.
	resting    resting
	maxResting int
	// last is the address that the walk handed out last; it starts at the
	// front if that is in none of the spans.
	last number
}

// choice is an address that addressSet proposes.
type choice struct {
	number number
	// walked says that the walk came to it, and goes on behind it.
	walked bool
	// order is the address's order in the resting queue, 0 if it is not there.
	order uint64
}

func newAddressSet(ranges RangeSet, spans []span) *addressSet {
	s := &addressSet{ranges: ranges, spans: spans, busy: make(map[number]*chunk), maxResting: maxResting}
	for _, span := range spans {
		if s.capacity += span.size(); s.capacity > maxCapacity {
			s.capacity = maxCapacity
		}
	}
	return s
}

// choose proposes the address to hand out next, or false if all are leased.
func (s *addressSet) choose() (choice, bool) {
	if s.leased+uint64(s.resting.len()) < s.capacity {
		if n, ok := s.walk(); ok {
			return choice{number: n, walked: true}, true
		}
	}
	if oldest := s.resting.oldest(1); len(oldest) > 0 {
		return choice{number: oldest[0].number, order: oldest[0].order}, true
	}
	return choice{}, false
}

// chooseWanted proposes a certain address of the set, or false if it is leased.
func (s *addressSet) chooseWanted(n number) (choice, bool) {
	order := s.resting.order(n)
	return choice{number: n, order: order}, order != 0 || !s.isBusy(n)
}

// walk finds the first address behind s.last that is not busy; behind the end
// of the set comes its beginning.
func (s *addressSet) walk() (number, bool) {
	at := max(0, slices.IndexFunc(s.spans, func(p span) bool { return p.contains(s.last) }))
	if here := s.spans[at]; here.contains(s.last) {
		if s.last.less(here.last) {
			if n, ok := s.firstFree(s.last.plus(1), here.last); ok {
				return n, true
			}
		}
		at++
	}
	for i := range s.spans { // all, the first half of where it began included
		p := s.spans[(at+i)%len(s.spans)]
		if n, ok := s.firstFree(p.first, p.last); ok {
			return n, true
		}
	}
	return number{}, false
}

// firstFree finds the first address from first to last that is not busy.
func (s *addressSet) firstFree(first, last number) (number, bool) {
	for {
		base := chunkOf(first)
		end := base.plus(chunkSize - 1)
		if last.less(end) {
			end = last
		}
		c := s.busy[base]
		if c == nil {
			return first, true
		}
		if n, ok := c.firstFree(first.lo%chunkSize, end.lo%chunkSize); ok {
			return base.plus(n), true
		}
		if end == last {
			return number{}, false
		}
		first = end.plus(1)
	}
}

// take marks a chosen address as leased.
func (s *addressSet) take(c choice) {
	if c.order != 0 {
		s.resting.remove(c.number) // it stays busy
	} else {
		s.setBusy(c.number)
	}
	if c.walked {
		s.last = c.number
	}
	s.leased++
}

// crowded returns what has to leave the resting queue when count addresses are
// about to join it.
func (s *addressSet) crowded(count int) []rested {
	return s.resting.oldest(max(0, s.resting.len()+count-s.maxResting))
}

// free ends a lease: the address begins to rest.
func (s *addressSet) free(r rested) {
	s.leased--
	s.resting.push(r)
}

// wake takes an address out of the resting queue: the walk may come to it.
func (s *addressSet) wake(n number) {
	s.resting.remove(n)
	s.clearBusy(n)
}

// rest lets an address rest that is not busy.
func (s *addressSet) rest(r rested) {
	s.setBusy(r.number)
	s.resting.push(r)
}

func (s *addressSet) isBusy(n number) bool {
	c := s.busy[chunkOf(n)]
	return c != nil && c.has(n.lo%chunkSize)
}

func (s *addressSet) setBusy(n number) {
	base := chunkOf(n)
	c := s.busy[base]
	if c == nil {
		c = new(chunk)
		s.busy[base] = c
	}
	c.set(n.lo % chunkSize)
}

func (s *addressSet) clearBusy(n number) {
	base := chunkOf(n)
	if c := s.busy[base]; c.clear(n.lo % chunkSize) {
		delete(s.busy, base)
	}
}

// chunkSize is the number of addresses in a chunk: small enough to be cheap for
// a single address in an IPv6 subnet (520 bytes), large enough that a full /16
// is passed over in 16 steps.
const chunkSize = 4096

// chunk is a bitmap of neighbouring addresses, the first a multiple of
// chunkSize.
type chunk struct {
	words [chunkSize / 64]uint64
	count int
}

// chunkOf is the first address of the chunk that holds n.
func chunkOf(n number) number { return number{n.hi, n.lo &^ (chunkSize - 1)} }

func (c *chunk) has(i uint64) bool { return c.words[i/64]&(1<<(i%64)) != 0 }

// set sets a bit that is not set.
func (c *chunk) set(i uint64) {
	c.words[i/64] |= 1 << (i % 64)
	c.count++
}

// clear clears a bit that is set, and says whether it was the last.
func (c *chunk) clear(i uint64) (empty bool) {
	c.words[i/64] &^= 1 << (i % 64)
	c.count--
	return c.count == 0
}

// firstFree finds the first clear bit from first to last.
func (c *chunk) firstFree(first, last uint64) (uint64, bool) {
	if c.count == chunkSize {
		return 0, false
	}
	for w := first / 64; w <= last/64; w++ {
		free := ^c.words[w]
		if w == first/64 {
			free &= ^uint64(0) << (first % 64)
		}
		if free != 0 {
			i := w*64 + uint64(bits.TrailingZeros64(free))
			return i, i <= last
		}
	}
	return 0, false
}
