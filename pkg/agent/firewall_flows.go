// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/policy"
)

// maxJudgedFlows bounds the flows that a dry run looks at: a second or two.
const maxJudgedFlows = 500000

// actionDeny is datapath.Flow.Action of what policy denies.
const actionDeny = "deny"

// reasonIsolation is datapath.Flow.Reason where it was not a policy that denied.
const (
	reasonEgress    = "policy_egress"
	reasonIsolation = "network_isolation"
)

// ends knows the endpoints by their addresses, as they were at a time.
type ends struct {
	byAddress map[netip.Addr]*record
	byID      map[uint16]*record
	// ports are where mapped ports lead.
	ports map[mappedPort]netip.AddrPort
	// host has the node's own addresses.
	host map[netip.Addr]bool
}

// mappedPort has the unspecified address for a port of all addresses of a family.
type mappedPort struct {
	protocol uint8
	host     netip.AddrPort
}

func (s *Service) ends() (*ends, error) {
	own, err := s.opts.Surroundings.Addresses()
	if err != nil {
		return nil, fmt.Errorf("read host addresses: %w", err)
	}
	e := &ends{
		byAddress: make(map[netip.Addr]*record), byID: make(map[uint16]*record),
		ports: make(map[mappedPort]netip.AddrPort), host: make(map[netip.Addr]bool),
	}
	for _, a := range own {
		e.host[a] = true
	}
	for _, r := range s.served() {
		e.byID[r.ID] = r
		for _, a := range r.Addresses {
			e.byAddress[a.Address.Addr()] = r
		}
		for _, p := range r.ports() {
			e.ports[mappedPort{p.Protocol, netip.AddrPortFrom(p.HostIP, p.HostPort)}] = netip.AddrPortFrom(p.ContainerIP, p.ContainerPort)
		}
	}
	return e, nil
}

// served are the endpoints that the datapath serves.
func (s *Service) served() []*record {
	return s.list(func(r *record) bool { return r.State == api.Ready && !s.index.detached[r.Attachment] })
}

// client and server are the ends of a flow: who began it, and whom that reached.
func (e *ends) of(f datapath.Flow) (client, server netip.AddrPort) {
	client, server = f.Source, f.Destination
	switch {
	case f.Reply:
		return server, client
	case f.TranslatesDestination:
		return client, f.To
	}
	if to, mapped := e.ports[mappedPort{f.Protocol, f.Destination}]; mapped {
		return client, to
	}
	all := netip.IPv6Unspecified()
	if f.Destination.Addr().Is4() {
		all = netip.IPv4Unspecified()
	}
	if to, mapped := e.ports[mappedPort{f.Protocol, netip.AddrPortFrom(all, f.Destination.Port())}]; mapped && e.host[f.Destination.Addr()] {
		return client, to
	}
	return client, server
}

// isMapped tells whether a flow is one to a port of the host that leads to a container.
func (e *ends) isMapped(f datapath.Flow) bool {
	all := netip.IPv6Unspecified()
	if f.Destination.Addr().Is4() {
		all = netip.IPv4Unspecified()
	}
	_, here := e.ports[mappedPort{f.Protocol, f.Destination}]
	_, anywhere := e.ports[mappedPort{f.Protocol, netip.AddrPortFrom(all, f.Destination.Port())}]
	return here || anywhere
}

func (e *ends) id(a netip.Addr) uint16 {
	if r := e.byAddress[a]; r != nil {
		return r.ID
	}
	return 0
}

func (e *ends) attachment(id uint16) api.Attachment {
	if r := e.byID[id]; r != nil {
		return r.Attachment
	}
	return api.Attachment{}
}

// hasPorts tells whether a rule can ask for the protocol's ports.
func hasPorts(protocol uint8) bool {
	return protocol == unix.IPPROTO_TCP || protocol == unix.IPPROTO_UDP || protocol == unix.IPPROTO_SCTP
}

