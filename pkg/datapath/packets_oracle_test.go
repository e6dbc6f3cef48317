// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// oracle knows what may become of packets. It says nothing about what is a matter of
// choice (which port is taken, how long a cache remembers), and takes from the kernel
// only the translations, whose uniqueness their map's key guarantees.
type oracle struct {
	n *node
	// attached are the endpoints by the index of their device.
	attached map[int]Endpoint
	// gone are those that left.
	gone   map[int]departure
	uplink Uplink
	// hidden is the endpoint for which the stack forwards the packet of the moment, with the
	// address hiding in place of its own; nil for none.
	hidden   *Endpoint
	hiding   netip.Addr
	excluded []netip.Prefix
	// clock counts seconds since the story began.
	clock uint32
	// asked are flows from endpoints whose other direction spoke first, or came by way
	// of the stack, and when.
	asked map[maps.FlowKey]uint32
	// byStack are the answers to what has left by the stack as endpoints sent it.
	byStack map[maps.FlowKey]bool
	// fragments are the ports of first fragments, by what later ones share with them.
	fragments map[maps.FragmentKey][]firstFragment
	// firewall is the policy of the moment, and begun what began by it or without one.
	firewall firewall
	begun    map[connection]memory
	// before and after are the translations around the packet in hand.
	before, after map[maps.FlowKey]maps.Translation
}

type departure struct {
	Endpoint
	at uint32
}

type firstFragment struct {
	ports [2]uint16
	at    uint32
}

// slack is the time in seconds that a story may take, and the clock be off.
const slack = 3

// outcome is a packet, what became of it, and what counted it.
type outcome struct {
	result
	in, out *seenPacket
	// counter is the one that counted it besides "decided"; "" for none.
	counter string
	// decided says that the slow path decided.
	decided bool
	// translated is the translation that was applied.
	translated *translation
}

// judge returns what is wrong with what became of a packet.
func (o *oracle) judge(got result) (*outcome, error) {
	gso := got.gsoSize != 0
	p := &outcome{result: got, in: see(got.in, gso), out: see(got.out, gso)}
	return p, o.judgeOutcome(p)
}

func (o *oracle) judgeOutcome(p *outcome) error {
	got := p.result
	if err := p.count(); err != nil {
		return err
	}
	if got.verdict == dropped {
		return o.reason(p)
	}
	if len(got.out) != len(got.in) {
		return fmt.Errorf("%d bytes have become %d", len(got.in), len(got.out))
	}
	judges := map[string]func(*outcome) error{
		fromContainer: o.fromContainer, toContainer: o.toContainer, fromUplink: o.fromUplink, toUplink: o.toUplink,
	}
	if err := judges[got.program](p); err != nil {
		return err
	}
	if err := o.policy(p); err != nil {
		return err
	}
	if p.verdict == redirect {
		if err := o.way(p); err != nil {
			return err
		}
	}
	if packet.Verify(got.in) == nil && !p.in.sourceRouted {
		if err := packet.Verify(got.out); err != nil {
			return fmt.Errorf("it was right before: %w", err)
		}
	}
	return nil
}

// way compares the device and the neighbour that a packet was redirected to, which no
// test run shows, with what was remembered for its flow.
func (o *oracle) way(p *outcome) error {
	ifindex := 0
	if p.program == fromContainer {
		ifindex = p.device
	}
	var flow maps.Flow
	if p.in.later || p.in.icmp == errorICMP || o.n.maps.Flows.Lookup(p.in.key(ifindex, p.in.ports()), &flow) != nil {
		return nil // a closed flow is not remembered
	}
	if flow.Action == maps.ActionNone {
		return nil // nor is the answer of one that is not open yet, but that it is an answer
	}
	if p.counter == "delivered" {
		if to := o.owner(p.out.dst); to == nil || int(flow.OutIfindex) != to.IfIndex {
			return fmt.Errorf("delivered to device %d", flow.OutIfindex)
		}
		return nil
	}
	f := familyOf(p.in)
	hops := map[netip.Addr]netip.Addr{f.world: f.router, f.narrow: f.router, f.neighbour: f.neighbour}
	if want, ok := hops[p.in.dst]; int(flow.OutIfindex) != o.uplink.IfIndex || ok && maps.Addr(flow.NextHop) != want {
		return fmt.Errorf("forwarded to %s by device %d", maps.Addr(flow.NextHop), flow.OutIfindex)
	}
	return nil
}

