// SPDX-License-Identifier: Apache-2.0

package policy

import "net/netip"

// Protocols that have ports, as in the IP header. Rules name no others.
const (
	TCP  = 6
	UDP  = 17
	SCTP = 132
)

// Endpoint is what policy needs to know of an interface of a container on this
// node, or of one of another node.
type Endpoint struct {
	// ID is its number on this node, 1 to 65535; 0 if it is on another node.
	ID uint16
	// Key names an endpoint of another node; "" for those of this node.
	Key string
	// Namespace is "default" if empty.
	Namespace string
	Labels    map[string]string
	// Ports are those that rules may name. A name may occur more than once.
	Ports []NamedPort
	// Addresses are without zone. One of IPv4 in IPv6 form is taken as IPv4.
	Addresses []netip.Addr
	// Network is the name of the network. The next two are its isolation from
	// other endpoints of the node: what is true is refused. They count for
	// endpoints of this node only.
	Network           string
	FromOtherNetworks bool
	FromOwnNetwork    bool
}

// NamedPort is a port that an endpoint serves under a name.
type NamedPort struct {
	Name string
	// Protocol is TCP, UDP or SCTP.
	Protocol uint8
	Port     uint16
}
