// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"slices"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/policy"
)

// ApplyPolicies keeps objects besides those that there are, in place of those of the
// same names. When it returns, the datapath judges by them, and they are on disk.
func (s *Service) ApplyPolicies(_ context.Context, req api.ApplyRequest) (api.PolicyChange, error) {
	put, err := policy.Parse(req.Source, req.Text)
	if err != nil {
		return api.PolicyChange{}, policyError(err)
	}
	if len(put.Policies)+len(put.Namespaces) == 0 {
		return api.PolicyChange{}, &api.Error{Code: api.CodeInvalid, Message: req.Source + " holds no object"}
	}
	plan, effect, err := s.firewall.change(put, nil, req.DryRun)
	if err != nil {
		return api.PolicyChange{}, err
	}
	change := api.PolicyChange{DryRun: req.DryRun, Objects: plan.changes}
	if req.DryRun {
		change.Effect, err = s.effect(effect)
	}
	return change, err
}

// DeletePolicies removes NetworkPolicies that were applied: all of the names, or none.
func (s *Service) DeletePolicies(_ context.Context, namespace string, names []string) error {
	var drop []policyName
	for _, name := range names {
		if one := (policyName{namespace, name}); !slices.Contains(drop, one) {
			drop = append(drop, one)
		}
	}
	_, _, err := s.firewall.change(&policy.Objects{}, drop, false)
	return err
}

// comparison is the policy now and as it would be.
type comparison struct{ now, then verdicts }

// verdicts are what an engine says of the endpoints.
type verdicts struct {
	tables *policy.Tables
	// isolated has the endpoints that policies isolate, by direction.
	isolated [2]map[uint16]bool
}

// change puts objects into the store and takes some out, or only says what that would
// come to. If it fails, all is as before.
func (f *firewall) change(put *policy.Objects, drop []policyName, dry bool) (policyPlan, comparison, error) {
	if f.store == nil {
		return policyPlan{}, comparison{}, &api.Error{
			Code: api.CodeConflict, Key: "policy-dir", Message: "policy-dir is empty: there is nowhere to keep policies",
		}
	}
	f.changing.Lock()
	defer f.changing.Unlock()
	if err := f.refresh(); err != nil {
		if errors.Is(err, errBusy) {
			err = &api.Error{Code: api.CodeConflict, Key: "policy-dir", Message: err.Error()}
		}
		return policyPlan{}, comparison{}, err
	}
	f.report(concernPolicies, nil)
	now := f.set // nobody else changes it
	plan, err := f.store.plan(now, put, drop)
	if err != nil {
		return policyPlan{}, comparison{}, err
	}
	if dry {
		c, err := f.compare(plan.set)
		return plan, c, err
	}
	if len(plan.files) == 0 {
		return plan, comparison{}, nil
	}
	if err := f.use(plan.set); err != nil {
		return policyPlan{}, comparison{}, err
	}
	if err := f.store.write(plan); err != nil {
		return policyPlan{}, comparison{}, errors.Join(err, f.use(now))
	}
	return plan, comparison{}, nil
}

// compare says what other objects would come to.
func (f *firewall) compare(set policySet) (comparison, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	next, err := f.engine.With(set.objects)
	if err != nil {
		return comparison{}, policyError(err)
	}
	return comparison{f.verdicts(f.engine), f.verdicts(next)}, nil
}

// verdicts are those of an engine of the firewall. f.mu is held.
func (f *firewall) verdicts(e *policy.Engine) verdicts {
	v := verdicts{tables: e.Tables()}
	v.isolated[policy.Ingress], v.isolated[policy.Egress] = make(map[uint16]bool), make(map[uint16]bool)
	for id, s := range v.tables.Subjects {
		v.isolated[policy.Ingress][id], v.isolated[policy.Egress][id] = s.Ingress != 0, s.Egress != 0
	}
	return v
}
