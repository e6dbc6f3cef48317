// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	stdmaps "maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
)

// reaches tells whether a process of the host is led to the container.
func (s *site) reaches(t *testing.T, want bool) {
	t.Helper()
	eachWay(t, func(t *testing.T, w way, kind int) {
		to, heard := netip.AddrPortFrom(w.loopback(), anyAddress), nobody
		if want {
			heard = heardOf(kind, to, "a")
		}
		w.socket(t, s.node, kind).connect(t, to).want(t, heard)
	})
}

// attachedTo are the ids of the programs that the kernel has at a group's hooks.
func attachedTo(t *testing.T, group string) map[ebpf.ProgramID]bool {
	t.Helper()
	file, err := os.Open(group)
	must(t, err)
	defer func() { must(t, file.Close()) }()
	ids := make(map[ebpf.ProgramID]bool)
	for _, hook := range hostPrograms {
		result, err := link.QueryPrograms(link.QueryOptions{Target: int(file.Fd()), Attach: hook})
		must(t, err)
		for _, program := range result.Programs {
			ids[program.ID] = true
		}
	}
	return ids
}

// served counts which of the datapath's own programs are attached to a group.
func (d *Datapath) served(t *testing.T, group string) int {
	t.Helper()
	attached, count := attachedTo(t, group), 0
	for _, id := range d.socketPrograms(t) {
		if attached[id] {
			count++
		}
	}
	return count
}

func (d *Datapath) socketPrograms(t *testing.T) map[string]ebpf.ProgramID {
	t.Helper()
	ids := make(map[string]ebpf.ProgramID)
	for name, program := range d.programs.host {
		info, err := program.Info()
		must(t, err)
		ids[name], _ = info.ID()
	}
	return ids
}

// linked are the ids of the links that are held, and of their programs.
func (d *Datapath) linked(t *testing.T) (links map[string]link.ID, programs map[string]ebpf.ProgramID) {
	t.Helper()
	links, programs = make(map[string]link.ID), make(map[string]ebpf.ProgramID)
	for name, held := range d.sockets.held {
		info, err := held.Info()
		must(t, err)
		links[name], programs[name] = info.ID, info.Program
	}
	return links, programs
}

