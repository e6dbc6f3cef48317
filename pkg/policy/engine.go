// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// Limits are what the maps hold. 0 is no limit.
type Limits struct {
	// Subjects is the number of endpoints of this node.
	Subjects int
	// Prefixes and Entries bound what tables have of these. A pair is an entry
	// for each PerEntry ranges that it has or begins; if PerEntry is 0, it is one.
	Prefixes, Entries, PerEntry int
	// Rules is the number of counters of rules.
	Rules int
}

// Engine compiles policies and endpoints to Tables. It is not safe for
// concurrent use, and neither are two engines of which With made one. Methods
// that fail change nothing.
type Engine struct {
	limits  Limits
	numbers *numbers
	program *program
	locals  map[uint16]*member
	remotes map[string]*member
	// added counts endpoints, so that their order is known.
	added uint64

	sets       map[digest]*set
	identities map[digest]*identity
	entries    map[Pair][]Range
	// entryCount is len(entries) with PerEntry taken into account.
	entryCount int
	// prefixes are those of the cells, hosts what endpoints say of addresses.
	prefixes map[netip.Prefix]uint32
	hosts    map[netip.Addr]*host
	// hostCount is the number of prefixes that hosts add.
	hostCount int
	// isolated is the number of endpoints of this node whose network isolates.
	isolated int

	// previous is the engine whose numbers are taken over, during With.
	previous *Engine
	// unused are those that nothing uses since the last sweep, or did not for a
	// moment.
	unusedSets       []*set
	unusedIdentities []*identity
}

// numbers gives out numbers to all engines of a family.
type numbers struct {
	next uint64
	// networks are few, and never forgotten.
	networks map[string]uint32
}

// New returns an engine without policies and endpoints. Sets and identities are
// numbered from 1 on. No number is used twice, whatever becomes of the engines
// that With makes of this one.
func New(limits Limits) *Engine {
	program, _ := newProgram(new(Objects)) // nothing is wrong with nothing
	return newEngine(limits, &numbers{1, make(map[string]uint32)}, program)
}

func newEngine(limits Limits, numbers *numbers, program *program) *Engine {
	return &Engine{
		limits: limits, numbers: numbers, program: program,
		locals: make(map[uint16]*member), remotes: make(map[string]*member),
		sets: make(map[digest]*set), identities: make(map[digest]*identity),
		entries: make(map[Pair][]Range), prefixes: make(map[netip.Prefix]uint32), hosts: make(map[netip.Addr]*host),
	}
}

// With returns another engine, with these objects in place of those of e, for
// the same endpoints. What is equal in both has the same number. e stays as it
// is, so the caller may drop the new one and go on; but it may not change both.
// The objects must not be changed later; nil has none. Errors are *InvalidError, for what
// Parse would refuse, and *TooBigError.
func (e *Engine) With(o *Objects) (*Engine, error) {
	if o == nil {
		o = new(Objects)
	}
	program, err := newProgram(o)
	if err != nil {
		return nil, err
	}
	if limit := e.limits.Rules; limit > 0 && len(program.rules) > limit {
		return nil, &TooBigError{What: "rules", Need: len(program.rules), Limit: limit}
	}
	n := newEngine(e.limits, e.numbers, program)
	n.added, n.previous = e.added, e
	if err := n.identifyCells(); err != nil {
		return nil, err
	}
	for _, old := range e.members() {
		m, err := n.acquire(old.endpoint, old.added)
		if err != nil {
			return nil, err
		}
		n.enter(m)
	}
	n.previous = nil
	if err := n.checkLimits(); err != nil {
		return nil, err
	}
	return n, nil
}

// members are all endpoints in the order in which they were added.
func (e *Engine) members() []*member {
	all := slices.AppendSeq(make([]*member, 0, len(e.locals)+len(e.remotes)), maps.Values(e.locals))
	all = slices.AppendSeq(all, maps.Values(e.remotes))
	slices.SortFunc(all, func(a, b *member) int { return cmp.Compare(a.added, b.added) })
	return all
}

