// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tendril-net/tendril/internal/vlan"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/ipam"
)

// Limits of what is kept of a request.
const (
	maxName   = 256 // bytes of a container ID, network name, label key or value
	maxLabels = 256
	maxPath   = 4096 // PATH_MAX
	maxMTU    = 65535
	minMTU4   = 68   // RFC 791
	minMTU6   = 1280 // RFC 8200, section 5
)

// nameRE is what the CNI specification allows for container IDs and network
// names (section 2, "Parameters").
var nameRE = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`)

func invalid(key, value, reason string) *api.Error {
	return &api.Error{Code: api.CodeInvalid, Key: key, Value: value, Message: fmt.Sprintf("%s %q: %s", key, value, reason)}
}

func checkName(key, name string) error {
	switch {
	case name == "":
		return invalid(key, name, "is missing")
	case len(name) > maxName:
		return invalid(key, name[:32]+"...", fmt.Sprintf("is longer than %d bytes", maxName))
	case !nameRE.MatchString(name):
		return invalid(key, name, "must begin with a letter or digit and hold only those and _ . -")
	}
	return nil
}

func checkAttachment(a api.Attachment) error {
	if err := checkName("containerID", a.ContainerID); err != nil {
		return err
	}
	if reason := api.IfNameFault(a.IfName); reason != "" {
		return invalid("ifName", a.IfName[:min(len(a.IfName), 64)], reason)
	}
	return nil
}

// intent is a PrepareRequest that was found valid.
type intent struct {
	attachment   api.Attachment
	network      api.Network // ranges in canonical form
	ranges       []ipam.RangeSet
	netns        string
	wanted       []netip.Addr
	addresses    []api.Address
	mac, hostMAC net.HardwareAddr // nil: to be generated
	labels       map[string]string
	namedPorts   []api.NamedPort
	ports        []api.PortMapping // each once
	claims       []portClaim       // what ports come to
	bandwidth    api.Bandwidth     // that will be in force
	notes        []string          // where it is not what was asked for
	has          families          // of the addresses
	later        bool              // the addresses are not known yet
	parent       HostLink          // of macvlan devices; found late, and made if need be
}

func parsePrepare(req api.PrepareRequest) (*intent, error) {
	if err := checkAttachment(req.Attachment); err != nil {
		return nil, err
	}
	network, ranges, err := parseNetwork(req.Network)
	if err != nil {
		return nil, err
	}
	in := &intent{
		attachment: req.Attachment, network: network, ranges: ranges, netns: req.NetNS,
		wanted: req.Wanted, addresses: req.Addresses, later: req.AddressesLater, labels: req.Labels, namedPorts: req.NamedPorts,
		has: familiesOf(network.Ranges, req.Addresses),
	}
	switch {
	case !filepath.IsAbs(req.NetNS) || len(req.NetNS) > maxPath || strings.ContainsRune(req.NetNS, 0):
		return nil, invalid("netns", req.NetNS[:min(len(req.NetNS), 64)], "is no absolute path")
	case req.AddressesLater && len(ranges)+len(req.Addresses) > 0:
		return nil, invalid("addressesLater", "true", "ranges or addresses are given as well")
	case req.AddressesLater && network.Driver != api.DriverMacvlan:
		return nil, invalid("addressesLater", "true", "is of another driver")
	case req.AddressesLater:
		in.has = laterFamilies
	case network.Layer2:
		if err := checkLayer2(req); err != nil {
			return nil, err
		}
	case len(ranges) == 0 && len(req.Addresses) == 0:
		return nil, invalid("ipam.ranges", "", "neither ranges nor addresses are given")
	case len(ranges) > 0 && len(req.Addresses) > 0:
		return nil, invalid("addresses", req.Addresses[0].Address.String(), "ranges are given as well")
	case len(req.Wanted) > len(ranges):
		return nil, invalid("ips", joinAddrs(req.Wanted), fmt.Sprintf("%d addresses are wanted from %d range sets", len(req.Wanted), len(ranges)))
	}
	for _, wanted := range req.Wanted {
		if !wanted.IsValid() {
			return nil, invalid("ips", "", "is no address")
		}
	}
	if err := checkAddresses(req.Addresses); err != nil {
		return nil, err
	}
	if err := checkMTU(network, req.Addresses); err != nil {
		return nil, err
	}
	if in.mac, err = parseMAC("mac", req.MAC); err != nil {
		return nil, err
	}
	if in.hostMAC, err = parseMAC("hostMAC", req.HostMAC); err != nil {
		return nil, err
	}
	if network.Driver == api.DriverBridge && in.hostMAC == nil {
		return nil, invalid("hostMAC", "", "is missing: with the driver bridge it is the bridge's")
	}
	if network.Driver == api.DriverMacvlan {
		if err := checkChildRequest(req, in); err != nil {
			return nil, err
		}
	}
	if err := checkLabels(req.Labels); err != nil {
		return nil, err
	}
	if err := checkNamedPorts(req.NamedPorts); err != nil {
		return nil, err
	}
	if in.bandwidth, in.notes, err = parseBandwidth(req.Bandwidth); err != nil {
		return nil, err
	}
	in.ports, in.claims, err = parseMappings(req.Ports, in.has)
	return in, err
}

// parseNetwork checks a network and brings its ranges to canonical form.
func parseNetwork(n api.Network) (api.Network, []ipam.RangeSet, error) {
	if err := checkName("name", n.Name); err != nil {
		return n, nil, err
	}
	if err := checkDriver(n); err != nil {
		return n, nil, err
	}
	switch n.IngressPolicy {
	case "", api.IngressOpen, api.IngressSameBridge, api.IngressIsolated:
	default:
		return n, nil, invalid("ingressPolicy", n.IngressPolicy[:min(len(n.IngressPolicy), 64)],
			fmt.Sprintf("is not known; %q, %q and %q are", api.IngressOpen, api.IngressSameBridge, api.IngressIsolated))
	}
	if len(n.Ranges) == 0 {
		n.Ranges = nil
		return n, nil, nil
	}
	sets := make([]ipam.RangeSet, len(n.Ranges))
	for i, set := range n.Ranges {
		for _, r := range set {
			sets[i] = append(sets[i], ipam.Range{Subnet: r.Subnet, Start: r.RangeStart, End: r.RangeEnd, Gateway: r.Gateway})
		}
	}
	sets, err := ipam.Canonical(sets)
	if err != nil {
		return n, nil, leaseError(err)
	}
	n.Ranges = make([]api.RangeSet, len(sets))
	for i, set := range sets {
		for _, r := range set {
			n.Ranges[i] = append(n.Ranges[i], api.Range{Subnet: r.Subnet, RangeStart: r.Start, RangeEnd: r.End, Gateway: r.Gateway})
		}
	}
	return n, sets, nil
}

// checkDriver looks at the driver and at what only one of them has.
func checkDriver(n api.Network) error {
	const foreign = "is of another driver"
	if n.Driver == api.DriverRouted || n.Driver == api.DriverMacvlan {
		switch {
		case n.Bridge != "":
			return invalid("bridge", n.Bridge[:min(len(n.Bridge), 64)], foreign)
		case n.ForceAddress:
			return invalid("forceAddress", "true", foreign)
		case n.PreserveDefaultVLAN:
			return invalid("preserveDefaultVLAN", "true", foreign)
		case len(n.VLANTrunk) != 0:
			return invalid("vlanTrunk", n.VLANTrunk.String(), foreign)
		case n.Layer2:
			return invalid("layer2", "true", foreign)
		}
	}
	if n.Driver == api.DriverRouted || n.Driver == api.DriverBridge {
		switch {
		case n.Parent != "":
			return invalid("parent", n.Parent[:min(len(n.Parent), 64)], foreign)
		case n.VLAN != 0 && n.Driver == api.DriverRouted:
			return invalid("vlan", strconv.Itoa(n.VLAN), foreign)
		case n.Mode != "":
			return invalid("mode", n.Mode[:min(len(n.Mode), 64)], foreign)
		case n.HostAccess:
			return invalid("hostAccess", "true", foreign)
		case n.InContainer:
			return invalid("inContainer", "true", foreign)
		}
	}
	switch n.Driver {
	case api.DriverRouted:
	case api.DriverMacvlan:
		return checkMacvlan(n)
	case api.DriverBridge:
		if reason := api.BridgeNameFault(n.Bridge); reason != "" {
			return invalid("bridge", n.Bridge[:min(len(n.Bridge), 64)], reason)
		}
		if n.VLAN < 0 || n.VLAN > vlan.Max {
			return invalid("vlan", strconv.Itoa(n.VLAN), fmt.Sprintf("is not between 0 and %d", vlan.Max))
		}
		if reason := api.BridgeNameFault(n.BridgeInterface()); reason != "" {
			return invalid("vlan", strconv.Itoa(n.VLAN), fmt.Sprintf("makes %s, which %s", n.BridgeInterface(), reason))
		}
		return checkTrunk(n)
	default:
		return invalid("driver", n.Driver[:min(len(n.Driver), 64)],
			fmt.Sprintf("is not known; %q, %q and %q are", api.DriverRouted, api.DriverBridge, api.DriverMacvlan))
	}
	return nil
}

// checkLayer2 looks at what endpoints without addresses cannot have.
func checkLayer2(req api.PrepareRequest) error {
	const none = "is of endpoints that have addresses, and these have none"
	n := req.Network
	switch {
	case len(n.Ranges) != 0:
		return invalid("ipam.ranges", "", none)
	case len(req.Addresses) != 0:
		return invalid("addresses", req.Addresses[0].Address.String(), none)
	case len(req.Wanted) != 0:
		return invalid("ips", joinAddrs(req.Wanted), none)
	case len(req.Ports) != 0:
		return invalid("ports", strconv.Itoa(int(req.Ports[0].HostPort)), none)
	case n.IPMasq:
		return invalid("ipMasq", "true", none)
	case n.BridgeGateway:
		return invalid("bridgeGateway", "true", none)
	}
	return nil
}

func checkTrunk(n api.Network) error {
	for _, r := range n.VLANTrunk {
		if reason := r.Fault(); reason != "" {
			return invalid("vlanTrunk", r.String(), reason)
		}
	}
	switch {
	case !slices.Equal(n.VLANTrunk, vlan.Of(n.VLANTrunk...)):
		return invalid("vlanTrunk", n.VLANTrunk.String(), "are not ranges that are apart, the lowest first")
	case n.VLANTrunk.Has(n.VLAN):
		return invalid("vlanTrunk", strconv.Itoa(n.VLAN), "is what endpoints are in without a tag")
	}
	return nil
}

func checkMTU(n api.Network, addresses []api.Address) error {
	least := minMTU4
	for _, set := range n.Ranges {
		if set[0].Subnet.Addr().Is6() {
			least = minMTU6
		}
	}
	for _, a := range addresses {
		if a.Address.Addr().Is6() {
			least = minMTU6
		}
	}
	if n.MTU != 0 && (n.MTU < least || n.MTU > maxMTU) {
		return invalid("mtu", strconv.Itoa(n.MTU), fmt.Sprintf("is not 0 or from %d to %d", least, maxMTU))
	}
	return nil
}

// checkAddresses looks at addresses that another IPAM plugin has chosen.
func checkAddresses(addresses []api.Address) error {
	seen := make(map[netip.Addr]bool)
	for _, a := range addresses {
		one := a.Address.Addr()
		reason := ""
		switch {
		case !a.Address.IsValid():
			reason = "is no address with a prefix length"
		case one.Is4In6():
			reason = "is an IPv4 address written as IPv6"
		case specialHop(one) != "":
			reason = specialHop(one)
		case one.Is6() && one.IsLinkLocalUnicast():
			reason = "is a link-local address"
		case seen[one]:
			reason = "is given twice"
		case a.Gateway.IsValid() && a.Gateway.Is4() != one.Is4():
			reason = fmt.Sprintf("has gateway %s of the other family", a.Gateway)
		case a.Gateway == one:
			reason = "is its own gateway"
		case a.Gateway.IsValid() && specialHop(a.Gateway) != "":
			reason = fmt.Sprintf("has gateway %s, which %s", a.Gateway, specialHop(a.Gateway))
		}
		if reason != "" {
			return invalid("addresses", a.Address.String(), reason)
		}
		seen[one] = true
	}
	return nil
}

// specialHop says why an address can be neither a container's nor its next hop. A
// link-local one can: containers of routed networks often have such a gateway.
func specialHop(a netip.Addr) string {
	if a.IsLinkLocalUnicast() {
		return ""
	}
	return ipam.Special(netip.PrefixFrom(a, a.BitLen()))
}

func parseMAC(key, text string) (net.HardwareAddr, error) {
	if text == "" {
		return nil, nil
	}
	mac, err := net.ParseMAC(text)
	switch {
	case err != nil || len(mac) != 6:
		return nil, invalid(key, text[:min(len(text), 64)], "is no ethernet address")
	case mac[0]&1 != 0:
		return nil, invalid(key, text, "is a group address")
	case mac.String() == "00:00:00:00:00:00":
		return nil, invalid(key, text, "is all zero")
	}
	return mac, nil
}

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return invalid("labels", strconv.Itoa(len(labels)), fmt.Sprintf("are more than %d", maxLabels))
	}
	for key, value := range labels {
		if key == "" || len(key) > maxName || len(value) > maxName {
			return invalid("labels", key[:min(len(key), 64)], fmt.Sprintf("key or value is empty or longer than %d bytes", maxName))
		}
	}
	return nil
}

func checkNamedPorts(ports []api.NamedPort) error {
	if len(ports) > maxPorts {
		return invalid("namedPorts", strconv.Itoa(len(ports)), fmt.Sprintf("are more than %d", maxPorts))
	}
	for i, p := range ports {
		at := fmt.Sprintf("namedPorts[%d]", i)
		switch {
		case p.Name == "" || len(p.Name) > maxName:
			return invalid(at+".name", p.Name[:min(len(p.Name), 64)], fmt.Sprintf("is empty or longer than %d bytes", maxName))
		case p.ContainerPort == 0:
			return invalid(at+".containerPort", "0", "is not between 1 and 65535")
		case namedProtocols[p.Protocol] == 0:
			return invalid(at+".protocol", p.Protocol[:min(len(p.Protocol), 64)], "is not tcp, udp or sctp")
		}
	}
	return nil
}

func joinAddrs(addresses []netip.Addr) string {
	var texts []string
	for _, a := range addresses {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ",")
}

// leaseError gives an error of pkg/ipam its code, key and value.
func leaseError(err error) error {
	var (
		ranges    *ipam.RangeError
		exhausted *ipam.ExhaustedError
		taken     *ipam.TakenError
		outside   *ipam.NotInRangeError
		overlap   *ipam.OverlapError
		held      *ipam.HeldError
	)
	if err == nil {
		return nil
	}
	answer := &api.Error{Message: err.Error()}
	switch {
	case errors.As(err, &ranges):
		answer.Code, answer.Key, answer.Value = api.CodeInvalid, "ipam."+ranges.Path(), ranges.Value
	case errors.As(err, &exhausted):
		answer.Code, answer.Key = api.CodeExhausted, "ipam.ranges"
	case errors.As(err, &taken):
		answer.Code, answer.Key, answer.Value = api.CodeConflict, "ips", taken.Address.String()
	case errors.As(err, &outside):
		answer.Code, answer.Key, answer.Value = api.CodeInvalid, "ips", outside.Address.String()
	case errors.As(err, &overlap):
		answer.Code, answer.Key = api.CodeConflict, "ipam.ranges"
	case errors.As(err, &held):
		answer.Code = api.CodeConflict
	default:
		return err
	}
	return answer
}
