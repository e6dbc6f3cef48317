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