// verdictOf is the verdict that goes with a counter. Each has a case of its own: the
// fuzzer is guided by what of the Go program is reached, and sees nothing of the kernel.
func verdictOf(program, counter string) int32 {
	switch counter {
	case "":
		return passOn
	case "passed":
		return passOn
	case "host":
		return passOn
	case "too_big":
		return passOn
	case "translated_to_stack":
		return passOn
	case "delivered":
		return redirect
	case "forwarded":
		if program == toUplink {
			return passOn
		}
		return redirect
	}
	return dropped
}

// count finds the packet's counter: there is one at most, it counts the packet once,
// and the verdict is the one that goes with it.
func (p *outcome) count() error {
	want := maps.Count{Packets: uint64(max(1, p.gsoSegs)), Bytes: uint64(len(p.result.in))}
	for name, count := range p.counts {
		if count != want {
			return fmt.Errorf("counter %s: %d packets of %d bytes, want %d of %d", name, count.Packets, count.Bytes, want.Packets, want.Bytes)
		}
		switch {
		case len(name) <= len(p.program) || name[:len(p.program)+1] != p.program+" ":
			return fmt.Errorf("counter %s is another program's", name)
		case name == p.program+" decided":
			p.decided = true
		case p.counter != "":
			return fmt.Errorf("counters %s and %s", p.counter, name)
		default:
			p.counter = name[len(p.program)+1:]
		}
	}
	verdict := verdictOf(p.program, p.counter)
	switch {
	case p.verdict != verdict:
		return fmt.Errorf("verdict %d with counter %q", p.verdict, p.counter)
	case p.decided && (p.counter == "" || p.program == toContainer || p.program == toUplink):
		return fmt.Errorf("decided, with counter %q", p.counter)
	case p.counter == "" && (p.program == fromContainer || p.program == toContainer):
		return fmt.Errorf("nothing counted the packet")
	}
	return nil
}

// owner is the attached endpoint that has an address.
func (o *oracle) owner(a netip.Addr) *Endpoint {
	for _, e := range o.attached {
		for _, own := range e.Addresses {
			if own == a {
				return &e
			}
		}
	}
	return nil
}

// hides tells whether a packet from an endpoint must not show its address.
func (o *oracle) hides(e *Endpoint, destination netip.Addr) bool {
	return e.Masquerade && !slices.ContainsFunc(o.excluded, func(p netip.Prefix) bool { return p.Contains(destination) })
}

// outside is the address of the uplink that hides those of a packet's family.
func (o *oracle) outside(p *seenPacket) netip.Addr {
	if p.v6 {
		return o.uplink.IPv6
	}
	return o.uplink.IPv4
}

// martian is what may be on no wire.
func martian(a netip.Addr) bool {
	return a.IsLoopback() || a.IsUnspecified() || a.Is4() && a.As4()[0] == 0
}

