// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/netip"
	"time"
)

// Health is the answer to "would an ADD succeed".
type Health struct {
	OK bool `json:"ok"`
	// Reasons say why not, one sentence each.
	Reasons []string `json:"reasons,omitempty"`
}

// Status is the agent at a glance.
type Status struct {
	Health
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Kernel  string    `json:"kernel"`
	// Attach is how uplinks are attached: "tcx" or "clsact".
	Attach string `json:"attach"`
	// Bandwidth is how limits of bandwidth are kept: "fq" or "token-bucket".
	Bandwidth string `json:"bandwidth"`
	BPFRoot   string `json:"bpfRoot"`
	Endpoints int    `json:"endpoints"`
	// Uplinks are followed by devices that are none although the configuration
	// names them, or a default route uses them.
	Uplinks  []Uplink  `json:"uplinks"`
	Pools    []Pool    `json:"pools"`
	Maps     []Map     `json:"maps"`
	Counters []Counter `json:"counters"`
}

// UplinkUsed is the state of an uplink that is as it should be.
const UplinkUsed = "used"

// Uplink is a device of the host through which the world is reached, or that was
// to be one.
type Uplink struct {
	Name string `json:"name"`
	// State is UplinkUsed, or what is wrong: "no address" or "down" of an uplink,
	// "absent", "not ethernet" or "endpoint" of a device that is none.
	State string `json:"state"`
	// IfIndex and MTU (in bytes) are absent where the device is no uplink.
	IfIndex int `json:"ifIndex,omitempty"`
	MTU     int `json:"mtu,omitempty"`
	// IPv4 and IPv6 are the addresses that masqueraded packets carry.
	IPv4 netip.Addr `json:"ipv4,omitzero"`
	IPv6 netip.Addr `json:"ipv6,omitzero"`
}

// Pool is how full a network's range set is.
type Pool struct {
	Network string `json:"network"`
	// Ranges of the set, as prefix or first-last.
	Ranges []string `json:"ranges"`
	// Leased and Capacity count addresses; Capacity saturates at 2^63-1.
	Leased   uint64 `json:"leased"`
	Capacity uint64 `json:"capacity"`
}

// Map is the fill of one BPF map.
type Map struct {
	Name string `json:"name"`
	// Entries is absent for an array: all its entries always exist.
	Entries  *uint64 `json:"entries,omitempty"`
	Capacity uint64  `json:"capacity"`
	// Memory is what the kernel has locked for the map, in bytes.
	Memory uint64 `json:"memory"`
}

// Counter is one of the datapath's counters.
type Counter struct {
	// Journey is the program that counted: from_container, to_container,
	// from_uplink, to_uplink.
	Journey string `json:"journey"`
	// Reason is what was counted, such as "forwarded" or "source_address".
	Reason string `json:"reason"`
	// Dropped says that the packets went no further.
	Dropped bool   `json:"dropped"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Flow is one direction of one connection and what was decided for it.
type Flow struct {
	Protocol string `json:"protocol"`
	// Source and Destination as the packet carries them when it meets the
	// datapath. Ports are 0 for protocols without; an ICMP echo carries its
	// identifier in both.
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	// IfIndex of the endpoint's host side, 0 for what comes from uplinks.
	IfIndex int `json:"ifIndex"`
	// Action is what becomes of the packet: deliver, forward, return, pass.
	Action string `json:"action"`
	// Translated is the source or destination that replaces the packet's;
	// absent where nothing is translated.
	Translated *Translation `json:"translated,omitempty"`
	// OutIfIndex is the device or host side the packet is redirected to.
	OutIfIndex int `json:"outIfIndex,omitempty"`
	// NextHop is the neighbour that forwarded packets are sent to.
	NextHop netip.Addr `json:"nextHop,omitzero"`
	Packets uint64     `json:"packets"`
	Bytes   uint64     `json:"bytes"`
	// Idle is the time since the decision was taken last, in seconds: below 10 for
	// a flow with packets.
	Idle uint32 `json:"idleSeconds"`
	// Current is false for a decision that the next packet will take anew.
	Current bool `json:"current"`
}

// Translation is one end of a flow as it leaves the datapath.
type Translation struct {
	// End is "source" or "destination".
	End string         `json:"end"`
	To  netip.AddrPort `json:"to"`
}
