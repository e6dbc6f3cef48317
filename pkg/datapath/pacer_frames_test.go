// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// testPacerFrames: the pacer asks no frame what it is, holds back each for its length, and gives it back as it was.
func testPacerFrames(t *testing.T, n *node) {
	a := uint32(n.a.IfIndex)
	for _, way := range []struct {
		name      string
		direction uint32
		seen      uint32
		mark      uint32 // behind it
		counted   []string
	}{
		{"sent", maps.LimitEgress, pacedSent, a, nil},
		{"from another", maps.LimitIngress, pacedIn, 0, []string{"from_container delivered"}},
	} {
		t.Run(way.name, func(t *testing.T) {
			eachLimitFrame(t, n.a, func(t *testing.T, one limitFrame) {
				goes := func(program string, seen uint32) run {
					return run{program: program, device: n.other.Attrs().Index, in: one.in, vlan: one.vlan, mark: a, seen: seen}
				}
				at := n.paceAt(t, way.direction, time.Minute, time.Hour)
				if way.direction == maps.LimitEgress {
					met := byPacer(n.a.IfIndex, pacedSent)
					if one.exempt {
						met = untouched()
					}
					n.story(t, step{"met", run{program: limitEgress, device: n.a.IfIndex, in: one.in, vlan: one.vlan}, met})
				}
				n.story(t,
					step{"held back", goes(pacerOut, way.seen), want{verdict: passOn, mark: a, seen: way.seen | pacedHeld, counters: way.counted, departure: at}},
					step{"out", goes(pacerIn, way.seen|pacedHeld), want{verdict: redirect, mark: way.mark, seen: way.seen}},
				)
				n.wantPaced(t, way.direction, maps.Limit{Empty: at + priceOf(len(one.in)), Packets: 1, Bytes: uint64(len(one.in)), Held: 1})
				n.paceAt(t, way.direction, -time.Minute, time.Hour)
				n.check(t, goes(pacerOut, way.seen), want{verdict: passOn, mark: a, seen: way.seen, counters: way.counted})
			})
		})
	}
	t.Run("segments", func(t *testing.T) {
		eachFamily(t, func(t *testing.T, f family) {
			whole := run{
				program: pacerOut, device: n.other.Attrs().Index, mark: a, seen: pacedSent, gsoSize: 200, gsoSegs: 4,
				in: sent(n.a, packet.IP(f.a, f.world), packet.TCP(low, server), packet.Payload(601)),
			}
			out := whole
			out.program, out.seen = pacerIn, pacedSent|pacedHeld
			one := out
			one.in, one.gsoSize, one.gsoSegs = sent(n.a, packet.IP(f.a, f.world), packet.TCP(low, server), packet.Payload(200)), 0, 0
			gone := want{verdict: redirect, mark: a, seen: pacedSent}
			bytes := len(whole.in) + 3*(len(whole.in)-601)
			for name, comes := range map[string][]run{"as one": {out}, "as segments": slices.Repeat([]run{one}, 4)} {
				t.Run(name, func(t *testing.T) {
					at := n.paceAt(t, maps.LimitEgress, time.Minute, time.Hour)
					n.check(t, whole, want{verdict: passOn, mark: a, seen: pacedSent | pacedHeld, departure: at})
					n.wantPaced(t, maps.LimitEgress, maps.Limit{Empty: at + priceOf(bytes), Packets: 4, Bytes: uint64(bytes), Held: 4, Waiting: 4})
					for _, r := range comes {
						n.check(t, r, gone)
					}
					n.wantPaced(t, maps.LimitEgress, maps.Limit{Empty: at + priceOf(bytes), Packets: 4, Bytes: uint64(bytes), Held: 4})
				})
			}
			t.Run("without room", func(t *testing.T) {
				n.paceAt(t, maps.LimitEgress, time.Minute, time.Hour)
				n.bucket(t, maps.LimitEgress, func(l *maps.Limit) { l.Room, l.Waiting = 4, 4 })
				n.check(t, whole, drops("from_container bandwidth_egress"))
				if got := n.bucket(t, maps.LimitEgress, nil); got.Dropped != 4 || got.Waiting != 4 {
					t.Errorf("%d are dropped and %d wait, not 4 and 4", got.Dropped, got.Waiting)
				}
			})
		})
	})
	t.Run("marked frames", func(t *testing.T) {
		passes := want{verdict: passOn, mark: a, seen: pacedSent | pacedHeld}
		testMarkedFrames(t, n, maps.LimitEgress, func(frame []byte) run {
			return run{program: pacerOut, device: n.other.Attrs().Index, in: frame, mark: a, seen: pacedSent}
		}, &passes, func() { passes.departure = n.paceAt(t, maps.LimitEgress, time.Minute, 7*time.Minute) })
	})
}

// wantPaced compares what a's limit has been used.
func (n *node) wantPaced(t *testing.T, direction uint32, used maps.Limit) {
	t.Helper()
	got := n.bucket(t, direction, nil)
	want := bound(got)
	want.Empty, want.Packets, want.Bytes, want.Held, want.Waiting = used.Empty, used.Packets, used.Bytes, used.Held, used.Waiting
	if diff := gocmp.Diff(want, got, cmpopts.IgnoreUnexported(maps.Limit{}), cmpopts.IgnoreFields(maps.Limit{}, "Busy", "Small", "Marked")); diff != "" {
		t.Errorf("limit (-want +got):\n%s", diff)
	}
}
