// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"slices"
)

// part says that an identity has a group, and at which ports the servers behind
// it have what the group names.
type part struct {
	group  *group
	ranges []portRange
}

// identity is a number for all addresses that the rules treat alike. Its digest
// is of its parts, so the number means the same as long as it lives.
type identity struct {
	number uint32
	digest digest
	uses   int
	parts  []part // by group
}

// numberOf is 0 for no identity.
func (i *identity) numberOf() uint32 {
	if i == nil {
		return 0
	}
	return i.number
}

// set is the rules that apply to endpoints in one direction. Like an identity
// it never changes. All its rules allow; tiers that deny would make it a list
// of such lists, and an entry would be computed from those in order.
type set struct {
	number uint32
	digest digest
	uses   int
	rules  []setRule // those without a group first, then by group
}

// setRules are the rules of a set that have one group.
type setRules struct {
	set   *set
	rules []setRule
}

// byGroup yields the rules of each group.
func (s *set) byGroup(yield func(*group, []setRule) bool) {
	for i := 0; i < len(s.rules); {
		g, start := s.rules[i].group, i
		for i < len(s.rules) && s.rules[i].group == g {
			i++
		}
		if g != nil && !yield(g, s.rules[start:i]) {
			return
		}
	}
}

// numberOf is 0 for no set, which is no isolation.
func (s *set) numberOf() uint32 {
	if s == nil {
		return 0
	}
	return s.number
}

// setRule is a rule with its ports, those included that the selected endpoint
// has under the names of a rule of ingress.
type setRule struct {
	*rule
	ranges []portRange
}

// allowed collects what the rules of one set allow identities, or what sets
// allow one identity: number is of the other.
type allowed []allowedRange

type allowedRange struct {
	number uint32
	portRange
	rule *rule
}

func (a *allowed) add(number uint32, r *rule, ranges []portRange) {
	for _, p := range ranges {
		*a = append(*a, allowedRange{number, p, r})
	}
}

// addFor adds what a rule allows an identity that has its group.
func (a *allowed) addFor(number uint32, r setRule, p *part) {
	if r.everybody {
		a.add(number, r.rule, p.ranges) // its other ranges are for identity 0
		return
	}
	a.add(number, r.rule, union(r.ranges, p.ranges))
}

// entries yields the entry of each number. It puts the widest ranges first and
// leaves out what another covers: the first that matches decides, and no rule
// of a set can take back what another allows.
func (a allowed) entries(yield func(number uint32, ranges []Range) bool) {
	slices.SortFunc(a, func(a, b allowedRange) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.protocol, b.protocol),
			cmp.Compare(a.first, b.first), cmp.Compare(b.last, a.last), cmp.Compare(a.rule.order, b.rule.order))
	})
	all := make([]Range, 0, len(a)) // the entries share it
	for i := 0; i < len(a); {
		number, start := a[i].number, len(all)
		for ; i < len(a) && a[i].number == number; i++ {
			r, out := a[i], all[start:]
			if n := len(out); n > 0 && (out[0].Protocol == 0 || out[n-1].Protocol == r.protocol && r.last <= out[n-1].Last) {
				continue
			}
			all = append(all, Range{r.first, r.last, r.protocol, r.rule.hash})
		}
		if !yield(number, all[start:len(all):len(all)]) {
			return
		}
	}
}
