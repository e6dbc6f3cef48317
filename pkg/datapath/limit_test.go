// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// slow lets a frame of 1000 bytes pass in 8 s, so that no test takes long enough to
// fill a bucket that is empty.
var slow = Limit{Rate: 1000, Burst: time.Hour}

// priceOf is what so many bytes cost at slow, in ns.
func priceOf(bytes int) uint64 { return uint64(bytes) * 8 * uint64(time.Second) / slow.Rate }

// monotonic reads the programs' clock, in ns.
func monotonic(t *testing.T) uint64 {
	t.Helper()
	var now unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	return uint64(now.Nano())
}

// withLimits makes a node whose endpoint a is held to slow, both ways.
func withLimits(t *testing.T) *node {
	t.Helper()
	n := newNode(t, Config{Masquerade: true})
	before := n.a
	n.a.Ingress, n.a.Egress = slow, slow
	n.do(t, func() error { return errors.Join(n.SetLimits(before, n.a), n.CheckEndpoint(n.a)) })
	n.preludes = newPreludes(t, n.Datapath) // of what has been loaded now, too
	return n
}

// bucket sets, and returns, what a's limit has been used.
func (n *node) bucket(t *testing.T, direction uint32, change func(*maps.Limit)) maps.Limit {
	t.Helper()
	return n.bucketOf(t, n.a, direction, change)
}

func (n *node) bucketOf(t *testing.T, e Endpoint, direction uint32, change func(*maps.Limit)) maps.Limit {
	t.Helper()
	key, value := maps.LimitKey{Ifindex: uint32(e.IfIndex), Direction: direction}, maps.Limit{}
	must(t, n.maps.Bandwidth.Lookup(key, &value))
	if change != nil {
		change(&value)
		must(t, n.maps.Bandwidth.Put(key, value))
	}
	return value
}

// credit leaves so much in a's bucket; below 0 it is overdrawn, by small packets, too.
func (n *node) credit(t *testing.T, direction uint32, left time.Duration) {
	t.Helper()
	n.creditOf(t, n.a, direction, left)
}

func (n *node) creditOf(t *testing.T, e Endpoint, direction uint32, left time.Duration) {
	t.Helper()
	now := monotonic(t)
	n.bucketOf(t, e, direction, func(l *maps.Limit) {
		*l = bound(*l)
		l.Empty = now - uint64(left)
		if left < 0 {
			l.Small = l.Empty
		}
	})
}

// limitWays are the programs that keep a limit for what the stack has, or does not have yet.
var limitWays = []struct {
	program   string
	direction uint32
	drop      string
}{
	{limitEgress, maps.LimitEgress, "from_container bandwidth_egress"},
	{limitIngress, maps.LimitIngress, "to_container bandwidth_ingress"},
}

