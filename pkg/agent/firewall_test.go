// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/policy"
)

// isolate is a policy that lets nobody reach the endpoints with a label.
func isolate(name, app string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: " + name + "}\n" +
		"spec: {podSelector: {matchLabels: {app: " + app + "}}}\n"
}

// allow lets endpoints with one label reach a port of those with another.
func allow(name, from, to, port string) string {
	return isolate(name, to) + "# from\n" + `
--- 
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: ` + name + `-from}
spec:
  podSelector: {matchLabels: {app: ` + to + `}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: ` + from + `}}}]
    ports: [{port: ` + port + `}]
`
}

func labelled(req api.PrepareRequest, labels map[string]string) api.PrepareRequest {
	req.Labels = labels
	return req
}

func app(container, name string) api.PrepareRequest {
	return labelled(request(container), map[string]string{"app": name})
}

// keep writes a file by hand.
func (w *world) keep(t *testing.T, name, text string) {
	t.Helper()
	must(t, os.MkdirAll(w.policyDir(), 0o755))
	must(t, os.WriteFile(filepath.Join(w.policyDir(), name), []byte(text), 0o600))
}

// files are the names and contents of those in policy-dir.
func (w *world) files(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	entries, err := os.ReadDir(w.policyDir())
	if !errors.Is(err, os.ErrNotExist) {
		must(t, err)
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(w.policyDir(), e.Name()))
		if err == nil {
			found[e.Name()] = string(text)
		}
	}
	return found
}

func healthOf(t *testing.T, s *Service) string {
	t.Helper()
	h, err := s.Health(ctx)
	must(t, err)
	return strings.Join(h.Reasons, "\n")
}

func wantHealth(t *testing.T, s *Service, parts ...string) {
	t.Helper()
	got := healthOf(t, s)
	if len(parts) == 0 && got != "" {
		t.Errorf("health %q, want none wrong", got)
	}
	for _, part := range parts {
		if !strings.Contains(got, part) {
			t.Errorf("health %q lacks %q", got, part)
		}
	}
}

// The policy of an endpoint is there before the datapath serves it, and goes after it.
func TestPolicyComesFirst(t *testing.T) {
	w := newWorld(t)
	w.keep(t, "web.yaml", isolate("web", "web"))
	s, _ := w.boot(t)
	seen := 0
	w.during = func(call string) {
		_, subject := w.policy.Subjects[1]
		switch call {
		case "AttachEndpoint":
			seen++
			if !subject || w.policy.Subjects[1].Ingress == 0 || w.policy.Subjects[1].Egress != 0 {
				t.Errorf("attached with subjects %v", w.policy.Subjects)
			}
		case "DetachEndpoint":
			seen++
			if !subject {
				t.Error("detached without policy")
			}
		}
	}
	e := w.mustAdd(t, s, app("c1", "web"))
	// What is attached again has its policy already.
	_, err := s.Attach(ctx, e.Attachment, api.AttachRequest{HostIfIndex: e.HostIfIndex})
	must(t, err)
	must(t, s.Delete(ctx, e.Attachment))
	if len(w.policy.Subjects) != 0 || seen != 3 {
		t.Errorf("%d calls seen; left are subjects %v", seen, w.policy.Subjects)
	}
}

func TestPolicyCannotBeSet(t *testing.T) {
	for _, call := range []string{"ReconcilePolicy", "AttachEndpoint"} {
		t.Run(call, func(t *testing.T) {
			w := newWorld(t)
			w.keep(t, "web.yaml", isolate("web", "web"))
			s, _ := w.boot(t)
			w.mustAdd(t, s, app("c1", "web"))
			w.fail[call] = errors.New("no memory")
			if _, err := w.add(s, app("c2", "web")); err == nil || !strings.Contains(err.Error(), "no memory") {
				t.Errorf("ADD: %v", err)
			}
			delete(w.fail, call)
			must(t, s.firewall.tend())
			if d := cmp.Diff([]uint16{1}, w.remains(t, s).Subjects); d != "" {
				t.Errorf("subjects (-want +got):\n%s", d)
			}
			if d := cmp.Diff([]uint16{1}, w.remains(t, s).Attached); d != "" {
				t.Errorf("attached (-want +got):\n%s", d)
			}
		})
	}
}

