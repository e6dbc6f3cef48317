// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// The types of keys and values, as the programs have them.
type (
	// FlowKey is one direction of one connection.
	FlowKey = kernelFlowKey
	// Flow is what was decided for a FlowKey.
	Flow = kernelFlow
	// Translation is a source port that was taken.
	Translation = kernelTranslation
	// Endpoint is who has an address.
	Endpoint = kernelEndpoint
	// Interface is what a program needs to know of a device.
	Interface = kernelInterface
	// Trunk are the VLANs whose tags an endpoint may send.
	Trunk = kernelTrunk
	// ChildKey is what rides on a parent.
	ChildKey = kernelChildKey
	// Child is a macvlan child, or what those of a ChildKey have together.
	Child = kernelChild
	// PrefixKey is a destination prefix.
	PrefixKey = kernelPrefixKey
	// PortKey is a port of the host.
	PortKey = kernelPortKey
	// MappedPort is where a PortKey leads.
	MappedPort = kernelPort
	// SocketKey is a socket of the host and where it really sends.
	SocketKey = kernelSocketKey
	// SocketPeer is what a process of the host dialled.
	SocketPeer = kernelSocketPeer
	// SubjectKey is an endpoint in a generation of policy.
	SubjectKey = kernelSubjectKey
	// Subject is what policy says of an endpoint.
	Subject = kernelSubject
	// IdentityNode is one of the tree that finds the identity of an address.
	IdentityNode = kernelIdentityNode
	// PolicyKey is a set of rules and some identities in a generation of policy.
	PolicyKey = kernelPolicyKey
	// PolicyRange are ports that a rule lets through.
	PolicyRange = kernelPolicyRange
	// Policy is what a set lets through for these identities, or a part of it.
	Policy = kernelPolicy
	// LimitKey is what an endpoint sends, or what it gets.
	LimitKey = kernelLimitKey
	// Limit is how much that may be, and how much it was.
	Limit = kernelLimit
	// UnshapedKey is a prefix that the limits of an endpoint do not count for.
	UnshapedKey = kernelUnshapedKey
	// Hit is what a rule let through before the generation that counts.
	Hit = kernelHit
	// FragmentKey is a fragmented packet.
	FragmentKey = kernelFragmentKey
	// Fragment holds the ports of a fragmented packet.
	Fragment = kernelFragment
	// Count is a sum of packets and bytes.
	Count = kernelCount
	// Allocation is a slot of the clock on which translations are reclaimed.
	Allocation = kernelAllocation
	// Address is an address of either family, IPv4 as v4-mapped IPv6.
	Address = kernelAddress
	// Counter is what became of a packet.
	Counter = kernelCounter
	// Journey is the program that counted.
	Journey = kernelJourney
)

// Values of the enums that the agent writes or reads.
const (
	ActionNone    = uint8(kernelActionACTION_NONE)
	ActionPass    = uint8(kernelActionACTION_PASS)
	ActionDeliver = uint8(kernelActionACTION_DELIVER)
	ActionForward = uint8(kernelActionACTION_FORWARD)
	ActionReturn  = uint8(kernelActionACTION_RETURN)
	ActionDeny    = uint8(kernelActionACTION_DENY)
	ActionBridge  = uint8(kernelActionACTION_BRIDGE)
	ActionLink    = uint8(kernelActionACTION_LINK)

	FlowTranslateSource      = uint8(kernelFlowFlagFLOW_TRANSLATE_SOURCE)
	FlowTranslateDestination = uint8(kernelFlowFlagFLOW_TRANSLATE_DESTINATION)
	FlowReply                = uint8(kernelFlowFlagFLOW_REPLY)
	FlowStack                = uint8(kernelFlowFlagFLOW_STACK)

	TranslationOpening     = uint8(kernelTranslationStateTRANSLATION_OPENING)
	TranslationEstablished = uint8(kernelTranslationStateTRANSLATION_ESTABLISHED)
	TranslationClosing     = uint8(kernelTranslationStateTRANSLATION_CLOSING)
	TranslationClosed      = uint8(kernelTranslationStateTRANSLATION_CLOSED)

	EndpointMasquerade = uint8(kernelEndpointFlagENDPOINT_MASQUERADE)
	EndpointPorts      = uint8(kernelEndpointFlagENDPOINT_PORTS)
	EndpointLimited    = uint8(kernelEndpointFlagENDPOINT_LIMITED)

	LimitIngress = uint32(kernelLimitDirectionLIMIT_INGRESS)
	LimitEgress  = uint32(kernelLimitDirectionLIMIT_EGRESS)

	ChildBridged      = uint8(kernelChildFlagCHILD_BRIDGED)
	ChildReflected    = uint8(kernelChildFlagCHILD_REFLECTED)
	ChildHost         = uint8(kernelChildFlagCHILD_HOST)
	ChildPassthru     = uint8(kernelChildFlagCHILD_PASSTHRU)
	ChildGetsLimited  = uint8(kernelChildFlagCHILD_GETS_LIMITED)
	ChildSendsLimited = uint8(kernelChildFlagCHILD_SENDS_LIMITED)

	ChildIngressHook = uint32(kernelChildHookCHILD_INGRESS)
	ChildEgressHook  = uint32(kernelChildHookCHILD_EGRESS)

	PortLoopbackOnly = uint8(kernelPortFlagPORT_LOOPBACK_ONLY)

	KeyTracked = uint8(kernelKeyKindKEY_TRACKED)

	SubjectNoOthers  = uint32(kernelSubjectFlagSUBJECT_NO_OTHERS)
	SubjectNoOwn     = uint32(kernelSubjectFlagSUBJECT_NO_OWN)
	SubjectByAddress = uint32(kernelSubjectFlagSUBJECT_BY_ADDRESS)

	IdentityNodeFollows = uint32(kernelIdentityNextIDENTITY_NODE)
	IdentityNextWord    = uint32(kernelIdentityNextIDENTITY_WORD)

	RoleEndpoint = uint8(kernelInterfaceRoleINTERFACE_ENDPOINT)
	RoleUplink   = uint8(kernelInterfaceRoleINTERFACE_UPLINK)

	InterfaceIsolated = uint8(kernelInterfaceFlagINTERFACE_ISOLATED)
	InterfaceLayer2   = uint8(kernelInterfaceFlagINTERFACE_LAYER2)

	FromContainer = kernelJourneyFROM_CONTAINER
	ToContainer   = kernelJourneyTO_CONTAINER
	FromUplink    = kernelJourneyFROM_UPLINK
	ToUplink      = kernelJourneyTO_UPLINK
	JourneyMax    = kernelJourneyJOURNEY_MAX

	// FirstDrop is the first counter whose packets went no further.
	FirstDrop  = kernelCounterDROP_INVALID
	CounterMax = kernelCounterCOUNTER_MAX
)

