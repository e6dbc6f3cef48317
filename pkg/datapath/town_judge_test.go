// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// townJudge knows what must become of no packet, wherever it is shown: it says nothing of what
// is a program's choice, and takes nothing but translations and accounts from the kernel. Its
// rules are in town_rules_test.go.
type townJudge struct {
	*town
	attached []Endpoint
	// policy is the number of that of the moment, 0 for none.
	policy int
	uplink Uplink
	// outside are all addresses that the uplink has had.
	outside []netip.Addr
	// said has the flows of all that was let through, as it came and as it went; spoke those
	// without ports, for fragments.
	said, spoke map[maps.FlowKey]bool
	// met are those who spoke, in whatever protocol.
	met map[[2]netip.Addr]bool
	// neighbours have handed over what was let through.
	neighbours []net.HardwareAddr
	// before and flows are the decisions around the packet at hand, translations those after it.
	before, flows map[maps.FlowKey]maps.Flow
	translations  map[maps.FlowKey]maps.Translation
	// denied are the flows that policy has denied before and after the packet at hand, by
	// deniedAt of each resident.
	deniedBefore, denied map[uint32]uint64
}

func newTownJudge(n *town) *townJudge {
	return &townJudge{
		town: n, attached: slices.Clone(n.residents), uplink: n.node.uplink,
		outside: []netip.Addr{n.node.uplink.IPv4, n.node.uplink.IPv6},
		said:    make(map[maps.FlowKey]bool), spoke: make(map[maps.FlowKey]bool), met: make(map[[2]netip.Addr]bool),
	}
}

// remember reads what the programs know.
func (o *townJudge) remember(t *testing.T) {
	t.Helper()
	o.before, o.flows = o.flows, make(map[maps.FlowKey]maps.Flow)
	must(t, each(o.maps.Flows, func(key maps.FlowKey, f maps.Flow) bool { o.flows[key] = f; return true }))
	o.translations = o.entries(t)
	o.deniedBefore, o.denied = o.denied, make(map[uint32]uint64)
	for _, e := range o.residents {
		for _, egress := range []bool{false, true} {
			var n uint64
			must(t, o.maps.Denied.Lookup(deniedAt(e.ID, egress), &n))
			o.denied[deniedAt(e.ID, egress)] = n
		}
	}
}

func (o *townJudge) owner(a netip.Addr) *Endpoint {
	return addressee(o.attached, a)
}

// judge returns what is wrong with what became of a packet.
func (o *townJudge) judge(p *outcome) error {
	for _, rule := range []func(*outcome) error{
		o.counts, o.accounts, o.denials, o.changes, o.notes, o.sender, o.claimed, o.hidden, o.separate, o.permitted, o.groups,
	} {
		if err := rule(p); err != nil {
			return err
		}
	}
	o.hear(p)
	return o.holdings()
}

// holdings compares what residents hold with their counts, and each living translation with the
// entry that points to it.
func (o *townJudge) holdings() error {
	holds := make(map[uint16]uint32)
	for key, value := range o.translations {
		holder := resident(o.residents, func(e Endpoint) bool { return e.ID == value.Endpoint })
		switch {
		case holder == nil:
			return fmt.Errorf("nobody's translation: %v, %+v", key, value)
		case key.Kind == maps.KeyTracked:
			holds[value.Endpoint]++
			continue
		case !slices.Contains(holder.Addresses, maps.Addr(value.Address)):
			if ours := slices.Concat(o.hosts, o.outside); !slices.Contains(ours, maps.Addr(value.Address)) {
				return fmt.Errorf("a pointer leads to %s", maps.Addr(value.Address))
			}
			continue
		}
		holds[value.Endpoint]++
		if alive, _ := o.lives(key, value); !alive || value.Flags&translationHairpin != 0 {
			continue // its pointer may be another's by now
		}
		sent := (*oracle)(nil).sentKey(key, value)
		if value.Flags&translationRemapped != 0 {
			sent.DestinationPort = value.Mapped
		}
		if pointer, ok := o.translations[sent]; !ok || pointer.Address != key.Destination || pointer.Port != key.DestinationPort {
			return fmt.Errorf("the pointer of %s leads to port %d", newTranslation(key, value), maps.Port(pointer.Port))
		}
	}
	for _, e := range o.residents {
		var held uint32
		if err := o.maps.Held.Lookup(uint32(e.ID), &held); err != nil {
			return fmt.Errorf("read map held: %w", err)
		}
		if held != holds[e.ID] {
			return fmt.Errorf("endpoint %d holds %d translations, the count says %d", e.ID, holds[e.ID], held)
		}
	}
	return nil
}

