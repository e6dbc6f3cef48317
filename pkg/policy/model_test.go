// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/policytest"
	"github.com/tendril-net/tendril/pkg/policy"
)

// The engine against a plain reading of the objects: random policies,
// endpoints and flows, over sequences of With, Add and Remove.
func TestModel(t *testing.T) {
	cases := 100_000
	if testing.Short() {
		cases = 10_000
	}
	seen := make(map[string]int)
	for seed := uint64(0); cases > 0; seed++ {
		rng := rand.New(rand.NewPCG(seed, 1))
		m := &policytest.Model{Objects: new(policy.Objects)}
		e := policy.New(policy.Limits{}, uint32(1+rng.IntN(1000)))
		all := policytest.RandomEndpoints(rng)
		numbers := make(map[uint32]string)
		for range 12 {
			e = randomStep(t, rng, m, e, all)
			tables := e.Tables()
			checkTables(t, tables, numbers)
			rules := ruleNames(e)
			if !slices.ContainsFunc(m.Endpoints, func(e policy.Endpoint) bool { return e.ID != 0 }) {
				continue
			}
			for range 25 {
				cases--
				f := m.RandomFlow(rng)
				got, want := tables.Verdict(f), m.Verdict(f)
				count(seen, want)
				if diff := cmp.Diff(want, plain(got, want, rules)); diff != "" {
					t.Fatalf("seed %d: %+v\n%s(-model +tables)\n%s", seed, f, describe(m, f), diff)
				}
			}
		}
	}
	for _, what := range []string{"allowed", "by rules of both", "refused egress", "refused ingress", "isolation"} {
		if seen[what] < 100 {
			t.Errorf("%s: only %d cases", what, seen[what])
		}
	}
}

// randomStep changes the model and the engine alike.
func randomStep(
	t *testing.T, rng *rand.Rand, m *policytest.Model, e *policy.Engine, all []policy.Endpoint,
) *policy.Engine {
	t.Helper()
	at := func(x policy.Endpoint) int {
		return slices.IndexFunc(m.Endpoints, func(y policy.Endpoint) bool { return x.ID == y.ID && x.Key == y.Key })
	}
	x := all[rng.IntN(len(all))]
	switch rng.IntN(6) {
	case 0, 1:
		objects := policytest.RandomObjects(rng)
		next, err := e.With(objects)
		if err != nil {
			t.Fatal(err)
		}
		if rng.IntN(4) == 0 {
			return e // the new one is dropped
		}
		m.Objects, e = objects, next
	case 2:
		if i := at(x); i >= 0 {
			m.Endpoints = slices.Delete(m.Endpoints, i, i+1)
		}
		if x.ID != 0 {
			e.Remove(x.ID)
		} else {
			e.RemoveRemote(x.Key)
		}
	default:
		// One that is there has other labels, or none of its addresses.
		if i := at(x); i >= 0 {
			m.Endpoints = slices.Delete(m.Endpoints, i, i+1)
			x.Labels = policytest.RandomEndpoints(rng)[0].Labels
		}
		m.Endpoints = append(m.Endpoints, x)
		if err := e.Add(x); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

// checkTables fails if a number stands for another content than before.
func checkTables(t *testing.T, tables *policy.Tables, numbers map[uint32]string) {
	t.Helper()
	contents := make(map[policy.Pair]string)
	for at, ranges := range tables.Entries {
		if len(ranges) == 0 {
			t.Errorf("entry %v is empty", at)
		}
		contents[at] = fmt.Sprint(ranges)
	}
	for at, content := range contents {
		key := at.Set<<16 | at.Identity // there are few numbers
		if old, ok := numbers[key]; ok && old != content {
			t.Errorf("entry %v was %s and is %s", at, old, content)
		}
		numbers[key] = content
	}
}

// ruleNames names rules as the model does.
func ruleNames(e *policy.Engine) map[uint64]string {
	out := make(map[uint64]string)
	for _, r := range e.Rules() {
		out[r.Hash] = fmt.Sprintf("%s %s %d", r.Policy, r.Direction, r.Index)
	}
	return out
}

// plain turns a verdict into the model's. Of the rules that match the tables
// name one, and it does not matter which.
func plain(got policy.Verdict, want policytest.Verdict, rules map[uint64]string) policytest.Verdict {
	named := func(hash uint64, all []string) []string {
		switch name := rules[hash]; {
		case hash == 0:
			return nil
		case slices.Contains(all, name):
			return all
		default:
			return []string{fmt.Sprintf("%x: %s", hash, name)}
		}
	}
	return policytest.Verdict{
		Allowed: got.Allowed, By: got.By, Direction: got.Direction, Isolation: got.Isolation,
		EgressRules:  named(got.EgressRule, want.EgressRules),
		IngressRules: named(got.IngressRule, want.IngressRules),
	}
}

func count(seen map[string]int, v policytest.Verdict) {
	switch {
	case v.Allowed && v.EgressRules != nil && v.IngressRules != nil:
		seen["by rules of both"]++
	case v.Allowed:
		seen["allowed"]++
	case v.Isolation:
		seen["isolation"]++
	default:
		seen["refused "+v.Direction.String()]++
	}
}

func describe(m *policytest.Model, f policy.Flow) string {
	out := ""
	for _, e := range m.Endpoints {
		if e.ID != 0 && (e.ID == f.ClientID || e.ID == f.ServerID) ||
			slices.Contains(e.Addresses, f.Client) || slices.Contains(e.Addresses, f.Server) {
			out += fmt.Sprintf("%+v\n", e)
		}
	}
	for _, p := range m.Objects.Policies {
		out += fmt.Sprintf("%s %+v\n", p.Name(), p.Object.Spec)
	}
	return out
}
