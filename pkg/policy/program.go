// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// program is what an engine makes of objects, whatever the endpoints are.
type program struct {
	rules []*rule
	// namespaces are the labels of those that have any besides their name.
	namespaces map[string]map[string]string
	// selections has those of a namespace by the labels they select.
	selections map[string]*index[*selection]
	// peers are by the labels of endpoints: those of a policy's own namespace,
	// and of selected ones.
	own      map[string]*index[*peer]
	selected index[*peer]
	groups   []*group
	cells    cells
	// policies is how many there are.
	policies int
}

// selection is the policies of a namespace that select the same endpoints.
type selection struct {
	// isolates has the policies that isolate in a direction, rules what they
	// allow, digests what the rules are.
	isolates [2][]string
	rules    [2][]*rule
	digests  [2]digest
	// names are those of ingress, which mean ports of the selected endpoint.
	names []portName
}

// newProgram compiles objects. What is wrong with them is an *InvalidError.
func newProgram(o *Objects) (*program, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	p := &program{
		namespaces: make(map[string]map[string]string),
		selections: make(map[string]*index[*selection]),
		own:        make(map[string]*index[*peer]),
		policies:   len(o.Policies),
	}
	for _, n := range o.Namespaces {
		p.namespaces[n.Object.Name] = withName(n.Object.Labels, n.Object.Name)
	}
	b := builder{
		program:    p,
		selections: make(map[string]*selection),
		peers:      make(map[string]*peer),
		groups:     make(map[digest]*group),
	}
	// Rules are numbered by name, so that no order of files matters.
	names := make([]string, len(o.Policies))
	byName := make([]int, len(o.Policies))
	for i := range o.Policies {
		names[i], byName[i] = o.Policies[i].Name(), i
	}
	slices.SortFunc(byName, func(a, b int) int { return strings.Compare(names[a], names[b]) })
	for _, i := range byName {
		b.addPolicy(names[i], &o.Policies[i])
	}
	return p, b.finish()
}

// withName adds the label that each namespace has.
func withName(labels map[string]string, name string) map[string]string {
	out := maps.Clone(labels)
	if out == nil {
		out = make(map[string]string, 1)
	}
	out[corev1.LabelMetadataName] = name
	return out
}

// labelsOf are those of a namespace, which need not be known.
func (p *program) labelsOf(namespace string) map[string]string {
	if labels, ok := p.namespaces[namespace]; ok {
		return labels
	}
	return withName(nil, namespace)
}

// builder is what is needed only while a program is made.
type builder struct {
	*program
	selections map[string]*selection
	peers      map[string]*peer
	groups     map[digest]*group
}

func (b *builder) addPolicy(name string, policy *Policy) {
	spec := &policy.Object.Spec
	s := b.selectionOf(policy)
	var lengths [2]int
	ingress, egress := isolates(spec)
	if ingress {
		s.isolates[Ingress] = append(s.isolates[Ingress], name)
		lengths[Ingress] = len(spec.Ingress)
	}
	if egress {
		s.isolates[Egress] = append(s.isolates[Egress], name)
		lengths[Egress] = len(spec.Egress)
	}
	for _, direction := range []Direction{Ingress, Egress} {
		for i := range lengths[direction] {
			r := &rule{policy: policy, name: name, direction: direction, index: i, order: len(b.rules)}
			b.addRule(r)
			s.rules[direction] = append(s.rules[direction], r)
			if direction == Ingress {
				s.names = append(s.names, r.names...)
			}
		}
	}
}

// isolates says in which directions. Rules of a direction that policyTypes
// leaves out do not count.
func isolates(spec *networkingv1.NetworkPolicySpec) (ingress, egress bool) {
	if len(spec.PolicyTypes) == 0 {
		return true, len(spec.Egress) > 0
	}
	return slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeIngress),
		slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeEgress)
}

func (b *builder) selectionOf(policy *Policy) *selection {
	namespace, selector := namespaceOf(policy.Object.Namespace), newSelector(&policy.Object.Spec.PodSelector)
	var c content
	c.text(namespace)
	selector.appendTo(&c)
	s, ok := b.selections[string(c.data)]
	if !ok {
		s = new(selection)
		b.selections[string(c.data)] = s
		in := b.program.selections[namespace]
		if in == nil {
			in = new(index[*selection])
			b.program.selections[namespace] = in
		}
		in.add(selector, s)
	}
	return s
}

