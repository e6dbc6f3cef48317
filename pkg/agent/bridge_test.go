// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/vlan"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/uplink"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// The life of an endpoint on a bridge. Of what the node knows of a routed one's subnet it
// has the excludes of the masquerade, and no unreachable route.
func TestLifeOfABridgedEndpoint(t *testing.T) {
	w := newWorld(t)
	bridge := w.addBridge("br0")
	s, stop := w.boot(t)
	prepared, err := s.Prepare(ctx, bridged("c1"))
	must(t, err)
	want := api.Endpoint{
		Attachment: api.Attachment{ContainerID: "c1", IfName: "eth0"}, ID: 1, Network: "lan", Driver: "bridge", Bridge: "br0",
		NetNS: "/run/netns/c1", State: api.Pending, HostIfName: prepared.HostIfName, MAC: prepared.MAC, HostMAC: bridgeMAC,
		MTU: 1500, Masquerade: true, Created: w.clock,
		Addresses: []api.Address{
			{Address: netip.MustParsePrefix("10.30.0.2/24"), Gateway: netip.MustParseAddr("10.30.0.1")},
			{Address: netip.MustParsePrefix("fd00:30::2/64"), Gateway: netip.MustParseAddr("fd00:30::1")},
		},
	}
	if d := cmp.Diff(want, prepared, equate...); d != "" {
		t.Errorf("prepared (-want +got):\n%s", d)
	}
	link := w.wire(prepared)
	ready, err := s.Attach(ctx, prepared.Attachment, api.AttachRequest{HostIfIndex: link.Index})
	must(t, err)
	want.State, want.HostIfIndex = api.Ready, link.Index
	if d := cmp.Diff(want, ready, equate...); d != "" {
		t.Errorf("attached (-want +got):\n%s", d)
	}
	mac, _ := net.ParseMAC(prepared.MAC)
	served := map[uint16]datapath.Endpoint{1: {
		ID: 1, IfIndex: link.Index, IfName: link.Name, MAC: mac, HostMAC: bridge.MAC, MTU: 1500, Masquerade: true, Bridge: bridge.Index,
		Addresses: []netip.Addr{netip.MustParseAddr("10.30.0.2"), netip.MustParseAddr("fd00:30::2")},
	}}
	mustServe := func(what string) {
		t.Helper()
		if d := cmp.Diff(served, w.attached, equate...); d != "" {
			t.Errorf("datapath %s (-want +got):\n%s", what, d)
		}
	}
	mustServe("at first")
	must(t, s.Check(ctx, ready.Attachment))
	present := remains{
		Links: []string{link.Name}, Attached: []uint16{1}, Leases: 2, Endpoints: []api.Attachment{ready.Attachment},
		Excludes: []netip.Prefix{netip.MustParsePrefix("10.30.0.0/24"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("fd00:30::/64")},
	}
	w.mustRemain(t, s, present)

	// The next agent knows the bridge again.
	stop()
	w.attached = make(map[uint16]datapath.Endpoint)
	s, stop = w.boot(t)
	mustServe("of the next agent")
	w.mustRemain(t, s, present)

	// A bridge that somebody has made anew: the agent makes the device its port, and tells
	// the datapath.
	again := w.addBridge("br0")
	link.Master = 0
	w.links[link.Name] = link
	wantMessage(t, s.Check(ctx, ready.Attachment), "device "+link.Name+" is no port of bridge br0")
	s.tidy()
	one := served[1]
	one.Bridge = again.Index
	served[1] = one
	mustServe("of a new bridge")
	must(t, s.Check(ctx, ready.Attachment))

	// An agent that starts without the bridge, and cannot make it, serves the container all
	// the same: its device is a port of none.
	stop()
	delete(w.bridges, "br0")
	link.Master = 0
	w.links[link.Name] = link
	w.attached = make(map[uint16]datapath.Endpoint)
	w.fail["RepairBridge"] = errors.New("refused")
	s, _ = w.boot(t)
	one.Bridge = link.Index
	served[1] = one
	mustServe("without its bridge")
	wantMessage(t, s.Check(ctx, ready.Attachment), "device br0 is gone, and endpoints are to be its ports")
	w.mustRemain(t, s, present)
}

// A trunk is the datapath's to let through, and the bridge's to keep apart; the next agent knows it.
func TestEndpointWithATrunk(t *testing.T) {
	w := newWorld(t)
	w.addBridge("br0")
	s, stop := w.boot(t)
	trunk := vlan.Set{{First: 7, Last: 9}, {First: 20, Last: 20}}
	req := bridged("c1")
	req.Network.VLANTrunk = trunk
	e := w.mustAdd(t, s, req)
	plain := w.mustAdd(t, s, bridged("c2"))
	for range 2 {
		got := []vlan.Set{e.VLANTrunk, w.attached[e.ID].Trunk, plain.VLANTrunk, w.attached[plain.ID].Trunk}
		if d := cmp.Diff([]vlan.Set{trunk, trunk, nil, nil}, got); d != "" {
			t.Errorf("trunks (-want +got):\n%s", d)
		}
		w.repairs = nil
		s.tidy()
		if len(w.repairs) != 1 || !w.repairs[0].bridge.Filters {
			t.Errorf("repairs: %+v", w.repairs)
		}
		stop()
		w.attached = make(map[uint16]datapath.Endpoint)
		s, stop = w.boot(t)
	}
	link := w.links[e.HostIfName]
	link.Master = 0
	w.links[e.HostIfName] = link
	s.tidy()
	if d := cmp.Diff(wiring.Bridged{Bridge: "br0", Trunk: trunk, MTU: 1500}, w.ports[e.HostIfName]); d != "" {
		t.Errorf("port (-want +got):\n%s", d)
	}
}

// layer2 is a request for an endpoint without addresses.
func layer2(id string) api.PrepareRequest {
	req := bridged(id)
	req.Network.Name, req.Network.Layer2, req.Network.IPMasq, req.Network.Ranges = "wire", true, false, nil
	return req
}

// An endpoint without addresses is served, known to the next agent, found by GC and freed.
func TestEndpointWithoutAddresses(t *testing.T) {
	w := newWorld(t)
	bridge := w.addBridge("br0")
	s, stop := w.boot(t)
	req := layer2("c1")
	req.Labels = map[string]string{"app": "vm"}
	e := w.mustAdd(t, s, req)
	served := map[uint16]datapath.Endpoint{e.ID: {
		ID: e.ID, IfIndex: e.HostIfIndex, IfName: e.HostIfName, MAC: parsedMAC(e.MAC), HostMAC: bridge.MAC, MTU: 1500, Bridge: bridge.Index, Layer2: true,
	}}
	for range 2 {
		if d := cmp.Diff(served, w.attached, equate...); d != "" {
			t.Errorf("datapath (-want +got):\n%s", d)
		}
		must(t, s.Check(ctx, e.Attachment))
		w.mustRemain(t, s, remains{Links: []string{e.HostIfName}, Attached: []uint16{e.ID}, Endpoints: []api.Attachment{e.Attachment}, Excludes: nothing().Excludes})
		stop()
		w.attached = make(map[uint16]datapath.Endpoint)
		s, stop = w.boot(t)
	}
	got, err := s.GC(ctx, api.GCRequest{Network: "wire", Valid: []api.Attachment{}})
	must(t, err)
	if d := cmp.Diff(api.GCResult{Freed: []api.Attachment{e.Attachment}}, got); d != "" {
		t.Errorf("GC (-want +got):\n%s", d)
	}
	w.mustRemain(t, s, remains{Excludes: nothing().Excludes, Draining: []uint16{e.ID}})
}

// In a VLAN the datapath knows who is on a link with whom by the node's interface there.
func TestEndpointInAVLAN(t *testing.T) {
	w := newWorld(t)
	bridge := w.addBridge("br0")
	addVLAN := func() HostLink {
		link := w.addBridge("br0.10")
		link.Bridge, link.VLAN, link.Lower = false, 10, bridge.Index
		w.bridges["br0.10"] = link
		return link
	}
	among := addVLAN()
	w.occupied = []Occupied{{Addr: netip.MustParseAddr("10.30.0.1"), Device: "br0.10"}}
	s, stop := w.boot(t)
	req := bridged("c1")
	req.Network.VLAN, req.Network.BridgeGateway = 10, true
	e := w.mustAdd(t, s, req)
	if e.Bridge != "br0" || e.VLAN != 10 {
		t.Errorf("the endpoint says bridge %q, VLAN %d", e.Bridge, e.VLAN)
	}
	at := func(what string, want int) {
		t.Helper()
		if got := w.attached[e.ID].Bridge; got != want {
			t.Errorf("%s: the datapath has it on a link with the ports of %d, want %d", what, got, want)
		}
	}
	at("at first", among.Index)
	must(t, s.Check(ctx, e.Attachment))
	want := []bridgeRepair{{
		bridge:   wiring.Bridge{Name: "br0", VLAN: 10, MAC: parsedMAC(bridgeMAC)},
		gateways: []netip.Prefix{netip.MustParsePrefix("10.30.0.1/24"), netip.MustParsePrefix("fd00:30::1/64")},
	}}
	w.repairs = nil
	s.tidy()
	if d := cmp.Diff(want, w.repairs, cmp.AllowUnexported(bridgeRepair{}), cmpopts.EquateComparable(netip.Prefix{})); d != "" {
		t.Errorf("repairs (-want +got):\n%s", d)
	}

	// The next agent, and an interface that was made anew.
	stop()
	w.attached = make(map[uint16]datapath.Endpoint)
	s, _ = w.boot(t)
	at("of the next agent", among.Index)
	among = addVLAN()
	s.tidy()
	at("of another interface", among.Index)

	// Without it, and with one of another number or bridge, it is on a link with nobody.
	for what, tamper := range map[string]func(){
		"device br0.10 is gone, which is the node's interface on bridge br0": func() { delete(w.bridges, "br0.10") },
		"device br0.10 is not VLAN 10 of bridge br0 with its MAC": func() {
			link := addVLAN()
			link.VLAN = 11
			w.bridges["br0.10"] = link
		},
		"device br0.10 is not VLAN 10 of bridge br0 with its MAC: lower": func() {
			link := addVLAN()
			link.Lower++
			w.bridges["br0.10"] = link
		},
		"device br0.10 is not VLAN 10 of bridge br0 with its MAC: MAC": func() {
			link := addVLAN()
			link.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 9}
			w.bridges["br0.10"] = link
		},
	} {
		tamper()
		s.tidy()
		at(what, e.HostIfIndex)
		message, _, _ := strings.Cut(what, ": ")
		wantMessage(t, s.Check(ctx, e.Attachment), message)
		second := req
		second.ContainerID = "c2"
		_, err := w.add(s, second)
		wantMessage(t, err, message)
	}
}

