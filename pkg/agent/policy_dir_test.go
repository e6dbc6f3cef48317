// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func newPolicyDir(t *testing.T) (*policyDir, func(name, text string)) {
	t.Helper()
	d := &policyDir{path: filepath.Join(t.TempDir(), "policy.d")}
	must(t, os.Mkdir(d.path, 0o755))
	return d, func(name, text string) {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(d.path, name), []byte(text), 0o600))
	}
}

func names(t *testing.T, d *policyDir) []string {
	t.Helper()
	set, err := d.read()
	must(t, err)
	var names []string
	for i := range set.objects.Policies {
		p := &set.objects.Policies[i]
		names = append(names, p.Name()+" "+filepath.Base(p.Source))
	}
	return names
}

func TestPolicyFiles(t *testing.T) {
	d, write := newPolicyDir(t)
	write("b.yaml", isolate("b", "x"))
	write("a.yml", isolate("a", "x"))
	write("c.json", `{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "c"}, "spec": {"podSelector": {}}}`)
	write(".hidden.yaml", "nonsense")
	write("web.yaml~", "nonsense")
	write("README", "nonsense")
	must(t, os.Mkdir(filepath.Join(d.path, "folder.yaml"), 0o755))
	if d := cmp.Diff([]string{"default/a a.yml", "default/b b.yaml", "default/c c.json"}, names(t, d)); d != "" {
		t.Errorf("objects (-want +got):\n%s", d)
	}
	none := &policyDir{path: filepath.Join(d.path, "missing")}
	if got := names(t, none); len(got) != 0 {
		t.Errorf("a missing folder has %q", got)
	}
}

func TestPolicyFilesRefused(t *testing.T) {
	tests := map[string]struct {
		make func(t *testing.T, d *policyDir, path string)
		want string
	}{
		"empty":         {func(t *testing.T, _ *policyDir, path string) { must(t, os.WriteFile(path, nil, 0o600)) }, "web.yaml: it is empty: remove it"},
		"leads nowhere": {func(t *testing.T, _ *policyDir, path string) { must(t, os.Symlink("nowhere", path)) }, "no such file"},
		"device":        {func(t *testing.T, _ *policyDir, path string) { must(t, os.Symlink("/dev/zero", path)) }, "it is no regular file"},
		"writable": {func(t *testing.T, _ *policyDir, path string) {
			must(t, os.WriteFile(path, []byte("{}"), 0o600))
			must(t, os.Chmod(path, 0o620))
		}, "it has mode 0620: nobody but its owner"},
		"folder": {func(t *testing.T, d *policyDir, _ string) { must(t, os.Chmod(d.path, 0o777)) }, "policy.d: it has mode 0777"},
		"large": {func(t *testing.T, _ *policyDir, path string) {
			must(t, os.WriteFile(path, nil, 0o600))
			must(t, os.Truncate(path, maxPolicyBytes+1))
		}, "larger than 16777216 bytes"},
		"twice": {func(t *testing.T, _ *policyDir, path string) {
			must(t, os.WriteFile(path, []byte(isolate("a", "x")), 0o600))
		}, "a.yaml too"},
		"not a folder": {func(t *testing.T, d *policyDir, _ string) {
			must(t, os.RemoveAll(d.path))
			must(t, os.WriteFile(d.path, nil, 0o600))
		}, "not a directory"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d, write := newPolicyDir(t)
			write("a.yaml", isolate("a", "x"))
			test.make(t, d, filepath.Join(d.path, "web.yaml"))
			_, err := d.read()
			if fault := faultOf(t, err, "invalid"); !strings.Contains(fault.Message, test.want) {
				t.Errorf("%q lacks %q", fault.Message, test.want)
			}
		})
	}
}

// A file that somebody has open to write is not read.
func TestPolicyFileBusy(t *testing.T) {
	d, _ := newPolicyDir(t)
	path := filepath.Join(d.path, "a.yaml")
	file, err := os.Create(path)
	must(t, err)
	_, err = file.WriteString(isolate("a", "x"))
	must(t, err)
	if _, err := d.read(); !errors.Is(err, errBusy) {
		t.Errorf("while it is open: %v", err)
	}
	must(t, file.Close())
	must(t, os.Chmod(path, 0o600))
	if got := names(t, d); len(got) != 1 {
		t.Errorf("when it is closed: %q", got)
	}
}

