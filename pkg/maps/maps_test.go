// SPDX-License-Identifier: Apache-2.0

package maps_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/maps"
)

func open(t *testing.T, dir string, sizes maps.Sizes) *maps.Maps {
	t.Helper()
	m, err := maps.Open(dir, sizes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func folder(t *testing.T) string {
	t.Helper()
	// Below Linux 5.11 maps count as locked memory.
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(nstest.BPFFS(t), "maps")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestOpenAdoptsWhatIsPinned(t *testing.T) {
	dir := folder(t)
	first := open(t, dir, maps.Sizes{Flows: 1024, Translations: 256})
	if err := first.Epochs.Put(uint32(7), uint32(42)); err != nil {
		t.Fatal(err)
	}
	second := open(t, dir, maps.Sizes{Flows: 2048, Translations: 512})
	var epoch uint32
	if err := second.Epochs.Lookup(uint32(7), &epoch); err != nil || epoch != 42 {
		t.Errorf("epoch is %d (%v), want 42: the pinned map was not adopted", epoch, err)
	}
	got := []uint32{second.Flows.MaxEntries(), second.Translations.MaxEntries(), second.Allocations.MaxEntries()}
	if diff := cmp.Diff([]uint32{1024, 256, 128}, got); diff != "" {
		t.Errorf("sizes of pinned maps (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]maps.KeptSize{{Map: "flows", Wanted: 2048, Has: 1024}, {Map: "translations", Wanted: 512, Has: 256}}, second.Kept); diff != "" {
		t.Errorf("sizes that were kept (-want +got):\n%s", diff)
	}
	if first.Kept != nil {
		t.Errorf("sizes that were kept by new maps: %v", first.Kept)
	}
}

// pins lists what is below a folder.
func pins(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func TestPinAgain(t *testing.T) {
	dir := folder(t)
	m := open(t, dir, maps.Sizes{Flows: 1024, Translations: 256})
	before := pins(t, dir)
	again := func(want ...string) {
		t.Helper()
		got, err := m.Pin(dir)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("pinned again (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(before, pins(t, dir)); diff != "" {
			t.Errorf("pins (-before +after):\n%s", diff)
		}
	}
	again()
	for range 2 { // the second time the map has been pinned again before
		if err := os.Remove(filepath.Join(dir, "epochs")); err != nil {
			t.Fatal(err)
		}
		again("epochs")
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	again("allocations", "bandwidth", "child_programs", "children", "counters", "denied", "endpoints", "epochs", "flows", "fragments", "held", "hits", "host_addresses", "identities", "interfaces",
		"masquerade_exclude", "peers", "policies", "policy_generation", "ports", "sockets", "stack_destinations", "subjects", "translations", "trunks", "unshaped")
	if err := m.Epochs.Put(uint32(7), uint32(42)); err != nil {
		t.Fatal(err)
	}
	var epoch uint32
	adopted := open(t, dir, maps.Sizes{})
	if err := adopted.Epochs.Lookup(uint32(7), &epoch); err != nil || epoch != 42 {
		t.Errorf("epoch of the map pinned again is %d (%v), want 42", epoch, err)
	}
}

// TestPinKeepsWhatIsAnothers has a map of somebody else in the place of one of
// ours, and another missing.
func TestPinKeepsWhatIsAnothers(t *testing.T) {
	dir := folder(t)
	m := open(t, dir, maps.Sizes{Flows: 1024, Translations: 256})
	for _, name := range []string{"epochs", "held"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	if err := other.Pin(filepath.Join(dir, "epochs")); err != nil {
		t.Fatal(err)
	}
	got, err := m.Pin(dir)
	if err == nil || !strings.Contains(err.Error(), "epochs is of map ") {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff([]string{"held"}, got); diff != "" {
		t.Errorf("pinned again (-want +got):\n%s", diff)
	}
	there, err := ebpf.LoadPinnedMap(filepath.Join(dir, "epochs"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = there.Close() }()
	if there.MaxEntries() != 8 {
		t.Error("the other map's pin was replaced")
	}
}

func TestOpenRefusesAnotherLayout(t *testing.T) {
	tests := map[string]struct {
		prepare func(t *testing.T, dir string)
		reason  string
	}{
		"value of another size": {
			prepare: func(t *testing.T, dir string) {
				m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 48, ValueSize: 8, MaxEntries: 8})
				if err != nil {
					t.Fatal(err)
				}
				if err := m.Pin(filepath.Join(dir, "flows")); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = m.Close() })
			},
			reason: "flows was pinned by an incompatible version: its values have 8 bytes, not 96",
		},
		"another type": {
			prepare: func(t *testing.T, dir string) {
				m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 48, ValueSize: 96, MaxEntries: 8})
				if err != nil {
					t.Fatal(err)
				}
				if err := m.Pin(filepath.Join(dir, "flows")); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = m.Close() })
			},
			reason: "flows was pinned by an incompatible version: its type is Hash, not LRUHash",
		},
		"fields that mean something else": {
			prepare: func(t *testing.T, dir string) {
				if err := os.Mkdir(filepath.Join(dir, "layout-0123456789abcdef"), 0o700); err != nil {
					t.Fatal(err)
				}
			},
			reason: "was pinned by an incompatible version: it has layout-0123456789abcdef, this version layout-",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := folder(t)
			tt.prepare(t, dir)
			before := names(t, dir)
			_, err := maps.Open(dir, maps.Sizes{Flows: 1024, Translations: 256})
			var incompatible *maps.IncompatibleError
			if !errors.As(err, &incompatible) || !strings.Contains(err.Error(), tt.reason) {
				t.Fatalf("error is %v, want one that says %q", err, tt.reason)
			}
			if diff := cmp.Diff(before, names(t, dir)); diff != "" {
				t.Errorf("the refused folder was changed (-before +after):\n%s", diff)
			}
		})
	}
}

func TestNamesOfCountersComeFromTheEnum(t *testing.T) {
	m := open(t, folder(t), maps.Sizes{Flows: 1024, Translations: 256})
	if diff := cmp.Diff([]string{"from_container", "to_container", "from_uplink", "to_uplink"}, m.JourneyNames); diff != "" {
		t.Errorf("journeys (-want +got):\n%s", diff)
	}
	if len(m.CounterNames) != int(maps.CounterMax) {
		t.Errorf("%d counters have names, want %d", len(m.CounterNames), maps.CounterMax)
	}
	if got := m.CounterNames[maps.FirstDrop]; got != "invalid" {
		t.Errorf("the first drop is %q, want %q", got, "invalid")
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}
