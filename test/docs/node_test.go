// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tendril-net/tendril/internal/nstest"
)

// patience bounds every wait for the machine. It is longer than the time that the
// script node gives a command.
const patience = 90 * time.Second

// build makes the programs once for all tests.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "tendril-docs-")
	if err != nil {
		return "", err
	}
	for program, source := range map[string]string{"tendril-agent": "agent", "tendril-cni": "cni", "tendril": "tendril"} {
		command := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(dir, program), "./cmd/"+source)
		command.Dir = root
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := command.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("build %s: %w\n%s", program, err, out)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if os.Geteuid() == 0 {
		if dir, _ := build(); dir != "" {
			_ = os.RemoveAll(dir)
		}
	}
	os.Exit(code)
}

func programs(tb testing.TB) string {
	tb.Helper()
	dir, err := build()
	if err != nil {
		tb.Fatal(err)
	}
	return dir
}

// node is a machine of the script node.
type node struct {
	dir     string
	count   int
	scripts io.WriteCloser
	answers chan string
}

// newNode starts a machine. It has an agent, no containers, and what extra says.
func newNode(tb testing.TB, extra ...string) *node {
	tb.Helper()
	nstest.Root(tb)
	needs := []string{"unshare", "ip", "tc", "bpftool", "busybox", "ping", "curl", "jq", "make", "promtool"}
	for _, tool := range needs {
		if _, err := exec.LookPath(tool); err != nil {
			tb.Fatalf("the documentation is tried with %s: %v", strings.Join(needs, ", "), err)
		}
	}
	before := podmanGroups(tb)
	tb.Cleanup(func() { removePodmanGroups(tb, before) })

	n := &node{dir: tb.TempDir(), answers: make(chan string)}
	args := []string{"--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc", "./node", programs(tb)}
	command := exec.Command("unshare", append(args, extra...)...)
	var faults bytes.Buffer
	command.Stderr = &faults
	command.WaitDelay = patience // a process of a page may hold the pipe
	scripts, err := command.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	answers, err := command.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := command.Start(); err != nil {
		tb.Fatal(err)
	}
	n.scripts = scripts
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(n.answers)
		for lines := bufio.NewScanner(answers); lines.Scan(); {
			n.answers <- lines.Text()
		}
	}()
	tb.Cleanup(func() {
		_ = scripts.Close()
		_ = command.Process.Kill() // its child goes with it
		for range n.answers {
		}
		<-ended
		_ = command.Wait()
		if tb.Failed() {
			tb.Logf("the machine said:\n%s", &faults)
		}
	})
	if answer := n.answer(tb); answer != "ready" {
		tb.Fatalf("the machine is not ready: %q", answer)
	}
	return n
}

func (n *node) answer(tb testing.TB) string {
	tb.Helper()
	select {
	case answer := <-n.answers:
		return answer
	case <-time.After(patience):
		tb.Fatal("the machine does not answer")
	}
	return ""
}

// try runs a script and returns what it printed and its exit code. Variables
// that it exports are there in the next one.
func (n *node) try(tb testing.TB, script string) (string, int) {
	tb.Helper()
	n.count++
	path := filepath.Join(n.dir, strconv.Itoa(n.count))
	text := "if [[ -e /run/exports ]]; then . /run/exports; fi\n" + script + "\nexport -p >/run/exports\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	if _, err := fmt.Fprintln(n.scripts, path); err != nil {
		tb.Fatal(err)
	}
	code, err := strconv.Atoi(n.answer(tb))
	if err != nil {
		tb.Fatal(err)
	}
	out, err := os.ReadFile(path + ".out")
	if err != nil {
		tb.Fatal(err)
	}
	return string(out), code
}

// run is try for what must succeed.
func (n *node) run(tb testing.TB, script string) string {
	tb.Helper()
	out, code := n.try(tb, script)
	if code != 0 {
		tb.Fatalf("exit code %d of\n%s\n%s", code, script, out)
	}
	return out
}

// network is what pages other than the README take for granted.
const network = `{"cniVersion": "1.1.0", "name": "pods", "type": "tendril-cni", "ipMasq": true,
  "ipam": {"type": "tendril", "ranges": [[{"subnet": "10.10.0.0/16"}], [{"subnet": "fd00:10::/64"}]]}}`

// lan is a network of macvlan containers, in that of the uplink.
const lan = `{"cniVersion": "1.1.0", "name": "lan", "type": "tendril-cni", "driver": "macvlan", "master": "eth0",
  "ipam": {"type": "tendril", "ranges": [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.192", "gateway": "192.0.2.1"}]]}}`

// containers attaches c1 and c2 to the former and c3 to the latter, which have then talked
// to the world. c2 has ports of the host.
const containers = `cat >/run/pods.json <<'END'
` + network + `
END
jq '. + {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80},
	{"hostPort": 5300, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}]},
	"args": {"cni": {"labels": [{"key": "app", "value": "web"}]}}}' /run/pods.json >/run/c2.json
ln -s pods.json /run/c1.json
cat >/run/c3.json <<'END'
` + lan + `
END
for name in c1 c2 c3; do
	ip netns add $name
	CNI_COMMAND=ADD CNI_CONTAINERID=$name CNI_NETNS=/run/netns/$name CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin \
		/opt/cni/bin/tendril-cni </run/$name.json
	ip netns exec $name ping -c 1 192.0.2.1
done`

const cgroups = "/sys/fs/cgroup"

// podmanGroups are the control groups in which Podman puts its containers: the
// one thing it makes outside of the machine's namespaces.
func podmanGroups(tb testing.TB) []string {
	tb.Helper()
	var groups []string
	err := filepath.WalkDir(cgroups, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && strings.Contains(path, "/libpod_parent") {
			groups = append(groups, path)
		}
		return nil // a group that has just gone is no fault
	})
	if err != nil {
		tb.Fatal(err)
	}
	return groups
}

func removePodmanGroups(tb testing.TB, keep []string) {
	tb.Helper()
	groups := podmanGroups(tb)
	slices.Reverse(groups) // children first
	for _, group := range groups {
		if !slices.Contains(keep, group) {
			_ = os.Remove(group) // in use by somebody else's container, or gone
		}
	}
}
