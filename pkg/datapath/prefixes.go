// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"net/netip"

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
	have := make(map[maps.PrefixKey]bool)
	var (
		key maps.PrefixKey
		one uint8
	)
	walk := m.Iterate()
	for walk.Next(&key, &one) {
		have[key] = true
	}
	if err := walk.Err(); err != nil {
		return fmt.Errorf("read %s: %w", m, err)
	}
	changed := false
	want := make(map[maps.PrefixKey]bool)
	for _, p := range desired {
		key := maps.NewPrefixKey(p)
		want[key] = true
		if have[key] {
			continue
		}
		if err := m.Put(key, uint8(1)); err != nil {
			return fmt.Errorf("write %s: %w", m, err)
		}
		changed = true
	}
	for key := range have {
		if want[key] {
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
