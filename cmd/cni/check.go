// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// check compares four things with what ADD answered: the agent's record, the
// links of both sides with all that is on them, the datapath and lease (which
// the agent compares), and the lease of a delegated plugin.
func (p *plugin) check() error {
	if p.config.prevResult == nil {
		return faultf(types.ErrInvalidNetworkConfig, "prevResult: missing, and CHECK compares with it")
	}
	client := api.NewClient(p.config.socket)
	defer client.Close()
	endpoint, err := client.Endpoint(p.ctx, p.call.Attachment)
	if err != nil {
		return fmt.Errorf("look up endpoint: %w", err)
	}
	answered, differences := p.answered(endpoint)
	if err := p.checkWiring(endpoint, answered); err != nil {
		differences = append(differences, err)
	}
	if err := client.Check(p.ctx, p.call.Attachment); err != nil {
		differences = append(differences, fmt.Errorf("agent: %w", err))
	}
	if p.config.delegated() {
		delegate, err := p.delegate()
		if err == nil {
			err = delegate.run(p.ctx, "CHECK")
		}
		if err != nil {
			differences = append(differences, err)
		}
	}
	return errors.Join(differences...)
}

// answer is this plugin's part of prevResult.
type answer struct {
	mtu    int
	routes []wiring.Route
}

// answered finds this plugin's part of prevResult, which may hold the
// interfaces, addresses and routes of others, and compares it with the
// agent's record.
func (p *plugin) answered(endpoint api.Endpoint) (answer, []error) {
	mismatch := func(format string, args ...any) error {
		return &wiring.MismatchError{Differences: []string{fmt.Sprintf(format, args...)}}
	}
	result := p.config.prevResult
	at := slices.IndexFunc(result.Interfaces, func(i *current.Interface) bool {
		return i != nil && i.Name == p.call.IfName && i.Sandbox != ""
	})
	if at < 0 {
		return answer{}, []error{faultf(types.ErrInvalidNetworkConfig,
			"prevResult.interfaces: %s, which is CNI_IFNAME, is not among them", p.call.IfName)}
	}
	found := answer{mtu: result.Interfaces[at].Mtu}
	if p.config.network.Layer2 {
		return found, nil // its addresses and routes are somebody else's
	}
	var differences []error
	var recorded, listed []netip.Addr
	for _, a := range endpoint.Addresses {
		recorded = append(recorded, a.Address.Addr())
	}
	for _, ip := range result.IPs {
		if ip == nil || ip.Interface == nil || *ip.Interface != at {
			continue
		}
		a := prefixOf(ip.Address).Addr()
		listed = append(listed, a)
		if !slices.Contains(recorded, a) {
			differences = append(differences, mismatch("address %s of %s is not the agent's record", a, p.call.IfName))
		}
	}
	for _, a := range recorded {
		if !slices.Contains(listed, a) {
			differences = append(differences, mismatch("address %s of the agent's record is not in prevResult", a))
		}
	}
	for _, route := range ipamRoutes(result) {
		// A route by way of somebody else is somebody else's.
		if isHop(endpoint, route.Gateway) {
			found.routes = append(found.routes, route)
		}
	}
	return found, differences
}

// isHop tells whether the endpoint's container can have the next hop.
func isHop(endpoint api.Endpoint, hop netip.Addr) bool {
	if endpoint.Driver == api.DriverBridge || endpoint.Driver == api.DriverMacvlan {
		return hop.IsValid() && slices.ContainsFunc(endpoint.Addresses, func(a api.Address) bool {
			return hop == a.Gateway || reaches(a.Address, hop)
		})
	}
	return slices.Contains(wiring.Routed{Addresses: wiredAddresses(endpoint)}.Gateways(), hop)
}

func (p *plugin) checkWiring(endpoint api.Endpoint, answered answer) error {
	host, err := wiring.Current()
	if err != nil {
		return err
	}
	defer func() { _ = host.Close() }()
	container, err := openContainer(host, p.call.netns)
	if err != nil {
		return err
	}
	defer func() { _ = container.Close() }()
	if endpoint.Driver == api.DriverMacvlan {
		return p.checkMacvlan(host, container, endpoint, answered)
	}
	mac, err1 := net.ParseMAC(endpoint.MAC)
	hostMAC, err2 := net.ParseMAC(endpoint.HostMAC)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("decode endpoint from the agent: %w", err)
	}
	veth := wiring.Veth{
		HostName: endpoint.HostIfName, Name: p.call.IfName,
		HostMAC: hostMAC, MAC: mac, MTU: endpoint.MTU,
	}
	if endpoint.Driver == api.DriverBridge {
		b := p.config.port()
		b.Bridge, b.MTU, b.Routes = endpoint.Bridge, answered.mtu, answered.routes
		for _, a := range endpoint.Addresses {
			b.Addresses = append(b.Addresses, a.Address)
		}
		if p.config.network.BridgeGateway {
			b.Gateways = endpoint.Gateways()
		}
		return wiring.CheckBridged(host, container, veth, b)
	}
	return wiring.Check(host, container, veth, wiring.Routed{
		MTU: answered.mtu, Addresses: wiredAddresses(endpoint), Routes: answered.routes,
	})
}
