// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/datapath"
)

// mostForRules is what the lookup among cidrRules may add to a new flow, in ns.
const mostForRules = 300

// newFlows are flows to a container that has a policy.
type newFlows struct {
	label string
	rules []rule
	// from are the clients, in turn.
	from []netip.Addr

	compiled datapath.Policy
	meter    *programMeter
}

// firstPackets compares what the first packets of flows cost that come from outside.
func (b *bench) firstPackets(_ context.Context) error {
	return onGuarded("policy-new", func(g *guarded) error {
		many := blocks(cidrRules)
		from := clients(many, freshFlows)
		one, most := ruleCount(tendril, 1), ruleCount(tendril, cidrRules)
		kinds := []*newFlows{
			{label: ruleCount(tendril, 0), from: from},
			{label: one, rules: rulesFor([]netip.Prefix{outside}), from: from},
			{label: most, rules: rulesFor(many), from: from},
			// These tell what it is that costs: to find the prefix, or all that is not in
			// the CPU's caches.
			{label: fmt.Sprintf("%s of %d CIDRs", one, cidrRules), rules: []rule{{peers: ipBlocks(many)}}, from: from},
			{label: most + ", one client", rules: rulesFor(many), from: slices.Repeat(from[:1], freshFlows)},
		}
		for _, k := range kinds {
			if err := k.prepare(g); err != nil {
				return fmt.Errorf("%s: %w", k.label, err)
			}
			defer k.meter.close()
		}
		for round := range b.rounds + 1 {
			costs := make(map[string]float64)
			for _, k := range kinds {
				cost, err := g.firstPacket(k)
				if err != nil {
					return fmt.Errorf("%s: %w", k.label, err)
				}
				costs[k.label] = cost
			}
			if round == 0 {
				continue // the maps get their memory
			}
			for _, k := range kinds {
				b.book.add(metric{Section: "policy", Name: "new flow from outside", Unit: "ns", against: one}, k.label, costs[k.label])
			}
			b.book.add(metric{
				Section: "policy", Name: "new flow from outside, more than at 1 rule", Unit: "ns",
				goal: goal{Of: "median", AtMost: mostForRules}, subject: most,
			}, most, costs[most]-costs[one])
			b.progress("policy, new flows, round %d of %d", round, b.rounds)
		}
		return nil
	})
}

func (k *newFlows) prepare(g *guarded) (err error) {
	if k.compiled, err = compile(g.engine, k.rules); err != nil {
		return err
	}
	frame := packet.New(packet.Eth(g.world, g.uplink.MAC), packet.IP(k.from[0], g.containers[1].Addresses[0]),
		packet.UDP(40000, serverPort), packet.Payload(payloadSize))
	k.meter, err = newFreshMeter(g.datapath.Program("from_uplink"), g.uplink.IfIndex, frame, k.from)
	return err
}

// firstPacket returns the cost of the first packet of a flow in ns. The flows are removed
// again.
func (g *guarded) firstPacket(k *newFlows) (float64, error) {
	if err := g.datapath.ReconcilePolicy(k.compiled); err != nil {
		return 0, err
	}
	j := journey{program: "from_uplink", counter: "delivered"}
	before, err := counted(g.datapath, j)
	if err != nil {
		return 0, err
	}
	cost, err := k.meter.run(freshFlows)
	if err != nil {
		return 0, err
	}
	after, err := counted(g.datapath, j)
	if err != nil {
		return 0, err
	}
	if delivered, decided := after.wanted-before.wanted, after.decided-before.decided; delivered < freshFlows || delivered != decided {
		return 0, fmt.Errorf("of %d packets %d were delivered and %d decided: these are no new flows", freshFlows, delivered, decided)
	}
	return cost, g.forget()
}

// forget removes the flows of the endpoints.
func (g *guarded) forget() error {
	var ids []uint16
	for _, e := range g.containers {
		if err := g.datapath.DetachEndpoint(e); err != nil {
			return err
		}
		ids = append(ids, e.ID)
	}
	if err := g.datapath.Purge(ids); err != nil {
		return err
	}
	return g.attach(g.datapath)
}
