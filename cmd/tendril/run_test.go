// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"flag"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/tendril-net/tendril/pkg/api"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// agent is a Service with fixed answers; what the CLI does not ask is nil.
type agent struct {
	api.Attacher
	api.Inspector
	api.Networker
	reasons []string
	bare    bool // no uplinks, no pools
	err     error
	limit   int // of the last call of Flows or Drops
	applied api.ApplyRequest
	deleted []string
	// limited is whom the last call of SetBandwidth was for.
	limited   api.Attachment
	bandwidth api.Bandwidth
}

func (a *agent) Health(context.Context) (api.Health, error) { return a.health(), a.err }

func (a *agent) health() api.Health { return api.Health{OK: a.reasons == nil, Reasons: a.reasons} }

func (a *agent) Status(context.Context) (api.Status, error) {
	flows, endpoints := uint64(123456), uint64(0)
	s := api.Status{
		Health: a.health(), Version: "v1.2.3", Bandwidth: "token-bucket", PID: 4711, Started: now.Add(-49*time.Hour - 30*time.Minute), Kernel: "6.18.0", Attach: "tcx",
		BPFRoot: "/sys/fs/bpf/tendril", Endpoints: 1000,
		Uplinks: []api.Uplink{
			{Name: "eth0", State: api.UplinkUsed, IfIndex: 2, MTU: 1500, IPv4: netip.MustParseAddr("192.0.2.2"), IPv6: netip.MustParseAddr("2001:db8::2")},
			{Name: "eth1", State: "no address", IfIndex: 11, MTU: 9000},
			{Name: "eht2", State: "absent"},
		},
		Pools: []api.Pool{
			{Network: "pods", Ranges: []string{"10.10.0.0/16"}, Leased: 1000, Capacity: 65533},
			{Network: "pods", Ranges: []string{"fd00:10::/64", "fd00:11::5-fd00:11::9"}, Leased: 1000, Capacity: math.MaxInt64},
		},
		Maps: []api.Map{
			{Name: "flows", Entries: &flows, Capacity: 262144, Memory: 54526848},
			{Name: "endpoints", Entries: &endpoints, Capacity: 65536, Memory: 512},
			{Name: "epochs", Capacity: 65536, Memory: 262144},
		},
		Counters: []api.Counter{
			{Journey: "from_container", Reason: "forwarded", Packets: 1234567, Bytes: 3 << 30},
			{Journey: "from_container", Reason: "source_address", Dropped: true, Packets: 7, Bytes: 420},
			{Journey: "from_uplink", Reason: "forwarded"},
		},
	}
	if a.bare {
		s.Uplinks, s.Pools = nil, nil
	}
	return s, a.err
}

func (a *agent) Endpoints(context.Context) ([]api.Endpoint, error) {
	return []api.Endpoint{
		{
			Attachment: api.Attachment{ContainerID: "0123456789abcdef0123456789abcdef", IfName: "eth0"}, ID: 1, Network: "pods", Driver: "routed",
			NetNS: "/run/netns/a", State: api.Ready, HostIfName: "tdl0123456789ab", HostIfIndex: 12, MAC: "02:00:00:00:00:01", HostMAC: "02:00:00:00:00:02",
			MTU: 1500, Masquerade: true, Created: now.Add(-90 * time.Second),
			Addresses: []api.Address{
				{Address: netip.MustParsePrefix("10.10.0.2/16"), Gateway: netip.MustParseAddr("10.10.0.1")},
				{Address: netip.MustParsePrefix("fd00:10::2/64"), Gateway: netip.MustParseAddr("fd00:10::1")},
			},
			Labels: map[string]string{"app": "web"},
		},
		// What a container brings along may not drive the terminal.
		{
			Attachment: api.Attachment{ContainerID: "c2", IfName: "e\x1b[31m0"}, ID: 20, Network: "static", State: api.Pending, HostIfName: "tdlba9876543210", Created: now,
			Bandwidth: api.Bandwidth{IngressRate: 2_500_000, IngressBurst: 25_000, EgressRate: 1_000, EgressBurst: 10},
		},
		{Attachment: api.Attachment{ContainerID: "c3", IfName: "eth0"}, ID: 21, Network: "static", State: api.Detached, HostIfName: "tdl00000000000c3", Created: now},
	}, a.err
}

