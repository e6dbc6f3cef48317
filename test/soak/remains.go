// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nodetest"
	datapath "github.com/tendril-net/tendril/pkg/maps"
)

// remains are all that could be left of what came and went.
type remains struct {
	// bare is the node before its first agent, and after cleanup.
	bare bare
	// state is the node with an agent and without containers.
	state nodetest.State
	// allocations are the slots that are taken.
	allocations int
	// files are what the agent has open, by kind.
	files      map[string]int
	goroutines float64
	// memory of the agent in KiB.
	memory int
	// kernelLog is how far the kernel's log had come.
	kernelLog int
}

func (r *remains) look(tb testing.TB, s *soak) {
	r.state = s.node.State(tb)
	delete(r.state.Entries, "fragments")
	r.allocations = s.allocations(tb)
	r.files = s.files(tb)
	r.goroutines = s.node.Metrics(tb)["go_goroutines"]
	r.memory = s.agent.memory()
	r.kernelLog = len(kernelLog())
}

// files counts what the agent has open, by kind. The kernel names a link that was
// made, bpf_link, otherwise than one that was opened, bpf-link.
func (s *soak) files(tb testing.TB) map[string]int {
	files := make(map[string]int)
	for _, name := range s.node.Agent().Files(tb) {
		files[strings.ReplaceAll(name, "_", "-")]++
	}
	return files
}

// allocations counts slots of translations that are taken.
func (s *soak) allocations(tb testing.TB) int {
	m := s.node.Map(tb, "allocations")
	defer func() { _ = m.Close() }()
	var slot uint32
	var value datapath.Allocation
	taken := 0
	for walk := m.Iterate(); walk.Next(&slot, &value); {
		if value.Reply.Protocol != 0 {
			taken++
		}
	}
	return taken
}

// bare is what there is without an agent.
type bare struct {
	Links, Addresses, Routes, Neighbours, Rules, Queues []string
	// Pins below bpf-root, Mounts and network Namespaces that were made here, and
	// Settings below /proc/sys/net of the node.
	Pins, Mounts, Namespaces []string
	Settings                 map[string]string
}

func (s *soak) bare(tb testing.TB) bare {
	b := bare{Settings: make(map[string]string)}
	queues := [][]string{{"tc", "qdisc", "show"}}
	for _, hook := range []string{"up0 ingress", "up1 ingress", streetName + " ingress", streetName + " egress"} {
		queues = append(queues, append([]string{"tc", "filter", "show", "dev"}, strings.Fields(hook)...))
	}
	for _, one := range []struct {
		field *[]string
		args  [][]string
	}{
		{&b.Links, [][]string{{"ip", "-o", "link", "show"}}},
		{&b.Addresses, [][]string{{"ip", "-o", "address", "show"}}},
		{&b.Routes, [][]string{{"ip", "-4", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"}}},
		{&b.Neighbours, [][]string{{"ip", "neigh", "show", "nud", "permanent"}}},
		{&b.Rules, [][]string{{"ip", "-4", "rule", "show"}, {"ip", "-6", "rule", "show"}}},
		{&b.Queues, queues},
	} {
		for _, args := range one.args {
			*one.field = append(*one.field, nodetest.Lines(tb, s.node.NS, args[0], args[1:]...)...)
		}
	}
	_ = filepath.WalkDir(s.node.BPFRoot, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != s.node.BPFRoot {
			b.Pins = append(b.Pins, path)
		}
		return nil // before the first agent there is none
	})
	list, err := mounts()
	if err != nil {
		tb.Fatal(err)
	}
	for id, path := range list {
		if !s.inherited[id] {
			b.Mounts = append(b.Mounts, path)
		}
	}
	slices.Sort(b.Mounts)
	names, err := filepath.Glob("/run/netns/*")
	if err != nil {
		tb.Fatal(err)
	}
	b.Namespaces = names
	s.node.Do(tb, func() {
		_ = filepath.WalkDir("/proc/sys/net", func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return nil
			}
			if text, err := os.ReadFile(path); err == nil {
				b.Settings[path] = string(text)
			}
			return nil
		})
	})
	return b
}

// judge deletes everything and looks at what is left.
func (s *soak) judge(tb testing.TB) {
	fmt.Fprintln(s.out, s.line())
	status := s.node.Status(tb)
	for _, c := range status.Counters {
		if c.Dropped && c.Packets > 0 {
			name := c.Journey + " " + c.Reason
			s.ledger.add("dropped: "+name, int(c.Packets))
			if !slices.Contains(permittedDrops(), name) {
				s.ledger.wrong("drops", "%d packets under %s", c.Packets, name)
			}
		}
	}
	if !status.OK {
		s.ledger.wrong("health", "%v", status.Reasons)
	}
	s.remove(s.guarded, false, false)
	for _, p := range s.parties.list(func(p *party) bool { return p.container != nil }) {
		s.remove(p, false, false)
	}
	for _, name := range []string{"guard", "open"} {
		if err := s.drop(name); err != nil {
			s.ledger.wrong("the end", "delete policy %s: %v", name, err)
		}
	}
	for _, p := range s.parties.list(func(*party) bool { return true }) {
		s.parties.part(p)
		if err := p.close(); err != nil {
			s.ledger.wrong("the end", "close %s: %v", p.name, err)
		}
	}
	s.judgeLosses()
	s.judgeState(tb)
	s.judgeAgent(tb)
	s.judgeCleanup(tb)
	if log := kernelLog(); len(log) > s.before.kernelLog {
		s.ledger.wrong("kernel log", "%s", strings.Join(log[s.before.kernelLog:], "\n"))
	}
}

