// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"

	"github.com/tendril-net/tendril/pkg/api"
)

// readBandwidth reads rates and bursts, by the names of the reference plugin bandwidth.
func (c *config) readBandwidth(o object) (b api.Bandwidth) {
	for _, number := range []struct {
		key  string
		dest *int64
		rate bool
	}{
		{"ingressRate", &b.IngressRate, true},
		{"ingressBurst", &b.IngressBurst, false},
		{"egressRate", &b.EgressRate, true},
		{"egressBurst", &b.EgressBurst, false},
	} {
		o.read(number.key, number.dest, "a whole number of bits")
		n := *number.dest
		switch {
		case n < 0:
			o.fault(number.key, fmt.Sprintf("%d is below 0", n))
		case number.rate && api.RateFault(n) != "":
			o.fault(number.key, fmt.Sprintf("%d %s", n, api.RateFault(n)))
		}
	}
	return b
}

// readRuntimeBandwidth reads the capability. Where the network limits a direction, that counts:
// whoever runs a container does not lift what the node's owner has set.
func (c *config) readRuntimeBandwidth(o object) {
	if !o.has("bandwidth") || empty(o.fields["bandwidth"]) {
		return
	}
	object := o.object("bandwidth")
	object.known("ingressRate", "ingressBurst", "egressRate", "egressBurst")
	asked := c.readBandwidth(object)
	if c.bandwidth.IngressRate == 0 {
		c.bandwidth.IngressRate, c.bandwidth.IngressBurst = asked.IngressRate, asked.IngressBurst
	}
	if c.bandwidth.EgressRate == 0 {
		c.bandwidth.EgressRate, c.bandwidth.EgressBurst = asked.EgressRate, asked.EgressBurst
	}
}

// readPrefixes reads a list of prefixes.
func readPrefixes(o object, key string) []netip.Prefix {
	var written []string
	var prefixes []netip.Prefix
	o.read(key, &written, "a list of strings")
	for i, one := range written {
		p, err := netip.ParsePrefix(one)
		if err != nil || p.Addr().Is4In6() {
			o.fault(fmt.Sprintf("%s[%d]", key, i), fmt.Sprintf("%q is not an address and a prefix length", one))
			continue
		}
		prefixes = append(prefixes, p.Masked())
	}
	return prefixes
}
