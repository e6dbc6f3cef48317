// SPDX-License-Identifier: Apache-2.0

package wiring_test

import (
	"errors"
	"net"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// What others change of a VLAN is named by CHECK and, but for a filter that is off, put back.
func TestRepairVLAN(t *testing.T) {
	nstest.Halve(t, 1)
	p := newPair(t)
	v, b := bridgedVeth(5), testTagged()
	side := func(name string) netlink.Link {
		link, err := p.nodeNS.Handle.LinkByName(name)
		must(t, err)
		return link
	}
	for _, test := range []struct {
		name     string
		preserve bool
		spoil    func() error
		check    []string
		bridge   []string
		port     []string
	}{
		{
			name:  "out of the VLAN",
			spoil: func() error { return p.nodeNS.Handle.BridgeVlanDel(side(v.HostName), 50, true, true, false, true) },
			check: []string{"port " + v.HostName + " is not in VLAN 50 without a tag on the host"},
			port:  []string{"it is not in VLAN 50 without a tag"},
		},
		{
			name:  "with a tag",
			spoil: func() error { return p.nodeNS.Handle.BridgeVlanAdd(side(v.HostName), 50, false, false, false, true) },
			check: []string{"port " + v.HostName + " is not in VLAN 50 without a tag on the host"},
			port:  []string{"it is not in VLAN 50 without a tag"},
		},
		{
			name: "in others",
			spoil: func() error {
				return errors.Join(p.nodeNS.Handle.BridgeVlanAdd(side(v.HostName), 1, false, true, false, true),
					p.nodeNS.Handle.BridgeVlanAdd(side(v.HostName), 60, true, true, false, true))
			},
			check: []string{
				"port " + v.HostName + " is not in VLAN 50 without a tag on the host",
				"port " + v.HostName + " is in VLANs it is not to be in: 1, 60 on the host",
			},
			port: []string{"it is not in VLAN 50 without a tag", "it is in VLANs it is not to be in: 1, 60"},
		},
		{
			name: "in all",
			spoil: func() error {
				return p.nodeNS.Handle.BridgeVlanAddRange(side(v.HostName), 2, 4094, false, false, false, true)
			},
			check: []string{
				"port " + v.HostName + " is not in VLAN 50 without a tag on the host",
				"port " + v.HostName + " is in VLANs it is not to be in: 2-49, 51-4094 on the host",
			},
			port: []string{"it is not in VLAN 50 without a tag", "it is in VLANs it is not to be in: 2-49, 51-4094"},
		},
		{
			name: "out of the preserved one", preserve: true,
			spoil: func() error {
				return errors.Join(p.nodeNS.Handle.BridgeVlanDel(side(v.HostName), 1, false, true, false, true),
					p.nodeNS.Handle.BridgeVlanDel(side(v.HostName), 50, true, true, false, true))
			},
			check: []string{
				"port " + v.HostName + " is not in VLAN 50 without a tag on the host",
				"port " + v.HostName + " is not in VLAN 1 as well on the host",
			},
			port: []string{"it is not in VLAN 50 without a tag", "it is not in VLAN 1 as well"},
		},
		{
			name:  "hairpin mode",
			spoil: func() error { return p.nodeNS.Handle.LinkSetHairpin(side(v.HostName), false) },
			check: []string{"hairpin mode of " + v.HostName + " is off on the host"},
			port:  []string{"hairpin mode was off"},
		},
		{
			name:   "the node is out",
			spoil:  func() error { return p.nodeNS.Handle.BridgeVlanDel(side(bridgeName), 50, false, false, true, false) },
			check:  []string{"bridge tdlbr0 is not in VLAN 50 itself with a tag"},
			bridge: []string{"bridge tdlbr0 is not in VLAN 50 itself with a tag"},
		},
		{
			name:   "interface gone",
			spoil:  func() error { return p.nodeNS.Handle.LinkDel(side("tdlbr0.50")) },
			check:  []string{"link tdlbr0.50 is missing on the host"},
			bridge: []string{"link tdlbr0.50 is missing on the host", "address 10.10.0.1/16 was missing", "address fd00:10::1/64 was missing"},
		},
		{
			name:  "interface down",
			spoil: func() error { return p.nodeNS.Handle.LinkSetDown(side("tdlbr0.50")) },
			// The kernel takes IPv6 addresses from a link that is set down.
			check:  []string{"link tdlbr0.50 is down on the host", "gateway address fd00:10::1/64 is missing on tdlbr0.50 on the host"},
			bridge: []string{"link tdlbr0.50 is down on the host", "address fd00:10::1/64 was missing"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			p.makeTagged(t)
			b := b
			b.PreserveDefaultVLAN, b.Hairpin = test.preserve, true
			links, _ := p.bridge(t, v, b)
			defer func() {
				for _, name := range []string{v.HostName, bridgeName} {
					must(t, wiring.RemoveVeth(p.node, name))
				}
			}()
			must(t, wiring.CheckBridged(p.node, p.container, v, b))
			must(t, test.spoil())
			var mismatch *wiring.MismatchError
			if err := wiring.CheckBridged(p.node, p.container, v, b); !errors.As(err, &mismatch) {
				t.Fatalf("CHECK: %v", err)
			}
			if diff := cmp.Diff(test.check, mismatch.Differences); diff != "" {
				t.Errorf("CHECK (-want +got):\n%s", diff)
			}
			whole := vlan50
			whole.MAC = slices.Clone(side(bridgeName).Attrs().HardwareAddr)
			type outcome struct{ Bridge, Port []string }
			repair := func() outcome {
				bridge, err1 := wiring.RepairBridge(p.node, whole, b.Gateways)
				port, err2 := wiring.RepairPort(p.node, links, b)
				must(t, errors.Join(err1, err2))
				return outcome{bridge, port}
			}
			seen := watchLink(t, p.nodeNS, v.HostName)
			if diff := cmp.Diff(outcome{test.bridge, test.port}, repair()); diff != "" {
				t.Errorf("mended (-want +got):\n%s", diff)
			}
			if states := seen(); slices.ContainsFunc(states, func(s linkState) bool { return !s.Up || !s.Port }) {
				t.Errorf("the port was away meanwhile: %+v", states)
			}
			must(t, wiring.CheckBridged(p.node, p.container, v, b))
			if diff := cmp.Diff(outcome{}, repair()); diff != "" {
				t.Errorf("the next look (-want +got):\n%s", diff)
			}
		})
	}
}

// With a filter that somebody has turned off the VLANs of the ports count for nothing. It is turned
// on again where that cuts off nobody; else it is left to the operator.
func TestVLANFilterTurnedOff(t *testing.T) {
	p := newTagged(t)
	v, b := bridgedVeth(5), testTagged()
	links, _ := p.bridge(t, v, b)
	off := func() {
		t.Helper()
		p.nodeNS.Run(t, "ip", "link", "set", bridgeName, "type", "bridge", "vlan_filtering", "0")
		var mismatch *wiring.MismatchError
		if err := wiring.CheckBridged(p.node, p.container, v, b); !errors.As(err, &mismatch) ||
			!slices.Equal(mismatch.Differences, []string{"bridge tdlbr0 does not filter VLANs"}) {
			t.Errorf("CHECK: %v", err)
		}
	}
	off()
	mended, err := wiring.RepairBridge(p.node, vlan50, b.Gateways)
	if want := []string{"bridge tdlbr0 does not filter VLANs"}; !slices.Equal(mended, want) || err != nil {
		t.Errorf("repair: %q, %v", mended, err)
	}
	must(t, wiring.CheckBridged(p.node, p.container, v, b))

	off()
	p.nodeNS.Run(t, "ip", "link", "add", "port", "master", bridgeName, "type", "veth")
	p.nodeNS.Run(t, "ip", "link", "set", bridgeName, "promisc", "off")
	whole := vlan50
	whole.Promisc = true
	mended, err = wiring.RepairBridge(p.node, whole, b.Gateways)
	if !slices.Equal(mended, []string{"promiscuous mode was off"}) || !errors.Is(err, wiring.ErrBridgeVLAN) {
		t.Errorf("repair beside a port of others: %q, %v", mended, err)
	}
	// Nor does a port come to a bridge that does not keep it apart.
	p.nodeNS.Run(t, "ip", "link", "set", v.HostName, "nomaster")
	mended, err = wiring.RepairPort(p.node, links, b)
	if mended != nil || !errors.Is(err, wiring.ErrBridgeVLAN) {
		t.Errorf("repair of the port: %q, %v", mended, err)
	}
	side, err := p.nodeNS.Handle.LinkByName(v.HostName)
	must(t, err)
	if at := side.Attrs().MasterIndex; at != 0 {
		t.Errorf("the port is one of %d", at)
	}
}

// Somebody makes the VLAN that of new ports: no more come, and those that are there stay in it.
func TestVLANBecomesTheDefault(t *testing.T) {
	p := newTagged(t)
	v, b := bridgedVeth(5), testTagged()
	b.Hairpin = true
	links, _ := p.bridge(t, v, b)
	for _, change := range []string{"vlan_filtering 0", "vlan_default_pvid 50", "vlan_filtering 1"} {
		p.nodeNS.Run(t, "sh", "-c", "ip link set "+bridgeName+" type bridge "+change)
	}
	for _, b.PreserveDefaultVLAN = range []bool{false, true} {
		p.nodeNS.Run(t, "ip", "link", "set", v.HostName, "type", "bridge_slave", "hairpin", "off")
		mended, err := wiring.RepairPort(p.node, links, b)
		if !slices.Equal(mended, []string{"hairpin mode was off"}) || err != nil {
			t.Errorf("mended %q, %v", mended, err)
		}
		if diff := cmp.Diff(map[uint16]tagging{50: own}, vlansAt(t, p.nodeNS, v.HostName)); diff != "" {
			t.Errorf("VLANs of the port (-want +got):\n%s", diff)
		}
	}
	if _, err := wiring.EnsureBridge(p.node, vlan50); !errors.Is(err, wiring.ErrBridgeVLAN) {
		t.Errorf("want %v, got %v", wiring.ErrBridgeVLAN, err)
	}
}

// A port that cannot get into its VLAN is none of the bridge, whose new ports are in another.
func TestPortWithoutItsVLAN(t *testing.T) {
	p := newTagged(t)
	v, b := bridgedVeth(5), testTagged()
	b.VLAN = 4095 // which there is not
	links, err := wiring.CreateVeth(p.node, p.container, v)
	must(t, err)
	if _, err := wiring.ConfigureBridged(p.node, p.container, links, b); !errors.Is(err, unix.EINVAL) {
		t.Errorf("want %v, got %v", unix.EINVAL, err)
	}
	side, err := p.nodeNS.Handle.LinkByName(v.HostName)
	must(t, err)
	if at := side.Attrs(); at.MasterIndex != 0 || at.Flags&net.FlagUp != 0 {
		t.Errorf("the port is one of %d, with flags %s", at.MasterIndex, at.Flags)
	}
	// One that is a port of none by now is down until it is where it belongs: the link's events
	// show it nowhere else.
	b.VLAN = 50
	must(t, wiring.RemoveVeth(p.node, v.HostName))
	links, _ = p.bridge(t, v, b)
	p.nodeNS.Run(t, "ip", "link", "set", v.HostName, "nomaster")
	seen := watchLink(t, p.nodeNS, v.HostName)
	mended, err := wiring.RepairPort(p.node, links, b)
	if !slices.Equal(mended, []string{"it was no port of bridge tdlbr0"}) || err != nil {
		t.Errorf("mended %q, %v", mended, err)
	}
	states := seen()
	first := slices.IndexFunc(states, func(s linkState) bool { return s.Port })
	if first < 0 || states[first].Up {
		t.Errorf("the port was up when it came to the bridge: %+v", states)
	}
	if last := states[len(states)-1]; !last.Port || !last.Up {
		t.Errorf("in the end: %+v", states)
	}
}

// linkState is what an event of a link says.
type linkState struct{ Port, Up bool }

// watchLink returns what returns the events of a link since.
func watchLink(t *testing.T, ns *nstest.NS, name string) func() []linkState {
	t.Helper()
	at, err := netns.GetFromPath(ns.Path)
	must(t, err)
	defer func() { must(t, at.Close()) }()
	events, stop := make(chan netlink.LinkUpdate, 1000), make(chan struct{})
	must(t, netlink.LinkSubscribeAt(at, events, stop))
	return func() (states []linkState) {
		t.Helper()
		defer close(stop)
		ns.Run(t, "ip", "link", "add", "last", "type", "dummy")
		defer ns.Run(t, "ip", "link", "del", "last")
		for e := range events {
			switch e.Attrs().Name {
			case "last":
				return states
			case name:
				states = append(states, linkState{e.Attrs().MasterIndex != 0, e.Attrs().Flags&net.FlagUp != 0})
			}
		}
		t.Fatal("no more events")
		return nil
	}
}