// What others took from bridges and ports is put back each minute; what cannot be is named.
func TestRepairOfBridges(t *testing.T) {
	w := newWorld(t)
	w.addBridge("br0")
	s, stop := w.boot(t)
	gateways := func(texts ...string) (all []netip.Prefix) {
		for _, text := range texts {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	mac, _ := net.ParseMAC(bridgeMAC)
	want := []bridgeRepair{
		{bridge: wiring.Bridge{Name: "br0", MAC: mac, Promisc: true}, gateways: gateways("10.30.0.1/24", "10.31.0.1/24", "fd00:30::1/64")},
	}
	first := w.mustAdd(t, s, bridged("c1")) // of a network without gateway
	one := bridged("c2")
	one.Network.BridgeGateway = true
	one.Network.Name, one.Network.Ranges = "wan", ranges(api.RangeSet{{Subnet: netip.MustParsePrefix("10.31.0.0/24")}})
	w.mustAdd(t, s, one)
	other := delegated("c3", "10.30.0.9/24")
	other.Network.Driver, other.Network.Bridge, other.HostMAC = "bridge", "br0", bridgeMAC
	other.Network.BridgeGateway, other.Network.Promisc = true, true
	other.Addresses = []api.Address{
		{Address: netip.MustParsePrefix("10.30.0.9/24"), Gateway: netip.MustParseAddr("10.30.0.1")},
		{Address: netip.MustParsePrefix("fd00:30::9/64"), Gateway: netip.MustParseAddr("fd00:30::1")},
	}
	w.mustAdd(t, s, other)
	w.mustAdd(t, s, request("c4"))
	judge := func(health api.Health) {
		t.Helper()
		if d := cmp.Diff(want, w.repairs, cmp.AllowUnexported(bridgeRepair{}), cmpopts.EquateComparable(netip.Prefix{})); d != "" {
			t.Errorf("repairs (-want +got):\n%s", d)
		}
		w.repairs = nil
		got, err := s.Health(ctx)
		must(t, err)
		if d := cmp.Diff(health, got); d != "" {
			t.Errorf("health (-want +got):\n%s", d)
		}
	}
	s.tidy()
	judge(api.Health{OK: true})

	w.fail["RepairBridge"] = errors.New("subnets overlap")
	w.fail["RepairPort"] = errors.New("it is another's port")
	s.tidy()
	judge(api.Health{Reasons: []string{
		"bridge devices: repair bridge br0: subnets overlap",
		"bridge ports: 3 cannot be repaired; the first: repair endpoint c1/eth0: it is another's port",
	}})
	health, err := s.NetworkStatus(ctx, one.Network) // an ADD has nothing to fear
	must(t, err)
	if d := cmp.Diff(api.Health{OK: true}, health); d != "" {
		t.Errorf("status of a network (-want +got):\n%s", d)
	}

	// The next agent does it at once.
	delete(w.fail, "RepairBridge")
	delete(w.fail, "RepairPort")
	stop()
	link := w.links[first.HostIfName]
	link.Master = 0
	w.links[first.HostIfName] = link
	s, _ = w.boot(t)
	judge(api.Health{OK: true})
	must(t, s.Check(ctx, first.Attachment))

	// Who has no device any more has no say.
	for _, container := range []string{"c1", "c2", "c3"} {
		s.LinkGone(w.links[api.HostIfName(api.Attachment{ContainerID: container, IfName: "eth0"})].Index)
	}
	want = nil
	s.tidy()
	judge(api.Health{OK: true})
}

func wantMessage(t *testing.T, err error, want string) {
	t.Helper()
	if got := faultOf(t, err, api.CodeMismatch).Message; got != want {
		t.Errorf("mismatch %q, want %q", got, want)
	}
}

// What CHECK finds of a bridge, and ADD: its half is undone.
func TestBridgeIsNotAsItWas(t *testing.T) {
	for name, test := range map[string]struct {
		tamper func(w *world, port HostLink)
		// add is what a second ADD is told, check what a CHECK of the first is; empty for nothing.
		add, check string
	}{
		"gone": {
			func(w *world, _ HostLink) { delete(w.bridges, "br0") },
			"device br0 is gone, and endpoints are to be its ports", "device br0 is gone, and endpoints are to be its ports",
		},
		"no bridge": {
			func(w *world, _ HostLink) { w.bridges["br0"] = HostLink{Name: "br0", Index: 7} },
			"device br0 is no bridge", "device br0 is no bridge",
		},
		"another MAC": {
			func(w *world, _ HostLink) {
				changed := w.bridges["br0"]
				changed.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 9}
				w.bridges["br0"] = changed
			},
			"", "device br0 has MAC 02:00:00:00:00:09, not " + bridgeMAC,
		},
		"port that left": {
			func(w *world, port HostLink) {
				port.Master = 0
				w.links[port.Name] = port
			},
			"", "device " + api.HostIfName(bridged("c1").Attachment) + " is no port of bridge br0",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.addBridge("br0")
			s, _ := w.boot(t)
			e := w.mustAdd(t, s, bridged("c1"))
			test.tamper(w, w.links[e.HostIfName])
			wantMessage(t, s.Check(ctx, e.Attachment), test.check)
			_, err := w.add(s, bridged("c2"))
			if test.add == "" {
				must(t, err)
				return
			}
			wantMessage(t, err, test.add)
			if _, served := w.attached[2]; served {
				t.Error("the datapath serves an endpoint whose ADD has failed")
			}
		})
	}
}

