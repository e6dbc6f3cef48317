// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/agent"
)

func TestSecondAgent(t *testing.T) {
	m := newMachine(t)
	first := m.start(t, nil)
	other := newMachine(t)
	other.ns = m.ns
	other.metrics = ""
	for name, test := range map[string]struct {
		share func(*machine)
		want  string
	}{
		"socket":    {func(o *machine) { o.socket = m.socket }, "socket " + m.socket},
		"state-dir": {func(o *machine) { o.state = m.state }, "state-dir " + m.state},
		"bpf-root":  {func(o *machine) { o.root = m.root }, "bpf-root " + m.root},
	} {
		t.Run(name, func(t *testing.T) {
			second := *other
			test.share(&second)
			before := m.traces(t)
			got := second.fails(t, second.args()...)
			want := fmt.Sprintf("%s is in use by the agent with pid %d", test.want, first.cmd.Process.Pid)
			if !strings.Contains(got, want) {
				t.Errorf("got %q, want it to contain %q", got, want)
			}
			if d := cmp.Diff(before, m.traces(t)); d != "" {
				t.Errorf("changed (-before +after):\n%s", d)
			}
		})
	}
	t.Run("metrics-address", func(t *testing.T) {
		second := *other
		second.metrics = m.metrics
		if got := second.fails(t, second.args()...); !strings.Contains(got, "serve metrics at metrics-address: listen tcp 127.0.0.1:9470: bind: address already in use") {
			t.Errorf("got %q", got)
		}
	})
	health, err := newClient(t, m).Health(t.Context())
	if err != nil || !health.OK {
		t.Errorf("the first agent: %+v, %v", health, err)
	}
}

func TestStartRefuses(t *testing.T) {
	tests := map[string]struct {
		prepare func(*testing.T, *machine)
		args    []string
		want    string
	}{
		"something else at the socket": {
			func(t *testing.T, m *machine) {
				must(t, os.MkdirAll(filepath.Dir(m.socket), 0o700))
				must(t, os.WriteFile(m.socket, nil, 0o600))
			}, nil, "there is something else at this path",
		},
		"damaged state file": {
			func(t *testing.T, m *machine) {
				must(t, os.MkdirAll(m.state, 0o700))
				must(t, os.WriteFile(statePath(m.state), make([]byte, 5000), 0o600))
			}, nil, "tendril-agent cleanup --force",
		},
		"socket that answers": {
			func(t *testing.T, m *machine) {
				must(t, os.MkdirAll(filepath.Dir(m.socket), 0o700))
				listener, err := net.Listen("unix", m.socket)
				must(t, err)
				t.Cleanup(func() { _ = listener.Close() })
			}, nil, "is in use by another process",
		},
		"setting": {func(*testing.T, *machine) {}, []string{"--flows-max=1"}, "is not a number"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			test.prepare(t, m)
			before := m.traces(t)
			if got := m.fails(t, m.args(test.args...)...); !strings.Contains(got, test.want) {
				t.Errorf("got %q, want it to contain %q", got, test.want)
			}
			if d := cmp.Diff(before, m.traces(t)); d != "" {
				t.Errorf("changed (-before +after):\n%s", d)
			}
		})
	}
}

// everything lists what is below a directory, those of file systems mounted there
// included, and what is mounted.
func everything(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		found = append(found, path)
		return err
	}))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], dir) {
			found = append(found, "mount "+fields[4])
		}
	}
	return found
}