// identifyCells gives each cell the identity of addresses that are no
// endpoint's. They are in use as long as the engine is.
func (e *Engine) identifyCells() error {
	known := make(map[string]*identity)
	for _, c := range e.program.cells {
		if c.parent != nil && sameGroups(c.groups, c.parent.groups) {
			c.identity = c.parent.identity
			continue
		}
		parts := make([]part, 0, len(c.groups))
		var key content
		for _, g := range c.groups {
			if !g.namesOnly {
				parts = append(parts, part{group: g})
				key.number(uint64(g.id))
			}
		}
		if len(parts) > 0 {
			id, ok := known[string(key.data)]
			if !ok {
				var err error
				if id, err = e.useIdentity(parts); err != nil {
					return err
				}
				known[string(key.data)] = id
			}
			c.identity = id
		}
		if c.identity != c.parent.identityOf() {
			e.prefixes[c.prefix] = c.identity.numberOf()
		}
	}
	return nil
}

// sameGroups holds for a list that a cell has from its parent, and costs
// nothing.
func sameGroups(a, b []*group) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// Add adds an endpoint, or replaces the one with the same ID or, on another
// node, Key. If several of other nodes have one address, the last that was
// added counts. Errors are *InvalidError and *TooBigError.
func (e *Engine) Add(endpoint Endpoint) error {
	endpoint, err := checked(endpoint)
	if err != nil {
		return err
	}
	m, err := e.acquire(endpoint, e.added+1)
	if err != nil {
		return err
	}
	old := e.get(endpoint.ID, endpoint.Key)
	e.leave(old)
	e.release(old)
	e.enter(m)
	if err := e.checkLimits(); err != nil {
		e.leave(m)
		e.release(m)
		e.retain(old)
		e.enter(old)
		e.sweep()
		return err
	}
	e.sweep()
	e.added++
	return nil
}

// Remove removes an endpoint of this node, if there is one.
func (e *Engine) Remove(id uint16) { e.remove(e.get(id, "")) }

// RemoveRemote removes an endpoint of another node, if there is one.
func (e *Engine) RemoveRemote(key string) { e.remove(e.get(0, key)) }

func (e *Engine) remove(m *member) {
	e.leave(m)
	e.release(m)
	e.sweep()
}

// Tables returns a snapshot, which later calls do not change. It must not be
// changed either: snapshots share what is equal.
func (e *Engine) Tables() *Tables {
	t := &Tables{
		Active:   e.program.policies > 0 || e.isolated > 0,
		Subjects: make(map[uint16]Subject, len(e.locals)),
		Prefixes: maps.Clone(e.prefixes),
		Entries:  maps.Clone(e.entries),
	}
	for id, m := range e.locals {
		t.Subjects[id] = m.subject()
	}
	for address, h := range e.hosts {
		if h.counts() {
			t.Prefixes[netip.PrefixFrom(address, address.BitLen())] = h.last().numberOf()
		}
	}
	return t
}

// Policies returns "namespace/name" of the policies that isolate an endpoint of
// this node, sorted.
func (e *Engine) Policies(id uint16) (ingress, egress []string) {
	m := e.get(id, "")
	if m == nil {
		return nil, nil
	}
	for _, s := range e.program.selectionsOf(&m.endpoint) {
		ingress = append(ingress, s.isolates[Ingress]...)
		egress = append(egress, s.isolates[Egress]...)
	}
	slices.Sort(ingress)
	slices.Sort(egress)
	return ingress, egress
}

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
func (e *Engine) Rules() []Rule {
	out := make([]Rule, len(e.program.rules))
	for i, r := range e.program.rules {
		out[i] = Rule{Hash: r.hash, Policy: r.name, Direction: r.direction, Index: r.index, Summary: r.summary()}
	}
	return out
}
