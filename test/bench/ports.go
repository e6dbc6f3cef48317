// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
)

// Mapped ports that nobody connects to are firstPort and up. They end below
// net.ipv4.ip_local_port_range, of which the agent's metrics have one.
const (
	firstPort = 10_000
	maxPorts  = 20_000
)

// portsEach is how many ports lead to one container of a node that has many.
const portsEach = 100

// chainPorts is how many the chain maps at most: each takes it more than 10 ms.
const chainPorts = 1000

// clientAddress is the first of those that the world connects from.
var clientAddress = netip.MustParseAddr("192.0.2.16")

// portMappings are of n ports from the first on, each to the same one of the container.
func portMappings(protocol string, first, n int) []object {
	mappings := make([]object, n)
	for i := range mappings {
		mappings[i] = object{"hostPort": first + i, "containerPort": first + i, "protocol": protocol}
	}
	return mappings
}

// portCount is a number of mapped ports in the report.
func portCount(kind string, n int) string {
	if n == 1 {
		return kind + ", 1 port"
	}
	return fmt.Sprintf("%s, %d ports", kind, n)
}

// mappedPorts compares a node that has many mapped ports with one that has a single
// one. The world connects to the same port of both.
func (b *bench) mappedPorts(ctx context.Context) (err error) {
	var nodes []*candidate
	defer func() {
		for _, c := range nodes {
			err = errors.Join(err, c.close())
		}
	}()
	for _, one := range []struct {
		kind  string
		ports int
	}{{tendril, 1}, {tendril, b.ports}, {beside, b.ports}, {chain, 1}, {chain, min(b.ports, chainPorts)}} {
		if one.kind == beside && b.beside == "" || one.kind == chain && !slices.Contains(b.against, chain) {
			continue
		}
		c, err := b.wirePorts(ctx, one.kind, one.ports)
		if err != nil {
			return fmt.Errorf("wire %s: %w", portCount(one.kind, one.ports), err)
		}
		nodes = append(nodes, c)
	}
	return b.compare(ctx, scene{
		section: "ports", candidates: nodes, over: func(c *candidate) path { return c.toPort },
		against: portCount(tendril, 1), subject: portCount(tendril, b.ports),
	}, []comparison{
		{packets, "k/s", 1e3, goal{}},
		{requestResponse, "k/s", 1e3, ratio(0.97)},
		{connections, "k/s", 1e3, ratio(0.97)},
	})
}

// wirePorts makes a node with a number of mapped ports, one of which is the server's.
func (b *bench) wirePorts(ctx context.Context, kind string, ports int) (_ *candidate, err error) {
	c, err := newNode(fmt.Sprintf("%s-ports-%d", kind, ports))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	c.label = portCount(kind, ports)
	world := c.toWorld.server
	var sources []netip.Addr
	for a := clientAddress; len(sources) < connectPorts; a = a.Next() {
		sources = append(sources, a)
		if err := world.ip("addr add " + a.String() + "/24 dev eth0"); err != nil {
			return nil, err
		}
	}
	if err := b.join(ctx, c, kind); err != nil {
		return nil, err
	}
	for i := 0; i < ports-1; i += portsEach {
		role := strconv.Itoa(i / portsEach)
		ns, err := c.namespace(role)
		if err != nil {
			return nil, err
		}
		mappings := portMappings("tcp", firstPort+i, min(portsEach, ports-1-i))
		if _, err := c.network.add(ctx, container{id: c.name + "-" + role, ns: ns, ports: mappings}); err != nil {
			return nil, err
		}
	}
	server, err := c.namespace("server")
	if err != nil {
		return nil, err
	}
	// The last: where ports are rules, its rule is behind all others.
	mappings := append(portMappings("tcp", serverPort, 1), portMappings("udp", serverPort, 1)...)
	inside, err := c.network.add(ctx, container{id: c.name + "-server", ns: server, ports: mappings})
	if err != nil {
		return nil, err
	}
	if c.agent != nil {
		mapped, err := c.agent.Ports(ctx)
		if err != nil {
			return nil, fmt.Errorf("list mapped ports: %w", err)
		}
		if len(mapped) != ports+1 {
			return nil, fmt.Errorf("%d ports are mapped, and not %d and the server's by UDP", len(mapped), ports)
		}
	}
	c.toPort = path{client: world, server: server, address: nodeAddress, sources: sources, inside: inside}
	b.progress("ports: %s mapped", c.label)
	return c, nil
}
