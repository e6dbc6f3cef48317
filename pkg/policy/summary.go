// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// summary is a rule in a line, in words of the object.
func (r *rule) summary() string {
	peers, ports := r.given()
	words := [...]string{"from", "to"}
	if r.direction == Egress {
		words = [...]string{"to", "on"}
	}
	return words[0] + " " + peersSummary(peers) + " " + words[1] + " " + portsSummary(ports)
}

// mostNamed is how many peers or ports are named before the rest is counted.
const mostNamed = 8

func join(parts []string) string {
	if n := len(parts) - mostNamed; n > 0 {
		parts = append(slices.Clone(parts[:mostNamed]), fmt.Sprintf("and %d more", n))
	}
	return strings.Join(parts, ", ")
}

func peersSummary(peers []networkingv1.NetworkPolicyPeer) string {
	if len(peers) == 0 {
		return "everybody"
	}
	var out []string
	for _, p := range peers {
		switch {
		case p.IPBlock != nil && len(p.IPBlock.Except) > 0:
			out = append(out, fmt.Sprintf("%s except %s", p.IPBlock.CIDR, strings.Join(p.IPBlock.Except, " and ")))
		case p.IPBlock != nil:
			out = append(out, p.IPBlock.CIDR)
		case p.NamespaceSelector == nil:
			out = append(out, selectorSummary(p.PodSelector, "the namespace"))
		case p.PodSelector == nil:
			out = append(out, "namespaces "+selectorSummary(p.NamespaceSelector, "of all names"))
		default:
			out = append(out, fmt.Sprintf("%s in namespaces %s", selectorSummary(p.PodSelector, "all"),
				selectorSummary(p.NamespaceSelector, "of all names")))
		}
	}
	return join(out)
}

func selectorSummary(s *metav1.LabelSelector, all string) string {
	if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		return all
	}
	return strings.ReplaceAll(metav1.FormatLabelSelector(s), ",", " ")
}

func portsSummary(ports []networkingv1.NetworkPolicyPort) string {
	if len(ports) == 0 {
		return "all ports"
	}
	var out []string
	last := ""
	for _, p := range ports {
		name := "TCP"
		if p.Protocol != nil {
			name = string(*p.Protocol)
		}
		port := "all ports"
		switch {
		case p.Port == nil:
		case p.Port.Type == intstr.String || p.EndPort == nil || *p.EndPort == p.Port.IntVal:
			port = p.Port.String()
		default:
			port = fmt.Sprintf("%d-%d", p.Port.IntVal, *p.EndPort)
		}
		if name != last {
			port = name + " " + port
		}
		last = name
		out = append(out, port)
	}
	return join(out)
}
