// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Each way to be refused, with the place.
func TestParseRefuses(t *testing.T) {
	const object = "default/p"
	peer := func(text string) string { return spec("podSelector: {}\ningress: [{from: [" + text + "]}]") }
	port := func(text string) string {
		return spec("podSelector: {}\negress: [{}, {ports: [{port: 1}, " + text + "]}]")
	}
	selector := func(text string) string { return spec("podSelector: {" + text + "}") }
	const peer0, port1 = "spec.ingress[0].from[0]", "spec.egress[1].ports[1]"
	for _, test := range []struct {
		name, yaml string
		want       InvalidError
	}{
		{"no CIDR", peer("{ipBlock: {cidr: 10.0.0.0}}"), InvalidError{Field: peer0 + ".ipBlock.cidr", Value: "10.0.0.0", Reason: "is no CIDR, such as 10.0.0.0/8 or fd00::/64"}},
		{"no length", peer("{ipBlock: {cidr: 10.0.0.0/33}}"), InvalidError{Field: peer0 + ".ipBlock.cidr", Value: "10.0.0.0/33", Reason: "is no CIDR, such as 10.0.0.0/8 or fd00::/64"}},
		{"leading zero", peer("{ipBlock: {cidr: 010.0.0.0/8}}"), InvalidError{Field: peer0 + ".ipBlock.cidr", Value: "010.0.0.0/8", Reason: "is no CIDR, such as 10.0.0.0/8 or fd00::/64"}},
		{"zone", peer("{ipBlock: {cidr: \"fe80::%eth0/64\"}}"), InvalidError{Field: peer0 + ".ipBlock.cidr", Value: "fe80::%eth0/64", Reason: "is no CIDR, such as 10.0.0.0/8 or fd00::/64"}},
		{"IPv4-mapped", peer("{ipBlock: {cidr: \"::ffff:10.0.0.0/104\"}}"), InvalidError{Field: peer0 + ".ipBlock.cidr", Value: "::ffff:10.0.0.0/104", Reason: "is IPv4 in IPv6 form: write it as IPv4"}},
		{"cidr missing", peer("{ipBlock: {}}"), InvalidError{Field: peer0 + ".ipBlock.cidr", Reason: "is missing"}},
		{"except outside", peer("{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16]}}"), InvalidError{Field: peer0 + ".ipBlock.except[1]", Value: "11.0.0.0/16", Reason: "is not within cidr, 10.0.0.0/8"}},
		{"except larger", peer("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/7]}}"), InvalidError{Field: peer0 + ".ipBlock.except[0]", Value: "10.0.0.0/7", Reason: "is not within cidr, 10.0.0.0/8"}},
		{"except equal", peer("{ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/8]}}"), InvalidError{Field: peer0 + ".ipBlock.except[0]", Value: "10.2.0.0/8", Reason: "is all of cidr"}},
		{"except of another family", peer("{ipBlock: {cidr: 0.0.0.0/0, except: [\"fd00::/8\"]}}"), InvalidError{Field: peer0 + ".ipBlock.except[0]", Value: "fd00::/8", Reason: "is not of the family of cidr, 0.0.0.0/0"}},
		{"except no CIDR", peer("{ipBlock: {cidr: 0.0.0.0/0, except: [x]}}"), InvalidError{Field: peer0 + ".ipBlock.except[0]", Value: "x", Reason: "is no CIDR, such as 10.0.0.0/8 or fd00::/64"}},
		{"ipBlock beside podSelector", peer("{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}"), InvalidError{Field: peer0, Reason: "has a selector beside ipBlock: make it two elements"}},
		{"ipBlock beside namespaceSelector", peer("{ipBlock: {cidr: 10.0.0.0/8}, namespaceSelector: {}}"), InvalidError{Field: peer0, Reason: "has a selector beside ipBlock: make it two elements"}},
		{"empty peer", peer("{}"), InvalidError{Field: peer0, Reason: "is empty: it needs podSelector, namespaceSelector or ipBlock"}},
		{"null peer", peer("null"), InvalidError{Field: peer0, Reason: "is empty: it needs podSelector, namespaceSelector or ipBlock"}},
		{"selector of a peer", peer("{podSelector: {matchExpressions: [{key: a, operator: In}]}}"), InvalidError{Field: peer0 + ".podSelector.matchExpressions[0].values", Reason: "must be specified when `operator` is 'In' or 'NotIn'"}},
		{"namespace selector of a peer", peer("{namespaceSelector: {matchExpressions: [{key: a, operator: Like}]}}"), InvalidError{Field: peer0 + ".namespaceSelector.matchExpressions[0].operator", Value: "Like", Reason: "not a valid selector operator"}},
		{"port 0", port("{port: 0}"), InvalidError{Field: port1 + ".port", Value: "0", Reason: "is not between 1 and 65535"}},
		{"port 65536", port("{port: 65536}"), InvalidError{Field: port1 + ".port", Value: "65536", Reason: "is not between 1 and 65535"}},
		{"port too large for a number", port("{port: 4294967297}"), InvalidError{Field: port1 + ".port", Value: "4294967297", Reason: "is neither a number nor a string"}},
		{"port true", port("{port: true}"), InvalidError{Field: port1 + ".port", Value: "true", Reason: "is neither a number nor a string"}},
		{"port as a string", port("{port: '80'}"), InvalidError{Field: port1 + ".port", Value: "80", Reason: "is no name of a port: must contain at least one letter (a-z)"}},
		{"name too long", port("{port: abcdefghijklmnop}"), InvalidError{Field: port1 + ".port", Value: "abcdefghijklmnop", Reason: "is no name of a port: must be no more than 15 characters"}},
		{"unknown protocol", port("{protocol: ICMP}"), InvalidError{Field: port1 + ".protocol", Value: "ICMP", Reason: "is none of TCP, UDP, SCTP"}},
		{"protocol in small letters", port("{protocol: tcp, port: 1}"), InvalidError{Field: port1 + ".protocol", Value: "tcp", Reason: "is none of TCP, UDP, SCTP"}},
		{"endPort below port", port("{port: 80, endPort: 79}"), InvalidError{Field: port1 + ".endPort", Value: "79", Reason: "is not between port, 80, and 65535"}},
		{"endPort too large", port("{port: 80, endPort: 65536}"), InvalidError{Field: port1 + ".endPort", Value: "65536", Reason: "is not between port, 80, and 65535"}},
		{"endPort with a name", port("{port: http, endPort: 80}"), InvalidError{Field: port1 + ".endPort", Value: "80", Reason: "is set, but port is a name"}},
		{"endPort alone", port("{endPort: 80}"), InvalidError{Field: port1 + ".endPort", Value: "80", Reason: "is set, but port is not"}},
		{"endPort a string", port("{port: 1, endPort: '80'}"), InvalidError{Field: port1 + ".endPort", Value: "80", Reason: "is no number of 32 bits"}},
		{"unknown policyType", spec("podSelector: {}\npolicyTypes: [Ingress, egress]"), InvalidError{Field: "spec.policyTypes[1]", Value: "egress", Reason: "is neither Ingress nor Egress"}},
		{"three policyTypes", spec("podSelector: {}\npolicyTypes: [Ingress, Egress, Egress]"), InvalidError{Field: "spec.policyTypes", Reason: "has 3 elements, there are 2 types"}},
		{"selector value", selector("matchLabels: {a: 'b c'}"), InvalidError{Field: "spec.podSelector.matchLabels", Value: "b c", Reason: "a valid label must be"}},
		{"selector key", selector("matchExpressions: [{key: '', operator: Exists}]"), InvalidError{Field: "spec.podSelector.matchExpressions[0].key", Reason: "is empty: name part must be"}},
		{"selector values not wanted", selector("matchExpressions: [{key: a, operator: Exists, values: [x]}]"), InvalidError{Field: "spec.podSelector.matchExpressions[0].values", Reason: "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"}},
		{"label without value", selector("matchLabels: {a: }"), InvalidError{Field: "spec.podSelector.matchLabels", Reason: "has no value for \"a\""}},
		{"label is a number", selector("matchLabels: {a: 1}"), InvalidError{Field: "spec.podSelector.matchLabels[a]", Value: "1", Reason: "is no string: put it in quotes"}},
		{"unknown field", spec("podselector: {}"), InvalidError{Field: "spec.podselector", Reason: "is no field of NetworkPolicySpec; did you mean podSelector?"}},
		{"unknown field of a list's element", peer("{ipBlock: {cidr: 10.0.0.0/8, excepts: []}}"), InvalidError{Field: peer0 + ".ipBlock.excepts", Reason: "is no field of IPBlock; did you mean except?"}},
		{"unknown field without a guess", spec("podSelector: {}") + "status: {}\n", InvalidError{Field: "status", Reason: "is no field of NetworkPolicy"}},
		{"a mapping for a list", spec("podSelector: {}\ningress: {}"), InvalidError{Field: "spec.ingress", Reason: "is a mapping, no list"}},
		{"a list for a mapping", spec("podSelector: []"), InvalidError{Field: "spec.podSelector", Reason: "is a list, no mapping"}},
		{"key twice", spec("podSelector: {}\npodSelector: {}"), InvalidError{Object: "document 1", Reason: `line 6: key "podSelector" is given twice`}},
		{"key twice in JSON", `{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": {"podSelector": {}, "podSelector": {}}}`, InvalidError{Reason: `duplicate field "spec.podSelector"`}},
		{"no name", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n", InvalidError{Object: "document 1", Field: "metadata.name", Reason: "is missing"}},
		{"bad name", strings.Replace(spec("podSelector: {}"), "name: p", "name: P_", 1), InvalidError{Object: "default/P_", Field: "metadata.name", Value: "P_", Reason: "is no name: a lowercase RFC 1123 subdomain"}},
		{"bad namespace", strings.Replace(spec("podSelector: {}"), "name: p", "name: p, namespace: a.b", 1), InvalidError{Object: "a.b/p", Field: "metadata.namespace", Value: "a.b", Reason: "is no namespace: must not contain dots"}},
		{"name of a namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a.b}", InvalidError{Object: "namespace a.b", Field: "metadata.name", Value: "a.b", Reason: "is no name: must not contain dots"}},
		{"namespace in a namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}", InvalidError{Object: "namespace a", Field: "metadata.namespace", Value: "b", Reason: "is set, but a namespace is in none"}},
		{"label of a namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {b: /}}", InvalidError{Object: "namespace a", Field: "metadata.labels", Value: "/", Reason: "a valid label must be"}},
		{"wrong kind", "---\n---\napiVersion: v1\nkind: Pod", InvalidError{Object: "document 2", Field: "kind", Value: "Pod", Reason: "is none of List, Namespace, NamespaceList, NetworkPolicy, NetworkPolicyList"}},
		{"kind with a guess", "apiVersion: v1\nkind: Networkpolicy", InvalidError{Object: "document 1", Field: "kind", Value: "Networkpolicy", Reason: "is none of List, Namespace, NamespaceList, NetworkPolicy, NetworkPolicyList; did you mean NetworkPolicy?"}},
		{"no kind", "a: 1", InvalidError{Object: "document 1", Field: "kind", Reason: "is missing"}},
		{"no apiVersion", "kind: NetworkPolicy", InvalidError{Object: "document 1", Field: "apiVersion", Reason: "is missing: a NetworkPolicy is of networking.k8s.io/v1"}},
		{"wrong apiVersion", "apiVersion: extensions/v1beta1\nkind: NetworkPolicy", InvalidError{Object: "document 1", Field: "apiVersion", Value: "extensions/v1beta1", Reason: "is not networking.k8s.io/v1, which a NetworkPolicy is of"}},
		{"no object", "- a", InvalidError{Object: "document 1", Reason: "is a list, no object"}},
		{"a field of more than a line", spec("podSelector: {}\n\"a\\nb\": 1"), InvalidError{Field: "spec.a.b", Reason: "is no field of NetworkPolicySpec"}},
		{"no YAML", "a: [", InvalidError{Object: "document 1", Reason: "is no YAML: "}},
		{"a key that is no string", spec("podSelector: {matchLabels: {1: a}}"), InvalidError{Object: "document 1", Reason: "key 1 is no string: put it in quotes"}},
		{"within a list", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n- apiVersion: v1\n  kind: Pod", InvalidError{Object: "document 1 items[1]", Field: "kind", Value: "Pod", Reason: "is none of List, Namespace, NamespaceList, NetworkPolicy, NetworkPolicyList"}},
		{"a list within a list", "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: List}]", InvalidError{Object: "document 1 items[0]", Field: "kind", Value: "List", Reason: "is within a list"}},
		{"another kind in a list of one", "apiVersion: v1\nkind: NamespaceList\nitems: [{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy}]", InvalidError{Object: "document 1 items[0]", Field: "kind", Value: "NetworkPolicy", Reason: "is in a list of Namespace"}},
		{"null in a list", "apiVersion: v1\nkind: List\nitems: [null]", InvalidError{Object: "document 1 items[0]", Reason: "is null, no object"}},
		{"unknown field of a list", "apiVersion: v1\nkind: List\nitem: []", InvalidError{Object: "document 1", Field: "item", Reason: "is no field of list; did you mean items?"}},
		{"twice", spec("podSelector: {}") + "---\n" + spec("podSelector: {}"), InvalidError{Reason: "is given twice"}},
		{"too deep", "a: " + strings.Repeat("[", 100) + strings.Repeat("]", 100), InvalidError{Object: "document 1", Reason: "is nested more than 64 deep"}},
		{"too deep, JSON", `{"a": ` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + "}", InvalidError{Object: "document 1", Reason: "is nested more than 64 deep"}},
		{"too long", strings.Repeat(" ", MaxSize+1), InvalidError{Object: "-", Reason: "has 8388609 bytes, more than 8388608"}},
		{"aliases that repeat", aliases(), InvalidError{Object: "document 1", Reason: "aliases make it larger than 8388608 bytes"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := test.want
			want.Source = "file.yaml"
			switch want.Object {
			case "":
				want.Object = object
			case "-":
				want.Object = ""
			}
			o, err := Parse("file.yaml", []byte(test.yaml))
			var got *InvalidError
			if !errors.As(err, &got) {
				t.Fatalf("got %+v and error %v", o, err)
			}
			// Of what others write the beginning will do.
			if len(got.Reason) > len(want.Reason) && strings.HasPrefix(got.Reason, want.Reason) && wordy(want.Reason) {
				want.Reason = got.Reason
			}
			if diff := cmp.Diff(&want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func wordy(reason string) bool {
	return strings.Contains(reason, "RFC 1123") || strings.Contains(reason, "a valid label") ||
		strings.Contains(reason, "name part") || strings.HasSuffix(reason, ": ")
}

// aliases is a short text that says a long string thousands of times.
func aliases() string {
	return "a: &a " + strings.Repeat("x", 100_000) + "\nb: [" + strings.Repeat("*a, ", 900) + "]\n"
}

func TestParse(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{"nothing", "", nil},
		{"comments", "# a\n---\n# b\n", nil},
		{"null", "null\n---\n~\n", nil},
		{"documents", spec("podSelector: {}") + "---\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n", []string{"default/p", "namespace a"}},
		{"JSON with tabs", "\t{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Namespace\", \"metadata\": {\"name\": \"a\"}}\n{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"b\"}}", []string{"namespace a", "namespace b"}},
		{"flow style", "{apiVersion: v1, kind: Namespace, metadata: {name: a}}", []string{"namespace a"}},
		{"List", "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n- {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: a}, spec: {}}\n", []string{"a/p", "namespace a"}},
		{"NetworkPolicyList", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems: [{metadata: {name: p}, spec: {podSelector: {}}}]", []string{"default/p"}},
		{"NamespaceList", "apiVersion: v1\nkind: NamespaceList\nitems: [{metadata: {name: a}}]", []string{"namespace a"}},
		{"List, empty", "apiVersion: v1\nkind: List\nitems: null", nil},
		{"as kubectl get shows it", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  annotations: {note: "a: b"}
  creationTimestamp: "2024-05-01T10:00:00Z"
  generation: 1
  managedFields:
  - apiVersion: networking.k8s.io/v1
    fieldsType: FieldsV1
    fieldsV1: {f:spec: {f:podSelector: {}}}
    manager: kubectl
    operation: Update
    time: "2024-05-01T10:00:00Z"
  name: p
  namespace: blue
  resourceVersion: "1"
  uid: 0b5e8a3c-0000-4000-8000-000000000000
spec: {podSelector: {}, policyTypes: [Ingress]}
---
apiVersion: v1
kind: Namespace
metadata: {name: blue, creationTimestamp: null}
spec: {finalizers: [kubernetes]}
status: {phase: Active}
`, []string{"blue/p", "namespace blue"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			o, err := Parse("file.yaml", []byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, namesOf(o)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func namesOf(o *Objects) []string {
	var out []string
	for i := range o.Policies {
		out = append(out, o.Policies[i].Name())
	}
	for _, n := range o.Namespaces {
		out = append(out, namespaceObject(n.Object.Name))
	}
	return out
}

func mustParse(tb testing.TB, name, text string) *Objects {
	tb.Helper()
	o, err := Parse(name, []byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	return o
}

func TestMerge(t *testing.T) {
	a := mustParse(t, "a.yaml", spec("podSelector: {}"))
	b := mustParse(t, "b.yaml", strings.Replace(spec("podSelector: {}"), "name: p", "name: q", 1)+"---\napiVersion: v1\nkind: Namespace\nmetadata: {name: x}")
	all, err := a.Merge(nil, b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"default/p", "default/q", "namespace x"}, namesOf(all)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for _, test := range []struct {
		other string
		want  InvalidError
	}{
		{spec("podSelector: {matchLabels: {a: b}}"), InvalidError{Source: "c.yaml", Object: "default/p", Reason: "is given in a.yaml too"}},
		{"apiVersion: v1\nkind: Namespace\nmetadata: {name: x}", InvalidError{Source: "c.yaml", Object: "namespace x", Reason: "is given in b.yaml too"}},
	} {
		_, err := all.Merge(mustParse(t, "c.yaml", test.other))
		var got *InvalidError
		if !errors.As(err, &got) {
			t.Fatalf("got error %v", err)
		}
		if diff := cmp.Diff(&test.want, got); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	if got := namesOf(all); len(got) != 3 {
		t.Errorf("a Merge that failed left %v", got)
	}
}

func TestErrorText(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{
			&InvalidError{"a.yaml", "default/p", "spec.ingress[0].ports[0].port", "0", "is not between 1 and 65535"},
			`use a.yaml: default/p: spec.ingress[0].ports[0].port: "0" is not between 1 and 65535`,
		},
		{&InvalidError{Source: "a.yaml", Reason: "has 9 bytes, more than 8"}, "use a.yaml: has 9 bytes, more than 8"},
		{&TooBigError{"prefixes", 12, 10}, "compile policy: needs 12 prefixes, and 10 fit"},
	} {
		if got := fmt.Sprint(test.err); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}
