// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/maps"
)

// What policy says of packets is judged by an own reading. The oracle has the policy as
// words, where the programs have sets and identities, and remembers who began: from the
// packets that it saw let through, and for as long as the timeouts say. It reads none of
// the maps of policy, and no tracked entry. Where nothing makes uncertain who began, which
// is so of nineteen packets in twenty, the programs must take the packet for that
// connection's; otherwise one of those that may be meant explains what became of it.

// firewall is a policy as one would say it. The first of a teller has no name and is none.
type firewall struct {
	name string
	// takes has what others may begin to an endpoint, begins what it may begin; one that
	// is not there is not restricted.
	takes, begins map[uint16][]lets
	// noOthers and noOwn are the endpoints that no other network reaches, or their own.
	noOthers, noOwn map[uint16]bool
}

// lets lets through a peer (everybody: 0) at ports of a protocol (all: 0).
type lets struct {
	who         uint32
	protocol    uint8
	first, last uint16
}

// ofNear is the network of the uplink without the neighbour.
const ofNear = ofWorld + 1000

// firewalls are those that a story may change to. New ones go to the end: stories name
// them by number.
func (n *node) firewalls() []firewall {
	const tcp, udp, sctp = unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP
	a, b, c := n.a.ID, n.b.ID, n.c.ID
	all := func(who uint32) lets { return lets{who: who} }
	return []firewall{
		{},
		{
			name:   "b takes little, c begins to the world",
			takes:  map[uint16][]lets{b: {{ofA, tcp, 80, 80}, {ofA, udp, 53, 53}}},
			begins: map[uint16][]lets{c: {all(ofWorld)}},
		},
		{
			name:   "a begins and b answers",
			takes:  map[uint16][]lets{a: {}, b: {{0, tcp, 80, 80}, all(ofA)}},
			begins: map[uint16][]lets{a: {all(ofB), {ofWorld, tcp, 80, 80}, {ofWorld, udp, 1, 80}, {0, sctp, 80, 81}}, b: {}},
		},
		{
			name:     "networks",
			noOthers: map[uint16]bool{a: true, c: true},
			noOwn:    map[uint16]bool{b: true},
		},
		{
			name: "the world begins",
			takes: map[uint16][]lets{
				a: {{ofWorld, tcp, 80, 80}, {ofWorld, udp, 79, 81}, {ofB, tcp, 1, 1}, {ofB, tcp, 3, 4}, {ofB, udp, 7, 7}, {ofB, udp, 9, 9}, {ofB, 0, 0, 65535}},
				c: {all(ofWorld)},
			},
			begins: map[uint16][]lets{a: {all(ofNear)}, b: {all(ofWorld), {ofA, tcp, 80, 1234}}, c: {all(ofA)}},
		},
		{
			name:   "nothing",
			takes:  map[uint16][]lets{a: {}, b: {}, c: {}},
			begins: map[uint16][]lets{a: {}, b: {}, c: {}},
		},
	}
}

// near is the network of the uplink.
func (f family) near() netip.Prefix {
	p, _ := f.host.Prefix(f.host.BitLen() - 8*f.host.BitLen()/32)
	return p
}

func (f family) behindRouter() netip.Prefix {
	p, _ := f.world.Prefix(f.world.BitLen() - 4)
	return p
}

// written is a firewall as the programs have it. No two use the same sets.
func (w firewall) written(n *node, number uint32) Policy {
	p := n.policy()
	for _, f := range []family{v4(), v6()} {
		p.Identities[f.near()] = ofNear
		p.Identities[netip.PrefixFrom(f.neighbour, f.neighbour.BitLen())] = 0
	}
	for i, e := range []Endpoint{n.a, n.b, n.c} {
		set := 10000*number + uint32(i)
		add := func(set uint32, rules []lets) uint32 {
			for _, r := range rules {
				entry := PolicyRange{First: r.first, Last: r.last, Protocol: r.protocol, Rule: ruleOne}
				p.Entries[PolicyPair{set, r.who}] = append(p.Entries[PolicyPair{set, r.who}], entry)
			}
			return set
		}
		s := p.Subjects[e.ID]
		s.NoOthers, s.NoOwn = w.noOthers[e.ID], w.noOwn[e.ID]
		if rules, ok := w.takes[e.ID]; ok {
			s.Ingress = add(set, rules)
		}
		if rules, ok := w.begins[e.ID]; ok {
			s.Egress = add(set+1000, rules)
		}
		p.Subjects[e.ID] = s
	}
	return p
}

