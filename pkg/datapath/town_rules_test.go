// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// isJudged tells a frame that to_parent has had before, and marked.
func isJudged(p *outcome) bool {
	return p.run.mark&^3 == putBack && p.run.seen == seenTranslated
}

// from is the resident who has sent a packet, as the hook that meets it first knows; nil where
// that is another.
func (o *townJudge) from(p *outcome) *Endpoint {
	switch p.program {
	case fromContainer:
		return resident(o.attached, func(e Endpoint) bool { return e.Child == nil && e.IfIndex == p.device })
	case toParent, childEgress:
		if isJudged(p) {
			return nil
		}
		return o.childAt(p.device, p.in.srcMAC())
	}
	return nil
}

func (o *townJudge) childAt(device int, mac net.HardwareAddr) *Endpoint {
	return resident(o.attached, func(e Endpoint) bool { return e.Child != nil && e.Child.Parent == device && sameMAC(e.MAC, mac) })
}

// to is the resident who gets a packet from the hook, the last before it; nil where nobody does.
func (o *townJudge) to(p *outcome) *Endpoint {
	switch p.program {
	case fromContainer, fromUplink:
		if p.counter == "delivered" {
			return o.owner(p.out.dst)
		}
	case toContainer:
		return resident(o.attached, func(e Endpoint) bool { return e.Child == nil && e.IfIndex == p.device })
	case toParent:
		if p.verdict == redirect && !isJudged(p) {
			return o.childAt(p.device, p.out.dstMAC())
		}
	case fromParent, childIngress:
		if p.run.mark&^3 != putBack || p.program == childIngress {
			return o.childAt(p.device, p.out.dstMAC())
		}
	}
	return nil
}

// sender: who is let through is who it says.
func (o *townJudge) sender(p *outcome) error {
	if p.verdict == dropped {
		return nil
	}
	e := o.from(p)
	switch {
	case p.program == fromContainer && e == nil && p.in.kind != otherKind:
		return fmt.Errorf("a device without endpoint has sent it")
	case e == nil:
		return nil
	case p.vlan != 0:
		return fmt.Errorf("a tagged frame was let through")
	case p.in.kind == otherKind:
		if (e.Bridge != 0 || e.Child != nil) && !sameMAC(p.in.srcMAC(), e.MAC) {
			return fmt.Errorf("let through from the MAC %s", p.in.srcMAC())
		}
		return nil
	case p.in.fault != "":
		return fmt.Errorf("it makes no sense: %s", p.in.fault)
	case p.in.kind == arpKind:
		return (*oracle)(nil).arp(p, *e)
	case !sameMAC(p.in.srcMAC(), e.MAC):
		return fmt.Errorf("let through from the MAC %s", p.in.srcMAC())
	// It may answer one that was let in: no stack forwards what is from there.
	case martian(p.in.dst) && p.in.icmp != linkICMP && !linkTalk(p.in) && !o.heard(p.in, false):
		return fmt.Errorf("let through to %s", p.in.dst)
	case slices.Contains(e.Addresses, p.in.src):
		return nil
	case !linkTalk(p.in):
		return fmt.Errorf("let through from the address %s", p.in.src)
	}
	return nil
}

// claimed: nobody of the wire reaches a resident's own address with that of another.
func (o *townJudge) claimed(p *outcome) error {
	to := o.to(p)
	if to == nil || p.verdict == dropped || !readable(p.in) || p.in.icmp == linkICMP || p.out.dst != p.in.dst || !slices.Contains(to.Addresses, p.in.dst) {
		return nil
	}
	from := o.owner(p.in.src)
	switch {
	case from == nil:
		return nil
	case p.program == fromUplink && p.run.mark == 0:
	case p.program == fromParent && p.vlan != 0: // of a VLAN device, which is another link
		return nil
	case p.program == fromParent && !(from.Child != nil && from.Child.Reflected && sameMAC(p.in.srcMAC(), from.MAC)):
	case p.program == childIngress:
	case p.program == toContainer && p.run.seen == seenNot && p.ingress != 0 && p.ingress != from.IfIndex && o.judges(from, to):
	default:
		return nil
	}
	return fmt.Errorf("endpoint %d is told that by somebody with the address of endpoint %d", to.ID, from.ID)
}

