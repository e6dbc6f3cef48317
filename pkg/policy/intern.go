// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"math"
	"slices"
)

// useIdentity returns the identity with these parts, which are sorted; nil if
// there are none. The caller releases it.
func (e *Engine) useIdentity(parts []part) (*identity, error) {
	if len(parts) == 0 {
		return nil, nil
	}
	var c content
	for _, p := range parts {
		c.digest(p.group.digest)
		writeRanges(&c, p.ranges)
	}
	d := c.sum()
	if id, ok := e.identities[d]; ok {
		id.uses++
		return id, nil
	}
	id := &identity{digest: d, uses: 1, parts: parts}
	var err error
	if id.number, err = e.numberOf(e.previousIdentity(d)); err != nil {
		return nil, err
	}
	e.identities[d] = id
	var all allowed
	for i := range parts {
		p := &parts[i]
		p.group.identities[id] = p
		for _, of := range p.group.sets {
			for _, r := range of.rules {
				all.addFor(of.set.number, r, p)
			}
		}
	}
	for set, ranges := range all.entries {
		if err := e.addEntry(Pair{set, id.number}, ranges); err != nil {
			id.uses = 0
			e.forgetIdentity(id)
			return nil, err
		}
	}
	return id, nil
}

// useSet returns the set with this digest, made of the rules if it is new. The
// caller releases it.
func (e *Engine) useSet(d digest, rules func() []setRule) (*set, error) {
	if s, ok := e.sets[d]; ok {
		s.uses++
		return s, nil
	}
	s := &set{digest: d, uses: 1, rules: rules()}
	var err error
	if s.number, err = e.numberOf(e.previousSet(d)); err != nil {
		return nil, err
	}
	e.sets[d] = s
	var all allowed
	for _, r := range s.rules {
		if r.everybody {
			all.add(0, r.rule, r.ranges)
		}
	}
	for g, rules := range s.byGroup {
		g.sets = append(g.sets, setRules{s, rules})
		for id, p := range g.identities {
			for _, r := range rules {
				all.addFor(id.number, r, p)
			}
		}
	}
	for identity, ranges := range all.entries {
		if err := e.addEntry(Pair{s.number, identity}, ranges); err != nil {
			s.uses = 0
			e.forgetSet(s)
			return nil, err
		}
	}
	return s, nil
}

// numberOf is the number that an equal content has already, or the next.
func (e *Engine) numberOf(known uint32) (uint32, error) {
	if known != 0 {
		return known, nil
	}
	n := e.numbers.next
	if n > math.MaxUint32 {
		return 0, &TooBigError{What: "numbers", Need: int(n), Limit: math.MaxUint32}
	}
	e.numbers.next++
	return uint32(n), nil
}

func (e *Engine) previousIdentity(d digest) uint32 {
	if e.previous == nil {
		return 0
	}
	return e.previous.identities[d].numberOf()
}

func (e *Engine) previousSet(d digest) uint32 {
	if e.previous == nil {
		return 0
	}
	return e.previous.sets[d].numberOf()
}

// addEntry gives up long before the memory does, if there is a limit: no more
// than all entries there were can become free in the same step.
func (e *Engine) addEntry(at Pair, ranges []Range) error {
	if len(ranges) == 0 {
		return nil
	}
	e.entries[at] = ranges
	e.entryCount += e.cost(ranges)
	if limit := e.limits.Entries; limit > 0 && e.entryCount > 2*limit {
		return &TooBigError{What: "entries", Need: e.entryCount, Limit: limit}
	}
	return nil
}

// cost is how many values of the map hold the ranges, about.
func (e *Engine) cost(ranges []Range) int {
	if e.limits.PerEntry <= 0 {
		return min(1, len(ranges))
	}
	return (len(ranges) + e.limits.PerEntry - 1) / e.limits.PerEntry
}

func (e *Engine) removeEntry(at Pair) {
	e.entryCount -= e.cost(e.entries[at])
	delete(e.entries, at)
}

func (e *Engine) releaseSet(s *set) {
	if s == nil {
		return
	}
	if s.uses--; s.uses == 0 {
		e.unusedSets = append(e.unusedSets, s)
	}
}

func (e *Engine) releaseIdentity(id *identity) {
	if id == nil {
		return
	}
	if id.uses--; id.uses == 0 {
		e.unusedIdentities = append(e.unusedIdentities, id)
	}
}

// sweep forgets what is not in use.
func (e *Engine) sweep() {
	for _, s := range e.unusedSets {
		e.forgetSet(s)
	}
	for _, id := range e.unusedIdentities {
		e.forgetIdentity(id)
	}
	e.unusedSets, e.unusedIdentities = nil, nil
}

func (e *Engine) forgetSet(s *set) {
	if s.uses > 0 || e.sets[s.digest] != s {
		return
	}
	for at := range e.pairsOfSet(s) {
		e.removeEntry(at)
	}
	for g := range s.byGroup {
		g.sets = slices.DeleteFunc(g.sets, func(of setRules) bool { return of.set == s })
	}
	delete(e.sets, s.digest)
}

func (e *Engine) forgetIdentity(id *identity) {
	if id.uses > 0 || e.identities[id.digest] != id {
		return
	}
	for at := range e.pairsOfIdentity(id) {
		e.removeEntry(at)
	}
	for _, p := range id.parts {
		delete(p.group.identities, id)
	}
	delete(e.identities, id.digest)
}

// pairsOfSet yields the entries of a set; one may come more than once.
func (e *Engine) pairsOfSet(s *set) func(yield func(Pair) bool) {
	return func(yield func(Pair) bool) {
		if !yield(Pair{s.number, 0}) {
			return
		}
		for g := range s.byGroup {
			for id := range g.identities {
				if !yield(Pair{s.number, id.number}) {
					return
				}
			}
		}
	}
}

// pairsOfIdentity yields the entries of an identity; one may come more than
// once.
func (e *Engine) pairsOfIdentity(id *identity) func(yield func(Pair) bool) {
	return func(yield func(Pair) bool) {
		for _, p := range id.parts {
			for _, of := range p.group.sets {
				if !yield(Pair{of.set.number, id.number}) {
					return
				}
			}
		}
	}
}

// checkLimits counts what will be in use after the next sweep.
func (e *Engine) checkLimits() error {
	entries := e.entryCount
	free := make(map[Pair]bool)
	count := func(at Pair) {
		if !free[at] {
			free[at] = true
			entries -= e.cost(e.entries[at])
		}
	}
	for _, s := range e.unusedSets {
		if s.uses == 0 {
			for at := range e.pairsOfSet(s) {
				count(at)
			}
		}
	}
	for _, id := range e.unusedIdentities {
		if id.uses == 0 {
			for at := range e.pairsOfIdentity(id) {
				count(at)
			}
		}
	}
	l := e.limits
	for _, c := range []struct {
		what        string
		need, limit int
	}{
		{"subjects", len(e.locals), l.Subjects},
		{"prefixes", len(e.prefixes) + e.hostCount, l.Prefixes},
		{"entries", entries, l.Entries},
	} {
		if c.limit > 0 && c.need > c.limit {
			return &TooBigError{What: c.what, Need: c.need, Limit: c.limit}
		}
	}
	return nil
}

// selectionsByDigest sorts, so that a list is the same in each process.
func selectionsByDigest(all []*selection, d Direction) []*selection {
	var out []*selection
	for _, s := range all {
		if len(s.rules[d]) > 0 {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b *selection) int { return a.digests[d].compare(b.digests[d]) })
	return out
}
