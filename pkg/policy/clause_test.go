// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// ends are those of the flows below, each with an address of either family.
// out lies within 192.0.2.0/24 and 2001:db8::/64, hole in the part of them that
// policies take out, far in neither.
var ends = map[string]Endpoint{
	"web":  end(1, "default", "app=web tier=front", "10.0.0.1 fd00::1", NamedPort{"http", TCP, 80}, NamedPort{"dns", UDP, 53}),
	"db":   end(2, "default", "app=db", "10.0.0.2 fd00::2", NamedPort{"http", TCP, 8080}, NamedPort{"http", TCP, 8081}),
	"blue": end(3, "blue", "app=web", "10.0.0.3 fd00::3"),
	"edge": func() Endpoint {
		e := end(4, "green", "app=edge", "10.0.0.4 fd00::4")
		e.Network, e.FromOtherNetworks, e.FromOwnNetwork = "edge", true, false
		return e
	}(),
	"edge2": func() Endpoint {
		e := end(5, "green", "", "10.0.0.5 fd00::5")
		e.Network, e.FromOtherNetworks, e.FromOwnNetwork = "edge", false, true
		return e
	}(),
	"remote": end(0, "default", "app=db", "10.1.0.1 fd00:1::1", NamedPort{"http", TCP, 9090}),
	"out":    end(0, "", "", "192.0.2.1 2001:db8::1"),
	"hole":   end(0, "", "", "192.0.2.129 2001:db8::8001"),
	"far":    end(0, "", "", "203.0.113.1 2001:db9::1"),
}

func end(id uint16, namespace, labels, addresses string, ports ...NamedPort) Endpoint {
	e := Endpoint{ID: id, Namespace: namespace, Labels: make(map[string]string), Ports: ports, Network: "pods"}
	for _, l := range strings.Fields(labels) {
		key, value, _ := strings.Cut(l, "=")
		e.Labels[key] = value
	}
	for _, a := range strings.Fields(addresses) {
		e.Addresses = append(e.Addresses, netip.MustParseAddr(a))
	}
	return e
}

// world has all ends that are endpoints.
func world(tb testing.TB) *Engine {
	tb.Helper()
	e := New(Limits{})
	for _, name := range []string{"web", "db", "blue", "edge", "edge2"} {
		mustAdd(tb, e, ends[name])
	}
	remote := ends["remote"]
	remote.Key = "node-2/remote"
	mustAdd(tb, e, remote)
	return e
}

// spec is a policy named p in the namespace default.
func spec(lines string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n" + indent(lines)
}

func indent(lines string) string {
	lines = strings.Trim(lines, "\n")
	margin := len(lines) - len(strings.TrimLeft(lines, "\t"))
	out := ""
	for _, line := range strings.Split(lines, "\n") {
		line = strings.TrimRight(line, "\t")
		out += "  " + strings.ReplaceAll(line[min(margin, len(line)):], "\t", "  ") + "\n"
	}
	return out
}

