// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/packet"
)

// mutant is a packet that is made into another.
type mutant struct {
	run
	*palette
}

// palette is what mutations put into packets: what means something where they are shown.
type palette struct {
	addresses func(family) []netip.Addr
	ports     []uint16
	macs      []net.HardwareAddr
	// devices has indices, and 0 for none, which a packet comes in by; hosting those that it
	// may be shown at instead of its own.
	devices, hosting []int
	// notes are values of skb->tc_index, marks of skb->mark.
	notes, marks []uint32
}

func (n *node) palette() *palette {
	devices := []int{n.a.IfIndex, n.b.IfIndex, n.c.IfIndex, n.uplink.IfIndex, n.other.Attrs().Index}
	return &palette{
		addresses: func(f family) []netip.Addr {
			return []netip.Addr{
				f.a, f.b, f.c, f.unknown, f.host, f.router, f.world, f.neighbour, f.narrow, f.elsewhere,
				f.multicast, f.martian, f.linkLocal, f.renumbered(),
			}
		},
		ports: []uint16{inside, low, server, inside + 1, 0, 1, 65535, 40959, 40960},
		macs: []net.HardwareAddr{
			n.a.MAC, n.b.MAC, n.c.MAC, n.a.HostMAC, n.b.HostMAC, n.uplink.MAC, routerMAC(),
			{0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
			{0x33, 0x33, 0, 0, 0, 1},
			{2, 0, 0, 0, 0, 0x99},
		},
		devices: devices, hosting: devices,
		notes: []uint32{seenNot, seenDecided, seenTranslated, seenLed, 7}, marks: []uint32{0},
	}
}

// choose takes one of all.
func choose[T any](all []T, choice byte) T { return all[int(choice)%len(all)] }

// mutations, in the order of their numbers in a story: new ones go to the end.
func mutations() []func(*mutant, *script) {
	return []func(*mutant, *script){
		flip, truncate, shortenPacket, extend, swapEnds, setSource, setDestination, setSourcePort, setDestinationPort,
		setTCPFlags, setTTL, setLength, setFragment, spoilChecksum, setSourceMAC, setDestinationMAC, setProtocol,
		setGSO, setSeen, setVLAN, setIngress, setDevice, repairChecksums, setQuotedPort, setMark,
	}
}

func (m *mutant) mutate(story *script) {
	all := mutations()
	all[int(story.next())%len(all)](m, story)
}

// at is where the frame has size bytes for a mutation; ok is false where it has not.
func (m *mutant) at(offset, size int) (b []byte, ok bool) {
	if offset < 0 || offset+size > len(m.in) {
		return nil, false
	}
	return m.in[offset : offset+size], true
}

func (m *mutant) see() *seenPacket { return see(m.in, m.gsoSize != 0) }

func flip(m *mutant, s *script) {
	if at, value := int(s.word()), s.next(); len(m.in) > 0 {
		m.in[at%len(m.in)] ^= max(value, 1)
	}
}

func truncate(m *mutant, s *script) {
	m.in = m.in[:max(14, len(m.in)-1-int(s.next()))]
}

// shortenPacket cuts the frame and tells the IP header.
func shortenPacket(m *mutant, s *script) {
	truncate(m, s)
	m.tellLength(len(m.in) - 14)
}

func (m *mutant) tellLength(length int) {
	at := 14 + 2
	if m.see().v6 {
		at, length = 14+4, length-40
	}
	if b, ok := m.at(at, 2); ok {
		binary.BigEndian.PutUint16(b, uint16(length))
	}
}

func extend(m *mutant, s *script) {
	m.in = append(m.in, slices.Repeat([]byte{0xe7}, 1+int(s.next()))...)
}

// addressAt is the offset of the source, and the size, of the IP header's addresses.
func (m *mutant) addressAt() (at, size int) {
	if m.see().v6 {
		return 14 + 8, 16
	}
	return 14 + 12, 4
}

func swapEnds(m *mutant, _ *script) {
	at, size := m.addressAt()
	if b, ok := m.at(at, 2*size); ok {
		copy(b, slices.Concat(b[size:], b[:size]))
	}
	if b, ok := m.at(m.see().transport, 4); ok {
		copy(b, slices.Concat(b[2:], b[:2]))
	}
}

// address chooses one that means something.
func (m *mutant) address(choice byte) netip.Addr {
	f := v4()
	if m.see().v6 {
		f = v6()
	}
	return choose(m.addresses(f), choice)
}

// renumbered is the address that an uplink may change to.
func (f family) renumbered() netip.Addr {
	if f.v6() {
		return addr("2001:db8::1001")
	}
	return addr("192.0.2.101")
}

func setSource(m *mutant, s *script) {
	at, size := m.addressAt()
	if b, ok := m.at(at, size); ok {
		copy(b, m.address(s.next()).AsSlice())
	}
}

func setDestination(m *mutant, s *script) {
	at, size := m.addressAt()
	if b, ok := m.at(at+size, size); ok {
		copy(b, m.address(s.next()).AsSlice())
	}
}

func (m *mutant) setPort(offset int, s *script) {
	choice := s.next()
	if b, ok := m.at(m.see().transport+offset, 2); ok {
		binary.BigEndian.PutUint16(b, choose(m.ports, choice))
	}
}

func setSourcePort(m *mutant, s *script)      { m.setPort(0, s) }
func setDestinationPort(m *mutant, s *script) { m.setPort(2, s) }

func setTCPFlags(m *mutant, s *script) {
	if p := m.see(); p.protocol == unix.IPPROTO_TCP && p.transport > 0 {
		if b, ok := m.at(p.transport+13, 1); ok {
			b[0] = s.next()
		}
	}
}

func setTTL(m *mutant, s *script) {
	at := 14 + 8
	if m.see().v6 {
		at = 14 + 7
	}
	if b, ok := m.at(at, 1); ok {
		b[0] = []byte{0, 1, 2, 255, 64}[int(s.next())%5]
	}
}

// setLength makes the length in the IP header a little wrong, or far.
func setLength(m *mutant, s *script) {
	by := int(int8(s.next()))
	if by == -128 {
		by = 1 << 14
	}
	m.tellLength(len(m.in) - 14 + by)
}

// setFragment sets identification, offset and the flag for more.
func setFragment(m *mutant, s *script) {
	id, offset, more := s.next(), uint16(s.next()%8), uint16(s.next()&1)
	p := m.see()
	if p.kind != ipKind || p.fault != "" {
		return
	}
	if !p.v6 {
		if b, ok := m.at(14+4, 4); ok {
			b[1] = id
			binary.BigEndian.PutUint16(b[2:], offset*8|more<<13)
		}
		return
	}
	if m.in[14+6] != unix.IPPROTO_FRAGMENT { // becomes one
		header := []byte{m.in[14+6], 0, 0, 0, 0, 0, 0x1d, 0}
		m.in = slices.Insert(m.in, 14+40, header...)
		m.in[14+6] = unix.IPPROTO_FRAGMENT
		m.tellLength(len(m.in) - 14)
	}
	if b, ok := m.at(14+40, 8); ok {
		binary.BigEndian.PutUint16(b[2:], offset*64|more)
		b[7] = id
	}
}

func spoilChecksum(m *mutant, s *script) {
	which, value := s.next(), s.word()
	p := m.see()
	if p.kind != ipKind || p.fault != "" {
		return
	}
	if all := p.checksums(); len(all) > 0 {
		binary.BigEndian.PutUint16(m.in[all[int(which)%len(all)].at:], value)
	}
}

func setSourceMAC(m *mutant, s *script)      { copy(m.in[6:], choose(m.macs, s.next())) }
func setDestinationMAC(m *mutant, s *script) { copy(m.in, choose(m.macs, s.next())) }

func setProtocol(m *mutant, s *script) {
	at := 14 + 9
	if m.see().v6 {
		at = 14 + 6
	}
	all := []byte{
		unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6, 47, 51, 59,
		unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS, unix.IPPROTO_FRAGMENT, 136,
	}
	if b, ok := m.at(at, 1); ok {
		b[0] = all[int(s.next())%len(all)]
	}
}

func setGSO(m *mutant, s *script) { m.gsoSize, m.gsoSegs = uint32(s.word()%1600), uint32(s.next()) }

func setSeen(m *mutant, s *script) { m.seen = choose(m.notes, s.next()) }

func setMark(m *mutant, s *script) { m.mark = choose(m.marks, s.next()) }

func setVLAN(m *mutant, s *script) { m.vlan = uint32(s.next()) }

func setIngress(m *mutant, s *script) { m.ingress = choose(m.devices, s.next()) }

// setDevice shows the packet at another device; the programs of uplinks are on the one
// uplink alone.
func setDevice(m *mutant, s *script) {
	if device := choose(m.hosting, s.next()); m.program == fromContainer || m.program == toContainer {
		m.device = device
	}
}

func repairChecksums(m *mutant, _ *script) {
	if p := m.see(); p.kind == ipKind && p.fault == "" {
		p.repair()
	}
}

func setQuotedPort(m *mutant, s *script) {
	end, port := s.next()&1, s.word()
	if p := m.see(); p.quote != nil {
		binary.BigEndian.PutUint16(m.in[p.quote.transport+2*int(end):], port)
	}
}

// answerLayers are what the world says to a packet that left.
func (p *outcome) answerLayers(how byte) []packet.Layer {
	src, dst, from, to := p.out.dst, p.out.src, p.out.dport, p.out.sport
	switch p.out.protocol {
	case unix.IPPROTO_TCP:
		flags := []packet.TCPFlags{packet.ACK, packet.SYN | packet.ACK, packet.FIN | packet.ACK, packet.RST, packet.RST | packet.ACK, packet.SYN}
		return ip(src, dst, 58, tcp(from, to, flags[int(how&15)%len(flags)])...)
	case unix.IPPROTO_UDP:
		return ip(src, dst, 58, udp(from, to)...)
	case unix.IPPROTO_SCTP:
		return ip(src, dst, 58, packet.SCTP(from, to, 6), packet.SCTPData(1, 20))
	}
	return ip(src, dst, 58, packet.EchoReply(to, 3), packet.Payload(int(how&15)))
}

// errorLayers are what a router says about a packet that left.
func (p *outcome) errorLayers(how byte) []packet.Layer {
	f := familyOf(p.out)
	errors := []packet.Layer{packet.TTLExceeded(), packet.TooBig(1280), packet.Unreachable(packet.PortUnreachable)}
	quote := packet.Quote(p.result.out)
	if how&4 != 0 {
		quote = packet.Quote(p.result.out, packet.L4Bytes(min(8, p.out.end-p.out.transport)))
	}
	return ip(f.router, p.out.src, 58, errors[int(how&3)%len(errors)], quote)
}

// relay is what the stack makes of a packet that it was left: it goes on to the world,
// or to the endpoint that has the address. With lost, somebody overwrote the mark.
func (s *teller) relay(p *outcome, lost byte) run {
	r := run{in: slices.Clone(p.result.out), ingress: p.device, seen: p.want.seen}
	if lost&1 != 0 {
		r.seen = seenNot
	}
	if to := s.owner(p.out.dst); to != nil {
		r.program, r.device = toContainer, to.IfIndex
		copy(r.in, slices.Concat(to.MAC, to.HostMAC))
	} else {
		r.program, r.device = toUplink, s.n.uplink.IfIndex
		copy(r.in, slices.Concat(routerMAC(), s.n.uplink.MAC))
	}
	at := 14 + 8
	if p.out.v6 {
		at = 14 + 7
	}
	if p.out.fault == "" {
		r.in[at] = max(1, r.in[at]) - 1
		if after := see(r.in, p.gsoSize != 0); !after.v6 {
			header := after.checksums()[0]
			binary.BigEndian.PutUint16(r.in[header.at:], 0)
			binary.BigEndian.PutUint16(r.in[header.at:], uint16(0xffff-header.residual(r.in)))
		}
	}
	return r
}
