// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	nodeagent "github.com/tendril-net/tendril/pkg/agent"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/policy"
)

// rule lets peers in.
type rule struct {
	// peers as NetworkPolicy has them, in YAML.
	peers []string
	// port by TCP; 0 is everything.
	port uint16
}

const everyPod = "{podSelector: {}}"

func ipBlock(p netip.Prefix) string { return "{ipBlock: {cidr: " + p.String() + "}}" }

func ipBlocks(prefixes []netip.Prefix) []string {
	var peers []string
	for _, p := range prefixes {
		peers = append(peers, ipBlock(p))
	}
	return peers
}

// host is the prefix of one address.
func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// outside has all clients that are no endpoints, and blocks are parts of it. RFC 6598
// sets it aside.
var outside = netip.MustParsePrefix("100.64.0.0/10")

// maxBlocks is how many blocks there are: the networks of 128 addresses in outside.
const maxBlocks = 1 << (25 - 10)

// seed makes a run take the same random numbers as the one before.
const seed = 20

// blocks are n disjoint prefixes of 1 to 128 addresses, always the same ones, strewn over
// outside in no order.
func blocks(n int) []netip.Prefix {
	random := rand.New(rand.NewPCG(seed, 1))
	all := make([]netip.Prefix, 0, n)
	for _, at := range random.Perm(maxBlocks)[:n] {
		address := outside.Addr().As4()
		address[1] += byte(at >> 9)
		address[2] = byte(at >> 1)
		address[3] = byte(at << 7)
		all = append(all, netip.PrefixFrom(netip.AddrFrom4(address), 25+random.IntN(8)))
	}
	return all
}

// clients are n addresses, each of a random one of some blocks.
func clients(within []netip.Prefix, n int) []netip.Addr {
	random := rand.New(rand.NewPCG(seed, 2))
	all := make([]netip.Addr, n)
	for i := range all {
		block := within[random.IntN(len(within))]
		address := block.Addr().As4()
		address[3] += byte(random.IntN(1 << (32 - block.Bits())))
		all[i] = netip.AddrFrom4(address)
	}
	return all
}

// rulesFor are one rule for each prefix, without ports.
func rulesFor(prefixes []netip.Prefix) []rule {
	var rules []rule
	for _, peer := range ipBlocks(prefixes) {
		rules = append(rules, rule{peers: []string{peer}})
	}
	return rules
}

// manifest is YAML with policies of so many rules each. They select every endpoint.
func manifest(name string, rules []rule, perPolicy int) []byte {
	var text bytes.Buffer
	i := 0
	for some := range slices.Chunk(rules, perPolicy) {
		fmt.Fprintf(&text, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s-%d}\nspec:\n  podSelector: {}\n  ingress:\n", name, i)
		for _, r := range some {
			fmt.Fprintf(&text, "  - {from: [%s]", strings.Join(r.peers, ", "))
			if r.port != 0 {
				fmt.Fprintf(&text, ", ports: [{port: %d}]", r.port)
			}
			text.WriteString("}\n")
		}
		i++
	}
	return text.Bytes()
}

// rulesPerSource keeps a source below the size that policy.Parse takes.
const rulesPerSource = 25_000

// newEngine returns one that knows the endpoints.
func newEngine(endpoints []policy.Endpoint) (*policy.Engine, error) {
	engine := policy.New(policy.Limits{
		Subjects: datapath.PolicySubjects, Prefixes: datapath.PolicyPrefixes, Entries: datapath.PolicyPairs,
		PerEntry: datapath.PolicyEntryRanges, Rules: datapath.PolicyRules,
	})
	for _, e := range endpoints {
		if err := engine.Add(e); err != nil {
			return nil, err
		}
	}
	return engine, nil
}

// compile makes rules what the datapath takes, for the engine's endpoints. Without rules
// there is no policy. What replaces each other in a datapath is to be of one engine.
func compile(engine *policy.Engine, rules []rule) (datapath.Policy, error) {
	var objects *policy.Objects
	i := 0
	for some := range slices.Chunk(rules, rulesPerSource) {
		name := fmt.Sprintf("source-%d", i)
		read, err := policy.Parse(name, manifest(name, some, rulesPerSource))
		if err != nil {
			return datapath.Policy{}, err
		}
		if objects, err = objects.Merge(read); err != nil {
			return datapath.Policy{}, err
		}
		i++
	}
	engine, err := engine.With(objects)
	if err != nil {
		return datapath.Policy{}, err
	}
	return nodeagent.DatapathPolicy(engine.Tables()), nil
}

// ruleCount is a number of rules in the report.
func ruleCount(kind string, n int) string {
	switch n {
	case 0:
		return kind + ", no policy"
	case 1:
		return kind + ", 1 rule"
	}
	return fmt.Sprintf("%s, %d rules", kind, n)
}
