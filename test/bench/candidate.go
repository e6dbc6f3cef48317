// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf/link"

	"github.com/tendril-net/tendril/pkg/datapath"
)

// Names of what is compared.
const (
	rawVeth  = "raw" // a veth pair without node
	tendril  = "tendril"
	chain    = "chain"          // bridge, host-local, portmap, firewall
	ptp      = "ptp"            // ptp, host-local
	bridge   = "bridge"         // bridge, host-local: ports of a bridge that nothing looks at
	redirect = "redirect"       // a program that knows nothing and redirects all; same node only
	beside   = "beside"         // another build of tendril
	bridged  = "tendril-bridge" // tendril's driver bridge; compared with bridge
)

var (
	nodeAddress  = netip.MustParseAddr("192.0.2.1")
	worldAddress = netip.MustParseAddr("192.0.2.2")
)

// candidate is one way to wire containers, wired.
type candidate struct {
	name string
	// label is its name in the report, if that is another.
	label string
	// node is nil for the bare pair, which has the world in the place of the
	// second container.
	node    *namespace
	network *network
	agent   *agent
	// datapath is there where no agent is.
	datapath *datapath.Datapath
	// sameNode is from container to container, toWorld from the first container
	// to the world; without a client there is no such path.
	sameNode, toWorld path
	// toPort is from the world to a mapped port of the node.
	toPort path
	// fromWorld is from the world to a container's own address.
	fromWorld  path
	namespaces []*namespace
	links      []link.Link
}

// called is its name in the report.
func (c *candidate) called() string { return cmp.Or(c.label, c.name) }

func (c *candidate) close() error {
	var errs []error
	if c.agent != nil {
		errs = append(errs, c.agent.stop())
	}
	if c.datapath != nil {
		errs = append(errs, c.datapath.Close())
	}
	for _, l := range c.links {
		errs = append(errs, l.Close())
	}
	for _, n := range c.namespaces {
		errs = append(errs, n.close())
	}
	return errors.Join(errs...)
}

// namespace makes one that the candidate owns.
func (c *candidate) namespace(role string) (*namespace, error) {
	n, err := newNamespace(c.name + "-" + role)
	if err != nil {
		return nil, err
	}
	c.namespaces = append(c.namespaces, n)
	// Where BBR is the machine's choice, its pacing would be measured. Reno is in
	// every kernel and allowed in every namespace.
	return n, n.sysctl("net/ipv4/tcp_congestion_control", "reno")
}

// wireRaw makes the baseline: two namespaces and one veth pair.
func wireRaw(_ context.Context, name string) (_ *candidate, err error) {
	c := &candidate{name: name}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	client, err := c.namespace("client")
	if err != nil {
		return nil, err
	}
	server, err := c.namespace("world")
	if err != nil {
		return nil, err
	}
	err = connect(end{client, "eth0", []string{nodeAddress.String() + "/24"}}, end{server, "eth0", []string{worldAddress.String() + "/24"}})
	if err != nil {
		return nil, err
	}
	c.sameNode = path{client: client, server: server, address: worldAddress}
	c.toWorld = c.sameNode
	return c, nil
}

// newNode makes a candidate with a node whose uplink leads to the world.
func newNode(name string) (_ *candidate, err error) {
	c := &candidate{name: name}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if c.node, err = c.namespace("node"); err != nil {
		return nil, err
	}
	world, err := c.namespace("world")
	if err != nil {
		return nil, err
	}
	err = connect(end{c.node, "up0", []string{nodeAddress.String() + "/24"}}, end{world, "eth0", []string{worldAddress.String() + "/24"}})
	if err != nil {
		return nil, err
	}
	if err := c.node.ip("route add default via " + worldAddress.String()); err != nil {
		return nil, err
	}
	c.toWorld = path{server: world, address: worldAddress}
	return c, nil
}

// join gives the node its network, of one of the kinds that are compared: for
// tendril with an agent.
func (b *bench) join(ctx context.Context, c *candidate, kind string) (err error) {
	c.network = &network{node: c.node, name: c.name, folder: b.plugins}
	switch kind {
	case chain:
		c.network.plugins = chainPlugins(c.name)
	case ptp, htb:
		c.network.plugins = ptpPlugins(c.name)
	case limited:
		c.network.plugins = limitPlugins(c.name)
	case bridge:
		c.network.plugins = bridgePlugins(c.name)
	default:
		c.network.folder = b.tendril
		if kind == beside {
			c.network.folder = b.beside
		}
		if c.agent, err = startAgent(ctx, filepath.Join(c.network.folder, "tendril-agent"), c.node, c.name); err != nil {
			return err
		}
		c.network.plugins = tendrilPlugins(c.agent.socket)
		if kind == bridged {
			c.network.plugins[0]["driver"], c.network.plugins[0]["isDefaultGateway"] = "bridge", true
		}
	}
	return nil
}

// wire makes a node with two containers, named as its kind.
func (b *bench) wire(ctx context.Context, name string) (*candidate, error) {
	return b.wireNamed(ctx, name, name)
}

func (b *bench) wireNamed(ctx context.Context, name, kind string) (_ *candidate, err error) {
	c, err := newNode(name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if err := b.join(ctx, c, kind); err != nil {
		return nil, err
	}
	var containers [2]*namespace
	for i := range containers {
		role := fmt.Sprintf("container%d", i)
		if containers[i], err = c.namespace(role); err != nil {
			return nil, err
		}
		// The last is the server.
		if c.sameNode.address, err = c.network.add(ctx, container{id: name + "-" + role, ns: containers[i]}); err != nil {
			return nil, err
		}
	}
	c.sameNode.client, c.sameNode.server = containers[0], containers[1]
	c.toWorld.client = containers[0]
	return c, nil
}

// need wires the candidates on first use.
func (b *bench) need(ctx context.Context) error {
	if b.candidates != nil {
		return nil
	}
	for _, name := range []string{rawVeth, redirect, tendril, beside, bridged, chain, ptp, bridge} {
		wanted := slices.Contains(b.against, name)
		switch name {
		case tendril:
			wanted = true
		case beside:
			wanted = b.beside != ""
		case bridged:
			wanted = slices.Contains(b.against, bridge)
		}
		if !wanted {
			continue
		}
		wire := b.wire
		switch name {
		case rawVeth:
			wire = wireRaw
		case redirect:
			wire = wireRedirect
		}
		c, err := wire(ctx, name)
		if err != nil {
			return fmt.Errorf("wire %s: %w", name, err)
		}
		b.candidates = append(b.candidates, c)
	}
	return nil
}

func (b *bench) close() error {
	var errs []error
	for _, c := range b.candidates {
		errs = append(errs, c.close())
	}
	return errors.Join(errs...)
}