func TestLimits(t *testing.T) {
	n := withLimits(t)
	for _, way := range limitWays {
		meets := func(frame []byte) run { return run{program: way.program, device: n.a.IfIndex, in: frame} }
		t.Run(way.program, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, f family) {
				big := meets(sent(n.a, packet.IP(f.a, f.world), packet.UDP(low, server), packet.Payload(900)))
				small := meets(sent(n.a, ip(f.a, f.world, 64, udp(low, server)...)...))
				n.credit(t, way.direction, time.Second)
				n.story(t,
					// It may overdraw the bucket once.
					step{"with credit", big, untouched()},
					step{"without", big, drops(way.drop)},
					step{"small, without", small, untouched()},
					step{"small, at their rate", small, drops(way.drop)},
				)
				got := n.bucket(t, way.direction, nil)
				if least := got.DroppedAt + priceOf(len(small.in)); got.Small < least {
					t.Errorf("small packets may go on at %d, before %d", got.Small, least)
				}
				got.Empty, got.Small, got.DroppedAt = 0, 0, 0
				want := slow.value(false, 0)
				want.Packets, want.Bytes, want.Dropped = 2, uint64(len(big.in)+len(small.in)), 2
				if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(maps.Limit{})); diff != "" {
					t.Errorf("limit (-want +got):\n%s", diff)
				}
				// They never wait for one that is large, and never keep it out.
				n.credit(t, way.direction, -time.Hour)
				n.bucket(t, way.direction, func(l *maps.Limit) { l.Small = 0 })
				n.story(t, step{"small, overdrawn by much", small, untouched()}, step{"and more", small, drops(way.drop)})
				n.bucket(t, way.direction, func(l *maps.Limit) { l.Empty = monotonic(t) - uint64(time.Second) })
				n.story(t, step{"large, with credit", big, untouched()})
			})
			t.Run("what a link needs", func(t *testing.T) {
				n.credit(t, way.direction, -time.Hour)
				before := n.bucket(t, way.direction, nil)
				f := v6()
				n.story(t,
					step{"ARP", meets(packet.New(packet.Eth(n.a.MAC, n.a.HostMAC), packet.ARPRequest(packet.Station{MAC: n.a.MAC, IP: v4().a}, v4().gateway()))), untouched()},
					step{"neighbour solicitation", meets(sent(n.a, packet.IP(f.a, f.b, packet.TTL(255)), packet.NeighborSolicit(f.b))), untouched()},
					step{"much of ARP", meets(packet.New(packet.Eth(n.a.MAC, n.a.HostMAC), packet.ARPRequest(packet.Station{MAC: n.a.MAC, IP: v4().a}, v4().gateway()), packet.Payload(300))), drops(way.drop)},
					step{"neighbour solicitation from afar", meets(sent(n.a, packet.IP(f.a, f.b, packet.TTL(254)), packet.NeighborSolicit(f.b))), drops(way.drop)},
					step{"echo", meets(sent(n.a, packet.IP(f.a, f.b), packet.ICMP(128, 0, 0), packet.Payload(20))), drops(way.drop)},
				)
				got := n.bucket(t, way.direction, nil)
				if got.Dropped -= before.Dropped; got.Dropped != 3 || got.Packets != before.Packets || got.Empty != before.Empty {
					t.Errorf("before %+v, after %+v", before, got)
				}
			})
			t.Run("segments", func(t *testing.T) {
				testSegmentsCost(t, n, way.direction, run{program: way.program, device: n.a.IfIndex}, untouched())
			})
			t.Run("frames", func(t *testing.T) { testLimitFrames(t, n, way.program, way.direction, way.drop) })
			t.Run("marked frames", func(t *testing.T) {
				passes := untouched()
				testMarkedFrames(t, n, way.direction, meets, &passes, func() { n.credit(t, way.direction, 10*time.Minute) })
			})
			t.Run("credit", func(t *testing.T) { testLimitCredit(t, n, way.program, way.direction) })
			t.Run("marks", func(t *testing.T) { testLimitMarks(t, n, way.program, way.direction) })
		})
	}
	t.Run("delivered", func(t *testing.T) { testLimitDelivered(t, n) })
	t.Run("changes", func(t *testing.T) { testLimitChanges(t, n) })
	t.Run("unshaped", func(t *testing.T) { testUnshaped(t, n) })
}

// testLimitCredit: a silence gives the burst; after a loss there is credit for what a sender
// could not send while it waited.
func testLimitCredit(t *testing.T, n *node, program string, direction uint32) {
	f := v4()
	r := run{program: program, device: n.a.IfIndex, in: sent(n.a, ip(f.a, f.world, 64, udp(low, server)...)...)}
	price := priceOf(len(r.in))
	set := func(burst, credit, lost time.Duration) (before uint64) {
		now := monotonic(t)
		n.bucket(t, direction, func(l *maps.Limit) {
			l.Burst, l.Empty, l.DroppedAt = uint64(burst), now-uint64(credit), now-uint64(lost)
		})
		return now
	}
	t.Cleanup(func() { n.bucket(t, direction, func(l *maps.Limit) { *l = slow.value(false, 0) }) })
	now := set(time.Millisecond, time.Hour, time.Hour)
	n.check(t, r, untouched())
	if got, least := n.bucket(t, direction, nil).Empty, now-uint64(time.Millisecond)+price; got < least || got > monotonic(t)+price {
		t.Errorf("after a silence the bucket is empty at %d, not from %d on", got, least)
	}
	now = set(time.Millisecond, 200*time.Millisecond, -time.Hour) // lost in an hour: whenever the program runs
	n.check(t, r, untouched())
	got, want := n.bucket(t, direction, nil).Empty, now-uint64(200*time.Millisecond)+price
	if most := max(want, monotonic(t)-uint64(400*time.Millisecond)+price); got < want || got > most {
		t.Errorf("after a loss the bucket is empty at %d, not from %d to %d", got, want, most)
	}
}