// newFirewalls writes them all.
func newFirewalls(tb testing.TB, n *node) []firewall {
	all := n.firewalls()
	var written []Policy
	for number, w := range all[1:] {
		written = append(written, w.written(n, uint32(number+1)))
	}
	n.writePolicies(tb, written)
	return all
}

// writePolicies writes each with a generation of its own, from 1 on, so that a change is the one
// write that makes another count: that the agent waits for programs would cost more than a story.
func (n *node) writePolicies(tb testing.TB, all []Policy) {
	for i, p := range all {
		written := writtenPolicy{now: p, generation: uint32(i + 1)}
		written.places = newIdentityPlaces(written.now)
		written.entries = policyEntries(written.generation, written.now.Entries, written.places)
		must(tb, n.writeGeneration(&written))
		must(tb, written.tree.Close())
	}
}

// enforceWritten has the programs ask one of those that are written, or none (0).
func (n *node) enforceWritten(t *testing.T, generation uint32) {
	must(t, n.maps.PolicyGeneration.Put(uint32(0), generation))
	must(t, n.bumpEpoch(0))
}

// restricts tells whether a firewall has a say in what an endpoint sends or is sent.
func (w firewall) restricts(e *Endpoint) bool {
	if e == nil {
		return false
	}
	_, takes := w.takes[e.ID]
	_, begins := w.begins[e.ID]
	return takes || begins || w.noOthers[e.ID] || w.noOwn[e.ID]
}

// connection is who began and who was called. Without ports both are 0; an echo has its
// identifier as the client's.
type connection struct {
	client, server netip.AddrPort
	protocol       uint8
}

func (c connection) String() string {
	return fmt.Sprintf("%s of %s to %s", ProtocolName(c.protocol), c.client, c.server)
}

// meant tells whether the address, with the endpoint that has it, is meant.
func (o *oracle) meant(who uint32, a netip.Addr, e *Endpoint) bool {
	f := v4()
	if a.Is6() {
		f = v6()
	}
	switch who {
	case 0:
		return true
	case ofWorld:
		return e == nil && f.behindRouter().Contains(a)
	case ofNear:
		return e == nil && f.near().Contains(a) && a != f.neighbour
	}
	return e != nil && e.ID == map[uint32]uint16{ofA: o.n.a.ID, ofB: o.n.b.ID, ofC: o.n.c.ID}[who]
}

// refused is the counter of what the policy of the moment says of a connection; "" where
// it lets it through.
func (o *oracle) refused(c connection) string {
	return o.refusedOf(c, o.hiddenAs(c.client.Addr()))
}

// isGroup tells what the stack forwards to a group, of which policy is not asked by address.
func (o *oracle) isGroup(p *outcome) bool {
	return p.program == toContainer && p.counter != "host" && p.in.kind == ipKind && p.in.fault == "" && multicast(p.in.dst) && o.owner(p.in.dst) == nil
}

// refusedGroup is the counter of what policy says of it: who may not begin all sends none, and who
// is not to be begun all with gets none.
func (o *oracle) refusedGroup(p *outcome) string {
	w := o.firewall
	if e, ok := o.attached[p.ingress]; ok {
		if _, restricted := w.begins[e.ID]; restricted {
			return "policy_egress"
		}
	}
	if e, ok := o.attached[p.device]; ok {
		if _, restricted := w.takes[e.ID]; restricted || w.noOthers[e.ID] || w.noOwn[e.ID] {
			return "policy_ingress"
		}
	}
	return ""
}

// hiddenAs is the endpoint whose address the stack has replaced by this in the packet at hand.
func (o *oracle) hiddenAs(a netip.Addr) *Endpoint {
	if a != o.hiding {
		return nil
	}
	return o.hidden
}