// The bridge's own addresses are no fault of the ranges, as long as no container is
// leased one.
func TestRangesOfABridge(t *testing.T) {
	one := func(a, device, destination string) Occupied {
		o := Occupied{Addr: netip.MustParseAddr(a), Device: device}
		if destination != "" {
			o.Destination = netip.MustParsePrefix(destination)
		}
		return o
	}
	part := api.Range{
		Subnet: netip.MustParsePrefix("10.30.0.0/24"), RangeStart: netip.MustParseAddr("10.30.0.10"),
		RangeEnd: netip.MustParseAddr("10.30.0.20"), Gateway: netip.MustParseAddr("10.30.0.254"),
	}
	const invalid, conflict = api.CodeInvalid, api.CodeConflict
	for name, test := range map[string]struct {
		occupied []Occupied
		late     bool // the node gets it when the subnet was judged
		ranges   api.Range
		force    bool
		gateway  bool
		want     api.Error // empty: accepted
	}{
		"a router as the node's gateway": {occupied: []Occupied{one("10.30.0.254", "br0", "0.0.0.0/0")}, ranges: part, gateway: true, want: api.Error{
			Code: invalid, Key: "isGateway", Value: "true",
			Message: `isGateway "true": gateway 10.30.0.254 is the next hop of the node's route default by br0: the bridge cannot have it, too`,
		}},
		"its gateway, the node's": {occupied: []Occupied{one("10.30.0.1", "br0", "")}, ranges: subnet("10.30.0.0/24"), gateway: true},
		"its gateway":             {occupied: []Occupied{one("10.30.0.1", "br0", "")}, ranges: subnet("10.30.0.0/24")},
		"a router as gateway":     {occupied: []Occupied{one("10.30.0.254", "br0", "0.0.0.0/0")}, ranges: part},
		"outside of the leases":   {occupied: []Occupied{one("10.30.0.9", "br0", ""), one("10.30.0.21", "br0", "10.99.0.0/16")}, ranges: part},
		"to be leased": {occupied: []Occupied{one("10.30.0.10", "br0", "")}, ranges: part, want: api.Error{
			Code: invalid, Key: "ipam.ranges[0][0].subnet", Value: "10.30.0.0/24",
			Message: "subnet 10.30.0.0/24 holds 10.30.0.10, an address of this node on br0",
		}},
		"a router to be leased": {occupied: []Occupied{one("10.30.0.20", "br0", "0.0.0.0/0")}, ranges: part, force: true, want: api.Error{
			Code: invalid, Key: "ipam.ranges[0][0].subnet", Value: "10.30.0.0/24",
			Message: "subnet 10.30.0.0/24 holds 10.30.0.20, the next hop of the node's route default by br0",
		}},
		"to be leased, and taken away": {occupied: []Occupied{one("10.30.0.10", "br0", "")}, ranges: part, force: true},
		"to be leased, and late": {occupied: []Occupied{one("10.30.0.11", "br0", "")}, late: true, ranges: part, want: api.Error{
			Code: conflict, Key: "ipam.ranges", Value: "10.30.0.11",
			Message: "address 10.30.0.11 of the ranges is an address of this node on br0: take it from the node, or out of the ranges",
		}},
		"to be leased, late, and taken away": {occupied: []Occupied{one("10.30.0.11", "br0", "")}, late: true, ranges: part, force: true},
		"another device's": {occupied: []Occupied{one("10.30.0.1", "br1", "")}, ranges: subnet("10.30.0.0/24"), force: true, want: api.Error{
			Code: invalid, Key: "ipam.ranges[0][0].subnet", Value: "10.30.0.0/24",
			Message: "subnet 10.30.0.0/24 holds 10.30.0.1, an address of this node on br1",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.addBridge("br0")
			s, _ := w.boot(t)
			req := bridged("c2")
			req.Network.Ranges, req.Network.ForceAddress, req.Network.BridgeGateway = ranges(api.RangeSet{test.ranges}), test.force, test.gateway
			if test.late {
				first := req
				first.ContainerID = "c1"
				w.mustAdd(t, s, first)
			}
			w.occupied = test.occupied
			_, err := w.add(s, req)
			if test.want.Code == "" {
				must(t, err)
				return
			}
			if d := cmp.Diff(test.want, faultOf(t, err, test.want.Code)); d != "" {
				t.Errorf("error (-want +got):\n%s", d)
			}
		})
	}
}

