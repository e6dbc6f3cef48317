// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/internal/vlan"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/wiring"
)

const fullConfig = `{
	"cniVersion": "1.1.0", "name": "pods", "type": "tendril-cni", "driver": "routed", "socket": "/run/t.sock", "ipMasq": true, "mtu": 1400,
	"routes": [{"dst": "192.0.2.7/24", "gw": "10.10.0.1", "mtu": 1300, "advmss": 1200, "priority": 5, "table": 1000, "scope": 0}],
	"dns": {"nameservers": ["10.10.0.53"], "domain": "example", "search": ["a"], "options": ["b"]},
	"ipam": {"type": "tendril", "routes": [{"dst": "::/0"}],
		"ranges": [[{"subnet": "10.10.0.0/16", "rangeStart": "10.10.1.0", "rangeEnd": "10.10.2.0", "gateway": "10.10.0.1"}, {"subnet": "10.11.0.0/16"}],
		           [{"subnet": "fd00::/64"}]]},
	"runtimeConfig": {"ips": ["10.10.1.5/16"], "mac": "02:00:00:00:00:05", "ipRanges": [[{"subnet": "10.12.0.0/16"}]], "dns": {"servers": ["1.1.1.1"]},
		"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}, {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "127.0.0.1"},
			{"hostPort": 65535, "containerPort": 1, "protocol": "", "hostIP": ""}, {"hostPort": 1, "containerPort": 65535, "protocol": null, "hostIP": "::"}]},
	"args": {"cni": {"ips": ["10.10.1.6"], "mac": "02:00:00:00:00:06", "labels": [{"key": "app", "value": "web"}, {"key": "tier", "value": ""}]}},
	"prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "br0"}]},
	"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}`

