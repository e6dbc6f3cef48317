// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/internal/mac"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// The next hops of a container whose IPAM plugin named none. No host has them:
// the container's permanent neighbour entry is all there is to them.
var (
	standInIPv4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	standInIPv6 = netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: 1})
)

// attachment is one ADD under way.
type attachment struct {
	*plugin
	client          *api.Client
	host, container *wiring.Namespace
	undo            undo
	links           wiring.Links
	endpoint        api.Endpoint
	// bridge is the one that the host's side is a port of, with the driver bridge.
	bridge wiring.BridgeLink
	// child is the container's interface, with the driver macvlan.
	child wiring.ChildLink
	// alone says that no other ADD is at work in the container.
	alone bool
	// joining is held with the driver bridge.
	joining *bridgeLock
	// ipamResult is what a delegated plugin answered.
	ipamResult *current.Result
	// helper is the address that the host's side has while that plugin runs.
	helper netip.Addr
}

// add makes one attachment, or nothing.
func (p *plugin) add() (err error) {
	a := &attachment{plugin: p, client: api.NewClient(p.config.socket)}
	defer a.client.Close()
	if a.host, err = wiring.Current(); err != nil {
		return err
	}
	defer func() { _ = a.host.Close() }()
	if a.container, err = openContainer(a.host, p.call.netns); err != nil {
		return err
	}
	defer func() { _ = a.container.Close() }()
	defer func() { a.joining.release() }()
	if a.alone, err = a.container.TryLock(); err != nil {
		return err
	}
	exists, err := wiring.LinkExists(a.container, p.call.IfName)
	if err == nil && exists {
		exists, err = a.takeAwayRest()
	}
	if err != nil {
		return err
	}
	if exists {
		return faultf(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME: interface %s exists in %s already", p.call.IfName, p.call.netns)
	}
	wanted, err := p.wanted()
	if err != nil {
		return err
	}
	failpoint.Hit(failpoint.CNIAddStart)

	err = a.wire(wanted)
	if err != nil {
		return a.undo.run(p.ctx, err)
	}
	failpoint.Hit(failpoint.CNIAddPrinted)
	return nil
}

// takeAwayRest removes the links that an ADD of this very attachment has left which was
// killed before the agent served them. It returns whether the interface is still there: what
// is somebody else's stays, and what the agent serves is for DEL.
func (a *attachment) takeAwayRest() (exists bool, err error) {
	if a.config.network.Driver == api.DriverMacvlan {
		return a.takeAwayChild()
	}
	hostName := api.HostIfName(a.call.Attachment)
	ours, err := wiring.IsPair(a.host, a.container, hostName, a.call.IfName)
	if err != nil || !ours || !a.alone {
		return true, err
	}
	endpoint, err := a.client.Endpoint(a.ctx, a.call.Attachment)
	if refused := (*api.Error)(nil); errors.As(err, &refused) && refused.Code == api.CodeNotFound {
		endpoint.State, err = api.Pending, nil
	}
	if err != nil || endpoint.State != api.Pending {
		return true, err
	}
	return false, wiring.RemoveVeth(a.host, hostName)
}

func (a *attachment) wire(wanted wanted) error {
	if a.config.network.Driver == api.DriverMacvlan {
		return a.wireMacvlan(wanted)
	}
	bridged := a.config.network.Driver == api.DriverBridge
	if bridged {
		if err := a.ensureBridge(); err != nil {
			return err
		}
	}
	var err error
	if a.config.delegated() {
		err = a.leaseElsewhere(wanted)
	} else {
		err = a.lease(wanted)
	}
	if err != nil {
		return err
	}
	if bridged {
		return a.wireBridged()
	}
	return a.wireRouted()
}

func (a *attachment) wireRouted() error {
	routed, err := a.routed()
	if err != nil {
		return err
	}
	// Configure makes the host's stack know the way to the container. The agent comes
	// first: from then on there is policy in the way.
	if err := a.attach(); err != nil {
		return err
	}
	routed.Routes, err = wiring.Configure(a.host, a.container, a.links, routed, a.helper)
	if err != nil {
		return err
	}
	failpoint.Hit(failpoint.CNIAddConfigured)
	if err := wiring.Settle(a.host, a.container, a.links, routed); err != nil {
		return err
	}
	var ips []api.Address
	for _, address := range routed.Addresses {
		ips = append(ips, api.Address{Address: netip.PrefixFrom(address.Addr, address.Addr.BitLen()), Gateway: address.Gateway})
	}
	return a.print(ips, routed.Routes)
}

// attach has the datapath serve the links.
func (a *attachment) attach() error {
	err := a.attachWith(nil)
	if err == nil {
		failpoint.Hit(failpoint.CNIAddAttached)
	}
	return err
}

// attachWith is attach with the addresses of an endpoint that was prepared without.
func (a *attachment) attachWith(addresses []api.Address) (err error) {
	req := api.AttachRequest{HostIfIndex: a.links.HostIndex, Addresses: addresses}
	if a.endpoint, err = a.client.Attach(a.ctx, a.call.Attachment, req); err != nil {
		return fmt.Errorf("attach: %w", agentFault(err))
	}
	return nil
}

// openContainer opens CNI_NETNS, which must not be the node's own namespace.
func openContainer(host *wiring.Namespace, path string) (*wiring.Namespace, error) {
	container, err := wiring.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, faultf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: there is no %s", path)
	case errors.Is(err, wiring.ErrNotNamespace):
		return nil, faultf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: %s is not a network namespace", path)
	case err != nil:
		return nil, fmt.Errorf("CNI_NETNS: %w", err)
	}
	same, err := host.Same(container)
	if err == nil && same {
		err = faultf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: %s is the network namespace that the plugin runs in", path)
	}
	if err != nil {
		_ = container.Close()
		return nil, err
	}
	return container, nil
}

