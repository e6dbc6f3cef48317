// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net"
	"net/netip"
	"time"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// Datapath is the part of *datapath.Datapath that the service uses, by concern.
// One value usually fills all eight.
type Datapath struct {
	Endpoints EndpointPlane
	Node      NodePlane
	Host      HostPlane
	Repairs   RepairPlane
	Flows     FlowPlane
	Stats     StatPlane
	Policy    PolicyPlane
	Walk      FlowWalk
}

// EndpointPlane serves single endpoints.
type EndpointPlane interface {
	AttachEndpoint(datapath.Endpoint) error
	DetachEndpoint(datapath.Endpoint) error
	CheckEndpoint(datapath.Endpoint) error
	// HooksInContainer are the programs of a child whose parent is in the container.
	HooksInContainer() ([]datapath.HookInContainer, error)
	// SetLimits changes the limits of one that is attached.
	SetLimits(before, after datapath.Endpoint) error
}

// NodePlane makes the datapath equal to what is desired for the node.
type NodePlane interface {
	PruneEndpoints([]datapath.Endpoint) error
	AttachEndpoints([]datapath.Endpoint) error
	ReconcileUplinks([]datapath.Uplink) error
	ReconcileExcludes([]netip.Prefix) error
}

// HostPlane knows the host that mapped ports are reached at.
type HostPlane interface {
	ReconcileHostAddresses([]netip.Addr) error
}

// RepairPlane puts back what others took from the datapath.
type RepairPlane interface {
	RepairPins() error
	RepairPacer() error
	// RepairEndpoint returns what was missing or wrong, in words.
	RepairEndpoint(datapath.Endpoint) (found []string, err error)
}

// FlowPlane works on the decisions that the datapath has stored.
type FlowPlane interface {
	Flows(limit int) ([]datapath.Flow, error)
	Invalidate() error
	Purge(ids []uint16) error
}

// StatPlane shows the datapath.
type StatPlane interface {
	Counters() ([]datapath.Counter, error)
	Maps() ([]datapath.MapUsage, error)
	AttachKind() string
	BandwidthKind() string
}

// PolicyPlane has the programs ask a policy.
type PolicyPlane interface {
	ReconcilePolicy(datapath.Policy) error
	RepairPolicy() error
	PolicyHits() (datapath.PolicyHits, error)
	PolicyDenied() (datapath.PolicyHits, error)
}

// FlowWalk shows all decisions that the datapath has stored, one by one.
type FlowWalk interface {
	EachFlow(func(datapath.Flow) bool) error
}

// HostLink is a device of the node: the host's side of a veth pair, the bridge that it is a
// port of, or the parent of macvlan devices.
type HostLink struct {
	Name  string
	Index int
	MAC   net.HardwareAddr
	// Master is the index of the device that the link is a port of; 0 for none.
	Master int
	// Bridge says that the link is a Linux bridge.
	Bridge bool
	// Ethernet says that the link carries Ethernet, MTU (in bytes) how much.
	Ethernet bool
	MTU      int
	// Macvlan says that the link is a macvlan device itself.
	Macvlan bool
	// VLAN is the number of a VLAN, Lower the index of the device that it is on; 0 for none.
	VLAN, Lower int
}

// Links are the network devices of the node.
type Links interface {
	// Link returns the device of that name; ErrNoLink when there is none.
	Link(name string) (HostLink, error)
	// HostLinks returns the names of all devices that are named as an endpoint's
	// host side is.
	HostLinks() ([]string, error)
	// RemoveLink removes a device; one that is not there is no error.
	RemoveLink(name string) error
}

// Parents are the devices of the node that containers' macvlan devices are children of.
type Parents interface {
	// LinkAt returns the device of that index; ErrNoLink when there is none.
	LinkAt(index int) (HostLink, error)
	// Users says what else of the node uses a device: addresses, a device that it is a port
	// of, devices on it. Children in containers do not count.
	Users(index int) ([]string, error)
	// MakeVLAN makes a VLAN, up, and returns its index.
	MakeVLAN(wiring.VLAN) (int, error)
	// RemoveVLAN removes the VLAN of that index; one that is not there is no error.
	RemoveVLAN(index int) error
}

// Ended are the attachments that plugins have ended while no agent answered, as
// api.Ended has them.
type Ended interface {
	// Ended returns when each was.
	Ended() (map[api.Attachment]time.Time, error)
	// Forget forgets those that have not been ended again since.
	Forget(map[api.Attachment]time.Time) error
}

// Children are the macvlan devices in the containers, as pkg/wiring finds them.
type Children interface {
	// Child returns the device of that name in the network namespace at path. The error is
	// ErrNoLink when there is no such namespace, or no such device in it; in the second case
	// the result tells of the namespace.
	Child(path, name string) (wiring.ChildLink, error)
	// ChildAt returns the device of that index in the network namespace of that number, by
	// wiring.ChildLink; ErrNoLink when there is none.
	ChildAt(number, index int) (wiring.ChildLink, error)
	// RemoveChild removes what one of the others has returned; that it is gone is no error.
	RemoveChild(wiring.ChildLink) error
}

// Bridges are the Linux bridges that endpoints are ports of, as pkg/wiring repairs them.
type Bridges interface {
	RepairBridge(b wiring.Bridge, gateways []netip.Prefix) (mended []string, err error)
	RepairPort(links wiring.Links, b wiring.Bridged) (mended []string, err error)
}

// Routes are the unreachable routes that keep packets for addresses that no
// endpoint has from leaving by the default route.
type Routes interface {
	AddUnreachable(netip.Prefix) error
	RemoveUnreachable(netip.Prefix) error
	// ReconcileUnreachable makes them exactly these.
	ReconcileUnreachable([]netip.Prefix) error
}
