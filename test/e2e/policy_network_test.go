// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// Networks that refuse without any policy.
func TestNetworkIsolation(t *testing.T) {
	nstest.LeaveTo(t, "5.10")
	g := newGuarded(t)
	open := g.Network("open", "10.20.0.0/24", "fd00:20::/64")
	same := g.Network("same", "10.21.0.0/24", "fd00:21::/64").With("ingressPolicy", "same-bridge")
	isolated := g.Network("isolated", "10.22.0.0/24", "fd00:22::/64").With("ingressPolicy", "isolated")
	silent := g.Network("silent", "10.23.0.0/24", "fd00:23::/64").With("icc", false)
	containers := make(map[string]*nodetest.Container)
	for name, network := range map[string]nodetest.Network{"open": open, "same": same, "isolated": isolated, "silent": silent} {
		for _, n := range []string{"1", "2"} {
			containers[name+n] = g.Attach(t, name+n, network)
		}
	}
	eachFamily(t, func(t *testing.T, f family) {
		for _, one := range []struct{ from, to, want string }{
			{"open1", "open2", ""},
			{"same1", "same2", ""},
			{"open1", "same1", byIsolation},
			{"same1", "open1", ""},
			{"isolated1", "isolated2", byIsolation},
			{"open1", "isolated1", byIsolation},
			{"isolated1", "open1", ""},
			{"silent1", "silent2", byIsolation},
			{"open1", "silent1", ""},
			{"silent1", "open1", ""},
			{"silent1", "isolated1", byIsolation},
		} {
			from, to := containers[one.from], containers[one.to]
			at := serveTCP(t, to.NS, netip.AddrPortFrom(f.of(to), 0))
			try(t,
				trial{one.from + " to " + one.to + ", ping", func() string { return g.ping(t, from.NS, f.of(to)) }, one.want},
				trial{one.from + " to " + one.to + ", TCP", func() string { return g.tcp(t, from.NS, at) }, one.want},
				trial{"host to " + one.to, func() string { return g.tcp(t, g.NS, at) }, ""},
				trial{one.to + " to host", func() string { return g.ping(t, to.NS, f.gateway(to)) }, ""},
				trial{one.to + " to world", func() string { return g.ping(t, to.NS, f.world) }, ""},
			)
		}
		for _, d := range g.drops(t) {
			if d.Reason != byIsolation || d.Network == "" || d.Policies != nil {
				t.Errorf("drop %+v", d)
			}
		}
	})
	for _, wrong := range []struct {
		key   string
		value any
		want  string
	}{
		{"ingressPolicy", "closed", `ingressPolicy: there is no "closed"; there are ["open" "same-bridge" "isolated"]`},
		{"icc", "no", `icc: "no" is not true or false`},
	} {
		c := &nodetest.Container{NS: nstest.New(t, "wrong"), Attachment: api.Attachment{ContainerID: "wrong", IfName: "eth0"}, Network: g.pods.With(wrong.key, wrong.value)}
		if answer := g.Call(t, c.Call("ADD")); answer.Error == nil || answer.Error.Code != 7 || answer.Error.Msg != wrong.want {
			t.Errorf("%s %v: %+v", wrong.key, wrong.value, answer)
		}
	}
	for _, c := range containers {
		g.Delete(t, c)
	}
	g.forgotten(t)
}
