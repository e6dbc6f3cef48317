// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/policy"
)

// labelNamespace is under which Kubernetes' runtimes name a container's namespace.
const labelNamespace = "io.kubernetes.pod.namespace"

// defaultNamespace is that of a container that has none.
const defaultNamespace = "default"

// namespace is that of the endpoint in policies.
func (r *record) namespace() string { return cmp.Or(r.Labels[labelNamespace], defaultNamespace) }

// namedProtocols are the protocols whose ports policy can name.
var namedProtocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// subject is the endpoint as policy knows it.
func (r *record) subject() policy.Endpoint {
	e := policy.Endpoint{
		ID:                r.ID,
		Namespace:         r.namespace(),
		Labels:            r.Labels,
		Network:           r.Network,
		FromOtherNetworks: r.Origin.IngressPolicy == api.IngressSameBridge || r.Origin.IngressPolicy == api.IngressIsolated,
		FromOwnNetwork:    r.Origin.IngressPolicy == api.IngressIsolated || r.Origin.NoICC,
	}
	for _, a := range r.Addresses {
		e.Addresses = append(e.Addresses, a.Address.Addr())
	}
	for _, p := range r.NamedPorts {
		e.Ports = append(e.Ports, policy.NamedPort{Name: p.Name, Protocol: namedProtocols[p.Protocol], Port: p.ContainerPort})
	}
	return e
}

// DatapathPolicy returns the tables as the datapath takes them; where nobody is restricted,
// none.
func DatapathPolicy(t *policy.Tables) datapath.Policy {
	if !t.Active {
		return datapath.Policy{} // nothing is asked, so nothing need be there
	}
	p := datapath.Policy{
		Active:     true,
		Subjects:   make(map[uint16]datapath.Subject, len(t.Subjects)),
		Identities: t.Prefixes,
		Entries:    make(map[datapath.PolicyPair][]datapath.PolicyRange, len(t.Entries)),
	}
	for id, s := range t.Subjects {
		p.Subjects[id] = datapath.Subject{
			Ingress: s.Ingress, Egress: s.Egress, Identity: s.Identity, ByAddress: s.ByAddress,
			Network: s.Network, NoOthers: s.FromOtherNetworks, NoOwn: s.FromOwnNetwork,
		}
	}
	for pair, ranges := range t.Entries {
		list := make([]datapath.PolicyRange, len(ranges))
		for i, r := range ranges {
			list[i] = datapath.PolicyRange(r)
		}
		p.Entries[datapath.PolicyPair(pair)] = list
	}
	return p
}