// wanted is what the runtime asked for of this one attachment.
type wanted struct {
	addresses []netip.Addr
	mac       net.HardwareAddr
	labels    map[string]string
}

// wanted puts the sources together: runtimeConfig, then args.cni, then
// CNI_ARGS, which the conventions deprecate.
func (p *plugin) wanted() (wanted, error) {
	w := wanted{addresses: p.config.ips, mac: p.config.mac, labels: p.config.labels}
	if ip := p.call.args["IP"]; ip != "" && len(w.addresses) == 0 {
		a, err := parseAddress(ip)
		if err != nil {
			return wanted{}, faultf(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: IP: %q is not an address", ip)
		}
		w.addresses = []netip.Addr{a}
	}
	if mac := p.call.args["MAC"]; mac != "" && w.mac == nil {
		var err error
		if w.mac, err = parseMAC(mac); err != nil {
			return wanted{}, faultf(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: MAC: %q is not the MAC address of one station", mac)
		}
	}
	if w.mac == nil {
		w.mac = p.config.macvlan.mac
	}
	// The names under which Kubernetes' runtimes label containers.
	for arg, label := range map[string]string{
		"K8S_POD_NAMESPACE": "io.kubernetes.pod.namespace",
		"K8S_POD_NAME":      "io.kubernetes.pod.name",
		"K8S_POD_UID":       "io.kubernetes.pod.uid",
	} {
		if value := p.call.args[arg]; value != "" {
			w.labels = maps.Clone(w.labels)
			if w.labels == nil {
				w.labels = make(map[string]string)
			}
			if _, given := w.labels[label]; !given {
				w.labels[label] = value
			}
		}
	}
	return w, nil
}

// lease has the agent choose addresses, then makes the links.
func (a *attachment) lease(w wanted) error {
	req := a.prepareRequest(w)
	req.Wanted, req.HostMAC = w.addresses, a.bridge.MAC.String()
	if w.mac != nil {
		req.MAC = w.mac.String()
	}
	if err := a.prepare(req); err != nil {
		return err
	}
	mac, err1 := net.ParseMAC(a.endpoint.MAC)
	hostMAC, err2 := net.ParseMAC(a.endpoint.HostMAC)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("decode endpoint from the agent: %w", err)
	}
	return a.link(wiring.Veth{
		HostName: a.endpoint.HostIfName, Name: a.call.IfName,
		HostMAC: hostMAC, MAC: mac, MTU: a.endpoint.MTU,
	})
}

// leaseElsewhere has another plugin choose the addresses. The links come
// first, because a DHCP client needs one.
func (a *attachment) leaseElsewhere(w wanted) error {
	own, hostMAC := w.mac, a.bridge.MAC
	if own == nil {
		own = mac.Random()
	}
	if hostMAC == nil {
		hostMAC = mac.Random()
	}
	err := a.link(wiring.Veth{
		HostName: api.HostIfName(a.call.Attachment), Name: a.call.IfName,
		HostMAC: hostMAC, MAC: own, MTU: a.config.network.MTU,
	})
	if err != nil {
		return err
	}
	if err := a.up(); err != nil {
		return err
	}
	req := a.prepareRequest(w)
	req.MAC, req.HostMAC = own.String(), a.links.HostMAC.String()
	if req.Addresses, err = a.askElsewhere(); err != nil {
		return err
	}
	return a.prepare(req)
}

// askElsewhere has another plugin choose addresses.
func (a *attachment) askElsewhere() (addresses []api.Address, err error) {
	delegate, err := a.delegate()
	if err != nil {
		return nil, err
	}
	// Also after a failed ADD: the specification's "Delegated plugin
	// execution procedure".
	a.undo.push(func(ctx context.Context) error { return delegate.run(ctx, "DEL") })
	if a.ipamResult, err = delegate.add(a.ctx); err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.CNIAddLeased)
	for _, ip := range a.ipamResult.IPs {
		address := api.Address{Address: prefixOf(ip.Address)}
		address.Gateway, _ = netip.AddrFromSlice(ip.Gateway)
		address.Gateway = address.Gateway.Unmap()
		if !address.Address.IsValid() {
			return nil, faultf(types.ErrDecodingFailure, "ipam %s: %s is not an address", a.config.ipamType, ip.Address.String())
		}
		if a.config.network.BridgeGateway && !address.Gateway.IsValid() {
			address.Gateway = firstOf(address.Address)
		}
		addresses = append(addresses, address)
	}
	if len(addresses) == 0 {
		return nil, faultf(types.ErrInvalidNetworkConfig, "ipam.type: %s gave no address", a.config.ipamType)
	}
	return addresses, nil
}

