// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/internal/ifname"
	"github.com/tendril-net/tendril/internal/vlan"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// macvlanConfig is what the driver "macvlan" has of its own, in the words of the reference
// plugin; what the agent has to know is the network's.
type macvlanConfig struct {
	// master is the parent without the VLAN; "" is the device of the default route.
	master string
	mac    net.HardwareAddr
	// broadcastQueue is bcqueuelen, in frames.
	broadcastQueue uint32
}

// macvlanKeys are the keys of the driver "macvlan" alone, and vlan.
func macvlanKeys() []string {
	return []string{"master", "vlan", "mode", "mac", "hostAccess", "bcqueuelen", "linkInContainer"}
}

func (c *config) readMacvlan(o object) {
	o.read("master", &c.macvlan.master, "a string")
	if c.macvlan.master != "" {
		if reason := api.ParentNameFault(c.macvlan.master); reason != "" {
			o.fault("master", fmt.Sprintf("%q %s", c.macvlan.master, reason))
		}
	}
	readVLAN(o, &c.network.VLAN)
	c.network.Mode = api.ModeBridge
	o.read("mode", &c.network.Mode, "a string")
	modes := []string{api.ModeBridge, api.ModePrivate, api.ModeVEPA, api.ModePassthru}
	switch {
	case c.network.Mode == "":
		c.network.Mode = api.ModeBridge
	case !slices.Contains(modes, c.network.Mode):
		o.fault("mode", fmt.Sprintf("there is no mode %q; there are %q", c.network.Mode, modes))
	}
	passthru := c.network.Mode == api.ModePassthru
	c.network.HostAccess = !passthru
	o.read("hostAccess", &c.network.HostAccess, "true or false")
	if passthru && c.network.HostAccess {
		o.fault("hostAccess", "true cannot be with mode passthru, where the container has the master and its MAC to itself")
	}
	c.macvlan.mac = readMAC(o, "mac")
	o.read("bcqueuelen", &c.macvlan.broadcastQueue, "a whole number between 0 and 4294967295")
	inContainer := false
	o.read("linkInContainer", &inContainer, "true or false")
	if inContainer {
		o.faults.add(faultf(types.ErrUnsupportedField, "%s: true is not supported: nobody would look at what the master in the "+
			"container sends", o.at("linkInContainer")))
	}
	c.setParent(o.faults)
}

func readVLAN(o object, id *int) {
	o.read("vlan", id, "a whole number")
	if *id < 0 || *id > vlan.Max {
		o.fault("vlan", fmt.Sprintf("%d is not 0, for none, or between 1 and %d", *id, vlan.Max))
	}
}

// setParent names the parent, as far as it is known.
func (c *config) setParent(found *faults) {
	c.network.Parent = c.macvlan.master
	if c.macvlan.master == "" || c.network.VLAN == 0 {
		return
	}
	c.network.Parent = ifname.VLAN(c.macvlan.master, c.network.VLAN)
	if reason := api.ParentNameFault(c.network.Parent); reason != "" {
		found.add(faultf(types.ErrInvalidNetworkConfig, "vlan: the device would be called %q, which %s", c.network.Parent, reason))
	}
}

// resolveMaster finds the parent of a network that names none: the device of the node's
// default route.
func (p *plugin) resolveMaster() error {
	if p.config.network.Driver != api.DriverMacvlan || p.config.macvlan.master != "" {
		return nil
	}
	host, err := wiring.Current()
	if err != nil {
		return err
	}
	defer func() { _ = host.Close() }()
	if p.config.macvlan.master, err = wiring.DefaultDevice(host); err != nil {
		return err
	}
	if p.config.macvlan.master == "" {
		return faultf(types.ErrInvalidNetworkConfig, "master: missing, and the node has no default route, whose device it would be")
	}
	found := &faults{}
	p.config.setParent(found)
	if found.first != nil {
		return found.first
	}
	return nil
}

