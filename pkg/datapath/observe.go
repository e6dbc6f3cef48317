// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/maps"
)

// Flow is one direction of one connection and what was decided for it.
type Flow struct {
	// Protocol is an IANA protocol number.
	Protocol uint8
	// Source and Destination as the packet meets the datapath. An ICMP echo
	// request has its identifier as source port, a reply as destination port.
	Source, Destination netip.AddrPort
	// IfIndex of the endpoint's host side, 0 for what comes from uplinks.
	IfIndex int
	// Action is "pass", "deliver", "forward", "return", "deny", "bridge" or "link"; "" when only memory is kept.
	Action string
	// Reason of a denial, as counters name it.
	Reason string
	// Reply says that the other end began, as far as the cache knows.
	Reply bool
	// TranslatesSource and TranslatesDestination say what To replaces.
	TranslatesSource, TranslatesDestination bool
	To                                      netip.AddrPort
	OutIfIndex                              int
	NextHop                                 netip.Addr
	Packets, Bytes                          uint64
	// Idle is the time since the decision was taken last, in seconds: an active
	// flow's is below 10.
	Idle uint32
	// Current is false for a decision that the next packet takes anew.
	Current bool
}

// tickShift is TICK_SHIFT of bpf/lib/clock.h: a tick is 2^30 ns.
const tickShift = 30

// decisionAge is DECISION_AGE of bpf/lib/clock.h, in ticks.
const decisionAge = 10 * 1000000000 >> tickShift

var actionNames = map[uint8]string{
	maps.ActionPass:    "pass",
	maps.ActionDeliver: "deliver",
	maps.ActionForward: "forward",
	maps.ActionReturn:  "return",
	maps.ActionDeny:    "deny",
	maps.ActionBridge:  "bridge",
	maps.ActionLink:    "link",
}

// Flows reads up to limit entries of the flow cache, in no order.
func (d *Datapath) Flows(limit int) (flows []Flow, err error) {
	err = d.EachFlow(func(f Flow) bool {
		flows = append(flows, f)
		return len(flows) < limit
	})
	return flows, err
}

// EachFlow calls f for the entries of the flow cache, in no order, until it returns
// false. It takes no more memory than one batch, however many there are.
func (d *Datapath) EachFlow(f func(Flow) bool) error {
	now, err := ticks()
	if err != nil {
		return err
	}
	epochs := epochs{of: d.maps.Epochs, known: make(map[uint32]uint32)}
	err = each(d.maps.Flows, func(key maps.FlowKey, value maps.Flow) bool {
		one := newFlow(key, value, now)
		one.Current = value.Action != maps.ActionNone && now-min(now, value.Decided) < decisionAge &&
			value.Epoch == epochs.get(0)+epochs.get(value.Endpoint)
		if value.Action == maps.ActionDeny && int(value.Reason) < len(d.maps.CounterNames) {
			one.Reason = d.maps.CounterNames[value.Reason]
		}
		return f(one) && epochs.err == nil
	})
	return cmp.Or(epochs.err, err)
}

func newFlow(key maps.FlowKey, value maps.Flow, now uint32) Flow {
	f := Flow{
		Protocol:              key.Protocol,
		Source:                netip.AddrPortFrom(maps.Addr(key.Source), maps.Port(key.SourcePort)),
		Destination:           netip.AddrPortFrom(maps.Addr(key.Destination), maps.Port(key.DestinationPort)),
		IfIndex:               int(key.Ifindex),
		Action:                actionNames[value.Action],
		TranslatesSource:      value.Flags&maps.FlowTranslateSource != 0,
		TranslatesDestination: value.Flags&maps.FlowTranslateDestination != 0,
		OutIfIndex:            int(value.OutIfindex),
		Packets:               value.Packets,
		Bytes:                 value.Bytes,
		Idle:                  uint32(uint64(now-min(now, value.Decided)) << tickShift / 1000000000),
	}
	f.Reply = value.Flags&maps.FlowReply != 0
	if f.TranslatesSource || f.TranslatesDestination {
		f.To = netip.AddrPortFrom(maps.Addr(value.Address), maps.Port(value.Port))
	}
	if value.Action == maps.ActionForward {
		f.NextHop = maps.Addr(value.NextHop)
	}
	return f
}

// epochs reads each endpoint's when it is asked for: there is one for every id that an
// endpoint may have, and few are in use.
type epochs struct {
	of    *ebpf.Map
	known map[uint32]uint32
	err   error
}

func (e *epochs) get(endpoint uint16) uint32 {
	id := uint32(endpoint)
	epoch, ok := e.known[id]
	if !ok {
		if err := e.of.Lookup(id, &epoch); err != nil {
			e.err = cmp.Or(e.err, fmt.Errorf("read map epochs: %w", err))
		}
		e.known[id] = epoch
	}
	return epoch
}

