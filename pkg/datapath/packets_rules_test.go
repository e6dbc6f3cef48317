// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/maps"
)

// fromContainer judges what an endpoint sent and was let through.
func (o *oracle) fromContainer(p *outcome) error {
	if p.vlan != 0 {
		return fmt.Errorf("a tagged frame was let through")
	}
	if p.in.kind == otherKind {
		if p.verdict != passOn || p.want.seen != seenNot {
			return fmt.Errorf("verdict %d, tc_index %#x of another protocol", p.verdict, p.want.seen)
		}
		return p.made(rewriting{}) // whoever understands it, it is not routed
	}
	e, ok := o.attached[p.device]
	if !ok {
		return fmt.Errorf("a device without endpoint has sent it")
	}
	if p.in.fault != "" {
		return fmt.Errorf("it makes no sense: %s", p.in.fault)
	}
	if p.verdict == passOn {
		if p.want.seen != seenNot && p.want.seen != seenDecided {
			return fmt.Errorf("tc_index %#x of what is left to the stack", p.want.seen)
		}
		if err := p.made(rewriting{}); err != nil {
			return err
		}
	}
	if p.in.kind == arpKind {
		return o.arp(p, e)
	}
	if !sameMAC(p.in.srcMAC(), e.MAC) {
		return fmt.Errorf("let through from the MAC %s", p.in.srcMAC())
	}
	if !slices.Contains(e.Addresses, p.in.src) {
		if p.verdict == passOn && linkTalk(p.in) {
			return nil
		}
		return fmt.Errorf("let through from the address %s", p.in.src)
	}
	o.note(p.in, p.device)
	if p.verdict == passOn {
		return o.leftToStack(p, e)
	}
	if p.in.ttl <= 1 || !sameMAC(p.in.dstMAC(), e.HostMAC) || martian(p.in.dst) || multicast(p.in.dst) || p.in.dst.IsLinkLocalUnicast() && p.in.v6 || p.in.icmp == linkICMP {
		return fmt.Errorf("it was for the stack")
	}
	to := o.owner(p.in.dst)
	if p.counter == "delivered" {
		if to == nil {
			return fmt.Errorf("delivered, although no endpoint has the address")
		}
		if p.want.seen != seenNot {
			return fmt.Errorf("tc_index %#x", p.want.seen)
		}
		if wire(p) > to.MTU {
			return fmt.Errorf("delivered, although too big")
		}
		return p.made(rewriting{hop: true, to: to})
	}
	if to != nil {
		return fmt.Errorf("forwarded, although an endpoint has the address")
	}
	if p.want.seen != seenTranslated {
		return fmt.Errorf("tc_index %#x", p.want.seen)
	}
	if wire(p) > o.uplink.MTU {
		return fmt.Errorf("forwarded, although too big")
	}
	if !o.hides(&e, p.in.dst) || p.out.src == p.in.src && o.isReply(p.in, o.replyKeys(p.in, p.device)) {
		return p.made(rewriting{hop: true})
	}
	return o.masked(p, p.device, rewriting{hop: true})
}

// wire is the length of the largest packet that it will be on a wire.
func wire(p *outcome) int {
	if p.gsoSize != 0 {
		return int(p.gsoSize) + p.in.headers
	}
	return p.in.length
}

// arp judges ARP that was let through: a container speaks for itself.
func (o *oracle) arp(p *outcome, e Endpoint) error {
	sender := netip.AddrFrom4([4]byte(p.result.in[28:]))
	if !sameMAC(p.in.srcMAC(), e.MAC) || !sameMAC(net.HardwareAddr(p.result.in[22:28]), e.MAC) {
		return fmt.Errorf("ARP as another's MAC was let through")
	}
	if !sender.IsUnspecified() && !slices.Contains(e.Addresses, sender) {
		return fmt.Errorf("ARP for %s was let through", sender)
	}
	return nil
}

// linkTalk is what may come from no address, or one of the link's.
func linkTalk(p *seenPacket) bool {
	if !p.v6 {
		return p.src.IsUnspecified() && multicast(p.dst) && p.protocol == unix.IPPROTO_UDP && (p.later || p.sport == 68 && p.dport == 67)
	}
	return (p.src.IsLinkLocalUnicast() || p.src.IsUnspecified()) &&
		(multicast(p.dst) || p.dst.IsLinkLocalUnicast() || p.icmp == linkICMP)
}

