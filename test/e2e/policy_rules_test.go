// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// Who is allowed reaches an isolated container at the ports that it may, and nobody
// else does. The host always does, and answers come back.
func TestPolicyIngress(t *testing.T) {
	g := newGuarded(t)
	dealDrivers(t, 1, func(t *testing.T, d driver) {
		g.lend(t, d)
		testPolicyIngress(t, g)
	})
}

func testPolicyIngress(t *testing.T, g *guarded) {
	web, client, other := g.dress(t, "web"), g.dress(t, "client"), g.dress(t, "other")
	g.apply(t, networkPolicy("web", "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], "+
		"ports: [{port: 80}, {port: 53, protocol: UDP}]}]}"))
	eachFamily(t, func(t *testing.T, f family) {
		at := f.of(web)
		for _, port := range []uint16{80, 81} {
			serveTCP(t, web.NS, netip.AddrPortFrom(at, port))
		}
		for _, port := range []uint16{53, 54} {
			serveUDP(t, web.NS, netip.AddrPortFrom(at, port))
		}
		back := serveTCP(t, client.NS, netip.AddrPortFrom(f.of(client), 0))
		world := serveUDP(t, g.world, netip.AddrPortFrom(f.world, 0))
		tcp := func(from *nstest.NS, port uint16) func() string {
			return func() string { return g.tcp(t, from, netip.AddrPortFrom(at, port)) }
		}
		udp := func(from *nstest.NS, port uint16) func() string {
			return func() string { return g.udp(t, from, netip.AddrPortFrom(at, port)) }
		}
		ping := func(from *nstest.NS) func() string {
			return func() string { return g.ping(t, from, at) }
		}
		try(t,
			trial{"client, TCP 80", tcp(client.NS, 80), ""},
			trial{"client, TCP 81", tcp(client.NS, 81), byIngress},
			trial{"client, UDP 53", udp(client.NS, 53), ""},
			trial{"client, UDP 54", udp(client.NS, 54), byIngress},
			trial{"client, ping", ping(client.NS), byIngress},
			trial{"other, TCP 80", tcp(other.NS, 80), byIngress},
			trial{"other, UDP 53", udp(other.NS, 53), byIngress},
			trial{"world, TCP 80", tcp(g.world, 80), byIngress},
			trial{"world, UDP 53", udp(g.world, 53), byIngress},
			trial{"world, ping", ping(g.world), byIngress},
			trial{"host, TCP 81", tcp(g.NS, 81), ""},
			trial{"host, UDP 54", udp(g.NS, 54), ""},
			trial{"host, ping", ping(g.NS), ""},
			trial{"itself, TCP 81", tcp(web.NS, 81), ""},
			trial{"from it to client", func() string { return g.tcp(t, web.NS, back) }, ""},
			trial{"from it to the world", func() string { return g.udp(t, web.NS, world) }, ""},
			trial{"from it to the host", func() string { return g.ping(t, web.NS, f.gateway(web)) }, ""},
		)
		// What is shown ends with the decision, which any change of the node's routes
		// ends, so it may take more than one packet.
		want := api.Drop{Reason: byIngress, Endpoint: web.Attachment, Policies: []string{"default/web"}}
		nodetest.Eventually(t, "what was denied is shown", func() error {
			drops := g.drops(t)
			at := slices.IndexFunc(drops, func(d api.Drop) bool {
				return d.Source.Addr() == f.of(other) && d.Destination == netip.AddrPortFrom(at, 80)
			})
			if at < 0 {
				return fmt.Errorf("tried again (%q), and not among %+v", g.tcp(t, other.NS, netip.AddrPortFrom(f.of(web), 80)), drops)
			}
			if got := (api.Drop{Reason: drops[at].Reason, Endpoint: drops[at].Endpoint, Policies: drops[at].Policies}); !cmp.Equal(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})) {
				t.Errorf("drop %+v", drops[at])
			}
			return nil
		})
	})
	firewall := must(g.API.Policies(t.Context()))(t)
	if len(firewall.Policies) != 1 || len(firewall.Policies[0].Rules) != 1 || firewall.Policies[0].Rules[0].Hits < 4 ||
		!slices.Equal(firewall.Policies[0].Endpoints, []api.Attachment{web.Attachment}) {
		t.Errorf("policies %+v", firewall.Policies)
	}
	for _, e := range firewall.Endpoints {
		if isolated := e.Attachment == web.Attachment; isolated != (len(e.Ingress) == 1) || isolated != (e.IngressDenied > 0) {
			t.Errorf("endpoint %+v", e)
		}
	}
	g.delete(t, "web")
	eachFamily(t, func(t *testing.T, f family) {
		try(t, trial{"other when the policy is gone", func() string { return g.ping(t, other.NS, f.of(web)) }, ""})
	})
	g.forgotten(t)
}

