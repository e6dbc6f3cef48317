// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/socktest"
	"github.com/tendril-net/tendril/pkg/api"
)

const (
	// pacedRate is in bits per second: a frame takes so long that several datagrams are sent
	// meanwhile, where all is emulated, too.
	pacedRate = 1_000_000
	// pacedBurst is in bits, 1 ms of it.
	pacedBurst = 1000
	pacedSize  = 1000
	// pacedFew datagrams are held back, and no one is too late.
	pacedFew = 12
	// pacedMany are more than are held back.
	pacedMany = 200
)

// Where the kernel has fq, what is beyond a limit is held back until it is due, whatever way it takes;
// with the agent dead, too.
func TestPacer(t *testing.T) { eachDriver(t, testPacer, api.DriverMacvlan) }

func testPacer(t *testing.T, d driver) {
	if d == api.DriverBridge { // whose ways by the pacer differ in one call
		nstest.Halve(t, 0)
	}
	s := drivenBy(t, d)
	if out, err := s.world.Command("tc", "qdisc", "add", "dev", "lo", "root", "fq").CombinedOutput(); err != nil {
		t.Skipf("needs a kernel with fq (CONFIG_NET_SCH_FQ): %s", out)
	}
	if got := s.Status(t).Bandwidth; got != "fq" {
		t.Fatalf("limits are held by %s, not by fq", got)
	}
	s.Delete(t, s.Attach(t, "first", s.pods)) // what the first one leaves stays
	b := s.Attach(t, "b", s.pods)
	before := s.State(t)
	network := s.pods.With("runtimeConfig", map[string]any{"bandwidth": map[string]any{
		"ingressRate": pacedRate, "ingressBurst": pacedBurst, "egressRate": pacedRate, "egressBurst": pacedBurst,
	}})
	a, c := s.Attach(t, "a", network), s.Attach(t, "c", network)
	nodetest.Route(t, s.world, []string{pods4, "via", uplink4.String()}, []string{pods6, "via", uplink6.String()})
	eachFamily(t, func(t *testing.T, f family) {
		for _, way := range []struct {
			name     string
			from, to *nstest.NS
			at       netip.Addr
			drop     string
		}{
			{"to a container", a.NS, b.NS, f.of(b), "bandwidth_egress"},
			{"to one with a limit", a.NS, c.NS, f.of(c), "bandwidth_egress"},
			{"to the world", a.NS, s.world, f.world, "bandwidth_egress"},
			{"to the host", a.NS, s.NS, f.gateway(a), "bandwidth_egress"},
			{"from a container", b.NS, a.NS, f.of(a), "bandwidth_ingress"},
			{"from the world", s.world, a.NS, f.of(a), "bandwidth_ingress"},
			{"from the host", s.NS, a.NS, f.of(a), "bandwidth_ingress"},
		} {
			t.Run(way.name, func(t *testing.T) { dueInTime(t, s, way.from, way.to, way.at, way.drop) })
		}
	})
	f := families()[0]
	if err := dialTCP(t, a.NS, serveTCP(t, s.world, netip.AddrPortFrom(f.world, 0))).Exchange(pattern(32 << 10)); err != nil {
		t.Errorf("TCP under a limit: %v", err)
	}
	// Nothing waits for what another limit holds back: fq has no flow for the two.
	isSet := func() {
		t.Helper()
		for _, device := range []string{"tendril-pacer0", "tendril-pacer1"} {
			out := s.Run(t, "tc", "qdisc", "show", "dev", device)
			for _, setting := range []string{" fq ", " limit 16777216p ", " flow_limit 16777216p ", " orphan_mask 262143 ", " nopacing "} {
				if !strings.Contains(out, setting) {
					t.Errorf("fq of %s is not set to%s: %s", device, setting, out)
				}
			}
		}
	}
	isSet()
	s.Kill(t)
	t.Run("without an agent", func(t *testing.T) { dueInTime(t, s, a.NS, b.NS, b.IPv4, "") })
	s.Start(t)

	// What somebody takes away, CHECK misses, and the agent puts back.
	check := a.Call("CHECK")
	check.Network = network.With("prevResult", json.RawMessage(a.Result))
	for _, spoil := range []struct {
		missing string
		args    []string
	}{
		{"qdisc fq on interface tendril-pacer0", []string{"tc", "qdisc", "del", "dev", "tendril-pacer0", "root"}},
		{"device tendril-pacer1", []string{"ip", "link", "del", "tendril-pacer0"}},
	} {
		t.Run(spoil.missing, func(t *testing.T) {
			if answer := s.Call(t, check); answer.Error != nil {
				t.Fatalf("CHECK: %v", answer.Error)
			}
			// The agent, which looks every minute, may come first.
			nodetest.Eventually(t, "CHECK that misses it", func() error {
				s.Run(t, spoil.args[0], spoil.args[1:]...)
				answer := s.Call(t, check)
				if answer.Error == nil || !strings.Contains(answer.Error.Error(), spoil.missing) {
					return fmt.Errorf("CHECK answers %+v", answer)
				}
				return nil
			})
			s.cli(t, "endpoints", "set-bandwidth", "a", "--egress-rate", "1M", "--egress-burst", "1000", "--ingress-rate", "1M", "--ingress-burst", "1000")
			dueInTime(t, s, a.NS, b.NS, b.IPv4, "")
			isSet()
		})
	}

	s.Delete(t, a)
	s.Delete(t, c)
	// The pair goes with the second look of the agent, or when another starts.
	s.Stop(t)
	s.Start(t)
	s.BecomesRecorded(t, before)
}

