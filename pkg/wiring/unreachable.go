// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// unreachableMetric is the last choice of all: whoever routes the subnet, or
// a part of it, elsewhere with any metric wins.
const unreachableMetric = math.MaxUint32

// EnsureUnreachable gives the node a route that answers "unreachable" to
// packets for addresses of the subnet that no container has, instead of
// letting them leave by the default route. It is idempotent.
func EnsureUnreachable(n *Namespace, subnet netip.Prefix) error {
	m := unreachable(unix.RTM_NEWROUTE, subnet)
	m.flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	m.what = fmt.Sprintf("add unreachable route %s", subnet)
	_, err := n.exchange([]message{m})
	return err
}

// RemoveUnreachable takes back EnsureUnreachable. It is idempotent.
func RemoveUnreachable(n *Namespace, subnet netip.Prefix) error {
	m := unreachable(unix.RTM_DELROUTE, subnet)
	m.what = fmt.Sprintf("remove unreachable route %s", subnet)
	m.tolerate = []unix.Errno{unix.ESRCH}
	_, err := n.exchange([]message{m})
	return err
}

// ListUnreachable returns the subnets of all routes that EnsureUnreachable
// made, sorted.
func ListUnreachable(n *Namespace) ([]netip.Prefix, error) {
	var subnets []netip.Prefix
	err := n.Do(func() error {
		filter := &netlink.Route{Table: unix.RT_TABLE_MAIN, Protocol: Protocol, Type: unix.RTN_UNREACHABLE}
		mask := netlink.RT_FILTER_TABLE | netlink.RT_FILTER_PROTOCOL | netlink.RT_FILTER_TYPE
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlinksafe.RouteListFiltered(family, filter, mask)
			if err != nil {
				return err
			}
			for _, route := range routes {
				if subnet, ok := prefixOf(route.Dst, family); ok {
					subnets = append(subnets, subnet)
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list unreachable routes: %w", err)
	}
	slices.SortFunc(subnets, netip.Prefix.Compare)
	return subnets, nil
}

func unreachable(kind uint16, subnet netip.Prefix) message {
	return routeMessage(kind, Route{Dst: subnet, Priority: unreachableMetric}, Protocol, unix.RTN_UNREACHABLE)
}
