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
	rules  []setRule
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

// allowed collects what the rules of a set allow one identity.
type allowed struct {
	ranges []ruleRange
}

type ruleRange struct {
	portRange
	order int
	hash  uint64
}

func (a *allowed) add(r *rule, ranges []portRange) {
	for _, p := range ranges {
		a.ranges = append(a.ranges, ruleRange{p, r.order, r.hash})
	}
}

// addFor adds what a rule allows an identity that has its group.
func (a *allowed) addFor(r setRule, p *part) {
	if r.everybody {
		a.add(r.rule, p.ranges) // its numbers are for identity 0
		return
	}
	a.add(r.rule, union(r.ranges, p.ranges))
}

// entry puts the widest first and leaves out what another range covers: the
// first that matches decides, and no rule of a set can say less than another.
func (a *allowed) entry() []Range {
	slices.SortFunc(a.ranges, func(a, b ruleRange) int {
		return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.first, b.first),
			cmp.Compare(b.last, a.last), cmp.Compare(a.order, b.order))
	})
	var out []Range
	for _, r := range a.ranges {
		if n := len(out); n > 0 && (out[0].Protocol == 0 || out[n-1].Protocol == r.protocol && r.last <= out[n-1].Last) {
			continue
		}
		out = append(out, Range{r.first, r.last, r.protocol, r.hash})
	}
	return out
}
