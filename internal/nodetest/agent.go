// SPDX-License-Identifier: Apache-2.0

package nodetest

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tendril-net/tendril/internal/failpoint"
)

// Agent is a process of tendril-agent.
type Agent struct {
	PID     int
	process *exec.Cmd
	// ended is closed when the process has ended.
	ended chan struct{}
}

// Start starts an agent and returns when it serves.
func (n *Node) Start(tb testing.TB) *Agent {
	tb.Helper()
	return n.start(tb, n.Programs.Agent)
}

// CrashAtStart starts an agent that must kill itself at the point before it
// serves.
func (n *Node) CrashAtStart(tb testing.TB, at failpoint.Point) {
	tb.Helper()
	command := n.agentCommand(n.Programs.CrashAgent)
	command.Env = append(command.Env, "TENDRIL_FAILPOINT="+string(at))
	if err := n.Exec(tb, command); err != nil {
		tb.Fatal(err)
	}
	timer := time.AfterFunc(Patience, func() { _ = command.Process.Signal(syscall.SIGTERM) })
	defer timer.Stop()
	_ = command.Wait() // the state says how it ended
	if status, ok := command.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		tb.Errorf("the agent ended with %v, not at the failpoint", command.ProcessState)
	}
}

// StartToCrash starts an agent that kills itself at the point.
func (n *Node) StartToCrash(tb testing.TB, at failpoint.Point) *Agent {
	tb.Helper()
	return n.start(tb, n.Programs.CrashAgent, "TENDRIL_FAILPOINT="+string(at))
}

func (n *Node) start(tb testing.TB, program string, env ...string) *Agent {
	tb.Helper()
	if n.agent != nil {
		tb.Fatal("an agent runs on the node already")
	}
	// The agent says when it is ready as it does under systemd (sd_notify(3)).
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(n.Dir, "notify"), Net: "unixgram"})
	if err != nil {
		tb.Fatal(err)
	}
	defer func() {
		_ = ready.Close()
		_ = os.Remove(filepath.Join(n.Dir, "notify"))
	}()
	log, err := os.OpenFile(n.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = log.Close() }()

	a := &Agent{process: n.agentCommand(program), ended: make(chan struct{})}
	a.process.Env = append(a.process.Env, append(env, "NOTIFY_SOCKET="+filepath.Join(n.Dir, "notify"))...)
	a.process.Stdout, a.process.Stderr = log, log
	if err := n.Exec(tb, a.process); err != nil {
		tb.Fatal(err)
	}
	a.PID = a.process.Process.Pid
	n.agent = a
	go func() {
		_ = a.process.Wait() // how it ended is in ProcessState
		close(a.ended)
		_ = ready.SetReadDeadline(time.Now())
	}()
	_ = ready.SetReadDeadline(time.Now().Add(Patience))
	for text := make([]byte, 4096); ; {
		size, err := ready.Read(text)
		if err != nil {
			a.kill()
			n.agent = nil
			tb.Fatalf("the agent does not become ready: it ended with %v", a.process.ProcessState)
		}
		if strings.Contains(string(text[:size]), "READY=1") {
			return a
		}
	}
}

// Agent is the one that runs, or nil.
func (n *Node) Agent() *Agent { return n.agent }

// agentCommand is the agent with the node's settings, not started. What is in
// extra comes last, and so wins.
func (n *Node) agentCommand(program string, extra ...string) *exec.Cmd {
	args := append([]string{"--socket", n.Socket, "--state-dir", n.StateDir, "--bpf-root", n.BPFRoot, "--policy-dir", n.PolicyDir}, n.Flags...)
	command := exec.Command(program, append(args, extra...)...)
	command.Env = environment()
	return command
}

// Refused runs an agent that must not come up, with more flags, and returns
// what it printed last: its error.
func (n *Node) Refused(tb testing.TB, flags ...string) string {
	tb.Helper()
	command := n.agentCommand(n.Programs.Agent, flags...)
	var text bytes.Buffer
	command.Stdout, command.Stderr = &text, &text
	if err := n.Exec(tb, command); err != nil {
		tb.Fatal(err)
	}
	timer := time.AfterFunc(Patience, func() { _ = command.Process.Kill() })
	defer timer.Stop()
	err := command.Wait()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		tb.Fatalf("an agent that must refuse to start ended with: %v\n%s", err, &text)
	}
	lines := strings.Split(strings.TrimSpace(text.String()), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "tendril-agent: ") {
			return strings.Join(lines[i:], "\n")
		}
	}
	tb.Fatalf("an agent refused to start without saying why:\n%s", &text)
	return ""
}

// Kill ends the agent with SIGKILL.
func (n *Node) Kill(tb testing.TB) {
	tb.Helper()
	if n.agent == nil {
		tb.Fatal("no agent runs on the node")
	}
	n.agent.kill()
	n.agent = nil
}

// Stop ends the agent with SIGTERM; it must end well.
func (n *Node) Stop(tb testing.TB) {
	tb.Helper()
	a := n.agent
	if a == nil {
		tb.Fatal("no agent runs on the node")
	}
	_ = a.process.Process.Signal(syscall.SIGTERM)
	a.await(tb)
	n.agent = nil
	if !a.process.ProcessState.Success() {
		tb.Errorf("the agent, told to stop, ended with %v", a.process.ProcessState)
	}
}

// Crashed waits until the agent has killed itself, as StartToCrash had it do.
func (n *Node) Crashed(tb testing.TB) {
	tb.Helper()
	n.agent.await(tb)
	if status, ok := n.agent.process.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		tb.Errorf("the agent ended with %v, not at the failpoint", n.agent.process.ProcessState)
	}
	n.agent = nil
}

func (a *Agent) kill() {
	_ = a.process.Process.Kill()
	<-a.ended
}

func (a *Agent) await(tb testing.TB) {
	tb.Helper()
	select {
	case <-a.ended:
	case <-time.After(Patience):
		a.kill()
		tb.Fatal("the agent does not end")
	}
}

// Running tells whether the process has not ended.
func (a *Agent) Running() bool {
	select {
	case <-a.ended:
		return false
	default:
		return true
	}
}
