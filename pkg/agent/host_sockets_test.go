// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
)

// openNode is a namespace with a loopback device and a Host of it.
func openNode(t *testing.T) (*nstest.NS, *Host) {
	t.Helper()
	ns := nstest.New(t, "sockets")
	ns.Run(t, "ip", "link", "set", "lo", "up")
	host, err := OpenHost(ns.Path)
	must(t, err)
	t.Cleanup(func() { must(t, host.Close()) })
	return ns, host
}

// v6Only makes a listener one of IPv6 alone, or of both families.
func v6Only(value int) net.ListenConfig {
	return net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if outer := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, value)
		}); outer != nil {
			return outer
		}
		return err
	}}
}

// TestBoundSockets opens sockets of every kind and looks for them. What only
// connects, or has another namespace, is not among them.
func TestBoundSockets(t *testing.T) {
	ns, host := openNode(t)
	elsewhere, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = elsewhere.Close() })
	ns.Do(t, func() {
		keep := func(c interface{ Close() error }, err error) {
			t.Helper()
			must(t, err)
			t.Cleanup(func() { _ = c.Close() })
		}
		both, alone := v6Only(0), v6Only(1)
		tcp := func(l net.ListenConfig, network, address string) {
			keep(l.Listen(context.Background(), network, address))
		}
		udp := func(l net.ListenConfig, network, address string) {
			keep(l.ListenPacket(context.Background(), network, address))
		}
		tcp(net.ListenConfig{}, "tcp4", "0.0.0.0:80")
		tcp(net.ListenConfig{}, "tcp4", "127.0.0.1:81")
		tcp(both, "tcp6", "[::]:82")
		tcp(alone, "tcp6", "[::]:83")
		tcp(net.ListenConfig{}, "tcp6", "[::1]:84")
		udp(net.ListenConfig{}, "udp4", "127.0.0.1:53")
		udp(both, "udp6", "[::]:54")
		udp(alone, "udp6", "[::]:55")
		keep(net.Dial("tcp4", "127.0.0.1:81"))
		keep(net.Dial("udp4", "127.0.0.1:53"))
	})
	describe := func(protocol uint8) []string {
		sockets, err := host.Bound(protocol)
		must(t, err)
		var all []string
		for _, one := range sockets {
			all = append(all, fmt.Sprintf("%s v6only=%v %s", one.Addr, one.V6Only, host.Holder(one)))
		}
		slices.Sort(all)
		return all
	}
	name, err := os.ReadFile("/proc/self/comm")
	must(t, err)
	self := fmt.Sprintf("process %s (pid %d)", strings.TrimSpace(string(name)), os.Getpid())
	want := []string{
		"0.0.0.0:80 v6only=false " + self, "127.0.0.1:81 v6only=false " + self, "[::1]:84 v6only=true " + self,
		"[::]:82 v6only=false " + self, "[::]:83 v6only=true " + self,
	}
	if d := cmp.Diff(want, describe(unix.IPPROTO_TCP)); d != "" {
		t.Errorf("TCP sockets (-want +got):\n%s", d)
	}
	want = []string{"127.0.0.1:53 v6only=false " + self, "[::]:54 v6only=false " + self, "[::]:55 v6only=true " + self}
	if d := cmp.Diff(want, describe(unix.IPPROTO_UDP)); d != "" {
		t.Errorf("UDP sockets (-want +got):\n%s", d)
	}
	if got := host.Holder(BoundSocket{}); got != "" {
		t.Errorf("holder of no socket: %q", got)
	}
}

// Whoever may not see the files of processes is told the control group.
func TestControlGroupOfASocket(t *testing.T) {
	root := t.TempDir()
	group := filepath.Join(root, "system.slice", "nginx.service")
	must(t, os.MkdirAll(group, 0o700))
	must(t, os.WriteFile(filepath.Join(group, "cgroup.procs"), nil, 0o600))
	inode := func(path string) uint64 {
		var stat unix.Stat_t
		must(t, unix.Stat(path, &stat))
		return stat.Ino
	}
	for path, want := range map[string]string{
		group: "/system.slice/nginx.service", filepath.Dir(group): "/system.slice", root: "", filepath.Join(group, "cgroup.procs"): "",
	} {
		if got := cgroupOf(root, inode(path)); got != want {
			t.Errorf("control group of %s: %q, want %q", path, got, want)
		}
	}
	if got := cgroupOf(filepath.Join(root, "gone"), 1); got != "" {
		t.Errorf("control group where there is none: %q", got)
	}

	// The kernel's number of a group is the inode of its folder.
	ns, host := openNode(t)
	ns.Do(t, func() { listen(t, unix.IPPROTO_TCP, netip.MustParseAddrPort("127.0.0.1:80")) })
	sockets, err := host.Bound(unix.IPPROTO_TCP)
	must(t, err)
	own, err := os.ReadFile("/proc/self/cgroup")
	must(t, err)
	for line := range strings.Lines(string(own)) {
		path, unified := strings.CutPrefix(strings.TrimSpace(line), "0::")
		for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			var stat unix.Statfs_t
			if !unified || len(sockets) != 1 || sockets[0].Cgroup == 0 || unix.Statfs(root, &stat) != nil || stat.Type != unix.CGROUP2_SUPER_MAGIC {
				continue
			}
			if want := inode(root + path); sockets[0].Cgroup != want {
				t.Errorf("control group %d, want %d of %s", sockets[0].Cgroup, want, root+path)
			}
		}
	}
}

