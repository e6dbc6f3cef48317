// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"flag"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var equate = []cmp.Option{cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()}

// load writes a configuration file and loads it with the given flags.
func load(t *testing.T, text string, args ...string) (config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := flag.NewFlagSet("tendril-agent", flag.ContinueOnError)
	overrides := registerFlags(flags)
	if err := parseFlags(flags, args); err != nil {
		return config{}, err
	}
	return loadConfig(path, overrides)
}

func TestConfig(t *testing.T) {
	everything := `
# all keys
socket: /run/a/agent.sock
state-dir: "/run/a"
bpf-root: /sys/fs/bpf/a
policy-dir: /etc/a
metrics-address: ""
uplinks: [eth0, 'eth1']
masquerade: false
masquerade-exclude:
- 10.0.0.0/8
- fd00::/8
masquerade-ports: 50000-50999
flows-max: 2048
translations-max: 0
log-level: debug
`
	all := config{
		Socket: "/run/a/agent.sock", StateDir: "/run/a", BPFRoot: "/sys/fs/bpf/a", PolicyDir: "/etc/a", Uplinks: []string{"eth0", "eth1"},
		MasqueradeExclude: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
		MasqueradePorts:   [2]uint16{50000, 50999}, FlowsMax: 2048, LogLevel: slog.LevelDebug,
	}
	tests := map[string]struct {
		text string
		args []string
		want func(*config)
	}{
		"empty file":     {"", nil, func(*config) {}},
		"only a comment": {"# nothing\n", nil, func(*config) {}},
		"everything":     {everything, nil, func(c *config) { *c = all }},
		"flags win": {
			everything,
			[]string{"--flows-max=4096", "-masquerade", "--uplinks", "", "--masquerade-exclude", "10.1.0.0/16,10.2.0.0/16", "--metrics-address=[::1]:0"},
			func(c *config) {
				*c = all
				c.FlowsMax, c.Masquerade, c.Uplinks, c.MetricsAddress = 4096, true, nil, "[::1]:0"
				c.MasqueradeExclude = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")}
			},
		},
		"quoted key":  {"\"flows-max\": 2048\n", nil, func(c *config) { c.FlowsMax = 2048 }},
		"few ports":   {"masquerade-ports: 50000-50063\n", nil, func(c *config) { c.MasqueradePorts = [2]uint16{50000, 50063} }},
		"no policies": {"policy-dir: \"\"\n", nil, func(c *config) { c.PolicyDir = "" }},
		"empty list":  {"uplinks: []\n", nil, func(*config) {}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			want := defaultConfig()
			test.want(&want)
			got, err := load(t, test.text, test.args...)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got, equate...); d != "" {
				t.Errorf("config (-want +got):\n%s", d)
			}
		})
	}
}

