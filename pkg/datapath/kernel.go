// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
)

// required are the newest of the helpers that no program can do without.
var required = []struct {
	helper asm.BuiltinFunc
	name   string
	since  string
}{
	{asm.FnRedirectPeer, "bpf_redirect_peer", "5.10"},
	{asm.FnRedirectNeigh, "bpf_redirect_neigh", "5.10"},
	{asm.FnSkcLookupTcp, "bpf_skc_lookup_tcp", "5.2"},
	{asm.FnFibLookup, "bpf_fib_lookup", "4.18"},
}

// checkKernel names what the kernel lacks, before anything is changed.
func checkKernel() error {
	// Kernels from 5.11 on account maps to the cgroup; below, the limit may not
	// be raisable in a container, and is large enough or the map says so.
	_ = rlimit.RemoveMemlock()
	for _, need := range required {
		err := features.HaveProgramHelper(ebpf.SchedCLS, need.helper)
		if errors.Is(err, ebpf.ErrNotSupported) {
			return &KernelError{Feature: need.name, Since: need.since, Err: err}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// skipNeighbour is BPF_FIB_LOOKUP_SKIP_NEIGH (Linux 6.4): the neighbour is
// resolved when the packet leaves, so it need not be looked up before, and the
// route's MTU is told even while there is none.
const skipNeighbour = 1 << 2

// fibFlags returns the flags that the kernel's bpf_fib_lookup knows. A lookup
// for no address family fails with EAFNOSUPPORT behind the check of the flags,
// and with EINVAL at it.
func fibFlags() uint32 {
	const size = 64 // of struct bpf_fib_lookup
	instructions := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1), asm.Mov.Imm(asm.R7, 0)}
	for offset := int16(-size); offset < 0; offset += 8 {
		instructions = append(instructions, asm.StoreMem(asm.RFP, offset, asm.R7, asm.DWord))
	}
	instructions = append(instructions,
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -size),
		asm.Mov.Imm(asm.R3, size),
		asm.Mov.Imm(asm.R4, skipNeighbour),
		asm.FnFibLookup.Call(),
		asm.Return(),
	)
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: instructions, License: "Dual BSD/GPL"})
	if err != nil {
		return 0
	}
	defer func() { _ = program.Close() }()
	result, err := program.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	const afNoSupport = -97
	if err != nil || int32(result) != afNoSupport {
		return 0
	}
	return skipNeighbour
}
