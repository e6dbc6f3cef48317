// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// home is where everything lives that the benchmark makes: on a tmpfs in its
// own mount namespace.
const home = "/run/bench"

// enter starts the program again in mount, PID, network and IPC namespaces of
// its own and waits for it. The kernel ends all that is left in them with it.
func enter(stderr io.Writer, args []string) error {
	if _, err := parse(args, stderr); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("this needs root")
	}
	// Pdeathsig is about the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	inside := exec.Command("/proc/self/exe", append([]string{modeInside}, args...)...)
	inside.Stdin, inside.Stdout, inside.Stderr = os.Stdin, os.Stdout, stderr
	inside.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
		Setsid:     true, // for a scheduling group of its own
	}
	// In another session, it gets no signals of the terminal.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := inside.Start(); err != nil {
		return fmt.Errorf("start in new namespaces: %w", err)
	}
	go func() {
		for range signals {
			_ = inside.Process.Signal(syscall.SIGTERM)
		}
	}()
	return inside.Wait()
}

// furnish makes the new namespaces a place to live in. The machine's /run is
// hidden, so that plugins find no firewalld to talk to.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount tmpfs at /run: %w", err)
	}
	// Sessions share the CPUs evenly (sched(7), autogroup), whatever the nice
	// values in them. A kernel without autogroup has no such file.
	if err := os.WriteFile("/proc/self/autogroup", []byte("-20"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("raise priority of the session: %w", err)
	}
	bpf := home + "/bpf"
	if err := os.MkdirAll(bpf, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("bpf", bpf, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount bpf file system: %w", err)
	}
	return nil
}
