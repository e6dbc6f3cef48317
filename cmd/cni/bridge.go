// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/internal/vlan"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// defaultBridge is the bridge where none is named.
const defaultBridge = "tendril0"

// bridgeConfig is what the driver "bridge" has of its own that the agent need not know.
type bridgeConfig struct {
	// defaultGateway gives the container a default route by way of the gateways.
	defaultGateway bool
	// down leaves the container's interface down.
	down bool
	// dad has IPv6 ask the link whether somebody else has the container's addresses.
	dad bool
}

// bridgeKeys are the keys of the driver "bridge" alone.
func bridgeKeys() []string {
	return []string{
		"bridge", "isGateway", "isDefaultGateway", "forceAddress", "hairpinMode", "promiscMode", "macspoofchk",
		"vlan", "vlanTrunk", "preserveDefaultVlan", "portIsolation", "enabledad", "disableContainerInterface",
	}
}

func (c *config) readBridge(o object) {
	c.network.Bridge = defaultBridge
	o.read("bridge", &c.network.Bridge, "a string")
	if reason := api.BridgeNameFault(c.network.Bridge); reason != "" {
		o.fault("bridge", fmt.Sprintf("%q %s", c.network.Bridge, reason))
	}
	var told bool // the sender's MAC is checked in any case
	c.network.PreserveDefaultVLAN = true
	for _, one := range []struct {
		key  string
		dest *bool
	}{
		{"isGateway", &c.network.BridgeGateway},
		{"isDefaultGateway", &c.bridge.defaultGateway},
		{"forceAddress", &c.network.ForceAddress},
		{"hairpinMode", &c.network.Hairpin},
		{"promiscMode", &c.network.Promisc},
		{"portIsolation", &c.network.Isolated},
		{"enabledad", &c.bridge.dad},
		{"disableContainerInterface", &c.bridge.down},
		{"macspoofchk", &told},
		{"preserveDefaultVlan", &c.network.PreserveDefaultVLAN},
	} {
		o.read(one.key, one.dest, "true or false")
	}
	c.network.BridgeGateway = c.network.BridgeGateway || c.bridge.defaultGateway
	c.network.ForceAddress = c.network.ForceAddress && c.network.BridgeGateway
	if c.network.Hairpin && c.network.Promisc {
		o.fault("promiscMode", "true together with hairpinMode: a frame would come back to its sender twice")
	}
	c.readBridgeVLAN(o)
	c.network.Layer2 = c.bridge.down || o.has("ipam") && len(o.object("ipam").fields) == 0
}

// checkLayer2 refuses what containers without addresses cannot have.
func (c *config) checkLayer2(o object) {
	if !c.network.Layer2 {
		return
	}
	why := "there are no addresses with ipam {}"
	if c.bridge.down {
		why = "there are no addresses with disableContainerInterface"
	}
	for _, one := range []struct {
		there bool
		key   string
	}{
		{len(o.object("ipam").fields) != 0, "ipam"},
		{c.network.IPMasq, "ipMasq"},
		{c.bridge.defaultGateway, "isDefaultGateway"},
		{c.network.BridgeGateway, "isGateway"},
		{c.bridge.dad, "enabledad"},
		{len(c.routes) != 0, "routes"},
		{len(c.ips) != 0, "runtimeConfig.ips"},
		{len(c.network.Ranges) != 0, "runtimeConfig.ipRanges"},
		{len(c.ports) != 0, keyPorts},
	} {
		if one.there {
			o.fault(one.key, why)
		}
	}
}

func (c *config) readBridgeVLAN(o object) {
	readVLAN(o, &c.network.VLAN)
	c.network.VLANTrunk = readTrunk(o, "vlanTrunk")
	if c.network.VLANTrunk.Has(c.network.VLAN) {
		o.fault("vlanTrunk", fmt.Sprintf("VLAN %d is what containers are in without a tag (vlan)", c.network.VLAN))
	}
	if c.network.VLAN == 0 {
		c.network.PreserveDefaultVLAN = false // there is no other
		return
	}
	if reason := api.BridgeNameFault(c.network.BridgeInterface()); reason != "" {
		o.fault("vlan", fmt.Sprintf("the node's interface there would be called %q, which %s", c.network.BridgeInterface(), reason))
	}
}

