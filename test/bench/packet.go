// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/datapath"
)

// journey is one packet of an established flow.
type journey struct {
	name string
	// program that it meets, and what that counts.
	program, counter string
	ifindex          int
	frame            []byte
	goal             goal
}

// packet measures the programs by themselves.
func (b *bench) packet(_ context.Context) (err error) {
	node, err := newNamespace("packet")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.close()) }()
	s, err := newStage(node)
	if err != nil {
		return err
	}
	return node.do(func() (err error) {
		d, err := datapath.Open(datapath.Config{Root: home + "/bpf/packet", Masquerade: true})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.Close(), datapath.Remove(home+"/bpf/packet")) }()
		journeys, err := s.journeys(d)
		if err != nil {
			return err
		}
		meters, err := newJourneyMeters(d, journeys)
		if err != nil {
			return err
		}
		defer meters.close()
		for round := range b.rounds {
			for i, j := range journeys {
				cost, err := meters.run(i, b.repeat)
				if err != nil {
					return err
				}
				b.book.add(metric{Section: "packet", Name: j.name, Unit: "ns", goal: j.goal}, tendril, cost)
			}
			b.progress("packet, round %d of %d", round+1, b.rounds)
		}
		return nil
	})
}

// journeyMeters measure journeys through one datapath.
type journeyMeters struct {
	datapath *datapath.Datapath
	journeys []journey
	// meters are those of the journeys, in the same order.
	meters []*programMeter
}

func newJourneyMeters(d *datapath.Datapath, journeys []journey) (*journeyMeters, error) {
	m := &journeyMeters{datapath: d, journeys: journeys}
	for _, j := range journeys {
		one, err := newProgramMeter(d.Program(j.program), j.ifindex, j.frame)
		if err != nil {
			m.close()
			return nil, fmt.Errorf("%s: %w", j.name, err)
		}
		m.meters = append(m.meters, one)
	}
	return m, nil
}

func (m *journeyMeters) close() {
	for _, one := range m.meters {
		one.close()
	}
}

// run returns the cost of one packet of a journey in ns. All packets must have gone the
// way of an established flow.
func (m *journeyMeters) run(i, repeat int) (float64, error) {
	j := m.journeys[i]
	before, err := counted(m.datapath, j)
	if err != nil {
		return 0, err
	}
	cost, err := m.meters[i].run(repeat)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", j.name, err)
	}
	after, err := counted(m.datapath, j)
	if err != nil {
		return 0, err
	}
	// Decisions are taken anew every 10 s; more would be the slow path's cost.
	if n := after.wanted - before.wanted; n < uint64(repeat) || after.decided-before.decided > n/1000 {
		return 0, fmt.Errorf("%s: of %d packets %d were %s and %d decided anew: this is no established flow",
			j.name, repeat, n, j.counter, after.decided-before.decided)
	}
	return cost, nil
}

// tally is what a program has counted.
type tally struct{ wanted, decided uint64 }

func counted(d *datapath.Datapath, j journey) (tally, error) {
	counters, err := d.Counters()
	if err != nil {
		return tally{}, err
	}
	var t tally
	for _, c := range counters {
		switch {
		case c.Journey == j.program && c.Reason == j.counter:
			t.wanted = c.Packets
		case c.Journey == j.program && c.Reason == "decided":
			t.decided = c.Packets
		}
	}
	return t, nil
}

// stage is a node with two containers that exist for the datapath only: their
// links are there, their namespaces are not.
type stage struct {
	uplink     datapath.Uplink
	world      net.HardwareAddr
	containers [2]datapath.Endpoint
}

var farAway = [2]netip.Addr{netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db8:9::9")}

func newStage(node *namespace) (*stage, error) {
	s := &stage{world: packet.MAC("02:00:00:00:00:fe")}
	for _, one := range []struct{ from, to end }{
		{end{node, "up0", []string{"192.0.2.1/24", "2001:db8::1/64"}}, end{node, "world", nil}},
		{end{node, "host0", nil}, end{node, "container0", nil}},
		{end{node, "host1", nil}, end{node, "container1", nil}},
	} {
		if err := connect(one.from, one.to); err != nil {
			return nil, err
		}
	}
	for _, setting := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := node.sysctl("net/"+setting, "1"); err != nil {
			return nil, err
		}
	}
	for _, line := range []string{
		"route add default via 192.0.2.2",
		"route add default via 2001:db8::2",
		"neigh add 192.0.2.2 lladdr " + s.world.String() + " dev up0",
		"neigh add 2001:db8::2 lladdr " + s.world.String() + " dev up0",
	} {
		if err := node.ip(line); err != nil {
			return nil, err
		}
	}
	for i := range s.containers {
		host, err := node.handle.LinkByName(fmt.Sprintf("host%d", i))
		if err != nil {
			return nil, err
		}
		s.containers[i] = datapath.Endpoint{
			ID:      uint16(i + 1),
			IfIndex: host.Attrs().Index, IfName: host.Attrs().Name,
			MAC:     packet.MAC(fmt.Sprintf("02:00:00:00:00:%02x", i+1)),
			HostMAC: host.Attrs().HardwareAddr,
			Addresses: []netip.Addr{
				netip.AddrFrom4([4]byte{10, 10, 0, byte(i + 2)}),
				netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+2)),
			},
			MTU:        1500,
			Masquerade: true,
		}
	}
	up, err := node.handle.LinkByName("up0")
	if err != nil {
		return nil, err
	}
	s.uplink = datapath.Uplink{
		Name: "up0", IfIndex: up.Attrs().Index, MTU: 1500, MAC: up.Attrs().HardwareAddr,
		IPv4: nodeAddress, IPv6: netip.MustParseAddr("2001:db8::1"),
	}
	return s, nil
}

