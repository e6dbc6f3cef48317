// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// agent is what is known of the node's agent.
type agent struct {
	mu sync.Mutex
	// life counts: even without an agent, odd with one.
	life int
	pid  int
}

func (a *agent) look() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.life
}

// served tells whether one and the same agent has served since.
func (a *agent) served(since int) bool { return since%2 == 1 && a.look() == since }

func (a *agent) turn(pid int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.life, a.pid = a.life+1, pid
}

// memory is the agent's resident memory in KiB, 0 without an agent.
func (a *agent) memory() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.pid))
	for line := range strings.Lines(string(text)) {
		if field := strings.Fields(line); field[0] == "VmRSS:" {
			size, _ := strconv.Atoi(field[1])
			return size
		}
	}
	return 0
}

func (s *soak) startAgent(tb testing.TB) {
	s.agent.turn(s.node.Start(tb).PID)
}

// killAgent kills the agent, and starts another one after a while.
func (s *soak) killAgent(ctx context.Context, random *rand.Rand) {
	s.agent.turn(0)
	s.changeAgent("kill", func(tb testing.TB) {
		s.node.Kill(tb)
		rest(ctx, time.Duration(random.Int64N(int64(8*time.Second))))
		s.startAgent(tb)
	})
}

// restartAgent stops the agent well and starts another one.
func (s *soak) restartAgent(context.Context, *rand.Rand) {
	s.agent.turn(0)
	s.changeAgent("restart", func(tb testing.TB) {
		s.node.Stop(tb)
		s.startAgent(tb)
	})
}

func (s *soak) changeAgent(how string, f func(tb testing.TB)) {
	if err := try(f); err != nil {
		s.ledger.wrong("agent", "%s: %v%s", how, err, s.agentLog())
	}
}

// rest waits for a time, or until ctx ends; false then.
func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