func (a *agent) SetBandwidth(_ context.Context, of api.Attachment, b api.Bandwidth) (api.Endpoint, error) {
	a.limited, a.bandwidth = of, b
	return api.Endpoint{Attachment: of, Bandwidth: b}, a.err
}

func (a *agent) Flows(_ context.Context, limit int) ([]api.Flow, error) {
	a.limit = limit
	return []api.Flow{
		{
			Protocol: "tcp", Source: netip.MustParseAddrPort("10.10.0.2:33000"), Destination: netip.MustParseAddrPort("198.51.100.7:443"), IfIndex: 12,
			Action: "forward", Translated: &api.Translation{End: "source", To: netip.MustParseAddrPort("192.0.2.2:40960")}, OutIfIndex: 2,
			NextHop: netip.MustParseAddr("192.0.2.1"), Packets: 9999, Bytes: 1023, Idle: 3, Current: true,
		},
		{
			Protocol: "icmpv6", Source: netip.MustParseAddrPort("[2001:db8::9]:0"), Destination: netip.MustParseAddrPort("[fd00:10::2]:0"),
			Action: "deliver", OutIfIndex: 12, Packets: 10000, Bytes: 1048575, Idle: 3700,
		},
	}[:min(limit, 2)], a.err
}

func (a *agent) Ports(context.Context) ([]api.Port, error) {
	web := api.Attachment{ContainerID: "0123456789abcdef0123456789abcdef", IfName: "eth0"}
	return []api.Port{
		{Protocol: "tcp", Host: netip.MustParseAddrPort("0.0.0.0:8080"), Container: netip.MustParseAddrPort("10.10.0.2:80"), Attachment: web, Network: "pods"},
		{Protocol: "tcp", Host: netip.MustParseAddrPort("[::]:8080"), Container: netip.MustParseAddrPort("[fd00:10::2]:80"), Attachment: web, Network: "pods"},
		{
			Protocol: "udp", Host: netip.MustParseAddrPort("127.0.0.1:53"), Container: netip.MustParseAddrPort("198.51.100.9:5353"),
			Attachment: api.Attachment{ContainerID: "c2", IfName: "e\x1b[31m0"}, Network: "static",
		},
	}, a.err
}

var (
	web = api.Attachment{ContainerID: "0123456789abcdef0123456789abcdef", IfName: "eth0"}
	db  = api.Attachment{ContainerID: "c2", IfName: "e\x1b[31m0"}
)

func (a *agent) Policies(context.Context) (api.Firewall, error) {
	if a.bare {
		return api.Firewall{}, a.err
	}
	return api.Firewall{
		Policies: []api.Policy{
			{
				Namespace: "default", Name: "db", File: "/etc/tendril/policy.d/shop.yaml", PolicyTypes: []string{"Ingress", "Egress"},
				Endpoints: []api.Attachment{db},
				Rules: []api.PolicyRule{
					{Direction: "ingress", Summary: "from app=web to TCP 5432", Hits: 12345},
					{Direction: "ingress", Index: 1, Summary: "from 192.0.2.0/24 to all ports"},
				},
			},
			{
				Namespace: "default", Name: "web", File: "/etc/tendril/policy.d/default.web.yaml", PolicyTypes: []string{"Ingress"},
				Endpoints: []api.Attachment{web}, Rules: []api.PolicyRule{},
			},
		},
		Namespaces: []api.Namespace{{Name: "shop", File: "/etc/tendril/policy.d/namespace-shop.yaml", Labels: map[string]string{"team": "a", "stage": "test"}}},
		Endpoints: []api.EndpointPolicy{
			{
				Attachment: web, ID: 1, Namespace: "default", Network: "pods", IngressPolicy: api.IngressIsolated,
				Ingress: []string{"default/web"}, Egress: []string{}, IngressDenied: 7,
			},
			{
				Attachment: db, ID: 20, Namespace: "default", Network: "static", IngressPolicy: api.IngressOpen, NoICC: true,
				Ingress: []string{"default/all", "default/db"}, Egress: []string{"default/db"}, EgressDenied: 10000,
			},
		},
	}, a.err
}

