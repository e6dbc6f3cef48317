// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/uplink"
)

func TestMacvlanRefuses(t *testing.T) {
	const invalid, conflict = api.CodeInvalid, api.CodeConflict
	tests := map[string]struct {
		node       func(*world)
		beforehand []func(*api.PrepareRequest)
		change     func(*api.PrepareRequest)
		want       api.Error
	}{
		"no name": {
			change: func(r *api.PrepareRequest) { r.Network.Parent = "" },
			want:   api.Error{Code: invalid, Key: "master", Message: `master "": is missing`},
		},
		"no device": {
			change: func(r *api.PrepareRequest) { r.Network.Parent = "lan9" },
			want:   api.Error{Code: invalid, Key: "master", Value: "lan9", Message: `master "lan9": is no device of the node`},
		},
		"no device for a VLAN": {
			change: func(r *api.PrepareRequest) { r.Network.Parent = "lan9.50" },
			want: api.Error{
				Code: invalid, Key: "master", Value: "lan9.50",
				Message: `master "lan9.50": is no device of the node, nor is lan9, of which it would be a VLAN`,
			},
		},
		"no number of a VLAN": {
			change: func(r *api.PrepareRequest) { r.Network.Parent = "lan0.4095" },
			want:   api.Error{Code: invalid, Key: "master", Value: "lan0.4095", Message: `master "lan0.4095": is no device of the node`},
		},
		"an endpoint's": {
			change: func(r *api.PrepareRequest) { r.Network.Parent = "tdl0123456789ab" },
			want: api.Error{
				Code: invalid, Key: "master", Value: "tdl0123456789ab",
				Message: `master "tdl0123456789ab": is named as the host's side of an endpoint is`,
			},
		},
		"no Ethernet": {
			node: func(w *world) { w.change("lan0", func(l *HostLink) { l.Ethernet = false }) },
			want: api.Error{Code: invalid, Key: "master", Value: "lan0", Message: `master "lan0": is no Ethernet device`},
		},
		"macvlan": {
			node: func(w *world) { w.change("lan0", func(l *HostLink) { l.Macvlan = true }) },
			want: api.Error{
				Code: invalid, Key: "master", Value: "lan0",
				Message: `master "lan0": is a macvlan device itself: name the device that it rides on`,
			},
		},
		"loopback": {
			node: func(w *world) { w.change("lan0", func(l *HostLink) { l.MAC = make(net.HardwareAddr, 6) }) },
			want: api.Error{Code: invalid, Key: "master", Value: "lan0", Message: `master "lan0": is no Ethernet device`},
		},
		"mtu": {
			change: func(r *api.PrepareRequest) { r.Network.MTU = 1501 },
			want:   api.Error{Code: invalid, Key: "mtu", Value: "1501", Message: `mtu "1501": is more than the 1500 of device lan0`},
		},
		"vlan of another name": {
			change: func(r *api.PrepareRequest) { r.Network.VLAN = 50 },
			want:   api.Error{Code: invalid, Key: "vlan", Value: "50", Message: `vlan "50": is not what the name of device lan0 ends in`},
		},
		"vlan that is none": {
			node:   func(w *world) { w.addParent("lan0.50") },
			change: func(r *api.PrepareRequest) { r.Network.Parent, r.Network.VLAN = "lan0.50", 50 },
			want:   api.Error{Code: invalid, Key: "vlan", Value: "50", Message: `vlan "50": device lan0.50 is there, and is no VLAN`},
		},
		"vlan with another number": {
			node: func(w *world) {
				w.addParent("lan0.50")
				w.change("lan0.50", func(l *HostLink) { l.VLAN, l.Lower = 60, w.devices["lan0"].Index })
			},
			change: func(r *api.PrepareRequest) { r.Network.Parent, r.Network.VLAN = "lan0.50", 50 },
			want:   api.Error{Code: invalid, Key: "vlan", Value: "50", Message: `vlan "50": device lan0.50 is there, and is VLAN 60`},
		},
		"vlan of another device": {
			node: func(w *world) {
				w.addParent("lan0.50")
				w.change("lan0.50", func(l *HostLink) { l.VLAN, l.Lower = 50, 7 })
			},
			change: func(r *api.PrepareRequest) { r.Network.Parent, r.Network.VLAN = "lan0.50", 50 },
			want: api.Error{
				Code: invalid, Key: "vlan", Value: "50", Message: `vlan "50": device lan0.50 is there, and is a VLAN of another device than lan0`,
			},
		},
		"mode": {
			change: func(r *api.PrepareRequest) { r.Network.Mode = "source" },
			want: api.Error{
				Code: invalid, Key: "mode", Value: "source",
				Message: `mode "source": is not known; "bridge", "private", "vepa" and "passthru" are`,
			},
		},
		"passthru with the host": {
			change: func(r *api.PrepareRequest) { r.Network.Mode = "passthru" },
			want: api.Error{
				Code: invalid, Key: "hostAccess", Value: "true",
				Message: `hostAccess "true": cannot be with mode passthru, where the container has the device and its MAC to itself`,
			},
		},
		"masquerade": {
			change: func(r *api.PrepareRequest) { r.Network.IPMasq = true },
			want: api.Error{
				Code: invalid, Key: "ipMasq", Value: "true",
				Message: `ipMasq "true": cannot be with the driver macvlan: containers are in the network of their parent, with addresses of their own`,
			},
		},
		"MAC of the host's side": {
			change: func(r *api.PrepareRequest) { r.HostMAC = parentMAC },
			want: api.Error{
				Code: invalid, Key: "hostMAC", Value: parentMAC,
				Message: `hostMAC "` + parentMAC + `": is of another driver: with macvlan it is the parent's`,
			},
		},
		"a bridge": {
			change: func(r *api.PrepareRequest) { r.Network.Bridge = "br0" },
			want:   api.Error{Code: invalid, Key: "bridge", Value: "br0", Message: `bridge "br0": is of another driver`},
		},
		"another driver": {
			change: func(r *api.PrepareRequest) { r.Network.Driver = "routed" },
			want:   api.Error{Code: invalid, Key: "parent", Value: "lan0", Message: `parent "lan0": is of another driver`},
		},
		"the parent's MAC": {
			change: func(r *api.PrepareRequest) { r.MAC = parentMAC },
			want:   api.Error{Code: invalid, Key: "mac", Value: parentMAC, Message: `mac "` + parentMAC + `": is that of device lan0`},
		},
		"another MAC than the parent's": {
			change: func(r *api.PrepareRequest) {
				r.Network.Mode, r.Network.HostAccess, r.MAC = "passthru", false, "02:00:00:00:00:07"
			},
			want: api.Error{
				Code: invalid, Key: "mac", Value: "02:00:00:00:00:07",
				Message: `mac "02:00:00:00:00:07": is not that of device lan0, which a container has with mode passthru`,
			},
		},
		"a sibling's MAC": {
			beforehand: []func(*api.PrepareRequest){func(r *api.PrepareRequest) { r.MAC = "02:00:00:00:00:07" }},
			change:     func(r *api.PrepareRequest) { r.MAC = "02:00:00:00:00:07" },
			want: api.Error{
				Code: conflict, Key: "mac", Value: "02:00:00:00:00:07",
				Message: "mac 02:00:00:00:00:07: container c1, interface eth0 has it, on device lan0",
			},
		},
		"passthru beside another": {
			beforehand: []func(*api.PrepareRequest){func(*api.PrepareRequest) {}},
			change:     func(r *api.PrepareRequest) { r.Network.Mode, r.Network.HostAccess = "passthru", false },
			want: api.Error{
				Code: conflict, Key: "mode", Value: "passthru",
				Message: "mode passthru: container c1, interface eth0 has a child of device lan0 already",
			},
		},
		"beside passthru": {
			beforehand: []func(*api.PrepareRequest){func(r *api.PrepareRequest) { r.Network.Mode, r.Network.HostAccess = "passthru", false }},
			want: api.Error{
				Code: conflict, Key: "master", Value: "lan0",
				Message: "master lan0: container c1, interface eth0 has it to itself, with mode passthru",
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.addParent("lan0")
			if test.node != nil {
				test.node(w)
			}
			s, _ := w.boot(t)
			for _, change := range test.beforehand {
				req := child("c1")
				change(&req)
				w.mustAdd(t, s, req)
			}
			known, attached := len(s.index.records), len(w.attached)
			req := child("c9")
			if test.change != nil {
				test.change(&req)
			}
			_, err := s.Prepare(ctx, req)
			if d := cmp.Diff(test.want, faultOf(t, err, test.want.Code)); d != "" {
				t.Errorf("prepare (-want +got):\n%s", d)
			}
			if len(s.index.records) != known || len(w.attached) != attached {
				t.Errorf("something of it is left")
			}
			// STATUS knows all that is of the network alone, and not of the others.
			if key := test.want.Key; key == "ports" || key == "hostMAC" || key == "mac" || test.beforehand != nil {
				return
			}
			_, err = s.NetworkStatus(ctx, req.Network)
			if d := cmp.Diff(test.want, faultOf(t, err, test.want.Code)); d != "" {
				t.Errorf("status (-want +got):\n%s", d)
			}
		})
	}
}

