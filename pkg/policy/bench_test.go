// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const many = 10_000

// block24 is the CIDR number i of many, nested by fours.
func block24(i int) *networkingv1.IPBlock {
	bits := 24 + i%4
	p, _ := netip.AddrFrom4([4]byte{10, byte(i >> 10), byte(i >> 2), 0}).Prefix(bits)
	return &networkingv1.IPBlock{CIDR: p.String()}
}

func newPolicy(name string, spec networkingv1.NetworkPolicySpec) Policy {
	return Policy{Source: "test", Object: &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: spec,
	}}
}

func fromPeers(peers ...networkingv1.NetworkPolicyPeer) networkingv1.NetworkPolicyIngressRule {
	port := intstr.FromInt32(80)
	return networkingv1.NetworkPolicyIngressRule{From: peers, Ports: []networkingv1.NetworkPolicyPort{{Port: &port}}}
}

// large are the ways to have ten thousand ipBlocks, and other things of which
// there can be as many.
var large = []struct {
	name string
	make func() *Objects
}{
	{"policies", func() *Objects {
		o := new(Objects)
		for i := range many {
			o.Policies = append(o.Policies, newPolicy(fmt.Sprintf("p%d", i), networkingv1.NetworkPolicySpec{
				Ingress: []networkingv1.NetworkPolicyIngressRule{fromPeers(networkingv1.NetworkPolicyPeer{IPBlock: block24(i)})},
			}))
		}
		return o
	}},
	{"rules", func() *Objects {
		var spec networkingv1.NetworkPolicySpec
		for i := range many {
			spec.Ingress = append(spec.Ingress, fromPeers(networkingv1.NetworkPolicyPeer{IPBlock: block24(i)}))
		}
		return &Objects{Policies: []Policy{newPolicy("p", spec)}}
	}},
	{"peers", func() *Objects {
		var peers []networkingv1.NetworkPolicyPeer
		for i := range many {
			peers = append(peers, networkingv1.NetworkPolicyPeer{IPBlock: block24(i)})
		}
		spec := networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{fromPeers(peers...)}}
		return &Objects{Policies: []Policy{newPolicy("p", spec)}}
	}},
	{"excepts", func() *Objects {
		block := &networkingv1.IPBlock{CIDR: "10.0.0.0/8"}
		for i := range many {
			block.Except = append(block.Except, block24(i).CIDR)
		}
		spec := networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{
			fromPeers(networkingv1.NetworkPolicyPeer{IPBlock: block}),
		}}
		return &Objects{Policies: []Policy{newPolicy("p", spec)}}
	}},
	{"selectors", func() *Objects {
		o := new(Objects)
		for i := range many {
			selector := metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("app-%d", i)}}
			o.Policies = append(o.Policies, newPolicy(fmt.Sprintf("p%d", i), networkingv1.NetworkPolicySpec{
				PodSelector: selector,
				Ingress:     []networkingv1.NetworkPolicyIngressRule{fromPeers(networkingv1.NetworkPolicyPeer{PodSelector: &selector})},
			}))
		}
		return o
	}},
}

func numbered(i int) Endpoint {
	return Endpoint{
		ID: uint16(i + 1), Network: "pods",
		Labels:    map[string]string{"app": fmt.Sprintf("app-%d", i%20), "pod": fmt.Sprint(i)},
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00::%x", i+1))},
	}
}

func mustAdd(tb testing.TB, e *Engine, endpoint Endpoint) {
	tb.Helper()
	if err := e.Add(endpoint); err != nil {
		tb.Fatal(err)
	}
}

func mustWith(tb testing.TB, e *Engine, o *Objects) *Engine {
	tb.Helper()
	n, err := e.With(o)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

// BenchmarkWith compiles ten thousand of something for a hundred endpoints.
func BenchmarkWith(b *testing.B) {
	for _, l := range large {
		b.Run(l.name, func(b *testing.B) {
			o := l.make()
			e := New(Limits{})
			for i := range 100 {
				mustAdd(b, e, numbered(i))
			}
			b.ReportAllocs()
			for b.Loop() {
				mustWith(b, e, o)
			}
		})
	}
}

// BenchmarkAdd adds the hundred and first endpoint, and removes it.
func BenchmarkAdd(b *testing.B) {
	for _, l := range large {
		b.Run(l.name, func(b *testing.B) {
			e := New(Limits{})
			for i := range 100 {
				mustAdd(b, e, numbered(i))
			}
			e = mustWith(b, e, l.make())
			b.ReportAllocs()
			for b.Loop() {
				mustAdd(b, e, numbered(100))
				e.Remove(101)
			}
		})
	}
}

// BenchmarkTables is a snapshot.
func BenchmarkTables(b *testing.B) {
	for _, l := range large {
		b.Run(l.name, func(b *testing.B) {
			e := New(Limits{})
			for i := range 100 {
				mustAdd(b, e, numbered(i))
			}
			e = mustWith(b, e, l.make())
			for b.Loop() {
				e.Tables()
			}
		})
	}
}

// BenchmarkAddFirst adds the first endpoint that the policies select, so that
// its set has to be made.
func BenchmarkAddFirst(b *testing.B) {
	for _, l := range large {
		b.Run(l.name, func(b *testing.B) {
			e := mustWith(b, New(Limits{}), l.make())
			b.ReportAllocs()
			for b.Loop() {
				mustAdd(b, e, numbered(0))
				b.StopTimer()
				e.Remove(1)
				b.StartTimer()
			}
		})
	}
}

// BenchmarkParse reads ten thousand policies from one file.
func BenchmarkParse(b *testing.B) {
	var data []byte
	for i := range many {
		data = fmt.Appendf(data, `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p%d}
spec:
  podSelector: {}
  ingress:
  - from: [{ipBlock: {cidr: %s}}]
    ports: [{port: 80}]
`, i, block24(i).CIDR)
	}
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Parse("large.yaml", data); err != nil {
			b.Fatal(err)
		}
	}
}
