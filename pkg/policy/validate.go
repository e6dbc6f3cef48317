// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// invalid is an error that does not know yet which object it is of.
func invalid(path *field.Path, value any, format string, args ...any) *InvalidError {
	e := &InvalidError{Reason: fmt.Sprintf(format, args...)}
	if path != nil {
		e.Field = path.String()
	}
	if value != nil {
		e.Value = shorten(fmt.Sprint(value))
	}
	return e
}

// shorten keeps an error to a line, whatever the input is.
func shorten(s string) string {
	const most = 100
	end := ""
	if len(s) > most {
		s, end = strings.ToValidUTF8(s[:most], ""), "..."
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '.'
	}, s) + end
}

// firstOf turns a list of apimachinery into one error. The list of a map is in
// no order, so of those of one field the least is taken.
func firstOf(list field.ErrorList) *InvalidError {
	if len(list) == 0 {
		return nil
	}
	first := list[0]
	for _, e := range list[1:] {
		if e.Field == first.Field && e.Error() < first.Error() {
			first = e
		}
	}
	out := &InvalidError{Field: first.Field, Reason: first.Detail}
	if first.Type == field.ErrorTypeInvalid {
		out.Value = shorten(fmt.Sprint(first.BadValue))
		if out.Value == "" {
			out.Reason = "is empty: " + out.Reason
		}
	}
	return out
}

func validateMetadata(m *metav1.ObjectMeta, name func(string) []string) *InvalidError {
	path := field.NewPath("metadata")
	if m.Name == "" {
		return invalid(path.Child("name"), nil, "is missing")
	}
	if wrong := name(m.Name); len(wrong) > 0 {
		return invalid(path.Child("name"), m.Name, "is no name: %s", wrong[0])
	}
	return firstOf(metavalidation.ValidateLabels(m.Labels, path.Child("labels")))
}

func validateNamespace(n *corev1.Namespace) *InvalidError {
	if e := validateMetadata(&n.ObjectMeta, validation.IsDNS1123Label); e != nil {
		return e
	}
	if n.Namespace != "" {
		return invalid(field.NewPath("metadata", "namespace"), n.Namespace, "is set, but a namespace is in none")
	}
	return nil
}

func validatePolicy(p *networkingv1.NetworkPolicy) *InvalidError {
	if e := validateMetadata(&p.ObjectMeta, validation.IsDNS1123Subdomain); e != nil {
		return e
	}
	if wrong := validation.IsDNS1123Label(namespaceOf(p.Namespace)); len(wrong) > 0 {
		return invalid(field.NewPath("metadata", "namespace"), p.Namespace, "is no namespace: %s", wrong[0])
	}
	spec := field.NewPath("spec")
	if e := validateSelector(&p.Spec.PodSelector, spec.Child("podSelector")); e != nil {
		return e
	}
	for i, rule := range p.Spec.Ingress {
		path := spec.Child("ingress").Index(i)
		if e := validateRule(rule.From, path.Child("from"), rule.Ports, path.Child("ports")); e != nil {
			return e
		}
	}
	for i, rule := range p.Spec.Egress {
		path := spec.Child("egress").Index(i)
		if e := validateRule(rule.To, path.Child("to"), rule.Ports, path.Child("ports")); e != nil {
			return e
		}
	}
	path := spec.Child("policyTypes")
	for i, t := range p.Spec.PolicyTypes {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			return invalid(path.Index(i), t, "is neither Ingress nor Egress")
		}
	}
	if n := len(p.Spec.PolicyTypes); n > 2 {
		return invalid(path, nil, "has %d elements, there are 2 types", n)
	}
	return nil
}

func validateSelector(s *metav1.LabelSelector, path *field.Path) *InvalidError {
	return firstOf(metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, path))
}

