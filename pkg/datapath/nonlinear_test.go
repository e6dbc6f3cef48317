// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
)

// nonLinear are packets of which programs can read nothing but the Ethernet header, unless they ask, when
// they come by a ring.
func nonLinear() map[string]func(src, dst uint16) []packet.Layer {
	return map[string]func(src, dst uint16) []packet.Layer{
		"UDP": func(src, dst uint16) []packet.Layer {
			return []packet.Layer{packet.UDP(src, dst), packet.Payload(700)}
		},
		"TCP": func(src, dst uint16) []packet.Layer { return tcp(src, dst, packet.SYN, packet.MSS(1460)) },
		"ICMP": func(src, _ uint16) []packet.Layer {
			return []packet.Layer{packet.Echo(src, 1), packet.Payload(700)}
		},
	}
}

// sendNonLinear has somebody in a namespace send a frame by a ring.
func sendNonLinear(t *testing.T, ns *nstest.NS, device string, frame []byte) {
	t.Helper()
	sendByRing(t, ns, device, binary.BigEndian.Uint16(frame[12:]), nil, frame)
}

// wantHeard waits for a frame, among those that the stacks answer, and for none that is not to come before it.
func (l rawListener) wantHeard(t *testing.T, way string, want []byte, f family, unwanted ...[]byte) {
	t.Helper()
	l.hearLike(t, way, want[:6], f, func([]byte) []byte { return want }, unwanted...)
}

// hearLike is wantHeard for a frame of which the one that is heard has to tell something.
func (l rawListener) hearLike(t *testing.T, way string, of net.HardwareAddr, f family, want func(got []byte) []byte, unwanted ...[]byte) []byte {
	t.Helper()
	for {
		got := l.hear(t, of, f)
		diff := packet.Diff(want(got), got)
		if diff == "" {
			return got
		}
		if slices.ContainsFunc(unwanted, func(frame []byte) bool { return bytes.Equal(frame, got) }) {
			t.Errorf("%s came: %s", way, packet.Summary(got))
		}
		t.Logf("%s, heard before:\n%s", way, diff)
	}
}

// TestNonLinear has programs meet packets that are not linear: they do with them what they do with
// others, to the byte.
func TestNonLinear(t *testing.T) {
	nstest.Halve(t, 0)
	s := newSite(t, "")
	d := s.open(t)
	t.Cleanup(func() { _ = d.Close() })
	a, b := s.ends[0], s.ends[1]
	world := s.device(t, s.world, "eth0").Attrs().HardwareAddr
	inA, inB, inWorld := listenRaw(t, s.a), listenRaw(t, s.b), listenRaw(t, s.world)
	ofWorld := func(layers ...packet.Layer) []byte { return frame(world, s.uplink.MAC, layers...) }
	bothFamilies(t, func(t *testing.T, f family) {
		for name, layers := range nonLinear() {
			t.Run(name, func(t *testing.T) {
				sendNonLinear(t, s.a, "eth0", sent(a, ip(f.a, f.b, 64, layers(inside, server)...)...))
				inB.wantHeard(t, "to a container", delivered(b, ip(f.a, f.b, 63, layers(inside, server)...)...), f)
				sendNonLinear(t, s.a, "eth0", sent(a, ip(f.a, f.router, 64, layers(inside, server)...)...))
				outside := f.sourceOf(inWorld.hearLike(t, "to the world", world, f, func(got []byte) []byte {
					return frame(s.uplink.MAC, world, ip(f.host, f.router, 63, layers(f.sourceOf(got, name), server)...)...)
				}), name)
				answer := func(port uint16) []packet.Layer { return layers(server, port) }
				if name == "ICMP" {
					answer = func(port uint16) []packet.Layer {
						return []packet.Layer{packet.EchoReply(port, 1), packet.Payload(700)}
					}
				}
				sendNonLinear(t, s.world, "eth0", ofWorld(ip(f.router, f.host, 64, answer(outside)...)...))
				inA.wantHeard(t, "answer of the world", delivered(a, ip(f.router, f.a, 63, answer(inside)...)...), f)
				sendNonLinear(t, s.world, "eth0", ofWorld(ip(f.router, f.b, 64, layers(low, server)...)...))
				inB.wantHeard(t, "of the world", delivered(b, ip(f.router, f.b, 63, layers(low, server)...)...), f)
			})
		}
	})
	bothFamilies(t, func(t *testing.T, f family) {
		for _, name := range []string{"UDP", "TCP"} {
			t.Run(name+" for others", func(t *testing.T) { testNonLinearService(t, s, d, f, name, inA, inWorld) })
		}
	})
	bothFamilies(t, func(t *testing.T, f family) {
		for _, name := range []string{"UDP", "TCP"} {
			t.Run(name+" to a mapped port", func(t *testing.T) { testNonLinearPort(t, s, d, f, name, inA, inB, inWorld) })
		}
	})
	// Without an uplink it is the stack that forwards, which reads no more than it needs.
	s.node.Do(t, func() { must(t, d.ReconcileUplinks(nil)) })
	policy := Policy{
		Active: true, Subjects: map[uint16]Subject{a.ID: {Identity: ofA}, b.ID: {Identity: ofB, Ingress: setOne}},
		Identities: map[netip.Prefix]uint32{}, Entries: map[PolicyPair][]PolicyRange{},
	}
	must(t, d.ReconcilePolicy(policy.services(0)))
	bothFamilies(t, func(t *testing.T, f family) {
		for _, name := range []string{"UDP", "TCP"} {
			t.Run(name+" by the stack", func(t *testing.T) {
				layers := nonLinear()[name]
				for _, port := range []uint16{server + 1, server} {
					sendNonLinear(t, s.world, "eth0", ofWorld(ip(f.router, f.b, 64, layers(low, port)...)...))
				}
				arrives := func(port uint16) []byte { return delivered(b, ip(f.router, f.b, 63, layers(low, port)...)...) }
				inB.wantHeard(t, "what policy lets in", arrives(server), f, arrives(server+1))
			})
		}
	})
	// The last, since nobody reads what these sockets hear of it.
	t.Run("TCP beyond 64 KiB", func(t *testing.T) { testBigTCP(t, s, d) })
	t.Run("on a bridge", func(t *testing.T) { testNonLinearBridge(t, s, d) })
}

