// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// compare compares what the pages list with what the programs have.
func compare(t *testing.T, n *node) {
	t.Helper()
	for _, test := range []struct {
		name string
		run  func(*testing.T, *node)
	}{
		{"settings", testSettings},
		{"keys", testKeys},
		{"capabilities", testCapabilities},
		{"CNI_ARGS", testArgs},
		{"metrics", testMetrics},
		{"counters", testCounters},
		{"maps", testMaps},
		{"kernel", testKernelFeatures},
		{"examples", testExamples},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, n) })
	}
}

// testKernelFeatures compares the README with what the datapath looks for, and the wiring tries.
func testKernelFeatures(t *testing.T, _ *node) {
	t.Helper()
	var got, want [][]string
	for _, row := range readPage(t, "README.md").table(t, "## Requirements", "since") {
		got = append(got, []string{row[0], codes(row[1])[0]})
	}
	for _, f := range datapath.Features() {
		if !f.Required {
			want = append(want, []string{f.Since, f.Name})
		}
	}
	want = append(want, []string{wiring.BroadcastQueueSince, "IFLA_MACVLAN_BC_QUEUE_LEN"})
	slices.SortStableFunc(want, func(a, b []string) int {
		one, other := nstest.Version(t, a[0]), nstest.Version(t, b[0])
		return slices.Compare(one[:], other[:])
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("features of newer kernels (-programs +README):\n%s", diff)
	}
}

var helpFlag = regexp.MustCompile(`(?m)^  -(\S+).*\n    \t.*?(?:\(default "?([^")]*)"?\))?$`)

func testSettings(t *testing.T, n *node) {
	t.Helper()
	got := make(map[string]string)
	for _, match := range helpFlag.FindAllStringSubmatch(n.run(t, "tendril-agent --help"), -1) {
		got[match[1]] = match[2]
	}
	for _, none := range []string{"config", "version"} {
		if _, found := got[none]; !found {
			t.Errorf("there is no flag --%s", none)
		}
		delete(got, none)
	}
	p := readPage(t, "docs/configuration.md")
	documented := make(map[string]string)
	for _, row := range p.table(t, "## The agent", "setting") {
		name := codes(row[0])[0]
		documented[name] = strings.Trim(row[1], "`")
		if documented[name] == "empty" {
			documented[name] = ""
		}
		if !slices.Contains(p.prose(), "### "+name) {
			t.Errorf("configuration.md has no heading for %s", name)
		}
	}
	if diff := cmp.Diff(documented, got); diff != "" {
		t.Errorf("settings and defaults (-configuration.md +tendril-agent --help):\n%s", diff)
	}
}

// known are the keys that the plugin accepts in an object: what it says when
// it meets another.
func known(t *testing.T, n *node, keys string) []string {
	t.Helper()
	_, f := n.status(t, keys)
	list, found := strings.CutPrefix(f.Details, "known keys are ")
	if !found {
		t.Fatalf("the plugin does not say which keys there are: %+v", f)
	}
	all := strings.Split(list, ", ")
	slices.Sort(all)
	return all
}

func firstCodes(rows [][]string) []string {
	var all []string
	for _, row := range rows {
		all = append(all, codes(row[0])...)
	}
	return all
}

func testKeys(t *testing.T, n *node) {
	t.Helper()
	p := readPage(t, "docs/configuration.md")
	prose := strings.Join(p.section(t, "### Keys"), " ")
	conventional, _, _ := strings.Cut(prose[strings.Index(prose, "Keys of the specification"):], ", and everything")
	dns, _, _ := strings.Cut(prose[strings.Index(prose, "`dns` takes"):], "Keys of")
	ranges := p.section(t, "### Ranges")
	second := slices.IndexFunc(ranges, func(line string) bool { return strings.HasPrefix(line, "A range set") })
	inRanges := firstCodes(p.table(t, "### Ranges", "key"))
	split := 0
	for _, line := range ranges[:second] {
		if strings.HasPrefix(line, "| `") {
			split++
		}
	}
	for _, test := range []struct {
		where, keys string
		documented  []string
	}{
		{"the plugin", `{"zzzzzzzz": 1}`, append(firstCodes(p.table(t, "### Keys", "key")), codes(conventional)...)},
		{"dns", `{"dns": {"zzzzzzzz": 1}}`, codes(dns)[1:]},
		{"ipam", `{"ipam": {"type": "tendril", "zzzzzzzz": 1}}`, inRanges[:split]},
		{"a range", `{"ipam": {"type": "tendril", "ranges": [[{"subnet": "10.10.0.0/16", "zzzzzzzz": 1}]]}}`, inRanges[split:]},
		{
			"a port mapping", `{"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "zzzzzzzz": 1}]}}`,
			firstCodes(p.table(t, "### Port mappings", "key")),
		},
		{"a route", `{"routes": [{"dst": "0.0.0.0/0", "zzzzzzzz": 1}]}`, firstCodes(p.table(t, "### Routes", "key"))},
	} {
		slices.Sort(test.documented)
		if diff := cmp.Diff(test.documented, known(t, n, test.keys)); diff != "" {
			t.Errorf("keys of %s (-configuration.md +tendril-cni):\n%s", test.where, diff)
		}
	}
}

// capabilities are those of the conventions of CNI, with a request of each.
var capabilities = map[string]string{
	"ips":            `["10.10.0.77"]`,
	"mac":            `"02:00:00:00:0c:01"`,
	"ipRanges":       `[[{"subnet": "10.44.0.0/24"}]]`,
	"dns":            `{"servers": ["10.10.0.1"], "searches": ["a.example"], "options": ["ndots:2"]}`,
	"portMappings":   `[{"hostPort": 8080, "containerPort": 80}]`,
	"bandwidth":      `{"ingressRate": 1000, "ingressBurst": 1000}`,
	"infinibandGUID": `"c2:11:22:33:44:55:66:77"`,
	"deviceID":       `"0000:04:00.5"`,
	"aliases":        `["web"]`,
	"cgroupPath":     `"/a"`,
	"podAnnotations": `{"a": "b"}`,
}

func testCapabilities(t *testing.T, n *node) {
	t.Helper()
	got := make(map[string]string)
	for name, request := range capabilities {
		_, f := n.status(t, fmt.Sprintf(`{"runtimeConfig": {%q: %s}}`, name, request))
		switch f.Code {
		case 0:
			got[name] = "supported"
		case 2:
			got[name] = "refused"
		default:
			t.Errorf("capability %s: %+v", name, f)
		}
		_, f = n.status(t, fmt.Sprintf(`{"runtimeConfig": {%q: null}, "capabilities": {%q: true}}`, name, name))
		if f.Code != 0 {
			t.Errorf("capability %s without a request: %+v", name, f)
		}
	}
	documented := make(map[string]string)
	for _, row := range readPage(t, "docs/configuration.md").table(t, "### What the runtime asks for", "capability") {
		documented[codes(row[0])[0]] = row[1]
	}
	if diff := cmp.Diff(documented, got); diff != "" {
		t.Errorf("capabilities (-configuration.md +tendril-cni):\n%s", diff)
	}
}

func testArgs(t *testing.T, n *node) {
	t.Helper()
	out, code := n.try(t, `ip netns add args
CNI_COMMAND=ADD CNI_CONTAINERID=args CNI_NETNS=/run/netns/args CNI_IFNAME=eth0 CNI_ARGS=ZZZ=1 /opt/cni/bin/tendril-cni </run/pods.json`)
	_, list, found := strings.Cut(out, "known are ")
	if code == 0 || !found {
		t.Fatalf("the plugin does not say what CNI_ARGS may hold: %s", out)
	}
	list, _, _ = strings.Cut(list, ", and IgnoreUnknown=1")
	prose := strings.Join(readPage(t, "docs/configuration.md").section(t, "### What the runtime asks for"), " ")
	_, prose, _ = strings.Cut(prose, "By the environment variable")
	for _, key := range strings.Split(strings.ReplaceAll(list, " and ", ", "), ", ") {
		if !strings.Contains(prose, "`"+strings.TrimSuffix(key, "*")) {
			t.Errorf("configuration.md does not say that CNI_ARGS may hold %s", key)
		}
	}
}

var (
	helpMetric   = regexp.MustCompile(`(?m)^# HELP (tendril_\S+)`)
	sampleMetric = regexp.MustCompile(`(?m)^(tendril_[a-z_]+)(?:\{(.*)\})? `)
	label        = regexp.MustCompile(`([a-z]+)="`)
)

func testMetrics(t *testing.T, n *node) {
	t.Helper()
	text := n.run(t, "curl -fsS http://127.0.0.1:9470/metrics")
	got := make(map[string]string)
	for _, match := range helpMetric.FindAllStringSubmatch(text, -1) {
		got[match[1]] = ""
	}
	for _, match := range sampleMetric.FindAllStringSubmatch(text, -1) {
		name := match[1]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if _, found := got[name]; !found {
				name = strings.TrimSuffix(match[1], suffix)
			}
		}
		var labels []string
		for _, one := range label.FindAllStringSubmatch(match[2], -1) {
			if one[1] != "le" {
				labels = append(labels, one[1])
			}
		}
		slices.Sort(labels)
		got[name] = strings.Join(labels, " ")
	}
	documented := make(map[string]string)
	for _, row := range readPage(t, "docs/operations.md").table(t, "## Metrics", "metric") {
		labels := codes(row[1])
		slices.Sort(labels)
		documented[codes(row[0])[0]] = strings.Join(labels, " ")
	}
	if diff := cmp.Diff(documented, got); diff != "" {
		t.Errorf("metrics and their labels (-operations.md +/metrics):\n%s", diff)
	}
}

