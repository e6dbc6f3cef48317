// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"
)

// cni measures how long ADD and DEL take. Each
// candidate has one namespace for all its containers, one after the other: to
// make and remove namespaces would be measured along.
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
	fifth := goal{Of: "ratio", AtMost: 0.2}
	for i := range b.calls + 1 {
		for _, c := range b.candidates {
			if c.network == nil {
				continue
			}
			id := fmt.Sprintf("cni-%d", i)
			began := time.Now()
			if _, err := c.network.add(ctx, id, containers[c.name]); err != nil {
				return err
			}
			added := time.Now()
			if err := c.network.del(ctx, id, containers[c.name]); err != nil {
				return err
			}
			deleted := time.Now()
			if i == 0 {
				continue // reads the binaries from disk
			}
			b.book.add(metric{Section: "cni", Name: "ADD", Unit: "ms", against: chain, goal: fifth, latency: true}, c.name, milliseconds(added.Sub(began)))
			b.book.add(metric{Section: "cni", Name: "DEL", Unit: "ms", against: chain, goal: fifth, latency: true}, c.name, milliseconds(deleted.Sub(added)))
		}
	}
	b.progress("cni: %d ADDs and DELs each", b.calls)
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
