// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
	nstest.LeaveTo(t, map[driver]string{api.DriverBridge: "5.10", api.DriverRouted: "7"}[d]) // the ways by the pacer differ in one call
	s := drivenBy(t, d)
	if out, err := s.world.Command("tc", "qdisc", "add", "dev", "lo", "root", "fq").CombinedOutput(); err != nil {
		notBuilt(t, out, "fq", "CONFIG_NET_SCH_FQ")
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
	dealFamilies(t, func(t *testing.T, f family) {
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
	t.Run("BBR", func(t *testing.T) { bbrInTime(t, s, a, f.world) })
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

	// The queue that somebody takes away CHECK misses, and a change of the limit puts back.
	check := a.Call("CHECK")
	check.Network = network.With("prevResult", json.RawMessage(a.Result))
	checks := func() error {
		if answer := s.Call(t, check); answer.Error != nil {
			return answer.Error
		}
		return nil
	}
	if err := checks(); err != nil {
		t.Fatalf("CHECK: %v", err)
	}
	// The agent, which looks every minute, may come first.
	nodetest.Eventually(t, "CHECK that misses the queue", func() error {
		s.Run(t, "tc", "qdisc", "del", "dev", "tendril-pacer0", "root")
		const missing = "qdisc fq on interface tendril-pacer0 is missing"
		if got := fmt.Sprint(checks()); !strings.Contains(got, missing) {
			return fmt.Errorf("CHECK answers %s", got)
		}
		return nil
	})
	s.cli(t, "endpoints", "set-bandwidth", "a", "--egress-rate", "1M", "--egress-burst", "1000", "--ingress-rate", "1M", "--ingress-burst", "1000")
	t.Run("with another queue", func(t *testing.T) { dueInTime(t, s, a.NS, b.NS, b.IPv4, "") })
	isSet()
	// Devices that somebody takes away are made anew, without anybody's asking.
	first := must(s.Handle.LinkByName("tendril-pacer0"))(t).Attrs().Index
	s.Run(t, "ip", "link", "del", "tendril-pacer1")
	nodetest.Eventually(t, "another pair", func() error {
		link, err := s.Handle.LinkByName("tendril-pacer0")
		if err != nil {
			return err
		}
		if link.Attrs().Index == first {
			return errors.New("the first pair is there")
		}
		return checks()
	})
	t.Run("with another pair", func(t *testing.T) { dueInTime(t, s, a.NS, b.NS, b.IPv4, "") })
	isSet()

	s.Delete(t, a)
	s.Delete(t, c)
	// The pair goes with the second look of the agent, or when another starts.
	s.Stop(t)
	s.Start(t)
	s.BecomesRecorded(t, before)
}

const (
	// bbrRate is in bits per second. bbrSize are bytes: more than is held back, many times over.
	bbrRate, bbrSize = 8_000_000, 1 << 20
)

// bbrInTime sends a stream by BBR, which paces what it sends by departure times of its own, from a container
// with a limit: the socket keeps them itself, and then fq in the container does.
func bbrInTime(t *testing.T, s *site, c *nodetest.Container, to netip.Addr) {
	rate := func(bits int) {
		t.Helper()
		s.cli(t, "endpoints", "set-bandwidth", c.ContainerID, "--egress-rate", strconv.Itoa(bits), "--egress-burst", strconv.Itoa(pacedBurst))
	}
	rate(bbrRate)
	defer rate(pacedRate)
	listener := socktest.In(t, s.world, func() (*net.TCPListener, error) {
		return net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(to, 0)))
	})
	socktest.CloseAtEnd(t, listener)
	send := func(keeper string) {
		t.Helper()
		var conn *net.TCPConn
		c.NS.Do(t, func() { conn = must(net.DialTCP("tcp", nil, listener.Addr().(*net.TCPAddr)))(t) })
		socktest.CloseAtEnd(t, conn)
		peer := must(listener.AcceptTCP())(t)
		socktest.CloseAtEnd(t, peer)
		var missing error
		socktest.Control(t, conn, func(fd int) error {
			missing = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "bbr") // loads the module
			return nil
		})
		if errors.Is(missing, unix.ENOENT) {
			nstest.NotBuilt(t, "BBR", "CONFIG_TCP_CONG_BBR")
		}
		deadline := time.Now().Add(nodetest.Patience)
		if err := errors.Join(missing, conn.SetDeadline(deadline), peer.SetDeadline(deadline)); err != nil {
			t.Fatal(err)
		}
		before, began := s.dropped(t, "bandwidth_egress"), time.Now()
		sent := make(chan error, 1)
		go func() {
			_, err := conn.Write(pattern(bbrSize))
			sent <- errors.Join(err, conn.CloseWrite())
		}()
		got, err := io.ReadAll(peer)
		if err := errors.Join(err, <-sent); err != nil {
			t.Fatalf("BBR whose departures %s keeps: %v", keeper, err)
		}
		if !bytes.Equal(got, pattern(bbrSize)) {
			t.Errorf("BBR whose departures %s keeps: something else has arrived", keeper)
		}
		if took, least := time.Since(began), time.Duration(8*bbrSize-pacedBurst)*time.Second/bbrRate; took < least {
			t.Errorf("BBR whose departures %s keeps took %v, sooner than %v", keeper, took, least)
		}
		// It loses some, or none, while it looks for the rate.
		t.Logf("BBR whose departures %s keeps: %v, %d packets lost", keeper, time.Since(began), s.dropped(t, "bandwidth_egress")-before)
	}
	send("the socket")
	c.NS.Run(t, "tc", "qdisc", "add", "dev", "eth0", "root", "fq")
	send("fq")
	c.NS.Run(t, "tc", "qdisc", "del", "dev", "eth0", "root")
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