func (b *builder) addRule(r *rule) {
	peers, given := r.given()
	r.everybody = len(peers) == 0
	r.ranges, r.names = ports(given)
	if parts := r.groupParts(); len(parts) > 0 {
		r.group = b.groupOf(r, parts)
	}
	r.seal()
	b.rules = append(b.rules, r)
}

func (b *builder) groupOf(r *rule, parts []groupPart) *group {
	g := new(group)
	if r.direction == Egress {
		g.names = r.names
		g.namesOnly = r.everybody || len(r.ranges) == 0
	}
	var c content
	writeNames(&c, g.names)
	c.flag(g.namesOnly)
	for _, part := range parts {
		c.text(part.key)
	}
	g.digest = c.sum()
	if known, ok := b.groups[g.digest]; ok {
		return known
	}
	g.identities = make(map[*identity]*part)
	b.groups[g.digest] = g
	for _, part := range parts {
		if part.block != nil {
			g.blocks = append(g.blocks, *part.block)
			continue
		}
		p := b.peerOf(part)
		p.groups = append(p.groups, g)
	}
	return g
}

func (b *builder) peerOf(part groupPart) *peer {
	p, ok := b.peers[part.key]
	if ok {
		return p
	}
	p = &peer{selector: part.selector}
	b.peers[part.key] = p
	in := &b.selected
	if namespace := part.selector.namespace; namespace != "" {
		if in = b.own[namespace]; in == nil {
			in = new(index[*peer])
			b.own[namespace] = in
		}
	}
	in.add(part.selector.pods, p)
	return p
}

// finish numbers the groups and cuts the address space.
func (b *builder) finish() error {
	p := b.program
	p.groups = slices.Collect(maps.Values(b.groups))
	slices.SortFunc(p.groups, func(a, b *group) int { return a.digest.compare(b.digest) })
	for i, g := range p.groups {
		g.id = i
	}
	for _, s := range b.selections {
		for direction, rules := range s.rules {
			var c content
			for _, r := range rules {
				c.digest(r.digest)
			}
			s.digests[direction] = c.sum()
		}
		slices.SortFunc(s.names, portName.compare)
		s.names = slices.Compact(s.names)
	}
	var err error
	p.cells, err = newCells(p.groups)
	return err
}

// selectionsOf finds what selects an endpoint, in no order.
func (p *program) selectionsOf(endpoint *Endpoint) []*selection {
	return p.selections[endpoint.Namespace].appendMatches(nil, endpoint.Labels)
}

// memberships are the parts of the identity that an endpoint has at an address;
// without a valid address those that its labels alone give it.
func (p *program) memberships(endpoint *Endpoint, selected []*group, at *cell) []part {
	groups := selected
	if at != nil {
		groups = append(slices.Clone(selected), at.groups...)
		groups = uniqueGroups(groups)
	}
	parts := make([]part, 0, len(groups))
	for _, g := range groups {
		ranges := resolve(g.names, endpoint.Ports)
		if !g.namesOnly || len(ranges) > 0 {
			parts = append(parts, part{g, ranges})
		}
	}
	return parts
}

// groupsOf are those that select an endpoint by its labels.
func (p *program) groupsOf(endpoint *Endpoint) []*group {
	peers := p.own[endpoint.Namespace].appendMatches(nil, endpoint.Labels)
	labels := p.labelsOf(endpoint.Namespace)
	for _, peer := range p.selected.appendMatches(nil, endpoint.Labels) {
		if peer.selector.namespaces.matches(labels) {
			peers = append(peers, peer)
		}
	}
	var groups []*group
	for _, peer := range peers {
		groups = append(groups, peer.groups...)
	}
	return uniqueGroups(groups)
}

func uniqueGroups(groups []*group) []*group {
	slices.SortFunc(groups, func(a, b *group) int { return a.id - b.id })
	return slices.Compact(groups)
}