// testNonLinearService: what is left to the stack is hidden at the uplink, and its answer finds back by the stack.
func testNonLinearService(t *testing.T, s *site, d *Datapath, f family, name string, inA, inWorld rawListener) {
	a, layers := s.ends[0], nonLinear()[name]
	world := s.device(t, s.world, "eth0").Attrs().HardwareAddr
	must(t, d.ReconcileStackDestinations([]netip.Prefix{netip.PrefixFrom(f.world, f.world.BitLen())}))
	defer func() { must(t, d.ReconcileStackDestinations(nil)) }()
	hidden := func(way string) (outside uint16) {
		return f.sourceOf(inWorld.hearLike(t, way, world, f, func(got []byte) []byte {
			return frame(s.uplink.MAC, world, ip(f.host, f.world, 63, layers(f.sourceOf(got, name), server)...)...)
		}), name)
	}
	// What comes by a container's program has been made linear as far as that has read.
	sendNonLinear(t, s.node, "up0", frame(s.uplink.MAC, world, ip(f.a, f.world, 63, layers(inside+1, server)...)...))
	hidden("to the world, as the stack's own")
	sendNonLinear(t, s.a, "eth0", sent(a, ip(f.a, f.world, 64, layers(inside, server)...)...))
	outside := hidden("to the world")
	sendNonLinear(t, s.world, "eth0", frame(world, s.uplink.MAC, ip(f.world, f.host, 64, layers(server, outside)...)...))
	inA.wantHeard(t, "answer of the world", delivered(a, ip(f.world, f.a, 63, layers(server, inside)...)...), f)
}