// TestRefusalLeavesNothing starts agents that are refused because of another, with
// directories that do not exist yet.
func TestRefusalLeavesNothing(t *testing.T) {
	m := newMachine(t)
	first := m.start(t, nil)
	elsewhere := newMachine(t)
	elsewhere.start(t, nil)
	for name, test := range map[string]struct {
		change func(t *testing.T, second *machine, dir string)
		want   string
	}{
		"network namespace": {
			func(_ *testing.T, second *machine, dir string) { second.root = filepath.Join(dir, "bpf", "tendril") },
			"another agent serves this network namespace",
		},
		"network namespace, directories there": {
			func(t *testing.T, second *machine, dir string) {
				second.root = filepath.Join(dir, "bpf", "tendril")
				for _, path := range []string{second.root, second.state, filepath.Dir(second.socket)} {
					must(t, os.MkdirAll(path, 0o700))
				}
			},
			"another agent serves this network namespace",
		},
		"bpf-root": {
			func(_ *testing.T, second *machine, _ string) { second.root = m.root },
			fmt.Sprintf("bpf-root %s is in use by the agent with pid %d", m.root, first.cmd.Process.Pid),
		},
		"bpf-root of another network namespace": {
			func(_ *testing.T, second *machine, _ string) { second.root = elsewhere.root },
			fmt.Sprintf("bpf-root %s is in use by the agent", elsewhere.root),
		},
		"metrics-address": {
			func(t *testing.T, second *machine, dir string) {
				second.ns, second.root, second.metrics = nstest.New(t, "third"), filepath.Join(dir, "bpf"), "192.0.2.99:1"
			},
			"serve metrics at metrics-address",
		},
		"layout of another version": {
			func(t *testing.T, second *machine, _ string) {
				second.ns, second.root = nstest.New(t, "third"), filepath.Join(nstest.BPFFS(t), "tendril")
				must(t, os.MkdirAll(filepath.Join(second.root, "maps", "layout-0123456789abcdef"), 0o700))
			},
			"was pinned by an incompatible version",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			second := *m
			second.metrics = ""
			second.socket, second.state = filepath.Join(dir, "run", "a", "agent.sock"), filepath.Join(dir, "run", "state")
			test.change(t, &second, dir)
			before := append(everything(t, dir), everything(t, filepath.Dir(second.root))...)
			if got := second.fails(t, second.args()...); !strings.Contains(got, test.want) {
				t.Errorf("got %q, want it to contain %q", got, test.want)
			}
			if d := cmp.Diff(before, append(everything(t, dir), everything(t, filepath.Dir(second.root))...)); d != "" {
				t.Errorf("changed (-before +after):\n%s", d)
			}
		})
	}
}

// TestRefusalAfterTheMount closes a start that came as far as its mount.
func TestRefusalAfterTheMount(t *testing.T) {
	nstest.Root(t)
	for name, old := range map[string]bool{"new state file": false, "old state file": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			state := filepath.Join(dir, "state")
			if old {
				must(t, os.Mkdir(state, 0o700))
				db, err := agent.OpenState(statePath(state))
				must(t, err)
				must(t, db.Close())
			}
			before := everything(t, dir)
			n := &node{
				cfg:    config{Socket: filepath.Join(dir, "run", "agent.sock"), StateDir: state, BPFRoot: filepath.Join(dir, "bpf", "tendril")},
				log:    slog.New(slog.DiscardHandler),
				traces: &traces{},
			}
			must(t, n.open(environment{getenv: os.Getenv}))
			n.traces.directory(n.cfg.BPFRoot)
			t.Cleanup(func() { _ = unix.Unmount(n.cfg.BPFRoot, unix.MNT_DETACH) })
			must(t, n.ensureRoot())
			if got := everything(t, dir); !slices.Contains(got, "mount "+n.cfg.BPFRoot) {
				t.Errorf("not mounted: %q", got)
			}
			must(t, n.close())
			if d := cmp.Diff(before, everything(t, dir)); d != "" {
				t.Errorf("changed (-before +after):\n%s", d)
			}
			if !old {
				return
			}
			db, err := agent.OpenState(statePath(state))
			must(t, err)
			mounts, err := agent.Mounts(db)
			must(t, errors.Join(err, db.Close()))
			if mounts != nil {
				t.Errorf("mounts in the state file: %q", mounts)
			}
		})
	}
}
