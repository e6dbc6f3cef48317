// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/utils"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// ipamTendril is the ipam.type whose leases are the agent's own.
const ipamTendril = "tendril"

// config is the network configuration as the plugin acts on it.
type config struct {
	version string
	network api.Network
	bridge  bridgeConfig
	macvlan macvlanConfig
	// socket of the agent.
	socket   string
	ipamType string
	// routes are those of ipam.routes and then those of the top level.
	routes []givenRoute
	dns    types.DNS
	// ips, mac and labels are what the runtime asked for by runtimeConfig or
	// args.cni; CNI_ARGS comes after both, and is not in here.
	ips    []netip.Addr
	mac    net.HardwareAddr
	labels map[string]string
	// namedPorts are args.cni.ports.
	namedPorts []api.NamedPort
	// ports are the capability "portMappings".
	ports []api.PortMapping
	// bandwidth is the capability of that name, or what the configuration says.
	bandwidth api.Bandwidth
	// runtimeDNS is the capability "dns"; it goes before all other sources.
	runtimeDNS types.DNS
	// prevResult is nil when the plugin is the first of its chain.
	prevResult *current.Result
	// valid are the attachments that a GC keeps; nil when the runtime gave
	// no list.
	valid []api.Attachment
}

// delegated says whether another plugin chooses the addresses.
func (c *config) delegated() bool { return c.ipamType != ipamTendril }

// parseConfig reads the configuration that came on stdin. Strict is for the
// operations that would act on it: DEL and GC must work with whatever ADD
// refused, and read what they can.
//
// Errors are *types.Error: code 6 where the text is no JSON object, 2 for what
// somebody wants and this plugin cannot do, else 7. They name key and value.
func parseConfig(text []byte, strict bool) (config, error) {
	found := &faults{}
	whole := object{faults: found}
	if err := json.Unmarshal(text, &whole.fields); err != nil {
		return config{}, faultf(types.ErrDecodingFailure, "decode configuration: %v", err)
	}
	c := config{}
	whole.read("cniVersion", &c.version, "a string")
	whole.read("name", &c.network.Name, "a string")
	if err := utils.ValidateNetworkName(c.network.Name); err != nil {
		return config{}, faultf(types.ErrInvalidNetworkConfig, "name: %q is not a network name: it must begin with a letter or digit "+
			"and consist of letters, digits, and _.-", c.network.Name)
	}
	c.readTop(whole)
	c.readIPAM(whole.object("ipam"))
	if fault := duplicate(c.routes); fault != nil {
		found.add(fault)
	}
	c.readRuntime(whole.object("runtimeConfig"))
	c.readArgs(whole.object("args").object("cni"))
	c.readPrevResult(whole)
	c.checkLayer2(whole)
	if strict && found.first != nil {
		return config{}, found.first
	}
	// Strict for all: half a list of what to keep is a list of what to lose.
	whole.faults = &faults{}
	c.readValid(whole)
	if whole.faults.first != nil {
		return config{}, whole.faults.first
	}
	return c, nil
}

// readTop reads the plugin's own keys at the top level.
func (c *config) readTop(o object) {
	keys := []string{
		"driver", "socket", "ipMasq", "mtu", "ingressPolicy", "icc", "routes", "ipam", "dns",
		"ingressRate", "ingressBurst", "egressRate", "egressBurst", "unshapedSubnets",
		// of the specification, its conventions and what runtimes add:
		"cniVersion", "cniVersions", "name", "type", "capabilities", "runtimeConfig", "args", "prevResult",
		"disableCheck", "disableGC", "loadOnlyInlinedPlugins",
	}
	own := object{path: o.path, fields: make(map[string]json.RawMessage), faults: o.faults}
	for key, raw := range o.fields {
		if !strings.HasPrefix(key, "cni.dev/") {
			own.fields[key] = raw
		}
	}
	c.network.Driver = api.DriverRouted
	o.read("driver", &c.network.Driver, "a string")
	keys = append(keys, c.driverKeys(o)...)
	own.known(keys...)
	switch c.network.Driver {
	case api.DriverBridge:
		c.readBridge(o)
	case api.DriverMacvlan:
		c.readMacvlan(o)
	}
	c.socket = text(o, "socket", func(path string) (string, error) {
		if !filepath.IsAbs(path) {
			return "", errors.New("relative")
		}
		return path, nil
	}, "an absolute path")
	if c.socket == "" {
		c.socket = api.DefaultSocket
	}
	o.read("ipMasq", &c.network.IPMasq, "true or false")
	o.read("mtu", &c.network.MTU, "a whole number")
	// 68 is the least that IPv4 works with (RFC 791), 65535 the most of a veth.
	if c.network.MTU != 0 && (c.network.MTU < 68 || c.network.MTU > 65535) {
		o.fault("mtu", fmt.Sprintf("%d is not 0 or between 68 and 65535", c.network.MTU))
	}
	if c.network.IPMasq && c.network.Driver == api.DriverMacvlan {
		o.faults.add(faultf(types.ErrUnsupportedField, "%s: true cannot be with the driver macvlan: containers are in the "+
			"network of their master, with addresses of their own", o.at("ipMasq")))
	}
	c.readIsolation(o)
	c.bandwidth = c.readBandwidth(o)
	c.bandwidth.UnshapedSubnets = readPrefixes(o, "unshapedSubnets")
	dns := o.object("dns")
	dns.known("nameservers", "domain", "search", "options")
	o.read("dns", &c.dns, "an object with lists of nameservers, search and options, and a domain")
	c.routes = readRoutes(o)
}

