// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var netips = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

// What the tables hold, for one world, number by number.
func TestTables(t *testing.T) {
	e := mustWith(t, world(t), mustParse(t, "p", spec(`
		podSelector: {matchLabels: {app: web}}
		policyTypes: [Ingress, Egress]
		ingress:
		- from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}, {podSelector: {matchLabels: {app: db}}}]
			ports: [{port: 443}, {port: 80}, {port: 81, endPort: 90}]
		egress:
		- ports: [{protocol: UDP, port: 53}, {port: http}]`)))
	rules := e.Rules()
	in, out := rules[0].Hash, rules[1].Hash
	const block = 1 // cells are numbered first
	got := e.Tables()
	want := &Tables{
		Active: true,
		Subjects: map[uint16]Subject{
			1: {Identity: got.Subjects[1].Identity, Ingress: got.Subjects[1].Ingress, Egress: got.Subjects[1].Egress, Network: 1},
			2: {Identity: got.Subjects[2].Identity, Network: 1},
			3: {Network: 1},
			4: {Network: 2, FromOtherNetworks: true},
			5: {Network: 2, FromOwnNetwork: true},
		},
		Prefixes: map[netip.Prefix]uint32{
			netip.MustParsePrefix("192.0.2.0/24"):   block,
			netip.MustParsePrefix("192.0.2.128/25"): 0,
			netip.MustParsePrefix("10.1.0.1/32"):    got.Prefixes[netip.MustParsePrefix("10.1.0.1/32")],
			netip.MustParsePrefix("fd00:1::1/128"):  got.Prefixes[netip.MustParsePrefix("10.1.0.1/32")],
		},
	}
	ingress, egress := got.Subjects[1].Ingress, got.Subjects[1].Egress
	ports := []Range{{80, 90, TCP, in}, {443, 443, TCP, in}}
	want.Entries = map[Pair][]Range{
		{ingress, block}:                    ports,
		{ingress, got.Subjects[2].Identity}: ports,
		{ingress, want.Prefixes[netip.MustParsePrefix("10.1.0.1/32")]}: ports,
		{egress, 0}:                        {{53, 53, UDP, out}},
		{egress, got.Subjects[1].Identity}: {{80, 80, TCP, out}},
		{egress, got.Subjects[2].Identity}: {{8080, 8081, TCP, out}},
		{egress, want.Prefixes[netip.MustParsePrefix("10.1.0.1/32")]}: {{9090, 9090, TCP, out}},
	}
	if diff := cmp.Diff(want, got, netips); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	numbers := make(map[uint32]bool)
	for at := range got.Entries {
		numbers[at.Set], numbers[at.Identity] = true, true
	}
	if len(numbers) != 7 || numbers[7] {
		t.Errorf("numbers are %v", numbers)
	}
}

