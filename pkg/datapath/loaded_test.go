// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/maps"
)

// Programs of other folders are tried in place of those that are built in: with a fault in
// each (test/mutations).
func init() {
	for _, dir := range filepath.SplitList(os.Getenv("TENDRIL_TEST_PROGRAMS")) {
		for name := range objects {
			if load := programIn(dir, name); load != nil {
				objects[name] = load
			}
		}
		if load := programIn(dir, "from_host"); load != nil {
			hostObject = load
		}
	}
}

// programIn reads a program of a folder, if it is there.
func programIn(dir, name string) func() (*ebpf.CollectionSpec, error) {
	file := filepath.Join(dir, strings.ReplaceAll(name, "_", "")+"_bpfel.o")
	if _, err := os.Stat(file); err != nil {
		return nil
	}
	return func() (*ebpf.CollectionSpec, error) { return ebpf.LoadCollectionSpec(file) }
}

// loaded are programs with their maps. To load them is nearly all that a node costs, seconds
// where all is emulated, so nodes of one configuration have the same, one after the other.
type loaded struct {
	cfg      Config
	maps     *maps.Maps
	programs *programs
	// sweep makes zeros of the large arrays, by map.
	sweep map[ebpf.MapID]*ebpf.Program
	used  bool
}

// pool has all that was loaded, until the process ends.
var pool struct {
	sync.Mutex
	all []*loaded
}

// borrow returns what is loaded for a configuration, with empty maps, until the test ends.
func borrow(t testing.TB, cfg Config) *loaded {
	t.Helper()
	pool.Lock()
	defer pool.Unlock()
	i := slices.IndexFunc(pool.all, func(l *loaded) bool { return !l.used && reflect.DeepEqual(l.cfg, cfg) })
	if i < 0 {
		i = len(pool.all)
		pool.all = append(pool.all, load(t, cfg))
	}
	l := pool.all[i]
	for _, m := range l.reached(t) {
		if err := l.empty(m); err != nil {
			t.Fatalf("%s: %v", m, err)
		}
	}
	l.used = true
	t.Cleanup(func() {
		pool.Lock()
		defer pool.Unlock()
		l.used = false
	})
	return l
}

// load is the part of Open that concerns no device, file or process of the host. The maps
// lose their pins when the test ends, and are held by their handles.
func load(t testing.TB, cfg Config) *loaded {
	t.Helper()
	must(t, checkKernel())
	shared, err := maps.Open(nstest.BPFFS(t), maps.Sizes{Flows: cfg.FlowsMax, Translations: cfg.TranslationsMax})
	must(t, err)
	const noCookie = 0
	watched := cfg
	watched.edit = watchRedirects
	programs, err := loadPrograms(watched, shared, noCookie)
	must(t, err)
	return &loaded{cfg: cfg, maps: shared, programs: programs, sweep: make(map[ebpf.MapID]*ebpf.Program)}
}

// datapath is what Open would return, without what concerns other agents and the sockets
// of the host.
func (l *loaded) datapath(t testing.TB) *Datapath {
	t.Helper()
	hooks, err := newHooks(l.cfg.Attach, filepath.Join(nstest.BPFFS(t), "links"))
	must(t, err)
	return &Datapath{
		log: slog.New(slog.DiscardHandler), maps: l.maps, programs: l.programs, hooks: hooks, now: time.Now, grace: waitForPrograms,
		children: make(map[uint16]Endpoint),
	}
}

// reached are all maps that the programs can change, as the kernel says.
func (l *loaded) reached(t testing.TB) []*ebpf.Map {
	t.Helper()
	known := make(map[ebpf.MapID]bool)
	var found []*ebpf.Map
	for _, program := range l.programs.byName {
		info, err := program.Info()
		must(t, err)
		ids, _ := info.MapIDs()
		for _, id := range ids {
			if known[id] {
				continue
			}
			known[id] = true
			m, err := ebpf.NewMapFromID(id)
			must(t, err)
			t.Cleanup(func() { _ = m.Close() })
			info, err := m.Info()
			must(t, err)
			if !info.Frozen() { // constants are
				found = append(found, m)
			}
		}
	}
	return found
}

