// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// lan is a node with an address in 192.168.1.0/24 and in 2001:db8:1::/64, a router
// in each, and a bridge of other software.
func lan() []Occupied {
	one := func(a, device, destination string) Occupied {
		o := Occupied{Addr: netip.MustParseAddr(a), Device: device}
		if destination != "" {
			o.Destination = netip.MustParsePrefix(destination)
		}
		return o
	}
	return []Occupied{
		one("192.168.1.10", "eth0", ""), one("2001:db8:1::10", "eth0", ""), one("172.17.0.1", "docker0", ""),
		one("10.244.1.0", "flannel.1", ""),
		one("192.168.1.1", "eth0", "0.0.0.0/0"), one("2001:db8:1::1", "eth0", "::/0"), one("192.168.1.2", "eth0", "10.99.0.0/16"),
	}
}

func ranges(sets ...api.RangeSet) []api.RangeSet { return sets }

func subnet(text string) api.Range { return api.Range{Subnet: netip.MustParsePrefix(text)} }

func withGateway(text, gateway string) api.Range {
	return api.Range{Subnet: netip.MustParsePrefix(text), Gateway: netip.MustParseAddr(gateway)}
}

// What the node's own network needs, no container is given: neither by a range nor
// by another plugin. A refusal changes nothing.
func TestRefusesWhatTheNodeNeeds(t *testing.T) {
	other := subnet("10.20.0.0/24")
	for name, test := range map[string]struct {
		ranges []api.RangeSet
		want   api.Error // empty: accepted
	}{
		"the LAN": {ranges(api.RangeSet{subnet("192.168.1.0/24")}), api.Error{
			Key: "ipam.ranges[0][0].subnet", Value: "192.168.1.0/24", Message: "subnet 192.168.1.0/24 holds 192.168.1.10, an address of this node on eth0",
		}},
		"more than the LAN": {ranges(api.RangeSet{other}, api.RangeSet{subnet("10.21.0.0/24"), subnet("192.168.0.0/16")}), api.Error{
			Key: "ipam.ranges[1][1].subnet", Value: "192.168.0.0/16", Message: "subnet 192.168.0.0/16 holds 192.168.1.10, an address of this node on eth0",
		}},
		"the LAN of IPv6": {ranges(api.RangeSet{other}, api.RangeSet{subnet("2001:db8:1::/64")}), api.Error{
			Key: "ipam.ranges[1][0].subnet", Value: "2001:db8:1::/64", Message: "subnet 2001:db8:1::/64 holds 2001:db8:1::10, an address of this node on eth0",
		}},
		"the router": {ranges(api.RangeSet{subnet("192.168.1.0/31")}), api.Error{
			Key: "ipam.ranges[0][0].subnet", Value: "192.168.1.0/31", Message: "subnet 192.168.1.0/31 holds 192.168.1.1, the next hop of the node's route default by eth0",
		}},
		"another next hop": {ranges(api.RangeSet{subnet("192.168.1.2/31")}), api.Error{
			Key: "ipam.ranges[0][0].subnet", Value: "192.168.1.2/31", Message: "subnet 192.168.1.2/31 holds 192.168.1.2, the next hop of the node's route 10.99.0.0/16 by eth0",
		}},
		"a few addresses of the LAN": {ranges(api.RangeSet{{
			Subnet: netip.MustParsePrefix("192.168.1.0/24"), RangeStart: netip.MustParseAddr("192.168.1.200"),
			RangeEnd: netip.MustParseAddr("192.168.1.210"), Gateway: netip.MustParseAddr("192.168.1.199"),
		}}), api.Error{
			Key: "ipam.ranges[0][0].subnet", Value: "192.168.1.0/24", Message: "subnet 192.168.1.0/24 holds 192.168.1.10, an address of this node on eth0",
		}},
		"the node as gateway": {ranges(api.RangeSet{other, withGateway("192.168.1.8/29", "192.168.1.10")}), api.Error{
			Key: "ipam.ranges[0][1].gateway", Value: "192.168.1.10", Message: "gateway 192.168.1.10 is an address of this node on eth0",
		}},
		"the router as gateway": {ranges(api.RangeSet{withGateway("192.168.1.0/30", "192.168.1.1")}), api.Error{
			Key: "ipam.ranges[0][0].gateway", Value: "192.168.1.1", Message: "gateway 192.168.1.1 is the next hop of the node's route default by eth0",
		}},
		"a bridge's subnet": {ranges(api.RangeSet{subnet("172.17.0.0/16")}), api.Error{
			Key: "ipam.ranges[0][0].subnet", Value: "172.17.0.0/16", Message: "subnet 172.17.0.0/16 holds 172.17.0.1, an address of this node on docker0",
		}},
		"an overlay's own subnet": {ranges: ranges(api.RangeSet{subnet("10.244.1.0/24")})},
		"an overlay's only host": {ranges(api.RangeSet{subnet("10.244.1.0/31")}), api.Error{
			Key: "ipam.ranges[0][0].subnet", Value: "10.244.1.0/31", Message: "subnet 10.244.1.0/31 holds 10.244.1.0, an address of this node on flannel.1",
		}},
		"a slice of the LAN": {ranges: ranges(api.RangeSet{subnet("192.168.1.64/26")})},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.occupied = lan()
			s, _ := w.boot(t)
			req := request("c1")
			req.Network.Ranges = test.ranges
			_, prepared := s.Prepare(ctx, req)
			_, asked := s.NetworkStatus(ctx, req.Network)
			if test.want == (api.Error{}) {
				must(t, errors.Join(prepared, asked))
				return
			}
			test.want.Code = api.CodeInvalid
			for _, err := range []error{prepared, asked} {
				if d := cmp.Diff(test.want, faultOf(t, err, api.CodeInvalid)); d != "" {
					t.Errorf("error (-want +got):\n%s", d)
				}
			}
			w.mustRemain(t, s, nothing())
		})
	}
	for address, want := range map[string]string{
		"192.168.1.10/24":   `addresses "192.168.1.10/24": is an address of this node on eth0`,
		"192.168.1.1/24":    `addresses "192.168.1.1/24": is the next hop of the node's route default by eth0`,
		"2001:db8:1::10/64": `addresses "2001:db8:1::10/64": is an address of this node on eth0`,
		"192.168.1.77/24":   "",
	} {
		t.Run(address, func(t *testing.T) {
			w := newWorld(t)
			w.occupied = lan()
			s, _ := w.boot(t)
			req := delegated("c1", address)
			if want == "" { // and its gateway is the LAN's
				req.Addresses[0].Gateway = netip.MustParseAddr("192.168.1.1")
				w.mustAdd(t, s, req)
				return
			}
			_, err := s.Prepare(ctx, req)
			if got := faultOf(t, err, api.CodeInvalid).Message; got != want {
				t.Errorf("error %q, want %q", got, want)
			}
			w.mustRemain(t, s, nothing())
		})
	}
}

