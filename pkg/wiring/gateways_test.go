// SPDX-License-Identifier: Apache-2.0

package wiring_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/pkg/wiring"
)

func TestGateways(t *testing.T) {
	both := prefixes("10.10.0.1/16", "fd00:10::1/64")
	for _, test := range []struct {
		name     string
		present  []string
		gateways []netip.Prefix
		force    bool
		want     []string
		err      string
	}{
		{"none there", nil, both, false, []string{"10.10.0.1/16", "fd00:10::1/64"}, ""},
		{"none wanted", []string{"10.10.0.2/16"}, nil, true, []string{"10.10.0.2/16"}, ""},
		{"both there", []string{"10.10.0.1/16", "fd00:10::1/64"}, both, false, []string{"10.10.0.1/16", "fd00:10::1/64"}, ""},
		{"one there", []string{"10.10.0.1/16"}, both, false, []string{"10.10.0.1/16", "fd00:10::1/64"}, ""},
		{
			"two of a subnet",
			[]string{"10.10.0.2/16"},
			prefixes("10.10.0.1/16", "10.10.0.2/16"), false,
			[]string{"10.10.0.1/16", "10.10.0.2/16"},
			"",
		},
		{
			"others' subnets",
			[]string{"10.20.0.1/16", "fd00:20::1/64", "fe80::5/64"},
			both, false,
			[]string{"10.10.0.1/16", "10.20.0.1/16", "fd00:10::1/64", "fd00:20::1/64"},
			"",
		},
		{
			"another beside",
			[]string{"10.10.0.1/16", "10.10.0.99/32"},
			both, true,
			[]string{"10.10.0.1/16", "10.10.0.99/32", "fd00:10::1/64"},
			"",
		},
		{"link-local", []string{"fe80::5/64"}, prefixes("fe80::1/64"), false, nil, ""},
		{
			"IPv4 conflict",
			[]string{"10.10.5.1/24"},
			both, false,
			[]string{"10.10.5.1/24"},
			"add address 10.10.0.1/16 to tdlbr0, which has 10.10.5.1/24: subnets overlap",
		},
		{
			"IPv6 conflict",
			[]string{"fd00:10::2/48"},
			both, false,
			[]string{"fd00:10::2/48"},
			"add address fd00:10::1/64 to tdlbr0, which has fd00:10::2/48: subnets overlap",
		},
		{
			"another length",
			[]string{"10.10.0.1/24"},
			both, false,
			[]string{"10.10.0.1/24"},
			"add address 10.10.0.1/16 to tdlbr0, which has 10.10.0.1/24: subnets overlap",
		},
		{
			"force",
			[]string{"10.10.5.1/24", "10.10.5.2/24", "10.10.0.1/24", "10.20.0.1/16", "fd00:10::2/64", "fd00:10::1/48"},
			both, true,
			[]string{"10.10.0.1/16", "10.20.0.1/16", "fd00:10::1/64"},
			"",
		},
		{
			// The kernel takes an address away together with the first of its subnet.
			"force away the first",
			[]string{"10.10.0.9/16", "10.10.0.1/16"},
			prefixes("10.10.0.1/16", "10.10.0.2/16"), true,
			[]string{"10.10.0.1/16", "10.10.0.2/16"},
			"",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			ns, node := newNode(t)
			ns.Run(t, "sh", "-c", "for f in all default; do echo 0 >/proc/sys/net/ipv4/conf/$f/promote_secondaries; done")
			_, err := wiring.EnsureBridge(node, wiring.Bridge{Name: bridgeName})
			must(t, err)
			for _, a := range test.present {
				args := []string{"addr", "add", a, "dev", bridgeName}
				if strings.Contains(a, ":") {
					args = append(args, "nodad") // as EnsureGateways in another process
				}
				ns.Run(t, "ip", args...)
			}
			for range 2 { // twice, because it is idempotent
				err := wiring.EnsureGateways(node, wiring.Bridge{Name: bridgeName}, test.gateways, test.force)
				if test.err == "" {
					must(t, err)
				} else if !errors.Is(err, wiring.ErrOverlap) || err.Error() != test.err {
					t.Errorf("want %q, got %v", test.err, err)
				}
				if diff := cmp.Diff(test.want, addressesOf(t, ns, bridgeName)); diff != "" {
					t.Errorf("addresses (-want +got):\n%s", diff)
				}
			}
			for _, gateway := range test.gateways {
				if a := gateway.Addr().String(); slices.Contains(test.want, gateway.String()) {
					ns.Run(t, "ping", "-c1", "-W2", "-I", a, a) // at once: not tentative
				}
			}
		})
	}
}

// Somebody's own address waits for a port before it is in use, and is not waited for.
func TestGatewayThatIsTentative(t *testing.T) {
	ns, node := newNode(t)
	ns.Run(t, "ip", "link", "add", bridgeName, "type", "bridge")
	ns.Run(t, "ip", "link", "set", bridgeName, "up")
	ns.Run(t, "ip", "addr", "add", "fd00:10::1/64", "dev", bridgeName)
	must(t, wiring.EnsureGateways(node, wiring.Bridge{Name: bridgeName}, prefixes("fd00:10::1/64"), false))
	if got := ns.Run(t, "ip", "addr", "show", "dev", bridgeName); !strings.Contains(got, "tentative") {
		t.Errorf("not tentative:\n%s", got)
	}
}

// The node may have been given net.ipv6.conf.*.disable_ipv6=1.
func TestGatewayWithIPv6DisabledByDefault(t *testing.T) {
	ns, node := newNode(t)
	ns.Run(t, "sh", "-c", "for f in all default; do echo 1 >/proc/sys/net/ipv6/conf/$f/disable_ipv6; done")
	_, err := wiring.EnsureBridge(node, wiring.Bridge{Name: bridgeName})
	must(t, err)
	must(t, wiring.EnsureGateways(node, wiring.Bridge{Name: bridgeName}, prefixes("fd00:10::1/64"), false))
	if diff := cmp.Diff([]string{"fd00:10::1/64"}, addressesOf(t, ns, bridgeName)); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}
