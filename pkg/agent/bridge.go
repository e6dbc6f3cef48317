// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/uplink"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// Concerns of the node of which an ADD has nothing to fear.
const (
	concernBridges = "bridge devices"
	concernPorts   = "bridge ports"
)

// checkGateways refuses to give a bridge what the node needs elsewhere: the address of a router that is
// a next hop of the node, or another address in the place of an uplink's own. The error is an
// *api.Error unless the node did not answer.
func (s *Service) checkGateways(n api.Network, addresses []api.Address) error {
	if !n.BridgeGateway {
		return nil
	}
	if n.ForceAddress && s.isUplink(n.BridgeInterface()) {
		return invalid("forceAddress", "true", fmt.Sprintf("%s is an uplink of the node, which may lose its own address by that, and its routes", n.BridgeInterface()))
	}
	var gateways []netip.Addr
	for _, set := range n.Ranges {
		for _, r := range set {
			gateways = append(gateways, r.Gateway)
		}
	}
	for _, a := range addresses {
		gateways = append(gateways, a.Gateway)
	}
	for _, gateway := range gateways {
		if !gateway.IsValid() {
			continue
		}
		occupied, found, err := s.opts.Surroundings.At(gateway)
		if err != nil {
			return fmt.Errorf("look for %s on the node: %w", gateway, err)
		}
		if found && occupied.Destination.IsValid() {
			return invalid("isGateway", "true", fmt.Sprintf("gateway %s is %s: the bridge cannot have it, too", gateway, occupied))
		}
	}
	return nil
}

// isUplink tells whether a device is an uplink of the node.
func (s *Service) isUplink(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.uplinks.Uplinks, func(u uplink.Uplink) bool { return u.Name == name })
}

// bridgeOf returns the bridge of an endpoint, the zero HostLink when it has none. The
// error is an *api.Error of CodeMismatch unless the kernel did not answer.
func (s *Service) bridgeOf(r *record) (HostLink, error) {
	if r.Bridge == "" {
		return HostLink{}, nil
	}
	link, err := s.opts.Links.Link(r.Bridge)
	switch {
	case errors.Is(err, ErrNoLink):
		return HostLink{}, mismatch(r.Bridge, "is gone, and endpoints are to be its ports")
	case err != nil:
		return HostLink{}, fmt.Errorf("read device %s: %w", r.Bridge, err)
	case !link.Bridge:
		return HostLink{}, mismatch(r.Bridge, "is no bridge")
	}
	return link, nil
}

// amongPorts returns the node's interface among the ports of the endpoint's bridge: that itself,
// or its VLAN. By its index the datapath knows who is on a link with whom. The error is as of
// bridgeOf.
func (s *Service) amongPorts(r *record, bridge HostLink) (HostLink, error) {
	if r.VLAN == 0 {
		return bridge, nil
	}
	name := r.Origin.BridgeInterface()
	link, err := s.opts.Links.Link(name)
	switch {
	case errors.Is(err, ErrNoLink):
		return HostLink{}, mismatch(name, "is gone, which is the node's interface on bridge %s", r.Bridge)
	case err != nil:
		return HostLink{}, fmt.Errorf("read device %s: %w", name, err)
	case !r.isAmong(link, bridge.Index):
		return HostLink{}, mismatch(name, "is not VLAN %d of bridge %s with its MAC", r.VLAN, r.Bridge)
	}
	return link, nil
}

// isAmong tells whether a device is the node's interface in the endpoint's VLAN of a bridge, by
// whose MAC the container knows it.
func (r *record) isAmong(link HostLink, bridge int) bool {
	return link.VLAN == r.VLAN && link.Lower == bridge && bytes.Equal(link.MAC, parsedMAC(r.HostMAC))
}

// findBridge looks for the bridge that a new endpoint's device is to become a port of.
func (s *Service) findBridge(r *record) error {
	link, err := s.bridgeOf(r)
	if err == nil {
		link, err = s.amongPorts(r, link)
	}
	r.bridge = link.Index
	return err
}

// checkPort compares what an endpoint's bridge is, and who is its port, with the record.
func (s *Service) checkPort(r *record) error {
	if r.Bridge == "" {
		return nil
	}
	bridge, err := s.bridgeOf(r)
	if err != nil {
		return err
	}
	port, err := s.device(r.HostIfName)
	switch {
	case err != nil:
		return err
	case port.Master != bridge.Index:
		return mismatch(r.HostIfName, "is no port of bridge %s", r.Bridge)
	case !bytes.Equal(bridge.MAC, parsedMAC(r.HostMAC)):
		return mismatch(r.Bridge, "has MAC %s, not %s", bridge.MAC, r.HostMAC)
	}
	_, err = s.amongPorts(r, bridge)
	return err
}

