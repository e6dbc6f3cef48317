// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/maps"
)

// event is what happens between packets.
func (s *teller) event(t *testing.T, kind int, story *script) error {
	n, how := s.n, story.next()
	endpoints := []Endpoint{n.a, n.b, n.c}
	e := endpoints[int(how>>2)%len(endpoints)]
	switch kind {
	case stepElapse:
		seconds := secondsOf(how)
		s.say("--- %d seconds later", seconds)
		s.clock += seconds
		n.elapse(t, seconds)
	case stepUplink:
		s.changed = true
		switch how % 4 {
		case 0:
			s.uplink = n.uplink
		case 1:
			s.uplink.IPv4, s.uplink.IPv6 = v4().renumbered(), v6().renumbered()
		case 2:
			s.uplink.IPv4, s.uplink.IPv6 = netip.Addr{}, netip.Addr{}
		case 3: // any, for the arithmetic of checksums
			four, six := v4().host.As4(), v6().host.As16()
			four[1], four[3] = story.next(), story.next()
			six[6], six[13] = four[1], four[3]
			s.uplink.IPv4, s.uplink.IPv6 = netip.AddrFrom4(four), netip.AddrFrom16(six)
		}
		s.say("--- uplink has %v and %v", s.uplink.IPv4, s.uplink.IPv6)
		must(t, n.ReconcileUplinks([]Uplink{s.uplink}))
	case stepEndpoint:
		s.changed = true
		s.shaken(e)
		switch how % 4 {
		case 0, 1:
			s.say("--- endpoint %d leaves", e.ID)
			if _, attached := s.attached[e.IfIndex]; attached {
				s.gone[e.IfIndex] = departure{e, s.clock}
			}
			delete(s.attached, e.IfIndex)
			must(t, n.DetachEndpoint(e))
			if how%4 == 1 {
				must(t, n.Purge([]uint16{e.ID}))
			}
		default:
			s.say("--- endpoint %d comes", e.ID)
			s.attached[e.IfIndex] = e
			must(t, n.AttachEndpoint(e))
		}
	case stepEpoch:
		if how >= policyChanges {
			s.changeFirewall(t, int(how-policyChanges)%len(s.firewalls))
			s.say("--- policy: %q", s.firewall.name)
			break
		}
		what := int(how % unsettlings)
		if what == newEpoch {
			s.shaken(e)
		}
		s.say("--- %s", n.unsettle(t, what, e))
	}
	s.after = n.entries(t)
	return n.consistent(s.after)
}

// entries reads the translations, both halves of each.
func (n *node) entries(t *testing.T) map[maps.FlowKey]maps.Translation {
	all := make(map[maps.FlowKey]maps.Translation)
	must(t, each(n.maps.Translations, func(key maps.FlowKey, value maps.Translation) bool { all[key] = value; return true }))
	return all
}

func newTranslation(key maps.FlowKey, value maps.Translation) *translation {
	return &translation{
		protocol: key.Protocol,
		inside:   netip.AddrPortFrom(maps.Addr(value.Address), maps.Port(value.Port)),
		outside:  netip.AddrPortFrom(maps.Addr(key.Destination), maps.Port(key.DestinationPort)),
		world:    netip.AddrPortFrom(maps.Addr(key.Source), maps.Port(key.SourcePort)),
		state:    value.State, flags: value.Flags,
	}
}

func (tr *translation) String() string {
	return fmt.Sprintf("%s %s as %s to %s, state %d, flags %d", ProtocolName(tr.protocol), tr.inside, tr.outside, tr.world, tr.state, tr.flags)
}

// lifetime is how long a translation lives without packets, in seconds (RFC 5382,
// RFC 4787, RFC 5508).
func lifetime(protocol, state uint8) uint32 {
	switch {
	case protocol == unix.IPPROTO_TCP && state == maps.TranslationOpening:
		return 120
	case protocol == unix.IPPROTO_TCP && state == maps.TranslationEstablished:
		return 7440
	case protocol == unix.IPPROTO_TCP:
		return 240
	case protocol == unix.IPPROTO_ICMP || protocol == unix.IPPROTO_ICMPV6:
		return 60
	case state == maps.TranslationOpening:
		return 30
	}
	return 300
}

// lives tells what a translation certainly is; around its end it may be neither.
func (n *node) lives(key maps.FlowKey, t maps.Translation) (alive, dead bool) {
	var epoch uint32
	if n.maps.Epochs.Lookup(uint32(t.Endpoint), &epoch) != nil || epoch != t.Epoch {
		return false, true
	}
	now, err := ticks()
	if err != nil {
		return false, false
	}
	idle := int64(int32(now-t.Seen)) << tickShift / 1_000_000_000
	limit := int64(lifetime(key.Protocol, t.State))
	return idle < limit-slack, idle > limit+slack
}

// consistent compares the two halves of each living translation, and the numbers that
// endpoints hold.
func (n *node) consistent(all map[maps.FlowKey]maps.Translation) error {
	holds := make(map[uint16]uint32)
	for key, value := range all {
		if key.Kind == maps.KeyTracked {
			holds[value.Endpoint]++
			if value.Address != key.Destination || value.Port != key.DestinationPort || value.Flags&translationPort == 0 {
				return fmt.Errorf("a tracked flow leads to %s", newTranslation(key, value))
			}
			continue
		}
		if key.Ifindex != 0 {
			reply := maps.FlowKey{
				Source: key.Destination, SourcePort: key.DestinationPort,
				Destination: value.Address, DestinationPort: value.Port, Protocol: key.Protocol,
			}
			if t, ok := all[reply]; !ok || t.Address != key.Source || t.Port != key.SourcePort || t.Ifindex != key.Ifindex {
				return fmt.Errorf("a pointer of endpoint %d leads to %s", value.Endpoint, newTranslation(reply, t))
			}
			continue
		}
		holds[value.Endpoint]++
		if alive, _ := n.lives(key, value); !alive {
			continue // its pointer may be another's by now
		}
		sent := (*oracle)(nil).sentKey(key, value)
		if pointer, ok := all[sent]; !ok || pointer.Address != key.Destination || pointer.Port != key.DestinationPort {
			return fmt.Errorf("the pointer of %s leads to port %d", newTranslation(key, value), maps.Port(pointer.Port))
		}
	}
	for _, e := range []Endpoint{n.a, n.b, n.c} {
		var held uint32
		if err := n.maps.Held.Lookup(uint32(e.ID), &held); err != nil {
			return fmt.Errorf("read map held: %w", err)
		}
		if held != holds[e.ID] {
			return fmt.Errorf("endpoint %d holds %d translations, the count says %d", e.ID, holds[e.ID], held)
		}
	}
	return nil
}

// ingressWorks tells whether a test run can come from another device (Linux 5.16).
func (n *node) ingressWorks(t *testing.T) bool {
	have := nstest.KernelVersion(t)
	return have[0] > 5 || have[0] == 5 && have[1] >= 16
}
