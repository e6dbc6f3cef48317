// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"fmt"

	"github.com/gopacket/gopacket/layers"
)

// TCPOption changes a TCP header.
type TCPOption interface{ tcp(*tcp) }

// TCPFlags are flags of the TCP header; they add up.
type TCPFlags uint16

// The flags of RFC 9293 section 3.1, from the lowest bit.
const (
	FIN TCPFlags = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// Seq is the sequence number, 1 where it is not given.
type Seq uint32

// Ack is the acknowledgment number. It does not set the flag.
type Ack uint32

// Window is the receive window, 65535 where it is not given.
type Window uint16

// MSS is the maximum segment size option.
type MSS uint16

// WindowScale is the window scale option, a shift count.
type WindowScale uint8

// Timestamps is the timestamps option (RFC 7323).
type Timestamps struct{ Value, Echo uint32 }

// TCPSwitch is a TCP option without a value.
type TCPSwitch uint8

// SACKPermitted allows selective acknowledgments.
const SACKPermitted TCPSwitch = layers.TCPOptionKindSACKPermitted

func (o TCPFlags) tcp(t *tcp)      { t.flags |= o }
func (o Seq) tcp(t *tcp)           { t.seq = uint32(o) }
func (o Ack) tcp(t *tcp)           { t.ack = uint32(o) }
func (o Window) tcp(t *tcp)        { t.window = uint16(o) }
func (o HeaderWords) tcp(t *tcp)   { t.words = uint8(o) }
func (o ChecksumFault) tcp(t *tcp) { t.fault = o }
func (o TCPSwitch) tcp(t *tcp)     { t.option(layers.TCPOptionKind(o), nil) }
func (o WindowScale) tcp(t *tcp)   { t.option(layers.TCPOptionKindWindowScale, []byte{byte(o)}) }

func (o MSS) tcp(t *tcp) {
	t.option(layers.TCPOptionKindMSS, binary.BigEndian.AppendUint16(nil, uint16(o)))
}

func (o Timestamps) tcp(t *tcp) {
	t.option(layers.TCPOptionKindTimestamps,
		binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, o.Value), o.Echo))
}

// TCP is a TCP header. Options are written in the order given and padded with
// no-operations.
func TCP(src, dst uint16, options ...TCPOption) Layer {
	t := tcp{src: src, dst: dst, seq: 1, window: 65535}
	for _, o := range options {
		o.tcp(&t)
	}
	return t
}

type tcp struct {
	unannounced
	src, dst uint16
	seq, ack uint32
	flags    TCPFlags
	window   uint16
	options  []layers.TCPOption
	words    uint8
	fault    ChecksumFault
}

func (t *tcp) option(kind layers.TCPOptionKind, data []byte) {
	t.options = append(t.options, layers.TCPOption{OptionType: kind, OptionLength: uint8(2 + len(data)), OptionData: data})
}

func (tcp) String() string { return "TCP" }

func (tcp) protocol(bool) (layers.IPProtocol, bool) { return layers.IPProtocolTCP, true }

func (t tcp) serialize(e *encoder) error {
	pseudo, err := e.pseudo()
	if err != nil {
		return err
	}
	room := 0
	for _, o := range t.options {
		room += int(o.OptionLength)
	}
	options := append([]layers.TCPOption(nil), t.options...)
	for ; room%4 != 0; room++ {
		options = append(options, layers.TCPOption{OptionType: layers.TCPOptionKindNop, OptionLength: 1})
	}
	if room > 40 {
		return fmt.Errorf("%d bytes of options, at most 40 fit", room)
	}
	header := layers.TCP{
		SrcPort: layers.TCPPort(t.src), DstPort: layers.TCPPort(t.dst), Seq: t.seq, Ack: t.ack,
		DataOffset: uint8(5 + room/4), Window: t.window, Options: options,
		FIN: t.flags&FIN != 0, SYN: t.flags&SYN != 0, RST: t.flags&RST != 0, PSH: t.flags&PSH != 0,
		ACK: t.flags&ACK != 0, URG: t.flags&URG != 0, ECE: t.flags&ECE != 0, CWR: t.flags&CWR != 0,
	}
	if t.words != 0 {
		header.DataOffset = t.words
	}
	if err := header.SetNetworkLayerForChecksum(pseudo); err != nil {
		return err
	}
	if err := header.SerializeTo(e, checksums()); err != nil {
		return err
	}
	t.fault.spoil(e.Bytes()[16:18])
	return nil
}