// The node may be in the network of its macvlan devices: its addresses and its routers are
// in their subnet, and only what could be leased is refused.
func TestMacvlanRanges(t *testing.T) {
	w := newWorld(t)
	w.addParent("lan0")
	w.occupied = []Occupied{
		{Addr: netip.MustParseAddr("10.40.0.9"), Device: "lan0"},
		{Addr: netip.MustParseAddr("10.40.0.8"), Device: "eth7"},
		{Addr: netip.MustParseAddr("10.40.0.254"), Device: "lan0", Destination: netip.MustParsePrefix("0.0.0.0/0")},
	}
	s, _ := w.boot(t)
	req := child("c1")
	req.Network.Ranges = []api.RangeSet{{{
		Subnet: netip.MustParsePrefix("10.40.0.0/24"), RangeStart: netip.MustParseAddr("10.40.0.10"),
		RangeEnd: netip.MustParseAddr("10.40.0.20"), Gateway: netip.MustParseAddr("10.40.0.254"),
	}}}
	e := w.mustAdd(t, s, req)
	must(t, s.Delete(ctx, e.Attachment))
	req.Network.Ranges[0][0].RangeStart = netip.MustParseAddr("10.40.0.9")
	_, err := s.Prepare(ctx, req)
	want := api.Error{
		Code: api.CodeInvalid, Key: "ipam.ranges[0][0].subnet", Value: "10.40.0.0/24",
		Message: "subnet 10.40.0.0/24 holds 10.40.0.9, an address of this node on lan0",
	}
	if d := cmp.Diff(want, faultOf(t, err, want.Code)); d != "" {
		t.Errorf("error (-want +got):\n%s", d)
	}
}

