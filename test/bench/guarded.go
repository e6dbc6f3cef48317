// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/policy"
)

// guarded is a stage whose endpoints get one policy after another. What costs little more
// or less is compared on one node: two copies of a program differ by a tenth, as the
// kernel happens to place them.
type guarded struct {
	*stage
	datapath *datapath.Datapath
	engine   *policy.Engine
}

// onGuarded makes one, on whose node f runs.
func onGuarded(name string, f func(*guarded) error) (err error) {
	node, err := newNamespace(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.close()) }()
	g := &guarded{}
	if g.stage, err = newStage(node); err != nil {
		return err
	}
	var endpoints []policy.Endpoint
	for _, e := range g.containers {
		endpoints = append(endpoints, policy.Endpoint{ID: e.ID, Network: "pods", Addresses: e.Addresses})
	}
	if g.engine, err = newEngine(endpoints); err != nil {
		return err
	}
	return node.do(func() (err error) {
		root := filepath.Join(home, "bpf", name)
		if g.datapath, err = datapath.Open(datapath.Config{Root: root, Masquerade: true}); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, g.datapath.Close(), datapath.Remove(root)) }()
		if err := g.attach(g.datapath); err != nil {
			return err
		}
		return f(g)
	})
}

// wireGuarded makes a node with two containers and a policy. Its agent has gone: what it
// left serves on, and the policy is put in without one.
func (b *bench) wireGuarded(ctx context.Context, about string, rules []rule) (_ *candidate, err error) {
	c, err := b.wireNamed(ctx, fmt.Sprintf("policy-%s-%d", about, len(rules)), tendril)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	c.label = ruleCount(tendril, len(rules))
	c.fromWorld = path{client: c.toWorld.server, server: c.sameNode.server, address: c.sameNode.address}
	attached, err := c.agent.Endpoints(ctx)
	if err != nil {
		return nil, fmt.Errorf("list endpoints: %w", err)
	}
	var endpoints []policy.Endpoint
	for _, one := range attached {
		e := policy.Endpoint{ID: one.ID, Network: one.Network}
		for _, a := range one.Addresses {
			e.Addresses = append(e.Addresses, a.Address.Addr())
		}
		endpoints = append(endpoints, e)
	}
	engine, err := newEngine(endpoints)
	if err != nil {
		return nil, err
	}
	compiled, err := compile(engine, rules)
	if err != nil {
		return nil, err
	}
	if err := c.agent.stop(); err != nil {
		return nil, err
	}
	c.agent = nil
	return c, c.node.do(func() (err error) {
		if c.datapath, err = datapath.Open(datapath.Config{Root: filepath.Join(home, "bpf", c.name), Masquerade: true}); err != nil {
			return err
		}
		return c.datapath.ReconcilePolicy(compiled)
	})
}

// checkAsked is an error where no flow has met a rule: what was measured would not be of
// policy.
func checkAsked(candidates []*candidate) error {
	for _, c := range candidates {
		if c.datapath == nil {
			continue
		}
		hits, err := c.datapath.PolicyHits()
		if err != nil {
			return err
		}
		flows := uint64(0)
		for _, n := range hits.Rules {
			flows += n
		}
		if flows == 0 {
			return fmt.Errorf("no rule of %s has let a flow through", c.called())
		}
	}
	return nil
}
