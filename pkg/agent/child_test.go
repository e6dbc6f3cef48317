// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// served compares what the datapath serves.
func (w *world) mustServe(t *testing.T, what string, want ...datapath.Endpoint) {
	t.Helper()
	all := make(map[uint16]datapath.Endpoint)
	for _, e := range want {
		all[e.ID] = e
	}
	if d := cmp.Diff(all, w.attached, equate...); d != "" {
		t.Errorf("datapath %s (-want +got):\n%s", what, d)
	}
}

// The life of a macvlan device. Of its subnet the node knows neither a route nor that it is
// excluded from the masquerade: it may be in that network itself.
func TestLifeOfAChild(t *testing.T) {
	w := newWorld(t)
	lan := w.addParent("lan0")
	s, stop := w.boot(t)
	prepared, err := s.Prepare(ctx, child("c1"))
	must(t, err)
	want := api.Endpoint{
		Attachment: api.Attachment{ContainerID: "c1", IfName: "eth0"}, ID: 1, Network: "lan", Driver: "macvlan",
		Parent: "lan0", Mode: "bridge", HostAccess: true,
		NetNS: "/run/netns/c1", State: api.Pending, MAC: prepared.MAC, HostMAC: parentMAC, MTU: 1500, Created: w.clock,
		Addresses: []api.Address{
			{Address: netip.MustParsePrefix("10.40.0.2/24"), Gateway: netip.MustParseAddr("10.40.0.1")},
			{Address: netip.MustParsePrefix("fd00:40::2/64"), Gateway: netip.MustParseAddr("fd00:40::1")},
		},
	}
	if d := cmp.Diff(want, prepared, equate...); d != "" {
		t.Errorf("prepared (-want +got):\n%s", d)
	}
	_, err = s.Attach(ctx, prepared.Attachment, api.AttachRequest{})
	wantMessage(t, err, "device eth0 is gone from /run/netns/c1")
	device := w.bear(prepared)
	_, err = s.Attach(ctx, prepared.Attachment, api.AttachRequest{HostIfIndex: lan.Index})
	wantCode(t, err, api.CodeInvalid)
	ready, err := s.Attach(ctx, prepared.Attachment, api.AttachRequest{})
	must(t, err)
	want.State = api.Ready
	if d := cmp.Diff(want, ready, equate...); d != "" {
		t.Errorf("attached (-want +got):\n%s", d)
	}
	_, err = s.Attach(ctx, prepared.Attachment, api.AttachRequest{}) // is idempotent
	must(t, err)
	served := datapath.Endpoint{
		ID: 1, IfIndex: datapath.ChildIndex(1), IfName: "lan0", MAC: parsedMAC(prepared.MAC), HostMAC: lan.MAC, MTU: 1500,
		Addresses: []netip.Addr{netip.MustParseAddr("10.40.0.2"), netip.MustParseAddr("fd00:40::2")},
		Child:     &datapath.Child{Parent: lan.Index, NetNS: uint32(device.NetNS), Bridged: true, HostAccess: true},
	}
	w.mustServe(t, "at first", served)
	must(t, s.Check(ctx, ready.Attachment))
	present := nothing()
	present.Attached, present.Leases, present.Endpoints = []uint16{1}, 2, []api.Attachment{ready.Attachment}
	present.Children = []string{"/run/netns/c1 eth0"}
	w.mustRemain(t, s, present)

	// The next agent finds the parent by its child, whatever it is called and has for a MAC.
	stop()
	w.attached = make(map[uint16]datapath.Endpoint)
	w.change("lan0", func(l *HostLink) { l.Name, l.MAC = "lan1", net.HardwareAddr{2, 0, 0, 0, 12, 2} })
	s, _ = w.boot(t)
	served.IfName, served.HostMAC = "lan1", net.HardwareAddr{2, 0, 0, 0, 12, 2}
	w.mustServe(t, "of the next agent", served)
	must(t, s.Check(ctx, ready.Attachment))

	// So does this one, and at once.
	w.change("lan1", func(l *HostLink) { l.Name, l.MAC = "lan0", lan.MAC })
	s.LinksChanged()
	served.IfName, served.HostMAC = "lan0", lan.MAC
	w.mustServe(t, "after a change", served)
	got, err := s.Endpoint(ctx, ready.Attachment)
	must(t, err)
	if d := cmp.Diff(want, got, equate...); d != "" {
		t.Errorf("endpoint (-want +got):\n%s", d)
	}

	w.unwire(ready.Attachment)
	must(t, s.Delete(ctx, ready.Attachment))
	must(t, s.purge())
	w.mustRemain(t, s, nothing())
}

