// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/api"
)

// agent is a running tendril-agent.
type agent struct {
	*api.Client
	cmd    *exec.Cmd
	socket string
	log    bytes.Buffer
	// exited is closed when the process is gone.
	exited chan struct{}
}

// startAgent starts the agent of a node and waits until it serves.
func startAgent(ctx context.Context, binary string, node *namespace, name string) (_ *agent, err error) {
	dir := filepath.Join(home, "agents", name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	a := &agent{socket: filepath.Join(dir, "agent.sock"), exited: make(chan struct{})}
	a.Client = api.NewClient(a.socket)
	a.cmd = exec.Command(binary,
		"--socket", a.socket,
		"--state-dir", filepath.Join(dir, "state"),
		"--bpf-root", filepath.Join(home, "bpf", name),
		"--policy-dir", "",
		"--metrics-address", "127.0.0.1:0",
		"--log-level", "warn")
	a.cmd.Stdout, a.cmd.Stderr = &a.log, &a.log
	if err := node.start(a.cmd); err != nil {
		return nil, fmt.Errorf("start agent: %w", err)
	}
	go func() {
		defer close(a.exited)
		_ = a.cmd.Wait()
	}()
	defer func() {
		if err != nil {
			_ = a.stop()
			err = fmt.Errorf("start agent of node %s: %w\n%s", name, err, a.log.Bytes())
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		health, err := a.Health(ctx)
		if err == nil && health.OK {
			return a, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		case <-a.exited:
			return nil, errors.New("it exited")
		case <-tick.C:
		}
	}
}

// stop ends the process.
func (a *agent) stop() error {
	a.Close()
	if err := a.cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop agent: %w", err)
	}
	select {
	case <-a.exited:
	case <-time.After(10 * time.Second):
		_ = a.cmd.Process.Kill()
		<-a.exited
	}
	return nil
}
