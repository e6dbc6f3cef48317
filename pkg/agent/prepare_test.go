// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/tendril-net/tendril/internal/vlan"
	"github.com/tendril-net/tendril/pkg/api"
)

func TestPrepareRefuses(t *testing.T) {
	long := string(make([]byte, 300))
	tests := map[string]struct {
		change     func(*api.PrepareRequest)
		code, key  string
		value      string
		beforehand []api.PrepareRequest
	}{
		"container ID":       {change: func(r *api.PrepareRequest) { r.ContainerID = "../x" }, code: api.CodeInvalid, key: "containerID", value: "../x"},
		"no container ID":    {change: func(r *api.PrepareRequest) { r.ContainerID = "" }, code: api.CodeInvalid, key: "containerID"},
		"interface name":     {change: func(r *api.PrepareRequest) { r.IfName = "eth 0" }, code: api.CodeInvalid, key: "ifName", value: "eth 0"},
		"long interface":     {change: func(r *api.PrepareRequest) { r.IfName = "abcdefghijklmnop" }, code: api.CodeInvalid, key: "ifName", value: "abcdefghijklmnop"},
		"template interface": {change: func(r *api.PrepareRequest) { r.IfName = "eth%d" }, code: api.CodeInvalid, key: "ifName", value: "eth%d"},
		"interface all":      {change: func(r *api.PrepareRequest) { r.IfName = "all" }, code: api.CodeInvalid, key: "ifName", value: "all"},
		"network name":       {change: func(r *api.PrepareRequest) { r.Network.Name = "a/b" }, code: api.CodeInvalid, key: "name", value: "a/b"},
		"driver":             {change: func(r *api.PrepareRequest) { r.Network.Driver = "ipvlan" }, code: api.CodeInvalid, key: "driver", value: "ipvlan"},
		"vlan, routed":       {change: func(r *api.PrepareRequest) { r.Network.VLAN = 10 }, code: api.CodeInvalid, key: "vlan", value: "10"},
		"default, routed":    {change: func(r *api.PrepareRequest) { r.Network.PreserveDefaultVLAN = true }, code: api.CodeInvalid, key: "preserveDefaultVLAN", value: "true"},
		"vlan too high":      {change: func(r *api.PrepareRequest) { *r = bridged("c9"); r.Network.VLAN = 4095 }, code: api.CodeInvalid, key: "vlan", value: "4095"},
		"layer2, routed":     {change: func(r *api.PrepareRequest) { r.Network.Layer2 = true }, code: api.CodeInvalid, key: "layer2", value: "true"},
		"layer2 with ranges": {change: func(r *api.PrepareRequest) { *r = bridged("c9"); r.Network.Layer2 = true }, code: api.CodeInvalid, key: "ipam.ranges"},
		"layer2 with a port": {change: func(r *api.PrepareRequest) {
			*r = layer2("c9")
			r.Ports = []api.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}
		}, code: api.CodeInvalid, key: "ports", value: "8080"},
		"layer2 with an address": {change: func(r *api.PrepareRequest) {
			*r = layer2("c9")
			r.Addresses = []api.Address{{Address: netip.MustParsePrefix("10.0.0.7/24")}}
		}, code: api.CodeInvalid, key: "addresses", value: "10.0.0.7/24"},
		"layer2 with a wish": {change: func(r *api.PrepareRequest) {
			*r = layer2("c9")
			r.Wanted = []netip.Addr{netip.MustParseAddr("10.0.0.7")}
		}, code: api.CodeInvalid, key: "ips", value: "10.0.0.7"},
		"layer2, masqueraded":   {change: func(r *api.PrepareRequest) { *r = layer2("c9"); r.Network.IPMasq = true }, code: api.CodeInvalid, key: "ipMasq", value: "true"},
		"layer2 with a gateway": {change: func(r *api.PrepareRequest) { *r = layer2("c9"); r.Network.BridgeGateway = true }, code: api.CodeInvalid, key: "bridgeGateway", value: "true"},
		"trunk, routed":         {change: func(r *api.PrepareRequest) { r.Network.VLANTrunk = vlan.Set{{First: 7, Last: 8}} }, code: api.CodeInvalid, key: "vlanTrunk", value: "7-8"},
		"trunk too high": {change: func(r *api.PrepareRequest) {
			*r = bridged("c9")
			r.Network.VLANTrunk = vlan.Set{{First: 7, Last: 4095}}
		}, code: api.CodeInvalid, key: "vlanTrunk", value: "7-4095"},
		"trunk in disorder": {change: func(r *api.PrepareRequest) {
			*r = bridged("c9")
			r.Network.VLANTrunk = vlan.Set{{First: 7, Last: 8}, {First: 8, Last: 9}}
		}, code: api.CodeInvalid, key: "vlanTrunk", value: "7-8, 8-9"},
		"trunk with the vlan": {change: func(r *api.PrepareRequest) {
			*r = bridged("c9")
			r.Network.VLAN, r.Network.VLANTrunk = 10, vlan.Set{{First: 7, Last: 20}}
		}, code: api.CodeInvalid, key: "vlanTrunk", value: "10"},
		"vlan's name": {change: func(r *api.PrepareRequest) {
			*r = bridged("c9")
			r.Network.Bridge, r.Network.VLAN = "abcdefghijklm", 10
		}, code: api.CodeInvalid, key: "vlan", value: "10"},
		"bridge, routed": {change: func(r *api.PrepareRequest) { r.Network.Bridge = "br0" }, code: api.CodeInvalid, key: "bridge", value: "br0"},
		"force, routed":  {change: func(r *api.PrepareRequest) { r.Network.ForceAddress = true }, code: api.CodeInvalid, key: "forceAddress", value: "true"},
		"no bridge":      {change: func(r *api.PrepareRequest) { *r = bridged("c9"); r.Network.Bridge = "" }, code: api.CodeInvalid, key: "bridge"},
		"bridge's name":  {change: func(r *api.PrepareRequest) { *r = bridged("c9"); r.Network.Bridge = "br/0" }, code: api.CodeInvalid, key: "bridge", value: "br/0"},
		"bridge like an endpoint": {
			change: func(r *api.PrepareRequest) { *r = bridged("c9"); r.Network.Bridge = "tdl0123456789ab" },
			code:   api.CodeInvalid, key: "bridge", value: "tdl0123456789ab",
		},
		"no MAC of the bridge": {change: func(r *api.PrepareRequest) { *r = bridged("c9"); r.HostMAC = "" }, code: api.CodeInvalid, key: "hostMAC"},
		"group MAC of the bridge": {
			change: func(r *api.PrepareRequest) { *r = bridged("c9"); r.HostMAC = "33:33:00:00:00:01" },
			code:   api.CodeInvalid, key: "hostMAC", value: "33:33:00:00:00:01",
		},
		"relative namespace": {change: func(r *api.PrepareRequest) { r.NetNS = "netns/x" }, code: api.CodeInvalid, key: "netns", value: "netns/x"},
		"neither ranges nor addresses": {
			change: func(r *api.PrepareRequest) { r.Network.Ranges = nil }, code: api.CodeInvalid, key: "ipam.ranges",
		},
		"ranges and addresses": {
			change: func(r *api.PrepareRequest) { r.Addresses = delegated("c", "192.0.2.1/24").Addresses },
			code:   api.CodeInvalid, key: "addresses", value: "192.0.2.1/24",
		},
		"start outside of its subnet": {
			change: func(r *api.PrepareRequest) {
				r.Network.Ranges = []api.RangeSet{{{Subnet: netip.MustParsePrefix("10.0.0.0/24"), RangeStart: netip.MustParseAddr("10.0.1.1")}}}
			},
			code: api.CodeInvalid, key: "ipam.ranges[0][0].rangeStart", value: "10.0.1.1",
		},
		"empty range set": {
			change: func(r *api.PrepareRequest) { r.Network.Ranges = []api.RangeSet{{}} },
			code:   api.CodeInvalid, key: "ipam.ranges[0]",
		},
		"wanted outside of the ranges": {
			change: func(r *api.PrepareRequest) { r.Wanted = []netip.Addr{netip.MustParseAddr("192.0.2.1")} },
			code:   api.CodeInvalid, key: "ips", value: "192.0.2.1",
		},
		"more wanted than range sets": {
			change: func(r *api.PrepareRequest) {
				one := netip.MustParseAddr("10.10.0.9")
				r.Wanted = []netip.Addr{one, one.Next(), one.Next().Next()}
			},
			code: api.CodeInvalid, key: "ips", value: "10.10.0.9,10.10.0.10,10.10.0.11",
		},
		"wanted and taken": {
			beforehand: []api.PrepareRequest{request("c0")},
			change:     func(r *api.PrepareRequest) { r.Wanted = []netip.Addr{netip.MustParseAddr("10.10.0.2")} },
			code:       api.CodeConflict, key: "ips", value: "10.10.0.2",
		},
		"ranges of another network": {
			beforehand: []api.PrepareRequest{request("c0")},
			change:     func(r *api.PrepareRequest) { r.Network.Name = "other" },
			code:       api.CodeConflict, key: "ipam.ranges",
		},
		"exhausted": {
			beforehand: []api.PrepareRequest{tiny("c0"), tiny("c1")},
			change:     func(r *api.PrepareRequest) { r.Network = tiny("c2").Network },
			code:       api.CodeExhausted, key: "ipam.ranges",
		},
		"address of another's": {
			beforehand: []api.PrepareRequest{request("c0")},
			change:     func(r *api.PrepareRequest) { *r = delegated("c9", "10.10.0.2/16") },
			code:       api.CodeConflict, key: "addresses", value: "10.10.0.2",
		},
		"multicast address": {change: func(r *api.PrepareRequest) { *r = delegated("c9", "224.0.0.1/24") }, code: api.CodeInvalid, key: "addresses", value: "224.0.0.1/24"},
		"reserved address":  {change: func(r *api.PrepareRequest) { *r = delegated("c9", "240.0.0.1/24") }, code: api.CodeInvalid, key: "addresses", value: "240.0.0.1/24"},
		"multicast gateway": {
			change: func(r *api.PrepareRequest) {
				*r = delegated("c9", "198.51.100.9/24")
				r.Addresses[0].Gateway = netip.MustParseAddr("224.0.0.1")
			},
			code: api.CodeInvalid, key: "addresses", value: "198.51.100.9/24",
		},
		"mapped address":         {change: func(r *api.PrepareRequest) { *r = delegated("c9", "::ffff:10.0.0.1/120") }, code: api.CodeInvalid, key: "addresses", value: "::ffff:10.0.0.1/120"},
		"MAC of a group":         {change: func(r *api.PrepareRequest) { r.MAC = "01:00:5e:00:00:01" }, code: api.CodeInvalid, key: "mac", value: "01:00:5e:00:00:01"},
		"MAC of 8 bytes":         {change: func(r *api.PrepareRequest) { r.HostMAC = "02:00:00:00:00:00:00:01" }, code: api.CodeInvalid, key: "hostMAC", value: "02:00:00:00:00:00:00:01"},
		"MTU too small for v6":   {change: func(r *api.PrepareRequest) { r.Network.MTU = 1279 }, code: api.CodeInvalid, key: "mtu", value: "1279"},
		"MTU too large":          {change: func(r *api.PrepareRequest) { r.Network.MTU = 65536 }, code: api.CodeInvalid, key: "mtu", value: "65536"},
		"label that is too long": {change: func(r *api.PrepareRequest) { r.Labels = map[string]string{"a": long} }, code: api.CodeInvalid, key: "labels", value: "a"},
		"attachment that is ready": {
			beforehand: []api.PrepareRequest{request("c9")},
			code:       api.CodeConflict, key: "ifName", value: "eth0",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.boot(t)
			for _, req := range test.beforehand {
				w.mustAdd(t, s, req)
			}
			before := w.remains(t, s)
			req := request("c9")
			if test.change != nil {
				test.change(&req)
			}
			_, err := s.Prepare(ctx, req)
			fault := faultOf(t, err, test.code)
			if fault.Key != test.key || fault.Value != test.value {
				t.Errorf("key %q value %q, want %q %q (%v)", fault.Key, fault.Value, test.key, test.value, err)
			}
			w.mustRemain(t, s, before) // and nothing has changed
			// Nor is a number lost.
			next := w.mustAdd(t, s, delegated("next", "198.51.100.1/32"))
			if want := uint16(len(test.beforehand) + 1); next.ID != want {
				t.Errorf("next endpoint has number %d, want %d", next.ID, want)
			}
		})
	}
}

