// SPDX-License-Identifier: Apache-2.0

package wiring_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/wiring"
)

const parentName = "lan0"

// newParent is a pair whose node has a parent on a wire to another machine, and a device
// with the name that the container's is to have.
func newParent(t *testing.T) (pair, *nstest.NS) {
	t.Helper()
	p := newPair(t)
	other := nstest.New(t, "other")
	nstest.Veth(t, p.nodeNS, parentName, other, "eth0")
	p.nodeNS.Run(t, "ip", "link", "add", "eth0", "type", "bridge")
	return p, other
}

func testChild() wiring.Child {
	return wiring.Child{Name: "eth0", BornAs: "tdl0123456789ab", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}, MTU: 1400, Parent: parentName, Mode: wiring.ModeVEPA}
}

func testHoused() wiring.Housed {
	gw4, gw6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	return wiring.Housed{
		MTU: 1400, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24"), netip.MustParsePrefix("2001:db8::7/64")},
		Routes: []wiring.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: gw4},
			{Dst: netip.MustParsePrefix("::/0"), Gateway: gw6},
		},
	}
}

func indexOf(t *testing.T, ns *nstest.NS, name string) int {
	t.Helper()
	link, err := ns.Handle.LinkByName(name)
	must(t, err)
	return link.Attrs().Index
}

func inodeOf(t *testing.T, path string) uint64 {
	t.Helper()
	var stat unix.Stat_t
	must(t, unix.Stat(path, &stat))
	return stat.Ino
}

// numberOf is what a namespace has for another.
func numberOf(t *testing.T, ns, other *nstest.NS) int {
	t.Helper()
	file, err := os.Open(other.Path)
	must(t, err)
	defer func() { must(t, file.Close()) }()
	number, err := ns.Handle.GetNetNsIdByFd(int(file.Fd()))
	must(t, err)
	return number
}

// rename gives a link another name, which on older kernels it must be down for.
func rename(t *testing.T, ns *nstest.NS, name, to string) {
	t.Helper()
	ns.Run(t, "ip", "link", "set", name, "down")
	ns.Run(t, "ip", "link", "set", name, "name", to)
	ns.Run(t, "ip", "link", "set", to, "up")
}

