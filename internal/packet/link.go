// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// localExperimental announces a payload right after a link header (IEEE 802
// Local Experimental EtherType 1).
const localExperimental layers.EthernetType = 0x88b5

// MAC parses an Ethernet address and panics when it is none.
func MAC(s string) net.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 {
		panic(fmt.Sprintf("packet: %q is not an Ethernet address", s))
	}
	return mac
}

// Eth is the Ethernet header. The EtherType is that of the next layer; before
// a payload it is 0x88b5, reserved for local experiments.
func Eth(src, dst net.HardwareAddr) Layer { return ethernet{src: src, dst: dst} }

type ethernet struct {
	unannounced
	src, dst net.HardwareAddr
}

func (ethernet) String() string { return "Ethernet" }

func (l ethernet) serialize(e *encoder) error {
	number, err := e.nextEtherType()
	if err != nil {
		return err
	}
	header := layers.Ethernet{SrcMAC: l.src, DstMAC: l.dst, EthernetType: number}
	inside := e.Bytes()
	// gopacket pads to 60 bytes; programs under test get what a veth carries,
	// which has no minimum.
	e.SerializeBuffer = gopacket.NewSerializeBuffer()
	if err := header.SerializeTo(e, computed()); err != nil {
		return err
	}
	frame := append(e.Bytes()[:14:14], inside...)
	e.SerializeBuffer = gopacket.NewSerializeBuffer()
	b, err := e.PrependBytes(len(frame))
	copy(b, frame)
	return err
}

// VLAN is an 802.1Q tag with the given identifier, 0 to 4095.
func VLAN(id uint16) Layer { return vlan{id: id} }

type vlan struct {
	unannounced
	id uint16
}

func (vlan) String() string                         { return "VLAN" }
func (vlan) etherType() (layers.EthernetType, bool) { return layers.EthernetTypeDot1Q, true }

func (l vlan) serialize(e *encoder) error {
	number, err := e.nextEtherType()
	if err != nil {
		return err
	}
	return (&layers.Dot1Q{VLANIdentifier: l.id, Type: number}).SerializeTo(e, computed())
}

// Station is one side of an ARP exchange.
type Station struct {
	MAC net.HardwareAddr
	IP  netip.Addr
}

// ARPRequest asks on behalf of a station who has an IPv4 address.
func ARPRequest(from Station, who netip.Addr) Layer {
	return arp{op: layers.ARPRequest, from: from, to: Station{MAC: make(net.HardwareAddr, 6), IP: who}}
}

// ARPReply tells a station that another is at its MAC.
func ARPReply(from, to Station) Layer { return arp{op: layers.ARPReply, from: from, to: to} }

type arp struct {
	unannounced
	op       uint16
	from, to Station
}

func (arp) String() string                         { return "ARP" }
func (arp) etherType() (layers.EthernetType, bool) { return layers.EthernetTypeARP, true }

func (l arp) serialize(e *encoder) error {
	if !l.from.IP.Is4() || !l.to.IP.Is4() {
		return fmt.Errorf("want IPv4 addresses, have %s and %s", l.from.IP, l.to.IP)
	}
	return (&layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, Operation: l.op,
		SourceHwAddress: l.from.MAC, SourceProtAddress: l.from.IP.AsSlice(),
		DstHwAddress: l.to.MAC, DstProtAddress: l.to.IP.AsSlice(),
	}).SerializeTo(e, computed())
}
