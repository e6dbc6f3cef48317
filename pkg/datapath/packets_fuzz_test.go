// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// FuzzPackets reads its input as a story: packets of every kind, mutated, that meet the
// programs one after the other, and what happens between them. An oracle judges what
// becomes of each; the seeds tell every kind of packet once.
func FuzzPackets(f *testing.F) {
	n := newNode(f, Config{Masquerade: true, FlowsMax: 1024, TranslationsMax: 256})
	teller := newTeller(f, n)
	share, shares := nstest.Share(f)
	if shares > 1 {
		shares *= 2 // the other half is tried where nothing is emulated: they are of the programs, more than of a kernel
	}
	for i, seed := range teller.seeds() {
		if i%shares == share {
			f.Add(seed)
		}
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		if err := teller.n.tellStory(t, input, teller); err != nil {
			t.Error(err)
			for _, line := range teller.log {
				t.Log(line)
			}
		}
	})
}

// TestStories tells stories made from the seeds by chance: always the same, so that what
// fails can be told again. TENDRIL_TEST_STORIES is their number, if not 4,000 (40 where
// all is emulated); ten minutes of them are part of .ci/run. FuzzPackets looks for others.
func TestStories(t *testing.T) {
	nstest.Root(t)
	count, end := storiesToTell(t)
	eachShard(t, count, func(t *testing.T, shard uint64, count int) {
		n := newNodeBeside(t, Config{Masquerade: true, FlowsMax: 1024, TranslationsMax: 256})
		teller := newTeller(t, n)
		seeds := teller.seeds()
		chance := rand.New(rand.NewPCG(20261121, shard))
		tellStories(t, count, end, func() error {
			input := stray(chance, seeds, len(teller.firewalls))
			if err := teller.n.tellStory(t, input, teller); err != nil {
				return fmt.Errorf("story %q: %w\n%s", input, err, strings.Join(teller.log, "\n"))
			}
			return nil
		})
	})
}

// eachShard divides stories among some nodes that they are told of at a time. Where all is emulated that is one, whose
// programs others have, too: to load them takes longer than to tell all stories.
func eachShard(t *testing.T, count int, tell func(t *testing.T, shard uint64, count int)) {
	t.Helper()
	shards := 2
	if nstest.Emulated() {
		shards = 1
	}
	for shard := range shards {
		t.Run(strconv.Itoa(shard), func(t *testing.T) {
			if shards > 1 {
				t.Parallel()
			}
			tell(t, uint64(shard), count/shards)
		})
	}
}

// storiesToTell is how many, and until when.
func storiesToTell(t *testing.T) (count int, end time.Time) {
	t.Helper()
	count, end = 4000, time.Now().Add(time.Hour)
	if nstest.Emulated() {
		count = 40
	}
	if text := os.Getenv("TENDRIL_TEST_STORIES"); text != "" {
		var err error
		count, err = strconv.Atoi(text)
		must(t, err)
	}
	if deadline, ok := t.Deadline(); ok {
		end = deadline.Add(-time.Minute)
	}
	return count, end
}

func tellStories(t *testing.T, count int, end time.Time, tell func() error) {
	t.Helper()
	for told := range count {
		if time.Now().After(end) {
			t.Logf("%d of %d stories told in the time", told, count)
			if told == 0 {
				t.Error("there was no time for a story")
			}
			return
		}
		if err := tell(); err != nil {
			t.Fatal(err)
		}
	}
}

// stray makes a story: one or two seeds, one after the other, with bytes changed, put in
// and taken out. Half of them have a policy from their beginning.
func stray(chance *rand.Rand, seeds [][]byte, firewalls int) []byte {
	input := slices.Clone(seeds[chance.IntN(len(seeds))])
	if chance.IntN(2) == 0 {
		input = append(input, seeds[chance.IntN(len(seeds))]...)
	}
	for range 1 + chance.IntN(8) {
		at := chance.IntN(len(input) + 1)
		b := byte(chance.Uint32())
		switch {
		case at == len(input) || chance.IntN(4) == 0:
			input = slices.Insert(input, at, b)
		case chance.IntN(4) == 0 && len(input) > 1:
			input = slices.Delete(input, at, at+1)
		case chance.IntN(2) == 0:
			input[at] ^= 1 << (b % 8)
		default:
			input[at] = b
		}
	}
	if chance.IntN(2) == 0 {
		input = slices.Concat([]byte{stepEpoch, policyChanges + byte(1+chance.IntN(firewalls-1))}, input)
	}
	return input
}

// Bounds of a story.
const (
	stepsMax     = 9
	mutationsMax = 4
	frameMax     = 3400 // BPF_PROG_TEST_RUN takes less than a page
)

// Kinds of steps, by the low bits of a step's first byte. Bit 4 is the family, bits 5
// to 7 are the number of mutations.
const (
	stepBase   = iota // to stepAnswer: the second byte names a base
	stepAnswer = iota + 7
	stepError
	stepRelay
	stepAgain
	stepElapse
	stepUplink
	stepEndpoint
	stepEpoch
	stepKinds = 16
)

// policyChanges is the least second byte of stepEpoch that changes the policy, to the one
// whose number is the rest by that of all.
const policyChanges = 0x80

// teller tells stories on one node.
type teller struct {
	*oracle
	all       [2][]base
	palette   *palette
	firewalls []firewall
	log       []string
	// departed are the packets that left translated, in order.
	departed []*outcome
	// last and passed are the last packet, and the last that the stack got.
	last, passed *outcome
	// changed says that the node is not as it was made.
	changed bool
}

