// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// NDOption is an option of a neighbour discovery message (RFC 4861 section
// 4.6).
type NDOption struct{ option layers.ICMPv6Option }

// SourceLinkAddr is the sender's MAC, in solicitations and router advertisements.
func SourceLinkAddr(mac net.HardwareAddr) NDOption {
	return NDOption{layers.ICMPv6Option{Type: layers.ICMPv6OptSourceAddress, Data: mac}}
}

// TargetLinkAddr is the target's MAC, in advertisements and redirects.
func TargetLinkAddr(mac net.HardwareAddr) NDOption {
	return NDOption{layers.ICMPv6Option{Type: layers.ICMPv6OptTargetAddress, Data: mac}}
}

// LinkMTU is the MTU of the link in bytes, in router advertisements.
func LinkMTU(mtu uint32) NDOption {
	return NDOption{layers.ICMPv6Option{Type: layers.ICMPv6OptMTU, Data: binary.BigEndian.AppendUint32([]byte{0, 0}, mtu)}}
}

// OnLinkPrefix is a prefix of the link, for addresses too, valid for an hour, in
// router advertisements.
func OnLinkPrefix(prefix netip.Prefix) NDOption {
	const onLink, autonomous, seconds = 0x80, 0x40, 3600
	data := []byte{byte(prefix.Bits()), onLink | autonomous}
	data = binary.BigEndian.AppendUint32(data, seconds) // valid
	data = binary.BigEndian.AppendUint32(data, seconds) // preferred
	data = append(data, 0, 0, 0, 0)                     // reserved
	address := prefix.Addr().As16()
	return NDOption{layers.ICMPv6Option{Type: layers.ICMPv6OptPrefixInfo, Data: append(data, address[:]...)}}
}

// RedirectedPacket is the IP packet of a frame that caused a redirect, cut to a
// multiple of 8 bytes.
func RedirectedPacket(frame []byte) NDOption {
	b, err := network(frame)
	if err != nil {
		panic("packet: quote redirected packet: " + err.Error())
	}
	// Option lengths count 8 bytes, header included, in one byte.
	b = b[:min(len(b)&^7, 254*8)]
	return NDOption{layers.ICMPv6Option{Type: layers.ICMPv6OptRedirectedHeader, Data: append(make([]byte, 6), b...)}}
}

// nd is a message of ICMPv6 alone.
func nd(name string, typ, hops uint8, rest func() gopacket.SerializableLayer) Layer {
	return icmp{name: name, hops: hops, v6: icmpForm{known: true, typ: typ, rest: rest}}
}

func ndOptions(options []NDOption) layers.ICMPv6Options {
	var all layers.ICMPv6Options
	for _, o := range slices.Backward(options) { // gopacket writes the last one first
		all = append(all, o.option)
	}
	return all
}

// The hop limit without which a neighbour discovery message is ignored (RFC 4861 section
// 6.1), and the one of MLD (RFC 3810 section 5).
const (
	ndHops  = 255
	mldHops = 1
)

// NeighborSolicit asks who has an address.
func NeighborSolicit(target netip.Addr, options ...NDOption) Layer {
	return nd("NeighborSolicit", layers.ICMPv6TypeNeighborSolicitation, ndHops, func() gopacket.SerializableLayer {
		return &layers.ICMPv6NeighborSolicitation{TargetAddress: target.AsSlice(), Options: ndOptions(options)}
	})
}

// NAFlags are the flags of a neighbour advertisement; they add up.
type NAFlags uint8

// The flags of RFC 4861 section 4.4.
const (
	NARouter    NAFlags = 0x80
	NASolicited NAFlags = 0x40
	NAOverride  NAFlags = 0x20
)

// NeighborAdvert says that the sender has an address.
func NeighborAdvert(target netip.Addr, flags NAFlags, options ...NDOption) Layer {
	return nd("NeighborAdvert", layers.ICMPv6TypeNeighborAdvertisement, ndHops, func() gopacket.SerializableLayer {
		return &layers.ICMPv6NeighborAdvertisement{Flags: uint8(flags), TargetAddress: target.AsSlice(), Options: ndOptions(options)}
	})
}

// RouterSolicit asks for routers.
func RouterSolicit(options ...NDOption) Layer {
	return nd("RouterSolicit", layers.ICMPv6TypeRouterSolicitation, ndHops, func() gopacket.SerializableLayer {
		return &layers.ICMPv6RouterSolicitation{Options: ndOptions(options)}
	})
}

// RouterAdvert announces the sender as default router for a lifetime in
// seconds.
func RouterAdvert(lifetime uint16, options ...NDOption) Layer {
	return nd("RouterAdvert", layers.ICMPv6TypeRouterAdvertisement, ndHops, func() gopacket.SerializableLayer {
		return &layers.ICMPv6RouterAdvertisement{HopLimit: 64, RouterLifetime: lifetime, Options: ndOptions(options)}
	})
}

// NDRedirect tells to send packets for a destination to a target on the link.
func NDRedirect(target, destination netip.Addr, options ...NDOption) Layer {
	return nd("NDRedirect", layers.ICMPv6TypeRedirect, ndHops, func() gopacket.SerializableLayer {
		return &layers.ICMPv6Redirect{
			TargetAddress: target.AsSlice(), DestinationAddress: destination.AsSlice(), Options: ndOptions(options),
		}
	})
}

// MLDQuery asks for listeners of a group, or of all groups for "::". MLD
// messages follow RouterAlert.
func MLDQuery(group netip.Addr) Layer {
	return mldv1("MLDQuery", layers.ICMPv6TypeMLDv1MulticastListenerQueryMessage, group)
}

// MLDReport says that the sender listens to a group (MLDv1).
func MLDReport(group netip.Addr) Layer {
	return mldv1("MLDReport", layers.ICMPv6TypeMLDv1MulticastListenerReportMessage, group)
}

// MLDDone says that the sender listens to a group no more (MLDv1).
func MLDDone(group netip.Addr) Layer {
	return mldv1("MLDDone", layers.ICMPv6TypeMLDv1MulticastListenerDoneMessage, group)
}

func mldv1(name string, typ uint8, group netip.Addr) Layer {
	return nd(name, typ, mldHops, func() gopacket.SerializableLayer {
		return &layers.MLDv1MulticastListenerReportMessage{MLDv1Message: layers.MLDv1Message{MulticastAddress: group.AsSlice()}}
	})
}

// MLDv2Report says that the sender now listens to groups, whatever the source.
func MLDv2Report(groups ...netip.Addr) Layer {
	return nd("MLDv2Report", layers.ICMPv6TypeMLDv2MulticastListenerReportMessageV2, mldHops, func() gopacket.SerializableLayer {
		report := &layers.MLDv2MulticastListenerReportMessage{}
		for _, g := range groups {
			report.MulticastAddressRecords = append(report.MulticastAddressRecords, layers.MLDv2MulticastAddressRecord{
				RecordType: layers.MLDv2MulticastAddressRecordTypeChangeToExcludeMode, MulticastAddress: g.AsSlice(),
			})
		}
		return report
	})
}