// hidden: no address of an endpoint that is masqueraded leaves by the uplink, but to who has
// asked it.
func (o *townJudge) hidden(p *outcome) error {
	if !readable(p.in) || p.verdict == dropped || p.out.src != p.in.src || p.vlan != 0 {
		return nil
	}
	e := o.owner(p.in.src)
	if e == nil || !e.Masquerade {
		return nil
	}
	switch p.program {
	case fromContainer:
		if p.counter != "forwarded" {
			return nil
		}
	case toUplink:
		if p.run.seen == seenTranslated || e.Bridge != 0 && sameMAC(p.in.srcMAC(), e.MAC) {
			return nil
		}
	default:
		return nil
	}
	if o.heard(p.in, false) || o.spoke[turned(p.in.key(0, [2]uint16{}), 0)] {
		return nil
	}
	return fmt.Errorf("the address of endpoint %d has left", e.ID)
}

// separate: a child reaches another where both are bridged, and the host where it may.
func (o *townJudge) separate(p *outcome) error {
	from := o.from(p)
	if p.program != toParent || p.verdict != redirect || from == nil || p.counter == "forwarded" {
		return nil
	}
	to := o.childAt(p.device, p.out.dstMAC())
	if to != nil && p.out.dst == p.in.dst && (!from.Child.Bridged || !to.Child.Bridged) {
		return fmt.Errorf("endpoint %d has reached endpoint %d", from.ID, to.ID)
	}
	if to == nil && !from.Child.HostAccess {
		return fmt.Errorf("endpoint %d has reached the host", from.ID)
	}
	return nil
}

// keepsLink is what a link needs, whatever policy says.
func keepsLink(p *seenPacket) bool {
	if p.kind == arpKind || readable(p) && p.icmp == linkICMP {
		return true
	}
	if !readable(p) || p.v6 {
		return false
	}
	dhcp := p.protocol == unix.IPPROTO_UDP && !p.later && (p.sport == 68 && p.dport == 67 || p.sport == 67 && p.dport == 68)
	return multicast(p.dst) && p.protocol == unix.IPPROTO_IGMP || dhcp && (p.dst == addr("255.255.255.255") || p.sport == 67)
}

// heard tells whether the other direction of a packet was let through, or the packet that an
// error speaks of. With asSent the quote is of the end that gets the error.
func (o *townJudge) heard(p *seenPacket, asSent bool) bool {
	switch {
	case p.icmp == errorICMP && p.quote == nil: // of a protocol without ports, say
		q := seenPacket{frame: p.frame, v6: p.v6, network: p.transport + 8}
		see := q.see4
		if p.v6 {
			see = q.see6
		}
		return see(p.end, true) == "" && (asSent && q.src == p.dst || !asSent && q.dst == p.src) && o.met[[2]netip.Addr{q.src, q.dst}]
	case p.icmp == errorICMP:
		q := p.quote.key(0, p.quote.ports())
		if asSent {
			return p.quote.src == p.dst && (o.said[q] || o.said[turned(q, 0)])
		}
		return p.quote.dst == p.src && (o.said[q] || o.said[turned(q, 0)])
	case p.later:
		return o.spoke[turned(p.key(0, [2]uint16{}), 0)]
	}
	return o.said[turned(p.key(0, p.ports()), 0)]
}

// mayBegin asks the policy of the moment; nil is who is no resident.
func (o *townJudge) mayBegin(client, server *Endpoint) bool {
	if o.policy == 0 || client != nil && server != nil && client.ID == server.ID {
		return true
	}
	w := o.policies[o.policy-1]
	return (client == nil || !w.mute[client.ID]) && (server == nil || !w.deaf[server.ID])
}

// judges tells whether policy has a say in what one sends another.
func (o *townJudge) judges(from, to *Endpoint) bool {
	return o.policy != 0 && from.ID != to.ID && (o.policies[o.policy-1].mute[from.ID] || o.policies[o.policy-1].deaf[to.ID])
}