// testNonLinearPort: the world and a dial a port of the host that leads to b, which answers.
func testNonLinearPort(t *testing.T, s *site, d *Datapath, f family, name string, inA, inB, inWorld rawListener) {
	a, b, layers := s.ends[0], s.ends[1], nonLinear()[name]
	world := s.device(t, s.world, "eth0").Attrs().HardwareAddr
	protocol := map[string]uint8{"UDP": unix.IPPROTO_UDP, "TCP": unix.IPPROTO_TCP}[name]
	b.Ports = []Port{{f.host, hostPort, protocol, f.b, server}}
	s.node.Do(t, func() {
		must(t, errors.Join(d.AttachEndpoint(b), d.ReconcileHostAddresses([]netip.Addr{f.host})))
	})
	defer s.node.Do(t, func() { must(t, errors.Join(d.AttachEndpoint(s.ends[1]), d.ReconcileHostAddresses(nil))) })
	sendNonLinear(t, s.world, "eth0", frame(world, s.uplink.MAC, ip(f.router, f.host, 64, layers(low, hostPort)...)...))
	inB.wantHeard(t, "of the world", delivered(b, ip(f.router, f.b, 63, layers(low, server)...)...), f)
	sendNonLinear(t, s.b, "eth0", sent(b, ip(f.b, f.router, 64, layers(server, low)...)...))
	inWorld.wantHeard(t, "answer to the world", frame(s.uplink.MAC, world, ip(f.host, f.router, 63, layers(hostPort, low)...)...), f)
	sendNonLinear(t, s.a, "eth0", sent(a, ip(f.a, f.host, 64, layers(low, hostPort)...)...))
	inB.wantHeard(t, "of a", delivered(b, ip(f.a, f.b, 63, layers(low, server)...)...), f)
	sendNonLinear(t, s.b, "eth0", sent(b, ip(f.b, f.a, 64, layers(server, low)...)...))
	inA.wantHeard(t, "answer to a", delivered(a, ip(f.host, f.a, 63, layers(hostPort, low)...)...), f)
}

// testNonLinearBridge: a and b become ports of a bridge that has another station.
func testNonLinearBridge(t *testing.T, s *site, d *Datapath) {
	station := nstest.New(t, "station")
	s.node.Run(t, "ip", "link", "add", "br0", "address", "02:00:00:00:b0:00", "up", "type", "bridge")
	nstest.Veth(t, s.node, "port0", station, "eth0")
	s.node.Run(t, "ip", "link", "set", "port0", "master", "br0")
	ends := slices.Clone(s.ends)
	for i := range ends {
		ends[i].Bridge, ends[i].HostMAC = s.device(t, s.node, "br0").Attrs().Index, packet.MAC("02:00:00:00:b0:00")
		s.node.Run(t, "ip", "link", "set", ends[i].IfName, "address", ends[i].HostMAC.String(), "master", "br0")
		s.node.Do(t, func() { must(t, errors.Join(d.AttachEndpoint(ends[i]), d.CheckEndpoint(ends[i]))) })
	}
	a, b, mac := ends[0], ends[1], s.device(t, station, "eth0").Attrs().HardwareAddr
	for _, f := range []family{v4(), v6()} { // or it would be behind an uplink, by the default route
		s.route(t, s.node, netlink.Route{LinkIndex: a.Bridge, Scope: netlink.SCOPE_LINK, Dst: ipNet(netip.PrefixFrom(f.unknown, f.unknown.BitLen()))})
	}
	inB, inStation := listenRaw(t, s.b), listenRaw(t, station)
	bothFamilies(t, func(t *testing.T, f family) {
		for _, name := range []string{"UDP", "TCP"} {
			t.Run(name, func(t *testing.T) {
				layers := nonLinear()[name]
				toB := func(port uint16) []byte { return frame(a.MAC, b.MAC, ip(f.a, f.b, 64, layers(low, port)...)...) }
				ofStation := func(port uint16) []byte { return frame(mac, b.MAC, ip(f.unknown, f.b, 64, layers(low, port)...)...) }
				toStation := frame(a.MAC, mac, ip(f.a, f.unknown, 64, layers(low, server)...)...)
				for _, port := range []uint16{server + 1, server} { // the policy is that of before
					sendNonLinear(t, s.a, "eth0", toB(port))
				}
				inB.wantHeard(t, "to a port", toB(server), f, toB(server+1))
				for _, port := range []uint16{server + 1, server} {
					sendNonLinear(t, station, "eth0", ofStation(port))
				}
				inB.wantHeard(t, "of a station", ofStation(server), f, ofStation(server+1))
				sendNonLinear(t, s.a, "eth0", toStation)
				inStation.wantHeard(t, "to a station", toStation, f)
			})
		}
	})
}