func newTeller(tb testing.TB, n *node) *teller {
	excluded := []netip.Prefix{}
	for _, f := range []family{v4(), v6()} {
		excluded = append(excluded, netip.PrefixFrom(f.neighbour, f.neighbour.BitLen()-3).Masked())
	}
	must(tb, n.ReconcileExcludes(excluded))
	n.grace = noGrace
	return &teller{
		oracle: &oracle{n: n, excluded: excluded},
		all:    [2][]base{n.bases(v4()), n.bases(v6())},

		palette:   n.palette(),
		firewalls: newFirewalls(tb, n),
	}
}

// script reads a story's bytes; there are zeros after the end.
type script []byte

func (s *script) next() (b byte) {
	if len(*s) > 0 {
		b = (*s)[0]
		*s = (*s)[1:]
	}
	return b
}

func (s *script) word() uint16 { return uint16(s.next())<<8 | uint16(s.next()) }

// begin makes the node as it was made.
func (s *teller) begin(t *testing.T) {
	n := s.n
	if s.changed {
		for _, e := range []Endpoint{n.a, n.b, n.c} {
			must(t, n.AttachEndpoint(e))
		}
		must(t, n.ReconcileUplinks([]Uplink{n.uplink}))
	}
	if s.firewall.name != "" {
		s.changeFirewall(t, 0)
	}
	n.forget(t)
	s.begun = make(map[connection]memory)
	s.attached = map[int]Endpoint{n.a.IfIndex: n.a, n.b.IfIndex: n.b, n.c.IfIndex: n.c}
	s.gone = make(map[int]departure)
	s.uplink, s.changed, s.clock = n.uplink, false, 0
	s.byStack = make(map[maps.FlowKey]bool)
	s.asked, s.fragments = make(map[maps.FlowKey]uint32), make(map[maps.FragmentKey][]firstFragment)
	s.before, s.after = nil, make(map[maps.FlowKey]maps.Translation)
	s.log, s.departed, s.last, s.passed = nil, nil, nil, nil
}

func (s *teller) say(format string, args ...any) { s.log = append(s.log, fmt.Sprintf(format, args...)) }

// step runs one step.
func (s *teller) step(t *testing.T, story *script) error {
	op := story.next()
	f := []family{v4(), v6()}[op>>4&1]
	var r run
	switch kind := int(op % stepKinds); {
	case kind < stepAnswer:
		all := s.all[op>>4&1]
		b := all[int(story.word())%len(all)]
		s.say("--- %s: %s", f.name, b.name)
		r = b.run
	case kind == stepAnswer:
		how := story.next()
		if len(s.departed) == 0 {
			return nil
		}
		p := s.departed[int(how>>4)%len(s.departed)]
		s.say("--- answer")
		r = s.n.fromWorld(p.answerLayers(how)...)
	case kind == stepError:
		how := story.next()
		if len(s.departed) == 0 {
			return nil
		}
		s.say("--- error")
		r = s.n.fromWorld(s.departed[int(how>>4)%len(s.departed)].errorLayers(how)...)
	case kind == stepRelay:
		if s.passed == nil {
			return nil
		}
		s.say("--- the stack sends on")
		r = s.relay(s.passed, story.next())
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
func (s *teller) show(t *testing.T, r run) (*outcome, error) {
	got, shown, err := s.n.present(t, r)
	if !shown || err != nil {
		return nil, err
	}
	s.before, s.after = s.after, s.n.entries(t)
	s.say("%s on %d, tc_index %#x: %s", r.program, r.device, r.seen, packet.Summary(r.in))
	p, err := s.judge(got)
	s.say("  %s, verdict %d, tc_index %#x: %s", strings.Join(names(got.counts), ", "), got.verdict, got.want.seen, packet.Summary(got.out))
	if err == nil {
		err = s.n.consistent(s.after)
	}
	if err != nil {
		return p, fmt.Errorf("%s: %w", r.program, err)
	}
	s.last = p
	switch {
	case got.verdict == passOn && p.in.kind == ipKind && (r.program == fromContainer || r.program == fromUplink):
		s.passed = p
	case p.translated != nil && r.program != fromUplink && !p.in.first && !p.in.later:
		s.departed = append(s.departed, p)
	}
	return p, nil
}

// end shows the answer to each packet that left translated.
func (s *teller) end(t *testing.T) error {
	for _, p := range s.departed {
		key := turned(p.out.key(0, p.out.ports()), 0)
		now, held := s.after[key]
		alive, _ := s.n.lives(key, now)
		to := s.owner(p.translated.inside.Addr())
		answered := held && alive && to != nil && newTranslation(key, now).inside == p.translated.inside && int(now.Ifindex) == to.IfIndex
		s.say("--- answer, at the end")
		got, err := s.show(t, s.n.fromWorld(p.answerLayers(0)...))
		if err != nil {
			return err
		}
		if !answered {
			continue // what became of it instead, the oracle has judged
		}
		if got.verdict == dropped && s.refused(s.masqueraded(got.in, p.translated)) == got.counter {
			continue
		}
		if got.translated == nil || got.out.dst != p.in.src || got.out.dport != p.in.sport && got.out.protocol != got.out.icmpNumber() {
			return fmt.Errorf("the answer to %s has not come back to it", packet.Summary(p.result.in))
		}
	}
	return nil
}

func names(counts map[string]maps.Count) (all []string) {
	for name := range counts {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}
