// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// Values of skb->tc_index on the way by the pacer (paced_index of bpf/lib/bandwidth.h).
const (
	pacedIn     = 0x7e60          // what an endpoint gets, from another
	pacedStack  = pacedIn | 1     // from the host's stack
	pacedUplink = pacedIn | 2     // from the world
	pacedSent   = pacedIn | 1<<3  // what an endpoint sends
	pacedHeld   = 1 << 4          // from pacer_out to pacer_in: held back
	pacedWrong  = pacedIn | 1<<15 // of somebody else
)

// withPacer makes a node whose endpoint a is held to slow, both ways, by a pacer that has the index
// of a device which is none.
func withPacer(t *testing.T) *node {
	t.Helper()
	n := withLimits(t)
	n.do(t, func() error { return errors.Join(n.load(pacerOut), n.load(pacerIn)) })
	n.preludes = newPreludes(t, n.Datapath)
	return n
}

// paceAt has a's limit overdrawn by so much, and hold back for a longest time. It returns when a
// packet leaves that is held back.
func (n *node) paceAt(t *testing.T, direction uint32, overdrawn, longest time.Duration) (departure uint64) {
	t.Helper()
	n.credit(t, direction, -overdrawn)
	return n.bucket(t, direction, func(l *maps.Limit) {
		l.Pacer, l.Horizon, l.Room = uint32(n.other.Attrs().Index), uint32(longest/time.Microsecond), 100
	}).Empty
}

func byPacer(device int, seen uint32) want {
	return want{verdict: redirect, mark: uint32(device), seen: seen}
}

// What meets a limit goes by the pacer, wherever it is met, and comes back from it.
func TestPacerWays(t *testing.T) {
	n := withPacer(t)
	n.paceAt(t, maps.LimitEgress, time.Hour, time.Hour)
	eachFamily(t, func(t *testing.T, f family) {
		n.paceAt(t, maps.LimitIngress, 2*time.Hour, time.Hour)
		n.forget(t)
		frame := sent(n.a, ip(f.a, f.world, 64, udp(low, server)...)...)
		sends := func(mark, seen uint32) run {
			return run{program: limitEgress, device: n.a.IfIndex, in: frame, mark: mark, seen: seen}
		}
		comes := func(mark, seen uint32) run {
			return run{program: pacerIn, device: n.other.Attrs().Index, in: frame, mark: mark, seen: seen}
		}
		a := uint32(n.a.IfIndex)
		stack := func(ethernet packet.Layer) run {
			layers := append([]packet.Layer{ethernet}, ip(f.world, f.a, 64, udp(server, low)...)...)
			return run{program: limitIngress, device: n.a.IfIndex, in: packet.New(layers...)}
		}
		back := untouched()
		back.mark = a
		toA := ip(f.b, f.a, 63, udp(low, server)...)
		arrives := byPacer(n.a.IfIndex, pacedIn)
		arrives.out, arrives.counters = delivered(n.a, toA...), []string{"decided"}
		again := arrives
		again.counters = nil
		n.story(t,
			step{"sent", sends(0, 0), byPacer(n.a.IfIndex, pacedSent)},
			step{"sent, and back", sends(a, pacedSent), back},
			step{"sent, with the mark alone", sends(a, 0), byPacer(n.a.IfIndex, pacedSent)},
			step{"sent, with another's mark", sends(a+1, pacedSent), drops("from_container bandwidth_egress")},
			step{"sent, with tc_index alone", sends(0, pacedSent), drops("from_container bandwidth_egress")},
			step{"sent, as if to be had", sends(a, pacedIn), byPacer(n.a.IfIndex, pacedSent)},
			step{"from the stack", stack(packet.Eth(n.a.HostMAC, n.a.MAC)), byPacer(n.a.IfIndex, pacedStack)},
			step{"flooded, for a station", stack(packet.Eth(n.a.HostMAC, stationMAC())), drops("to_container bandwidth_ingress")},
			step{"flooded, for all", stack(packet.Eth(n.a.HostMAC, packet.MAC("ff:ff:ff:ff:ff:ff"))), drops("to_container bandwidth_ingress")},
			step{"from another", n.from(n.b, ip(f.b, f.a, 64, udp(low, server)...)...), arrives},
			step{"from another, as decided", n.from(n.b, ip(f.b, f.a, 64, udp(low, server)...)...), again},
			step{"out, sent", comes(a, pacedSent), want{verdict: redirect, mark: a, seen: pacedSent}},
			step{"out, to be had", comes(a, pacedIn), want{verdict: redirect, seen: pacedIn}},
			step{"out, held back", comes(a, pacedSent|pacedHeld), want{verdict: redirect, mark: a, seen: pacedSent}},
			step{"out, of the host", comes(0, 0), drops()},
			step{"out, without a mark", comes(0, pacedSent), drops()},
			step{"out, of somebody else", comes(a, pacedWrong), drops()},
			step{"out, with the mark alone", comes(a, 0), drops()},
		)
		n.paceAt(t, maps.LimitIngress, time.Minute, time.Hour)
		n.story(t, step{"flooded, while it would not be too late", stack(packet.Eth(n.a.HostMAC, stationMAC())), untouched()})
		n.forget(t)
		held := n.fromA(ip(f.a, f.world, 64, udp(inside, server)...)...)
		held.mark, held.seen = a, pacedSent
		n.check(t, held, forwarded(sent(n.a, ip(f.host, f.world, 63, udp(inside, server)...)...), "decided"))
		answer := byPacer(n.a.IfIndex, pacedUplink)
		answer.out, answer.counters = delivered(n.a, ip(f.world, f.a, 59, udp(server, inside)...)...), []string{"decided"}
		n.check(t, n.fromWorld(ip(f.world, f.host, 60, udp(server, inside)...)...), answer)
	})
}

