// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
)

// onUplink is a network of macvlan devices on the node's uplink, among the stations there.
func (s *site) onUplink() nodetest.Network {
	ranges := func(subnet, start string) []any {
		return []any{map[string]any{"subnet": subnet, "rangeStart": start}}
	}
	return s.Network("lan").With("driver", "macvlan").With("master", "up0").With("ipMasq", false).With("routes", []any{
		map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "::/0"},
	}).With("ipam", map[string]any{
		"type": "tendril", "ranges": []any{ranges("192.0.2.0/24", "192.0.2.50"), ranges("2001:db8::/64", "2001:db8::50")},
	})
}

// The parent is an uplink: a port of the host leads to its child, whoever dials it, and
// containers of another driver masquerade there as before.
func TestMacvlanOnUplink(t *testing.T) {
	nstest.Halve(t, 1)
	s := running(t)
	lan := s.onUplink()
	x := s.Attach(t, "x", lan)
	s.publish(t, "y", lan, both()...)
	routed := s.Attach(t, "routed", s.pods)
	eachFamily(t, func(t *testing.T, f family) {
		for _, w := range []portWay{
			{name: "a station of the link", from: s.world, at: f.uplink, seen: f.world},
			{name: "a sibling", from: x.NS, at: f.uplink, seen: f.of(x)},
			{name: "a routed container", from: routed.NS, at: f.uplink, seen: f.of(routed)},
		} {
			t.Run(w.name, func(t *testing.T) { w.check(t) })
		}
		t.Run("routed to the world", func(t *testing.T) { testWay(t, routed.NS, s.world, f.world, f.uplink) })
		t.Run("routed to a child", func(t *testing.T) { testWay(t, routed.NS, x.NS, f.of(x), f.uplink) })
		t.Run("host to the world", func(t *testing.T) { testWay(t, s.NS, s.world, f.world, f.uplink) })
		t.Run("child to the world", func(t *testing.T) { testWay(t, x.NS, s.world, f.world, f.of(x)) })
	})
	if drops := s.Drops(t); len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}
}