// A DEL that cannot take the policy away succeeds; the next look does it.
func TestPolicyCannotBeRemoved(t *testing.T) {
	w := newWorld(t)
	w.keep(t, "web.yaml", isolate("web", "web"))
	s, _ := w.boot(t)
	e := w.mustAdd(t, s, app("c1", "web"))
	w.fail["ReconcilePolicy"] = errors.New("no memory")
	w.unwire(e.Attachment)
	must(t, s.Delete(ctx, e.Attachment))
	wantHealth(t, s, "policy maps: reconcile policy: no memory")
	delete(w.fail, "ReconcilePolicy")
	s.tidy()
	wantHealth(t, s)
	if len(w.policy.Subjects) != 0 {
		t.Errorf("left are subjects %v", w.policy.Subjects)
	}
}

// Who uses no policy does not pay for it.
func TestNoPolicyNoWork(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	for _, c := range []string{"c1", "c2", "c3"} {
		w.mustAdd(t, s, request(c))
	}
	must(t, s.Delete(ctx, request("c2").Attachment))
	s.firewall.reload()
	if w.policies != 1 || w.policy.Active {
		t.Errorf("%d policies written, want that of the start alone: %+v", w.policies, w.policy)
	}
}

func TestNetworkIsolation(t *testing.T) {
	tests := map[string]struct {
		ingress  string
		noICC    bool
		own, all bool
	}{
		"open":        {api.IngressOpen, false, false, false},
		"same bridge": {api.IngressSameBridge, false, false, true},
		"isolated":    {api.IngressIsolated, false, true, true},
		"no icc":      {"", true, true, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, stop := w.boot(t)
			req := request("c1")
			req.Network.IngressPolicy, req.Network.NoICC = test.ingress, test.noICC
			w.mustAdd(t, s, req)
			check := func() {
				t.Helper()
				if got := w.policy.Subjects[1]; got.NoOwn != test.own || got.NoOthers != test.all || w.policy.Active != (test.own || test.all) {
					t.Errorf("active %v, %+v", w.policy.Active, got)
				}
			}
			check()
			stop()
			s, _ = w.boot(t)
			check()
			must(t, s.Delete(ctx, req.Attachment))
			if w.policy.Active || len(w.policy.Subjects) > 0 {
				t.Errorf("left is %+v", w.policy)
			}
		})
	}
	w := newWorld(t)
	s, _ := w.boot(t)
	req := request("c1")
	req.Network.IngressPolicy = "closed"
	_, err := s.Prepare(ctx, req)
	fault := faultOf(t, err, api.CodeInvalid)
	if want := `ingressPolicy "closed": is not known; "open", "same-bridge" and "isolated" are`; fault.Message != want || fault.Key != "ingressPolicy" {
		t.Errorf("%+v", fault)
	}
}

func TestNamedPorts(t *testing.T) {
	w := newWorld(t)
	w.keep(t, "web.yaml", allow("web", "client", "web", "http"))
	s, _ := w.boot(t)
	req := app("c1", "web")
	req.NamedPorts = []api.NamedPort{{Name: "http", ContainerPort: 8080, Protocol: "tcp"}, {Name: "http", ContainerPort: 53, Protocol: "udp"}}
	e := w.mustAdd(t, s, req)
	w.mustAdd(t, s, app("c2", "client"))
	if d := cmp.Diff(req.NamedPorts, e.NamedPorts); d != "" {
		t.Errorf("named ports (-want +got):\n%s", d)
	}
	var got []datapath.PolicyRange
	for _, ranges := range w.policy.Entries {
		got = append(got, ranges...)
	}
	want := []datapath.PolicyRange{{First: 8080, Last: 8080, Protocol: 6}}
	if d := cmp.Diff(want, got, cmpopts.IgnoreFields(datapath.PolicyRange{}, "Rule")); d != "" {
		t.Errorf("ranges (-want +got):\n%s", d)
	}
	for _, bad := range []api.NamedPort{{ContainerPort: 1, Protocol: "tcp"}, {Name: "a", Protocol: "tcp"}, {Name: "a", ContainerPort: 1, Protocol: "icmp"}} {
		req := app("c3", "web")
		req.NamedPorts = []api.NamedPort{bad}
		_, err := s.Prepare(ctx, req)
		if fault := faultOf(t, err, api.CodeInvalid); !strings.HasPrefix(fault.Key, "namedPorts[0].") {
			t.Errorf("%+v: %+v", bad, fault)
		}
	}
}

