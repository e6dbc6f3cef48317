// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// The life of a macvlan device whose parent is in the container: the node knows no device of either.
func TestLifeOfAChildInside(t *testing.T) {
	w := newWorld(t)
	s, stop := w.boot(t)
	prepared, err := s.Prepare(ctx, inside("c1"))
	must(t, err)
	want := api.Endpoint{
		Attachment: api.Attachment{ContainerID: "c1", IfName: "eth0"}, ID: 1, Network: "lan", Driver: "macvlan",
		Parent: "eth1", InContainer: true, Mode: "bridge",
		NetNS: "/run/netns/c1", State: api.Pending, MAC: prepared.MAC, HostMAC: prepared.MAC, MTU: 1450, Created: w.clock,
		Addresses: []api.Address{
			{Address: netip.MustParsePrefix("10.40.0.2/24"), Gateway: netip.MustParseAddr("10.40.0.1")},
			{Address: netip.MustParsePrefix("fd00:40::2/64"), Gateway: netip.MustParseAddr("fd00:40::1")},
		},
	}
	if d := cmp.Diff(want, prepared, equate...); d != "" {
		t.Errorf("prepared (-want +got):\n%s", d)
	}
	device := w.bear(prepared)
	ready, err := s.Attach(ctx, prepared.Attachment, api.AttachRequest{})
	must(t, err)
	want.State = api.Ready
	want.Programs = []api.Program{{Name: "in", ID: 7}, {Name: "out", ID: 8, OnParent: true, Egress: true}}
	if d := cmp.Diff(want, ready, equate...); d != "" {
		t.Errorf("attached (-want +got):\n%s", d)
	}
	served := datapath.Endpoint{
		ID: 1, IfIndex: datapath.ChildIndex(1), IfName: "eth1", MAC: parsedMAC(prepared.MAC), HostMAC: parsedMAC(prepared.MAC), MTU: 1450,
		Addresses: []netip.Addr{netip.MustParseAddr("10.40.0.2"), netip.MustParseAddr("fd00:40::2")},
		Child:     &datapath.Child{Parent: wiring.IndexInContainer(1), InContainer: true, NetNS: uint32(device.NetNS)},
	}
	w.mustServe(t, "at first", served)
	must(t, s.Check(ctx, ready.Attachment))

	stop()
	w.attached = make(map[uint16]datapath.Endpoint)
	s, _ = w.boot(t)
	w.mustServe(t, "of the next agent", served)
	got, err := s.Endpoint(ctx, ready.Attachment)
	must(t, err)
	if d := cmp.Diff(want, got, equate...); d != "" {
		t.Errorf("endpoint (-want +got):\n%s", d)
	}
	changeChild(func(c *wiring.ChildLink) { c.Mode = "vepa" })(w)
	wantMessage(t, s.Check(ctx, ready.Attachment), "device eth0 in /run/netns/c1 has mode vepa, not bridge")
	changeChild(func(c *wiring.ChildLink) { c.Mode = "bridge"; c.Index = wiring.IndexInContainer(2) })(w)
	wantMessage(t, s.Check(ctx, ready.Attachment), "device eth0 in /run/netns/c1 is not the child that ADD has made of eth1")
	changeChild(func(c *wiring.ChildLink) { c.Index = wiring.IndexInContainer(1) })(w)

	// Nobody hears of its end.
	delete(w.children, at)
	delete(w.netns, "/run/netns/c1")
	s.LinksChanged()
	if got, err := s.Endpoint(ctx, ready.Attachment); err != nil || got.State != api.Detached {
		t.Errorf("without its device: %v, %v", got.State, err)
	}
	health, err := s.Health(ctx)
	must(t, err)
	if d := cmp.Diff(api.Health{OK: true}, health, equate...); d != "" {
		t.Errorf("health (-want +got):\n%s", d)
	}
	must(t, s.Delete(ctx, ready.Attachment))
	must(t, s.purge())
	w.mustRemain(t, s, nothing())
}

func TestChildInsideRefused(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	for want, change := range map[string]func(*api.PrepareRequest){
		`master "": is missing`: func(r *api.PrepareRequest) { r.Network.Parent = "" },
		`master "a/b": must not hold / : white space or control characters`:                 func(r *api.PrepareRequest) { r.Network.Parent = "a/b" },
		`vlan "5": cannot be with linkInContainer: the master is in the container`:          func(r *api.PrepareRequest) { r.Network.VLAN = 5 },
		`hostAccess "true": cannot be with linkInContainer: the master is in the container`: func(r *api.PrepareRequest) { r.Network.HostAccess = true },
		`mtu "0": is not known, as that of a device in the container`:                       func(r *api.PrepareRequest) { r.Network.MTU = 0 },
		`mac "": is missing: with mode passthru it is that of the device in the container`:  func(r *api.PrepareRequest) { r.Network.Mode = "passthru" },
		`ports "80": cannot lead to a child of a device in its container, which the node does not reach by itself`: func(r *api.PrepareRequest) {
			r.Ports = []api.PortMapping{{HostPort: 80, ContainerPort: 80, Protocol: "tcp"}}
		},
		`inContainer "true": is of another driver`: func(r *api.PrepareRequest) {
			*r = request("c1")
			r.Network.InContainer = true
		},
	} {
		req := inside("c1")
		change(&req)
		_, err := s.Prepare(ctx, req)
		wantCode(t, err, api.CodeInvalid)
		if got := fmt.Sprint(err); got != want {
			t.Errorf("error %s, want %s", got, want)
		}
	}
	w.mustRemain(t, s, nothing())
}
