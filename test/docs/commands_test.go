// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nstest"
)

// TestPages tries each block of each page, in order, and then compares what the
// pages list with what the programs have. The README begins with a node that has
// no containers; the other pages share one that has two.
func TestPages(t *testing.T) {
	nstest.Root(t)
	t.Run("README.md", func(t *testing.T) {
		t.Parallel()
		readPage(t, "README.md").try(t, newNode(t, "podman"))
	})
	t.Run("docs", func(t *testing.T) {
		t.Parallel()
		n := newNode(t)
		n.run(t, containers)
		for _, p := range pages(t) {
			if p.path != "README.md" {
				t.Run(p.path, func(t *testing.T) { p.try(t, n) })
			}
		}
		t.Run("reference", func(t *testing.T) { compare(t, n) })
	})
}

func (p page) try(t *testing.T, n *node) {
	t.Helper()
	for _, b := range p.blocks(t) {
		t.Run(fmt.Sprintf("%s line %d", b.kind, b.line), func(t *testing.T) { b.try(t, n) })
	}
}

func (b block) try(t *testing.T, n *node) {
	t.Helper()
	switch b.kind {
	case "sh":
		n.run(t, b.text)
	case "sh install":
		b.install(t)
	case "sh podman":
		if _, code := n.try(t, "podman image exists docker.io/library/busybox"); code != 0 {
			t.Log("not tried: there is no Podman with a CNI backend")
			return
		}
		n.run(t, b.text)
	case "console":
		b.console(t, n)
	case "json":
		b.network(t, n)
	case "yaml":
		// An agent runs, and a valid configuration gets as far as to its lock.
		out, code := n.try(t, write("agent.yaml", b.text)+"tendril-agent --config /run/agent.yaml --socket /run/tendril/agent.sock")
		if code != 1 || !strings.Contains(out, "is in use by the agent") {
			t.Errorf("the agent does not accept it: exit code %d\n%s", code, out)
		}
	case "yaml prometheus":
		n.run(t, write("rules.yaml", b.text)+"promtool check rules /run/rules.yaml")
	case "text":
	default:
		t.Errorf("a block of no kind that is tried: %q", b.kind)
	}
}

// write is the command that writes a file in /run.
func write(name, text string) string {
	return fmt.Sprintf("cat >/run/%s <<'END-OF-FILE'\n%s\nEND-OF-FILE\n", name, text)
}

// console runs each command by itself and looks for the lines that are shown.
func (b block) console(t *testing.T, n *node) {
	t.Helper()
	if !strings.HasPrefix(b.text, "$ ") {
		t.Fatal("the block does not begin with a command")
	}
	for _, part := range strings.Split("\n"+b.text, "\n$ ")[1:] {
		command, shown, _ := strings.Cut(part, "\n")
		out := n.run(t, command)
		printed := strings.Split(out, "\n")
		for _, line := range strings.Split(shown, "\n") {
			if want := shape(line); want != "" && want != "..." {
				at := slices.IndexFunc(printed, func(line string) bool { return shape(line) == want })
				if at < 0 {
					t.Errorf("%s does not print (or not in this order)\n%s\nbut\n%s", command, line, out)
					break
				}
				printed = printed[at+1:]
			}
		}
	}
}

var varies = regexp.MustCompile(`\b\d[\d.]* ([KMGTPE]i)?B\b|[^\s,"]*\d[^\s,"]*|\(devel\)`)

// shape is a line without what differs from run to run: numbers, addresses,
// names with numbers, times, blanks.
func shape(line string) string {
	return strings.Join(strings.Fields(varies.ReplaceAllString(line, "#")), " ")
}

// install tries commands for a real machine.
func (b block) install(t *testing.T) {
	t.Helper()
	script, removes := b.text, strings.Contains(b.text, "make uninstall")
	if removes || !strings.Contains(script, "make install") {
		script = "make install\n" + script
	}
	dest, left := install(t, script)
	if removes {
		if left != nil {
			t.Errorf("make uninstall leaves %q", left)
		}
		return
	}
	for _, path := range left {
		if !strings.HasSuffix(path, ".service") {
			continue
		}
		unit, err := os.ReadFile(filepath.Join(dest, path))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range startedFiles(string(unit)) {
			if !slices.Contains(left, file) {
				t.Errorf("%s starts with %s, which is not installed", path, file)
			}
		}
	}
}

