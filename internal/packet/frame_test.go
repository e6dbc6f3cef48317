// SPDX-License-Identifier: Apache-2.0

package packet_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/tendril-net/tendril/internal/packet"
)

var (
	macA = packet.MAC("02:00:00:00:00:0a")
	macB = packet.MAC("02:00:00:00:00:0b")
	a4   = netip.MustParseAddr("10.0.0.1")
	b4   = netip.MustParseAddr("10.0.0.2")
	r4   = netip.MustParseAddr("192.0.2.1")
	a6   = netip.MustParseAddr("fd00::1")
	b6   = netip.MustParseAddr("fd00::2")
	r6   = netip.MustParseAddr("2001:db8::1")
	eth  = packet.Eth(macA, macB)
	udp4 = packet.New(eth, packet.IP(a4, b4, packet.ID(7)), packet.UDP(1000, 53), packet.Payload(64))
	udp6 = packet.New(eth, packet.IP(a6, b6), packet.UDP(1000, 53), packet.Payload(64))
	tcp4 = packet.New(eth, packet.IP(a4, b4, packet.DF), packet.TCP(1000, 80, packet.PSH|packet.ACK, packet.Ack(9)), packet.Payload(64))
	tcp6 = packet.New(eth, packet.IP(a6, b6), packet.TCP(1000, 80, packet.PSH|packet.ACK, packet.Ack(9)), packet.Payload(64))
)

