// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"
)

// manyPorts is how many ports an ADD maps that maps many.
const manyPorts = 100

// slowRounds is the part of the rounds, the first ones, in which the chain maps
// manyPorts: that takes it more than a second.
const slowRounds = 10

// cni measures how long ADD and DEL take. Each candidate has one namespace for all
// its containers, one after the other: to make and remove namespaces would be
// measured along.
func (b *bench) cni(ctx context.Context) (err error) {
	if err := b.need(ctx); err != nil {
		return err
	}
	containers := make(map[string]*namespace)
	for _, c := range b.candidates {
		if c.network == nil {
			continue
		}
		if containers[c.name], err = c.namespace("cni"); err != nil {
			return err
		}
	}
	fifth := metric{Section: "cni", Unit: "ms", against: chain, goal: goal{Of: "ratio", AtMost: 0.2}, latency: true}
	for i := range b.calls + 1 {
		for _, c := range b.candidates {
			if c.network == nil {
				continue
			}
			one, err := c.network.call(ctx, container{id: fmt.Sprintf("cni-%d", i), ns: containers[c.name]})
			if err != nil {
				return err
			}
			if i == 0 {
				continue // reads the binaries from disk
			}
			one.note(&b.book, fifth, c.name)
		}
	}
	b.progress("cni: %d ADDs and DELs each", b.calls)
	return b.cniPorts(ctx, containers)
}

// cniPorts compares ADD and DEL of a container with many mapped ports with those of
// one that has a single one, each plugin with itself.
func (b *bench) cniPorts(ctx context.Context, containers map[string]*namespace) error {
	twice := metric{
		Section: "cni", Unit: "ms", goal: goal{Of: "ratio", AtMost: 2}, subject: portCount(tendril, manyPorts), latency: true,
	}
	for i := range b.calls + 1 {
		for _, c := range b.candidates {
			if c.network == nil || c.name == ptp {
				continue // ptp maps none
			}
			twice.against = portCount(c.name, 1)
			for _, ports := range []int{1, manyPorts} {
				if c.name == chain && ports > 1 && i > max(1, b.calls/slowRounds) {
					continue
				}
				one, err := c.network.call(ctx, container{
					id: fmt.Sprintf("cni-%d-ports-%d", ports, i), ns: containers[c.name],
					ports: portMappings("tcp", firstPort, ports),
				})
				if err != nil {
					return err
				}
				if i > 0 {
					one.note(&b.book, twice, portCount(c.name, ports))
				}
			}
		}
	}
	b.progress("cni: %d ADDs and DELs each with 1 and %d mapped ports, fewer of %s", b.calls, manyPorts, portCount(chain, manyPorts))
	return nil
}

// latency is how long ADD and DEL of a container took.
type latency struct{ add, del time.Duration }

// call attaches and detaches a container.
func (n *network) call(ctx context.Context, c container) (latency, error) {
	began := time.Now()
	if _, err := n.add(ctx, c); err != nil {
		return latency{}, err
	}
	added := time.Now()
	if err := n.del(ctx, c); err != nil {
		return latency{}, err
	}
	return latency{added.Sub(began), time.Since(added)}, nil
}

// note writes it down as two metrics that are like m.
func (l latency) note(b *book, m metric, candidate string) {
	m.Name = "ADD"
	b.add(m, candidate, milliseconds(l.add))
	m.Name = "DEL"
	b.add(m, candidate, milliseconds(l.del))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
