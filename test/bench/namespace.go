// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace with a path, as runtimes make them.
type namespace struct {
	path   string
	netns  netns.NsHandle
	handle *netlink.Handle
}

// newNamespace makes a network namespace with its loopback up.
func newNamespace(name string) (_ *namespace, err error) {
	n := &namespace{path: filepath.Join(home, "netns", name), netns: netns.None()}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make namespace %s: %w", name, err), n.close())
		}
	}()
	if err := os.MkdirAll(filepath.Dir(n.path), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(n.path, nil, 0o444); err != nil {
		return nil, err
	}
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", n.path, "", unix.MS_BIND, "")
	})
	if err != nil {
		return nil, err
	}
	if n.netns, err = netns.GetFromPath(n.path); err != nil {
		return nil, err
	}
	if n.handle, err = netlink.NewHandleAt(n.netns, unix.NETLINK_ROUTE); err != nil {
		return nil, err
	}
	lo, err := n.handle.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	return n, n.handle.LinkSetUp(lo)
}

// close removes the namespace, and with it all devices in it.
func (n *namespace) close() error {
	if n.handle != nil {
		n.handle.Close()
	}
	if n.netns.IsOpen() {
		_ = n.netns.Close()
	}
	if err := unix.Unmount(n.path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", n.path, err)
	}
	return os.Remove(n.path)
}

// onThread runs f on a thread of its own, which ends with it: f may change
// what belongs to a thread. Processes that f starts inherit it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		done <- f()
	}()
	return <-done
}

// do runs f on a thread inside the namespace.
func (n *namespace) do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(n.netns); err != nil {
			return fmt.Errorf("enter %s: %w", n.path, err)
		}
		return f()
	})
}

// start starts a command inside the namespace.
func (n *namespace) start(c *exec.Cmd) error { return n.do(c.Start) }

// ip runs the command ip.
func (n *namespace) ip(line string) error { return n.command("ip", line) }

// tc runs the command tc.
func (n *namespace) tc(line string) error { return n.command("tc", line) }

func (n *namespace) command(name, line string) error {
	c := exec.Command(name, strings.Fields(line)...)
	return n.do(func() error {
		if text, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("in %s: %s %s: %w: %s", n.path, name, line, err, text)
		}
		return nil
	})
}

// sysctl writes a setting: name with slashes, below /proc/sys.
func (n *namespace) sysctl(name, value string) error {
	return n.do(func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0o644) })
}

// end is one end of a veth pair.
type end struct {
	ns   *namespace
	name string
	// addresses with prefix length.
	addresses []string
}

// connect makes a veth pair and sets both ends up.
func connect(a, b end) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a.name
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: b.name, PeerNamespace: netlink.NsFd(int(b.ns.netns))}
	if err := a.ns.handle.LinkAdd(pair); err != nil {
		return fmt.Errorf("make veth pair %s, %s: %w", a.name, b.name, err)
	}
	for _, e := range []end{a, b} {
		for _, address := range e.addresses {
			if err := e.ns.ip("addr add " + address + " dev " + e.name + " nodad"); err != nil {
				return err
			}
		}
		if err := e.ns.ip("link set " + e.name + " up"); err != nil {
			return err
		}
	}
	return nil
}
