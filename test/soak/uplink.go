// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/tendril-net/tendril/internal/nodetest"
)

// The agent follows within a tenth of a second; a packet that was on its way
// then has come by the next second.
const followTime = time.Second

// ip runs the command ip on the node.
func (s *soak) ip(tb testing.TB, family int, args ...string) {
	s.node.Run(tb, "ip", append([]string{[2]string{"-4", "-6"}[family]}, args...)...)
}

// changeWays has the uplinks change while the worlds are uncertain.
func (s *soak) changeWays(what int, how string, f func(tb testing.TB, now view) view) {
	s.ways.change(what, func(now view) view {
		next := now
		err := try(func(tb testing.TB) { next = f(tb, now) })
		if err != nil {
			s.ledger.wrong("uplinks", "%s: %v%s", how, err, s.agentLog())
		}
		return next
	})
}

// awaitFollowed returns when the agent serves these sources, and packets do too.
func (s *soak) awaitFollowed(tb testing.TB, source [2][2]netip.Addr) {
	s.ways.mu.Lock()
	s.ways.now.source = source
	s.ways.mu.Unlock()
	nodetest.Eventually(tb, "the agent follows the uplinks", func() error { return s.followed(tb) })
	rest(context.Background(), followTime)
}

// moveDefault has the default route lead to the other world for some seconds.
// Translated connections wait meanwhile.
func (s *soak) moveDefault(ctx context.Context, random *rand.Rand) {
	const better = 50
	for _, step := range []struct {
		main int
		verb string
	}{{1, "add"}, {0, "del"}} {
		s.changeWays(ofMain, "move the default route", func(tb testing.TB, now view) view {
			for family := range 2 {
				s.ip(tb, family, append([]string{"route", step.verb}, defaultRoute(1, family, better, now.source[1][family].String())...)...)
			}
			s.awaitFollowed(tb, now.source)
			now.main = step.main
			return now
		})
		if step.main == 1 {
			rest(ctx, time.Duration(random.Int64N(int64(6*time.Second))))
		}
	}
}

// changeSource has the second uplink hide containers behind its other address for
// some seconds.
func (s *soak) changeSource(ctx context.Context, random *rand.Rand) {
	for _, source := range [][2]string{spareOf, uplinkOf[1]} {
		s.changeWays(1, "change the uplink's address", func(tb testing.TB, now view) view {
			for family := range 2 {
				s.ip(tb, family, append([]string{"route", "replace"}, defaultRoute(1, family, metricOf(1), source[family])...)...)
				now.source[1][family] = netip.MustParseAddr(source[family])
			}
			s.awaitFollowed(tb, now.source)
			return now
		})
		if source == spareOf {
			rest(ctx, time.Duration(random.Int64N(int64(6*time.Second))))
		}
	}
}

// disturbRoutes has every decision be taken again, to the same end: routes and
// addresses that concern nobody come and go. No socket chooses a deprecated address.
func (s *soak) disturbRoutes(_ context.Context, random *rand.Rand) {
	err := try(func(tb testing.TB) {
		for range 1 + random.IntN(20) {
			s.ip(tb, 0, "route", "add", "198.51.100.0/24", "via", worldOf[0][0])
			s.ip(tb, 1, "address", "add", "2001:db8:5::1/64", "dev", "up0", "nodad", "preferred_lft", "0")
			s.ip(tb, 0, "route", "del", "198.51.100.0/24", "via", worldOf[0][0])
			s.ip(tb, 1, "address", "del", "2001:db8:5::1/64", "dev", "up0")
		}
	})
	if err != nil {
		s.ledger.wrong("uplinks", "routes of nobody: %v", err)
	}
}
