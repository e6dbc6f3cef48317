// SPDX-License-Identifier: Apache-2.0

package wiring_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// vlan50 is the bridge of these tests.
var vlan50 = wiring.Bridge{Name: bridgeName, MTU: 1400, VLAN: 50}

// needBridgeVLAN skips on kernels whose bridges know no VLANs; those of the matrix do.
func needBridgeVLAN(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, wiring.ErrBridgeVLAN) && strings.Contains(err.Error(), "CONFIG_BRIDGE_VLAN_FILTERING") {
		nstest.NotBuilt(t, "a VLAN of a bridge", "CONFIG_BRIDGE_VLAN_FILTERING")
	}
	must(t, err)
}

// tagging is how a port, or a bridge itself, is in a VLAN.
type tagging struct{ PVID, Untagged bool }

var own = tagging{PVID: true, Untagged: true}

// vlansAt are the VLANs of a port or of a bridge itself.
func vlansAt(t *testing.T, ns *nstest.NS, name string) map[uint16]tagging {
	t.Helper()
	link, err := ns.Handle.LinkByName(name)
	must(t, err)
	all, err := ns.Handle.BridgeVlanList()
	must(t, err)
	found := make(map[uint16]tagging)
	for _, v := range all[int32(link.Attrs().Index)] {
		found[v.Vid] = tagging{PVID: v.PortVID(), Untagged: v.EngressUntag()}
	}
	return found
}

// newTagged is a node with a bridge for VLAN 50.
func newTagged(t *testing.T) pair {
	t.Helper()
	p := newPair(t)
	p.makeTagged(t)
	return p
}

func (p pair) makeTagged(t *testing.T) {
	t.Helper()
	_, err := wiring.EnsureBridge(p.node, vlan50)
	needBridgeVLAN(t, err)
	must(t, wiring.EnsureGateways(p.node, vlan50, prefixes("10.10.0.1/16", "fd00:10::1/64"), false))
}

func testTagged() wiring.Bridged {
	b := testBridged()
	b.VLAN, b.Gateways = 50, prefixes("10.10.0.1/16", "fd00:10::1/64")
	return b
}

// Containers of one VLAN and the node reach each other at once; those of others are not heard.
func TestBridgedVLAN(t *testing.T) {
	p := newTagged(t)
	v, b := bridgedVeth(5), testTagged()
	p.bridge(t, v, b)
	must(t, wiring.CheckBridged(p.node, p.container, v, b))
	for _, a := range []string{"10.10.0.1", "fd00:10::1"} {
		p.containerNS.Run(t, "ping", "-c1", "-W2", a)
	}
	for _, a := range []string{"10.10.0.5", "fd00:10::5"} {
		p.nodeNS.Run(t, "ping", "-c1", "-W2", a)
	}
	same, w, c := p.another(t, "d"), bridgedVeth(6), testTagged()
	c.Addresses, c.PreserveDefaultVLAN = prefixes("10.10.0.6/16", "fd00:10::6/64"), true
	same.bridge(t, w, c)
	must(t, wiring.CheckBridged(p.node, same.container, w, c))
	for _, a := range []string{"10.10.0.6", "fd00:10::6"} {
		p.containerNS.Run(t, "ping", "-c1", "-W2", a)
	}

	// The others have addresses of the same subnet, and nobody in the way but the VLAN.
	for n, b := range []wiring.Bridged{{Bridge: bridgeName, MTU: 1400}, {Bridge: bridgeName, MTU: 1400, VLAN: 60}} {
		if b.VLAN != 0 {
			_, err := wiring.EnsureBridge(p.node, wiring.Bridge{Name: bridgeName, VLAN: b.VLAN})
			must(t, err)
		}
		other := p.another(t, "e")
		b.Addresses = prefixes("10.10.0.7/16", "fd00:10::7/64")
		other.bridge(t, bridgedVeth(7+n), b)
		var vain sync.WaitGroup // all at a time, since each takes its second
		for _, a := range []string{"10.10.0.1", "fd00:10::1", "10.10.0.5", "fd00:10::5"} {
			vain.Go(func() {
				if out, err := other.containerNS.Command("ping", "-c1", "-W1", a).CombinedOutput(); err == nil {
					t.Errorf("VLAN %d reaches %s in VLAN 50:\n%s", b.VLAN, a, out)
				}
			})
		}
		vain.Wait()
	}
	type places map[string]map[uint16]tagging
	got := make(places)
	for _, name := range []string{bridgeName, v.HostName, w.HostName, bridgedVeth(7).HostName, bridgedVeth(8).HostName} {
		got[name] = vlansAt(t, p.nodeNS, name)
	}
	want := places{
		bridgeName: {1: own, 50: {}, 60: {}}, v.HostName: {50: own}, w.HostName: {1: {Untagged: true}, 50: own},
		bridgedVeth(7).HostName: {1: own}, bridgedVeth(8).HostName: {60: own},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("VLANs (-want +got):\n%s", diff)
	}
	known := make(map[string][]int) // where the bridge has static entries of containers
	entries, err := p.nodeNS.Handle.NeighList(0, unix.AF_BRIDGE)
	must(t, err)
	for _, e := range entries {
		if e.State&unix.NUD_NOARP != 0 {
			known[e.HardwareAddr.String()] = append(known[e.HardwareAddr.String()], e.Vlan)
		}
	}
	for _, all := range known {
		slices.Sort(all)
	}
	delete(known, bridgedVeth(7).MAC.String())
	delete(known, bridgedVeth(8).MAC.String())
	if diff := cmp.Diff(map[string][]int{v.MAC.String(): {50}, w.MAC.String(): {1, 50}}, known); diff != "" {
		t.Errorf("static entries (-want +got):\n%s", diff)
	}
}

