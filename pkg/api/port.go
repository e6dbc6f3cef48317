// SPDX-License-Identifier: Apache-2.0

package api

import "net/netip"

// PortMapping leads a port of the host to a port of the container, in the words
// of the CNI conventions (capability portMappings).
type PortMapping struct {
	// HostIP is one address of the host, or 0.0.0.0 or :: for all of that family.
	// The zero Addr is all of each family that the endpoint has an address of.
	HostIP netip.Addr `json:"hostIP,omitzero"`
	// HostPort and ContainerPort are 1 to 65535.
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	// Protocol is "tcp" or "udp".
	Protocol string `json:"protocol"`
}

// Port is a port of the host as the datapath serves it: a PortMapping of one
// family, and whose it is.
type Port struct {
	Protocol string `json:"protocol"`
	// Host has the unspecified address where the port is that of every address
	// of the family.
	Host netip.AddrPort `json:"host"`
	// Container is where the port leads.
	Container netip.AddrPort `json:"container"`
	Attachment
	Network string `json:"network"`
}
