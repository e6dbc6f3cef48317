// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"testing"
)

func TestParseRefuses(t *testing.T) {
	for want, args := range map[string][]string{
		`unknown argument "packet"`:                                    {"packet"},
		`-only: unknown name "cpu": want some of ` + allSections:       {"-only", "packet,cpu"},
		`-against: unknown name "": want some of ` + allOthers:         {"-against", ""},
		"ports must be between 2 and 20000":                            {"-ports", "20001"},
		"rounds, calls, repeat, endpoints and window must be positive": {"-rounds", "0"},
	} {
		if _, err := parse(args, io.Discard); err == nil || err.Error() != want {
			t.Errorf("parse %q: error %v, want %s", args, err, want)
		}
	}
}

const (
	allSections = "packet, same-node, masquerade, ports, policy, bandwidth, cni, memory"
	allOthers   = "raw, redirect, chain, ptp, bridge, nft, nft-set, iptables, bandwidth, htb"
)
