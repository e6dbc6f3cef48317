// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"io"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/pkg/api"
)

// bitsWritten are the decimal numbers that Set may take; the exponent is not beyond what can be written out.
var bitsWritten = regexp.MustCompile(`^([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?)([kMGT]?)$`)

// exactly is what a text says, to the last digit; nil where it is no number.
func exactly(text string) *big.Rat {
	parts := bitsWritten.FindStringSubmatch(text)
	if parts == nil {
		return nil
	}
	number, _ := new(big.Rat).SetString(parts[1])
	return number.Mul(number, big.NewRat(map[string]int64{"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[parts[2]], 1))
}

// FuzzBandwidth gives set-bandwidth any rate and burst. Whole numbers up to 2^53 are taken, and nothing else but
// what is a whole number to nine digits; a refusal names flag and value. What is not given stays.
func FuzzBandwidth(f *testing.F) {
	for _, rate := range []string{
		"10M", "2.5G", "8.2M", "0", "-0", "0.0", "-1", "+5", ".5k", "5.", "0.5", "1e3k", "1e-400", "0e9999", "1e9999", "9007199254740992", "9007199254740994",
		"9007.1992547409920T", "", "M", "kM", "NaN", "inf", "-Inf", "0x10", "0x1p4", "1_000", "1,5M", " 1", "1m", "1\xff",
	} {
		f.Add(rate, "1M")
		f.Add("1G", rate)
	}
	longExponent := regexp.MustCompile(`[eE][+-]?[0-9]{5}`)
	f.Fuzz(func(t *testing.T, rate, burst string) {
		if longExponent.MatchString(rate+" "+burst) || len(rate)+len(burst) > 1000 {
			t.Skip("longer than a second reading can be")
		}
		before := api.Bandwidth{IngressRate: 1, IngressBurst: 2, EgressRate: 3, EgressBurst: 4}
		want := before
		var b bandwidthFlags
		flags := flag.NewFlagSet("tendril", flag.ContinueOnError)
		flags.SetOutput(io.Discard)
		b.define(flags)
		for _, given := range []struct {
			name, text string
			bits       *bits
			wanted     []*int64 // what the value is for, and what is the default again
		}{
			{"egress-rate", rate, &b.egressRate, []*int64{&want.EgressRate, &want.EgressBurst}},
			{"egress-burst", burst, &b.egressBurst, []*int64{&want.EgressBurst}},
		} {
			err := flags.Parse([]string{"--" + given.name + "=" + given.text})
			exact := exactly(given.text)
			if err != nil {
				if exact != nil && exact.IsInt() && exact.Sign() >= 0 && exact.Cmp(big.NewRat(1<<53, 1)) <= 0 {
					t.Errorf("%q is refused: %v", given.text, err)
				}
				if !strings.Contains(err.Error(), strconv.Quote(given.text)+" for flag -"+given.name) {
					t.Errorf("%q of -%s: the error does not name it: %v", given.text, given.name, err)
				}
				continue
			}
			n := given.bits.n
			if exact == nil || n < 0 || n > 1<<53 {
				t.Fatalf("%q is taken, as %d", given.text, n)
			}
			off := new(big.Rat).Sub(exact, big.NewRat(n, 1))
			if off.Abs(off).Cmp(exact.Mul(exact, big.NewRat(2, 1e9))) > 0 {
				t.Errorf("%q is taken as %d", given.text, n)
			}
			for _, to := range given.wanted {
				*to = 0
			}
			*given.wanted[0] = n
		}
		if d := cmp.Diff(want, b.change(before)); d != "" {
			t.Errorf("rate %q, burst %q (-want +got):\n%s", rate, burst, d)
		}
	})
}
