// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/sys/unix"
)

// Constants of linux/if_link.h and linux/if.h that x/sys lacks.
const (
	inet6AddrGenMode = 8 // IFLA_INET6_ADDR_GEN_MODE
	addrGenModeNone  = 1 // IN6_ADDR_GEN_MODE_NONE
	skipStatistics   = 8 // RTEXT_FILTER_SKIP_STATS
	operUnknown      = 0 // IF_OPER_UNKNOWN
	operUp           = 6 // IF_OPER_UP
)

// LinkExists says whether a link in the namespace goes by the name.
func LinkExists(n *Namespace, name string) (bool, error) {
	absent := false
	_, err := n.exchange([]message{getLinkUnless(&absent, name)})
	return err == nil && !absent, err
}

// getLinkUnless is getLink where there may be none, which is noted.
func getLinkUnless(absent *bool, name string) message {
	get := getLink(name)
	get.tolerate, get.tolerated = []unix.Errno{unix.ENODEV}, absent
	return get
}

func getLink(name string) message {
	return getLinkBy(attributeString(header(unix.IfInfomsg{}), unix.IFLA_IFNAME, name), name)
}

func getLinkAt(index int) message {
	return getLinkBy(header(unix.IfInfomsg{Index: int32(index)}), strconv.Itoa(index))
}

func getLinkBy(body []byte, what string) message {
	return message{
		kind: unix.RTM_GETLINK, body: attribute32(body, unix.IFLA_EXT_MASK, skipStatistics),
		what: "look up link " + what, asks: true,
	}
}

// removeLink removes the link of the name, where there is one.
func removeLink(n *Namespace, name string) error {
	_, err := n.exchange([]message{{
		kind: unix.RTM_DELLINK, body: attributeString(header(unix.IfInfomsg{}), unix.IFLA_IFNAME, name),
		what: "remove link " + name, tolerate: []unix.Errno{unix.ENODEV},
	}})
	return err
}

// link is what an RTM_NEWLINK says of a link.
type link struct {
	index int
	// peer is the index of a veth's other side, or of the device that the link rides on, in
	// its namespace, which peerNS is the number of; absent where it is the link's own.
	peer   int
	peerNS int
	flags  uint32 // IFF_*
	// kind is "veth", "bridge" and so on, or empty for a device of a driver's.
	kind string
	mac  net.HardwareAddr
	mtu  int
	// operational: the link is up, has a carrier, and the kernel has put it to use.
	operational bool
	// silent: the link is up and has no carrier. A macvlan device's is its parent's.
	silent bool
	// data is what there is of the kind alone: IFLA_MACVLAN_* and so on.
	data map[uint16][]byte
	// master is the index of the bridge that the link is a port of, or 0.
	master int
	port   port
}

// port is what there is of a link as a bridge's port.
type port struct {
	state             uint8 // BR_STATE_*
	hairpin, isolated bool
}

func readLink(answer []byte) (link, error) {
	if len(answer) < unix.SizeofIfInfomsg {
		return link{}, errors.New("answer is cut short")
	}
	l := link{
		index: int(int32(binary.NativeEndian.Uint32(answer[4:]))),
		flags: binary.NativeEndian.Uint32(answer[8:]),
	}
	found := attributes(answer[unix.SizeofIfInfomsg:])
	info := attributes(found[unix.IFLA_LINKINFO])
	number := func(kind uint16, absent int) int {
		if value := found[kind]; len(value) == 4 {
			return int(binary.NativeEndian.Uint32(value))
		}
		return absent
	}
	octet := func(of map[uint16][]byte, kind uint16) uint8 {
		if value := of[kind]; len(value) == 1 {
			return value[0]
		}
		return 0
	}
	l.peer = number(unix.IFLA_LINK, l.index) // the kernel leaves out a peer of the same number
	l.peerNS = number(unix.IFLA_LINK_NETNSID, noNamespace)
	l.mtu, l.master = number(unix.IFLA_MTU, 0), number(unix.IFLA_MASTER, 0)
	l.data = attributes(info[unix.IFLA_INFO_DATA])
	l.kind = string(bytes.TrimRight(info[unix.IFLA_INFO_KIND], "\x00"))
	l.mac = found[unix.IFLA_ADDRESS]
	state := octet(found, unix.IFLA_OPERSTATE)
	// A bridge that was up before it had a port has had a carrier all along, and is asked no more; so has a VLAN of it.
	l.operational = state == operUp || (l.kind == "bridge" || l.kind == kindVLAN) && state == operUnknown && l.flags&unix.IFF_LOWER_UP != 0
	l.silent = l.flags&(unix.IFF_UP|unix.IFF_LOWER_UP) == unix.IFF_UP
	if string(bytes.TrimRight(info[unix.IFLA_INFO_SLAVE_KIND], "\x00")) == "bridge" {
		data := attributes(info[unix.IFLA_INFO_SLAVE_DATA])
		l.port = port{
			state: octet(data, unix.IFLA_BRPORT_STATE), hairpin: octet(data, unix.IFLA_BRPORT_MODE) != 0,
			isolated: octet(data, unix.IFLA_BRPORT_ISOLATED) != 0,
		}
	}
	return l, nil
}

func linkAttributes(body []byte, name string, mac net.HardwareAddr, mtu int) []byte {
	body = attributeString(body, unix.IFLA_IFNAME, name)
	if len(mac) != 0 {
		body = attribute(body, unix.IFLA_ADDRESS, mac)
	}
	if mtu != 0 {
		body = attribute32(body, unix.IFLA_MTU, uint32(mtu))
	}
	return body
}

// up is the message that sets a link up, with its MTU where that is not 0.
func up(index int, name string, mtu int) message {
	body := header(unix.IfInfomsg{Index: int32(index), Flags: unix.IFF_UP, Change: unix.IFF_UP})
	if mtu != 0 {
		body = attribute32(body, unix.IFLA_MTU, uint32(mtu))
	}
	return message{kind: unix.RTM_NEWLINK, body: body, what: fmt.Sprintf("set %s up with mtu %d", name, mtu)}
}

func down(index int, name string) message {
	return message{
		kind: unix.RTM_NEWLINK, body: header(unix.IfInfomsg{Index: int32(index), Change: unix.IFF_UP}), what: "set " + name + " down",
	}
}

// noLinkLocal is the message that keeps the kernel from giving a link an IPv6
// link-local address once it is up.
func noLinkLocal(index int, name string) message {
	inet6 := attribute(nil, inet6AddrGenMode, []byte{addrGenModeNone})
	return message{
		kind: unix.RTM_NEWLINK,
		body: attribute(header(unix.IfInfomsg{Index: int32(index)}), unix.IFLA_AF_SPEC, attribute(nil, unix.AF_INET6, inet6)),
		what: "turn off link-local addresses of " + name,
		// A kernel booted with ipv6.disable=1 gives none anyway.
		tolerate: []unix.Errno{unix.EAFNOSUPPORT, unix.EINVAL},
	}
}