// Only a subnet that is new to the node is looked at: it costs nothing to have
// endpoints in it, and those that live in what is refused now go on living.
func TestOnlyNewSubnetsAreJudged(t *testing.T) {
	w := newWorld(t)
	s, stop := w.boot(t)
	lanRequest := func(container string) api.PrepareRequest {
		req := request(container)
		req.Network.Ranges = ranges(api.RangeSet{subnet("192.168.1.0/24")})
		return req
	}
	w.mustAdd(t, s, lanRequest("c1"))
	w.occupied = lan() // the node comes to have them only now
	w.mustAdd(t, s, lanRequest("c2"))
	if w.looks != 1 {
		t.Errorf("%d looks at the node's addresses, want 1", w.looks)
	}
	before := w.remains(t, s)
	stop()
	s, _ = w.boot(t)
	w.mustRemain(t, s, before)
	w.mustAdd(t, s, lanRequest("c3"))
	health, err := s.NetworkStatus(ctx, lanRequest("").Network)
	if must(t, err); !health.OK || w.looks != 1 {
		t.Errorf("health %+v after %d looks, want OK after 1", health, w.looks)
	}
	for _, container := range []string{"c1", "c2", "c3"} {
		must(t, s.Delete(ctx, lanRequest(container).Attachment))
	}
	_, err = s.Prepare(ctx, lanRequest("c4"))
	wantCode(t, err, api.CodeInvalid)
}

// An address that the node has come to have since its subnet was judged is nobody's.
func TestLeaseOfTheNode(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	req := request("c1")
	req.Network.Ranges = ranges(api.RangeSet{subnet("192.168.1.0/24")})
	w.mustAdd(t, s, req)
	before := w.remains(t, s)
	w.occupied = lan()
	req.ContainerID, req.Wanted = "c2", []netip.Addr{netip.MustParseAddr("192.168.1.10")}
	_, err := s.Prepare(ctx, req)
	want := api.Error{
		Code: api.CodeConflict, Key: "ipam.ranges", Value: "192.168.1.10",
		Message: "address 192.168.1.10 of the ranges is an address of this node on eth0: take it from the node, or out of the ranges",
	}
	if d := cmp.Diff(want, faultOf(t, err, api.CodeConflict)); d != "" {
		t.Errorf("error (-want +got):\n%s", d)
	}
	w.mustRemain(t, s, before)
}

func TestPrepareWhenTheNodeDoesNotAnswer(t *testing.T) {
	for call, req := range map[string]api.PrepareRequest{"Within": request("c1"), "At": delegated("c1", "192.0.2.7/24")} {
		w := newWorld(t)
		s, _ := w.boot(t)
		w.fail[call] = errors.New("no answer")
		if _, err := s.Prepare(ctx, req); !errors.Is(err, w.fail[call]) {
			t.Errorf("%s: error %v", call, err)
		}
		w.mustRemain(t, s, nothing())
	}
}

