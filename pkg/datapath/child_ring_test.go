// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
)

// Flags of linux/virtio_net.h.
const (
	virtioNeedsChecksum = 1
	virtioUDP           = 3 // VIRTIO_NET_HDR_GSO_UDP
)

// ringed has a process in a namespace send one datagram that the kernel is to fragment, by a
// ring: the fragments lose its socket.
func ringed(t *testing.T, ns *nstest.NS, device string, from Endpoint, to netip.Addr) {
	t.Helper()
	frame := packet.New(packet.Eth(from.MAC, routerMAC()), packet.IP(from.Addresses[0], to), packet.UDP(low, server), packet.Payload(2000))
	sendRinged(t, ns, device, unix.ETH_P_IP, frame, 14+20, 1472)
}

// ringedARP has it send ARP that reads as a datagram of IPv6, too. Length and first extension of
// that are what ARP has for the lengths of its addresses and its operation.
func ringedARP(t *testing.T, ns *nstest.NS, device string, as packet.Station, target netip.Addr) {
	t.Helper()
	const segment = 0x0604 - 8 - 8 // of 1,540 bytes with options and a fragment header
	frame := packet.New(packet.Eth(as.MAC, packet.MAC("ff:ff:ff:ff:ff:ff")), packet.ARPRequest(as, target))
	frame = append(frame[:14+28], make([]byte, 40-28)...)
	frame = append(frame, unix.IPPROTO_UDP, 0, 1, 4, 0, 0, 0, 0) // hop-by-hop options: padding
	udp := []byte{0, 1, 0, 1, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(udp[4:], 8+2000)
	frame = append(append(frame, udp...), make([]byte, 2000)...)
	sendRinged(t, ns, device, unix.ETH_P_IPV6, frame, 14+40+8, segment)
}

// sendRinged sends a frame of UDP, whose header begins at an offset, to be cut into segments.
func sendRinged(t *testing.T, ns *nstest.NS, device string, protocol uint16, frame []byte, transport, segment uint16) {
	t.Helper()
	header := make([]byte, 0, 10)
	header = append(header, virtioNeedsChecksum, virtioUDP)
	for _, field := range []uint16{transport + 8, segment, transport, 6} { // header, segment, checksum's start and offset
		header = binary.NativeEndian.AppendUint16(header, field)
	}
	sendByRing(t, ns, device, protocol, header, frame)
}
