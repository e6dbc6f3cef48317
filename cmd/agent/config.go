// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// config are the settings of the agent, by the names of their keys.
type config struct {
	Socket            string
	StateDir          string
	BPFRoot           string
	PolicyDir         string // "" is none
	MetricsAddress    string // "" serves none
	Uplinks           []string
	Masquerade        bool
	MasqueradeExclude []netip.Prefix
	StackDestinations []netip.Prefix
	MasqueradePorts   [2]uint16 // first and last, both included
	FlowsMax          uint32    // entries
	TranslationsMax   uint32    // entries; 0 is the datapath's default
	LogLevel          slog.Level
}

func defaultConfig() config {
	return config{
		Socket:          "/run/tendril/agent.sock",
		StateDir:        "/run/tendril",
		BPFRoot:         "/sys/fs/bpf/tendril",
		PolicyDir:       "/etc/tendril/policy.d",
		MetricsAddress:  "127.0.0.1:9470",
		Masquerade:      true,
		MasqueradePorts: [2]uint16{40960, 65535},
		FlowsMax:        262144,
	}
}

// setting is one key of the configuration, and one flag.
type setting struct {
	name, usage string
	// values are the items of a list, or the one value of another setting.
	list bool
	set  func(values []string) error
	get  func() string
}

// settings lists all there are; each reads and writes c.
func (c *config) settings() []setting {
	return []setting{
		text("socket", "unix socket `path` of the API", &c.Socket, absolutePath),
		text("state-dir", "`directory` of the state file, on a file system that a reboot empties", &c.StateDir, absolutePath),
		text("bpf-root", "`directory` on a bpf file system for maps, programs and links", &c.BPFRoot, absolutePath),
		text("policy-dir", "`directory` of network policies; \"\" is none", &c.PolicyDir, optionalPath),
		text("metrics-address", "`address` to serve Prometheus metrics at; \"\" serves none", &c.MetricsAddress, checkAddress),
		list("uplinks", "`names` of the devices to the world; none: all that have a default route", &c.Uplinks, parseDevice),
		{
			name: "masquerade", usage: "translate the source address of what endpoints send to the world",
			set: one(func(v string) (err error) { c.Masquerade, err = parseBool(v); return err }),
			get: func() string { return strconv.FormatBool(c.Masquerade) },
		},
		list("masquerade-exclude", "`prefixes` that are reached untranslated, besides the networks' own", &c.MasqueradeExclude, parsePrefix),
		list("stack-destinations", "`prefixes` that are left to the host's stack, as other software translates them there", &c.StackDestinations, parsePrefix),
		{
			name: "masquerade-ports", usage: "`first-last` source port of translated packets; kept from the host's own sockets",
			set: one(func(v string) (err error) { c.MasqueradePorts, err = parsePorts(v); return err }),
			get: func() string { return fmt.Sprintf("%d-%d", c.MasqueradePorts[0], c.MasqueradePorts[1]) },
		},
		number("flows-max", "`entries` of the flow table", &c.FlowsMax, false),
		number("translations-max", "`entries` of the table of translations; 0 is the default", &c.TranslationsMax, true),
		{
			name: "log-level", usage: "debug, info, warn or error",
			set: one(func(v string) (err error) { c.LogLevel, err = parseLevel(v); return err }),
			get: func() string { return strings.ToLower(c.LogLevel.String()) },
		},
	}
}

// one makes a setter of a single value.
func one(set func(string) error) func([]string) error {
	return func(values []string) error {
		if len(values) != 1 {
			return errors.New("is a list; one value is wanted")
		}
		return set(values[0])
	}
}

func text(name, usage string, into *string, check func(string) error) setting {
	return setting{
		name: name, usage: usage,
		get: func() string { return *into },
		set: one(func(v string) error {
			if err := check(v); err != nil {
				return err
			}
			*into = v
			return nil
		}),
	}
}

func list[T any](name, usage string, into *[]T, parse func(string) (T, error)) setting {
	return setting{
		name: name, usage: usage, list: true,
		get: func() string {
			var items []string
			for _, item := range *into {
				items = append(items, fmt.Sprint(item))
			}
			return strings.Join(items, ",")
		},
		set: func(values []string) error {
			items := make([]T, 0, len(values))
			for _, v := range values {
				item, err := parse(v)
				if err != nil {
					return fmt.Errorf("%q: %w", v, err)
				}
				items = append(items, item)
			}
			*into = items
			return nil
		},
	}
}

// Limits of the tables, in entries.
const (
	minEntries = 1024
	maxEntries = 16 << 20
)

func number(name, usage string, into *uint32, zero bool) setting {
	return setting{
		name: name, usage: usage,
		get: func() string { return strconv.FormatUint(uint64(*into), 10) },
		set: one(func(v string) error {
			n, err := strconv.ParseUint(v, 10, 32)
			if err != nil || !(zero && n == 0) && (n < minEntries || n > maxEntries) {
				return fmt.Errorf("is not a number from %d to %d", minEntries, maxEntries)
			}
			*into = uint32(n)
			return nil
		}),
	}
}