const brokenPolicy = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {}
  ingress:
  - from:
    - podSelector: {}
    - ipBlock: {cidr: 10.0.0.0/33}
`

// What a predecessor has told the datapath stays as long as the folder is broken, and
// nobody is attached. DEL works.
func TestBrokenAtStart(t *testing.T) {
	w := newWorld(t)
	w.keep(t, "web.yaml", isolate("web", "web"))
	s, stop := w.boot(t)
	e, other := w.mustAdd(t, s, app("c1", "web")), w.mustAdd(t, s, app("c2", "web"))
	stop()
	before := w.policy
	w.policies = 0
	w.keep(t, "other.yaml", brokenPolicy)

	s, _ = w.boot(t)
	where := filepath.Join(w.policyDir(), "other.yaml")
	wantHealth(t, s, "policies: use "+where+": default/web: spec.ingress[0].from[1].ipBlock.cidr", "10.0.0.0/33")
	_, err := s.Prepare(ctx, app("c3", "web"))
	fault := faultOf(t, err, api.CodeUnavailable)
	if !strings.Contains(fault.Message, "no endpoint is attached before the policies are in order: use "+where) {
		t.Errorf("ADD: %s", fault.Message)
	}
	w.unwire(other.Attachment)
	must(t, s.Delete(ctx, other.Attachment))
	s.tidy()
	if _, err := s.ApplyPolicies(ctx, api.ApplyRequest{Source: "x", Text: []byte(isolate("y", "y"))}); err == nil {
		t.Error("applied to a broken folder")
	}
	if d := cmp.Diff(before, w.policy, cmpopts.EquateComparable(netip.Prefix{})); d != "" || w.policies != 0 {
		t.Errorf("%d policies written (-before +now):\n%s", w.policies, d)
	}

	must(t, os.Remove(where))
	s.firewall.reload()
	wantHealth(t, s)
	if len(w.policy.Subjects) != 1 || w.policy.Subjects[e.ID].Ingress == 0 || w.policies != 1 {
		t.Errorf("%d policies written, the last %+v", w.policies, w.policy)
	}
	w.mustAdd(t, s, app("c3", "web"))
}

// A folder that breaks later leaves the policy as it was, and ADD working.
func TestBrokenLater(t *testing.T) {
	w := newWorld(t)
	w.keep(t, "web.yaml", isolate("web", "web"))
	s, _ := w.boot(t)
	w.keep(t, "web.yaml", strings.Replace(isolate("web", "web"), "spec", "spce", 1))
	s.firewall.reload()
	wantHealth(t, s, "policies: use "+filepath.Join(w.policyDir(), "web.yaml")+": default/web: spce")
	w.mustAdd(t, s, app("c1", "web"))
	if w.policy.Subjects[1].Ingress == 0 {
		t.Error("the policy is gone")
	}
	w.keep(t, "web.yaml", isolate("web", "other"))
	s.firewall.reload()
	wantHealth(t, s)
	if w.policy.Subjects[1].Ingress != 0 {
		t.Error("the policy has not changed")
	}
	must(t, os.RemoveAll(w.policyDir()))
	s.firewall.reload()
	if w.policy.Active {
		t.Error("without files there is a policy")
	}
}

// A policy that the datapath has no room for is refused, and the one before is back.
func TestPolicyTooBig(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	w.mustAdd(t, s, app("c1", "web"))
	w.fail["ReconcilePolicy"] = &datapath.TooBigError{What: "entries", Need: 70000, Limit: 65536}
	_, err := s.ApplyPolicies(ctx, api.ApplyRequest{Source: "x", Text: []byte(isolate("web", "web"))})
	fault := faultOf(t, err, api.CodeExhausted)
	if !strings.Contains(fault.Message, "policy needs 70000 entries, and 65536 fit") {
		t.Errorf("%s", fault.Message)
	}
	delete(w.fail, "ReconcilePolicy")
	must(t, s.firewall.tend())
	if w.policy.Active || len(w.files(t)) != 0 {
		t.Errorf("left are %+v and %v", w.policy, w.files(t))
	}
}

func TestApply(t *testing.T) {
	w := newWorld(t)
	s, stop := w.boot(t)
	w.mustAdd(t, s, app("c1", "web"))
	apply := func(text string) []string {
		t.Helper()
		change, err := s.ApplyPolicies(ctx, api.ApplyRequest{Source: "given.yaml", Text: []byte(text)})
		must(t, err)
		var got []string
		for _, o := range change.Objects {
			got = append(got, strings.Join([]string{o.Kind, o.Namespace, o.Name, o.Change, filepath.Base(o.File)}, " "))
		}
		return got
	}
	both := isolate("web", "web") + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: a}}\n"
	if d := cmp.Diff([]string{
		"Namespace  shop created namespace-shop.yaml",
		"NetworkPolicy default web created default.web.yaml",
	}, apply(both)); d != "" {
		t.Errorf("first (-want +got):\n%s", d)
	}
	if w.policy.Subjects[1].Ingress == 0 {
		t.Errorf("applied, and the policy is %+v", w.policy)
	}
	written := w.policies
	if d := cmp.Diff([]string{
		"Namespace  shop unchanged namespace-shop.yaml",
		"NetworkPolicy default web unchanged default.web.yaml",
	}, apply(both)); d != "" {
		t.Errorf("again (-want +got):\n%s", d)
	}
	if w.policies != written {
		t.Error("what was there already was written once more")
	}
	if d := cmp.Diff([]string{"NetworkPolicy default web changed default.web.yaml"}, apply(isolate("web", "other"))); d != "" {
		t.Errorf("changed (-want +got):\n%s", d)
	}
	if w.policy.Subjects[1].Ingress != 0 {
		t.Errorf("changed, and the policy is %+v", w.policy)
	}
	written = w.policies
	s.firewall.reload() // as the watcher has it, which sees our own files come
	if w.policies != written {
		t.Error("own files were read as another policy")
	}
	want := map[string]string{
		"default.web.yaml": policyHead + `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: web
  namespace: default
