// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/ipam"
)

// maxPorts bounds the port mappings of a request.
const maxPorts = 4096

// portProtocols are the protocols whose ports can be mapped.
var portProtocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}

// portClaim is a port of the host that a request wants: a mapping of one family.
type portClaim struct {
	// at is the mapping in the request, such as "ports[3]".
	at       string
	protocol string
	// host has the unspecified address for all addresses of the family.
	host    netip.AddrPort
	mapping api.PortMapping
}

// String is the port as messages name it: "192.0.2.1:8080/tcp".
func (c portClaim) String() string { return c.host.String() + "/" + c.protocol }

// overlaps tells whether two host addresses of one family have one in common.
func overlaps(a, b netip.Addr) bool { return a == b || a.IsUnspecified() || b.IsUnspecified() }

// families says of which families an endpoint has addresses.
type families struct{ v4, v6 bool }

func familiesOf(ranges []api.RangeSet, addresses []api.Address) families {
	var f families
	note := func(a netip.Addr) {
		f.v4 = f.v4 || a.Is4()
		f.v6 = f.v6 || a.Is6()
	}
	for _, set := range ranges {
		note(set[0].Subnet.Addr())
	}
	for _, a := range addresses {
		note(a.Address.Addr())
	}
	return f
}

// hosts returns the host addresses of a mapping, one of each family.
func (f families) hosts(m api.PortMapping) []netip.Addr {
	if m.HostIP.IsValid() {
		return []netip.Addr{m.HostIP}
	}
	var hosts []netip.Addr
	if f.v4 {
		hosts = append(hosts, netip.IPv4Unspecified())
	}
	if f.v6 {
		hosts = append(hosts, netip.IPv6Unspecified())
	}
	return hosts
}

// parseMappings checks the port mappings of a request for an endpoint with
// addresses of these families. It returns each mapping once, and what they claim.
func parseMappings(given []api.PortMapping, has families) ([]api.PortMapping, []portClaim, error) {
	if len(given) > maxPorts {
		return nil, nil, invalid("ports", strconv.Itoa(len(given)), fmt.Sprintf("are more than %d", maxPorts))
	}
	var (
		mappings []api.PortMapping
		claims   []portClaim
		seen     = make(map[api.PortMapping]bool, len(given))
		claimed  = make(map[portKey][]portClaim, len(given))
	)
	for i, m := range given {
		at := fmt.Sprintf("ports[%d]", i)
		if err := checkMapping(at, m, has); err != nil {
			return nil, nil, err
		}
		if seen[m] {
			continue
		}
		seen[m] = true
		mappings = append(mappings, m)
		for _, host := range has.hosts(m) {
			c := portClaim{at, m.Protocol, netip.AddrPortFrom(host, m.HostPort), m}
			same := false
			for _, other := range claimed[keyOf(c.protocol, c.host)] {
				if !overlaps(host, other.host.Addr()) {
					continue
				}
				if other.mapping.ContainerPort != m.ContainerPort {
					return nil, nil, &api.Error{
						Code: api.CodeInvalid, Key: at + ".hostPort", Value: strconv.Itoa(int(m.HostPort)),
						Message: fmt.Sprintf("%s.hostPort: %s leads to container port %d, and %s of %s to %d",
							at, c, m.ContainerPort, other, other.at, other.mapping.ContainerPort),
					}
				}
				same = same || other.host == c.host
			}
			if !same {
				claimed[keyOf(c.protocol, c.host)] = append(claimed[keyOf(c.protocol, c.host)], c)
				claims = append(claims, c)
			}
		}
	}
	return mappings, claims, nil
}

func checkMapping(at string, m api.PortMapping, has families) error {
	switch _, known := portProtocols[m.Protocol]; {
	case m.Protocol == "sctp":
		return invalid(at+".protocol", m.Protocol, "cannot be mapped: its checksum covers the ports, and the kernel "+
			"does not let a packet's be computed anew")
	case !known:
		return invalid(at+".protocol", m.Protocol[:min(len(m.Protocol), 64)], "is not tcp or udp")
	case m.HostPort == 0:
		return invalid(at+".hostPort", "0", "is not between 1 and 65535")
	case m.ContainerPort == 0:
		return invalid(at+".containerPort", "0", "is not between 1 and 65535")
	case !m.HostIP.IsValid():
		return nil
	}
	if reason := hostIPFault(m.HostIP, has); reason != "" {
		return invalid(at+".hostIP", m.HostIP.String(), reason)
	}
	return nil
}

// hostIPFault says why an address can be no host address of a mapping. Whether the
// host has it does not matter: it may come later, as that of a cluster does.
func hostIPFault(a netip.Addr, has families) string {
	switch {
	case a.Zone() != "":
		return "has a zone"
	case a.Is4In6():
		return "is an IPv4 address written as IPv6"
	case a.Is4() && !has.v4:
		return "is of IPv4, and the endpoint has no IPv4 address"
	case a.Is6() && !has.v6:
		return "is of IPv6, and the endpoint has no IPv6 address"
	case a.Is6() && a.IsLinkLocalUnicast():
		return "is a link-local address: it says nothing without its link, and no port can be reached there"
	case a.IsUnspecified(), a.IsLoopback(), a.IsLinkLocalUnicast():
		return ""
	}
	return ipam.Special(netip.PrefixFrom(a, a.BitLen()))
}

// ports returns the record's mappings as the datapath takes them: those without a
// host address for each family, and all to the first address of their family.
func (r *record) ports() []datapath.Port {
	if len(r.Ports) == 0 {
		return nil
	}
	to := make(map[bool]netip.Addr, 2) // by whether it is of IPv4
	for _, a := range slices.Backward(r.Addresses) {
		to[a.Address.Addr().Is4()] = a.Address.Addr()
	}
	var (
		has   = familiesOf(nil, r.Addresses)
		seen  = make(map[datapath.Port]bool, len(r.Ports))
		ports []datapath.Port
	)
	for _, m := range r.Ports {
		for _, host := range has.hosts(m) {
			p := datapath.Port{
				HostIP: host, HostPort: m.HostPort, Protocol: portProtocols[m.Protocol],
				ContainerIP: to[host.Is4()], ContainerPort: m.ContainerPort,
			}
			if !seen[p] { // "" and 0.0.0.0 are the same of IPv4
				seen[p] = true
				ports = append(ports, p)
			}
		}
	}
	return ports
}