// leftToStack judges what the stack gets although the sender is honest.
func (o *oracle) leftToStack(p *outcome, e Endpoint) error {
	to := o.owner(p.in.dst)
	if p.counter == "too_big" {
		limit := o.uplink.MTU
		if to != nil {
			limit = to.MTU
		} else if f := familyOf(p.in); p.in.dst == f.narrow {
			limit = 1300
		}
		if wire(p) <= limit {
			return fmt.Errorf("%d bytes are not too big", wire(p))
		}
		return nil
	}
	// Everything that has a reason to pass by way of the stack.
	if p.in.ttl <= 1 || !sameMAC(p.in.dstMAC(), e.HostMAC) || multicast(p.in.dst) || p.in.dst.IsLinkLocalUnicast() || p.in.icmp == linkICMP {
		return nil
	}
	for _, key := range o.replyKeys(p.in, p.device) {
		if _, ok := o.asked[key]; ok {
			return nil // through the stack, perhaps
		}
	}
	if to != nil {
		return fmt.Errorf("left to the stack, although endpoint %d has the address", to.ID)
	}
	f := familyOf(p.in)
	if p.in.dst != f.world && p.in.dst != f.narrow && p.in.dst != f.neighbour {
		return nil
	}
	if o.hides(&e, p.in.dst) && (p.in.later || answers(p.in) || p.in.protocol == unix.IPPROTO_TCP && p.in.tcpFlags&0x12 != 0x02) {
		return nil // others may know it
	}
	return fmt.Errorf("left to the stack, although its way is known")
}

// answers tells a packet that only an answer can be.
func answers(p *seenPacket) bool {
	return p.protocol == unix.IPPROTO_TCP && p.tcpFlags&0x12 == 0x12 || p.isEchoReply()
}

func familyOf(p *seenPacket) family {
	if p.v6 {
		return v6()
	}
	return v4()
}

// toContainer judges what the stack sends to an endpoint: it is only looked at.
func (o *oracle) toContainer(p *outcome) error {
	if p.want.seen != p.run.seen {
		return fmt.Errorf("tc_index %#x has become %#x", p.run.seen, p.want.seen)
	}
	if reason := o.refusedGroup(p); o.isGroup(p) && reason != "" {
		return fmt.Errorf("let through, although it is for a group: %s", reason)
	}
	if p.ingress != 0 && p.in.kind == ipKind && p.in.fault == "" {
		o.note(p.in, p.ingress)
		if to := o.owner(p.in.dst); to != nil {
			o.ask(p.in, p.ingress, to)
		}
	}
	return p.made(rewriting{})
}

// ask remembers that what an endpoint sends back is an answer.
func (o *oracle) ask(p *seenPacket, ifindex int, to *Endpoint) {
	for _, key := range o.candidates(p, ifindex) {
		o.asked[turned(key, to.IfIndex)] = o.clock
	}
}

// fromUplink judges what the world sent.
func (o *oracle) fromUplink(p *outcome) error {
	if p.vlan != 0 || p.in.kind != ipKind || p.in.fault != "" || !sameMAC(p.in.dstMAC(), o.n.uplink.MAC) {
		if p.counter != "" {
			return fmt.Errorf("it is not the datapath's, but %s", p.counter)
		}
		return p.made(rewriting{})
	}
	o.note(p.in, 0)
	known, certain := o.answered(p)
	if p.counter == "" {
		if certain {
			return fmt.Errorf("an answer was left alone, for %s", known[0])
		}
		if to := o.owner(p.in.dst); to != nil && p.in.icmp != linkICMP {
			return fmt.Errorf("left alone, although endpoint %d has the address", to.ID)
		}
		return p.made(rewriting{})
	}
	if p.in.icmp == linkICMP {
		return fmt.Errorf("talk of the link is %s", p.counter)
	}
	if p.out.dst == p.in.dst && o.owner(p.in.dst) != nil {
		return o.direct(p)
	}
	for _, t := range known {
		if t.inside.Addr() == p.out.dst && (p.in.later || p.in.icmp == errorICMP || !p.in.hasPorts() || t.inside.Port() == p.out.dport) {
			p.translated = t
		}
	}
	if p.translated == nil {
		return fmt.Errorf("it is %s, to %s, although no translation says so; there are %v", p.counter, p.out.dst, o.list())
	}
	to := o.owner(p.translated.inside.Addr())
	c := rewriting{destination: p.translated.inside}
	if p.in.icmp == errorICMP {
		c.quoteSource = p.translated.inside
	}
	if p.in.ttl <= 1 {
		return fmt.Errorf("it is %s with TTL %d", p.counter, p.in.ttl)
	}
	stack := p.translated.flags&translationStack != 0
	switch big := wire(p) > to.MTU; {
	case stack != (p.counter == "translated_to_stack"), !stack && big != (p.counter == "too_big"), p.counter == "passed":
		return fmt.Errorf("it is %s, %d bytes by %s", p.counter, wire(p), p.translated)
	case p.counter == "delivered":
		c.hop, c.to = true, to
	}
	seen := uint32(seenDecided)
	if p.counter == "delivered" {
		seen = seenNot
	}
	if p.want.seen != seen {
		return fmt.Errorf("tc_index %#x of what is %s", p.want.seen, p.counter)
	}
	return p.made(c)
}

