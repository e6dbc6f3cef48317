// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/maps"
)

// patience is how long a test waits for a packet that must come. Nothing that
// works waits so long.
const patience = 20 * time.Second

// site is a node with two containers and a world, all of them alive.
type site struct {
	node, a, b, world *nstest.NS
	cfg               Config
	ends              []Endpoint
	uplink            Uplink
}

// newSite makes the namespaces, and wires them as the plugin does.
func newSite(t *testing.T, attach string) *site {
	t.Helper()
	s := &site{
		node: nstest.New(t, "node"), a: nstest.New(t, "a"), b: nstest.New(t, "b"), world: nstest.New(t, "world"),
		cfg: Config{
			Root: filepath.Join(nstest.BPFFS(t), "tendril"), Masquerade: true, Attach: attach,
			FlowsMax: 1024, TranslationsMax: 1024,
		},
	}
	s.node.Do(t, func() {
		for _, setting := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile(filepath.Join("/proc/sys/net", setting), []byte("1"), 0); err != nil {
				t.Error(err)
			}
		}
	})
	nstest.Veth(t, s.node, "up0", s.world, "eth0")
	up0 := s.device(t, s.node, "up0")
	s.uplink = Uplink{Name: "up0", IfIndex: up0.Attrs().Index, MTU: 1500, MAC: up0.Attrs().HardwareAddr, IPv4: v4().host, IPv6: v6().host}
	for _, f := range []family{v4(), v6()} {
		s.address(t, s.node, "up0", f.host, f.subnet())
		s.address(t, s.world, "eth0", f.router, f.subnet())
		s.route(t, s.node, netlink.Route{Gw: f.router.AsSlice(), Dst: ipNet(netip.PrefixFrom(f.world, 0).Masked())})
	}
	for i, c := range []struct {
		ns   *nstest.NS
		name string
	}{{s.a, "tdla"}, {s.b, "tdlb"}} {
		nstest.Veth(t, s.node, c.name, c.ns, "eth0")
		host, peer := s.device(t, s.node, c.name), s.device(t, c.ns, "eth0")
		e := Endpoint{
			ID: uint16(i + 1), IfIndex: host.Attrs().Index, IfName: c.name,
			MAC: peer.Attrs().HardwareAddr, HostMAC: host.Attrs().HardwareAddr, MTU: 1500, Masquerade: true,
		}
		for _, f := range []family{v4(), v6()} {
			own, gateway := []netip.Addr{f.a, f.b}[i], f.gateway()
			e.Addresses = append(e.Addresses, own)
			s.address(t, s.node, c.name, gateway, gateway.BitLen())
			s.address(t, c.ns, "eth0", own, own.BitLen())
			s.route(t, s.node, netlink.Route{LinkIndex: host.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: ipNet(netip.PrefixFrom(own, own.BitLen()))})
			s.route(t, c.ns, netlink.Route{LinkIndex: peer.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: ipNet(netip.PrefixFrom(gateway, own.BitLen()))})
			s.route(t, c.ns, netlink.Route{LinkIndex: peer.Attrs().Index, Gw: gateway.AsSlice(), Dst: ipNet(netip.PrefixFrom(own, 0).Masked())})
			for _, n := range []struct {
				ns   *nstest.NS
				link int
				ip   netip.Addr
				mac  net.HardwareAddr
			}{{s.node, host.Attrs().Index, own, e.MAC}, {c.ns, peer.Attrs().Index, gateway, e.HostMAC}} {
				must(t, n.ns.Handle.NeighSet(&netlink.Neigh{LinkIndex: n.link, State: netlink.NUD_PERMANENT, IP: n.ip.AsSlice(), HardwareAddr: n.mac}))
			}
		}
		s.ends = append(s.ends, e)
	}
	return s
}

func (f family) subnet() int {
	if f.v6() {
		return 64
	}
	return 24
}