// at is where the device of child("c1") is made.
const at = "/run/netns/c1 eth0"

// changeChild changes that device.
func changeChild(change func(*wiring.ChildLink)) func(*world) {
	return func(w *world) {
		one := w.children[at]
		change(&one)
		w.children[at] = one
	}
}

// moveChild gives that device another name, or another place that no path leads to.
func moveChild(to string) func(*world) {
	return func(w *world) {
		w.children[to] = w.children[at]
		delete(w.children, at)
	}
}

// replaceNetNS has another namespace at the path of that device, with another device, and
// nobody who finds the first, which somebody may be in.
func replaceNetNS(w *world) {
	other := w.children[at]
	moveChild("nowhere eth0")(w)
	w.netns["/run/netns/c1"] = namespace{inode: 4026540000, number: 99}
	other.NetNS, other.Number, other.MAC = 4026540000, 99, parsedMAC("02:00:00:00:00:99")
	w.children[at] = other
}

// A DEL takes away the device that the plugin has left, as one without a namespace does,
// wherever it has gone, and none of others that is in its place.
func TestDeleteOfAChild(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*world)
		left   []string
	}{
		"its own":           {func(*world) {}, nil},
		"renamed":           {moveChild("/run/netns/c1 eth7"), nil},
		"another MAC":       {changeChild(func(c *wiring.ChildLink) { c.MAC = parsedMAC("02:00:00:00:00:99") }), nil},
		"no path":           {func(w *world) { moveChild("nowhere eth0")(w); delete(w.netns, "/run/netns/c1") }, nil},
		"another namespace": {replaceNetNS, []string{at}},
		"another device":    {changeChild(func(c *wiring.ChildLink) { c.Index, c.MAC = 9, parsedMAC("02:00:00:00:00:99") }), []string{at}},
		"number of another": {func(w *world) {
			changeChild(func(c *wiring.ChildLink) { c.MAC = parsedMAC("02:00:00:00:00:99") })(w)
			moveChild("/run/netns/c9 eth0")(w)
			delete(w.netns, "/run/netns/c1")
		}, []string{"/run/netns/c9 eth0"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.addParent("lan0")
			s, _ := w.boot(t)
			prepared, err := s.Prepare(ctx, child("c1"))
			must(t, err)
			w.bear(prepared)
			_, err = s.Attach(ctx, prepared.Attachment, api.AttachRequest{})
			must(t, err)
			c.change(w)
			must(t, s.Delete(ctx, prepared.Attachment))
			must(t, s.purge())
			want := nothing()
			want.Children = c.left
			w.mustRemain(t, s, want)
		})
	}
}

// The modes as the datapath knows them.
func TestModesOfChildren(t *testing.T) {
	for mode, want := range map[string]datapath.Child{
		"bridge": {Bridged: true}, "private": {}, "vepa": {Reflected: true}, "passthru": {Passthru: true},
	} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			lan := w.addParent("lan0")
			s, _ := w.boot(t)
			req := child("c1")
			req.Network.Mode, req.Network.HostAccess = mode, false
			e := w.mustAdd(t, s, req)
			if own := e.MAC == parentMAC; own != (mode == "passthru") {
				t.Errorf("MAC is %s, the parent's %s", e.MAC, parentMAC)
			}
			want.Parent, want.NetNS = lan.Index, w.attached[1].Child.NetNS
			if d := cmp.Diff(&want, w.attached[1].Child); d != "" {
				t.Errorf("child (-want +got):\n%s", d)
			}
			// With passthru the two MACs are one.
			w.change("lan0", func(l *HostLink) { l.MAC = net.HardwareAddr{2, 0, 0, 0, 12, 2} })
			if mode == "passthru" {
				device := w.children["/run/netns/c1 eth0"]
				device.MAC = net.HardwareAddr{2, 0, 0, 0, 12, 2}
				w.children["/run/netns/c1 eth0"] = device
			}
			wantMessage(t, s.Check(ctx, e.Attachment), "device lan0 has MAC 02:00:00:00:0c:02, not "+parentMAC)
			s.tidy()
			must(t, s.Check(ctx, e.Attachment))
		})
	}
}

