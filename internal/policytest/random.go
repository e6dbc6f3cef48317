// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tendril-net/tendril/pkg/policy"
)

var (
	namespaces = []string{"default", "default", "default", "blue"}
	keys       = []string{"app", "tier", "env"}
	values     = []string{"a", "a", "b"}
	names      = []string{"web", "dns", "admin"}
	networks   = []string{"pods", "edge"}
	protocols  = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	edges      = []int{1, 53, 80, 81, 443, 8000, 8001, 8010, 65535}
)

func one[T any](rng *rand.Rand, of []T) T { return of[rng.IntN(len(of))] }

// chance is true once in n times.
func chance(rng *rand.Rand, n int) bool { return rng.IntN(n) == 0 }

// RandomObjects makes up to eleven policies, and labels of some namespaces. All
// are valid.
func RandomObjects(rng *rand.Rand) *policy.Objects {
	o := new(policy.Objects)
	for _, name := range []string{"default", "blue"} {
		if chance(rng, 2) {
			o.Namespaces = append(o.Namespaces, policy.Namespace{Source: "random", Object: &corev1.Namespace{
				TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
				ObjectMeta: metav1.ObjectMeta{Name: name, Labels: randomLabels(rng)},
			}})
		}
	}
	for i := range rng.IntN(12) {
		p := &networkingv1.NetworkPolicy{
			TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("policy-%d", i), Namespace: one(rng, namespaces)},
			Spec:       networkingv1.NetworkPolicySpec{PodSelector: randomSelector(rng)},
		}
		for range 1 + rng.IntN(3) {
			p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{
				From: randomPeers(rng), Ports: randomPorts(rng),
			})
		}
		for range rng.IntN(4) {
			p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{
				To: randomPeers(rng), Ports: randomPorts(rng),
			})
		}
		p.Spec.PolicyTypes = one(rng, [][]networkingv1.PolicyType{
			nil, nil, {}, {"Ingress"}, {"Egress"}, {"Ingress", "Egress"}, {"Egress", "Ingress"},
		})
		o.Policies = append(o.Policies, policy.Policy{Source: "random", Object: p})
	}
	return o
}

// RandomEndpoints makes two to seven endpoints of this node and up to five of
// others. They have an address of IPv4, of IPv6 or both, a few two of a family,
// and no address in common.
func RandomEndpoints(rng *rand.Rand) []policy.Endpoint {
	var out []policy.Endpoint
	taken := make(map[netip.Addr]bool)
	add := func(e policy.Endpoint) {
		e.Namespace = one(rng, namespaces)
		e.Labels = randomLabels(rng)
		e.Network = one(rng, networks)
		for range rng.IntN(4) {
			e.Ports = append(e.Ports, policy.NamedPort{
				Name: one(rng, names), Protocol: one(rng, []uint8{6, 6, 17, 132}), Port: uint16(one(rng, edges)),
			})
		}
		for _, six := range one(rng, [][]bool{{false}, {true}, {false, true}, {false, true}, {false, false}, {true, true, false}}) {
			for a := randomAddress(rng, six); ; a = randomAddress(rng, six) {
				if !taken[a] {
					taken[a] = true
					e.Addresses = append(e.Addresses, a)
					break
				}
			}
		}
		out = append(out, e)
	}
	for i := range 2 + rng.IntN(6) {
		add(policy.Endpoint{ID: uint16(i + 1), FromOtherNetworks: chance(rng, 6), FromOwnNetwork: chance(rng, 10)})
	}
	for i := range rng.IntN(6) {
		add(policy.Endpoint{Key: fmt.Sprintf("node-2/%d", i)})
	}
	return out
}

// RandomFlow makes a flow from or to an endpoint of this node. The other end is
// another endpoint, the same, or an address that is no endpoint's.
func (m *Model) RandomFlow(rng *rand.Rand) policy.Flow {
	f := policy.Flow{Protocol: one(rng, []uint8{6, 6, 6, 17, 17, 132, 1, 58, 47})}
	if f.Protocol == policy.TCP || f.Protocol == policy.UDP || f.Protocol == policy.SCTP {
		f.ServerPort = uint16(one(rng, edges) + rng.IntN(3) - 1)
	}
	var here []policy.Endpoint
	for _, e := range m.Endpoints {
		if e.ID != 0 {
			here = append(here, e)
		}
	}
	mine := one(rng, here)
	address := one(rng, mine.Addresses)
	otherID, other := m.randomEnd(rng, address.Is6())
	if chance(rng, 2) {
		f.ClientID, f.Client, f.ServerID, f.Server = mine.ID, address, otherID, other
	} else {
		f.ClientID, f.Client, f.ServerID, f.Server = otherID, other, mine.ID, address
	}
	return f
}

func (m *Model) randomEnd(rng *rand.Rand, six bool) (id uint16, address netip.Addr) {
	if !chance(rng, 3) {
		e := one(rng, m.Endpoints)
		for _, a := range e.Addresses {
			if a.Is6() == six {
				return e.ID, a
			}
		}
	}
	for {
		a := randomAddress(rng, six)
		if m.holder(a) == nil {
			return 0, a
		}
	}
}

