// SPDX-License-Identifier: Apache-2.0

package policy

import "fmt"

// Check compares what an engine counts with what is there.
func (e *Engine) Check() error {
	uses := make(map[any]int)
	for _, m := range e.members() {
		for _, s := range m.sets {
			uses[s]++
		}
		uses[m.identity]++
		for _, c := range m.addresses {
			uses[c.identity]++
		}
	}
	of := make(map[*identity]bool) // the cells use an identity once, however many have it
	for _, c := range e.program.cells {
		if c.identity != nil && !of[c.identity] {
			of[c.identity] = true
			uses[c.identity]++
		}
	}
	for _, s := range e.sets {
		if s.uses != uses[s] || s.uses == 0 {
			return fmt.Errorf("set %d is used %d times, not %d", s.number, uses[s], s.uses)
		}
	}
	for _, id := range e.identities {
		if id.uses != uses[id] || id.uses == 0 {
			return fmt.Errorf("identity %d is used %d times, not %d", id.number, uses[id], id.uses)
		}
	}
	for _, g := range e.program.groups {
		for id := range g.identities {
			if e.identities[id.digest] != id {
				return fmt.Errorf("a group has identity %d, which is forgotten", id.number)
			}
		}
		for _, of := range g.sets {
			if e.sets[of.set.digest] != of.set {
				return fmt.Errorf("a group has set %d, which is forgotten", of.set.number)
			}
		}
	}
	entries := 0
	for at, ranges := range e.entries {
		entries += e.cost(ranges)
		if len(ranges) == 0 {
			return fmt.Errorf("entry %v is empty", at)
		}
	}
	if entries != e.entryCount {
		return fmt.Errorf("%d entries are counted as %d", entries, e.entryCount)
	}
	t := e.Tables()
	if n := len(e.prefixes) + e.hostCount; n != len(t.Prefixes) {
		return fmt.Errorf("%d prefixes are counted as %d", len(t.Prefixes), n)
	}
	for _, limit := range []struct{ have, limit int }{
		{len(t.Subjects), e.limits.Subjects}, {len(t.Prefixes), e.limits.Prefixes}, {entries, e.limits.Entries},
	} {
		if limit.limit > 0 && limit.have > limit.limit {
			return fmt.Errorf("%d are more than %d", limit.have, limit.limit)
		}
	}
	if n := len(e.unusedSets) + len(e.unusedIdentities); n > 0 {
		return fmt.Errorf("%d are not swept", n)
	}
	return nil
}
