// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// machine is a virtual machine that runs jobs, until it is ended.
type machine struct {
	kernel  *kernel
	initrd  string // file made by writeImage
	console string // file that gets the kernel's messages
	memory  int    // MiB
	cpus    int
	timeout time.Duration
	// port is what the machine has of a wire, nil when it is on none.
	port *port
}

// port is one end of a wire between two machines: each sends frames to the
// other's socket.
type port struct {
	role          string // "a" or "b": what the machine's job is told
	local, remote string // paths of unix sockets
}

// newWire returns the two ends of a wire whose sockets are in dir. The kernel
// takes 107 bytes at most as the path of a socket.
func newWire(dir string) [2]*port {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	return [2]*port{{"a", a, b}, {"b", b, a}}
}

// arguments are those of qemu (7.2 or later) for the card at this end. The card
// neither computes checksums nor verifies any, so the kernels must: two cards that
// may leave them out would hide that one is wrong.
func (p *port) arguments() []string {
	if p == nil {
		return nil
	}
	return []string{
		"-netdev", "dgram,id=wire,local.type=unix,local.path=" + p.local + ",remote.type=unix,remote.path=" + p.remote,
		"-device", "virtio-net-pci,netdev=wire,romfile=,csum=off,guest_csum=off,mac=52:54:00:00:00:0" + p.role,
	}
}

// exitError is the exit code, other than 0, of a job.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// errDied says that the machine stopped before a job ended.
var errDied = errors.New("the machine died")

// boot runs the machine until ctx ends, or it dies, with the output of its jobs, and their
// verdicts, going to out.
//
// The machine is emulated: nested virtualisation is rarely to be had where
// tests run. qemu 7.2 gets the flags of cmpxchg16b wrong under load, which
// makes 6.12 oops, so the processor has none; and with one thread per
// processor newer kernels now and then stumble over a breakpoint that another
// processor has just patched in. Without erms the kernel and Go clear and copy memory in
// units of 8 bytes instead of one, each of which is a step here, and without la57 page tables
// have a level less: the two are a quarter of the time that tests take. A processor without erms is
// one without fsrm, too: where qemu emulates that, as 10.0 does, Linux 6.1 does not boot otherwise.
// Translated code is kept by its virtual address: without randomised maps a tool that is run again is
// not translated anew. The agent waits for grace periods of RCU when it changes maps of maps, and
// tests for namespaces: expedited ones halve what pkg/datapath takes (Linux 6.1).
// Linux 5.10 and 6.1 do not believe the processor's clock, and ask the board's, which takes 4 µs a time, and is a fifth of
// what tests take there: both processors are one thread here, so that theirs is one clock, too.
// On a busy host the kernel may see too few ticks while it tries its timer, and panics: it does not try.
func (m *machine) boot(ctx context.Context, out io.Writer) error {
	if err := os.WriteFile(m.console, nil, 0o644); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	running, end := context.WithCancelCause(limited)
	defer end(nil)
	arguments := append([]string{
		"-accel", "tcg,thread=single", "-cpu", "max,-cx16,-erms,-fsrm,-la57",
		"-smp", strconv.Itoa(m.cpus), "-m", strconv.Itoa(m.memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "file:" + m.console, // ttyS0
		// A file, since stdio is taken for gone when there is no input; a port, since a console loses what is not read
		// at once.
		"-chardev", "file,id=jobs,path=/dev/stdout", "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=jobs",
		"-kernel", m.kernel.image, "-initrd", m.initrd,
		"-append", "console=ttyS0 quiet loglevel=5 panic=-1 oops=panic no_timer_check norandmaps tsc=reliable rcupdate.rcu_expedited=1",
	}, m.port.arguments()...)
	qemu := exec.CommandContext(running, "qemu-system-x86_64", arguments...)
	qemu.Stdout, qemu.Stderr = untilFails{out, end}, os.Stderr
	err := qemu.Run()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if limited.Err() != nil {
		return fmt.Errorf("the machine was still running after %s", m.timeout)
	}
	if running.Err() != nil {
		return fmt.Errorf("read what the machine prints: %w", context.Cause(running))
	}
	if err != nil {
		return fmt.Errorf("run qemu: %w", err)
	}
	return nil
}

// untilFails is a writer whose first failure ends who writes: a machine that nobody reads waits in its jobs' next word.
type untilFails struct {
	io.Writer
	end context.CancelCauseFunc
}

func (w untilFails) Write(text []byte) (int, error) {
	n, err := w.Writer.Write(text)
	if err != nil {
		w.end(err)
	}
	return n, err
}
