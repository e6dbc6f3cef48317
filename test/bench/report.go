// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// metric is what a row of the report is about.
type metric struct {
	Section string `json:"section"`
	Name    string `json:"metric"`
	Unit    string `json:"unit"`
	// against is the candidate that ratios are to.
	against string
	// goal of the row of the candidate subject, which is tendril if empty; the zero
	// goal is none.
	goal    goal
	subject string
	// latency has its 95th percentile told, not its highest.
	latency bool
}

// goal bounds a median, or a ratio of medians.
type goal struct {
	// Of is "ratio" or "median".
	Of string `json:"of"`
	// AtLeast or AtMost is set, or both.
	AtLeast float64 `json:"atLeast,omitempty"`
	AtMost  float64 `json:"atMost,omitempty"`
}

func (g goal) String() string {
	switch {
	case g.Of == "":
		return ""
	case g.AtLeast != 0 && g.AtMost != 0:
		return fmt.Sprintf("%s %s to %s", g.Of, figure(g.AtLeast), figure(g.AtMost))
	case g.AtLeast != 0:
		return fmt.Sprintf("%s >= %s", g.Of, figure(g.AtLeast))
	default:
		return fmt.Sprintf("%s <= %s", g.Of, figure(g.AtMost))
	}
}

// row is all samples of one candidate for one metric.
type row struct {
	metric
	Candidate string    `json:"candidate"`
	Samples   []float64 `json:"samples"`
	Median    float64   `json:"median"`
	Low       float64   `json:"low"`
	// High is the highest sample, of a latency the 95th percentile.
	High float64 `json:"high"`
	// Against is the candidate that Ratio is to.
	Against string  `json:"against,omitempty"`
	Ratio   float64 `json:"ratio,omitempty"`
	// RatioQuartiles are the first and third of the ratios within each round.
	RatioQuartiles *[2]float64 `json:"ratioQuartiles,omitempty"`
	Goal           *goal       `json:"goal,omitempty"`
	Met            *bool       `json:"met,omitempty"`
}

// book collects samples.
type book struct {
	rows []*row
}

// add notes one sample.
func (b *book) add(m metric, candidate string, sample float64) {
	for _, r := range b.rows {
		if r.Section == m.Section && r.Name == m.Name && r.Candidate == candidate {
			r.Samples = append(r.Samples, sample)
			return
		}
	}
	b.rows = append(b.rows, &row{metric: m, Candidate: candidate, Samples: []float64{sample}})
}

// report is the outcome of a run.
type report struct {
	Kernel string `json:"kernel"`
	CPUs   int    `json:"cpus"`
	// Load is the machine's load average over 15 minutes, at the end.
	Load string `json:"load"`
	Rows []*row `json:"rows"`
}

// report computes what the samples say, rows in the order in which they came.
func (b *book) report() *report {
	for _, r := range b.rows {
		sorted := slices.Sorted(slices.Values(r.Samples))
		r.Median, r.Low, r.High = percentile(sorted, 0.5), sorted[0], sorted[len(sorted)-1]
		if r.latency {
			r.High = percentile(sorted, 0.95)
		}
	}
	for _, r := range b.rows {
		for _, other := range b.rows {
			if other.Section == r.Section && other.Name == r.Name && other.Candidate == r.against && other != r && other.Median != 0 {
				r.Against, r.Ratio = other.Candidate, r.Median/other.Median
				r.RatioQuartiles = quartiles(r.Samples, other.Samples)
			}
		}
		if r.goal.Of == "" || r.Candidate != cmp.Or(r.subject, tendril) || r.goal.Of == "ratio" && r.Against == "" {
			continue
		}
		value := r.Median
		if r.goal.Of == "ratio" {
			value = r.Ratio
		}
		met := value >= r.goal.AtLeast && (r.goal.AtMost == 0 || value <= r.goal.AtMost)
		r.Goal, r.Met = &r.goal, &met
	}
	rows := slices.Clone(b.rows)
	order := func(r *row) int {
		return slices.IndexFunc(rows, func(o *row) bool { return o.Section == r.Section && o.Name == r.Name })
	}
	slices.SortStableFunc(b.rows, func(x, y *row) int { return cmp.Compare(order(x), order(y)) })

	var name unix.Utsname
	_ = unix.Uname(&name) // its only error is a bad pointer
	load, _ := os.ReadFile("/proc/loadavg")
	fields := append(strings.Fields(string(load)), "", "", "")
	return &report{Kernel: unix.ByteSliceToString(name.Release[:]), CPUs: runtime.NumCPU(), Load: fields[2], Rows: b.rows}
}

// quartiles returns the first and third quartile of the ratios of samples taken
// in the same round.
func quartiles(samples, against []float64) *[2]float64 {
	var ratios []float64
	for i := range min(len(samples), len(against)) {
		ratios = append(ratios, samples[i]/against[i])
	}
	slices.Sort(ratios)
	return &[2]float64{percentile(ratios, 0.25), percentile(ratios, 0.75)}
}

// percentile is that of sorted samples, by linear interpolation.
func percentile(sorted []float64, p float64) float64 {
	at := p * float64(len(sorted)-1)
	below := int(at)
	if below+1 == len(sorted) {
		return sorted[below]
	}
	return sorted[below] + (at-float64(below))*(sorted[below+1]-sorted[below])
}

// print writes the table.
func (r *report) print(out io.Writer) error {
	fmt.Fprintf(out, "Linux %s, %d CPUs, load %s\n", r.Kernel, r.CPUs, r.Load)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	section := ""
	for i, row := range r.Rows {
		if row.Section != section {
			section = row.Section
			highest := "highest"
			if row.latency {
				highest = "p95"
			}
			fmt.Fprintf(w, "\n%s\t\tmedian\tlowest\t%s\tratio\t\t\n", section, highest)
		}
		name := ""
		if i == 0 || r.Rows[i-1].Name != row.Name || r.Rows[i-1].Section != row.Section {
			name = row.Name + ", " + row.Unit
		}
		ratio, verdict := "", ""
		if row.Against != "" {
			ratio = fmt.Sprintf("%.3f of %s (%.2f to %.2f)", row.Ratio, row.Against, row.RatioQuartiles[0], row.RatioQuartiles[1])
		}
		if row.Goal != nil {
			verdict = row.Goal.String() + ": missed"
			if *row.Met {
				verdict = row.Goal.String() + ": met"
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", name, row.Candidate,
			figure(row.Median), figure(row.Low), figure(row.High), ratio, verdict)
	}
	return w.Flush()
}

// figure writes a number with three digits that count, or all of a large one.
func figure(v float64) string {
	if v == 0 {
		return "0"
	}
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	return fmt.Sprintf("%.*f", min(digits, 6), v)
}