func TestChild(t *testing.T) {
	p, other := newParent(t)
	c, h := testChild(), testHoused()
	made, err := wiring.CreateChild(p.node, p.container, c)
	must(t, err)
	want := wiring.ChildLink{
		NetNS: inodeOf(t, p.containerNS.Path), Number: numberOf(t, p.nodeNS, p.containerNS), Index: indexOf(t, p.containerNS, "eth0"), MAC: c.MAC,
		Parent: indexOf(t, p.nodeNS, parentName), Mode: wiring.ModeVEPA,
	}
	if diff := cmp.Diff(want, made); diff != "" {
		t.Errorf("made (-want +got):\n%s", diff)
	}
	found, err := wiring.FindChild(p.node, p.containerNS.Path, "eth0")
	must(t, err)
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
	if out := p.nodeNS.Run(t, "ip", "-br", "link", "show", "type", "macvlan"); out != "" {
		t.Errorf("the node has %s", out)
	}

	routes, err := wiring.ConfigureChild(p.container, "eth0", made, h)
	must(t, err)
	must(t, wiring.SettleChild(p.container, "eth0", h))
	if diff := cmp.Diff(h.Routes, routes, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	must(t, wiring.CheckChild(p.node, p.container, c, h))
	other.Run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
	other.Run(t, "ip", "addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
	for _, address := range []string{"192.0.2.1", "2001:db8::1"} {
		p.containerNS.Run(t, "ping", "-c1", "-W5", address)
	}

	rename(t, p.containerNS, "eth0", c.BornAs) // as if its maker had died early
	for range 2 {
		must(t, wiring.RemoveChild(p.node, p.containerNS.Path, c.BornAs, "eth0"))
		if out := p.containerNS.Run(t, "ip", "-br", "link", "show", "type", "macvlan"); out != "" {
			t.Errorf("after removal: %s", out)
		}
	}
	found, err = wiring.FindChild(p.node, p.containerNS.Path, "eth0")
	if want := (wiring.ChildLink{NetNS: made.NetNS, Number: made.Number}); !errors.Is(err, unix.ENODEV) || !cmp.Equal(want, found) {
		t.Errorf("after removal: %+v, %v", found, err)
	}
}

// A child is found by its numbers while anybody is in its namespace, wherever the path has
// gone, and whatever the device is called.
func TestChildAt(t *testing.T) {
	p, _ := newParent(t)
	unseen := nstest.New(t, "unseen")
	container, err := wiring.Open(unseen.Path)
	must(t, err)
	made, err := wiring.CreateChild(p.node, container, testChild())
	must(t, errors.Join(err, container.Close()))
	rename(t, unseen, "eth0", "eth7")
	unseen.Unlink(t)
	found, err := wiring.FindChildAt(p.node, made.Number, made.Index)
	must(t, err)
	want := made
	want.NetNS = 0
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
	for range 2 {
		must(t, wiring.RemoveFound(p.node, found))
	}
	for _, at := range []wiring.ChildLink{made, {Number: made.Number, Index: 1}, {Number: made.Number}, {Number: 1 << 20, Index: 1}, {Number: -1, Index: 1}} {
		if _, err := wiring.FindChildAt(p.node, at.Number, at.Index); !errors.Is(err, unix.ENODEV) {
			t.Errorf("number %d, index %d: %v", at.Number, at.Index, err)
		}
	}
}

func TestChildRefused(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(t *testing.T, p pair)
		child func(*wiring.Child)
		is    error
		want  string
	}{
		"no parent": {
			child: func(c *wiring.Child) { c.Parent = "lan1" }, is: unix.ENODEV,
			want: "look up link lan1: no such device",
		},
		"mtu": {
			child: func(c *wiring.Child) { c.MTU = 1501 }, is: wiring.ErrParent,
			want: "make eth0 with mtu 1501 a child of lan0, whose mtu is 1500: the device cannot have it as its child",
		},
		"name": {
			spoil: func(t *testing.T, p pair) { p.containerNS.Run(t, "ip", "link", "add", "eth0", "type", "bridge") },
			is:    wiring.ErrTaken,
			want:  "make eth0 a child of lan0: interface name is taken: name it eth0: file exists",
		},
		"port of a bridge": {
			spoil: func(t *testing.T, p pair) { p.nodeNS.Run(t, "ip", "link", "set", parentName, "master", "eth0") },
			is:    wiring.ErrParent,
			want: "make eth0 a child of lan0: device or resource busy: the device cannot have it as its child: " +
				"lan0 is a port of a bridge, a bond or the like",
		},
		"passthru beside another": {
			spoil: func(t *testing.T, p pair) {
				p.nodeNS.Run(t, "ip", "link", "add", "link", parentName, "name", "mv0", "type", "macvlan", "mode", "private")
			},
			child: func(c *wiring.Child) { c.Mode = wiring.ModePassthru }, is: wiring.ErrParent,
			want: "make eth0 a child of lan0: invalid argument: the device cannot have it as its child: " +
				"with mode passthru it must be the only child, and there is another",
		},
		"beside passthru": {
			spoil: func(t *testing.T, p pair) {
				p.nodeNS.Run(t, "ip", "link", "add", "link", parentName, "name", "mv0", "type", "macvlan", "mode", "passthru")
			},
			is: wiring.ErrParent,
			want: "make eth0 a child of lan0: invalid argument: the device cannot have it as its child: " +
				"it has a child of mode passthru, or something else takes all its frames",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := newParent(t)
			c := testChild()
			if test.spoil != nil {
				test.spoil(t, p)
			}
			if test.child != nil {
				test.child(&c)
			}
			_, err := wiring.CreateChild(p.node, p.container, c)
			if !errors.Is(err, test.is) || fmt.Sprint(err) != test.want {
				t.Errorf("error %v\nwant  %s", err, test.want)
			}
		})
	}
}

func TestChildBroadcastQueue(t *testing.T) {
	p, _ := newParent(t)
	c := testChild()
	c.BroadcastQueue = 1777
	_, err := wiring.CreateChild(p.node, p.container, c)
	if !nstest.KernelSince(t, wiring.BroadcastQueueSince) {
		if !errors.Is(err, wiring.ErrNoBroadcastQueue) {
			t.Errorf("error %v", err)
		}
		if exists, err := wiring.LinkExists(p.container, "eth0"); err != nil || exists {
			t.Errorf("left behind: %t, %v", exists, err)
		}
		return
	}
	must(t, err)
}

// A parent that is down is not waited for.
func TestChildOfAParentThatIsDown(t *testing.T) {
	p, _ := newParent(t)
	p.nodeNS.Run(t, "ip", "link", "set", parentName, "down")
	c, h := testChild(), testHoused()
	made, err := wiring.CreateChild(p.node, p.container, c)
	must(t, err)
	_, err = wiring.ConfigureChild(p.container, "eth0", made, h)
	must(t, err)
	must(t, wiring.SettleChild(p.container, "eth0", h))
	p.nodeNS.Run(t, "ip", "link", "set", parentName, "up")
	must(t, wiring.SettleChild(p.container, "eth0", h))
	must(t, wiring.CheckChild(p.node, p.container, c, h))
}

