// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Each fault changes one place: a list that does not follow the programs proves nothing.
func TestApplicable(t *testing.T) {
	for _, m := range mutations() {
		text, err := os.ReadFile(filepath.Join("../../bpf", m.file))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.applicable(string(text)); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}

// What is said of faults that are no more is never asked.
func TestCaught(t *testing.T) {
	caught, err := readCaught("caught.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutations() {
		if caught[m.name].Test == "" {
			t.Errorf("%s: no test is known to catch it: go run ./test/mutations -update", m.name)
		}
		delete(caught, m.name)
	}
	if len(caught) != 0 {
		t.Errorf("no faults of these names: %v", slices.Collect(maps.Keys(caught)))
	}
}
