// SPDX-License-Identifier: Apache-2.0

// Package nstest makes the network namespaces, links and bpf file systems that
// tests run in, and removes them when the test ends, failed or not.
package nstest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/flock"
)

// Root is the gate of every test that changes the kernel. Without the
// privilege the test is skipped, or fails where TENDRIL_TEST_PRIVILEGED is set,
// as `make test` and CI do.
func Root(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("TENDRIL_TEST_PRIVILEGED") != "" {
		tb.Fatal("this test needs root, and TENDRIL_TEST_PRIVILEGED forbids skipping it")
	}
	tb.Skip("needs root")
}

// NS is a named network namespace.
type NS struct {
	// Name as `ip netns` shows it.
	Name string
	// Path of its file, for CNI_NETNS and nsenter.
	Path string
	// Handle is a netlink socket in the namespace.
	Handle *netlink.Handle
	handle netns.NsHandle
	unlink func() error
}

// folder is where namespaces have their names.
const folder = "/run/netns"

// mountFolder makes the folder a mount point of its own, as ip-netns(8) does when it is first
// called. It would do so while tests run, on top of the namespaces that are there, which could
// then not be removed.
var mountFolder = sync.OnceValue(func() error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	locked, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer func() { _ = locked.Close() }()
	// So does ip-netns(8), and so do the tests of other packages.
	if err := flock.Lock(context.Background(), locked, unix.LOCK_EX); err != nil {
		return err
	}
	shared := func() error { return unix.Mount("", folder, "none", unix.MS_SHARED|unix.MS_REC, "") }
	if err := shared(); !errors.Is(err, unix.EINVAL) { // which is: no mount point
		return err
	}
	if err := unix.Mount(folder, folder, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return shared()
})

// New makes a network namespace with its loopback up. hint becomes part of its
// name. It is removed when the test ends.
func New(tb testing.TB, hint string) *NS {
	tb.Helper()
	Root(tb)
	var random [4]byte
	_, _ = rand.Read(random[:])
	must(tb, mountFolder())
	n := &NS{Name: "tdt-" + hint + "-" + hex.EncodeToString(random[:])}
	n.Path = filepath.Join(folder, n.Name)
	n.unlink = sync.OnceValue(func() error { return netns.DeleteNamed(n.Name) })

	runtime.LockOSThread()
	old, err := netns.Get()
	must(tb, err)
	n.handle, err = netns.NewNamed(n.Name) // leaves the thread inside
	if err == nil {
		err = netns.Set(old)
	}
	must(tb, err)
	runtime.UnlockOSThread()
	must(tb, old.Close())
	tb.Cleanup(func() {
		n.Handle.Close()
		_ = n.handle.Close()
		n.Unlink(tb)
	})
	n.Handle, err = netlink.NewHandleAt(n.handle)
	must(tb, err)
	lo, err := n.Handle.LinkByName("lo")
	must(tb, err)
	must(tb, n.Handle.LinkSetUp(lo))
	n.Do(tb, func() {
		for _, setting := range unlimited {
			if err := os.WriteFile(filepath.Join("/proc/sys/net", setting), []byte("0"), 0); err != nil {
				tb.Error(err)
			}
		}
	})
	return n
}

// unlimited are 0 in each namespace, where errors that a test waits for would else be held
// back for their rate.
var unlimited = []string{"ipv4/icmp_ratemask", "ipv6/icmp/ratelimit"}

// Unlink takes the path from the namespace, which exists while anybody is in it, and until
// the test ends.
func (n *NS) Unlink(tb testing.TB) {
	tb.Helper()
	if err := n.unlink(); err != nil {
		tb.Errorf("remove namespace %s: %v", n.Name, err)
	}
}

// Do runs f on a thread inside the namespace. f must not start goroutines that
// rely on it, nor end the test.
func (n *NS) Do(tb testing.TB, f func()) {
	tb.Helper()
	if entered.Load() == n {
		f()
		return
	}
	done := make(chan error)
	go func() {
		var err error
		defer func() { done <- err }()
		runtime.LockOSThread()
		var old netns.NsHandle
		if old, err = netns.Get(); err != nil {
			return
		}
		defer func() { _ = old.Close() }()
		if err = netns.Set(n.handle); err != nil {
			return
		}
		f()
		if err = netns.Set(old); err == nil {
			runtime.UnlockOSThread() // otherwise the thread ends with the goroutine
		}
	}()
	must(tb, <-done)
}

// Command is exec.Command inside the network namespace; all else, /sys
// included, stays as it is.
func (n *NS) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=" + n.Path, "--", name}, args...)...)
}

// Exec starts a command in the namespace; the caller waits.
func (n *NS) Exec(tb testing.TB, command *exec.Cmd) (err error) {
	tb.Helper()
	n.Do(tb, func() { err = command.Start() })
	return err
}

// Run runs a command in the namespace and returns what it printed; a failure
// ends the test.
func (n *NS) Run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	// Without nsenter, which takes a third of the time of "ip" where all is emulated.
	command := exec.Command(name, args...)
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	err := n.Exec(tb, command)
	if err == nil {
		err = command.Wait()
	}
	if err != nil {
		tb.Fatalf("in %s: %s %q: %v\n%s", n.Name, name, args, err, out.String())
	}
	return out.String()
}

// veths counts what Veth has made.
var veths atomic.Int32

// Veth makes a veth pair between two namespaces and sets both ends up. The ends have other indices than
// each other, as those of a container have on a node, which has a device before: before Linux 6.8 it takes the kernel
// up to a second to see the carrier of a pair with equal ones (linkwatch_urgent_event of net/core/link_watch.c).
func Veth(tb testing.TB, a *NS, aName string, b *NS, bName string) {
	tb.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index = bName, 1000+int(veths.Add(1))
	must(tb, b.Handle.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: aName, PeerNamespace: netlink.NsFd(int(a.handle))}))
	for _, end := range []struct {
		ns   *NS
		name string
	}{{a, aName}, {b, bName}} {
		link, err := end.ns.Handle.LinkByName(end.name)
		must(tb, err)
		must(tb, end.ns.Handle.LinkSetUp(link))
	}
}

// BPFFS mounts a bpf file system of the test's own and returns its path.
func BPFFS(tb testing.TB) string {
	tb.Helper()
	Root(tb)
	dir := tb.TempDir()
	must(tb, unix.Mount("bpf", dir, "bpf", 0, ""))
	tb.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			tb.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

func must(tb testing.TB, err error) {
	if err != nil {
		tb.Helper() // which costs more than all else here
		tb.Fatal(err)
	}
}