// install runs commands with make in a copy of what it needs and a DESTDIR, and
// a systemctl that looks for the units there. It returns the DESTDIR and the
// files in it, as they would be called on a real machine.
func install(t *testing.T, script string) (dest string, files []string) {
	t.Helper()
	tree, dest := t.TempDir(), t.TempDir()
	for _, copied := range []struct{ from, to string }{
		{filepath.Join(root, "deploy"), "deploy"}, {programs(t), "bin"}, {filepath.Join(root, ".ci"), ".ci"},
	} {
		if err := os.CopyFS(filepath.Join(tree, copied.to), os.DirFS(copied.from)); err != nil {
			t.Fatal(err)
		}
	}
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "Makefile"), makefile, 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.Command("bash", "-euo", "pipefail", "-c", `
make() { command make --no-print-directory -C "$TREE" -o build DESTDIR="$DEST" "$@"; }
systemctl() {
	local unit
	for unit in "${@:2}"; do
		case $unit in
		--*) ;;
		*) [[ $(find "$DEST" -name "$unit.service" -o -name "$unit") ]] || { echo "there is no unit $unit"; return 1; } ;;
		esac
	done
}
`+script)
	command.Env = append(os.Environ(), "TREE="+tree, "DEST="+dest)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	err = filepath.WalkDir(dest, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			files = append(files, strings.TrimPrefix(path, dest))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return dest, files
}

// TestInstalled compares the files that make install puts somewhere with those
// that are said to be there.
func TestInstalled(t *testing.T) {
	nstest.Root(t)
	_, got := install(t, "make install")
	var documented []string
	for _, row := range readPage(t, "docs/operations.md").table(t, "## Files and pins", "path") {
		folder := ""
		for _, path := range codes(row[0]) {
			if strings.HasPrefix(path, "/run/") || strings.HasPrefix(path, "/sys/") || strings.Contains(path, "*") {
				continue
			}
			if !filepath.IsAbs(path) {
				path = filepath.Join(folder, path)
			}
			folder = filepath.Dir(path)
			documented = append(documented, path)
		}
	}
	slices.Sort(documented)
	slices.Sort(got)
	if diff := cmp.Diff(documented, got); diff != "" {
		t.Errorf("installed files (-operations.md +make install):\n%s", diff)
	}
}

// startedFiles are the program of a unit and the files that it is given.
func startedFiles(unit string) []string {
	var files []string
	for _, line := range strings.Split(unit, "\n") {
		command, found := strings.CutPrefix(line, "ExecStart=")
		if !found {
			continue
		}
		for _, word := range strings.Fields(command) {
			if strings.HasPrefix(word, "/") {
				files = append(files, word)
			}
		}
	}
	return files
}

// network has the plugin look at a list of plugins, or at what becomes of the
// usual configuration with the keys shown.
func (b block) network(t *testing.T, n *node) {
	t.Helper()
	var list struct {
		CNIVersion string            `json:"cniVersion"`
		Name       string            `json:"name"`
		Plugins    []json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal([]byte(b.text), &list); err != nil {
		t.Fatal(err)
	}
	base := `{"name": "pods"}` // what is complete is tried as it is
	if list.Plugins == nil {
		base = network
		list.Plugins = []json.RawMessage{json.RawMessage(b.text)}
	}
	tried := 0
	for _, plugin := range list.Plugins {
		var kind struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(plugin, &kind); err != nil {
			t.Fatal(err)
		}
		if kind.Type != "" && kind.Type != "tendril-cni" {
			continue
		}
		tried++
		if _, fault := n.statusOf(t, base, string(plugin)); fault.Code != 0 && !strings.HasPrefix(fault.Msg, "ipam ") {
			t.Errorf("the plugin refuses it: %s", fault.Msg)
		}
	}
	if tried == 0 {
		t.Error("nothing in it is tendril's")
	}
}

// fault is the answer of a plugin that refuses.
type fault struct {
	Code    int    `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details"`
}

// status runs STATUS with the usual configuration and the keys given.
func (n *node) status(tb testing.TB, keys string) (out string, f fault) {
	tb.Helper()
	return n.statusOf(tb, network, keys)
}

// statusOf runs STATUS with a configuration and the keys given.
func (n *node) statusOf(tb testing.TB, base, keys string) (out string, f fault) {
	tb.Helper()
	out, code := n.try(tb, write("base.json", base)+write("keys.json", keys)+
		`jq -s '(.[0] + .[1]) | .cniVersion = "1.1.0"' /run/base.json /run/keys.json >/run/status.json
CNI_COMMAND=STATUS CNI_PATH=/opt/cni/bin /opt/cni/bin/tendril-cni </run/status.json`)
	if code != 0 {
		if err := json.Unmarshal([]byte(out), &f); err != nil || f.Code == 0 {
			tb.Fatalf("STATUS: exit code %d: %s", code, out)
		}
	}
	return out, f
}
