// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/internal/nstest"
)

// device makes an ethernet device that is up and returns what Find says of it
// when it has no addresses.
func device(t *testing.T, ns *nstest.NS, name string) Uplink {
	t.Helper()
	nstest.Veth(t, ns, name, ns, name+"p")
	link, err := ns.Handle.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return Uplink{Name: name, IfIndex: link.Attrs().Index, MTU: 1500, MAC: link.Attrs().HardwareAddr}
}

func with(u Uplink, v4, v6 string) Uplink {
	if v4 != "" {
		u.IPv4 = netip.MustParseAddr(v4)
	}
	if v6 != "" {
		u.IPv6 = netip.MustParseAddr(v6)
	}
	return u
}

// ip runs several commands. Those that follow one another for the same family share a
// process: to start one is what an emulated machine is slow at.
func ip(t *testing.T, ns *nstest.NS, commands ...[]string) {
	t.Helper()
	for len(commands) > 0 {
		args, isV6 := []string{"-batch", "-"}, commands[0][0] == "-6"
		if isV6 {
			args = append([]string{"-6"}, args...)
		}
		var batch strings.Builder
		for len(commands) > 0 && (commands[0][0] == "-6") == isV6 {
			fmt.Fprintln(&batch, strings.TrimPrefix(strings.Join(commands[0], " "), "-6 "))
			commands = commands[1:]
		}
		command := ns.Command("ip", args...)
		command.Stdin = strings.NewReader(batch.String())
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("in %s: ip: %v\n%s%s", ns.Name, err, &batch, out)
		}
	}
}

func diff(want, got []Uplink) string {
	return cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty())
}