// dueInTime sends some datagrams at once, which all arrive, and the last no sooner than its limit lets
// it; then more than are held back, which arrive or are counted as drops.
func dueInTime(t *testing.T, s *site, from, to *nstest.NS, at netip.Addr, drop string) {
	t.Helper()
	receiver := socktest.ListenUDP(t, to, netip.AddrPortFrom(at, 0))
	sender := socktest.DialUDP(t, from, netip.AddrPort{}, receiver.LocalAddr().(*net.UDPAddr).AddrPort())
	send := func(n int) {
		t.Helper()
		for range n {
			if _, err := sender.Write(pattern(pacedSize)); err != nil {
				t.Fatal(err)
			}
		}
	}
	take := func() {
		t.Helper()
		if err := receiver.SetReadDeadline(time.Now().Add(nodetest.Patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := receiver.Read(make([]byte, 2*pacedSize)); err != nil {
			t.Fatal(err)
		}
	}
	// Room for two datagrams: who sends more waits until they have left.
	if err := sender.SetWriteBuffer(1); err != nil {
		t.Fatal(err)
	}
	const headers = 14 + 20 + 8
	due := func(frames int) time.Duration {
		return time.Duration(frames*8*(pacedSize+headers)-pacedBurst) * time.Second / pacedRate
	}
	began := time.Now()
	send(pacedFew)
	if took, least := time.Since(began), due(pacedFew-4); took < least {
		t.Errorf("%d datagrams were sent within %v: the sender has not waited for %v", pacedFew, took, least)
	}
	for range pacedFew {
		take()
	}
	if took, least := time.Since(began), due(pacedFew-1); took < least {
		t.Errorf("%d datagrams arrived within %v, sooner than %v", pacedFew, took, least)
	}
	if drop == "" {
		return
	}
	if err := sender.SetWriteBuffer(1 << 20); err != nil {
		t.Fatal(err)
	}
	before := s.dropped(t, drop)
	send(pacedMany)
	arrived := uint64(0)
	nodetest.Eventually(t, "all that arrive, or are dropped", func() error {
		if err := receiver.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			return err
		}
		for {
			if _, err := receiver.Read(make([]byte, 2*pacedSize)); err != nil {
				return nodetest.Unlike(pacedMany-arrived, s.dropped(t, drop)-before)
			}
			arrived++
		}
	})
	if arrived == pacedMany {
		t.Errorf("%d datagrams at once, and none was dropped", pacedMany)
	}
}
