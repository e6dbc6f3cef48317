// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
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
