// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// Addresses that netfilter translates, as kube-proxy has it: to the world, and to a
// container.
var (
	services   = []string{"10.96.0.0/12", "fd00:96::/112"}
	ofWorld    = map[string]netip.Addr{"IPv4": netip.MustParseAddr("10.96.0.1"), "IPv6": netip.MustParseAddr("fd00:96::1")}
	ofBackends = map[string]netip.Addr{"IPv4": netip.MustParseAddr("10.96.0.2"), "IPv6": netip.MustParseAddr("fd00:96::2")}
)

// translate has netfilter translate the services' addresses, and leave the ports.
func (s *site) translate(t *testing.T, backend *nodetest.Container) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Fatalf("nft, of Debian's nftables, is needed: %v", err)
	}
	for _, one := range []struct {
		family, match string
		to            map[netip.Addr]netip.Addr
	}{
		{"ip", "ip daddr", map[netip.Addr]netip.Addr{ofWorld["IPv4"]: world4, ofBackends["IPv4"]: backend.IPv4}},
		{"ip6", "ip6 daddr", map[netip.Addr]netip.Addr{ofWorld["IPv6"]: world6, ofBackends["IPv6"]: backend.IPv6}},
	} {
		s.NS.Run(t, "nft", fmt.Sprintf("add table %s services; add chain %[1]s services prerouting { type nat hook prerouting priority dstnat; }", one.family))
		for service, to := range one.to {
			s.NS.Run(t, "nft", fmt.Sprintf("add rule %s services prerouting %s %s dnat to %s", one.family, one.match, service, to))
		}
	}
}

// withoutBridgeNetfilter keeps netfilter from what stays on a bridge: the datapath hands it
// what is its own. With br_netfilter fragments of IPv6 under a policy are lost.
func withoutBridgeNetfilter(t *testing.T, ns *nstest.NS) {
	t.Helper()
	ns.Run(t, "sh", "-c", "for f in /proc/sys/net/bridge/bridge-nf-call-ip*tables; do [ ! -e $f ] || echo 0 >$f; done")
}

// Services of others work for every container, masqueraded or not, with a policy or
// without, wherever their backends are.
func TestServiceOfOthers(t *testing.T) { eachDriver(t, testServiceOfOthers, api.DriverMacvlan) }

func testServiceOfOthers(t *testing.T, d driver) {
	g := newGuarded(t, "--stack-destinations="+strings.Join(services, ","))
	g.drive(t, d)
	backend := g.dress(t, "backend")
	clients := []*nodetest.Container{
		g.Attach(t, "hidden", wearing(g.pods, map[string]string{"app": "client"})),
		g.Attach(t, "shown", wearing(g.pods.With("ipMasq", false), map[string]string{"app": "client"})),
	}
	if d == api.DriverBridge {
		withoutBridgeNetfilter(t, g.NS)
	}
	g.translate(t, backend)
	reach := func(t *testing.T) {
		t.Helper()
		eachFamily(t, func(t *testing.T, f family) {
			for _, way := range []struct {
				name    string
				service netip.Addr
				ns      *nstest.NS
				at      netip.Addr
			}{
				{"behind the uplink", ofWorld[f.name], g.world, f.world},
				{"on the node", ofBackends[f.name], backend.NS, f.of(backend)},
			} {
				udp, tcp := serveUDP(t, way.ns, netip.AddrPortFrom(way.at, 0)), serveTCP(t, way.ns, netip.AddrPortFrom(way.at, 0))
				for _, c := range clients {
					t.Run(c.ContainerID+" to a service "+way.name, func(t *testing.T) {
						conn := dialUDP(t, c.NS, netip.AddrPort{}, netip.AddrPortFrom(way.service, udp.Port()))
						for _, size := range []int{1, 1400, 9000} {
							askUDP(t, conn, pattern(size))
						}
						if err := dialTCP(t, c.NS, netip.AddrPortFrom(way.service, tcp.Port())).Exchange(pattern(1 << 20)); err != nil {
							t.Errorf("1 MiB by TCP and back: %v", err)
						}
					})
				}
			}
		})
	}
	t.Run("without a policy", reach)
	own := ""
	if d == api.DriverBridge { // where who asks may be hidden when the backend is known
		own = ", {ipBlock: {cidr: 10.96.0.0/12}}, {ipBlock: {cidr: 'fd00:96::/112'}}"
	}
	g.apply(t, networkPolicy("clients", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress, Egress], "+
		"egress: [{to: [{podSelector: {matchLabels: {app: backend}}}, {ipBlock: {cidr: 192.0.2.2/32}}, {ipBlock: {cidr: '2001:db8::2/128'}}"+own+"]}]}"))
	t.Run("with a policy", reach)
	if drops := g.Drops(t); len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}
}
