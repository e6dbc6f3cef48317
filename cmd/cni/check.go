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

// answered finds this plugin's part of prevResult, which may hold the
// interfaces, addresses and routes of others, and compares it with the
// agent's record.
func (p *plugin) answered(endpoint api.Endpoint) (wiring.Routed, []error) {
	mismatch := func(format string, args ...any) error {
		return &wiring.MismatchError{Differences: []string{fmt.Sprintf(format, args...)}}
	}
	result := p.config.prevResult
	at := slices.IndexFunc(result.Interfaces, func(i *current.Interface) bool {
		return i != nil && i.Name == p.call.IfName && i.Sandbox != ""
	})
	if at < 0 {
		return wiring.Routed{}, []error{faultf(types.ErrInvalidNetworkConfig,
			"prevResult.interfaces: %s, which is CNI_IFNAME, is not among them", p.call.IfName)}
	}
	var differences []error
	routed := wiring.Routed{MTU: result.Interfaces[at].Mtu, Addresses: wiredAddresses(endpoint)}
	var listed []netip.Addr
	for _, ip := range result.IPs {
		if ip == nil || ip.Interface == nil || *ip.Interface != at {
			continue
		}
		a := prefixOf(ip.Address).Addr()
		listed = append(listed, a)
		if !slices.ContainsFunc(routed.Addresses, func(b wiring.Address) bool { return b.Addr == a }) {
			differences = append(differences, mismatch("address %s of %s is not the agent's record", a, p.call.IfName))
		}
	}
	for _, a := range routed.Addresses {
		if !slices.Contains(listed, a.Addr) {
			differences = append(differences, mismatch("address %s of the agent's record is not in prevResult", a.Addr))
		}
	}
	gateways := routed.Gateways()
	for _, route := range ipamRoutes(result) {
		// A route by way of somebody else is somebody else's.
		if slices.Contains(gateways, route.Gateway) {
			routed.Routes = append(routed.Routes, route)
		}
	}
	return routed, differences
}

func (p *plugin) checkWiring(endpoint api.Endpoint, routed wiring.Routed) error {
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
	mac, err1 := net.ParseMAC(endpoint.MAC)
	hostMAC, err2 := net.ParseMAC(endpoint.HostMAC)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("decode endpoint from the agent: %w", err)
	}
	return wiring.Check(host, container, wiring.Veth{
		HostName: endpoint.HostIfName, Name: p.call.IfName,
		HostMAC: hostMAC, MAC: mac, MTU: endpoint.MTU,
	}, routed)
}