func (a *agent) ApplyPolicies(_ context.Context, req api.ApplyRequest) (api.PolicyChange, error) {
	a.applied = req
	change := api.PolicyChange{DryRun: req.DryRun, Objects: []api.ObjectChange{
		{Kind: "Namespace", Name: "shop", Change: api.ObjectUnchanged, File: "/etc/tendril/policy.d/namespace-shop.yaml"},
		{Kind: "NetworkPolicy", Namespace: "default", Name: "web", Change: api.ObjectCreated, File: "/etc/tendril/policy.d/default.web.yaml"},
	}}
	if !req.DryRun {
		return change, a.err
	}
	change.Effect = &api.PolicyEffect{Isolation: []api.IsolationChange{}, Cut: []api.JudgedFlow{}, Opened: []api.JudgedFlow{}}
	if a.bare {
		return change, a.err
	}
	flow := api.JudgedFlow{
		Protocol: "tcp", Client: netip.MustParseAddrPort("10.10.0.2:33000"), Server: netip.MustParseAddrPort("10.10.0.3:80"), Endpoint: web, Direction: "ingress",
	}
	change.Effect.Isolation = []api.IsolationChange{{Attachment: web, Direction: "ingress", Isolated: true}, {Attachment: db, Direction: "egress"}}
	change.Effect.Cut, change.Effect.CutTotal = []api.JudgedFlow{flow}, 2000
	flow.Client, flow.Direction = netip.MustParseAddrPort("10.10.0.9:33000"), "egress"
	change.Effect.Opened, change.Effect.OpenedTotal, change.Effect.Partial = []api.JudgedFlow{flow}, 1, true
	return change, a.err
}

func (a *agent) DeletePolicies(_ context.Context, namespace string, names []string) error {
	for _, name := range names {
		a.deleted = append(a.deleted, namespace+"/"+name)
	}
	return a.err
}

func (a *agent) Drops(_ context.Context, limit int) ([]api.Drop, error) {
	a.limit = limit
	return []api.Drop{
		{
			Protocol: "tcp", Source: netip.MustParseAddrPort("10.10.0.2:33000"), Destination: netip.MustParseAddrPort("10.10.0.3:80"),
			Reason: "policy_ingress", Endpoint: web, Policies: []string{"default/all", "default/web"}, Packets: 3, Bytes: 222, Idle: 2,
		},
		{
			Protocol: "icmpv6", Source: netip.MustParseAddrPort("[fd00:10::2]:7"), Destination: netip.MustParseAddrPort("[fd00:20::2]:0"),
			Reason: "network_isolation", Endpoint: db, Network: "static", Packets: 10000, Bytes: 1048575, Idle: 9,
		},
	}[:min(limit, 2)], a.err
}

// serve serves the agent at a socket until the test ends.
func serve(t *testing.T, a *agent) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "agent.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: api.NewHandler(a, api.HandlerOptions{}), ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return socket
}

// execute runs the program and returns what it printed and its exit code.
func execute(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	env := environment{ctx: t.Context(), stdin: strings.NewReader("kind: Nothing\n"), stdout: &out, stderr: &errs, now: func() time.Time { return now }}
	code = exitCode(env, run(env, args))
	return out.String(), errs.String(), code
}