// vlanned is a request whose parent is VLAN 50 of lan0.
func vlanned(container string) api.PrepareRequest {
	req := child(container)
	req.Network.Parent, req.Network.VLAN = "lan0.50", 50
	return req
}

// A VLAN comes with the first container and goes with the last.
func TestVLANIsMade(t *testing.T) {
	w := newWorld(t)
	lan := w.addParent("lan0")
	s, stop := w.boot(t)
	if h, err := s.NetworkStatus(ctx, vlanned("c").Network); err != nil || !h.OK {
		t.Errorf("status: %+v, %v", h, err)
	}
	mustHave := func(what string, vlans ...string) {
		t.Helper()
		if d := cmp.Diff(vlans, w.remains(t, s).VLANs, equate...); d != "" {
			t.Errorf("VLANs %s (-want +got):\n%s", what, d)
		}
	}
	mustHave("after STATUS")
	a := w.mustAdd(t, s, vlanned("c1"))
	vlan := w.devices["lan0.50"]
	if d := cmp.Diff(HostLink{Name: "lan0.50", Index: vlan.Index, MAC: lan.MAC, Ethernet: true, MTU: 1500, VLAN: 50, Lower: lan.Index}, vlan); d != "" {
		t.Errorf("VLAN (-want +got):\n%s", d)
	}
	if got := w.attached[a.ID].Child.Parent; got != vlan.Index {
		t.Errorf("parent is %d, want %d", got, vlan.Index)
	}
	b := w.mustAdd(t, s, vlanned("c2"))
	must(t, s.Delete(ctx, a.Attachment))
	mustHave("with one left", "lan0.50")
	stop()
	s, _ = w.boot(t)
	mustHave("of the next agent", "lan0.50")
	w.change("lan0.50", func(l *HostLink) { l.Name = "fifty" }) // and is known by its index
	s.tidy()
	must(t, s.Delete(ctx, b.Attachment))
	mustHave("with none left")
	if _, there := w.devices["lan0"]; !there {
		t.Error("its parent is gone")
	}
}

// One that was there stays, also when it came after ours had gone.
func TestVLANOfOthers(t *testing.T) {
	w := newWorld(t)
	lan := w.addParent("lan0")
	s, _ := w.boot(t)
	theirs := func() {
		w.addParent("lan0.50")
		w.change("lan0.50", func(l *HostLink) { l.VLAN, l.Lower = 50, lan.Index })
	}
	for _, ours := range []bool{false, true} {
		if !ours {
			theirs()
		}
		e := w.mustAdd(t, s, vlanned("c1"))
		if ours {
			w.removeParent("lan0.50")
			theirs()
		}
		must(t, s.Delete(ctx, e.Attachment))
		if _, there := w.devices["lan0.50"]; !there {
			t.Errorf("ours at first %t: removed", ours)
		}
		w.removeParent("lan0.50")
	}
}

