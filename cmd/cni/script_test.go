// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tendril-net/tendril/internal/dhcptest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

var update = flag.Bool("update", false, "rewrite the expectations in testdata/script")

// TestMain gives the stories the plugin itself as the command tendril-cni.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tendril-cni": main})
}

// TestScripts runs the stories of testdata/script. Each has a node, which is a
// namespace of its own with an agent, and these commands besides testscript's:
//
//	container NAME              makes a container's namespace, in $NAME its path
//	cni CMD ID IFNAME CONF [K=V...]
//	                            runs the plugin in the node; the ID is that of a
//	                            container, or names none. CONF is a file or "-".
//	                            K=V sets a variable of the environment. A failing
//	                            one is told by "! cni"; its answer is on stdout.
//	envfile FILE                replaces $NAME in a file
//	chain CONF NEW              writes NEW: CONF with the last result as prevResult
//	in node|NAME CMD ARG...     runs a command in a namespace
//	agent stop                  stops the agent
//	agent fail "METHOD verb" STATUS CODE MESSAGE [KEY]
//	                            plans an answer; STATUS "done" does it but answers
//	                            500, "hangup" cuts the connection after doing it
//	agent ok "METHOD verb"      takes that back
//	agent calls                 prints the requests since the last time
//	agent endpoints             prints the endpoints as JSON
//	dhcp start                  starts a DHCP server in the node and the reference
//	                            set's client daemon, in $DHCP its socket
//	dhcp await TEXT             waits until the server's log says so
//	clean                       fails unless the node has no link but lo, no route
//	                            of ours, and the agent no endpoint
func TestScripts(t *testing.T) {
	nstest.Root(t)
	dhcptest.Need(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setupScript,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"container": cmdContainer,
			"cni":       cmdCNI,
			"envfile":   cmdEnvfile,
			"chain":     cmdChain,
			"in":        cmdIn,
			"agent":     cmdAgent,
			"clean":     cmdClean,
			"dhcp":      cmdDHCP,
		},
	})
}

// story is the state of one script.
type story struct {
	t          testing.TB
	node       *nstest.NS
	agent      *fakeAgent
	containers map[string]*nstest.NS
	dhcp       *dhcptest.Server
	// result is what the last ADD printed.
	result []byte
}

type storyKey struct{}

func setupScript(env *testscript.Env) error {
	t := env.T().(testing.TB)
	s := &story{t: t, node: nstest.New(t, "node"), agent: startAgent(t, env.WorkDir), containers: make(map[string]*nstest.NS)}
	env.Defer(s.agent.stop)
	env.Values[storyKey{}] = s
	env.Setenv("SOCKET", s.agent.socket)
	env.Setenv("NODE", s.node.Path)
	env.Setenv("RANDOM", s.node.Name[strings.LastIndex(s.node.Name, "-")+1:])
	return nil
}

func storyOf(ts *testscript.TestScript) *story { return ts.Value(storyKey{}).(*story) }

func cmdContainer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: container NAME")
	}
	s := storyOf(ts)
	ns := nstest.New(s.t, args[0])
	s.containers[args[0]] = ns
	ts.Setenv(args[0], ns.Path)
}

func cmdCNI(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 4 {
		ts.Fatalf("usage: cni CMD ID IFNAME CONF [K=V...]")
	}
	s := storyOf(ts)
	variables := map[string]string{
		"CNI_COMMAND": args[0], "CNI_CONTAINERID": args[1], "CNI_IFNAME": args[2],
		"CNI_PATH": dhcptest.Plugins, "PATH": os.Getenv("PATH"),
	}
	if ns, ok := s.containers[args[1]]; ok {
		variables["CNI_NETNS"] = ns.Path
	}
	for _, pair := range args[4:] {
		key, value, _ := strings.Cut(pair, "=")
		variables[key] = value
	}
	stdin := ""
	if args[3] != "-" {
		stdin = os.Expand(ts.ReadFile(args[3]), ts.Getenv)
	}
	out, diagnostics, err := s.run(variables, stdin)
	_, _ = ts.Stdout().Write([]byte(out))
	_, _ = ts.Stderr().Write([]byte(diagnostics))
	switch {
	case neg && err == nil:
		ts.Fatalf("cni %s succeeded", args[0])
	case !neg && err != nil:
		ts.Fatalf("cni %s: %v", args[0], err)
	case !neg && args[0] == "ADD":
		s.result = []byte(out)
	}
}

