// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"flag"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/pkg/datapath"
)

var update = flag.Bool("update", false, "write the golden files anew")

func scrape(m *Metrics) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w
}

// ours keeps the lines of tendril's own metrics that are the same in each run.
func ours(body string) string {
	var kept strings.Builder
	for line := range strings.Lines(body) {
		if strings.Contains(line, "tendril_") && !strings.Contains(line, "goversion=") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

func TestMetrics(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	w.mustAdd(t, s, tiny("c1"))
	_, err := s.Prepare(ctx, request("c2"))
	must(t, err)
	must(t, s.Delete(ctx, w.mustAdd(t, s, tiny("c3")).Attachment))
	w.keep(t, "web.yaml", allow("web", "client", "web", "80"))
	s.firewall.reload()
	w.hits = datapath.PolicyHits{IngressDenied: map[uint16]uint64{1: 4, 2: 5}, EgressDenied: map[uint16]uint64{1: 6}}
	m := NewMetrics(s)
	m.Observe("prepare", "", 2*time.Millisecond)
	m.Observe("prepare", "exhausted", time.Millisecond)

	answer := scrape(m)
	got := ours(answer.Body.String())
	golden := filepath.Join("testdata", "metrics.golden")
	if *update {
		must(t, os.WriteFile(golden, []byte(got), 0o600))
	}
	want, err := os.ReadFile(golden)
	must(t, err)
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("metrics (-want +got):\n%s", d)
	}

	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("TENDRIL_TEST_PRIVILEGED") != "" {
			t.Fatalf("promtool is needed (Debian package prometheus): %v", err)
		}
		t.Skip("needs promtool (Debian package prometheus)")
	}
	check := exec.Command(promtool, "check", "metrics")
	check.Stdin = strings.NewReader(answer.Body.String())
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// TestMetricsWhatCanBeRead has one source fail.
func TestMetricsWhatCanBeRead(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	w.fail["Counters"] = errors.New("refused")
	got := scrape(NewMetrics(s)).Body.String()
	if strings.Contains(got, "tendril_packets_total{") || !strings.Contains(got, "tendril_map_entries{") {
		t.Errorf("without counters:\n%s", ours(got))
	}
}
