// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/pkg/api"
)

// A container without addresses has what somebody in it takes, a virtual machine maybe: it is a
// station of the bridge. Policy that restricts it shuts it off; that of others holds for it.
func TestBridgeWithoutAddresses(t *testing.T) {
	g := newGuarded(t)
	s := g.site
	g.pods = driver(api.DriverBridge).of(g.pods)
	a, b := g.dress(t, "a"), g.dress(t, "b")
	g.pods = nodetest.Network{"cniVersion": "1.1.0", "name": "machines", "driver": "bridge", "socket": g.pods["socket"], "disableContainerInterface": true}
	vm := g.dress(t, "vm")
	vm.Run(t, "ip", "link", "set", "eth0", "up")
	settle(t, vm.NS)
	nodetest.Address(t, vm.NS, "eth0", station4.String()+"/16", station6.String()+"/64")
	eachFamily(t, func(t *testing.T, f family) {
		gateway := f.choose(a.Gateway4, a.Gateway6)
		t.Run("to a neighbour", func(t *testing.T) { testWay(t, vm.NS, a.NS, f.of(a), f.station()) })
		t.Run("from a neighbour", func(t *testing.T) { testWay(t, a.NS, vm.NS, f.station(), f.of(a)) })
		t.Run("to the host", func(t *testing.T) { testWay(t, vm.NS, s.NS, gateway, f.station()) })
		t.Run("from the host", func(t *testing.T) { testWay(t, s.NS, vm.NS, f.station(), gateway) })
		ofA, ofVM := serveUDP(t, a.NS, netip.AddrPortFrom(f.of(a), 0)), serveUDP(t, vm.NS, netip.AddrPortFrom(f.station(), 0))
		toA := func() string { return g.udp(t, vm.NS, ofA) }
		toVM := func() string { return g.udp(t, b.NS, ofVM) }
		trials := func(name string, all ...trial) {
			t.Run(name, func(t *testing.T) { try(t, all...) })
		}
		g.apply(t, networkPolicy("p", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: b}}}]}]}"))
		trials("policy of the receiver", trial{"the machine", toA, byIngress}, trial{"who may", func() string { return g.udp(t, b.NS, ofA) }, ""})
		g.apply(t, networkPolicy("p", "{podSelector: {matchLabels: {app: vm}}, policyTypes: [Ingress], ingress: [{}]}"))
		trials("its ingress", trial{"to it", toVM, byIngress})
		g.apply(t, networkPolicy("p", "{podSelector: {matchLabels: {app: vm}}, policyTypes: [Egress], egress: [{}]}"))
		trials("its egress", trial{"by it", toA, byEgress})
		g.delete(t, "p")
		trials("none", trial{"to it", toVM, ""}, trial{"by it", toA, ""})
	})
	for _, one := range []*nodetest.Container{a, b, vm} {
		if got := refusalOf(s.Call(t, checked(one))); got != (refusal{}) {
			t.Errorf("CHECK of %s: %+v", one.ContainerID, got)
		}
	}
	s.Stop(t)
	s.Start(t)
	eachFamily(t, func(t *testing.T, f family) { testWay(t, vm.NS, a.NS, f.of(a), f.station()) })
	for _, one := range []*nodetest.Container{a, b, vm} {
		s.Delete(t, one)
	}
}
