// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"sync"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/policy"
)

// policySource is where objects come from. All of them are one unit: they are good
// together, or none of them counts.
type policySource interface {
	// read returns what is there. The error is an *api.Error where somebody has to
	// mend something, and errBusy while somebody is about to.
	read() (policySet, error)
	// watch calls changed once, and whenever read may have another answer, until
	// the context ends. It calls again soon while changed returns true.
	watch(ctx context.Context, changed func() (again bool)) error
}

// policyStore is a source that keeps what others apply.
type policyStore interface {
	policySource
	// plan returns what the set would be with other objects, and how to write it.
	plan(now policySet, put *policy.Objects, drop []policyName) (policyPlan, error)
	// write keeps a plan: all of it, or nothing.
	write(policyPlan) error
}

// policySet is what a source has at a time.
type policySet struct {
	objects *policy.Objects
	stamp   policyStamp
}

// firewall has the datapath ask what the objects say of the endpoints.
type firewall struct {
	plane  PolicyPlane
	source policySource
	store  policyStore // nil: there is nowhere to keep objects
	// report is told what is wrong with a concern of the node, or that nothing is.
	report func(concern string, err error)

	// changing is held while objects change, and taken before mu.
	changing sync.Mutex

	mu     sync.Mutex // guards what follows; written with changing held, set and broken are
	engine *policy.Engine
	set    policySet // the objects of the engine
	// broken is why the objects that were found at start cannot be used. Until they
	// can, the datapath keeps what a predecessor has told it, and no endpoint is
	// added.
	broken  error
	members map[uint16]policy.Endpoint // of the engine, as they were added
	// told says that the datapath asks what an engine has said, active what that
	// was, and stale that it may not be so.
	told, active, stale bool
}

func newFirewall(opts Options, report func(string, error)) *firewall {
	f := &firewall{
		plane:  opts.Datapath.Policy,
		source: noPolicies{},
		report: report,
		engine: policy.New(policy.Limits{
			Subjects: datapath.PolicySubjects,
			Prefixes: datapath.PolicyPrefixes,
			Entries:  datapath.PolicyPairs,
			PerEntry: datapath.PolicyEntryRanges,
			Rules:    datapath.PolicyRules,
		}),
		set:     policySet{objects: &policy.Objects{}},
		members: make(map[uint16]policy.Endpoint),
	}
	if opts.PolicyDir != "" {
		dir := &policyDir{path: filepath.Clean(opts.PolicyDir)}
		f.source, f.store = dir, dir
	}
	return f
}

// start takes over the endpoints that are to be served and the objects, and tells the
// datapath of both at once. Objects that cannot be used are reported, and no error.
func (f *firewall) start(served []*record) error {
	f.changing.Lock()
	defer f.changing.Unlock()
	f.mu.Lock()
	for _, r := range served {
		if err := f.engine.Add(r.subject()); err != nil {
			f.mu.Unlock()
			return policyError(err)
		}
		f.members[r.ID] = r.subject()
	}
	f.mu.Unlock()
	set, err := f.source.read()
	if err == nil {
		err = f.use(set)
	}
	if fault := (*api.Error)(nil); err != nil && !errors.As(err, &fault) && !errors.Is(err, errBusy) {
		return err
	}
	f.mu.Lock()
	f.broken = err
	f.mu.Unlock()
	f.report(concernPolicies, err)
	return nil
}

// Concerns of the node, as Health names them.
const (
	concernPolicies     = "policies"
	concernPolicyMaps   = "policy maps"
	concernPolicyFolder = "watch of policy-dir"
)

// ready says why no endpoint can be added now.
func (f *firewall) ready() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refusal()
}

// refusal is ready with f.mu held.
func (f *firewall) refusal() error {
	if f.broken == nil {
		return nil
	}
	return &api.Error{
		Code:    api.CodeUnavailable,
		Message: fmt.Sprintf("no endpoint is attached before the policies are in order: %v", f.broken),
	}
}

