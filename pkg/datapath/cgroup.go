// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// errNoCgroup says that no folder stands for all control groups.
var errNoCgroup = errors.New("no cgroup2 mount")

// cgroup is the folder of a control group that socket hooks are attached to.
type cgroup struct {
	path string
	// part says that there are groups above it, whose processes it does not see.
	part bool
}

// id is the kernel's number of the group, which a link's CgroupId is compared with.
func (c cgroup) id() (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Stat(c.path, &stat); err != nil {
		return 0, fmt.Errorf("look at cgroup %s: %w", c.path, err)
	}
	return stat.Ino, nil
}

// findCgroup returns the root of the hierarchy, wherever it is mounted. In a cgroup
// namespace that may be out of sight; then it is the namespace's root.
func findCgroup() (cgroup, error) {
	file, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return cgroup{}, fmt.Errorf("list mounts: %w", err)
	}
	defer func() { _ = file.Close() }()
	mounts, err := cgroupMounts(file)
	if err != nil {
		return cgroup{}, fmt.Errorf("list mounts: %w", err)
	}
	found := cgroup{}
	for _, m := range mounts {
		var stat unix.Statfs_t
		if unix.Statfs(m.path, &stat) != nil || stat.Type != unix.CGROUP2_SUPER_MAGIC {
			continue // something else is mounted over it
		}
		// The kernel's Documentation/admin-guide/cgroup-v2.rst: all groups have it but the root.
		if _, err := os.Stat(filepath.Join(m.path, "cgroup.type")); errors.Is(err, os.ErrNotExist) {
			return cgroup{path: m.path}, nil
		}
		if m.root == "/" && found.path == "" {
			found = cgroup{path: m.path, part: true}
		}
	}
	if found.path == "" {
		return cgroup{}, errNoCgroup
	}
	return found, nil
}

// cgroupMount is one line of mountinfo.
type cgroupMount struct {
	// root is what of the hierarchy is mounted, as the reader's namespace names it.
	root, path string
}

// cgroupMounts reads the mounts of cgroup2 from a file as proc_pid_mountinfo(5) has it.
func cgroupMounts(mountinfo io.Reader) ([]cgroupMount, error) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var mounts []cgroupMount
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		mount, fs, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(mount)
		if kind, _, _ := strings.Cut(fs, " "); kind != "cgroup2" || len(fields) < 5 {
			continue
		}
		mounts = append(mounts, cgroupMount{root: unescape.Replace(fields[3]), path: unescape.Replace(fields[4])})
	}
	return mounts, lines.Err()
}

// netnsCookie is the kernel's number of the network namespace of the calling thread.
// Sockets tell it since Linux 5.14 (SO_NETNS_COOKIE), programs earlier: one is attached
// to the control group for as long as a socket of our own dials.
func netnsCookie(at cgroup) (cookie uint64, err error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("make socket: %w", err)
	}
	defer func() { _ = unix.Close(socket) }()
	own, err := unix.GetsockoptUint64(socket, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read cookie of socket: %w", err)
	}
	result, err := ebpf.NewMap(&ebpf.MapSpec{Name: "netns_cookie", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return 0, fmt.Errorf("create map netns_cookie: %w", err)
	}
	defer func() { _ = result.Close() }()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "netns_cookie", Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.FnGetSocketCookie.Call(),
			asm.LoadImm(asm.R1, int64(own), asm.DWord),
			asm.JNE.Reg(asm.R0, asm.R1, "others"),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.FnGetNetnsCookie.Call(),
			asm.LoadMapValue(asm.R1, result.FD(), 0),
			asm.StoreMem(asm.R1, 0, asm.R0, asm.DWord),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("others"),
			asm.Return(),
		},
	})
	if err != nil {
		return 0, fmt.Errorf("load program netns_cookie: %w", err)
	}
	defer func() { _ = program.Close() }()
	// Not pinned: it goes with its handle, whatever becomes of the agent.
	attached, err := link.AttachCgroup(link.CgroupOptions{Path: at.path, Attach: ebpf.AttachCGroupInet4Connect, Program: program})
	if err != nil {
		return 0, fmt.Errorf("attach netns_cookie to cgroup %s: %w", at.path, err)
	}
	defer func() { err = errors.Join(err, attached.Close()) }()
	const discard = 9
	// No datagram is sent, and whether there is a route does not matter.
	_ = unix.Connect(socket, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: discard})
	if err := result.Lookup(uint32(0), &cookie); err != nil {
		return 0, fmt.Errorf("read map netns_cookie: %w", err)
	}
	if cookie == 0 {
		return 0, fmt.Errorf("the agent itself is not in cgroup %s", at.path)
	}
	return cookie, nil
}