// UDPOption changes a UDP header: Length, NoChecksum or BadChecksum.
type UDPOption interface{ udp(*udp) }

func (o Length) udp(u *udp)        { v := uint16(o); u.length = &v }
func (o ChecksumFault) udp(u *udp) { u.fault = o }

// UDP is a UDP header.
func UDP(src, dst uint16, options ...UDPOption) Layer {
	u := udp{src: src, dst: dst}
	for _, o := range options {
		o.udp(&u)
	}
	return u
}

type udp struct {
	unannounced
	src, dst uint16
	length   *uint16
	fault    ChecksumFault
}

func (udp) String() string { return "UDP" }

func (udp) protocol(bool) (layers.IPProtocol, bool) { return layers.IPProtocolUDP, true }

func (u udp) serialize(e *encoder) error {
	pseudo, err := e.pseudo()
	if err != nil {
		return err
	}
	length := 8 + len(e.Bytes())
	if length > 65535 {
		return fmt.Errorf("%d bytes, at most 65535 fit", length)
	}
	header := layers.UDP{SrcPort: layers.UDPPort(u.src), DstPort: layers.UDPPort(u.dst), Length: uint16(length)}
	if u.length != nil {
		header.Length = *u.length
	}
	if err := header.SetNetworkLayerForChecksum(pseudo); err != nil {
		return err
	}
	if err := header.SerializeTo(e, checksums()); err != nil {
		return err
	}
	u.fault.spoil(e.Bytes()[6:8])
	return nil
}

// SCTPOption changes an SCTP header: NoChecksum or BadChecksum.
type SCTPOption interface{ sctp(*sctp) }

func (o ChecksumFault) sctp(s *sctp) { s.fault = o }

// SCTP is an SCTP common header with a verification tag; SCTPInit and SCTPData
// follow.
func SCTP(src, dst uint16, tag uint32, options ...SCTPOption) Layer {
	s := sctp{src: src, dst: dst, tag: tag}
	for _, o := range options {
		o.sctp(&s)
	}
	return s
}

type sctp struct {
	unannounced
	src, dst uint16
	tag      uint32
	fault    ChecksumFault
}

func (sctp) String() string { return "SCTP" }

func (sctp) protocol(bool) (layers.IPProtocol, bool) { return layers.IPProtocolSCTP, true }

func (s sctp) serialize(e *encoder) error {
	header := layers.SCTP{SrcPort: layers.SCTPPort(s.src), DstPort: layers.SCTPPort(s.dst), VerificationTag: s.tag}
	if err := header.SerializeTo(e, computed()); err != nil {
		return err
	}
	s.fault.spoil(e.Bytes()[8:12])
	return nil
}

// SCTPInit is an INIT chunk that announces a verification tag.
func SCTPInit(tag uint32) Layer { return sctpChunk{init: true, number: tag} }

// SCTPData is a DATA chunk with a transmission sequence number and n bytes of
// the pattern of Payload.
func SCTPData(tsn uint32, n int) Layer {
	return sctpChunk{number: tsn, data: Payload(n).(payload).data}
}

type sctpChunk struct {
	unannounced
	init   bool
	number uint32
	data   []byte
}

func (sctpChunk) String() string { return "SCTP chunk" }

func (c sctpChunk) serialize(e *encoder) error {
	if c.init {
		return layers.SCTPInit{
			SCTPChunk: layers.SCTPChunk{Type: layers.SCTPChunkTypeInit}, InitiateTag: c.number,
			AdvertisedReceiverWindowCredit: 65535, OutboundStreams: 1, InboundStreams: 1, InitialTSN: 1,
		}.SerializeTo(e, computed())
	}
	if 16+len(c.data) > 65535 {
		return fmt.Errorf("%d bytes of data, at most 65519 fit", len(c.data))
	}
	return layers.SCTPData{
		SCTPChunk: layers.SCTPChunk{Type: layers.SCTPChunkTypeData, Length: uint16(16 + len(c.data))},
		TSN:       c.number, BeginFragment: true, EndFragment: true, Payload: c.data,
	}.SerializeTo(e, computed())
}
