// SPDX-License-Identifier: Apache-2.0

package wiring_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/vlan"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// filtering is the bridge of containers with a trunk and no VLAN of their own.
var filtering = wiring.Bridge{Name: bridgeName, MTU: 1400, Filters: true}

func only(ids ...int) vlan.Set {
	var all []vlan.Range
	for _, id := range ids {
		all = append(all, vlan.Range{First: id, Last: id})
	}
	return vlan.Of(all...)
}

// A container is in the VLANs of its trunk by tags, and without one where it would be anyway.
func TestBridgedTrunk(t *testing.T) {
	p := newPair(t)
	_, err := wiring.EnsureBridge(p.node, filtering)
	needBridgeVLAN(t, err)
	must(t, wiring.EnsureGateways(p.node, filtering, prefixes("10.10.0.1/16", "fd00:10::1/64"), false))
	v, b := bridgedVeth(5), testBridged()
	b.Trunk = only(7, 8, 9, 60)
	p.bridge(t, v, b)
	must(t, wiring.CheckBridged(p.node, p.container, v, b))

	_, err = wiring.EnsureBridge(p.node, vlan50)
	must(t, err)
	within, w, c := p.another(t, "d"), bridgedVeth(6), testTagged()
	c.Gateways, c.Addresses, c.Routes = nil, prefixes("10.50.0.6/16"), nil
	c.Trunk = only(1, 60) // where new ports are without a tag, which this one is not
	within.bridge(t, w, c)
	must(t, wiring.CheckBridged(p.node, within.container, w, c))

	preserved, x, d := p.another(t, "e"), bridgedVeth(7), testTagged()
	d.Gateways, d.Addresses, d.Routes, d.PreserveDefaultVLAN, d.Trunk = nil, prefixes("10.50.0.7/16"), nil, true, only(60)
	preserved.bridge(t, x, d)
	must(t, wiring.CheckBridged(p.node, preserved.container, x, d))

	_, err = wiring.EnsureBridge(p.node, wiring.Bridge{Name: bridgeName, VLAN: 60})
	must(t, err)
	untagged := p.another(t, "f")
	untagged.bridge(t, bridgedVeth(8), wiring.Bridged{Bridge: bridgeName, VLAN: 60, MTU: 1400, Addresses: prefixes("10.60.0.8/16", "fd00:60::8/64")})

	type places map[string]map[uint16]tagging
	got := make(places)
	for _, name := range []string{bridgeName, v.HostName, w.HostName, x.HostName, bridgedVeth(8).HostName} {
		got[name] = vlansAt(t, p.nodeNS, name)
	}
	want := places{
		bridgeName: {1: own, 50: {}, 60: {}}, v.HostName: {1: own, 7: {}, 8: {}, 9: {}, 60: {}}, w.HostName: {1: {}, 50: own, 60: {}},
		x.HostName: {1: {Untagged: true}, 50: own, 60: {}}, bridgedVeth(8).HostName: {60: own},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("VLANs (-want +got):\n%s", diff)
	}

	// Who is in VLAN 60 without a tag is a neighbour of who has the tag, and of nobody else.
	p.containerNS.Run(t, "ping", "-c1", "-W2", "10.10.0.1")
	p.containerNS.Run(t, "ip", "link", "add", "link", "eth0", "name", "eth0.60", "up", "type", "vlan", "id", "60")
	p.containerNS.Run(t, "ip", "addr", "add", "10.60.0.5/16", "dev", "eth0.60")
	p.containerNS.Run(t, "ip", "-6", "addr", "add", "fd00:60::5/64", "dev", "eth0.60", "nodad")
	for _, a := range []string{"10.60.0.8", "fd00:60::8"} {
		p.containerNS.Run(t, "ping", "-c1", "-W2", a)
	}
	p.containerNS.Run(t, "ip", "link", "add", "link", "eth0", "name", "eth0.61", "up", "type", "vlan", "id", "61")
	p.containerNS.Run(t, "ip", "route", "add", "10.60.0.8", "dev", "eth0.61", "src", "10.60.0.5")
	if out, err := p.containerNS.Command("ping", "-c1", "-W1", "10.60.0.8").CombinedOutput(); err == nil {
		t.Errorf("reached by the tag of another VLAN:\n%s", out)
	}
}