func TestOutput(t *testing.T) {
	broken := &agent{reasons: []string{"uplinks: reconcile uplinks: no buffer space available", "routes: refused"}}
	tests := map[string]struct {
		agent *agent
		args  []string
		code  int
	}{
		"status":           {&agent{}, []string{"status"}, 0},
		"status-unhealthy": {broken, []string{"status"}, 1},
		"status-bare":      {&agent{bare: true}, []string{"status"}, 0},
		"status-json":      {&agent{}, []string{"status", "-o", "json"}, 0},
		"endpoints":        {&agent{}, []string{"endpoints"}, 0},
		"endpoints-json":   {&agent{}, []string{"-o", "json", "endpoints"}, 0},
		"set-bandwidth": {
			&agent{}, []string{"endpoints", "set-bandwidth", "0123", "--ingress-rate", "2.5G", "--egress-rate", "512k", "--egress-burst", "1M"}, 0,
		},
		"set-bandwidth-json": {
			&agent{}, []string{"endpoints", "set-bandwidth", "--egress-rate=0", "c2", "e\x1b[31m0", "-o", "json"}, 0,
		},
		"flows":          {&agent{}, []string{"flows"}, 0},
		"flows-limit":    {&agent{}, []string{"flows", "--limit", "1"}, 0},
		"flows-json":     {&agent{}, []string{"flows", "-o=json"}, 0},
		"ports":          {&agent{}, []string{"ports"}, 0},
		"ports-json":     {&agent{}, []string{"ports", "-o", "json"}, 0},
		"drops":          {&agent{}, []string{"drops"}, 0},
		"drops-limit":    {&agent{}, []string{"drops", "--limit", "1"}, 0},
		"drops-json":     {&agent{}, []string{"drops", "-o", "json"}, 0},
		"policies":       {&agent{}, []string{"policy", "list"}, 0},
		"policies-bare":  {&agent{bare: true}, []string{"policy", "list"}, 0},
		"policies-of":    {&agent{}, []string{"policy", "-o", "table", "list", "0123456"}, 0},
		"policies-json":  {&agent{}, []string{"policy", "list", "-o", "json"}, 0},
		"apply":          {&agent{}, []string{"policy", "apply", "-f", "testdata/policy.yaml"}, 0},
		"apply-dry":      {&agent{}, []string{"policy", "apply", "-f", "-", "--dry-run"}, 0},
		"apply-dry-bare": {&agent{bare: true}, []string{"policy", "apply", "--dry-run", "-f", "-"}, 0},
		"apply-json":     {&agent{}, []string{"policy", "apply", "-f", "-", "--dry-run", "-o", "json"}, 0},
		"delete":         {&agent{}, []string{"policy", "delete", "web", "-n", "shop", "db"}, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			stdout, _, code := execute(t, append([]string{"--socket", serve(t, test.agent)}, test.args...)...)
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(stdout), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), stdout); d != "" {
				t.Errorf("output (-want +got):\n%s", d)
			}
		})
	}
}

// Who sees only a part of the flows is told.
func TestMoreFlows(t *testing.T) {
	for limit, want := range map[string]string{
		"1": "tendril: there are more flows than these 1: --limit N lists up to 100000\n",
		"2": "",
	} {
		_, stderr, code := execute(t, "--socket", serve(t, &agent{}), "flows", "--limit", limit)
		if stderr != want || code != 0 {
			t.Errorf("--limit %s: said %q with exit code %d, want %q with 0", limit, stderr, code, want)
		}
	}
}

// What is asked of the agent.
func TestPolicyRequests(t *testing.T) {
	a := &agent{}
	socket := serve(t, a)
	execute(t, "--socket", socket, "policy", "apply", "-f", "-", "--dry-run")
	if d := cmp.Diff(api.ApplyRequest{Source: "standard input", Text: []byte("kind: Nothing\n"), DryRun: true}, a.applied); d != "" {
		t.Errorf("applied (-want +got):\n%s", d)
	}
	execute(t, "--socket", socket, "policy", "apply", "-f", "testdata/policy.yaml")
	text, err := os.ReadFile("testdata/policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(api.ApplyRequest{Source: "testdata/policy.yaml", Text: text}, a.applied); d != "" {
		t.Errorf("applied (-want +got):\n%s", d)
	}
	execute(t, "--socket", socket, "policy", "delete", "a", "b")
	execute(t, "--socket", socket, "policy", "delete", "a", "-n", "shop")
	if d := cmp.Diff([]string{"default/a", "default/b", "shop/a"}, a.deleted); d != "" {
		t.Errorf("deleted (-want +got):\n%s", d)
	}
}