// Each clause of the schema: what it allows, what it does not, in both families.
// A flow is "client > server protocol port = verdict".
func TestClauses(t *testing.T) {
	for _, test := range []struct {
		name, objects string
		flows         string
	}{
		{"no policy", "", `
			out > web tcp 80 = allowed
			web > out icmp 0 = allowed`},
		{"podSelector, empty: all of the namespace", spec(`
			podSelector: {}`), `
			out > web tcp 80 = refused by 1 ingress
			out > db tcp 80 = refused by 2 ingress
			out > blue tcp 80 = allowed
			web > out tcp 80 = allowed
			web > web tcp 80 = allowed`},
		{"podSelector.matchLabels", spec(`
			podSelector: {matchLabels: {app: web, tier: front}}`), `
			out > web tcp 80 = refused by 1 ingress
			out > db tcp 80 = allowed
			out > blue tcp 80 = allowed`},
		{"podSelector.matchExpressions In", spec(`
			podSelector: {matchExpressions: [{key: app, operator: In, values: [x, web]}]}`), `
			out > web tcp 80 = refused by 1 ingress
			out > db tcp 80 = allowed`},
		{"podSelector.matchExpressions NotIn", spec(`
			podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [back, front]}]}`), `
			out > web tcp 80 = allowed
			out > db tcp 80 = refused by 2 ingress`},
		{"podSelector.matchExpressions Exists", spec(`
			podSelector: {matchExpressions: [{key: tier, operator: Exists}]}`), `
			out > web tcp 80 = refused by 1 ingress
			out > db tcp 80 = allowed`},
		{"podSelector.matchExpressions DoesNotExist", spec(`
			podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}`), `
			out > web tcp 80 = allowed
			out > db tcp 80 = refused by 2 ingress`},
		{"metadata.namespace", strings.Replace(spec(`
			podSelector: {}`), "name: p", "name: p, namespace: blue", 1), `
			out > web tcp 80 = allowed
			out > blue tcp 80 = refused by 3 ingress`},
		{"policyTypes missing, with egress", spec(`
			podSelector: {matchLabels: {app: web}}
			egress: [{}]`), `
			out > web tcp 80 = refused by 1 ingress
			web > out tcp 80 = allowed egress p 0
			web > db icmp 0 = allowed egress p 0`},
		{"policyTypes missing, egress empty", spec(`
			podSelector: {matchLabels: {app: web}}
			egress: []`), `
			out > web tcp 80 = refused by 1 ingress
			web > out tcp 80 = allowed`},
		{"policyTypes Ingress: egress does not count", spec(`
			podSelector: {matchLabels: {app: web}}
			policyTypes: [Ingress]
			egress: [{ports: [{port: 80}]}]`), `
			out > web tcp 80 = refused by 1 ingress
			web > out tcp 443 = allowed`},
		{"policyTypes Egress: ingress does not count", spec(`
			podSelector: {matchLabels: {app: web}}
			policyTypes: [Egress]
			ingress: [{ports: [{port: 80}]}]`), `
			out > web tcp 443 = allowed
			web > out tcp 80 = refused by 1 egress
			web > web tcp 80 = allowed`},
		{"policyTypes both", spec(`
			podSelector: {}
			policyTypes: [Ingress, Egress]
			egress: [{}]`), `
			out > web tcp 80 = refused by 1 ingress
			web > out tcp 80 = allowed egress p 0
			web > db tcp 80 = refused by 2 ingress after egress p 0`},
		{"ingress, one empty rule: everybody", spec(`
			podSelector: {}
			ingress: [{}]`), `
			out > web tcp 80 = allowed ingress p 0
			db > web icmp 0 = allowed ingress p 0
			remote > web sctp 1 = allowed ingress p 0`},
		{"from empty", spec(`
			podSelector: {}
			ingress: [{from: [], ports: [{port: 80}]}]`), `
			out > web tcp 80 = allowed ingress p 0
			out > web tcp 81 = refused by 1 ingress`},
		{"from.podSelector: own namespace", spec(`
			podSelector: {matchLabels: {tier: front}}
			ingress: [{from: [{podSelector: {matchLabels: {app: db}}}, {podSelector: {matchLabels: {app: web}}}]}]`), `
			db > web tcp 80 = allowed ingress p 0
			remote > web tcp 80 = allowed ingress p 0
			blue > web tcp 80 = refused by 1 ingress
			out > web tcp 80 = refused by 1 ingress`},
		{"from.podSelector, empty", spec(`
			podSelector: {}
			ingress: [{from: [{podSelector: {}}]}]`), `
			db > web tcp 80 = allowed ingress p 0
			remote > web tcp 80 = allowed ingress p 0
			blue > web tcp 80 = refused by 1 ingress
			out > web tcp 80 = refused by 1 ingress`},
		{"from.namespaceSelector", spec(`
			podSelector: {}
			ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}]`) + `---
apiVersion: v1
kind: Namespace
metadata: {name: blue, labels: {team: b}}
`, `
			blue > web tcp 80 = allowed ingress p 0
			db > web tcp 80 = refused by 1 ingress
			out > web tcp 80 = refused by 1 ingress`},
		{"from.namespaceSelector, by the name that each has", spec(`
			podSelector: {}
			ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: blue}}}]}]`), `
			blue > web tcp 80 = allowed ingress p 0
			db > web tcp 80 = refused by 1 ingress`},
		{"from.namespaceSelector, by a name that labels do not change", spec(`
			podSelector: {}
			ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: blue}}}]}]`) + `---
apiVersion: v1
kind: Namespace
metadata: {name: blue, labels: {kubernetes.io/metadata.name: red}}
---
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {kubernetes.io/metadata.name: blue}}
`, `
			blue > web tcp 80 = allowed ingress p 0
			db > web tcp 80 = refused by 1 ingress`},
		{"from.namespaceSelector, empty: all endpoints, no addresses", spec(`
			podSelector: {}
			ingress: [{from: [{namespaceSelector: {}}]}]`), `
			blue > web tcp 80 = allowed ingress p 0
			remote > web tcp 80 = allowed ingress p 0
			out > web tcp 80 = refused by 1 ingress`},
		{"from.namespaceSelector and podSelector", spec(`
			podSelector: {}
			ingress:
			- from:
				- namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: blue}}
					podSelector: {matchLabels: {app: web}}`), `
			blue > web tcp 80 = allowed ingress p 0
			web > db tcp 80 = refused by 2 ingress`},
		{"from.namespaceSelector or podSelector", spec(`
			podSelector: {}
			ingress:
			- from:
				- namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: blue}}
				- podSelector: {matchLabels: {app: web}}`), `
			blue > web tcp 80 = allowed ingress p 0
			web > db tcp 80 = allowed ingress p 0
			db > web tcp 80 = refused by 1 ingress`},
		{"from.ipBlock", spec(`
			podSelector: {}
			ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: "2001:db8::/64"}}]}]`), `
			out > web tcp 80 = allowed ingress p 0
			hole > web tcp 80 = allowed ingress p 0
			far > web tcp 80 = refused by 1 ingress
			db > web tcp 80 = refused by 1 ingress`},
		{"from.ipBlock, host bits set", spec(`
			podSelector: {}
			ingress: [{from: [{ipBlock: {cidr: 192.0.2.77/24}}, {ipBlock: {cidr: "2001:db8::77/64"}}]}]`), `
			out > web tcp 80 = allowed ingress p 0
			far > web tcp 80 = refused by 1 ingress`},
		{"from.ipBlock.except", spec(`
			podSelector: {}
			ingress:
			- from:
				- ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}
				- ipBlock: {cidr: "2001:db8::/64", except: ["2001:db8::8000/113"]}`), `
			out > web tcp 80 = allowed ingress p 0
			hole > web tcp 80 = refused by 1 ingress`},
		{"from.ipBlock.except, but another block has it", spec(`
			podSelector: {}
			ingress:
			- from:
				- ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25, 192.0.2.129/32]}
				- ipBlock: {cidr: "2001:db8::/64", except: ["2001:db8::8000/113"]}
				- ipBlock: {cidr: 192.0.2.129/32}
				- ipBlock: {cidr: "2001:db8::8001/128"}`), `
			hole > web tcp 80 = allowed ingress p 0`},
		{"from.ipBlock, all of a family", spec(`
			podSelector: {}
			ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: "::/0"}}]}]`), `
			far > web tcp 80 = allowed ingress p 0
			db > web tcp 80 = allowed ingress p 0
			remote > web tcp 80 = allowed ingress p 0`},
		{"from.ipBlock of endpoints' addresses", spec(`
			podSelector: {}
			ingress:
			- from:
				- ipBlock: {cidr: 10.0.0.2/32}
				- ipBlock: {cidr: "fd00::2/128"}
				- ipBlock: {cidr: 10.1.0.0/16}
				- ipBlock: {cidr: "fd00:1::/32"}`), `
			db > web tcp 80 = allowed ingress p 0
			remote > web tcp 80 = allowed ingress p 0
			blue > web tcp 80 = refused by 1 ingress`},
		{"ports.port", spec(`
			podSelector: {}
			ingress: [{ports: [{port: 80}]}]`), `
			out > web tcp 80 = allowed ingress p 0
			out > web tcp 79 = refused by 1 ingress
			out > web tcp 81 = refused by 1 ingress
			out > web udp 80 = refused by 1 ingress
			out > web icmp 0 = refused by 1 ingress`},
		{"ports.protocol", spec(`
			podSelector: {}
			ingress: [{ports: [{protocol: UDP, port: 53}, {protocol: SCTP, port: 7}]}]`), `
			out > web udp 53 = allowed ingress p 0
			out > web sctp 7 = allowed ingress p 0
			out > web tcp 53 = refused by 1 ingress`},
		{"ports.port missing: all of the protocol", spec(`
			podSelector: {}
			ingress: [{ports: [{protocol: UDP}]}]`), `
			out > web udp 1 = allowed ingress p 0
			out > web udp 65535 = allowed ingress p 0
			out > web tcp 1 = refused by 1 ingress
			out > web icmp 0 = refused by 1 ingress`},
		{"ports.endPort", spec(`
			podSelector: {}
			ingress: [{ports: [{port: 8000, endPort: 8010}, {port: 8011, endPort: 8012}, {port: 65535, endPort: 65535}]}]`), `
			out > web tcp 7999 = refused by 1 ingress
			out > web tcp 8000 = allowed ingress p 0
			out > web tcp 8010 = allowed ingress p 0
			out > web tcp 8012 = allowed ingress p 0
			out > web tcp 8013 = refused by 1 ingress
			out > web tcp 65535 = allowed ingress p 0`},
		{"ports empty: all protocols", spec(`
			podSelector: {}
			ingress: [{from: [{podSelector: {}}], ports: []}]`), `
			db > web icmp 0 = allowed ingress p 0
			db > web tcp 1 = allowed ingress p 0
			db > web gre 0 = allowed ingress p 0`},
		{"ports.port, a name, of the selected endpoint", spec(`
			podSelector: {}
			ingress: [{ports: [{port: http}]}]`), `
			out > web tcp 80 = allowed ingress p 0
			out > db tcp 80 = refused by 2 ingress
			out > db tcp 8080 = allowed ingress p 0
			out > db tcp 8081 = allowed ingress p 0
			out > web udp 80 = refused by 1 ingress`},
		{"ports.port, a name of another protocol, or nobody's", spec(`
			podSelector: {}
			ingress: [{ports: [{port: dns}, {port: nobodys}]}]`), `
			out > web tcp 53 = refused by 1 ingress
			out > web udp 53 = refused by 1 ingress
			out > web icmp 0 = refused by 1 ingress`},
		{"egress: ports.port, a name, of the server", spec(`
			podSelector: {matchLabels: {app: web}}
			policyTypes: [Egress]
			egress: [{to: [{podSelector: {}}], ports: [{port: http}]}]`), `
			web > db tcp 8080 = allowed egress p 0
			web > db tcp 8081 = allowed egress p 0
			web > db tcp 80 = refused by 1 egress
			web > remote tcp 9090 = allowed egress p 0
			web > remote tcp 80 = refused by 1 egress`},
		{"egress: a name, to everybody", spec(`
			podSelector: {matchLabels: {app: web}}
			policyTypes: [Egress]
			egress: [{ports: [{port: http}, {port: 443}]}]`), `
			web > db tcp 8080 = allowed egress p 0
			web > remote tcp 9090 = allowed egress p 0
			web > blue tcp 80 = refused by 1 egress
			web > out tcp 80 = refused by 1 egress
			web > out tcp 443 = allowed egress p 0
			web > db tcp 443 = allowed egress p 0`},
		{"egress: a name, to addresses", spec(`
			podSelector: {matchLabels: {app: web}}
			policyTypes: [Egress]
			egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: "::/0"}}], ports: [{port: http}]}]`), `
			web > out tcp 80 = refused by 1 egress
			web > db tcp 8080 = allowed egress p 0
			web > db tcp 80 = refused by 1 egress
			web > remote tcp 9090 = allowed egress p 0`},
		{"egress: to", spec(`
			podSelector: {matchLabels: {app: web}}
			policyTypes: [Egress]
			egress:
			- to: [{podSelector: {matchLabels: {app: db}}}]
			- to: [{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: "2001:db8::/64"}}]
				ports: [{protocol: UDP, port: 53}]`), `
			web > db icmp 0 = allowed egress p 0
			web > remote tcp 1 = allowed egress p 0
			web > out udp 53 = allowed egress p 1
			web > out tcp 53 = refused by 1 egress
			web > far udp 53 = refused by 1 egress
			db > web tcp 1 = allowed`},
		{"policies add up; the wider range is named", spec(`
			podSelector: {}
			ingress: [{ports: [{port: 80}]}]`) + "---\n" + strings.Replace(spec(`
			podSelector: {matchLabels: {app: web}}
			ingress: [{ports: [{port: 80}, {port: 81}]}]`), "name: p", "name: q", 1), `
			out > web tcp 80 = allowed ingress q 0
			out > web tcp 81 = allowed ingress q 0
			out > db tcp 80 = allowed ingress p 0
			out > db tcp 81 = refused by 2 ingress`},
		{"the network's isolation from others", "", `
			web > edge tcp 80 = refused by 4 ingress isolation
			edge2 > edge tcp 80 = allowed
			edge > edge tcp 80 = allowed
			edge > web tcp 80 = allowed
			out > edge tcp 80 = allowed
			remote > edge tcp 80 = allowed`},
		{"the network's isolation within", "", `
			edge > edge2 tcp 80 = refused by 5 ingress isolation
			web > edge2 tcp 80 = allowed`},
		{"isolation, whatever policies say", strings.Replace(spec(`
			podSelector: {}
			ingress: [{}]`), "name: p", "name: p, namespace: green", 1), `
			web > edge tcp 80 = refused by 4 ingress isolation after ingress p 0
			out > edge tcp 80 = allowed ingress p 0`},
	} {
		t.Run(test.name, func(t *testing.T) {
			o, err := Parse("test", []byte(test.objects))
			if err != nil {
				t.Fatal(err)
			}
			e := mustWith(t, world(t), o)
			var want, got []string
			for _, line := range strings.Split(strings.TrimSpace(test.flows), "\n") {
				line = strings.TrimSpace(line)
				want = append(want, "IPv4 "+line, "IPv6 "+line)
				flow, _, _ := strings.Cut(line, " = ")
				for i, family := range []string{"IPv4 ", "IPv6 "} {
					got = append(got, family+flow+" = "+told(e, e.Tables().Verdict(parseFlow(t, flow, i))))
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// parseFlow reads "client > server protocol port"; family is the position of
// the addresses.
func parseFlow(tb testing.TB, text string, family int) Flow {
	tb.Helper()
	words := strings.Fields(text)
	if len(words) != 5 {
		tb.Fatalf("flow %q has not five words", text)
	}
	client, server := ends[words[0]], ends[words[2]]
	protocol := map[string]uint8{"tcp": TCP, "udp": UDP, "sctp": SCTP, "icmp": 1, "gre": 47}[words[3]]
	port, err := strconv.ParseUint(words[4], 10, 16)
	if err != nil || protocol == 0 || client.Addresses == nil || server.Addresses == nil {
		tb.Fatalf("flow %q: %v", text, err)
	}
	return Flow{
		Client: client.Addresses[family], ClientID: client.ID,
		Server: server.Addresses[family], ServerID: server.ID, Protocol: protocol, ServerPort: uint16(port),
	}
}

// told writes all of a verdict. Rules have the name of the policy without the
// namespace.
func told(e *Engine, v Verdict) string {
	out := "allowed"
	if !v.Allowed {
		out = fmt.Sprintf("refused by %d %s", v.By, v.Direction)
	}
	if v.Isolation {
		out += " isolation"
	}
	after := ""
	if !v.Allowed {
		after = "after "
	}
	for _, rule := range []uint64{v.EgressRule, v.IngressRule} {
		if rule == 0 {
			continue
		}
		name := fmt.Sprintf("unknown rule %x", rule)
		for _, r := range e.Rules() {
			if r.Hash == rule {
				name = fmt.Sprintf("%s %s %d", r.Direction, r.Policy[strings.Index(r.Policy, "/")+1:], r.Index)
			}
		}
		out += " " + after + name
	}
	return out
}