func (n *node) api(tb testing.TB) api.Status {
	tb.Helper()
	var s api.Status
	if err := json.Unmarshal([]byte(n.run(tb, "tendril status -o json")), &s); err != nil {
		tb.Fatal(err)
	}
	return s
}

func testCounters(t *testing.T, n *node) {
	t.Helper()
	var journeys, all, drops, others []string
	for _, c := range n.api(t).Counters {
		if !slices.Contains(journeys, c.Journey) {
			journeys = append(journeys, c.Journey)
		}
		if c.Journey != journeys[0] {
			continue
		}
		all = append(all, c.Reason)
		if c.Dropped {
			drops = append(drops, c.Reason)
		} else {
			others = append(others, c.Reason)
		}
	}
	operations, maps := readPage(t, "docs/operations.md"), readPage(t, "docs/maps.md")
	if diff := cmp.Diff(firstCodes(operations.table(t, "## Drop reasons", "reason")), drops); diff != "" {
		t.Errorf("drop reasons (-operations.md +agent):\n%s", diff)
	}
	prose := strings.Join(operations.section(t, "## Drop reasons"), " ")
	prose, _, _ = strings.Cut(prose, "|")
	if diff := cmp.Diff(codes(prose), others); diff != "" {
		t.Errorf("reasons that are no drops (-operations.md +agent):\n%s", diff)
	}
	numbered := make([]string, len(all))
	for _, row := range maps.table(t, "## counters", "number") {
		for i := 0; i+1 < len(row); i += 2 {
			if row[i] == "" {
				continue // the table has two columns, and an odd number of counters
			}
			var number int
			if _, err := fmt.Sscan(row[i], &number); err != nil || number >= len(all) {
				t.Fatalf("maps.md: counter %q: %v", row[i], err)
			}
			numbered[number] = codes(row[i+1])[0]
		}
	}
	if diff := cmp.Diff(numbered, all); diff != "" {
		t.Errorf("numbers of counters (-maps.md +agent):\n%s", diff)
	}
	prose = strings.Join(maps.section(t, "## counters"), " ")
	prose, _, _ = strings.Cut(prose, "|")
	if diff := cmp.Diff(codes(prose), journeys); diff != "" {
		t.Errorf("journeys (-maps.md +agent):\n%s", diff)
	}
	// Each journey has as many places, some of them free.
	var places uint64
	for _, m := range n.api(t).Maps {
		if m.Name == "counters" {
			places = m.Capacity / uint64(len(journeys))
		}
	}
	if want := fmt.Sprintf("journey * %d + reason", places); !strings.Contains(prose, want) {
		t.Errorf("maps.md does not say that the key of counters is %s", want)
	}
}

