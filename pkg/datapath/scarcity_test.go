// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// scarcePort is the only port for masquerade of the node that TestScarcity uses.
const scarcePort = 50000

// TestScarcity runs out of all that a translation needs. There is one port, and
// room for two translations, which one endpoint may hold.
func TestScarcity(t *testing.T) {
	nstest.LeaveTo(t, "6.1")
	n := newNode(t, Config{
		Masquerade: true, FlowsMax: 256, TranslationsMax: 4, EndpointTranslations: 2,
		MasqueradePorts: [2]uint16{scarcePort, scarcePort},
	})
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range transports()[:4] {
			t.Run(tr.name, func(t *testing.T) {
				t.Run("ports", func(t *testing.T) { testPortsExhausted(t, n, f, tr) })
				t.Run("limit of an endpoint", func(t *testing.T) { testEndpointLimit(t, n, f, tr) })
				t.Run("reclaimed", func(t *testing.T) { testReclaimed(t, n, f, tr) })
			})
		}
		t.Run("closed connections give way", func(t *testing.T) { testClosedGiveWay(t, n, f) })
		t.Run("sweep", func(t *testing.T) { testSweep(t, n, f) })
		t.Run("host's socket", func(t *testing.T) { testOnlyPortIsHosts(t, n, f) })
	})
}

// restart empties the node, the clock's slots included.
func (n *node) restart(t *testing.T) {
	t.Helper()
	n.forget(t)
	for slot := range n.maps.Allocations.MaxEntries() {
		must(t, n.maps.Allocations.Put(slot, maps.Allocation{}))
	}
}

// wantSlots counts the slots in use: each translation holds one.
func (n *node) wantSlots(t *testing.T, want int) {
	t.Helper()
	used := make(map[maps.FlowKey]int)
	for slot := range n.maps.Allocations.MaxEntries() {
		var a maps.Allocation
		must(t, n.maps.Allocations.Lookup(slot, &a))
		if a.Reply.Protocol == 0 {
			continue
		}
		var tr maps.Translation
		if n.maps.Translations.Lookup(a.Reply, &tr) == nil {
			used[a.Reply]++
		}
	}
	if len(used) != want || len(n.translations(t)) != want {
		t.Errorf("slots: got %v for %+v, want %d", used, n.translations(t), want)
	}
}

// send is a packet of an endpoint to a place, and sentFrom what leaves for it.
func (n *node) send(e Endpoint, src, dst netip.Addr, tr transport, from uint16) run {
	return n.from(e, ip(src, dst, 64, tr.begin(from)...)...)
}

func (n *node) leavesAs(e Endpoint, f family, dst netip.Addr, tr transport) want {
	return forwarded(sent(e, ip(f.host, dst, 63, tr.begin(scarcePort)...)...), "decided")
}

// testPortsExhausted: one place can be reached once, other places still.
func testPortsExhausted(t *testing.T, n *node, f family, tr transport) {
	n.restart(t)
	answer := n.fromWorld(ip(f.world, f.host, 58, tr.back(scarcePort)...)...)
	n.story(t,
		step{"first", n.send(n.a, f.a, f.world, tr, low), n.leavesAs(n.a, f, f.world, tr)},
		step{"second", n.send(n.a, f.a, f.world, tr, low+1), drops("decided", "ports_exhausted")},
		step{"second again", n.send(n.a, f.a, f.world, tr, low+1), drops("decided", "ports_exhausted")},
		step{"another endpoint", n.send(n.b, f.b, f.world, tr, scarcePort), drops("decided", "ports_exhausted")},
		step{"by the stack", n.toWorld(seenNot, ip(f.a, f.world, 63, tr.begin(low+1)...)...), drops("ports_exhausted")},
		step{"another place", n.send(n.a, f.a, f.neighbour, tr, low+1), n.leavesAs(n.a, f, f.neighbour, tr)},
		step{"answer to the first", answer, deliveredAs(delivered(n.a, ip(f.world, f.a, 57, tr.back(low)...)...), "decided")},
	)
	n.wantSlots(t, 2)
	// The range ends where it ends.
	for _, from := range []uint16{0, scarcePort - 1, scarcePort + 1, 65535} {
		n.restart(t)
		n.check(t, n.send(n.a, f.a, f.world, tr, from), n.leavesAs(n.a, f, f.world, tr))
	}
}

