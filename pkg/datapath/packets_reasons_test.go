// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"net"
	"slices"

	"golang.org/x/sys/unix"
)

// reason judges a drop: what the counter says must be true.
func (o *oracle) reason(p *outcome) error {
	e, attached := o.attached[p.device]
	if p.program == toUplink {
		if own := o.owner(p.in.src); own != nil {
			e, attached = *own, true
			o.note(p.in, e.IfIndex)
		}
	}
	honest := attached && slices.Contains(e.Addresses, p.in.src)
	if p.program == fromContainer && honest && sameMAC(p.in.srcMAC(), e.MAC) {
		o.note(p.in, p.device)
	}
	if p.program == fromUplink {
		o.note(p.in, 0)
	}
	if p.program == toContainer && p.ingress != 0 && o.owner(p.in.dst) != nil {
		o.note(p.in, p.ingress)
	}
	out := p.program != fromUplink
	hidden := out && honest && o.hides(&e, p.in.dst)
	tcp := p.in.protocol == unix.IPPROTO_TCP
	ok := false
	switch p.counter {
	case "invalid":
		ok = p.program == fromContainer && (p.in.fault != "" || p.in.icmp == linkICMP) || o.unreadable(p)
	case "vlan":
		ok = p.program == fromContainer && p.vlan != 0
	case "unknown_sender":
		ok = p.program == fromContainer && !attached
	case "source_address":
		ok = p.program == fromContainer && !honest
	case "source_mac":
		ok = p.program == fromContainer && (!sameMAC(p.in.srcMAC(), e.MAC) || p.in.kind == arpKind && !sameMAC(net.HardwareAddr(p.result.in[22:28]), e.MAC))
	case "neighbour":
		ok = p.program == fromContainer && (p.in.kind == arpKind || p.in.icmp == linkICMP)
	case "martian":
		ok = p.program == fromContainer && martian(p.in.dst) || p.program == fromUplink && o.owner(p.in.dst) != nil &&
			p.in.src != familyOf(p.in).world && p.in.src != familyOf(p.in).router || o.forged(p)
	case "no_uplink_address":
		ok = hidden && !o.outside(p.in).IsValid()
	case "ports_exhausted":
		ok = hidden && p.in.protocol == unix.IPPROTO_SCTP
	case "unsupported_protocol":
		ok = hidden && !p.in.hasPorts()
	case "fragment":
		ok = p.in.later && (hidden || o.denial(p) == nil)
	case "policy_egress", "policy_ingress", "network_isolation":
		if o.isGroup(p) {
			ok = p.counter == o.refusedGroup(p)
			break
		}
		return o.denial(p)
	case "no_translation":
		ok = hidden && (p.in.icmp == errorICMP || p.program == toUplink && (p.in.later || tcp && p.in.tcpFlags&0x12 != 0x02 || answers(p.in)))
	case "ttl":
		known, _ := o.answered(p)
		ok = p.program == fromUplink && p.in.ttl <= 1 && len(known) > 0
	}
	if !ok {
		return fmt.Errorf("dropped as %s, which is not so", p.counter)
	}
	return nil
}