// The kernel's answers, of both families.
func TestHostSurroundings(t *testing.T) {
	ns := nstest.New(t, "host")
	for _, line := range []string{
		"echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad",
		"ip link add eth0 type veth peer name peer0", "ip link set peer0 up", "ip link set eth0 up",
		"ip link add br0 type bridge", "ip link set br0 up",
		"ip link add tdl0123456789ab type veth peer name peer1", "ip link set tdl0123456789ab up",
		"ip link set lo up", "ip address add 10.55.0.1/32 dev lo",
		"ip address add 192.168.1.10/24 dev eth0", "ip address add 2001:db8:1::10/64 dev eth0", "ip address add 10.88.0.1/16 dev br0",
		"ip address add 192.168.7.1/32 dev tdl0123456789ab", "ip route add 192.168.7.5 dev tdl0123456789ab proto 84",
		"ip route add default via 192.168.1.1", "ip route add default via 2001:db8:1::1",
		"ip route add 10.1.0.0/16 nexthop via 192.168.1.2 nexthop via 10.88.0.2",
		"ip -6 route add 2001:db8:2::/48 nexthop via 2001:db8:1::2 nexthop via 2001:db8:1::3",
		"ip route add 10.2.0.0/16 via inet6 2001:db8:1::4 dev eth0",
		"ip route add 10.3.0.0/16 via 192.168.9.1 dev eth0 onlink",
		"ip route add 10.4.0.0/16 via 192.168.1.4 table 100",
		"ip route add 10.5.0.0/16 via 192.168.1.5 proto 84",
		"ip route add unreachable 10.6.0.0/16", "ip route add 192.168.9.1 via 192.168.1.6",
	} {
		ns.Run(t, "sh", "-c", line)
	}
	h, err := OpenHost(ns.Path)
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	a := netip.MustParseAddr
	want := map[netip.Addr]string{
		a("10.55.0.1"): "an address of this node on lo", a("192.168.1.10"): "an address of this node on eth0",
		a("2001:db8:1::10"): "an address of this node on eth0", a("10.88.0.1"): "an address of this node on br0",
		a("192.168.1.1"): "the next hop of the node's route default by eth0", a("2001:db8:1::1"): "the next hop of the node's route default by eth0",
		a("192.168.1.2"): "the next hop of the node's route 10.1.0.0/16 by eth0", a("10.88.0.2"): "the next hop of the node's route 10.1.0.0/16 by br0",
		a("2001:db8:1::2"): "the next hop of the node's route 2001:db8:2::/48 by eth0",
		a("2001:db8:1::3"): "the next hop of the node's route 2001:db8:2::/48 by eth0",
		a("2001:db8:1::4"): "the next hop of the node's route 10.2.0.0/16 by eth0",
		a("192.168.9.1"):   "the next hop of the node's route 10.3.0.0/16 by eth0",
		a("192.168.1.6"):   "the next hop of the node's route 192.168.9.1/32 by eth0",
	}
	found, err := h.Within([]netip.Prefix{
		netip.MustParsePrefix("10.55.0.0/16"), netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("2001:db8:1::/64"), netip.MustParsePrefix("10.88.0.0/16"),
	})
	must(t, err)
	got := make(map[netip.Addr]string)
	for _, o := range found {
		got[o.Addr] = o.String()
	}
	if d := cmp.Diff(want, got, equate...); d != "" {
		t.Errorf("within (-want +got):\n%s", d)
	}
	found, err = h.Within([]netip.Prefix{netip.MustParsePrefix("192.168.1.64/26"), netip.MustParsePrefix("192.168.7.0/24")})
	if err != nil || found != nil {
		t.Errorf("within a slice of the LAN, and where endpoints live: %v, %v", found, err)
	}

	// The kernel sends no more than it is asked for, however many routes there are.
	link, err := h.Link("br0")
	must(t, err)
	routes, err := h.strict.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN, LinkIndex: link.Index}, netlink.RT_FILTER_TABLE)
	must(t, err)
	var destinations []string
	for _, route := range routes {
		destinations = append(destinations, route.Dst.String())
	}
	if d := cmp.Diff([]string{"10.1.0.0/16", "10.88.0.0/16"}, destinations); d != "" {
		t.Errorf("routes by br0 (-want +got):\n%s", d)
	}

	// A single address knows no exception for endpoints, and none more.
	want[a("192.168.7.1")] = "an address of this node on tdl0123456789ab"
	for _, free := range []string{"192.168.1.77", "192.168.7.5", "192.168.1.4", "192.168.1.5", "10.6.0.1", "10.9.9.9", "2001:db8:1::77", "2001:db8:99::1"} {
		want[a(free)] = ""
	}
	for address, is := range want {
		o, found, err := h.At(address)
		must(t, err)
		said := ""
		if found {
			said = o.String()
		}
		if said != is {
			t.Errorf("%s is %q, want %q", address, said, is)
		}
	}
}
