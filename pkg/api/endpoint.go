// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/netip"
	"slices"
	"time"

	"github.com/tendril-net/tendril/internal/ifname"
	"github.com/tendril-net/tendril/internal/vlan"
)

// Attachment names one interface of one container: the two keys by which the
// CNI specification identifies an attachment within a network.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// Network is what the agent needs to know of a CNI network configuration.
type Network struct {
	// Name is the CNI network name, unique on the node.
	Name string `json:"name"`
	// Driver is how endpoints are attached: DriverRouted, DriverBridge or DriverMacvlan.
	Driver string `json:"driver"`
	// Bridge is the Linux bridge that endpoints are ports of, with DriverBridge.
	Bridge string `json:"bridge,omitempty"`
	// PreserveDefaultVLAN leaves ports of Bridge that are in VLAN in that of new ports as well.
	PreserveDefaultVLAN bool `json:"preserveDefaultVLAN,omitempty"`
	// ForceAddress says that an address of Bridge which lies in the ranges, and is no
	// gateway of theirs, is about to be taken from it.
	ForceAddress bool `json:"forceAddress,omitempty"`
	// Parent is the device of the node that endpoints are children of, with DriverMacvlan.
	// One that is named as eth0.50 and is not there is made on eth0, and goes with the last
	// endpoint.
	Parent string `json:"parent,omitempty"`
	// InContainer says that Parent is a device of the container instead, which is there: without
	// VLAN and HostAccess, and MTU is not 0.
	InContainer bool `json:"inContainer,omitempty"`
	// VLAN is the number that Parent must have; 0 takes what there is. With DriverBridge it is
	// that of the endpoints' ports, 0 what Bridge has for new ones.
	VLAN int `json:"vlan,omitempty"`
	// VLANTrunk are the VLANs of Bridge that endpoints have as well, by tags; VLAN is none of
	// them.
	VLANTrunk vlan.Set `json:"vlanTrunk,omitempty"`
	// Layer2 gives endpoints no addresses, and lets them have what they like on Bridge: with
	// DriverBridge, and without IPMasq, BridgeGateway and Ranges.
	Layer2 bool `json:"layer2,omitempty"`
	// Mode is how children of Parent reach each other: one of the Mode constants.
	Mode string `json:"mode,omitempty"`
	// HostAccess lets children reach the node, and the node them.
	HostAccess bool `json:"hostAccess,omitempty"`
	// BridgeGateway gives BridgeInterface the endpoints' gateways as addresses, Promisc lets
	// Bridge get all frames, and Hairpin has it send a frame back by the port that it came from.
	BridgeGateway bool `json:"bridgeGateway,omitempty"`
	Promisc       bool `json:"promisc,omitempty"`
	Hairpin       bool `json:"hairpin,omitempty"`
	// Isolated keeps Bridge from passing anything between the endpoints' ports and others
	// that are isolated.
	Isolated bool `json:"isolated,omitempty"`
	// IPMasq asks for the masquerade of what endpoints send to the world.
	IPMasq bool `json:"ipMasq"`
	// MTU of the container's interface in bytes; 0 follows the uplink's.
	MTU int `json:"mtu,omitempty"`
	// Ranges to allocate from, one address per set. Empty when another IPAM
	// plugin has chosen the addresses.
	Ranges []RangeSet `json:"ranges,omitempty"`
	// IngressPolicy is who may begin connections to endpoints: IngressOpen, which
	// "" is too, IngressSameBridge or IngressIsolated.
	IngressPolicy string `json:"ingressPolicy,omitempty"`
	// NoICC refuses what endpoints of the network send to each other.
	NoICC bool `json:"noICC,omitempty"`
}

// BridgeInterface names the node's own interface among the ports of Bridge: that itself, or its
// VLAN. Empty with other drivers.
func (n Network) BridgeInterface() string {
	if n.Bridge == "" {
		return ""
	}
	return ifname.VLAN(n.Bridge, n.VLAN)
}

