// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// A policy that comes cuts what runs by the next packet, and one that goes lets it go
// on. A dry run has said which flows these are.
func TestPolicyWhileTraffic(t *testing.T) {
	nstest.Halve(t, 0)
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
	nstest.Halve(t, 1)
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
	g.Delete(t, web)
	g.delete(t, "web")
	g.forgotten(t)
}
