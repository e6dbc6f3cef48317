// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTurns(t *testing.T) {
	for name, c := range map[string]struct {
		ports   int
		sources []string
		want    []string
	}{
		"one":     {ports: 1, want: []string{"invalid IP 192.0.2.1:5000", "invalid IP 192.0.2.1:5000", "invalid IP 192.0.2.1:5000"}},
		"ports":   {ports: 2, want: []string{"invalid IP 192.0.2.1:5000", "invalid IP 192.0.2.1:5001", "invalid IP 192.0.2.1:5000"}},
		"sources": {1, []string{"192.0.2.16", "192.0.2.17"}, []string{"192.0.2.16 192.0.2.1:5000", "192.0.2.17 192.0.2.1:5000", "192.0.2.16 192.0.2.1:5000"}},
	} {
		t.Run(name, func(t *testing.T) {
			j := job{At: netip.MustParseAddrPort("192.0.2.1:5000"), Ports: c.ports}
			for _, text := range c.sources {
				j.Sources = append(j.Sources, netip.MustParseAddr(text))
			}
			var got []string
			for i := range c.want {
				got = append(got, j.source(i).String()+" "+j.port(i).String())
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("connections (-want +got):\n%s", diff)
			}
		})
	}
}