// testLimitMarks: who understands it is told before anything is dropped.
func testLimitMarks(t *testing.T, n *node, program string, direction uint32) {
	const able, met = 2, 3 // codepoints of RFC 3168, section 5
	eachFamily(t, func(t *testing.T, f family) {
		frame := func(class uint8) run {
			return run{
				program: program, device: n.a.IfIndex,
				in: sent(n.a, packet.IP(f.a, f.world, packet.TOS(class)), packet.TCP(low, server), packet.Payload(10)),
			}
		}
		n.credit(t, direction, 50*time.Minute)
		n.story(t, step{"much credit", frame(able), untouched()})
		n.credit(t, direction, 10*time.Minute)
		marked := untouched()
		marked.out = frame(met).in
		n.story(t, step{"little credit", frame(able), marked}, step{"one that does not understand it", frame(0), untouched()})
		if got := n.bucket(t, direction, nil); got.Marked != 1 || got.Packets != 2 {
			t.Errorf("%d of %d packets are marked, not 1 of 2", got.Marked, got.Packets)
		}
	})
}

// testLimitDelivered: what goes past the stack is held to what its receiver may get, wherever
// it comes from; others are not.
func testLimitDelivered(t *testing.T, n *node) {
	eachFamily(t, func(t *testing.T, f family) {
		n.forget(t)
		there := n.from(n.b, ip(f.b, f.a, 64, udp(low, server)...)...)
		arrives := delivered(n.a, ip(f.b, f.a, 63, udp(low, server)...)...)
		n.credit(t, maps.LimitIngress, time.Millisecond)
		n.story(t, step{"a neighbour's first", there, deliveredAs(arrives, "decided")})
		n.credit(t, maps.LimitIngress, -time.Hour)
		n.story(t, step{"a neighbour's second", there, drops("bandwidth_ingress")})
		must(t, n.Invalidate())
		n.story(t, step{"decided again", there, drops("decided", "bandwidth_ingress")})
		n.credit(t, maps.LimitIngress, time.Hour)
		n.story(t,
			step{"with credit", there, deliveredAs(arrives)},
			step{"to one without a limit", n.fromA(ip(f.a, f.c, 64, udp(low, server)...)...), deliveredAs(delivered(n.c, ip(f.a, f.c, 63, udp(low, server)...)...), "decided")},
			step{"to the world", n.fromA(ip(f.a, f.world, 64, udp(inside, server)...)...), forwarded(sent(n.a, ip(f.host, f.world, 63, udp(inside, server)...)...), "decided")},
		)
		answer := n.fromWorld(ip(f.world, f.host, 60, udp(server, inside)...)...)
		got := delivered(n.a, ip(f.world, f.a, 59, udp(server, inside)...)...)
		n.story(t, step{"from the world", answer, deliveredAs(got, "decided")})
		n.credit(t, maps.LimitIngress, -time.Hour)
		n.story(t, step{"from the world, beyond", answer, drops("bandwidth_ingress")})
	})
}

