// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// add does an ADD without a container: the peer of the host side stays here.
func add(t *testing.T, m *machine, client *api.Client, container string) api.Endpoint {
	t.Helper()
	e, err := client.Prepare(t.Context(), api.PrepareRequest{
		Attachment: api.Attachment{ContainerID: container, IfName: "eth0"},
		NetNS:      "/run/netns/" + container,
		Network: api.Network{
			Name: "pods", Driver: "routed", IPMasq: true,
			Ranges: []api.RangeSet{{{Subnet: netip.MustParsePrefix("10.10.0.0/24")}}},
		},
	})
	must(t, err)
	m.ns.Run(t, "ip", "link", "add", e.HostIfName, "address", e.HostMAC, "type", "veth", "peer", "name", "p"+container)
	link, err := m.ns.Handle.LinkByName(e.HostIfName)
	must(t, err)
	e, err = client.Attach(t.Context(), e.Attachment, api.AttachRequest{HostIfIndex: link.Attrs().Index})
	must(t, err)
	return e
}

func newClient(t *testing.T, m *machine) *api.Client {
	client := api.NewClient(m.socket)
	t.Cleanup(client.Close)
	return client
}

// traces is what an agent leaves on a node on purpose.
func (m *machine) traces(t *testing.T) string {
	t.Helper()
	text := m.ns.Run(t, "cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding",
		"/proc/sys/net/ipv6/conf/up0/accept_ra", "/proc/sys/net/ipv4/ip_local_reserved_ports")
	links, err := m.ns.Handle.LinkList()
	must(t, err)
	for _, link := range links {
		text += link.Attrs().Name + "\n"
	}
	text += m.ns.Run(t, "ip", "route", "show")
	text += m.ns.Run(t, "ip", "-6", "route", "show", "type", "unreachable")
	for _, path := range []string{m.state, filepath.Dir(m.socket), m.root} {
		entries, err := os.ReadDir(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			text += filepath.Join(filepath.Base(path), e.Name()) + "\n"
		}
	}
	return text
}

