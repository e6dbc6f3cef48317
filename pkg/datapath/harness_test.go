// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"errors"
	"fmt"
	gomaps "maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// Verdicts of TC programs (linux/pkt_cls.h).
const (
	passOn   = -1 // TC_ACT_UNSPEC: whoever is next, then the stack
	dropped  = 2  // TC_ACT_SHOT
	redirect = 7  // TC_ACT_REDIRECT
)

// Values of skb->tc_index (enum seen of bpf/lib/apply.h).
const (
	seenNot        = 0
	seenDecided    = 0x7e40
	seenTranslated = 0x7e41
	seenLed        = 0x7e42
	seenOwn        = 0x7e43
	seenAsBefore   = 1 << 31 // in want: whatever it was
)

// Flags of translations (enum translation_flag of bpf/lib/types.h).
const (
	translationStack  = 1 << 0
	translationFinOut = 1 << 1
	translationFinIn  = 1 << 2

	translationPort     = 1 << 3
	translationAnswered = 1 << 4
	translationHairpin  = 1 << 5
	translationLocal    = 1 << 6
	translationRemapped = 1 << 7
)

// skBuff is struct __sk_buff, the context of a program (linux/bpf.h). A test run
// takes only some fields from it; what the others start as, a prelude sets.
type skBuff struct {
	Len, PacketType, Mark, QueueMapping, Protocol uint32
	VLANPresent, VLANTCI, VLANProto, Priority     uint32
	IngressIfindex, Ifindex, TCIndex              uint32
	CB                                            [5]uint32
	Hash, TCClassID, Data, DataEnd, NAPI, Family  uint32
	RemoteIP4, LocalIP4                           uint32
	RemoteIP6, LocalIP6                           [4]uint32
	RemotePort, LocalPort, DataMeta               uint32
	FlowKeys, Timestamp                           uint64
	WireLen, GSOSegs                              uint32
	Socket                                        uint64
	GSOSize, TimestampType                        uint32
	HardwareTimestamp                             uint64
}

// run is one packet that meets a program.
type run struct {
	program string
	// device the program is attached to: skb->dev.
	device int
	in     []byte
	// seen is skb->tc_index before, mark is skb->mark.
	seen, mark uint32
	// vlan is a tag beside the frame, as devices leave it; 0 for none. Its upper half is the
	// tag's EtherType in network order, 0 for 802.1Q.
	vlan uint32
	// ingress is the device that the stack forwards from; 0 for the host's own.
	ingress int
	// gsoSize and gsoSegs make it a GSO packet.
	gsoSize, gsoSegs uint32
}

// want is what a program makes of a packet.
type want struct {
	verdict int32
	// out is the frame after; nil when it is unchanged.
	out []byte
	// counters are all that changed, with the journey before where it is not the program's
	// own.
	counters []string
	// seen is skb->tc_index after, mark is skb->mark.
	seen, mark uint32
	// departure is skb->tstamp after, in ns; 0 for none.
	departure uint64
}

// step is a packet and what it shall become.
type step struct {
	name string
	run
	want
}

// dot1q is ETH_P_8021Q in network order.
const dot1q = 0x0081

// beside is what a packet has beside its frame that programs leave alone.
type beside struct {
	// vlan is as in run, with its EtherType.
	vlan uint32
	// priority is skb->priority, gsoSize skb->gso_size.
	priority, gsoSize uint32
}

// testedPriority is what all packets come with: TC_PRIO_CONTROL, which fq holds back nothing of.
const testedPriority = 7

// beside is what must be so after the program.
func (r run) beside() beside {
	b := beside{r.vlan, testedPriority, r.gsoSize}
	if b.vlan != 0 && b.vlan>>16 == 0 {
		b.vlan |= dot1q << 16
	}
	if r.program == pacerOut {
		b.priority = 0
	}
	return b
}

// require skips a test that the kernel cannot run.
func (r run) require(t *testing.T) {
	if r.ingress != 0 {
		t.Helper()
		nstest.NeedKernel(t, "ingress_ifindex in BPF_PROG_TEST_RUN", 5, 16)
	}
}

// result is what a program made of a packet. want.counters is not set.
type result struct {
	run
	want
	// counts are those of the program's journey that changed.
	counts map[string]maps.Count
	// kind is skb->pkt_type after.
	kind uint32
	// to is where it was redirected to.
	to redirected
}

// lost says whether the stack of the endpoint that a packet goes straight to drops it as another
// station's.
func (got result) lost() bool {
	_, delivered := got.counts[got.program+" delivered"]
	return delivered && (got.program == fromContainer || got.program == fromUplink) && got.want.mark != putBack && got.kind != unix.PACKET_HOST
}

// run shows a packet to its program.
func (n *node) run(t *testing.T, r run) (got result) {
	r.require(t)
	var err error
	n.ns.Do(t, func() { got, err = n.execute(r) })
	if err != nil {
		t.Helper()
		must(t, err)
	}
	return got
}