// refusedOf is refused, where the client's address, if no endpoint's, hides one.
func (o *oracle) refusedOf(c connection, hidden *Endpoint) string {
	client, server := o.owner(c.client.Addr()), o.owner(c.server.Addr())
	if client == nil {
		client = hidden
	}
	if client != nil && server != nil && client.ID == server.ID {
		return ""
	}
	permits := func(rules []lets, peer netip.Addr, e *Endpoint) bool {
		return slices.ContainsFunc(rules, func(r lets) bool {
			port := c.server.Port()
			return o.meant(r.who, peer, e) && (r.protocol == 0 || r.protocol == c.protocol && r.first <= port && port <= r.last)
		})
	}
	w := o.firewall
	if client != nil {
		if rules, ok := w.begins[client.ID]; ok && !permits(rules, c.server.Addr(), server) {
			return "policy_egress"
		}
	}
	if server == nil {
		return ""
	}
	if rules, ok := w.takes[server.ID]; ok && !permits(rules, c.client.Addr(), client) {
		return "policy_ingress"
	}
	if client == nil {
		return ""
	}
	// a and b share a network, c has its own.
	own := (client.ID == o.n.c.ID) == (server.ID == o.n.c.ID)
	if own && w.noOwn[server.ID] || !own && w.noOthers[server.ID] {
		return "network_isolation"
	}
	return ""
}

// memory is what the oracle knows of a connection that began.
type memory struct {
	// at is when a packet was last seen that may be of it, sure when one that certainly
	// is and was followed.
	at, sure uint32
	// known says that the programs follow it for certain.
	known bool
	// closing: with a FIN or an RST on its way, it may be forgotten at any time.
	closing bool
	// hidden is the client whose address the stack has replaced. The answer to such an
	// address passes while a cache knows it, and is then one to the world.
	hidden *Endpoint
}

// began tells whether the connection may have begun, and whether the programs must know
// that. In between are: what began while no policy was asked, of which only a cache knows;
// what closes; what is idle about as long as something so may live, where what is counted
// is the shortest and the longest of all states; and what belonged to an endpoint that has
// left, come again, or has a new epoch.
func (o *oracle) began(c connection) (possible, certain bool) {
	const age = 10 // seconds, of a decision: so much later a packet is noted
	m, ok := o.begun[c]
	if !ok {
		return false, false
	}
	possible = o.clock-m.at <= lifetime(c.protocol, maps.TranslationEstablished)+age+slack
	certain = m.known && !m.closing && o.clock-m.sure+age+slack < lifetime(c.protocol, maps.TranslationOpening)
	return possible, certain
}

// readings are the connections of which the programs may take a packet to be; one, where
// nothing makes that uncertain. Of a later fragment each first one's may be meant, or none.
func (o *oracle) readings(p *seenPacket, ifindex int) (all []connection) {
	if p.icmp == errorICMP {
		return o.readingsOfError(p, ifindex)
	}
	for _, key := range o.candidates(p, ifindex) {
		own := connection{netip.AddrPortFrom(p.src, maps.Port(key.SourcePort)), netip.AddrPortFrom(p.dst, maps.Port(key.DestinationPort)), p.protocol}
		answered := connection{own.server, own.client, p.protocol}
		asked, certain := o.began(answered)
		if opens(p) || p.asksForEcho() {
			asked = false
		}
		if asked {
			all = append(all, answered)
		}
		if also, _ := o.began(own); !asked || !certain || also {
			all = append(all, own)
		}
	}
	return all
}

// opens tells a SYN without ACK, which answers nothing.
func opens(p *seenPacket) bool {
	return p.protocol == unix.IPPROTO_TCP && !p.later && p.tcpFlags&0x12 == 0x02
}

// strangers are the connections of which a TCP packet may be that nobody has seen begin: the
// programs let it pass only where either end may have begun.
func (o *oracle) strangers(p *seenPacket, ifindex int) (all []connection) {
	if p.protocol != unix.IPPROTO_TCP || p.icmp == errorICMP || opens(p) {
		return nil
	}
	for _, c := range o.readings(p, ifindex) {
		if _, certain := o.began(c); !certain {
			all = append(all, connection{c.server, c.client, c.protocol})
		}
	}
	return all
}

// asksForEcho tells an echo request, which answers nothing.
func (p *seenPacket) asksForEcho() bool {
	if p.later {
		return false
	}
	return p.protocol == unix.IPPROTO_ICMP && !p.v6 && p.icmpType == 8 || p.protocol == unix.IPPROTO_ICMPV6 && p.v6 && p.icmpType == 128
}