// effect is what the change of a policy would do to the endpoints and to the flows that
// there are now.
func (s *Service) effect(c comparison) (*api.PolicyEffect, error) {
	ends, err := s.ends()
	if err != nil {
		return nil, err
	}
	effect := &api.PolicyEffect{Isolation: []api.IsolationChange{}, Cut: []api.JudgedFlow{}, Opened: []api.JudgedFlow{}}
	for _, r := range s.served() {
		for _, direction := range []policy.Direction{policy.Ingress, policy.Egress} {
			then := c.then.isolated[direction][r.ID]
			if then != c.now.isolated[direction][r.ID] {
				effect.Isolation = append(effect.Isolation, api.IsolationChange{Attachment: r.Attachment, Direction: direction.String(), Isolated: then})
			}
		}
	}
	looked := 0
	err = s.opts.Datapath.Walk.EachFlow(func(f datapath.Flow) bool {
		if looked++; looked > maxJudgedFlows {
			effect.Partial = true
			return false
		}
		// A flow of answers is that of its questions, which is there as well.
		if !f.Current || f.Reply && f.Action != actionDeny || f.Action == "return" {
			return true
		}
		// So is what comes back from the world to what was masqueraded.
		if f.TranslatesDestination && f.IfIndex == 0 && !ends.isMapped(f) {
			return true
		}
		client, server := ends.of(f)
		if ends.host[client.Addr()] || ends.host[server.Addr()] {
			return true // the host and its containers always reach each other
		}
		flow := policy.Flow{
			Client: client.Addr(), Server: server.Addr(), ClientID: ends.id(client.Addr()), ServerID: ends.id(server.Addr()),
			Protocol: f.Protocol,
		}
		if hasPorts(f.Protocol) {
			flow.ServerPort = server.Port()
		}
		now, then := c.now.tables.Verdict(flow), c.then.tables.Verdict(flow)
		judged := api.JudgedFlow{Protocol: datapath.ProtocolName(f.Protocol), Client: client, Server: server}
		note := func(v policy.Verdict, list *[]api.JudgedFlow, total *int) {
			judged.Endpoint, judged.Direction = ends.attachment(v.By), v.Direction.String()
			if *total++; len(*list) < api.MaxJudged {
				*list = append(*list, judged)
			}
		}
		switch {
		case f.Action != actionDeny && now.Allowed && !then.Allowed:
			note(then, &effect.Cut, &effect.CutTotal)
		case f.Action == actionDeny && !now.Allowed && then.Allowed:
			note(now, &effect.Opened, &effect.OpenedTotal)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read flows: %w", err)
	}
	for _, list := range [][]api.JudgedFlow{effect.Cut, effect.Opened} {
		slices.SortFunc(list, compareJudged)
	}
	return effect, nil
}

func compareJudged(a, b api.JudgedFlow) int {
	for _, c := range []int{a.Client.Compare(b.Client), a.Server.Compare(b.Server)} {
		if c != 0 {
			return c
		}
	}
	return 0
}

// Drops lists at most limit flows that are denied now.
func (s *Service) Drops(_ context.Context, limit int) ([]api.Drop, error) {
	ends, err := s.ends()
	if err != nil {
		return nil, err
	}
	drops := []api.Drop{}
	by := make(map[uint16][2][]string)
	err = s.opts.Datapath.Walk.EachFlow(func(f datapath.Flow) bool {
		if f.Action != actionDeny || !f.Current {
			return true
		}
		d := api.Drop{
			Protocol: datapath.ProtocolName(f.Protocol), Source: f.Source, Destination: f.Destination,
			Reason: f.Reason, Packets: f.Packets, Bytes: f.Bytes, Idle: f.Idle,
		}
		client, server := ends.of(f)
		denied, direction := server, policy.Ingress
		if f.Reason == reasonEgress {
			denied, direction = client, policy.Egress
		}
		if r := ends.byAddress[denied.Addr()]; r != nil {
			d.Endpoint = r.Attachment
			if f.Reason == reasonIsolation {
				d.Network = r.Network
			} else {
				if _, known := by[r.ID]; !known {
					by[r.ID] = s.firewall.isolating(r.ID)
				}
				d.Policies = by[r.ID][direction]
			}
		}
		drops = append(drops, d)
		return len(drops) < limit
	})
	if err != nil {
		return nil, fmt.Errorf("read flows: %w", err)
	}
	return drops, nil
}
