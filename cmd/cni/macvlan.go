// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/internal/ifname"
	"github.com/tendril-net/tendril/internal/vlan"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// macvlanConfig is what the driver "macvlan" has of its own, in the words of the reference
// plugin; what the agent has to know is the network's.
type macvlanConfig struct {
	// master is the parent without the VLAN; "" is the device of the default route, of the node or,
	// with linkInContainer, of the container.
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
	o.read("linkInContainer", &c.network.InContainer, "true or false")
	const inContainer = "cannot be with linkInContainer: the master is in the container"
	passthru := c.network.Mode == api.ModePassthru
	c.network.HostAccess = !passthru && !c.network.InContainer
	o.read("hostAccess", &c.network.HostAccess, "true or false")
	switch {
	case c.network.HostAccess && c.network.InContainer:
		o.fault("hostAccess", "true "+inContainer)
	case c.network.HostAccess && passthru:
		o.fault("hostAccess", "true cannot be with mode passthru, where the container has the master and its MAC to itself")
	}
	if c.network.InContainer && c.network.VLAN != 0 {
		o.fault("vlan", fmt.Sprintf("%d %s, and the VLAN is to be there", c.network.VLAN, inContainer))
	}
	c.macvlan.mac = readMAC(o, "mac")
	o.read("bcqueuelen", &c.macvlan.broadcastQueue, "a whole number between 0 and 4294967295")
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
// default route. One in a container is not looked for here.
func (p *plugin) resolveMaster() error {
	if p.config.network.Driver != api.DriverMacvlan || p.config.network.InContainer {
		return nil
	}
	host, err := wiring.Current()
	if err != nil {
		return err
	}
	defer func() { _ = host.Close() }()
	return p.resolveMasterIn(host, "the node")
}

func (p *plugin) resolveMasterIn(where *wiring.Namespace, who string) (err error) {
	if p.config.macvlan.master != "" {
		return nil
	}
	if p.config.macvlan.master, err = wiring.DefaultDevice(where); err != nil {
		return err
	}
	if p.config.macvlan.master == "" {
		return faultf(types.ErrInvalidNetworkConfig, "master: missing, and %s has no default route, whose device it would be", who)
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
	if err := a.findInContainer(&w); err != nil {
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

// findInContainer looks for a master that is in the container, and learns from it what else the agent
// finds out by itself.
func (a *attachment) findInContainer(w *wanted) error {
	n := &a.config.network
	if !n.InContainer {
		return nil
	}
	if err := a.resolveMasterIn(a.container, "the container"); err != nil {
		return err
	}
	master, err := wiring.FindMaster(a.container, n.Parent)
	passthru, wrong := n.Mode == api.ModePassthru, (*wiring.MasterError)(nil)
	switch {
	case errors.Is(err, unix.ENODEV):
		return faultf(types.ErrInvalidNetworkConfig, "master: %s is no device of the container", n.Parent)
	case errors.As(err, &wrong):
		return faultf(types.ErrInvalidNetworkConfig, "master: %s %s", n.Parent, wrong.Reason)
	case err != nil:
		return err
	case n.MTU > master.MTU:
		return faultf(types.ErrInvalidNetworkConfig, "mtu: %d is more than the %d of device %s", n.MTU, master.MTU, n.Parent)
	case w.mac != nil && passthru != bytes.Equal(w.mac, master.MAC):
		const must, mustNot = "is not that of device %s, which a container has with mode passthru", "is that of device %s"
		if passthru {
			return faultf(types.ErrInvalidNetworkConfig, "mac: %s "+must, w.mac, n.Parent)
		}
		return faultf(types.ErrInvalidNetworkConfig, "mac: %s "+mustNot, w.mac, n.Parent)
	}
	n.MTU = cmp.Or(n.MTU, master.MTU)
	if passthru {
		w.mac = master.MAC
	}
	return nil
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
	if err := a.attach(); err != nil || !a.endpoint.InContainer {
		return err
	}
	return wiring.HookChild(a.container, a.child, childHooks(a.endpoint))
}

// childHooks are those of an interface whose parent is in the container.
func childHooks(e api.Endpoint) (hooks []wiring.ChildHook) {
	for _, p := range e.Programs {
		hooks = append(hooks, wiring.ChildHook(p))
	}
	return hooks
}

// childOf says how the interface of an endpoint is made.
func (p *plugin) childOf(endpoint api.Endpoint) (wiring.Child, error) {
	mac, err := net.ParseMAC(endpoint.MAC)
	if err != nil {
		return wiring.Child{}, fmt.Errorf("decode endpoint from the agent: %w", err)
	}
	child := wiring.Child{
		Name: p.call.IfName, BornAs: api.HostIfName(p.call.Attachment), MAC: mac, MTU: endpoint.MTU,
		Parent: endpoint.Parent, Mode: api.KernelMode(endpoint.Mode, endpoint.InContainer), BroadcastQueue: p.config.macvlan.broadcastQueue,
	}
	if endpoint.InContainer {
		child.Index = wiring.IndexInContainer(endpoint.ID)
	}
	return child, nil
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
	err = wiring.CheckChild(host, container, child, housed)
	if endpoint.InContainer {
		err = errors.Join(err, wiring.CheckChildHooks(container, child, childHooks(endpoint)))
	}
	return err
}

// removeChild removes the container's interface. With the namespace it is gone, too; the
// node's own devices are none of it.
func (p *plugin) removeChild(host *wiring.Namespace) error {
	if p.call.netns == "" {
		return nil
	}
	err := wiring.RemoveChild(host, p.call.netns, api.HostIfName(p.call.Attachment), p.call.IfName)
	if p.config.network.InContainer {
		err = errors.Join(err, wiring.UnhookParents(p.call.netns))
	}
	return err
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
	if err != nil || child.Parent+child.Inside == 0 || child.MAC.String() != endpoint.MAC {
		return true, err
	}
	return false, wiring.RemoveChild(a.host, a.call.netns, a.call.IfName)
}