// The hash is part of what outlives the process.
func TestRules(t *testing.T) {
	e := mustWith(t, world(t), mustParse(t, "p", spec(`
		podSelector: {}
		policyTypes: [Ingress, Egress]
		ingress:
		- {}
		- from:
			- podSelector: {matchLabels: {app: web}}
			- podSelector: {}
			- namespaceSelector: {}
			- namespaceSelector: {matchLabels: {team: b}}
				podSelector: {matchExpressions: [{key: app, operator: In, values: [a, b]}]}
			ports: [{port: 80}, {port: 8000, endPort: 8010}, {protocol: UDP, port: dns}, {protocol: SCTP}]
		egress:
		- to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.0.0/16]}}, {ipBlock: {cidr: "fd00::/8"}}]
		- ports: [{port: 1}, {port: 2}, {port: 3}, {port: 4}, {port: 5}, {port: 6}, {port: 7}, {port: 8}, {port: 9}, {port: 10}]`)))
	want := []Rule{
		{0xfdb7375a431638d7, "default/p", Ingress, 0, "from everybody to all ports"},
		{0xa28862543e812869, "default/p", Ingress, 1, "from app=web, the namespace, namespaces of all names, app in (a b) in namespaces team=b to TCP 80, 8000-8010, UDP dns, SCTP all ports"},
		{0x872366b1146c4e69, "default/p", Egress, 0, "to 10.0.0.0/8 except 10.1.0.0/16 and 10.2.0.0/16, fd00::/8 on all ports"},
		{0x817573841fdaa145, "default/p", Egress, 1, "to everybody on TCP 1, 2, 3, 4, 5, 6, 7, 8, and 2 more"},
	}
	if diff := cmp.Diff(want, e.Rules()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for _, r := range e.Rules() {
		if r.Hash < 1<<63 {
			t.Errorf("hash %x has no top bit", r.Hash)
		}
	}
}

// Each change to a rule is another rule, and writing the same in another way is
// not.
func TestRuleHash(t *testing.T) {
	hash := func(text string) uint64 { return mustWith(t, world(t), mustParse(t, "p", text)).Rules()[0].Hash }
	base := spec("podSelector: {}\ningress: [{from: [{podSelector: {matchLabels: {a: b}}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{port: 80}, {port: http}]}]")
	for _, test := range []struct{ from, to string }{
		{"name: p", "name: q"},
		{"name: p", "name: p, namespace: q"},
		{"ingress: [", "ingress: [{from: [{podSelector: {}}]}, "},
		{"ingress: [{from", "egress: [{to"},
		{"a: b", "a: c"},
		{"podSelector: {m", "namespaceSelector: {m"},
		{"10.1", "10.2"},
		{"port: 80", "port: 80, protocol: UDP"},
		{"port: 80", "port: 80, endPort: 81"},
		{"http", "https"},
	} {
		changed := strings.Replace(base, test.from, test.to, 1)
		if changed == base || hash(changed) == hash(base) {
			t.Errorf("%s instead of %s makes no other rule", test.to, test.from)
		}
	}
	for _, test := range []struct{ from, to string }{
		{"10.0.0.0/8", "10.3.0.0/8"},
		{"except: [10.1.0.0/16]", "except: [10.1.7.0/24, 10.1.0.0/16]"},
		{"matchLabels: {a: b}", "matchExpressions: [{key: a, operator: In, values: [b, b]}]"},
		{"{port: 80}", "{port: 80, protocol: TCP}, {port: 80}"},
		{"podSelector: {}\n", "podSelector: {matchLabels: {x: z}}\n"},
	} {
		changed := strings.Replace(base, test.from, test.to, 1)
		if changed == base || hash(changed) != hash(base) {
			t.Errorf("%s instead of %s makes another rule", test.to, test.from)
		}
	}
}

// Two hundred replicas are one set and one identity.
func TestReplicasShare(t *testing.T) {
	e := mustWith(t, New(Limits{}), mustParse(t, "p", spec(`
		podSelector: {matchLabels: {app: x}}
		ingress: [{from: [{podSelector: {matchLabels: {app: x}}}], ports: [{port: http}]}]`)))
	for i := range 200 {
		mustAdd(t, e, Endpoint{
			ID: uint16(i + 1), Network: "n", Labels: map[string]string{"app": "x", "pod": fmt.Sprint(i)},
			Ports: []NamedPort{{"http", TCP, 80}}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})},
		})
	}
	got := e.Tables()
	want := &Tables{
		Active: true, Subjects: make(map[uint16]Subject), Prefixes: map[netip.Prefix]uint32{},
		Entries: map[Pair][]Range{{2, 1}: {{80, 80, TCP, e.Rules()[0].Hash}}},
	}
	for i := range 200 {
		want.Subjects[uint16(i+1)] = Subject{Ingress: 2, Identity: 1, Network: 1}
	}
	if diff := cmp.Diff(want, got, netips); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	// A replica with another port of that name has a set of its own.
	other := numbered(300)
	other.Labels, other.Ports = map[string]string{"app": "x"}, []NamedPort{{"http", TCP, 81}}
	mustAdd(t, e, other)
	if s := e.Tables().Subjects[other.ID]; s.Ingress != 3 || s.Identity != 1 {
		t.Errorf("got %+v", s)
	}
}