// What an isolated container may begin: addresses outside by ipBlock and except,
// containers by their namespace and by the name of a port.
func TestPolicyEgress(t *testing.T) {
	nstest.Halve(t, 1)
	g := newGuarded(t)
	more := map[bool]netip.Addr{true: netip.MustParseAddr("192.0.2.3"), false: netip.MustParseAddr("2001:db8::3")}
	nodetest.Address(t, g.world, "eth0", more[true].String()+"/24", more[false].String()+"/64")
	client := g.dress(t, "client")
	shop := g.Attach(t, "shop", wearing(g.pods, map[string]string{"app": "web", "io.kubernetes.pod.namespace": "shop"},
		map[string]any{"name": "http", "containerPort": 8080, "protocol": "TCP"}))
	plain := g.dress(t, "plain")
	g.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: a}}\n"+
		networkPolicy("client", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: ["+
			"{to: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.3/32]}}, {ipBlock: {cidr: '2001:db8::/64', except: ['2001:db8::3/128']}}]}, "+
			"{to: [{namespaceSelector: {matchLabels: {team: a}}}], ports: [{port: http}]}]}"))
	eachFamily(t, func(t *testing.T, f family) {
		outside := serveTCP(t, g.world, netip.AddrPortFrom(f.world, 0))
		excepted := serveTCP(t, g.world, netip.AddrPortFrom(more[f.world.Is4()], 0))
		named := serveTCP(t, shop.NS, netip.AddrPortFrom(f.of(shop), 8080))
		unnamed := serveTCP(t, shop.NS, netip.AddrPortFrom(f.of(shop), 8081))
		elsewhere := serveTCP(t, plain.NS, netip.AddrPortFrom(f.of(plain), 8080))
		own := serveUDP(t, client.NS, netip.AddrPortFrom(f.of(client), 0))
		host := serveUDP(t, g.NS, netip.AddrPortFrom(f.uplink, 0))
		try(t,
			trial{"world", func() string { return g.tcp(t, client.NS, outside) }, ""},
			trial{"world, ping", func() string { return g.ping(t, client.NS, f.world) }, ""},
			trial{"world, excepted", func() string { return g.tcp(t, client.NS, excepted) }, byEgress},
			trial{"named port", func() string { return g.tcp(t, client.NS, named) }, ""},
			trial{"another port", func() string { return g.tcp(t, client.NS, unnamed) }, byEgress},
			trial{"another namespace", func() string { return g.tcp(t, client.NS, elsewhere) }, byEgress},
			trial{"ping of a container", func() string { return g.ping(t, client.NS, f.of(plain)) }, byEgress},
			trial{"host", func() string { return g.udp(t, client.NS, host) }, ""},
			trial{"called by others", func() string { return g.udp(t, plain.NS, own) }, ""},
			trial{"called by the world", func() string { return g.udp(t, g.world, own) }, ""},
			trial{"others are free", func() string { return g.tcp(t, plain.NS, excepted) }, ""},
		)
		for _, d := range g.drops(t) {
			if d.Reason != byEgress || d.Endpoint != client.Attachment || !slices.Equal(d.Policies, []string{"default/client"}) {
				t.Errorf("drop %+v", d)
			}
		}
	})
	g.delete(t, "client")
	if err := os.Remove(filepath.Join(g.PolicyDir, "namespace-shop.yaml")); err != nil {
		t.Error(err)
	}
	g.forgotten(t)
}

// The client of a mapped port is judged by its own address.
func TestPolicyMappedPort(t *testing.T) {
	g := newGuarded(t)
	more := map[bool]netip.Addr{true: netip.MustParseAddr("192.0.2.3"), false: netip.MustParseAddr("2001:db8::3")}
	nodetest.Address(t, g.world, "eth0", more[true].String()+"/24", more[false].String()+"/64")
	web := g.publish(t, "web", wearing(g.pods, map[string]string{"app": "web"}), both()...)
	client := g.dress(t, "client")
	g.apply(t, networkPolicy("web", "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.2/32}}, {ipBlock: {cidr: '2001:db8::2/128'}}], "+
		fmt.Sprintf("ports: [{port: %d}, {port: %d, protocol: UDP}]}]}", containerTCP, containerUDP)))
	eachFamily(t, func(t *testing.T, f family) {
		tcp, udp := netip.AddrPortFrom(f.uplink, hostTCP), netip.AddrPortFrom(f.uplink, hostUDP)
		bound := func(a netip.Addr) *net.TCPAddr { return net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 0)) }
		from := func(a netip.Addr) *net.UDPConn { return dialUDP(t, g.world, netip.AddrPortFrom(a, 0), udp) }
		try(t,
			trial{"allowed address, TCP", func() string { return g.tcpFrom(t, g.world, bound(f.world), tcp) }, ""},
			trial{"another address, TCP", func() string { return g.tcpFrom(t, g.world, bound(more[f.world.Is4()]), tcp) }, byIngress},
			trial{"allowed address, UDP", func() string { return g.ask(t, from(f.world)) }, ""},
			trial{"another address, UDP", func() string { return g.ask(t, from(more[f.world.Is4()])) }, byIngress},
			trial{"container by the host's port", func() string { return g.udp(t, client.NS, udp) }, byIngress},
		)
		stream := must(tryTCP(t, g.world, netip.AddrPortFrom(f.world, 0), tcp))(t)
		if stream.Seen.Addr() != f.world {
			t.Errorf("the container saw %s, not %s", stream.Seen.Addr(), f.world)
		}
		shown := slices.ContainsFunc(g.drops(t), func(d api.Drop) bool {
			return d.Source.Addr() == more[f.world.Is4()] && d.Endpoint == web.Attachment && d.Reason == byIngress
		})
		if !shown {
			t.Errorf("what was denied is not shown: %+v", g.drops(t))
		}
	})
}