// What CHECK finds, and whether the container's device is lost with it: who may have moved it
// out of sight is filtered on.
func TestChildIsNotAsItWas(t *testing.T) {
	const gone = "device eth0 is gone from /run/netns/c1"
	noPath := func(w *world) { delete(w.netns, "/run/netns/c1") }
	for name, test := range map[string]struct {
		tamper func(*world)
		check  string
		lost   bool
	}{
		"out of sight":      {func(w *world) { delete(w.children, at) }, gone, false},
		"renamed":           {moveChild("/run/netns/c1 eth7"), gone, false},
		"no path":           {func(w *world) { moveChild("nowhere eth0")(w); noPath(w) }, gone, false},
		"no namespace":      {func(w *world) { delete(w.children, at); noPath(w) }, gone, true},
		"another namespace": {replaceNetNS, "device eth0 is gone: /run/netns/c1 is another network namespace now", false},
		"another namespace, and nobody in its own": {
			func(w *world) { replaceNetNS(w); delete(w.children, "nowhere eth0") },
			"device eth0 is gone: /run/netns/c1 is another network namespace now", true,
		},
		"made by others": {
			changeChild(func(c *wiring.ChildLink) { c.Parent = 0 }), "device eth0 in /run/netns/c1 is no child of a device of the node", false,
		},
		"parent removed": {func(w *world) { w.removeParent("lan0") }, gone, true},
		"MAC": {
			changeChild(func(c *wiring.ChildLink) { c.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 9} }),
			"device eth0 in /run/netns/c1 has MAC 02:00:00:00:00:09, not 02:00:00:00:00:07", false,
		},
		"mode": {
			changeChild(func(c *wiring.ChildLink) { c.Mode = wiring.ModeBridge }), "device eth0 in /run/netns/c1 has mode bridge, not vepa", false,
		},
		"parent renamed": {func(w *world) { w.change("lan0", func(l *HostLink) { l.Name = "lan1" }) }, "device lan0 is gone", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.addParent("lan0")
			s, stop := w.boot(t)
			req := child("c1")
			req.MAC = "02:00:00:00:00:07"
			e := w.mustAdd(t, s, req)
			test.tamper(w)
			wantMessage(t, s.Check(ctx, e.Attachment), test.check)
			s.tidy()
			want := api.Ready
			if test.lost {
				want = api.Detached
			}
			if got, err := s.Endpoint(ctx, e.Attachment); err != nil || got.State != want {
				t.Errorf("state %s, want %s (%v)", got.State, want, err)
			}
			if got := len(w.attached); got != 1 && !test.lost || got != 0 && test.lost {
				t.Errorf("%d endpoints are attached", got)
			}
			health, err := s.Health(ctx)
			must(t, err)
			wantHealth := api.Health{OK: true}
			if name == "parent removed" {
				wantHealth = api.Health{Reasons: []string{"macvlan devices: device lan0 is gone, and with it the interfaces of 1 containers: attach them again"}}
			}
			if d := cmp.Diff(wantHealth, health); d != "" {
				t.Errorf("health (-want +got):\n%s", d)
			}
			stop()
			s, _ = w.boot(t)
			if got := len(w.remains(t, s).Endpoints); got != 1 && !test.lost || got != 0 && test.lost {
				t.Errorf("the next agent knows %d endpoints", got)
			}
			must(t, s.Delete(ctx, e.Attachment))
			s.tidy()
			if health, err = s.Health(ctx); err != nil || !health.OK {
				t.Errorf("health after DEL: %v, %v", health, err)
			}
		})
	}
}

