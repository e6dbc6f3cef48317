// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/tendril-net/tendril/internal/nstest"
)

// TestFormerUplink: what has just ceased to be an uplink is served as one for a while: answers
// find their way, and so does what the routes lead there again.
func TestFormerUplink(t *testing.T) {
	n := newNode(t, Config{Masquerade: true})
	clock := time.Now()
	n.now = func() time.Time { return clock }
	f, tr := v4(), transports()[1]
	reconcile := func(uplinks ...Uplink) { n.do(t, func() error { return n.ReconcileUplinks(uplinks) }) }
	attached := func(want ...string) {
		t.Helper()
		var got []string
		for _, program := range []string{fromUplink, toUplink} {
			n.do(t, func() error {
				a := attachment{n.uplink.IfIndex, program}
				ok, err := n.hooks.of(a).has(a)
				if ok {
					got = append(got, program)
				}
				return err
			})
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("programs on the device (-want +got):\n%s", diff)
		}
	}
	n.open(t, f, tr, inside)
	attached(fromUplink, toUplink)
	there := n.from(n.a, ip(f.a, f.world, 64, tr.there(inside)...)...)
	back := n.fromWorld(ip(f.world, f.host, 58, tr.back(inside)...)...)
	served := func() {
		t.Helper()
		attached(fromUplink, toUplink)
		n.check(t, back, deliveredAs(delivered(n.a, ip(f.world, f.a, 57, tr.back(inside)...)...), "decided"))
		n.check(t, there, forwarded(sent(n.a, ip(f.host, f.world, 63, tr.there(inside)...)...), "decided"))
	}
	reconcile()
	n.do(t, n.Invalidate)
	served()
	clock = clock.Add(Linger - 1)
	reconcile()
	n.do(t, n.Invalidate)
	served()
	clock = clock.Add(1)
	reconcile()
	attached()
	n.check(t, there, drops("decided", "no_uplink"))

	reconcile(n.uplink)
	attached(fromUplink, toUplink)
	reconcile()
	clock = clock.Add(Linger - 1)
	reconcile(n.uplink) // it is one again, and nothing of before counts
	clock = clock.Add(1)
	reconcile()
	attached(fromUplink, toUplink)
}

// watched are hooks that tell of each program that is taken away, and may refuse.
type watched struct {
	hooks
	detaching func() error
}

func (w watched) detach(a attachment) error {
	if err := w.detaching(); err != nil {
		return err
	}
	return w.hooks.detach(a)
}

// TestUplinkEndsWithItsDecisions: what was decided to leave by an uplink is decided anew
// before to_uplink, which hides what the stack sends on, is gone; also when it cannot be
// taken away.
func TestUplinkEndsWithItsDecisions(t *testing.T) {
	n := newNode(t, Config{Masquerade: true})
	clock := time.Now()
	n.now = func() time.Time { return clock }
	f, tr := v4(), transports()[1]
	n.open(t, f, tr, inside)
	n.do(t, func() error { return n.ReconcileUplinks(nil) })
	clock = clock.Add(Linger)
	again := n.fromA(ip(f.a, f.world, 64, tr.there(inside)...)...)
	refusal := errors.New("not now")
	plain := n.hooks.uplinks
	n.hooks.uplinks = watched{plain, func() error {
		n.check(t, again, drops("decided", "no_uplink"))
		return refusal
	}}
	n.ns.Do(t, func() {
		if err := n.ReconcileUplinks(nil); !errors.Is(err, refusal) {
			t.Errorf("error %v, want %v", err, refusal)
		}
	})
	n.hooks.uplinks = plain
}

// TestRefusedDatapath: whoever is not accepted has changed nothing: neither pins nor the
// programs that serve.
func TestRefusedDatapath(t *testing.T) {
	nstest.LeaveTo(t, "6.12")
	s := newSite(t, "")
	refusal := errors.New("no")
	var asked [][]string
	open := func() error {
		cfg := s.cfg
		cfg.Accept = func(attached []string) error {
			asked = append(asked, attached)
			return refusal
		}
		var err error
		s.node.Do(t, func() { _, err = Open(cfg) })
		return err
	}
	if err := open(); !errors.Is(err, refusal) {
		t.Errorf("error %v, want %v", err, refusal)
	}
	if left, err := filepath.Glob(filepath.Join(s.cfg.Root, "*", "*")); err != nil || len(left) > 0 {
		t.Errorf("pins of one that was refused: %q, %v", left, err)
	}
	d := s.open(t)
	must(t, d.Close())
	serving := func() (ids []int) {
		t.Helper()
		for _, e := range s.ends {
			filters, err := s.node.Handle.FilterList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: e.IfIndex}}, netlink.HANDLE_MIN_INGRESS)
			must(t, err)
			for _, filter := range filters {
				ids = append(ids, filter.(*netlink.BpfFilter).Id)
			}
		}
		return ids
	}
	before := serving()
	if err := open(); !errors.Is(err, refusal) {
		t.Errorf("error %v, want %v", err, refusal)
	}
	if diff := gocmp.Diff(before, serving()); diff != "" || len(before) != 2 {
		t.Errorf("programs that serve (-want +got):\n%s", diff)
	}
	if diff := gocmp.Diff([][]string{nil, {"tdla", "tdlb"}}, asked); diff != "" {
		t.Errorf("devices that were asked about (-want +got):\n%s", diff)
	}
}
