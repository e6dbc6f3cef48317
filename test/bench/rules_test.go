// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/policy"
)

func TestBlocks(t *testing.T) {
	all := blocks(maxBlocks)
	seen := make(map[netip.Prefix]bool)
	for _, b := range all {
		network := netip.PrefixFrom(b.Addr(), 25)
		if b != b.Masked() || network != network.Masked() || !outside.Contains(b.Addr()) || seen[network] {
			t.Fatalf("block %s is no start of a network of its own in %s", b, outside)
		}
		seen[network] = true
	}
	if diff := cmp.Diff(blocks(100), blocks(100), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("two runs have other blocks:\n%s", diff)
	}
}

func TestClients(t *testing.T) {
	within := blocks(20)
	hit := make(map[netip.Prefix]bool)
	for _, a := range clients(within, 1000) {
		found := false
		for _, b := range within {
			if b.Contains(a) {
				found, hit[b] = true, true
			}
		}
		if !found {
			t.Errorf("client %s is in no block", a)
		}
	}
	if len(hit) != len(within) {
		t.Errorf("clients are of %d blocks, not of all %d", len(hit), len(within))
	}
}

func TestManifest(t *testing.T) {
	rules := []rule{
		{peers: []string{everyPod, ipBlock(netip.MustParsePrefix("192.0.2.0/25"))}},
		{peers: []string{ipBlock(netip.MustParsePrefix("192.0.2.128/25"))}, port: 80},
		{peers: []string{everyPod}},
	}
	want := `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: many-0}
spec:
  podSelector: {}
  ingress:
  - {from: [{podSelector: {}}, {ipBlock: {cidr: 192.0.2.0/25}}]}
  - {from: [{ipBlock: {cidr: 192.0.2.128/25}}], ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: many-1}
spec:
  podSelector: {}
  ingress:
  - {from: [{podSelector: {}}]}
`
	if diff := cmp.Diff(want, string(manifest("many", rules, 2))); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
}

// TestCompile: each number of rules becomes so many, whatever the number of sources, and
// lets in who is to be measured.
func TestCompile(t *testing.T) {
	pods := []policy.Endpoint{
		{ID: 1, Network: "pods", Addresses: []netip.Addr{netip.MustParseAddr("10.10.0.2")}},
		{ID: 2, Network: "pods", Addresses: []netip.Addr{netip.MustParseAddr("10.10.0.3")}},
	}
	engine, err := newEngine(pods)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := compile(engine, nil); err != nil || p.Active {
		t.Errorf("without rules, there is a policy: active %v, error %v", p.Active, err)
	}
	for _, n := range []int{1, 2, 30, rulesPerSource + 1} {
		p, err := compile(engine, established(n))
		if err != nil {
			t.Fatalf("%d rules: %v", n, err)
		}
		rules := make(map[uint64]bool)
		for _, ranges := range p.Entries {
			for _, r := range ranges {
				rules[r.Rule] = true
			}
		}
		if !p.Active || len(rules) != n {
			t.Errorf("%d rules became %d, active %v", n, len(rules), p.Active)
		}
		client, server := p.Subjects[1], p.Subjects[2]
		for who, identity := range map[string]uint32{"the other endpoint": client.Identity, "the world": p.Identities[host(farAway[0])]} {
			if len(p.Entries[datapath.PolicyPair{Set: server.Ingress, Identity: identity}]) == 0 {
				t.Errorf("of %d rules, none lets in %s", n, who)
			}
		}
	}
}

func TestRuleCount(t *testing.T) {
	got := []string{ruleCount("nft", 0), ruleCount("nft", 1), ruleCount("nft", 10_000)}
	if diff := cmp.Diff([]string{"nft, no policy", "nft, 1 rule", "nft, 10000 rules"}, got); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
}
