// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
)

func TestParseBandwidth(t *testing.T) {
	for _, test := range []struct {
		name  string
		in    api.Bandwidth
		want  api.Bandwidth
		notes []string
	}{
		{"nothing", api.Bandwidth{}, api.Bandwidth{}, nil},
		{"as it is", api.Bandwidth{IngressRate: 1000, IngressBurst: 1, EgressRate: 1_000_000, EgressBurst: 250_000}, api.Bandwidth{IngressRate: 1000, IngressBurst: 1, EgressRate: 1_000_000, EgressBurst: 250_000}, nil},
		{
			"without bursts",
			api.Bandwidth{IngressRate: 1000, EgressRate: 1_000_000_000_000_000},
			api.Bandwidth{IngressRate: 1000, IngressBurst: 10, EgressRate: 1_000_000_000_000_000, EgressBurst: 10_000_000_000_000},
			[]string{"ingressBurst is 10, 10 ms of ingressRate 1000", "egressBurst is 10000000000000, 10 ms of egressRate 1000000000000000"},
		},
		{
			"without rates",
			api.Bandwidth{IngressBurst: 7, EgressBurst: 8},
			api.Bandwidth{},
			[]string{"ingressBurst 7 without ingressRate limits nothing", "egressBurst 8 without egressRate limits nothing"},
		},
		{
			"what Kubernetes sends",
			api.Bandwidth{EgressRate: 10_000_000, EgressBurst: 1<<31 - 1},
			api.Bandwidth{EgressRate: 10_000_000, EgressBurst: 2_500_000},
			[]string{"egressBurst 2147483647 is lowered to 2500000, 250 ms of egressRate 10000000"},
		},
		{
			"prefixes",
			api.Bandwidth{UnshapedSubnets: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/8")}},
			api.Bandwidth{UnshapedSubnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
			nil,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, notes, err := parseBandwidth(test.in)
			must(t, err)
			if diff := cmp.Diff(test.want, got, equate...); diff != "" {
				t.Errorf("in force (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.notes, notes); diff != "" {
				t.Errorf("notes (-want +got):\n%s", diff)
			}
		})
	}
	for _, test := range []struct {
		key string
		in  api.Bandwidth
	}{
		{"bandwidth.ingressRate", api.Bandwidth{IngressRate: -1}},
		{"bandwidth.ingressRate", api.Bandwidth{IngressRate: 999}},
		{"bandwidth.egressRate", api.Bandwidth{EgressRate: 1_000_000_000_000_001}},
		{"bandwidth.egressBurst", api.Bandwidth{EgressRate: 1000, EgressBurst: -5}},
		{"bandwidth.unshapedSubnets", api.Bandwidth{UnshapedSubnets: make([]netip.Prefix, 257)}},
		{"bandwidth.unshapedSubnets[0]", api.Bandwidth{UnshapedSubnets: make([]netip.Prefix, 1)}},
	} {
		_, _, err := parseBandwidth(test.in)
		if fault := (*api.Error)(nil); !errors.As(err, &fault) || fault.Code != api.CodeInvalid || fault.Key != test.key {
			t.Errorf("%+v: %v, not that %s is at fault", test.in, err, test.key)
		}
	}
}

// A limit is part of the endpoint from its ADD on, changes while it is at work, and outlives
// the agent.
func TestSetBandwidth(t *testing.T) {
	w := newWorld(t)
	s, stop := w.boot(t)
	req := request("c1")
	req.Bandwidth = api.Bandwidth{EgressRate: 8_000_000, EgressBurst: 800_000}
	e, err := s.Prepare(ctx, req)
	must(t, err)
	a := e.Attachment
	wantLimits := func(ingress, egress datapath.Limit) {
		t.Helper()
		if got := w.attached[e.ID]; got.Ingress != ingress || got.Egress != egress {
			t.Errorf("the datapath has %+v and %+v, not %+v and %+v", got.Ingress, got.Egress, ingress, egress)
		}
	}
	before := datapath.Limit{Rate: 8_000_000, Burst: 100 * time.Millisecond}
	_, err = s.Attach(ctx, a, api.AttachRequest{HostIfIndex: w.wire(e).Index})
	must(t, err)
	wantLimits(datapath.Limit{}, before)

	_, err = s.SetBandwidth(ctx, a, api.Bandwidth{IngressRate: -1})
	wantCode(t, err, api.CodeInvalid)
	_, err = s.SetBandwidth(ctx, api.Attachment{ContainerID: "c9", IfName: "eth0"}, api.Bandwidth{})
	wantCode(t, err, api.CodeNotFound)
	_, err = s.SetBandwidth(ctx, api.Attachment{ContainerID: "c/9", IfName: "eth0"}, api.Bandwidth{})
	wantCode(t, err, api.CodeInvalid)
	w.fail["SetLimits"] = errors.New("refused")
	if _, err = s.SetBandwidth(ctx, a, api.Bandwidth{IngressRate: 2000}); !errors.Is(err, w.fail["SetLimits"]) {
		t.Errorf("error %v", err)
	}
	delete(w.fail, "SetLimits")
	wantLimits(datapath.Limit{}, before)
	wantBandwidth(t, s, a, req.Bandwidth)

	want := api.Bandwidth{IngressRate: 2000, IngressBurst: 20}
	got, err := s.SetBandwidth(ctx, a, api.Bandwidth{IngressRate: 2000})
	must(t, err)
	if diff := cmp.Diff(want, got.Bandwidth, equate...); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	after := datapath.Limit{Rate: 2000, Burst: 10 * time.Millisecond}
	wantLimits(after, datapath.Limit{})
	must(t, s.Check(ctx, a))
	stop()
	s, _ = w.boot(t)
	wantLimits(after, datapath.Limit{})
	wantBandwidth(t, s, a, want)
}

func wantBandwidth(t *testing.T, s *Service, a api.Attachment, want api.Bandwidth) {
	t.Helper()
	got, err := s.Endpoint(ctx, a)
	must(t, err)
	if diff := cmp.Diff(want, got.Bandwidth, equate...); diff != "" {
		t.Errorf("bandwidth (-want +got):\n%s", diff)
	}
}

// What is pending gets its limit with its ADD, and what has no device any more has none.
func TestSetBandwidthOfPending(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	e, err := s.Prepare(ctx, request("c1"))
	must(t, err)
	_, err = s.SetBandwidth(ctx, e.Attachment, api.Bandwidth{EgressRate: 1000})
	must(t, err)
	link := w.wire(e)
	_, err = s.Attach(ctx, e.Attachment, api.AttachRequest{HostIfIndex: link.Index})
	must(t, err)
	if got, want := w.attached[e.ID].Egress, (datapath.Limit{Rate: 1000, Burst: 10 * time.Millisecond}); got != want {
		t.Errorf("attached with %+v, not %+v", got, want)
	}
	w.unwire(e.Attachment)
	s.LinkGone(link.Index)
	_, err = s.SetBandwidth(ctx, e.Attachment, api.Bandwidth{EgressRate: 2000})
	must(t, err)
	if got, there := w.attached[e.ID]; there {
		t.Errorf("attached again: %+v", got)
	}
}