func TestLifeOfAnAgent(t *testing.T) {
	m := newMachine(t)
	before := m.traces(t)
	agent := m.start(t, nil)
	client := newClient(t, m)

	health, err := client.Health(t.Context())
	must(t, err)
	if !health.OK {
		t.Errorf("health: %+v", health)
	}
	status, err := client.Status(t.Context())
	must(t, err)
	want := api.Uplink{
		Name: "up0", State: api.UplinkUsed, IfIndex: status.Uplinks[0].IfIndex, MTU: 1500,
		IPv4: netip.MustParseAddr("192.0.2.2"), IPv6: netip.MustParseAddr("2001:db8::2"),
	}
	if d := cmp.Diff([]api.Uplink{want}, status.Uplinks, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("uplinks (-want +got):\n%s", d)
	}
	for path, mode := range map[string]os.FileMode{
		m.socket: 0o600 | os.ModeSocket, filepath.Dir(m.socket): 0o700 | os.ModeDir, statePath(m.state): 0o600,
	} {
		info, err := os.Stat(path)
		must(t, err)
		if info.Mode() != mode {
			t.Errorf("%s has mode %v, want %v", path, info.Mode(), mode)
		}
	}
	e := add(t, m, client, "c1")
	must(t, client.Check(t.Context(), e.Attachment))
	metrics := m.ns.Run(t, "curl", "-sf", "http://"+m.metrics+"/metrics")
	for _, line := range []string{`tendril_endpoints{state="ready"} 1`, `tendril_cni_requests_total{operation="attach",result="ok"} 1`} {
		if !strings.Contains(metrics, line+"\n") {
			t.Errorf("metrics lack %s", line)
		}
	}

	agent.stop(t)
	if _, err := os.Stat(m.socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	if _, err := client.Health(t.Context()); !errors.Is(err, api.ErrUnavailable) {
		t.Errorf("health without agent: %v", err)
	}

	again := m.start(t, nil)
	client = newClient(t, m)
	must(t, client.Check(t.Context(), e.Attachment))
	again.kill(t)

	third := m.start(t, nil) // over a stale socket
	client = newClient(t, m)
	must(t, client.Check(t.Context(), e.Attachment))
	if got := m.fails(t, append([]string{"cleanup"}, m.args()...)...); !strings.Contains(got, fmt.Sprintf("in use by the agent with pid %d", third.cmd.Process.Pid)) {
		t.Errorf("cleanup beside an agent: %s", got)
	}
	// With other directories too, and before a device is touched.
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	got := m.fails(t, "cleanup", "--force", "--socket", filepath.Join(elsewhere, "agent.sock"), "--state-dir", elsewhere, "--bpf-root", filepath.Join(m.root, "elsewhere"))
	if !strings.Contains(got, "another agent serves this network namespace: stop it first") {
		t.Errorf("cleanup with other directories beside an agent: %s", got)
	}
	must(t, client.Check(t.Context(), e.Attachment))
	third.stop(t)
	// Without its memory the agent would cut the endpoint off.
	state := filepath.Join(m.state, "state.db")
	must(t, os.Rename(state, state+".away"))
	if got := m.fails(t, m.args()...); !strings.Contains(got, "knows no endpoint, but 1 are attached") {
		t.Errorf("start without the state file: %s", got)
	}
	must(t, os.Rename(state+".away", state))
	if got := m.fails(t, append([]string{"cleanup"}, m.args()...)...); !strings.Contains(got, "1 endpoints still exist") {
		t.Errorf("cleanup with an endpoint: %s", got)
	}
	// Records that nobody can read do not keep it from what can be.
	db, err := bbolt.Open(state, 0o600, nil)
	must(t, err)
	must(t, db.Update(func(tx *bbolt.Tx) error {
		return errors.Join(tx.Bucket([]byte("endpoints")).Put([]byte("c9/eth0"), []byte("{")), tx.Bucket([]byte("settings")).Put([]byte("kernel/none"), []byte("{}")))
	}))
	must(t, db.Close())
	for _, args := range [][]string{m.args(), append([]string{"cleanup"}, m.args()...)} {
		if got := m.fails(t, args...); !strings.Contains(got, `read endpoint "c9/eth0"`) || !strings.Contains(got, "cleanup --force") {
			t.Errorf("with a damaged record: %s", got)
		}
	}
	for range 2 {
		cmd, log := m.command(append([]string{"cleanup", "--force"}, m.args()...)...)
		if err := cmd.Run(); err != nil {
			t.Fatalf("cleanup --force: %v\n%s", err, log)
		}
		if d := cmp.Diff(before, m.traces(t)); d != "" {
			t.Errorf("left on the node (-before +after):\n%s", d)
		}
	}
}

func TestLinksAndUplinksAreFollowed(t *testing.T) {
	m := newMachine(t)
	m.start(t, nil)
	client := newClient(t, m)
	e := add(t, m, client, "c1")
	m.ns.Run(t, "ip", "link", "del", e.HostIfName)
	await(t, "the end of the endpoint's device", func() bool {
		status, err := client.Status(t.Context())
		must(t, err)
		for _, one := range status.Maps {
			if one.Name == "endpoints" {
				return one.Entries != nil && *one.Entries == 0
			}
		}
		return false
	})
	list, err := client.Endpoints(t.Context())
	must(t, err)
	if len(list) != 1 || list[0].State != api.Detached {
		t.Errorf("endpoints without device: %+v", list)
	}
	m.ns.Run(t, "ip", "link", "add", "up1", "type", "veth", "peer", "name", "world1")
	m.ns.Run(t, "ip", "link", "set", "up1", "up")
	m.ns.Run(t, "ip", "route", "add", "default", "dev", "up1", "metric", "7")
	await(t, "a second uplink", func() bool {
		status, err := client.Status(t.Context())
		must(t, err)
		return len(status.Uplinks) == 2
	})
	if got := m.ns.Run(t, "cat", "/proc/sys/net/ipv6/conf/up1/accept_ra"); got != "2\n" {
		t.Errorf("accept_ra of the second uplink is %q, want 2", got)
	}
}

// TestUplinkThatIsAbsent gives a name that no device has yet.
func TestUplinkThatIsAbsent(t *testing.T) {
	m := newMachine(t)
	running := m.start(t, nil, "--uplinks", "up0,later0")
	client := newClient(t, m)
	uplinks := func() []api.Uplink {
		status, err := client.Status(t.Context())
		must(t, err)
		if !status.OK {
			t.Errorf("health: %+v", status.Health)
		}
		return status.Uplinks
	}
	if d := cmp.Diff(api.Uplink{Name: "later0", State: "absent"}, uplinks()[1], cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("absent uplink (-want +got):\n%s", d)
	}
	m.ns.Run(t, "ip", "link", "add", "later0", "type", "veth", "peer", "name", "worldlater0")
	await(t, "the uplink", func() bool { return uplinks()[1].IfIndex != 0 })
	m.ns.Run(t, "ip", "link", "del", "later0")
	await(t, "its end", func() bool { return uplinks()[1].State == "absent" })
	running.stop(t)
	log := running.log.String()
	if got := strings.Count(log, `level=WARN msg="uplinks: there is no device later0"`); got != 2 {
		t.Errorf("the absent uplink was told %d times, want at start and at its end:\n%s", got, log)
	}
	if !strings.Contains(log, `msg="uplinks changed" uplinks="up0 192.0.2.2 2001:db8::2`) || strings.Contains(log, "invalid IP") {
		t.Errorf("log:\n%s", log)
	}
}

// TestChangedSizes starts an agent on maps that have another size than it wants.
func TestChangedSizes(t *testing.T) {
	m := newMachine(t)
	m.start(t, nil).stop(t)
	second := m.start(t, nil, "--flows-max", "4096", "--translations-max", "0")
	for _, want := range []string{"map=flows configured=4096 pinned=2048", "map=translations configured=131072 pinned=2048", "tendril-agent cleanup"} {
		if log := second.log.String(); !strings.Contains(log, want) {
			t.Errorf("log lacks %q:\n%s", want, log)
		}
	}
}

func TestTwoAgentsSideBySide(t *testing.T) {
	a, b := newMachine(t), newMachine(t)
	for _, m := range []*machine{a, b} {
		m.start(t, nil)
	}
	for _, m := range []*machine{a, b} {
		if e := add(t, m, newClient(t, m), "c1"); e.ID != 1 {
			t.Errorf("endpoint %d, want the first", e.ID)
		}
	}
}

// TestMountsBPF gives the agent a bpf-root that is on no bpf file system.
func TestMountsBPF(t *testing.T) {
	m := newMachine(t)
	m.root = filepath.Join(t.TempDir(), "bpf", "tendril")
	agent := m.start(t, nil)
	if log := agent.log.String(); !strings.Contains(log, `msg="bpf file system mounted" path=`+m.root) {
		t.Errorf("log: %s", log)
	}
	agent.stop(t)
	second := m.start(t, nil)
	if log := second.log.String(); strings.Contains(log, "mounted") {
		t.Errorf("log of the second agent: %s", log)
	}
	second.stop(t)
	cmd, log := m.command(append([]string{"cleanup"}, m.args()...)...)
	if err := cmd.Run(); err != nil {
		t.Fatalf("cleanup: %v\n%s", err, log)
	}
	if _, err := os.Stat(m.root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("bpf-root is left: %v", err)
	}
}

func TestSocketActivation(t *testing.T) {
	m := newMachine(t)
	path := filepath.Join(t.TempDir(), "activated.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	defer func() { must(t, listener.Close()) }()
	file, err := listener.File()
	must(t, err)
	defer func() { must(t, file.Close()) }()
	agent := m.start(t, func(cmd *exec.Cmd) {
		cmd.ExtraFiles = []*os.File{file}
		// systemd knows the process's number when it sets the variable: so does a shell.
		cmd.Args = append([]string{"sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"`, "sh"}, cmd.Args...)
		shell, err := exec.LookPath("sh")
		must(t, err)
		cmd.Path = shell
	})
	client := api.NewClient(path)
	defer client.Close()
	_, err = client.Health(t.Context())
	must(t, err)
	agent.stop(t)
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the socket is systemd's and must stay: %v", err)
	}
}

func TestWatchdogAndStop(t *testing.T) {
	m := newMachine(t)
	agent := m.start(t, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "WATCHDOG_USEC=100000") })
	agent.await(t, "WATCHDOG=1", nil)
	agent.stop(t)
	agent.await(t, "STOPPING=1", nil)
}

// TestLeastCapabilities runs an agent with what its unit gives it and no more.
func TestLeastCapabilities(t *testing.T) {
	unit, err := os.ReadFile("../../deploy/tendril-agent.service")
	must(t, err)
	_, rest, _ := strings.Cut(string(unit), "\nCapabilityBoundingSet=")
	line, _, _ := strings.Cut(rest, "\n")
	bounding := "-all"
	for _, name := range strings.Fields(line) {
		bounding += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	m := newMachine(t)
	confined := func(cmd *exec.Cmd) {
		setpriv, err := exec.LookPath("setpriv")
		must(t, err)
		// Behind nsenter, which needs more: nsenter --net=... -- setpriv ... agent ...
		i := slices.Index(cmd.Args, "--") + 1
		cmd.Args = slices.Insert(cmd.Args, i, setpriv, "--bounding-set="+bounding, "--inh-caps=-all", "--")
	}
	agent := m.start(t, confined)
	client := newClient(t, m)
	e := add(t, m, client, "c1")
	ofIdentities := func() uint64 {
		status, err := client.Status(t.Context())
		must(t, err)
		i := slices.IndexFunc(status.Maps, func(usage api.Map) bool { return usage.Name == "identities" })
		return status.Maps[i].Memory
	}
	without := ofIdentities()
	_, err = client.ApplyPolicies(t.Context(), api.ApplyRequest{Text: []byte(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p}
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}`)})
	must(t, err)
	must(t, client.Check(t.Context(), e.Attachment))
	if with := ofIdentities(); with <= without {
		t.Errorf("identities take %d bytes with a tree, and %d without", with, without)
	}
	if _, err := client.Policies(t.Context()); err != nil {
		t.Error(err)
	}
	must(t, client.DeletePolicies(t.Context(), "default", []string{"p"}))
	must(t, client.Delete(t.Context(), e.Attachment))

	// What others took from a bridge is put back.
	m.ns.Run(t, "ip", "link", "add", "br0", "address", "02:00:00:00:0b:01", "type", "bridge")
	e, err = client.Prepare(t.Context(), api.PrepareRequest{
		Attachment: api.Attachment{ContainerID: "c2", IfName: "eth0"}, NetNS: "/run/netns/c2", HostMAC: "02:00:00:00:0b:01",
		Network: api.Network{
			Name: "lan", Driver: api.DriverBridge, Bridge: "br0", BridgeGateway: true, Promisc: true, Hairpin: true, Isolated: true,
			Ranges: []api.RangeSet{{{Subnet: netip.MustParsePrefix("10.30.0.0/24")}}, {{Subnet: netip.MustParsePrefix("fd00:30::/64")}}},
		},
	})
	must(t, err)
	m.ns.Run(t, "ip", "link", "add", e.HostIfName, "address", e.HostMAC, "type", "veth", "peer", "name", "pc2")
	link, err := m.ns.Handle.LinkByName(e.HostIfName)
	must(t, err)
	_, err = client.Attach(t.Context(), e.Attachment, api.AttachRequest{HostIfIndex: link.Attrs().Index})
	must(t, err)
	agent.stop(t)
	m.ns.Run(t, "ip", "link", "del", "br0")
	agent = m.start(t, confined)
	health, err := client.Health(t.Context())
	must(t, err)
	if d := cmp.Diff(api.Health{OK: true}, health); d != "" {
		t.Errorf("health (-want +got):\n%s", d)
	}
	must(t, client.Check(t.Context(), e.Attachment))
	if got := m.ns.Run(t, "ip", "-o", "addr", "show", "dev", "br0"); !strings.Contains(got, "10.30.0.1/24") || !strings.Contains(got, "fd00:30::1/64") {
		t.Errorf("addresses of the bridge:\n%s", got)
	}
	agent.stop(t)
}

func TestOnBPFFS(t *testing.T) {
	root := nstest.BPFFS(t)
	for path, want := range map[string]bool{root: true, root + "/a/b": true, t.TempDir(): false, "/missing/a": false} {
		got, err := onBPFFS(path)
		must(t, err)
		if got != want {
			t.Errorf("onBPFFS(%s) = %v, want %v", path, got, want)
		}
	}
}
