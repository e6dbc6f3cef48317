// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
)

// asAgent in the environment makes the test binary the agent, which then also
// exits with an error when a goroutine is left.
const asAgent = "TENDRIL_TEST_AS_AGENT"

func TestMain(m *testing.M) {
	if os.Getenv(asAgent) == "" {
		goleak.VerifyTestMain(m)
		return
	}
	defer func() {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(9)
		}
	}()
	main()
}

// machine is a node and the files of its agent.
type machine struct {
	ns                           *nstest.NS
	socket, state, root, metrics string
}

// newMachine makes a node with one uplink, which has an address of each family.
func newMachine(t *testing.T) *machine {
	t.Helper()
	ns := nstest.New(t, "agent")
	ns.Run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "world0")
	for _, name := range []string{"up0", "world0"} {
		// Link-local addresses would come at some later instant.
		ns.Run(t, "ip", "link", "set", name, "addrgenmode", "none")
		ns.Run(t, "ip", "link", "set", name, "up")
	}
	ns.Run(t, "ip", "addr", "add", "192.0.2.2/24", "dev", "up0")
	ns.Run(t, "ip", "addr", "add", "2001:db8::2/64", "dev", "up0", "nodad")
	ns.Run(t, "ip", "route", "add", "default", "via", "192.0.2.1")
	dir := t.TempDir()
	return &machine{
		ns:      ns,
		socket:  filepath.Join(dir, "run", "agent.sock"),
		state:   filepath.Join(dir, "state"),
		root:    filepath.Join(nstest.BPFFS(t), "tendril"),
		metrics: "127.0.0.1:9470",
	}
}

func (m *machine) args(more ...string) []string {
	return append([]string{
		"--socket", m.socket, "--state-dir", m.state, "--bpf-root", m.root, "--policy-dir", filepath.Join(m.state, "policy.d"),
		"--metrics-address", m.metrics, "--flows-max", "2048", "--translations-max", "2048",
	}, more...)
}

// output collects what a process writes while others read it.
type output struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buffer.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buffer.String()
}

// process is a running agent.
type process struct {
	cmd      *exec.Cmd
	log      *output
	notified chan string // what it tells systemd
	wait     func() error
}

// command makes an agent's command in the node's namespace. The process that it
// starts is the agent itself: nsenter executes it in its own place.
func (m *machine) command(args ...string) (*exec.Cmd, *output) {
	cmd := m.ns.Command(os.Args[0], args...)
	log := &output{}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), asAgent+"=1")
	return cmd, log
}

// fails runs an agent that must refuse, and returns what it printed.
func (m *machine) fails(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	cmd, log := m.command(args...)
	must(t, cmd.Start())
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err == nil {
		t.Fatalf("no error:\n%s", log)
	}
	return log.String()
}

// deadline ends a wait for something that never comes.
const deadline = 30 * time.Second

// start runs an agent until the test ends and waits until it is ready.
func (m *machine) start(t *testing.T, change func(*exec.Cmd), args ...string) *process {
	t.Helper()
	p := &process{notified: make(chan string, 1000)}
	p.cmd, p.log = m.command(m.args(args...)...)

	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	received := make(chan struct{})
	go func() {
		defer close(received)
		buffer := make([]byte, 4096)
		for {
			n, err := conn.Read(buffer)
			if err != nil {
				return
			}
			p.notified <- string(buffer[:n])
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-received
	})
	p.cmd.Env = append(p.cmd.Env, "NOTIFY_SOCKET="+path)
	if change != nil {
		change(p.cmd)
	}
	must(t, p.cmd.Start())
	p.wait = sync.OnceValue(p.cmd.Wait)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = p.wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-ended
	})
	p.await(t, "READY=1", ended)
	return p
}

// await waits for a notification that begins with what.
func (p *process) await(t *testing.T, what string, ended <-chan struct{}) {
	t.Helper()
	timeout := time.After(deadline)
	for {
		select {
		case got := <-p.notified:
			if strings.HasPrefix(got, what) {
				return
			}
		case <-ended:
			t.Fatalf("the agent has ended, and did not say %s:\n%s", what, p.log)
		case <-timeout:
			t.Fatalf("the agent did not say %s:\n%s", what, p.log)
		}
	}
}

// stop ends the agent with SIGTERM; it must exit with 0.
func (p *process) stop(t *testing.T) {
	t.Helper()
	must(t, p.cmd.Process.Signal(unix.SIGTERM))
	if err := p.wait(); err != nil {
		t.Fatalf("stop: %v\n%s", err, p.log)
	}
}

// kill ends the agent with SIGKILL.
func (p *process) kill(t *testing.T) {
	t.Helper()
	must(t, p.cmd.Process.Kill())
	var exit *exec.ExitError
	if err := p.wait(); !errors.As(err, &exit) {
		t.Fatalf("kill: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
