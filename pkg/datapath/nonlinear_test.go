// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
)

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
	ns.Do(t, func() {
		link, err := ns.Handle.LinkByName(device)
		must(t, err)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		defer func() { _ = unix.Close(fd) }()
		must(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2))
		if header != nil {
			must(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1))
		}
		must(t, unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_TX_RING,
			&unix.TpacketReq{Block_size: ringSize, Block_nr: 1, Frame_size: ringSize, Frame_nr: 1}))
		network := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))
		must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Protocol: network}))
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
	})
}

// TestNonLinear has programs meet packets of which they can read nothing but the Ethernet header, unless
// they ask: they do with them what they do with others, to the byte.
func TestNonLinear(t *testing.T) {
	nstest.Halve(t, 0)
	s := newSite(t, "")
	d := s.open(t)
	t.Cleanup(func() { _ = d.Close() })
	a, b := s.ends[0], s.ends[1]
	router := s.device(t, s.world, "eth0").Attrs().HardwareAddr
	inB, inWorld := listenRaw(t, s.b), listenRaw(t, s.world)
	bothFamilies(t, func(t *testing.T, f family) {
		for name, layers := range map[string]func(port uint16) []packet.Layer{
			"UDP": func(port uint16) []packet.Layer {
				return []packet.Layer{packet.UDP(port, server), packet.Payload(700)}
			},
			"TCP": func(port uint16) []packet.Layer { return tcp(port, server, packet.SYN, packet.MSS(1460)) },
			"ICMP": func(port uint16) []packet.Layer {
				return []packet.Layer{packet.Echo(port, 1), packet.Payload(700)}
			},
		} {
			t.Run(name, func(t *testing.T) {
				send := func(to netip.Addr) {
					frame := sent(a, ip(f.a, to, 64, layers(inside)...)...)
					protocol := uint16(unix.ETH_P_IP)
					if f.v6() {
						protocol = unix.ETH_P_IPV6
					}
					sendByRing(t, s.a, "eth0", protocol, nil, frame)
				}
				compare := func(way string, want, got []byte) {
					if diff := packet.Diff(want, got); diff != "" {
						t.Errorf("%s:\n%s", way, diff)
					}
				}
				send(f.b)
				compare("to a container", packet.New(append([]packet.Layer{packet.Eth(b.HostMAC, b.MAC)}, ip(f.a, f.b, 63, layers(inside)...)...)...), inB.hear(t, b.MAC, f))
				send(f.router)
				got := inWorld.hear(t, router, f)
				compare("to the world", packet.New(append([]packet.Layer{packet.Eth(s.uplink.MAC, router)}, ip(f.host, f.router, 63, layers(f.sourceOf(got, name))...)...)...), got)
			})
		}
	})
}

// sourceOf is the source port, or the identifier of an echo, of a frame that was masqueraded.
func (f family) sourceOf(frame []byte, transport string) uint16 {
	at := 14 + 20
	if f.v6() {
		at = 14 + 40
	}
	if transport == "ICMP" {
		at += 4
	}
	return binary.BigEndian.Uint16(frame[at:])
}

// rawListener hears all frames of eth0 in a namespace.
type rawListener int

func listenRaw(t *testing.T, ns *nstest.NS) (l rawListener) {
	t.Helper()
	ns.Do(t, func() {
		link, err := ns.Handle.LinkByName("eth0")
		must(t, err)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		t.Cleanup(func() { _ = unix.Close(fd) })
		timeout := unix.NsecToTimeval(patience.Nanoseconds())
		must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Protocol: all}))
		l = rawListener(fd)
	})
	return l
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
