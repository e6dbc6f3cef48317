// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// waitForPrograms returns when all programs that were running have ended. The kernel does not
// return from an update of a map of maps before that, on all kernels since 4.18; TC programs
// run with bottom halves off, which it waits for since 4.20. membarrier(2) would do the same,
// but not where processors run without ticks (nohz_full).
func waitForPrograms() error {
	inner := &ebpf.MapSpec{Name: "grace", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	one, err := ebpf.NewMap(inner)
	if err != nil {
		return fmt.Errorf("make map grace: %w", err)
	}
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Name: "graces", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: inner})
	if err != nil {
		return errors.Join(fmt.Errorf("make map graces: %w", err), one.Close())
	}
	err = outer.Put(uint32(0), one)
	if err != nil {
		err = fmt.Errorf("write map graces: %w", err)
	}
	return errors.Join(err, outer.Close(), one.Close())
}
