// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// FuzzTown is FuzzPackets for all programs and kinds of endpoints: bridges, mapped ports, macvlan
// children, limits. Its judge says less of a packet: not what becomes of it, but what must not
// (town_rules_test.go).
func FuzzTown(f *testing.F) {
	var tellers []*townTeller
	share, shares := nstest.Share(f)
	switch {
	case shares > 1:
		shares *= 32 // there are many, and most of them take what others take, too
	case flag.Lookup("test.fuzz").Value.String() == "":
		shares = 4
	}
	for number, n := range towns(f) {
		tellers = append(tellers, newTownTeller(n))
		for i, seed := range tellers[number].seeds() {
			if i%shares == share {
				f.Add(append([]byte{byte(number)}, seed...))
			}
		}
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		story := script(input)
		s := tellers[int(story.next())%len(tellers)]
		if err := s.tellStory(t, story, s); err != nil {
			t.Error(err)
			for _, line := range s.log {
				t.Log(line)
			}
		}
	})
}

// TestTownStories is TestStories for FuzzTown, with a story for each eight of those, which cost less.
func TestTownStories(t *testing.T) {
	nstest.Root(t)
	count, end := storiesToTell(t)
	eachShard(t, count/8, func(t *testing.T, shard uint64, count int) {
		var tellers []*townTeller
		var seeds [][][]byte
		for _, n := range towns(t) {
			s := newTownTeller(n)
			tellers, seeds = append(tellers, s), append(seeds, s.seeds())
		}
		chance := rand.New(rand.NewPCG(20261130, shard))
		tellStories(t, count, end, func() error {
			number := chance.IntN(len(tellers))
			s := tellers[number]
			input := stray(chance, seeds[number], len(s.policies)+1)
			if err := s.tellStory(t, input, s); err != nil {
				return fmt.Errorf("story %q of the town %q: %w\n%s", input, s.name, err, strings.Join(s.log, "\n"))
			}
			return nil
		})
	})
}

// townTeller tells stories of a town. Its steps are those of teller.
type townTeller struct {
	*town
	*townJudge
	log []string
	// passed are the packets that were let through, in order.
	passed  []*outcome
	last    *outcome
	changed bool
}

func newTownTeller(n *town) *townTeller {
	n.grace = noGrace
	return &townTeller{town: n, townJudge: &townJudge{town: n}}
}

func (s *townTeller) say(format string, args ...any) {
	s.log = append(s.log, fmt.Sprintf(format, args...))
}

// seeds tell each packet with its answer and what the next hook makes of it, without a policy
// and with each.
func (s *townTeller) seeds() (all [][]byte) {
	for version, bases := range s.bases {
		w := writer{bases: bases, version: byte(version)}
		for i := range bases {
			story := slices.Concat(
				w.packet(i), []byte{w.op(stepRelay, 0), 0, w.op(stepRelay, 0), 1, w.op(stepAnswer, 0), 0, w.op(stepRelay, 0), 0}, w.packet(i), []byte{w.op(stepError, 0), byte(i)},
			)
			all = append(all, story, slices.Concat([]byte{w.op(stepEpoch, 0), policyChanges + byte(1+i%len(s.policies))}, story))
		}
	}
	return all
}

func (s *townTeller) begin(t *testing.T) {
	n := s.town
	if s.changed {
		for _, e := range n.residents {
			must(t, n.AttachEndpoint(e))
		}
		must(t, n.ReconcileUplinks([]Uplink{n.node.uplink}))
	}
	if s.policy != 0 {
		n.enforceWritten(t, 0)
	}
	n.forget(t)
	for _, e := range n.residents {
		must(t, n.maps.Held.Put(uint32(e.ID), uint32(0)))
	}
	s.townJudge = newTownJudge(n)
	s.remember(t)
	s.changed, s.log, s.passed, s.last = false, nil, nil, nil
}

func (s *townTeller) step(t *testing.T, story *script) error {
	op := story.next()
	var r run
	switch kind := int(op % stepKinds); {
	case kind < stepAnswer:
		all := s.bases[op>>4&1]
		b := all[int(story.word())%len(all)]
		s.say("--- %s", b.name)
		r = b.run
	case kind == stepAnswer || kind == stepError || kind == stepRelay:
		how := story.next()
		if len(s.passed) == 0 {
			return nil
		}
		p := s.passed[len(s.passed)-1-int(how>>4)%len(s.passed)]
		ok := false
		switch kind {
		case stepAnswer:
			s.say("--- answer")
			r, ok = s.answer(p, how)
		case stepError:
			s.say("--- error")
			r, ok = s.complain(p, how)
		default:
			s.say("--- next hook")
			r, ok = s.next(p, how)
		}
		if !ok {
			return nil
		}
	case kind == stepAgain:
		if s.last == nil {
			return nil
		}
		s.say("--- again")
		r = s.last.run
	default:
		return s.event(t, kind, story)
	}
	r, ok := r.mutated(s.palette, op, story)
	if !ok {
		return nil
	}
	_, err := s.show(t, r)
	return err
}

