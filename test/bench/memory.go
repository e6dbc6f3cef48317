// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

const mebibyte = 1 << 20

// memory attaches many containers to a node of their own and looks at the agent.
func (b *bench) memory(ctx context.Context) (err error) {
	c, err := newNode("many")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if err := b.join(ctx, c, tendril); err != nil {
		return err
	}
	note := func(name, unit string, value float64, g goal) {
		b.book.add(metric{Section: "memory", Name: name, Unit: unit, goal: g}, tendril, value)
	}
	rss, err := c.agent.memory("VmRSS")
	if err != nil {
		return err
	}
	note("agent RSS, no endpoints", "MiB", rss, goal{})

	var last []time.Duration
	for i := range b.endpoints {
		ns, err := c.namespace(strconv.Itoa(i))
		if err != nil {
			return err
		}
		began := time.Now()
		if _, err := c.network.add(ctx, container{id: fmt.Sprintf("many-%d", i), ns: ns}); err != nil {
			return err
		}
		if i >= b.endpoints-b.endpoints/10 {
			last = append(last, time.Since(began))
		}
		if (i+1)%250 == 0 {
			b.progress("memory: %d of %d endpoints", i+1, b.endpoints)
		}
	}
	if rss, err = c.agent.memory("VmRSS"); err != nil {
		return err
	}
	note(fmt.Sprintf("agent RSS, %d endpoints", b.endpoints), "MiB", rss, goal{Of: "median", AtMost: 30})
	if rss, err = c.agent.memory("VmHWM"); err != nil {
		return err
	}
	note("agent RSS, at its highest", "MiB", rss, goal{})
	status, err := c.agent.Status(ctx)
	if err != nil {
		return err
	}
	locked := uint64(0)
	for _, m := range status.Maps {
		locked += m.Memory
	}
	note("maps, locked", "MiB", float64(locked)/mebibyte, goal{Of: "median", AtMost: 64})
	for _, latency := range last {
		b.book.add(metric{Section: "memory", Name: "ADD, the last tenth", Unit: "ms", latency: true}, tendril, milliseconds(latency))
	}
	return nil
}

// memory reads a size from the process's status, in MiB.
func (a *agent) memory(field string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("read memory of agent: %w", err)
	}
	for line := range bytes.Lines(text) {
		words := bytes.Fields(line)
		if len(words) == 3 && string(words[0]) == field+":" && string(words[2]) == "kB" {
			kib, err := strconv.ParseFloat(string(words[1]), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("read memory of agent: no %s", field)
}