// testLimitChanges: a limit counts, and ends, with the next packet of every flow; one that
// stays keeps what was used of it.
func testLimitChanges(t *testing.T, n *node) {
	f := v4()
	limited, free := n.a, n.a
	free.Ingress, free.Egress = Limit{}, Limit{}
	set := func(before, after Endpoint) {
		t.Helper()
		n.do(t, func() error { return errors.Join(n.SetLimits(before, after), n.CheckEndpoint(after)) })
		n.a = after
	}
	t.Cleanup(func() { set(free, limited) })
	there := n.from(n.b, ip(f.b, f.a, 64, udp(low, server)...)...)
	arrives := delivered(n.a, ip(f.b, f.a, 63, udp(low, server)...)...)
	n.forget(t)
	n.credit(t, maps.LimitIngress, -time.Hour)
	n.story(t, step{"limited", there, drops("decided", "bandwidth_ingress")})
	egress := limited
	egress.Ingress = Limit{}
	used := n.bucket(t, maps.LimitEgress, func(l *maps.Limit) { l.Packets = 77 })
	set(limited, egress)
	n.story(t, step{"not limited any more", there, deliveredAs(arrives, "decided")}, step{"nor is the next", there, deliveredAs(arrives)})
	if got := n.bucket(t, maps.LimitEgress, nil); got != used {
		t.Errorf("the other limit was %+v and is %+v", used, got)
	}
	wantAttached := func(want ...string) {
		t.Helper()
		var got []string
		n.do(t, func() error {
			attached, err := n.hooks.list()
			for _, a := range attached {
				if a.ifindex == n.a.IfIndex {
					got = append(got, a.program)
				}
			}
			return err
		})
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("attached are %q, not %q", got, want)
		}
	}
	wantAttached(fromContainer, limitEgress, toContainer)
	set(egress, free)
	wantAttached(fromContainer, toContainer)
	if got, err := walked[maps.LimitKey, maps.Limit](n.maps.Bandwidth); got != 0 || err != nil {
		t.Errorf("%d entries are left in map bandwidth, %v", got, err)
	}
	set(free, limited)
	n.credit(t, maps.LimitIngress, -time.Hour)
	n.story(t, step{"limited again", there, drops("decided", "bandwidth_ingress")})
	wantAttached(fromContainer, limitEgress, limitIngress, toContainer)

	// CHECK finds what is not as it should be, and the repair puts it in order.
	key := maps.LimitKey{Ifindex: uint32(n.a.IfIndex), Direction: maps.LimitIngress}
	wrong := slow.value(false, 0)
	wrong.Cost++
	for what, one := range map[string]struct {
		is    Endpoint
		spoil func() error
	}{
		"egress entry of interface": {limited, func() error {
			return n.maps.Bandwidth.Delete(maps.LimitKey{Ifindex: key.Ifindex, Direction: maps.LimitEgress})
		}},
		"ingress entry of interface": {limited, func() error { return n.maps.Bandwidth.Put(key, wrong) }},
		"program limit_egress":       {limited, func() error { return n.hooks.endpoints.detach(attachment{n.a.IfIndex, limitEgress}) }},
		// As a change leaves it that failed, and could not be undone.
		fmt.Sprintf("ingress entry of interface %d in map bandwidth is there without a limit", key.Ifindex): {egress, func() error { return n.maps.Bandwidth.Put(key, wrong) }},
	} {
		t.Run(what, func(t *testing.T) {
			set(limited, one.is)
			defer set(one.is, limited)
			n.do(t, one.spoil)
			n.do(t, func() error {
				mismatch := (*MismatchError)(nil)
				if err := n.CheckEndpoint(n.a); !errors.As(err, &mismatch) {
					t.Errorf("CHECK: %v", err)
				}
				found, err := n.RepairEndpoint(n.a)
				if len(found) != 1 || len(found[0]) < len(what) || found[0][:len(what)] != what {
					t.Errorf("repaired %q, not the %s", found, what)
				}
				return errors.Join(err, n.CheckEndpoint(n.a))
			})
		})
	}

	// An agent that starts knows better than what it finds.
	n.do(t, func() error { return restart(n.Datapath, []Endpoint{free, n.b, n.c}) })
	wantAttached(fromContainer, toContainer)
	if got, err := walked[maps.LimitKey, maps.Limit](n.maps.Bandwidth); got != 0 || err != nil {
		t.Errorf("%d entries are left in map bandwidth, %v", got, err)
	}
}

// testUnshaped: a limit does not count for some, by whom the endpoint speaks with.
func testUnshaped(t *testing.T, n *node) {
	before := n.a
	after := n.a
	after.Unshaped = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("::/0")}
	n.do(t, func() error { return errors.Join(n.SetLimits(before, after), n.CheckEndpoint(after)) })
	n.a = after
	t.Cleanup(func() {
		n.do(t, func() error { return errors.Join(n.SetLimits(after, before), n.CheckEndpoint(before)) })
		n.a = before
		if got, err := walked[maps.UnshapedKey, uint8](n.maps.Unshaped); got != 0 || err != nil {
			t.Errorf("%d entries are left in map unshaped, %v", got, err)
		}
	})
	n.credit(t, maps.LimitEgress, -time.Hour)
	n.credit(t, maps.LimitIngress, -time.Hour)
	n.forget(t)
	sends := func(f family, to netip.Addr) run {
		return run{program: limitEgress, device: n.a.IfIndex, in: sent(n.a, ip(f.a, to, 64, udp(low, server)...)...)}
	}
	gets := func(f family, from netip.Addr) run {
		return run{program: limitIngress, device: n.a.IfIndex, in: delivered(n.a, ip(from, f.a, 64, udp(low, server)...)...)}
	}
	f4, f6 := v4(), v6()
	beside, behind := sends(f4, f4.world), sends(f6, f6.world)
	beside.vlan = 5
	behind.in = sent(n.a, append([]packet.Layer{packet.VLAN(5)}, ip(f6.a, f6.world, 64, udp(low, server)...)...)...)
	n.story(t,
		step{"with a tag beside it", beside, untouched()},
		step{"behind a tag", behind, drops("from_container bandwidth_egress")},
		step{"to one of them", sends(f4, f4.world), untouched()},
		step{"to another", sends(f4, f4.neighbour), drops("from_container bandwidth_egress")},
		step{"of IPv6", sends(f6, f6.world), untouched()},
		step{"from one of them", gets(f4, f4.world), untouched()},
		step{"from another", gets(f4, f4.neighbour), drops("to_container bandwidth_ingress")},
		step{"from IPv6", gets(f6, f6.world), untouched()},
		step{"delivered", n.from(n.b, ip(f6.b, f6.a, 64, udp(low, server)...)...), deliveredAs(delivered(n.a, ip(f6.b, f6.a, 63, udp(low, server)...)...), "decided")},
		step{"delivered, of another", n.from(n.b, ip(f4.b, f4.a, 64, udp(low, server)...)...), drops("decided", "bandwidth_ingress")},
	)
}