// BridgeLockName is a file beside the agent's socket by which plugins agree on who may remove
// a bridge.
const BridgeLockName = "bridges.lock"

// The drivers.
const (
	// DriverRouted gives the container an address of its own and nobody on its link.
	DriverRouted = "routed"
	// DriverBridge makes the host's side a port of a Linux bridge.
	DriverBridge = "bridge"
	// DriverMacvlan makes the container's interface a child of a device of the node.
	DriverMacvlan = "macvlan"
)

// What children of a device are to each other with DriverMacvlan, in the words of the
// reference macvlan plugin.
const (
	// ModeBridge lets them reach each other.
	ModeBridge = "bridge"
	// ModePrivate does not.
	ModePrivate = "private"
	// ModeVEPA leaves it to the switch, which sends their frames back.
	ModeVEPA = "vepa"
	// ModePassthru has one child only, which has all of the device, its MAC too.
	ModePassthru = "passthru"
)

// RangeSet is a list of ranges of one family from which one address is taken.
type RangeSet []Range

// Range is a part of a subnet, in the words of the reference host-local plugin.
// A zero RangeStart, RangeEnd or Gateway takes the plugin's default: the first
// address after the gateway, the last before the broadcast address, and the
// first address of the subnet.
type Range struct {
	Subnet     netip.Prefix `json:"subnet"`
	RangeStart netip.Addr   `json:"rangeStart,omitzero"`
	RangeEnd   netip.Addr   `json:"rangeEnd,omitzero"`
	Gateway    netip.Addr   `json:"gateway,omitzero"`
}

// Address is one address of an endpoint.
type Address struct {
	// Address with the length of the prefix it was taken from.
	Address netip.Prefix `json:"address"`
	// Gateway is the container's next hop; it answers on the host's side.
	Gateway netip.Addr `json:"gateway,omitzero"`
}

// PrepareRequest asks for an endpoint: its leases and the names and numbers it
// is wired with. The endpoint is pending until it is attached.
type PrepareRequest struct {
	Attachment
	Network Network `json:"network"`
	// NetNS is the path of the container's network namespace.
	NetNS string `json:"netns"`
	// Wanted are addresses asked for by the runtime; each must lie in one
	// of the range sets. A set without a wanted address gives any.
	Wanted []netip.Addr `json:"wanted,omitempty"`
	// Addresses were chosen by another IPAM plugin; Network.Ranges is empty.
	Addresses []Address `json:"addresses,omitempty"`
	// AddressesLater says that another IPAM plugin is to choose them, of IPv4, by way of the
	// interface itself, as a DHCP client does; DriverMacvlan alone. The endpoint is attached
	// without addresses, when only what a link needs passes, and once more with them.
	AddressesLater bool `json:"addressesLater,omitempty"`
	// MAC wanted for the container's interface; empty generates one.
	MAC string `json:"mac,omitempty"`
	// HostMAC is that of the host's side; empty generates one, or with DriverMacvlan
	// takes the parent's. It is given where the links had to exist before the addresses were known, and with
	// DriverBridge, where it must be the bridge's: by that the datapath tells
	// frames for the node from those for others.
	HostMAC string `json:"hostMAC,omitempty"`
	// Labels of the container, by which policy knows it.
	Labels map[string]string `json:"labels,omitempty"`
	// NamedPorts are those that policy may name, at most 4096.
	NamedPorts []NamedPort `json:"namedPorts,omitempty"`
	// Ports of the host that lead to the container, at most 4096.
	Ports []PortMapping `json:"ports,omitempty"`
	// Bandwidth of the endpoint; with DriverMacvlan there is no limit.
	Bandwidth Bandwidth `json:"bandwidth,omitzero"`
}

// AttachRequest tells the agent that the endpoint's links exist.
type AttachRequest struct {
	// HostIfIndex is the interface index of the host's side of the veth pair; 0 with
	// DriverMacvlan, which has none.
	HostIfIndex int `json:"hostIfIndex,omitempty"`
	// Addresses of an endpoint that was prepared with AddressesLater, once they are known.
	Addresses []Address `json:"addresses,omitempty"`
}

