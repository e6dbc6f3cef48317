// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"strings"
	"testing"
)

// What an answer may say of who gave it, and of from where the question came.
func TestJudgeAnswer(t *testing.T) {
	anywhere := [2]*place{}
	s := &soak{parties: parties{all: make(map[identity]*party), at: make(map[identity]*place)}}
	var worlds [2]*party
	for i := range worlds {
		anywhere[i] = &place{addr: netip.MustParseAddr("198.18.0.1"), anywhere: true}
		worlds[i] = &party{name: "world", world: i, places: []*place{
			{addr: netip.MustParseAddr(worldOf[i][0])}, anywhere[i], {addr: netip.MustParseAddr("198.18.9.1"), plain: true},
		}}
		s.parties.identify(worlds[i])
		s.ways.now.source[i][0] = netip.MustParseAddr(uplinkOf[i][0])
		s.ways.known[i][0] = []netip.Addr{netip.MustParseAddr(uplinkOf[i][0]), netip.MustParseAddr("192.0.2.9")}
	}
	at, plain := worlds[0].places[0], worlds[0].places[2]
	hidden := &party{name: "hidden", world: -1, hidden: true, places: []*place{{addr: netip.MustParseAddr("10.10.0.2")}}}
	open := &party{name: "open", world: -1}
	s.parties.identify(hidden)
	s.parties.identify(open)
	const own, uplink, nonce = "10.10.0.2:1234", "192.0.2.1:50123", 99
	changed := view{source: s.ways.now.source, changes: [3]int{-1, -1, -1}}

	for _, test := range []struct {
		name   string
		how    string
		asker  *party
		at     *place
		before view
		// by answers, to asker if that is not nil.
		by    *place
		to    *party
		nonce uint64
		seen  string
		want  string
	}{
		{name: "hidden", at: at, seen: uplink},
		{name: "its own address", at: at, seen: own, want: "seen to come from 10.10.0.2:1234"},
		{name: "a port out of the range", at: at, seen: "192.0.2.1:1234", want: "seen to come from 192.0.2.1:1234"},
		{name: "another uplink", at: at, seen: "203.0.113.1:50123", want: "seen to come from 203.0.113.1:50123"},
		{name: "an identifier has no port", how: icmp, at: at, seen: "192.0.2.1:0"},
		{name: "to where nobody is hidden", at: plain, seen: own},
		{name: "hidden where nobody is", at: plain, seen: uplink, want: "seen to come from 192.0.2.1:50123"},
		{name: "an open asker", asker: open, at: at, seen: own},
		{name: "another port of an open asker", asker: open, at: at, seen: "10.10.0.2:1235", want: "seen to come from 10.10.0.2:1235"},
		{name: "between containers", asker: open, at: hidden.places[0], seen: own},
		{name: "somebody else's answer", at: at, by: plain, seen: own, want: "world answered"},
		{name: "an answer for somebody else", at: at, to: open, seen: uplink, want: "for open"},
		{name: "an answer to something else", at: at, nonce: 98, seen: uplink, want: "question 62"},
		{name: "the world of the default route", at: anywhere[1], by: anywhere[0], seen: uplink},
		{name: "the other world", at: anywhere[0], by: anywhere[1], seen: "203.0.113.1:50123", want: "while the default route leads to world 0"},
		{name: "the other world, after a change", at: anywhere[0], by: anywhere[1], before: changed, seen: "203.0.113.1:50123"},
		{name: "another address, after a change", at: at, before: changed, seen: "192.0.2.9:50123"},
		{name: "its own address, after a change", at: at, before: changed, seen: own, want: "seen to come from 10.10.0.2:1234"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := claim{how: test.how, asker: test.asker, at: test.at, local: netip.MustParseAddrPort(own), before: test.before, nonce: nonce}
			if c.asker == nil {
				c.asker = hidden
			}
			if c.before == (view{}) {
				c.before = s.ways.look()
			}
			m := message{kind: answer, asker: c.asker.id, target: c.at.id, nonce: nonce, seen: netip.MustParseAddrPort(test.seen)}
			if test.by != nil {
				m.target = test.by.id
			}
			if test.to != nil {
				m.asker = test.to.id
			}
			if test.nonce != 0 {
				m.nonce = test.nonce
			}
			got := ""
			if err := s.judgeAnswer(c, m); err != nil {
				got = err.Error()
			}
			if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
				t.Errorf("got %q, want %q in it", got, test.want)
			}
		})
	}
}
