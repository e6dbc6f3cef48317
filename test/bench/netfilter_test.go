// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFilterScripts(t *testing.T) {
	prefixes := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/25"), netip.MustParsePrefix("198.51.100.1/32")}
	for name, c := range map[string]struct{ want, got string }{
		"iptables": {`*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -s 192.0.2.0/25 -j ACCEPT
-A FORWARD -s 198.51.100.1/32 -j ACCEPT
COMMIT
`, iptablesScript(prefixes)},
		"nft": {`table ip bench {
chain forward {
type filter hook forward priority filter; policy drop;
ct state established,related accept
ip saddr 192.0.2.0/25 accept
ip saddr 198.51.100.1/32 accept
}
}
`, nftScript(prefixes, false)},
		"nft-set": {`table ip bench {
set clients { type ipv4_addr; flags interval; elements = {192.0.2.0/25, 198.51.100.1/32}; }
chain forward {
type filter hook forward priority filter; policy drop;
ct state established,related accept
ip saddr @clients accept
}
}
`, nftScript(prefixes, true)},
	} {
		if diff := cmp.Diff(c.want, c.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