// hear notes what was let through.
func (o *townJudge) hear(p *outcome) {
	if p.verdict == dropped || !readable(p.in) || !readable(p.out) {
		return
	}
	o.neighbours = append(o.neighbours, slices.Clone(p.in.srcMAC()))
	for _, s := range []*seenPacket{p.in, p.out} {
		if !s.later {
			o.said[s.key(0, s.ports())] = true
		}
		o.spoke[s.key(0, [2]uint16{})] = true
		o.met[[2]netip.Addr{s.src, s.dst}] = true
	}
}

func readable(p *seenPacket) bool { return p.kind == ipKind && p.fault == "" }

// reasonsToPass are the counters of what is not dropped.
func reasonsToPass() []string {
	return []string{"passed", "delivered", "forwarded", "translated_to_stack", "too_big", "host"}
}

// counts: what is counted is counted once, for one reason, with all of its bytes; all that is
// dropped is counted, and nothing else under the reason of a drop.
func (o *townJudge) counts(p *outcome) error {
	want := maps.Count{Packets: uint64(max(1, p.gsoSegs)), Bytes: uint64(len(p.result.in))}
	for name, count := range p.counts {
		if count != want {
			return fmt.Errorf("counter %s: %d packets of %d bytes, want %d of %d", name, count.Packets, count.Bytes, want.Packets, want.Bytes)
		}
		_, reason, _ := strings.Cut(name, " ")
		switch {
		case reason == "decided":
			p.decided = true
		case p.counter != "":
			return fmt.Errorf("counters %s and %s", p.counter, name)
		default:
			p.counter = reason
		}
	}
	drop := p.counter != "" && !slices.Contains(reasonsToPass(), p.counter)
	switch {
	case p.verdict != passOn && p.verdict != dropped && p.verdict != redirect:
		return fmt.Errorf("verdict %d", p.verdict)
	case o.isPacer(p) && p.verdict == dropped && p.counter == "":
		return nil // what no limit has sent there
	case drop != (p.verdict == dropped):
		return fmt.Errorf("verdict %d with counter %q", p.verdict, p.counter)
	case p.counter == "" && (p.program == fromContainer || p.program == toContainer || p.program == childEgress):
		return fmt.Errorf("nothing counted the packet")
	}
	return nil
}

func (*townJudge) isPacer(p *outcome) bool { return p.program == pacerIn || p.program == pacerOut }

// accounts: one flow at most has the packet on its account, once.
func (o *townJudge) accounts(p *outcome) error {
	packets, size := uint64(max(1, p.gsoSegs)), uint64(len(p.result.in)-14)
	var accounted []maps.FlowKey
	for key, now := range o.flows {
		before := o.before[key]
		if now.Packets == before.Packets && now.Bytes == before.Bytes {
			continue
		}
		if now.Packets == 0 && now.Bytes == 0 {
			continue // a note of what the other end begins
		}
		anew := now.Packets == packets && now.Bytes == size
		more := now.Packets == before.Packets+packets && now.Bytes == before.Bytes+size
		if !anew && !more {
			return fmt.Errorf("%d packets of %d bytes on the account of %v, before %d of %d", now.Packets, now.Bytes, key, before.Packets, before.Bytes)
		}
		accounted = append(accounted, key)
	}
	if len(accounted) > 1 {
		return fmt.Errorf("on the account of %v", accounted)
	}
	return nil
}

