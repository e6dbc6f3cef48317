// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v2"
)

const (
	// MaxSize is what one source may have, and what its aliases may make of it, in bytes.
	MaxSize = 8 << 20
	// maxDepth is how deep mappings and lists may be nested. A policy needs ten.
	maxDepth = 64
)

// documents splits a source into documents of JSON; an empty one is nil.
func documents(data []byte) ([][]byte, *InvalidError) {
	if len(data) > MaxSize {
		return nil, &InvalidError{Reason: fmt.Sprintf("has %d bytes, more than %d", len(data), MaxSize)}
	}
	// Most JSON is YAML too, but not with tabs.
	if trimmed := bytes.TrimLeft(data, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '{' {
		if docs, err := jsonDocuments(data); err == nil {
			return docs, nil
		}
	}
	return yamlDocuments(data)
}

func jsonDocuments(data []byte) ([][]byte, error) {
	var docs [][]byte
	for d := json.NewDecoder(bytes.NewReader(data)); ; {
		var doc json.RawMessage
		err := d.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, err
		}
		docs = append(docs, doc)
	}
}

func yamlDocuments(data []byte) ([][]byte, *InvalidError) {
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.SetStrict(true)
	budget := MaxSize
	var docs [][]byte
	for {
		refuse := func(reason string) ([][]byte, *InvalidError) {
			return nil, &InvalidError{Object: fmt.Sprintf("document %d", len(docs)+1), Reason: reason}
		}
		var doc any
		err := d.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return refuse(yamlReason(err))
		}
		if doc == nil {
			docs = append(docs, nil)
			continue
		}
		c := converter{budget: &budget}
		value, err := c.convert(doc, 0)
		if err != nil {
			return refuse(err.Error())
		}
		out, err := json.Marshal(value)
		if err != nil {
			return refuse(shorten(err.Error()))
		}
		docs = append(docs, out)
	}
}

var alreadySet = regexp.MustCompile(`key (".*") already set in map`)

// yamlReason makes one line of what the library says.
func yamlReason(err error) string {
	var wrong *yaml.TypeError
	if errors.As(err, &wrong) && len(wrong.Errors) > 0 {
		return shorten(alreadySet.ReplaceAllString(wrong.Errors[0], "key $1 is given twice"))
	}
	return "is no YAML: " + shorten(strings.TrimPrefix(err.Error(), "yaml: "))
}

// converter makes of YAML what JSON can say. The library bounds how often
// aliases are followed, but not the size of what they repeat.
type converter struct{ budget *int }

func (c converter) spend(n int) error {
	if *c.budget -= n; *c.budget < 0 {
		return fmt.Errorf("aliases make it larger than %d bytes", MaxSize)
	}
	return nil
}

func (c converter) convert(value any, depth int) (any, error) {
	if err := c.spend(1); err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, errTooDeep
	}
	switch v := value.(type) {
	case map[any]any:
		out := make(map[string]any, len(v))
		for key, value := range v {
			name, ok := key.(string)
			if !ok {
				return nil, fmt.Errorf("key %s is no string: put it in quotes", shorten(fmt.Sprint(key)))
			}
			if err := c.spend(len(name)); err != nil {
				return nil, err
			}
			inner, err := c.convert(value, depth+1)
			if err != nil {
				return nil, err
			}
			out[name] = inner
		}
		return out, nil
	case []any:
		out := make([]any, len(v))
		for i, value := range v {
			inner, err := c.convert(value, depth+1)
			if err != nil {
				return nil, err
			}
			out[i] = inner
		}
		return out, nil
	case string:
		return v, c.spend(len(v))
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%v is no number", v)
		}
		return v, nil
	case nil, bool, int, int64, uint64:
		return v, nil
	}
	return nil, fmt.Errorf("a %T has no place in it", value)
}

var errTooDeep = fmt.Errorf("is nested more than %d deep", maxDepth)