// frames are valid frames of every kind. Their summaries show that each builder
// put its values where the dissector looks for them.
var frames = []struct {
	name  string
	stack []packet.Layer
	want  string // the summary
}{
	{"ethernet", []packet.Layer{eth, packet.Payload(46)}, "ethertype 0x88b5, length 46"},
	{"arp request", []packet.Layer{eth, packet.ARPRequest(packet.Station{MAC: macA, IP: a4}, b4)}, "ARP, Request who-has 10.0.0.2 tell 10.0.0.1"},
	{"arp reply", []packet.Layer{eth, packet.ARPReply(packet.Station{MAC: macB, IP: b4}, packet.Station{MAC: macA, IP: a4})}, "ARP, Reply 10.0.0.2 is-at 02:00:00:00:00:0b"},
	{"two tags", []packet.Layer{eth, packet.VLAN(50), packet.VLAN(4095), packet.IP(a4, b4), packet.UDP(1, 2)}, "vlan 50, vlan 4095, IP 10.0.0.1.1 > 10.0.0.2.2 ttl 64: UDP, length 0"},

	{"tcp4", []packet.Layer{eth, packet.IPv4(a4, b4, packet.TTL(3), packet.TOS(0xb8), packet.DF), packet.TCP(1000, 80, packet.SYN), packet.Payload(101)}, "IP 10.0.0.1.1000 > 10.0.0.2.80 ttl 3: Flags [S], seq 1, win 65535, length 101"},
	{"tcp6", []packet.Layer{eth, packet.IPv6(a6, b6, packet.TTL(3), packet.TOS(0xb8), packet.FlowLabel(0xabcde), packet.DF), packet.TCP(1000, 80, packet.SYN), packet.Payload(101)}, "IP6 fd00::1.1000 > fd00::2.80 ttl 3: Flags [S], seq 1, win 65535, length 101"},
	{"tcp options", []packet.Layer{eth, packet.IP(a4, b4), packet.TCP(1000, 80, packet.SYN|packet.ACK, packet.Seq(5), packet.Ack(6), packet.Window(7), packet.MSS(1460), packet.SACKPermitted, packet.Timestamps{Value: 1, Echo: 2}, packet.WindowScale(7))}, "IP 10.0.0.1.1000 > 10.0.0.2.80 ttl 64: Flags [S.], seq 5, ack 6, win 7, options 20, length 0"},
	{"tcp flags", []packet.Layer{eth, packet.IP(a6, b6), packet.TCP(1, 2, packet.FIN|packet.RST|packet.URG|packet.ECE|packet.CWR)}, "IP6 fd00::1.1 > fd00::2.2 ttl 64: Flags [FRUEW], seq 1, win 65535, length 0"},
	{"udp4", []packet.Layer{eth, packet.IP(a4, b4), packet.UDP(1000, 53), packet.Data("hello")}, "IP 10.0.0.1.1000 > 10.0.0.2.53 ttl 64: UDP, length 5"},
	{"udp6", []packet.Layer{eth, packet.IP(a6, b6), packet.UDP(1000, 53), packet.Data("hello")}, "IP6 fd00::1.1000 > fd00::2.53 ttl 64: UDP, length 5"},
	{"udp without checksum", []packet.Layer{eth, packet.IP(a4, b4), packet.UDP(1000, 53, packet.NoChecksum), packet.Payload(9)}, "IP 10.0.0.1.1000 > 10.0.0.2.53 ttl 64: UDP, length 9"},
	{"udp 60 kB", []packet.Layer{eth, packet.IP(a4, b4), packet.UDP(1000, 53), packet.Payload(60000)}, "IP 10.0.0.1.1000 > 10.0.0.2.53 ttl 64: UDP, length 60000"},
	{"udp6 greatest", []packet.Layer{eth, packet.IP(a6, b6), packet.UDP(1000, 53), packet.Payload(65527)}, "IP6 fd00::1.1000 > fd00::2.53 ttl 64: UDP, length 65527"},
	{"sctp4", []packet.Layer{eth, packet.IP(a4, b4), packet.SCTP(1000, 80, 0), packet.SCTPInit(0xcafe)}, "IP 10.0.0.1.1000 > 10.0.0.2.80 ttl 64: SCTP, length 20, chunk 1"},
	{"sctp6", []packet.Layer{eth, packet.IP(a6, b6), packet.SCTP(1000, 80, 7), packet.SCTPData(1, 101), packet.SCTPData(2, 3)}, "IP6 fd00::1.1000 > fd00::2.80 ttl 64: SCTP, length 140, chunk 0, chunk 0"},
	{"unknown protocol", []packet.Layer{eth, packet.IP(a4, b4, packet.Proto(50)), packet.Payload(40)}, "IP 10.0.0.1 > 10.0.0.2 ttl 64: protocol 50, length 40"},
	{"no next header", []packet.Layer{eth, packet.IP(a6, b6)}, "IP6 fd00::1 > fd00::2 ttl 64: protocol 59, length 0"},

	{"ip options", []packet.Layer{eth, packet.IP(a4, b4, packet.NOPs(3), packet.RecordRoute(4)), packet.UDP(1, 2)}, "IP 10.0.0.1.1 > 10.0.0.2.2 ttl 64: UDP, length 0"},
	{"first fragment", []packet.Layer{eth, packet.IP(a4, b4, packet.ID(7), packet.MF), packet.UDP(1, 2), packet.Payload(16)}, "IP 10.0.0.1.1 > 10.0.0.2.2 ttl 64: frag 7:24@0+, UDP, length 16"},
	{"last fragment", []packet.Layer{eth, packet.IP(a4, b4, packet.ID(7), packet.FragOffset(1480), packet.Proto(17)), packet.Payload(5)}, "IP 10.0.0.1 > 10.0.0.2 ttl 64: frag 7:5@1480, protocol 17"},
	{"last fragment 6", []packet.Layer{eth, packet.IP(a6, b6, packet.Proto(17)), packet.FragmentHeader(7, 1480, false), packet.Payload(5)}, "IP6 fd00::1 > fd00::2 ttl 64: frag 7:5@1480, protocol 17"},
	{"atomic fragment", []packet.Layer{eth, packet.IP(a6, b6), packet.FragmentHeader(7, 0, false), packet.UDP(1, 2)}, "IP6 fd00::1.1 > fd00::2.2 ttl 64: UDP, length 0"},
	{"all extensions", []packet.Layer{eth, packet.IP(a6, b6), packet.HopByHop(8), packet.DestinationOptions(272), packet.Routing(0, b6), packet.FragmentHeader(7, 0, false), packet.DestinationOptions(16), packet.TCP(1, 2, packet.ACK)}, "IP6 fd00::1.1 > fd00::2.2 ttl 64: Flags [.], seq 1, ack 0, win 65535, length 0"},
	{"longest extension", []packet.Layer{eth, packet.IP(a6, b6), packet.HopByHop(2048), packet.UDP(1, 2)}, "IP6 fd00::1.1 > fd00::2.2 ttl 64: UDP, length 0"},
	{"source route", []packet.Layer{eth, packet.IP(a6, b6), packet.Routing(1, r6, b6), packet.UDP(1, 2), packet.Payload(4)}, "IP6 fd00::1.1 > fd00::2.2 ttl 64: UDP, length 4"},

	{"echo4", []packet.Layer{eth, packet.IP(a4, b4), packet.Echo(3, 4), packet.Payload(56)}, "IP 10.0.0.1 > 10.0.0.2 ttl 64: ICMP echo request, id 3, seq 4, length 64"},
	{"echo6", []packet.Layer{eth, packet.IP(a6, b6), packet.EchoReply(3, 4), packet.Payload(56)}, "IP6 fd00::1 > fd00::2 ttl 64: ICMP6 echo reply, id 3, seq 4, length 64"},
	{"other icmp", []packet.Layer{eth, packet.IP(a4, b4), packet.ICMP(13, 0, 7), packet.Payload(12)}, "IP 10.0.0.1 > 10.0.0.2 ttl 64: ICMP type 13 code 0, length 20"},
	{"host unreachable 4", []packet.Layer{eth, packet.IP(r4, a4), packet.Unreachable(packet.HostUnreachable), packet.Quote(udp4)}, "IP 192.0.2.1 > 10.0.0.1 ttl 64: ICMP unreachable, code 1, quoting [IP 10.0.0.1.1000 > 10.0.0.2.53 ttl 64: UDP, length 64]"},
	{"host unreachable 6", []packet.Layer{eth, packet.IP(r6, a6), packet.Unreachable(packet.HostUnreachable), packet.Quote(udp6)}, "IP6 2001:db8::1 > fd00::1 ttl 64: ICMP6 unreachable, code 3, quoting [IP6 fd00::1.1000 > fd00::2.53 ttl 64: UDP, length 64]"},
	{"any code", []packet.Layer{eth, packet.IP(r4, a4), packet.Unreachable(packet.Code(15)), packet.Quote(tcp4)}, "IP 192.0.2.1 > 10.0.0.1 ttl 64: ICMP unreachable, code 15, quoting [IP 10.0.0.1.1000 > 10.0.0.2.80 ttl 64: Flags [P.], seq 1, ack 9, win 65535, length 64]"},
	{"too big 4, 8 bytes", []packet.Layer{eth, packet.IP(r4, a4), packet.TooBig(1400), packet.Quote(tcp4, packet.L4Bytes(8))}, "IP 192.0.2.1 > 10.0.0.1 ttl 64: ICMP too big, mtu 1400, quoting [IP 10.0.0.1.1000 > 10.0.0.2.80 ttl 64: TCP, cut at 8]"},
	{"too big 6, 20 bytes", []packet.Layer{eth, packet.IP(r6, a6), packet.TooBig(1280), packet.Quote(tcp6, packet.L4Bytes(20))}, "IP6 2001:db8::1 > fd00::1 ttl 64: ICMP6 too big, mtu 1280, quoting [IP6 fd00::1.1000 > fd00::2.80 ttl 64: Flags [P.], seq 1, ack 9, win 65535, length 64]"},
	{"ttl exceeded 4, no checksum", []packet.Layer{eth, packet.IP(r4, a4), packet.TTLExceeded(), packet.Quote(udp4, packet.NoChecksum)}, "IP 192.0.2.1 > 10.0.0.1 ttl 64: ICMP time exceeded, code 0, quoting [IP 10.0.0.1.1000 > 10.0.0.2.53 ttl 64: UDP, length 64]"},
	{"reassembly exceeded 6, no checksum", []packet.Layer{eth, packet.IP(r6, a6), packet.ReassemblyExceeded(), packet.Quote(udp6, packet.NoChecksum)}, "IP6 2001:db8::1 > fd00::1 ttl 64: ICMP6 time exceeded, code 1, quoting [IP6 fd00::1.1000 > fd00::2.53 ttl 64: UDP, length 64]"},
	{"parameter problem 4", []packet.Layer{eth, packet.IP(r4, a4), packet.ParameterProblem(0, 20), packet.Quote(udp4, packet.L4Bytes(0))}, "IP 192.0.2.1 > 10.0.0.1 ttl 64: ICMP parameter problem at 20, quoting [IP 10.0.0.1 > 10.0.0.2 ttl 64: UDP, cut at 0]"},
	{"parameter problem 6", []packet.Layer{eth, packet.IP(r6, a6), packet.ParameterProblem(1, 40), packet.Quote(udp6)}, "IP6 2001:db8::1 > fd00::1 ttl 64: ICMP6 parameter problem at 40, quoting [IP6 fd00::1.1000 > fd00::2.53 ttl 64: UDP, length 64]"},
	{"redirect", []packet.Layer{eth, packet.IP(r4, a4), packet.Redirect(1, b4), packet.Quote(udp4, packet.L4Bytes(8))}, "IP 192.0.2.1 > 10.0.0.1 ttl 64: ICMP redirect to 10.0.0.2, quoting [IP 10.0.0.1.1000 > 10.0.0.2.53 ttl 64: UDP, length 64]"},

	{"neighbor solicitation", []packet.Layer{eth, packet.IP(a6, b6), packet.NeighborSolicit(b6, packet.SourceLinkAddr(macA))}, "IP6 fd00::1 > fd00::2 ttl 255: neighbor solicitation, who has fd00::2"},
	{"neighbor advertisement", []packet.Layer{eth, packet.IP(a6, b6), packet.NeighborAdvert(a6, packet.NASolicited|packet.NAOverride, packet.TargetLinkAddr(macA))}, "IP6 fd00::1 > fd00::2 ttl 255: neighbor advertisement, tgt is fd00::1"},
	{"router solicitation", []packet.Layer{eth, packet.IP(a6, b6), packet.RouterSolicit()}, "IP6 fd00::1 > fd00::2 ttl 255: router solicitation"},
	{"router advertisement", []packet.Layer{eth, packet.IP(a6, b6), packet.RouterAdvert(1800, packet.SourceLinkAddr(macA), packet.LinkMTU(1400), packet.OnLinkPrefix(netip.MustParsePrefix("fd00::/64")))}, "IP6 fd00::1 > fd00::2 ttl 255: router advertisement, lifetime 1800"},
	{"nd redirect", []packet.Layer{eth, packet.IP(a6, b6), packet.NDRedirect(a6, r6, packet.TargetLinkAddr(macA), packet.RedirectedPacket(udp6))}, "IP6 fd00::1 > fd00::2 ttl 255: redirect 2001:db8::1 to fd00::1"},
	{"mld query", []packet.Layer{eth, packet.IP(a6, b6), packet.RouterAlert(), packet.MLDQuery(netip.IPv6Unspecified())}, "IP6 fd00::1 > fd00::2 ttl 1: MLD query ::"},
	{"mld report", []packet.Layer{eth, packet.IP(a6, b6), packet.RouterAlert(), packet.MLDReport(b6)}, "IP6 fd00::1 > fd00::2 ttl 1: MLD report fd00::2"},
	{"mld done", []packet.Layer{eth, packet.IP(a6, b6), packet.RouterAlert(), packet.MLDDone(b6)}, "IP6 fd00::1 > fd00::2 ttl 1: MLD done fd00::2"},
	{"mldv2 report", []packet.Layer{eth, packet.IP(a6, b6), packet.RouterAlert(), packet.MLDv2Report(a6, b6)}, "IP6 fd00::1 > fd00::2 ttl 1: MLDv2 report, 2 groups"},
}