func validateRule(
	peers []networkingv1.NetworkPolicyPeer, peersPath *field.Path,
	ports []networkingv1.NetworkPolicyPort, portsPath *field.Path,
) *InvalidError {
	for i := range ports {
		if e := validatePort(&ports[i], portsPath.Index(i)); e != nil {
			return e
		}
	}
	for i := range peers {
		if e := validatePeer(&peers[i], peersPath.Index(i)); e != nil {
			return e
		}
	}
	return nil
}

func validatePort(p *networkingv1.NetworkPolicyPort, path *field.Path) *InvalidError {
	if p.Protocol != nil && protocolOf(p.Protocol) == 0 {
		return invalid(path.Child("protocol"), *p.Protocol, "is none of TCP, UDP, SCTP")
	}
	port, endPath := path.Child("port"), path.Child("endPort")
	switch {
	case p.Port == nil:
		if p.EndPort != nil {
			return invalid(endPath, *p.EndPort, "is set, but port is not")
		}
	case p.Port.Type == intstr.String:
		if wrong := validation.IsValidPortName(p.Port.StrVal); len(wrong) > 0 {
			return invalid(port, p.Port.StrVal, "is no name of a port: %s", wrong[0])
		}
		if p.EndPort != nil {
			return invalid(endPath, *p.EndPort, "is set, but port is a name")
		}
	default:
		if p.Port.IntVal < 1 || p.Port.IntVal > lastPort {
			return invalid(port, p.Port.IntVal, "is not between 1 and 65535")
		}
		if p.EndPort != nil && (*p.EndPort < p.Port.IntVal || *p.EndPort > lastPort) {
			return invalid(endPath, *p.EndPort, "is not between port, %d, and 65535", p.Port.IntVal)
		}
	}
	return nil
}

func validatePeer(p *networkingv1.NetworkPolicyPeer, path *field.Path) *InvalidError {
	if p.IPBlock != nil {
		if p.PodSelector != nil || p.NamespaceSelector != nil {
			return invalid(path, nil, "has a selector beside ipBlock: make it two elements")
		}
		_, e := parseBlock(p.IPBlock, path.Child("ipBlock"))
		return e
	}
	if p.PodSelector == nil && p.NamespaceSelector == nil {
		return invalid(path, nil, "is empty: it needs podSelector, namespaceSelector or ipBlock")
	}
	if p.PodSelector != nil {
		if e := validateSelector(p.PodSelector, path.Child("podSelector")); e != nil {
			return e
		}
	}
	if p.NamespaceSelector != nil {
		return validateSelector(p.NamespaceSelector, path.Child("namespaceSelector"))
	}
	return nil
}

// parseBlock reads an ipBlock. Kubernetes accepts host bits that are set, with
// a warning; they do not count.
func parseBlock(b *networkingv1.IPBlock, path *field.Path) (block, *InvalidError) {
	cidr, e := parseCIDR(b.CIDR, path.Child("cidr"))
	if e != nil {
		return block{}, e
	}
	out := block{cidr: cidr}
	for i, text := range b.Except {
		path := path.Child("except").Index(i)
		except, e := parseCIDR(text, path)
		switch {
		case e != nil:
			return block{}, e
		case except.Addr().BitLen() != cidr.Addr().BitLen():
			return block{}, invalid(path, text, "is not of the family of cidr, %s", b.CIDR)
		case except == cidr:
			return block{}, invalid(path, text, "is all of cidr")
		case except.Bits() < cidr.Bits() || !cidr.Contains(except.Addr()):
			return block{}, invalid(path, text, "is not within cidr, %s", b.CIDR)
		}
		out.excepts = append(out.excepts, except)
	}
	out.excepts = outermost(out.excepts)
	return out, nil
}

func parseCIDR(text string, path *field.Path) (netip.Prefix, *InvalidError) {
	if text == "" {
		return netip.Prefix{}, invalid(path, nil, "is missing")
	}
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return p, invalid(path, text, "is no CIDR, such as 10.0.0.0/8 or fd00::/64")
	case p.Addr().Is4In6():
		return p, invalid(path, text, "is IPv4 in IPv6 form: write it as IPv4")
	}
	return p.Masked(), nil
}
