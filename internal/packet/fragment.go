// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Fragment cuts a frame's IP packet so that no fragment exceeds an MTU in bytes,
// link header excluded. A packet that fits comes back alone and unchanged. The
// identification of IPv4 is the packet's own; that of IPv6 is computed from the
// packet, so it differs from one packet to another. An IPv4 fragment may be cut
// further. Fragment panics where nobody may cut: DF, an IPv6 packet that is a
// fragment already, an MTU without room for 8 bytes.
func Fragment(frame []byte, mtu int) [][]byte {
	fragments, err := fragment(frame, mtu)
	if err != nil {
		panic(fmt.Sprintf("packet: fragment at %d bytes: %v", mtu, err))
	}
	return fragments
}

func fragment(frame []byte, mtu int) ([][]byte, error) {
	b, err := network(frame)
	if err != nil {
		return nil, err
	}
	if len(b) <= mtu {
		return [][]byte{slices.Clone(frame)}, nil
	}
	link := frame[:len(frame)-len(b)]
	if b[0]>>4 == 6 {
		return fragment6(link, b, mtu)
	}
	return fragment4(link, b, mtu)
}

func fragment4(link, b []byte, mtu int) ([][]byte, error) {
	end, err := endOfHeaders(b)
	if err != nil {
		return nil, err
	}
	flags := binary.BigEndian.Uint16(b[6:])
	if flags&0x4000 != 0 {
		return nil, errors.New("DF is set")
	}
	header, body := b[:end.offset], b[end.offset:]
	var fragments [][]byte
	for at := 0; at < len(body); {
		n := (mtu - len(header)) &^ 7
		if n <= 0 {
			return nil, fmt.Errorf("no room after a header of %d bytes", len(header))
		}
		more := uint16(0x2000)
		if at+n >= len(body) {
			n, more = len(body)-at, flags&0x2000
		}
		out := slices.Concat(link, header, body[at:at+n])
		ip := out[len(link):]
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		binary.BigEndian.PutUint16(ip[6:], more|flags&0x1fff+uint16(at/8))
		writeIPv4Checksum(ip[:len(header)])
		fragments = append(fragments, out)
		at += n
		header = laterHeader(header)
	}
	return fragments, nil
}

// laterHeader is the IPv4 header of all fragments but the first: only options
// with the copied flag stay (RFC 791 section 3.1).
func laterHeader(header []byte) []byte {
	later := slices.Clone(header[:20])
	for options := header[20:]; len(options) > 0 && options[0] != 0; {
		size := 1
		if options[0] != 1 {
			if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
				break
			}
			size = int(options[1])
		}
		if options[0]&0x80 != 0 {
			later = append(later, options[:size]...)
		}
		options = options[size:]
	}
	for len(later)%4 != 0 {
		later = append(later, 0)
	}
	later[0] = 4<<4 | byte(len(later)/4)
	return later
}

func writeIPv4Checksum(header []byte) {
	clear(header[10:12])
	binary.BigEndian.PutUint16(header[10:], gopacket.FoldChecksum(gopacket.ComputeChecksum(header, 0)))
}

func fragment6(link, b []byte, mtu int) ([][]byte, error) {
	end, err := endOfHeaders(b)
	if err != nil {
		return nil, err
	}
	if end.fragment >= 0 {
		return nil, errors.New("it is a fragment")
	}
	header, body := slices.Clone(b[:end.perFragment]), b[end.perFragment:]
	next := header[end.announce]
	header[end.announce] = byte(layers.IPProtocolIPv6Fragment)
	id := crc32.ChecksumIEEE(b)
	size := (mtu - len(header) - 8) &^ 7
	if size <= 0 {
		return nil, fmt.Errorf("no room after headers of %d bytes", len(header)+8)
	}
	var fragments [][]byte
	for at := 0; at < len(body); at += size {
		n, more := size, uint16(1)
		if at+n >= len(body) {
			n, more = len(body)-at, 0
		}
		extension := binary.BigEndian.AppendUint16([]byte{next, 0}, uint16(at)|more)
		extension = binary.BigEndian.AppendUint32(extension, id)
		out := slices.Concat(link, header, extension, body[at:at+n])
		binary.BigEndian.PutUint16(out[len(link)+4:], uint16(len(out)-len(link)-40))
		fragments = append(fragments, out)
	}
	return fragments, nil
}

