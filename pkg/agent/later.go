// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"slices"

	"github.com/tendril-net/tendril/pkg/api"
)

// laterFamilies are those of addresses that come by way of the interface.
var laterFamilies = families{v4: true}

// takeLater gives an endpoint that is attached the addresses that were not known before. From
// then on they are its own, and its ports too, whatever becomes of this attach.
func (s *Service) takeLater(r *record, addresses []api.Address) error {
	if !r.AddressesLater {
		if slices.Equal(addresses, r.Addresses) {
			return nil
		}
		var own []netip.Addr
		for _, a := range r.Addresses {
			own = append(own, a.Address.Addr())
		}
		return invalid("addresses", addresses[0].Address.String(), "the endpoint has "+joinAddrs(own)+" already")
	}
	if r.State != api.Ready || s.lookup(r.Attachment).State != api.Ready {
		return invalid("addresses", addresses[0].Address.String(), "the endpoint was not attached without them")
	}
	for _, a := range addresses {
		if !a.Address.Addr().Is4() {
			return invalid("addresses", a.Address.String(), "is not of IPv4, as those that come later must be")
		}
	}
	if err := checkAddresses(addresses); err != nil {
		return err
	}
	if err := s.checkDelegated(addresses); err != nil {
		return err
	}
	_, claims, err := parseMappings(r.Ports, laterFamilies)
	if err != nil {
		return err
	}
	if err := s.checkPorts(claims); err != nil {
		return err
	}
	later := *r
	later.Addresses, later.AddressesLater = addresses, false
	if err := s.claim(&later, claims); err != nil {
		return err
	}
	*r = later
	return nil
}