// multicast is a group, or the limited broadcast.
func multicast(a netip.Addr) bool {
	return a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// candidates are the flows that a packet may belong to: one, or for a later fragment
// those of each first one that may be its own, or none.
func (o *oracle) candidates(p *seenPacket, ifindex int) []maps.FlowKey {
	if !p.later {
		return []maps.FlowKey{p.key(ifindex, p.ports())}
	}
	keys := []maps.FlowKey{p.key(ifindex, [2]uint16{})}
	for _, f := range o.fragments[p.fragmentKey(ifindex)] {
		if o.clock-f.at <= fragmentSeconds+slack {
			keys = append(keys, p.key(ifindex, f.ports))
		}
	}
	return keys
}

func (p *seenPacket) fragmentKey(ifindex int) maps.FragmentKey {
	return maps.FragmentKey{
		Source: maps.NewAddress(p.src), Destination: maps.NewAddress(p.dst),
		Identification: p.id, Ifindex: uint32(ifindex), Protocol: p.protocol,
	}
}

// note remembers a first fragment that a program saw.
func (o *oracle) note(p *seenPacket, ifindex int) {
	if p.first && p.kind == ipKind && p.fault == "" {
		key := p.fragmentKey(ifindex)
		o.fragments[key] = append(o.fragments[key], firstFragment{p.ports(), o.clock})
	}
}

// isReply tells whether a flow from an endpoint may be an answer.
func (o *oracle) isReply(p *seenPacket, keys []maps.FlowKey) bool {
	if p.tcpFlags&0x12 == 0x02 && !p.later && p.icmp == noICMP {
		return false // SYN without ACK
	}
	for _, key := range keys {
		at, ok := o.asked[key]
		if ok && o.clock-at <= lifetime(key.Protocol, maps.TranslationEstablished)+slack {
			o.asked[key] = o.clock
			return true
		}
	}
	return false
}

// replyKeys are the flows of which a packet or the quote of an error is an answer.
func (o *oracle) replyKeys(p *seenPacket, ifindex int) []maps.FlowKey {
	if p.icmp != errorICMP {
		return o.candidates(p, ifindex)
	}
	if p.quote == nil {
		return nil
	}
	return []maps.FlowKey{turned(p.quote.key(0, p.quote.ports()), ifindex)}
}

// found is the translation that hides the flow of a packet from an endpoint and gave it
// a source; port is nil where the packet shows none.
func (o *oracle) found(p *outcome, ifindex int, outside netip.Addr, shown *uint16) error {
	for key, t := range o.after {
		for _, sent := range o.candidates(p.in, ifindex) {
			if key.Kind != maps.KeyTracked && key.Ifindex == 0 && o.sentKey(key, t) == sent && maps.Addr(key.Destination) == outside &&
				(shown == nil || maps.Port(key.DestinationPort) == *shown) {
				p.translated = newTranslation(key, t)
				return nil
			}
		}
	}
	return fmt.Errorf("no translation leads back from %s to it; there are %v", packet.Summary(p.result.out), o.list())
}

// sentKey is the flow as the endpoint sends it.
func (*oracle) sentKey(key maps.FlowKey, t maps.Translation) maps.FlowKey {
	return maps.FlowKey{
		Source: t.Address, SourcePort: t.Port, Ifindex: t.Ifindex,
		Destination: key.Source, DestinationPort: key.SourcePort, Protocol: key.Protocol,
	}
}

func (o *oracle) list() (all []*translation) {
	for key, t := range o.after {
		if key.Kind != maps.KeyTracked && key.Ifindex == 0 {
			all = append(all, newTranslation(key, t))
		}
	}
	return all
}

// masked judges a packet that left with the uplink's address in place of its sender's.
func (o *oracle) masked(p *outcome, ifindex int, c rewriting) error {
	if p.in.icmp == errorICMP {
		if p.in.quote == nil || p.in.quote.dst != p.in.src || p.in.quote.src != p.in.dst {
			return fmt.Errorf("an error about nothing of its sender's has left")
		}
		sent := turned(p.in.quote.key(0, p.in.quote.ports()), ifindex)
		pointer, ok := o.before[sent]
		if !ok {
			return fmt.Errorf("an error about what was not translated has left")
		}
		// As the world knows its peer, also when the uplink has another address by now.
		c.source = netip.AddrPortFrom(maps.Addr(pointer.Address), 0)
		c.quoteDestination = netip.AddrPortFrom(maps.Addr(pointer.Address), maps.Port(pointer.Port))
		return p.made(c)
	}
	outside := o.outside(p.in)
	if !outside.IsValid() || p.out.src != outside {
		return fmt.Errorf("it left from %s, the uplink has %s", p.out.src, outside)
	}
	if !p.in.hasPorts() && !p.in.later {
		return fmt.Errorf("a packet without ports has left")
	}
	var shown *uint16
	if !p.in.later {
		shown = &p.out.sport
	}
	if err := o.found(p, ifindex, outside, shown); err != nil {
		return err
	}
	c.source = p.translated.outside
	return p.made(c)
}

func sameMAC(a, b net.HardwareAddr) bool { return bytes.Equal(a, b) }
