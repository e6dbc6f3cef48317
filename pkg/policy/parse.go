// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
)

// Parse reads documents in YAML or JSON, of at most 8 MiB: NetworkPolicy of
// networking.k8s.io/v1, Namespace of v1, and lists of these (kind List,
// NetworkPolicyList or NamespaceList). name names the source, such as a file, in
// errors.
//
// It is as strict as the API server is and more: what a field does not say
// right, or a field that does not exist, refuses the whole source with an
// *InvalidError.
func Parse(name string, data []byte) (*Objects, error) {
	docs, e := documents(data)
	if e != nil {
		e.Source = name
		return nil, e
	}
	p := parser{source: name, objects: new(Objects)}
	for i, doc := range docs {
		if doc == nil {
			continue
		}
		if e := p.addDocument(fmt.Sprintf("document %d", i+1), doc); e != nil {
			e.Source = name
			return nil, e
		}
	}
	if err := p.objects.checkDuplicates(); err != nil {
		return nil, err
	}
	return p.objects, nil
}

// parser collects objects. Its methods leave the source out of errors.
type parser struct {
	source  string
	objects *Objects
}

// kinds are those that can be read, by name. Lists may leave out what their
// elements are.
var kinds = map[string]kind{
	"NetworkPolicy":     {version: networkingv1.SchemeGroupVersion.String(), object: reflect.TypeFor[networkingv1.NetworkPolicy]()},
	"Namespace":         {version: "v1", object: reflect.TypeFor[corev1.Namespace]()},
	"List":              {version: "v1", object: reflect.TypeFor[list]()},
	"NetworkPolicyList": {version: networkingv1.SchemeGroupVersion.String(), object: reflect.TypeFor[list](), of: "NetworkPolicy"},
	"NamespaceList":     {version: "v1", object: reflect.TypeFor[list](), of: "Namespace"},
}

type kind struct {
	version string
	object  reflect.Type
	// of is the kind of the elements of a list that has only one.
	of string
}

// list is any of the three. What is in it is looked at later.
type list struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []json.RawMessage `json:"items"`
}

func (p *parser) addDocument(object string, doc []byte) *InvalidError {
	value, e := decode(object, doc)
	if e != nil {
		return e
	}
	if value == nil {
		return nil // JSON's null, as YAML's
	}
	name, k, e := kindOf(value, "")
	if e != nil {
		return e.of("", object)
	}
	if k.object != reflect.TypeFor[list]() {
		return p.addObject(object, name, doc, value)
	}
	// The elements have a shape of their own.
	outer := make(map[string]any, len(value))
	for key, inner := range value {
		outer[key] = inner
	}
	items, isList := value["items"].([]any)
	if isList {
		outer["items"] = nil
	}
	if e := checkShape("", outer, k.object); e != nil {
		return e.of("", object)
	}
	var l list
	if e := decodeStrictly(doc, &l); e != nil {
		return e.of("", object)
	}
	for i, item := range l.Items {
		object := fmt.Sprintf("%s items[%d]", object, i)
		element, ok := items[i].(map[string]any)
		if !ok {
			return wrongKind("", items[i], "no object").of("", object)
		}
		name, inner, e := kindOf(element, k.of)
		if e == nil && inner.object == k.object {
			e = &InvalidError{Field: "kind", Value: name, Reason: "is within a list"}
		}
		if e != nil {
			return e.of("", object)
		}
		if e := p.addObject(object, name, item, element); e != nil {
			return e
		}
	}
	return nil
}

// decode reads a document for a look at it.
func decode(object string, doc []byte) (map[string]any, *InvalidError) {
	var value any
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	if err := d.Decode(&value); err != nil {
		return nil, &InvalidError{Object: object, Reason: "is no JSON: " + shorten(err.Error())}
	}
	if tooDeep(value, 0) {
		return nil, &InvalidError{Object: object, Reason: errTooDeep.Error()}
	}
	m, ok := value.(map[string]any)
	if !ok && value != nil {
		return nil, wrongKind("", value, "no object").of("", object)
	}
	return m, nil
}

