// SPDX-License-Identifier: Apache-2.0

package wiring_test

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// What others took from a bridge and its ports is put back and named, and the next look
// finds nothing to do.
func TestRepairBridge(t *testing.T) {
	nstest.Halve(t, 1)
	p := newPair(t)
	v, b := bridgedVeth(5), testBridged()
	b.Hairpin, b.Isolated, b.Gateways = true, true, prefixes("10.10.0.1/16", "fd00:10::1/64")
	inWay := "add address 10.10.0.1/16 to tdlbr0, which has 10.10.0.7/16: subnets overlap"
	for _, test := range []struct {
		name   string
		spoil  string // by ip
		bridge []string
		port   []string
		err    string
	}{
		{name: "nothing", spoil: "link show"},
		{name: "IPv4 address", spoil: "addr del 10.10.0.1/16 dev tdlbr0", bridge: []string{"address 10.10.0.1/16 was missing"}},
		{name: "IPv6 address", spoil: "addr del fd00:10::1/64 dev tdlbr0", bridge: []string{"address fd00:10::1/64 was missing"}},
		{
			name: "another address", spoil: "addr del 10.10.0.1/16 dev tdlbr0 && ip addr add 10.10.0.7/16 dev tdlbr0", err: inWay,
		},
		// The kernel takes IPv6 addresses from a link that is set down.
		{name: "down", spoil: "link set tdlbr0 down", bridge: []string{"it was down", "address fd00:10::1/64 was missing"}},
		{name: "promiscuous mode", spoil: "link set tdlbr0 promisc off", bridge: []string{"promiscuous mode was off"}},
		{name: "port", spoil: "link set " + v.HostName + " nomaster", port: []string{"it was no port of bridge tdlbr0"}},
		{
			name: "hairpin mode", spoil: "link set " + v.HostName + " type bridge_slave hairpin off",
			port: []string{"hairpin mode was off"},
		},
		{
			name: "isolation", spoil: "link set " + v.HostName + " type bridge_slave isolated off",
			port: []string{"it was not isolated"},
		},
		{
			name: "bridge", spoil: "link del tdlbr0", port: []string{"it was no port of bridge tdlbr0"},
			bridge: []string{"the bridge was missing", "address 10.10.0.1/16 was missing", "address fd00:10::1/64 was missing"},
		},
		{
			name: "another's port", spoil: "link add other type bridge && ip link set " + v.HostName + " master other",
			err: v.HostName + " is a port of the device with index %d, not of bridge tdlbr0",
		},
		{name: "port gone", spoil: "link del " + v.HostName},
	} {
		t.Run(test.name, func(t *testing.T) {
			p.makeBridge(t)
			p.nodeNS.Run(t, "ip", "link", "set", bridgeName, "promisc", "on")
			links, _ := p.bridge(t, v, b)
			defer func() {
				for _, name := range []string{v.HostName, bridgeName, "other"} {
					must(t, wiring.RemoveVeth(p.node, name))
				}
			}()
			own := look(t, p.nodeNS, bridgeName).Link.MAC
			whole := wiring.Bridge{Name: bridgeName, MTU: 1400, Promisc: true, MAC: own}
			p.nodeNS.Run(t, "sh", "-c", "ip "+test.spoil)
			bridge, err1 := wiring.RepairBridge(p.node, whole, b.Gateways)
			port, err2 := wiring.RepairPort(p.node, links, b)
			if strings.Contains(test.err, "%d") {
				test.err = fmt.Sprintf(test.err, look(t, p.nodeNS, "other").Link.Index)
			}
			said := ""
			if err := errors.Join(err1, err2); err != nil {
				said = err.Error()
			}
			type outcome struct {
				Bridge, Port []string
				Err          string
			}
			if diff := cmp.Diff(outcome{test.bridge, test.port, test.err}, outcome{bridge, port, said}); diff != "" {
				t.Fatalf("mended (-want +got):\n%s", diff)
			}
			if test.err != "" || test.name == "port gone" {
				return
			}
			must(t, wiring.SettleBridged(p.node, p.container, links, b))
			must(t, wiring.CheckBridged(p.node, p.container, v, b))
			if got := look(t, p.nodeNS, bridgeName); !slices.Equal(got.Link.MAC, own) || !got.Promisc {
				t.Errorf("the bridge is %+v, want MAC %s and promiscuous", got, own)
			}
			bridge, err1 = wiring.RepairBridge(p.node, whole, b.Gateways)
			port, err2 = wiring.RepairPort(p.node, links, b)
			if bridge != nil || port != nil || err1 != nil || err2 != nil {
				t.Errorf("the next look: %q, %q, %v, %v", bridge, port, err1, err2)
			}
		})
	}
}

// A bridge that was made anew by somebody else has another MAC: that cannot be mended.
func TestRepairBridgeOfAnotherMAC(t *testing.T) {
	ns, node := newNode(t)
	known := wiring.Bridge{Name: bridgeName, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 0xaa}}
	ns.Run(t, "ip", "link", "add", bridgeName, "up", "address", "02:00:00:00:00:bb", "type", "bridge")
	mended, err := wiring.RepairBridge(node, known, prefixes("10.10.0.1/16"))
	want := "its MAC is 02:00:00:00:00:bb, and containers know it by 02:00:00:00:00:aa: " +
		"they reach no mapped ports until they are attached again, or it has that"
	if diff := cmp.Diff([]string{"address 10.10.0.1/16 was missing"}, mended); diff != "" {
		t.Errorf("mended (-want +got):\n%s", diff)
	}
	if err == nil || err.Error() != want {
		t.Errorf("error: got %v, want %s", err, want)
	}
}

// What belongs together is told from what only has the names.
func TestIsPair(t *testing.T) {
	p := newPair(t)
	v := bridgedVeth(5)
	is := func(what string, want bool) {
		t.Helper()
		if got, err := wiring.IsPair(p.node, p.container, v.HostName, v.Name); err != nil || got != want {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
	is("none", false)
	_, err := wiring.CreateVeth(p.node, p.container, v)
	must(t, err)
	is("a pair", true)
	p.containerNS.Run(t, "ip", "link", "set", v.Name, "name", "else")
	is("the host's side", false)
	p.containerNS.Run(t, "ip", "link", "add", v.Name, "type", "veth", "peer", "name", "peer")
	is("another's peer", false)
}

func TestNamespaceIsLockedOnce(t *testing.T) {
	ns := nstest.New(t, "c")
	first, second := open(t, ns.Path), open(t, ns.Path)
	for _, one := range []struct {
		n    *wiring.Namespace
		want bool
	}{{first, true}, {second, false}, {first, true}} {
		if got, err := one.n.TryLock(); err != nil || got != one.want {
			t.Errorf("lock: %v, %v, want %v", got, err, one.want)
		}
	}
}
