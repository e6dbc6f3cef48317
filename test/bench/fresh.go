// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// freshFlows is how many flows a sample of new ones has: a power of two, and less than
// what an endpoint may hold. Each is from another client.
const freshFlows = 1 << 14

// Offsets in a frame of UDP or TCP over IPv4 without options.
const (
	ipv4Source = 26
	sourcePort = 34
)

// newFreshMeter measures a program that sees a new flow each time: the packet, which is
// of IPv4, comes from each client in turn, with a new port in each turn.
func newFreshMeter(program *ebpf.Program, ifindex int, frame []byte, from []netip.Addr) (_ *programMeter, err error) {
	// The number of packets so far, and the addresses.
	table := struct {
		next    uint64
		clients [freshFlows][4]byte
	}{}
	if len(from) != freshFlows {
		return nil, fmt.Errorf("there are %d clients, not %d", len(from), freshFlows)
	}
	for i, a := range from {
		table.clients[i] = a.As4()
	}
	turns, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "bench_clients", Type: ebpf.Array, KeySize: 4, ValueSize: 8 + 4*freshFlows, MaxEntries: 1,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: table}},
	})
	if err != nil {
		return nil, fmt.Errorf("make map of clients: %w", err)
	}
	m := &programMeter{context: packetContext(ifindex), frame: frame}
	m.closers = append(m.closers, turns)
	m.vary = asm.Instructions{
		asm.LoadMapValue(asm.R7, turns.FD(), 0),
		asm.LoadMem(asm.R8, asm.R7, 0, asm.DWord),
		asm.Mov.Reg(asm.R4, asm.R8),
		asm.Add.Imm(asm.R4, 1),
		asm.StoreMem(asm.R7, 0, asm.R4, asm.DWord),
		asm.Mov.Reg(asm.R4, asm.R8),
		asm.And.Imm(asm.R4, freshFlows-1),
		asm.LSh.Imm(asm.R4, 2),
		asm.Add.Reg(asm.R7, asm.R4),
		asm.LoadMem(asm.R4, asm.R7, 8, asm.Word),
		asm.StoreMem(asm.R2, ipv4Source, asm.R4, asm.Word),
		// In whatever order of bytes, it is not 0.
		asm.Or.Imm(asm.R8, 0x8000),
		asm.StoreMem(asm.R2, sourcePort, asm.R8, asm.Half),
	}
	return m, m.load(program)
}
