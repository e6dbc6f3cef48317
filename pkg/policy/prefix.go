// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"sort"
)

// block is an ipBlock. No except lies in another.
type block struct {
	cidr    netip.Prefix
	excepts []netip.Prefix
}

func (b *block) appendTo(c *content) {
	writePrefix(c, b.cidr)
	c.number(uint64(len(b.excepts)))
	for _, e := range b.excepts {
		writePrefix(c, e)
	}
}

func writePrefix(c *content, p netip.Prefix) {
	c.text(string(p.Addr().AsSlice()))
	c.number(uint64(p.Bits()))
}

// comparePrefixes puts a prefix before those that lie in it.
func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// outermost sorts prefixes and leaves out those that lie in another. It may
// change what it is given.
func outermost(prefixes []netip.Prefix) []netip.Prefix {
	slices.SortFunc(prefixes, comparePrefixes)
	out := prefixes[:0]
	for _, p := range prefixes {
		if len(out) == 0 || !covers(out[len(out)-1], p) {
			out = append(out, p)
		}
	}
	return out
}

// cell is all addresses of a prefix that are in no longer one: any rule takes
// all of them or none.
type cell struct {
	prefix netip.Prefix
	parent *cell
	// groups are those whose ipBlocks include the addresses, by id.
	groups []*group
	// identity is that of an address that is no endpoint's; nil for none.
	identity *identity
}

// identityOf is the identity of the addresses of a cell, which may be nil.
func (c *cell) identityOf() *identity {
	if c == nil {
		return nil
	}
	return c.identity
}

// cells is sorted.
type cells []*cell

// maxMemberships bounds what cells say of groups, in all. Ten thousand prefixes
// may lie in 400 ipBlocks of different rules each.
const maxMemberships = 1 << 22

// newCells cuts the address space along all ipBlocks and their excepts. A walk
// over the sorted prefixes keeps those that contain the current one on a stack,
// so that each prefix costs no more than what changes at it.
func newCells(groups []*group) (cells, error) {
	type change struct {
		prefix netip.Prefix
		group  *group
		by     int
	}
	var changes []change
	for _, g := range groups {
		for _, b := range g.blocks {
			changes = append(changes, change{b.cidr, g, 1})
			for _, e := range b.excepts {
				changes = append(changes, change{e, g, -1})
			}
		}
	}
	slices.SortFunc(changes, func(a, b change) int {
		return cmp.Or(comparePrefixes(a.prefix, b.prefix), cmp.Compare(a.group.id, b.group.id))
	})
	var all cells
	var stack []*cell
	undo := make(map[*cell][]change)
	// within is how many blocks of a group include the current prefix.
	within := make([]int, len(groups))
	memberships := 0
	for len(changes) > 0 {
		n := 1
		for n < len(changes) && changes[n].prefix == changes[0].prefix {
			n++
		}
		c := &cell{prefix: changes[0].prefix}
		for len(stack) > 0 && !covers(stack[len(stack)-1].prefix, c.prefix) {
			top := stack[len(stack)-1]
			for _, change := range undo[top] {
				within[change.group.id] -= change.by
			}
			delete(undo, top)
			stack = stack[:len(stack)-1]
		}
		var before []*group
		if len(stack) > 0 {
			c.parent = stack[len(stack)-1]
			before = c.parent.groups
		}
		var joined, left []*group
		here := changes[:n]
		for i := 0; i < len(here); {
			g := here[i].group
			was := within[g.id] > 0
			for ; i < len(here) && here[i].group == g; i++ {
				within[g.id] += here[i].by
			}
			switch is := within[g.id] > 0; {
			case is && !was:
				joined = append(joined, g)
			case was && !is:
				left = append(left, g)
			}
		}
		c.groups = before
		if len(joined)+len(left) > 0 {
			c.groups = changed(before, joined, left)
			if memberships += len(c.groups); memberships > maxMemberships {
				return nil, &TooBigError{What: "memberships", Need: memberships, Limit: maxMemberships}
			}
		}
		undo[c] = here
		stack = append(stack, c)
		all = append(all, c)
		changes = changes[n:]
	}
	return all, nil
}

// changed merges sorted lists.
func changed(groups, joined, left []*group) []*group {
	out := make([]*group, 0, len(groups)+len(joined)-len(left))
	for _, g := range groups {
		for len(joined) > 0 && joined[0].id < g.id {
			out = append(out, joined[0])
			joined = joined[1:]
		}
		if len(left) > 0 && left[0] == g {
			left = left[1:]
			continue
		}
		out = append(out, g)
	}
	return append(out, joined...)
}

// find returns the cell of an address; nil if it is in no prefix.
func (all cells) find(address netip.Addr) *cell {
	// What contains the address is the last prefix that begins before it, or
	// contains that one.
	i := sort.Search(len(all), func(i int) bool { return address.Less(all[i].prefix.Addr()) })
	if i == 0 {
		return nil
	}
	c := all[i-1]
	for c != nil && !c.prefix.Contains(address) {
		c = c.parent
	}
	return c
}
