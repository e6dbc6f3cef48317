// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net"
	"testing"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// TestLayer2: an endpoint without addresses is a station of its bridge with whatever address, by
// its MAC. Nobody believes of it what an endpoint's mark says.
func TestLayer2(t *testing.T) {
	n := withBridge(t, Config{Masquerade: true})
	quiet := n.a
	n.do(t, func() error { return n.DetachEndpoint(n.a) })
	quiet.Addresses, quiet.Layer2, quiet.Masquerade = nil, true, false
	n.do(t, func() error { return n.AttachEndpoint(quiet) })
	n.do(t, func() error { return n.CheckEndpoint(quiet) })
	everybody := packet.MAC("ff:ff:ff:ff:ff:ff")
	eachFamily(t, func(t *testing.T, f family) {
		own := n.onBridge(quiet, stationMAC(), ip(f.a, f.unknown, 64, udp(low, server)...)...)
		toB := n.onBridge(quiet, n.b.MAC, ip(f.a, f.b, 64, udp(low, server)...)...)
		n.table(t,
			step{"to a station", own, passed(seenNot)},
			step{"to an endpoint", toB, passed(seenNot)},
			step{"as an endpoint", n.onBridge(quiet, stationMAC(), ip(f.b, f.unknown, 64, udp(low, server)...)...), passed(seenNot)},
			step{"to the world, by the node", n.fromA(ip(f.unknown, f.world, 64, udp(low, server)...)...), passed(seenNot)},
			step{"to the world, by the node, as an endpoint", n.fromA(ip(f.b, f.world, 64, udp(low, server)...)...), drops("source_address")},
			step{"to no link", n.fromA(ip(f.unknown, f.martian, 64, udp(low, server)...)...), drops("martian")},
			step{"echo", n.onBridge(quiet, stationMAC(), ip(f.unknown, f.b, 64, packet.Echo(0, 1))...), passed(seenNot)},
			step{"to all", n.onBridge(quiet, everybody, ip(f.a, f.multicast, 1, udp(low, server)...)...), passed(seenNot)},
			step{"with another's MAC", n.as(n.b.MAC, ip(f.a, f.b, 64, udp(low, server)...)...), drops("source_mac")},
			step{"as a bridge", n.onBridge(quiet, packet.MAC("01:80:c2:00:00:00"), ip(f.a, f.b, 64, udp(low, server)...)...), drops("martian")},
			step{"tagged", own.tagged(5), drops("vlan")},
			step{"an endpoint answers it", n.onBridge(n.b, quiet.MAC, ip(f.b, f.a, 64, udp(server, low)...)...), passed(seenOwn, "decided")},
			step{"a station to it", n.byBridge(quiet, ip(f.unknown, f.a, 64, udp(low, server)...)...), passed(seenNot)},
		)
		testPassages(t, stationPassages(n, f, quiet, 0))
		t.Run("egress", func(t *testing.T) {
			n.enforce(t, n.policy().restrict(quiet, egress).allow(setOne, 0))
			n.story(t, step{"policy does not know it", toB, denied("policy_egress")})
		})
		t.Run("ingress", func(t *testing.T) {
			n.enforce(t, n.policy().restrict(quiet, ingress).allow(setOne, 0))
			n.story(t,
				step{"it sends", toB, passed(seenNot)},
				step{"and gets nothing", n.byBridge(quiet, ip(f.unknown, f.a, 64, udp(low, server)...)...), denied("policy_ingress")},
			)
		})
		t.Run("ingress of another", func(t *testing.T) {
			n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofC))
			by := func(as net.HardwareAddr, layers ...packet.Layer) run {
				r := n.byBridge(n.b, layers...)
				copy(r.in[6:12], as)
				return r
			}
			own := by(quiet.MAC, ip(f.unknown, f.b, 64, udp(low, server)...)...)
			own.ingress = quiet.IfIndex
			n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofA))
			n.story(t, step{"by the bridge it is who it is", own, passed(seenNot)})
			n.enforce(t, n.policy().restrict(n.b, ingress).allow(setOne, ofC))
			n.story(t,
				step{"as who may not", by(quiet.MAC, ip(f.unknown, f.b, 64, udp(low, server)...)...), denied("policy_ingress")},
				step{"as who may", by(quiet.MAC, ip(f.c, f.b, 64, udp(low, server)...)...), drops("martian")},
			)
		})
	})
	n.claims(t, quiet, func(r run) run { return r })
	n.table(t,
		step{
			"ARP of another station", n.fromA(packet.ARPReply(packet.Station{MAC: n.b.MAC, IP: v4().unknown}, packet.Station{MAC: n.b.MAC, IP: v4().b})),
			drops("source_mac"),
		},
		step{"no IP", run{program: fromContainer, device: quiet.IfIndex, in: strange(quiet.MAC, stationMAC())}, passed(seenNot)},
	)
	var device maps.Interface
	must(t, n.maps.Interfaces.Lookup(uint32(quiet.IfIndex), &device))
	if device.Flags != maps.InterfaceLayer2 {
		t.Errorf("flags %#x", device.Flags)
	}
	const fault = "endpoint 1 has addresses or ports, or no bridge, although it is of layer 2"
	for name, change := range map[string]func(*Endpoint){
		"addresses": func(e *Endpoint) { e.Addresses = n.a.Addresses },
		"ports":     func(e *Endpoint) { e.Ports = []Port{{}} },
		"no bridge": func(e *Endpoint) { e.Bridge = 0 },
	} {
		e := quiet
		e.ID = 1
		change(&e)
		if err := n.AttachEndpoint(e); err == nil || err.Error() != fault {
			t.Errorf("%s: %v", name, err)
		}
	}
}