func TestCheckChildFinds(t *testing.T) {
	nstest.LeaveTo(t, "6.12")
	in := func(args ...string) func(*testing.T, pair) {
		return func(t *testing.T, p pair) { p.containerNS.Run(t, "ip", args...) }
	}
	node := func(args ...string) func(*testing.T, pair) {
		return func(t *testing.T, p pair) { p.nodeNS.Run(t, "ip", args...) }
	}
	for name, test := range map[string]struct {
		spoil func(*testing.T, pair)
		want  []string
	}{
		"down": {in("link", "set", "eth0", "down"), []string{
			"link eth0 is down in the container", "route 192.0.2.0/24 is missing on eth0 in the container",
			"address 2001:db8::7/64 is missing on eth0 in the container",
			"route 0.0.0.0/0 via 192.0.2.1 is missing on eth0 in the container",
			"route ::/0 via 2001:db8::1 is missing on eth0 in the container",
		}},
		"MAC": {in("link", "set", "eth0", "address", "02:00:00:00:00:09"), []string{
			"MAC of eth0 in the container is 02:00:00:00:00:09, not 02:00:00:00:00:07",
		}},
		"mtu":     {in("link", "set", "eth0", "mtu", "1300"), []string{"mtu of eth0 in the container is 1300, not 1400"}},
		"mode":    {in("link", "set", "eth0", "type", "macvlan", "mode", "bridge"), []string{"mode of eth0 in the container is bridge, not vepa"}},
		"address": {in("addr", "del", "2001:db8::7/64", "dev", "eth0"), []string{"address 2001:db8::7/64 is missing on eth0 in the container"}},
		"route":   {in("route", "del", "default"), []string{"route 0.0.0.0/0 via 192.0.2.1 is missing on eth0 in the container"}},
		"renamed parent": {func(t *testing.T, p pair) { rename(t, p.nodeNS, parentName, "lan1") }, []string{
			"link lan0 is missing on the host",
		}},
		"parent gone": {node("link", "del", parentName), []string{"link eth0 is missing in the container"}},
		"replaced": {func(t *testing.T, p pair) {
			p.containerNS.Run(t, "ip", "link", "del", "eth0")
			p.containerNS.Run(t, "ip", "link", "add", "eth0", "address", "02:00:00:00:00:07", "mtu", "1400", "up", "type", "bridge")
		}, []string{
			"link eth0 in the container is a bridge, not a macvlan",
			"address 192.0.2.7/24 is missing on eth0 in the container", "address 2001:db8::7/64 is missing on eth0 in the container",
			"route 0.0.0.0/0 via 192.0.2.1 is missing on eth0 in the container",
			"route ::/0 via 2001:db8::1 is missing on eth0 in the container",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := newParent(t)
			c, h := testChild(), testHoused()
			made, err := wiring.CreateChild(p.node, p.container, c)
			must(t, err)
			_, err = wiring.ConfigureChild(p.container, "eth0", made, h)
			must(t, err)
			must(t, wiring.SettleChild(p.container, "eth0", h))
			test.spoil(t, p)
			err = wiring.CheckChild(p.node, p.container, c, h)
			var mismatch *wiring.MismatchError
			if !errors.As(err, &mismatch) {
				t.Fatalf("error %v", err)
			}
			if diff := cmp.Diff(test.want, mismatch.Differences); diff != "" {
				t.Errorf("differences (-want +got):\n%s", diff)
			}
		})
	}
}