// watched is a watcher whose looks are told.
type watched struct {
	t     *testing.T
	looks chan []string
}

func watchDir(t *testing.T, d *policyDir) *watched {
	t.Helper()
	w := &watched{t: t, looks: make(chan []string, 1000)}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- d.watch(ctx, func() bool {
			set, err := d.read()
			if err != nil {
				w.looks <- []string{"error"}
				return errors.Is(err, errBusy)
			}
			var names []string
			for i := range set.objects.Policies {
				names = append(names, set.objects.Policies[i].Name())
			}
			w.looks <- names
			return false
		})
	}()
	t.Cleanup(func() {
		stop()
		must(t, <-done)
	})
	w.await()
	return w
}

// await waits until the folder was seen with these policies.
func (w *watched) await(policies ...string) {
	w.t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case got := <-w.looks:
			if slices.Equal(got, policies) {
				return
			}
		case <-timeout:
			w.t.Fatalf("the folder was never seen with %q", policies)
		}
	}
}

func TestPolicyWatch(t *testing.T) {
	d := &policyDir{path: filepath.Join(t.TempDir(), "etc", "tendril", "policy.d")}
	w := watchDir(t, d) // nothing of it exists
	write := func(name, text string) { must(t, os.WriteFile(filepath.Join(d.path, name), []byte(text), 0o600)) }
	path := func(name string) string { return filepath.Join(d.path, name) }

	must(t, os.MkdirAll(d.path, 0o755))
	write("a.yaml", isolate("a", "x"))
	w.await("default/a")
	write(".b.yaml.swp", isolate("b", "x")) // as editors do
	must(t, os.Rename(path(".b.yaml.swp"), path("b.yaml")))
	w.await("default/a", "default/b")
	must(t, os.Rename(path("b.yaml"), path("b.yaml.off")))
	w.await("default/a")
	must(t, os.Remove(path("a.yaml")))
	w.await()

	// As kubelet does with a ConfigMap.
	for _, one := range []string{"one", "two"} {
		must(t, os.Mkdir(path("..2026_"+one), 0o755))
		must(t, os.WriteFile(path("..2026_"+one+"/map.yaml"), []byte(isolate(one, "x")), 0o600))
	}
	must(t, os.Symlink("..2026_one", path("..data")))
	must(t, os.Symlink("..data/map.yaml", path("map.yaml")))
	w.await("default/one")
	must(t, os.Symlink("..2026_two", path("..data_tmp")))
	must(t, os.Rename(path("..data_tmp"), path("..data")))
	w.await("default/two")

	// The folder goes, and another one comes.
	must(t, os.Rename(d.path, d.path+".old"))
	w.await()
	must(t, os.MkdirAll(d.path, 0o755))
	write("c.yaml", isolate("c", "x"))
	w.await("default/c")
	must(t, os.RemoveAll(filepath.Dir(d.path)))
	w.await()
	must(t, os.MkdirAll(d.path, 0o755))
	write("d.yaml", isolate("d", "x"))
	w.await("default/d")

	// What is being written is seen when it is complete.
	file, err := os.OpenFile(path("d.yaml"), os.O_WRONLY|os.O_TRUNC, 0)
	must(t, err)
	_, err = file.WriteString(isolate("e", "x"))
	must(t, err)
	w.await("error")
	must(t, file.Close())
	w.await("default/e")
}

// The service uses what the watcher sees.
func TestPolicyWatchOfService(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	w.mustAdd(t, s, app("c1", "web"))
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	seen := make(chan bool, 100)
	w.during = func(call string) {
		if call == "ReconcilePolicy" {
			seen <- true
		}
	}
	go func() { done <- s.Run(ctx) }()
	w.keep(t, "web.yaml", isolate("web", "web"))
	select {
	case <-seen:
	case <-time.After(30 * time.Second):
		t.Error("the file was not seen")
	}
	stop()
	must(t, <-done)
	if w.policy.Subjects[1].Ingress == 0 {
		t.Errorf("policy %+v", w.policy)
	}
}
