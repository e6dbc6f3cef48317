// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// refusal is an error of the plugin, whole.
type refusal struct {
	Code         uint
	Msg, Details string
}

func refusalOf(a nodetest.Answer) refusal {
	if a.Error == nil {
		return refusal{}
	}
	return refusal{a.Error.Code, a.Error.Msg, a.Error.Details}
}

// What an ADD cannot do, it says, and leaves nothing behind.
func TestRefusedADD(t *testing.T) {
	s := running(t)
	s.Attach(t, "first", s.pods)
	s.Attach(t, "only", s.Network("tiny", "10.40.0.0/30"))
	before := s.State(t)
	taken := nstest.New(t, "taken")
	taken.Run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
	foreign := api.HostIfName(api.Attachment{ContainerID: "foreign", IfName: "eth0"})

	for _, one := range []struct {
		name    string
		network nodetest.Network
		// id, netns and ns replace those of a fresh container.
		id, netns string
		ns        *nstest.NS
		// prepare and after are done before and after it on the node.
		prepare, after []string
		want           refusal
	}{
		{
			name: "typo", network: s.pods.With("drivr", "routed"),
			want: refusal{
				2, `drivr: "routed" is not supported: unknown key; did you mean "driver"?`,
				"known keys are driver, socket, ipMasq, mtu, ingressPolicy, icc, routes, ipam, dns, ingressRate, ingressBurst, egressRate, egressBurst, unshapedSubnets, cniVersion, cniVersions, name, type, capabilities, " +
					"runtimeConfig, args, prevResult, disableCheck, disableGC, loadOnlyInlinedPlugins",
			},
		},
		{
			name: "ranges of another network", network: s.Network("other", "10.10.128.0/17"),
			want: refusal{4, "prepare: ipam.ranges: use range 10.10.128.0/17 (gateway 10.10.128.1) of network other: " +
				"overlaps range 10.10.0.0/16 (gateway 10.10.0.1) of network pods", ""},
		},
		{
			name: "ranges that overlap", network: s.Network("other", "10.20.0.0/24", "10.20.0.128/25"),
			want: refusal{7, `prepare: ipam.ranges[1][0].subnet: check ranges[1][0].subnet "10.20.0.128/25": ` +
				`its range 10.20.0.130-10.20.0.254 overlaps 10.20.0.2-10.20.0.254 of ranges[0][0]`, ""},
		},
		{
			name: "range of the node's LAN", network: s.Network("other", "192.0.2.0/24"),
			want: refusal{7, "prepare: ipam.ranges[0][0].subnet: subnet 192.0.2.0/24 holds 192.0.2.1, an address of this node on up0", ""},
		},
		{
			name: "range with the node's router", network: s.Network("other", "2001:db8::2/127"),
			want: refusal{7, "prepare: ipam.ranges[0][0].subnet: subnet 2001:db8::2/127 holds 2001:db8::2, the next hop of the node's route default by up0", ""},
		},
		{
			name: "link-local range", network: s.Network("other", "169.254.9.0/24"),
			want: refusal{7, `prepare: ipam.ranges[0][0].subnet: check ranges[0][0].subnet "169.254.9.0/24": is in 169.254.0.0/16: link-local addresses`, ""},
		},
		{
			name: "exhausted", network: s.Network("tiny", "10.40.0.0/30"),
			want: refusal{11, "prepare: ipam.ranges: allocate from network tiny: range set 0 (10.40.0.0/30) is exhausted: leased 1 of 1 addresses", ""},
		},
		{
			name: "netns gone", network: s.pods, netns: "/run/netns/tdt-gone",
			want: refusal{4, "CNI_NETNS: there is no /run/netns/tdt-gone", ""},
		},
		{
			name: "netns is none", network: s.pods, netns: "/etc/passwd",
			want: refusal{4, "CNI_NETNS: /etc/passwd is not a network namespace", ""},
		},
		{
			name: "netns of the node", network: s.pods, netns: s.Path,
			want: refusal{4, "CNI_NETNS: " + s.Path + " is the network namespace that the plugin runs in", ""},
		},
		{
			name: "interface taken", network: s.pods, ns: taken,
			want: refusal{4, "CNI_IFNAME: interface eth0 exists in " + taken.Path + " already", ""},
		},
		{
			name: "container taken", network: s.pods, id: "first",
			want: refusal{4, `prepare: ifName: container first already has interface eth0, in network "pods": DEL must come first`, ""},
		},
		{
			name: "host's name taken", network: s.pods, id: "foreign",
			prepare: []string{"ip", "link", "add", foreign, "type", "veth", "peer", "name", "peer0"}, after: []string{"ip", "link", "del", foreign},
			want: refusal{4, "create " + foreign + " in the host: interface name is taken: create veth pair " + foreign + " and eth0: file exists", ""},
		},
		{
			name: "wanted address taken", network: s.pods.With("args", map[string]any{"cni": map[string]any{"ips": []any{"10.10.0.2"}}}),
			want: refusal{4, "prepare: ips: allocate 10.10.0.2: leased to container first interface eth0 in network pods", ""},
		},
		{
			name: "MTU too small for IPv6", network: s.pods.With("mtu", 1000),
			want: refusal{7, `prepare: mtu "1000": is not 0 or from 1280 to 65535`, ""},
		},
		{
			name: "no agent there", network: s.pods.With("socket", "/run/tdt-none.sock"),
			want: refusal{11, "prepare: call agent at /run/tdt-none.sock: agent is not available: dial unix /run/tdt-none.sock: connect: no such file or directory", ""},
		},
	} {
		t.Run(one.name, func(t *testing.T) {
			c := &nodetest.Container{NS: one.ns, Network: one.network}
			if c.NS == nil {
				c.NS = nstest.New(t, "refused")
			}
			c.ContainerID, c.IfName = "refused", "eth0"
			if one.id != "" {
				c.ContainerID = one.id
			}
			if one.prepare != nil {
				s.Run(t, one.prepare[0], one.prepare[1:]...)
			}
			call := c.Call("ADD")
			if one.netns != "" {
				call.NetNS = one.netns
			}
			links := nodetest.Lines(t, c.NS, "ip", "-o", "link", "show")
			if diff := cmp.Diff(one.want, refusalOf(s.Call(t, call))); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(links, nodetest.Lines(t, c.NS, "ip", "-o", "link", "show")); diff != "" {
				t.Errorf("links of the container (-before +after):\n%s", diff)
			}
			if one.after != nil {
				s.Run(t, one.after[0], one.after[1:]...)
			}
			s.BecomesRecorded(t, before)
		})
	}
}

