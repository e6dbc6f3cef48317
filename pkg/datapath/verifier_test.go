// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bufio"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/tendril-net/tendril/internal/nstest"
)

var update = flag.Bool("update", false, "write the running kernel's numbers to testdata/verifier.golden")

const (
	goldenFile = "testdata/verifier.golden"
	goldenHead = "# Instructions that the verifier processed, per kernel and program, without head-room.\n" +
		"# go test ./pkg/datapath -run TestVerifier -update writes those of the running kernel.\n"
	// headRoomPercent is how much more than recorded a program may cost.
	headRoomPercent = 25
)

// TestVerifier holds what the verifier must go through for each program to what
// is recorded, so that a change that multiplies it shows long before the limit of
// a million instructions is met on somebody's kernel.
func TestVerifier(t *testing.T) {
	nstest.Root(t)
	version := nstest.KernelVersion(t)
	kernel := fmt.Sprintf("%d.%d", version[0], version[1])
	d, err := Open(Config{Root: filepath.Join(nstest.BPFFS(t), "tendril"), Masquerade: true, FlowsMax: 256, TranslationsMax: 256})
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	for name := range objects {
		must(t, d.load(name))
	}
	costs := make(map[string]int)
	for _, programs := range []map[string]*ebpf.Program{d.programs.byName, d.programs.host} {
		for name, program := range programs {
			costs[name] = verified(t, d, name, program)
			t.Logf("Linux %s, %s: %d instructions", kernel, name, costs[name])
		}
	}
	golden := readGolden(t)
	if *update {
		golden[kernel] = costs
		writeGolden(t, golden)
		return
	}
	recorded, ok := golden[kernel]
	if !ok {
		t.Skipf("%s has no numbers for Linux %s; -update adds them", goldenFile, kernel)
	}
	for name, cost := range costs {
		if limit := recorded[name] + recorded[name]*headRoomPercent/100; cost > limit {
			t.Errorf("program %s: the verifier processed %d instructions, %d are recorded and %d allowed", name, cost, recorded[name], limit)
		}
	}
	if diff := len(recorded) - len(costs); diff != 0 {
		t.Errorf("%s has %d programs, there are %d", goldenFile, len(recorded), len(costs))
	}
}

// verified asks how many instructions the verifier processed. Kernels before 5.16
// tell it only in the log, for which the program is loaded again.
func verified(t *testing.T, d *Datapath, name string, program *ebpf.Program) int {
	t.Helper()
	info, err := program.Info()
	must(t, err)
	if count, ok := info.VerifiedInstructions(); ok {
		return int(count)
	}
	load := objects[name]
	if load == nil {
		load = loadFromHost
	}
	spec, err := load()
	must(t, err)
	replacements := make(map[string]*ebpf.Map)
	for mapName, m := range d.maps.All() {
		if own := spec.Maps[mapName]; own != nil {
			own.MaxEntries = m.MaxEntries()
			replacements[mapName] = m
		}
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: replacements,
		Programs:        ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
	})
	must(t, err)
	defer collection.Close()
	log := collection.Programs[name].VerifierLog
	_, after, _ := strings.Cut(log, "processed ")
	var count int
	if _, err := fmt.Sscan(after, &count); err != nil {
		t.Fatalf("verifier log of %s has no count: %v\n%s", name, err, log)
	}
	return count
}

// readGolden returns counts by kernel and program.
func readGolden(t *testing.T) map[string]map[string]int {
	t.Helper()
	golden := make(map[string]map[string]int)
	file, err := os.Open(goldenFile)
	if os.IsNotExist(err) && *update {
		return golden
	}
	must(t, err)
	defer func() { _ = file.Close() }()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		var kernel, program string
		var count int
		if _, err := fmt.Sscan(lines.Text(), &kernel, &program, &count); err != nil {
			t.Fatalf("%s: %q: %v", goldenFile, lines.Text(), err)
		}
		if golden[kernel] == nil {
			golden[kernel] = make(map[string]int)
		}
		golden[kernel][program] = count
	}
	must(t, lines.Err())
	return golden
}

func writeGolden(t *testing.T, golden map[string]map[string]int) {
	t.Helper()
	var out strings.Builder
	out.WriteString(goldenHead)
	for _, kernel := range slices.Sorted(maps.Keys(golden)) {
		for _, program := range slices.Sorted(maps.Keys(golden[kernel])) {
			fmt.Fprintln(&out, kernel, program, golden[kernel][program])
		}
	}
	must(t, os.MkdirAll(filepath.Dir(goldenFile), 0o755))
	must(t, os.WriteFile(goldenFile, []byte(out.String()), 0o644))
}