// A kernel without sock_diag is told from one that fails.
func TestSocketsUnsupported(t *testing.T) {
	host := &Host{}
	if _, err := host.Bound(unix.IPPROTO_TCP); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("bound sockets: error %v", err)
	}
	if _, err := host.Disconnect(unix.IPPROTO_TCP, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("disconnect: error %v", err)
	}
}

// TestDisconnect connects to four servers and has the connections to two of them
// ended, be it by an IPv4 socket or an IPv6 socket with a mapped address.
func TestDisconnect(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6", "mapped", "udp4", "udp6"} {
		t.Run(network, func(t *testing.T) {
			ns, host := openNode(t)
			protocol, address := uint8(unix.IPPROTO_TCP), "127.0.0.1"
			if strings.HasPrefix(network, "udp") {
				protocol = unix.IPPROTO_UDP
			}
			if strings.HasSuffix(network, "6") {
				address = "::1"
			}
			type client struct {
				fd     int
				remote netip.AddrPort
			}
			var clients []client
			ns.Do(t, func() {
				for port := uint16(1000); port < 1004; port++ {
					remote := netip.AddrPortFrom(netip.MustParseAddr(address), port)
					listen(t, protocol, remote)
					clients = append(clients, client{connect(t, protocol, remote, network == "mapped"), remote})
				}
			})
			doomed := map[netip.AddrPort]bool{clients[1].remote: true, clients[3].remote: true}
			ended, err := host.Disconnect(protocol, doomed)
			if errors.Is(err, errors.ErrUnsupported) {
				nstest.NotBuilt(t, "ending another's sockets", "CONFIG_INET_DIAG_DESTROY")
			}
			must(t, err)
			if ended != 2 {
				t.Errorf("%d connections ended, want 2", ended)
			}
			for _, c := range clients {
				fault, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)
				must(t, err)
				want := 0
				if doomed[c.remote] {
					want = int(unix.ECONNABORTED)
				}
				if fault != want {
					t.Errorf("connection to %s: %v, want %v", c.remote, unix.Errno(fault), unix.Errno(want))
				}
			}
			ended, err = host.Disconnect(protocol, doomed)
			if ended != 0 || err != nil {
				t.Errorf("once more: %d connections ended, error %v", ended, err)
			}
		})
	}
}

func listen(t *testing.T, protocol uint8, at netip.AddrPort) {
	t.Helper()
	var server interface{ Close() error }
	var err error
	if protocol == unix.IPPROTO_UDP {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	} else {
		server, err = net.Listen("tcp", at.String())
	}
	must(t, err)
	t.Cleanup(func() { _ = server.Close() })
}

// connect returns a socket that is connected. It is no net.Conn, because the poller
// would take the error of the socket before the test does.
func connect(t *testing.T, protocol uint8, to netip.AddrPort, mapped bool) int {
	t.Helper()
	kind := unix.SOCK_STREAM
	if protocol == unix.IPPROTO_UDP {
		kind = unix.SOCK_DGRAM
	}
	family, address := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(to.Port())})
	if to.Addr().Is4() && !mapped {
		address.(*unix.SockaddrInet4).Addr = to.Addr().As4()
	} else {
		family, address = unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	must(t, unix.Connect(fd, address))
	return fd
}

// FuzzParseDiag holds for any bytes from the kernel: no panic, and what is read has
// an address.
func FuzzParseDiag(f *testing.F) {
	whole := make([]byte, diagMessageSize)
	whole[0] = unix.AF_INET6
	f.Add(append(whole, 5, 0, 16, 0, 1, 0, 0, 0))
	f.Add(whole[:71])
	f.Add(append(slices.Clone(whole), 3, 0, 16, 0))
	f.Add(append(slices.Clone(whole), 5, 0, 16, 0, 1)) // not padded
	f.Fuzz(func(t *testing.T, message []byte) {
		if one, ok := parseDiag(message); ok && (!one.local.IsValid() || !one.remote.IsValid()) {
			t.Errorf("read without address: %+v", one)
		}
	})
}