// gateway is the containers' next hop, on each host side.
func (f family) gateway() netip.Addr {
	if f.v6() {
		return addr("fd00:10::1")
	}
	return addr("10.10.0.1")
}

func (s *site) device(t *testing.T, ns *nstest.NS, name string) netlink.Link {
	t.Helper()
	link, err := ns.Handle.LinkByName(name)
	must(t, err)
	return link
}

func (s *site) address(t *testing.T, ns *nstest.NS, device string, a netip.Addr, bits int) {
	t.Helper()
	must(t, ns.Handle.AddrAdd(s.device(t, ns, device), &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, bits)), Flags: unix.IFA_F_NODAD}))
}

func (s *site) route(t *testing.T, ns *nstest.NS, route netlink.Route) {
	t.Helper()
	if err := ns.Handle.RouteAdd(&route); err != nil {
		t.Fatalf("add route %s in %s: %v", route, ns.Name, err)
	}
}

// open opens the datapath; more than once, as agents that follow each other do.
func (s *site) open(t *testing.T) *Datapath {
	t.Helper()
	var d *Datapath
	var err error
	s.node.Do(t, func() {
		if d, err = Open(s.cfg); err != nil {
			return
		}
		err = errors.Join(d.ReconcileUplinks([]Uplink{s.uplink}), restart(d, s.ends))
	})
	must(t, err)
	return d
}

// attachments are the ways of attaching, by name. All by tcx is none that the agent chooses. In
// the matrix one kernel with tcx, 6.12, is enough for what those without have.
func attachments(t *testing.T) map[string]string {
	all := map[string]string{"best": "", "tcx": "tcx", "clsact": "clsact"}
	if nstest.Emulated() {
		delete(all, "tcx")
		if nstest.KernelVersion(t)[0] > 6 {
			delete(all, "clsact")
		}
	}
	return all
}

// TestDeviceGoesAtStart: a container that ends while an agent starts keeps no other from being served.
func TestDeviceGoesAtStart(t *testing.T) {
	for name, kind := range map[string]func(dir string) hooks{
		"clsact": func(string) hooks { return &clsact{} },
		"tcx":    func(dir string) hooks { return newTCX(dir) },
	} {
		t.Run(name, func(t *testing.T) {
			if name == "tcx" {
				nstest.NeedKernel(t, name, 6, 6)
			}
			n := newNode(t, Config{Masquerade: true})
			n.hooks.endpoints = kind(filepath.Join(nstest.BPFFS(t), "tendril", "links"))
			link, err := n.ns.Handle.LinkByName(n.a.IfName)
			must(t, err)
			must(t, n.ns.Handle.LinkDel(link))
			n.do(t, func() error { return restart(n.Datapath, []Endpoint{n.a, n.b, n.c}) })
			n.do(t, func() error { return errors.Join(n.CheckEndpoint(n.b), n.CheckEndpoint(n.c)) })
			n.ns.Do(t, func() {
				if err := n.AttachEndpoint(n.a); !errors.Is(err, errNoDevice) {
					t.Errorf("attached alone: %v, want %v", err, errNoDevice)
				}
				if err := (&clsact{}).replace(attachment{n.a.IfIndex, fromContainer}, n.programs.byName[fromContainer]); !errors.Is(err, errNoDevice) {
					t.Errorf("filter alone: %v, want %v", err, errNoDevice)
				}
			})
			// What whoever follows the links does.
			n.do(t, func() error { return n.DetachEndpoint(n.a) })
			for _, a := range n.a.Addresses {
				if value, err := n.maps.Endpoints.LookupBytes(maps.NewAddress(a)); err != nil || value != nil {
					t.Errorf("map endpoints has %s: %x, %v", a, value, err)
				}
			}
			if value, err := n.maps.Interfaces.LookupBytes(uint32(n.a.IfIndex)); err != nil || value != nil {
				t.Errorf("map interfaces has %d: %x, %v", n.a.IfIndex, value, err)
			}
		})
	}
}