// places are more than there is room for.
func (f family) places() []netip.Addr {
	return []netip.Addr{f.world, f.neighbour, f.world.Next(), f.world.Next().Next(), f.neighbour.Next()}
}

// testEndpointLimit: one endpoint cannot take all, and all is not more than there is.
func testEndpointLimit(t *testing.T, n *node, f family, tr transport) {
	n.restart(t)
	places := f.places()
	going := n.from(n.a, ip(f.a, places[0], 64, tr.there(low)...)...)
	n.story(t,
		step{"one", n.send(n.a, f.a, places[0], tr, low), n.leavesAs(n.a, f, places[0], tr)},
		step{"two", n.send(n.a, f.a, places[1], tr, low), n.leavesAs(n.a, f, places[1], tr)},
		step{"three", n.send(n.a, f.a, places[2], tr, low), drops("decided", "endpoint_limit")},
		step{"of another", n.send(n.b, f.b, places[3], tr, low), drops("decided", "translations_full")},
		step{"the first goes on", going, forwarded(sent(n.a, ip(f.host, places[0], 63, tr.there(scarcePort)...)...))},
	)
	n.wantSlots(t, 2)
}

// testReclaimed: dead translations make room without anybody's sweep.
func testReclaimed(t *testing.T, n *node, f family, tr transport) {
	n.restart(t)
	places := f.places()
	n.story(t,
		step{"one", n.send(n.a, f.a, places[0], tr, low), n.leavesAs(n.a, f, places[0], tr)},
		step{"two", n.send(n.a, f.a, places[1], tr, low), n.leavesAs(n.a, f, places[1], tr)},
	)
	n.elapse(t, 121)
	// At its limit, an endpoint finds room where its own are dead.
	n.story(t,
		step{"three", n.send(n.a, f.a, places[2], tr, low), n.leavesAs(n.a, f, places[2], tr)},
		step{"of another", n.send(n.b, f.b, places[3], tr, low), n.leavesAs(n.b, f, places[3], tr)},
	)
	n.wantSlots(t, 2)
	n.elapse(t, 121)
	// Where the table is full of the dead, the packet that wants room makes it.
	n.story(t, step{"full of dead", n.send(n.b, f.b, places[4], tr, low), n.leavesAs(n.b, f, places[4], tr)})
	n.wantSlots(t, 1)
}

// testClosedGiveWay: a closed connection waits, unless its port is needed.
func testClosedGiveWay(t *testing.T, n *node, f family) {
	n.restart(t)
	tr := transports()[0]
	reset := func(port uint16) []packet.Layer { return tcp(server, port, packet.RST) }
	n.story(t,
		step{"first", n.send(n.a, f.a, f.world, tr, low), n.leavesAs(n.a, f, f.world, tr)},
		step{
			"reset", n.fromWorld(ip(f.world, f.host, 58, reset(scarcePort)...)...),
			deliveredAs(delivered(n.a, ip(f.world, f.a, 57, reset(low)...)...), "decided"),
		},
		step{"second", n.send(n.b, f.b, f.world, tr, low), n.leavesAs(n.b, f, f.world, tr)},
		step{"the first begins again", n.send(n.a, f.a, f.world, tr, low), drops("decided", "ports_exhausted")},
		step{
			"answer to the second", n.fromWorld(ip(f.world, f.host, 58, tr.back(scarcePort)...)...),
			deliveredAs(delivered(n.b, ip(f.world, f.b, 57, tr.back(low)...)...), "decided"),
		},
	)
	n.wantSlots(t, 1)
}

