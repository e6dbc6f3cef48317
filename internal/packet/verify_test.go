// SPDX-License-Identifier: Apache-2.0

package packet_test

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/packet"
)

func TestVerifyNamesTheFault(t *testing.T) {
	for _, test := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{"ip checksum", packet.New(eth, packet.IP(a4, b4, packet.BadChecksum), packet.UDP(1, 2)), "IPv4: checksum 0x33cf, want 0x66cf"},
		{"ip no checksum", packet.New(eth, packet.IP(a4, b4, packet.NoChecksum), packet.UDP(1, 2)), "IPv4: checksum 0x0000, want 0x66cf"},
		{"ip header length", packet.New(eth, packet.IP(a4, b4, packet.HeaderWords(4)), packet.UDP(1, 2)), "IPv4: header length 16 in a packet of 28, 28 bytes are there"},
		{"ip length too great", packet.New(eth, packet.IP(a4, b4, packet.Length(29)), packet.UDP(1, 2)), "IPv4: 8 bytes follow the header, its length says 9\nUDP: length 8 in 9 bytes"},
		{"ip length too small", packet.New(eth, packet.IP(a4, b4, packet.Length(60)), packet.UDP(1, 2, packet.Length(40)), packet.Payload(40)), "UDP: checksum 0x6dff, want 0xfa97\nTrailing: 8 bytes after the end of the packet"},
		{"ip6 length too great", packet.New(eth, packet.IP(a6, b6, packet.Length(9)), packet.Echo(1, 1)), "IPv6: 8 bytes follow the header, its length says 9"},
		{"tcp checksum", packet.New(eth, packet.IP(a4, b4), packet.TCP(1, 2, packet.BadChecksum)), "TCP: checksum 0xcede, want 0x9bde"},
		{"tcp no checksum", packet.New(eth, packet.IP(a6, b6), packet.TCP(1, 2, packet.NoChecksum)), "TCP: checksum 0x0000, want 0xb5dc"},
		{"tcp header length", packet.New(eth, packet.IP(a6, b6), packet.TCP(1, 2, packet.HeaderWords(6))), "TCP: header length 24 in 20 bytes"},
		{"udp checksum", packet.New(eth, packet.IP(a4, b4), packet.UDP(1, 2, packet.BadChecksum)), "UDP: checksum 0xbed8, want 0xebd8"},
		{"udp6 no checksum", packet.New(eth, packet.IP(a6, b6), packet.UDP(1, 2, packet.NoChecksum)), "UDP: no checksum"},
		{"udp length", packet.New(eth, packet.IP(a4, b4), packet.UDP(1, 2, packet.Length(9))), "UDP: length 9 in 8 bytes"},
		{"sctp checksum", packet.New(eth, packet.IP(a4, b4), packet.SCTP(1, 2, 3, packet.NoChecksum)), "SCTP: checksum 0x00000000, want 0x0928b319"},
		{"sctp chunk", packet.New(eth, packet.IP(a4, b4), packet.SCTP(1, 2, 3), packet.Data("\x00\x00\x00\x09....")), "SCTPChunk: length 9 in 8 bytes"},
		{"icmp checksum", packet.New(eth, packet.IP(a4, b4), packet.Echo(1, 1, packet.BadChecksum)), "ICMP: checksum 0xa2fd, want 0xf7fd"},
		{"icmp6 checksum", packet.New(eth, packet.IP(a6, b6), packet.Echo(1, 1, packet.NoChecksum)), "ICMPv6: checksum 0x0000, want 0x85b6"},
		{"quoted checksum", packet.New(eth, packet.IP(r4, a4), packet.TTLExceeded(), packet.Quote(udp4, packet.BadChecksum)), "quoted UDP: checksum 0x563b, want 0x033b"},
		{"quoted header checksum", packet.New(eth, packet.IP(r4, a4), packet.TTLExceeded(), packet.Quote(packet.New(eth, packet.IP(a4, b4, packet.BadChecksum), packet.UDP(1, 2)), packet.L4Bytes(8))), "quoted IPv4: checksum 0x33cf, want 0x66cf"},
		{"quote with more behind", packet.New(eth, packet.IP(r4, a4), packet.TTLExceeded(), packet.Quote(udp4), packet.Payload(3)), "quoted Trailing: 3 bytes after the end of the packet"},
		{"fragment of odd length", packet.New(eth, packet.IP(a4, b4, packet.MF, packet.Proto(17)), packet.Payload(9)), "IPv4: fragment of 9 bytes that is not the last"},
		{"fragment behind the end", packet.New(eth, packet.IP(a6, b6, packet.Proto(17)), packet.FragmentHeader(1, 65528, false), packet.Payload(8)), "FragmentHeader: fragment ends at 65536"},
		{"hop-by-hop in the middle", packet.New(eth, packet.IP(a6, b6), packet.DestinationOptions(8), packet.HopByHop(8), packet.UDP(1, 2)), "HopByHop: it is not the first extension header"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := ""
			if err := packet.Verify(test.frame); err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("verify (-want +got):\n%s", diff)
			}
		})
	}
}

// uncovered are the bytes that no checksum and no length covers: the link
// header, in IPv6 all but version, length, next header and addresses.
func uncovered(frame []byte, at int) bool {
	if at < 14 {
		return true
	}
	v6 := frame[12] == 0x86
	return v6 && (at >= 14 && at <= 17 || at == 14+7)
}

