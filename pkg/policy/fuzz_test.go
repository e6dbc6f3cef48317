// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What Parse takes compiles, and says the same when it is written out again. What
// it refuses is an *InvalidError of the source.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/policies/*")
	if err != nil || len(files) < 5 {
		f.Fatalf("got %v and error %v", files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(spec("podSelector: {}\nextra: {a: !!binary aGk=, b: 1e400, c: .nan, ? [x] : y, <<: {z: 1}}")))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := Parse("file", data)
		if err != nil {
			var invalid *InvalidError
			if !errors.As(err, &invalid) || invalid.Source != "file" || invalid.Reason == "" || o != nil {
				t.Fatalf("got %+v and error %#v", o, err)
			}
			if len(invalid.Error()) > 2000 {
				t.Fatalf("an error of %d bytes: %s", len(invalid.Error()), invalid)
			}
			return
		}
		e, err := world(t).With(o)
		if err != nil {
			var tooBig *TooBigError
			if !errors.As(err, &tooBig) {
				t.Fatal(err)
			}
			return
		}
		again, err := Parse("file", written(t, o))
		if err != nil {
			t.Fatal(err)
		}
		e2, err := world(t).With(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(e.Tables(), e2.Tables(), netips); diff != "" {
			t.Errorf("tables after writing it out (-before +after)\n%s", diff)
		}
		if diff := cmp.Diff(written(t, o), written(t, again)); diff != "" {
			t.Errorf("after writing it out (-before +after)\n%s", diff)
		}
	})
}

func written(tb testing.TB, o *Objects) []byte {
	tb.Helper()
	var out []byte
	add := func(object any) {
		data, err := json.Marshal(object)
		if err != nil {
			tb.Fatal(err)
		}
		out = append(append(out, data...), '\n')
	}
	for _, p := range o.Policies {
		add(p.Object)
	}
	for _, n := range o.Namespaces {
		add(n.Object)
	}
	return out
}

// The seed corpus is what people write, and but for one file it is right.
func TestSeeds(t *testing.T) {
	want := map[string][]string{
		"anchors.yaml":      {"default/anchors"},
		"default-deny.yaml": {"shop/default-deny-all", "shop/allow-dns"},
		"internet.yaml":     {"default/internet-only"},
		"list.json":         {"shop/db", "namespace shop"},
		"three-tiers.yaml":  {"shop/frontend", "shop/backend", "namespace shop"},
		"wrong.yaml":        {"use wrong.yaml: default/wrong: spec.ingres: is no field of NetworkPolicySpec; did you mean ingress?"},
	}
	got := make(map[string][]string)
	files, err := filepath.Glob("testdata/policies/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(file)
		if o, err := Parse(name, data); err != nil {
			got[name] = []string{err.Error()}
		} else {
			got[name] = namesOf(o)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