// What is not given stays, but for the burst of another rate.
func TestSetBandwidth(t *testing.T) {
	for _, test := range []struct {
		args []string
		want api.Bandwidth
	}{
		{[]string{"--ingress-rate", "10M"}, api.Bandwidth{IngressRate: 10_000_000, EgressRate: 1_000, EgressBurst: 10}},
		{[]string{"--ingress-burst", "1k"}, api.Bandwidth{IngressRate: 2_500_000, IngressBurst: 1_000, EgressRate: 1_000, EgressBurst: 10}},
		{[]string{"--egress-rate", "8.2M"}, api.Bandwidth{IngressRate: 2_500_000, IngressBurst: 25_000, EgressRate: 8_200_000}},
		{[]string{"--egress-rate", "0"}, api.Bandwidth{IngressRate: 2_500_000, IngressBurst: 25_000}},
		{[]string{"--egress-rate", "1T", "--egress-burst", "7"}, api.Bandwidth{IngressRate: 2_500_000, IngressBurst: 25_000, EgressRate: 1_000_000_000_000, EgressBurst: 7}},
	} {
		a := &agent{}
		_, stderr, code := execute(t, append([]string{"--socket", serve(t, a), "endpoints", "set-bandwidth", "c2"}, test.args...)...)
		if code != 0 || stderr != "" || a.limited != db {
			t.Errorf("%q: exit code %d: %s; asked for %v", test.args, code, stderr, a.limited)
		}
		if d := cmp.Diff(test.want, a.bandwidth); d != "" {
			t.Errorf("%q (-want +got):\n%s", test.args, d)
		}
	}
}

