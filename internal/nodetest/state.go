// SPDX-License-Identifier: Apache-2.0

package nodetest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// State is all that ADD leaves on a node and DEL takes away, in a form that can
// be compared and read.
type State struct {
	// Links, Addresses, Routes, Neighbours and Rules as ip(8) lists them.
	Links, Addresses, Routes, Neighbours, Rules []string
	// Pins are the paths below bpf-root.
	Pins []string
	// Entries counts those of the hash maps, Held the endpoints that hold
	// translations.
	Entries map[string]int
	Held    int
	// Endpoints and Leases are the agent's, Draining the numbers of endpoints
	// that it has not purged.
	Endpoints []api.Attachment
	Leases    []api.Pool
	Draining  float64
}

// State looks at the node. An agent runs.
func (n *Node) State(tb testing.TB) State {
	tb.Helper()
	s := n.Kernel(tb)
	for _, pool := range n.Status(tb).Pools {
		if pool.Leased > 0 { // the agent goes on listing ranges that were used
			s.Leases = append(s.Leases, pool)
		}
	}
	s.Draining = n.Metrics(tb)["tendril_endpoint_ids_draining"]
	endpoints, err := n.API.Endpoints(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, e.Attachment)
	}
	return s
}

// Kernel is the part of the State that can be told without an agent.
func (n *Node) Kernel(tb testing.TB) State {
	tb.Helper()
	s := State{
		Links:      Lines(tb, n.NS, "ip", "-o", "link", "show"),
		Addresses:  Lines(tb, n.NS, "ip", "-o", "address", "show"),
		Routes:     append(Lines(tb, n.NS, "ip", "-4", "route", "show", "table", "all"), Lines(tb, n.NS, "ip", "-6", "route", "show", "table", "all")...),
		Neighbours: Lines(tb, n.NS, "ip", "neigh", "show", "nud", "permanent"),
		Rules:      append(Lines(tb, n.NS, "ip", "-4", "rule", "show"), Lines(tb, n.NS, "ip", "-6", "rule", "show")...),
		Entries:    make(map[string]int),
	}
	err := filepath.WalkDir(n.BPFRoot, func(path string, _ fs.DirEntry, err error) error {
		s.Pins = append(s.Pins, strings.TrimPrefix(path, n.BPFRoot))
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	for _, name := range []string{"endpoints", "interfaces", "trunks", "flows", "translations", "masquerade_exclude", "fragments", "ports", "host_addresses", "bandwidth", "unshaped", "children", "subjects", "policies"} {
		s.Entries[name] = n.entries(tb, name)
	}
	s.Held = n.entries(tb, "held")
	return s
}

// Recorded is the state without what the datapath remembers for a while, and the
// agent purges in the background.
func (s State) Recorded() State {
	s.Entries = maps.Clone(s.Entries)
	for _, name := range []string{"flows", "translations", "fragments"} {
		delete(s.Entries, name)
	}
	s.Held, s.Draining = 0, 0
	return s
}

// Lines are what a command prints, sorted.
func Lines(tb testing.TB, ns *nstest.NS, name string, args ...string) []string {
	tb.Helper()
	lines := strings.Split(strings.TrimSpace(ns.Run(tb, name, args...)), "\n")
	slices.Sort(lines)
	return lines
}

// Map opens a pinned map of the node.
func (n *Node) Map(tb testing.TB, name string) *ebpf.Map {
	tb.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(n.BPFRoot, "maps", name), nil)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// entries counts the entries of a hash map, or those of an array that are not 0.
func (n *Node) entries(tb testing.TB, name string) int {
	tb.Helper()
	m := n.Map(tb, name)
	defer func() { _ = m.Close() }()
	if m.Type() == ebpf.Array {
		keys, values := make([]uint32, m.MaxEntries()), make([]uint32, m.MaxEntries())
		var cursor ebpf.MapBatchCursor
		if _, err := m.BatchLookup(&cursor, keys, values, nil); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			tb.Fatal(err)
		}
		return len(slices.DeleteFunc(values, func(v uint32) bool { return v == 0 }))
	}
	count := 0
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	walk := m.Iterate()
	for walk.Next(&key, &value) {
		count++
	}
	if err := walk.Err(); err != nil {
		tb.Fatalf("read map %s: %v", name, err)
	}
	return count
}

// Becomes waits until the node is as it was: the agent purges the maps some
// time after a DEL.
func (n *Node) Becomes(tb testing.TB, want State) {
	tb.Helper()
	Eventually(tb, "what is left on the node", func() error { return differ(want, n.State(tb)) })
}

// BecomesRecorded waits as Becomes does, for what Recorded keeps.
func (n *Node) BecomesRecorded(tb testing.TB, want State) {
	tb.Helper()
	Eventually(tb, "what is left on the node", func() error { return differ(want.Recorded(), n.State(tb).Recorded()) })
}

func differ(want, got State) error {
	if diff := cmp.Diff(want, got); diff != "" {
		return errors.New("(-want +got):\n" + diff)
	}
	return nil
}

// Metrics are the agent's metrics by name, with labels as Prometheus has them.
func (n *Node) Metrics(tb testing.TB) map[string]float64 {
	tb.Helper()
	client := http.Client{Timeout: Patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
			n.Do(tb, func() { conn, err = net.Dial(network, address) })
			return conn, err
		},
	}}
	answer, err := client.Get("http://127.0.0.1:9470/metrics")
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	metrics := make(map[string]float64)
	scanner := bufio.NewScanner(answer.Body)
	for scanner.Scan() {
		name, text, ok := strings.Cut(scanner.Text(), "} ")
		if ok {
			name += "}"
		} else {
			name, text, _ = strings.Cut(scanner.Text(), " ")
		}
		if value, err := strconv.ParseFloat(text, 64); err == nil && !strings.HasPrefix(name, "#") {
			metrics[name] = value
		}
	}
	if err := errors.Join(scanner.Err(), statusError(answer)); err != nil {
		tb.Fatal(err)
	}
	return metrics
}

func statusError(r *http.Response) error {
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("GET /metrics: %s", r.Status)
	}
	return nil
}

// Files are what the agent's descriptors lead to, sorted.
func (a *Agent) Files(tb testing.TB) []string {
	tb.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", a.PID)
	entries, err := os.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	var files []string
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			// Sockets and pipes have a number of their own each.
			kind, _, _ := strings.Cut(target, ":[")
			files = append(files, kind)
		}
	}
	slices.Sort(files)
	return files
}