func TestFind(t *testing.T) {
	// Each case has devices a0 and b0, up and without addresses.
	tests := map[string]struct {
		commands [][]string
		names    []string
		own      string
		want     func(a, b Uplink) []Uplink
		flaws    []Flaw
	}{
		"no default route": {
			commands: [][]string{{"addr", "add", "192.0.2.2/24", "dev", "a0"}},
			want:     func(_, _ Uplink) []Uplink { return nil },
		},
		"address on the gateway's subnet before the first": {
			commands: [][]string{
				{"addr", "add", "198.51.100.2/24", "dev", "a0"},
				{"addr", "add", "192.0.2.2/24", "dev", "a0"},
				{"route", "add", "default", "via", "192.0.2.1"},
			},
			want: func(a, _ Uplink) []Uplink { return []Uplink{with(a, "192.0.2.2", "")} },
		},
		"preferred source of the best route": {
			commands: [][]string{
				{"addr", "add", "192.0.2.2/24", "dev", "a0"},
				{"addr", "add", "192.0.2.3/24", "dev", "a0"},
				{"addr", "add", "192.0.2.4/24", "dev", "a0"},
				{"route", "add", "default", "via", "192.0.2.1", "src", "192.0.2.4", "metric", "20"},
				{"route", "add", "default", "via", "192.0.2.1", "src", "192.0.2.3", "metric", "10"},
			},
			want: func(a, _ Uplink) []Uplink { return []Uplink{with(a, "192.0.2.3", "")} },
		},
		"two devices, two families": {
			commands: [][]string{
				{"addr", "add", "192.0.2.2/24", "dev", "b0"},
				{"route", "add", "default", "via", "192.0.2.1"},
				{"addr", "add", "2001:db8::2/64", "dev", "a0", "nodad"},
				{"-6", "route", "add", "default", "via", "2001:db8::1", "dev", "a0"},
			},
			want: func(a, b Uplink) []Uplink { return []Uplink{with(a, "", "2001:db8::2"), with(b, "192.0.2.2", "")} },
		},
		"next hops of a multipath route": {
			commands: [][]string{
				{"addr", "add", "192.0.2.2/24", "dev", "a0"},
				{"addr", "add", "198.51.100.2/24", "dev", "b0"},
				{"route", "add", "default", "nexthop", "via", "192.0.2.1", "nexthop", "via", "198.51.100.1"},
			},
			want: func(a, b Uplink) []Uplink { return []Uplink{with(a, "192.0.2.2", ""), with(b, "198.51.100.2", "")} },
		},
		"next hops of an IPv6 multipath route": {
			commands: [][]string{
				{"addr", "add", "2001:db8:1::2/64", "dev", "a0", "nodad"},
				{"addr", "add", "2001:db8:2::2/64", "dev", "b0", "nodad"},
				{"-6", "route", "add", "default", "nexthop", "via", "2001:db8:1::1", "nexthop", "via", "2001:db8:2::1"},
			},
			want: func(a, b Uplink) []Uplink {
				return []Uplink{with(a, "", "2001:db8:1::2"), with(b, "", "2001:db8:2::2")}
			},
		},
		"next hop object": {
			commands: [][]string{
				{"addr", "add", "192.0.2.2/24", "dev", "a0"},
				{"nexthop", "add", "id", "7", "via", "192.0.2.1", "dev", "a0"},
				{"route", "add", "default", "nhid", "7"},
			},
			want: func(a, _ Uplink) []Uplink { return []Uplink{with(a, "192.0.2.2", "")} },
		},
		"IPv4 by an IPv6 gateway": {
			commands: [][]string{
				{"addr", "add", "192.0.2.2/32", "dev", "a0"},
				{"route", "add", "default", "via", "inet6", "fe80::1", "dev", "a0"},
			},
			want: func(a, _ Uplink) []Uplink { return []Uplink{with(a, "192.0.2.2", "")} },
		},
		"default route of another table": {
			commands: [][]string{
				{"addr", "add", "192.0.2.2/24", "dev", "a0"},
				{"route", "add", "default", "via", "192.0.2.1", "table", "100"},
			},
			want: func(_, _ Uplink) []Uplink { return nil },
		},
		"unreachable default route": {
			commands: [][]string{{"route", "add", "unreachable", "default"}},
			want:     func(_, _ Uplink) []Uplink { return nil },
		},
		"IPv6 addresses that are not to be used": {
			commands: [][]string{
				{"addr", "add", "fd00::2/64", "dev", "a0", "nodad"},
				{"addr", "add", "2001:db8::3/64", "dev", "a0", "nodad", "preferred_lft", "0"},
				{"addr", "add", "2001:db8::4/64", "dev", "a0", "nodad"},
				{"-6", "route", "add", "default", "via", "fe80::1", "dev", "a0"},
			},
			want: func(a, _ Uplink) []Uplink { return []Uplink{with(a, "", "2001:db8::4")} },
		},
		"unique local address when there is no other": {
			commands: [][]string{
				{"addr", "add", "fd00::2/64", "dev", "a0", "nodad"},
				{"-6", "route", "add", "default", "via", "fe80::1", "dev", "a0"},
			},
			want: func(a, _ Uplink) []Uplink { return []Uplink{with(a, "", "fd00::2")} },
		},
		"device that is not ethernet": {
			commands: [][]string{{"route", "add", "default", "dev", "lo"}, {"-6", "route", "add", "default", "dev", "lo"}},
			want:     func(_, _ Uplink) []Uplink { return nil },
			flaws:    []Flaw{{"lo", NotEthernet}},
		},
		"device of our own": {
			commands: [][]string{{"route", "add", "default", "dev", "a0"}},
			own:      "a0",
			want:     func(_, _ Uplink) []Uplink { return nil },
		},
		"named": {
			commands: [][]string{
				{"addr", "add", "192.0.2.2/24", "dev", "a0"},
				{"route", "add", "default", "via", "192.0.2.1"},
				{"addr", "add", "198.51.100.2/24", "dev", "b0"},
				{"link", "set", "b0", "mtu", "1400"},
			},
			names: []string{"b0", "missing0", "b0"},
			want: func(_, b Uplink) []Uplink {
				b.MTU = 1400
				return []Uplink{with(b, "198.51.100.2", "")}
			},
			flaws: []Flaw{{"missing0", Absent}},
		},
		"without address": {
			commands: [][]string{{"-6", "route", "add", "default", "via", "fe80::1", "dev", "a0"}},
			want:     func(a, _ Uplink) []Uplink { return []Uplink{a} },
			flaws:    []Flaw{{"a0", NoAddress}},
		},
		"named and of no use": {
			commands: [][]string{{"link", "set", "b0", "down"}},
			names:    []string{"b0", "lo", "own0", "a0"},
			own:      "a0",
			want:     func(_, b Uplink) []Uplink { return []Uplink{b} },
			flaws:    []Flaw{{"lo", NotEthernet}, {"own0", Absent}, {"a0", Own}, {"b0", Down}},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			ns := nstest.New(t, "uplink")
			a, b := device(t, ns, "a0"), device(t, ns, "b0")
			ip(t, ns, test.commands...)
			got, err := Find(Options{
				NetNS: ns.Path,
				Names: test.names,
				Own:   func(name string) bool { return name == test.own },
			})
			if err != nil {
				t.Fatal(err)
			}
			if d := diff(test.want(a, b), got.Uplinks); d != "" {
				t.Errorf("uplinks (-want +got):\n%s", d)
			}
			if d := cmp.Diff(test.flaws, got.Flaws); d != "" {
				t.Errorf("flaws (-want +got):\n%s", d)
			}
		})
	}
}

func TestFindNoNamespace(t *testing.T) {
	if _, err := Find(Options{NetNS: t.TempDir() + "/missing"}); err == nil {
		t.Error("Find in a namespace that does not exist: no error")
	}
}

func TestStrings(t *testing.T) {
	for want, got := range map[string]interface{ String() string }{
		"eth0 192.0.2.2 2001:db8::2":                    with(Uplink{Name: "eth0"}, "192.0.2.2", "2001:db8::2"),
		"eth0 2001:db8::2":                              with(Uplink{Name: "eth0"}, "", "2001:db8::2"),
		"eth0 without address":                          Uplink{Name: "eth0"},
		"there is no device eht0":                       Flaw{"eht0", Absent},
		"device tdl1 is a container's":                  Flaw{"tdl1", Own},
		"device eth1 is down":                           Flaw{"eth1", Down},
		"device wg0 is not an ethernet device":          Flaw{"wg0", NotEthernet},
		"device eth1 has no address to masquerade with": Flaw{"eth1", NoAddress},
	} {
		if got.String() != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
