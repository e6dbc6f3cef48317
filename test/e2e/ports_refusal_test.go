// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/maps"
)

// A port that another container or a socket of the host has is refused, whoever it
// is is named, and nothing is left.
func TestPortTaken(t *testing.T) {
	s := running(t)
	s.Attach(t, "holder", publishing(s.pods, both()...))
	serveTCP(t, s.NS, netip.AddrPortFrom(uplink4, 9001))
	serveTCP(t, s.NS, netip.AddrPortFrom(netip.IPv6Unspecified(), 9002)) // of both families
	serveUDP(t, s.NS, netip.AddrPortFrom(uplink6, 9003))
	comm := strings.TrimSpace(string(must(os.ReadFile("/proc/self/comm"))(t)))
	me := fmt.Sprintf("process %s (pid %d)", comm, os.Getpid())
	before := s.State(t)
	const key = "prepare: runtimeConfig.portMappings"
	for _, one := range []struct {
		name  string
		ports []mapping
		want  string
	}{
		{
			"by a container",
			[]mapping{{"", 9999, 1, ""}, {"", hostTCP, 8000, ""}},
			key + "[1].hostPort: 0.0.0.0:8080/tcp is taken by container holder, interface eth0, network pods",
		},
		{
			"by a container, of one address",
			[]mapping{{"2001:db8::1", hostUDP, 8000, "udp"}},
			key + "[0].hostPort: [2001:db8::1]:5300/udp is taken by container holder, interface eth0, network pods, as [::]:5300",
		},
		{
			"by a socket of the host",
			[]mapping{{"", 9001, 8000, ""}},
			key + "[0].hostPort: 0.0.0.0:9001/tcp is taken by " + me + " at 192.0.2.1:9001",
		},
		{
			"by a socket of the host, of all addresses",
			[]mapping{{"127.0.0.1", 9002, 8000, ""}},
			key + "[0].hostPort: 127.0.0.1:9002/tcp is taken by " + me + " at [::]:9002",
		},
		{
			"by a socket of the host, UDP",
			[]mapping{{"", 9003, 8000, "udp"}},
			key + "[0].hostPort: [::]:9003/udp is taken by " + me + " at [2001:db8::1]:9003",
		},
	} {
		t.Run(one.name, func(t *testing.T) {
			c := &nodetest.Container{NS: nstest.New(t, "refused"), Network: publishing(s.pods, one.ports...)}
			c.ContainerID, c.IfName = "refused", "eth0"
			links := nodetest.Lines(t, c.NS, "ip", "-o", "link", "show")
			if diff := cmp.Diff(refusal{4, one.want, ""}, refusalOf(s.Call(t, c.Call("ADD")))); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(links, nodetest.Lines(t, c.NS, "ip", "-o", "link", "show")); diff != "" {
				t.Errorf("links of the container (-before +after):\n%s", diff)
			}
			s.BecomesRecorded(t, before)
		})
	}
	// The other protocol and other addresses are free.
	s.Attach(t, "free", publishing(s.pods, mapping{"", hostTCP, 80, "udp"}, mapping{"127.0.0.1", 9001, 80, "tcp"}, mapping{"::", 9001, 80, "tcp"}))
}

// What an ADD has written before it finds the map of ports full leads nowhere afterwards.
func TestPortsMapFull(t *testing.T) {
	s := running(t)
	s.Attach(t, "keeper", s.pods)
	before := s.State(t)
	m := s.Map(t, "ports")
	closeAtEnd(t, m)
	const room = 100
	others := make([]maps.PortKey, int(m.MaxEntries())-room)
	for i := range others {
		address := netip.AddrFrom4([4]byte{198, 51, 100, byte(i >> 16)})
		others[i] = maps.PortKey{Address: maps.NewAddress(address), Port: uint16(i), Protocol: unix.IPPROTO_TCP}
	}
	must(m.BatchUpdate(others, make([]maps.MappedPort, len(others)), nil))(t)
	var ports []mapping
	for i := range uint16(room) { // of two families
		ports = append(ports, mapping{"", 10000 + i, 80 + i, "tcp"})
	}
	c := &nodetest.Container{NS: nstest.New(t, "full"), Network: publishing(s.pods, ports...)}
	c.ContainerID, c.IfName = "full", "eth0"
	want := refusal{11, fmt.Sprintf("attach: map ports is full: %d of %d entries, and %d are wanted", len(others), m.MaxEntries(), 2*room), ""}
	if diff := cmp.Diff(want, refusalOf(s.Call(t, c.Call("ADD")))); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
	for _, key := range others {
		if err := m.Delete(key); err != nil {
			t.Fatal(err)
		}
	}
	s.BecomesRecorded(t, before)
	if got, want := s.State(t).Entries, before.Entries; !cmp.Equal(want, got) {
		t.Errorf("entries of maps (-before +after):\n%s", cmp.Diff(want, got))
	}
}