// What somebody in the container has made is no child of the node's, and DEL leaves it.
func TestFindChildOfAnother(t *testing.T) {
	p, _ := newParent(t)
	p.containerNS.Run(t, "ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
	p.containerNS.Run(t, "ip", "link", "add", "link", "veth0", "name", "eth0", "address", "02:00:00:00:00:07", "type", "macvlan", "mode", "private")
	got, err := wiring.FindChild(p.node, p.containerNS.Path, "eth0")
	must(t, err)
	want := wiring.ChildLink{
		NetNS: inodeOf(t, p.containerNS.Path), Number: numberOf(t, p.nodeNS, p.containerNS), Index: indexOf(t, p.containerNS, "eth0"),
		MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}, Inside: indexOf(t, p.containerNS, "veth0"), Mode: wiring.ModePrivate,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
	must(t, wiring.RemoveChild(p.node, p.containerNS.Path, "eth0"))
	indexOf(t, p.containerNS, "eth0")

	for path, want := range map[string]error{"/run/netns/nobody": fs.ErrNotExist, os.DevNull: wiring.ErrNotNamespace} {
		if _, err := wiring.FindChild(p.node, path, "eth0"); !errors.Is(err, want) {
			t.Errorf("%s: error %v, want %v", path, err, want)
		}
		must(t, wiring.RemoveChild(p.node, path, "eth0"))
	}
}

func TestDefaultDevice(t *testing.T) {
	ns, node := newNode(t)
	other := nstest.New(t, "other")
	for i, name := range []string{"a0", "b0"} {
		nstest.Veth(t, ns, name, other, name)
		ns.Run(t, "ip", "addr", "add", fmt.Sprintf("192.0.%d.1/24", i+2), "dev", name)
		ns.Run(t, "ip", "addr", "add", fmt.Sprintf("2001:db8:%d::1/64", i+2), "dev", name, "nodad")
	}
	for _, step := range []struct {
		route []string
		want  string
	}{
		{nil, ""},
		{[]string{"unreachable", "default", "metric", "1"}, ""},
		{[]string{"default", "via", "2001:db8:2::2"}, "a0"},
		{[]string{"default", "via", "192.0.3.2", "metric", "20"}, "b0"},
		{[]string{"default", "via", "192.0.2.2", "metric", "10"}, "a0"},
		{[]string{"default", "metric", "5", "nexthop", "via", "192.0.3.2", "nexthop", "via", "192.0.2.2"}, "b0"},
	} {
		if step.route != nil {
			ns.Run(t, "ip", append([]string{"route", "add"}, step.route...)...)
		}
		got, err := wiring.DefaultDevice(node)
		must(t, err)
		if got != step.want {
			t.Errorf("after route %v: %q, want %q", step.route, got, step.want)
		}
	}
}

// needVLAN skips on kernels without VLANs; those of the matrix have them.
func needVLAN(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, wiring.ErrNoVLAN) {
		nstest.NotBuilt(t, "a VLAN device", "CONFIG_VLAN_8021Q")
	}
	must(t, err)
}

func TestVLAN(t *testing.T) {
	p, other := newParent(t)
	vlan := wiring.VLAN{Name: "lan0.50", Lower: indexOf(t, p.nodeNS, parentName), ID: 50}
	index, err := wiring.MakeVLAN(p.node, vlan)
	needVLAN(t, err)
	if got := indexOf(t, p.nodeNS, "lan0.50"); got != index {
		t.Errorf("index %d, want %d", index, got)
	}
	_, err = wiring.MakeVLAN(p.node, vlan)
	if !errors.Is(err, wiring.ErrTaken) {
		t.Errorf("again: %v", err)
	}
	// It carries what the child says, with the tag.
	other.Run(t, "ip", "link", "add", "link", "eth0", "name", "eth0.50", "up", "type", "vlan", "id", "50")
	other.Run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "eth0.50")
	c, h := testChild(), testHoused()
	c.Parent = "lan0.50"
	made, err := wiring.CreateChild(p.node, p.container, c)
	must(t, err)
	_, err = wiring.ConfigureChild(p.container, "eth0", made, h)
	must(t, err)
	must(t, wiring.SettleChild(p.container, "eth0", h))
	p.containerNS.Run(t, "ping", "-c1", "-W5", "192.0.2.1")

	rename(t, p.nodeNS, "lan0.50", "renamed")
	for range 2 {
		must(t, wiring.RemoveVLAN(p.node, index))
	}
	must(t, wiring.RemoveVLAN(p.node, vlan.Lower)) // no VLAN
	if exists, err := wiring.LinkExists(p.node, parentName); err != nil || !exists {
		t.Errorf("its parent is there: %t, %v", exists, err)
	}
	if exists, err := wiring.LinkExists(p.container, "eth0"); err != nil || exists {
		t.Errorf("its child is there: %t, %v", exists, err)
	}
}

// On a device that is down it comes up later.
func TestVLANOnADeviceThatIsDown(t *testing.T) {
	p, _ := newParent(t)
	p.nodeNS.Run(t, "ip", "link", "set", parentName, "down")
	_, err := wiring.MakeVLAN(p.node, wiring.VLAN{Name: "v50", Lower: indexOf(t, p.nodeNS, parentName), ID: 50})
	needVLAN(t, err)
	p.nodeNS.Run(t, "ip", "link", "set", parentName, "up")
	if !look(t, p.nodeNS, "v50").Up {
		t.Error("the VLAN stays down")
	}
}
