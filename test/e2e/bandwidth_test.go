// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/socktest"
	"github.com/tendril-net/tendril/pkg/api"
)

const (
	// limitedRate is in bits per second, limitedBurst in bits: 10 ms of it.
	limitedRate, limitedBurst = 20_000_000, 200_000
	// floodTime is how long a flood lasts, and floodMost how many datagrams it is at most.
	floodTime, floodMost = 200 * time.Millisecond, 200_000
	floodSize            = 1200
)

// limited is what has passed in one direction of one container since its first flood.
type limited struct {
	// drop is what its counters are called, whatever the journey.
	drop string
	// paced says that who sends is held by its buffer, as a rule, before anything is dropped.
	paced bool
	began time.Time
	bits  float64
}

// Whatever way leads from a container, or to it, its limit holds; with the agent dead, too.
func TestBandwidth(t *testing.T) { eachDriver(t, testBandwidth) }

func testBandwidth(t *testing.T, d driver) {
	s := drivenBy(t, d)
	s.Delete(t, s.Attach(t, "first", s.pods)) // what the first one leaves stays
	b := s.Attach(t, "b", s.pods)
	before := s.State(t)
	network := s.pods.With("ingressRate", limitedRate).With("runtimeConfig", map[string]any{"bandwidth": map[string]any{
		"ingressRate": limitedRate, "egressRate": limitedRate, "egressBurst": limitedBurst,
	}}).With("unshapedSubnets", []string{"203.0.113.0/24"})
	a := s.Attach(t, "a", network)
	want := api.Bandwidth{
		IngressRate: limitedRate, IngressBurst: limitedBurst, EgressRate: limitedRate, EgressBurst: limitedBurst,
		UnshapedSubnets: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
	}
	wantBandwidth(t, s, a, want)
	if d != api.DriverMacvlan { // whose site has them
		nodetest.Route(t, s.world, []string{pods4, "via", uplink4.String()}, []string{pods6, "via", uplink6.String()})
	}
	paced := s.Status(t).Bandwidth == "fq"
	sends, gets := &limited{drop: "bandwidth_egress", paced: paced}, &limited{drop: "bandwidth_ingress", paced: paced}
	floods := func(t *testing.T) {
		eachFamily(t, func(t *testing.T, f family) {
			for _, way := range []struct {
				name     string
				from, to *nstest.NS
				at       netip.Addr
				limit    *limited
			}{
				{"to a container", a.NS, b.NS, f.of(b), sends},
				{"to the world", a.NS, s.world, f.world, sends},
				{"to the host", a.NS, s.NS, f.gateway(a), sends},
				{"from a container", b.NS, a.NS, f.of(a), gets},
				{"from the world", s.world, a.NS, f.of(a), gets},
				{"from the host", s.NS, a.NS, f.of(a), gets},
			} {
				t.Run(way.name, func(t *testing.T) { way.limit.flood(t, s, way.from, way.to, way.at) })
			}
		})
	}
	floods(t)
	// A TCP connection gets through, and one without a limit is not held up.
	f := families()[0]
	if err := dialTCP(t, a.NS, serveTCP(t, s.world, netip.AddrPortFrom(f.world, 0))).Exchange(pattern(256 << 10)); err != nil {
		t.Errorf("TCP under a limit: %v", err)
	}
	check := a.Call("CHECK")
	check.Network = network.With("prevResult", json.RawMessage(a.Result))
	if answer := s.Call(t, check); answer.Error != nil {
		t.Errorf("CHECK: %v", answer.Error)
	}

	s.Kill(t)
	t.Run("without an agent", func(t *testing.T) {
		passed, sent := pour(t, a.NS, b.NS, b.IPv4, func(passed, sent uint64) error {
			if passed == 0 || passed == sent && !paced {
				return fmt.Errorf("%d of %d datagrams passed", passed, sent)
			}
			return nil
		})
		t.Logf("%d of %d datagrams passed", passed, sent)
	})
	s.Start(t)
	wantBandwidth(t, s, a, want)

	// It changes while it is at work.
	dropsBefore := s.Drops(t)
	s.cli(t, "endpoints", "set-bandwidth", "a", "--egress-rate", "0", "--ingress-rate", "5G")
	want.EgressRate, want.EgressBurst, want.IngressRate, want.IngressBurst = 0, 0, 5_000_000_000, 50_000_000
	wantBandwidth(t, s, a, want)
	udp := serveUDP(t, b.NS, netip.AddrPortFrom(b.IPv4, 0))
	conn := dialUDP(t, a.NS, netip.AddrPort{}, udp)
	for range 100 {
		askUDP(t, conn, pattern(floodSize))
	}
	if diff := cmp.Diff(dropsBefore, s.Drops(t)); diff != "" {
		t.Errorf("drops without a limit (-before +after):\n%s", diff)
	}
	s.cli(t, "endpoints", "set-bandwidth", "a", "eth0", "--egress-rate", "20M", "--ingress-rate", "20M")
	want.EgressRate, want.EgressBurst, want.IngressRate, want.IngressBurst = limitedRate, limitedBurst, limitedRate, limitedBurst
	wantBandwidth(t, s, a, want)
	*sends, *gets = limited{drop: sends.drop, paced: paced}, limited{drop: gets.drop, paced: paced}
	t.Run("limited again", floods)

	s.Delete(t, a)
	if paced && d != api.DriverMacvlan { // The pacer's devices go with the second look of the agent, or when another starts.
		s.Stop(t)
		s.Start(t)
	}
	s.BecomesRecorded(t, before)
}