// What is made for an ADD that fails goes again, as far as nobody else has come to use it.
func TestUnusedVLANIsRemoved(t *testing.T) {
	ns, node := newNode(t)
	remains := func() map[string]map[uint16]tagging {
		t.Helper()
		found := make(map[string]map[uint16]tagging)
		links, err := ns.Handle.LinkList()
		must(t, err)
		for _, l := range links {
			switch l.Type() {
			case "bridge":
				found[l.Attrs().Name] = vlansAt(t, ns, l.Attrs().Name)
			case "vlan":
				found[l.Attrs().Name] = nil
			}
		}
		return found
	}
	is := func(what string, want map[string]map[uint16]tagging) {
		t.Helper()
		if diff := cmp.Diff(want, remains()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	made, err := wiring.EnsureBridge(node, vlan50)
	needBridgeVLAN(t, err)
	both := map[string]map[uint16]tagging{bridgeName: {1: own, 50: {}}, bridgeName + ".50": nil}
	is("made", both)
	again, err := wiring.EnsureBridge(node, vlan50)
	must(t, err)
	if !made.Made || made.VLANMade == 0 || !made.VLANJoined || again.Made || again.VLANMade != 0 || again.VLANJoined {
		t.Errorf("first %+v, then %+v", made, again)
	}
	must(t, wiring.RemoveUnusedBridge(node, vlan50, made))
	is("a bridge and its VLAN", map[string]map[uint16]tagging{})

	bridge, err := wiring.EnsureBridge(node, wiring.Bridge{Name: bridgeName})
	must(t, err)
	made, err = wiring.EnsureBridge(node, vlan50)
	must(t, err)
	want := bridge
	want.Made, want.VLANMade, want.VLANJoined, want.MTU = false, look(t, ns, bridgeName+".50").Link.Index, true, made.MTU
	if diff := cmp.Diff(want, made); diff != "" {
		t.Errorf("VLAN of a bridge that is there (-want +got):\n%s", diff)
	}
	ns.Run(t, "ip", "link", "add", "port", "master", bridgeName, "type", "veth")
	must(t, wiring.RemoveUnusedBridge(node, vlan50, made))
	is("the VLAN alone", map[string]map[uint16]tagging{bridgeName: {1: own}})

	made, err = wiring.EnsureBridge(node, vlan50)
	must(t, err)
	port, err := ns.Handle.LinkByName("port")
	must(t, err)
	must(t, ns.Handle.BridgeVlanAdd(port, 50, false, false, false, true))
	must(t, wiring.RemoveUnusedBridge(node, vlan50, made))
	is("with a port in it", both)

	// The bridge was in the VLAN before: there it stays.
	must(t, ns.Handle.LinkDel(port))
	ns.Run(t, "ip", "link", "del", bridgeName+".50")
	made, err = wiring.EnsureBridge(node, vlan50)
	must(t, err)
	must(t, wiring.RemoveUnusedBridge(node, vlan50, made))
	is("in the VLAN before", map[string]map[uint16]tagging{bridgeName: {1: own, 50: {}}})
}

// A bridge that cannot have the VLAN is left as it was.
func TestBridgeVLANRefused(t *testing.T) {
	_, err := wiring.EnsureBridge(newTagged(t).node, vlan50)
	must(t, err)
	for _, test := range []struct {
		name, setup string // by ip
		untagged    bool   // the bridge itself is in the VLAN without a tag
		vlan        int
		want        string
	}{
		{
			"ports without a filter", "link add port master tdlbr0 type veth", false, 50,
			"put VLAN 50 on bridge tdlbr0: the bridge cannot have the VLAN: it has ports (port) and does not filter VLANs; it does after " +
				"\"ip link set tdlbr0 type bridge vlan_filtering 1\", which may cut off such a port",
		},
		{
			"VLAN of new ports", "link show", false, 1,
			"put VLAN 1 on bridge tdlbr0: the bridge cannot have the VLAN: ports without a VLAN are in that one (vlan_default_pvid)",
		},
		{
			"802.1ad", "link set tdlbr0 type bridge vlan_protocol 802.1ad", false, 50,
			"put VLAN 50 on bridge tdlbr0: the bridge cannot have the VLAN: its vlan_protocol is 0x88a8, not 802.1Q",
		},
		{
			"another kind", "link add tdlbr0.50 type dummy", false, 50,
			"use dummy tdlbr0.50: the bridge cannot have the VLAN: it is not VLAN 50 of bridge tdlbr0 with its MAC",
		},
		{
			"another number", "link add link tdlbr0 name tdlbr0.50 type vlan id 51", false, 50,
			"use vlan tdlbr0.50: the bridge cannot have the VLAN: it is not VLAN 50 of bridge tdlbr0 with its MAC",
		},
		{
			"another MAC", "link add link tdlbr0 name tdlbr0.50 address 02:00:00:00:00:07 type vlan id 50", false, 50,
			"use vlan tdlbr0.50: the bridge cannot have the VLAN: it is not VLAN 50 of bridge tdlbr0 with its MAC",
		},
		{
			"another protocol", "link add link tdlbr0 name tdlbr0.50 type vlan protocol 802.1ad id 50", false, 50,
			"use vlan tdlbr0.50: the bridge cannot have the VLAN: it is not VLAN 50 of bridge tdlbr0 with its MAC",
		},
		{
			"the node without a tag", "link show", true, 50,
			"put VLAN 50 on bridge tdlbr0: the bridge cannot have the VLAN: the bridge itself is in that one without a tag",
		},
		{
			"another name", "link add link tdlbr0 name v50 type vlan id 50", false, 50,
			"make VLAN tdlbr0.50: bridge tdlbr0 has another device for VLAN 50: the bridge cannot have the VLAN",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			ns, node := newNode(t)
			ns.Run(t, "ip", "link", "add", bridgeName, "up", "type", "bridge")
			ns.Run(t, "sh", "-c", "ip "+test.setup)
			if test.untagged {
				bridge, err := ns.Handle.LinkByName(bridgeName)
				must(t, err)
				must(t, ns.Handle.BridgeVlanAdd(bridge, 50, true, true, true, false))
			}
			state := func() []string {
				var found []string
				links, err := ns.Handle.LinkList()
				must(t, err)
				for _, l := range links {
					text := l.Type() + " " + l.Attrs().Name
					if bridge, ok := l.(*netlink.Bridge); ok {
						text += fmt.Sprint(", filters VLANs: ", *bridge.VlanFiltering)
					}
					found = append(found, text)
				}
				return found
			}
			before, vlans := state(), vlansAt(t, ns, bridgeName)
			_, err := wiring.EnsureBridge(node, wiring.Bridge{Name: bridgeName, VLAN: test.vlan})
			if !errors.Is(err, wiring.ErrBridgeVLAN) || err.Error() != test.want {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
			if diff := cmp.Diff(before, state()); diff != "" {
				t.Errorf("links (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(vlans, vlansAt(t, ns, bridgeName)); diff != "" {
				t.Errorf("VLANs of the bridge (-before +after):\n%s", diff)
			}
		})
	}
}

// Containers without a VLAN may have been first on the bridge. They do not notice the filter.
func TestVLANBesidePlainContainers(t *testing.T) {
	p := newPair(t)
	p.makeBridge(t)
	v, b := bridgedVeth(5), testBridged()
	p.bridge(t, v, b)
	_, err := wiring.EnsureBridge(p.node, vlan50)
	needBridgeVLAN(t, err)
	tagged := p.another(t, "d")
	w, c := bridgedVeth(6), wiring.Bridged{Bridge: bridgeName, VLAN: 50, MTU: 9000, Addresses: prefixes("10.11.0.6/16")}
	w.MTU = 9000
	tagged.bridge(t, w, c)
	must(t, wiring.CheckBridged(p.node, tagged.container, w, c))
	must(t, wiring.CheckBridged(p.node, p.container, v, b))
	p.nodeNS.Run(t, "ping", "-c1", "-W2", "10.10.0.5")
	p.containerNS.Run(t, "ping", "-c1", "-W2", "fd00:10::1")
}

// The node's interface takes what the ports of the bridge do, as the bridge itself.
func TestVLANGrows(t *testing.T) {
	p := newPair(t)
	_, err := wiring.EnsureBridge(p.node, wiring.Bridge{Name: bridgeName, VLAN: 50})
	needBridgeVLAN(t, err)
	v, b := bridgedVeth(5), testTagged()
	v.MTU, b.MTU = 9000, 9000
	p.bridge(t, v, b)
	if got := look(t, p.nodeNS, bridgeName+".50").Link.MTU; got != 9000 {
		t.Errorf("MTU %d, want 9000", got)
	}
}

// A router's word on VLAN 50 is not the node's to follow.
func TestVLANIgnoresRouters(t *testing.T) {
	p := newTagged(t)
	for _, name := range []string{"accept_ra", "accept_dad"} {
		if got := setting(t, p.nodeNS, "ipv6/conf/tdlbr0.50/"+name); got != "0" {
			t.Errorf("%s is %s, want 0", name, got)
		}
	}
	if got, want := look(t, p.nodeNS, "tdlbr0.50").Link.MAC.String(), look(t, p.nodeNS, bridgeName).Link.MAC.String(); got != want {
		t.Errorf("MAC %s, want the bridge's, %s", got, want)
	}
}