// up has the links carry what the plugin sends that is to choose addresses. A port of a bridge
// would carry it too far: the datapath does not know the container yet.
func (a *attachment) up() error {
	if a.config.network.Driver == api.DriverBridge {
		return nil
	}
	a.helper = standInIPv4
	return wiring.Up(a.host, a.container, a.links, a.helper)
}

func (a *attachment) prepareRequest(w wanted) api.PrepareRequest {
	return api.PrepareRequest{
		Attachment: a.call.Attachment, Network: a.config.network, NetNS: a.call.netns, Labels: w.labels,
		NamedPorts: a.config.namedPorts, Ports: a.config.ports, Bandwidth: a.config.bandwidth,
	}
}

func (a *attachment) prepare(req api.PrepareRequest) error {
	var err error
	a.endpoint, err = a.client.Prepare(a.ctx, req)
	var refused *api.Error
	if err == nil || !errors.As(err, &refused) {
		// Without a clear no, the agent may have done it before it went
		// silent. With one, the endpoint may be somebody else's.
		a.undo.push(a.release)
	}
	if err != nil {
		return fmt.Errorf("prepare: %w", agentFault(err))
	}
	failpoint.Hit(failpoint.CNIAddPrepared)
	return nil
}

// release is not to be heard of when no agent is there: one that starts later finds a note.
func (a *attachment) release(ctx context.Context) error {
	err := a.client.Delete(ctx, a.call.Attachment)
	switch {
	case errors.Is(err, api.ErrUnavailable):
		return a.noteEnd()
	case err != nil:
		return fmt.Errorf("release endpoint: %w", err)
	}
	return nil
}