// direct judges a packet for an endpoint's own address.
func (o *oracle) direct(p *outcome) error {
	to := o.owner(p.in.dst)
	if src := p.in.src; martian(src) || multicast(src) || o.owner(src) != nil || src == familyOf(p.in).host || src == familyOf(p.in).unknown {
		return fmt.Errorf("%s from %s", p.counter, src)
	}
	if p.in.icmp != errorICMP {
		o.ask(p.in, 0, to)
	}
	switch p.counter {
	case "delivered":
		if p.in.ttl <= 1 || wire(p) > to.MTU || p.want.seen != seenNot {
			return fmt.Errorf("delivered with TTL %d, %d bytes, tc_index %#x", p.in.ttl, wire(p), p.want.seen)
		}
		return p.made(rewriting{hop: true, to: to})
	case "passed":
		left := slices.ContainsFunc(o.replyKeys(p.in, 0), func(key maps.FlowKey) bool { return o.byStack[key] })
		if p.in.ttl > 1 && !left {
			return fmt.Errorf("passed with TTL %d, although nothing was sent by the stack", p.in.ttl)
		}
	case "too_big":
		if wire(p) <= to.MTU {
			return fmt.Errorf("%d bytes are not too big", wire(p))
		}
	default:
		return fmt.Errorf("it is %s", p.counter)
	}
	return p.made(rewriting{})
}

// answered returns the living translations that a packet from the world may answer,
// and whether the programs must know it.
func (o *oracle) answered(p *outcome) (known []*translation, certain bool) {
	keys := o.candidates(p.in, 0)
	if p.in.icmp == errorICMP {
		if p.in.quote == nil || p.in.quote.src != p.in.dst {
			return nil, false
		}
		keys = []maps.FlowKey{turned(p.in.quote.key(0, p.in.quote.ports()), 0)}
	}
	for _, key := range keys {
		t, ok := o.before[key]
		if !ok {
			continue
		}
		to := o.owner(maps.Addr(t.Address))
		if to == nil || to.IfIndex != int(t.Ifindex) {
			continue
		}
		alive, dead := o.n.lives(key, t)
		if !dead {
			known = append(known, newTranslation(key, t))
			certain = alive && !p.in.later && (p.in.quote == nil || p.in.quote.extensions == 0)
		}
	}
	return known, certain
}

// toUplink judges what the stack sends to the world.
func (o *oracle) toUplink(p *outcome) error {
	if p.run.seen == seenTranslated || p.vlan != 0 || p.in.kind != ipKind || p.in.fault != "" {
		if p.counter != "" || p.want.seen != p.run.seen {
			return fmt.Errorf("it is none of the programs' business, but %q, tc_index %#x", p.counter, p.want.seen)
		}
		return p.made(rewriting{})
	}
	e := o.owner(p.in.src)
	if e != nil {
		o.note(p.in, e.IfIndex)
	}
	if p.counter == "" {
		if e != nil && o.hides(e, p.in.dst) && !o.isReply(p.in, o.replyKeys(p.in, e.IfIndex)) {
			return fmt.Errorf("the address of endpoint %d has left", e.ID)
		}
		if p.want.seen != p.run.seen {
			return fmt.Errorf("tc_index %#x has become %#x", p.run.seen, p.want.seen)
		}
		if e != nil && p.run.seen != seenDecided && p.believed(e) {
			for _, key := range o.candidates(p.in, 0) {
				o.byStack[turned(key, 0)] = true
			}
		}
		return p.made(rewriting{})
	}
	if p.want.seen != seenTranslated {
		return fmt.Errorf("tc_index %#x of what was translated", p.want.seen)
	}
	if e != nil {
		if !o.hides(e, p.in.dst) {
			return fmt.Errorf("translated, although nothing asks for it")
		}
		return o.masked(p, e.IfIndex, rewriting{})
	}
	// The host's own: an error about what was translated.
	if p.in.quote == nil {
		return fmt.Errorf("the host's own was changed")
	}
	to := o.owner(p.in.quote.dst)
	if to == nil {
		return fmt.Errorf("the host's own error, about no endpoint's packet, was changed")
	}
	pointer, ok := o.before[turned(p.in.quote.key(0, p.in.quote.ports()), to.IfIndex)]
	if !ok {
		return fmt.Errorf("the host's own error, about what was never translated, was changed")
	}
	return p.made(rewriting{quoteDestination: netip.AddrPortFrom(maps.Addr(pointer.Address), maps.Port(pointer.Port))})
}
