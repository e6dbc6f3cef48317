// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Offsets in struct __sk_buff of linux/bpf.h.
const (
	skbIfindex = 40
	skbTCIndex = 44
	skbData    = 76
	skbDataEnd = 80
	skbSize    = 192
)

// packetContext is a struct __sk_buff: the packet came in by a device.
func packetContext(ifindex int) []byte {
	context := make([]byte, skbSize)
	binary.NativeEndian.PutUint32(context[skbIfindex:], uint32(ifindex))
	return context
}

// programMeter measures a program that changes its packet: before each run, a
// small program writes anew what the run before has changed and then goes on to
// the program by a tail call. Another pair of them, the second empty, says what
// that costs.
type programMeter struct {
	context, frame []byte
	// vary changes the restored packet, which is at R2; R6 and R1 are not for it.
	vary           asm.Instructions
	whole, nothing *ebpf.Program
	closers        []interface{ Close() error }
}

func newProgramMeter(program *ebpf.Program, ifindex int, frame []byte) (*programMeter, error) {
	m := &programMeter{context: packetContext(ifindex), frame: frame}
	return m, m.load(program)
}

func (m *programMeter) load(program *ebpf.Program) (err error) {
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "bench_empty", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, redirected), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("load empty program: %w", err)
	}
	m.closers = append(m.closers, empty)
	if m.nothing, err = m.restoring(empty); err != nil {
		return err
	}
	m.whole, err = m.restoring(program)
	return err
}

func (m *programMeter) close() {
	for _, c := range m.closers {
		_ = c.Close()
	}
}

// restoring loads a program that restores the packet and goes on to next.
func (m *programMeter) restoring(next *ebpf.Program) (*ebpf.Program, error) {
	table, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "bench_next", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: uint32(next.FD())}},
	})
	if err != nil {
		return nil, fmt.Errorf("make map of programs: %w", err)
	}
	m.closers = append(m.closers, table)
	instructions := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, skbData, asm.Word),
		asm.LoadMem(asm.R3, asm.R6, skbDataEnd, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, int32(len(m.frame))),
		asm.JGT.Reg(asm.R4, asm.R3, "short"),
	}
	for _, f := range changed(m.frame) {
		instructions = append(instructions, f.store(m.frame)...)
	}
	instructions = append(instructions, m.vary...)
	instructions = append(instructions,
		asm.StoreImm(asm.R6, skbTCIndex, 0, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, table.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("short"),
		asm.Return(),
	)
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "bench_restore", Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: instructions,
	})
	if err != nil {
		return nil, fmt.Errorf("load restoring program: %w", err)
	}
	m.closers = append(m.closers, program)
	return program, nil
}

// field is a part of the frame, written at once: a load that spans two stores
// just made would wait for both, which no load of a real packet does.
type field struct {
	offset int
	size   asm.Size
}

// changed lists what a program may change of a frame: MACs, TTL, addresses,
// ports and checksums.
func changed(frame []byte) []field {
	fields := []field{{0, asm.DWord}, {8, asm.Word}}
	transport, protocol := 34, frame[23]
	if frame[14]>>4 == 4 {
		fields = append(fields, field{22, asm.Byte}, field{24, asm.Half}, field{26, asm.Word}, field{30, asm.Word})
	} else {
		transport, protocol = 54, frame[20]
		fields = append(fields, field{21, asm.Byte})
		for offset := 22; offset < 54; offset += 8 {
			fields = append(fields, field{offset, asm.DWord})
		}
	}
	checksum := transport + 6
	if protocol == unix.IPPROTO_TCP {
		checksum = transport + 16
	}
	return append(fields, field{transport, asm.Half}, field{transport + 2, asm.Half}, field{checksum, asm.Half})
}

// store writes the field into the packet at R2.
func (f field) store(frame []byte) asm.Instructions {
	var bytes [8]byte
	copy(bytes[:], frame[f.offset:f.offset+f.size.Sizeof()])
	return asm.Instructions{
		asm.LoadImm(asm.R5, int64(binary.NativeEndian.Uint64(bytes[:])), asm.DWord),
		asm.StoreMem(asm.R2, int16(f.offset), asm.R5, f.size),
	}
}

// run returns the cost of one packet in the program, in ns.
func (m *programMeter) run(repeat int) (float64, error) {
	nothing, err := m.time(m.nothing, repeat)
	if err != nil {
		return 0, err
	}
	whole, err := m.time(m.whole, repeat)
	return whole - nothing, err
}

// time runs a program and returns the duration of one run in ns, without the
// time in which other processes had the CPU. The kernel gives whole ns only.
func (m *programMeter) time(program *ebpf.Program, repeat int) (float64, error) {
	// Of union bpf_attr, for BPF_PROG_TEST_RUN.
	attr := struct {
		program, verdict            uint32
		frameSize, outSize          uint32
		frame, out                  unsafe.Pointer
		repeat, duration            uint32
		contextSize, contextOutSize uint32
		context, contextOut         unsafe.Pointer
		flags, cpu, batchSize, _    uint32
	}{
		program:   uint32(program.FD()),
		frameSize: uint32(len(m.frame)), frame: unsafe.Pointer(&m.frame[0]),
		contextSize: uint32(len(m.context)), context: unsafe.Pointer(&m.context[0]),
		repeat: uint32(repeat),
	}
	var err error
	for range 10 {
		_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_TEST_RUN, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
		if errno == 0 {
			err = nil
			break
		}
		if err = errno; !errors.Is(err, unix.EINTR) {
			break
		}
	}
	runtime.KeepAlive(m)
	if err != nil {
		return 0, fmt.Errorf("run program: %w", err)
	}
	if attr.verdict != redirected {
		return 0, fmt.Errorf("the verdict is %d, not a redirect", int32(attr.verdict))
	}
	return float64(attr.duration), nil
}