// show shows a packet to its program, and judges what becomes of it.
func (s *townTeller) show(t *testing.T, r run) (*outcome, error) {
	got, shown, err := s.present(t, r)
	if !shown || err != nil {
		return nil, err
	}
	r = got.run
	s.say("%s on %d from %d, tc_index %#x, mark %#x, tag %d: %s", r.program, r.device, r.ingress, r.seen, r.mark, r.vlan, packet.Summary(r.in))
	s.say("  %s, verdict %d, tc_index %#x, mark %#x: %s", strings.Join(names(got.counts), ", "), got.verdict, got.want.seen, got.want.mark, packet.Summary(got.out))
	s.remember(t)
	p := &outcome{result: got, in: see(got.in, got.gsoSize != 0), out: see(got.out, got.gsoSize != 0)}
	if err := s.judge(p); err != nil {
		return p, fmt.Errorf("%s: %w", r.program, err)
	}
	s.last = p
	if p.verdict != dropped && p.in.kind == ipKind && p.in.fault == "" {
		s.passed = append(s.passed, p)
	}
	return p, nil
}

// answer is what the receiver of a packet says to it.
func (s *townTeller) answer(p *outcome, how byte) (run, bool) {
	if p.out.fault != "" || p.out.later {
		return run{}, false
	}
	layers := p.answerLayers(how)
	return s.utter(p.out.dst, p.out.src, layers[1:]...), true
}

// complain is what the receiver of a packet, or a router, says of it.
func (s *townTeller) complain(p *outcome, how byte) (run, bool) {
	if p.out.fault != "" {
		return run{}, false
	}
	from := p.out.dst
	if how&8 != 0 {
		from = familyOf(p.out).router
	}
	layers := p.errorLayers(how)
	return s.utter(from, p.out.src, layers[1:]...), true
}

// next is what the next hook on its way sees of a packet.
func (s *townTeller) next(p *outcome, how byte) (run, bool) {
	r := run{program: p.program, device: p.device, ingress: p.ingress, in: slices.Clone(p.result.out), seen: p.want.seen, mark: p.want.mark}
	arrive := func(e *Endpoint) (run, bool) {
		if e.Child == nil {
			r.program, r.device = toContainer, e.IfIndex
		} else {
			r.program, r.device = toParent, e.Child.Parent
		}
		copy(r.in, slices.Concat(e.MAC, e.HostMAC))
		return r, true
	}
	switch {
	case p.program == masterEgress && p.verdict == redirect:
		r.program, r.device = childEgress, s.parentInside()
	case p.program == masterIngress && p.verdict == redirect:
		r.program, r.device = childIngress, s.parentInside()
	case p.program == childEgress:
		r.program, r.device = masterEgress, s.town.node.uplink.IfIndex
	case p.verdict == redirect && p.want.mark == putBack:
		r.program, r.device = fromParent, s.town.node.uplink.IfIndex
	case p.program == fromContainer && p.counter == "forwarded":
		r.ingress = p.device
		copy(r.in, slices.Concat(routerMAC(), s.town.node.uplink.MAC))
		r.program, r.device = toUplink, s.town.node.uplink.IfIndex
		if how&1 != 0 && s.preludes[toParent] != nil {
			r.program = toParent
		}
	case p.verdict == passOn && p.program == fromContainer && p.want.mark&ownMark != 0:
		copy(r.in, s.town.node.uplink.MAC) // which is its bridge
		r.program, r.device = fromUplink, s.town.node.uplink.IfIndex
	case p.verdict == passOn && (p.program == fromContainer || p.program == fromUplink) && slices.Contains(s.hosts, p.out.dst):
		return run{}, false // it has arrived
	case p.verdict == passOn && (p.program == fromContainer || p.program == fromUplink):
		r.ingress = p.device
		if to := s.owner(p.out.dst); to != nil && (to.Child == nil || !to.Child.InContainer) {
			return arrive(to)
		}
		copy(r.in, slices.Concat(routerMAC(), s.town.node.uplink.MAC))
		r.program, r.device = toUplink, s.town.node.uplink.IfIndex
	case p.verdict == passOn && p.program == fromParent:
		r.program = fromUplink
	default:
		return run{}, false
	}
	return r, true
}

func (s *townTeller) parentInside() int {
	if e := resident(s.residents, func(e Endpoint) bool { return e.Child != nil && e.Child.InContainer }); e != nil {
		return e.Child.Parent
	}
	return s.town.node.uplink.IfIndex
}