// each calls f for every entry of a hash map until it returns false, in batches that
// grow with what they find: most maps hold little. Entries that come or go meanwhile may
// be missed.
func each[K, V any](m *ebpf.Map, f func(K, V) bool) error {
	const first, most = 64, 4096
	var (
		cursor ebpf.MapBatchCursor
		keys   = make([]K, min(first, m.MaxEntries()))
		values = make([]V, len(keys))
	)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		// The kernel returns whole chains of its table: one was longer than the batch.
		short := errors.Is(err, unix.ENOSPC) && len(keys) < int(m.MaxEntries())
		if err != nil && !short && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("read map %s: %w", m, err)
		}
		for i := range n {
			if !f(keys[i], values[i]) {
				return nil
			}
		}
		if err != nil && !short {
			return nil
		}
		if short || len(keys) < most {
			keys = make([]K, min(4*len(keys), int(m.MaxEntries())))
			values = make([]V, len(keys))
		}
	}
}

// keysWhere returns the keys of a hash map for which which holds, as each finds them.
func keysWhere[K, V any](m *ebpf.Map, which func(K) bool) (keys []K, err error) {
	err = each(m, func(key K, _ V) bool {
		if which(key) {
			keys = append(keys, key)
		}
		return true
	})
	return keys, err
}

// Counter is one of the datapath's counters, summed over CPUs.
type Counter struct {
	Journey, Reason string
	// Dropped says that the packets went no further.
	Dropped        bool
	Packets, Bytes uint64
}

// Counters reads all counters; those that never counted are among them.
func (d *Datapath) Counters() ([]Counter, error) {
	var counters []Counter
	places := d.maps.Counters.MaxEntries() / uint32(maps.JourneyMax)
	for j := range maps.JourneyMax {
		for c := range maps.CounterMax {
			var perCPU []maps.Count
			if err := d.maps.Counters.Lookup(uint32(j)*places+uint32(c), &perCPU); err != nil {
				return nil, fmt.Errorf("read map counters: %w", err)
			}
			counter := Counter{
				Journey: d.maps.JourneyNames[j],
				Reason:  d.maps.CounterNames[c],
				Dropped: c >= maps.FirstDrop,
			}
			for _, count := range perCPU {
				counter.Packets += count.Packets
				counter.Bytes += count.Bytes
			}
			counters = append(counters, counter)
		}
	}
	return counters, nil
}

// MapUsage is the fill of one map.
type MapUsage struct {
	Name              string
	Entries, Capacity uint64
	// Array says that all entries always exist, so that Entries tells nothing and
	// is 0.
	Array bool
	// Memory that the kernel holds for the map, in bytes.
	Memory uint64
}

// Maps reads the fill of every map, by name.
func (d *Datapath) Maps() ([]MapUsage, error) {
	counts := map[*ebpf.Map]func(*ebpf.Map) (uint64, error){
		d.maps.Endpoints:         entries[maps.Address, maps.Endpoint],
		d.maps.Interfaces:        entries[uint32, maps.Interface],
		d.maps.Flows:             entries[maps.FlowKey, maps.Flow],
		d.maps.Translations:      entries[maps.FlowKey, maps.Translation],
		d.maps.Fragments:         entries[maps.FragmentKey, maps.Fragment],
		d.maps.Ports:             entries[maps.PortKey, maps.MappedPort],
		d.maps.MasqueradeExclude: walked[maps.PrefixKey, uint8],
		d.maps.StackDestinations: walked[maps.PrefixKey, uint8],
		d.maps.Subjects:          entries[maps.SubjectKey, maps.Subject],
		d.maps.Identities:        walked[uint32, uint32],
		d.maps.Policies:          entries[maps.PolicyKey, maps.Policy],
		d.maps.Hits:              entries[uint64, maps.Hit],
	}
	var usage []MapUsage
	for name, m := range d.maps.All() {
		u := MapUsage{Name: name, Capacity: uint64(m.MaxEntries()), Array: counts[m] == nil}
		info, err := m.Info()
		if err != nil {
			return nil, fmt.Errorf("read map %s: %w", name, err)
		}
		u.Memory, _ = info.Memlock()
		if m == d.maps.Identities {
			inner, err := d.treeMemory()
			if err != nil {
				return nil, err
			}
			u.Memory += inner
		}
		if count := counts[m]; count != nil {
			if u.Entries, err = count(m); err != nil {
				return nil, err
			}
		}
		usage = append(usage, u)
	}
	slices.SortFunc(usage, func(a, b MapUsage) int { return strings.Compare(a.Name, b.Name) })
	return usage, nil
}

// entries walks a hash map: the kernel tells no count.
func entries[K, V any](m *ebpf.Map) (n uint64, err error) {
	err = each(m, func(K, V) bool {
		n++
		return true
	})
	return n, err
}

// walked counts the entries of a map that takes no batches.
func walked[K, V any](m *ebpf.Map) (uint64, error) { return walk(m, func(K, V) {}) }

// ticks reads the programs' clock.
func ticks() (uint32, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	return uint32(now.Nano() >> tickShift), nil
}

// ProtocolName is the name of a protocol number, or the number.
func ProtocolName(protocol uint8) string {
	switch protocol {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return strings.TrimSpace(fmt.Sprint(protocol))
}
