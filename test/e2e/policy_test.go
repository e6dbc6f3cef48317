// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// guarded is a site on which policy is asked about flows.
type guarded struct {
	*site
	// denied counts packets by the reason of a denial.
	denied map[string][]func() uint64
}

// Reasons for which policy denies, as counters name them.
const (
	byIngress   = "policy_ingress"
	byEgress    = "policy_egress"
	byIsolation = "network_isolation"
)

func newGuarded(t *testing.T, flags ...string) *guarded {
	t.Helper()
	s := running(t, flags...)
	nodetest.Route(t, s.world, []string{pods4, "via", uplink4.String()}, []string{pods6, "via", uplink6.String()})
	g := &guarded{site: s, denied: make(map[string][]func() uint64)}
	for _, c := range s.Status(t).Counters {
		if slices.Contains([]string{byIngress, byEgress, byIsolation}, c.Reason) {
			g.denied[c.Reason] = append(g.denied[c.Reason], s.Counter(t, c.Journey, c.Reason))
		}
	}
	return g
}

func (g *guarded) denials() map[string]uint64 {
	sums := make(map[string]uint64)
	for reason, counters := range g.denied {
		for _, count := range counters {
			sums[reason] += count()
		}
	}
	return sums
}

// judged tries something until it succeeds or a packet is denied, and returns the
// reason of that, "" for success. abort ends the attempt.
func (g *guarded) judged(t *testing.T, attempt func() error, abort func()) string {
	t.Helper()
	before := g.denials()
	denied := func() string {
		for name, n := range g.denials() {
			if n > before[name] {
				return name
			}
		}
		return ""
	}
	done := make(chan error, 1)
	go func() { done <- attempt() }()
	reason := ""
	err := nodetest.Poll(func() error {
		select {
		case err := <-done:
			done <- err
			return nil
		default:
		}
		if reason = denied(); reason == "" {
			return errors.New("neither answered nor denied")
		}
		return nil
	})
	if err == nil && reason == "" {
		switch err := <-done; {
		case err == nil:
			return ""
		case denied() != "": // by a program on the sender's own way, which the kernel tells it
			return denied()
		default:
			return err.Error()
		}
	}
	_ = nodetest.Poll(func() error { // the attempt may have set a deadline of its own just now
		abort()
		if len(done) == 0 {
			return errors.New("still at it")
		}
		return nil
	})
	if err != nil {
		return err.Error()
	}
	return reason
}

func (g *guarded) tcp(t *testing.T, from *nstest.NS, to netip.AddrPort) string {
	t.Helper()
	return g.tcpFrom(t, from, nil, to)
}

// tcpFrom is tcp from one of several addresses.
func (g *guarded) tcpFrom(t *testing.T, from *nstest.NS, local *net.TCPAddr, to netip.AddrPort) string {
	t.Helper()
	dialer := &net.Dialer{}
	if local != nil {
		dialer.LocalAddr = local
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	return g.judged(t, func() error {
		var conn net.Conn
		var err error
		from.Do(t, func() { conn, err = dialer.DialContext(ctx, "tcp", to.String()) })
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		_, err = conn.Read(make([]byte, 1))
		return err
	}, cancel)
}

func (g *guarded) udp(t *testing.T, from *nstest.NS, to netip.AddrPort) string {
	t.Helper()
	return g.ask(t, dialUDP(t, from, netip.AddrPort{}, to))
}

// ask sends one datagram more by a socket.
func (g *guarded) ask(t *testing.T, conn *net.UDPConn) string {
	t.Helper()
	return g.judged(t, func() error {
		_, err := tryUDP(conn, pattern(100), nodetest.Patience)
		return err
	}, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
}

func (g *guarded) ping(t *testing.T, from *nstest.NS, to netip.Addr) string {
	t.Helper()
	echo := openEcho(t, from, to)
	_, reply := echo.Types()
	return g.judged(t, func() error {
		if err := echo.Send(to, 1, 100); err != nil {
			return err
		}
		_, err := echo.Await(reply, 1, 100)
		return err
	}, func() { _ = echo.SetDeadline(time.Unix(1, 0)) })
}

// trial is a flow and what must become of it.
type trial struct {
	what string
	got  func() string
	want string
}

func try(t *testing.T, trials ...trial) {
	t.Helper()
	for _, one := range trials {
		if got := one.got(); got != one.want {
			t.Errorf("%s: %q, want %q", one.what, got, one.want)
		}
	}
}

// cli runs tendril and returns what it printed.
func (g *guarded) cli(t *testing.T, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	command := exec.Command(g.Programs.CLI, append([]string{"--socket", g.Socket}, args...)...)
	var out, errs bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(stdin), &out, &errs
	if err := g.Exec(t, command); err != nil {
		t.Fatal(err)
	}
	err = command.Wait()
	return out.String(), errs.String(), err
}

// apply applies objects by the command.
func (g *guarded) apply(t *testing.T, text string) {
	t.Helper()
	if _, stderr, err := g.cli(t, text, "policy", "apply", "-f", "-"); err != nil {
		t.Fatalf("apply: %v\n%s\n%s", err, stderr, text)
	}
}

func (g *guarded) delete(t *testing.T, args ...string) {
	t.Helper()
	if _, stderr, err := g.cli(t, "", append([]string{"policy", "delete"}, args...)...); err != nil {
		t.Fatalf("delete: %v\n%s", err, stderr)
	}
}

// drops are what tendril drops shows, as JSON.
func (g *guarded) drops(t *testing.T) []api.Drop {
	t.Helper()
	out, stderr, err := g.cli(t, "", "drops", "-o", "json")
	if err != nil {
		t.Fatalf("drops: %v\n%s", err, stderr)
	}
	var list []api.Drop
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// forgotten checks that the kernel holds nothing of any policy.
func (g *guarded) forgotten(t *testing.T) {
	t.Helper()
	for _, name := range []string{"subjects", "policies", "identities", "hits"} {
		for _, m := range g.Status(t).Maps {
			if m.Name == name && *m.Entries != 0 {
				t.Errorf("map %s has %d entries", name, *m.Entries)
			}
		}
	}
}

// networkPolicy is an object; the spec is YAML in one line.
func networkPolicy(name, spec string) string {
	return "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: " + name + "}\nspec: " + spec + "\n"
}

// wearing gives the containers of a network labels, as pairs, and named ports.
func wearing(network nodetest.Network, labels map[string]string, ports ...map[string]any) nodetest.Network {
	var list []any
	for key, value := range labels {
		list = append(list, map[string]any{"key": key, "value": value})
	}
	return network.With("args", map[string]any{"cni": map[string]any{"labels": list, "ports": ports}})
}

func (g *guarded) dress(t *testing.T, id string, labels ...string) *nodetest.Container {
	t.Helper()
	all := map[string]string{"app": id}
	for i := 0; i+1 < len(labels); i += 2 {
		all[labels[i]] = labels[i+1]
	}
	return g.Attach(t, id, wearing(g.pods, all))
}