// denials: what is dropped by a policy counts as one denied flow of its endpoint at most, and
// nothing else does.
func (o *townJudge) denials(p *outcome) error {
	var counted uint64
	for _, e := range o.residents {
		for _, egress := range []bool{false, true} {
			at, reason := deniedAt(e.ID, egress), "policy_ingress"
			if egress {
				reason = "policy_egress"
			}
			more := o.denied[at] - o.deniedBefore[at]
			if more > 0 && p.counter != reason {
				return fmt.Errorf("endpoint %d: %d more flows denied as %s", e.ID, more, reason)
			}
			counted += more
		}
	}
	if counted > 1 {
		return fmt.Errorf("%d flows are denied with it", counted)
	}
	return nil
}

// changes: only addresses, ports, TTL, MACs and checksums change, by those that translate, to
// what this node has; checksums stay as right or wrong as they were.
func (o *townJudge) changes(p *outcome) error {
	before, after := p.result.in, p.result.out
	if p.verdict == dropped {
		return nil
	}
	if p.lost() {
		return fmt.Errorf("it is given to an endpoint with the type %d", p.kind)
	}
	if len(before) != len(after) {
		return fmt.Errorf("%d bytes have become %d", len(before), len(after))
	}
	if to := o.to(p); p.counter == "delivered" && to != nil && !sameMAC(p.out.dstMAC(), to.MAC) {
		return fmt.Errorf("endpoint %d is given what is for the MAC %s", to.ID, p.out.dstMAC())
	}
	if !bytes.Equal(before[:12], after[:12]) {
		if err := o.macs(p); err != nil {
			return err
		}
	}
	if !readable(p.in) || !slices.Contains([]string{fromContainer, fromUplink, toUplink, toParent}, p.program) {
		if !bytes.Equal(before[12:], after[12:]) {
			return fmt.Errorf("it is changed:\n%s", packet.Diff(before, after))
		}
		return nil
	}
	if !readable(p.out) {
		return fmt.Errorf("it made sense before: %s", p.out.fault)
	}
	if want, got := p.in.skeleton(before), p.in.skeleton(after); !bytes.Equal(want[12:], got[12:]) {
		return fmt.Errorf("more than ends is changed:\n%s", packet.Diff(want, got))
	}
	if err := sameSums(p.in, p.out); err != nil {
		return err
	}
	if p.out.ttl != p.in.ttl && (p.verdict != redirect || p.in.ttl <= 1 || p.out.ttl != p.in.ttl-1) {
		return fmt.Errorf("verdict %d: the TTL %d has become %d", p.verdict, p.in.ttl, p.out.ttl)
	}
	ours := slices.Concat(o.hosts, o.outside)
	if p.out.src != p.in.src && !slices.Contains(ours, p.out.src) {
		return fmt.Errorf("it is from %s", p.out.src)
	}
	if p.out.dst != p.in.dst && (!slices.Contains(ours, p.in.dst) || o.owner(p.out.dst) == nil) {
		return fmt.Errorf("it is to %s", p.out.dst)
	}
	return nil
}

// macs judges a frame whose MACs are changed.
func (o *townJudge) macs(p *outcome) error {
	known := []net.HardwareAddr{o.uplink.MAC}
	if p.counter == "forwarded" && slices.Contains(o.hosts, p.out.src) { // the answer of a mapped port
		known = append(known, o.neighbours...)
	}
	for _, e := range o.residents {
		known = append(known, e.MAC, e.HostMAC)
	}
	for i, mac := range []net.HardwareAddr{p.out.dstMAC(), p.out.srcMAC()} {
		old := p.result.in[6*i : 6*i+6]
		if !sameMAC(mac, old) && !slices.ContainsFunc(known, func(k net.HardwareAddr) bool { return sameMAC(k, mac) }) {
			return fmt.Errorf("the MAC %s is nobody's", mac)
		}
	}
	switch p.program {
	case toContainer, toUplink, limitIngress, limitEgress, pacerIn, pacerOut:
		return fmt.Errorf("its MACs are changed")
	case fromUplink, toParent, masterIngress, masterEgress:
		if p.verdict != redirect {
			return fmt.Errorf("its MACs are changed, with verdict %d", p.verdict)
		}
	}
	return nil
}