// The gateway of a bridge's containers may be a router on it: where mapped ports are
// reached, the node itself says.
func TestHostAddressesOfABridge(t *testing.T) {
	w := newWorld(t)
	w.addBridge("br0")
	w.own = addrs("192.0.2.1")
	s, _ := w.boot(t)
	w.mustAdd(t, s, bridged("c1"))
	w.mustBeTold(t, "192.0.2.1")
	w.own = addrs("192.0.2.1", "10.30.0.1") // the plugin gave it the bridge, before it attached
	w.mustAdd(t, s, bridged("c2"))
	w.mustBeTold(t, "10.30.0.1", "192.0.2.1")
	w.mustAdd(t, s, request("c3"))
	w.mustBeTold(t, "10.10.0.1", "10.30.0.1", "192.0.2.1", "fd00:10::1")
}

// A bridge may be an uplink and have endpoints, whichever it is first.
func TestBridgeAndUplink(t *testing.T) {
	up := uplink.Uplink{Name: "br0", IfIndex: 5, MTU: 1500}
	other := uplink.Uplink{Name: "eth0", IfIndex: 2, MTU: 1500}
	w := newWorld(t)
	w.addBridge("br0")
	s, _ := w.boot(t, up)
	health, err := s.NetworkStatus(ctx, bridged("c1").Network)
	must(t, err)
	if d := cmp.Diff(api.Health{OK: true}, health); d != "" {
		t.Errorf("status (-want +got):\n%s", d)
	}
	req := bridged("c1")
	req.Network.VLANTrunk = vlan.Set{{First: 7, Last: 9}}
	w.mustAdd(t, s, req)
	w.mustAdd(t, s, request("c2"))
	force := bridged("c3")
	force.Network.BridgeGateway, force.Network.ForceAddress = true, true
	wanted := api.Error{
		Code: api.CodeInvalid, Key: "forceAddress", Value: "true",
		Message: `forceAddress "true": br0 is an uplink of the node, which may lose its own address by that, and its routes`,
	}
	_, err = s.Prepare(ctx, force)
	if d := cmp.Diff(wanted, faultOf(t, err, wanted.Code)); d != "" {
		t.Errorf("prepare (-want +got):\n%s", d)
	}
	_, err = s.NetworkStatus(ctx, force.Network)
	if d := cmp.Diff(wanted, faultOf(t, err, wanted.Code)); d != "" {
		t.Errorf("status (-want +got):\n%s", d)
	}
	for _, uplinks := range [][]uplink.Uplink{{up}, {other}, {other, up}} {
		s.SetUplinks(uplink.Found{Uplinks: uplinks})
		var want []datapath.Uplink
		for _, u := range uplinks {
			want = append(want, datapath.Uplink(u))
		}
		if d := cmp.Diff(want, w.uplinks, equate...); d != "" {
			t.Errorf("uplinks (-want +got):\n%s", d)
		}
		// The subnet of an uplink is somebody's; of another bridge it is the node's own.
		own, late := "10.10.0.0/24 172.16.0.0/12 fd00:10::/64", "10.10.0.0/24 172.16.0.0/12 fd00:10::/64"
		if uplinks[len(uplinks)-1].Name != "br0" {
			late = "10.10.0.0/24 10.30.0.0/24 172.16.0.0/12 fd00:10::/64 fd00:30::/64"
		}
		for _, want := range []string{own, late} { // a former one is served for a while
			if got := strings.Trim(fmt.Sprint(w.excludes), "[]"); got != want {
				t.Errorf("excludes: got %s, want %s", got, want)
			}
			w.clock = w.clock.Add(datapath.Linger + 1)
			s.tidy()
		}
		got, err := s.Health(ctx)
		must(t, err)
		if d := cmp.Diff(api.Health{OK: true}, got); d != "" {
			t.Errorf("health (-want +got):\n%s", d)
		}
	}
}

