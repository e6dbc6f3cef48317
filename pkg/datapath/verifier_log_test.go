// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nstest"
)

// startOfLog is how many bytes the verifier gets for its log at first: else it verifies again for each doubling.
const startOfLog = 64 << 20

// keepVerifierLog has the verifier tell all of a program that it takes, and keeps that beyond the end of the test. It
// says where it is, and which lines of the source the verifier went through most often.
func keepVerifierLog(t *testing.T, d *Datapath, name string) {
	t.Helper()
	log := verifierLogOf(t, d, name)
	t.Logf("program %s: where the verifier was most often:\n%s", name, strings.Join(busiest(log, 20), "\n"))
	if nstest.Emulated() { // what is said here stays in bin/kernels, and no file does
		t.Logf("program %s: the verifier's log, for `base64 -di | gunzip`:\n%s", name, packed(t, log))
		return
	}
	dir, err := os.MkdirTemp("", "tendril-verifier-") //nolint:usetesting // what is kept outlives the test
	must(t, err)
	file := filepath.Join(dir, name+".log")
	must(t, os.WriteFile(file, []byte(log), 0o644))
	t.Logf("program %s: the verifier's log is in %s", name, file)
}

// verifierLogOf loads a program once more, and returns all that the verifier says of it.
func verifierLogOf(t *testing.T, d *Datapath, name string) string {
	t.Helper()
	telling := &programs{settings: d.programs.settings, verifierLog: ebpf.ProgramOptions{
		LogLevel:     ebpf.LogLevelInstruction | ebpf.LogLevelStats, // of what passes, level 1 tells nothing
		LogSizeStart: startOfLog,
	}}
	object, load := name, objects[name]
	if load == nil {
		object, load = "from_host", hostObject
	}
	collection, err := telling.loadObject(object, load, d.maps)
	must(t, err)
	defer collection.Close()
	return collection.Programs[name].VerifierLog
}

// packed is a text in lines of base64, of what gzip makes of it: a tenth of a log, which a machine's serial line
// carries in seconds.
func packed(t *testing.T, text string) string {
	t.Helper()
	var file, lines strings.Builder
	compressed := gzip.NewWriter(&file)
	_, err := compressed.Write([]byte(text))
	must(t, errors.Join(err, compressed.Close()))
	const size = 57 // of 76 characters
	for line := range slices.Chunk([]byte(file.String()), size) {
		fmt.Fprintln(&lines, base64.StdEncoding.EncodeToString(line))
	}
	return lines.String()
}

// Lines of a verifier's log: visit for an instruction that it went through, pruned for one from which on it knew all.
var (
	visit  = regexp.MustCompile(`^[0-9]+: \([0-9a-f]{2}\) `)
	pruned = regexp.MustCompile(`^(from [0-9]+ to )?[0-9]+: safe$`)
)

// busiest are the lines of the source whose instructions a verifier's log has most often, and how often. A line that
// begins with a semicolon is of the source, and tells of the instructions behind it.
func busiest(log string, most int) []string {
	visits := make(map[string]int)
	source := ""
	for line := range strings.Lines(log) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, ";"):
			source = line
		case visit.MatchString(line):
			visits[source]++
		}
	}
	var lines []string
	for line := range visits {
		lines = append(lines, line)
	}
	slices.SortFunc(lines, func(a, b string) int {
		return cmp.Or(cmp.Compare(visits[b], visits[a]), cmp.Compare(a, b))
	})
	lines = lines[:min(len(lines), most)]
	for i, line := range lines {
		lines[i] = fmt.Sprintf("%7d %s", visits[line], line)
	}
	return lines
}

// The whole log tells of each instruction that the numbers are of. Newer kernels name instructions of
// some functions once more, before they walk them (seen on 7.2).
func TestVerifierLog(t *testing.T) {
	nstest.Halve(t, 1)
	nstest.Root(t)
	cfg := Config{
		Root: filepath.Join(nstest.BPFFS(t), "tendril"), FlowsMax: 256, TranslationsMax: 256,
		verifierLog: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
	}
	d, err := Open(cfg)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	for name, program := range map[string]*ebpf.Program{reclaim: d.programs.byName[reclaim], "host_peername4": d.programs.host["host_peername4"]} {
		if program == nil {
			t.Errorf("there is no program %s: %s", name, d.SocketFlaw())
			continue
		}
		log := verifierLogOf(t, d, name)
		want, visits := verified(t, name, program.VerifierLog), 0
		for line := range strings.Lines(log) {
			if visit.MatchString(line) || pruned.MatchString(strings.TrimSpace(line)) {
				visits++
			}
		}
		if got := verified(t, name, log); got != want || visits < want.instructions {
			t.Errorf("program %s: the log tells of %d instructions and sums up %s; the numbers are %s", name, visits, got, want)
		}
	}
}

func TestBusiest(t *testing.T) {
	log := `func#0 @0
0: R1=ctx() R10=fp0
; if (!s) @ reclaim.c:20
0: (15) if r0 == 0x0 goto pc+1        ; R0_w=map_value(off=0)
1: (b7) r1 = 0
from 0 to 2: R0=0
; return 0; @ reclaim.c:21
2: (b7) r0 = 0
; if (!s) @ reclaim.c:20
0: (15) if r0 == 0x0 goto pc+1
; a++;
3: (07) r1 += 1
processed 5 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
`
	want := []string{"      3 ; if (!s) @ reclaim.c:20", "      1 ; a++;"}
	if diff := gocmp.Diff(want, busiest(log, 2)); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestPacked(t *testing.T) {
	var text strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&text, "%d: (b7) r1 = %d\n", i, i*i)
	}
	lines := strings.Join(strings.Fields(packed(t, text.String())), "")
	compressed, err := gzip.NewReader(base64.NewDecoder(base64.StdEncoding, strings.NewReader(lines)))
	must(t, err)
	got, err := io.ReadAll(compressed)
	must(t, err)
	if diff := gocmp.Diff(text.String(), string(got)); diff != "" {
		t.Errorf("unpacked (-want +got):\n%s", diff)
	}
}
