// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/pkg/api"
)

const macvlanNetwork = `{"cniVersion": "1.1.0", "name": "n", "driver": "macvlan", "ipam": {"type": "static"}`

func TestMacvlanKeys(t *testing.T) {
	type read struct {
		Network api.Network
		Macvlan macvlanConfig
	}
	network := func(change func(*api.Network)) api.Network {
		n := api.Network{Name: "n", Driver: "macvlan", Mode: "bridge", HostAccess: true}
		change(&n)
		return n
	}
	plain := network(func(*api.Network) {})
	for keys, want := range map[string]read{
		``: {plain, macvlanConfig{}},
		`, "master": "", "mode": "", "vlan": 0, "mtu": 0, "mac": "", "hostAccess": null, "bcqueuelen": 0, "linkInContainer": false, "ipMasq": false`: {plain, macvlanConfig{}},
		`, "master": "eth0"`: {network(func(n *api.Network) { n.Parent = "eth0" }), macvlanConfig{master: "eth0"}},
		`, "master": "eth0.50"`: {
			network(func(n *api.Network) { n.Parent = "eth0.50" }), macvlanConfig{master: "eth0.50"},
		},
		`, "master": "eth0", "vlan": 4094`: {
			network(func(n *api.Network) { n.Parent, n.VLAN = "eth0.4094", 4094 }), macvlanConfig{master: "eth0"},
		},
		`, "vlan": 1`:           {network(func(n *api.Network) { n.VLAN = 1 }), macvlanConfig{}},
		`, "mode": "private"`:   {network(func(n *api.Network) { n.Mode = "private" }), macvlanConfig{}},
		`, "mode": "vepa"`:      {network(func(n *api.Network) { n.Mode = "vepa" }), macvlanConfig{}},
		`, "hostAccess": false`: {network(func(n *api.Network) { n.HostAccess = false }), macvlanConfig{}},
		`, "mode": "passthru"`:  {network(func(n *api.Network) { n.Mode, n.HostAccess = "passthru", false }), macvlanConfig{}},
		`, "linkInContainer": true, "master": "eth1"`: {
			network(func(n *api.Network) { n.Parent, n.InContainer, n.HostAccess = "eth1", true, false }), macvlanConfig{master: "eth1"},
		},
		`, "bcqueuelen": 177777`: {plain, macvlanConfig{broadcastQueue: 177777}},
		`, "mac": "02:00:00:00:00:0A"`: {
			plain, macvlanConfig{mac: net.HardwareAddr{2, 0, 0, 0, 0, 10}},
		},
	} {
		c, err := parseConfig([]byte(macvlanNetwork+keys+`}`), true)
		if err != nil {
			t.Errorf("%s: %v", keys, err)
			continue
		}
		if diff := cmp.Diff(want, read{c.network, c.macvlan}, cmp.AllowUnexported(macvlanConfig{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", keys, diff)
		}
	}
}

func TestMacvlanKeysRefused(t *testing.T) {
	type refusal struct {
		Code uint
		Msg  string
	}
	for keys, want := range map[string]refusal{
		`"master": 5`:                                 {7, `master: 5 is not a string`},
		`"master": "abcdefghijklmnop"`:                {7, `master: "abcdefghijklmnop" is longer than 15 bytes`},
		`"master": "tdl0123456789ab"`:                 {7, `master: "tdl0123456789ab" is named as the host's side of an endpoint is`},
		`"vlan": "50"`:                                {7, `vlan: "50" is not a whole number`},
		`"vlan": -1`:                                  {7, `vlan: -1 is not 0, for none, or between 1 and 4094`},
		`"vlan": 4095`:                                {7, `vlan: 4095 is not 0, for none, or between 1 and 4094`},
		`"master": "abcdefghijkl", "vlan": 500`:       {7, `vlan: the device would be called "abcdefghijkl.500", which is longer than 15 bytes`},
		`"mode": "Bridge"`:                            {7, `mode: there is no mode "Bridge"; there are ["bridge" "private" "vepa" "passthru"]`},
		`"mode": 1`:                                   {7, `mode: 1 is not a string`},
		`"hostAccess": 1`:                             {7, `hostAccess: 1 is not true or false`},
		`"mode": "passthru", "hostAccess": true`:      {7, `hostAccess: true cannot be with mode passthru, where the container has the master and its MAC to itself`},
		`"mac": "01:00:00:00:00:00"`:                  {7, `mac: "01:00:00:00:00:00" is not the MAC address of one station: 6 bytes, the first even`},
		`"bcqueuelen": -1`:                            {7, `bcqueuelen: -1 is not a whole number between 0 and 4294967295`},
		`"bcqueuelen": 4294967296`:                    {7, `bcqueuelen: 4294967296 is not a whole number between 0 and 4294967295`},
		`"linkInContainer": true, "hostAccess": true`: {7, `hostAccess: true cannot be with linkInContainer: the master is in the container`},
		`"linkInContainer": true, "vlan": 50`:         {7, `vlan: 50 cannot be with linkInContainer: the master is in the container, and the VLAN is to be there`},
		`"ipMasq": true`: {2, `ipMasq: true cannot be with the driver macvlan: containers are in the network of their master, ` +
			`with addresses of their own`},
		`"isGateway": true`: {2, `isGateway: true is not supported: it is a key of the driver "bridge", and this network's is "macvlan"`},
		`"Master": "eth0"`:  {2, `Master: "eth0" is not supported: unknown key; did you mean "master"?`},
	} {
		text := macvlanNetwork + `, ` + keys + `}`
		_, err := parseConfig([]byte(text), true)
		if err == nil {
			t.Errorf("%s was accepted", keys)
			continue
		}
		answer := cniError(err)
		if diff := cmp.Diff(want, refusal{answer.Code, answer.Msg}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", keys, diff)
		}
		if _, err := parseConfig([]byte(text), false); err != nil { // for DEL
			t.Errorf("%s, not strict: %v", keys, err)
		}
	}
	// With another driver, and with none named, each is of this one, but for what the driver
	// bridge has as well.
	for _, key := range macvlanKeys() {
		if key == "vlan" {
			continue
		}
		for driver, name := range map[string]string{``: "routed", `"driver": "bridge", `: "bridge"} {
			_, err := parseConfig([]byte(`{"cniVersion": "1.1.0", "name": "n", `+driver+`"`+key+`": true, "ipam": {"type": "static"}}`), true)
			want := refusal{2, key + `: true is not supported: it is a key of the driver "macvlan", and this network's is "` + name + `"`}
			if err == nil {
				t.Errorf("%s was accepted with driver %s", key, name)
				continue
			}
			if answer := cniError(err); want != (refusal{answer.Code, answer.Msg}) {
				t.Errorf("%s with driver %s: %v", key, name, answer)
			}
		}
	}
}
