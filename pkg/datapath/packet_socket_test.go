// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"encoding/binary"
	"net"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
)

// packetSocket opens a socket for frames in a namespace, until the test ends, and returns the index of a
// device there besides.
func packetSocket(t *testing.T, ns *nstest.NS, device string) (fd, ifindex int) {
	t.Helper()
	link, err := ns.Handle.LinkByName(device)
	must(t, err)
	ns.Do(t, func() { fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) })
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd, link.Attrs().Index
}

// linkAddress is a device and an EtherType, for packetSocket.
func linkAddress(ifindex int, protocol uint16) *unix.SockaddrLinklayer {
	network := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))
	return &unix.SockaddrLinklayer{Ifindex: ifindex, Protocol: network}
}

// Offsets and flags of linux/if_packet.h.
const (
	tpacketHeader = 32
	tpacketSend   = 1 // TP_STATUS_SEND_REQUEST
	ringSize      = 1 << 14
)

// sendByRing sends a frame, behind a header of linux/virtio_net.h where that is not nil. What comes by a
// ring has but its Ethernet header in the linear part.
func sendByRing(t *testing.T, ns *nstest.NS, device string, protocol uint16, header, frame []byte) {
	t.Helper()
	fd, ifindex := packetSocket(t, ns, device)
	must(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2))
	if header != nil {
		must(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1))
	}
	must(t, unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_TX_RING,
		&unix.TpacketReq{Block_size: ringSize, Block_nr: 1, Frame_size: ringSize, Frame_nr: 1}))
	must(t, unix.Bind(fd, linkAddress(ifindex, protocol)))
	ring, err := unix.Mmap(fd, 0, ringSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer func() { _ = unix.Munmap(ring) }()
	data := slices.Concat(header, frame)
	copy(ring[tpacketHeader:], data)
	binary.NativeEndian.PutUint32(ring[4:], uint32(len(data)))
	binary.NativeEndian.PutUint32(ring, tpacketSend)
	if _, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), 0, 0, 0, 0, 0); errno != 0 && errno != unix.ENOBUFS {
		t.Fatal(errno)
	}
}

// rawListener hears all frames of a device.
type rawListener int

// listenRaw hears those of eth0 in a namespace.
func listenRaw(t *testing.T, ns *nstest.NS) rawListener {
	t.Helper()
	return listenAt(t, ns, "eth0")
}

func listenAt(t *testing.T, ns *nstest.NS, device string) rawListener {
	t.Helper()
	fd, ifindex := packetSocket(t, ns, device)
	timeout := unix.NsecToTimeval(patience.Nanoseconds())
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
	must(t, unix.Bind(fd, linkAddress(ifindex, unix.ETH_P_ALL)))
	return rawListener(fd)
}

// hear waits for the next IP packet of a family that is for a MAC.
func (l rawListener) hear(t *testing.T, of net.HardwareAddr, f family) []byte {
	t.Helper()
	network := []byte{0x08, 0x00}
	if f.v6() {
		network = []byte{0x86, 0xdd}
	}
	for buffer := make([]byte, 2048); ; {
		n, err := unix.Read(int(l), buffer)
		if err != nil {
			t.Fatalf("hear a frame: %v", err)
		}
		frame := buffer[:n]
		if n < 14+40+1 || !bytes.Equal(frame[:6], of) || !bytes.Equal(frame[12:14], network) {
			continue
		}
		if kind := frame[14+40]; f.v6() && frame[14+6] == unix.IPPROTO_ICMPV6 && kind >= 133 && kind <= 137 {
			continue // neighbour discovery
		}
		return slices.Clone(frame)
	}
}
