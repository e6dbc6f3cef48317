// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// member is an endpoint in an engine, and what it uses there.
type member struct {
	endpoint Endpoint
	added    uint64
	network  uint32
	sets     [2]*set
	identity *identity
	// addresses are what the member says of addresses in Prefixes: all of those
	// of an endpoint of another node, and of one of this node none or all.
	addresses []claim
}

// claim says which identity an address has, by which member.
type claim struct {
	address  netip.Addr
	identity *identity
	member   *member
}

// later says which of two claims to an address counts: an endpoint of this node
// is never taken for another, and else it is the newest.
func (c claim) later(other claim) int {
	local := func(c claim) int { return int(min(1, c.member.endpoint.ID)) }
	return cmp.Or(local(c)-local(other), cmp.Compare(c.member.added, other.member.added))
}

// host is what members say of an address.
type host struct {
	claims []claim // the last counts
	// base is the identity that the cells give the address; alone says that a
	// cell is this address alone, so that its prefix is there already.
	base  *identity
	alone bool
}

func (h *host) last() *identity { return h.claims[len(h.claims)-1].identity }

// counts says whether the cells would give the address another identity.
func (h *host) counts() bool { return len(h.claims) > 0 && h.last() != h.base }

// size is the number of prefixes that are there for the host.
func (h *host) size() int {
	if h.counts() && !h.alone {
		return 1
	}
	return 0
}

// checked returns an endpoint that shares nothing with the caller's.
func checked(e Endpoint) (Endpoint, error) {
	object := fmt.Sprintf("endpoint %d", e.ID)
	if e.ID == 0 {
		object = "endpoint " + shorten(e.Key)
	}
	refuse := func(field string, value any, reason string) (Endpoint, error) {
		return Endpoint{}, &InvalidError{Object: object, Field: field, Value: fmt.Sprint(value), Reason: reason}
	}
	switch {
	case e.ID == 0 && e.Key == "":
		return refuse("Key", "", "is missing, and so is the ID")
	case e.ID != 0 && e.Key != "":
		return refuse("Key", e.Key, "is of another node's endpoints, but there is an ID")
	}
	e.Namespace = namespaceOf(e.Namespace)
	e.Labels, e.Ports = maps.Clone(e.Labels), slices.Clone(e.Ports)
	for i, p := range e.Ports {
		if p.Protocol != TCP && p.Protocol != UDP && p.Protocol != SCTP {
			return refuse(fmt.Sprintf("Ports[%d].Protocol", i), p.Protocol, "is none of TCP, UDP, SCTP")
		}
	}
	e.Addresses = slices.Clone(e.Addresses)
	for i, a := range e.Addresses {
		if !a.IsValid() || a.Zone() != "" {
			return refuse(fmt.Sprintf("Addresses[%d]", i), a, "is no address, or has a zone")
		}
		e.Addresses[i] = a.Unmap()
	}
	slices.SortFunc(e.Addresses, netip.Addr.Compare)
	e.Addresses = slices.Compact(e.Addresses)
	return e, nil
}

// acquire makes a member of an endpoint that was checked. It is not among the
// others yet. If it fails, nothing is left in use.
func (e *Engine) acquire(endpoint Endpoint, added uint64) (*member, error) {
	m := &member{endpoint: endpoint, added: added, network: e.networkNumber(endpoint.Network)}
	err := e.identify(m)
	if err == nil && endpoint.ID != 0 {
		err = e.isolate(m)
	}
	if err != nil {
		e.release(m)
		e.sweep()
		return nil, err
	}
	return m, nil
}

func (e *Engine) networkNumber(name string) uint32 {
	n, ok := e.numbers.networks[name]
	if !ok {
		n = uint32(len(e.numbers.networks)) + 1
		e.numbers.networks[name] = n
	}
	return n
}

// identify gives a member its identity and, where one does not do, an identity
// for each address.
func (e *Engine) identify(m *member) error {
	p := e.program
	selected := p.groupsOf(&m.endpoint)
	common := p.memberships(&m.endpoint, selected, nil)
	at := make([][]part, len(m.endpoint.Addresses))
	same := true
	for i, address := range m.endpoint.Addresses {
		at[i] = p.memberships(&m.endpoint, selected, p.cells.find(address))
		if i == 0 {
			common = at[0]
			continue
		}
		if !sameParts(at[i], common) {
			same = false
			common = bothHave(common, at[i])
		}
	}
	var err error
	if m.endpoint.ID != 0 {
		if m.identity, err = e.useIdentity(common); err != nil || same {
			return err
		}
	}
	for i, address := range m.endpoint.Addresses {
		identity, err := e.useIdentity(at[i])
		if err != nil {
			return err
		}
		m.addresses = append(m.addresses, claim{address, identity, m})
	}
	return nil
}

