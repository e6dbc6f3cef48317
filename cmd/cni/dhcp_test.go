// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// dhcpServer is a real DHCP server in the node, dnsmasq, and the reference
// set's DHCP client daemon, which the IPAM plugin dhcp talks to.
type dhcpServer struct {
	lines chan string // of the server's log
}

const dhcpStartTimeout = 20 * time.Second

// startDHCP starts both and waits until they serve. Addresses are 10.40.0.50
// to 10.40.0.59 with the router 10.40.0.1; the server accepts requests on
// links whose address is 169.254.1.1.
func startDHCP(ts *testscript.TestScript, s *story, dir string) *dhcpServer {
	d := &dhcpServer{lines: make(chan string, 1000)}
	server := s.node.Command("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root",
		"--log-facility=-", "--log-dhcp", "--no-ping", "--leasefile-ro", "--pid-file",
		"--dhcp-range=10.40.0.50,10.40.0.59,255.255.255.0,10m", "--dhcp-option=option:router,10.40.0.1",
		"--shared-network=169.254.1.1,10.40.0.1", "--dhcp-authoritative")
	pipe, err := server.StderrPipe()
	ts.Check(err)
	runFor(ts, server)
	go d.read(pipe)
	d.await(ts, "started, version")

	socket := filepath.Join(dir, "dhcp.sock")
	runFor(ts, exec.Command(filepath.Join(referencePlugins, "dhcp"), "daemon", "-socketpath", socket, "-broadcast"))
	for deadline := time.Now().Add(dhcpStartTimeout); ; time.Sleep(time.Millisecond) { //nolint:forbidigo // the daemon tells nobody that it listens
		conn, err := net.Dial("unix", socket)
		if err == nil {
			ts.Check(conn.Close())
			break
		}
		if time.Now().After(deadline) {
			ts.Fatalf("wait for the DHCP daemon: %v", err)
		}
	}
	ts.Setenv("DHCP", socket)
	return d
}

// runFor starts a process that ends with the story.
func runFor(ts *testscript.TestScript, process *exec.Cmd) {
	ts.Check(process.Start())
	ts.Defer(func() {
		_ = process.Process.Signal(unix.SIGTERM)
		_ = process.Wait() // by a signal
	})
}

func (d *dhcpServer) read(from io.Reader) {
	for scanner := bufio.NewScanner(from); scanner.Scan(); {
		d.lines <- scanner.Text()
	}
	close(d.lines)
}

// await waits for a line of the server's log.
func (d *dhcpServer) await(ts *testscript.TestScript, part string) {
	var seen []string
	for timeout := time.After(dhcpStartTimeout); ; {
		select {
		case line, ok := <-d.lines:
			if strings.Contains(line, part) {
				return
			}
			if seen = append(seen, line); ok {
				continue
			}
		case <-timeout:
		}
		ts.Fatalf("the DHCP server did not say %q, but\n%s", part, strings.Join(seen, "\n"))
	}
}

// cmdDHCP is "dhcp start" and "dhcp await TEXT".
func cmdDHCP(ts *testscript.TestScript, neg bool, args []string) {
	s := storyOf(ts)
	switch {
	case !neg && len(args) == 1 && args[0] == "start":
		s.dhcp = startDHCP(ts, s, ts.Getenv("WORK"))
	case !neg && len(args) == 2 && args[0] == "await":
		s.dhcp.await(ts, args[1])
	default:
		ts.Fatalf("usage: dhcp start|await TEXT")
	}
}
