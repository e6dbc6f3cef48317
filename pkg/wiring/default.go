// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"fmt"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DefaultDevice returns the name of the device that the best default route of the main
// table leads to, of IPv4 if there is one and else of IPv6; "" when there is none.
func DefaultDevice(host *Namespace) (name string, err error) {
	err = host.Do(func() error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlinksafe.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return fmt.Errorf("list routes: %w", err)
			}
			index := bestDefault(routes)
			if index == 0 {
				continue
			}
			link, err := netlink.LinkByIndex(index)
			if err != nil {
				return fmt.Errorf("look up link %d: %w", index, err)
			}
			name = link.Attrs().Name
			return nil
		}
		return nil
	})
	return name, err
}

// bestDefault is the index of the device of the default route with the least metric, the
// first device of one that has several; 0 where no route is a default route.
func bestDefault(routes []netlink.Route) (index int) {
	metric := 0
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones != 0 {
				continue
			}
		}
		by := r.LinkIndex
		if by == 0 && len(r.MultiPath) != 0 {
			by = r.MultiPath[0].LinkIndex
		}
		if by != 0 && r.Type == unix.RTN_UNICAST && (index == 0 || r.Priority < metric) {
			index, metric = by, r.Priority
		}
	}
	return index
}
