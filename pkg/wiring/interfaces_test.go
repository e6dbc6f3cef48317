// SPDX-License-Identifier: Apache-2.0

package wiring_test

import (
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"

	"github.com/tendril-net/tendril/pkg/wiring"
)

// Two interfaces of one network have one gateway. The first stays the one that
// packets take; the second has its own way for packets that are bound to it.
func TestSecondInterfaceOfANetwork(t *testing.T) {
	p := newPair(t)
	gw4, gw6 := netip.MustParseAddr("10.10.0.1"), netip.MustParseAddr("fd00:10::1")
	def4, def6 := netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
	sub4, sub6 := netip.MustParsePrefix("10.10.0.0/16"), netip.MustParsePrefix("fd00:10::/64")
	wanted := []wiring.Route{
		{Dst: def4, Gateway: gw4, Optional: true},
		{Dst: def6, Gateway: gw6, Optional: true},
		{Dst: sub4, Gateway: gw4, Behind: true},
		{Dst: sub6, Gateway: gw6, Behind: true},
		{Dst: netip.MustParsePrefix("192.0.2.0/24"), Gateway: gw4},
		{Dst: netip.MustParsePrefix("2001:db8::/32"), Gateway: gw6},
		{Dst: netip.MustParsePrefix("198.51.100.0/24"), Gateway: gw4, Priority: 7},
		{Dst: netip.MustParsePrefix("2001:db9::/32"), Gateway: gw6, Priority: math.MaxUint32 - 1},
	}
	var veths []wiring.Veth
	var routed []wiring.Routed
	for i, name := range []string{"eth0", "eth1"} {
		v := testVeth()
		v.Name, v.HostName = name, v.HostName[:14]+name[3:]
		v.HostMAC, v.MAC = net.HardwareAddr{2, 0, 0, 0, 1, byte(i)}, net.HardwareAddr{2, 0, 0, 0, 2, byte(i)}
		a4, a6 := netip.AddrFrom4([4]byte{10, 10, 0, byte(5 + i)}), netip.MustParseAddr("fd00:10::"+string(rune('5'+i)))
		r := wiring.Routed{MTU: 1400, Addresses: []wiring.Address{{Addr: a4, Gateway: gw4}, {Addr: a6, Gateway: gw6}}, Routes: wanted}
		links, routes := p.wire(t, v, r)
		want := wanted
		if i > 0 {
			want = slices.Clone(wanted[2:])
			for j := range want {
				want[j].Priority = min(want[j].Priority+1024+links.Index, math.MaxUint32)
			}
		}
		if diff := cmp.Diff(want, routes, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
			t.Errorf("routes of %s (-want +got):\n%s", name, diff)
		}
		r.Routes = routes
		veths, routed = append(veths, v), append(routed, r)
	}
	check := func(first int) {
		t.Helper()
		for i := first; i < len(veths); i++ {
			must(t, wiring.Check(p.node, p.container, veths[i], routed[i]))
			for _, gateway := range []string{"10.10.0.1", "fd00:10::1"} {
				p.containerNS.Run(t, "ping", "-c1", "-W2", "-I", veths[i].Name, gateway)
			}
		}
		for _, to := range []string{"10.10.0.1", "fd00:10::1", "10.10.0.99", "fd00:10::99", "192.0.2.99", "2001:db8::99", "198.51.100.99", "2001:db9::99"} {
			for range 4 { // nor do they take turns
				if dev, _ := p.way(t, to, ""); dev != veths[first].Name {
					t.Errorf("%s is reached by %s, not by %s", to, dev, veths[first].Name)
				}
			}
			for _, v := range veths[first:] {
				if dev, via := p.way(t, to, v.Name); dev != v.Name || via != strings.HasSuffix(to, "99") {
					t.Errorf("%s, bound to %s: by %s, by a router: %t", to, v.Name, dev, via)
				}
			}
		}
	}
	check(0)
	must(t, wiring.RemoveVeth(p.node, veths[0].HostName))
	check(1)
}

// way asks the kernel by which device the container's packets for an address leave, and
// whether they go to a router. bound is the device of the socket, if it has one.
func (p pair) way(t *testing.T, to, bound string) (device string, router bool) {
	t.Helper()
	routes, err := p.containerNS.Handle.RouteGetWithOptions(net.ParseIP(to), &netlink.RouteGetOptions{Oif: bound})
	must(t, err)
	link, err := p.containerNS.Handle.LinkByIndex(routes[0].LinkIndex)
	must(t, err)
	return link.Attrs().Name, routes[0].Gw != nil
}
