// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
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
		limits := policy.Limits{PerEntry: rng.IntN(4)}
		if rng.IntN(3) == 0 {
			limits = []policy.Limits{{Subjects: 4}, {Prefixes: 8}, {Entries: 30}, {Entries: 50, PerEntry: 2}, {Rules: 16}}[rng.IntN(5)]
		}
		e := policy.New(limits)
		all := policytest.RandomEndpoints(rng)
		numbers := make(map[uint32]string)
		for _, x := range all {
			if rng.IntN(4) != 0 && e.Add(x) == nil {
				m.Endpoints = append(m.Endpoints, x)
			}
		}
		for range 12 {
			before := e.Tables()
			next, err := randomStep(rng, m, e, all)
			var tooBig *policy.TooBigError
			switch {
			case errors.As(err, &tooBig):
				seen["too many "+tooBig.What]++
				if diff := cmp.Diff(before, e.Tables(), prefixes); diff != "" {
					t.Fatalf("seed %d: %v, but (-before +after)\n%s", seed, err, diff)
				}
			case err != nil:
				t.Fatalf("seed %d: %v", seed, err)
			}
			e = next
			if err := e.Check(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
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
	for _, what := range []string{
		"allowed", "by rules of both", "refused egress", "refused ingress", "isolation",
		"too many subjects", "too many prefixes", "too many entries", "too many rules",
	} {
		if seen[what] < 10 && !testing.Short() {
			t.Errorf("%s: only %d cases", what, seen[what])
		}
	}
	t.Logf("cases: %v", seen)
}

var prefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

// randomStep changes the model and the engine alike; if it fails, neither.
func randomStep(
	rng *rand.Rand, m *policytest.Model, e *policy.Engine, all []policy.Endpoint,
) (*policy.Engine, error) {
	x := all[rng.IntN(len(all))]
	others := slices.DeleteFunc(slices.Clone(m.Endpoints), func(y policy.Endpoint) bool {
		return x.ID == y.ID && x.Key == y.Key
	})
	switch rng.IntN(6) {
	case 0, 1:
		objects := policytest.RandomObjects(rng)
		next, err := e.With(objects)
		if err != nil || rng.IntN(4) == 0 {
			return e, err // a new one is dropped
		}
		m.Objects = objects
		return next, nil
	case 2:
		m.Endpoints = others
		if x.ID != 0 {
			e.Remove(x.ID)
		} else {
			e.RemoveRemote(x.Key)
		}
	default:
		if len(others) < len(m.Endpoints) {
			x.Labels = policytest.RandomEndpoints(rng)[0].Labels // it is there, and is another now
		}
		if err := e.Add(x); err != nil {
			return e, err
		}
		m.Endpoints = append(others, x)
	}
	return e, nil
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

// What the generators make up is what Parse reads.
func TestRandomObjectsParse(t *testing.T) {
	for seed := range uint64(300) {
		o := policytest.RandomObjects(rand.New(rand.NewPCG(seed, 2)))
		var text []byte
		for _, p := range o.Policies {
			text = appendJSON(t, text, p.Object)
		}
		for _, n := range o.Namespaces {
			text = appendJSON(t, text, n.Object)
		}
		got, err := policy.Parse("random", text)
		if err != nil {
			t.Fatal(err)
		}
		var again []byte
		for _, p := range got.Policies {
			again = appendJSON(t, again, p.Object)
		}
		for _, n := range got.Namespaces {
			again = appendJSON(t, again, n.Object)
		}
		if diff := cmp.Diff(string(text), string(again)); diff != "" {
			t.Errorf("seed %d (-want +got)\n%s", seed, diff)
		}
	}
}

func appendJSON(tb testing.TB, to []byte, object any) []byte {
	tb.Helper()
	data, err := json.Marshal(object)
	if err != nil {
		tb.Fatal(err)
	}
	return append(append(to, data...), '\n')
}
