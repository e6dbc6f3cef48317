// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/pkg/maps"
)

// TestReclaim sweeps more slots than one run of the program looks at, in which the dead, the living and the
// closed lie side by side: the dead go, all of them at once, and nothing else does.
func TestReclaim(t *testing.T) {
	const (
		slots = 4 * slotsPerRun
		flows = 126 // of half the slots: with more, two processors may not find each other's gaps
		each  = flows / 3
		first = 2001 // a multiple of three
	)
	n := newNode(t, Config{Masquerade: true, FlowsMax: 1024, TranslationsMax: 2 * slots, EndpointTranslations: slots})
	if got := n.maps.Allocations.MaxEntries(); got != slots {
		t.Fatalf("there are %d slots, not %d", got, slots)
	}
	eachFamily(t, func(t *testing.T, f family) {
		n.restart(t)
		kinds := [3]transport{transports()[1], transports()[0], transports()[0]}
		const opening, closed = 1, 2 // of TCP; 0 is of UDP
		for i := range uint16(flows) {
			n.run(t, n.send(n.a, f.a, f.world, kinds[i%3], first+i))
		}
		freed, err := n.Reclaim()
		must(t, err)
		if freed != 0 {
			t.Errorf("freed %d slots when all lived", freed)
		}
		change(t, n.maps.Translations, func(_ maps.FlowKey, v *maps.Translation) {
			if v.Seen != 0 && maps.Port(v.Port)%3 == closed { // else the half that leads to the port
				v.State = maps.TranslationClosed
			}
		})
		left := map[uint16]bool{0: true, opening: true, closed: true}
		for _, step := range []struct {
			name    string
			seconds uint32
			gone    uint16
		}{
			{"a silence of UDP", 31, 0},
			{"nobody answered", 121, opening},
			{"closed for long", 121, closed},
		} {
			n.elapse(t, step.seconds)
			freed, err := n.Reclaim()
			must(t, err)
			if freed != each {
				t.Errorf("%s: freed %d slots, want %d", step.name, freed, each)
			}
			delete(left, step.gone)
			want, got := make(map[uint16]bool), make(map[uint16]bool)
			for i := range uint16(flows) {
				if left[i%3] {
					want[first+i] = true
				}
			}
			for _, tr := range n.translations(t) {
				got[tr.inside.Port()] = true
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: ports inside (-want +got):\n%s", step.name, diff)
			}
			n.wantSlots(t, len(want))
		}
		for slot := range uint32(slots) {
			var a maps.Allocation
			must(t, n.maps.Allocations.Lookup(slot, &a))
			if a.Reply.Protocol != 0 {
				t.Errorf("slot %d holds %+v", slot, a.Reply)
			}
		}
	})
}
