// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// mistranslation is the topic of what nothing permits.
const mistranslation = "mistranslation"

// ledger counts what happened, and keeps what was wrong.
type ledger struct {
	mu sync.Mutex
	// out gets what is wrong at once.
	out io.Writer
	// counts are of what went well, or was permitted to go wrong.
	counts map[string]int
	// wrongs count what was not, by topic; texts are the first of each.
	wrongs map[string]int
	texts  map[string][]string
	// slowest is how long an exchange of each kind took.
	slowest map[string]time.Duration
}

// textsKept of each topic are kept.
const textsKept = 20

func newLedger(out io.Writer) *ledger {
	return &ledger{
		out:    out,
		counts: make(map[string]int), wrongs: make(map[string]int), texts: make(map[string][]string),
		slowest: make(map[string]time.Duration),
	}
}

func (l *ledger) count(what string) { l.add(what, 1) }

func (l *ledger) add(what string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[what] += n
}

// took counts an exchange, and how long it was.
func (l *ledger) took(what string, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[what]++
	l.slowest[what] = max(l.slowest[what], d)
}

// wrong notes what must not be.
func (l *ledger) wrong(topic, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrongs[topic]++
	if len(l.texts[topic]) < textsKept {
		text := time.Now().Format("15:04:05.000 ") + fmt.Sprintf(format, args...)
		l.texts[topic] = append(l.texts[topic], text)
		fmt.Fprintf(l.out, "soak: WRONG: %s: %s\n", topic, text)
	}
}

func (l *ledger) get(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts[what]
}

// wrongCount is how much was wrong, and how much of it is a mistranslation.
func (l *ledger) wrongCount() (all, mistranslated int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.wrongs {
		all += n
	}
	return all, l.wrongs[mistranslation]
}

// summary is everything, in lines.
func (l *ledger) summary() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, what := range slices.Sorted(maps.Keys(l.counts)) {
		fmt.Fprintf(&b, "  %-44s %9d", what, l.counts[what])
		if d, ok := l.slowest[what]; ok {
			fmt.Fprintf(&b, "  slowest %v", d.Round(100*time.Microsecond))
		}
		b.WriteByte('\n')
	}
	for _, topic := range slices.Sorted(maps.Keys(l.wrongs)) {
		fmt.Fprintf(&b, "WRONG: %s: %d\n", topic, l.wrongs[topic])
		for _, text := range l.texts[topic] {
			fmt.Fprintf(&b, "  %s\n", strings.ReplaceAll(text, "\n", "\n    "))
		}
		if more := l.wrongs[topic] - len(l.texts[topic]); more > 0 {
			fmt.Fprintf(&b, "  and %d more\n", more)
		}
	}
	return b.String()
}