// NewAddress is the form of an address in keys and values; the zero Addr gives zeros.
func NewAddress(a netip.Addr) Address {
	if !a.IsValid() {
		return Address{}
	}
	return Address{Bytes: a.As16()}
}

// Addr is an address as Go knows it; zeros give the zero Addr.
func Addr(a Address) netip.Addr {
	if a == (Address{}) {
		return netip.Addr{}
	}
	return netip.AddrFrom16(a.Bytes).Unmap()
}

// Port converts a port between network byte order in a struct and a number.
func Port(p uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], p)
	return binary.BigEndian.Uint16(b[:])
}

// NewMAC is the form of a MAC in values. Its length must be six bytes.
func NewMAC(m net.HardwareAddr) kernelMac {
	return kernelMac{Bytes: [6]byte(m)}
}

// NewPrefixKey is the key of a prefix of either family.
func NewPrefixKey(p netip.Prefix) PrefixKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return PrefixKey{Length: uint32(bits), Address: p.Masked().Addr().As16()}
}

// allIPv4 is where addresses of IPv4 lie among those of IPv6.
var allIPv4 = netip.MustParsePrefix("::ffff:0:0/96")

// CoversIPv4 tells whether a prefix of IPv6 would match all addresses of IPv4 too, which a
// trie has as v4-mapped: then it needs an entry for 0.0.0.0/0 that says otherwise.
func CoversIPv4(p netip.Prefix) bool {
	return p.Addr().Is6() && p.Bits() <= allIPv4.Bits() && p.Contains(allIPv4.Addr())
}

// ifindexBits is the length of the interface index in an UnshapedKey.
const ifindexBits = 32

// NewUnshapedKey is the key of a prefix of either family for the endpoint at a device.
func NewUnshapedKey(ifindex int, p netip.Prefix) UnshapedKey {
	key := NewPrefixKey(p)
	return UnshapedKey{Length: ifindexBits + key.Length, Ifindex: uint32(ifindex), Address: key.Address}
}

// UnshapedValue is the value of a key that is meant: one that tells it from all shorter ones.
func UnshapedValue(k UnshapedKey) uint8 { return uint8(k.Length-ifindexBits) + 1 }

// UnshapedPrefix is the prefix of a key.
func UnshapedPrefix(k UnshapedKey) netip.Prefix {
	return Prefix(PrefixKey{Length: k.Length - ifindexBits, Address: k.Address})
}

// Prefix is the prefix of a key.
func Prefix(k PrefixKey) netip.Prefix {
	a := netip.AddrFrom16(k.Address)
	if a.Is4In6() && k.Length >= 96 {
		return netip.PrefixFrom(a.Unmap(), int(k.Length)-96)
	}
	return netip.PrefixFrom(a, int(k.Length))
}
