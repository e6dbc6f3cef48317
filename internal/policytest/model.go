// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tendril-net/tendril/pkg/policy"
)

// Model is a node: objects, its endpoints and those of other nodes.
type Model struct {
	Objects *policy.Objects
	// Endpoints are in the order in which they were added. No two have an
	// address in common.
	Endpoints []policy.Endpoint
}

// Verdict is what becomes of a flow. The fields are as in policy.Verdict, but
// all rules that match are named, as in "default/web ingress 0".
type Verdict struct {
	Allowed                   bool
	By                        uint16
	Direction                 policy.Direction
	Isolation                 bool
	EgressRules, IngressRules []string
}

// Verdict judges a flow, the client's egress first, then the server's ingress,
// then isolation.
func (m *Model) Verdict(f policy.Flow) Verdict {
	client, server := m.find(f.ClientID, f.Client), m.find(f.ServerID, f.Server)
	if f.ClientID != 0 && f.ClientID == f.ServerID {
		return Verdict{Allowed: true}
	}
	var v Verdict
	if f.ClientID != 0 {
		isolated := false
		isolated, v.EgressRules = m.judge(client, policy.Egress, f)
		if isolated && len(v.EgressRules) == 0 {
			return Verdict{By: f.ClientID, Direction: policy.Egress}
		}
	}
	if f.ServerID != 0 {
		isolated := false
		isolated, v.IngressRules = m.judge(server, policy.Ingress, f)
		if isolated && len(v.IngressRules) == 0 {
			v.By, v.Direction = f.ServerID, policy.Ingress
			return v
		}
	}
	if f.ClientID != 0 && f.ServerID != 0 {
		own := client.Network == server.Network
		if own && server.FromOwnNetwork || !own && server.FromOtherNetworks {
			v.By, v.Direction, v.Isolation = f.ServerID, policy.Ingress, true
			return v
		}
	}
	v.Allowed = true
	return v
}

// find returns the endpoint with the ID or, of another node, with the address;
// nil if there is none.
func (m *Model) find(id uint16, address netip.Addr) *policy.Endpoint {
	for i, e := range m.Endpoints {
		if id != 0 && e.ID == id || id == 0 && e.ID == 0 && slices.Contains(e.Addresses, address) {
			return &m.Endpoints[i]
		}
	}
	return nil
}

// judge says whether any policy isolates the endpoint in the direction, and
// which rules allow the flow.
func (m *Model) judge(subject *policy.Endpoint, d policy.Direction, f policy.Flow) (isolated bool, rules []string) {
	for _, p := range m.Objects.Policies {
		spec := p.Object.Spec
		if namespaceOf(p.Object.Namespace) != namespaceOf(subject.Namespace) || !Selects(&spec.PodSelector, subject.Labels) {
			continue
		}
		types := spec.PolicyTypes
		if len(types) == 0 {
			types = []networkingv1.PolicyType{"Ingress"}
			if len(spec.Egress) > 0 {
				types = append(types, "Egress")
			}
		}
		name := namespaceOf(p.Object.Namespace) + "/" + p.Object.Name
		if d == policy.Ingress && slices.Contains(types, "Ingress") {
			isolated = true
			client := m.find(f.ClientID, f.Client)
			for i, r := range spec.Ingress {
				if m.anyPeer(p.Object, r.From, client, f.Client) && anyPort(r.Ports, subject, f) {
					rules = append(rules, fmt.Sprintf("%s ingress %d", name, i))
				}
			}
		}
		if d == policy.Egress && slices.Contains(types, "Egress") {
			isolated = true
			server := m.find(f.ServerID, f.Server)
			for i, r := range spec.Egress {
				if m.anyPeer(p.Object, r.To, server, f.Server) && anyPort(r.Ports, server, f) {
					rules = append(rules, fmt.Sprintf("%s egress %d", name, i))
				}
			}
		}
	}
	slices.Sort(rules)
	return isolated, rules
}

// anyPeer says whether the other end, which is an endpoint or nil, is a peer.
func (m *Model) anyPeer(
	p *networkingv1.NetworkPolicy, peers []networkingv1.NetworkPolicyPeer, other *policy.Endpoint, address netip.Addr,
) bool {
	if len(peers) == 0 {
		return true
	}
	for _, peer := range peers {
		if peer.IPBlock != nil {
			if inBlock(peer.IPBlock, address) {
				return true
			}
			continue
		}
		if other == nil {
			continue
		}
		if peer.NamespaceSelector == nil {
			if namespaceOf(other.Namespace) != namespaceOf(p.Namespace) {
				continue
			}
		} else if !Selects(peer.NamespaceSelector, m.namespaceLabels(namespaceOf(other.Namespace))) {
			continue
		}
		if peer.PodSelector == nil || Selects(peer.PodSelector, other.Labels) {
			return true
		}
	}
	return false
}

func inBlock(b *networkingv1.IPBlock, address netip.Addr) bool {
	contains := func(cidr string) bool {
		prefix, err := netip.ParsePrefix(cidr)
		return err == nil && prefix.Contains(address)
	}
	return contains(b.CIDR) && !slices.ContainsFunc(b.Except, contains)
}

// anyPort says whether the server's port is one of these. A name is one of the
// server's, if that is an endpoint.
func anyPort(ports []networkingv1.NetworkPolicyPort, server *policy.Endpoint, f policy.Flow) bool {
	if len(ports) == 0 {
		return true
	}
	for _, p := range ports {
		protocol := corev1.ProtocolTCP
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		if f.Protocol != map[corev1.Protocol]uint8{"TCP": 6, "UDP": 17, "SCTP": 132}[protocol] {
			continue
		}
		switch {
		case p.Port == nil:
			return true
		case p.Port.Type == intstr.String:
			if server != nil && slices.Contains(server.Ports, policy.NamedPort{
				Name: p.Port.StrVal, Protocol: f.Protocol, Port: f.ServerPort,
			}) {
				return true
			}
		case p.EndPort == nil:
			if int32(f.ServerPort) == p.Port.IntVal {
				return true
			}
		case p.Port.IntVal <= int32(f.ServerPort) && int32(f.ServerPort) <= *p.EndPort:
			return true
		}
	}
	return false
}

func (m *Model) namespaceLabels(name string) map[string]string {
	out := make(map[string]string)
	for _, n := range m.Objects.Namespaces {
		if n.Object.Name == name {
			for key, value := range n.Object.Labels {
				out[key] = value
			}
		}
	}
	out["kubernetes.io/metadata.name"] = name
	return out
}

func namespaceOf(name string) string {
	if name == "" {
		return "default"
	}
	return name
}

// Selects says whether a selector selects labels.
func Selects(s *metav1.LabelSelector, labels map[string]string) bool {
	for key, want := range s.MatchLabels {
		if value, ok := labels[key]; !ok || value != want {
			return false
		}
	}
	for _, e := range s.MatchExpressions {
		value, has := labels[e.Key]
		listed := slices.Contains(e.Values, value)
		holds := map[metav1.LabelSelectorOperator]bool{
			"In": has && listed, "NotIn": !has || !listed, "Exists": has, "DoesNotExist": !has,
		}
		if !holds[e.Operator] {
			return false
		}
	}
	return true
}