func TestErrors(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "agent.sock")
	refusing := serve(t, &agent{err: &api.Error{Code: api.CodeInternal, Message: "read flows: refused"}})
	tests := map[string]struct {
		args []string
		code int
		want []string
	}{
		"no agent":            {[]string{"--socket", missing, "status"}, 3, []string{missing, "Is tendril-agent running", "--socket"}},
		"agent refuses":       {[]string{"--socket", refusing, "flows"}, 1, []string{"tendril: read flows: refused\n"}},
		"no command":          {nil, 2, []string{"no command given", "tendril --help"}},
		"unknown command":     {[]string{"flow"}, 2, []string{`unknown command "flow"`}},
		"unknown argument":    {[]string{"flows", "all"}, 2, []string{`unknown argument "all"`}},
		"unknown flag":        {[]string{"flows", "--all"}, 2, []string{"-all"}},
		"unknown format":      {[]string{"flows", "-o", "yaml"}, 2, []string{`-o "yaml": neither table nor json`}},
		"limit too large":     {[]string{"flows", "--limit", "100001"}, 2, []string{"not a number from 1 to 100000"}},
		"policy of what":      {[]string{"policy"}, 2, []string{"policy: list, apply or delete?"}},
		"unknown policy":      {[]string{"policy", "aply"}, 2, []string{`unknown command "policy aply"`}},
		"apply of nothing":    {[]string{"policy", "apply"}, 2, []string{"-f FILE is missing"}},
		"apply of no file":    {[]string{"policy", "apply", "-f", missing}, 1, []string{missing}},
		"delete of nothing":   {[]string{"policy", "delete"}, 2, []string{"a NAME is missing"}},
		"flag of another":     {[]string{"policy", "list", "--dry-run"}, 2, []string{"-dry-run is no flag of policy list"}},
		"two containers":      {[]string{"policy", "list", "a", "b"}, 2, []string{`unknown argument "b"`}},
		"nobody's ID":         {[]string{"--socket", serve(t, &agent{}), "policy", "list", "9"}, 1, []string{`an ID that begins with "9"`}},
		"bandwidth of nobody": {[]string{"endpoints", "set-bandwidth"}, 2, []string{"endpoints set-bandwidth: a CONTAINER is missing"}},
		"no bandwidth":        {[]string{"endpoints", "set-bandwidth", "c2"}, 2, []string{"nothing to set"}},
		"bandwidth of others": {
			[]string{"--socket", serve(t, &agent{}), "endpoints", "set-bandwidth", "c", "--egress-rate", "1M"},
			1,
			[]string{`several endpoints are "c": "c2 e\x1b[31m0", "c3 eth0"`},
		},
		"bandwidth of all": {[]string{"endpoints", "set-bandwidth", "", "--egress-rate", "1M"}, 2, []string{"CONTAINER is empty"}},
		"burst without a rate": {
			[]string{"--socket", serve(t, &agent{}), "endpoints", "set-bandwidth", "c3", "--egress-burst", "1M"},
			2,
			[]string{"a burst without a rate limits nothing"},
		},
		"bandwidth of none": {
			[]string{"--socket", serve(t, &agent{}), "endpoints", "set-bandwidth", "c2", "eth0", "--egress-rate", "1M"},
			1,
			[]string{`no endpoint is "c2 eth0"`},
		},
		"rate below zero":   {[]string{"endpoints", "set-bandwidth", "c2", "--egress-rate", "-1"}, 2, []string{`"-1" for flag -egress-rate`}},
		"rate of a word":    {[]string{"endpoints", "set-bandwidth", "c2", "--egress-rate", "M"}, 2, []string{`"M" for flag -egress-rate`}},
		"rate of no number": {[]string{"endpoints", "set-bandwidth", "c2", "--egress-rate", "NaN"}, 2, []string{`"NaN" for flag -egress-rate`}},
		"part of a bit":     {[]string{"endpoints", "set-bandwidth", "c2", "--egress-rate", "0.5"}, 2, []string{`"0.5" for flag -egress-rate`}},
		"rate elsewhere":    {[]string{"endpoints", "--egress-rate", "1"}, 2, []string{"-egress-rate is no flag of endpoints"}},
		"limit is negative": {[]string{"flows", "--limit", "-1"}, 2, []string{"not a number from 1 to 100000"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := execute(t, test.args...)
			if code != test.code || stdout != "" {
				t.Errorf("exit code %d, want %d; stdout %q", code, test.code, stdout)
			}
			for _, part := range test.want {
				if !strings.Contains(stderr, part) {
					t.Errorf("stderr %q lacks %q", stderr, part)
				}
			}
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"help"}, {"flows", "-h"}} {
		stdout, _, code := execute(t, args...)
		for name := range commands() {
			if !strings.Contains(stdout, "tendril "+name) {
				t.Errorf("%q: help lacks %s", args, name)
			}
		}
		if code != 0 || !strings.Contains(stdout, "-socket") {
			t.Errorf("%q: exit code %d: %s", args, code, stdout)
		}
	}
	stdout, _, code := execute(t, "version", "--socket", filepath.Join(t.TempDir(), "missing"))
	if code != 0 || !strings.HasPrefix(stdout, "tendril ") || strings.Contains(stdout, "agent") {
		t.Errorf("version without agent: exit code %d: %q", code, stdout)
	}
	stdout, _, _ = execute(t, "version", "--socket", serve(t, &agent{}))
	if !strings.HasSuffix(stdout, "\ntendril-agent v1.2.3\n") {
		t.Errorf("version with agent: %q", stdout)
	}
}

func TestNumbers(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 9999: "9999", 10000: "10.0k", 99949: "99.9k", 99950: "100k", 123456: "123k", 999499: "999k", 999500: "1.00M", 1234567: "1.23M",
		math.MaxInt64: "9.22E", math.MaxUint64: "18.4E",
	} {
		if got := count(n); got != want {
			t.Errorf("count(%d) = %q, want %q", n, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 1 << 20: "1.00 MiB", 1<<20 - 1: "1.00 MiB", 52 << 20: "52.0 MiB", math.MaxUint64: "16.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 59 * time.Second: "59s", 60 * time.Second: "1m", 61 * time.Second: "1m1s",
		25 * time.Hour: "1d1h", 24*time.Hour + time.Second: "1d",
	} {
		if got := age(d); got != want {
			t.Errorf("age(%v) = %q, want %q", d, got, want)
		}
	}
}
