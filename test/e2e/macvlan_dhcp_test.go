// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"

	"github.com/tendril-net/tendril/internal/dhcptest"
	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// TestMacvlanDHCP: containers of the driver macvlan have their address from a DHCP server, of the
// host's or on its link, whatever policy says of them from the start.
func TestMacvlanDHCP(t *testing.T) {
	dhcptest.Need(t)
	nstest.Halve(t, 0)
	g := newGuarded(t)
	g.drive(t, api.DriverMacvlan)
	for i, c := range []dhcpCase{ // of which every second has either server
		{name: "of the host", server: atHost},
		{name: "of a neighbour", server: atNeighbour},
		{name: "of a neighbour, by broadcast", server: atNeighbour, broadcast: true},
		{name: "of the host, by broadcast", server: atHost, broadcast: true},
		{name: "of a neighbour, under a policy", server: atNeighbour, policy: true},
		{name: "of the host, under a policy", server: atHost, policy: true},
		{name: "of a neighbour, by broadcast, under a policy", server: atNeighbour, broadcast: true, policy: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			nstest.Deal(t, i%2)
			c.test(t, g)
		})
	}
}

type dhcpCase struct {
	name string
	// server is where it runs: at the node or at its neighbour.
	server            func(*site) (ns *nstest.NS, device string)
	broadcast, policy bool
}

func (c dhcpCase) test(t *testing.T, g *guarded) {
	if c.policy {
		g.apply(t, networkPolicy("none", "{podSelector: {}, policyTypes: [Ingress, Egress]}"))
		defer g.delete(t, "none")
	}
	ns, device := c.server(g.site)
	nodetest.Address(t, ns, device, "10.40.0.1/24")
	t.Cleanup(func() { ns.Run(t, "ip", "address", "del", "10.40.0.1/24", "dev", device) })
	server := dhcptest.Serve(t, ns, "10.40.0")
	socket := dhcptest.Daemon(t, t.TempDir(), c.broadcast)
	leased := g.pods.With("cniVersion", "1.0.0").With("routes", nil).With("ipam", map[string]any{"type": "dhcp", "daemonSocketPath": socket})
	a := g.Attach(t, "a", leased)
	server.Await(t, "DHCPACK(")
	if !netip.MustParsePrefix("10.40.0.48/28").Contains(a.IPv4) {
		t.Errorf("the address is %s", a.IPv4)
	}
	denied := ""
	if c.policy && ns != g.NS { // the host is reached by all
		denied = byEgress
	}
	// The client asks again, for an address that policy speaks of by now.
	if denied == "" || c.broadcast {
		if answer := g.Call(t, checked(a)); answer.Error != nil {
			t.Errorf("CHECK: %v", answer.Error)
		}
	}
	at := serveUDP(t, ns, netip.AddrPortFrom(netip.MustParseAddr("10.40.0.1"), 0))
	try(t, trial{"the server", func() string { return g.udp(t, a.NS, at) }, denied})
	g.Delete(t, a)
	if denied == "" { // the client would tell the server alone
		server.Await(t, "DHCPRELEASE(")
	}
}

func atHost(s *site) (*nstest.NS, string)      { return s.NS, "lan0" }
func atNeighbour(s *site) (*nstest.NS, string) { return s.neighbour, "eth0" }