// With keeps the numbers of what is equal, gives no number twice, and leaves the
// old engine as it was.
func TestWithKeepsNumbers(t *testing.T) {
	a := spec(`
		podSelector: {matchLabels: {app: web}}
		ingress: [{from: [{podSelector: {matchLabels: {app: db}}}, {ipBlock: {cidr: 192.0.2.0/24}}]}]`)
	b := strings.Replace(spec(`
		podSelector: {matchLabels: {app: db}}
		ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/25}}]}]`), "name: p", "name: q", 1)
	first := mustWith(t, world(t), mustParse(t, "a", a))
	before := first.Tables()
	both := mustWith(t, first, mustParse(t, "ab", b+"---\n"+a))
	got := both.Tables()
	if diff := cmp.Diff(before, first.Tables(), netips); diff != "" {
		t.Errorf("With changed its engine (-before +after)\n%s", diff)
	}
	if got.Subjects[1] != before.Subjects[1] || got.Subjects[2].Identity != before.Subjects[2].Identity {
		t.Errorf("the numbers of what is equal changed: from %+v to %+v", before.Subjects, got.Subjects)
	}
	// What the dropped engine numbered is not numbered again.
	other := mustWith(t, first, mustParse(t, "b", b))
	used := numbersIn(got)
	for n := range numbersIn(other.Tables()) {
		if used[n] && n != 0 && !numbersIn(before)[n] {
			t.Errorf("number %d was used by an engine that was dropped", n)
		}
	}
	// The same objects again change nothing at all.
	if diff := cmp.Diff(got, mustWith(t, both, mustParse(t, "ab", a+"---\n"+b)).Tables(), netips); diff != "" {
		t.Errorf("the same objects (-before +after)\n%s", diff)
	}
}

func numbersIn(t *Tables) map[uint32]bool {
	out := make(map[uint32]bool)
	for at := range t.Entries {
		out[at.Set], out[at.Identity] = true, true
	}
	return out
}

// The order in which things are given does not matter but for the numbers, and
// the same order gives the same tables.
func TestDeterministic(t *testing.T) {
	o := large[0].make()
	o.Policies = o.Policies[:500]
	build := func(backwards bool) *Engine {
		e := New(Limits{})
		for i := range 50 {
			mustAdd(t, e, numbered(i))
		}
		given := &Objects{Policies: slices.Clone(o.Policies)}
		if backwards {
			slices.Reverse(given.Policies)
		}
		return mustWith(t, e, given)
	}
	if diff := cmp.Diff(build(false).Tables(), build(true).Tables(), netips); diff != "" {
		t.Errorf("(-forwards +backwards)\n%s", diff)
	}
}

// An endpoint whose addresses lie in different ipBlocks.
func TestByAddress(t *testing.T) {
	e := mustWith(t, world(t), mustParse(t, "p", spec(`
		podSelector: {matchLabels: {app: web}}
		ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24}}]}]`)))
	got := e.Tables()
	block := got.Prefixes[netip.MustParsePrefix("10.0.0.0/24")]
	if s := got.Subjects[2]; !s.ByAddress || s.Identity != 0 || block == 0 {
		t.Fatalf("got subject %+v, identity of the block %d", s, block)
	}
	for flow, want := range map[string][2]string{
		"db > web tcp 80": {"allowed ingress p 0", "refused by 1 ingress"},
	} {
		for i := range want {
			if got := told(e, got.Verdict(parseFlow(t, flow, i))); got != want[i] {
				t.Errorf("%s, family %d: got %s, want %s", flow, i, got, want[i])
			}
		}
	}
}