// add has the policy of an endpoint in place, before anybody can reach it. If it
// fails, the endpoint is known as it was before, or not at all.
func (f *firewall) add(r *record) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, known := f.members[r.ID]
	now := r.subject()
	if known && reflect.DeepEqual(before, now) {
		return nil // it is served
	}
	if err := f.refusal(); err != nil {
		return err
	}
	if err := f.engine.Add(now); err != nil {
		return policyError(err)
	}
	err := f.install(f.engine)
	if err == nil {
		f.members[r.ID] = now
		return nil
	}
	if known {
		err = errors.Join(err, f.engine.Add(before))
	} else {
		f.engine.Remove(r.ID)
	}
	return errors.Join(err, f.install(f.engine))
}

// remove forgets an endpoint that nobody can reach any more.
func (f *firewall) remove(id uint16) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.members[id]; !known {
		return
	}
	delete(f.members, id)
	f.engine.Remove(id)
	if f.broken != nil {
		return // what the datapath has of it harms nobody: its number is not given out
	}
	if err := f.install(f.engine); err != nil {
		f.report(concernPolicyMaps, err) // tend tries again
	}
}

// install has the datapath ask what an engine says. f.mu is held. Where nobody is
// restricted and nobody was, there is nothing to do.
func (f *firewall) install(e *policy.Engine) error {
	if f.told && !f.stale && !f.active && !e.Active() {
		return nil
	}
	if err := f.plane.ReconcilePolicy(DatapathPolicy(e.Tables())); err != nil {
		f.stale = true
		return policyError(fmt.Errorf("reconcile policy: %w", err))
	}
	f.told, f.stale, f.active = true, false, e.Active()
	return nil
}

// use puts other objects in place of those that there are. If it fails, they stay.
// f.changing is held.
func (f *firewall) use(set policySet) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next, err := f.engine.With(set.objects)
	if err != nil {
		return policyError(err)
	}
	if err := f.install(next); err != nil {
		if f.told {
			err = errors.Join(err, f.install(f.engine))
		}
		return err
	}
	f.engine, f.set, f.broken = next, set, nil
	return nil
}

// refresh uses what the source has now. f.changing is held.
func (f *firewall) refresh() error {
	set, err := f.source.read()
	if err != nil {
		return err
	}
	f.mu.Lock()
	known := f.broken == nil && f.set.stamp.equal(set.stamp)
	f.mu.Unlock()
	if known {
		return nil
	}
	return f.use(set)
}

// reload is refresh for those who cannot be answered. It returns true when the source
// was busy, and left as it was.
func (f *firewall) reload() (again bool) {
	f.changing.Lock()
	defer f.changing.Unlock()
	err := f.refresh()
	if errors.Is(err, errBusy) {
		return true
	}
	f.report(concernPolicies, err)
	return false
}

// tend puts back what others took from the datapath, and tells it what it could not be
// told before.
func (f *firewall) tend() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return nil
	}
	if f.stale {
		if err := f.install(f.engine); err != nil {
			return err
		}
	}
	return f.plane.RepairPolicy()
}

// policyError gives an error of pkg/policy, or that a policy does not fit, its code and
// key.
func policyError(err error) error {
	var (
		wrong   *policy.InvalidError
		large   *policy.TooBigError
		unfit   *datapath.TooBigError
		already *api.Error
	)
	switch {
	case err == nil, errors.As(err, &already):
		return err
	case errors.As(err, &wrong):
		return &api.Error{Code: api.CodeInvalid, Key: wrong.Field, Value: wrong.Value, Message: err.Error()}
	case errors.As(err, &large), errors.As(err, &unfit):
		return &api.Error{Code: api.CodeExhausted, Message: err.Error()}
	}
	return err
}

// noPolicies is the source of a node without policy-dir.
type noPolicies struct{}

func (noPolicies) read() (policySet, error) { return policySet{objects: &policy.Objects{}}, nil }

func (noPolicies) watch(ctx context.Context, _ func() bool) error {
	<-ctx.Done()
	return nil
}
