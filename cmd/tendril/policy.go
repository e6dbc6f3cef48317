// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tendril-net/tendril/pkg/api"
)

// policyApply sends the objects of a file to the agent.
func policyApply(c call) error {
	if c.file == "" {
		return &usageError{"policy apply: -f FILE is missing"}
	}
	text, source, err := c.readObjects()
	if err != nil {
		return err
	}
	change, err := c.client.ApplyPolicies(c.ctx, api.ApplyRequest{Source: source, Text: text, DryRun: c.dryRun})
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(change)
	}
	return c.printChange(change)
}

// readObjects reads the file of -f, of which the agent takes so much.
func (c call) readObjects() (text []byte, source string, err error) {
	from, source := c.stdin, "standard input"
	if c.file != "-" {
		file, err := os.Open(c.file)
		if err != nil {
			return nil, "", err
		}
		defer func() { _ = file.Close() }()
		from, source = file, c.file
	}
	text, err = io.ReadAll(io.LimitReader(from, api.MaxLargeBody+1))
	if err == nil && len(text) > api.MaxLargeBody {
		err = fmt.Errorf("%s is larger than %d bytes", source, api.MaxLargeBody)
	}
	return text, source, err
}

func objectName(o api.ObjectChange) string {
	if o.Namespace == "" {
		return strings.ToLower(o.Kind) + " " + o.Name
	}
	return "policy " + o.Namespace + "/" + o.Name
}

func (c call) printChange(change api.PolicyChange) error {
	suffix := ""
	if change.DryRun {
		suffix = " (dry run)"
	}
	for _, o := range change.Objects {
		if _, err := fmt.Fprintln(c.stdout, printed(objectName(o))+" "+o.Change+suffix); err != nil {
			return err
		}
	}
	if change.Effect == nil {
		return nil
	}
	return c.printEffect(*change.Effect)
}

func (c call) printEffect(e api.PolicyEffect) error {
	isolation := newTable("CONTAINER", "INTERFACE", "DIRECTION", "BECOMES")
	for _, i := range e.Isolation {
		becomes := "open"
		if i.Isolated {
			becomes = "isolated"
		}
		isolation.row(short(i.ContainerID), i.IfName, i.Direction, becomes)
	}
	for _, part := range []struct {
		title string
		table *table
		rows  int
	}{
		{"Endpoints whose isolation changes:", isolation, len(e.Isolation)},
		{flowsTitle("Flows alive that would be cut", len(e.Cut), e.CutTotal), judged(e.Cut), len(e.Cut)},
		{flowsTitle("Flows denied that would pass", len(e.Opened), e.OpenedTotal), judged(e.Opened), len(e.Opened)},
	} {
		if part.rows == 0 {
			if _, err := fmt.Fprintln(c.stdout, "\n"+part.title+" none"); err != nil {
				return err
			}
			continue
		}
		if _, err := fmt.Fprintln(c.stdout, "\n"+part.title); err != nil {
			return err
		}
		if err := part.table.write(c.stdout); err != nil {
			return err
		}
	}
	if e.Partial {
		fmt.Fprintln(c.stderr, "tendril: there are more flows than were looked at: these lists are not complete")
	}
	return nil
}

func flowsTitle(what string, shown, total int) string {
	if shown < total {
		return fmt.Sprintf("%s (%d of %d):", what, shown, total)
	}
	return what + ":"
}

func judged(flows []api.JudgedFlow) *table {
	t := newTable("PROTO", "CLIENT", "SERVER", "DECIDED AT", "INTERFACE", "DIRECTION")
	for _, f := range flows {
		t.row(f.Protocol, end(f.Client), end(f.Server), short(f.Endpoint.ContainerID), f.Endpoint.IfName, f.Direction)
	}
	return t
}

func policyDelete(c call) error {
	if err := c.client.DeletePolicies(c.ctx, c.namespace, c.args); err != nil {
		return err
	}
	for _, name := range c.args {
		if _, err := fmt.Fprintln(c.stdout, printed("policy "+c.namespace+"/"+name)+" deleted"); err != nil {
			return err
		}
	}
	return nil
}

