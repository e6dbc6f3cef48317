// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// comparison is one kind of traffic in a section.
type comparison struct {
	traffic traffic
	unit    string
	// scale divides what a worker counts.
	scale float64
	goal  goal
}

func ratio(atLeast float64) goal { return goal{Of: "ratio", AtLeast: atLeast} }

// scene is where the traffic of a section goes, and how that is judged.
type scene struct {
	section string
	// about is what the names of its metrics begin with, before the traffic.
	about      string
	candidates []*candidate
	// over is the path of a candidate; one without a client takes no part.
	over func(*candidate) path
	// against is the candidate that ratios are to.
	against string
	// subject is the candidate that goals are for, tendril if empty.
	subject string
}

func (b *bench) sameNode(ctx context.Context) error {
	if err := b.need(ctx); err != nil {
		return err
	}
	over := func(c *candidate) path { return c.sameNode }
	return b.compare(ctx, scene{section: "same-node", candidates: b.candidates, over: over, against: rawVeth}, []comparison{
		{throughput, "Gbit/s", 1e9 / 8, ratio(0.95)},
		{packets, "k/s", 1e3, ratio(0.90)},
		{requestResponse, "k/s", 1e3, ratio(0.96)},
		{connections, "k/s", 1e3, ratio(0.96)},
	})
}

func (b *bench) masquerade(ctx context.Context) error {
	if err := b.need(ctx); err != nil {
		return err
	}
	over := func(c *candidate) path { return c.toWorld }
	return b.compare(ctx, scene{section: "masquerade", candidates: b.candidates, over: over, against: rawVeth}, []comparison{
		{throughput, "Gbit/s", 1e9 / 8, goal{}},
		{packets, "k/s", 1e3, ratio(0.80)},
		{requestResponse, "k/s", 1e3, goal{}},
		{connections, "k/s", 1e3, ratio(0.85)},
	})
}

// compare takes samples of all traffic over a path of all candidates in turn.
func (b *bench) compare(ctx context.Context, s scene, comparisons []comparison) error {
	for _, one := range comparisons {
		if !slices.Contains(b.traffic, string(one.traffic)) {
			continue
		}
		before, err := drops(ctx, s.candidates)
		if err != nil {
			return err
		}
		m := metric{Section: s.section, Name: s.about + string(one.traffic), Unit: one.unit, against: s.against, subject: s.subject, goal: one.goal}
		for round := range b.rounds {
			for _, c := range s.candidates {
				p := s.over(c)
				if p.client == nil {
					continue
				}
				o, err := b.measure(ctx, one.traffic, p)
				if err != nil {
					return fmt.Errorf("measure %s of %s: %w", one.traffic, c.called(), err)
				}
				sample := o.rate() / one.scale
				b.book.add(m, c.called(), sample)
				note := ""
				if o.Sent > 0 {
					note = fmt.Sprintf(", %.0f %% of those sent", 100*o.rate()/(float64(o.Sent)/(b.window+b.window/5+200*time.Millisecond).Seconds()))
				}
				if o.Stalls > 0 {
					note = fmt.Sprintf(", %d took 100 ms or more", o.Stalls)
				}
				b.progress("%s %s%s, round %d of %d: %s: %s %s%s", s.section, s.about, one.traffic, round+1, b.rounds, c.called(), figure(sample), one.unit, note)
			}
		}
		if err := checkAsked(s.candidates); err != nil {
			return err
		}
		after, err := drops(ctx, s.candidates)
		if err != nil {
			return err
		}
		for d, n := range after {
			if n > before[d] {
				b.progress("%s %s%s: %s dropped %d packets: %s %s", s.section, s.about, one.traffic, d.candidate, n-before[d], d.journey, d.reason)
			}
		}
	}
	return nil
}

// drop is why a datapath refuses packets.
type drop struct{ candidate, journey, reason string }

// drops are the packets that the datapaths of tendril have refused.
func drops(ctx context.Context, candidates []*candidate) (map[drop]uint64, error) {
	refused := make(map[drop]uint64)
	for _, c := range candidates {
		switch {
		case c.agent != nil:
			status, err := c.agent.Status(ctx)
			if err != nil {
				return nil, fmt.Errorf("read counters of %s: %w", c.called(), err)
			}
			for _, counter := range status.Counters {
				if counter.Dropped {
					refused[drop{c.called(), counter.Journey, counter.Reason}] += counter.Packets
				}
			}
		case c.datapath != nil:
			counters, err := c.datapath.Counters()
			if err != nil {
				return nil, fmt.Errorf("read counters of %s: %w", c.called(), err)
			}
			for _, counter := range counters {
				if counter.Dropped {
					refused[drop{c.called(), counter.Journey, counter.Reason}] += counter.Packets
				}
			}
		}
	}
	return refused, nil
}
