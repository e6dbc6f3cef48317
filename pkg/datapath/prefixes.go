// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"fmt"
	gomaps "maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/tendril-net/tendril/pkg/maps"
)

// ReconcileExcludes makes the destinations that are never masqueraded exactly these.
func (d *Datapath) ReconcileExcludes(desired []netip.Prefix) error {
	return d.reconcilePrefixes(d.maps.MasqueradeExclude, desired)
}

// ReconcileStackDestinations makes the destinations that are left to the host's
// stack exactly these: other software translates them there.
func (d *Datapath) ReconcileStackDestinations(desired []netip.Prefix) error {
	return d.reconcilePrefixes(d.maps.StackDestinations, desired)
}

// reconcilePrefixes makes a trie hold exactly these prefixes. When it changes,
// every decision is taken anew.
func (d *Datapath) reconcilePrefixes(m *ebpf.Map, desired []netip.Prefix) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	// Read whole: a lookup in a trie is also answered by a shorter prefix.
	have := make(map[maps.PrefixKey]uint8)
	if _, err := walk(m, func(key maps.PrefixKey, value uint8) { have[key] = value }); err != nil {
		return err
	}
	changed := false
	want := make(map[maps.PrefixKey]uint8)
	for _, p := range desired {
		if maps.CoversIPv4(p) {
			want[maps.NewPrefixKey(netip.PrefixFrom(netip.IPv4Unspecified(), 0))] = 0
		}
	}
	for _, p := range desired {
		want[maps.NewPrefixKey(p)] = 1
	}
	// The shorter ones last: what they must not match has its entry by then.
	keys := slices.SortedFunc(gomaps.Keys(want), func(a, b maps.PrefixKey) int { return cmp.Compare(b.Length, a.Length) })
	for _, key := range keys {
		if value, there := have[key]; there && value == want[key] {
			continue
		}
		if err := m.Put(key, want[key]); err != nil {
			return fmt.Errorf("write %s: %w", m, err)
		}
		changed = true
	}
	for key := range have {
		if _, wanted := want[key]; wanted {
			continue
		}
		if err := ignoreMissing(m.Delete(key)); err != nil {
			return fmt.Errorf("write %s: %w", m, err)
		}
		changed = true
	}
	if !changed {
		return nil
	}
	return d.bumpEpoch(0)
}
