// SPDX-License-Identifier: Apache-2.0

package socktest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
)

// Echo is an ICMP socket that asks and hears of asking.
type Echo struct {
	*net.IPConn
	v6 bool
	id uint16
}

// OpenEcho opens a raw socket for ICMP of the address's family.
func OpenEcho(tb testing.TB, ns *nstest.NS, of netip.Addr) *Echo {
	tb.Helper()
	network := "ip4:icmp"
	if of.Is6() {
		network = "ip6:ipv6-icmp"
	}
	conn := In(tb, ns, func() (*net.IPConn, error) { return net.ListenIP(network, &net.IPAddr{}) })
	CloseAtEnd(tb, conn)
	enlarge(tb, conn)
	return &Echo{IPConn: conn, v6: of.Is6(), id: uint16(os.Getpid())}
}

// Types of ICMP and ICMPv6.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

// Types are the types of ICMP messages that ask and answer.
func (e *Echo) Types() (request, reply byte) {
	if e.v6 {
		return echoRequest6, echoReply6
	}
	return echoRequest4, echoReply4
}

// Send sends a request of size bytes; seq tells requests apart.
func (e *Echo) Send(to netip.Addr, seq uint16, size int) error {
	request, _ := e.Types()
	message := append([]byte{request, 0, 0, 0, byte(e.id >> 8), byte(e.id), byte(seq >> 8), byte(seq)}, Pattern(size)...)
	if !e.v6 { // for ICMPv6 the kernel does it
		binary.BigEndian.PutUint16(message[2:], internetChecksum(message))
	}
	_, err := e.WriteTo(message, &net.IPAddr{IP: to.AsSlice()})
	return err
}

// Await waits for a message of the type with the sequence number and returns
// who sent it.
func (e *Echo) Await(kind byte, seq uint16, size int) (netip.Addr, error) {
	_ = e.SetReadDeadline(time.Now().Add(nodetest.Patience))
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := e.ReadFromIP(buffer)
		if err != nil {
			return netip.Addr{}, err
		}
		if n < 8 || buffer[0] != kind || binary.BigEndian.Uint16(buffer[6:]) != seq {
			continue
		}
		address, _ := netip.AddrFromSlice(from.IP)
		if !bytes.Equal(buffer[8:n], Pattern(size)) {
			return address, fmt.Errorf("the message from %s has another payload", address)
		}
		return address.Unmap(), nil
	}
}

func internetChecksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