// Reassemble puts the fragments of one packet together, in whatever order they
// come, so that Verify can judge what only the whole packet shows. Link and IP
// headers are those of the first fragment.
func Reassemble(fragments ...[]byte) ([]byte, error) {
	type piece struct {
		link, header, body []byte
		offset             int
		more               bool
		key                string // what all fragments of a packet share
	}
	pieces := make([]piece, 0, len(fragments))
	for i, frame := range fragments {
		b, err := network(frame)
		if err != nil {
			return nil, fmt.Errorf("read fragment %d: %w", i, err)
		}
		end, err := endOfHeaders(b)
		if err != nil {
			return nil, fmt.Errorf("read fragment %d: %w", i, err)
		}
		p := piece{link: frame[:len(frame)-len(b)]}
		// A short last fragment may carry the padding of its Ethernet frame.
		if n := packetLength(b); n >= end.offset && n < len(b) {
			b = b[:n]
		}
		if b[0]>>4 == 4 {
			flags := binary.BigEndian.Uint16(b[6:])
			p.header, p.body = slices.Clone(b[:end.offset]), b[end.offset:]
			p.offset, p.more = int(flags&0x1fff)*8, flags&0x2000 != 0
			p.key = string(b[4:6]) + string(b[9]) + string(b[12:20])
			binary.BigEndian.PutUint16(p.header[6:], flags&0xc000)
		} else {
			if end.fragment < 0 {
				return nil, fmt.Errorf("read fragment %d: no fragment header", i)
			}
			extension := b[end.fragment:]
			flags := binary.BigEndian.Uint16(extension[2:])
			p.header, p.body = slices.Clone(b[:end.fragment]), extension[8:]
			p.offset, p.more = int(flags&^7), flags&1 != 0
			p.key = string(extension[4:8]) + string(b[8:40])
			p.header[announcing(b, end.fragment)] = extension[0]
		}
		pieces = append(pieces, p)
	}
	slices.SortStableFunc(pieces, func(a, b piece) int { return cmp.Compare(a.offset, b.offset) })
	var body []byte
	for i, p := range pieces {
		switch last := i == len(pieces)-1; {
		case p.key != pieces[0].key:
			return nil, fmt.Errorf("fragment at %d belongs to another packet", p.offset)
		case p.offset != len(body):
			return nil, fmt.Errorf("fragment at %d does not continue at %d", p.offset, len(body))
		case p.more == last:
			return nil, fmt.Errorf("fragment at %d: more fragments is %t", p.offset, p.more)
		}
		body = append(body, p.body...)
	}
	if len(pieces) == 0 {
		return nil, errors.New("no fragments")
	}
	first := pieces[0]
	length := len(first.header) + len(body)
	if length > 65535 {
		return nil, fmt.Errorf("%d bytes, at most 65535 fit", length)
	}
	if first.header[0]>>4 == 4 {
		binary.BigEndian.PutUint16(first.header[2:], uint16(length))
		writeIPv4Checksum(first.header)
	} else {
		binary.BigEndian.PutUint16(first.header[4:], uint16(length-40))
	}
	return slices.Concat(first.link, first.header, body), nil
}

// packetLength is the length that an IP header gives for the whole packet.
func packetLength(b []byte) int {
	if b[0]>>4 == 4 {
		return int(binary.BigEndian.Uint16(b[2:]))
	}
	return 40 + int(binary.BigEndian.Uint16(b[4:]))
}

// announcing is the index of the next header field that leads to the extension
// header at an offset of an IPv6 packet.
func announcing(b []byte, extension int) int {
	at := 6
	for next := 40; next < extension; next += 8 + int(b[next+1])*8 {
		at = next
	}
	return at
}