// readTrunk reads VLANs as the reference plugin has them: {"id": 10}, or {"minID": 20, "maxID": 29}.
func readTrunk(o object, key string) vlan.Set {
	var all []vlan.Range
	for _, one := range o.objects(key) {
		one.known("id", "minID", "maxID")
		if one.has("id") {
			id := readTrunkVLAN(one, "id")
			all = append(all, vlan.Range{First: id, Last: id})
		}
		switch first, last := one.has("minID"), one.has("maxID"); {
		case first && last:
			r := vlan.Range{First: readTrunkVLAN(one, "minID"), Last: readTrunkVLAN(one, "maxID")}
			if r.First > r.Last {
				one.fault("maxID", fmt.Sprintf("%d is less than minID, %d", r.Last, r.First))
			}
			all = append(all, r)
		case first:
			one.fault("maxID", "missing, and minID is there")
		case last:
			one.fault("minID", "missing, and maxID is there")
		case !one.has("id"):
			one.fault("id", "missing, as are minID and maxID")
		}
	}
	return vlan.Of(all...)
}

func readTrunkVLAN(o object, key string) int {
	var id int
	o.read(key, &id, "a whole number")
	if id < 1 || id > vlan.Max {
		o.fault(key, fmt.Sprintf("%d is not between 1 and %d", id, vlan.Max))
	}
	return id
}

// device is the bridge as pkg/wiring has it.
func (c *config) device() wiring.Bridge {
	return wiring.Bridge{Name: c.network.Bridge, MTU: c.network.MTU, Promisc: c.network.Promisc, VLAN: c.network.VLAN, Filters: len(c.network.VLANTrunk) != 0}
}

// port is a container's as the configuration has it.
func (c *config) port() wiring.Bridged {
	return wiring.Bridged{
		Bridge: c.network.Bridge, VLAN: c.network.VLAN, Trunk: c.network.VLANTrunk, PreserveDefaultVLAN: c.network.PreserveDefaultVLAN,
		Hairpin: c.network.Hairpin, Isolated: c.network.Isolated, Down: c.bridge.down,
	}
}

// ensureBridge is the first step: the host's side gets the bridge's MAC, by which the
// datapath tells frames for the node from others. What fails later takes back a bridge that
// was made here, unless others have become its ports.
func (a *attachment) ensureBridge() error {
	joining, err := lockBridges(a.ctx, a.config.socket)
	if err != nil {
		return err
	}
	a.joining = joining
	a.bridge, err = wiring.EnsureBridge(a.host, a.config.device())
	if a.bridge.Made || a.bridge.VLANMade != 0 || a.bridge.VLANJoined { // before an error, too
		a.undo.push(a.removeBridge)
	}
	return err
}

// removeBridge leaves the bridge when other ADDs do not end soon: they may need it.
func (a *attachment) removeBridge(ctx context.Context) error {
	if alone, err := a.joining.alone(ctx); err != nil || !alone {
		return err
	}
	return wiring.RemoveUnusedBridge(a.host, a.config.device(), a.bridge)
}

func (a *attachment) wireBridged() error {
	bridged, err := a.bridged()
	if err != nil {
		return err
	}
	if a.config.network.BridgeGateway {
		if err := wiring.EnsureGateways(a.host, a.config.device(), a.endpoint.Gateways(), a.config.network.ForceAddress); err != nil {
			return err
		}
	}
	// As a port of the bridge the container can be reached. The agent comes first: from
	// then on there is policy in the way.
	if err := a.attach(); err != nil {
		return err
	}
	if bridged.Routes, err = wiring.ConfigureBridged(a.host, a.container, a.links, bridged); err != nil {
		return err
	}
	failpoint.Hit(failpoint.CNIAddConfigured)
	if err := wiring.SettleBridged(a.host, a.container, a.links, bridged); err != nil {
		return err
	}
	return a.print(a.endpoint.Addresses, bridged.Routes)
}

// firstOf is the first address of an address's subnet, which the reference plugin takes
// for the gateway that nobody has named; none where the subnet is one address.
func firstOf(address netip.Prefix) netip.Addr {
	first := address.Masked().Addr().Next()
	if !address.Contains(first) {
		return netip.Addr{}
	}
	return first
}