// Prefixes hold no more than is needed to tell identities apart.
func TestPrefixes(t *testing.T) {
	e := mustWith(t, world(t), mustParse(t, "p", spec(`
		podSelector: {}
		ingress:
		- from:
			- {ipBlock: {cidr: 10.0.0.0/8}}
			- {ipBlock: {cidr: 10.1.0.0/16}}
			- {ipBlock: {cidr: 10.1.0.1/32}}
			- {ipBlock: {cidr: "fd00::/8", except: ["fd00:1::/32"]}}
			- {ipBlock: {cidr: "fd00:1::1/128"}}
			- {ipBlock: {cidr: 172.16.0.0/12, except: [172.16.0.0/16]}}
			- {ipBlock: {cidr: 172.16.0.0/16}}
		egress:
		- to: [{ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: 10.2.0.0/16}}]
			ports: [{port: http}] # nobody's there`)))
	var got []string
	for p, identity := range e.Tables().Prefixes {
		got = append(got, fmt.Sprint(p, " ", identity))
	}
	slices.Sort(got)
	want := []string{"10.0.0.0/8 1", "172.16.0.0/12 1", "fd00:1::/32 0", "fd00:1::1/128 1", "fd00::/8 1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// Two endpoints of other nodes with one address: the last counts, and the other
// again when that is gone.
func TestAddressOfTwo(t *testing.T) {
	e := mustWith(t, world(t), mustParse(t, "p", spec(`
		podSelector: {matchLabels: {app: web}}
		ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]`)))
	flow := parseFlow(t, "remote > web tcp 80", 0)
	expect := func(want string) {
		t.Helper()
		if got := told(e, e.Tables().Verdict(flow)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	expect("allowed ingress p 0")
	other := Endpoint{Key: "node-3/other", Addresses: []netip.Addr{flow.Client}}
	mustAdd(t, e, other)
	expect("refused by 1 ingress")
	e = mustWith(t, e, mustParse(t, "p", spec(`
		podSelector: {matchLabels: {app: web}}
		ingress: [{from: [{podSelector: {matchLabels: {app: db}}}, {podSelector: {matchLabels: {x: z}}}]}]`)))
	expect("refused by 1 ingress")
	e.RemoveRemote(other.Key)
	expect("allowed ingress p 0")
	e.RemoveRemote("node-2/remote")
	expect("refused by 1 ingress")
	e.RemoveRemote("nobody")
	e.Remove(99)
	if n := len(e.hosts); n != 0 {
		t.Errorf("%d hosts are left", n)
	}
}

func TestPolicies(t *testing.T) {
	e := mustWith(t, world(t), mustParse(t, "p", strings.Replace(spec(`
		podSelector: {}
		policyTypes: [Egress, Ingress]`), "name: p", "name: q", 1)+"---\n"+spec("podSelector: {matchLabels: {app: web}}")))
	for id, want := range map[uint16][2][]string{
		1: {{"default/p", "default/q"}, {"default/q"}}, 2: {{"default/q"}, {"default/q"}}, 3: {}, 99: {},
	} {
		ingress, egress := e.Policies(id)
		if diff := cmp.Diff(want, [2][]string{ingress, egress}); diff != "" {
			t.Errorf("endpoint %d (-want +got)\n%s", id, diff)
		}
	}
}

func TestActive(t *testing.T) {
	e := New(Limits{})
	expect := func(e *Engine, want bool) {
		t.Helper()
		if got := e.Tables().Active; got != want {
			t.Errorf("active is %t", got)
		}
	}
	mustAdd(t, e, ends["web"])
	expect(e, false)
	mustAdd(t, e, ends["edge"])
	expect(e, true)
	e.Remove(4)
	expect(e, false)
	expect(mustWith(t, e, mustParse(t, "p", spec("podSelector: {matchLabels: {is: nobody}}"))), true)
}

func TestAddRefuses(t *testing.T) {
	for _, test := range []struct {
		endpoint Endpoint
		want     InvalidError
	}{
		{Endpoint{}, InvalidError{Object: "endpoint ", Field: "Key", Reason: "is missing, and so is the ID"}},
		{Endpoint{ID: 1, Key: "k"}, InvalidError{Object: "endpoint 1", Field: "Key", Value: "k", Reason: "is of another node's endpoints, but there is an ID"}},
		{Endpoint{ID: 1, Addresses: make([]netip.Addr, 1)}, InvalidError{Object: "endpoint 1", Field: "Addresses[0]", Value: "invalid IP", Reason: "is no address, or has a zone"}},
		{Endpoint{Key: "k", Addresses: []netip.Addr{netip.MustParseAddr("fe80::1%eth0")}}, InvalidError{Object: "endpoint k", Field: "Addresses[0]", Value: "fe80::1%eth0", Reason: "is no address, or has a zone"}},
		{Endpoint{ID: 1, Ports: []NamedPort{{"a", 1, 1}}}, InvalidError{Object: "endpoint 1", Field: "Ports[0].Protocol", Value: "1", Reason: "is none of TCP, UDP, SCTP"}},
	} {
		e := world(t)
		before := e.Tables()
		var got *InvalidError
		if err := e.Add(test.endpoint); !errors.As(err, &got) {
			t.Fatalf("%+v: got error %v", test.endpoint, err)
		}
		if diff := cmp.Diff(&test.want, got); diff != "" {
			t.Errorf("%+v (-want +got)\n%s", test.endpoint, diff)
		}
		if diff := cmp.Diff(before, e.Tables(), netips); diff != "" {
			t.Errorf("an Add that failed (-before +after)\n%s", diff)
		}
	}
}

// Addresses of IPv4 in IPv6 form are IPv4, and what the caller does with its
// endpoint later does not matter.
func TestAddCopies(t *testing.T) {
	e := mustWith(t, New(Limits{}), mustParse(t, "p", spec(`
		podSelector: {}
		ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24}}]}, {from: [{podSelector: {matchLabels: {app: web}}}]}]`)))
	x := Endpoint{
		ID: 1, Labels: map[string]string{"app": "db"}, Ports: []NamedPort{{"http", TCP, 80}},
		Addresses: []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.9")},
	}
	mustAdd(t, e, x)
	before := e.Tables()
	if before.Subjects[1].Identity == 0 {
		t.Error("the address is in no block")
	}
	x.Labels["app"], x.Ports[0].Port, x.Addresses[0] = "web", 81, netip.MustParseAddr("192.0.2.1")
	again := mustWith(t, e, mustParse(t, "p", spec(`
		podSelector: {}
		ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24}}]}, {from: [{podSelector: {matchLabels: {app: web}}}]}]`)))
	if diff := cmp.Diff(before, again.Tables(), netips); diff != "" {
		t.Errorf("(-before +after)\n%s", diff)
	}
}

// What does not fit is refused, names what and how many, and changes nothing.
func TestLimits(t *testing.T) {
	two := spec(`
		podSelector: {}
		ingress:
		- {from: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 1}, {port: 3}, {port: 5}]}
		- {from: [{ipBlock: {cidr: 192.0.3.0/24}}, {podSelector: {matchLabels: {app: db}}}]}`)
	for _, test := range []struct {
		limits Limits
		with   *TooBigError // of With for the endpoint web
		add    *TooBigError // of Add of db after it
	}{
		{Limits{}, nil, nil},
		{Limits{Subjects: 2, Prefixes: 2, Entries: 3, Rules: 2}, nil, nil},
		{Limits{Rules: 1}, &TooBigError{"rules", 2, 1}, nil},
		{Limits{Prefixes: 1}, &TooBigError{"prefixes", 2, 1}, nil},
		{Limits{Entries: 1}, &TooBigError{"entries", 2, 1}, nil},
		{Limits{Entries: 2, PerEntry: 2}, &TooBigError{"entries", 3, 2}, nil},
		{Limits{Entries: 3, PerEntry: 2}, nil, nil},
		{Limits{Subjects: 1}, nil, &TooBigError{"subjects", 2, 1}},
	} {
		t.Run(fmt.Sprintf("%+v", test.limits), func(t *testing.T) {
			e := New(test.limits)
			mustAdd(t, e, ends["web"])
			before := e.Tables()
			next, err := e.With(mustParse(t, "p", two))
			expectTooBig(t, test.with, err)
			if diff := cmp.Diff(before, e.Tables(), netips); diff != "" {
				t.Errorf("With changed its engine (-before +after)\n%s", diff)
			}
			if err != nil {
				return
			}
			before = next.Tables()
			err = next.Add(ends["db"])
			expectTooBig(t, test.add, err)
			if diff := cmp.Diff(before, next.Tables(), netips); err != nil && diff != "" {
				t.Errorf("an Add that failed (-before +after)\n%s", diff)
			}
		})
	}
}

func expectTooBig(t *testing.T, want *TooBigError, err error) {
	t.Helper()
	var got *TooBigError
	if err != nil && !errors.As(err, &got) {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// What is far too big is given up before it is all there.
func TestLimitsGiveUp(t *testing.T) {
	e := New(Limits{Entries: 10})
	mustAdd(t, e, numbered(0))
	_, err := e.With(large[1].make())
	expectTooBig(t, &TooBigError{"entries", 21, 10}, err)
}

// Replacing an endpoint counts what the old one no longer needs, and when it
// fails the old one is there with its numbers.
func TestLimitsOfReplacing(t *testing.T) {
	objects := `
		podSelector: {matchLabels: {app: web}}
		ingress:
		- {from: [{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: "2001:db8::/64"}}], ports: [{port: http}]}
		- {from: [{ipBlock: {cidr: 192.0.3.0/24}}], ports: [{port: https}]}
		- {from: [{ipBlock: {cidr: 192.0.4.0/24}}], ports: [{port: dns}]}`
	e := mustWith(t, New(Limits{Entries: 2, Prefixes: 4}), mustParse(t, "p", spec(objects)))
	x := ends["web"]
	mustAdd(t, e, x)
	x.Ports = []NamedPort{{"http", TCP, 81}}
	mustAdd(t, e, x)
	x.Ports = []NamedPort{{"http", TCP, 82}, {"https", TCP, 443}}
	mustAdd(t, e, x)
	x.Ports = []NamedPort{{"http", TCP, 84}, {"https", TCP, 443}}
	mustAdd(t, e, x) // another set, with as many entries as the limit allows
	x.Ports = x.Ports[:1]
	mustAdd(t, e, x)
	before := e.Tables()
	if len(before.Entries) != 1 || e.entryCount != 1 {
		t.Fatalf("got entries %v, counted %d", before.Entries, e.entryCount)
	}
	x.Ports = []NamedPort{{"http", TCP, 83}, {"https", TCP, 443}, {"dns", TCP, 53}}
	expectTooBig(t, &TooBigError{"entries", 3, 2}, e.Add(x))
	if diff := cmp.Diff(before, e.Tables(), netips); diff != "" {
		t.Errorf("an Add that failed (-before +after)\n%s", diff)
	}
	e.Remove(x.ID)
	if len(e.sets) != 0 || e.entryCount != 0 || len(e.entries) != 0 {
		t.Errorf("left: %d sets, %d entries, counted %d", len(e.sets), len(e.entries), e.entryCount)
	}
}

func TestNumbersEnd(t *testing.T) {
	e := New(Limits{})
	e.numbers.next = math.MaxUint32
	mustAdd(t, e, ends["web"])
	one := spec("podSelector: {}")
	e = mustWith(t, e, mustParse(t, "p", one))
	_, err := e.With(mustParse(t, "p", spec("podSelector: {}\ningress: [{}]")))
	expectTooBig(t, &TooBigError{"numbers", math.MaxUint32 + 1, math.MaxUint32}, err)
	mustWith(t, e, mustParse(t, "p", one))
}

// Rules that all lie within one another would be told of each prefix.
func TestMemberships(t *testing.T) {
	var text strings.Builder
	text.WriteString("podSelector: {}\ningress:\n")
	for i := range 2100 {
		fmt.Fprintf(&text, "- {from: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: 10.%d.%d.0/24}}]}\n", i>>8, i&255)
	}
	_, err := New(Limits{}).With(mustParse(t, "p", spec(text.String())))
	var got *TooBigError
	if errors.As(err, &got) {
		t.Fatalf("got %v", err) // no prefix changes who is within
	}
	text.Reset()
	text.WriteString("podSelector: {}\ningress:\n")
	for i := range 4200 {
		cidr := fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255)
		fmt.Fprintf(&text, "- {from: [{ipBlock: {cidr: 0.0.0.0/0, except: [%s]}}]}\n", cidr)
	}
	if _, err := New(Limits{}).With(mustParse(t, "p", spec(text.String()))); !errors.As(err, &got) || got.What != "memberships" {
		t.Errorf("got %v", err)
	}
}

// What is left in an entry of two policies, of which a is asked before b when
// they are as wide.
func TestEntry(t *testing.T) {
	for _, test := range []struct{ a, b, want string }{
		{"[{port: 80}]", "[{port: 80}]", "6:80-80 a"},
		{"[{port: 80}]", "[{port: 80, protocol: UDP}]", "6:80-80 a, 17:80-80 b"},
		{"[{port: 80}]", "[{port: 81}]", "6:80-80 a, 6:81-81 b"},
		{"[{port: 80}]", "[]", "0:0-65535 b"},
		{"[]", "[{port: 80}, {protocol: UDP}]", "0:0-65535 a"},
		{"[]", "[]", "0:0-65535 a"},
		{"[{port: 80, endPort: 90}]", "[{port: 85, endPort: 95}]", "6:80-90 a, 6:85-95 b"},
		{"[{port: 80, endPort: 90}]", "[{port: 81, endPort: 90}]", "6:80-90 a"},
		{"[{port: 81, endPort: 90}]", "[{port: 80, endPort: 90}]", "6:80-90 b"},
		{"[{port: 81}, {port: 443}]", "[{}, {port: 443, protocol: SCTP}]", "6:0-65535 b, 132:443-443 b"},
		{"[{port: 80, endPort: 90}, {port: 91}, {port: 85, endPort: 92}]", "[{port: 93}]", "6:80-92 a, 6:93-93 b"},
	} {
		text := func(name, ports string) string {
			return strings.Replace(spec("podSelector: {}\ningress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: "+ports+"}]"), "name: p", "name: "+name, 1)
		}
		e := mustWith(t, New(Limits{}), mustParse(t, "p", text("b", test.b)+"---\n"+text("a", test.a)))
		mustAdd(t, e, ends["web"])
		var got []string
		for _, ranges := range e.Tables().Entries {
			for _, r := range ranges {
				name := "a"
				if r.Rule == e.Rules()[1].Hash {
					name = "b"
				}
				got = append(got, fmt.Sprintf("%d:%d-%d %s", r.Protocol, r.First, r.Last, name))
			}
		}
		if diff := cmp.Diff(test.want, strings.Join(got, ", ")); diff != "" {
			t.Errorf("%s and %s (-want +got)\n%s", test.a, test.b, diff)
		}
	}
}

// What becomes free is counted once, though both the set and the identity of an
// entry go.
func TestLimitsOfReplacingBoth(t *testing.T) {
	e := mustWith(t, New(Limits{Entries: 2}), mustParse(t, "p", spec(`
		podSelector: {matchLabels: {a: one}}
		ingress: [{from: [{podSelector: {matchLabels: {a: one}}}]}]`)+"---\n"+strings.Replace(spec(`
		podSelector: {matchLabels: {a: two}}
		ingress:
		- {from: [{podSelector: {matchLabels: {a: two}}}]}
		- {from: [{ipBlock: {cidr: 192.0.2.0/24}}]}
		- {from: [{ipBlock: {cidr: 192.0.3.0/24}}]}`), "name: p", "name: q", 1)))
	mustAdd(t, e, Endpoint{ID: 1, Labels: map[string]string{"a": "one"}})
	expectTooBig(t, &TooBigError{"entries", 3, 2}, e.Add(Endpoint{ID: 1, Labels: map[string]string{"a": "two"}}))
	if err := e.Check(); err != nil {
		t.Error(err)
	}
}

// An endpoint of this node is not taken for one of another that claims its
// address.
func TestAddressOfLocal(t *testing.T) {
	e := mustWith(t, world(t), mustParse(t, "p", spec(`
		podSelector: {matchLabels: {app: web}}
		ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24}}, {podSelector: {matchLabels: {app: thief}}}]}]`)))
	mustAdd(t, e, Endpoint{Key: "thief", Namespace: "default", Labels: map[string]string{"app": "thief"}, Addresses: ends["db"].Addresses})
	for i, want := range []string{"allowed ingress p 0", "refused by 1 ingress"} {
		if got := told(e, e.Tables().Verdict(parseFlow(t, "db > web tcp 80", i))); got != want {
			t.Errorf("family %d: got %s, want %s", i, got, want)
		}
	}
}

// With refuses what Parse would, in objects that were made otherwise.
func TestWithValidates(t *testing.T) {
	bad := mustParse(t, "p", spec("podSelector: {}\ningress: [{ports: [{port: 80}]}]"))
	bad.Policies[0].Object.Spec.Ingress[0].Ports[0].Port.IntVal = 0
	ns := mustParse(t, "p", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}")
	ns.Namespaces[0].Object.Name = ""
	twice := mustParse(t, "p", spec("podSelector: {}"))
	twice.Policies = append(twice.Policies, twice.Policies[0])
	for _, test := range []struct {
		objects *Objects
		want    *InvalidError
	}{
		{bad, &InvalidError{"p", "default/p", "spec.ingress[0].ports[0].port", "0", "is not between 1 and 65535"}},
		{ns, &InvalidError{"p", "namespace ", "metadata.name", "", "is missing"}},
		{twice, &InvalidError{"p", "default/p", "", "", "is given twice"}},
		{&Objects{Policies: []Policy{{Source: "p"}}}, &InvalidError{Source: "p", Reason: "has an element without an object"}},
		{&Objects{Namespaces: []Namespace{{Source: "p"}}}, &InvalidError{Source: "p", Reason: "has an element without an object"}},
		{nil, nil},
	} {
		_, err := world(t).With(test.objects)
		var got *InvalidError
		if err != nil && !errors.As(err, &got) {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
}
