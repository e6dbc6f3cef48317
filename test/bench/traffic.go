// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// serverPort is the first port of the servers.
const serverPort = 5000

// connectPorts is how many ports the server of connect has, or the client addresses.
const connectPorts = 16

// path is between whom traffic goes.
type path struct {
	client, server *namespace
	// address of the server, as the client knows it.
	address netip.Addr
	// sources are addresses of the client that connections are to come from, if not
	// from the one that the kernel chooses.
	sources []netip.Addr
	// inside is the server's own address where a port of the other is mapped to it.
	inside netip.Addr
}

// measure sends traffic over a path and returns what arrived per second.
func (b *bench) measure(ctx context.Context, kind traffic, p path) (outcome, error) {
	j := job{Traffic: kind, Ports: 1, Warmup: b.window / 5, Window: b.window}
	switch {
	case p.sources != nil:
		j.Sources = p.sources
	case kind == connections:
		j.Ports = connectPorts
	}
	return exchange(ctx, p, serverPort, j)
}

// exchange runs both ends of a job over a path, to a port of the server. It returns what the receiver has counted and the
// sender has sent, or what the client has counted where the server only answers.
func exchange(ctx context.Context, p path, port uint16, j job) (outcome, error) {
	// Nothing takes longer than this but what hangs.
	ctx, cancel := context.WithTimeout(ctx, j.Warmup+j.Window+10*time.Second)
	defer cancel()
	clientCPU, serverCPU := 0, 1
	if j.Traffic.takesTurns() {
		serverCPU = clientCPU
	}
	j.At = netip.AddrPortFrom(p.address, port)
	serve := j
	serve.Serve = true
	if p.inside.IsValid() {
		serve.At = netip.AddrPortFrom(p.inside, port)
	}
	server, err := startWorker(ctx, p.server, serverCPU, serve)
	if err != nil {
		return outcome{}, err
	}
	defer func() { _ = server.kill() }() // and has not failed, or that has been said
	if err := server.awaitReady(); err != nil {
		return outcome{}, err
	}
	client, err := startWorker(ctx, p.client, clientCPU, j)
	if err != nil {
		return outcome{}, err
	}
	defer func() { _ = client.kill() }()
	sent, err := client.outcome()
	if err != nil {
		return outcome{}, errors.Join(err, server.kill())
	}
	if j.Traffic.isAnswered() {
		return sent, nil
	}
	received, err := server.outcome()
	received.Sent, received.SentIn = sent.Sent, sent.SentIn
	return received, err
}

// worker is a process with one end of a connection.
type worker struct {
	cmd    *exec.Cmd
	out    *bufio.Reader
	stderr bytes.Buffer
}

// startWorker starts one in a namespace, on one CPU. It goes before all other
// processes of the machine.
func startWorker(ctx context.Context, n *namespace, cpu int, j job) (*worker, error) {
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	w := &worker{cmd: exec.CommandContext(ctx, "/proc/self/exe", modeWorker, string(text))}
	w.cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	w.cmd.Stderr = &w.stderr
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	w.out = bufio.NewReader(out)
	err = n.do(func() error {
		var set unix.CPUSet
		set.Set(cpu)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return fmt.Errorf("pin to CPU %d: %w", cpu, err)
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -20); err != nil {
			return fmt.Errorf("raise priority: %w", err)
		}
		return w.cmd.Start()
	})
	if err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	return w, nil
}

func (w *worker) awaitReady() error {
	line, err := w.out.ReadString('\n')
	if err != nil || line != ready {
		return fmt.Errorf("server says %q: %w", line, errors.Join(err, w.wait()))
	}
	return nil
}

func (w *worker) outcome() (outcome, error) {
	var o outcome
	err := json.NewDecoder(w.out).Decode(&o)
	if failed := w.wait(); failed != nil {
		return outcome{}, failed
	}
	if err != nil {
		return outcome{}, fmt.Errorf("read outcome: %w", err)
	}
	return o, nil
}

func (w *worker) wait() error {
	if err := w.cmd.Wait(); err != nil {
		return fmt.Errorf("worker: %w: %s", err, bytes.TrimSpace(w.stderr.Bytes()))
	}
	return nil
}

// kill ends the process if it still lives. If it has failed by itself before, that is an error.
func (w *worker) kill() error {
	if w.cmd.ProcessState != nil {
		return nil
	}
	_ = w.cmd.Process.Kill()
	err := w.wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && !exit.Exited() {
		return nil
	}
	return err
}