// bridged is what the container is to have. Its subnets need no routes: they are on its
// link.
func (a *attachment) bridged() (wiring.Bridged, error) {
	b := a.config.port()
	b.DAD, b.MTU = a.config.bridge.dad, a.endpoint.MTU
	var err error
	if b.Addresses, b.Routes, err = a.onSharedLink(); err != nil {
		return b, err
	}
	if err := a.checkPorts(b.Routes); err != nil {
		return b, err
	}
	if !a.config.bridge.defaultGateway {
		return b, nil
	}
	for _, address := range a.endpoint.Addresses {
		all := netip.PrefixFrom(unspecified(address.Address.Addr()), 0)
		same := func(r wiring.Route) bool { return r.Dst == all && r.Priority == 0 && r.Table == 0 }
		if address.Gateway.IsValid() && !slices.ContainsFunc(b.Routes, same) {
			b.Routes = append(b.Routes, wiring.Route{Dst: all, Gateway: address.Gateway, Optional: true})
		}
	}
	return b, nil
}

// onSharedLink returns the addresses and the routes of a container whose subnets are on its
// link.
func (a *attachment) onSharedLink() (addresses []netip.Prefix, routes []wiring.Route, err error) {
	for _, address := range a.endpoint.Addresses {
		addresses = append(addresses, address.Address)
	}
	if err := a.checkMTU(); err != nil {
		return nil, nil, err
	}
	given := a.givenRoutes()
	for i := range given {
		if given[i].Route, err = onLink(given[i].Route, a.endpoint.Addresses); err != nil {
			return nil, nil, err
		}
		routes = append(routes, given[i].Route)
	}
	if fault := duplicate(given); fault != nil {
		return nil, nil, fault
	}
	return addresses, routes, nil
}

// checkPorts refuses ports of the host by which nobody could reach the container: it has no
// way to answer off its link, where the node has no address. By way of another router than
// the node it has one.
func (a *attachment) checkPorts(routes []wiring.Route) error {
	if a.config.network.BridgeGateway || len(a.config.ports) == 0 {
		return nil
	}
	near, err := wiring.BridgeAddresses(a.host, a.config.device())
	if err != nil {
		return err
	}
	answers := func(address netip.Prefix) bool {
		return slices.ContainsFunc(near, func(p netip.Prefix) bool { return address.Masked().Contains(p.Addr()) }) ||
			slices.ContainsFunc(routes, func(r wiring.Route) bool {
				return r.Gateway.IsValid() && r.Gateway.Is4() == address.Addr().Is4()
			})
	}
	for i, port := range a.config.ports {
		reached := func(e api.Address) bool {
			return answers(e.Address) && (!port.HostIP.IsValid() || port.HostIP.Is4() == e.Address.Addr().Is4())
		}
		if !slices.ContainsFunc(a.endpoint.Addresses, reached) {
			return faultf(types.ErrInvalidNetworkConfig, "%s[%d]: port %d of the host would not be reached: the container has no route off "+
				"bridge %s, and that no address for it: isGateway and isDefaultGateway give both",
				keyPorts, i, port.HostPort, a.config.network.BridgeInterface())
		}
	}
	return nil
}

// onLink completes a route of a container on a bridge. Its next hop is on one of the
// container's subnets or is its gateway, which is where none is named the first of the
// family.
func onLink(route wiring.Route, addresses []api.Address) (wiring.Route, error) {
	if !route.Gateway.IsValid() && route.Scope >= scopeLink {
		return route, nil
	}
	var subnets []string
	for _, a := range addresses {
		switch {
		case a.Address.Addr().Is4() != route.Dst.Addr().Is4():
			continue
		case route.Gateway.IsValid() && (route.Gateway == a.Gateway || reaches(a.Address, route.Gateway)):
			return route, nil
		case !route.Gateway.IsValid() && a.Gateway.IsValid():
			route.Gateway = a.Gateway
			return route, nil
		}
		subnets = append(subnets, a.Address.Masked().String())
	}
	switch {
	case subnets == nil:
		return route, noFamily(route)
	case !route.Gateway.IsValid():
		return route, faultf(types.ErrInvalidNetworkConfig, "routes: dst %s: no gateway is known; gw can name one, and scope %d goes without",
			route.Dst, scopeLink)
	}
	return route, faultf(types.ErrInvalidNetworkConfig, "routes: gw %s of dst %s is not on the container's link, where only %s is",
		route.Gateway, route.Dst, strings.Join(subnets, " and "))
}

// reaches tells whether an address is on the link of another one's subnet. Those of IPv6
// that are of a link are on each.
func reaches(of netip.Prefix, a netip.Addr) bool {
	return of.Contains(a) || of.Addr().Is6() && a.Is6() && a.IsLinkLocalUnicast()
}