// attach has the datapath serve the node.
func (s *stage) attach(d *datapath.Datapath) error {
	if err := d.ReconcileUplinks([]datapath.Uplink{s.uplink}); err != nil {
		return err
	}
	for _, e := range s.containers {
		if err := d.AttachEndpoint(e); err != nil {
			return err
		}
	}
	return nil
}

// journeys attaches everything, opens connections, and returns packets of them.
func (s *stage) journeys(d *datapath.Datapath) ([]journey, error) {
	if err := s.attach(d); err != nil {
		return nil, err
	}
	var all []journey
	for i, family := range []string{"IPv4", "IPv6"} {
		forwarded, translated := goal{Of: "median", AtMost: 100}, goal{Of: "median", AtMost: 130}
		from, to := s.containers[0], s.containers[1]
		all = append(all, journey{
			name: "forwarded, UDP " + family, program: "from_container", counter: "delivered", ifindex: from.IfIndex, goal: forwarded,
			frame: packet.New(packet.Eth(from.MAC, from.HostMAC), packet.IP(from.Addresses[i], to.Addresses[i]),
				packet.UDP(40000, 5000), packet.Payload(payloadSize)),
		})
		for _, transport := range []string{"UDP", "TCP"} {
			there, back, err := s.open(d, i, transport)
			if err != nil {
				return nil, fmt.Errorf("open connection by %s over %s: %w", transport, family, err)
			}
			all = append(all, journey{
				name: "translated, " + transport + " " + family, program: "from_container", counter: "forwarded",
				ifindex: from.IfIndex, frame: there, goal: translated,
			}, journey{
				name: "its reply, " + transport + " " + family, program: "from_uplink", counter: "delivered",
				ifindex: s.uplink.IfIndex, frame: back, goal: translated,
			})
		}
	}
	for _, j := range all {
		if _, err := pass(d.Program(j.program), j.ifindex, j.frame); err != nil {
			return nil, fmt.Errorf("%s: %w", j.name, err)
		}
	}
	return all, nil
}

// open sends the first packets of a connection to the world and returns later
// ones of both directions.
func (s *stage) open(d *datapath.Datapath, family int, transport string) (there, back []byte, err error) {
	from, to := s.containers[0], farAway[family]
	node := s.uplink.IPv4
	header := 34
	if family == 1 {
		node, header = s.uplink.IPv6, 54
	}
	const local, remote = 50000, 443
	sent := func(flags packet.TCPFlags) []byte {
		layer := packet.UDP(local, remote)
		if transport == "TCP" {
			layer = packet.TCP(local, remote, flags)
		}
		return packet.New(packet.Eth(from.MAC, from.HostMAC), packet.IP(from.Addresses[family], to), layer, packet.Payload(payloadSize))
	}
	out, err := pass(d.Program("from_container"), from.IfIndex, sent(packet.SYN))
	if err != nil {
		return nil, nil, err
	}
	taken := binary.BigEndian.Uint16(out[header:])
	answer := func(flags packet.TCPFlags) []byte {
		layer := packet.UDP(remote, taken)
		if transport == "TCP" {
			layer = packet.TCP(remote, taken, flags)
		}
		return packet.New(packet.Eth(s.world, s.uplink.MAC), packet.IP(to, node), layer, packet.Payload(payloadSize))
	}
	_, err = pass(d.Program("from_uplink"), s.uplink.IfIndex, answer(packet.SYN|packet.ACK))
	return sent(packet.ACK), answer(packet.ACK), err
}

// redirected is TC_ACT_REDIRECT.
const redirected = 7

// pass sends one frame through a program, which must redirect it, and returns
// it as it comes out.
func pass(p *ebpf.Program, ifindex int, frame []byte) ([]byte, error) {
	out := make([]byte, len(frame)+256)
	options := &ebpf.RunOptions{Data: frame, DataOut: out, Context: packetContext(ifindex)}
	verdict, err := p.Run(options)
	if err != nil {
		return nil, err
	}
	if verdict != redirected {
		return nil, fmt.Errorf("the verdict is %d, not a redirect", int32(verdict))
	}
	return options.DataOut, nil
}