// A container that cannot be looked into is served as it was, others as ever. Health says so
// where the device is not found without that.
func TestChildThatIsShut(t *testing.T) {
	w := newWorld(t)
	w.addParent("lan0")
	s, stop := w.boot(t)
	w.mustAdd(t, s, child("c1"))
	served := w.attached
	again := func(want api.Health) {
		t.Helper()
		stop()
		w.attached = make(map[uint16]datapath.Endpoint)
		s, stop = w.boot(t)
		if d := cmp.Diff(served, w.attached, equate...); d != "" {
			t.Errorf("datapath of the next agent (-want +got):\n%s", d)
		}
		health, err := s.Health(ctx)
		must(t, err)
		if d := cmp.Diff(want, health); d != "" {
			t.Errorf("health (-want +got):\n%s", d)
		}
	}
	w.fail["Child"] = fs.ErrPermission
	again(api.Health{OK: true})
	delete(w.children, at)
	again(api.Health{Reasons: []string{"endpoints: look into /run/netns/c1, for which the agent needs CAP_SYS_PTRACE: permission denied"}})
}

// A DEL that no agent has heard of frees what the container had, though that is there still: at
// the next start, or soon where the agent has only been out of reach. One from before the ADD does
// not count.
func TestChildEndsWithoutAgent(t *testing.T) {
	for _, restart := range []bool{true, false} {
		for _, parent := range []string{"lan0", "lan0.50"} {
			t.Run(fmt.Sprintf("%s, restart %t", parent, restart), func(t *testing.T) { testChildEndsWithoutAgent(t, restart, parent) })
		}
	}
}

func testChildEndsWithoutAgent(t *testing.T, restart bool, parent string) {
	w := newWorld(t)
	w.addParent("lan0")
	s, stop := w.boot(t)
	look := func() {
		if !restart {
			s.tidy()
			return
		}
		stop()
		s, stop = w.boot(t)
	}
	req := child("c1")
	req.Network.Parent, req.Network.Mode, req.Network.HostAccess = parent, "passthru", false
	e := w.mustAdd(t, s, req)
	w.ended[e.Attachment] = w.clock.Add(-1)
	look()
	if got := w.remains(t, s); len(got.Endpoints) != 1 || len(w.ended) != 0 {
		t.Errorf("ended before it began: %+v, %v", got, w.ended)
	}
	moveChild("/run/netns/c1 eth7")(w)
	look()
	if got := w.remains(t, s); len(got.Endpoints) != 1 {
		t.Errorf("renamed: %+v", got)
	}
	w.ended[e.Attachment] = w.clock.Add(1)
	look()
	must(t, s.purge())
	w.mustRemain(t, s, nothing())
	if len(w.ended) != 0 {
		t.Errorf("still noted: %v", w.ended)
	}
	w.mustAdd(t, s, req)
}

// What has ended keeps no agent from starting, though nobody can look for what it has left.
func TestEndedChildThatIsShut(t *testing.T) {
	w := newWorld(t)
	w.addParent("lan0")
	s, stop := w.boot(t)
	e := w.mustAdd(t, s, child("c1"))
	w.unwire(e.Attachment)
	w.ended[e.Attachment] = w.clock.Add(1)
	stop()
	w.fail["Child"] = fs.ErrPermission
	s, _ = w.boot(t)
	must(t, s.purge())
	w.mustRemain(t, s, nothing())
}

// What has been attached since where a device was is not that endpoint's, whatever MAC it has.
func TestChildInThePlaceOfAnother(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*api.PrepareRequest)
		first  api.EndpointState // whose device may have been moved
	}{
		"of the same MAC on another parent": {func(req *api.PrepareRequest) { req.Network.Parent = "lan1" }, api.Detached},
		"at the same path, with another MAC": {func(req *api.PrepareRequest) {
			req.NetNS, req.MAC = "/run/netns/c1", "02:00:00:00:00:08"
		}, api.Ready},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.addParent("lan0")
			w.addParent("lan1")
			s, stop := w.boot(t)
			req := child("c1")
			req.MAC = "02:00:00:00:00:07"
			old := w.mustAdd(t, s, req)
			place := w.netns["/run/netns/c1"]
			delete(w.children, at)
			delete(w.netns, "/run/netns/c1")
			next := child("c2")
			next.MAC = req.MAC
			c.change(&next)
			w.netns[next.NetNS] = place
			w.clock = w.clock.Add(1)
			e := w.mustAdd(t, s, next)
			for range 2 {
				s.tidy()
				if got, err := s.Endpoint(ctx, old.Attachment); err == nil && got.State != c.first {
					t.Errorf("the first is %s, not %s", got.State, c.first)
				}
				if got, err := s.Endpoint(ctx, e.Attachment); err != nil || got.State != api.Ready || got.Parent != next.Network.Parent {
					t.Errorf("the second is %s on %s (%v)", got.State, got.Parent, err)
				}
				must(t, s.Delete(ctx, old.Attachment))
				if d := cmp.Diff([]string{next.NetNS + " eth0"}, w.remains(t, s).Children); d != "" {
					t.Errorf("devices (-want +got):\n%s", d)
				}
				stop()
				s, stop = w.boot(t)
			}
		})
	}
}