func TestNewIsValid(t *testing.T) {
	for _, test := range frames {
		t.Run(test.name, func(t *testing.T) {
			frame := packet.New(test.stack...)
			if diff := cmp.Diff(test.want, packet.Summary(frame)); diff != "" {
				t.Errorf("summary (-want +got):\n%s", diff)
			}
			if err := packet.Verify(frame); err != nil {
				t.Errorf("verify: %v", err)
			}
			if diff := packet.Diff(frame, packet.New(test.stack...)); diff != "" {
				t.Errorf("the same layers built twice:\n%s", diff)
			}
		})
	}
}

// gopacket is the second opinion on the builders: it must decode each frame up
// to its transport header and find every checksum right.
func TestGopacketAgrees(t *testing.T) {
	unknown := map[string]bool{ // to gopacket
		"ethernet":       true, // an EtherType for experiments
		"no next header": true, // it takes the length of 0 for a jumbogram
	}
	for _, test := range frames {
		if unknown[test.name] {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			decoded := gopacket.NewPacket(packet.New(test.stack...), layers.LayerTypeEthernet, gopacket.Default)
			var network gopacket.NetworkLayer
			for _, layer := range decoded.Layers() {
				switch l := layer.(type) {
				case *layers.IPv4:
					network = l
				case *layers.IPv6:
					network = l
				case *gopacket.DecodeFailure:
					t.Fatalf("decode: %v", l.Error())
				}
				if l, ok := layer.(interface {
					SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
				}); ok {
					if err := l.SetNetworkLayerForChecksum(network); err != nil {
						t.Fatal(err)
					}
				}
				if l, ok := layer.(gopacket.LayerWithChecksum); ok {
					if err, result := l.VerifyChecksum(); err != nil || !result.Valid {
						t.Errorf("checksum of %s: %v %+v", layer.LayerType(), err, result)
					}
				}
				if _, ok := layer.(gopacket.TransportLayer); ok {
					return // what follows gopacket guesses from the ports
				}
			}
		})
	}
}