// EndpointState is how far an endpoint has come.
type EndpointState string

const (
	// Pending endpoints hold leases; their links may not exist yet.
	Pending EndpointState = "pending"
	// Ready endpoints are attached: the datapath serves them.
	Ready EndpointState = "ready"
	// Detached endpoints were ready until their device went. They hold their
	// leases until DEL, GC or the agent's next start.
	Detached EndpointState = "detached"
)

// Endpoint is one interface of one container as the agent knows it.
type Endpoint struct {
	Attachment
	// ID is the node-local number of the endpoint, 1 to 65535.
	ID uint16 `json:"id"`
	// Network is the name of the CNI network.
	Network string `json:"network"`
	Driver  string `json:"driver"`
	// Bridge is the Linux bridge that HostIfName is a port of, with DriverBridge, VLAN that
	// of the port, where 0 is what Bridge has for new ones, and VLANTrunk those that it has by tags.
	Bridge    string   `json:"bridge,omitempty"`
	VLAN      int      `json:"vlan,omitempty"`
	VLANTrunk vlan.Set `json:"vlanTrunk,omitempty"`
	// Parent, InContainer, Mode and HostAccess are those of DriverMacvlan. Parent is the name that the
	// device has now; one in the container has that which it had at ADD.
	Parent      string `json:"parent,omitempty"`
	InContainer bool   `json:"inContainer,omitempty"`
	Mode        string `json:"mode,omitempty"`
	HostAccess  bool   `json:"hostAccess,omitempty"`
	// Programs are those that the plugin attaches in the container, with InContainer. The state file does
	// not know them.
	Programs []Program `json:"programs,omitempty"`
	// NetNS is the path of the container's network namespace at ADD.
	NetNS string        `json:"netns"`
	State EndpointState `json:"state"`
	// HostIfName is the host's side of the veth pair; empty with DriverMacvlan.
	HostIfName  string `json:"hostIfName"`
	HostIfIndex int    `json:"hostIfIndex,omitempty"`
	// MAC is the container's, HostMAC that of the host's side, or of Parent.
	MAC        string            `json:"mac"`
	HostMAC    string            `json:"hostMAC"`
	MTU        int               `json:"mtu"`
	Masquerade bool              `json:"masquerade"`
	Addresses  []Address         `json:"addresses"`
	Labels     map[string]string `json:"labels,omitempty"`
	NamedPorts []NamedPort       `json:"namedPorts,omitempty"`
	Ports      []PortMapping     `json:"ports,omitempty"`
	// Bandwidth as it is in force: completed, and within its bounds.
	Bandwidth Bandwidth `json:"bandwidth,omitzero"`
	Created   time.Time `json:"created"`
}

// Program is one that is loaded, and where it is to be attached.
type Program struct {
	// Name as bpftool shows it, and ID, the kernel's number of it, which is good as long as the agent runs.
	Name string `json:"name"`
	ID   uint32 `json:"id"`
	// OnParent says that it is for the interface's Parent, Egress that it is for what leaves by the device.
	OnParent bool `json:"onParent,omitempty"`
	Egress   bool `json:"egress,omitempty"`
}

// Gateways are those of an endpoint, each once and with the length of its subnet.
func (e *Endpoint) Gateways() []netip.Prefix {
	var all []netip.Prefix
	for _, address := range e.Addresses {
		gateway := netip.PrefixFrom(address.Gateway, address.Address.Bits())
		if address.Gateway.IsValid() && !slices.Contains(all, gateway) {
			all = append(all, gateway)
		}
	}
	return all
}

// GCRequest frees everything of a network that is not in Valid.
type GCRequest struct {
	Network string `json:"network"`
	// Valid are the attachments to keep. Nil means that the runtime gave no
	// list, which frees nothing but what is provably gone.
	Valid []Attachment `json:"valid"`
}

// GCResult says what a GC freed.
type GCResult struct {
	Freed []Attachment `json:"freed"`
}
