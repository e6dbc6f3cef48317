// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/tendril-net/tendril/pkg/api"
)

// bits is a flag for a number of bits, or of bits per second: a whole number, or one with a
// suffix of powers of 1000.
type bits struct {
	n     int64
	given bool
}

var suffixes = map[string]int64{"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

// String is the flag's default in the usage.
func (b *bits) String() string { return "" }

// Set reads a value such as 1000000, 10M or 2.5G.
func (b *bits) Set(text string) error {
	number, factor := text, int64(1)
	if text != "" {
		if f, is := suffixes[text[len(text)-1:]]; is {
			number, factor = text[:len(text)-1], f
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	n *= float64(factor)
	whole := math.Round(n) // 8.2M is no float
	// What is too little for a float comes out as 0, which would be no limit.
	digits, _, _ := strings.Cut(strings.ToLower(number), "e")
	lost := n == 0 && strings.ContainsAny(digits, "123456789")
	if err != nil || lost || strings.ContainsAny(number, "xXpP_") || !(n >= 0 && n <= 1<<53) || math.Abs(n-whole) > 1e-9*n {
		return errors.New("neither 0 nor a number of bits such as 1000000, 10M or 2.5G")
	}
	b.n, b.given = int64(whole), true
	return nil
}

// bandwidthFlags are those of endpoints set-bandwidth.
type bandwidthFlags struct{ ingressRate, ingressBurst, egressRate, egressBurst bits }

func (b *bandwidthFlags) define(flags *flag.FlagSet) {
	flags.Var(&b.ingressRate, "ingress-rate", "`bits` per second that the container gets, such as 10M; 0 is no limit")
	flags.Var(&b.ingressBurst, "ingress-burst", "`bits` that it gets at once after a silence; default 10 ms of the rate")
	flags.Var(&b.egressRate, "egress-rate", "`bits` per second that the container sends; 0 is no limit")
	flags.Var(&b.egressBurst, "egress-burst", "`bits` that it sends at once after a silence; default 10 ms of the rate")
}

// change puts what was given in the place of what there is. The burst of another rate is
// the default again, unless it is given, too.
func (b *bandwidthFlags) change(of api.Bandwidth) api.Bandwidth {
	for _, d := range []struct {
		rate, burst   bits
		toRate, toEnd *int64
	}{
		{b.ingressRate, b.ingressBurst, &of.IngressRate, &of.IngressBurst},
		{b.egressRate, b.egressBurst, &of.EgressRate, &of.EgressBurst},
	} {
		if d.rate.given {
			*d.toRate, *d.toEnd = d.rate.n, 0
		}
		if d.burst.given {
			*d.toEnd = d.burst.n
		}
	}
	return of
}

// setBandwidth changes the limits of one endpoint, and shows those that are in force.
func setBandwidth(c call) error {
	f := c.bandwidth
	if !f.ingressRate.given && !f.ingressBurst.given && !f.egressRate.given && !f.egressBurst.given {
		return &usageError{"endpoints set-bandwidth: nothing to set: give --ingress-rate or --egress-rate"}
	}
	if c.args[0] == "" {
		return &usageError{"endpoints set-bandwidth: CONTAINER is empty"}
	}
	e, err := c.oneEndpoint()
	if err != nil {
		return err
	}
	wanted := f.change(e.Bandwidth)
	if (wanted.IngressBurst > 0 && wanted.IngressRate == 0) || (wanted.EgressBurst > 0 && wanted.EgressRate == 0) {
		return &usageError{"endpoints set-bandwidth: a burst without a rate limits nothing"}
	}
	if e, err = c.client.SetBandwidth(c.ctx, e.Attachment, wanted); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(e)
	}
	t := newTable("CONTAINER", "INTERFACE", "DIRECTION", "RATE", "BURST")
	for _, d := range []struct {
		name        string
		rate, burst int64
	}{
		{"ingress", e.Bandwidth.IngressRate, e.Bandwidth.IngressBurst},
		{"egress", e.Bandwidth.EgressRate, e.Bandwidth.EgressBurst},
	} {
		t.row(short(e.ContainerID), e.IfName, d.name, rate(d.rate), inBits(d.burst))
	}
	return t.write(c.stdout)
}

// oneEndpoint finds the endpoint of a container whose ID begins so, by its interface if it has
// several.
func (c call) oneEndpoint() (api.Endpoint, error) {
	list, err := c.client.Endpoints(c.ctx)
	if err != nil {
		return api.Endpoint{}, err
	}
	var found, exact []api.Endpoint
	for _, e := range list {
		if e.ContainerID == c.args[0] && (len(c.args) < 2 || e.IfName == c.args[1]) {
			exact = append(exact, e)
		}
		if strings.HasPrefix(e.ContainerID, c.args[0]) && (len(c.args) < 2 || e.IfName == c.args[1]) {
			found = append(found, e)
		}
	}
	if len(exact) > 0 { // whose ID others may begin with
		found = exact
	}
	switch len(found) {
	case 0:
		return api.Endpoint{}, fmt.Errorf("no endpoint is %q: `tendril endpoints` lists them", strings.Join(c.args, " "))
	case 1:
		return found[0], nil
	}
	var names []string
	for _, e := range found {
		names = append(names, fmt.Sprintf("%q", e.ContainerID+" "+e.IfName))
	}
	return api.Endpoint{}, fmt.Errorf("several endpoints are %q: %s", strings.Join(c.args, " "), strings.Join(names, ", "))
}

// rate shows bits per second.
func rate(n int64) string {
	if n == 0 {
		return "no limit"
	}
	return inBits(n) + "/s"
}

// inBits shows a number of bits, in powers of 1000.
func inBits(n int64) string {
	if n == 0 {
		return ""
	}
	for _, unit := range []struct {
		name string
		size int64
	}{{"Tbit", 1e12}, {"Gbit", 1e9}, {"Mbit", 1e6}, {"kbit", 1e3}} {
		if n >= unit.size {
			return strconv.FormatFloat(float64(n)/float64(unit.size), 'f', -1, 64) + " " + unit.name
		}
	}
	return strconv.FormatInt(n, 10) + " bit"
}