// TestTraffic sends what sockets send through the attached programs: addresses,
// checksums and lengths are judged by the kernels at both ends.
func TestTraffic(t *testing.T) {
	nstest.Deal(t, 1)
	for name, attach := range attachments(t) {
		t.Run(name, func(t *testing.T) {
			if attach != "clsact" {
				nstest.NeedKernel(t, "tcx", 6, 6) // without it, clsact is the best
			}
			s := newSite(t, attach)
			d := s.open(t)
			t.Cleanup(func() { _ = d.Close() })
			if attach != "" && d.AttachKind() != attach {
				t.Errorf("kind: got %s, want %s", d.AttachKind(), attach)
			}
			for _, e := range s.ends {
				s.node.Do(t, func() {
					if err := d.CheckEndpoint(e); err != nil {
						t.Error(err)
					}
				})
			}
			bothFamilies(t, func(t *testing.T, f family) {
				for _, way := range []struct {
					name     string
					server   *nstest.NS
					at, seen netip.Addr
				}{
					{"world", s.world, f.router, f.host},
					{"container", s.b, f.b, f.a},
					{"host", s.node, f.host, f.a},
				} {
					t.Run(way.name, func(t *testing.T) {
						t.Run("UDP", func(t *testing.T) { s.datagrams(t, way.server, way.at, way.seen) })
						t.Run("TCP", func(t *testing.T) { s.stream(t, way.server, way.at) })
						t.Run("closed port", func(t *testing.T) { s.refused(t, way.at) })
					})
				}
			})
			s.upgrades(t, &d)
			s.removed(t, d)
		})
	}
}

// echo answers datagrams until the test ends, and tells who sent them.
func echo(t *testing.T, ns *nstest.NS, at netip.Addr) (netip.AddrPort, <-chan netip.Addr) {
	t.Helper()
	var server *net.UDPConn
	var err error
	ns.Do(t, func() { server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0))) })
	must(t, err)
	senders := make(chan netip.Addr, 1)
	done := make(chan struct{})
	t.Cleanup(func() { _ = server.Close(); <-done })
	go func() {
		defer close(done)
		buffer := make([]byte, 65536)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			select {
			case senders <- from.Addr().Unmap():
			default:
			}
			_, _ = server.WriteToUDPAddrPort(buffer[:n], from)
		}
	}()
	return server.LocalAddr().(*net.UDPAddr).AddrPort(), senders
}

func (s *site) dial(t *testing.T, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	var conn net.Conn
	var err error
	s.a.Do(t, func() { conn, err = net.DialTimeout(network, to.String(), patience) })
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(patience)))
	return conn
}

// datagrams of all sizes, most of them cut into fragments.
func (s *site) datagrams(t *testing.T, ns *nstest.NS, at, seen netip.Addr) {
	to, senders := echo(t, ns, at)
	conn := s.dial(t, "udp", to)
	for _, size := range []int{1, 1400, 1473, 9000, 60000} {
		sent := bytes.Repeat([]byte{byte(size)}, size)
		got := make([]byte, 65536)
		_, err := conn.Write(sent)
		must(t, err)
		n, err := conn.Read(got)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if !bytes.Equal(sent, got[:n]) {
			t.Errorf("%d bytes came back as others", size)
		}
		if from := <-senders; from != seen {
			t.Errorf("source: got %s, want %s", from, seen)
		}
	}
}

func (s *site) stream(t *testing.T, ns *nstest.NS, at netip.Addr) {
	const size = 4 << 20
	var listener net.Listener
	var err error
	ns.Do(t, func() { listener, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String()) })
	must(t, err)
	defer func() { _ = listener.Close() }()
	received := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			defer func() { _ = conn.Close() }()
			_, err = io.Copy(conn, conn)
		}
		received <- err
	}()
	conn := s.dial(t, "tcp", listener.Addr().(*net.TCPAddr).AddrPort())
	sent := make([]byte, size)
	for i := range sent {
		sent[i] = byte(i * i >> 7)
	}
	written := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		written <- errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	}()
	got, err := io.ReadAll(conn)
	must(t, errors.Join(err, <-written, <-received))
	if !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back as %d others", len(sent), len(got))
	}
}

