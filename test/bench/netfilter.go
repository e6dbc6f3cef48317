// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
)

// What tendril's policy is compared with: rules of netfilter, where packets are forwarded.
const (
	nftRules = "nft"      // a chain with a rule for each CIDR
	nftSet   = "nft-set"  // one rule, and a set with the CIDRs
	iptables = "iptables" // a chain with a rule for each CIDR
)

// fromClients is how many addresses connections from outside have in turn.
const fromClients = 256

// compareFilters compares traffic from outside to a container with one rule and with
// many, for tendril and for each filter of netfilter by itself.
func (b *bench) compareFilters(ctx context.Context) error {
	many := blocks(cidrRules)
	for _, kind := range []string{tendril, nftRules, nftSet, iptables} {
		if kind != tendril && !slices.Contains(b.against, kind) {
			continue
		}
		if err := b.compareFilter(ctx, kind, many); err != nil {
			return fmt.Errorf("filter by %s: %w", kind, err)
		}
	}
	return nil
}

func (b *bench) compareFilter(ctx context.Context, kind string, many []netip.Prefix) (err error) {
	var nodes []*candidate
	defer func() { err = errors.Join(err, closeAll(nodes)) }()
	for _, prefixes := range [][]netip.Prefix{{outside}, many} {
		var c *candidate
		if kind == tendril {
			c, err = b.wireGuarded(ctx, "outside", rulesFor(prefixes))
		} else {
			c, err = wireFilter(kind, prefixes)
		}
		if err != nil {
			return err
		}
		nodes = append(nodes, c)
		if err := c.admit(many); err != nil {
			return err
		}
	}
	return b.compare(ctx, scene{
		section: "policy", about: "outside to container, ", candidates: nodes, over: func(c *candidate) path { return c.fromWorld },
		against: ruleCount(kind, 1),
	}, []comparison{
		{packets, "k/s", 1e3, goal{}},
		{requestResponse, "k/s", 1e3, goal{}},
		{connections, "k/s", 1e3, goal{}},
	})
}

// wireFilter makes a node that forwards between the world and a container, by what the
// rules of netfilter let in.
func wireFilter(kind string, prefixes []netip.Prefix) (_ *candidate, err error) {
	c, err := newNode(fmt.Sprintf("policy-%s-%d", kind, len(prefixes)))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	c.label = ruleCount(kind, len(prefixes))
	server, err := c.namespace("server")
	if err != nil {
		return nil, err
	}
	if err := connect(end{c.node, "host0", []string{"10.10.0.1/16"}}, end{server, "eth0", []string{"10.10.0.2/16"}}); err != nil {
		return nil, err
	}
	if err := server.ip("route add default via 10.10.0.1"); err != nil {
		return nil, err
	}
	if err := c.node.sysctl("net/ipv4/ip_forward", "1"); err != nil {
		return nil, err
	}
	command, script := exec.Command("iptables-restore"), iptablesScript(prefixes)
	switch kind {
	case nftRules:
		command, script = exec.Command("nft", "-f", "-"), nftScript(prefixes, false)
	case nftSet:
		command, script = exec.Command("nft", "-f", "-"), nftScript(prefixes, true)
	}
	command.Stdin = strings.NewReader(script)
	err = c.node.do(func() error {
		if text, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", command, err, text)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	c.fromWorld = path{client: c.toWorld.server, server: server, address: netip.MustParseAddr("10.10.0.2")}
	return c, nil
}

// admit gives the world the addresses of the clients. One that all its packets have is in
// the middle of the prefixes; connections come from random ones of them.
func (c *candidate) admit(within []netip.Prefix) error {
	world := c.fromWorld.client
	for _, line := range []string{
		"route add local " + outside.String() + " dev lo",
		"route add " + podSubnet + " via " + nodeAddress.String() + " src " + within[len(within)/2].Addr().String(),
	} {
		if err := world.ip(line); err != nil {
			return err
		}
	}
	c.fromWorld.sources = clients(within, fromClients)
	return nil
}

// iptablesScript lets in what comes from one of the prefixes, with a rule for each.
func iptablesScript(prefixes []netip.Prefix) string {
	var script strings.Builder
	script.WriteString("*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n")
	for _, p := range prefixes {
		fmt.Fprintf(&script, "-A FORWARD -s %s -j ACCEPT\n", p)
	}
	script.WriteString("COMMIT\n")
	return script.String()
}

// nftScript does so in nftables, with a rule for each or with one for all.
func nftScript(prefixes []netip.Prefix, set bool) string {
	var script strings.Builder
	script.WriteString("table ip bench {\n")
	if set {
		script.WriteString("set clients { type ipv4_addr; flags interval; elements = {")
		for i, p := range prefixes {
			if i > 0 {
				script.WriteString(", ")
			}
			script.WriteString(p.String())
		}
		script.WriteString("}; }\n")
	}
	script.WriteString("chain forward {\ntype filter hook forward priority filter; policy drop;\nct state established,related accept\n")
	if set {
		script.WriteString("ip saddr @clients accept\n")
	} else {
		for _, p := range prefixes {
			fmt.Fprintf(&script, "ip saddr %s accept\n", p)
		}
	}
	script.WriteString("}\n}\n")
	return script.String()
}