// testMaps compares names, types and sizes with the maps that are pinned, and
// fields with the types that they are made of.
func testMaps(t *testing.T, n *node) {
	t.Helper()
	p := readPage(t, "docs/maps.md")
	got := make(map[string][2]string)
	for _, m := range n.api(t).Maps {
		var shown struct {
			Type       string `json:"type"`
			MaxEntries int    `json:"max_entries"`
		}
		if err := json.Unmarshal([]byte(n.run(t, "bpftool -j map show pinned /sys/fs/bpf/tendril/maps/"+m.Name)), &shown); err != nil {
			t.Fatal(err)
		}
		got[m.Name] = [2]string{shown.Type, fmt.Sprint(shown.MaxEntries)}
	}
	documented := make(map[string][2]string)
	for _, row := range p.table(t, "# Maps", "map") {
		documented[codes(row[0])[0]] = [2]string{row[1], row[2]}
	}
	if diff := cmp.Diff(documented, got); diff != "" {
		t.Errorf("maps, types and entries (-maps.md +agent):\n%s", diff)
	}

	spec, err := ebpf.LoadCollectionSpec(root + "/pkg/maps/kernel_bpfel.o")
	if err != nil {
		t.Fatal(err)
	}
	for name := range documented {
		var want []string
		for _, side := range []btf.Type{spec.Maps[name].Key, spec.Maps[name].Value} {
			if fields, ok := btf.UnderlyingType(side).(*btf.Struct); ok {
				for _, field := range fields.Members {
					want = append(want, field.Name)
				}
			}
		}
		var listed []string
		if len(want) > 0 {
			listed = firstCodes(p.table(t, "## "+name, "field"))
		}
		if name == "translations" { // has the key of flows, and says so
			listed = append(listed, "source", "destination", "source_port", "destination_port", "protocol")
		}
		want = slices.DeleteFunc(want, func(field string) bool { return field == "pad" })
		for _, list := range []*[]string{&want, &listed} {
			slices.Sort(*list)
			*list = slices.Compact(*list)
		}
		if diff := cmp.Diff(listed, want); diff != "" {
			t.Errorf("fields of %s (-maps.md +bpf/lib/types.h):\n%s", name, diff)
		}
	}
}

// testExamples tries the files of deploy as if they stood on a page.
func testExamples(t *testing.T, n *node) {
	t.Helper()
	for kind, pattern := range map[string]string{"yaml": "*.yaml", "json": "*.conflist"} {
		paths, err := filepath.Glob(filepath.Join(root, "deploy", pattern))
		if err != nil || paths == nil {
			t.Errorf("deploy has no %s: %v", pattern, err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			block{kind: kind, text: string(text)}.try(t, n)
		}
	}
}