func TestFieldsReachGopacket(t *testing.T) {
	frame := packet.New(packet.Eth(macA, macB), packet.VLAN(50),
		packet.IPv4(a4, b4, packet.TTL(9), packet.TOS(4), packet.ID(77), packet.DF, packet.NOPs(4)),
		packet.TCP(40000, 81, packet.SYN|packet.ECE, packet.Seq(5), packet.Ack(6), packet.Window(8), packet.MSS(1300)),
		packet.Data("abc"))
	decoded := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	type fields struct {
		Src, Dst           string
		VLAN               uint16
		TTL, TOS, IHL      uint8
		ID                 uint16
		Flags              string
		SrcIP, DstIP       string
		SrcPort, DstPort   uint16
		Seq, Ack           uint32
		SYN, ECE, ACK, FIN bool
		Window             uint16
		Options            string
		Payload            string
	}
	link := decoded.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	tag := decoded.Layer(layers.LayerTypeDot1Q).(*layers.Dot1Q)
	ip := decoded.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	tcp := decoded.Layer(layers.LayerTypeTCP).(*layers.TCP)
	got := fields{
		link.SrcMAC.String(), link.DstMAC.String(), tag.VLANIdentifier, ip.TTL, ip.TOS, ip.IHL, ip.Id, ip.Flags.String(),
		ip.SrcIP.String(), ip.DstIP.String(), uint16(tcp.SrcPort), uint16(tcp.DstPort), tcp.Seq, tcp.Ack,
		tcp.SYN, tcp.ECE, tcp.ACK, tcp.FIN, tcp.Window, tcp.Options[0].String(), string(tcp.LayerPayload()),
	}
	want := fields{
		"02:00:00:00:00:0a", "02:00:00:00:00:0b", 50, 9, 4, 6, 77, "DF", "10.0.0.1", "10.0.0.2", 40000, 81, 5, 6,
		true, true, false, false, 8, "TCPOption(MSS:1300 0x0514)", "abc",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, test := range []struct {
		name  string
		stack []packet.Layer
		want  string
	}{
		{"nothing", nil, "no layers"},
		{"no ethernet", []packet.Layer{packet.IP(a4, b4)}, "the first layer is IPv4, want Ethernet"},
		{"two families", []packet.Layer{eth, packet.IP(a4, b6), packet.UDP(1, 2)}, "not of one family"},
		{"wrong family", []packet.Layer{eth, packet.IPv6(a4, b4), packet.UDP(1, 2)}, "10.0.0.1 is not an IPv6 address"},
		{"option of the other family", []packet.Layer{eth, packet.IP(a6, b6, packet.ID(1)), packet.UDP(1, 2)}, "option ID is for IPv4"},
		{"no IP header", []packet.Layer{eth, packet.TCP(1, 2)}, "TCP: no IP header outside"},
		{"unnamed protocol", []packet.Layer{eth, packet.IP(a4, b4), packet.Payload(1)}, "Payload(1) cannot follow without Proto"},
		{"too long", []packet.Layer{eth, packet.IP(a4, b4), packet.UDP(1, 2), packet.Payload(65508)}, "65536 bytes, at most 65535 fit"},
		{"odd offset", []packet.Layer{eth, packet.IP(a4, b4, packet.FragOffset(4)), packet.UDP(1, 2)}, "fragment offset 4"},
		{"odd extension", []packet.Layer{eth, packet.IP(a6, b6), packet.HopByHop(12), packet.UDP(1, 2)}, "size 12"},
		{"extension in IPv4", []packet.Layer{eth, packet.IP(a4, b4), packet.HopByHop(8), packet.UDP(1, 2)}, "HopByHop cannot follow"},
		{"discovery in IPv4", []packet.Layer{eth, packet.IP(a4, b4), packet.RouterSolicit()}, "does not exist in IPv4"},
		{"code of ICMP", []packet.Layer{eth, packet.IP(a6, b6), packet.Unreachable(packet.ProtocolUnreachable), packet.Quote(udp6)}, "does not exist in IPv6"},
		{"quote of ARP", []packet.Layer{eth, packet.IP(a4, b4), packet.TTLExceeded(), packet.Quote(packet.New(eth, packet.Payload(60)))}, "not an IP packet"},
		{"cut behind the end", []packet.Layer{eth, packet.IP(a4, b4), packet.TTLExceeded(), packet.Quote(udp4, packet.L4Bytes(73))}, "cut at byte 73 of 72"},
		{"too many options", []packet.Layer{eth, packet.IP(a4, b4, packet.NOPs(41)), packet.UDP(1, 2)}, "44 bytes of options"},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer func() {
				said, _ := recover().(string)
				if !strings.HasPrefix(said, "packet: ") || !strings.Contains(said, test.want) {
					t.Errorf("panic %q, want it to say %q", said, test.want)
				}
			}()
			packet.New(test.stack...)
		})
	}
}