// driverKeys returns the keys that the network's driver alone has, and finds fault with
// those that only others have.
func (c *config) driverKeys(o object) []string {
	drivers := []string{api.DriverRouted, api.DriverBridge, api.DriverMacvlan}
	keys := map[string][]string{api.DriverRouted: nil, api.DriverBridge: bridgeKeys(), api.DriverMacvlan: macvlanKeys()}
	own, known := keys[c.network.Driver]
	if !known {
		o.fault("driver", fmt.Sprintf("there is no driver %q; there are %q", c.network.Driver, drivers))
		return nil
	}
	for _, other := range drivers {
		for _, key := range keys[other] {
			if o.has(key) && !slices.Contains(own, key) {
				o.unsupported(key, fmt.Sprintf("it is a key of the driver %q, and this network's is %q", other, c.network.Driver), "")
			}
		}
	}
	return own
}

func (c *config) readIPAM(o object) {
	o.read("type", &c.ipamType, "a string")
	if c.network.Layer2 && c.ipamType == "" {
		c.ipamType = ipamTendril // nothing to run, and nothing to lease
		return
	}
	switch {
	case c.ipamType == "":
		o.fault("type", `missing; "tendril" leases from ipam.ranges, any other type is the plugin of that name`)
		c.ipamType = ipamTendril // nothing else to run
		return
	case strings.ContainsAny(c.ipamType, `/\`):
		o.fault("type", fmt.Sprintf("%q is not the name of a plugin", c.ipamType))
		c.ipamType = ipamTendril
		return
	case c.ipamType == ipamDHCP && c.network.Driver == api.DriverBridge:
		o.unsupported("type", "with the driver bridge it asks on the bridge before there is a policy", "")
		return
	case c.delegated():
		return // all else in it is that plugin's
	}
	o.known("type", "ranges", "routes")
	c.network.Ranges = readRanges(o, "ranges")
	c.routes = append(readRoutes(o), c.routes...)
}

func (c *config) readRuntime(o object) {
	for key, raw := range o.fields {
		switch key {
		case "ips", "mac", "dns", "ipRanges", "portMappings", "bandwidth":
			continue
		}
		if !empty(raw) {
			o.unsupported(key, "remove the key from the plugin's capabilities", "")
		}
	}
	c.ips = readAddresses(o, "ips")
	c.mac = readMAC(o, "mac")
	c.ports = readPorts(o, "portMappings")
	c.readRuntimeBandwidth(o)
	if !c.delegated() {
		// As with host-local, ranges of the runtime come before those of
		// the configuration.
		c.network.Ranges = append(readRanges(o, "ipRanges"), c.network.Ranges...)
		if len(c.network.Ranges) == 0 && !c.network.Layer2 {
			o.faults.add(faultf(types.ErrInvalidNetworkConfig, "ipam.ranges: missing, and runtimeConfig.ipRanges too"))
		}
	}
	dns := o.object("dns")
	dns.read("servers", &c.runtimeDNS.Nameservers, "a list of strings")
	dns.read("searches", &c.runtimeDNS.Search, "a list of strings")
	dns.read("options", &c.runtimeDNS.Options, "a list of strings")
}

// readArgs reads args.cni, of which the conventions say that a plugin takes
// what it understands.
func (c *config) readArgs(o object) {
	if ips := readAddresses(o, "ips"); len(c.ips) == 0 {
		c.ips = ips
	}
	if mac := readMAC(o, "mac"); c.mac == nil {
		c.mac = mac
	}
	for _, label := range o.objects("labels") {
		var key, value string
		label.read("key", &key, "a string")
		label.read("value", &value, "a string")
		if key == "" {
			label.fault("key", "missing")
			continue
		}
		if c.labels == nil {
			c.labels = make(map[string]string)
		}
		c.labels[key] = value
	}
	c.namedPorts = readNamedPorts(o, "ports")
}

func (c *config) readPrevResult(o object) {
	if !o.has("prevResult") {
		return
	}
	prev := o.object("prevResult")
	if prev.fields == nil {
		return
	}
	// Before 1.0.0 a result need not say its version; it is that of the
	// configuration then.
	var version string
	prev.read("cniVersion", &version, "a string")
	if version == "" {
		version = c.version
		prev.fields["cniVersion"], _ = json.Marshal(version) // a string
	}
	if item := nullIn(prev); item != "" {
		prev.fault(item, "is null")
		return
	}
	raw, err := json.Marshal(prev.fields)
	if err == nil {
		var result types.Result
		if result, err = create.Create(version, raw); err == nil {
			c.prevResult, err = current.GetResult(result)
		}
	}
	if err != nil {
		o.fault("prevResult", fmt.Sprintf("not a result of version %s: %v", version, unwrapped(err)))
	}
}

// readValid reads the attachments that a GC keeps, under their name in 1.1.0
// or under the one that libcni still sends beside it.
func (c *config) readValid(o object) {
	for _, key := range []string{"cni.dev/valid-attachments", "cni.dev/attachments"} {
		if !o.has(key) {
			continue
		}
		c.valid = []api.Attachment{}
		for _, item := range o.objects(key) {
			var a api.Attachment
			item.read("containerID", &a.ContainerID, "a string")
			item.read("ifname", &a.IfName, "a string")
			c.valid = append(c.valid, a)
		}
		return
	}
}

func readRanges(o object, key string) []api.RangeSet {
	var sets []api.RangeSet
	for i, raw := range o.list(key) {
		// The list of sets as an object of one key, so that the paths of
		// the ranges come out right.
		outer := object{path: o.path, faults: o.faults}
		at := fmt.Sprintf("%s[%d]", key, i)
		outer.fields = map[string]json.RawMessage{at: raw}
		var set api.RangeSet
		for _, r := range outer.objects(at) {
			r.known("subnet", "rangeStart", "rangeEnd", "gateway")
			one := api.Range{
				Subnet:     text(r, "subnet", netip.ParsePrefix, "an address and a prefix length"),
				RangeStart: text(r, "rangeStart", parseAddr, "an address"),
				RangeEnd:   text(r, "rangeEnd", parseAddr, "an address"),
				Gateway:    text(r, "gateway", parseAddr, "an address"),
			}
			if !one.Subnet.IsValid() {
				r.fault("subnet", "missing")
			}
			set = append(set, one)
		}
		if len(set) == 0 {
			o.fault(at, "is empty")
		}
		sets = append(sets, set)
	}
	return sets
}

func readRoutes(o object) []givenRoute {
	var routes []givenRoute
	for _, r := range o.objects("routes") {
		r.known("dst", "gw", "mtu", "advmss", "priority", "table", "scope")
		route := wiring.Route{
			Dst:     text(r, "dst", netip.ParsePrefix, "an address and a prefix length").Masked(),
			Gateway: text(r, "gw", parseAddr, "an address"),
		}
		if !route.Dst.IsValid() {
			r.fault("dst", "missing")
		} else if route.Gateway.IsValid() && route.Gateway.Is4() != route.Dst.Addr().Is4() {
			r.fault("gw", fmt.Sprintf("%s is not of the family of dst %s", route.Gateway, route.Dst))
		}
		for _, number := range []struct {
			key  string
			dest *int
			most int
		}{
			{"mtu", &route.MTU, 65535},
			{"advmss", &route.AdvMSS, 65535},
			{"priority", &route.Priority, 1<<32 - 1},
			{"table", &route.Table, 1<<32 - 1},
			{"scope", &route.Scope, 255},
		} {
			r.read(number.key, number.dest, "a whole number")
			if *number.dest < 0 || *number.dest > number.most {
				r.fault(number.key, fmt.Sprintf("%d is not between 0 and %d", *number.dest, number.most))
			}
		}
		routes = append(routes, givenRoute{route, r.path})
	}
	return routes
}

// readAddresses reads a list of addresses, each with or without a prefix
// length, which says nothing where every container has its address alone.
func readAddresses(o object, key string) []netip.Addr {
	var written []string
	var addresses []netip.Addr
	o.read(key, &written, "a list of strings")
	for i, one := range written {
		a, err := parseAddress(one)
		if err != nil {
			o.fault(fmt.Sprintf("%s[%d]", key, i), fmt.Sprintf("%q is not an address", one))
		}
		addresses = append(addresses, a)
	}
	return addresses
}

func parseAddress(written string) (netip.Addr, error) {
	if strings.Contains(written, "/") {
		prefix, err := netip.ParsePrefix(written)
		return prefix.Addr(), err
	}
	return parseAddr(written)
}

// parseAddr reads an address without a zone, which would name a link of one
// namespace in another.
func parseAddr(written string) (netip.Addr, error) {
	a, err := netip.ParseAddr(written)
	if err == nil && (a.Zone() != "" || a.Is4In6()) {
		err = errors.New("with a zone, or an IPv4 address in IPv6 form")
	}
	return a, err
}

func readMAC(o object, key string) net.HardwareAddr {
	return text(o, key, parseMAC, "the MAC address of one station: 6 bytes, the first even")
}

func parseMAC(written string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(written)
	if err != nil {
		return nil, err
	}
	if len(mac) != 6 || mac[0]&1 != 0 || [6]byte(mac) == [6]byte{} {
		return nil, errors.New("not of a station")
	}
	return mac, nil
}

// unwrapped is the innermost cause, without the libraries' prefixes.
func unwrapped(err error) error {
	for errors.Unwrap(err) != nil {
		err = errors.Unwrap(err)
	}
	return err
}
