// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxConfig bounds a configuration file, in bytes.
const maxConfig = 1 << 20

// parse reads a configuration file into c. Every error names line and key.
func (c *config) parse(text []byte) error {
	if len(text) > maxConfig {
		return fmt.Errorf("it is longer than %d bytes", maxConfig)
	}
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return errors.New(yaml.FormatError(err, false, false))
	}
	var entries []*ast.MappingValueNode
	for i, document := range file.Docs {
		switch body := document.Body.(type) {
		case nil, *ast.CommentGroupNode:
		case *ast.MappingNode:
			entries = append(entries, body.Values...)
		case *ast.MappingValueNode:
			entries = append(entries, body)
		case *ast.NullNode:
		default:
			return fmt.Errorf("line %d: not a list of keys and values", lineOf(body))
		}
		if i > 0 && document.Body != nil {
			return fmt.Errorf("line %d: a second document", lineOf(document.Body))
		}
	}
	for _, entry := range entries { // none is given twice: the parser refuses that
		name := entry.Key.String()
		if key, ok := entry.Key.(*ast.StringNode); ok {
			name = key.Value // without quotes
		}
		if err := c.setKey(name, entry.Value); err != nil {
			return fmt.Errorf("line %d: %w", lineOf(entry.Key), err)
		}
	}
	return nil
}

func lineOf(node ast.Node) int {
	if token := node.GetToken(); token != nil && token.Position != nil {
		return token.Position.Line
	}
	return 0
}

func (c *config) setKey(name string, value ast.Node) error {
	settings := c.settings()
	i := slices.IndexFunc(settings, func(s setting) bool { return s.name == name })
	if i < 0 {
		var known []string
		for _, s := range settings {
			known = append(known, s.name)
		}
		if near := nearest(name, known); near != "" {
			return fmt.Errorf("unknown key %q; did you mean %q?", name, near)
		}
		return fmt.Errorf("unknown key %q", name)
	}
	values, err := settings[i].values(value)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := settings[i].set(values); err != nil {
		if settings[i].list {
			return fmt.Errorf("%s: %w", name, err)
		}
		return fmt.Errorf("%s: %q %w", name, values[0], err)
	}
	return nil
}

// values reads the value of a key: one scalar, or a sequence of them for a list.
func (s setting) values(node ast.Node) ([]string, error) {
	if !s.list {
		value, err := scalar(node)
		return []string{value}, err
	}
	sequence, ok := node.(*ast.SequenceNode)
	if !ok {
		return nil, errors.New("is not a list")
	}
	var values []string
	for _, item := range sequence.Values {
		value, err := scalar(item)
		if err != nil {
			return nil, err
		}
		values = append(values, value)
	}
	return values, nil
}

func scalar(node ast.Node) (string, error) {
	switch n := node.(type) {
	case *ast.StringNode:
		return n.Value, nil
	case *ast.IntegerNode, *ast.BoolNode:
		return n.GetToken().Value, nil
	case *ast.NullNode, nil:
		return "", errors.New("has no value")
	}
	return "", errors.New("is not a single value")
}
