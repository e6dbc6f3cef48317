// SPDX-License-Identifier: Apache-2.0

package policy

import "net/netip"

// Flow is a new flow.
type Flow struct {
	// Client began it, Server was called.
	Client, Server netip.Addr
	// ClientID and ServerID are 0 for what is no endpoint of this node.
	ClientID, ServerID uint16
	Protocol           uint8
	// ServerPort is 0 if the protocol has no ports.
	ServerPort uint16
}

// Verdict is what becomes of a flow.
type Verdict struct {
	Allowed bool
	// By is the endpoint of this node that refused, and Direction the one in
	// which it did. Isolation says that it was not a policy, but the isolation
	// of the endpoint's network.
	By        uint16
	Direction Direction
	Isolation bool
	// EgressRule and IngressRule are the rules that matched; 0 if none did, was
	// needed or was asked. The client's egress is asked first, then the
	// server's ingress, then isolation, and the first that refuses decides.
	EgressRule, IngressRule uint64
}

// Verdict asks the tables as the programs do. What the host itself sends to its
// own containers, or they to it, is always allowed and not asked for.
func (t *Tables) Verdict(f Flow) Verdict {
	if !t.Active || f.ClientID != 0 && f.ClientID == f.ServerID {
		return Verdict{Allowed: true}
	}
	var v Verdict
	client, clientHere := t.Subjects[f.ClientID]
	server, serverHere := t.Subjects[f.ServerID]
	if clientHere && client.Egress != 0 {
		rule, ok := t.match(client.Egress, t.identity(f.ServerID, f.Server), f)
		if !ok {
			return Verdict{By: f.ClientID, Direction: Egress}
		}
		v.EgressRule = rule
	}
	if serverHere && server.Ingress != 0 {
		rule, ok := t.match(server.Ingress, t.identity(f.ClientID, f.Client), f)
		if !ok {
			v.By, v.Direction = f.ServerID, Ingress
			return v
		}
		v.IngressRule = rule
	}
	if clientHere && serverHere {
		refused := server.FromOtherNetworks
		if client.Network == server.Network {
			refused = server.FromOwnNetwork
		}
		if refused {
			v.By, v.Direction, v.Isolation = f.ServerID, Ingress, true
			return v
		}
	}
	v.Allowed = true
	return v
}

// identity is that of an address, which may be of an endpoint of this node.
func (t *Tables) identity(id uint16, address netip.Addr) uint32 {
	if s, ok := t.Subjects[id]; ok && !s.ByAddress {
		return s.Identity
	}
	address = address.Unmap()
	for bits := address.BitLen(); bits >= 0; bits-- {
		p, err := address.Prefix(bits)
		if err != nil {
			return 0
		}
		if identity, ok := t.Prefixes[p]; ok {
			return identity
		}
	}
	return 0
}

// match finds the rule of a set that allows the flow.
func (t *Tables) match(set, identity uint32, f Flow) (rule uint64, ok bool) {
	if identity != 0 {
		if rule, ok := match(t.Entries[Pair{set, identity}], f); ok {
			return rule, true
		}
	}
	return match(t.Entries[Pair{set, 0}], f)
}

func match(ranges []Range, f Flow) (rule uint64, ok bool) {
	for _, r := range ranges {
		if r.Protocol == 0 || r.Protocol == f.Protocol && r.First <= f.ServerPort && f.ServerPort <= r.Last {
			return r.Rule, true
		}
	}
	return 0, false
}