// policyList shows all policies, or those that apply to a container.
func policyList(c call) error {
	firewall, err := c.client.Policies(c.ctx)
	if err != nil {
		return err
	}
	if health, err := c.client.Health(c.ctx); err == nil {
		for _, reason := range health.Reasons {
			if strings.HasPrefix(reason, "policies: ") {
				fmt.Fprintf(c.stderr, "tendril: policy-dir is not used as it is, and what was before goes on: %s\n", reason)
			}
		}
	}
	if len(c.args) > 0 {
		if firewall = only(firewall, c.args[0]); len(firewall.Endpoints) == 0 {
			return fmt.Errorf("no container that is attached has an ID that begins with %q", c.args[0])
		}
	}
	if c.json {
		return c.printJSON(firewall)
	}
	return c.printFirewall(firewall)
}

// only keeps the endpoints of containers whose ID begins so, and the policies that
// apply to them.
func only(f api.Firewall, prefix string) api.Firewall {
	f.Namespaces = []api.Namespace{}
	f.Endpoints = slices.DeleteFunc(f.Endpoints, func(e api.EndpointPolicy) bool { return !strings.HasPrefix(e.ContainerID, prefix) })
	f.Policies = slices.DeleteFunc(f.Policies, func(p api.Policy) bool {
		return !slices.ContainsFunc(p.Endpoints, func(a api.Attachment) bool { return strings.HasPrefix(a.ContainerID, prefix) })
	})
	return f
}

func (c call) printFirewall(f api.Firewall) error {
	policies := newTable("POLICY", "TYPES", "ENDPOINTS", "FILE")
	rules := newTable("POLICY", "DIRECTION", "RULE", "ALLOWS", "FLOWS")
	ruleCount := 0
	for _, p := range f.Policies {
		name := p.Namespace + "/" + p.Name
		policies.row(name, strings.Join(p.PolicyTypes, ","), strconv.Itoa(len(p.Endpoints)), p.File)
		for _, r := range p.Rules {
			rules.row(name, r.Direction, strconv.Itoa(r.Index), r.Summary, count(r.Hits))
			ruleCount++
		}
	}
	if len(f.Policies) == 0 {
		policies = newTable("No policy.")
	}
	namespaces := newTable("NAMESPACE", "LABELS", "FILE")
	for _, n := range f.Namespaces {
		namespaces.row(n.Name, labels(n.Labels), n.File)
	}
	endpoints := newTable("CONTAINER", "INTERFACE", "NAMESPACE", "NETWORK", "INGRESS", "DENIED", "EGRESS", "DENIED")
	for _, e := range f.Endpoints {
		endpoints.row(short(e.ContainerID), e.IfName, e.Namespace, e.Network, ingress(e), count(e.IngressDenied),
			sides(e.Egress), count(e.EgressDenied))
	}
	return c.writeParts([]part{{policies, max(1, len(f.Policies))}, {rules, ruleCount}, {namespaces, len(f.Namespaces)}, {endpoints, len(f.Endpoints)}})
}

// sides are the policies that isolate an endpoint in a direction.
func sides(policies []string) string {
	if len(policies) == 0 {
		return "open"
	}
	return strings.Join(policies, ",")
}

// ingress also says what the endpoint's network refuses.
func ingress(e api.EndpointPolicy) string {
	text := sides(e.Ingress)
	if e.IngressPolicy != api.IngressOpen {
		text += " (network " + e.IngressPolicy + ")"
	}
	if e.NoICC {
		text += " (network without icc)"
	}
	return text
}

func labels(all map[string]string) string {
	var texts []string
	for _, key := range slices.Sorted(maps.Keys(all)) {
		texts = append(texts, key+"="+all[key])
	}
	return strings.Join(texts, ",")
}

// drops shows what policy denies now.
func drops(c call) error {
	list, err := limited(c, "flows denied", c.client.Drops)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(list)
	}
	t := newTable("PROTO", "SOURCE", "DESTINATION", "REASON", "CONTAINER", "INTERFACE", "DENIED BY", "PACKETS", "BYTES", "IDLE")
	for _, d := range list {
		by := strings.Join(d.Policies, ",")
		if d.Network != "" {
			by = "network " + d.Network
		}
		t.row(d.Protocol, end(d.Source), end(d.Destination), d.Reason, short(d.Endpoint.ContainerID), d.Endpoint.IfName, by,
			count(d.Packets), size(d.Bytes), age(time.Duration(d.Idle)*time.Second))
	}
	return t.write(c.stdout)
}