func TestConfigRefuses(t *testing.T) {
	tests := map[string]struct {
		text string
		args []string
		want string // the end of the error
	}{
		"mistyped key":       {"a: 1", nil, `line 1: unknown key "a"`},
		"nearly right key":   {"\n\nmetric-address: x", nil, `line 3: unknown key "metric-address"; did you mean "metrics-address"?`},
		"key given twice":    {"log-level: info\nlog-level: info", nil, `[2:1] mapping key "log-level" already defined at [1:1]`},
		"mistyped flag":      {"", []string{"--sokcet=/x"}, `unknown flag --sokcet; did you mean --socket?`},
		"unknown flag":       {"", []string{"--xyz"}, `unknown flag --xyz`},
		"stray argument":     {"", []string{"start"}, `unknown argument "start"`},
		"list for a scalar":  {"socket: [/x]", nil, `line 1: socket: is not a single value`},
		"scalar for a list":  {"uplinks: eth0", nil, `line 1: uplinks: is not a list`},
		"map in a list":      {"uplinks: [{a: b}]", nil, `line 1: uplinks: is not a single value`},
		"no value":           {"flows-max:\n", nil, `line 1: flows-max: has no value`},
		"not a map":          {"- a\n- b\n", nil, `line 1: not a list of keys and values`},
		"two documents":      {"log-level: info\n---\nlog-level: info\n", nil, `line 3: a second document`},
		"relative folder":    {"policy-dir: policy.d", nil, `line 1: policy-dir: "policy.d" is no absolute path`},
		"relative path":      {"state-dir: tendril", nil, `line 1: state-dir: "tendril" is no absolute path`},
		"root":               {"bpf-root: /..", nil, `line 1: bpf-root: "/.." is the root directory`},
		"long socket":        {"socket: /" + strings.Repeat("x", 120), nil, `is longer than 107 bytes`},
		"address":            {"metrics-address: 9470", nil, `line 1: metrics-address: "9470" is not of the form "address:port"`},
		"port":               {"metrics-address: :70000", nil, `line 1: metrics-address: ":70000" has no port from 0 to 65535`},
		"host bits":          {"masquerade-exclude: [10.0.0.1/8]", nil, `line 1: masquerade-exclude: "10.0.0.1/8": has host bits; is 10.0.0.0/8 meant?`},
		"prefix":             {"masquerade-exclude: [10.0.0.1]", nil, `line 1: masquerade-exclude: "10.0.0.1": is not of the form "address/length"`},
		"device":             {"uplinks: [abcdefghijklmnop]", nil, `line 1: uplinks: "abcdefghijklmnop": is no name of a network device`},
		"device given twice": {"uplinks: [eth0, eth0]", nil, `uplinks: "eth0" is given twice`},
		"ports":              {"masquerade-ports: 100", nil, `line 1: masquerade-ports: "100" is not of the form "first-last", ports from 1 to 65535`},
		"ports from zero":    {"masquerade-ports: 0-100", nil, `line 1: masquerade-ports: "0-100" is not of the form "first-last", ports from 1 to 65535`},
		"ports too few":      {"masquerade-ports: 50000-50062", nil, `line 1: masquerade-ports: "50000-50062" has 63 ports, not 64 at least: a node has no more connections to one destination than ports`},
		"ports reversed":     {"masquerade-ports: 200-100", nil, `line 1: masquerade-ports: "200-100" has its first port above its last`},
		"few entries":        {"flows-max: 0", nil, `line 1: flows-max: "0" is not a number from 1024 to 16777216`},
		"negative":           {"flows-max: -5", nil, `line 1: flows-max: "-5" is not a number from 1024 to 16777216`},
		"bool":               {"masquerade: maybe", nil, `line 1: masquerade: "maybe" is neither true nor false`},
		"level":              {"log-level: trace", nil, `line 1: log-level: "trace" is none of debug, info, warn, error`},
		"flag value":         {"", []string{"--log-level=trace"}, `invalid value "trace" for flag -log-level: is none of debug, info, warn, error`},
		"anchor":             {"socket: &a /x\nstate-dir: *a\n", nil, `line 1: socket: is not a single value`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, test.text, test.args...)
			if err == nil || !strings.HasSuffix(err.Error(), test.want) {
				t.Errorf("error %q, want one that ends in %q", err, test.want)
			}
		})
	}
	t.Run("syntax", func(t *testing.T) {
		if _, err := load(t, "socket: [\n"); err == nil {
			t.Error("no error")
		}
	})
	t.Run("missing file", func(t *testing.T) {
		_, err := loadConfig(filepath.Join(t.TempDir(), "missing"), &[]override{})
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("error %v", err)
		}
	})
}

// TestExampleConfig holds deploy/agent.yaml to the defaults that it shows.
func TestExampleConfig(t *testing.T) {
	text, err := os.ReadFile("../../deploy/agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := load(t, string(text))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(defaultConfig(), got, equate...); d != "" {
		t.Errorf("example (-defaults +example):\n%s", d)
	}
	c := defaultConfig()
	for _, s := range c.settings() {
		if !strings.Contains(string(text), "\n"+s.name+":") {
			t.Errorf("the example lacks %s", s.name)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	var stdout, stderr bytes.Buffer
	env := environment{ctx: t.Context(), stdout: &stdout, stderr: &stderr, getenv: func(string) string { return "" }}
	if err := run(env, []string{"--help"}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("--help: %v", err)
	}
	c := defaultConfig()
	for _, s := range c.settings() {
		if !strings.Contains(stderr.String(), "\n  -"+s.name) {
			t.Errorf("help lacks --%s", s.name)
		}
	}
	if err := run(env, []string{"--version"}); err != nil || !strings.HasPrefix(stdout.String(), "tendril-agent ") {
		t.Errorf("--version: %q, %v", stdout.String(), err)
	}
}

// FuzzConfig parses any file. What it accepts can be written as flags and means
// the same then.
func FuzzConfig(f *testing.F) {
	for _, seed := range []string{
		"socket: /run/a\nuplinks: [eth0]\nmasquerade-exclude:\n- 10.0.0.0/8\n", "log-level: debug", "a: &b [*b]", "{}", "---\n", "\"socket\": |\n  /x\n",
		"flows-max: 0x1000", "masquerade: yes", "? a\n: b\n", "<<: {socket: /x}", "!!str socket: /x",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c := defaultConfig()
		if c.parse([]byte(text)) != nil {
			return
		}
		again := defaultConfig()
		target := again.settings()
		for i, s := range c.settings() {
			if err := target[i].set(s.split(s.get())); err != nil {
				t.Errorf("--%s=%s: %v", s.name, s.get(), err)
			}
		}
		if d := cmp.Diff(c, again, equate...); d != "" {
			t.Errorf("file and flags (-file +flags):\n%s", d)
		}
	})
}

func TestNearest(t *testing.T) {
	known := []string{"socket", "state-dir", "uplinks"}
	for name, want := range map[string]string{"sokcet": "socket", "statedir": "state-dir", "uplink": "uplinks", "x": "", "frobnicate": "", "": ""} {
		if got := nearest(name, known); got != want {
			t.Errorf("nearest to %q: %q, want %q", name, got, want)
		}
	}
}