// DEL and GC leave nothing of mapped ports, used or not.
func TestPortsLeaveNothing(t *testing.T) {
	for _, how := range []string{"DEL", "GC"} {
		t.Run(how, func(t *testing.T) {
			s := running(t)
			s.Attach(t, "keeper", publishing(s.pods, mapping{"", 9000, 80, ""}))
			before := s.State(t)
			reserved := reservedPorts(t, s)
			ports := both()
			for i := range uint16(300) {
				ports = append(ports, mapping{"", 40000 + i, 1 + i, "udp"})
			}
			c := s.publish(t, "c", s.pods, ports...)
			for _, f := range families() {
				portWay{name: "world", from: s.world, at: f.uplink, seen: f.world}.checkTCP(t)
				portWay{name: "itself", from: c.NS, at: f.uplink, seen: f.uplink, otherPort: true}.checkTCP(t)
				portWay{name: "host", from: s.NS, at: f.loopback(), seen: f.gateway(c)}.checkTCP(t)
				for _, from := range []*nstest.NS{s.world, c.NS, s.NS} {
					askUDP(t, dialUDP(t, from, netip.AddrPort{}, netip.AddrPortFrom(f.uplink, hostUDP)), pattern(10))
				}
			}
			if got, want := s.State(t).Entries["ports"]-before.Entries["ports"], 2*len(ports); got != want {
				t.Errorf("the map of ports has %d entries more, not %d", got, want)
			}
			if got := reservedPorts(t, s); got == reserved {
				t.Errorf("ip_local_reserved_ports are still %s", got)
			}
			call := c.Call("DEL")
			if how == "GC" {
				keep := []any{map[string]any{"containerID": "keeper", "ifname": "eth0"}}
				call = nodetest.Call{Command: "GC", Network: s.pods.With("cni.dev/valid-attachments", keep)}
			}
			if got := refusalOf(s.Call(t, call)); got != (refusal{}) {
				t.Errorf("%s: %+v", how, got)
			}
			s.Becomes(t, before)
			if got := reservedPorts(t, s); got != reserved {
				t.Errorf("ip_local_reserved_ports are %s, were %s", got, reserved)
			}
		})
	}
}

func reservedPorts(t *testing.T, s *site) string {
	t.Helper()
	return strings.TrimSpace(s.Run(t, "cat", "/proc/sys/net/ipv4/ip_local_reserved_ports"))
}

// CHECK finds a mapping that is missing in the map, or leads elsewhere.
func testCheckPorts(t *testing.T, s *site) {
	c := s.publish(t, "c", s.pods, both()...)
	if got := refusalOf(s.Call(t, checked(c))); got != (refusal{}) {
		t.Errorf("CHECK before: %+v", got)
	}
	m := s.Map(t, "ports")
	closeAtEnd(t, m)
	for _, f := range families() {
		key := maps.PortKey{Address: maps.NewAddress(unspecified(f.world)), Port: htons(hostTCP), Protocol: unix.IPPROTO_TCP}
		var value maps.MappedPort
		if err := m.Lookup(key, &value); err != nil {
			t.Fatalf("look up the entry of %s: %v", f.name, err)
		}
		if err := m.Delete(key); err != nil {
			t.Fatal(err)
		}
		what := fmt.Sprintf("agent: entry of protocol 6, %s in map ports", netip.AddrPortFrom(unspecified(f.world), hostTCP))
		if diff := cmp.Diff(refusal{100, what + " is missing", ""}, refusalOf(s.Call(t, checked(c)))); diff != "" {
			t.Errorf("CHECK without the entry (-want +got):\n%s", diff)
		}
		wrong := value
		wrong.Port = htons(81)
		if err := m.Put(key, wrong); err != nil {
			t.Fatal(err)
		}
		if got := refusalOf(s.Call(t, checked(c))); got.Code != 100 || !strings.HasPrefix(got.Msg, what) {
			t.Errorf("CHECK with another port in the entry: %+v", got)
		}
		if err := m.Put(key, value); err != nil {
			t.Fatal(err)
		}
	}
	if got := refusalOf(s.Call(t, checked(c))); got != (refusal{}) {
		t.Errorf("CHECK after: %+v", got)
	}
}

// htons is a port as maps have it.
func htons(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}