// A parent is known by its index: by whatever name the next agent finds it, and by which
// another has its name by then.
func TestParentChangesMeanwhile(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*world)
		served []string // names of parents
	}{
		"another name":               {func(w *world) { w.change("lan0", func(l *HostLink) { l.Name = "lan1" }) }, []string{"lan1"}},
		"another device of its name": {func(w *world) { w.removeParent("lan0"); w.addParent("lan0") }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.addParent("lan0")
			s, stop := w.boot(t)
			w.mustAdd(t, s, child("c1"))
			delete(w.children, at) // out of sight
			stop()
			w.attached = make(map[uint16]datapath.Endpoint)
			c.change(w)
			w.boot(t)
			var served []string
			for _, e := range w.attached {
				served = append(served, e.IfName)
			}
			if d := cmp.Diff(c.served, served); d != "" {
				t.Errorf("served on (-want +got):\n%s", d)
			}
		})
	}
}

// An unfinished ADD that cannot be looked at keeps no agent from starting.
func TestUnfinishedChildThatIsShut(t *testing.T) {
	w := newWorld(t)
	w.addParent("lan0")
	s, stop := w.boot(t)
	_, err := s.Prepare(ctx, child("c1"))
	must(t, err)
	stop()
	w.fail["Child"] = fs.ErrPermission
	s, _ = w.boot(t)
	wantHealth(t, s, "unfinished endpoints: ", "look into /run/netns/c1, for which the agent needs CAP_SYS_PTRACE: permission denied")
	delete(w.fail, "Child")
	w.clock = w.clock.Add(abandoned + 1)
	s.tidy()
	wantHealth(t, s)
	must(t, s.purge())
	w.mustRemain(t, s, nothing())
}

// An unfinished ADD is undone when nothing of it is left in the container, or when the
// next one comes.
func TestUnfinishedChild(t *testing.T) {
	w := newWorld(t)
	w.addParent("lan0")
	s, _ := w.boot(t)
	for _, req := range []api.PrepareRequest{child("c1"), childElsewhere("c1", "10.40.0.7/24")} {
		e, err := s.Prepare(ctx, req)
		must(t, err)
		w.bear(e)
	}
	if got := w.remains(t, s); len(got.Children) != 1 || len(got.Endpoints) != 1 || got.Leases != 0 {
		t.Errorf("after two: %+v", got)
	}
	w.clock = w.clock.Add(abandoned + 1)
	s.tidy()
	if got := w.remains(t, s); len(got.Endpoints) != 1 {
		t.Errorf("while the device is there: %+v", got)
	}
	clear(w.children)
	s.tidy()
	must(t, s.purge())
	w.mustRemain(t, s, nothing())
}

// childElsewhere is a request of the driver macvlan with an address of another IPAM plugin.
func childElsewhere(container, address string) api.PrepareRequest {
	req := child(container)
	req.Network.Ranges = nil
	req.Addresses = []api.Address{{Address: netip.MustParsePrefix(address)}}
	return req
}

