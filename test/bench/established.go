// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/datapath"
)

// established are n rules, 1 or more, of which the first lets in what established flows
// come from. None makes another one needless.
func established(n int) []rule {
	rules := []rule{{peers: []string{everyPod, ipBlock(host(farAway[0])), ipBlock(host(farAway[1]))}}}
	for i, p := range blocks((n + 2) / 4) {
		for port := range min(4, n-1-4*i) {
			rules = append(rules, rule{peers: []string{ipBlock(p)}, port: uint16(80 + port)})
		}
	}
	return rules
}

// establishedPackets compares what the programs cost for packets of established flows.
func (b *bench) establishedPackets(_ context.Context) error {
	return onGuarded("policy-established", func(g *guarded) error {
		var policies []datapath.Policy
		counts := []int{0, 1, establishedRules}
		for _, n := range counts {
			var rules []rule
			if n > 0 {
				rules = established(n)
			}
			p, err := compile(g.engine, rules)
			if err != nil {
				return err
			}
			policies = append(policies, p)
		}
		journeys, err := g.establishedJourneys()
		if err != nil {
			return err
		}
		meters, err := newJourneyMeters(g.datapath, journeys)
		if err != nil {
			return err
		}
		defer meters.close()
		for round := range b.rounds {
			for i, n := range counts {
				if err := b.establishedRound(g, meters, policies[i], ruleCount(tendril, n)); err != nil {
					return fmt.Errorf("%s: %w", ruleCount(tendril, n), err)
				}
			}
			b.progress("policy, established flows, round %d of %d", round+1, b.rounds)
		}
		return nil
	})
}

// establishedRound takes a sample of each journey with a policy.
func (b *bench) establishedRound(g *guarded, meters *journeyMeters, p datapath.Policy, label string) error {
	if err := g.datapath.ReconcilePolicy(p); err != nil {
		return err
	}
	// All is decided anew, so that connections are as this policy leaves them.
	if _, err := g.establishedJourneys(); err != nil {
		return err
	}
	for i, j := range meters.journeys {
		cost, err := meters.run(i, b.repeat)
		if err != nil {
			return err
		}
		b.book.add(metric{
			Section: "policy", Name: j.name, Unit: "ns", goal: goal{Of: "ratio", AtMost: 1.05},
			against: ruleCount(tendril, 1), subject: ruleCount(tendril, establishedRules),
		}, label, cost)
	}
	return nil
}

// establishedJourneys opens connections and returns packets of them.
func (g *guarded) establishedJourneys() ([]journey, error) {
	var all []journey
	client, server := g.containers[0], g.containers[1]
	for i, family := range []string{"IPv4", "IPv6"} {
		for _, transport := range []string{"UDP", "TCP"} {
			datagram := func(from, to uint16, flags packet.TCPFlags) packet.Layer {
				if transport == "TCP" {
					return packet.TCP(from, to, flags)
				}
				return packet.UDP(from, to)
			}
			const clientPort, world = 40000, 41000
			there := func(flags packet.TCPFlags) []byte {
				return packet.New(packet.Eth(client.MAC, client.HostMAC), packet.IP(client.Addresses[i], server.Addresses[i]),
					datagram(clientPort, serverPort, flags), packet.Payload(payloadSize))
			}
			back := packet.New(packet.Eth(server.MAC, server.HostMAC), packet.IP(server.Addresses[i], client.Addresses[i]),
				datagram(serverPort, clientPort, packet.SYN|packet.ACK), packet.Payload(payloadSize))
			inward := func(flags packet.TCPFlags) []byte {
				return packet.New(packet.Eth(g.world, g.uplink.MAC), packet.IP(farAway[i], server.Addresses[i]),
					datagram(world, serverPort, flags), packet.Payload(payloadSize))
			}
			outward := packet.New(packet.Eth(server.MAC, server.HostMAC), packet.IP(server.Addresses[i], farAway[i]),
				datagram(serverPort, world, packet.SYN|packet.ACK), packet.Payload(payloadSize))
			for _, first := range []journey{
				{program: "from_container", ifindex: client.IfIndex, frame: there(packet.SYN)},
				{program: "from_container", ifindex: server.IfIndex, frame: back},
				{program: "from_uplink", ifindex: g.uplink.IfIndex, frame: inward(packet.SYN)},
				{program: "from_container", ifindex: server.IfIndex, frame: outward},
			} {
				if _, err := pass(g.datapath.Program(first.program), first.ifindex, first.frame); err != nil {
					return nil, fmt.Errorf("open connection by %s over %s: %w", transport, family, err)
				}
			}
			all = append(all, journey{
				name: "established, container to container, " + transport + " " + family, program: "from_container", counter: "delivered",
				ifindex: client.IfIndex, frame: there(packet.ACK),
			}, journey{
				name: "established, outside to container, " + transport + " " + family, program: "from_uplink", counter: "delivered",
				ifindex: g.uplink.IfIndex, frame: inward(packet.ACK),
			})
		}
	}
	for _, j := range all {
		if _, err := pass(g.datapath.Program(j.program), j.ifindex, j.frame); err != nil {
			return nil, fmt.Errorf("%s: %w", j.name, err)
		}
	}
	return all, nil
}

// establishedTraffic compares traffic of established flows from container to container.
func (b *bench) establishedTraffic(ctx context.Context) (err error) {
	var nodes []*candidate
	defer func() { err = errors.Join(err, closeAll(nodes)) }()
	for _, n := range []int{1, establishedRules} {
		c, err := b.wireGuarded(ctx, "established", established(n))
		if err != nil {
			return err
		}
		nodes = append(nodes, c)
	}
	return b.compare(ctx, scene{
		section: "policy", about: "container to container, ", candidates: nodes, over: func(c *candidate) path { return c.sameNode },
		against: ruleCount(tendril, 1), subject: ruleCount(tendril, establishedRules),
	}, []comparison{
		{packets, "k/s", 1e3, ratio(0.95)},
		{requestResponse, "k/s", 1e3, ratio(0.95)},
	})
}