// mayPass tells whether a packet between two may be one of a connection that policy lets begin,
// or that has begun.
func (o *townJudge) mayPass(p *outcome, from, to *Endpoint) bool {
	if o.mayBegin(from, to) || keepsLink(p.in) {
		return true
	}
	if !readable(p.in) {
		return false
	}
	// Nobody has seen it begin: either end may have.
	if p.in.protocol == unix.IPPROTO_TCP && !opens(p.in) && o.mayBegin(to, from) {
		return true
	}
	return o.heard(p.in, false) || o.heard(p.out, false) || o.heard(p.out, true)
}

// permitted: what policy denies passes at no hook that has to ask it.
func (o *townJudge) permitted(p *outcome) error {
	if o.policy == 0 || p.verdict == dropped || p.counter == "host" {
		return nil
	}
	if from := o.from(p); from != nil && o.speaksUp(p, from) {
		to := o.to(p)
		if slices.Contains(from.Addresses, p.out.dst) {
			to = from // whoever has it back
		}
		if !o.mayPass(p, from, to) {
			return fmt.Errorf("policy %d keeps endpoint %d from saying it", o.policy, from.ID)
		}
	}
	if to := o.to(p); to != nil && o.isForOther(p, to) {
		if !o.mayPass(p, o.sentBy(p, to), to) {
			return fmt.Errorf("policy %d keeps endpoint %d from hearing it", o.policy, to.ID)
		}
	}
	return nil
}

// sentBy is the resident whom a hook of the receiver's asks as the sender; nil for none. What is for
// another address than the receiver's was asked on the sender's side, but for a group that the stack
// forwards; of what makes no sense, nobody is.
func (o *townJudge) sentBy(p *outcome, to *Endpoint) *Endpoint {
	if !readable(p.in) || p.program == fromParent && p.vlan != 0 {
		return nil
	}
	own := slices.Contains(to.Addresses, p.out.dst)
	if from := o.owner(p.in.src); from != nil && own {
		return from
	}
	if p.program != toContainer && p.program != toParent || !own && !multicast(p.in.dst) {
		return nil
	}
	// Whom the stack has hidden.
	return resident(o.attached, func(e Endpoint) bool {
		return e.Child == nil && e.IfIndex == p.ingress && (own || e.Bridge == 0)
	})
}

// speaksUp tells what a resident says to others than the host; what the stack may send on is
// judged where it does.
func (o *townJudge) speaksUp(p *outcome, from *Endpoint) bool {
	if readable(p.in) && slices.Contains(o.hosts, p.out.dst) {
		return false
	}
	if from.Child == nil && p.verdict == passOn {
		return from.Bridge != 0 && (!sameMAC(p.in.dstMAC(), from.HostMAC) || multicast(p.in.dst))
	}
	return true
}

// isForOther tells what a resident gets of others than the host.
func (o *townJudge) isForOther(p *outcome, to *Endpoint) bool {
	switch p.program {
	case toContainer:
		if to.Bridge == 0 && (!readable(p.in) || !slices.Contains(to.Addresses, p.in.dst)) {
			return false // the stack sends it nothing so
		}
		decided := p.run.seen == seenDecided || p.run.seen == seenTranslated
		return !decided || p.ingress == 0 || p.ingress == o.other.Attrs().Index
	case toParent:
		if sameMAC(p.in.srcMAC(), o.uplink.MAC) {
			decided := p.run.seen == seenDecided || p.run.seen == seenTranslated
			return p.ingress != 0 && !decided
		}
	}
	return true
}

// groups: under a policy no child is given what the wire brings for a group, but what a link
// needs.
func (o *townJudge) groups(p *outcome) error {
	fromWire := p.program == childIngress || p.program == fromParent && p.run.mark&^3 != putBack
	if !fromWire || o.policy == 0 || p.verdict == dropped || p.vlan != 0 || keepsLink(p.in) || p.out.dstMAC()[0]&1 == 0 {
		return nil
	}
	return fmt.Errorf("policy %d keeps the children from hearing it", o.policy)
}
