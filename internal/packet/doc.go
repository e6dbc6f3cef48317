// SPDX-License-Identifier: Apache-2.0

// Package packet builds the frames that tests send through the datapath and
// judges the frames that come out. The tests of pkg/datapath and the
// namespace tests call it; nothing that ships does.
//
// A frame is written as its layers, from the outside in:
//
//	packet.New(packet.Eth(src, dst), packet.IP(a, b, packet.TTL(63), packet.DF),
//		packet.TCP(40000, 80, packet.SYN, packet.MSS(1460)), packet.Payload(100))
//
// Lengths, checksums and the numbers that announce the next header are filled
// in; options change the rest, or spoil what was filled in. What is not given
// has the default of a sane host: TTL 64 (255 for neighbour discovery, 1 for
// MLD), no DF, window 65535, sequence number 1. IP and all ICMP layers serve
// both families, so one table can run over both.
//
// A frame that cannot be built (an IPv6 address in an IPv4 header, 70 kB of
// payload) is a mistake in the test, and New panics with a message that names
// the layer.
//
// Every function takes and returns whole Ethernet frames, without the minimum
// length of 60 bytes: what New returns is exactly as long as its layers.
// Diff, Verify and Summary share one dissector, which is independent of
// gopacket, on which the builders rest: each is a check of the other. They
// accept any bytes.
package packet