// A port is not put where a tag of its trunk would lead to where it is without one.
func TestTrunkRefused(t *testing.T) {
	_, err := wiring.EnsureBridge(newPair(t).node, filtering)
	needBridgeVLAN(t, err)
	for name, test := range map[string]struct {
		bridge wiring.Bridge
		b      wiring.Bridged
		want   string
	}{
		"left alone": {
			filtering,
			wiring.Bridged{Trunk: only(1, 7)},
			"configure the host's side: put a trunk on bridge tdlbr0: the bridge cannot have the VLAN: ports are in VLAN 1 of the trunk without a tag (vlan_default_pvid)",
		},
		"preserved": {
			vlan50,
			wiring.Bridged{VLAN: 50, PreserveDefaultVLAN: true, Trunk: only(1, 7)},
			"configure the host's side: put VLAN 50 on bridge tdlbr0: the bridge cannot have the VLAN: ports are in VLAN 1 of the trunk without a tag (vlan_default_pvid)",
		},
		"no filter": {
			wiring.Bridge{Name: bridgeName},
			wiring.Bridged{Trunk: only(7)},
			"configure the host's side: put a trunk on bridge tdlbr0: the bridge cannot have the VLAN: it does not filter VLANs",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			_, err := wiring.EnsureBridge(p.node, test.bridge)
			needBridgeVLAN(t, err)
			v := bridgedVeth(5)
			links, err := wiring.CreateVeth(p.node, p.container, v)
			must(t, err)
			test.b.Bridge = bridgeName
			_, err = wiring.ConfigureBridged(p.node, p.container, links, test.b)
			if !errors.Is(err, wiring.ErrBridgeVLAN) || err.Error() != test.want {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
			side, err := p.nodeNS.Handle.LinkByName(v.HostName)
			must(t, err)
			if master := side.Attrs().MasterIndex; master != 0 {
				t.Errorf("it is a port of the device with index %d", master)
			}
		})
	}

	// A bridge whose ports might notice is not made to filter.
	p := newPair(t)
	p.nodeNS.Run(t, "ip", "link", "add", bridgeName, "up", "type", "bridge")
	p.nodeNS.Run(t, "ip", "link", "add", "port", "master", bridgeName, "type", "veth")
	const want = "put a trunk on bridge tdlbr0: the bridge cannot have the VLAN: it has ports (port) and does not filter VLANs; it does after " +
		"\"ip link set tdlbr0 type bridge vlan_filtering 1\", which may cut off such a port"
	if _, err := wiring.EnsureBridge(p.node, filtering); !errors.Is(err, wiring.ErrBridgeVLAN) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// What others change of a trunk is named by CHECK and put back.
func TestRepairTrunk(t *testing.T) {
	p := newPair(t)
	_, err := wiring.EnsureBridge(p.node, filtering)
	needBridgeVLAN(t, err)
	v, b := bridgedVeth(5), testBridged()
	b.Trunk = only(7, 8, 9)
	links, _ := p.bridge(t, v, b)
	side, err := p.nodeNS.Handle.LinkByName(v.HostName)
	must(t, err)
	before := vlansAt(t, p.nodeNS, v.HostName)
	must(t, errors.Join(
		p.nodeNS.Handle.BridgeVlanDel(side, 7, false, false, false, true),
		p.nodeNS.Handle.BridgeVlanAdd(side, 9, true, true, false, true),
		p.nodeNS.Handle.BridgeVlanAdd(side, 11, false, false, false, true),
	))
	p.nodeNS.Run(t, "ip", "link", "set", bridgeName, "type", "bridge", "vlan_filtering", "0")
	var mismatch *wiring.MismatchError
	if err := wiring.CheckBridged(p.node, p.container, v, b); !errors.As(err, &mismatch) {
		t.Fatalf("CHECK: %v", err)
	}
	port := func(fault string) string { return "port " + v.HostName + " " + fault + " on the host" }
	faults := []string{"is not in VLAN 1 without a tag", "is not in VLAN 7, 9 of its trunk with a tag", "is in VLANs it is not to be in: 11"}
	check := []string{"bridge tdlbr0 does not filter VLANs", port(faults[0]), port(faults[1]), port(faults[2])}
	if diff := cmp.Diff(check, mismatch.Differences); diff != "" {
		t.Errorf("CHECK (-want +got):\n%s", diff)
	}
	bridge, err := wiring.RepairBridge(p.node, filtering, nil)
	must(t, err)
	mended, err := wiring.RepairPort(p.node, links, b)
	must(t, err)
	if diff := cmp.Diff([][]string{{"bridge tdlbr0 does not filter VLANs"}, {"it " + faults[0], "it " + faults[1], "it " + faults[2]}}, [][]string{bridge, mended}); diff != "" {
		t.Errorf("mended (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, vlansAt(t, p.nodeNS, v.HostName)); diff != "" {
		t.Errorf("VLANs of the port (-want +got):\n%s", diff)
	}
	must(t, wiring.CheckBridged(p.node, p.container, v, b))

	// Where the VLAN of new ports has become one of the trunk, the port stays where it is.
	p.nodeNS.Run(t, "ip", "link", "set", bridgeName, "type", "bridge", "vlan_default_pvid", "8")
	must(t, wiring.CheckBridged(p.node, p.container, v, b))
	if diff := cmp.Diff(before, vlansAt(t, p.nodeNS, v.HostName)); diff != "" {
		t.Errorf("VLANs of the port beside another default (-want +got):\n%s", diff)
	}
}