// readingsOfError: an error is of the connection that it speaks of, or of one of its own.
func (o *oracle) readingsOfError(p *seenPacket, ifindex int) (all []connection) {
	own := connection{netip.AddrPortFrom(p.src, 0), netip.AddrPortFrom(p.dst, 0), p.protocol}
	q := p.quote
	if q == nil || q.src != p.dst {
		return []connection{own}
	}
	sent := connection{netip.AddrPortFrom(q.src, q.sport), netip.AddrPortFrom(q.dst, q.dport), q.protocol}
	certain := false
	for _, c := range []connection{sent, {sent.server, sent.client, q.protocol}} {
		possible, known := o.began(c)
		if possible {
			all = append(all, c)
		}
		certain = certain || known
	}
	if _, ok := o.before[turned(q.key(0, q.ports()), ifindex)]; ok { // masqueraded
		all = append(all, connection{netip.AddrPortFrom(p.src, q.dport), sent.client, q.protocol})
	}
	// Extension headers of a quote are read to a bound.
	if !certain || q.extensions > 0 {
		all = append(all, own)
	}
	return all
}

// question tells how policy is asked of what a program let through. judged says that it
// must be, follows that its flow is remembered as one that began if it is one.
func (o *oracle) question(p *outcome) (ifindex int, judged, follows bool) {
	if p.in.kind != ipKind || p.in.fault != "" {
		return 0, false, false
	}
	// A tag is for a VLAN device of the container or of the uplink. What is for a container is
	// asked about with it.
	if p.vlan != 0 && p.program != toContainer {
		return 0, false, false
	}
	to, f := o.owner(p.in.dst), familyOf(p.in)
	switch p.program {
	case fromContainer:
		e := o.attached[p.device]
		uplink := slices.Contains([]netip.Addr{f.world, f.narrow, f.neighbour}, p.in.dst)
		way := to != nil || uplink || p.in.dst == f.elsewhere
		if !slices.Contains(e.Addresses, p.in.src) || p.in.ttl <= 1 || p.in.icmp == linkICMP || !sameMAC(p.in.dstMAC(), e.HostMAC) {
			return p.device, false, false
		}
		// What is for the host, or has no way, is not asked about.
		way = way || p.verdict == redirect
		return p.device, way, way && (to != nil || p.in.dst == f.elsewhere || !o.hides(&e, p.in.dst))
	case toContainer:
		if p.ingress == 0 || to == nil || o.wasDecided(p) {
			return p.ingress, false, false
		}
		return p.ingress, true, true
	case fromUplink:
		own := to != nil && p.out.dst == p.in.dst && p.counter != ""
		return 0, own, own
	}
	if e := o.owner(p.in.src); e != nil {
		judged = p.run.seen != seenDecided && p.run.seen != seenTranslated
		return e.IfIndex, judged, judged && !o.hides(e, p.in.dst) && p.believed(e)
	}
	return 0, o.hidden != nil && p.run.seen != seenDecided && p.run.seen != seenTranslated, false
}

// hide notes whose packet it is that the stack forwards with an address that is no
// endpoint's: the one's by whose device it came.
func (o *oracle) hide(p *outcome) {
	o.hidden, o.hiding = nil, p.in.src
	if p.program != toContainer && p.program != toUplink || p.ingress == 0 || o.owner(p.in.src) != nil {
		return
	}
	if e, ok := o.attached[p.ingress]; ok {
		o.hidden = &e
	}
}

// policy judges what was let through: some connection that policy lets through explains it.
func (o *oracle) policy(p *outcome) error {
	if p.program == fromUplink && p.translated != nil {
		if reason := o.refused(o.masqueraded(p.in, p.translated)); reason != "" {
			return fmt.Errorf("%s, which is %s", o.masqueraded(p.in, p.translated), reason)
		}
		return nil
	}
	if o.unreadable(p) {
		return fmt.Errorf("nobody can tell what it is: %s", p.in.fault)
	}
	o.hide(p)
	ifindex, judged, follows := o.question(p)
	if !judged {
		return nil
	}
	readings := o.readings(p.in, ifindex)
	explained := slices.DeleteFunc(slices.Clone(readings), func(c connection) bool {
		return o.refused(c) != "" && o.refusedOf(c, o.begun[c].hidden) != ""
	})
	if len(explained) == 0 {
		return fmt.Errorf("policy refuses %v", readings)
	}
	if p.in.icmp == errorICMP {
		return nil
	}
	restricted := o.firewall.restricts(o.owner(p.in.src)) || o.firewall.restricts(o.hidden) || o.firewall.restricts(o.owner(p.in.dst))
	for _, c := range explained {
		m, known := o.begun[c]
		if !known && !follows {
			continue
		}
		m.at = o.clock
		m.hidden = cmp.Or(o.hiddenAs(c.client.Addr()), m.hidden)
		if p.in.protocol == unix.IPPROTO_TCP && !p.in.later {
			m.closing = p.in.tcpFlags&0x05 != 0 || m.closing && !opens(p.in)
		}
		if len(readings) == 1 && restricted && follows && !p.in.later {
			m.sure, m.known = o.clock, true
		}
		o.begun[c] = m
	}
	return nil
}