// TestHostLink asks a real kernel.
func TestHostLink(t *testing.T) {
	node := nstest.New(t, "node")
	node.Run(t, "ip", "link", "add", "br0", "address", bridgeMAC, "type", "bridge")
	node.Run(t, "ip", "link", "add", "port", "address", "02:00:00:00:00:07", "type", "veth", "peer", "name", "other")
	node.Run(t, "ip", "link", "set", "port", "master", "br0")
	h, err := OpenHost(node.Path)
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	bridge, err := h.Link("br0")
	must(t, err)
	mac, _ := net.ParseMAC(bridgeMAC)
	if d := cmp.Diff(HostLink{Name: "br0", Index: bridge.Index, MAC: mac, Bridge: true, Ethernet: true, MTU: 1500}, bridge); d != "" {
		t.Errorf("bridge (-want +got):\n%s", d)
	}
	port, err := h.Link("port")
	must(t, err)
	if d := cmp.Diff(HostLink{Name: "port", Index: port.Index, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}, Master: bridge.Index, Ethernet: true, MTU: 1500}, port); d != "" {
		t.Errorf("port (-want +got):\n%s", d)
	}
}

// Of two gateways of one subnet the newest counts, and one that somebody else has by now is
// left alone.
func TestRepairOfGateways(t *testing.T) {
	w := newWorld(t)
	w.addBridge("br0")
	s, _ := w.boot(t)
	for _, one := range []struct{ container, address, gateway string }{
		{"c1", "10.30.0.9/24", "10.30.0.1"},
		{"c2", "10.30.0.8/24", "10.30.0.254"}, // forceAddress has replaced the other
		{"c3", "10.31.0.1/24", ""},
		{"c4", "10.31.0.9/24", "10.31.0.1"},
		{"c5", "10.32.0.9/24", "10.32.0.1"},
		{"c6", "10.33.0.9/24", "10.33.0.1"},
		{"c7", "10.34.0.9/24", "10.34.0.1"},
	} {
		req := delegated(one.container, one.address)
		req.Network.Driver, req.Network.Bridge, req.HostMAC, req.Network.BridgeGateway = "bridge", "br0", bridgeMAC, true
		if one.gateway != "" {
			req.Addresses[0].Gateway = netip.MustParseAddr(one.gateway)
		}
		w.mustAdd(t, s, req)
	}
	w.occupied = []Occupied{
		{Addr: netip.MustParseAddr("10.32.0.1"), Device: "eth1"},
		{Addr: netip.MustParseAddr("10.33.0.1"), Device: "br0"},
		{Addr: netip.MustParseAddr("10.34.0.1"), Device: "br0", Destination: netip.MustParsePrefix("0.0.0.0/0")}, // a router's by now
	}
	s.tidy()
	var got []netip.Prefix
	for _, r := range w.repairs {
		got = append(got, r.gateways...)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.30.0.254/24"), netip.MustParsePrefix("10.33.0.1/24")}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); d != "" {
		t.Errorf("gateways (-want +got):\n%s", d)
	}
	health, err := s.Health(ctx)
	must(t, err)
	wantHealth := api.Health{Reasons: []string{
		"bridge devices: repair bridge br0: gateway 10.31.0.1 is the address of container c3\ngateway 10.32.0.1 is an address of this node on eth1\ngateway 10.34.0.1 is the next hop of the node's route default by br0",
	}}
	if d := cmp.Diff(wantHealth, health); d != "" {
		t.Errorf("health (-want +got):\n%s", d)
	}
}