// STATUS refuses the ranges that ADD would refuse, and accepts a slice of the LAN
// that nobody needs.
func TestStatusOfRanges(t *testing.T) {
	s := running(t)
	before := s.State(t)
	for subnet, want := range map[string]refusal{
		"192.0.2.0/24":  {7, "ipam.ranges[0][0].subnet: subnet 192.0.2.0/24 holds 192.0.2.1, an address of this node on up0", ""},
		"192.0.2.64/26": {},
	} {
		call := nodetest.Call{Command: "STATUS", Network: s.Network("other", subnet)}
		if diff := cmp.Diff(want, refusalOf(s.Call(t, call))); diff != "" {
			t.Errorf("STATUS with %s (-want +got):\n%s", subnet, diff)
		}
	}
	s.BecomesRecorded(t, before)
}

// A second agent that would share anything with the first is refused, names
// it, and disturbs nothing.
func TestSecondAgent(t *testing.T) {
	s := running(t)
	c := s.Attach(t, "c", s.pods)
	before := s.State(t)
	other := t.TempDir()
	own := map[string]string{
		"--socket":    filepath.Join(other, "agent.sock"),
		"--state-dir": filepath.Join(other, "state"),
		"--bpf-root":  filepath.Join(filepath.Dir(s.BPFRoot), "other"),
	}
	for _, one := range []struct{ flag, want string }{
		{"--socket", fmt.Sprintf("tendril-agent: socket %s is in use by the agent with pid %d", s.Socket, s.Agent().PID)},
		{"--state-dir", fmt.Sprintf("tendril-agent: state-dir %s is in use by the agent with pid %d", s.StateDir, s.Agent().PID)},
		{"--bpf-root", fmt.Sprintf("tendril-agent: bpf-root %s is in use by the agent with pid %d", s.BPFRoot, s.Agent().PID)},
	} {
		t.Run(one.flag, func(t *testing.T) {
			flags := []string{"--metrics-address", ""}
			for flag, place := range own {
				if flag != one.flag {
					flags = append(flags, flag, place)
				}
			}
			if diff := cmp.Diff(one.want, s.Refused(t, flags...)); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			s.Becomes(t, before)
		})
	}
	if answer := s.Call(t, c.Call("DEL")); answer.Error != nil {
		t.Errorf("DEL after all of them: %v", answer.Error)
	}
}