// GC takes the device out of the container; without a list only what is gone.
func TestGCOfChildren(t *testing.T) {
	w := newWorld(t)
	w.addParent("lan0")
	s, _ := w.boot(t)
	a, b := w.mustAdd(t, s, child("c1")), w.mustAdd(t, s, child("c2"))
	gc := func(valid []api.Attachment, want ...api.Attachment) {
		t.Helper()
		got, err := s.GC(ctx, api.GCRequest{Network: "lan", Valid: valid})
		must(t, err)
		if d := cmp.Diff(want, got.Freed, equate...); d != "" {
			t.Errorf("freed (-want +got):\n%s", d)
		}
	}
	gc(nil)
	gc([]api.Attachment{a.Attachment}, b.Attachment)
	if d := cmp.Diff([]string{"/run/netns/c1 eth0"}, w.remains(t, s).Children); d != "" {
		t.Errorf("children (-want +got):\n%s", d)
	}
	clear(w.children)
	gc(nil) // it may be out of sight
	clear(w.netns)
	gc(nil, a.Attachment) // its namespace is not there either
	must(t, s.purge())
	w.mustRemain(t, s, nothing())
}

// TestHostChild asks a real kernel.
func TestHostChild(t *testing.T) {
	node, container := nstest.New(t, "node"), nstest.New(t, "c")
	node.Run(t, "ip", "link", "add", "lan0", "address", parentMAC, "type", "veth", "peer", "name", "other")
	node.Run(t, "ip", "link", "add", "link", "lan0", "name", "mv0", "netns", container.Name, "address", "02:00:00:00:00:07", "type", "macvlan", "mode", "vepa")
	h, err := OpenHost(node.Path)
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	lan, err := h.Link("lan0")
	must(t, err)
	node.Run(t, "ip", "link", "add", "link", "lan0", "name", "mv1", "type", "macvlan")
	if other, err := h.Link("mv1"); err != nil || !other.Macvlan || lan.Macvlan {
		t.Errorf("mv1 is a macvlan device: %t, lan0 %t (%v)", other.Macvlan, lan.Macvlan, err)
	}
	again, err := h.LinkAt(lan.Index)
	must(t, err)
	if d := cmp.Diff(lan, again); d != "" {
		t.Errorf("by index (-want +got):\n%s", d)
	}
	if _, err := h.LinkAt(1 << 20); err != ErrNoLink { //nolint:errorlint // exactly this
		t.Errorf("no link: %v", err)
	}
	child, err := h.Child(container.Path, "mv0")
	must(t, err)
	want := wiring.ChildLink{NetNS: child.NetNS, Number: child.Number, Index: child.Index, MAC: parsedMAC("02:00:00:00:00:07"), Parent: lan.Index, Mode: "vepa"}
	if d := cmp.Diff(want, child); d != "" {
		t.Errorf("child (-want +got):\n%s", d)
	}
	at, err := h.ChildAt(child.Number, child.Index)
	must(t, err)
	want.NetNS = 0
	if d := cmp.Diff(want, at); d != "" {
		t.Errorf("by number (-want +got):\n%s", d)
	}
	// What `tendril-agent cleanup` finds of it.
	db, err := OpenState(filepath.Join(t.TempDir(), "state.db"))
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	known := api.Endpoint{
		Attachment: api.Attachment{ContainerID: "c", IfName: "mv0"}, ID: 1, Driver: "macvlan", Parent: "lan0", NetNS: container.Path,
		State: api.Ready, MAC: "02:00:00:00:00:01", HostMAC: "02:00:00:00:00:02",
	}
	gone := known
	gone.Attachment.ContainerID, gone.ID, gone.NetNS = "d", 2, "/run/netns/nobody"
	must(t, db.Update(func(tx *bbolt.Tx) error {
		return errors.Join(putRecord(tx, &record{
			Endpoint: known, Device: childPlace{NetNSInode: child.NetNS, NetNSNumber: child.Number, Index: child.Index, Parent: lan.Index},
		}), putRecord(tx, &record{Endpoint: gone}))
	}))
	found, err := ChildrenIn(db, h)
	must(t, err)
	if d := cmp.Diff([]wiring.ChildLink{at}, found); d != "" {
		t.Errorf("children of the state file (-want +got):\n%s", d)
	}
	must(t, h.RemoveChild(child))
	if _, err := h.ChildAt(child.Number, child.Index); err != ErrNoLink { //nolint:errorlint // exactly this
		t.Errorf("by number, removed: %v", err)
	}
	for _, path := range []string{container.Path, "/run/netns/nobody"} {
		if _, err := h.Child(path, "mv0"); err != ErrNoLink { //nolint:errorlint // exactly this
			t.Errorf("%s: %v", path, err)
		}
	}
}