// What comes by a mapped port is held to what its container may get, wherever it comes from.
func TestLimitPorts(t *testing.T) {
	n := withPorts(t, Config{Masquerade: true})
	before := n.b
	n.b.Ingress = slow
	n.do(t, func() error { return n.SetLimits(before, n.b) })
	eachFamily(t, func(t *testing.T, f family) {
		for _, way := range []struct {
			name string
			ask  run
			got  []packet.Layer
		}{
			{
				"from the world", n.fromWorld(ip(f.world, f.host, 58, udp(low, hostPort)...)...),
				ip(f.world, f.b, 57, udp(low, server)...),
			},
			{
				"from an endpoint", n.fromA(ip(f.a, f.host, 58, udp(low, hostPort)...)...),
				ip(f.a, f.b, 57, udp(low, server)...),
			},
		} {
			t.Run(way.name, func(t *testing.T) {
				n.forget(t)
				n.creditOf(t, n.b, maps.LimitIngress, time.Millisecond)
				n.story(t, step{"with credit", way.ask, deliveredAs(delivered(n.b, way.got...), "decided")})
				n.creditOf(t, n.b, maps.LimitIngress, -time.Hour)
				n.story(t, step{"without", way.ask, drops("bandwidth_ingress")})
				n.forget(t)
				n.story(t, step{"a new flow without", way.ask, drops("decided", "bandwidth_ingress")})
			})
		}
		t.Run("of itself", func(t *testing.T) {
			n.forget(t)
			n.creditOf(t, n.b, maps.LimitIngress, time.Millisecond)
			ask := n.from(n.b, ip(f.b, f.host, 58, udp(low, hostPort)...)...)
			if got := n.run(t, ask); got.verdict != redirect {
				t.Fatalf("verdict: got %d, want %d", got.verdict, redirect)
			}
			n.creditOf(t, n.b, maps.LimitIngress, -time.Hour)
			n.story(t, step{"without", ask, drops("bandwidth_ingress")})
		})
	})
}

// What goes straight from port to port of a bridge is held to the limit, too.
func TestLimitBridge(t *testing.T) {
	n := withBridge(t, Config{Masquerade: true})
	before := n.a
	n.a.Ingress = slow
	n.do(t, func() error { return errors.Join(n.SetLimits(before, n.a), n.CheckEndpoint(n.a)) })
	eachFamily(t, func(t *testing.T, f family) {
		n.forget(t)
		there := n.onBridge(n.b, n.a.MAC, ip(f.b, f.a, 64, udp(low, server)...)...)
		n.credit(t, maps.LimitIngress, time.Hour)
		n.story(t, step{"with credit", there, across("decided")})
		n.credit(t, maps.LimitIngress, -time.Hour)
		n.story(t, step{"without", there, drops("bandwidth_ingress")})
	})
}

// What a limit comes to, over all rates: no byte costs nothing, and none more than 63 bits hold
// for the largest packet.
func TestLimitValue(t *testing.T) {
	for _, test := range []struct {
		rate, cost uint64
	}{
		{1000, 8_000_000 << 20}, {10_000_000, 800 << 20}, {1_000_000_000, 8 << 20}, {3_000_000_000, 2796203}, {1_000_000_000_000_000, 8},
	} {
		want := maps.Limit{Cost: test.cost, Burst: uint64(time.Millisecond), Exempts: 1}
		if got := (Limit{test.rate, time.Millisecond}).value(true, 0); got != want {
			t.Errorf("%d bit/s: %+v, want %+v", test.rate, got, want)
		}
	}
	for text, e := range map[string]Endpoint{
		"endpoint 1: a rate of 999 bit/s is below 1000":        {ID: 1, Egress: Limit{999, 1}},
		"endpoint 1: a burst of 0s is not above 0":             {ID: 1, Ingress: Limit{1000, 0}},
		`endpoint 1: "::ffff:10.0.0.0/104" is no plain prefix`: {ID: 1, Unshaped: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}},
	} {
		if err := e.validateLimits(); err == nil || err.Error() != text {
			t.Errorf("got %v, want %s", err, text)
		}
	}
}