// run runs the plugin on a thread in the node's namespace.
func (s *story) run(variables map[string]string, stdin string) (stdout, stderr string, err error) {
	var out, diagnostics strings.Builder
	env := environment{
		ctx: context.Background(), stdin: strings.NewReader(stdin), stdout: &out, stderr: &diagnostics,
		getenv: func(key string) string { return variables[key] },
	}
	for key, value := range variables {
		env.environ = append(env.environ, key+"="+value)
	}
	s.node.Do(s.t, func() { err = run(env, nil) })
	return out.String(), diagnostics.String(), err
}

func cmdEnvfile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: envfile FILE")
	}
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

func cmdChain(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: chain CONF NEW")
	}
	var config map[string]any
	ts.Check(json.Unmarshal([]byte(os.Expand(ts.ReadFile(args[0]), ts.Getenv)), &config))
	config["prevResult"] = json.RawMessage(storyOf(ts).result)
	text, err := json.Marshal(config)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), text, 0o600))
}

func cmdIn(ts *testscript.TestScript, neg bool, args []string) {
	s := storyOf(ts)
	ns := s.containers[args[0]]
	if args[0] == "node" {
		ns = s.node
	}
	if ns == nil || len(args) < 2 {
		ts.Fatalf("usage: in node|NAME CMD ARG...")
	}
	err := ts.Exec("nsenter", append([]string{"--net=" + ns.Path, "--"}, args[1:]...)...)
	if neg == (err == nil) {
		ts.Fatalf("in %s: %v: %v", args[0], args[1:], err)
	}
}

func cmdAgent(ts *testscript.TestScript, neg bool, args []string) {
	a := storyOf(ts).agent
	usage := func(ok bool) {
		if neg || !ok {
			ts.Fatalf("usage: agent stop|fail|ok|calls|endpoints ...")
		}
	}
	usage(len(args) > 0)
	if args[0] == "stop" {
		a.stop()
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch args[0] {
	case "fail":
		usage(len(args) >= 5)
		planned := failure{status: 409, answer: api.Error{Code: args[3], Message: args[4]}}
		planned.done, planned.hangUp = args[2] == "done" || args[2] == "hangup", args[2] == "hangup"
		if len(args) > 5 {
			planned.answer.Key = args[5]
		}
		a.failures[args[1]] = planned
	case "ok":
		usage(len(args) == 2)
		delete(a.failures, args[1])
	case "calls":
		_, _ = ts.Stdout().Write([]byte(strings.Join(append(a.calls, ""), "\n")))
		a.calls = nil
	case "endpoints":
		list := make([]api.Endpoint, 0, len(a.endpoints))
		for _, e := range a.endpoints {
			list = append(list, e)
		}
		text, err := json.MarshalIndent(list, "", "\t")
		ts.Check(err)
		_, _ = ts.Stdout().Write(append(text, '\n'))
	default:
		usage(false)
	}
}

func cmdClean(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: clean")
	}
	s := storyOf(ts)
	links, err := s.node.Handle.LinkList()
	ts.Check(err)
	for _, link := range links {
		if name := link.Attrs().Name; name != "lo" {
			ts.Fatalf("the node still has link %s", name)
		}
	}
	for name, ns := range s.containers {
		links, err := ns.Handle.LinkList()
		ts.Check(err)
		if len(links) != 1 {
			ts.Fatalf("container %s still has %d links", name, len(links))
		}
	}
	s.agent.mu.Lock()
	defer s.agent.mu.Unlock()
	if len(s.agent.endpoints) != 0 {
		ts.Fatalf("the agent still has endpoints: %v", s.agent.endpoints)
	}
	files, err := filepath.Glob(filepath.Join(ts.Getenv("WORK"), "leases/*/[0-9]*"))
	ts.Check(err)
	if len(files) != 0 {
		ts.Fatalf("leases are left: %v", files)
	}
}
