// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// TestFormerUplink: answers to what left by an uplink find their way although it has
// just ceased to be one, and nothing new goes by it.
func TestFormerUplink(t *testing.T) {
	n := newNode(t, Config{Masquerade: true, FlowsMax: 256, TranslationsMax: 256})
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
	reconcile()
	attached(fromUplink)
	n.check(t, n.fromWorld(ip(f.world, f.host, 58, tr.back(inside)...)...),
		deliveredAs(delivered(n.a, ip(f.world, f.a, 57, tr.back(inside)...)...), "decided"))
	n.check(t, n.from(n.a, ip(f.a, f.world, 64, tr.there(low)...)...), drops("decided", "no_uplink"))
	clock = clock.Add(linger - 1)
	reconcile()
	attached(fromUplink)
	clock = clock.Add(1)
	reconcile()
	attached()

	reconcile(n.uplink)
	attached(fromUplink, toUplink)
	reconcile()
	clock = clock.Add(linger - 1)
	reconcile(n.uplink) // it is one again, and nothing of before counts
	clock = clock.Add(1)
	reconcile()
	attached(fromUplink)
}
