// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/tendril-net/tendril/pkg/api"
)

// hostAddresses are the addresses of the node at which mapped ports are reached,
// as the datapath was told them last.
type hostAddresses struct {
	node  Surroundings
	plane HostPlane
	// gateways are those of the routed endpoints, which the node gets with their links.
	gateways func() []netip.Addr

	mu    sync.Mutex
	known []netip.Addr // sorted, each once
	told  bool         // the datapath knows them
}

// ensure tells the datapath, whatever it was told before: others may have taken
// something from it.
func (h *hostAddresses) ensure() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told = false
	return h.look()
}

// refresh tells the datapath when the addresses have changed.
func (h *hostAddresses) refresh() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.look()
}

// learn makes the datapath know the gateways of an endpoint whose links exist. Most are
// known already, and the others the node is about to have: the plugin gives them to it
// when the endpoint is attached. Those of a bridge it has already, or never: they may be
// of somebody else there.
func (h *hostAddresses) learn(addresses []api.Address) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range addresses {
		if _, known := slices.BinarySearchFunc(h.known, a.Gateway, netip.Addr.Compare); !known && reachable(a.Gateway) {
			return h.look()
		}
	}
	return nil
}

// look reads the addresses of the node. h.mu is held.
func (h *hostAddresses) look() error {
	addresses, err := h.node.Addresses()
	if err != nil {
		return fmt.Errorf("read host addresses: %w", err)
	}
	addresses = append(addresses, h.gateways()...)
	addresses = slices.DeleteFunc(addresses, func(a netip.Addr) bool { return !reachable(a) })
	slices.SortFunc(addresses, netip.Addr.Compare)
	addresses = slices.Compact(addresses)
	if h.told && slices.Equal(addresses, h.known) {
		return nil
	}
	h.told = false
	if err := h.plane.ReconcileHostAddresses(addresses); err != nil {
		return fmt.Errorf("reconcile host addresses: %w", err)
	}
	h.known, h.told = addresses, true
	return nil
}

// reachable tells whether a packet from elsewhere can be for the address: one of
// loopback is the host's own affair, and one of a link says nothing without it.
func reachable(a netip.Addr) bool {
	return a.IsValid() && !a.IsLoopback() && (a.Is4() || !a.IsLinkLocalUnicast())
}

// gateways are those of the routed endpoints whose links exist, or are about to.
func (s *Service) gateways() []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []netip.Addr
	last := netip.Addr{} // most endpoints have the same
	for _, r := range s.index.records {
		if s.index.detached[r.Attachment] || !r.isRouted() {
			continue
		}
		for _, a := range r.Addresses {
			if a.Gateway != last && a.Gateway.IsValid() {
				found, last = append(found, a.Gateway), a.Gateway
			}
		}
	}
	return found
}

// gatewaysLeft looks at the addresses of the node again when an endpoint that is
// gone was the last one with its gateway. That only makes the datapath forget an
// address: the next look is soon enough when it fails.
func (s *Service) gatewaysLeft(gone *record) {
	last := func(gateway netip.Addr) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, r := range s.index.records {
			if slices.ContainsFunc(r.Addresses, func(a api.Address) bool { return a.Gateway == gateway }) {
				return false
			}
		}
		return true
	}
	if slices.ContainsFunc(gone.Addresses, func(a api.Address) bool { return reachable(a.Gateway) && last(a.Gateway) }) {
		s.problem("host addresses", s.addresses.refresh())
	}
}
