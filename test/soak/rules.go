// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/pkg/api"
)

// Policy: one resident is guarded for the whole run, and lets in another one, the judged,
// alone. The judged has a policy of its own at times, which lets everything through: what it
// does must not suffer from being asked about.

// Roles are labels of containers.
const (
	guardedRole = "guarded"
	judgedRole  = "judged"
)

// withRole is a network whose containers have the role.
func withRole(network nodetest.Network, role string) nodetest.Network {
	return network.With("args", map[string]any{"cni": map[string]any{"labels": []any{map[string]any{"key": "role", "value": role}}}})
}

const guardPolicy = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guard}
spec:
  podSelector: {matchLabels: {role: guarded}}
  ingress: [{from: [{podSelector: {matchLabels: {role: judged}}}]}]
`

const openPolicy = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: open}
spec:
  podSelector: {matchLabels: {role: judged}}
  policyTypes: [Ingress, Egress]
  ingress: [{}]
  egress: [{}]
`

// apply has the agent take a policy; errNoAgent where none is there.
func (s *soak) apply(text string) error {
	before := s.agent.look()
	_, err := s.node.API.ApplyPolicies(context.Background(), api.ApplyRequest{Source: "soak", Text: []byte(text)})
	if err != nil && !s.agent.served(before) {
		return errNoAgent
	}
	return err
}

// drop has it delete one; it is no fault that there is none.
func (s *soak) drop(name string) error {
	before := s.agent.look()
	err := s.node.API.DeletePolicies(context.Background(), "default", []string{name})
	if answer := (*api.Error)(nil); errors.As(err, &answer) && answer.Code == api.CodeNotFound {
		return nil
	}
	if err != nil && !s.agent.served(before) {
		return errNoAgent
	}
	return err
}

// changePolicy gives the judged its policy, or takes it away.
func (s *soak) changePolicy(_ context.Context, random *rand.Rand) {
	err := s.apply(openPolicy)
	if random.IntN(2) == 0 {
		err = s.drop("open")
	}
	switch {
	case errors.Is(err, errNoAgent):
		s.ledger.count("permitted: policy changed without an agent")
	case err != nil:
		s.ledger.wrong("policy", "%v", err)
	}
}

// knock has the judged and another resident call the guarded until ctx ends.
func (s *soak) knock(ctx context.Context) {
	for family := 0; rest(ctx, 200*time.Millisecond); family = 1 - family {
		if err := s.knockAs(s.judged, family, true); err != nil {
			s.ledger.wrong("policy", "the judged is not let in: %v", err)
		}
		if err := s.knockAs(s.stranger, family, false); err == nil {
			s.ledger.wrong("policy", "a stranger is let in")
		}
	}
}

// knockAs connects to the guarded. Who is to be let in has the patience of all.
func (s *soak) knockAs(p *party, family int, welcome bool) error {
	within := 100 * time.Millisecond // nothing answers a SYN that is dropped
	if welcome {
		within = patience
	}
	to := netip.AddrPortFrom(s.guarded.address(family), firstPort)
	conn, err := in(p, func() (net.Conn, error) { return net.DialTimeout("tcp", to.String(), within) })
	if err != nil {
		return fmt.Errorf("connect from %s: %w", p.name, err)
	}
	s.ledger.count("knocks that were let in")
	return conn.Close()
}
