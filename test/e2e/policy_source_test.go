// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// Files that somebody puts into the folder count by themselves, all or none of them.
func TestPolicyDirectory(t *testing.T) {
	g := newGuarded(t)
	web, client := g.dress(t, "web"), g.dress(t, "client")
	write := func(name, text string) {
		t.Helper()
		temporary := filepath.Join(g.PolicyDir, "."+name)
		if err := errors.Join(os.MkdirAll(g.PolicyDir, 0o755), os.WriteFile(temporary, []byte(text), 0o600),
			os.Rename(temporary, filepath.Join(g.PolicyDir, name))); err != nil {
			t.Fatal(err)
		}
	}
	isolated := func(want bool) {
		t.Helper()
		nodetest.Eventually(t, fmt.Sprintf("isolation %v", want), func() error {
			for _, e := range must(g.API.Policies(t.Context()))(t).Endpoints {
				if e.Attachment == web.Attachment {
					return nodetest.Unlike(len(e.Ingress) > 0, want)
				}
			}
			return errors.New("it is not there")
		})
		reason := ""
		if want {
			reason = byIngress
		}
		eachFamily(t, func(t *testing.T, f family) {
			try(t, trial{"ping", func() string { return g.ping(t, client.NS, f.of(web)) }, reason})
		})
	}
	isolated(false)
	write("web.yaml", networkPolicy("web", "{podSelector: {matchLabels: {app: web}}}"))
	isolated(true)

	write("other.yml", networkPolicy("other", "{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 70}]}]}"))
	where := filepath.Join(g.PolicyDir, "other.yml")
	nodetest.Eventually(t, "word of the broken file", func() error {
		text := strings.Join(g.Status(t).Reasons, "\n")
		for _, part := range []string{where, "default/other", "spec.ingress[0].ports[0].endPort"} {
			if !strings.Contains(text, part) {
				return fmt.Errorf("%q lacks %q", text, part)
			}
		}
		return nil
	})
	isolated(true)
	g.Delete(t, g.dress(t, "meanwhile"))
	_, stderr, err := g.cli(t, networkPolicy("more", "{podSelector: {}}"), "policy", "apply", "-f", "-")
	if err == nil || !strings.Contains(stderr, "spec.ingress[0].ports[0].endPort") {
		t.Errorf("apply beside a broken file: %v\n%s", err, stderr)
	}

	// An agent that starts with it leaves the kernel as it is, and attaches nobody.
	g.Kill(t)
	g.Start(t)
	eachFamily(t, func(t *testing.T, f family) {
		try(t, trial{"ping", func() string { return g.ping(t, client.NS, f.of(web)) }, byIngress})
	})
	refused := &nodetest.Container{NS: nstest.New(t, "refused"), Attachment: api.Attachment{ContainerID: "refused", IfName: "eth0"}, Network: g.pods}
	answer := g.Call(t, refused.Call("ADD"))
	if answer.Error == nil || answer.Error.Code != 11 || !strings.Contains(answer.Error.Msg, "before the policies are in order: use "+where) {
		t.Errorf("ADD beside a broken file: %+v", answer)
	}
	g.Delete(t, client)
	if err := os.Remove(where); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "health", func() error { return nodetest.Unlike(g.Status(t).OK, true) })
	client = g.dress(t, "client2")
	isolated(true)
	if err := os.Remove(filepath.Join(g.PolicyDir, "web.yaml")); err != nil {
		t.Fatal(err)
	}
	isolated(false)
	g.forgotten(t)
}

// What is applied is refused as a whole, with the path of the field.
func TestPolicyRefused(t *testing.T) {
	g := newGuarded(t)
	text := networkPolicy("good", "{podSelector: {}}") + networkPolicy("bad", "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.1/33}}]}]}")
	for _, flags := range [][]string{nil, {"--dry-run"}} {
		out, stderr, err := g.cli(t, text, append([]string{"policy", "apply", "-f", "-"}, flags...)...)
		want := `tendril: use standard input: default/bad: spec.egress[0].to[0].ipBlock.cidr: "10.0.0.1/33"`
		if err == nil || out != "" || !strings.HasPrefix(stderr, want) {
			t.Errorf("%v: %v\n%s%s, want %s", flags, err, out, stderr, want)
		}
	}
	if got := must(g.API.Policies(t.Context()))(t).Policies; len(got) != 0 {
		t.Errorf("policies %+v", got)
	}
	g.forgotten(t)
}
