// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/packet"
)

// Ports that the tests use: inside lies in the range for masquerade, low does
// not, server is the world's.
const (
	inside = 50000
	low    = 1234
	server = 80
)

// transport is a protocol over IP whose packets have two ends.
type transport struct {
	name     string
	protocol func(family) uint8
	// there goes from the end that began, which has port, to server; back is the answer.
	there, back func(port uint16) []packet.Layer
	// first, where it is not nil, goes instead of there when a connection begins.
	first func(port uint16) []packet.Layer
	// echo says that the server has no port.
	echo bool
	// keeps says that its ports cannot be changed.
	keeps bool
	// at is the same with another port of the server.
	at func(server uint16) transport
}

func number(protocol uint8) func(family) uint8 { return func(family) uint8 { return protocol } }

// transports are all that can be masqueraded.
func transports() []transport { return served(transportsAt) }

// served are transports at port server, that can be had at others.
func served(at func(server uint16) []transport) []transport {
	all := at(server)
	for i := range all {
		all[i].at = func(server uint16) transport { return at(server)[i] }
	}
	return all
}

func transportsAt(server uint16) []transport {
	return []transport{
		{
			name: "TCP", protocol: number(unix.IPPROTO_TCP),
			first: func(port uint16) []packet.Layer {
				return []packet.Layer{packet.TCP(port, server, packet.SYN, packet.MSS(1460))}
			},
			there: func(port uint16) []packet.Layer {
				return []packet.Layer{packet.TCP(port, server, packet.ACK, packet.Timestamps{Value: 7, Echo: 9}), packet.Payload(33)}
			},
			back: func(port uint16) []packet.Layer {
				return []packet.Layer{packet.TCP(server, port, packet.ACK, packet.PSH, packet.Seq(77)), packet.Payload(1000)}
			},
		},
		{
			name: "UDP", protocol: number(unix.IPPROTO_UDP),
			there: func(port uint16) []packet.Layer { return []packet.Layer{packet.UDP(port, server), packet.Payload(1)} },
			back:  func(port uint16) []packet.Layer { return []packet.Layer{packet.UDP(server, port), packet.Payload(0)} },
		},
		{
			name: "UDP without checksum", protocol: number(unix.IPPROTO_UDP),
			there: func(port uint16) []packet.Layer {
				return []packet.Layer{packet.UDP(port, server, packet.NoChecksum), packet.Payload(12)}
			},
			back: func(port uint16) []packet.Layer {
				return []packet.Layer{packet.UDP(server, port, packet.NoChecksum), packet.Payload(12)}
			},
		},
		{
			name: "ICMP echo", protocol: func(f family) uint8 { return f.icmp }, echo: true,
			there: func(port uint16) []packet.Layer { return []packet.Layer{packet.Echo(port, 3), packet.Payload(56)} },
			back:  func(port uint16) []packet.Layer { return []packet.Layer{packet.EchoReply(port, 3), packet.Payload(56)} },
		},
		{
			name: "SCTP", protocol: number(unix.IPPROTO_SCTP), keeps: true,
			there: func(port uint16) []packet.Layer {
				return []packet.Layer{packet.SCTP(port, server, 5), packet.SCTPData(1, 20)}
			},
			back: func(port uint16) []packet.Layer {
				return []packet.Layer{packet.SCTP(server, port, 6), packet.SCTPData(1, 20)}
			},
		},
	}
}

// begin is the first packet of a connection.
func (tr transport) begin(port uint16) []packet.Layer {
	if tr.first != nil {
		return tr.first(port)
	}
	return tr.there(port)
}

// server is the world's end of a flow.
func (tr transport) server(a netip.Addr) netip.AddrPort {
	if tr.echo {
		return netip.AddrPortFrom(a, 0)
	}
	return netip.AddrPortFrom(a, server)
}

func port(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }

// ip is an IP packet.
func ip(src, dst netip.Addr, ttl uint8, inner ...packet.Layer) []packet.Layer {
	return append([]packet.Layer{packet.IP(src, dst, packet.TTL(ttl))}, inner...)
}

func tcp(src, dst uint16, options ...packet.TCPOption) []packet.Layer {
	return []packet.Layer{packet.TCP(src, dst, options...), packet.Payload(10)}
}

func udp(src, dst uint16) []packet.Layer {
	return []packet.Layer{packet.UDP(src, dst), packet.Payload(10)}
}

// sent is a frame as an endpoint sends it to the host.
func sent(e Endpoint, layers ...packet.Layer) []byte {
	return packet.New(append([]packet.Layer{packet.Eth(e.MAC, e.HostMAC)}, layers...)...)
}

// delivered is a frame as an endpoint gets it.
func delivered(e Endpoint, layers ...packet.Layer) []byte {
	return packet.New(append([]packet.Layer{packet.Eth(e.HostMAC, e.MAC)}, layers...)...)
}

// arrived is a frame as the router sends it to the uplink.
func (n *node) arrived(layers ...packet.Layer) []byte {
	return packet.New(append([]packet.Layer{packet.Eth(routerMAC(), n.uplink.MAC)}, layers...)...)
}

// left is a frame as the stack sends it to the router.
func (n *node) left(layers ...packet.Layer) []byte {
	return packet.New(append([]packet.Layer{packet.Eth(n.uplink.MAC, routerMAC())}, layers...)...)
}

// fromA is a packet of endpoint a at its host side.
func (n *node) fromA(layers ...packet.Layer) run { return n.from(n.a, layers...) }

func (n *node) from(e Endpoint, layers ...packet.Layer) run {
	return run{program: fromContainer, device: e.IfIndex, in: sent(e, layers...)}
}

// fromWorld is a packet that the router sends.
func (n *node) fromWorld(layers ...packet.Layer) run {
	return run{program: fromUplink, device: n.uplink.IfIndex, in: n.arrived(layers...)}
}

// toWorld is a packet that the stack sends to the router, as it came from a device.
func (n *node) toWorld(seen uint32, layers ...packet.Layer) run {
	return run{program: toUplink, device: n.uplink.IfIndex, in: n.left(layers...), seen: seen}
}

// forwarded, and the others, are the common ends of a packet.
func forwarded(out []byte, counters ...string) want {
	return want{verdict: redirect, out: out, counters: append(counters, "forwarded"), seen: seenTranslated}
}

func deliveredAs(out []byte, counters ...string) want {
	return want{verdict: redirect, out: out, counters: append(counters, "delivered")}
}

func passed(seen uint32, counters ...string) want {
	return want{verdict: passOn, counters: append(counters, "passed"), seen: seen}
}

func drops(counters ...string) want { return want{verdict: dropped, counters: counters} }

// leaves is the end of what the stack sends, translated, to the world.
func leaves(out []byte) want {
	return want{verdict: passOn, out: out, counters: []string{"forwarded"}, seen: seenTranslated}
}

// untouched is what is none of the program's business.
func untouched() want { return want{verdict: passOn, seen: seenAsBefore} }
