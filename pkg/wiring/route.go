// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"fmt"
	"math"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Route is one route in a container, by way of its link.
type Route struct {
	Dst netip.Prefix
	// Gateway of the same family; zero for a route of scope link.
	Gateway netip.Addr
	// MTU and AdvMSS in bytes, Priority (the metric) and Table: 0 takes the
	// kernel's default.
	MTU, AdvMSS, Priority, Table int
	// Scope as in rtnetlink(7): 0 global, 253 link, 254 host. IPv6 has none.
	Scope int
	// Optional says that the route is left out when the container has one
	// to the same destination and with the same metric already.
	Optional bool
	// Behind says that the route stands behind such a one, for packets that
	// are bound to the link. So does any route by way of a gateway that the
	// container has on another link too.
	Behind bool
}

// behind and the link's index are added to the metric of a route that stands behind
// another. With equal metrics IPv6 would make the two one route of two ways, and IPv4
// would prefer the later. 1024 is what IPv6 takes for 0.
const behind = 1024

// String is the route as ip-route(8) would show it.
func (r Route) String() string {
	text := r.Dst.String()
	if r.Gateway.IsValid() {
		text += " via " + r.Gateway.String()
	}
	for _, part := range []struct {
		name  string
		value int
	}{{"metric", r.Priority}, {"table", r.Table}, {"mtu", r.MTU}, {"advmss", r.AdvMSS}, {"scope", r.Scope}} {
		if part.value != 0 {
			text += fmt.Sprintf(" %s %d", part.name, part.value)
		}
	}
	return text
}

// addition gives a container's link its routes, and hears what was there before, from
// other interfaces.
type addition struct {
	index  int
	name   string
	routes []Route
	// there, in the order of routes: there is one to the same destination with the
	// same metric.
	there []bool
	// shared has, by gateway, whether another interface is of the gateway's network.
	shared map[netip.Addr]*bool
}

func newAddition(index int, name string, routes []Route) *addition {
	return &addition{
		index: index, name: name, routes: routes,
		there: make([]bool, len(routes)), shared: make(map[netip.Addr]*bool),
	}
}

// share makes a gateway known and returns what is to hear that it is shared.
func (a *addition) share(gateway netip.Addr) *bool {
	shared := new(bool)
	a.shared[gateway] = shared
	return shared
}

// messages add the routes as far as they are new.
func (a *addition) messages() []message {
	var messages []message
	for i, route := range a.routes {
		messages = append(messages, a.exclusive(route, &a.there[i]))
	}
	return messages
}

// exclusive adds a route, or hears that there is one to the same destination.
func (a *addition) exclusive(route Route, there *bool) message {
	m := newRoute(a.index, a.name, route, unix.RTPROT_BOOT, unix.NLM_F_EXCL)
	m.tolerate, m.tolerated = []unix.Errno{unix.EEXIST}, there
	return m
}

// finish follows the answers to messages. It adds the routes that were there before and
// are wanted all the same, and returns all as the container has them in the end.
func (a *addition) finish(container *Namespace) ([]Route, error) {
	var routes []Route
	var messages []message
	for i, route := range a.routes {
		shared := a.shared[route.Gateway]
		switch {
		case !a.there[i]:
			routes = append(routes, route)
			continue
		case route.Optional:
			continue
		case route.Behind, shared != nil && *shared:
			// Packets of the other interface's address that went by this one
			// would be dropped as spoofed: the other's route stays the first.
			route.Priority = min(route.Priority+behind+a.index, math.MaxUint32)
		}
		// A second network's route to the same place stands beside or before
		// the first, as with the reference plugins.
		messages = append(messages, newRoute(a.index, a.name, route, unix.RTPROT_BOOT, 0))
		routes = append(routes, route)
	}
	if messages == nil {
		return routes, nil
	}
	_, err := container.exchange(messages)
	return routes, err
}

func newRoute(index int, name string, r Route, protocol uint8, flags uint16) message {
	message := routeMessage(unix.RTM_NEWROUTE, r, protocol, unix.RTN_UNICAST)
	message.flags = unix.NLM_F_CREATE | flags
	message.body = attribute32(message.body, unix.RTA_OIF, uint32(index))
	message.what = fmt.Sprintf("add route %s to %s", r, name)
	return message
}

// routeMessage is a route without device and flags.
func routeMessage(kind uint16, r Route, protocol, typ uint8) message {
	fixed := unix.RtMsg{
		Family: family(r.Dst.Addr()), Dst_len: uint8(r.Dst.Bits()), Table: unix.RT_TABLE_MAIN,
		Protocol: protocol, Scope: uint8(r.Scope), Type: typ,
	}
	if r.Table != 0 {
		fixed.Table = unix.RT_TABLE_UNSPEC // RTA_TABLE holds it; it may exceed a byte
	}
	body := header(fixed)
	if r.Dst.Bits() > 0 {
		body = attributeAddr(body, unix.RTA_DST, r.Dst.Masked().Addr())
	}
	if r.Gateway.IsValid() {
		body = attributeAddr(body, unix.RTA_GATEWAY, r.Gateway)
	}
	if r.Priority != 0 {
		body = attribute32(body, unix.RTA_PRIORITY, uint32(r.Priority))
	}
	if r.Table != 0 {
		body = attribute32(body, unix.RTA_TABLE, uint32(r.Table))
	}
	var metrics []byte
	if r.MTU != 0 {
		metrics = attribute32(metrics, unix.RTAX_MTU, uint32(r.MTU))
	}
	if r.AdvMSS != 0 {
		metrics = attribute32(metrics, unix.RTAX_ADVMSS, uint32(r.AdvMSS))
	}
	if metrics != nil {
		body = attribute(body, unix.RTA_METRICS, metrics)
	}
	return message{kind: kind, body: body}
}