// kindOf says what an object claims to be. assumed is what it is if it does not
// say.
func kindOf(value map[string]any, assumed string) (string, kind, *InvalidError) {
	given := make(map[string]string, 2)
	for _, field := range []string{"kind", "apiVersion"} {
		s, ok := value[field].(string)
		if !ok && value[field] != nil {
			return "", kind{}, wrongKind(field, value[field], "no string")
		}
		given[field] = s
	}
	name, version := given["kind"], given["apiVersion"]
	if name == "" && assumed != "" {
		name = assumed
	}
	k, ok := kinds[name]
	switch {
	case name == "":
		return "", k, &InvalidError{Field: "kind", Reason: "is missing"}
	case !ok:
		reason := "is none of " + strings.Join(sortedKeys(kinds), ", ")
		if guess := closest(name, sortedKeys(kinds)); guess != "" {
			reason += fmt.Sprintf("; did you mean %s?", guess)
		}
		return "", k, &InvalidError{Field: "kind", Value: shorten(name), Reason: reason}
	case assumed != "" && name != assumed:
		return "", k, &InvalidError{Field: "kind", Value: name, Reason: "is in a list of " + assumed}
	case version == "" && assumed == "":
		return "", k, &InvalidError{Field: "apiVersion", Reason: "is missing: a " + name + " is of " + k.version}
	case version != "" && version != k.version:
		return "", k, &InvalidError{
			Field: "apiVersion", Value: shorten(version), Reason: fmt.Sprintf("is not %s, which a %s is of", k.version, name),
		}
	}
	return name, k, nil
}

// addObject takes an object, whose name is better than its place in errors.
func (p *parser) addObject(object, kind string, doc []byte, value map[string]any) *InvalidError {
	if metadata, ok := value["metadata"].(map[string]any); ok {
		if name, ok := metadata["name"].(string); ok && name != "" {
			object = namespaceObject(shorten(name))
			if kind == "NetworkPolicy" {
				namespace, _ := metadata["namespace"].(string)
				object = shorten(namespaceOf(namespace)) + "/" + shorten(name)
			}
		}
	}
	e := checkShape("", value, kinds[kind].object)
	if e == nil && kind == "NetworkPolicy" {
		e = p.addPolicy(doc)
	} else if e == nil {
		e = p.addNamespace(doc)
	}
	if e != nil {
		return e.of("", object)
	}
	return nil
}

func (p *parser) addPolicy(doc []byte) *InvalidError {
	o := new(networkingv1.NetworkPolicy)
	if e := decodeStrictly(doc, o); e != nil {
		return e
	}
	o.TypeMeta = metav1.TypeMeta{Kind: "NetworkPolicy", APIVersion: kinds["NetworkPolicy"].version}
	o.Namespace = namespaceOf(o.Namespace)
	p.objects.Policies = append(p.objects.Policies, Policy{p.source, o})
	return validatePolicy(o)
}

func (p *parser) addNamespace(doc []byte) *InvalidError {
	o := new(corev1.Namespace)
	if e := decodeStrictly(doc, o); e != nil {
		return e
	}
	o.TypeMeta = metav1.TypeMeta{Kind: "Namespace", APIVersion: kinds["Namespace"].version}
	p.objects.Namespaces = append(p.objects.Namespaces, Namespace{p.source, o})
	return validateNamespace(o)
}

// decodeStrictly reads what has the right shape. What is left to find is a key
// that is there twice.
func decodeStrictly(doc []byte, into any) *InvalidError {
	strict, err := kjson.UnmarshalStrict(doc, into)
	if err == nil && len(strict) > 0 {
		err = strict[0]
	}
	if err != nil {
		return &InvalidError{Reason: shorten(err.Error())}
	}
	return nil
}
