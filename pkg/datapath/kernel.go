// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Feature is what the datapath needs of the kernel, or uses where it is.
type Feature struct {
	// Name in the kernel's words, Since the first version of Linux that has it.
	Name, Since string
	// Required says that nothing works without.
	Required bool
	// probe returns nil or ErrNotSupported when the kernel gives a clear answer.
	probe func() error
}

// Features returns what is required, and then what newer kernels give, oldest
// first.
func Features() []Feature {
	helper := func(f asm.BuiltinFunc) func() error {
		return func() error { return features.HaveProgramHelper(ebpf.SchedCLS, f) }
	}
	known := func(have func() bool) func() error {
		return func() error {
			if !have() {
				return ebpf.ErrNotSupported
			}
			return nil
		}
	}
	required := []Feature{
		{Name: "bpf_redirect_peer", Since: "5.10", Required: true, probe: helper(asm.FnRedirectPeer)},
		{Name: "bpf_redirect_neigh", Since: "5.10", Required: true, probe: helper(asm.FnRedirectNeigh)},
		{Name: "bpf_skc_lookup_tcp", Since: "5.2", Required: true, probe: helper(asm.FnSkcLookupTcp)},
		{Name: "bpf_fib_lookup", Since: "4.18", Required: true, probe: helper(asm.FnFibLookup)},
	}
	return append(append(required, socketFeatures()...), []Feature{
		{Name: "bpf_ktime_get_coarse_ns", Since: "5.11", probe: known(haveCoarseClock)},
		{Name: "mtu_result of bpf_fib_lookup", Since: "5.12", probe: probeMTUResult},
		{Name: "BPF_FIB_LOOKUP_SKIP_NEIGH", Since: "6.4", probe: known(func() bool { return fibFlags() == skipNeighbour })},
		{Name: "tcx", Since: "6.6", probe: known(haveTCX)},
	}...)
}

// socketFeatures returns what the socket hooks need. All kernels that are supported
// have it, unless they were built without CONFIG_CGROUP_BPF.
func socketFeatures() []Feature {
	return []Feature{
		{
			Name: "bpf_get_netns_cookie", Since: "5.7",
			probe: func() error { return features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnGetNetnsCookie) },
		},
		{Name: "BPF_CGROUP_INET4_GETPEERNAME", Since: "5.8", probe: probePeername},
	}
}

// probePeername loads a program for the hook: the kernel knows it, or does not.
func probePeername() error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCgroupInet4GetPeername, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if errors.Is(err, unix.EINVAL) {
		return ebpf.ErrNotSupported
	}
	if err != nil {
		return fmt.Errorf("load program for getpeername: %w", err)
	}
	return program.Close()
}

// probeMTUResult looks for the field where the kernel describes its types: what a lookup leaves
// there depends on the routes.
func probeMTUResult() error {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return fmt.Errorf("read types of the kernel: %w", err)
	}
	var lookup *btf.Struct
	if err := kernel.TypeByName("bpf_fib_lookup", &lookup); err != nil {
		return fmt.Errorf("find struct bpf_fib_lookup: %w", err)
	}
	if !hasMember(lookup.Members, "mtu_result") {
		return ebpf.ErrNotSupported
	}
	return nil
}

// hasMember looks into unions and structs without a name, too.
func hasMember(members []btf.Member, name string) bool {
	return slices.ContainsFunc(members, func(m btf.Member) bool {
		switch inner := m.Type.(type) {
		case *btf.Union:
			return m.Name == name || m.Name == "" && hasMember(inner.Members, name)
		case *btf.Struct:
			return m.Name == name || m.Name == "" && hasMember(inner.Members, name)
		}
		return m.Name == name
	})
}

// checkKernel names what the kernel lacks, before anything is changed.
func checkKernel() error {
	// Kernels from 5.11 on account maps to the cgroup; below, the limit may not
	// be raisable in a container, and is large enough or the map says so.
	_ = rlimit.RemoveMemlock()
	return lack(slices.DeleteFunc(Features(), func(f Feature) bool { return !f.Required }))
}

// lack is a *KernelError for the first feature that the kernel has not.
func lack(needed []Feature) error {
	for _, f := range needed {
		err := f.probe()
		if errors.Is(err, ebpf.ErrNotSupported) {
			return &KernelError{Feature: f.Name, Since: f.Since, Err: err}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// haveCoarseClock tells whether there is the clock that reads no hardware.
func haveCoarseClock() bool {
	return features.HaveProgramHelper(ebpf.SchedCLS, asm.FnKtimeGetCoarseNs) == nil
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