func TestParseConfig(t *testing.T) {
	got, err := parseConfig([]byte(fullConfig), true)
	if err != nil {
		t.Fatal(err)
	}
	want := config{
		version: "1.1.0",
		network: api.Network{Name: "pods", Driver: "routed", IPMasq: true, MTU: 1400, Ranges: []api.RangeSet{
			{{Subnet: netip.MustParsePrefix("10.12.0.0/16")}},
			{
				{
					Subnet: netip.MustParsePrefix("10.10.0.0/16"), RangeStart: netip.MustParseAddr("10.10.1.0"),
					RangeEnd: netip.MustParseAddr("10.10.2.0"), Gateway: netip.MustParseAddr("10.10.0.1"),
				},
				{Subnet: netip.MustParsePrefix("10.11.0.0/16")},
			},
			{{Subnet: netip.MustParsePrefix("fd00::/64")}},
		}},
		socket: "/run/t.sock", ipamType: "tendril",
		routes: []givenRoute{
			{wiring.Route{Dst: netip.MustParsePrefix("::/0")}, "ipam.routes[0]"},
			{
				wiring.Route{Dst: netip.MustParsePrefix("192.0.2.0/24"), Gateway: netip.MustParseAddr("10.10.0.1"), MTU: 1300, AdvMSS: 1200, Priority: 5, Table: 1000},
				"routes[0]",
			},
		},
		dns:    types.DNS{Nameservers: []string{"10.10.0.53"}, Domain: "example", Search: []string{"a"}, Options: []string{"b"}},
		ips:    []netip.Addr{netip.MustParseAddr("10.10.1.5")},
		mac:    net.HardwareAddr{2, 0, 0, 0, 0, 5},
		labels: map[string]string{"app": "web", "tier": ""},
		ports: []api.PortMapping{
			{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
			{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 53, ContainerPort: 5353, Protocol: "udp"},
			{HostPort: 65535, ContainerPort: 1, Protocol: "tcp"},
			{HostIP: netip.IPv6Unspecified(), HostPort: 1, ContainerPort: 65535, Protocol: "tcp"},
		},
		runtimeDNS: types.DNS{Nameservers: []string{"1.1.1.1"}},
		prevResult: &current.Result{CNIVersion: "1.1.0", Interfaces: []*current.Interface{{Name: "br0"}}},
		valid:      []api.Attachment{{ContainerID: "c1", IfName: "eth0"}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(config{}, bridgeConfig{}, macvlanConfig{}, givenRoute{}), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

func TestNearest(t *testing.T) {
	known := []string{"driver", "socket", "mtu", "ipam", "ipMasq", "rangeStart"}
	for key, want := range map[string]string{
		"drivr": "driver", "dirver": "driver", "Driver": "driver", "mut": "mtu", "ipmasq": "ipMasq",
		"rangestrat": "rangeStart", "xyz": "", "bridge": "", "m": "",
	} {
		if got := nearest(key, known); got != want {
			t.Errorf("nearest to %q: want %q, got %q", key, want, got)
		}
	}
}

func TestEmpty(t *testing.T) {
	for text, want := range map[string]bool{
		`null`: true, `false`: true, `0`: true, `""`: true, `[]`: true, `{}`: true, `{"a":0,"b":{"c":""}}`: true,
		`1`: false, `[0]`: false, `{"a":{"b":"c"}}`: false, `true`: false,
	} {
		if got := empty(json.RawMessage(text)); got != want {
			t.Errorf("empty(%s): want %v, got %v", text, want, got)
		}
	}
}

// FuzzParseConfig holds for any text: no panic; a refusal is an error of the
// specification with a message; what is accepted has what ADD relies on; and
// the lenient reading accepts all that the strict one does.
func FuzzParseConfig(f *testing.F) {
	for _, seed := range []string{
		fullConfig,
		`{"cniVersion":"0.4.0","name":"n","ipam":{"type":"host-local","x":1},"prevResult":{"ips":[{"version":"4","address":"10.0.0.1/8"}]}}`,
		`{"cniVersion":"0.3.1","name":"n","ipam":{"type":"tendril","ranges":[[{"subnet":"::/0"}]]},"prevResult":{"interfaces":[null]}}`,
		`{"name":"n","ipam":{"type":"tendril","ranges":[null,[null]]},"runtimeConfig":{"portMappings":[{}],"mac":"x"}}`,
		`{"name":"n","drivr":null,"cni.dev/attachments":[{}],"args":{"cni":{"labels":[{"key":""}],"ips":["fe80::1%eth0"]}}}`,
		`{"name":"n","routes":[{"dst":"0.0.0.0/33","scope":-1},{"dst":"1.2.3.4/5","gw":"::"}]}`,
		`{"name":"n","ipam":{"type":"dhcp"},"runtimeConfig":{"portMappings":[{"hostPort":65536,"containerPort":-1,"protocol":"SCTP","hostIP":"::ffff:1.2.3.4"}]}}`,
		`{"name":"n","ipam":{"type":"dhcp"},"runtimeConfig":{"portMappings":[{"hostPort":8080.5,"containerPort":"80","hostPorts":1,"hostIP":"fe80::1%eth0"},null]}}`,
		`{"name":"n","driver":"bridge","bridge":"br 0","isGateway":1,"hairpinMode":true,"promiscMode":true,"ipam":{"type":"dhcp"}}`,
		`{"name":"n","driver":"bridge","isDefaultGateway":true,"forceAddress":true,"vlan":0,"vlanTrunk":[{"id":1}],"ipam":{"type":"dhcp"}}`,
		`{"name":"n","driver":"bridge","disableContainerInterface":true,"vlanTrunk":[{"minID":1,"maxID":4094},{"id":-1}],"ipam":{}}`,
		`{"name":"n","driver":"macvlan","master":"eth1","mode":"vepa","bcqueuelen":1,"ipMasq":false,"ipam":{"type":"dhcp"}}`,
		`{"name":"n","driver":"macvlan","linkInContainer":true,"mode":"passthru","vlan":5,"ipMasq":false,"ipam":{"type":"static"}}`,
		`{"name":"n","driver":"macvlan","linkInContainer":true,"ipMasq":false,"ipam":{"type":"tendril","ranges":[[{"subnet":"10.0.0.0/24"}]]}}`,
		`[]`, `null`, `{"name":"n"`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseConfig(text, true)
		_, lenient := parseConfig(text, false)
		if err != nil {
			answer := cniError(err)
			if answer.Msg == "" || (answer.Code != types.ErrDecodingFailure && answer.Code != types.ErrInvalidNetworkConfig &&
				answer.Code != types.ErrUnsupportedField) {
				t.Errorf("an error without message or of another code: %+v", answer)
			}
			return
		}
		if lenient != nil {
			t.Errorf("accepted, but not leniently: %v", lenient)
		}
		if c.network.Name == "" || c.ipamType == "" || c.socket == "" ||
			!slices.Contains([]string{api.DriverRouted, api.DriverBridge, api.DriverMacvlan}, c.network.Driver) {
			t.Errorf("accepted without what ADD relies on: %+v", c)
		}
		if bridged := c.network.Driver == api.DriverBridge; bridged != (c.network.Bridge != "") || !bridged && c.bridge != (bridgeConfig{}) {
			t.Errorf("accepted with a bridge of another driver, or without one: %+v", c)
		}
		if c.network.Layer2 && (c.network.Driver != api.DriverBridge || c.delegated() || c.network.IPMasq || len(c.network.Ranges)+len(c.ports)+len(c.routes)+len(c.ips) != 0) {
			t.Errorf("accepted with addresses, or what they are for, where there are none: %+v", c)
		}
		for _, route := range c.routes {
			if !route.Dst.IsValid() {
				t.Errorf("accepted a route without destination: %+v", route)
			}
		}
		for _, p := range c.ports {
			if p.HostPort == 0 || p.ContainerPort == 0 || p.Protocol != "tcp" && p.Protocol != "udp" || p.HostIP.Zone() != "" || p.HostIP.Is4In6() {
				t.Errorf("accepted a port mapping that is none: %+v", p)
			}
		}
		if !c.delegated() && len(c.network.Ranges) == 0 {
			t.Error("accepted without ranges")
		}
		if c.prevResult != nil {
			for _, version := range supported() {
				if _, err := c.prevResult.GetAsVersion(version); err != nil {
					t.Errorf("convert prevResult to %s: %v", version, err)
				}
			}
		}
	})
}

func TestIsolationKeys(t *testing.T) {
	for keys, want := range map[string]api.Network{
		``:                                      {},
		`"ingressPolicy": "open", "icc": true,`: {IngressPolicy: api.IngressOpen},
		`"ingressPolicy": "same-bridge",`:       {IngressPolicy: api.IngressSameBridge},
		`"ingressPolicy": "isolated", "icc": null,`: {IngressPolicy: api.IngressIsolated},
		`"icc": false,`: {NoICC: true},
	} {
		c, err := parseConfig([]byte(`{"cniVersion": "1.1.0", "name": "n", `+keys+` "ipam": {"type": "static"}}`), true)
		if err != nil {
			t.Errorf("%s: %v", keys, err)
		}
		if got := c.network; got.IngressPolicy != want.IngressPolicy || got.NoICC != want.NoICC {
			t.Errorf("%s: %+v", keys, got)
		}
	}
}

func TestBridgeKeys(t *testing.T) {
	type read struct {
		Network api.Network
		Bridge  bridgeConfig
	}
	// with is a network, as each function makes it.
	with := func(set ...func(*read)) read {
		r := read{Network: api.Network{Name: "n", Driver: "bridge", Bridge: "tendril0"}}
		for _, one := range set {
			one(&r)
		}
		return r
	}
	named := func(name string) func(*read) { return func(r *read) { r.Network.Bridge = name } }
	gateway := func(r *read) { r.Network.BridgeGateway = true }
	layer2 := func(r *read) { r.Network.Layer2 = true }
	defaultGateway := func(r *read) { r.Bridge.defaultGateway = true }
	tagged := func(id int, preserved bool) func(*read) {
		return func(r *read) { r.Network.VLAN, r.Network.PreserveDefaultVLAN = id, preserved }
	}
	for keys, want := range map[string]read{
		``:                          with(),
		`"bridge": "br-0",`:         with(named("br-0")),
		`"bridge": "tdlbr0",`:       with(named("tdlbr0")),
		`"isGateway": true,`:        with(gateway),
		`"isDefaultGateway": true,`: with(gateway, defaultGateway),
		`"forceAddress": true,`:     with(), // nothing is there to be forced
		`"isDefaultGateway": true, "isGateway": false, "forceAddress": true,`: with(gateway, defaultGateway, func(r *read) { r.Network.ForceAddress = true }),
		`"hairpinMode": true, "promiscMode": false,`:                          with(func(r *read) { r.Network.Hairpin = true }),
		`"portIsolation": true,`:                                              with(func(r *read) { r.Network.Isolated = true }),
		`"enabledad": true,`:                                                  with(func(r *read) { r.Bridge.dad = true }),
		`"promiscMode": true,`:                                                with(func(r *read) { r.Network.Promisc = true }),
		`"macspoofchk": true,`:                                                with(),
		`"macspoofchk": false,`:                                               with(),
		`"vlan": 4094,`:                                                       with(tagged(4094, true)),
		`"vlan": 10, "preserveDefaultVlan": false,`:                           with(tagged(10, false)),
		`"preserveDefaultVlan": true,`:                                        with(), // there is no other
		`"vlanTrunk": [{"id": 1}, {"minID": 20, "maxID": 29}, {"id": 4094, "minID": 29, "maxID": 30}],`: with(func(r *read) {
			r.Network.VLANTrunk = vlan.Set{{First: 1, Last: 1}, {First: 20, Last: 30}, {First: 4094, Last: 4094}}
		}),
		`"vlan": 10, "vlanTrunk": [{"minID": 1, "maxID": 9}],`: with(tagged(10, true), func(r *read) { r.Network.VLANTrunk = vlan.Set{{First: 1, Last: 9}} }),
		`"vlan": 0, "vlanTrunk": [], "preserveDefaultVlan": false, "enabledad": false, "portIsolation": false, "disableContainerInterface": null,`: with(),
		`"ipam": {},`: with(layer2),
		`"ipam": {}, "disableContainerInterface": true, "vlanTrunk": [{"id": 7}],`: with(layer2, func(r *read) {
			r.Bridge.down, r.Network.VLANTrunk = true, vlan.Set{{First: 7, Last: 7}}
		}),
		`"disableContainerInterface": true, "ipam": null,`: with(layer2, func(r *read) { r.Bridge.down = true }),
	} {
		if !strings.Contains(keys, `"ipam"`) {
			keys += ` "ipam": {"type": "static"},`
		}
		c, err := parseConfig([]byte(`{"cniVersion": "1.1.0", "name": "n", "driver": "bridge", `+keys+` "macspoofchk": false}`), true)
		if err != nil {
			t.Errorf("%s: %v", keys, err)
			continue
		}
		if diff := cmp.Diff(want, read{c.network, c.bridge}, cmp.AllowUnexported(bridgeConfig{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", keys, diff)
		}
	}
}

func TestBridgeKeysRefused(t *testing.T) {
	type refusal struct {
		Code uint
		Msg  string
	}
	const badName = `bridge: %q must not hold / : white space or control characters`
	tests := map[string]refusal{
		`"bridge": ""`:                         {7, `bridge: "" is missing`},
		`"bridge": "abcdefghijklmnop"`:         {7, `bridge: "abcdefghijklmnop" is longer than 15 bytes`},
		`"bridge": "a/b"`:                      {7, fmt.Sprintf(badName, "a/b")},
		`"bridge": "a b"`:                      {7, fmt.Sprintf(badName, "a b")},
		`"bridge": ".."`:                       {7, `bridge: ".." is no name of a network device`},
		`"bridge": "tdl0123456789ab"`:          {7, `bridge: "tdl0123456789ab" is named as the host's side of an endpoint is`},
		`"bridge": 5`:                          {7, `bridge: 5 is not a string`},
		`"isGateway": "yes"`:                   {7, `isGateway: "yes" is not true or false`},
		`"isDefaultGateway": 1`:                {7, `isDefaultGateway: 1 is not true or false`},
		`"forceAddress": []`:                   {7, `forceAddress: [] is not true or false`},
		`"hairpinMode": 0`:                     {7, `hairpinMode: 0 is not true or false`},
		`"promiscMode": 0`:                     {7, `promiscMode: 0 is not true or false`},
		`"macspoofchk": 0`:                     {7, `macspoofchk: 0 is not true or false`},
		`"isgateway": true`:                    {2, `isgateway: true is not supported: unknown key; did you mean "isGateway"?`},
		`"vlan": "10"`:                         {7, `vlan: "10" is not a whole number`},
		`"vlan": 4095`:                         {7, `vlan: 4095 is not 0, for none, or between 1 and 4094`},
		`"vlan": -1`:                           {7, `vlan: -1 is not 0, for none, or between 1 and 4094`},
		`"vlan": 10, "preserveDefaultVlan": 1`: {7, `preserveDefaultVlan: 1 is not true or false`},
		`"bridge": "abcdefghijklm", "vlan": 10`: {
			7, `vlan: the node's interface there would be called "abcdefghijklm.10", which is longer than 15 bytes`,
		},
		`"vlanTrunk": {"id": 42}`:                              {7, `vlanTrunk: {"id": 42} is not a list`},
		`"vlanTrunk": [42]`:                                    {7, `vlanTrunk[0]: 42 is not an object`},
		`"vlanTrunk": [{"id": 42}, {}]`:                        {7, `vlanTrunk[1].id: missing, as are minID and maxID`},
		`"vlanTrunk": [{"id": "42"}]`:                          {7, `vlanTrunk[0].id: "42" is not a whole number`},
		`"vlanTrunk": [{"id": 0}]`:                             {7, `vlanTrunk[0].id: 0 is not between 1 and 4094`},
		`"vlanTrunk": [{"minID": 1, "maxID":4095}]`:            {7, `vlanTrunk[0].maxID: 4095 is not between 1 and 4094`},
		`"vlanTrunk": [{"minID": 9, "maxID": 8}]`:              {7, `vlanTrunk[0].maxID: 8 is less than minID, 9`},
		`"vlanTrunk": [{"minID": 9}]`:                          {7, `vlanTrunk[0].maxID: missing, and minID is there`},
		`"vlanTrunk": [{"id": 3, "maxID": 9}]`:                 {7, `vlanTrunk[0].minID: missing, and maxID is there`},
		`"vlanTrunk": [{"vlan": 3}]`:                           {2, `vlanTrunk[0].vlan: 3 is not supported: unknown key`},
		`"vlan": 10, "vlanTrunk": [{"minID": 9, "maxID": 11}]`: {7, `vlanTrunk: VLAN 10 is what containers are in without a tag (vlan)`},
		`"enabledad": 1`:                                       {7, `enabledad: 1 is not true or false`},
		`"portIsolation": "yes"`:                               {7, `portIsolation: "yes" is not true or false`},
		`"disableContainerInterface":1`:                        {7, `disableContainerInterface: 1 is not true or false`},
		`"disableContainerInterface": true`:                    {7, `ipam: there are no addresses with disableContainerInterface`},
		`"hairpinMode": true, "promiscMode": true`:             {7, `promiscMode: true together with hairpinMode: a frame would come back to its sender twice`},
	}
	refused := func(t *testing.T, text string, want refusal) {
		t.Helper()
		_, err := parseConfig([]byte(text), true)
		if err == nil {
			t.Fatalf("%s was accepted", text)
		}
		answer := cniError(err)
		if diff := cmp.Diff(want, refusal{answer.Code, answer.Msg}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
		if _, err := parseConfig([]byte(text), false); err != nil { // for DEL
			t.Errorf("%s, not strict: %v", text, err)
		}
	}
	for keys, want := range tests {
		refused(t, `{"cniVersion": "1.1.0", "name": "n", "driver": "bridge", `+keys+`, "ipam": {"type": "static"}}`, want)
	}
	const without = "there are no addresses with ipam {}"
	for keys, key := range map[string]string{
		`"ipMasq": true`: "ipMasq", `"isDefaultGateway": true`: "isDefaultGateway", `"isGateway": true`: "isGateway", `"enabledad": true`: "enabledad",
		`"routes": [{"dst": "192.0.2.0/24", "scope": 253}]`:                            "routes",
		`"runtimeConfig": {"ips": ["10.0.0.7/24"]}`:                                    "runtimeConfig.ips",
		`"runtimeConfig": {"ipRanges": [[{"subnet": "10.0.0.0/24"}]]}`:                 "runtimeConfig.ipRanges",
		`"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}`: "runtimeConfig.portMappings",
	} {
		refused(t, `{"cniVersion": "1.1.0", "name": "n", "driver": "bridge", `+keys+`, "ipam": {}}`, refusal{7, key + ": " + without})
	}
	// With another driver, and with none named, each is of this one.
	for _, key := range bridgeKeys() {
		for _, driver := range []string{``, `"driver": "routed", `} {
			refused(t, `{"cniVersion": "1.1.0", "name": "n", `+driver+`"`+key+`": true, "ipam": {"type": "static"}}`,
				refusal{2, key + `: true is not supported: it is a key of the driver "bridge", and this network's is "routed"`})
		}
	}
	refused(t, `{"cniVersion": "1.1.0", "name": "n", "driver": "brige", "bridge": "br0", "ipam": {"type": "static"}}`,
		refusal{7, `driver: there is no driver "brige"; there are ["routed" "bridge" "macvlan"]`})
}
