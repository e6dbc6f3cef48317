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
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// home is the folder of temporary files, on a tmpfs in a mount namespace of our own.
const home = "/run/soak"

// enter starts the program again in mount, PID, network and IPC namespaces of
// its own and waits for it. The kernel ends all that is left in them with it.
func enter(stderr io.Writer, args []string) error {
	if _, err := parse(args, stderr); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("this needs root")
	}
	// Pdeathsig is about the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	inside := exec.Command("/proc/self/exe", append([]string{modeInside}, args...)...)
	inside.Stdin, inside.Stdout, inside.Stderr = os.Stdin, os.Stdout, stderr
	inside.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
		Setsid:     true, // the terminal signals this process alone, which passes it on
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := inside.Start(); err != nil {
		return fmt.Errorf("start in new namespaces: %w", err)
	}
	go func() {
		_ = inside.Process.Signal(<-signals)
		<-signals
		_ = inside.Process.Kill() // the first process of a namespace need not heed others
	}()
	return inside.Wait()
}

// furnish makes the new namespaces a place to live in. It returns the mounts that
// came with them, and may go when those they are copies of do.
func furnish() (inherited map[string]bool, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return nil, fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return nil, fmt.Errorf("mount tmpfs at /run: %w", err)
	}
	inherited = make(map[string]bool)
	list, err := mounts()
	for id := range list {
		inherited[id] = true
	}
	return inherited, errors.Join(err, os.MkdirAll(home, 0o700))
}

// mounts are the places of all mounts that this process sees, by their numbers (proc_pid_mountinfo(5)).
func mounts() (map[string]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	list := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		field := strings.Fields(line)
		list[field[0]] = field[4]
	}
	return list, err
}
