// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// ways are what the uplinks are at present: whose addresses hide containers from
// which world, and by which world the default route leads.
type ways struct {
	mu  sync.Mutex
	now view
	// known are all addresses that hide containers at times, by world and family; the
	// usual one is the first.
	known [2][2][]netip.Addr
}

// view is what was so at one moment.
type view struct {
	source [2][2]netip.Addr
	main   int
	// changes count what was changed, and changing what is now: of each world's
	// source, and of the default route.
	changes  [3]int
	changing [3]bool
}

// ofMain is the index of the default route; those of the worlds are their numbers.
const ofMain = 2

func (w *ways) look() view {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// change has something be uncertain while f runs; what f returns is so then.
func (w *ways) change(what int, f func(now view) view) {
	w.mu.Lock()
	w.now.changes[what]++
	w.now.changing[what] = true
	now := w.now
	w.mu.Unlock()
	next := f(now)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now.source, w.now.main = next.source, next.main
	w.now.changing[what] = false
}

// uncertain tells whether a question to the place may have met a change since.
func (w *ways) uncertain(since view, at *place) bool {
	if at.party.world < 0 {
		return false
	}
	now := w.look()
	concern := []int{at.party.world}
	if at.anywhere {
		concern = []int{0, 1, ofMain}
	}
	for _, i := range concern {
		if since.changing[i] || now.changes[i] != since.changes[i] {
			return true
		}
	}
	return false
}

// usual tells whether containers were hidden from the place by the usual address.
func (w *ways) usual(then view, at *place) bool {
	world := at.party.world
	return world < 0 || then.source[world][at.family()] == w.known[world][at.family()][0]
}

// claim is what an exchange must have been like.
type claim struct {
	how   string
	asker *party
	at    *place
	// local is what the asker's socket says of itself.
	local  netip.AddrPort
	before view
	nonce  uint64
}

func (c claim) String() string {
	return fmt.Sprintf("%s from %s (%s) to %s (%s)", c.how, c.asker.name, c.local, c.at.party.name, c.at.addr)
}

// judgeAnswer compares an answer with its claim; the error is a mistranslation.
func (s *soak) judgeAnswer(c claim, m message) error {
	if m.kind != answer || m.asker != c.asker.id || m.nonce != c.nonce {
		return fmt.Errorf("%s: the answer is of kind %d for %s, question %x, and not for %x", c, m.kind, s.parties.nameOf(m.asker), m.nonce, c.nonce)
	}
	by := s.parties.placeOf(m.target)
	if by != c.at && (by == nil || !by.anywhere || !c.at.anywhere || by.addr != c.at.addr) {
		return fmt.Errorf("%s: %s answered", c, s.parties.nameOf(m.target))
	}
	uncertain := s.ways.uncertain(c.before, c.at)
	if by.anywhere && !uncertain && by.party.world != c.before.main {
		return fmt.Errorf("%s: %s answered, while the default route leads to world %d", c, by.party.name, c.before.main)
	}
	if !c.asker.hidden || by.party.world < 0 || by.plain {
		if m.seen != c.local {
			return fmt.Errorf("%s: it was seen to come from %s", c, m.seen)
		}
		return nil
	}
	want := []netip.Addr{c.before.source[by.party.world][by.family()]}
	if uncertain {
		want = s.ways.known[by.party.world][by.family()]
	}
	port := m.seen.Port()
	if !slices.Contains(want, m.seen.Addr()) || c.how != icmp && (port < portFirst || port > portLast) {
		return fmt.Errorf("%s: it was seen to come from %s, not from %s and a port from %d to %d", c, m.seen, want, portFirst, portLast)
	}
	return nil
}

// failed notes an exchange that did not come about.
func (s *soak) failed(c claim, err error) {
	switch {
	case c.asker.leaving.Load(), c.at.party.leaving.Load():
		s.ledger.count("permitted: " + c.how + " with one who left")
	case s.ways.uncertain(c.before, c.at):
		s.ledger.count("permitted: " + c.how + " while an uplink changed")
	default:
		s.ledger.wrong("failure of "+c.how, "%s: %v", c, err)
	}
}

// lost notes a datagram that got lost, and is sent again.
func (s *soak) lost(c claim) {
	if s.ways.uncertain(c.before, c.at) {
		s.ledger.count("permitted: datagram lost while an uplink changed")
		return
	}
	s.ledger.count(losses)
}

// judgeLosses permits as many as get no port beside a flood: one in 1000.
func (s *soak) judgeLosses() {
	if lost, all := s.ledger.get(losses), s.ledger.get(udp)+s.ledger.get(icmp); lost > 5+all/1000 {
		s.ledger.wrong("losses", "%d datagrams were lost, of %d exchanges", lost, all)
	}
}

const losses = "datagrams lost"

// mistaken notes an answer that is wrong. One to somebody who has left may reach
// whoever has his port now.
func (s *soak) mistaken(m message, err error) {
	if m.asker != 0 && s.parties.gone(m.asker) {
		s.ledger.count("permitted: answer for one who left")
		return
	}
	s.ledger.wrong(mistranslation, "%v", err)
}
