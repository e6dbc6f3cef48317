// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/pkg/maps"
)

// A macvlan child is held to its limits on every way to one station, and from it.
func TestChildLimits(t *testing.T) {
	nstest.LeaveTo(t, "6.12")
	p := withChildren(t, Config{Masquerade: true})
	p.y.Ports = []Port{
		{netip.IPv4Unspecified(), hostPort, 17, v4().child(2), server},
		{netip.IPv6Unspecified(), hostPort, 17, v6().child(2), server},
	}
	p.do(t, func() error { return p.AttachEndpoint(p.y) })
	free, limited := p.y, p.y
	limited.Ingress, limited.Egress = slow, slow
	set := func(before, after Endpoint) {
		t.Helper()
		p.do(t, func() error { return errors.Join(p.SetLimits(before, after), p.CheckEndpoint(after)) })
		p.y = after
	}
	eachFamily(t, func(t *testing.T, f family) {
		x, y, host := f.child(1), f.child(2), p.uplink.MAC
		message := udp(low, server)
		sends := []struct {
			name string
			run
			first, more want
		}{
			{"to the wire", p.out(p.y.MAC, routerMAC(), ip(y, f.world, 64, message...)...), toWire("decided"), toWire()},
			{"to a sibling", p.out(p.y.MAC, p.x.MAC, ip(y, x, 64, message...)...), toSibling("decided"), toSibling()},
			{"to the host", p.out(p.y.MAC, host, ip(y, f.host, 64, message...)...), toHost("decided"), toHost("decided")},
		}
		toX := p.out(p.x.MAC, p.y.MAC, ip(x, y, 64, message...)...)
		ofWire := p.in(routerMAC(), p.y.MAC, ip(f.world, y, 64, message...)...)
		mapped := p.fromWorld(ip(f.world, f.host, 58, udp(low, hostPort)...)...)
		gets := []struct {
			name string
			run
			first, more, dropped, droppedMore want
		}{
			{
				"from a sibling", toX, toSibling("decided"), toSibling(),
				shut(fromContainer, "decided", "bandwidth_ingress"), shut(fromContainer, "bandwidth_ingress"),
			},
			{
				"from the host", p.out(host, p.y.MAC, ip(f.host, y, 64, message...)...), ofHost("host"), ofHost("host"),
				shut(toContainer, "bandwidth_ingress"), shut(toContainer, "bandwidth_ingress"),
			},
			{
				"from the wire", ofWire, intoChild("decided"), intoChild(),
				shut(toContainer, "decided", "passed", "bandwidth_ingress"), shut(toContainer, "passed", "bandwidth_ingress"),
			},
			{
				"by a mapped port", mapped, p.intoY([]string{"decided"}, ip(f.world, y, 57, message...)...), p.intoY(nil, ip(f.world, y, 57, message...)...),
				shut(fromUplink, "decided", "bandwidth_ingress"), shut(fromUplink, "bandwidth_ingress"),
			},
		}
		set(free, limited)
		for _, way := range sends {
			t.Run(way.name, func(t *testing.T) {
				p.forget(t)
				p.creditOf(t, p.y, maps.LimitEgress, time.Second)
				p.story(t, step{"with credit", way.run, way.first}, step{"and more", way.run, way.more})
				p.creditOf(t, p.y, maps.LimitEgress, -time.Hour)
				p.story(t, step{"without", way.run, shut(fromContainer, "bandwidth_egress")})
			})
		}
		for _, way := range gets {
			t.Run(way.name, func(t *testing.T) {
				p.forget(t)
				p.creditOf(t, p.y, maps.LimitIngress, time.Minute)
				p.story(t, step{"with credit", way.run, way.first}, step{"and more", way.run, way.more})
				p.creditOf(t, p.y, maps.LimitIngress, -time.Hour)
				p.story(t, step{"without", way.run, way.droppedMore})
				p.forget(t)
				p.story(t, step{"a new flow without", way.run, way.dropped})
			})
		}
		// It ends with the next packet of every flow.
		p.forget(t)
		p.story(t, step{"limited", toX, shut(fromContainer, "decided", "bandwidth_ingress")})
		set(limited, free)
		p.story(t, step{"not limited any more", toX, toSibling("decided")}, step{"nor is what it sends", sends[0].run, sends[0].first})
		if got, err := walked[maps.LimitKey, maps.Limit](p.maps.Bandwidth); got != 0 || err != nil {
			t.Errorf("%d entries are left in map bandwidth, %v", got, err)
		}
	})
}

// What a child says of its frames besides what is in them, by a packet socket, is no way round
// its limit.
func TestChildLimitForged(t *testing.T) {
	nstest.LeaveTo(t, "6.1")
	w := newWired(t, map[string]Child{"x": {Bridged: true, HostAccess: true}})
	before := w.endpoints["x"]
	x := before
	x.Egress, x.Unshaped = slow, []netip.Prefix{netip.MustParsePrefix("fd00::/8")}
	var err error
	w.node.Do(t, func() { err = w.SetLimits(before, x) })
	must(t, err)
	ns := w.containers["x"]
	ns.Do(t, func() { // which would speak by itself
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", []byte("1"), 0))
	})
	key, value := maps.LimitKey{Ifindex: uint32(x.IfIndex), Direction: maps.LimitEgress}, maps.Limit{}
	must(t, w.maps.Bandwidth.Lookup(key, &value))
	value.Empty = monotonic(t) + uint64(time.Hour)
	value.Small, value.Dropped = value.Empty, 0
	must(t, w.maps.Bandwidth.Put(key, value))
	frame := packet.New(packet.Eth(x.MAC, routerMAC()), packet.IP(x.Addresses[0], wiredAddresses(9)[0]), packet.UDP(low, server), packet.Payload(100))
	protocols := []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6, unix.ETH_P_ARP, unix.ETH_P_8021Q}
	fd, ifindex := packetSocket(t, ns, "eth0")
	for _, protocol := range protocols {
		err := unix.Sendto(fd, frame, 0, linkAddress(ifindex, protocol))
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // of what is dropped
			t.Errorf("send as protocol %#x: %v", protocol, err)
		}
	}
	must(t, w.maps.Bandwidth.Lookup(key, &value))
	if value.Dropped != uint64(len(protocols)) {
		t.Errorf("%d of %d frames beyond the limit are dropped", value.Dropped, len(protocols))
	}
	shaped := x
	shaped.Unshaped = nil
	w.node.Do(t, func() { err = w.SetLimits(x, shaped) })
	must(t, err)
	t.Run("segments", func(t *testing.T) { testForgedSegments(t, w, shaped) })

	// Read as IPv4, the first words of this understand marks, and its source address is the checksum.
	marked := packet.New(packet.Eth(x.MAC, routerMAC()), packet.IP(x.Addresses[1], wiredAddresses(9)[1], packet.TOS(2), packet.FlowLabel(0x20000)), packet.UDP(low, server), packet.Payload(300))
	for protocol, want := range map[uint16]uint64{unix.ETH_P_IPV6: 1, unix.ETH_P_IP: 0} {
		value = slow.value(false, 0)
		value.Empty = monotonic(t) - uint64(time.Second)
		must(t, w.maps.Bandwidth.Put(key, value))
		must(t, unix.Sendto(fd, marked, 0, linkAddress(ifindex, protocol)))
		must(t, w.maps.Bandwidth.Lookup(key, &value))
		if value.Packets != 1 || value.Marked != want {
			t.Errorf("as protocol %#x %d of %d are marked, not %d of 1", protocol, value.Marked, value.Packets, want)
		}
	}
}
