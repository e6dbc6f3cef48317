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

func (b *bench) sameNode(ctx context.Context) error {
	return b.compare(ctx, "same-node", func(c *candidate) path { return c.sameNode }, []comparison{
		{throughput, "Gbit/s", 1e9 / 8, ratio(0.95)},
		{packets, "k/s", 1e3, ratio(0.90)},
		{requestResponse, "k/s", 1e3, ratio(0.96)},
		{connections, "k/s", 1e3, ratio(0.96)},
	})
}

func (b *bench) masquerade(ctx context.Context) error {
	return b.compare(ctx, "masquerade", func(c *candidate) path { return c.toWorld }, []comparison{
		{throughput, "Gbit/s", 1e9 / 8, goal{}},
		{packets, "k/s", 1e3, ratio(0.80)},
		{requestResponse, "k/s", 1e3, goal{}},
		{connections, "k/s", 1e3, ratio(0.85)},
	})
}

// compare takes samples of all traffic over a path of all candidates in turn.
func (b *bench) compare(ctx context.Context, name string, over func(*candidate) path, comparisons []comparison) error {
	if err := b.need(ctx); err != nil {
		return err
	}
	for _, one := range comparisons {
		if !slices.Contains(b.traffic, string(one.traffic)) {
			continue
		}
		before, err := b.drops(ctx)
		if err != nil {
			return err
		}
		m := metric{Section: name, Name: string(one.traffic), Unit: one.unit, against: rawVeth, goal: one.goal}
		for round := range b.rounds {
			for _, c := range b.candidates {
				if over(c).client == nil {
					continue
				}
				o, err := b.measure(ctx, one.traffic, over(c))
				if err != nil {
					return fmt.Errorf("measure %s of %s: %w", one.traffic, c.name, err)
				}
				sample := o.rate() / one.scale
				b.book.add(m, c.name, sample)
				note := ""
				if o.Sent > 0 {
					note = fmt.Sprintf(", %.0f %% of those sent", 100*o.rate()/(float64(o.Sent)/(b.window+b.window/5+200*time.Millisecond).Seconds()))
				}
				if o.Stalls > 0 {
					note = fmt.Sprintf(", %d took 100 ms or more", o.Stalls)
				}
				b.progress("%s %s, round %d of %d: %s: %s %s%s", name, one.traffic, round+1, b.rounds, c.name, figure(sample), one.unit, note)
			}
		}
		after, err := b.drops(ctx)
		if err != nil {
			return err
		}
		for reason, n := range after {
			if n > before[reason] {
				b.progress("%s %s: tendril dropped %d packets: %s", name, one.traffic, n-before[reason], reason)
			}
		}
	}
	return nil
}

// drops are the packets that tendril's datapath has refused, by reason.
func (b *bench) drops(ctx context.Context) (map[string]uint64, error) {
	drops := make(map[string]uint64)
	for _, c := range b.candidates {
		if c.name != tendril {
			continue
		}
		status, err := c.agent.Status(ctx)
		if err != nil {
			return nil, fmt.Errorf("read counters of %s: %w", c.name, err)
		}
		for _, counter := range status.Counters {
			if counter.Dropped {
				drops[counter.Journey+" "+counter.Reason] += counter.Packets
			}
		}
	}
	return drops, nil
}