// sameParts compares what one endpoint has at two addresses: there a group
// always has the same ports.
func sameParts(a, b []part) bool {
	return slices.EqualFunc(a, b, func(a, b part) bool { return a.group == b.group })
}

// bothHave keeps the parts of a whose group is in b too.
func bothHave(a, b []part) []part {
	var out []part
	for _, p := range a {
		if _, found := slices.BinarySearchFunc(b, p.group.id, func(q part, id int) int { return q.group.id - id }); found {
			out = append(out, p)
		}
	}
	return out
}

// isolate gives a member of this node the sets of the policies that select it.
func (e *Engine) isolate(m *member) error {
	selections := e.program.selectionsOf(&m.endpoint)
	for _, direction := range []Direction{Ingress, Egress} {
		if !slices.ContainsFunc(selections, func(s *selection) bool { return len(s.isolates[direction]) > 0 }) {
			continue
		}
		var c content
		with := selectionsByDigest(selections, direction)
		for _, s := range with {
			c.digest(s.digests[direction])
			if direction == Ingress {
				for _, n := range s.names {
					writeRanges(&c, resolve([]portName{n}, m.endpoint.Ports))
				}
			}
		}
		var err error
		if m.sets[direction], err = e.useSet(c.sum(), func() []setRule {
			return rulesFor(&m.endpoint, with, direction)
		}); err != nil {
			return err
		}
	}
	return nil
}

func rulesFor(endpoint *Endpoint, selections []*selection, direction Direction) []setRule {
	var out []setRule
	for _, s := range selections {
		for _, r := range s.rules[direction] {
			ranges := r.ranges
			if direction == Ingress {
				ranges = union(ranges, resolve(r.names, endpoint.Ports))
			}
			out = append(out, setRule{r, ranges})
		}
	}
	slices.SortFunc(out, func(a, b setRule) int { return a.group.number() - b.group.number() })
	return out
}

// release takes back what acquire took. The next sweep forgets what nobody else
// uses.
func (e *Engine) release(m *member) {
	if m == nil {
		return
	}
	for _, s := range m.sets {
		e.releaseSet(s)
	}
	e.releaseIdentity(m.identity)
	for _, c := range m.addresses {
		e.releaseIdentity(c.identity)
	}
}

// retain undoes release, before the next sweep.
func (e *Engine) retain(m *member) {
	if m == nil {
		return
	}
	for _, s := range m.sets {
		if s != nil {
			s.uses++
		}
	}
	if m.identity != nil {
		m.identity.uses++
	}
	for _, c := range m.addresses {
		if c.identity != nil {
			c.identity.uses++
		}
	}
}

// get finds a member; nil if there is none.
func (e *Engine) get(id uint16, key string) *member {
	if id != 0 {
		return e.locals[id]
	}
	return e.remotes[key]
}

// enter puts a member among the others.
func (e *Engine) enter(m *member) {
	if m == nil {
		return
	}
	if m.endpoint.ID != 0 {
		e.locals[m.endpoint.ID] = m
		if m.isolated() {
			e.isolated++
		}
	} else {
		e.remotes[m.endpoint.Key] = m
	}
	for _, c := range m.addresses {
		e.changeHost(c.address, func(h *host) {
			h.claims = append(h.claims, c)
			slices.SortFunc(h.claims, claim.later)
		})
	}
}

// leave undoes enter.
func (e *Engine) leave(m *member) {
	if m == nil {
		return
	}
	if m.endpoint.ID != 0 {
		delete(e.locals, m.endpoint.ID)
		if m.isolated() {
			e.isolated--
		}
	} else {
		delete(e.remotes, m.endpoint.Key)
	}
	for _, c := range m.addresses {
		e.changeHost(c.address, func(h *host) {
			h.claims = slices.DeleteFunc(h.claims, func(other claim) bool { return other.member == m })
		})
	}
}

func (e *Engine) changeHost(address netip.Addr, change func(*host)) {
	h := e.hosts[address]
	if h == nil {
		h = new(host)
		h.base = e.program.cells.find(address).identityOf()
		_, h.alone = e.prefixes[netip.PrefixFrom(address, address.BitLen())]
		e.hosts[address] = h
	}
	e.hostCount -= h.size()
	change(h)
	e.hostCount += h.size()
	if len(h.claims) == 0 {
		delete(e.hosts, address)
	}
}

// isolated says whether the member's network refuses any other endpoint.
func (m *member) isolated() bool { return m.endpoint.FromOtherNetworks || m.endpoint.FromOwnNetwork }

func (m *member) subject() Subject {
	return Subject{
		Ingress: m.sets[Ingress].numberOf(), Egress: m.sets[Egress].numberOf(),
		Identity: m.identity.numberOf(), ByAddress: len(m.addresses) > 0, Network: m.network,
		FromOtherNetworks: m.endpoint.FromOtherNetworks, FromOwnNetwork: m.endpoint.FromOwnNetwork,
	}
}
