// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/tendril-net/tendril/internal/nstest"
)

// TestFeatures: each feature is found on the kernels from its version on. Stable releases
// of older kernels got some later (SKIP_NEIGH is in Debian's 6.1); the oldest got none.
func TestFeatures(t *testing.T) {
	nstest.Root(t)
	have := nstest.KernelVersion(t)
	for _, f := range Features() {
		want := nstest.KernelSince(t, f.Since)
		err := f.probe()
		if err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
			t.Errorf("%s: %v", f.Name, err)
		}
		backported := !want && have != [2]int{5, 10}
		if got := err == nil; got != want && !backported {
			t.Errorf("%s, since Linux %s, on Linux %d.%d: got %t, want %t", f.Name, f.Since, have[0], have[1], got, want)
		}
	}
}