// testHooksLife: agents come and go, the hooks stay, until they are removed.
func testHooksLife(t *testing.T, s *site, d *Datapath) {
	links, programs := d.linked(t)
	if diff := cmp.Diff(d.socketPrograms(t), programs); diff != "" {
		t.Errorf("programs (-loaded +linked):\n%s", diff)
	}
	must(t, d.Close())
	s.reaches(t, true)

	var err error
	s.node.Do(t, func() { d, err = Open(s.cfg) })
	must(t, err)
	again, upgraded := d.linked(t)
	if diff := cmp.Diff(links, again); diff != "" {
		t.Errorf("links (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(d.socketPrograms(t), upgraded); diff != "" {
		t.Errorf("programs (-loaded +linked):\n%s", diff)
	}
	attached := attachedTo(t, d.sockets.at.path)
	for name, id := range programs {
		if attached[id] {
			t.Errorf("the former %s is still attached", name)
		}
	}
	s.reaches(t, true)

	must(t, d.Close())
	s.node.Do(t, func() { err = Remove(s.cfg.Root) })
	must(t, err)
	attached = attachedTo(t, d.sockets.at.path)
	for name, id := range upgraded {
		if attached[id] {
			t.Errorf("%s is attached after Remove", name)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(s.cfg.Root, "*")); len(left) > 0 {
		t.Errorf("pins after Remove: %q", left)
	}
	s.reaches(t, false)
}

// testHooksRepair: pins that are removed, and links that are detached.
func testHooksRepair(t *testing.T, s *site, d *Datapath) {
	var log bytes.Buffer
	before := d.log
	defer func() { d.log = before }()
	d.log = slog.New(slog.NewTextHandler(&log, nil))
	pins := func() []string {
		found, err := filepath.Glob(filepath.Join(s.cfg.Root, socketLinks, "*"))
		must(t, err)
		return found
	}
	whole := pins()
	if len(whole) != len(hostPrograms) {
		t.Errorf("pins: %q", whole)
	}
	for _, damage := range []struct {
		name, log string
		do        func()
		still     bool
	}{
		{"none", "", func() {}, true},
		{"one pin", "host_connect4 was not pinned", func() { must(t, os.Remove(whole[0])) }, true},
		{"all pins", "host_sendmsg6 was not pinned", func() { must(t, os.RemoveAll(filepath.Dir(whole[0]))) }, true},
		{"links", "host_sendmsg6 was not attached", func() {
			for _, held := range d.sockets.held {
				must(t, held.(interface{ Detach() error }).Detach())
			}
		}, false},
	} {
		t.Run(damage.name, func(t *testing.T) {
			log.Reset()
			damage.do()
			s.reaches(t, damage.still)
			must(t, d.RepairPins())
			if damage.log == "" && log.Len() > 0 || !strings.Contains(log.String(), damage.log) {
				t.Errorf("log %q, want %q", log.String(), damage.log)
			}
			if diff := cmp.Diff(whole, pins()); diff != "" {
				t.Errorf("pins (-before +after):\n%s", diff)
			}
			s.reaches(t, true)
		})
	}
}

// group makes a control group below the one that is served.
func (d *Datapath) group(t *testing.T, name string) cgroup {
	t.Helper()
	path := filepath.Join(d.sockets.at.path, fmt.Sprintf("tendril-test-%d-%s", os.Getpid(), name))
	must(t, os.Mkdir(path, 0o700))
	t.Cleanup(func() {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
	return cgroup{path: path, part: true}
}

// testHooksGroups attaches to groups that go, and to one that is taken.
func testHooksGroups(t *testing.T, _ *site, d *Datapath) {
	root := d.sockets.at
	first, second, taken := d.group(t, "first"), d.group(t, "second"), d.group(t, "taken")
	attach := func(at cgroup, want int) {
		t.Helper()
		d.sockets.at = at
		attached, err := d.sockets.attach(d.programs.host, true)
		must(t, err)
		if len(attached) != want {
			t.Errorf("attached %q anew, want %d", attached, want)
		}
	}
	attach(root, 0)
	attach(first, len(hostPrograms))
	if got := d.served(t, root.path); got != 0 {
		t.Errorf("%d programs at the group that was left", got)
	}
	if want := "is not the root of all control groups"; !strings.Contains(d.SocketFlaw(), want) {
		t.Errorf("flaw %q, want %q", d.SocketFlaw(), want)
	}
	must(t, os.Remove(first.path))
	attach(second, len(hostPrograms))
	attach(second, 0)
	if got := d.served(t, second.path); got != len(hostPrograms) {
		t.Errorf("%d programs at the second group, want %d", got, len(hostPrograms))
	}

	file, err := os.Open(taken.path)
	must(t, err)
	t.Cleanup(func() { must(t, file.Close()) })
	// Attached without flags, a program wants to be alone.
	must(t, link.RawAttachProgram(link.RawAttachProgramOptions{
		Target: int(file.Fd()), Program: d.programs.host["host_sendmsg4"], Attach: hostPrograms["host_sendmsg4"],
	}))
	attach(taken, 0)
	if want := "attach host_sendmsg4 to cgroup"; !strings.Contains(d.SocketFlaw(), want) {
		t.Errorf("flaw %q, want %q", d.SocketFlaw(), want)
	}
	if got := d.served(t, second.path); got != 0 {
		t.Errorf("%d programs left at the second group", got)
	}
	if pins, _ := filepath.Glob(filepath.Join(d.root, socketLinks, "*")); len(pins) > 0 {
		t.Errorf("pins left: %q", pins)
	}
	d.sockets.at = root
	must(t, d.RepairPins())
	if got, flaw := d.served(t, root.path), d.SocketFlaw(); got != len(hostPrograms) || flaw != "" {
		t.Errorf("%d programs at the root after a repair, want %d; flaw %q", got, len(hostPrograms), flaw)
	}
}

// TestSocketHooksWithoutCgroup opens the datapath where no control groups are mounted.
func TestSocketHooksWithoutCgroup(t *testing.T) {
	nstest.LeaveTo(t, "6.1")
	s := newSite(t, "")
	var d *Datapath
	done := make(chan error)
	go func() {
		done <- func() (err error) {
			runtime.LockOSThread() // and never unlocked: the thread ends here
			ns, err := os.Open(s.node.Path)
			if err != nil {
				return err
			}
			defer func() { _ = ns.Close() }()
			if err := errors.Join(
				unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
				unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET),
			); err != nil {
				return err
			}
			for at, err := findCgroup(); err == nil; at, err = findCgroup() {
				if err := unix.Unmount(at.path, unix.MNT_DETACH); err != nil {
					return err
				}
			}
			d, err = Open(s.cfg)
			return err
		}()
	}()
	must(t, <-done)
	t.Cleanup(func() { must(t, d.Close()) })
	if want := "no cgroup2 mount: processes of the host do not reach mapped ports"; d.SocketFlaw() != want {
		t.Errorf("flaw %q, want %q", d.SocketFlaw(), want)
	}
	s.node.Do(t, func() {
		if err := errors.Join(d.AttachEndpoint(s.ends[0]), d.RepairPins()); err != nil {
			t.Error(err)
		}
	})
	if _, err := os.Stat(filepath.Join(s.cfg.Root, socketLinks)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder of links: %v", err)
	}
}

func TestCgroupMounts(t *testing.T) {
	const mountinfo = `24 1 0:22 / /proc rw,nosuid - proc proc rw
35 24 0:30 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu
36 24 0:31 / /sys/fs/cgroup/unified rw,nosuid shared:10 master:2 - cgroup2 cgroup2 rw,nsdelegate
37 24 0:31 /../.. /host\040of\134mine rw - cgroup2 none rw
38 24 0:31 - cgroup2
`
	got, err := cgroupMounts(strings.NewReader(mountinfo))
	must(t, err)
	want := []cgroupMount{{root: "/", path: "/sys/fs/cgroup/unified"}, {root: "/../..", path: `/host of\mine`}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(cgroupMount{})); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
}

func FuzzCgroupMounts(f *testing.F) {
	f.Add("36 24 0:31 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
	f.Add(`36 24 0:31 /\040 /\134 rw - cgroup2`)
	f.Fuzz(func(t *testing.T, mountinfo string) {
		mounts, err := cgroupMounts(strings.NewReader(mountinfo))
		if err == nil && len(mounts) > strings.Count(mountinfo, "cgroup2") {
			t.Errorf("%d mounts", len(mounts))
		}
	})
}

// TestSocketProgramNames: the kernel keeps 15 characters of a name.
func TestSocketProgramNames(t *testing.T) {
	spec, err := loadFromHost()
	must(t, err)
	hooks := make(map[string]ebpf.AttachType)
	for name, program := range spec.Programs {
		hooks[name] = program.AttachType
	}
	if diff := cmp.Diff(hooks, hostPrograms); diff != "" {
		t.Errorf("programs and their hooks (-object +table):\n%s", diff)
	}
	for _, name := range slices.Sorted(stdmaps.Keys(hooks)) {
		if len(name) > 15 {
			t.Errorf("%s is too long a name", name)
		}
	}
}
