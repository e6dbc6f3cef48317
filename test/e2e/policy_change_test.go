// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// A policy that comes cuts what runs by the next packet, and one that goes lets it go
// on. A dry run has said which flows these are.
func TestPolicyWhileTraffic(t *testing.T) {
	nstest.LeaveTo(t, "6.12")
	g := newGuarded(t)
	web, client := g.dress(t, "web"), g.dress(t, "client")
	deny := networkPolicy("web", "{podSelector: {matchLabels: {app: web}}}")
	eachFamily(t, func(t *testing.T, f family) {
		for _, way := range []struct {
			name string
			from *nstest.NS
		}{{"container", client.NS}, {"world", g.world}} {
			t.Run(way.name, func(t *testing.T) {
				stream := dialTCP(t, way.from, serveTCP(t, web.NS, netip.AddrPortFrom(f.of(web), 0)))
				conn := dialUDP(t, way.from, netip.AddrPort{}, serveUDP(t, web.NS, netip.AddrPortFrom(f.of(web), 0)))
				outward := dialUDP(t, web.NS, netip.AddrPort{}, serveUDP(t, way.from, netip.AddrPortFrom(addrPort(conn.LocalAddr()).Addr(), 0)))
				exchange := func() {
					t.Helper()
					if err := stream.Exchange(pattern(1 << 16)); err != nil {
						t.Errorf("stream: %v", err)
					}
					askUDP(t, conn, pattern(100))
					askUDP(t, outward, pattern(100))
				}
				exchange()
				change := must(g.API.ApplyPolicies(t.Context(), api.ApplyRequest{Text: []byte(deny), DryRun: true}))(t)
				for _, client := range []net.Addr{stream.LocalAddr(), conn.LocalAddr()} {
					if !slices.ContainsFunc(change.Effect.Cut, func(j api.JudgedFlow) bool { return j.Client == addrPort(client) }) {
						t.Errorf("the dry run does not name the flow of %s: %+v", client, change.Effect)
					}
				}
				if slices.ContainsFunc(change.Effect.Cut, func(j api.JudgedFlow) bool { return j.Client == addrPort(outward.LocalAddr()) }) {
					t.Errorf("the dry run names a flow outward: %+v", change.Effect)
				}
				exchange()

				g.apply(t, deny)
				if got := g.ask(t, conn); got != byIngress {
					t.Errorf("a datagram after apply: %q", got)
				}
				arrived := make(chan error, 1)
				before := g.denials()[byIngress]
				go func() { arrived <- stream.Exchange(pattern(1 << 10)) }()
				nodetest.Eventually(t, "denial of the stream", func() error {
					if g.denials()[byIngress] == before {
						return errors.New("nothing was denied")
					}
					return nil
				})
				askUDP(t, outward, pattern(100))
				select {
				case err := <-arrived:
					t.Errorf("the stream went on: %v", err)
				default:
				}
				change = must(g.API.ApplyPolicies(t.Context(), api.ApplyRequest{
					Text: []byte(networkPolicy("web", "{podSelector: {matchLabels: {app: none}}}")), DryRun: true,
				}))(t)
				if !slices.ContainsFunc(change.Effect.Opened, func(j api.JudgedFlow) bool { return j.Client == addrPort(conn.LocalAddr()) }) {
					t.Errorf("the dry run does not name what would pass: %+v", change.Effect)
				}

				g.delete(t, "web")
				_ = conn.SetDeadline(time.Time{})
				if got := g.ask(t, conn); got != "" {
					t.Errorf("a datagram after delete: %q", got)
				}
				if err := <-arrived; err != nil { // by a retransmission
					t.Errorf("the stream did not go on: %v", err)
				}
				exchange()
			})
		}
	})
	g.forgotten(t)
}

