// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"

	"github.com/tendril-net/tendril/pkg/api"
)

// Surroundings are the addresses that the node's own network needs: those of its
// devices, but for the host sides of endpoints, and the next hops of the routes in
// its main table. A container that had one would take it from the node.
type Surroundings interface {
	// Within returns what lies in one of the subnets, the node's addresses first.
	Within(subnets []netip.Prefix) ([]Occupied, error)
	// At returns what has one address; false when nothing has it. Here the host
	// sides of endpoints count too. How many there are does not matter to its cost.
	At(netip.Addr) (Occupied, bool, error)
	// Addresses returns the node's own addresses on all its devices, the host
	// sides of endpoints included.
	Addresses() ([]netip.Addr, error)
}

// Occupied is an address that no container can have.
type Occupied struct {
	Addr netip.Addr
	// Device that has the address or leads to the next hop.
	Device string
	// Destination of the route whose next hop it is; the zero Prefix for an
	// address of the node itself.
	Destination netip.Prefix
}

// String says what the address is: "an address of this node on eth0", "the next
// hop of the node's route default by eth0".
func (o Occupied) String() string {
	switch {
	case !o.Destination.IsValid():
		return "an address of this node on " + o.Device
	case o.Destination.Bits() == 0:
		return "the next hop of the node's route default by " + o.Device
	}
	return fmt.Sprintf("the next hop of the node's route %s by %s", o.Destination, o.Device)
}

// checkRanges refuses ranges with a subnet that is new to the node and holds what
// the node's own network needs. Those that endpoints live in are not judged: they
// were, or an older version accepted them. The network's ranges are canonical, given are
// the same as they were asked for. The error is an *api.Error unless the node did not
// answer.
func (s *Service) checkRanges(n api.Network, given []api.RangeSet) error {
	fresh := s.ground.unknown(n.Ranges)
	if len(fresh) == 0 {
		return nil
	}
	occupied, err := s.opts.Surroundings.Within(fresh)
	if err != nil {
		return fmt.Errorf("look at the node's addresses: %w", err)
	}
	for i, set := range n.Ranges {
		for j, r := range set {
			for _, o := range occupied {
				if !r.Subnet.Contains(o.Addr) || isIdle(o.Addr, r) || onLink(o, n, r) {
					continue
				}
				key, value := "subnet", r.Subnet.String()
				message := fmt.Sprintf("subnet %s holds %s, %s", r.Subnet, o.Addr, o)
				if o.Addr == r.Gateway && given[i][j].Gateway.IsValid() {
					key, value = "gateway", r.Gateway.String()
					message = fmt.Sprintf("gateway %s is %s", r.Gateway, o)
				}
				return &api.Error{
					Code: api.CodeInvalid, Key: fmt.Sprintf("ipam.ranges[%d][%d].%s", i, j, key), Value: value, Message: message,
				}
			}
		}
	}
	return nil
}

// isIdle tells whether the address is the subnet's own, which nobody is leased.
// Overlay networks give it to their device (flannel's has that of the node's subnet).
func isIdle(a netip.Addr, r api.Range) bool {
	return a == r.Subnet.Masked().Addr() && a.Less(r.RangeStart) && a != r.Gateway
}

// onLink tells whether the address is where the network's containers are as well, and
// nobody is leased it: the subnet is that bridge's, and its gateway the node or a router
// there. One that is about to be taken from the bridge may be leased. Macvlan devices are
// in a network that the node may be in by any of its devices.
func onLink(o Occupied, n api.Network, r api.Range) bool {
	if n.Driver != api.DriverMacvlan && (n.Bridge == "" || o.Device != n.BridgeInterface()) {
		return false
	}
	leasable := o.Addr != r.Gateway && !o.Addr.Less(r.RangeStart) && !r.RangeEnd.Less(o.Addr)
	return !leasable || leaves(o, n)
}

// leaves tells whether the address is about to be taken from the network's bridge.
func leaves(o Occupied, n api.Network) bool {
	return n.ForceAddress && o.Device == n.BridgeInterface() && !o.Destination.IsValid()
}

// checkLease refuses an address of our own ranges that the node has come to need since
// its subnet was judged.
func (s *Service) checkLease(n api.Network, a netip.Addr) error {
	occupied, found, err := s.opts.Surroundings.At(a)
	if err != nil {
		return fmt.Errorf("look for %s on the node: %w", a, err)
	}
	if found && !leaves(occupied, n) {
		return &api.Error{
			Code: api.CodeConflict, Key: "ipam.ranges", Value: a.String(),
			Message: fmt.Sprintf("address %s of the ranges is %s: take it from the node, or out of the ranges", a, occupied),
		}
	}
	return nil
}

// checkDelegated refuses an address of another IPAM plugin that is not a
// container's. Their gateways may well be next hops of the node: with DHCP they are.
func (s *Service) checkDelegated(addresses []api.Address) error {
	for _, a := range addresses {
		occupied, found, err := s.opts.Surroundings.At(a.Address.Addr())
		if err != nil {
			return fmt.Errorf("look for %s on the node: %w", a.Address.Addr(), err)
		}
		if found {
			return invalid("addresses", a.Address.String(), fmt.Sprintf("is %s", occupied))
		}
	}
	return nil
}