// A link-local next hop is common where another plugin leases.
func TestPrepareLinkLocalGateway(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	for address, gateway := range map[string]string{"198.51.100.9/32": "169.254.1.1", "2001:db8::9/128": "fe80::1"} {
		req := delegated("c"+address[:1], address)
		req.Addresses[0].Gateway = netip.MustParseAddr(gateway)
		if got := w.mustAdd(t, s, req).Addresses[0].Gateway.String(); got != gateway {
			t.Errorf("%s has gateway %s, want %s", address, got, gateway)
		}
	}
}

// tiny is a request to a network of two addresses.
func tiny(container string) api.PrepareRequest {
	req := request(container)
	req.Network.Name = "tiny"
	req.Network.Ranges = []api.RangeSet{{{
		Subnet: netip.MustParsePrefix("10.20.0.0/24"), RangeStart: netip.MustParseAddr("10.20.0.8"), RangeEnd: netip.MustParseAddr("10.20.0.9"),
	}}}
	return req
}

func TestPrepareAfterUnfinishedADD(t *testing.T) {
	for name, first := range map[string]api.PrepareRequest{"leased": request("c1"), "delegated": delegated("c1", "192.0.2.7/24")} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.boot(t)
			old, err := s.Prepare(ctx, first)
			must(t, err)
			w.wire(old)
			if _, err := s.Prepare(ctx, first); err != nil {
				t.Fatal(err)
			}
			// A plugin with another IPAM made its links before it asked.
			_, err = w.Link(old.HostIfName)
			if kept := err == nil; kept != (name == "delegated") {
				t.Errorf("links kept: %v", kept)
			}
			if got := w.remains(t, s).Endpoints; len(got) != 1 {
				t.Errorf("endpoints %v, want one", got)
			}
		})
	}
}

func TestPrepareUndoneWhenTheNodeRefuses(t *testing.T) {
	for _, call := range []string{"AddUnreachable", "ReconcileExcludes", "ReservePorts"} {
		t.Run(call, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.boot(t)
			w.fail[call] = errors.New("refused")
			req := withPorts(request("c1"), mapped("", 8080, 80, "tcp"))
			if _, err := s.Prepare(ctx, req); !errors.Is(err, w.fail[call]) {
				t.Fatalf("error %v", err)
			}
			delete(w.fail, call)
			must(t, s.purge())
			s.tidy()
			w.mustRemain(t, s, nothing())
			w.mustAdd(t, s, req)
		})
	}
}