// Verdicts stay when the agent is killed, and when another comes.
func TestPolicyAgentKilled(t *testing.T) {
	nstest.LeaveTo(t, "5.10")
	g := newGuarded(t)
	web, client, other := g.dress(t, "web"), g.dress(t, "client"), g.dress(t, "other")
	g.apply(t, networkPolicy("web", "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}"))
	var streams []*stream
	for _, f := range families() {
		serveUDP(t, web.NS, netip.AddrPortFrom(f.of(web), 53))
		streams = append(streams, dialTCP(t, client.NS, serveTCP(t, web.NS, netip.AddrPortFrom(f.of(web), 80))))
	}
	check := func(when string) {
		t.Helper()
		for i, f := range families() {
			at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(f.of(web), port) }
			try(t,
				trial{when + ": allowed, TCP " + f.name, func() string { return g.tcp(t, client.NS, at(80)) }, ""},
				trial{when + ": allowed, UDP " + f.name, func() string { return g.udp(t, client.NS, at(53)) }, ""},
				trial{when + ": denied, TCP " + f.name, func() string { return g.tcp(t, other.NS, at(80)) }, byIngress},
				trial{when + ": denied, ping " + f.name, func() string { return g.ping(t, g.world, at(0).Addr()) }, byIngress},
				trial{when + ": host " + f.name, func() string { return g.udp(t, g.NS, at(53)) }, ""},
			)
			if err := streams[i].Exchange(pattern(1 << 16)); err != nil {
				t.Errorf("%s: a stream from before: %v", when, err)
			}
		}
	}
	check("at first")
	g.Kill(t)
	check("without an agent")
	g.Start(t)
	check("with the next agent")
	g.Stop(t)
	g.Start(t)
	check("after a restart")
	g.dropsNothingOfGone(t, web, func() {
		g.Kill(t)
		g.Delete(t, web)
		g.Start(t)
	})
	g.delete(t, "web")
	g.forgotten(t)
}

// dropsNothingOfGone has a container go, to which the world sends all the while, and sees that no packet to what is
// not there any more is told of as denied by policy, which lets the world's in.
func (g *guarded) dropsNothingOfGone(t *testing.T, c *nodetest.Container, goes func()) {
	t.Helper()
	g.apply(t, networkPolicy("web", "{podSelector: {matchLabels: {app: web}}, ingress: [{}]}"))
	before := g.denials()
	var senders sync.WaitGroup
	gone := make(chan struct{})
	for _, f := range families() {
		conn := dialUDP(t, g.world, netip.AddrPort{}, netip.AddrPortFrom(f.of(c), 53))
		senders.Go(func() {
			each := time.NewTicker(pace())
			defer each.Stop()
			for {
				select {
				case <-gone:
					return
				case <-each.C:
					_, _ = conn.Write(pattern(10)) // an error is what an ICMP error said
				}
			}
		})
	}
	goes()
	close(gone)
	senders.Wait()
	if diff := cmp.Diff(before, g.denials()); diff != "" {
		t.Errorf("denied (-before +now):\n%s", diff)
	}
}

// An agent that dies while it changes the policy leaves the one before or the next one, whole, and the next
// agent finishes: what the rules have counted is counted once.
func TestPolicyAgentCrash(t *testing.T) {
	nstest.Halve(t, 0)
	g := newGuarded(t)
	web, client, other := g.dress(t, "web"), g.dress(t, "client"), g.dress(t, "other")
	lets := func(app string) string {
		return networkPolicy(app, "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: "+app+"}}}]}]}")
	}
	for _, f := range families() {
		serveUDP(t, web.NS, netip.AddrPortFrom(f.of(web), 53))
	}
	for _, point := range failpoint.Policy {
		t.Run(string(point), func(t *testing.T) {
			want := map[string]uint64{"client": 0, "other": 0}
			check := func(when, others string) {
				t.Helper()
				for _, f := range families() {
					at := netip.AddrPortFrom(f.of(web), 53)
					try(t,
						trial{when + ": client, " + f.name, func() string { return g.udp(t, client.NS, at) }, ""},
						trial{when + ": other, " + f.name, func() string { return g.udp(t, other.NS, at) }, others},
					)
					want["client"]++
					if others == "" {
						want["other"]++
					}
				}
			}
			g.apply(t, lets("client"))
			check("at first", byIngress)
			g.Kill(t)
			file := filepath.Join(g.PolicyDir, "other.yaml")
			if err := os.WriteFile(file, []byte(lets("other")), 0o600); err != nil {
				t.Fatal(err)
			}
			g.CrashAtStart(t, point)
			if point == failpoint.AgentPolicyWritten {
				check("between two policies", byIngress)
			} else {
				check("between two policies", "")
			}
			g.Start(t)
			check("with the next agent", "")
			hits := make(map[string]uint64)
			for _, p := range must(g.API.Policies(t.Context()))(t).Policies {
				hits[p.Name] = p.Rules[0].Hits
			}
			if diff := cmp.Diff(want, hits); diff != "" {
				t.Errorf("flows that the rules have let through (-want +got):\n%s", diff)
			}
			g.delete(t, "client")
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			nodetest.Eventually(t, "no policy", func() error {
				return nodetest.Unlike(len(must(g.API.Policies(t.Context()))(t).Policies), 0)
			})
			g.forgotten(t)
		})
	}
}
