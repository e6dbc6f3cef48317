// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// object is a JSON object of the configuration whose keys are read one by one,
// by their exact names: encoding/json would take "MTU" for "mtu" and drop
// "mtuu" in silence.
type object struct {
	// path of the object, such as "ipam.ranges[0][1]"; empty for the whole.
	path   string
	fields map[string]json.RawMessage
	faults *faults
}

// faults holds the first thing found wrong with the configuration.
type faults struct{ first *types.Error }

func (f *faults) add(fault *types.Error) {
	if f.first == nil {
		f.first = fault
	}
}

// at is the path of a key.
func (o object) at(key string) string {
	if o.path == "" {
		return key
	}
	return o.path + "." + key
}

// has says whether the key is there and not null.
func (o object) has(key string) bool {
	raw, ok := o.fields[key]
	return ok && string(raw) != "null"
}

// object returns the object at key; absent and null are an empty one.
func (o object) object(key string) object {
	return asObject(o.at(key), o.fields[key], o.faults)
}

func asObject(path string, raw json.RawMessage, found *faults) object {
	inner := object{path: path, faults: found}
	if len(raw) != 0 && json.Unmarshal(raw, &inner.fields) != nil {
		found.add(faultf(types.ErrInvalidNetworkConfig, "%s: %s is not an object", path, clip(raw)))
	}
	return inner
}

// objects returns the list of objects at key.
func (o object) objects(key string) []object {
	var list []object
	for i, raw := range o.list(key) {
		list = append(list, asObject(fmt.Sprintf("%s[%d]", o.at(key), i), raw, o.faults))
	}
	return list
}

func (o object) list(key string) []json.RawMessage {
	var list []json.RawMessage
	o.read(key, &list, "a list")
	return list
}

// read decodes the value at key into dest; what says what it should be.
func (o object) read(key string, dest any, what string) {
	if !o.has(key) {
		return
	}
	if json.Unmarshal(o.fields[key], dest) != nil {
		o.fault(key, string(clip(o.fields[key]))+" is not "+what)
	}
}

func (o object) fault(key, reason string) {
	o.faults.add(faultf(types.ErrInvalidNetworkConfig, "%s: %s", o.at(key), reason))
}

// text is a string that parse understands; an empty one is an absent one.
func text[T any](o object, key string, parse func(string) (T, error), what string) T {
	var written string
	var value T
	o.read(key, &written, "a string")
	if written == "" {
		return value
	}
	value, err := parse(written)
	if err != nil {
		o.fault(key, fmt.Sprintf("%q is not %s", written, what))
	}
	return value
}

// unsupported refuses a key that means nothing here, whatever its value; the specification
// wants both named.
func (o object) unsupported(key, reason, details string) {
	message := fmt.Sprintf("%s: %s is not supported: %s", o.at(key), clip(o.fields[key]), reason)
	o.faults.add(types.NewError(types.ErrUnsupportedField, message, details))
}

// known refuses all keys but these.
func (o object) known(keys ...string) {
	for _, key := range slices.Sorted(maps.Keys(o.fields)) {
		if slices.Contains(keys, key) {
			continue
		}
		reason := "unknown key"
		if near := nearest(key, keys); near != "" {
			reason += fmt.Sprintf("; did you mean %q?", near)
		}
		o.unsupported(key, reason, "known keys are "+strings.Join(keys, ", "))
	}
}

// nearest is the known key that a typing slip turns into key: a third of its
// letters wrong at most, case aside. Empty if there is none.
func nearest(key string, known []string) string {
	if len(key) > 64 { // no slip makes that of a word
		return ""
	}
	best, least := "", max(1, len(key)/3)+1
	for _, candidate := range known {
		if d := distance(strings.ToLower(key), strings.ToLower(candidate)); d < least {
			best, least = candidate, d
		}
	}
	return best
}

// distance counts the letters to insert, remove, replace or swap with their
// neighbour to make a into b.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := last[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(replace, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// empty says that a JSON value asks for nothing: null, false, 0, "", or a list
// or object of such.
func empty(raw json.RawMessage) bool {
	var value any
	return json.Unmarshal(raw, &value) == nil && hollow(value)
}

func hollow(value any) bool {
	switch value := value.(type) {
	case bool:
		return !value
	case float64:
		return value == 0
	case string:
		return value == ""
	case []any:
		return len(value) == 0
	case map[string]any:
		for _, inner := range value {
			if !hollow(inner) {
				return false
			}
		}
	}
	return true
}

// clip shortens a value for a message.
func clip(raw json.RawMessage) json.RawMessage {
	const most = 200
	if len(raw) > most {
		return append(slices.Clone(raw[:most]), "..."...)
	}
	return raw
}