// event is what happens between packets.
func (s *townTeller) event(t *testing.T, kind int, story *script) error {
	n, how := s.town, story.next()
	e := choose(n.residents, how>>2)
	switch kind {
	case stepElapse:
		seconds := secondsOf(how)
		s.say("--- %d seconds later", seconds)
		n.elapse(t, seconds)
	case stepUplink:
		s.changed = true
		s.uplink = n.node.uplink
		switch how % 3 {
		case 1:
			s.uplink.IPv4, s.uplink.IPv6 = v4().renumbered(), v6().renumbered()
		case 2:
			s.uplink.IPv4, s.uplink.IPv6 = netip.Addr{}, netip.Addr{}
		}
		s.outside = append(s.outside, s.uplink.IPv4, s.uplink.IPv6)
		s.say("--- uplink has %v and %v", s.uplink.IPv4, s.uplink.IPv6)
		must(t, n.ReconcileUplinks([]Uplink{s.uplink}))
	case stepEndpoint:
		s.changed = true
		s.attached = slices.DeleteFunc(s.attached, func(other Endpoint) bool { return other.ID == e.ID })
		switch how % 4 {
		case 0, 1:
			s.say("--- endpoint %d leaves", e.ID)
			must(t, n.DetachEndpoint(e))
			if how%4 == 1 {
				must(t, n.Purge([]uint16{e.ID}))
			}
		default:
			s.say("--- endpoint %d comes", e.ID)
			s.attached = append(s.attached, e)
			must(t, n.AttachEndpoint(e))
		}
	case stepEpoch:
		if how >= policyChanges {
			s.policy = int(how-policyChanges) % (len(n.policies) + 1)
			n.enforceWritten(t, uint32(s.policy))
			s.say("--- policy %d", s.policy)
			break
		}
		s.say("--- %s", n.unsettle(t, int(how%unsettlings), e))
	}
	s.remember(t)
	return nil
}

// end shows the answer to each packet that left hidden, and to each that a mapped port led to its
// endpoint: while the translation lives it comes back to who sent the packet, from whom that was for.
func (s *townTeller) end(t *testing.T) error {
	for _, p := range slices.Clone(s.passed) {
		if s.policy != 0 || p.out.icmp == errorICMP || p.in.first || p.in.later {
			continue
		}
		answer := p.answerLayers(0)
		r := s.fromWorld(answer...)
		switch {
		case s.isLed(p):
			r = s.utter(p.out.dst, p.out.src, answer[1:]...)
		case p.out.dst != p.in.dst || !s.isHidden(p):
			continue
		}
		s.say("--- answer, at the end")
		got, err := s.show(t, r)
		if err != nil {
			return err
		}
		back := turned(p.in.key(0, p.in.ports()), 0)
		if got.verdict == dropped || got.out.key(0, got.out.ports()) != back {
			return fmt.Errorf("the answer to %s has not come back to it", packet.Summary(p.result.in))
		}
	}
	return nil
}

// isHidden tells whether a packet has another's source by a translation that lives.
func (s *townTeller) isHidden(p *outcome) bool {
	key := turned(p.out.key(0, p.out.ports()), 0)
	tr, held := s.translations[key]
	alive, _ := s.lives(key, tr)
	return held && alive && s.owner(p.in.src) != nil && p.out.src != p.in.src && maps.Addr(tr.Address) == p.in.src && tr.Flags&translationPort == 0
}

// isLed tells whether a packet for a mapped port has been led to an endpoint, by a translation that lives,
// and whether who has sent it is still there.
func (s *townTeller) isLed(p *outcome) bool {
	client, server := s.owner(p.in.src), s.owner(p.out.dst)
	if p.out.dst == p.in.dst || server == nil || client == nil && addressee(s.residents, p.in.src) != nil {
		return false
	}
	answer := turned(p.out.key(0, p.out.ports()), server.IfIndex)
	end := s.translations[answer]
	if end.Flags&(translationPort|translationHairpin) == 0 {
		return false
	}
	if end.Flags&translationHairpin != 0 && maps.Addr(end.Address) == p.in.src && maps.Port(end.Port) == p.in.sport {
		alive, _ := s.lives(answer, end)
		return alive && maps.Port(end.Mapped) == p.in.dport
	}
	sent := p.in.key(0, p.in.ports())
	if client != nil && end.Flags&(translationLocal|translationHairpin) != 0 {
		sent.Ifindex = uint32(client.IfIndex)
	}
	tr, held := s.translations[sent]
	alive, _ := s.lives(sent, tr)
	return held && alive && end.Address == sent.Destination && end.Port == sent.DestinationPort
}