// maxSocketPath is what fits into a sockaddr_un, less the final NUL.
const maxSocketPath = 107

func absolutePath(v string) error {
	switch {
	case !filepath.IsAbs(v) || strings.ContainsRune(v, 0):
		return errors.New("is no absolute path")
	case filepath.Clean(v) == "/":
		return errors.New("is the root directory")
	}
	return nil
}

func optionalPath(v string) error {
	if v == "" {
		return nil
	}
	return absolutePath(v)
}

func checkAddress(v string) error {
	if v == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(v)
	if err != nil {
		return errors.New(`is not of the form "address:port"`)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return errors.New("has no port from 0 to 65535")
	}
	return nil
}

func parseDevice(v string) (string, error) {
	if v == "" || len(v) > 15 || v == "." || v == ".." || strings.ContainsAny(v, "/: \t\n\x00") {
		return "", errors.New("is no name of a network device")
	}
	return v, nil
}

func parsePrefix(v string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(v)
	switch {
	case err != nil:
		return p, errors.New(`is not of the form "address/length"`)
	case p.Addr().Is4In6():
		return p, errors.New("is IPv4 written as IPv6")
	case p != p.Masked():
		return p, fmt.Errorf("has host bits; is %s meant?", p.Masked())
	}
	return p, nil
}

func parseBool(v string) (bool, error) {
	switch v {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, errors.New("is neither true nor false")
}

// minPorts is the least number of source ports. A node has no more masqueraded
// connections to one destination than ports, and one container three quarters of
// them: with a few, next to nothing would be forwarded.
const minPorts = 64

func parsePorts(v string) (ports [2]uint16, err error) {
	first, last, _ := strings.Cut(v, "-")
	for i, part := range []string{first, last} {
		n, err := strconv.ParseUint(part, 10, 16)
		if err != nil || n == 0 {
			return ports, errors.New(`is not of the form "first-last", ports from 1 to 65535`)
		}
		ports[i] = uint16(n)
	}
	if ports[0] > ports[1] {
		return ports, errors.New("has its first port above its last")
	}
	if count := int(ports[1]) - int(ports[0]) + 1; count < minPorts {
		return ports, fmt.Errorf("has %d ports, not %d at least: a node has no more connections to one destination than ports", count, minPorts)
	}
	return ports, nil
}

func parseLevel(v string) (level slog.Level, err error) {
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, v) {
		return level, errors.New("is none of debug, info, warn, error")
	}
	return level, level.UnmarshalText([]byte(v))
}

// override is a setting that was given as a flag.
type override struct{ name, value string }

// flagValue collects one flag and lets the flag package complain about it.
type flagValue struct {
	setting
	given *[]override
}

func (f flagValue) String() string {
	if f.get == nil { // the flag package asks a zero value
		return ""
	}
	return f.get()
}

func (f flagValue) IsBoolFlag() bool { return f.name == "masquerade" }

func (f flagValue) Set(value string) error {
	*f.given = append(*f.given, override{f.name, value})
	return f.set(f.split(value))
}

// split makes the items of a list out of what a flag was given.
func (s setting) split(value string) []string {
	if !s.list {
		return []string{value}
	}
	if value == "" {
		return nil
	}
	return strings.Split(value, ",")
}

// registerFlags makes each setting a flag and returns where the given ones are.
func registerFlags(flags *flag.FlagSet) *[]override {
	var given []override
	scratch := defaultConfig()
	for _, s := range scratch.settings() {
		flags.Var(flagValue{s, &given}, s.name, s.usage)
	}
	return &given
}

// loadConfig returns the defaults, as the file and then the flags change them.
func loadConfig(path string, overrides *[]override) (config, error) {
	c := defaultConfig()
	if path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			return c, fmt.Errorf("read configuration: %w", err)
		}
		if err := c.parse(text); err != nil {
			return c, fmt.Errorf("read configuration %s: %w", path, err)
		}
	}
	for _, o := range *overrides {
		for _, s := range c.settings() {
			if s.name == o.name {
				if err := s.set(s.split(o.value)); err != nil {
					return c, &usageError{fmt.Errorf("--%s %q: %w", o.name, o.value, err)}
				}
			}
		}
	}
	return c, c.check()
}

// check looks at what no setting can tell by itself.
func (c *config) check() error {
	if len(c.Socket) > maxSocketPath {
		return fmt.Errorf("socket %q: is longer than %d bytes", c.Socket, maxSocketPath)
	}
	for i, name := range c.Uplinks {
		if slices.Contains(c.Uplinks[:i], name) {
			return fmt.Errorf("uplinks: %q is given twice", name)
		}
	}
	return nil
}