// execute runs the program once, in the namespace of the calling thread.
func (n *node) execute(r run) (result, error) {
	context := skBuff{
		Ifindex: uint32(r.device), IngressIfindex: uint32(r.ingress), Mark: r.mark,
		GSOSize: r.gsoSize, GSOSegs: r.gsoSegs, Priority: testedPriority,
	}
	context.CB[cbSeen], context.CB[cbVLAN] = r.seen, r.vlan
	after := context
	options := ebpf.RunOptions{Data: r.in, DataOut: make([]byte, len(r.in)+256), Context: context, ContextOut: &after}
	p := n.preludes[r.program]
	verdict, err := p.program.Run(&options)
	if err != nil {
		return result{}, err
	}
	is := beside{after.CB[cbVLAN], after.CB[cbPriority], after.CB[cbGSOSize]}
	if want := r.beside(); int32(verdict) != dropped && is != want {
		return result{}, fmt.Errorf("%s: beside the frame is %+v, want %+v", r.program, is, want)
	}
	counts, to, err := p.noted()
	if err != nil {
		return result{}, err
	}
	n.count(counts)
	got := result{r, want{verdict: int32(verdict), out: options.DataOut, seen: after.CB[cbSeen], mark: after.Mark, departure: after.Timestamp}, counts, after.CB[cbType], to}
	return got, n.strays(got)
}

// count adds what a run has counted to the tally.
func (n *node) count(counts map[string]maps.Count) {
	if n.tally == nil {
		return
	}
	for name, count := range counts {
		sum := n.tally[name]
		sum.Packets, sum.Bytes = sum.Packets+count.Packets, sum.Bytes+count.Bytes
		n.tally[name] = sum
	}
}

// wantTally compares all counters with what the runs have seen: nothing is counted for a journey that is none of
// the program's.
func (n *node) wantTally(t testing.TB) {
	t.Helper()
	if n.tally == nil {
		return
	}
	counts := n.counts(t)
	gomaps.DeleteFunc(counts, func(_ string, c maps.Count) bool { return c.Packets == 0 && c.Bytes == 0 })
	if diff := gocmp.Diff(n.tally, counts, cmpopts.IgnoreFields(maps.Count{}, "_")); diff != "" {
		t.Errorf("all counters, besides those of single packets (-want +got):\n%s", diff)
	}
}

// compare compares verdict, frame, mark and all counters. Where a packet was right
// before, it must be right after.
func (got result) compare(t *testing.T, w want) {
	t.Helper()
	if got.verdict != w.verdict {
		t.Errorf("verdict: got %d, want %d", got.verdict, w.verdict)
	}
	if w.out == nil {
		w.out = got.in
	}
	if w.verdict != dropped && got.verdict != dropped {
		if diff := packet.Diff(w.out, got.out); diff != "" {
			t.Errorf("packet out:\n%s", diff)
		}
		if w.seen == seenAsBefore {
			w.seen = got.run.seen
		}
		if got.want.seen != w.seen {
			t.Errorf("tc_index: got %#x, want %#x", got.want.seen, w.seen)
		}
		if got.want.mark != w.mark {
			t.Errorf("mark: got %#x, want %#x", got.want.mark, w.mark)
		}
		if got.want.departure != w.departure {
			t.Errorf("departure: got %d, want %d", got.want.departure, w.departure)
		}
		if err := packet.Verify(got.out); err != nil && packet.Verify(got.in) == nil {
			t.Errorf("packet out is wrong: %v\n%s", err, packet.Summary(got.out))
		}
	}
	if got.lost() {
		t.Errorf("it is given to an endpoint with the type %d", got.kind)
	}
	counts := make(map[string]maps.Count)
	for _, name := range w.counters {
		if !strings.Contains(name, " ") {
			name = got.program + " " + name
		}
		counts[name] = maps.Count{Packets: uint64(max(1, got.gsoSegs)), Bytes: uint64(len(got.in))}
	}
	if diff := gocmp.Diff(counts, got.counts, cmpopts.IgnoreFields(maps.Count{}, "_")); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
	if t.Failed() {
		t.Logf("packet in: %s", packet.Summary(got.in))
	}
}

// check shows a packet to its program and compares all that comes of it.
func (n *node) check(t *testing.T, r run, w want) {
	t.Helper()
	n.run(t, r).compare(t, w)
}

// story runs packets one after the other.
func (n *node) story(t *testing.T, steps ...step) {
	t.Helper()
	for _, s := range steps {
		s.require(t) // here, since what follows builds on it
		if !t.Run(s.name, func(t *testing.T) { n.check(t, s.run, s.want) }) {
			return // what follows builds on it
		}
	}
}

// table runs each packet on a node without memory.
func (n *node) table(t *testing.T, steps ...step) {
	t.Helper()
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			n.forget(t)
			n.check(t, s.run, s.want)
		})
	}
}

// counts reads all counters, by journey and name.
func (n *node) counts(t testing.TB) map[string]maps.Count {
	t.Helper()
	counters, err := n.Counters()
	must(t, err)
	counts := make(map[string]maps.Count)
	for _, c := range counters {
		counts[c.Journey+" "+c.Reason] = maps.Count{Packets: c.Packets, Bytes: c.Bytes}
	}
	return counts
}

