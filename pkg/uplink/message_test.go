// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// route builds an RTM_NEWROUTE for dst, out of the device with that index.
func route(dst string, oif uint32, change func(*nl.RtMsg)) syscall.NetlinkMessage {
	p := netip.MustParsePrefix(dst)
	msg := &nl.RtMsg{RtMsg: unix.RtMsg{
		Family: unix.AF_INET, Dst_len: uint8(p.Bits()), Table: unix.RT_TABLE_MAIN,
		Protocol: unix.RTPROT_STATIC, Scope: unix.RT_SCOPE_UNIVERSE, Type: unix.RTN_UNICAST,
	}}
	if p.Addr().Is6() {
		msg.Family = unix.AF_INET6
	}
	if change != nil {
		change(msg)
	}
	data := msg.Serialize()
	if p.Bits() > 0 {
		data = append(data, nl.NewRtAttr(unix.RTA_DST, p.Addr().AsSlice()).Serialize()...)
	}
	data = append(data, nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(oif)).Serialize()...)
	return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWROUTE}, Data: data}
}

// linkMessage builds a message of a link.
func linkMessage(kind uint16, family uint8, index int32, name string, mtu uint32) syscall.NetlinkMessage {
	msg := nl.NewIfInfomsg(int(family))
	msg.Index, msg.Flags = index, unix.IFF_UP
	data := msg.Serialize()
	data = append(data, nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)).Serialize()...)
	data = append(data, nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(mtu)).Serialize()...)
	return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: data}
}

func addressMessage(index uint32) syscall.NetlinkMessage {
	msg := nl.NewIfAddrmsg(unix.AF_INET)
	msg.Index = index
	return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWADDR}, Data: msg.Serialize()}
}

const (
	ownIndex   = 7
	otherIndex = 8
)

func testTracker() *tracker {
	link := func(index int, name string) netlink.Link {
		attrs := netlink.NewLinkAttrs()
		attrs.Index, attrs.Name, attrs.MTU, attrs.RawFlags = index, name, 1500, unix.IFF_UP
		return &netlink.Dummy{LinkAttrs: attrs}
	}
	return newTracker(func(name string) bool { return strings.HasPrefix(name, "own") }, 84,
		[]netlink.Link{link(ownIndex, "own1"), link(otherIndex, "eth0")})
}

func TestTrackerRead(t *testing.T) {
	everything := change{uplinks: true, routes: true, links: true}
	outward := change{uplinks: true, urgent: true, routes: true}
	tests := map[string]struct {
		message syscall.NetlinkMessage
		want    change
	}{
		"route":                       {route("198.51.100.0/24", otherIndex, nil), change{routes: true}},
		"default route":               {route("0.0.0.0/0", otherIndex, nil), outward},
		"IPv6 default route":          {route("::/0", otherIndex, nil), outward},
		"default route, other table":  {route("0.0.0.0/0", otherIndex, func(m *nl.RtMsg) { m.Table = 100 }), change{routes: true}},
		"local address":               {route("192.0.2.1/32", otherIndex, func(m *nl.RtMsg) { m.Type, m.Table = unix.RTN_LOCAL, unix.RT_TABLE_LOCAL }), change{routes: true}},
		"route of ours":               {route("10.0.0.2/32", otherIndex, func(m *nl.RtMsg) { m.Protocol = 84 }), change{}},
		"gateway on a device of ours": {route("10.0.0.1/32", ownIndex, func(m *nl.RtMsg) { m.Type = unix.RTN_LOCAL }), change{}},
		"cached route":                {route("198.51.100.1/32", otherIndex, func(m *nl.RtMsg) { m.Flags = unix.RTM_F_CLONED }), change{}},
		"broadcast":                   {route("192.0.2.255/32", otherIndex, func(m *nl.RtMsg) { m.Type = unix.RTN_BROADCAST }), change{}},
		"multicast":                   {route("ff00::/8", otherIndex, func(m *nl.RtMsg) { m.Type = unix.RTN_MULTICAST }), change{}},
		"link-local":                  {route("fe80::/64", otherIndex, nil), change{}},
		"MPLS":                        {route("198.51.100.0/24", otherIndex, func(m *nl.RtMsg) { m.Family = unix.AF_MPLS }), change{}},
		"address":                     {addressMessage(otherIndex), change{uplinks: true, addresses: true}},
		"address of ours":             {addressMessage(ownIndex), change{}},
		"new link":                    {linkMessage(unix.RTM_NEWLINK, unix.AF_UNSPEC, 9, "eth1", 1500), everything},
		"new link of ours":            {linkMessage(unix.RTM_NEWLINK, unix.AF_UNSPEC, 9, "own2", 1500), change{}},
		"link as it was":              {linkMessage(unix.RTM_NEWLINK, unix.AF_UNSPEC, otherIndex, "eth0", 1500), change{}},
		"link with another MTU":       {linkMessage(unix.RTM_NEWLINK, unix.AF_UNSPEC, otherIndex, "eth0", 1400), everything},
		"link gone":                   {linkMessage(unix.RTM_DELLINK, unix.AF_UNSPEC, otherIndex, "eth0", 1500), everything},
		"link of ours gone":           {linkMessage(unix.RTM_DELLINK, unix.AF_UNSPEC, ownIndex, "own1", 1500), change{gone: ownIndex}},
		"port leaves its bridge":      {linkMessage(unix.RTM_DELLINK, unix.AF_BRIDGE, ownIndex, "own1", 1500), change{}},
		"rule":                        {syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_DELRULE}}, change{routes: true}},
		"neighbour":                   {syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWNEIGH}}, change{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := testTracker().read(test.message)
			if d := cmp.Diff(test.want, got, cmp.AllowUnexported(change{})); d != "" {
				t.Errorf("change (-want +got):\n%s", d)
			}
		})
	}
}

func FuzzTrackerRead(f *testing.F) {
	for _, m := range []syscall.NetlinkMessage{
		route("198.51.100.0/24", otherIndex, nil),
		linkMessage(unix.RTM_NEWLINK, unix.AF_UNSPEC, 9, "own2", 1500),
		addressMessage(ownIndex),
	} {
		f.Add(m.Header.Type, m.Data)
	}
	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		tracker := testTracker()
		c := tracker.read(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: data})
		if c.gone != 0 && tracker.links[c.gone].own {
			t.Errorf("link %d is gone and still known", c.gone)
		}
	})
}
