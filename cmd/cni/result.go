// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// print writes the result of ADD, in the version of the configuration: what
// came before in the chain, and then what this plugin added: the links from the
// outside to the inside, and the container's addresses and routes.
func (a *attachment) print(addresses []api.Address, routes []wiring.Route) error {
	result := a.config.prevResult
	if result == nil {
		result = &current.Result{}
	}
	result.CNIVersion = current.ImplementedSpecVersion
	if name := a.config.network.Bridge; name != "" {
		result.Interfaces = append(result.Interfaces, &current.Interface{Name: name, Mac: a.bridge.MAC.String()})
	}
	if a.links.HostName != "" {
		result.Interfaces = append(result.Interfaces,
			&current.Interface{Name: a.links.HostName, Mac: a.links.HostMAC.String(), Mtu: a.endpoint.MTU})
	}
	result.Interfaces = append(result.Interfaces,
		&current.Interface{Name: a.call.IfName, Mac: a.endpoint.MAC, Mtu: a.endpoint.MTU, Sandbox: a.call.netns})
	last := len(result.Interfaces) - 1
	for _, address := range addresses {
		result.IPs = append(result.IPs, &current.IPConfig{
			Interface: current.Int(last),
			Address:   ipNet(address.Address),
			Gateway:   address.Gateway.AsSlice(),
		})
	}
	for _, route := range routes {
		result.Routes = append(result.Routes, resultRoute(route))
	}
	result.DNS = a.mergedDNS(result.DNS)
	converted, err := result.GetAsVersion(a.config.version)
	if err != nil {
		return faultf(types.ErrIncompatibleCNIVersion, "convert result to version %s: %v", a.config.version, err)
	}
	// In one write, so that a reader gets all or nothing.
	var text bytes.Buffer
	if err = converted.PrintTo(&text); err == nil {
		_ = text.WriteByte('\n')
		_, err = a.stdout.Write(text.Bytes())
	}
	if err != nil {
		return faultf(types.ErrIOFailure, "write result: %v", err)
	}
	return nil
}

// nullIn names an item of a result's lists that is null, "" where none is. The library's converters follow
// it, and so does whoever reads the result.
func nullIn(result object) string {
	for _, key := range []string{"interfaces", "ips", "routes"} {
		for i, item := range result.list(key) {
			if string(item) == "null" {
				return fmt.Sprintf("%s[%d]", key, i)
			}
		}
	}
	return ""
}

func resultRoute(r wiring.Route) *types.Route {
	route := &types.Route{Dst: ipNet(r.Dst), MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority}
	if r.Gateway.IsValid() {
		route.GW = r.Gateway.AsSlice()
	}
	if r.Table != 0 {
		route.Table = &r.Table
	}
	if r.Scope != 0 {
		route.Scope = &r.Scope
	}
	return route
}

// mergedDNS appends the network's resolver settings to those of the plugins
// before. Of the network's own, what the runtime asked for goes before the
// configuration, and that before what an IPAM plugin found.
func (a *attachment) mergedDNS(before types.DNS) types.DNS {
	own := types.DNS{}
	if a.ipamResult != nil {
		own = a.ipamResult.DNS
	}
	if !a.config.dns.IsEmpty() {
		own = a.config.dns
	}
	asked := a.config.runtimeDNS
	for _, list := range []struct{ own, asked *[]string }{
		{&own.Nameservers, &asked.Nameservers}, {&own.Search, &asked.Search}, {&own.Options, &asked.Options},
	} {
		if len(*list.asked) != 0 {
			*list.own = *list.asked
		}
	}
	merged := types.DNS{
		Nameservers: union(before.Nameservers, own.Nameservers),
		Domain:      before.Domain,
		Search:      union(before.Search, own.Search),
		Options:     union(before.Options, own.Options),
	}
	if merged.Domain == "" {
		merged.Domain = own.Domain
	}
	return merged
}

func union(first, second []string) []string {
	all := slices.Clone(first)
	for _, one := range second {
		if !slices.Contains(all, one) {
			all = append(all, one)
		}
	}
	return all
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