// skeleton is a frame of this layout without what a translation may change.
func (s *seenPacket) skeleton(frame []byte) []byte {
	b := bytes.Clone(frame)
	blank := func(at, size int) { clear(b[at:min(len(b), at+size)]) }
	for q := s; q != nil; q = q.quote {
		if q.v6 {
			blank(q.network+8, 32)
		} else {
			blank(q.network+12, 8)
		}
		if q.hasPorts() && !q.later {
			at := q.transport
			if q.protocol == q.icmpNumber() {
				at += 4
			}
			blank(at, 4)
			if q.protocol == q.icmpNumber() { // the identifier alone
				copy(b[at+2:], frame[at+2:at+4])
			}
		}
	}
	for _, sum := range s.checksums() {
		blank(sum.at, 2)
	}
	if s.v6 {
		blank(s.network+7, 1)
	} else {
		blank(s.network+8, 1)
	}
	return b
}

// notes: skb->tc_index and skb->mark are what the next hook may be told.
func (o *townJudge) notes(p *outcome) error {
	if p.verdict == dropped {
		return nil
	}
	seen, mark := []uint32{p.run.seen}, []uint32{p.run.mark}
	switch p.program {
	case fromContainer:
		seen = []uint32{seenNot, seenDecided, seenLed, seenOwn}
		if p.verdict == redirect {
			seen = []uint32{seenNot, seenTranslated, seenOwn}
		}
		if p.run.seen != seenNot {
			mark = []uint32{0}
		}
		if e := o.residentAt(p.device); p.verdict == passOn && e != nil && e.Bridge == o.uplink.IfIndex && sameMAC(p.out.dstMAC(), e.HostMAC) {
			mark = append(mark, mark[0]|ownMark)
		}
		mark = append(mark, o.putBack(p)...)
	case fromUplink:
		if p.run.mark&ownMark == 0 && (p.vlan == 0 || p.vlan&0xfff == 0) {
			seen = []uint32{seenNot}
		}
		seen = append(seen, seenNot, seenDecided)
		if p.run.seen != seenNot && p.vlan == 0 {
			mark[0] &^= ownMark
		}
		mark = append(mark, o.putBack(p)...)
	case toContainer:
		seen = append(seen, seenNot)
	case toUplink:
		seen = append(seen, seenTranslated)
	case toParent, childEgress:
		seen = append(seen, seenTranslated)
		mark = append(mark, putBack, sentMark)
		if p.run.mark&^3 == putBack && p.run.seen == seenTranslated {
			mark = append(mark, 0)
		}
	case fromParent, childIngress:
		seen = append(seen, seenNot, seenOwn)
		if p.run.mark&^3 == putBack {
			mark = []uint32{0}
		}
	case pacerIn, pacerOut:
		seen = append(seen, p.run.seen&^pacedHeld, p.run.seen|pacedHeld)
		mark = append(mark, 0)
	}
	if !slices.Contains(seen, p.want.seen) {
		return fmt.Errorf("tc_index %#x has become %#x", p.run.seen, p.want.seen)
	}
	if !slices.Contains(mark, p.want.mark) {
		return fmt.Errorf("mark %#x has become %#x", p.run.mark, p.want.mark)
	}
	return nil
}

// putBack is the mark of what goes to a child by its parent.
func (o *townJudge) putBack(p *outcome) []uint32 {
	if to := o.owner(p.out.dst); p.verdict == redirect && to != nil && to.Child != nil {
		return []uint32{putBack}
	}
	return nil
}

func (o *townJudge) residentAt(device int) *Endpoint {
	return resident(o.residents, func(e Endpoint) bool { return e.Child == nil && e.IfIndex == device })
}