// Whatever byte of a whole packet changes, by one bit or all, Verify notices.
func TestVerifyCatchesEachByte(t *testing.T) {
	ipv6Chain := packet.New(eth, packet.IP(a6, b6), packet.TCP(1, 2, packet.MSS(1300)), packet.Payload(11))
	for name, frame := range map[string][]byte{
		"tcp4": tcp4, "tcp6": tcp6, "udp4": udp4, "udp6": udp6, "tcp6 options": ipv6Chain,
		"ip options":  packet.New(eth, packet.IP(a4, b4, packet.NOPs(4), packet.RecordRoute(1)), packet.TCP(1, 2), packet.Payload(7)),
		"sctp4":       packet.New(eth, packet.IP(a4, b4), packet.SCTP(1, 2, 3), packet.SCTPData(1, 9)),
		"echo4":       packet.New(eth, packet.IP(a4, b4), packet.Echo(1, 2), packet.Payload(9)),
		"echo6":       packet.New(eth, packet.IP(a6, b6), packet.Echo(1, 2), packet.Payload(9)),
		"icmp error4": packet.New(eth, packet.IP(r4, a4), packet.TooBig(1400), packet.Quote(tcp4)),
		"icmp error6": packet.New(eth, packet.IP(r6, a6), packet.TooBig(1400), packet.Quote(tcp6)),
		"cut quote4":  packet.New(eth, packet.IP(r4, a4), packet.TooBig(1400), packet.Quote(tcp4, packet.L4Bytes(8))),
		"nd":          packet.New(eth, packet.IP(a6, b6), packet.NeighborSolicit(b6, packet.SourceLinkAddr(macA))),
		"mld":         packet.New(eth, packet.IP(a6, b6), packet.MLDv2Report(a6, b6)),
	} {
		t.Run(name, func(t *testing.T) {
			for at := range frame {
				if uncovered(frame, at) {
					continue
				}
				for _, flip := range []byte{0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff} {
					changed := slices.Clone(frame)
					changed[at] ^= flip
					if accepted(frame, changed, at) {
						continue
					}
					if packet.Verify(changed) == nil {
						t.Fatalf("byte %d changed from 0x%02x to 0x%02x:\n%s", at, frame[at], changed[at], packet.Diff(frame, changed))
					}
				}
			}
		})
	}
}

// accepted are changes that leave a valid packet, of another meaning: an
// protocol that the dissector does not know has no checksum to look at. In IPv4 the header
// checksum notices; in IPv6 nothing does.
func accepted(frame, changed []byte, at int) bool {
	v6 := frame[12] == 0x86
	known := []byte{6, 17, 58, 132}
	return v6 && at == 14+6 && !slices.Contains(known, changed[at])
}

// A quote is checked on its own: a translator that patches the inner packet and
// makes up for it outside is found out.
func TestVerifyChecksWithinQuotes(t *testing.T) {
	for name, frame := range map[string][]byte{
		"ipv4": packet.New(eth, packet.IP(r4, a4), packet.TTLExceeded(), packet.Quote(udp4)),
		"ipv6": packet.New(eth, packet.IP(r6, a6), packet.TTLExceeded(), packet.Quote(udp6)),
	} {
		t.Run(name, func(t *testing.T) {
			changed := slices.Clone(frame)
			// A quoted port goes up by one and the outer checksum down by one: the
			// outer sum stays right.
			port := bytes.LastIndex(changed, []byte{1000 >> 8, 1000 & 0xff})
			changed[port+1]++
			icmp := 14 + 20 + 2
			if changed[12] == 0x86 {
				icmp += 20
			}
			if changed[icmp+1] == 0 {
				t.Fatal("the test's checksum cannot go down")
			}
			changed[icmp+1]--
			err := packet.Verify(changed)
			if err == nil || !strings.HasPrefix(err.Error(), "quoted UDP: checksum") || strings.Contains(err.Error(), "\n") {
				t.Errorf("verify: %v, want only the quoted checksum", err)
			}
		})
	}
}

// Frames that a real device padded to 60 bytes are valid.
func TestVerifyAcceptsPadding(t *testing.T) {
	frame := packet.New(eth, packet.IP(a4, b4), packet.UDP(1, 2))
	padded := append(slices.Clone(frame), make([]byte, 60-len(frame))...)
	if err := packet.Verify(padded); err != nil {
		t.Error(err)
	}
	padded[59] = 1
	if diff := cmp.Diff("Trailing: padding is not zero", packet.Verify(padded).Error()); diff != "" {
		t.Errorf("verify (-want +got):\n%s", diff)
	}
}

// A computed UDP checksum of 0 is sent as 0xffff, since 0 means that there is
// none.
func TestUDPChecksumIsNeverZero(t *testing.T) {
	for _, side := range [][2]netip.Addr{{a4, b4}, {a6, b6}} {
		plain := packet.New(eth, packet.IP(side[0], side[1]), packet.UDP(1, 2), packet.Data("\x00\x00"))
		sum := plain[len(plain)-4 : len(plain)-2]
		// The checksum as payload brings the sum of all else to 0xffff.
		frame := packet.New(eth, packet.IP(side[0], side[1]), packet.UDP(1, 2), packet.Data(sum))
		if diff := cmp.Diff([]byte{0xff, 0xff}, frame[len(frame)-4:len(frame)-2]); diff != "" {
			t.Errorf("checksum (-want +got):\n%s", diff)
		}
		if err := packet.Verify(frame); err != nil {
			t.Error(err)
		}
	}
}
