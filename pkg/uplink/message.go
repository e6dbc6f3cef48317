// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"bytes"
	"encoding/binary"
	"iter"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// change is what one netlink message means to us.
type change struct {
	uplinks bool // the set of uplinks, or an address, may be another
	urgent  bool // what leaves by an uplink may be lost until the new one is known
	routes  bool // the kernel may route a packet differently
	links   bool // a device that is not our own has come, gone or changed
	// addresses says that the host has an address more or less; those of our own
	// devices do not count.
	addresses bool
	gone      int // interface index of a device of our own that has ended
}

// linkState is what of a link matters to routing.
type linkState struct {
	own bool
	// up is IFF_UP and IFF_LOWER_UP: IPv4 routes vanish without a message
	// when a device goes down.
	up   uint32
	mtu  uint32
	mac  [6]byte
	name string
}

// tracker reads rtnetlink messages and knows enough of the links to tell the
// messages that matter from the many that adding an endpoint makes.
type tracker struct {
	own      func(name string) bool
	protocol uint8
	links    map[int]linkState
}

func newTracker(own func(string) bool, protocol uint8, links []netlink.Link) *tracker {
	t := &tracker{own: own, protocol: protocol, links: make(map[int]linkState, len(links))}
	for _, link := range links {
		attrs := link.Attrs()
		s := linkState{own: own(attrs.Name), up: attrs.RawFlags & upFlags, mtu: uint32(attrs.MTU), name: attrs.Name}
		copy(s.mac[:], attrs.HardwareAddr)
		t.links[attrs.Index] = s.reduced()
	}
	return t
}

const upFlags = unix.IFF_UP | unix.IFF_LOWER_UP

// reduced forgets of our own links what is never asked.
func (s linkState) reduced() linkState {
	if s.own {
		return linkState{own: true}
	}
	return s
}

// read returns what a message means. A message that is too short means
// nothing: the kernel sends none.
func (t *tracker) read(m syscall.NetlinkMessage) change {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return t.readLink(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Data) < unix.SizeofIfAddrmsg {
			return change{}
		}
		index := nl.DeserializeIfAddrmsg(m.Data).Index
		others := !t.links[int(index)].own
		return change{uplinks: others, addresses: others}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return t.readRoute(m)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE, unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		return change{routes: true}
	}
	return change{}
}

func (t *tracker) readLink(m syscall.NetlinkMessage) change {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return change{}
	}
	msg := nl.DeserializeIfInfomsg(m.Data)
	if msg.Family != unix.AF_UNSPEC {
		return change{} // AF_BRIDGE: a port has left its bridge, the link lives on
	}
	index := int(msg.Index)
	if m.Header.Type == unix.RTM_DELLINK {
		was := t.links[index]
		delete(t.links, index)
		if was.own {
			return change{gone: index}
		}
		return change{uplinks: true, routes: true, links: true}
	}
	s := linkState{up: msg.Flags & upFlags}
	for kind, value := range attributes(m.Data[unix.SizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			s.name = string(bytes.TrimRight(value, "\x00"))
		case unix.IFLA_MTU:
			s.mtu = number(value)
		case unix.IFLA_ADDRESS:
			copy(s.mac[:], value)
		}
	}
	s.own = t.own(s.name)
	s = s.reduced()
	was, known := t.links[index]
	t.links[index] = s
	if s.own || known && was == s {
		return change{}
	}
	return change{uplinks: true, routes: true, links: true}
}

func (t *tracker) readRoute(m syscall.NetlinkMessage) change {
	if len(m.Data) < unix.SizeofRtMsg {
		return change{}
	}
	msg := nl.DeserializeRtMsg(m.Data)
	if msg.Flags&unix.RTM_F_CLONED != 0 || t.protocol != 0 && msg.Protocol == t.protocol {
		return change{}
	}
	if msg.Family != unix.AF_INET && msg.Family != unix.AF_INET6 {
		return change{}
	}
	switch msg.Type {
	case unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST:
		return change{} // the datapath leaves these to the stack
	}
	table := uint32(msg.Table)
	for kind, value := range attributes(m.Data[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_TABLE:
			table = number(value)
		case unix.RTA_OIF:
			if t.links[int(number(value))].own {
				return change{}
			}
		case unix.RTA_DST:
			if msg.Family == unix.AF_INET6 && linkLocal(value) {
				return change{}
			}
		}
	}
	outward := msg.Dst_len == 0 && table == unix.RT_TABLE_MAIN
	return change{routes: true, uplinks: outward, urgent: outward}
}

// linkLocal tells whether an IPv6 destination is in fe80::/10 or ff00::/8,
// which are never forwarded (RFC 4291, 2.5.6).
func linkLocal(dst []byte) bool {
	return len(dst) >= 2 && (dst[0] == 0xff || dst[0] == 0xfe && dst[1]&0xc0 == 0x80)
}

// attributes yields the attributes (struct rtattr) of a message, until its end
// or the first that is cut short.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			length := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if length < unix.SizeofRtAttr || length > len(b) || !yield(kind, b[unix.SizeofRtAttr:length]) {
				return
			}
			b = b[min((length+3)&^3, len(b)):] // RTA_ALIGN
		}
	}
}

// number reads an attribute of type u32; one that is too short is 0.
func number(value []byte) uint32 {
	if len(value) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(value)
}