// empty removes what can be removed from a map and makes the rest zeros.
func (l *loaded) empty(m *ebpf.Map) error {
	switch kind := m.Type(); kind {
	case ebpf.Hash, ebpf.LRUHash:
		return inBatches(m, m.BatchLookupAndDelete, func(_, _ reflect.Value) error { return nil })
	case ebpf.Array:
		if size := m.ValueSize(); m.MaxEntries()%sweepEntries == 0 && (size == 4 || size == 8) {
			return l.zero(m)
		}
		return inBatches(m, m.BatchLookup, func(key, value reflect.Value) error {
			if value.IsZero() {
				return nil
			}
			return m.Put(key.Interface(), make([]byte, m.ValueSize()))
		})
	case ebpf.PerCPUArray:
		zeros := make([][]byte, ebpf.MustPossibleCPU())
		for i := range zeros {
			zeros[i] = make([]byte, m.ValueSize())
		}
		for key := range m.MaxEntries() {
			if err := m.Put(key, zeros); err != nil {
				return err
			}
		}
		return nil
	case ebpf.ProgramArray:
		for key := range m.MaxEntries() {
			if err := ignoreMissing(m.Delete(key)); err != nil {
				return err
			}
		}
		return nil
	case ebpf.LPMTrie, ebpf.HashOfMaps:
		for {
			if key, err := m.NextKeyBytes(nil); err != nil || key == nil {
				return err
			} else if err := m.Delete(key); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("nobody knows how to empty a %s", kind)
	}
}

// sweepEntries is how many entries of an array one run of its sweep makes zeros.
const sweepEntries = 1024

// zero makes zeros of an array of numbers. There is one for every endpoint that a node may
// have, which the kernel lets a process walk in a hundred times what a program needs.
func (l *loaded) zero(m *ebpf.Map) error {
	info, err := m.Info()
	if err != nil {
		return err
	}
	id, _ := info.ID()
	program := l.sweep[id]
	if program == nil {
		if program, err = newSweep(m); err != nil {
			return fmt.Errorf("load sweep: %w", err)
		}
		l.sweep[id] = program
	}
	for first := uint32(0); first < m.MaxEntries(); first += sweepEntries {
		// A test run wants a frame.
		left, err := program.Run(&ebpf.RunOptions{Data: make([]byte, 14), Context: skBuff{Mark: first}})
		if err == nil && left != 0 {
			err = fmt.Errorf("sweep left entries from %d on", first)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// newSweep returns a program that makes zeros of as many entries of an array, from that on
// which skb->mark names, and returns how many it could not reach.
func newSweep(m *ebpf.Map) (*ebpf.Program, error) {
	const offsetMark = 8
	size := asm.Word
	if m.ValueSize() == 8 {
		size = asm.DWord
	}
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "sweep", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R6, asm.R1, offsetMark, asm.Word),
			asm.Mov.Imm(asm.R7, sweepEntries),
			asm.Mov.Imm(asm.R8, 0),
			asm.StoreMem(asm.R10, -4, asm.R6, asm.Word).WithSymbol("entry"),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.R10),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "end"),
			asm.StoreMem(asm.R0, 0, asm.R8, size),
			asm.Add.Imm(asm.R6, 1),
			asm.Sub.Imm(asm.R7, 1),
			asm.JNE.Imm(asm.R7, 0, "entry"),
			asm.Mov.Reg(asm.R0, asm.R7).WithSymbol("end"),
			asm.Return(),
		},
	})
}

// inBatches calls f for each entry that lookup finds, many at a time.
func inBatches(m *ebpf.Map, lookup func(*ebpf.MapBatchCursor, any, any, *ebpf.BatchOptions) (int, error), f func(key, value reflect.Value) error) error {
	several := func(size uint32) reflect.Value {
		entries := int(min(4096, m.MaxEntries()))
		return reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]())), entries, entries)
	}
	keys, values := several(m.KeySize()), several(m.ValueSize())
	for cursor := (ebpf.MapBatchCursor{}); ; {
		n, err := lookup(&cursor, keys.Interface(), values.Interface(), nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for i := range n {
			if err := f(keys.Index(i), values.Index(i)); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
	}
}

// TestBorrowed: whatever a node has left in a map, the next finds nothing of it.
func TestBorrowed(t *testing.T) {
	nstest.LeaveTo(t, "5.10")
	nstest.Root(t)
	// Those of TestStories, which needs two where nothing is emulated.
	cfg := Config{Masquerade: true, MasqueradePorts: [2]uint16{40960, 65535}, FlowsMax: 1024, TranslationsMax: 256}
	var first *loaded
	t.Run("first", func(t *testing.T) {
		first = borrow(t, cfg)
		if second := borrow(t, cfg); second == first {
			t.Error("two have the same at a time")
		}
		for _, m := range first.reached(t) {
			value := any(bytes.Repeat([]byte{255}, int(m.ValueSize())))
			switch m.Type() {
			case ebpf.PerCPUArray:
				value = slices.Repeat([][]byte{value.([]byte)}, ebpf.MustPossibleCPU())
			case ebpf.HashOfMaps:
				tree, err := first.maps.NewIdentityTree(2)
				must(t, err)
				defer func() { _ = tree.Close() }()
				value = tree
			}
			must(t, m.Put(make([]byte, m.KeySize()), value))
		}
	})
	next := borrow(t, cfg)
	if next != first {
		t.Error("what was given back was not lent again")
	}
	for _, m := range next.reached(t) {
		value, err := m.LookupBytes(make([]byte, m.KeySize()))
		must(t, err)
		if len(bytes.Trim(value, "\x00")) > 0 {
			t.Errorf("something is left in %s", m)
		}
	}
}
