// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/tendril-net/tendril/pkg/maps"
)

// Indices of skBuff.CB that a prelude takes and returns.
const (
	cbSeen     = iota // in and out: skb->tc_index
	cbVLAN            // in and out: a tag beside the frame, as run.vlan has it
	cbType            // out: skb->pkt_type
	cbPriority        // out: skb->priority
	cbGSOSize         // out: skb->gso_size
)

// prelude prepares the packet in ways that BPF_PROG_TEST_RUN does not, calls a program as
// it is loaded, and tells what became of it: what it counts is read in the same run, since
// to read all counters from outside costs more than all else.
type prelude struct {
	program *ebpf.Program
	// counted has the counters of the program's journeys, names tells which, and where it has redirected
	// the packet to.
	counted *ebpf.Map
	names   []string
}

// The value of prelude.counted has the counters of all journeys before the run, on its CPU,
// then those after it. Each is two numbers of 64 bits: packets, bytes. The redirect is behind them.
const (
	snapshotPlaces = 64 // of a journey
	journeysMax    = 2  // of a program
	countSize      = 16
	snapshots      = 2 * journeysMax * snapshotPlaces * countSize
)

// newPreludes makes one for each program.
func newPreludes(t testing.TB, d *Datapath) map[string]*prelude {
	t.Helper()
	if int(maps.CounterMax) > snapshotPlaces {
		t.Fatalf("%d counters, room for %d", maps.CounterMax, snapshotPlaces)
	}
	preludes := make(map[string]*prelude)
	for name, program := range d.programs.byName {
		targets, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
		must(t, err)
		t.Cleanup(func() { _ = targets.Close() })
		counted, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: snapshots + redirectedSize, MaxEntries: 1})
		must(t, err)
		t.Cleanup(func() { _ = counted.Close() })
		p := &prelude{counted: counted}
		var journeys []int
		for _, journey := range journeysOf(name) {
			at := slices.Index(d.maps.JourneyNames, journey)
			if at < 0 {
				continue
			}
			journeys = append(journeys, at)
			for place := range snapshotPlaces {
				counter := "" // none is counted there
				if place < len(d.maps.CounterNames) {
					counter = d.maps.CounterNames[place]
				}
				p.names = append(p.names, journey+" "+counter)
			}
		}
		p.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "prelude", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
			Instructions: preludeInstructions(d, targets, counted, redirectsOf(t, program), journeys),
		})
		must(t, err)
		t.Cleanup(func() { _ = p.program.Close() })
		must(t, targets.Put(uint32(0), program))
		preludes[name] = p
	}
	return preludes
}

