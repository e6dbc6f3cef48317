// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// Objects are what Parse read. Their namespaces are filled in.
type Objects struct {
	Policies   []Policy
	Namespaces []Namespace
}

// Policy is a NetworkPolicy and what it was read from.
type Policy struct {
	Source string
	Object *networkingv1.NetworkPolicy
}

// Name is "namespace/name"; "" without an object.
func (p *Policy) Name() string {
	if p.Object == nil {
		return ""
	}
	return namespaceOf(p.Object.Namespace) + "/" + p.Object.Name
}

// Namespace is a Namespace and what it was read from. Only its labels count.
type Namespace struct {
	Source string
	Object *corev1.Namespace
}

// name is "" without an object.
func (n *Namespace) name() string {
	if n.Object == nil {
		return ""
	}
	return n.Object.Name
}

func namespaceOf(name string) string {
	if name == "" {
		return corev1.NamespaceDefault
	}
	return name
}

// Merge returns the objects of o and the others, in this order. An object that
// is given twice is an *InvalidError that names both sources. A nil *Objects
// has none.
func (o *Objects) Merge(others ...*Objects) (*Objects, error) {
	all := new(Objects)
	for _, other := range append([]*Objects{o}, others...) {
		if other != nil {
			all.Policies = append(all.Policies, other.Policies...)
			all.Namespaces = append(all.Namespaces, other.Namespaces...)
		}
	}
	if err := all.checkDuplicates(); err != nil {
		return nil, err
	}
	return all, nil
}

// check finds what Parse would have refused, in objects made otherwise.
func (o *Objects) check() error {
	for i := range o.Policies {
		p := &o.Policies[i]
		if p.Object == nil {
			return errNoObject(p.Source)
		}
		if e := validatePolicy(p.Object); e != nil {
			return e.of(p.Source, shorten(p.Name()))
		}
	}
	for _, n := range o.Namespaces {
		if n.Object == nil {
			return errNoObject(n.Source)
		}
		if e := validateNamespace(n.Object); e != nil {
			return e.of(n.Source, shorten(namespaceObject(n.Object.Name)))
		}
	}
	return o.checkDuplicates()
}

func (o *Objects) checkDuplicates() error {
	policies := make(map[string]string, len(o.Policies))
	for i := range o.Policies {
		p := &o.Policies[i]
		if other, ok := policies[p.Name()]; ok {
			return duplicate(p.Source, p.Name(), other)
		}
		policies[p.Name()] = p.Source
	}
	namespaces := make(map[string]string, len(o.Namespaces))
	for _, n := range o.Namespaces {
		if other, ok := namespaces[n.name()]; ok {
			return duplicate(n.Source, namespaceObject(n.name()), other)
		}
		namespaces[n.name()] = n.Source
	}
	return nil
}

func errNoObject(source string) *InvalidError {
	return &InvalidError{Source: source, Reason: "has an element without an object"}
}

func duplicate(source, object, other string) *InvalidError {
	reason := "is given twice"
	if source != other {
		reason = fmt.Sprintf("is given in %s too", other)
	}
	return &InvalidError{Source: source, Object: object, Reason: reason}
}

// namespaceObject is what errors call a Namespace.
func namespaceObject(name string) string { return "namespace " + name }
