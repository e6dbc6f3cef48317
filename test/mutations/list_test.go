// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each fault changes one place: a list that does not follow the programs proves nothing.
func TestApplicable(t *testing.T) {
	for _, m := range mutations() {
		text, err := os.ReadFile(filepath.Join("../../bpf", m.file))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), m.old); n != 1 {
			t.Errorf("%s: bpf/%s has its text %d times, not once", m.name, m.file, n)
		}
	}
}
