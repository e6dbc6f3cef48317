// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/api"
)

// Fragments that netfilter has put together and the stack takes apart again are judged: those
// of IPv6 no longer say that a device has brought them in.
func TestPolicyFragments(t *testing.T) { eachDriver(t, testPolicyFragments) }

func testPolicyFragments(t *testing.T, d driver) {
	g := newGuarded(t)
	g.drive(t, d)
	server := g.dress(t, "server")
	if d == api.DriverBridge {
		withoutBridgeNetfilter(t, g.NS)
	}
	far := nstest.New(t, "far") // behind a device that is no uplink
	g.NS.Run(t, "ip", "link", "add", "far0", "type", "veth", "peer", "name", "eth0", "netns", far.Name)
	g.NS.Run(t, "ip", "link", "set", "far0", "up")
	g.NS.Run(t, "ip", "addr", "add", "203.0.113.1/24", "dev", "far0")
	g.NS.Run(t, "ip", "addr", "add", "2001:db8:9::1/64", "dev", "far0", "nodad")
	far.Run(t, "ip", "link", "set", "eth0", "up")
	g.NS.Run(t, "nft", "add table inet filter; add chain inet filter forward { type filter hook forward priority 0; };"+
		"add rule inet filter forward ct state new accept")
	link := openLink(t, far, "eth0")
	frames := packet.Eth(must(far.Handle.LinkByName("eth0"))(t).Attrs().HardwareAddr, must(g.NS.Handle.LinkByName("far0"))(t).Attrs().HardwareAddr)
	passed, host, denied := g.Counter(t, "to_container", "passed"), g.Counter(t, "to_container", "host"), g.Counter(t, "to_container", byIngress)
	// send sends a datagram in fragments, and waits until some have reached a counter.
	send := func(t *testing.T, from netip.Addr, to netip.AddrPort, count func() uint64) {
		t.Helper()
		before := count()
		for _, fragment := range takenApart(frames, from, to) {
			link.send(t, fragment)
		}
		if err := nodetest.Poll(func() error {
			if count() == before {
				return fmt.Errorf("fragments have reached no counter; drops: %v", g.Drops(t))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	eachFamily(t, func(t *testing.T, f family) {
		from := netip.MustParseAddr("203.0.113.9")
		if f.name == "IPv6" {
			from = netip.MustParseAddr("2001:db8:9::9")
		}
		to := netip.AddrPortFrom(f.of(server), 7)
		// The host knows its neighbour then, and asks for it no more.
		send(t, from, to, passed)
		g.apply(t, networkPolicy("shut", "{podSelector: {}, policyTypes: [Ingress]}"))
		defer g.delete(t, "shut")
		before := passed() + host()
		send(t, from, to, denied)
		if n := passed() + host() - before; n != 0 {
			t.Errorf("%d fragments have passed", n)
		}
	})
}

// takenApart is a datagram in two fragments. Of IPv6 the first one alone has destination
// options, so that the stack does not find again where it was cut.
func takenApart(frame packet.Layer, from netip.Addr, to netip.AddrPort) [][]byte {
	const size, cut = 2000, 1200
	whole := packet.New(frame, packet.IP(from, to.Addr()), packet.UDP(1234, to.Port()), packet.Payload(size))
	datagram := whole[len(whole)-size-8:]
	headers := [][]packet.Layer{
		{packet.IP(from, to.Addr(), packet.ID(7), packet.MF, packet.Proto(unix.IPPROTO_UDP))},
		{packet.IP(from, to.Addr(), packet.ID(7), packet.FragOffset(cut), packet.Proto(unix.IPPROTO_UDP))},
	}
	if from.Is6() {
		ip := packet.IP(from, to.Addr(), packet.Proto(unix.IPPROTO_UDP))
		headers = [][]packet.Layer{
			{ip, packet.DestinationOptions(8), packet.FragmentHeader(7, 0, true)},
			{ip, packet.FragmentHeader(7, cut, false)},
		}
	}
	var fragments [][]byte
	for i, part := range [][]byte{datagram[:cut], datagram[cut:]} {
		layers := append([]packet.Layer{frame}, headers[i]...)
		fragment := packet.New(append(layers, packet.Payload(len(part)))...)
		copy(fragment[len(fragment)-len(part):], part)
		fragments = append(fragments, fragment)
	}
	return fragments
}
