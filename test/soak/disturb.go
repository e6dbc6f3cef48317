// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// lane is a row of disturbances that never overlap. Lanes do.
type lane struct {
	name string
	// pause between two disturbances, on average.
	pause time.Duration
}

func lanes() []lane {
	return []lane{{guests, 1500 * time.Millisecond}, {node, 20 * time.Second}, {floods, 15 * time.Second}, {rules, 5 * time.Second}}
}

const (
	guests = "guests"
	node   = "node"
	floods = "floods"
	rules  = "rules"
)

// disturbance is what is done to the node at random moments, while all others go
// on with what they do.
type disturbance struct {
	name string
	// lane of which it is.
	lane string
	// weight is how often it is chosen, among those of its lane.
	weight int
	// agent says that it replaces the agent. The last one is left alone, so that it
	// can be looked at when it has lived for a while.
	agent bool
	run   func(s *soak, ctx context.Context, random *rand.Rand)
}

// disturbances are all that there are. What the node learns to do, port mappings for
// one, is disturbed by another line here; a new place to ask it at is
// made in build (site.go), and what must be seen there in judgeAnswer (ways.go).
func disturbances() []disturbance {
	return []disturbance{
		{"ADD", guests, 50, false, (*soak).addGuests},
		{"DEL", guests, 30, false, (*soak).deleteGuests},
		{"container lost, then GC", guests, 8, false, (*soak).loseGuest},
		{"CHECK and STATUS", guests, 12, false, (*soak).checkGuest},
		{"agent killed", node, 4, true, (*soak).killAgent},
		{"agent restarted", node, 3, true, (*soak).restartAgent},
		{"default route moved", node, 1, false, (*soak).moveDefault},
		{"uplink's address changed", node, 1, false, (*soak).changeSource},
		{"routes of nobody changed", node, 2, false, (*soak).disturbRoutes},
		{"flood", floods, 1, false, (*soak).flood},
		{"policy changed", rules, 1, false, (*soak).changePolicy},
	}
}

// lastLife is the part of the run at whose end agents are not replaced any more.
const lastLife = 0.7

// disturb does what a lane has, until ctx ends.
func (s *soak) disturb(ctx context.Context, l lane, random *rand.Rand) {
	started := time.Now()
	pause := min(l.pause, s.length/12)
	for rest(ctx, time.Duration(random.ExpFloat64()*float64(pause))) {
		var some []disturbance
		for _, d := range disturbances() {
			if d.lane != l.name || d.agent && time.Since(started) > time.Duration(lastLife*float64(s.length)) {
				continue
			}
			for range d.weight {
				some = append(some, d)
			}
		}
		d := some[random.IntN(len(some))]
		d.run(s, ctx, random)
		s.ledger.count("disturbance: " + d.name)
	}
}

// askers is how many exchanges can be under way at a time.
const askers = 64

// loadAndChange has everybody ask and everything change until the time is over, or
// ctx ends.
func (s *soak) loadAndChange(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.length)
	defer cancel()
	load, stop := context.WithCancel(context.Background())
	s.launchStreams(load)
	var group, asking sync.WaitGroup
	number := uint64(100) // of a source of random numbers
	for _, l := range lanes() {
		number++
		random := s.random(number)
		group.Go(func() { s.disturb(ctx, l, random) })
	}
	group.Go(func() { s.printLines(ctx) })
	group.Go(func() { s.knock(ctx) })
	tickets := make(chan struct{})
	for range askers {
		number++
		random := s.random(number)
		asking.Go(func() {
			for range tickets {
				s.ask(random)
			}
		})
	}
	ticker := time.NewTicker(time.Duration(float64(time.Second) / s.rate))
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
			select {
			case tickets <- struct{}{}:
			default:
				s.ledger.count("questions not asked, too many being under way")
			}
		}
	}
	ticker.Stop()
	close(tickets)
	group.Wait()
	asking.Wait()
	lasted := s.alive.Load()
	stop()
	s.ledger.add("streams alive at the end", int(lasted))
}

// launchStreams starts those that must last: between residents, host and worlds, a
// third of them idle.
func (s *soak) launchStreams(ctx context.Context) {
	random := s.random(1)
	for i := 0; i < s.streams; {
		asker, at := s.choose(random)
		if asker == nil || !asker.lasts || !at.party.lasts || at.party.floods || at.anywhere && !asker.hidden {
			continue
		}
		kind := lively
		if i%3 == 0 {
			kind = idle
		}
		s.launchStream(ctx, asker, at, kind, s.random(uint64(10000+i)))
		i++
	}
}

// printLines prints where the run is, each minute.
func (s *soak) printLines(ctx context.Context) {
	for rest(ctx, min(time.Minute, s.length/4)) {
		fmt.Fprintln(s.out, s.line())
	}
}

func (s *soak) line() string {
	var fills string
	full := uint64(0) // packets that found no room for a translation
	if status, err := s.node.API.Status(context.Background()); err == nil {
		for _, m := range status.Maps {
			if m.Entries != nil && (m.Name == "flows" || m.Name == "translations") {
				fills += fmt.Sprintf(" %s %d/%d", m.Name, *m.Entries, m.Capacity)
			}
		}
		for _, c := range status.Counters {
			if c.Reason == "translations_full" {
				full += c.Packets
			}
		}
	} else {
		fills = " no agent"
	}
	all, mistranslated := s.ledger.wrongCount()
	return fmt.Sprintf("soak: %5v TCP %d UDP %d ICMP %d streams %d (%d MB) guests %d ADD %d DEL %d agents %d RSS %.1f MiB%s full %d wrong %d mistranslated %d",
		time.Since(s.started).Round(time.Second), s.ledger.get(tcp), s.ledger.get(udp), s.ledger.get(icmp), s.alive.Load(), s.streamed.Load()>>20,
		len(s.parties.list(guest)), s.ledger.get("ADD"), s.ledger.get("DEL"), (s.agent.look()+1)/2, float64(s.agent.memory())/1024, fills, full, all, mistranslated)
}