func wantBandwidth(t *testing.T, s *site, c *nodetest.Container, want api.Bandwidth) {
	t.Helper()
	e, err := s.API.Endpoint(t.Context(), c.Attachment)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, e.Bandwidth, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("bandwidth (-want +got):\n%s", diff)
	}
}

// cli runs the person's tool on the node, which must succeed.
func (s *site) cli(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command(programs.CLI, append([]string{"--socket", s.Socket}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("tendril %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// dropped is how many packets were dropped for a reason, on all journeys.
func (s *site) dropped(t *testing.T, reason string) (sum uint64) {
	t.Helper()
	for name, n := range s.Drops(t) {
		if strings.HasSuffix(name, " "+reason) {
			sum += n
		}
	}
	return sum
}

// flood sends as much as the limit's direction takes and more, and judges what has passed.
func (l *limited) flood(t *testing.T, s *site, from, to *nstest.NS, at netip.Addr) {
	t.Helper()
	before := s.dropped(t, l.drop)
	began := time.Now()
	if l.began.IsZero() {
		l.began = began
	}
	var ended time.Time
	passed, sent := pour(t, from, to, at, func(passed, sent uint64) error {
		if ended.IsZero() || l.paced { // what is held back comes later
			ended = time.Now()
		}
		return nodetest.Unlike(passed, sent-(s.dropped(t, l.drop)-before))
	})
	headers := 14 + 20 + 8
	if at.Is6() {
		headers += 20
	}
	frame := float64(8 * (floodSize + headers))
	l.bits += float64(passed) * frame
	// The bucket may be overdrawn by one, and a silence after a loss is paid back.
	if most := limitedBurst + limitedRate*ended.Sub(l.began).Seconds() + frame; l.bits > most {
		t.Errorf("%.0f bits have passed, at most %.0f may", l.bits, most)
	}
	if most := limitedBurst + limitedRate*(ended.Sub(began).Seconds()+0.4) + frame; float64(passed)*frame > most {
		t.Errorf("%.0f bits have passed in one flood, at most %.0f may", float64(passed)*frame, most)
	}
	// Where all is emulated, nobody sends that much.
	if least := 0.8 * limitedRate * floodTime.Seconds(); float64(passed)*frame < least && !nstest.Emulated() {
		t.Errorf("%.0f bits have passed, at least %.0f may", float64(passed)*frame, least)
	}
	if sent == passed && !l.paced {
		t.Errorf("%d of %d datagrams passed: this was no flood", passed, sent)
	}
}

// pour sends datagrams until one arrives, more for floodTime, then waits until the number that arrived is
// right. A flood would lose what is sent before the neighbour is known, which nobody of ours counts.
func pour(t *testing.T, from, to *nstest.NS, at netip.Addr, right func(passed, sent uint64) error) (passed, sent uint64) {
	t.Helper()
	receiver := socktest.ListenUDP(t, to, netip.AddrPortFrom(at, 0))
	sender := socktest.DialUDP(t, from, netip.AddrPort{}, receiver.LocalAddr().(*net.UDPAddr).AddrPort())
	var arrived atomic.Uint64
	var group sync.WaitGroup
	group.Go(func() {
		buffer := make([]byte, 1<<16)
		for {
			if _, err := receiver.Read(buffer); err != nil {
				return
			}
			arrived.Add(1)
		}
	})
	defer group.Wait()
	defer func() { _ = receiver.Close() }()
	payload := pattern(floodSize)
	send := func() {
		if _, err := sender.Write(payload); err != nil {
			t.Fatalf("datagram %d: %v", sent, err)
		}
		sent++
	}
	nodetest.Eventually(t, "a first datagram", func() error {
		if send(); arrived.Load() == 0 {
			return fmt.Errorf("none of %d has arrived", sent)
		}
		return nil
	})
	for end := time.Now().Add(floodTime); sent < floodMost && time.Now().Before(end); {
		send()
	}
	nodetest.Eventually(t, "datagrams that arrive", func() error { return right(arrived.Load(), sent) })
	return arrived.Load(), sent
}
