// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// checkShape compares a decoded document with the type it is to become, and
// finds fields that the type does not have and values of the wrong kind. The
// decoder would find them too, but does not say where in a list they are. null
// is what a field that is left out is.
func checkShape(path string, value any, t reflect.Type) *InvalidError {
	if value == nil {
		return nil
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t {
	case reflect.TypeFor[intstr.IntOrString]():
		if _, ok := value.(string); ok {
			return nil
		}
		if integer(value, 32) {
			return nil
		}
		return wrongKind(path, value, "neither a number nor a string")
	case reflect.TypeFor[metav1.Time](), reflect.TypeFor[metav1.MicroTime]():
		if s, ok := value.(string); ok {
			if new(metav1.Time).UnmarshalJSON([]byte(strconv.Quote(s))) == nil {
				return nil
			}
		}
		return wrongKind(path, value, "no time as in RFC 3339")
	case reflect.TypeFor[metav1.FieldsV1]():
		return nil // anything
	}
	switch t.Kind() {
	case reflect.Struct:
		return checkStruct(path, value, t)
	case reflect.Map:
		m, ok := value.(map[string]any)
		if !ok {
			return wrongKind(path, value, "no mapping")
		}
		for _, key := range sortedKeys(m) {
			// null would be "", which nobody means.
			if m[key] == nil {
				return &InvalidError{Field: path, Reason: fmt.Sprintf("has no value for %q", shorten(key))}
			}
			if e := checkShape(path+"["+shorten(key)+"]", m[key], t.Elem()); e != nil {
				return e
			}
		}
	case reflect.Slice:
		list, ok := value.([]any)
		if !ok {
			return wrongKind(path, value, "no list")
		}
		for i, v := range list {
			if e := checkShape(fmt.Sprintf("%s[%d]", path, i), v, t.Elem()); e != nil {
				return e
			}
		}
	case reflect.String:
		if _, ok := value.(string); !ok {
			return wrongKind(path, value, "no string: put it in quotes")
		}
	case reflect.Bool:
		if _, ok := value.(bool); !ok {
			return wrongKind(path, value, "neither true nor false")
		}
	case reflect.Int32, reflect.Int64:
		if !integer(value, t.Bits()) {
			return wrongKind(path, value, fmt.Sprintf("no number of %d bits", t.Bits()))
		}
	}
	return nil
}

func checkStruct(path string, value any, t reflect.Type) *InvalidError {
	m, ok := value.(map[string]any)
	if !ok {
		return wrongKind(path, value, "no mapping")
	}
	fields := fieldsOf(t)
	for _, key := range sortedKeys(m) {
		at := shorten(key)
		if path != "" {
			at = path + "." + at
		}
		inner, ok := fields[key]
		if !ok {
			reason := "is no field of " + t.Name()
			if guess := closest(key, sortedKeys(fields)); guess != "" {
				reason += fmt.Sprintf("; did you mean %s?", guess)
			}
			return &InvalidError{Field: at, Reason: reason}
		}
		if e := checkShape(at, m[key], inner); e != nil {
			return e
		}
	}
	return nil
}

// fieldsOf are the fields of a struct by their names in JSON, those of embedded
// ones included.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	out := make(map[string]reflect.Type)
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case name == "" && f.Anonymous, options == "inline":
			for name, t := range fieldsOf(f.Type) {
				out[name] = t
			}
		case name != "":
			out[name] = f.Type
		}
	}
	return out
}

func integer(value any, bits int) bool {
	n, ok := value.(json.Number)
	if !ok {
		return false
	}
	_, err := strconv.ParseInt(n.String(), 10, bits)
	return err == nil
}

// wrongKind names the value if it is short enough to be one.
func wrongKind(path string, value any, reason string) *InvalidError {
	e := &InvalidError{Field: path, Reason: "is " + reason}
	switch v := value.(type) {
	case string, bool, json.Number:
		e.Value = shorten(fmt.Sprint(v))
	case nil:
		e.Reason = "is null, " + reason
	case []any:
		e.Reason = "is a list, " + reason
	default:
		e.Reason = "is a mapping, " + reason
	}
	return e
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// closest is the name that was meant: the one with the fewest changes of a
// letter, of which there may be two; "" if there is none.
func closest(given string, names []string) string {
	best, out := 3, ""
	if len(given) > 40 {
		return ""
	}
	for _, name := range names {
		if d := changes(strings.ToLower(given), strings.ToLower(name)); d < best && d < len(name) {
			best, out = d, name
		}
	}
	return out
}

// changes is the number of letters to add, remove or replace to get from one
// word to the other (Levenshtein).
func changes(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// tooDeep reports nesting beyond maxDepth.
func tooDeep(value any, depth int) bool {
	if depth > maxDepth {
		return true
	}
	switch v := value.(type) {
	case map[string]any:
		for _, inner := range v {
			if tooDeep(inner, depth+1) {
				return true
			}
		}
	case []any:
		for _, inner := range v {
			if tooDeep(inner, depth+1) {
				return true
			}
		}
	}
	return false
}
