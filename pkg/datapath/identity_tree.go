// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/tendril-net/tendril/internal/prefix"
	"github.com/tendril-net/tendril/pkg/maps"
)

// words are an address as the tree of identities has it: 32 bits each, of IPv4 the first
// alone.
type words [4]uint32

func wordsOf(a netip.Addr) (w words) {
	for i, bytes := 0, a.AsSlice(); i < len(bytes)/4; i++ {
		w[i] = binary.BigEndian.Uint32(bytes[4*i:])
	}
	return w
}

// boundary begins a range of addresses that have an identity, up to the next one.
type boundary struct {
	at       words
	identity uint32
}

// boundaries are those of one family, ascending; the first is at 0. What no prefix has has
// the identity 0.
func boundaries(identities map[netip.Prefix]uint32, is4 bool) []boundary {
	prefixes := make([]netip.Prefix, 0, len(identities))
	for p := range identities {
		if p.Addr().Is4() == is4 {
			prefixes = append(prefixes, p)
		}
	}
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	all := []boundary{{}}
	begin := func(at netip.Addr, identity uint32) {
		b := boundary{wordsOf(at), identity}
		if all[len(all)-1].at == b.at {
			all = all[:len(all)-1]
		}
		if len(all) == 0 || all[len(all)-1].identity != identity {
			all = append(all, b)
		}
	}
	// around has the prefixes that contain the current one, the innermost last.
	var around []netip.Prefix
	leave := func() {
		inner := around[len(around)-1]
		around = around[:len(around)-1]
		after := prefix.Last(inner).Next()
		if !after.IsValid() {
			return // there are no addresses left
		}
		identity := uint32(0)
		if len(around) > 0 {
			identity = identities[around[len(around)-1]]
		}
		begin(after, identity)
	}
	for _, p := range prefixes {
		for len(around) > 0 && !around[len(around)-1].Contains(p.Addr()) {
			leave()
		}
		begin(p.Addr(), identities[p])
		around = append(around, p)
	}
	for len(around) > 0 {
		leave()
	}
	return all
}

// identityTree are the nodes of the tree in which the programs look addresses up.
type identityTree []maps.IdentityNode

// newIdentityTree makes the tree of prefixes, which have no bits besides their own.
func newIdentityTree(identities map[netip.Prefix]uint32) (identityTree, error) {
	// IDENTITY_ROOT_IPV4 and IDENTITY_ROOT_IPV6 come first.
	t := make(identityTree, 2, 2+len(identities)/2)
	for root, is4 := range []bool{true, false} {
		node := t.level(boundaries(identities, is4), 0)
		t[root] = node // which level may have moved
		if steps := t.depth(node); steps > identitySteps {
			return nil, &TooBigError{What: "steps to the identity of an address", Need: steps, Limit: identitySteps}
		}
	}
	return t, nil
}

// identitySteps is IDENTITY_STEPS of bpf/lib/types.h.
const identitySteps = 24

// depth is how many nodes the programs see at most, from one on.
func (t identityTree) depth(node maps.IdentityNode) int {
	below := 0
	for i, next := range node.Next {
		if next&maps.IdentityNodeFollows == 0 || i > 0 && next == node.Next[i-1] {
			continue
		}
		below = max(below, t.depth(t[next&^(maps.IdentityNodeFollows|maps.IdentityNextWord)]))
	}
	return 1 + below
}

// branch is a key of a node and what follows it.
type branch struct{ key, next uint32 }

// level adds what is below the node for one word of addresses, whose words before are the
// same, and returns that node. The first boundary is at 0 in this word and those after it.
func (t *identityTree) level(all []boundary, word int) maps.IdentityNode {
	var branches []branch
	add := func(key, next uint32) {
		if len(branches) == 0 || branches[len(branches)-1].next != next {
			branches = append(branches, branch{key, next})
		}
	}
	for before := uint32(0); len(all) > 0; {
		key, n := all[0].at[word], 1
		for n < len(all) && all[n].at[word] == key {
			n++
		}
		here := all[:n]
		all = all[n:]
		inside := n > 1
		if first := here[0].at; first != upTo(first, word) {
			here, inside = slices.Concat([]boundary{{upTo(first, word), before}}, here), true
		}
		before = here[len(here)-1].identity
		if !inside {
			add(key, before)
			continue
		}
		below := t.add(t.level(here, word+1))
		add(key, maps.IdentityNodeFollows|maps.IdentityNextWord|below)
		if key < math.MaxUint32 && (len(all) == 0 || all[0].at[word] != key+1) {
			add(key+1, before)
		}
	}
	return t.join(branches)
}

// upTo are the words up to one, and zeros.
func upTo(w words, word int) (out words) {
	copy(out[:word+1], w[:word+1])
	return out
}

// join adds nodes that lead to the branches, all but the last, which it returns.
func (t *identityTree) join(branches []branch) maps.IdentityNode {
	for len(branches) > identityKeys {
		var above []branch
		for some := range slices.Chunk(branches, identityKeys) {
			above = append(above, branch{some[0].key, maps.IdentityNodeFollows | t.add(newIdentityNode(some))})
		}
		branches = above
	}
	return newIdentityNode(branches)
}

func (t *identityTree) add(node maps.IdentityNode) uint32 {
	*t = append(*t, node)
	return uint32(len(*t) - 1)
}

// identityKeys is IDENTITY_KEYS of bpf/lib/types.h.
const identityKeys = len(maps.IdentityNode{}.Keys)

func newIdentityNode(branches []branch) (node maps.IdentityNode) {
	for i := range identityKeys {
		b := branch{math.MaxUint32, branches[len(branches)-1].next}
		if i < len(branches) {
			b = branches[i]
		}
		node.Keys[i], node.Next[i] = b.key, b.next
	}
	return node
}

// writeIdentities gives a generation its tree, and returns that. The caller closes it.
func (d *Datapath) writeIdentities(generation uint32, tree identityTree) (*ebpf.Map, error) {
	inner, err := d.maps.NewIdentityTree(uint32(len(tree)))
	if err != nil {
		return nil, err
	}
	numbers := make([]uint32, len(tree))
	for i := range numbers {
		numbers[i] = uint32(i)
	}
	if err = writeAll(inner, numbers, tree); err == nil {
		err = d.maps.Identities.Put(generation, inner)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write map identities: %w", err), inner.Close())
	}
	return inner, nil
}

// isIn says whether a map has these nodes.
func (t identityTree) isIn(inner *ebpf.Map) (bool, error) {
	same := 0
	err := each(inner, func(at uint32, node maps.IdentityNode) bool {
		if int(at) < len(t) && t[at] == node {
			same++
		}
		return true
	})
	return same == len(t), err
}

// treeMemory is what the kernel holds for the tree within map identities, in bytes. It is asked of the
// map that was written: to open one by its number takes CAP_SYS_ADMIN.
func (d *Datapath) treeMemory() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.policy.tree == nil {
		return 0, nil
	}
	info, err := d.policy.tree.Info()
	if err != nil {
		return 0, fmt.Errorf("read map identity_tree: %w", err)
	}
	memory, _ := info.Memlock()
	return memory, nil
}
