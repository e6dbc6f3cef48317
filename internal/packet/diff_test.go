// SPDX-License-Identifier: Apache-2.0

package packet_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/packet"
)

func TestDiff(t *testing.T) {
	base := packet.New(eth, packet.IP(a4, b4, packet.TTL(63)), packet.TCP(40000, 80, packet.SYN))
	for _, test := range []struct {
		name      string
		want, got []byte
		diff      string
	}{
		{"equal", base, base, ""},
		{"a field", base, packet.New(eth, packet.IP(a4, b4), packet.TCP(40000, 80, packet.SYN)), `
want: IP 10.0.0.1.40000 > 10.0.0.2.80 ttl 63: Flags [S], seq 1, win 65535, length 0
got:  IP 10.0.0.1.40000 > 10.0.0.2.80 ttl 64: Flags [S], seq 1, win 65535, length 0
  IPv4.TTL       -63                      +64
  IPv4.Checksum  -0x67ce                  +0x66ce
  bytes 0010     -00 28 00 00 00 00 3f 06 67 ce 0a 00 00 01 0a 00
                 +00 28 00 00 00 00 40 06 66 ce 0a 00 00 01 0a 00
`},
		{"a layer more", packet.New(eth, packet.ARPRequest(packet.Station{MAC: macA, IP: a4}, b4)), packet.New(eth, packet.VLAN(5), packet.ARPRequest(packet.Station{MAC: macA, IP: a4}, b4)), `
want: ARP, Request who-has 10.0.0.2 tell 10.0.0.1
got:  vlan 5, ARP, Request who-has 10.0.0.2 tell 10.0.0.1
  Ethernet.Type  -0x0806                  +0x8100
  VLAN                                    +{Priority 0, DropEligible 0, ID 5, Type 0x0806}
  bytes 0000     -02 00 00 00 00 0b 02 00 00 00 00 0a 08 06 00 01
                 +02 00 00 00 00 0b 02 00 00 00 00 0a 81 00 00 05
  bytes 0010     -08 00 06 04 00 01 02 00 00 00 00 0a 0a 00 00 01
                 +08 06 00 01 08 00 06 04 00 01 02 00 00 00 00 0a
  bytes 0020     -00 00 00 00 00 00 0a 00 00 02
                 +0a 00 00 01 00 00 00 00 00 00 0a 00 00 02
`},
		{"payload", packet.New(eth, packet.IP(a4, b4), packet.UDP(1, 2), packet.Data("abcd")), packet.New(eth, packet.IP(a4, b4), packet.UDP(1, 2), packet.Data("abxde")), `
want: IP 10.0.0.1.1 > 10.0.0.2.2 ttl 64: UDP, length 4
got:  IP 10.0.0.1.1 > 10.0.0.2.2 ttl 64: UDP, length 5
  IPv4.Length    -32                      +33
  IPv4.Checksum  -0x66cb                  +0x66ca
  UDP.Length     -12                      +13
  UDP.Checksum   -0x270a                  +0xad07
  Payload.Data   -4 bytes, 0x63 at 2      +5 bytes, 0x78 at 2
  bytes 0010     -00 20 00 00 00 00 40 11 66 cb 0a 00 00 01 0a 00
                 +00 21 00 00 00 00 40 11 66 ca 0a 00 00 01 0a 00
  bytes 0020     -00 02 00 01 00 02 00 0c 27 0a 61 62 63 64
                 +00 02 00 01 00 02 00 0d ad 07 61 62 78 64 65
`},
		{"inside a quote", packet.New(eth, packet.IP(r6, a6), packet.TooBig(1280), packet.Quote(udp6, packet.L4Bytes(8))), packet.New(eth, packet.IP(r6, a6), packet.TooBig(1280), packet.Quote(packet.New(eth, packet.IP(a6, b6), packet.UDP(999, 53), packet.Payload(64)), packet.L4Bytes(8))), `
want: IP6 2001:db8::1 > fd00::1 ttl 64: ICMP6 too big, mtu 1280, quoting [IP6 fd00::1.1000 > fd00::2.53 ttl 64: UDP, length 64]
got:  IP6 2001:db8::1 > fd00::1 ttl 64: ICMP6 too big, mtu 1280, quoting [IP6 fd00::1.999 > fd00::2.53 ttl 64: UDP, length 64]
  quoted UDP.SrcPort   -1000                    +999
  quoted UDP.Checksum  -0x1d39                  +0x1d3a
  bytes 0060           -00 00 00 00 00 02 03 e8 00 35 00 48 1d 39
                       +00 00 00 00 00 02 03 e7 00 35 00 48 1d 3a
`},
		{"another transport", packet.New(eth, packet.IP(a6, b6), packet.UDP(1, 2), packet.Payload(60000)), packet.New(eth, packet.IP(a6, b6), packet.TCP(1, 2)), `
want: IP6 fd00::1.1 > fd00::2.2 ttl 64: UDP, length 60000
got:  IP6 fd00::1.1 > fd00::2.2 ttl 64: Flags [none], seq 1, win 65535, length 0
  IPv6.Length         -60008                   +20
  IPv6.NextHeader     -17                      +6
  UDP                 -{SrcPort 1, DstPort 2, Length 60008, Checksum 0x5408}
  Payload             -{Data 60000 bytes}
  TCP                                          +{SrcPort 1, DstPort 2, Seq 1, Ack 0, HeaderLength 20, Flags none, Window 65535, Checksum 0xb5dc, Urgent 0}
  bytes 0010          -00 00 ea 68 11 40 fd 00 00 00 00 00 00 00 00 00
                      +00 00 00 14 06 40 fd 00 00 00 00 00 00 00 00 00
  bytes 0030          -00 00 00 00 00 02 00 01 00 02 ea 68 54 08 00 01
                      +00 00 00 00 00 02 00 01 00 02 00 00 00 01 00 00
  bytes 0040          -02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f 10 11
                      +00 00 50 00 ff ff b5 dc 00 00
  and 3749 rows more
`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(strings.TrimPrefix(test.diff, "\n"), packet.Diff(test.want, test.got)); diff != "" {
				t.Errorf("diff (-want +got):\n%s", diff)
			}
		})
	}
}
