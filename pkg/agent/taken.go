// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
)

// portKey is a port of all host addresses of a family.
type portKey struct {
	protocol string
	v4       bool
	port     uint16
}

func keyOf(protocol string, host netip.AddrPort) portKey {
	return portKey{protocol, host.Addr().Is4(), host.Port()}
}

// portHolder has a port, of one address or of all.
type portHolder struct {
	host       netip.Addr
	attachment api.Attachment
}

// portTable knows whose the mapped ports of the host are.
type portTable map[portKey][]portHolder

func (t portTable) add(r *record) {
	for _, p := range r.ports() {
		key := keyOf(datapath.ProtocolName(p.Protocol), netip.AddrPortFrom(p.HostIP, p.HostPort))
		t[key] = append(t[key], portHolder{p.HostIP, r.Attachment})
	}
}

func (t portTable) remove(r *record) {
	for _, p := range r.ports() {
		key := keyOf(datapath.ProtocolName(p.Protocol), netip.AddrPortFrom(p.HostIP, p.HostPort))
		t[key] = slices.DeleteFunc(t[key], func(h portHolder) bool { return h.attachment == r.Attachment })
		if len(t[key]) == 0 {
			delete(t, key)
		}
	}
}

// portTaken returns an *api.Error that names the other endpoint which has one of
// the ports.
func (x *index) portTaken(claims []portClaim) error {
	for _, c := range claims {
		for _, h := range x.ports[keyOf(c.protocol, c.host)] {
			if !overlaps(h.host, c.host.Addr()) {
				continue
			}
			whose := fmt.Sprintf("container %s, interface %s, network %s",
				h.attachment.ContainerID, h.attachment.IfName, x.records[h.attachment].Network)
			if h.host != c.host.Addr() {
				whose += ", as " + netip.AddrPortFrom(h.host, c.host.Port()).String()
			}
			if x.detached[h.attachment] {
				whose += "; its device is gone, and its DEL or a GC frees the port"
			}
			return c.taken(whose)
		}
	}
	return nil
}

// portEntries is how many entries of map ports the record comes to.
func (r *record) portEntries() int {
	if len(r.Ports) == 0 {
		return 0
	}
	served := r.datapath()
	return served.PortEntries()
}

// roomForPorts returns an *api.Error when map ports has no room for those of a record.
func (x *index) roomForPorts(r *record) error {
	full := datapath.FullError{Map: "ports", Entries: x.entries, Max: datapath.PortsMax, Wanted: r.portEntries()}
	if full.Entries+full.Wanted <= full.Max {
		return nil
	}
	return &api.Error{Code: api.CodeExhausted, Key: "ports", Message: full.Error()}
}

// yieldPorts takes from a request the ports that the same container has by another
// interface: a runtime asks each of a container's networks for all of its ports, and the
// first one serves. Of a mapping of both families one may be left.
func (x *index) yieldPorts(in *intent) {
	served := func(protocol string, host netip.AddrPort) bool {
		return slices.ContainsFunc(x.ports[keyOf(protocol, host)], func(h portHolder) bool {
			return h.attachment.ContainerID == in.attachment.ContainerID && h.attachment != in.attachment && overlaps(h.host, host.Addr())
		})
	}
	var left []api.PortMapping
	for _, m := range in.ports {
		hosts := in.has.hosts(m)
		free := slices.DeleteFunc(slices.Clone(hosts), func(host netip.Addr) bool {
			return served(m.Protocol, netip.AddrPortFrom(host, m.HostPort))
		})
		if len(free) == len(hosts) {
			left = append(left, m)
			continue
		}
		for _, m.HostIP = range free {
			if !slices.Contains(in.ports, m) {
				left = append(left, m)
			}
		}
	}
	in.ports = left
	in.claims = slices.DeleteFunc(in.claims, func(c portClaim) bool { return served(c.protocol, c.host) })
}

func (c portClaim) taken(whose string) *api.Error {
	return &api.Error{
		Code: api.CodeConflict, Key: c.at + ".hostPort", Value: strconv.Itoa(int(c.host.Port())),
		Message: fmt.Sprintf("%s.hostPort: %s is taken by %s", c.at, c, whose),
	}
}