// holder is the endpoint with the address, of whatever node.
func (m *Model) holder(address netip.Addr) *policy.Endpoint {
	for i, e := range m.Endpoints {
		for _, a := range e.Addresses {
			if a == address {
				return &m.Endpoints[i]
			}
		}
	}
	return nil
}

// randomAddress keeps to the ends of a few nested prefixes: each byte that
// varies has few values.
func randomAddress(rng *rand.Rand, six bool) netip.Addr {
	b := []byte{0, 1, 127, 128, 255}
	if !six {
		return netip.AddrFrom4([4]byte{one(rng, []byte{10, 10, 10, 172}), one(rng, b[:3]), one(rng, b[:3]), one(rng, b)})
	}
	a := netip.MustParseAddr("fd00::").As16()
	a[1], a[7], a[15] = one(rng, b[:2]), one(rng, b[:3]), one(rng, b)
	a[14] = one(rng, b[:2])
	return netip.AddrFrom16(a)
}

func randomLabels(rng *rand.Rand) map[string]string {
	out := make(map[string]string)
	for _, key := range keys {
		if !chance(rng, 3) {
			out[key] = one(rng, values)
		}
	}
	return out
}

func randomSelector(rng *rand.Rand) metav1.LabelSelector {
	var s metav1.LabelSelector
	switch rng.IntN(6) {
	case 0, 1:
	case 2, 3:
		s.MatchLabels = map[string]string{one(rng, keys): one(rng, values)}
	case 4:
		s.MatchExpressions = []metav1.LabelSelectorRequirement{randomRequirement(rng)}
	case 5:
		s.MatchLabels = map[string]string{one(rng, keys): one(rng, values)}
		s.MatchExpressions = []metav1.LabelSelectorRequirement{randomRequirement(rng), randomRequirement(rng)}
	}
	return s
}

func randomRequirement(rng *rand.Rand) metav1.LabelSelectorRequirement {
	r := metav1.LabelSelectorRequirement{
		Key:      one(rng, keys),
		Operator: one(rng, []metav1.LabelSelectorOperator{"In", "NotIn", "Exists", "DoesNotExist"}),
	}
	if r.Operator == "In" || r.Operator == "NotIn" {
		for range 1 + rng.IntN(2) {
			r.Values = append(r.Values, one(rng, values))
		}
	}
	return r
}

func randomPeers(rng *rand.Rand) []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for range one(rng, []int{0, 1, 1, 1, 2, 3}) {
		pods, spaces := randomSelector(rng), randomSelector(rng)
		if chance(rng, 3) {
			spaces = metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": one(rng, namespaces)}}
		}
		switch rng.IntN(5) {
		case 0:
			out = append(out, networkingv1.NetworkPolicyPeer{PodSelector: &pods})
		case 1:
			out = append(out, networkingv1.NetworkPolicyPeer{NamespaceSelector: &spaces})
		case 2:
			out = append(out, networkingv1.NetworkPolicyPeer{PodSelector: &pods, NamespaceSelector: &spaces})
		default:
			out = append(out, networkingv1.NetworkPolicyPeer{IPBlock: randomBlock(rng)})
		}
	}
	return out
}

// randomBlock leaves host bits set now and then.
func randomBlock(rng *rand.Rand) *networkingv1.IPBlock {
	a := randomAddress(rng, chance(rng, 2))
	lengths := []int{0, 8, 9, 16, 24, 25, 31, 32}
	if a.Is6() {
		lengths = []int{0, 8, 16, 64, 65, 112, 127, 128}
	}
	bits := one(rng, lengths)
	cidr := netip.PrefixFrom(a, bits)
	if !chance(rng, 4) {
		cidr = cidr.Masked()
	}
	b := &networkingv1.IPBlock{CIDR: cidr.String()}
	for range rng.IntN(4) {
		inner := randomAddress(rng, a.Is6())
		length := one(rng, lengths)
		if chance(rng, 3) {
			inner = a
		}
		if length > bits && cidr.Contains(inner) {
			b.Except = append(b.Except, netip.PrefixFrom(inner, length).String())
		}
	}
	return b
}

func randomPorts(rng *rand.Rand) []networkingv1.NetworkPolicyPort {
	var out []networkingv1.NetworkPolicyPort
	for range one(rng, []int{0, 0, 1, 1, 2, 4}) {
		var p networkingv1.NetworkPolicyPort
		if !chance(rng, 3) {
			protocol := one(rng, protocols)
			p.Protocol = &protocol
		}
		switch rng.IntN(5) {
		case 0:
		case 1, 2:
			name := intstr.FromString(one(rng, names))
			p.Port = &name
		default:
			first := one(rng, edges)
			number := intstr.FromInt32(int32(first))
			p.Port = &number
			if last := one(rng, edges); last >= first && chance(rng, 2) {
				end := int32(last)
				p.EndPort = &end
			}
		}
		out = append(out, p)
	}
	return out
}