// testNonLinearChildren: the same by the programs of a parent, in both directions.
func testNonLinearChildren(t *testing.T, w *wired) {
	x, y := w.endpoints["x"], w.endpoints["y"]
	neighbour, err := w.neighbour.Handle.LinkByName("p0")
	must(t, err)
	inX, inY, onWire := listenRaw(t, w.containers["x"]), listenRaw(t, w.containers["y"]), listenAt(t, w.neighbour, "p0")
	stranger := neighbour.Attrs().HardwareAddr
	policy := Policy{
		Active:     true,
		Subjects:   map[uint16]Subject{x.ID: {Identity: ofX, Ingress: setOne}, y.ID: {Identity: ofX + 1, Ingress: setOne}, w.endpoints["z"].ID: {Identity: ofX + 2}},
		Identities: map[netip.Prefix]uint32{}, Entries: map[PolicyPair][]PolicyRange{},
	}
	must(t, w.ReconcilePolicy(policy.services(0)))
	defer func() { must(t, w.ReconcilePolicy(Policy{})) }()
	for i, f := range []family{v4(), v6()} {
		ofX, ofY, outside := wiredAddresses(2)[i], wiredAddresses(3)[i], wiredAddresses(9)[i]
		for _, name := range []string{"UDP", "TCP"} {
			t.Run(f.name+" "+name, func(t *testing.T) {
				layers := nonLinear()[name]
				toY := func(port uint16) []byte { return frame(x.MAC, y.MAC, ip(ofX, ofY, 64, layers(low, port)...)...) }
				toX := func(port uint16) []byte {
					return frame(stranger, x.MAC, ip(outside, ofX, 64, layers(low, port)...)...)
				}
				toWire := frame(x.MAC, stranger, ip(ofX, outside, 64, layers(low, server)...)...)
				sendNonLinear(t, w.containers["x"], "eth0", toY(server+1))
				sendNonLinear(t, w.containers["x"], "eth0", toY(server))
				inY.wantHeard(t, "to a sibling", toY(server), f, toY(server+1))
				sendNonLinear(t, w.containers["x"], "eth0", toWire)
				onWire.wantHeard(t, "to the wire", toWire, f)
				for _, port := range []uint16{server + 1, server} {
					sendNonLinear(t, w.neighbour, "p0", toX(port))
				}
				inX.wantHeard(t, "of the wire", toX(server), f, toX(server+1))
			})
		}
	}
}

// testNonLinearChildPort: the neighbour dials a port of the host that leads to a child of the uplink, which answers.
func testNonLinearChildPort(t *testing.T, w *wired, x Endpoint) {
	neighbour, err := w.neighbour.Handle.LinkByName("p0")
	must(t, err)
	stranger := neighbour.Attrs().HardwareAddr
	inX, onWire := listenRaw(t, w.containers["x"]), listenAt(t, w.neighbour, "p0")
	for i, own := range x.Addresses {
		for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			x.Ports = append(x.Ports, Port{wiredAddresses(1)[i], hostPort, protocol, own, server})
		}
	}
	w.node.Do(t, func() { must(t, w.AttachEndpoint(x)) })
	// As the agent has it: who is outside is asked of the routes.
	w.node.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	for i, f := range []family{v4(), v6()} {
		host, own, outside := wiredAddresses(1)[i], x.Addresses[i], wiredAddresses(9)[i]
		// What waits for its neighbour has another source: see answer_by of bpf/to_parent.c.
		w.node.Run(t, "ip", "neigh", "replace", outside.String(), "lladdr", stranger.String(), "dev", "p0", "nud", "permanent")
		for _, name := range []string{"UDP", "TCP"} {
			if !t.Run(f.name+" "+name, func(t *testing.T) {
				layers := nonLinear()[name]
				sendNonLinear(t, w.neighbour, "p0", frame(stranger, x.HostMAC, ip(outside, host, 64, layers(low, hostPort)...)...))
				inX.wantHeard(t, "to the port", frame(x.HostMAC, x.MAC, ip(outside, own, 63, layers(low, server)...)...), f)
				sendNonLinear(t, w.containers["x"], "eth0", frame(x.MAC, stranger, ip(own, outside, 64, layers(server, low)...)...))
				onWire.wantHeard(t, "answer", frame(x.HostMAC, stranger, ip(host, outside, 63, layers(hostPort, low)...)...), f)
			}) {
				return
			}
		}
	}
}

// sourceOf is the source port, or the identifier of an echo, of a frame that was masqueraded.
func (f family) sourceOf(frame []byte, transport string) uint16 {
	at := 14 + 20
	if f.v6() {
		at = 14 + 40
	}
	if transport == "ICMP" {
		at += 4
	}
	return binary.BigEndian.Uint16(frame[at:])
}