// refused waits for the ICMP error that a datagram to a closed port brings.
func (s *site) refused(t *testing.T, at netip.Addr) {
	conn := s.dial(t, "udp", netip.AddrPortFrom(at, 9))
	_, err := conn.Write([]byte("anybody?"))
	must(t, err)
	if _, err = conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("read: got %v, want %v", err, syscall.ECONNREFUSED)
	}
}

// upgrades: agents come and go, and not one packet is lost.
func (s *site) upgrades(t *testing.T, d **Datapath) {
	to, _ := echo(t, s.world, v4().router)
	conn := s.dial(t, "udp", to)
	stop, sent := make(chan struct{}), make(chan int)
	go func() {
		count := 0
		each := time.NewTicker(time.Millisecond)
		defer each.Stop()
		for {
			select {
			case <-stop:
				sent <- count
				return
			default:
			}
			if nstest.Emulated() { // where as fast as it can takes all from the agent
				<-each.C
			}
			// One at a time: what is on its way is at most one packet.
			message := fmt.Append(nil, count)
			_ = conn.SetDeadline(time.Now().Add(patience))
			got := make([]byte, 64)
			if _, err := conn.Write(message); err != nil {
				t.Error(err)
			}
			n, err := conn.Read(got)
			if err != nil || !bytes.Equal(got[:n], message) {
				t.Errorf("packet %d: got %q, %v", count, got[:n], err)
			}
			count++
		}
	}()
	agents := 2
	if nstest.Emulated() {
		agents = 1
	}
	for range agents {
		var locked *LockedError
		s.node.Do(t, func() {
			if _, err := Open(s.cfg); !errors.As(err, &locked) || locked.PID != os.Getpid() {
				t.Errorf("open twice: got %v, want a LockedError of %d", err, os.Getpid())
			}
		})
		must(t, (*d).Close())
		*d = s.open(t)
	}
	close(stop)
	if count := <-sent; count == 0 {
		t.Error("no packet was sent meanwhile")
	}
	flows, err := (*d).Flows(1000)
	must(t, err)
	known := false
	for _, f := range flows {
		known = known || f.Source == conn.LocalAddr().(*net.UDPAddr).AddrPort() && f.Packets > 0
	}
	if !known {
		t.Errorf("the flow of %s is not among %d that were adopted", conn.LocalAddr(), len(flows))
	}
}

// removed: of a node that was cleaned nothing is left.
func (s *site) removed(t *testing.T, d *Datapath) {
	must(t, d.Close())
	s.node.Do(t, func() {
		if err := Remove(s.cfg.Root); err != nil {
			t.Error(err)
		}
		if left, err := d.hooks.list(); err != nil || len(left) > 0 {
			t.Errorf("attached after Remove: %v, %v", left, err)
		}
		for _, e := range s.ends {
			for _, a := range append(e.attachments(), attachment{s.uplink.IfIndex, fromUplink}, attachment{s.uplink.IfIndex, toUplink}) {
				if has, err := d.hooks.of(a).has(a); has || err != nil {
					t.Errorf("%s on %d after Remove: %t, %v", a.program, a.ifindex, has, err)
				}
			}
		}
		for _, name := range []string{"tdla", "tdlb", "up0"} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				t.Error(err)
				continue
			}
			qdiscs, err := netlink.QdiscList(link)
			if err != nil {
				t.Error(err)
			}
			for _, q := range qdiscs {
				if q.Type() == "clsact" {
					t.Errorf("%s has clsact after Remove", name)
				}
			}
		}
	})
	if _, err := os.Stat(s.cfg.Root); !errors.Is(err, os.ErrNotExist) {
		left, _ := filepath.Glob(filepath.Join(s.cfg.Root, "*"))
		t.Errorf("bpf-root after Remove: %v, with %q", err, left)
	}
}