// wireMacvlan makes the container's interface last: it is there when the agent knows its
// addresses, and has made its parent.
func (a *attachment) wireMacvlan(w wanted) error {
	if err := a.resolveMaster(); err != nil {
		return err
	}
	req := a.prepareRequest(w)
	if w.mac != nil {
		req.MAC = w.mac.String()
	}
	var err error
	switch {
	case a.config.ipamType == ipamDHCP:
		req.AddressesLater = true
	case a.config.delegated():
		req.Addresses, err = a.askElsewhere()
	default:
		req.Wanted = w.addresses
	}
	if err == nil {
		err = a.prepare(req)
	}
	if err != nil {
		return err
	}
	var housed wiring.Housed
	if !req.AddressesLater { // before there is an interface
		if housed, err = a.housed(); err != nil {
			return err
		}
	}
	if err := a.bearChild(); err != nil {
		return err
	}
	if req.AddressesLater {
		if err := a.askOnTheLink(); err != nil {
			return err
		}
		if housed, err = a.housed(); err != nil {
			return err
		}
	}
	if housed.Routes, err = wiring.ConfigureChild(a.container, a.call.IfName, a.child, housed); err != nil {
		return err
	}
	failpoint.Hit(failpoint.CNIAddConfigured)
	if err := wiring.SettleChild(a.container, a.call.IfName, housed); err != nil {
		return err
	}
	return a.print(a.endpoint.Addresses, housed.Routes)
}

// housed is what the container is to have.
func (a *attachment) housed() (h wiring.Housed, err error) {
	h.MTU = a.endpoint.MTU
	h.Addresses, h.Routes, err = a.onSharedLink()
	return h, err
}

// askOnTheLink has a DHCP client choose the address. The datapath, which serves the container
// already, lets through no more than that needs.
func (a *attachment) askOnTheLink() error {
	if err := wiring.RaiseChild(a.container, a.call.IfName, a.child); err != nil {
		return err
	}
	addresses, err := a.askElsewhere()
	if err != nil {
		return err
	}
	return a.attachWith(addresses)
}

// bearChild makes the container's interface, which has the datapath's attention before it is
// up.
func (a *attachment) bearChild() error {
	child, err := a.childOf(a.endpoint)
	if err != nil {
		return err
	}
	// Down, it says nothing.
	a.child, err = wiring.CreateChild(a.host, a.container, child)
	switch {
	case errors.Is(err, wiring.ErrNoBroadcastQueue):
		return fmt.Errorf("bcqueuelen: %w", err)
	case errors.Is(err, wiring.ErrParent):
		return fmt.Errorf("master: %w", err)
	case err != nil:
		return err
	}
	a.undo.push(func(context.Context) error { return a.removeChild(a.host) })
	failpoint.Hit(failpoint.CNIAddLinked)
	return a.attach()
}

// childOf says how the interface of an endpoint is made.
func (p *plugin) childOf(endpoint api.Endpoint) (wiring.Child, error) {
	mac, err := net.ParseMAC(endpoint.MAC)
	if err != nil {
		return wiring.Child{}, fmt.Errorf("decode endpoint from the agent: %w", err)
	}
	return wiring.Child{
		Name: p.call.IfName, BornAs: api.HostIfName(p.call.Attachment), MAC: mac, MTU: endpoint.MTU,
		Parent: endpoint.Parent, Mode: api.KernelMode(endpoint.Mode), BroadcastQueue: p.config.macvlan.broadcastQueue,
	}, nil
}

func (p *plugin) checkMacvlan(host, container *wiring.Namespace, endpoint api.Endpoint, answered answer) error {
	child, err := p.childOf(endpoint)
	if err != nil {
		return err
	}
	housed := wiring.Housed{MTU: answered.mtu, Routes: answered.routes}
	for _, a := range endpoint.Addresses {
		housed.Addresses = append(housed.Addresses, a.Address)
	}
	return wiring.CheckChild(host, container, child, housed)
}

// removeChild removes the container's interface. With the namespace it is gone, too; the
// node's own devices are none of it.
func (p *plugin) removeChild(host *wiring.Namespace) error {
	if p.call.netns == "" {
		return nil
	}
	return wiring.RemoveChild(host, p.call.netns, api.HostIfName(p.call.Attachment), p.call.IfName)
}

// takeAwayChild is takeAwayRest for a macvlan device. One without any record is nobody's, as
// the agent knew its MAC before it was made.
func (a *attachment) takeAwayChild() (exists bool, err error) {
	endpoint, err := a.client.Endpoint(a.ctx, a.call.Attachment)
	if refused := (*api.Error)(nil); errors.As(err, &refused) && refused.Code == api.CodeNotFound {
		return true, nil
	}
	if err != nil || endpoint.State != api.Pending || !a.alone {
		return true, err
	}
	child, err := wiring.FindChild(a.host, a.call.netns, a.call.IfName)
	if err != nil || child.Parent == 0 || child.MAC.String() != endpoint.MAC {
		return true, err
	}
	return false, wiring.RemoveChild(a.host, a.call.netns, a.call.IfName)
}