// When the pacer lets what leave.
func TestPacerDeparture(t *testing.T) {
	n := withPacer(t)
	for _, way := range []struct {
		name      string
		direction uint32
		seen      uint32
		counted   []string
		drop      string
	}{
		{"sent", maps.LimitEgress, pacedSent, nil, "from_container bandwidth_egress"},
		{"from another", maps.LimitIngress, pacedIn, []string{"from_container delivered"}, "from_container bandwidth_ingress"},
		{"from the stack", maps.LimitIngress, pacedStack, nil, "to_container bandwidth_ingress"},
	} {
		t.Run(way.name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, f family) {
				frame := func(class uint8, size int) run {
					return run{
						program: pacerOut, device: n.other.Attrs().Index, mark: uint32(n.a.IfIndex), seen: way.seen,
						in: sent(n.a, packet.IP(f.a, f.world, packet.TOS(class)), packet.UDP(low, server), packet.Payload(size)),
					}
				}
				leaves := func(at uint64) want {
					seen := way.seen
					if at != 0 {
						seen |= pacedHeld
					}
					return want{verdict: passOn, mark: uint32(n.a.IfIndex), seen: seen, counters: way.counted, departure: at}
				}
				big, small := frame(0, 900), frame(0, 100)
				wantLimit := func(departure uint64, held uint64, runs ...run) {
					t.Helper()
					got := n.bucket(t, way.direction, nil)
					want := bound(got)
					want.Empty, want.Held, want.Waiting = departure, held, held
					for _, r := range runs {
						want.Empty += priceOf(len(r.in))
						want.Packets++
						want.Bytes += uint64(len(r.in))
					}
					if diff := gocmp.Diff(want, got, cmpopts.IgnoreUnexported(maps.Limit{}), cmpopts.IgnoreFields(maps.Limit{}, "Busy", "Small")); diff != "" {
						t.Errorf("limit (-want +got):\n%s", diff)
					}
				}

				// One after the other, each when those before are paid for.
				at := n.paceAt(t, way.direction, time.Minute, time.Hour)
				n.bucket(t, way.direction, func(l *maps.Limit) { l.Small = 0 })
				n.story(t,
					step{"held back", big, leaves(at)},
					step{"behind it", big, leaves(at + priceOf(len(big.in)))},
					step{"small, behind its own", small, leaves(at + 2*priceOf(len(big.in)))},
				)
				wantLimit(at, 3, big, big, small)

				// A small one whose flow has nothing held back goes at once, and is paid for.
				at = n.paceAt(t, way.direction, time.Minute, time.Hour)
				n.bucket(t, way.direction, func(l *maps.Limit) { l.Small = 0 })
				n.story(t,
					step{"small, of a flow that waits for nothing", small, leaves(0)},
					step{"small, beyond what small ones have", small, leaves(at + priceOf(len(small.in)))},
				)
				wantLimit(at, 1, small, small)

				// Too late is dropped, and is not paid for.
				at = n.paceAt(t, way.direction, time.Minute, time.Second)
				n.story(t, step{"too late", big, drops(way.drop)}, step{"small, too late", small, drops(way.drop)})
				if got := n.bucket(t, way.direction, nil); got.Empty != at || got.Dropped != 2 || got.Packets != 0 {
					t.Errorf("after two that are too late: %+v", got)
				}

				// So many are held back at most, however small they are.
				at = n.paceAt(t, way.direction, time.Minute, time.Hour)
				n.bucket(t, way.direction, func(l *maps.Limit) { l.Room = 2 })
				left := run{program: pacerIn, device: n.other.Attrs().Index, mark: uint32(n.a.IfIndex), seen: way.seen | pacedHeld, in: big.in}
				gone := want{verdict: redirect, seen: way.seen}
				if way.direction == maps.LimitEgress {
					gone.mark = uint32(n.a.IfIndex)
				}
				n.story(t,
					step{"the first of two", big, leaves(at)}, step{"the second", big, leaves(at + priceOf(len(big.in)))},
					step{"the third", big, drops(way.drop)},
					step{"the first leaves", left, gone},
					step{"the third again", big, leaves(at + 2*priceOf(len(big.in)))},
				)

				// Who understands it is told when it has to wait.
				const able, met = 2, 3 // codepoints of RFC 3168, section 5
				at = n.paceAt(t, way.direction, time.Minute, 9*time.Minute)
				n.story(t, step{"a short wait", frame(able, 900), leaves(at)})
				at = n.paceAt(t, way.direction, time.Minute, 7*time.Minute)
				marked := leaves(at)
				marked.out = frame(met, 900).in
				n.story(t, step{"a long wait", frame(able, 900), marked})
				if got := n.bucket(t, way.direction, nil); got.Marked != 1 {
					t.Errorf("%d are marked, not one", got.Marked)
				}

				// With credit it goes at once; a silence gives no more than the burst.
				n.paceAt(t, way.direction, -2*time.Hour, time.Hour)
				before := monotonic(t)
				n.story(t, step{"with credit", big, leaves(0)})
				if got, least := n.bucket(t, way.direction, nil).Empty, before-uint64(slow.Burst)+priceOf(len(big.in)); int64(got-least) < 0 { // of a clock that began less than two hours ago
					t.Errorf("after a silence the bucket is empty at %d, not from %d on", got, least)
				}

				// What was lost with its queue waits no more when the rest has left.
				n.paceAt(t, way.direction, -time.Hour, time.Hour)
				n.bucket(t, way.direction, func(l *maps.Limit) { l.Waiting = 100 })
				n.story(t, step{"after a loss", big, leaves(0)})
				if got := n.bucket(t, way.direction, nil).Waiting; got != 0 {
					t.Errorf("%d wait, not 0", got)
				}
			})
		})
	}
	t.Run("frames", func(t *testing.T) { testPacerFrames(t, n) })
	t.Run("segments", func(t *testing.T) {
		a := uint32(n.a.IfIndex)
		testSegmentsCost(t, n, maps.LimitEgress, run{program: pacerOut, device: n.other.Attrs().Index, mark: a, seen: pacedSent},
			want{verdict: passOn, mark: a, seen: pacedSent})
	})
	t.Run("without a limit any more", func(t *testing.T) {
		f := v4()
		frame := sent(n.c, ip(f.c, f.world, 64, udp(low, server)...)...)
		goes := func(mark, seen uint32) run {
			return run{program: pacerOut, device: n.other.Attrs().Index, in: frame, mark: mark, seen: seen}
		}
		c := uint32(n.c.IfIndex)
		n.story(t,
			step{"sent", goes(c, pacedSent), want{verdict: passOn, mark: c, seen: pacedSent}},
			step{"from another", goes(c, pacedIn), want{verdict: passOn, mark: c, seen: pacedIn, counters: []string{"from_container delivered"}}},
			step{"of the host", goes(0, 0), drops()},
			step{"of the host, as if sent", goes(0, pacedSent), drops()},
			step{"of somebody else", goes(c, pacedWrong), drops()},
		)
	})
}

