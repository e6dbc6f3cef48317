// SPDX-License-Identifier: Apache-2.0

// Package dhcptest runs a real DHCP server, dnsmasq, and the reference set's DHCP client daemon,
// which the IPAM plugin dhcp talks to. Both end with the test.
package dhcptest

import (
	"bufio"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
)

// Plugins is where Debian's package containernetworking-plugins puts them.
const Plugins = "/usr/lib/cni"

const dnsmasq = "/usr/sbin/dnsmasq"

const startTimeout = 20 * time.Second

// Need skips where Debian's packages are missing, or fails where nothing may be skipped.
func Need(tb testing.TB) {
	tb.Helper()
	for file, from := range map[string]string{
		filepath.Join(Plugins, "dhcp"): "containernetworking-plugins", dnsmasq: "dnsmasq-base",
	} {
		if _, err := os.Stat(file); err == nil {
			continue
		}
		if os.Getenv("TENDRIL_TEST_PRIVILEGED") != "" {
			tb.Fatalf("needs %s of the package %s", file, from)
		}
		tb.Skipf("needs %s of the package %s", file, from)
	}
}

// Server is a DHCP server.
type Server struct {
	lines chan string // of its log
}

// Serve starts a server in a namespace and waits until it serves. subnet is the first three
// numbers of its network, such as "10.40.0": it gives out .50 to .59, and .1 as the router.
// It answers on links that have an address of that network, or 169.254.1.1.
func Serve(tb testing.TB, ns *nstest.NS, subnet string) *Server {
	tb.Helper()
	s := &Server{lines: make(chan string, 1000)}
	process := ns.Command(dnsmasq, "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root",
		"--log-facility=-", "--log-dhcp", "--no-ping", "--leasefile-ro", "--pid-file",
		"--dhcp-range="+subnet+".50,"+subnet+".59,255.255.255.0,10m", "--dhcp-option=option:router,"+subnet+".1",
		"--shared-network=169.254.1.1,"+subnet+".1", "--dhcp-authoritative")
	pipe, err := process.StderrPipe()
	if err != nil {
		tb.Fatal(err)
	}
	run(tb, process)
	go s.read(pipe)
	s.Await(tb, "started, version")
	return s
}

func (s *Server) read(from io.Reader) {
	for scanner := bufio.NewScanner(from); scanner.Scan(); {
		select {
		case s.lines <- scanner.Text():
		default: // nobody has waited for the last thousand
		}
	}
	close(s.lines)
}

// Await waits for a line of the server's log with that text.
func (s *Server) Await(tb testing.TB, part string) {
	tb.Helper()
	var seen []string
	for timeout := time.After(startTimeout); ; {
		select {
		case line, ok := <-s.lines:
			if strings.Contains(line, part) {
				return
			}
			if seen = append(seen, line); ok {
				continue
			}
		case <-timeout:
		}
		tb.Fatalf("the DHCP server did not say %q, but\n%s", part, strings.Join(seen, "\n"))
	}
}

// Daemon starts the client daemon, and returns its socket, in dir. Its clients ask for answers
// by broadcast where broadcast says so.
func Daemon(tb testing.TB, dir string, broadcast bool) (socket string) {
	tb.Helper()
	socket = filepath.Join(dir, "dhcp.sock")
	args := []string{"daemon", "-socketpath", socket}
	if broadcast {
		args = append(args, "-broadcast")
	}
	run(tb, exec.Command(filepath.Join(Plugins, "dhcp"), args...))
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(time.Millisecond) { //nolint:forbidigo // the daemon tells nobody that it listens
		conn, err := net.Dial("unix", socket)
		if err == nil {
			if err := conn.Close(); err != nil {
				tb.Fatal(err)
			}
			return socket
		}
		if time.Now().After(deadline) {
			tb.Fatalf("wait for the DHCP daemon: %v", err)
		}
	}
}

// run starts a process that ends with the test.
func run(tb testing.TB, process *exec.Cmd) {
	tb.Helper()
	if err := process.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = process.Process.Signal(unix.SIGTERM)
		_ = process.Wait() // by a signal
	})
}
