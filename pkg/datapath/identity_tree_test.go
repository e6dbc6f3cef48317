// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/prefix"
	"github.com/tendril-net/tendril/pkg/maps"
)

// lookup is prefix_identity of bpf/lib/policy.h; steps is how many nodes it has seen.
func (t identityTree) lookup(a netip.Addr) (identity uint32, steps int) {
	const ipv4, ipv6 = 0, 1 // IDENTITY_ROOT_IPV4 and IDENTITY_ROOT_IPV6
	at, word, w := uint32(ipv6), 0, wordsOf(a)
	if a.Is4() {
		at = ipv4
	}
	for {
		steps++
		node := t[at]
		n := 0
		for n < identityKeys && node.Keys[n] <= w[word] {
			n++
		}
		next := node.Next[(n-1+identityKeys)%identityKeys]
		if next&maps.IdentityNodeFollows == 0 {
			return next, steps
		}
		if next&maps.IdentityNextWord != 0 {
			word++
		}
		at = next &^ (maps.IdentityNodeFollows | maps.IdentityNextWord)
	}
}

// longest is what the longest prefix says of an address, 0 for none.
func longest(identities map[netip.Prefix]uint32, a netip.Addr) (identity uint32) {
	bits := -1
	for p, number := range identities {
		if p.Contains(a) && p.Bits() > bits {
			bits, identity = p.Bits(), number
		}
	}
	return identity
}

// The tree finds for every address what the longest prefix says, within the steps that the programs take.
func TestIdentityTree(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	address := func(is4 bool) netip.Addr {
		var raw [16]byte
		for i := range raw {
			// Few values: prefixes shall lie within each other, and at the ends of words.
			raw[i] = []byte{0, 0, 1, 0x7f, 0x80, 0xff, 0xff, byte(rng.Uint32())}[rng.IntN(8)]
		}
		if is4 {
			return netip.AddrFrom4([4]byte(raw[:4]))
		}
		return netip.AddrFrom16(raw)
	}
	check := func(identities map[netip.Prefix]uint32, asked ...netip.Addr) {
		t.Helper()
		for p := range identities {
			last := prefix.Last(p)
			for _, at := range []netip.Addr{p.Addr(), p.Addr().Prev(), last, last.Next()} {
				if at.IsValid() {
					asked = append(asked, at)
				}
			}
		}
		tree, err := newIdentityTree(identities)
		must(t, err)
		for _, a := range asked {
			got, steps := tree.lookup(a)
			if want := longest(identities, a); got != want || steps > identitySteps {
				t.Fatalf("%v: identity %d after %d steps, want %d, of %v", a, got, steps, want, identities)
			}
		}
	}
	most := 200
	if nstest.Emulated() {
		most = 20 // no kernel has a say in it
	}
	for n := range most {
		identities := make(map[netip.Prefix]uint32)
		asked := []netip.Addr{address(true), address(false)}
		for range n {
			a := address(rng.IntN(2) == 0)
			p, err := a.Prefix(rng.IntN(a.BitLen() + 1))
			must(t, err)
			identities[p] = uint32(rng.IntN(5))
			asked = append(asked, a)
		}
		check(identities, asked...)
	}
	// The ends of the families, and what has both of them in other systems.
	first4, last4, mapped := netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255}), netip.MustParseAddr("::ffff:0:1")
	last6 := prefix.Last(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
	for _, prefixes := range [][]string{
		{"::/0"},
		{"0.0.0.0/0"},
		{"::/0", "0.0.0.0/0"},
		{"::/80"},
		{"255.255.255.255/32"},
		{"0.0.0.0/32"},
		{"::/128"},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"},
		{"::/0", "255.255.255.255/32", "ffff::/16", "0.0.0.0/32"},
	} {
		identities := make(map[netip.Prefix]uint32)
		for i, p := range prefixes {
			identities[netip.MustParsePrefix(p)] = uint32(i + 1)
		}
		check(identities, first4, last4, mapped, netip.IPv6Unspecified(), last6)
	}
}

// deepest are as many prefixes as there may be, and the deepest tree that they can make: in each of the 32
// bits of the addresses of path as many as take another level. Every second address from path on has an
// identity: its number.
func deepest(path netip.Addr) map[netip.Prefix]uint32 {
	const perWord = 1<<14 + 1 // of two keys each, beyond 8^5
	words := wordsOf(path)
	identities := make(map[netip.Prefix]uint32)
	for word := range words {
		for i := range uint32(perWord) {
			if len(identities) == PolicyPrefixes {
				break
			}
			w := upTo(words, word)
			w[word] += 2 * i
			identities[netip.PrefixFrom(w.address(), min(32*(word+1)+1, 128))] = uint32(len(identities) + 1)
		}
	}
	return identities
}

func (w words) address() netip.Addr {
	var raw [16]byte
	for i, word := range w {
		binary.BigEndian.PutUint32(raw[4*i:], word)
	}
	return netip.AddrFrom16(raw)
}

// The programs find the end of the deepest tree there can be.
func TestIdentityTreeDepth(t *testing.T) {
	nstest.LeaveTo(t, "5.10")
	n := newNode(t, Config{Masquerade: true})
	path := netip.MustParseAddr("2001:db8:1:2:3:4:5:6")
	p := n.policy().restrict(n.b, ingress)
	p.Identities = deepest(path)
	tree, err := newIdentityTree(newIdentityPlaces(p).identities(p))
	must(t, err)
	if got, most := tree.depth(tree[1]), identitySteps-1; got != most {
		t.Errorf("the tree has a depth of %d, want %d", got, most)
	}
	from := func(past uint32) netip.Addr {
		w := wordsOf(path)
		w[3] += past
		return w.address()
	}
	for _, past := range []uint32{0, 2, 16000, 32000} {
		client := from(past)
		p.Entries = map[PolicyPair][]PolicyRange{{setOne, p.Identities[netip.PrefixFrom(client, 128)]}: {{Last: 65535, Rule: ruleOne}}}
		must(t, n.ReconcilePolicy(p))
		n.check(t, n.fromWorld(ip(client, v6().b, 64, udp(low, server)...)...), deliveredAs(delivered(n.b, ip(client, v6().b, 63, udp(low, server)...)...), "decided"))
		for _, other := range []netip.Addr{from(past + 1), from(past + 4)} {
			n.check(t, n.fromWorld(ip(other, v6().b, 64, udp(low, server)...)...), denied("policy_ingress"))
		}
		n.forget(t)
	}
	must(t, n.ReconcilePolicy(Policy{}))
}