// testSweep: the agent's sweep removes what is dead, and nothing else.
func testSweep(t *testing.T, n *node, f family) {
	n.restart(t)
	udp, tcp := transports()[1], transports()[0]
	n.check(t, n.send(n.a, f.a, f.world, udp, low), n.leavesAs(n.a, f, f.world, udp))
	n.check(t, n.send(n.a, f.a, f.world, tcp, low), n.leavesAs(n.a, f, f.world, tcp))
	sweep := func(want int) {
		t.Helper()
		n.do(t, func() error {
			freed, err := n.Reclaim()
			if freed != want {
				t.Errorf("freed: got %d, want %d", freed, want)
			}
			return err
		})
	}
	sweep(0)
	n.elapse(t, 31)
	sweep(1)
	n.wantTranslations(t, translation{
		protocol: tcp.protocol(f), inside: port(f.a, low), outside: port(f.host, scarcePort), world: port(f.world, server),
	})
	n.wantFlows(t, Flow{
		Protocol: tcp.protocol(f), Source: port(f.a, low), Destination: port(f.world, server), IfIndex: n.a.IfIndex,
		Action: "forward", TranslatesSource: true, To: port(f.host, scarcePort), OutIfIndex: n.uplink.IfIndex, NextHop: f.router,
		Packets: 1, Bytes: uint64(len(n.send(n.a, f.a, f.world, tcp, low).in) - 14),
	})
	must(t, n.bumpEpoch(uint32(n.a.ID)))
	sweep(1)
	n.wantTranslations(t)
	n.wantSlots(t, 0)
}

func testOnlyPortIsHosts(t *testing.T, n *node, f family) {
	n.restart(t)
	tr := transports()[1]
	defer n.socket(t, f, 2, f.host, false)()
	n.check(t, n.send(n.a, f.a, f.world, tr, scarcePort), drops("decided", "ports_exhausted"))
	n.wantTranslations(t)
}

// TestPortsDivided: whoever takes all ports it can get towards one place leaves some
// to every other endpoint, and has as many towards the next place.
func TestPortsDivided(t *testing.T) {
	nstest.LeaveTo(t, "5.10")
	const ports, flows = 128, 256
	n := newNode(t, Config{
		Masquerade: true, FlowsMax: 4096, TranslationsMax: 4096,
		MasqueradePorts: [2]uint16{scarcePort, scarcePort + ports - 1},
	})
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range transports()[:2] {
			t.Run(tr.name, func(t *testing.T) {
				n.restart(t)
				flood := func(e Endpoint, src, dst netip.Addr) (forwarded int) {
					for i := range uint16(flows) {
						if n.run(t, n.send(e, src, dst, tr, 1024+i)).verdict == redirect {
							forwarded++
						}
					}
					return forwarded
				}
				// Three quarters, as far as the search finds them and chance divides.
				for _, place := range []netip.Addr{f.world, f.neighbour} {
					if got := flood(n.a, f.a, place); got < ports*65/100 || got > ports*85/100 {
						t.Errorf("the first endpoint got %d of %d ports towards %s", got, ports, place)
					}
				}
				if got := flood(n.b, f.b, f.world); got < ports*10/100 {
					t.Errorf("the first endpoint left %d of %d ports to the second", got, ports)
				}
				counts := n.counts(t)
				if got := counts["from_container endpoint_limit"].Packets; got != 0 {
					t.Errorf("%d packets were refused as over the limit of an endpoint", got)
				}
			})
		}
	})
}

// TestMasqueradeOff: the node's switch is over that of each endpoint.
func TestMasqueradeOff(t *testing.T) {
	n := newNode(t, Config{})
	eachFamily(t, func(t *testing.T, f family) {
		for _, tr := range transports() {
			n.table(t,
				step{tr.name, n.send(n.a, f.a, f.world, tr, low), forwarded(sent(n.a, ip(f.a, f.world, 63, tr.begin(low)...)...), "decided")},
				step{tr.name + " by the stack", n.toWorld(seenNot, ip(f.a, f.world, 63, tr.there(low)...)...), untouched()},
			)
		}
	})
}