// preludeInstructions are those of a program's. The tail call in a function of its own makes
// the program's exit return to the prelude.
func preludeInstructions(d *Datapath, targets, counted, redirects *ebpf.Map, journeys []int) asm.Instructions {
	const (
		offsetTCIndex     = 44
		offsetType        = 4
		offsetVLANPresent = 20
		offsetVLANTCI     = 24
		offsetVLANProto   = 28
		offsetPriority    = 32
		offsetCB          = 48
		offsetGSOSize     = 176
	)
	one := func(label string, journey int, at int32) asm.Instructions {
		first := uint32(journey) * d.maps.Counters.MaxEntries() / uint32(maps.JourneyMax)
		return asm.Instructions{
			asm.Mov.Imm(asm.R7, 0),
			asm.Mov.Reg(asm.R2, asm.R7).WithSymbol(label),
			asm.Add.Imm(asm.R2, int32(first)),
			asm.StoreMem(asm.R10, -4, asm.R2, asm.Word),
			asm.LoadMapPtr(asm.R1, d.maps.Counters.FD()),
			asm.Mov.Reg(asm.R2, asm.R10),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, label+"_end"),
			asm.LoadMapValue(asm.R1, counted.FD(), 0),
			asm.Mov.Reg(asm.R2, asm.R7),
			asm.LSh.Imm(asm.R2, 4), // by countSize
			asm.Add.Reg(asm.R1, asm.R2),
			asm.LoadMem(asm.R3, asm.R0, 0, asm.DWord),
			asm.StoreMem(asm.R1, int16(at), asm.R3, asm.DWord),
			asm.LoadMem(asm.R3, asm.R0, 8, asm.DWord),
			asm.StoreMem(asm.R1, int16(at)+8, asm.R3, asm.DWord),
			asm.Add.Imm(asm.R7, 1),
			asm.JLT.Imm(asm.R7, int32(maps.CounterMax), label),
			asm.Mov.Imm(asm.R0, 0).WithSymbol(label + "_end"),
		}
	}
	snapshot := func(label string, at int32) (all asm.Instructions) {
		for i, journey := range journeys {
			all = append(all, one(fmt.Sprint(label, i), journey, at+int32(i)*snapshotPlaces*countSize)...)
		}
		return all
	}
	return slices.Concat(
		asm.Instructions{btf.WithFuncMetadata(asm.Mov.Reg(asm.R6, asm.R1).WithSymbol("prelude"), function("prelude", btf.GlobalFunc))},
		snapshot("before", 0),
		noRedirect(redirects),
		asm.Instructions{
			asm.LoadMem(asm.R2, asm.R6, offsetCB+4*cbSeen, asm.Word),
			asm.StoreMem(asm.R6, offsetTCIndex, asm.R2, asm.Word),
			asm.LoadMem(asm.R3, asm.R6, offsetCB+4*cbVLAN, asm.Word),
			asm.JEq.Imm(asm.R3, 0, "call"),
			asm.Mov.Reg(asm.R2, asm.R3),
			asm.RSh.Imm(asm.R2, 16),
			asm.JNE.Imm(asm.R2, 0, "push"),
			asm.Mov.Imm(asm.R2, dot1q),
			asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("push"),
			asm.FnSkbVlanPush.Call(),
			asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("call"),
			asm.Call.Label("run"),
			asm.Mov.Reg(asm.R8, asm.R0),
		},
		takeRedirect(redirects, counted, snapshots),
		asm.Instructions{
			asm.LoadMem(asm.R2, asm.R6, offsetTCIndex, asm.Word),
			asm.StoreMem(asm.R6, offsetCB+4*cbSeen, asm.R2, asm.Word),
			asm.LoadMem(asm.R2, asm.R6, offsetVLANPresent, asm.Word),
			asm.JEq.Imm(asm.R2, 0, "untagged"),
			asm.LoadMem(asm.R2, asm.R6, offsetVLANProto, asm.Word),
			asm.LSh.Imm(asm.R2, 16),
			asm.LoadMem(asm.R3, asm.R6, offsetVLANTCI, asm.Word),
			asm.Or.Reg(asm.R2, asm.R3),
			asm.StoreMem(asm.R6, offsetCB+4*cbVLAN, asm.R2, asm.Word).WithSymbol("untagged"),
			asm.LoadMem(asm.R2, asm.R6, offsetType, asm.Word),
			asm.StoreMem(asm.R6, offsetCB+4*cbType, asm.R2, asm.Word),
			asm.LoadMem(asm.R2, asm.R6, offsetPriority, asm.Word),
			asm.StoreMem(asm.R6, offsetCB+4*cbPriority, asm.R2, asm.Word),
			asm.LoadMem(asm.R2, asm.R6, offsetGSOSize, asm.Word),
			asm.StoreMem(asm.R6, offsetCB+4*cbGSOSize, asm.R2, asm.Word),
		},
		snapshot("after", journeysMax*snapshotPlaces*countSize),
		asm.Instructions{
			asm.Mov.Reg(asm.R0, asm.R8),
			asm.Return(),
			btf.WithFuncMetadata(asm.LoadMapPtr(asm.R2, targets.FD()).WithSymbol("run"), function("run", btf.StaticFunc)),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, 99), // no verdict: the call failed
			asm.Return(),
		},
	)
}

// journeysOf are those that a program counts for.
func journeysOf(program string) []string {
	switch program {
	case toParent, childEgress, masterEgress, pacerOut:
		return []string{fromContainer, toContainer}
	case fromParent, childIngress, masterIngress, limitIngress:
		return []string{toContainer}
	case limitEgress:
		return []string{fromContainer}
	}
	return []string{program}
}

// function describes a function that takes the context, as the verifier wants to
// know before it allows a tail call in one.
func function(name string, linkage btf.FuncLinkage) *btf.Func {
	return &btf.Func{Name: name, Linkage: linkage, Type: &btf.FuncProto{
		Return: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed},
		Params: []btf.FuncParam{{Name: "skb", Type: &btf.Pointer{Target: &btf.Struct{Name: "__sk_buff"}}}},
	}}
}

// noted is what the last run has added to the counters of its journeys, by journey and name, and where it has
// redirected its packet to.
func (p *prelude) noted() (map[string]maps.Count, redirected, error) {
	all, err := p.counted.LookupBytes(uint32(0))
	if err != nil {
		return nil, redirected{}, fmt.Errorf("read what was counted: %w", err)
	}
	before, after := all[:snapshots/2], all[snapshots/2:snapshots]
	counts := make(map[string]maps.Count)
	for i, name := range p.names {
		old, now := before[i*countSize:][:countSize], after[i*countSize:][:countSize]
		if bytes.Equal(old, now) {
			continue
		}
		added := func(at int) uint64 {
			return binary.NativeEndian.Uint64(now[at:]) - binary.NativeEndian.Uint64(old[at:])
		}
		counts[name] = maps.Count{Packets: added(0), Bytes: added(8)}
	}
	return counts, readRedirected(all[snapshots:]), nil
}
