// SPDX-License-Identifier: Apache-2.0

package policy

import "maps"

// Limits are what the maps hold. 0 is no limit.
type Limits struct {
	// Subjects is the number of endpoints of this node.
	Subjects int
	Prefixes int
	// Entries is the number of values of the map of policies. One holds
	// PerEntry ranges, so a pair with more of them counts more than once; 0 is
	// any number of them.
	Entries, PerEntry int
	Rules             int
}

// Engine compiles policies and endpoints to Tables. It is not safe for
// concurrent use. Methods that fail change nothing.
type Engine struct {
	subjects map[uint16]Subject
}

// New returns an engine without policies and endpoints. Sets and identities are
// numbered from firstNumber on, or from 1 if it is 0, and no number is used
// twice, whatever becomes of the engines that With makes of this one.
func New(limits Limits, firstNumber uint32) *Engine {
	_, _ = limits, firstNumber
	return &Engine{subjects: make(map[uint16]Subject)}
}

// With returns another engine with these objects for the same endpoints.
func (e *Engine) With(o *Objects) (*Engine, error) {
	if err := o.checkDuplicates(); err != nil {
		return nil, err
	}
	return &Engine{subjects: maps.Clone(e.subjects)}, nil
}

// Add adds an endpoint, or replaces the one with the same ID or Key.
func (e *Engine) Add(endpoint Endpoint) error {
	e.subjects[endpoint.ID] = Subject{Network: 1}
	return nil
}

// Remove removes an endpoint of this node, if there is one.
func (e *Engine) Remove(id uint16) { delete(e.subjects, id) }

// RemoveRemote removes an endpoint of another node, if there is one.
func (e *Engine) RemoveRemote(key string) { _ = key }

// Tables returns a snapshot, which later calls do not change.
func (e *Engine) Tables() *Tables { return &Tables{Subjects: maps.Clone(e.subjects)} }

// Policies returns "namespace/name" of the policies that isolate an endpoint of
// this node, sorted.
func (e *Engine) Policies(id uint16) (ingress, egress []string) { _ = id; return nil, nil }

// Rule describes a rule.
type Rule struct {
	// Hash is the key of the rule's counter. The top bit is set.
	Hash uint64
	// Policy is "namespace/name".
	Policy    string
	Direction Direction
	// Index is its position in spec.ingress or spec.egress.
	Index int
	// Summary is such as "from app=web to TCP 80, 8000-8010".
	Summary string
}

// Rules returns all rules, by policy, direction and index.
func (e *Engine) Rules() []Rule { return nil }