// The pair is there while there are limits, whatever becomes of the agent; beside a device of somebody
// else that has its name, limits do without.
func TestPacerPair(t *testing.T) {
	nstest.Deal(t, 1)
	nstest.Root(t)
	ns, far := nstest.New(t, "node"), nstest.New(t, "far")
	nstest.Veth(t, ns, "tdla", far, "tdla")
	device, err := ns.Handle.LinkByName("tdla")
	must(t, err)
	root := filepath.Join(nstest.BPFFS(t), "tendril")
	var d *Datapath
	clock := time.Now()
	open := func() {
		t.Helper()
		var err error
		ns.Do(t, func() { d, err = Open(Config{Root: root, FlowsMax: 256, TranslationsMax: 256}) })
		must(t, err)
		d.now = func() time.Time { return clock }
	}
	open()
	t.Cleanup(func() { _ = d.Close() })
	if !d.pacer.able {
		nstest.NotBuilt(t, "fq", "CONFIG_NET_SCH_FQ")
	}
	do := func(f func() error) {
		t.Helper()
		var err error
		ns.Do(t, func() { err = f() })
		must(t, err)
	}
	// pair is the index of the first device, 0 when there is none of the two.
	pair := func() (index int) {
		t.Helper()
		do(func() error {
			ends, _, err := d.pacer.ends()
			if arePaired(ends) {
				index = ends[maps.LimitEgress].Attrs().Index
			}
			return err
		})
		return index
	}
	wantPair := func(when string, want int) {
		t.Helper()
		if got := pair(); got != want {
			t.Errorf("%s the pair has index %d, not %d", when, got, want)
		}
	}
	free := Endpoint{
		ID: 1, IfIndex: device.Attrs().Index, IfName: "tdla", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1},
		HostMAC: device.Attrs().HardwareAddr, Addresses: []netip.Addr{v4().a}, MTU: 1500,
	}
	limited := free
	limited.Egress = slow
	do(func() error { return d.AttachEndpoint(free) })
	wantPair("without a limit", 0)

	ns.Run(t, "ip", "link", "add", "tendril-pacer1", "type", "bridge")
	do(func() error { return errors.Join(d.SetLimits(free, limited), d.CheckEndpoint(limited)) })
	wantPair("beside somebody else's device", 0)
	do(func() error { return errors.Join(d.SetLimits(limited, free), d.RepairPins(), d.RepairPins()) })
	ns.Run(t, "ip", "link", "del", "tendril-pacer1") // it is still there

	do(func() error { return errors.Join(d.SetLimits(free, limited), d.CheckEndpoint(limited)) })
	first := pair()
	if first == 0 {
		t.Fatal("there is no pair for a limit")
	}
	must(t, d.Close())
	wantPair("without an agent", first)
	open()
	do(func() error { return errors.Join(restart(d, []Endpoint{limited}), d.CheckEndpoint(limited)) })
	wantPair("with another agent", first)

	// One that is made anew is used by limits that nobody has looked at.
	other := limited
	other.Ingress = slow
	do(func() error { return d.SetLimits(limited, other) })
	ns.Run(t, "ip", "link", "del", "tendril-pacer0")
	do(func() error { return errors.Join(d.RepairPacer(), d.CheckEndpoint(other)) })
	second := pair()
	if second == 0 || second == first {
		t.Errorf("the new pair has index %d, the old one had %d", second, first)
	}
	do(d.RepairPacer)
	wantPair("after a repair of nothing", second)
	repairs := func(want string, spoil ...string) {
		t.Helper()
		ns.Run(t, spoil[0], spoil[1:]...)
		do(func() error {
			found, err := d.RepairEndpoint(other)
			if diff := gocmp.Diff([]string{want}, found); diff != "" {
				t.Errorf("found (-want +got):\n%s", diff)
			}
			return errors.Join(err, d.CheckEndpoint(other))
		})
		wantPair("after "+want, second)
	}
	repairs("qdisc fq on interface tendril-pacer0 has limit 100, not 16777216, has orphan_mask 1023, not 262143, has horizon 1000000, not 10000000, has pacing 1, not 0",
		"tc", "qdisc", "change", "dev", "tendril-pacer0", "root", "fq", "orphan_mask", "1023", "limit", "100", "pacing", "horizon", "1s")
	repairs("qdisc fq on interface tendril-pacer1 is missing", "tc", "qdisc", "del", "dev", "tendril-pacer1", "root")
	repairs("qdisc fq on interface tendril-pacer0 is missing", "tc", "qdisc", "replace", "dev", "tendril-pacer0", "root", "pfifo")

	// One that is spoilt again at once waits.
	ns.Run(t, "ip", "link", "set", "tendril-pacer0", "down")
	do(func() error {
		if err := errors.Join(d.RepairPacer(), d.checkPacer()); err == nil || err.Error() != "device tendril-pacer0 is down" {
			t.Errorf("just after a repair: %v", err)
		}
		clock = clock.Add(repairPause)
		return errors.Join(d.RepairPacer(), d.CheckEndpoint(other))
	})
	wantPair("after a repair of what was down", second)

	// Where none can be made limits do without, and it is not forgotten.
	clock = clock.Add(repairPause)
	names := pacerDevices
	pacerDevices[maps.LimitIngress] = "tendril-pacer-of-too-long-a-name"
	ns.Run(t, "ip", "link", "del", "tendril-pacer0")
	do(func() error {
		first, again := d.RepairPacer(), d.RepairPacer()
		if first == nil || !errors.Is(again, first) {
			t.Errorf("repairs without a pair end with %v, then %v", first, again)
		}
		for key := range d.limitEntries(other) {
			var value maps.Limit
			must(t, d.maps.Bandwidth.Lookup(key, &value))
			if value.Pacer != 0 {
				t.Errorf("limit %v is held back by device %d", key, value.Pacer)
			}
		}
		return nil
	})
	pacerDevices = names
	do(func() error {
		_, err := d.RepairEndpoint(other)
		return errors.Join(err, d.CheckEndpoint(other), d.RepairPacer())
	})
	second = pair()
	do(func() error { return errors.Join(d.SetLimits(other, limited), d.RepairPins(), d.RepairPins()) })
	wantPair("with a limit less", second)
	ns.Run(t, "ip", "link", "set", "tendril-pacer1", "down")
	ns.Run(t, "ip", "link", "set", "tendril-pacer1", "name", "another")
	do(func() error {
		found, err := d.RepairEndpoint(limited)
		if diff := gocmp.Diff([]string{"device tendril-pacer1 is missing"}, found); diff != "" {
			t.Errorf("found (-want +got):\n%s", diff)
		}
		return errors.Join(err, d.CheckEndpoint(limited))
	})
	second = pair()
	do(func() error { return d.SetLimits(limited, free) })
	wantPair("after the last limit, which may have held something back", second)
	do(d.RepairPins)
	wantPair("at the first look", second)
	do(d.RepairPins)
	wantPair("at the second look", 0)
	do(d.RepairPacer)
	wantPair("after a repair of what nobody needs", 0)

	do(func() error { return d.SetLimits(free, limited) })
	must(t, d.Close())
	open()
	do(func() error { return errors.Join(restart(d, []Endpoint{free}), d.RepairPins()) })
	wantPair("with an agent that knows of no limit", 0)
	do(func() error { return d.SetLimits(free, limited) })
	must(t, d.Close())
	do(func() error { return Remove(root) })
	wantPair("after the cleanup", 0)
	if out, err := ns.Command("ip", "link", "show", "another").CombinedOutput(); err == nil {
		t.Errorf("the other end of a pair is left: %s", out)
	}
}

// How long packets are held back at most.
func TestPacerHorizon(t *testing.T) {
	for rate, want := range map[uint64]time.Duration{
		1000: 2 * time.Second, 1_000_000: 524288 * time.Microsecond, 10_000_000: 52428800 * time.Nanosecond,
		11_000_000: 50 * time.Millisecond, 1_000_000_000_000_000: 50 * time.Millisecond,
	} {
		if got := (Limit{Rate: rate, Burst: 1}).horizon(); got != want {
			t.Errorf("%d bit/s: %v, want %v", rate, got, want)
		}
	}
	got := (Limit{Rate: 1_000_000, Burst: time.Millisecond}).value(false, 7)
	want := maps.Limit{Cost: 8000 << 20, Burst: uint64(time.Millisecond), Pacer: 7, Horizon: 524288, Room: 512}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	// Of frames of 1500 bytes 50 ms are 4166 at 1 Gbit/s: so many again are held back.
	for rate, want := range map[uint64]uint64{1_000_000_000: 8333, 1_000_000_000_000_000: 1 << 16} {
		if got := (Limit{Rate: rate, Burst: 1}).room(); got != want {
			t.Errorf("%d bit/s: room for %d, want %d", rate, got, want)
		}
	}
}