// place finds out where a macvlan device's parent is, or which bridge an endpoint's device is a port of,
// and by which device the node is among its ports, whatever bridges there are: somebody may have made one anew. That of none is its own, so that the datapath keeps to the
// rules for ports, and believes the endpoint's address nowhere else.
func (s *Service) place(r *record) error {
	if r.isChild() {
		return s.placeChild(r)
	}
	if r.Bridge == "" {
		return nil
	}
	port, err := s.opts.Links.Link(r.HostIfName)
	if err != nil && !errors.Is(err, ErrNoLink) {
		return fmt.Errorf("read device %s: %w", r.HostIfName, err)
	}
	r.bridge = port.Master
	if r.VLAN != 0 {
		among, err := s.opts.Links.Link(r.Origin.BridgeInterface())
		if err != nil && !errors.Is(err, ErrNoLink) {
			return fmt.Errorf("read device %s: %w", r.Origin.BridgeInterface(), err)
		}
		r.bridge = 0
		if r.isAmong(among, port.Master) {
			r.bridge = among.Index
		}
	}
	if r.bridge == 0 {
		r.bridge = r.HostIfIndex
	}
	return nil
}

// relocated returns the record with its bridge, or its parent, as it is now.
func (s *Service) relocated(r *record) (*record, error) {
	moved := *r
	if err := s.place(&moved); err != nil || reflect.DeepEqual(moved, *r) {
		return r, err
	}
	if err := s.keepPlace(r, &moved); err != nil {
		return r, err
	}
	s.put(&moved)
	return &moved, nil
}

// repairBridges puts back what others took from the bridges of the endpoints that are
// served: the bridge, its addresses, that it is up.
func (s *Service) repairBridges() error {
	type wanted struct {
		bridge   wiring.Bridge
		gateways map[netip.Prefix]netip.Prefix // by subnet
	}
	bridges := make(map[string]wanted)
	records := s.list(func(r *record) bool { return r.State == api.Ready && r.Bridge != "" })
	slices.SortStableFunc(records, func(a, b *record) int { return a.Created.Compare(b.Created) })
	for _, r := range records {
		if s.isDetached(r.Attachment) {
			continue
		}
		w, known := bridges[r.Origin.BridgeInterface()]
		if !known {
			w.bridge = wiring.Bridge{Name: r.Bridge, MTU: r.Origin.MTU, MAC: parsedMAC(r.HostMAC), VLAN: r.VLAN}
			w.gateways = make(map[netip.Prefix]netip.Prefix)
		}
		w.bridge.Promisc = w.bridge.Promisc || r.Origin.Promisc
		w.bridge.Filters = w.bridge.Filters || len(r.VLANTrunk) != 0
		if r.Origin.BridgeGateway {
			for _, gateway := range r.Gateways() {
				w.gateways[gateway.Masked()] = gateway // the newest, where forceAddress has replaced one
			}
		}
		bridges[r.Origin.BridgeInterface()] = w
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(bridges)) {
		w := bridges[name]
		gateways, refused := s.free(name, slices.SortedFunc(maps.Values(w.gateways), netip.Prefix.Compare))
		mended, err := s.opts.Bridges.RepairBridge(w.bridge, gateways)
		err = errors.Join(err, refused)
		if len(mended) > 0 {
			s.log.Warn("bridge repaired", "bridge", name, "found", strings.Join(mended, "; "))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("repair bridge %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// free leaves those gateways out that somebody else has by now: another device of the node, or
// a container that was given the address when it was a gateway no more. The error says who.
func (s *Service) free(bridge string, gateways []netip.Prefix) (free []netip.Prefix, err error) {
	var errs []error
	for _, gateway := range gateways {
		s.mu.Lock()
		holder, leased := s.index.byAddress[gateway.Addr()]
		s.mu.Unlock()
		if leased {
			errs = append(errs, fmt.Errorf("gateway %s is the address of container %s", gateway.Addr(), holder.ContainerID))
			continue
		}
		occupied, found, err := s.opts.Surroundings.At(gateway.Addr())
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("look for %s on the node: %w", gateway.Addr(), err))
		case found && (occupied.Device != bridge || occupied.Destination.IsValid()):
			errs = append(errs, fmt.Errorf("gateway %s is %s", gateway.Addr(), occupied))
		default:
			free = append(free, gateway)
		}
	}
	return free, errors.Join(errs...)
}

// repairPort makes an endpoint's device a port of its bridge again. Its lock is held.
func (s *Service) repairPort(r *record) (mended []string, err error) {
	if r.Bridge == "" {
		return nil, nil
	}
	links := wiring.Links{Veth: wiring.Veth{HostName: r.HostIfName, MAC: parsedMAC(r.MAC)}, HostIndex: r.HostIfIndex}
	return s.opts.Bridges.RepairPort(links, wiring.Bridged{
		Bridge: r.Bridge, VLAN: r.VLAN, Trunk: r.VLANTrunk, PreserveDefaultVLAN: r.Origin.PreserveDefaultVLAN,
		Hairpin: r.Origin.Hairpin, Isolated: r.Origin.Isolated, MTU: r.MTU,
	})
}
