// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// Containers reach mapped ports at every address of the host, their own ones
// included, with masquerade and without.
func TestPortsFromContainers(t *testing.T) {
	nstest.Halve(t, 1)
	s, _ := twoUplinks(t)
	plain := s.Network("plain", "10.20.0.0/24", "fd00:20::/64").With("ipMasq", false)
	for _, network := range []nodetest.Network{s.pods, plain} {
		t.Run(fmt.Sprint("ipMasq ", network["ipMasq"]), func(t *testing.T) {
			c := s.publish(t, "c", network, both()...)
			t.Cleanup(func() { s.Delete(t, c) })
			near, far := s.Attach(t, "near", network), s.Attach(t, "far", s.Network("others", "10.30.0.0/24", "fd00:30::/64"))
			t.Cleanup(func() {
				s.Delete(t, near)
				s.Delete(t, far)
			})
			eachFamily(t, func(t *testing.T, f family) {
				for _, at := range []netip.Addr{f.uplink, f.another(), f.second(), f.gateway(c)} {
					portWay{name: "of the same network", from: near.NS, at: at, seen: f.of(near)}.check(t)
					portWay{name: "of another network", from: far.NS, at: at, seen: f.of(far)}.check(t)
					portWay{name: "itself", from: c.NS, at: at, seen: at, otherPort: true}.check(t)
				}
				portWay{name: "of another network, at its own gateway", from: far.NS, at: f.gateway(far), seen: f.of(far)}.check(t)
				testManyHairpins(t, c, f.uplink)
			})
		})
	}
	if drops := s.Drops(t); len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}
}

// testManyHairpins has a container speak with itself often at the same time.
func testManyHairpins(t *testing.T, c *nodetest.Container, at netip.Addr) {
	t.Helper()
	var (
		datagrams []*net.UDPConn
		streams   []*stream
		seen      = make(map[string]bool)
	)
	const many = 40
	for range many {
		datagrams = append(datagrams, dialUDP(t, c.NS, netip.AddrPort{}, netip.AddrPortFrom(at, hostUDP)))
		tcp, err := tryTCP(t, c.NS, netip.AddrPort{}, netip.AddrPortFrom(at, hostTCP))
		if err != nil {
			t.Fatalf("TCP connection %d of a container with itself: %v", len(streams), err)
		}
		streams = append(streams, tcp)
		seen["tcp "+tcp.Seen.String()] = true
	}
	for range 2 {
		for _, conn := range datagrams {
			got, err := tryUDP(conn, pattern(100), portPatience)
			if err != nil {
				t.Fatalf("UDP of a container with itself: %v", err)
			}
			seen["udp "+got.String()] = true
		}
		for _, tcp := range streams {
			if err := tcp.Exchange(pattern(1000)); err != nil {
				t.Fatalf("TCP of a container with itself: %v", err)
			}
		}
	}
	if len(seen) != 2*many {
		t.Errorf("the container saw %d clients of its own, not %d", len(seen), 2*many)
	}
	for _, conn := range datagrams {
		_ = conn.Close()
	}
	for _, tcp := range streams {
		_ = tcp.Close()
	}
}

// Mappings of many ports come in one ADD; each works, and the CLI lists them all.
func TestManyPorts(t *testing.T) {
	s := running(t)
	var ports []mapping
	for i := range uint16(100) {
		ports = append(ports, mapping{"", 10000 + i, containerTCP + i, []string{"tcp", "udp"}[i%2]})
	}
	c := s.Attach(t, "c", publishing(s.pods, ports...))
	var want []api.Port
	for _, p := range ports {
		for _, f := range families() {
			want = append(want, api.Port{
				Protocol: p.Protocol, Host: netip.AddrPortFrom(unspecified(f.world), p.HostPort),
				Container:  netip.AddrPortFrom(f.of(c), p.ContainerPort),
				Attachment: c.Attachment, Network: "pods",
			})
		}
	}
	var got []api.Port
	text := s.Run(t, s.Programs.CLI, "--socket", s.Socket, "-o", "json", "ports")
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("tendril ports -o json: %v\n%s", err, text)
	}
	less := func(a, b api.Port) bool { return fmt.Sprint(a) < fmt.Sprint(b) }
	if diff := cmp.Diff(want, got, cmpopts.SortSlices(less), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
	eachFamily(t, func(t *testing.T, f family) {
		for _, i := range []int{0, 42, 98} {
			serveTCP(t, c.NS, netip.AddrPortFrom(f.of(c), ports[i].ContainerPort))
			if got := dialTCP(t, s.world, netip.AddrPortFrom(f.uplink, ports[i].HostPort)).Seen.Addr(); got != f.world {
				t.Errorf("port %d: seen as %s, not %s", ports[i].HostPort, got, f.world)
			}
			serveUDP(t, c.NS, netip.AddrPortFrom(f.of(c), ports[i+1].ContainerPort))
			conn := dialUDP(t, s.world, netip.AddrPort{}, netip.AddrPortFrom(f.uplink, ports[i+1].HostPort))
			if got := askUDP(t, conn, pattern(100)).Addr(); got != f.world {
				t.Errorf("port %d: seen as %s, not %s", ports[i+1].HostPort, got, f.world)
			}
		}
	})
}

// Agents side by side on one machine have the same host ports, each its own, also for
// processes of the host. A third namespace has none.
func TestPortsOfTwoNodes(t *testing.T) {
	nodes := []*site{running(t), running(t)}
	containers := make([]*nodetest.Container, len(nodes))
	servers := make([]*named, len(nodes))
	for i, s := range nodes {
		name := fmt.Sprint("c", i)
		containers[i] = s.Attach(t, name, publishing(s.pods, both()...))
		servers[i] = serveNamed(t, containers[i].NS, name)
	}
	bystander := nstest.New(t, "bystander")
	eachFamily(t, func(t *testing.T, f family) {
		for i, s := range nodes {
			for _, from := range []*nstest.NS{s.world, s.NS} {
				for _, at := range []netip.Addr{f.uplink, f.loopback()} {
					if from == s.world && at == f.loopback() {
						continue
					}
					if got := greeted(t, from, at); !slices.Equal(got, []string{servers[i].name, servers[i].name}) {
						t.Errorf("from %s to %s: answered by %q, want %s", from.Name, at, got, servers[i].name)
					}
				}
			}
		}
		refuses(t, "third namespace", bystander, f.loopback())
	})
}

// greeted asks a named server by TCP and UDP, and returns who answered.
func greeted(t *testing.T, from *nstest.NS, at netip.Addr) []string {
	t.Helper()
	var names []string
	name, conn, err := greetTCP(t, from, netip.AddrPort{}, netip.AddrPortFrom(at, hostTCP))
	if err != nil {
		t.Errorf("TCP from %s to %s: %v", from.Name, at, err)
	} else {
		_ = conn.Close()
	}
	names = append(names, name)
	udp := dialUDP(t, from, netip.AddrPort{}, netip.AddrPortFrom(at, hostUDP))
	if name, err = greetUDP(udp, 1); err != nil {
		t.Errorf("UDP from %s to %s: %v", from.Name, at, err)
	}
	return append(names, name)
}

func (f family) loopback() netip.Addr {
	return f.choose(netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback())
}
