// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
)

// Verify computes every checksum and compares every length of a frame: IPv4
// headers, TCP, UDP, SCTP, ICMP and ICMPv6, extension headers and options,
// also within the packet that an ICMP error quotes. Of a fragment, and of a
// quote that was cut, it checks what can be known. The error names each header that
// is wrong; nil means that a receiver would accept all of them.
//
// Two things pass that a sender would not do: 0xffff where a TCP or IPv4
// checksum is 0, which is the same number to a receiver (RFC 1624 section 3),
// and UDP over IPv6 without a checksum within a quote. Frames that were
// captured before the device filled in their checksums fail.
func Verify(frame []byte) error { return errors.Join(dissect(frame).faults...) }

// sum adds up 16-bit words in one's complement (RFC 1071); an odd byte is the
// high half of the last word.
func sum(b []byte, start uint32) uint16 {
	total := uint64(start)
	for len(b) >= 2 {
		total += uint64(b[0])<<8 | uint64(b[1])
		b = b[2:]
	}
	if len(b) == 1 {
		total += uint64(b[0]) << 8
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

// pseudoSum is the sum of the pseudo header (RFC 9293 section 3.1, RFC 8200
// section 8.1).
func pseudoSum(s segment, length int) uint32 {
	both := append(s.src.AsSlice(), s.dst.AsSlice()...)
	return uint32(sum(both, 0)) + uint32(s.protocol) + uint32(length)
}

// checkSum reports a wrong checksum. total is the sum over all that the
// checksum covers, itself included.
func (d *dissection) checkSum(r reader, checksum []byte, total uint16) {
	if total == 0xffff {
		return
	}
	have := uint16(checksum[0])<<8 | uint16(checksum[1])
	// Taking what is there out of the sum leaves what a sender would have put.
	want := ^sum([]byte{byte(total >> 8), byte(total), ^checksum[0], ^checksum[1]}, 0)
	d.fault(r, "checksum 0x%04x, want 0x%04x", have, want)
}

// Summary describes a frame in one line, much like tcpdump, and says what
// Verify found first.
func Summary(frame []byte) string {
	d := dissect(frame)
	if len(d.faults) > 0 {
		d.say(" (! %s)", d.faults[0])
	}
	return d.summary.String()
}
