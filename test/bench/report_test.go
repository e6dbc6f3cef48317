// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReport(t *testing.T) {
	traffic := metric{Section: "same-node", Name: "connect", Unit: "k/s", against: rawVeth, goal: ratio(0.7)}
	latency := metric{Section: "cni", Name: "ADD", Unit: "ms", latency: true, goal: goal{Of: "median", AtMost: 5}}
	var b book
	for i := range 3 {
		b.add(traffic, rawVeth, []float64{10, 40, 20}[i])
		b.add(latency, tendril, []float64{1, 21, 11}[i])
		b.add(traffic, tendril, []float64{5, 30, 15}[i])
	}
	yes, no := true, false
	want := []*row{
		{metric: traffic, Candidate: rawVeth, Samples: []float64{10, 40, 20}, Median: 20, Low: 10, High: 40},
		{
			metric: traffic, Candidate: tendril, Samples: []float64{5, 30, 15}, Median: 15, Low: 5, High: 30,
			Against: rawVeth, Ratio: 0.75, RatioQuartiles: &[2]float64{0.625, 0.75}, Goal: &traffic.goal, Met: &yes,
		},
		{
			metric: latency, Candidate: tendril, Samples: []float64{1, 21, 11}, Median: 11, Low: 1, High: 20,
			Goal: &latency.goal, Met: &no,
		},
	}
	report := b.report()
	if diff := cmp.Diff(want, report.Rows, cmp.AllowUnexported(row{}, metric{})); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}

	var out bytes.Buffer
	if err := report.print(&out); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] != "Linux" {
			got = append(got, strings.Join(fields, " "))
		}
	}
	table := []string{
		"same-node median lowest highest ratio",
		"connect, k/s raw 20.0 10.0 40.0",
		"tendril 15.0 5.00 30.0 0.750 of raw (0.62 to 0.75) ratio >= 0.700: met",
		"cni median lowest p95 ratio",
		"ADD, ms tendril 11.0 1.00 20.0 median <= 5.00: missed",
	}
	if diff := cmp.Diff(table, got); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

// TestGoalOfSubject: where builds or sizes of tendril are compared, the goal is for
// one of them.
func TestGoalOfSubject(t *testing.T) {
	m := metric{Section: "ports", Name: "connect", Unit: "k/s", against: "one", subject: "many", goal: ratio(0.97)}
	var b book
	b.add(m, "one", 10)
	b.add(m, "many", 9)
	b.add(m, tendril, 5)
	no := false
	half := [2]float64{0.5, 0.5}
	want := []*row{
		{metric: m, Candidate: "one", Samples: []float64{10}, Median: 10, Low: 10, High: 10},
		{
			metric: m, Candidate: "many", Samples: []float64{9}, Median: 9, Low: 9, High: 9,
			Against: "one", Ratio: 0.9, RatioQuartiles: &[2]float64{0.9, 0.9}, Goal: &m.goal, Met: &no,
		},
		{metric: m, Candidate: tendril, Samples: []float64{5}, Median: 5, Low: 5, High: 5, Against: "one", Ratio: 0.5, RatioQuartiles: &half},
	}
	if diff := cmp.Diff(want, b.report().Rows, cmp.AllowUnexported(row{}, metric{})); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

func TestPercentile(t *testing.T) {
	for _, c := range []struct {
		samples []float64
		p, want float64
	}{
		{[]float64{7}, 0.5, 7},
		{[]float64{1, 2}, 0.5, 1.5},
		{[]float64{1, 2, 4}, 0.5, 2},
		{[]float64{1, 2, 4}, 1, 4},
		{[]float64{0, 10, 20, 30, 40}, 0.95, 38},
	} {
		if got := percentile(c.samples, c.p); got != c.want {
			t.Errorf("percentile(%v, %v) = %v, want %v", c.samples, c.p, got, c.want)
		}
	}
}

func TestFigure(t *testing.T) {
	got := []string{}
	for _, v := range []float64{0, 0.0123456, 0.5, 1.234, 12.34, 123.4, 1234.4, 9.999} {
		got = append(got, figure(v))
	}
	if diff := cmp.Diff([]string{"0", "0.0123", "0.500", "1.23", "12.3", "123", "1234", "10.00"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
