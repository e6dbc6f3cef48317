// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/policy"
)

// isolating are the policies that isolate an endpoint, by direction.
func (f *firewall) isolating(id uint16) (names [2][]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	names[policy.Ingress], names[policy.Egress] = f.engine.Policies(id)
	return names
}

// snapshot is what the firewall goes by at a time.
func (f *firewall) snapshot() (objects *policy.Objects, rules []policy.Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.set.objects, f.engine.Rules()
}

// Policies returns the policy of the node and what it comes to.
func (s *Service) Policies(context.Context) (api.Firewall, error) {
	hits, err := s.opts.Datapath.Policy.PolicyHits()
	if err != nil {
		return api.Firewall{}, fmt.Errorf("read policy hits: %w", err)
	}
	answer := api.Firewall{Policies: []api.Policy{}, Namespaces: []api.Namespace{}, Endpoints: []api.EndpointPolicy{}}
	selected := make(map[string][]api.Attachment)
	for _, r := range s.served() {
		names := s.firewall.isolating(r.ID)
		one := api.EndpointPolicy{
			Attachment: r.Attachment, ID: r.ID, Namespace: r.namespace(), Network: r.Network,
			IngressPolicy: cmp.Or(r.Origin.IngressPolicy, api.IngressOpen), NoICC: r.Origin.NoICC,
			Ingress: notNil(names[policy.Ingress]), Egress: notNil(names[policy.Egress]),
			IngressDenied: hits.IngressDenied[r.ID], EgressDenied: hits.EgressDenied[r.ID],
		}
		answer.Endpoints = append(answer.Endpoints, one)
		both := slices.Concat(one.Ingress, one.Egress)
		slices.Sort(both)
		for _, name := range slices.Compact(both) {
			selected[name] = append(selected[name], r.Attachment)
		}
	}
	objects, all := s.firewall.snapshot()
	rules := make(map[string][]api.PolicyRule)
	for _, r := range all {
		rules[r.Policy] = append(rules[r.Policy], api.PolicyRule{
			Direction: r.Direction.String(), Index: r.Index, Summary: r.Summary, Hits: hits.Rules[r.Hash],
		})
	}
	for i := range objects.Policies {
		p := &objects.Policies[i]
		one := api.Policy{
			Namespace: p.Object.Namespace, Name: p.Object.Name, File: p.Source, PolicyTypes: []string{},
			Endpoints: notNil(selected[p.Name()]), Rules: notNil(rules[p.Name()]),
		}
		ingress, egress := p.Isolates()
		if ingress {
			one.PolicyTypes = append(one.PolicyTypes, "Ingress")
		}
		if egress {
			one.PolicyTypes = append(one.PolicyTypes, "Egress")
		}
		answer.Policies = append(answer.Policies, one)
	}
	for _, n := range objects.Namespaces {
		answer.Namespaces = append(answer.Namespaces, api.Namespace{Name: n.Object.Name, File: n.Source, Labels: n.Object.Labels})
	}
	slices.SortFunc(answer.Policies, func(a, b api.Policy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	sortBy(answer.Namespaces, func(n api.Namespace) string { return n.Name })
	return answer, nil
}

// notNil has an empty list be one in JSON.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