// A state file that was cut is refused and left as it is; put right, it serves
// the containers that were there.
func TestStateFileCut(t *testing.T) {
	s := running(t)
	c := s.Attach(t, "c", s.pods)
	before := s.State(t)
	s.Stop(t)
	file := filepath.Join(s.StateDir, "state.db")
	whole := must(os.ReadFile(file))(t)
	half := whole[:len(whole)/2]
	if err := os.WriteFile(file, half, 0o600); err != nil {
		t.Fatal(err)
	}
	kernel := s.Kernel(t)
	want := fmt.Sprintf("tendril-agent: read state file %s: damaged: open %s: corrupt state file: cut short: it has %d bytes of N; "+
		"it describes the containers that run now: stop them, remove it with `tendril-agent cleanup --force` and start again",
		file, file, len(half))
	// How many are missing is for the file to know.
	got := regexp.MustCompile(`bytes of \d+;`).ReplaceAllString(s.Refused(t), "bytes of N;")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
	if string(must(os.ReadFile(file))(t)) != string(half) {
		t.Error("the file was changed")
	}
	if diff := cmp.Diff(kernel, s.Kernel(t)); diff != "" {
		t.Errorf("the node (-before +after):\n%s", diff)
	}
	if err := os.WriteFile(file, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Start(t)
	s.BecomesRecorded(t, before)
	s.Delete(t, c)
}

// A map that was pinned with another layout is refused, and nothing is touched.
func TestIncompatibleMap(t *testing.T) {
	for _, one := range []struct {
		name, want string
		spec       ebpf.MapSpec
	}{
		{"keys", "its keys have 8 bytes, not 48", ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 8, ValueSize: 96, MaxEntries: 1024}},
		{"values", "its values have 8 bytes, not 96", ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 48, ValueSize: 8, MaxEntries: 1024}},
		{"type", "its type is Hash, not LRUHash", ebpf.MapSpec{Type: ebpf.Hash, KeySize: 48, ValueSize: 96, MaxEntries: 1024}},
	} {
		t.Run(one.name, func(t *testing.T) {
			s := newSite(t)
			path := filepath.Join(s.BPFRoot, "maps", "flows")
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := rlimit.RemoveMemlock(); err != nil { // before Linux 5.11 maps count against it
				t.Fatal(err)
			}
			m := must(ebpf.NewMap(&one.spec))(t)
			closeAtEnd(t, m)
			if err := m.Pin(path); err != nil {
				t.Fatal(err)
			}
			links := nodetest.Lines(t, s.NS, "ip", "-d", "-o", "link", "show")
			want := fmt.Sprintf("tendril-agent: open datapath: map %s was pinned by an incompatible version: %s", path, one.want)
			if diff := cmp.Diff(want, s.Refused(t)); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(links, nodetest.Lines(t, s.NS, "ip", "-d", "-o", "link", "show")); diff != "" {
				t.Errorf("links (-before +after):\n%s", diff)
			}
			pins := must(filepath.Glob(filepath.Join(s.BPFRoot, "*", "*")))(t)
			if diff := cmp.Diff([]string{path}, pins); diff != "" {
				t.Errorf("pins (-want +got):\n%s", diff)
			}
			if got := strings.TrimSpace(s.Run(t, "cat", "/proc/sys/net/ipv4/ip_local_reserved_ports")); got != "" {
				t.Errorf("ports were reserved: %q", got)
			}
		})
	}
}

// A slip in the agent's configuration names the key that was meant.
func TestAgentConfiguration(t *testing.T) {
	s := newSite(t)
	file := filepath.Join(t.TempDir(), "tendril.yaml")
	if err := os.WriteFile(file, []byte("flow-max: 4096\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := "tendril-agent: read configuration " + file + `: line 1: unknown key "flow-max"; did you mean "flows-max"?`
	if diff := cmp.Diff(want, s.Refused(t, "--config", file)); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}
