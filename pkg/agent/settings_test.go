// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nstest"
)

// node is what of /proc/sys the settings work on.
type node map[string]string

func readNode(t *testing.T, root string, paths ...string) node {
	t.Helper()
	n := node{}
	for _, path := range paths {
		text, err := os.ReadFile(filepath.Join(root, path))
		must(t, err)
		n[path] = strings.TrimSpace(string(text))
	}
	return n
}

// newSettings makes a node out of files, with the given settings.
func newSettings(t *testing.T, n node) *Settings {
	t.Helper()
	s := &Settings{Root: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}
	for path, value := range n {
		file := filepath.Join(s.Root, path)
		must(t, os.MkdirAll(filepath.Dir(file), 0o700))
		must(t, os.WriteFile(file, []byte(value+"\n"), 0o600))
	}
	var err error
	s.DB, err = OpenState(filepath.Join(t.TempDir(), "state.db"))
	must(t, err)
	t.Cleanup(func() { must(t, s.DB.Close()) })
	return s
}

func (n node) keys() []string {
	var keys []string
	for key := range n {
		keys = append(keys, key)
	}
	return keys
}

func TestSettings(t *testing.T) {
	eth0, eth1 := pathAcceptRA("eth0"), pathAcceptRA("eth1")
	tests := map[string]struct {
		before, applied node
		meanwhile       node // what somebody else writes before Undo
		undone          node
	}{
		"fresh node": {
			before:  node{pathForward4: "0", pathForward6: "0", pathReservedPorts: "", eth0: "1", eth1: "0"},
			applied: node{pathForward4: "1", pathForward6: "1", pathReservedPorts: "40960-65535", eth0: "2", eth1: "0"},
			undone:  node{pathForward4: "0", pathForward6: "0", pathReservedPorts: "", eth0: "1", eth1: "0"},
		},
		"a router already": {
			before:  node{pathForward4: "1", pathForward6: "1", pathReservedPorts: "40960-65535", eth0: "2", eth1: "2"},
			applied: node{pathForward4: "1", pathForward6: "1", pathReservedPorts: "40960-65535", eth0: "2", eth1: "2"},
			undone:  node{pathForward4: "1", pathForward6: "1", pathReservedPorts: "40960-65535", eth0: "2", eth1: "2"},
		},
		"ports reserved by others": {
			before:    node{pathForward4: "0", pathForward6: "0", pathReservedPorts: "80,50000-50010"},
			applied:   node{pathForward4: "1", pathForward6: "1", pathReservedPorts: "80,40960-65535"},
			meanwhile: node{pathReservedPorts: "80,90,40960-65535"},
			undone:    node{pathForward4: "0", pathForward6: "0", pathReservedPorts: "80,90,50000-50010"},
		},
		"changed by others since": {
			before:    node{pathForward4: "0", pathForward6: "0", pathReservedPorts: "", eth0: "1"},
			applied:   node{pathForward4: "1", pathForward6: "1", pathReservedPorts: "40960-65535", eth0: "2"},
			meanwhile: node{pathForward6: "2", eth0: "0"},
			undone:    node{pathForward4: "0", pathForward6: "2", pathReservedPorts: "", eth0: "0"},
		},
		"no IPv6": {
			before:  node{pathForward4: "0", pathReservedPorts: ""},
			applied: node{pathForward4: "1", pathReservedPorts: "40960-65535"},
			undone:  node{pathForward4: "0", pathReservedPorts: ""},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newSettings(t, test.before)
			for range 2 { // the second agent finds what the first has done
				must(t, s.Apply([]string{"eth0", "eth1", "gone0"}, 40960, 65535))
				if d := cmp.Diff(test.applied, readNode(t, s.Root, test.before.keys()...)); d != "" {
					t.Errorf("applied (-want +got):\n%s", d)
				}
			}
			for path, value := range test.meanwhile {
				must(t, s.write(path, value))
			}
			for range 2 {
				must(t, s.Undo())
				if d := cmp.Diff(test.undone, readNode(t, s.Root, test.before.keys()...)); d != "" {
					t.Errorf("undone (-want +got):\n%s", d)
				}
			}
		})
	}
}

func TestSettingsOtherPortsAtTheNextStart(t *testing.T) {
	before := node{pathForward4: "1", pathReservedPorts: "80,50000"}
	s := newSettings(t, before)
	must(t, s.Apply(nil, 40960, 65535))
	must(t, s.Apply(nil, 20000, 20010))
	if d := cmp.Diff(node{pathReservedPorts: "80,20000-20010,50000"}, readNode(t, s.Root, pathReservedPorts)); d != "" {
		t.Errorf("applied (-want +got):\n%s", d)
	}
	must(t, s.Undo())
	if d := cmp.Diff(node{pathReservedPorts: "80,50000"}, readNode(t, s.Root, pathReservedPorts)); d != "" {
		t.Errorf("undone (-want +got):\n%s", d)
	}
}

// TestSettingsOfANamespace writes to the kernel: a default route that came by
// router advertisement is why accept_ra goes first.
func TestSettingsOfANamespace(t *testing.T) {
	ns := nstest.New(t, "settings")
	ns.Run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0p")
	ns.Run(t, "ip", "link", "set", "eth0", "up")
	ns.Run(t, "ip", "link", "set", "eth0p", "up")
	ns.Run(t, "ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0", "proto", "ra")
	paths := []string{pathForward4, pathForward6, pathReservedPorts, pathAcceptRA("eth0")}
	s := newSettings(t, nil)
	s.Root = ProcSys
	var before, applied, undone node
	ns.Do(t, func() {
		before = readNode(t, ProcSys, paths...)
		must(t, s.Apply([]string{"eth0"}, 40960, 65535))
		applied = readNode(t, ProcSys, paths...)
		must(t, s.Undo())
		undone = readNode(t, ProcSys, paths...)
	})
	want := node{pathForward4: "1", pathForward6: "1", pathReservedPorts: "40960-65535", pathAcceptRA("eth0"): "2"}
	if d := cmp.Diff(want, applied); d != "" {
		t.Errorf("applied (-want +got):\n%s", d)
	}
	if d := cmp.Diff(before, undone); d != "" {
		t.Errorf("undone (-before +after):\n%s", d)
	}
	if got := ns.Run(t, "ip", "-6", "route", "show", "default"); !strings.Contains(got, "fe80::1") {
		t.Errorf("the default route is gone: %q", got)
	}
}

func TestPorts(t *testing.T) {
	tests := map[string]struct{ text, want string }{
		"none":     {"", ""},
		"kernel's": {"80,443,1000-1010\n", "80,443,1000-1010"},
		"joined":   {"5,1-3,4", "1-5"},
		"ends":     {"0,65535", "0,65535"},
		"all":      {"0-65535", "0-65535"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			set, err := parsePorts(test.text)
			must(t, err)
			if got := set.String(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	for _, bad := range []string{"x", "1-", "-1", "65536", "3-1", "1--2", "1 2"} {
		if _, err := parsePorts(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func FuzzPorts(f *testing.F) {
	f.Add("80,1000-2000", "1500-3000")
	f.Add("", "0-65535")
	f.Fuzz(func(t *testing.T, a, b string) {
		one, err := parsePorts(a)
		if err != nil {
			return
		}
		again, err := parsePorts(one.String())
		if err != nil || *again != *one {
			t.Fatalf("%q: written %q, read back: %v", a, one, err)
		}
		other, err := parsePorts(b)
		if err != nil {
			return
		}
		if got := one.union(other).minus(other); *got != *one.minus(other) {
			t.Errorf("%q and %q without the latter: %q", a, b, got)
		}
	})
}
