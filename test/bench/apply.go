// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/tendril-net/tendril/internal/packet"
	nodeagent "github.com/tendril-net/tendril/pkg/agent"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/policy"
)

const (
	// applyEndpoints are on the node that rules are applied to.
	applyEndpoints = 100
	// applyTime is what cidrRules may take to count, in ms.
	applyTime = 1000
)

// applyRules measures how long it takes from the text of rules to what the programs ask.
func (b *bench) applyRules(_ context.Context) (err error) {
	node, err := newNamespace("policy-apply")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.close()) }()
	endpoints, devices, err := crowd(node, applyEndpoints)
	if err != nil {
		return err
	}
	engine, err := newEngine(endpoints)
	if err != nil {
		return err
	}
	var rules []rule
	for _, p := range blocks(cidrRules) {
		rules = append(rules, rule{peers: []string{ipBlock(p)}, port: 80})
	}
	return node.do(func() (err error) {
		root := filepath.Join(home, "bpf", "policy-apply")
		d, err := datapath.Open(datapath.Config{Root: root})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.Close(), datapath.Remove(root)) }()
		for _, e := range devices {
			if err := d.AttachEndpoint(e); err != nil {
				return err
			}
		}
		for round := range b.rounds + 1 {
			for _, shape := range []struct {
				name      string
				perPolicy int
			}{
				{fmt.Sprintf("%d rules of a policy", cidrRules), cidrRules},
				{fmt.Sprintf("%d policies of a rule", cidrRules), 1},
			} {
				took, err := applyOnce(d, engine, manifest("policy", rules, shape.perPolicy))
				if err != nil {
					return fmt.Errorf("apply %s: %w", shape.name, err)
				}
				if round > 0 { // the first grows the maps and the heap
					took.note(&b.book, shape.name)
				}
			}
		}
		b.progress("policy, applied to %d endpoints %d times", applyEndpoints, b.rounds)
		return nil
	})
}

// application is how long the parts of applying rules took.
type application struct{ parse, compile, tables, load time.Duration }

// applyOnce applies rules where there are none, and removes them again.
func applyOnce(d *datapath.Datapath, empty *policy.Engine, text []byte) (a application, err error) {
	began := time.Now()
	lap := func() time.Duration {
		now := time.Now()
		defer func() { began = now }()
		return now.Sub(began)
	}
	objects, err := policy.Parse("rules.yaml", text)
	if err != nil {
		return a, err
	}
	a.parse = lap()
	engine, err := empty.With(objects)
	if err != nil {
		return a, err
	}
	a.compile = lap()
	next := nodeagent.DatapathPolicy(engine.Tables())
	a.tables = lap()
	if err := d.ReconcilePolicy(next); err != nil {
		return a, err
	}
	a.load = lap()
	if n := len(next.Identities); n < cidrRules {
		return a, fmt.Errorf("%d prefixes stand for %d rules", n, cidrRules)
	}
	return a, d.ReconcilePolicy(nodeagent.DatapathPolicy(empty.Tables()))
}

// note writes down the whole, which has the goal, and its parts.
func (a application) note(b *book, shape string) {
	for _, part := range []struct {
		name string
		took time.Duration
		goal goal
	}{
		{"apply ", a.parse + a.compile + a.tables + a.load, goal{Of: "median", AtMost: applyTime}},
		{"of that parse ", a.parse, goal{}},
		{"of that compile ", a.compile, goal{}},
		{"of that make tables of ", a.tables, goal{}},
		{"of that load ", a.load, goal{}},
	} {
		b.add(metric{Section: "policy", Name: part.name + shape, Unit: "ms", goal: part.goal, latency: true}, tendril, milliseconds(part.took))
	}
}

// crowd makes n endpoints on a node: policy's view of them, and the datapath's. Their
// links are there, their namespaces are not.
func crowd(node *namespace, n int) ([]policy.Endpoint, []datapath.Endpoint, error) {
	var endpoints []policy.Endpoint
	var devices []datapath.Endpoint
	for i := range n {
		name := fmt.Sprintf("host%d", i)
		if err := connect(end{node, name, nil}, end{node, fmt.Sprintf("container%d", i), nil}); err != nil {
			return nil, nil, err
		}
		link, err := node.handle.LinkByName(name)
		if err != nil {
			return nil, nil, err
		}
		id, addresses := uint16(i+1), []netip.Addr{netip.AddrFrom4([4]byte{10, 10, byte(i >> 8), byte(i)})}
		devices = append(devices, datapath.Endpoint{
			ID: id, IfIndex: link.Attrs().Index, IfName: name,
			MAC:       packet.MAC(fmt.Sprintf("02:00:00:00:%02x:%02x", i>>8, i&0xff)),
			HostMAC:   link.Attrs().HardwareAddr,
			Addresses: addresses, MTU: 1500,
		})
		endpoints = append(endpoints, policy.Endpoint{
			ID: id, Network: "pods", Addresses: addresses,
			Labels: map[string]string{"app": fmt.Sprintf("app-%d", i%20), "pod": name},
		})
	}
	return endpoints, devices, nil
}