// One that somebody uses by then stays, and is theirs.
func TestVLANThatOthersUse(t *testing.T) {
	w := newWorld(t)
	w.addParent("lan0")
	s, stop := w.boot(t)
	e := w.mustAdd(t, s, vlanned("c1"))
	index := w.devices["lan0.50"].Index
	w.users = map[int][]string{index: {"address 192.0.2.9/24"}}
	must(t, s.Delete(ctx, e.Attachment))
	w.users = nil
	s.tidy()
	stop()
	w.boot(t)
	if w.devices["lan0.50"].Index != index {
		t.Error("removed")
	}
}

// What fails after the VLAN was made takes it away; so does what was killed meanwhile.
func TestVLANUndone(t *testing.T) {
	refused := errors.New("refused")
	for _, call := range []string{"MakeVLAN", "LinkAt", "At"} {
		t.Run(call, func(t *testing.T) {
			w := newWorld(t)
			w.addParent("lan0")
			s, _ := w.boot(t)
			w.fail[call] = refused
			if _, err := s.Prepare(ctx, vlanned("c1")); !errors.Is(err, refused) {
				t.Fatalf("error %v", err)
			}
			clear(w.fail)
			s.tidy() // what could not be looked at then
			must(t, s.purge())
			w.mustRemain(t, s, nothing())
		})
	}
	for _, instant := range []string{"MakeVLAN", "MakeVLAN, made"} {
		t.Run("killed in "+instant, func(t *testing.T) {
			w := newWorld(t)
			w.addParent("lan0")
			s, stop := w.boot(t)
			w.during = func(call string) {
				if call == instant {
					panic(crash{})
				}
			}
			if !survive(func() { _, _ = s.Prepare(ctx, vlanned("c1")) }) {
				t.Fatal("not killed")
			}
			stop()
			w.during = func(string) {}
			s, _ = w.boot(t)
			w.mustRemain(t, s, nothing())
			w.mustAdd(t, s, vlanned("c1"))
		})
	}
}

// A record that no agent can have written takes no VLAN away, and is nobody's affair.
func TestVLANRecordDamaged(t *testing.T) {
	w := newWorld(t)
	lan := w.addParent("lan0")
	w.addParent("lan0.60")
	w.change("lan0.60", func(l *HostLink) { l.VLAN, l.Lower = 60, lan.Index })
	s, _ := w.boot(t)
	e := w.mustAdd(t, s, vlanned("c1"))
	must(t, s.opts.DB.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketVLANs).Put([]byte("lan0.60"), []byte{0, 0, 7}) }))
	must(t, s.Delete(ctx, e.Attachment))
	s.tidy()
	if d := cmp.Diff([]string{"lan0", "lan0.60"}, slices.Sorted(maps.Keys(w.devices))); d != "" {
		t.Errorf("devices (-want +got):\n%s", d)
	}
	health, err := s.Health(ctx)
	must(t, err)
	if len(health.Reasons) != 0 {
		t.Errorf("health: %+v", health)
	}
}

// An uplink is not given away, nor what one is a VLAN of.
func TestPassthruAndUplink(t *testing.T) {
	for name, c := range map[string]struct{ uplink, want string }{
		"the uplink":    {"lan0", `mode "passthru": device lan0 is an uplink of the node, which would lose it`},
		"a VLAN of it":  {"lan0.50", `mode "passthru": on device lan0 is lan0.50, an uplink of the node, which would lose it`},
		"a VLAN deeper": {"lan0.50.7", `mode "passthru": on device lan0 is lan0.50.7, an uplink of the node, which would lose it`},
		"another":       {"other0", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			indices := map[string]int{"lan0": w.addParent("lan0").Index, "other0": w.addParent("other0").Index}
			for _, vlan := range [][2]string{{"lan0.50", "lan0"}, {"lan0.50.7", "lan0.50"}} {
				indices[vlan[0]] = w.addParent(vlan[0]).Index
				w.change(vlan[0], func(l *HostLink) { l.VLAN, l.Lower = 50, indices[vlan[1]] })
			}
			s, _ := w.boot(t, uplink.Uplink{Name: c.uplink, IfIndex: indices[c.uplink], MTU: 1500})
			r := child("c1")
			r.Network.Mode, r.Network.HostAccess = "passthru", false
			_, err := s.Prepare(ctx, r)
			if c.want == "" {
				must(t, err)
				return
			}
			if d := cmp.Diff(api.Error{Code: api.CodeInvalid, Key: "mode", Value: "passthru", Message: c.want}, faultOf(t, err, api.CodeInvalid)); d != "" {
				t.Errorf("prepare (-want +got):\n%s", d)
			}
		})
	}
}