func (a *attachment) link(v wiring.Veth) error {
	var err error
	if a.links, err = wiring.CreateVeth(a.host, a.container, v); err != nil {
		return err
	}
	a.undo.push(func(context.Context) error { return wiring.RemoveVeth(a.host, v.HostName) })
	failpoint.Hit(failpoint.CNIAddLinked)
	return nil
}

// routed is what the container is to have.
func (a *attachment) routed() (wiring.Routed, error) {
	r := wiring.Routed{MTU: a.endpoint.MTU, Addresses: wiredAddresses(a.endpoint)}
	if err := a.checkMTU(); err != nil {
		return r, err
	}
	given := a.givenRoutes()
	for i := range given {
		var err error
		if given[i].Route, err = byGateway(given[i].Route, r.Addresses); err != nil {
			return r, err
		}
		r.Routes = append(r.Routes, given[i].Route)
	}
	if fault := duplicate(given); fault != nil {
		return r, fault
	}
	implied := func(route wiring.Route) {
		same := func(other wiring.Route) bool {
			return other.Dst == route.Dst && other.Priority == route.Priority && other.Table == route.Table
		}
		if !slices.ContainsFunc(r.Routes, same) {
			r.Routes = append(r.Routes, route)
		}
	}
	for i, address := range r.Addresses { // both of which another interface may have
		if len(given) == 0 && a.ipamResult == nil {
			implied(wiring.Route{Dst: netip.PrefixFrom(unspecified(address.Addr), 0), Gateway: address.Gateway, Optional: true})
		}
		if subnet := a.endpoint.Addresses[i].Address.Masked(); !subnet.IsSingleIP() {
			implied(wiring.Route{Dst: subnet, Gateway: address.Gateway, Behind: true})
		}
	}
	return r, nil
}

// checkMTU looks at the MTU again: what addresses a delegated plugin gives shows late.
func (a *attachment) checkMTU() error {
	mtu := a.endpoint.MTU
	if mtu < 1280 && slices.ContainsFunc(a.endpoint.Addresses, func(a api.Address) bool { return a.Address.Addr().Is6() }) {
		return faultf(types.ErrInvalidNetworkConfig, "mtu: %d is less than 1280, which IPv6 needs (RFC 8200)", mtu)
	}
	return nil
}

// givenRoutes are those that somebody asked for: a delegated plugin, then the
// configuration.
func (a *attachment) givenRoutes() []givenRoute {
	var given []givenRoute
	if a.ipamResult != nil {
		for i, route := range ipamRoutes(a.ipamResult) {
			given = append(given, givenRoute{route, fmt.Sprintf("routes[%d] of ipam %s", i, a.config.ipamType)})
		}
	}
	return append(given, a.config.routes...)
}

// wiredAddresses are an endpoint's addresses, with a stand-in for a gateway
// that is not known.
func wiredAddresses(e api.Endpoint) []wiring.Address {
	var addresses []wiring.Address
	for _, a := range e.Addresses {
		wired := wiring.Address{Addr: a.Address.Addr(), Gateway: a.Gateway}
		if !wired.Gateway.IsValid() {
			wired.Foreign = true
			if wired.Gateway = standInIPv4; wired.Addr.Is6() {
				wired.Gateway = standInIPv6
			}
		}
		addresses = append(addresses, wired)
	}
	return addresses
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// prefixOf converts what the CNI library has; the zero Prefix is none.
func prefixOf(n net.IPNet) netip.Prefix {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}
	}
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones)
}