spec:
  podSelector:
    matchLabels:
      app: other
`,
		"namespace-shop.yaml": policyHead + `apiVersion: v1
kind: Namespace
metadata:
  labels:
    team: a
  name: shop
spec: {}
status: {}
`,
	}
	if d := cmp.Diff(want, w.files(t)); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	info, err := os.Stat(filepath.Join(w.policyDir(), "default.web.yaml"))
	must(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	stop()
	s, _ = w.boot(t)
	wantHealth(t, s)
	// One that there is not keeps all others; one that is named twice goes once.
	fault := faultOf(t, s.DeletePolicies(ctx, "default", []string{"web", "nope"}), api.CodeNotFound)
	if want := "there is no policy default/nope"; fault.Message != want {
		t.Errorf("%q, want %q", fault.Message, want)
	}
	if _, left := w.files(t)["default.web.yaml"]; !left || !w.policy.Active {
		t.Errorf("left are %v, active %v", w.files(t), w.policy.Active)
	}
	must(t, s.DeletePolicies(ctx, "default", []string{"web", "web"}))
	if _, left := w.files(t)["default.web.yaml"]; left || w.policy.Active {
		t.Errorf("left are %v, active %v", w.files(t), w.policy.Active)
	}
	wantCode(t, s.DeletePolicies(ctx, "default", []string{"web"}), api.CodeNotFound)
}

func TestApplyRefused(t *testing.T) {
	w := newWorld(t)
	w.keep(t, "hand.yaml", isolate("hand", "web"))
	w.keep(t, "default.more.yaml", isolate("more", "web")+"---\n"+isolate("most", "web"))
	w.keep(t, "default.else.yaml", isolate("another", "web"))
	s, _ := w.boot(t)
	before := w.files(t)
	var many strings.Builder
	for i := range maxPolicyFiles {
		many.WriteString("---\n" + isolate(fmt.Sprintf("p%d", i), "x"))
	}
	tests := map[string]struct{ text, code, want string }{
		"of a person":         {isolate("hand", "x"), api.CodeConflict, "default/hand is in " + filepath.Join(w.policyDir(), "hand.yaml") + ", which was not applied but written by hand: change it there"},
		"among others":        {isolate("more", "x"), api.CodeConflict, "default.more.yaml, with others: change it there"},
		"file has other name": {isolate("else", "x"), api.CodeConflict, "default.else.yaml, which holds something else"},
		"nothing":             {"# nothing\n", api.CodeInvalid, "given.yaml holds no object"},
		"invalid":             {brokenPolicy, api.CodeInvalid, `use given.yaml: default/web: spec.ingress[0].from[1].ipBlock.cidr`},
		"twice":               {isolate("a", "x") + "---\n" + isolate("a", "x"), api.CodeInvalid, "default/a: is given twice"},
		"too many":            {many.String(), api.CodeExhausted, "would have 4099 files, and 4096 are read"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for _, dry := range []bool{true, false} {
				_, err := s.ApplyPolicies(ctx, api.ApplyRequest{Source: "given.yaml", Text: []byte(test.text), DryRun: dry})
				if fault := faultOf(t, err, test.code); !strings.Contains(fault.Message, test.want) {
					t.Errorf("%q, want %q", fault.Message, test.want)
				}
			}
		})
	}
	wantCode(t, s.DeletePolicies(ctx, "default", []string{"hand"}), api.CodeConflict)
	if d := cmp.Diff(before, w.files(t)); d != "" {
		t.Errorf("files (-before +after):\n%s", d)
	}
}

// What cannot be written is not used.
func TestApplyCannotWrite(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	w.mustAdd(t, s, app("c1", "web"))
	_, err := s.ApplyPolicies(ctx, api.ApplyRequest{Source: "a", Text: []byte(isolate("a", "web"))})
	must(t, err)
	before, files := w.policy, w.files(t)
	// A folder in the place of the last of three files.
	must(t, os.Mkdir(filepath.Join(w.policyDir(), "default.c.yaml"), 0o755))
	text := isolate("a", "other") + "---\n" + isolate("b", "web") + "---\n" + isolate("c", "web")
	if _, err = s.ApplyPolicies(ctx, api.ApplyRequest{Source: "x", Text: []byte(text)}); err == nil {
		t.Fatal("applied")
	}
	if d := cmp.Diff(files, w.files(t)); d != "" {
		t.Errorf("files (-before +after):\n%s", d)
	}
	if d := cmp.Diff(before.Subjects, w.policy.Subjects); d != "" {
		t.Errorf("subjects (-before +after):\n%s", d)
	}
	s.firewall.reload()
	wantHealth(t, s)
	if d := cmp.Diff(before.Subjects, w.policy.Subjects); d != "" {
		t.Errorf("subjects after a reload (-before +after):\n%s", d)
	}
}

func TestNoPolicyDir(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	s.firewall.source, s.firewall.store = noPolicies{}, nil
	_, err := s.ApplyPolicies(ctx, api.ApplyRequest{Source: "x", Text: []byte(isolate("a", "web"))})
	if fault := faultOf(t, err, api.CodeConflict); fault.Message != "policy-dir is empty: there is nowhere to keep policies" {
		t.Errorf("%+v", fault)
	}
}

func endOf(e api.Endpoint, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(e.Addresses[0].Address.Addr(), port)
}

func TestDryRun(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	web := w.mustAdd(t, s, withPorts(app("c1", "web"), mapped("", 8080, 80, "tcp")))
	client, other := w.mustAdd(t, s, app("c2", "client")), w.mustAdd(t, s, app("c3", "other"))
	host, world := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddrPort("198.51.100.7:5000")
	w.own = []netip.Addr{host}
	flow := func(from, to netip.AddrPort, action string) datapath.Flow {
		return datapath.Flow{Protocol: 6, Source: from, Destination: to, Action: action, Current: true}
	}
	stale, answer := flow(endOf(other, 2), endOf(web, 80), "deliver"), flow(endOf(web, 80), endOf(other, 1), "deliver")
	stale.Current, answer.Reply = false, true
	byPort := flow(world, netip.AddrPortFrom(host, 8080), "deliver")
	byPort.TranslatesDestination, byPort.To = true, endOf(web, 80)
	// What the world answers to a masqueraded connection begins nothing.
	back := flow(world, netip.AddrPortFrom(host, 41000), "deliver")
	back.TranslatesDestination, back.To = true, endOf(web, 9)
	denied := flow(world, netip.AddrPortFrom(host, 8080), "deny")
	denied.Reason = "policy_ingress"
	w.flows = []datapath.Flow{
		flow(endOf(client, 1), endOf(web, 80), "deliver"),        // allowed
		flow(endOf(client, 1), endOf(web, 81), "deliver"),        // another port
		flow(endOf(other, 1), endOf(web, 80), "deliver"), answer, // another client
		stale, // decided anew anyway
		flow(netip.AddrPortFrom(host, 9), endOf(web, 80), "pass"), // the host
		flow(endOf(web, 9), world, "forward"), byPort, back,       // to the world, and from it
	}
	dry := func(text string) api.PolicyChange {
		t.Helper()
		change, err := s.ApplyPolicies(ctx, api.ApplyRequest{Source: "x", Text: []byte(text), DryRun: true})
		must(t, err)
		return change
	}
	text := allow("web", "client", "web", "80")
	effect := dry(text).Effect
	at := func(client, server netip.AddrPort) api.JudgedFlow {
		return api.JudgedFlow{Protocol: "tcp", Client: client, Server: server, Endpoint: web.Attachment, Direction: "ingress"}
	}
	want := &api.PolicyEffect{
		Isolation: []api.IsolationChange{{Attachment: web.Attachment, Direction: "ingress", Isolated: true}},
		Cut:       []api.JudgedFlow{at(endOf(client, 1), endOf(web, 81)), at(endOf(other, 1), endOf(web, 80)), at(world, endOf(web, 80))},
		CutTotal:  3, Opened: []api.JudgedFlow{},
	}
	if d := cmp.Diff(want, effect, equate...); d != "" {
		t.Errorf("effect (-want +got):\n%s", d)
	}
	if w.policy.Active || len(w.files(t)) > 0 {
		t.Errorf("a dry run left %+v and %v", w.policy, w.files(t))
	}

	_, err := s.ApplyPolicies(ctx, api.ApplyRequest{Source: "x", Text: []byte(text)})
	must(t, err)
	w.flows = []datapath.Flow{flow(endOf(client, 1), endOf(web, 80), "deliver"), denied}
	open := strings.Replace(isolate("web", "nobody"), "name: web", "name: web", 1) + "---\n" + isolate("web-from", "nobody")
	effect = dry(open).Effect
	want = &api.PolicyEffect{
		Isolation: []api.IsolationChange{{Attachment: web.Attachment, Direction: "ingress"}},
		Cut:       []api.JudgedFlow{}, Opened: []api.JudgedFlow{at(world, endOf(web, 80))}, OpenedTotal: 1,
	}
	if d := cmp.Diff(want, effect, equate...); d != "" {
		t.Errorf("effect of opening (-want +got):\n%s", d)
	}
	// Long lists are cut short, and say so.
	w.flows = nil
	for port := range uint16(api.MaxJudged + 5) {
		f := flow(netip.AddrPortFrom(world.Addr(), port+1), netip.AddrPortFrom(host, 8080), "deny")
		w.flows = append(w.flows, f)
	}
	effect = dry(open).Effect
	if len(effect.Opened) != api.MaxJudged || effect.OpenedTotal != api.MaxJudged+5 || effect.Partial {
		t.Errorf("%d of %d shown, partial %v", len(effect.Opened), effect.OpenedTotal, effect.Partial)
	}
	w.flows = slices.Repeat(w.flows[:1], maxJudgedFlows+1)
	if effect = dry(open).Effect; !effect.Partial {
		t.Error("all flows were looked at")
	}
}

func TestDropsAndPolicies(t *testing.T) {
	w := newWorld(t)
	w.keep(t, "web.yaml", allow("web", "client", "web", "80"))
	s, _ := w.boot(t)
	web := w.mustAdd(t, s, app("c1", "web"))
	lone := request("c2")
	lone.Network.Name, lone.Network.IngressPolicy = "lone", api.IngressIsolated
	lone.Network.Ranges = []api.RangeSet{{{Subnet: netip.MustParsePrefix("10.20.0.0/24")}}}
	alone := w.mustAdd(t, s, lone)
	world := netip.MustParseAddrPort("198.51.100.7:5000")
	denied := func(from, to netip.AddrPort, reason string) datapath.Flow {
		return datapath.Flow{Protocol: 6, Source: from, Destination: to, Action: "deny", Reason: reason, Current: true, Packets: 3, Bytes: 180, Idle: 1}
	}
	answer := denied(endOf(web, 80), world, "policy_ingress")
	answer.Reply = true
	w.flows = []datapath.Flow{
		denied(world, endOf(web, 80), "policy_ingress"),
		answer,
		denied(endOf(web, 9), endOf(alone, 80), "network_isolation"),
		denied(world, netip.MustParseAddrPort("10.10.0.99:1"), "policy_ingress"),
		{Protocol: 6, Source: world, Destination: endOf(web, 80), Action: "deliver", Current: true},
	}
	drop := func(f datapath.Flow, at api.Attachment, network string, policies ...string) api.Drop {
		return api.Drop{
			Protocol: "tcp", Source: f.Source, Destination: f.Destination, Reason: f.Reason, Endpoint: at,
			Policies: policies, Network: network, Packets: 3, Bytes: 180, Idle: 1,
		}
	}
	got, err := s.Drops(ctx, 10)
	must(t, err)
	want := []api.Drop{
		drop(w.flows[0], web.Attachment, "", "default/web", "default/web-from"),
		drop(w.flows[1], web.Attachment, "", "default/web", "default/web-from"),
		drop(w.flows[2], alone.Attachment, "lone"),
		drop(w.flows[3], api.Attachment{}, ""),
	}
	if d := cmp.Diff(want, got, equate...); d != "" {
		t.Errorf("drops (-want +got):\n%s", d)
	}
	got, err = s.Drops(ctx, 2)
	must(t, err)
	if len(got) != 2 {
		t.Errorf("%d drops, want 2", len(got))
	}

	rules := s.firewall.engine.Rules()
	w.hits = datapath.PolicyHits{
		Rules: map[uint64]uint64{rules[0].Hash: 11}, IngressDenied: map[uint16]uint64{web.ID: 5}, EgressDenied: map[uint16]uint64{alone.ID: 6},
	}
	firewall, err := s.Policies(ctx)
	must(t, err)
	file := filepath.Join(w.policyDir(), "web.yaml")
	wantAll := api.Firewall{
		Policies: []api.Policy{
			{Namespace: "default", Name: "web", File: file, PolicyTypes: []string{"Ingress"}, Endpoints: []api.Attachment{web.Attachment}},
			{
				Namespace: "default", Name: "web-from", File: file, PolicyTypes: []string{"Ingress"}, Endpoints: []api.Attachment{web.Attachment},
				Rules: []api.PolicyRule{{Direction: "ingress", Summary: "from app=client to TCP 80", Hits: 11}},
			},
		},
		Endpoints: []api.EndpointPolicy{
			{
				Attachment: web.Attachment, ID: web.ID, Namespace: "default", Network: "pods", IngressPolicy: "open",
				Ingress: []string{"default/web", "default/web-from"}, IngressDenied: 5,
			},
			{Attachment: alone.Attachment, ID: alone.ID, Namespace: "default", Network: "lone", IngressPolicy: "isolated", EgressDenied: 6},
		},
	}
	if d := cmp.Diff(wantAll, firewall, equate...); d != "" {
		t.Errorf("policies (-want +got):\n%s", d)
	}
}

// What the engine says arrives in the datapath's words.
func TestProgrammed(t *testing.T) {
	tables := &policy.Tables{
		Active: true,
		Subjects: map[uint16]policy.Subject{
			7: {Ingress: 1, Egress: 2, Identity: 3, ByAddress: true, Network: 4, FromOtherNetworks: true},
			8: {FromOwnNetwork: true},
		},
		Prefixes: map[netip.Prefix]uint32{netip.MustParsePrefix("10.0.0.0/8"): 5},
		Entries:  map[policy.Pair][]policy.Range{{Set: 1, Identity: 5}: {{First: 1, Last: 2, Protocol: 6, Rule: 9}}},
	}
	want := datapath.Policy{
		Active: true,
		Subjects: map[uint16]datapath.Subject{
			7: {Ingress: 1, Egress: 2, Identity: 3, ByAddress: true, Network: 4, NoOthers: true},
			8: {NoOwn: true},
		},
		Identities: map[netip.Prefix]uint32{netip.MustParsePrefix("10.0.0.0/8"): 5},
		Entries:    map[datapath.PolicyPair][]datapath.PolicyRange{{Set: 1, Identity: 5}: {{First: 1, Last: 2, Protocol: 6, Rule: 9}}},
	}
	if d := cmp.Diff(want, DatapathPolicy(tables), equate...); d != "" {
		t.Errorf("policy (-want +got):\n%s", d)
	}
}