// wasDecided tells whether a program that sits where the packet came in has decided, and noted it.
func (o *oracle) wasDecided(p *outcome) bool {
	if p.run.seen != seenDecided && p.run.seen != seenTranslated {
		return false
	}
	_, attached := o.attached[p.ingress]
	return attached || p.ingress == 0 || p.ingress == o.uplink.IfIndex
}

// unreadable tells a packet for somebody who is restricted, or not known to be free, that
// makes no sense.
func (o *oracle) unreadable(p *outcome) bool {
	e, attached := o.attached[p.device]
	return p.program == toContainer && p.in.kind == ipKind && p.in.fault != "" && p.ingress != 0 && !o.wasDecided(p) &&
		o.firewall.name != "" && (!attached || o.firewall.restricts(&e))
}

// believed tells whether what the stack sends on comes from the endpoint's device, or is the
// host's own.
func (p *outcome) believed(e *Endpoint) bool { return p.ingress == 0 || p.ingress == e.IfIndex }

// forged tells an endpoint's address at another device than its own, where policy cares.
func (o *oracle) forged(p *outcome) bool {
	from := o.owner(p.in.src)
	return (p.program == toContainer || p.program == toUplink) && from != nil && !p.believed(from) &&
		(o.firewall.restricts(from) || o.firewall.restricts(o.owner(p.in.dst)))
}

// masqueraded is the connection of a packet from the world that a translation led back.
func (o *oracle) masqueraded(p *seenPacket, t *translation) connection {
	c := connection{t.inside, netip.AddrPortFrom(p.src, p.sport), p.protocol}
	if p.icmp == errorICMP {
		c.server, c.protocol = netip.AddrPortFrom(p.quote.dst, p.quote.dport), p.quote.protocol
	} else if p.later {
		c.server = t.world
	}
	return c
}

// denial judges a drop for policy: some connection that the packet may be of is refused
// for that reason.
func (o *oracle) denial(p *outcome) error {
	o.hide(p)
	known, _ := o.answered(p)
	var readings []connection
	switch e := o.owner(p.in.src); p.program {
	case fromUplink:
		for _, t := range known {
			readings = append(readings, o.masqueraded(p.in, t))
		}
		if o.owner(p.in.dst) != nil {
			readings = append(readings, o.readings(p.in, 0)...)
			readings = append(readings, o.strangers(p.in, 0)...)
		}
	case fromContainer:
		if p.in.dst == familyOf(p.in).host {
			return fmt.Errorf("dropped as %s, although it is for the host", p.counter)
		}
		readings = append(o.readings(p.in, p.device), o.strangers(p.in, p.device)...)
	case toContainer:
		readings = append(o.readings(p.in, p.ingress), o.strangers(p.in, p.ingress)...)
	case toUplink:
		ifindex := 0
		if e != nil {
			ifindex = e.IfIndex
		}
		readings = append(o.readings(p.in, ifindex), o.strangers(p.in, ifindex)...)
	}
	var reasons []string
	for _, c := range readings {
		reason := o.refused(c)
		if reason == p.counter || reason != "" && p.counter == "fragment" {
			return nil
		}
		reasons = append(reasons, fmt.Sprintf("%s is %q", c, reason))
	}
	return fmt.Errorf("dropped as %s, but %s", p.counter, strings.Join(reasons, ", "))
}

// shaken says that nothing is certain any more of an endpoint's connections.
func (o *oracle) shaken(e Endpoint) {
	for c, m := range o.begun {
		if slices.Contains(e.Addresses, c.client.Addr()) || slices.Contains(e.Addresses, c.server.Addr()) {
			m.known = false
			o.begun[c] = m
		}
	}
}

// changeFirewall has the programs ask another policy.
func (s *teller) changeFirewall(t *testing.T, number int) {
	s.n.enforceWritten(t, uint32(number))
	s.firewall = s.firewalls[number]
}
