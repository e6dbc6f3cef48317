// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/wiring"
)

// givenRoute is a route that somebody asked for.
type givenRoute struct {
	wiring.Route
	// key is where: "ipam.routes[0]", "routes[0] of ipam host-local".
	key string
}

// place is what the kernel tells two routes of a link apart by, with the defaults
// that it fills in.
type place struct {
	dst             netip.Prefix
	gateway         netip.Addr
	priority, table int
}

func (r givenRoute) place() place {
	const priorityIPv6 = 1024 // IP6_RT_PRIO_USER; IPv4 keeps 0
	p := place{r.Dst, r.Gateway, r.Priority, r.Table}
	if p.priority == 0 && r.Dst.Addr().Is6() {
		p.priority = priorityIPv6
	}
	if p.table == 0 {
		p.table = unix.RT_TABLE_MAIN
	}
	return p
}

// duplicate names the first route that another one before it makes superfluous:
// the kernel would refuse it. Nil when there is none.
func duplicate(routes []givenRoute) *types.Error {
	seen := make(map[place]string)
	for _, route := range routes {
		first, found := seen[route.place()]
		if found {
			return faultf(types.ErrInvalidNetworkConfig, "%s: dst %s is a duplicate of %s, with the same priority, table and gw",
				route.key, route.Dst, first)
		}
		seen[route.place()] = route.key
	}
	return nil
}

// scopeLink is RT_SCOPE_LINK: as far as the link, so by way of no one.
const scopeLink = 253

// byGateway completes a route. Its next hop is a gateway of the container, the
// first of its family where none is named: nobody else is on the link.
func byGateway(route wiring.Route, addresses []wiring.Address) (wiring.Route, error) {
	if !route.Gateway.IsValid() && route.Scope >= scopeLink {
		return route, nil
	}
	var gateways []string
	for _, a := range addresses {
		if a.Addr.Is4() != route.Dst.Addr().Is4() {
			continue
		}
		if !route.Gateway.IsValid() || route.Gateway == a.Gateway {
			route.Gateway = a.Gateway
			return route, nil
		}
		gateways = append(gateways, a.Gateway.String())
	}
	if gateways == nil {
		return route, noFamily(route)
	}
	return route, faultf(types.ErrInvalidNetworkConfig, "routes: gw %s of dst %s is not on the container's link, where only %s is",
		route.Gateway, route.Dst, strings.Join(gateways, " and "))
}

func noFamily(route wiring.Route) error {
	return faultf(types.ErrInvalidNetworkConfig, "routes: dst %s: the container has no address of that family", route.Dst)
}

func ipamRoutes(result *current.Result) []wiring.Route {
	var routes []wiring.Route
	for _, r := range result.Routes {
		gateway, _ := netip.AddrFromSlice(r.GW)
		route := wiring.Route{Dst: prefixOf(r.Dst).Masked(), Gateway: gateway.Unmap(), MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority}
		if r.Table != nil {
			route.Table = *r.Table
		}
		if r.Scope != nil {
			route.Scope = *r.Scope
		}
		routes = append(routes, route)
	}
	return routes
}
