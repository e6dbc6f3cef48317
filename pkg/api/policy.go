// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/netip"
)

// What a network lets begin connections to its endpoints, in the words of the
// reference firewall plugin (key ingressPolicy). The host always can.
const (
	// IngressOpen lets everybody; so does "".
	IngressOpen = "open"
	// IngressSameBridge refuses the endpoints of other networks of the node.
	IngressSameBridge = "same-bridge"
	// IngressIsolated refuses all other endpoints of the node.
	IngressIsolated = "isolated"
)

// NamedPort is a port that a container serves under a name, in the words of a
// Pod's containerPorts.
type NamedPort struct {
	Name string `json:"name"`
	// ContainerPort is 1 to 65535.
	ContainerPort uint16 `json:"containerPort"`
	// Protocol is "tcp", "udp" or "sctp".
	Protocol string `json:"protocol"`
}

// Firewall is the policy of the node and what it comes to.
type Firewall struct {
	Policies   []Policy         `json:"policies"`
	Namespaces []Namespace      `json:"namespaces"`
	Endpoints  []EndpointPolicy `json:"endpoints"`
}

// Policy is a NetworkPolicy.
type Policy struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// File is where it is kept.
	File string `json:"file"`
	// PolicyTypes are the directions in which it isolates: "Ingress", "Egress".
	PolicyTypes []string `json:"policyTypes"`
	// Endpoints are those of this node that it selects.
	Endpoints []Attachment `json:"endpoints"`
	Rules     []PolicyRule `json:"rules"`
}

// PolicyRule is one rule of a NetworkPolicy.
type PolicyRule struct {
	// Direction is "ingress" or "egress", Index the position in that list of
	// the object.
	Direction string `json:"direction"`
	Index     int    `json:"index"`
	// Summary is such as "from app=web to TCP 80, 8000-8010".
	Summary string `json:"summary"`
	// Hits counts the flows that it has let through, by their first packet.
	Hits uint64 `json:"hits"`
}

// Namespace is an object that gives a namespace labels.
type Namespace struct {
	Name   string            `json:"name"`
	File   string            `json:"file"`
	Labels map[string]string `json:"labels,omitempty"`
}

// EndpointPolicy is what policy does with one endpoint.
type EndpointPolicy struct {
	Attachment
	ID        uint16 `json:"id"`
	Namespace string `json:"namespace"`
	Network   string `json:"network"`
	// IngressPolicy and NoICC are those of its network.
	IngressPolicy string `json:"ingressPolicy"`
	NoICC         bool   `json:"noICC,omitempty"`
	// Ingress and Egress are the policies that isolate it, "namespace/name".
	Ingress []string `json:"ingress"`
	Egress  []string `json:"egress"`
	// IngressDenied and EgressDenied count the flows that none of these let
	// through, by their first packet.
	IngressDenied uint64 `json:"ingressDenied"`
	EgressDenied  uint64 `json:"egressDenied"`
}

// ApplyRequest asks to keep objects, besides those that there are.
type ApplyRequest struct {
	// Source names the text in errors; a file, as a rule.
	Source string
	// Text are documents of YAML or JSON.
	Text []byte
	// DryRun changes nothing and says what would change.
	DryRun bool
}

// What becomes of an object.
const (
	ObjectCreated   = "created"
	ObjectChanged   = "changed"
	ObjectUnchanged = "unchanged"
	ObjectDeleted   = "deleted"
)

// PolicyChange is what an ApplyRequest has done, or would do.
type PolicyChange struct {
	DryRun  bool           `json:"dryRun"`
	Objects []ObjectChange `json:"objects"`
	// Effect is what a dry run would change; absent otherwise.
	Effect *PolicyEffect `json:"effect,omitempty"`
}

// ObjectChange is what becomes of one object.
type ObjectChange struct {
	// Kind is "NetworkPolicy" or "Namespace".
	Kind string `json:"kind"`
	// Namespace is empty for a Namespace.
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Change    string `json:"change"`
	File      string `json:"file"`
}

// PolicyEffect compares two policies.
type PolicyEffect struct {
	Isolation []IsolationChange `json:"isolation"`
	// Cut are flows alive that would be denied, Opened those denied that would
	// pass: at most MaxJudged of each. CutTotal and OpenedTotal count all.
	Cut         []JudgedFlow `json:"cut"`
	CutTotal    int          `json:"cutTotal"`
	Opened      []JudgedFlow `json:"opened"`
	OpenedTotal int          `json:"openedTotal"`
	// Partial says that there were more flows than were looked at.
	Partial bool `json:"partial,omitempty"`
}

// MaxJudged bounds each list of flows of a PolicyEffect.
const MaxJudged = 1000

// IsolationChange is an endpoint that becomes isolated in a direction, or ceases
// to be.
type IsolationChange struct {
	Attachment
	// Direction is "ingress" or "egress".
	Direction string `json:"direction"`
	Isolated  bool   `json:"isolated"`
}

// JudgedFlow is a flow of which another policy would decide otherwise.
type JudgedFlow struct {
	Protocol string `json:"protocol"`
	// Client began it. Server is the end that was reached, after a mapped port
	// was resolved.
	Client netip.AddrPort `json:"client"`
	Server netip.AddrPort `json:"server"`
	// Endpoint is whose policy decides.
	Endpoint Attachment `json:"endpoint,omitzero"`
	// Direction is "ingress" or "egress", as that endpoint sees it.
	Direction string `json:"direction,omitempty"`
}

// Drop is a flow that is denied now.
type Drop struct {
	Protocol    string         `json:"protocol"`
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	// Reason is as counters name it: policy_ingress, policy_egress or
	// network_isolation.
	Reason string `json:"reason"`
	// Endpoint is whose policy denies; absent when it is not known any more.
	Endpoint Attachment `json:"endpoint,omitzero"`
	// Policies are those that isolate the endpoint in that direction, and so
	// deny by default. For network_isolation it is Network that does.
	Policies []string `json:"policies,omitempty"`
	Network  string   `json:"network,omitempty"`
	Packets  uint64   `json:"packets"`
	Bytes    uint64   `json:"bytes"`
	Idle     uint32   `json:"idleSeconds"`
}