// forget empties the flow cache, the translations and the fragments.
func (n *node) forget(t *testing.T) {
	t.Helper()
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	clearMap[maps.FlowKey, maps.Translation](t, n.maps.Translations)
	clearMap[maps.FragmentKey, maps.Fragment](t, n.maps.Fragments)
	for _, e := range []Endpoint{n.a, n.b, n.c} {
		must(t, n.maps.Held.Put(uint32(e.ID), uint32(0)))
	}
}

// clearMap removes one entry after the other: there are few, and buffers for many are most
// of what it costs to read a map where all is emulated.
func clearMap[K, V any](t *testing.T, m *ebpf.Map) {
	t.Helper()
	for {
		var key K
		err := m.NextKey(nil, &key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return
		}
		must(t, err)
		must(t, ignoreMissing(m.Delete(key)))
	}
}

// pass lets seconds go by, for everything that the datapath remembers.
func (n *node) elapse(t *testing.T, seconds uint32) {
	t.Helper()
	ticks := uint32(uint64(seconds) * 1e9 >> tickShift)
	change(t, n.maps.Flows, func(_ maps.FlowKey, f *maps.Flow) { f.Decided -= ticks })
	change(t, n.maps.Translations, func(_ maps.FlowKey, v *maps.Translation) { v.Seen -= ticks })
	change(t, n.maps.Fragments, func(_ maps.FragmentKey, v *maps.Fragment) { v.Seen -= ticks })
}

// change writes every entry of a map anew.
func change[K comparable, V any](t *testing.T, m *ebpf.Map, f func(K, *V)) {
	t.Helper()
	all := make(map[K]V)
	must(t, each(m, func(key K, value V) bool { all[key] = value; return true }))
	for key, value := range all {
		f(key, &value)
		must(t, m.Put(key, value))
	}
}

// flows compares the whole flow cache.
func (n *node) wantFlows(t *testing.T, flows ...Flow) {
	t.Helper()
	got, err := n.Flows(1000)
	must(t, err)
	if diff := gocmp.Diff(flows, got, cmpopts.SortSlices(func(a, b Flow) bool { return fmt.Sprint(a) < fmt.Sprint(b) }),
		cmpopts.IgnoreFields(Flow{}, "Idle"), cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
}

// translation is one source port that is taken, as both of its entries say.
type translation struct {
	protocol uint8
	// inside is the endpoint's, outside the uplink's, world the other end.
	inside, outside, world netip.AddrPort
	state                  uint8
	flags                  uint8
}

// translations reads all of them, and fails where the entries of one contradict
// each other, or the numbers that endpoints hold.
func (n *node) translations(t *testing.T) []translation {
	t.Helper()
	all := make(map[maps.FlowKey]maps.Translation)
	must(t, each(n.maps.Translations, func(key maps.FlowKey, value maps.Translation) bool { all[key] = value; return true }))
	var found []translation
	holds := make(map[uint16]uint32)
	pointers := 0
	for key, value := range all {
		if key.Kind == maps.KeyTracked {
			holds[value.Endpoint]++
			continue
		}
		if key.Ifindex != 0 {
			pointers++
			continue
		}
		holds[value.Endpoint]++
		tr := translation{
			protocol: key.Protocol,
			inside:   netip.AddrPortFrom(maps.Addr(value.Address), maps.Port(value.Port)),
			outside:  netip.AddrPortFrom(maps.Addr(key.Destination), maps.Port(key.DestinationPort)),
			world:    netip.AddrPortFrom(maps.Addr(key.Source), maps.Port(key.SourcePort)),
			state:    value.State, flags: value.Flags,
		}
		found = append(found, tr)
		seen := key.SourcePort
		if value.Flags&translationRemapped != 0 {
			seen = value.Mapped
		}
		pointer := all[maps.FlowKey{
			Source: value.Address, Destination: key.Source, SourcePort: value.Port, DestinationPort: seen,
			Ifindex: value.Ifindex, Protocol: key.Protocol,
		}]
		if pointer.Address != key.Destination || pointer.Port != key.DestinationPort {
			t.Errorf("the pointer of translation %+v leads to %+v", tr, pointer)
		}
	}
	if pointers != len(found) {
		t.Errorf("translations: %d pointers, %d replies", pointers, len(found))
	}
	for _, e := range []Endpoint{n.a, n.b, n.c} {
		var held uint32
		must(t, n.maps.Held.Lookup(uint32(e.ID), &held))
		if held != holds[e.ID] {
			t.Errorf("endpoint %d holds %d translations, the count says %d", e.ID, holds[e.ID], held)
		}
	}
	slices.SortFunc(found, func(a, b translation) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return found
}

// wantTranslations compares all translations.
func (n *node) wantTranslations(t *testing.T, wanted ...translation) {
	t.Helper()
	slices.SortFunc(wanted, func(a, b translation) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	if diff := gocmp.Diff(wanted, n.translations(t), gocmp.AllowUnexported(translation{}),
		cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("translations (-want +got):\n%s", diff)
	}
}