// permittedDrops are those that what is done here brings about.
func permittedDrops() []string {
	return []string{
		// The flood.
		"from_container ports_exhausted", "from_container endpoint_limit", "from_container translations_full",
		"from_uplink translations_full",
		// What containers send while they are deleted.
		"from_container unknown_sender",
		// The stranger who knocks.
		"from_container policy_ingress",
		// Connections whose way is another for a while, or whose end was forgotten.
		"to_uplink no_translation", "from_container no_translation",
	}
}

// judgeState waits until the maps hold nothing of containers, as the agent
// purges and sweeps in the background, and compares.
func (s *soak) judgeState(tb testing.TB) {
	const sweeps = 150 * time.Second // two, and what they take
	var diff string
	for until := time.Now().Add(sweeps); time.Now().Before(until); {
		taken := s.allocations(tb)
		state := s.node.State(tb)
		delete(state.Entries, "fragments") // a cache, whose entries stay until others come
		diff = cmp.Diff(s.before.state, state) + cmp.Diff(s.before.allocations, taken)
		if diff == "" {
			return
		}
		rest(context.Background(), time.Second)
	}
	s.ledger.wrong("left on the node", "(-start +end)\n%s", diff)
}

// judgeAgent looks at what the last agent has come to hold.
func (s *soak) judgeAgent(tb testing.TB) {
	var files []string
	var goroutines float64
	err := nodetest.Poll(func() error { // connections that are idle are closed after a while
		files = nil
		for kind, n := range s.files(tb) {
			if before := s.before.files[kind]; n > before {
				files = append(files, fmt.Sprintf("%s: %d, at the start %d", kind, n, before))
			}
		}
		goroutines = s.node.Metrics(tb)["go_goroutines"]
		if files != nil || goroutines > s.before.goroutines+5 {
			return errors.New("more than at the start")
		}
		return nil
	})
	if err != nil {
		s.ledger.wrong("left in the agent", "goroutines %v, at the start %v; open files %v", goroutines, s.before.goroutines, files)
	}
	memory := s.agent.memory()
	fmt.Fprintf(s.out, "soak: the agent had %.1f MiB at the start and has %.1f at the end; goroutines %v and %v; open files %v and %v\n",
		float64(s.before.memory)/1024, float64(memory)/1024, s.before.goroutines, goroutines, s.before.files, s.files(tb))
	if memory > 2*s.before.memory+8<<10 {
		s.ledger.wrong("left in the agent", "%d KiB of memory, at the start %d", memory, s.before.memory)
	}
}

// judgeCleanup ends the agent, cleans up, and compares with the time before it.
func (s *soak) judgeCleanup(tb testing.TB) {
	s.node.Stop(tb)
	text := new(bytes.Buffer)
	command := exec.Command(s.node.Programs.Agent, append([]string{
		"cleanup", "--socket", s.node.Socket, "--state-dir", s.node.StateDir, "--bpf-root", s.node.BPFRoot,
	}, s.node.Flags...)...)
	command.Stdout, command.Stderr = text, text
	if err := errors.Join(s.node.Exec(tb, command), command.Wait()); err != nil {
		s.ledger.wrong("cleanup", "%v: %s", err, text)
	}
	if out, err := s.node.Command("ip", "link", "del", lanName).CombinedOutput(); err != nil { // which stays, as other plugins' do
		s.ledger.wrong("cleanup", "remove the bridge: %v: %s", err, out)
	}
	var diff string
	_ = nodetest.Poll(func() error { // namespaces end in the background
		diff = cmp.Diff(s.before.bare, s.bare(tb), cmpopts.EquateEmpty(), cmpopts.IgnoreMapEntries(func(name, _ string) bool {
			return slices.Contains(moving(), name)
		}))
		if diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	if diff != "" {
		s.ledger.wrong("left after cleanup", "(-start +end)\n%s", diff)
	}
}

// moving are the files of /proc/sys/net that are no settings, and count.
func moving() []string {
	return []string{"/proc/sys/net/netfilter/nf_conntrack_count"}
}

// kernelLog are the lines of the kernel's log that tell of a fault in it, none where it
// cannot be read.
func kernelLog() []string {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer func() { _ = unix.Close(fd) }()
	var faults []string
	buffer := make([]byte, 1<<13)
	for {
		n, err := unix.Read(fd, buffer)
		if errors.Is(err, unix.EPIPE) { // lines were overwritten meanwhile
			continue
		}
		if err != nil || n <= 0 {
			return faults
		}
		for _, sign := range []string{"WARNING: ", "BUG: ", "Oops", "INFO: task ", "rcu: INFO", "unregister_netdevice: waiting"} {
			if bytes.Contains(buffer[:n], []byte(sign)) {
				faults = append(faults, strings.TrimSpace(string(buffer[:n])))
				break
			}
		}
	}
}

// report prints what happened; the error says that something was wrong.
func (s *soak) report() error {
	fmt.Fprint(s.out, s.ledger.summary())
	if all, mistranslated := s.ledger.wrongCount(); all > 0 {
		return fmt.Errorf("%d things were wrong, %d of them mistranslations; seed %d", all, mistranslated, s.seed)
	}
	fmt.Fprintf(s.out, "soak: nothing leaked, nothing was mistranslated; seed %d\n", s.seed)
	return nil
}
