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
	goldenHead = "# What the verifier went through, per kernel and program, without head-room: instructions, and the\n" +
		"# states that it kept to compare with.\n" +
		"# go test ./pkg/datapath -run TestVerifier -update writes those of the running kernel.\n"
	// headRoomPercent is how much more than recorded a program may cost.
	headRoomPercent = 25
)

// cost is what a program takes the verifier.
type cost struct{ instructions, states int }

func (c cost) String() string {
	return fmt.Sprintf("%d instructions, %d states", c.instructions, c.states)
}

// TestVerifier holds what the verifier must go through for each program to what
// is recorded, so that a change that multiplies it shows long before the limit of
// a million instructions is met on somebody's kernel. Of one that goes beyond, the verifier's
// whole log is kept.
func TestVerifier(t *testing.T) {
	nstest.Root(t)
	version := nstest.KernelVersion(t)
	kernel := fmt.Sprintf("%d.%d", version[0], version[1])
	cfg := Config{
		Root: filepath.Join(nstest.BPFFS(t), "tendril"), Masquerade: true, FlowsMax: 256, TranslationsMax: 256,
		verifierLog: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
	}
	d, err := Open(cfg)
	if err != nil { // with numbers for a log: the whole one comes without asking
		cfg.verifierLog = ebpf.ProgramOptions{}
		_, refusal := Open(cfg)
		must(t, refusal)
	}
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	for name := range objects {
		must(t, d.load(name))
	}
	costs := make(map[string]cost)
	for _, programs := range []map[string]*ebpf.Program{d.programs.byName, d.programs.host} {
		for name, program := range programs {
			costs[name] = verified(t, name, program.VerifierLog)
			t.Logf("Linux %s, %s: %s", kernel, name, costs[name])
		}
	}
	golden := readGolden(t)
	if *update {
		golden[kernel] = costs
		writeGolden(t, golden)
		return
	}
	recorded, ok := golden[kernel]
	if !ok && nstest.Emulated() { // sid has gone on: what the last one took must do
		last := slices.MaxFunc(slices.Collect(maps.Keys(golden)), byVersion)
		t.Logf("%s has no numbers for Linux %s: those of %s are taken", goldenFile, kernel, last)
		recorded, ok = golden[last], true
	}
	if !ok {
		t.Skipf("%s has no numbers for Linux %s; -update adds them", goldenFile, kernel)
	}
	for name, got := range costs {
		was := recorded[name]
		allowed := cost{withHeadRoom(was.instructions), withHeadRoom(was.states)}
		if got.instructions > allowed.instructions || got.states > allowed.states {
			t.Errorf("program %s took the verifier %s; %s are recorded and %s allowed", name, got, was, allowed)
			keepVerifierLog(t, d, name)
		}
	}
	if diff := len(recorded) - len(costs); diff != 0 {
		t.Errorf("%s has %d programs, there are %d", goldenFile, len(recorded), len(costs))
	}
}

// byVersion orders kernels.
func byVersion(a, b string) int {
	number := func(kernel string) (n [2]int) {
		_, _ = fmt.Sscanf(kernel, "%d.%d", &n[0], &n[1])
		return n
	}
	x, y := number(a), number(b)
	return slices.Compare(x[:], y[:])
}

func withHeadRoom(n int) int { return n + n*headRoomPercent/100 }

// verified reads what the verifier went through from its log, whose last line tells it
// ("processed 32514 insns (limit 1000000) max_states_per_insn 9 total_states 1712 peak_states 503 mark_read 71").
func verified(t *testing.T, name, log string) cost {
	t.Helper()
	_, after, _ := strings.Cut("\n"+log, "\nprocessed ")
	var c cost
	var limit string
	var perInstruction int
	if _, err := fmt.Sscanf(after, "%d insns (limit %s max_states_per_insn %d total_states %d", &c.instructions, &limit, &perInstruction, &c.states); err != nil {
		t.Fatalf("verifier log of %s has no counts: %v\n%s", name, err, log)
	}
	return c
}

// readGolden returns costs by kernel and program.
func readGolden(t *testing.T) map[string]map[string]cost {
	t.Helper()
	golden := make(map[string]map[string]cost)
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
		var c cost
		if _, err := fmt.Sscan(lines.Text(), &kernel, &program, &c.instructions, &c.states); err != nil {
			t.Fatalf("%s: %q: %v", goldenFile, lines.Text(), err)
		}
		if golden[kernel] == nil {
			golden[kernel] = make(map[string]cost)
		}
		golden[kernel][program] = c
	}
	must(t, lines.Err())
	return golden
}

func writeGolden(t *testing.T, golden map[string]map[string]cost) {
	t.Helper()
	var out strings.Builder
	out.WriteString(goldenHead)
	for _, kernel := range slices.Sorted(maps.Keys(golden)) {
		for _, program := range slices.Sorted(maps.Keys(golden[kernel])) {
			c := golden[kernel][program]
			fmt.Fprintln(&out, kernel, program, c.instructions, c.states)
		}
	}
	must(t, os.MkdirAll(filepath.Dir(goldenFile), 0o755))
	must(t, os.WriteFile(goldenFile, []byte(out.String()), 0o644))
}
