// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// ErrTaken is returned by CreateVeth when one of the two names is in use.
var ErrTaken = errors.New("interface name is taken")

// Constants of linux/if_link.h that x/sys lacks.
const (
	vethInfoPeer     = 1 // VETH_INFO_PEER
	inet6AddrGenMode = 8 // IFLA_INET6_ADDR_GEN_MODE
	addrGenModeNone  = 1 // IN6_ADDR_GEN_MODE_NONE
	skipStatistics   = 8 // RTEXT_FILTER_SKIP_STATS
)

// Veth says how a veth pair is made.
type Veth struct {
	// HostName and Name of the host's and the container's side.
	HostName, Name string
	// HostMAC and MAC are theirs, 6 bytes each.
	HostMAC, MAC net.HardwareAddr
	// MTU of both in bytes; 0 takes the kernel's 1500.
	MTU int
}

// Links are the two sides of a veth pair as they exist.
type Links struct {
	Veth
	// HostIndex and Index are the interface indexes, each in its namespace.
	HostIndex, Index int
}

// CreateVeth makes the pair, both sides down. The container's side is born in
// its namespace under its name, so there is no move and no rename, which cost
// a grace period each. The error is ErrTaken when a name is in use.
func CreateVeth(host, container *Namespace, v Veth) (Links, error) {
	peer := header(unix.IfInfomsg{})
	peer = linkAttributes(peer, v.Name, v.MAC, v.MTU)
	peer = attribute32(peer, unix.IFLA_NET_NS_FD, uint32(container.file.Fd()))
	info := attributeString(nil, unix.IFLA_INFO_KIND, "veth")
	info = attribute(info, unix.IFLA_INFO_DATA, attribute(nil, vethInfoPeer, peer))
	body := linkAttributes(header(unix.IfInfomsg{}), v.HostName, v.HostMAC, v.MTU)
	body = attribute(body, unix.IFLA_LINKINFO, info)

	answers, err := host.exchange([]message{{
		kind: unix.RTM_NEWLINK, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, body: body,
		what: fmt.Sprintf("create veth pair %s and %s", v.HostName, v.Name),
	}, getLink(v.HostName)})
	if errors.Is(err, unix.EEXIST) {
		return Links{}, taken(host, v, err)
	}
	if err != nil {
		return Links{}, err
	}
	links := Links{Veth: v}
	links.HostIndex, links.Index, err = indexes(answers[1])
	if err != nil {
		// Not known is not made: take the pair back.
		return Links{}, errors.Join(fmt.Errorf("look up %s: %w", v.HostName, err), RemoveVeth(host, v.HostName))
	}
	return links, nil
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

// taken finds out which of the two names the kernel meant.
func taken(host *Namespace, v Veth, cause error) error {
	where, name := "container", v.Name
	if exists, err := LinkExists(host, v.HostName); err == nil && exists {
		where, name = "host", v.HostName
	}
	return fmt.Errorf("create %s in the %s: %w: %w", name, where, ErrTaken, cause)
}

// RemoveVeth removes the pair whose host side has the name. That nothing has
// it is no error.
func RemoveVeth(host *Namespace, hostName string) error {
	_, err := host.exchange([]message{{
		kind: unix.RTM_DELLINK, body: attributeString(header(unix.IfInfomsg{}), unix.IFLA_IFNAME, hostName),
		what: "remove link " + hostName, tolerate: []unix.Errno{unix.ENODEV},
	}})
	return err
}

// LinkExists says whether a link in the namespace goes by the name.
func LinkExists(n *Namespace, name string) (bool, error) {
	absent := false
	get := getLink(name)
	get.tolerate, get.tolerated = []unix.Errno{unix.ENODEV}, &absent
	_, err := n.exchange([]message{get})
	return err == nil && !absent, err
}

func getLink(name string) message {
	body := attributeString(header(unix.IfInfomsg{}), unix.IFLA_IFNAME, name)
	return message{
		kind: unix.RTM_GETLINK, body: attribute32(body, unix.IFLA_EXT_MASK, skipStatistics),
		what: "look up link " + name, asks: true,
	}
}

// indexes reads a veth's own interface index and that of its peer from an
// RTM_NEWLINK.
func indexes(answer []byte) (own, peer int, err error) {
	if len(answer) < unix.SizeofIfInfomsg {
		return 0, 0, errors.New("answer is cut short")
	}
	own = int(int32(binary.NativeEndian.Uint32(answer[4:])))
	peer = own // the kernel leaves out a peer of the same number
	if link := attributes(answer[unix.SizeofIfInfomsg:])[unix.IFLA_LINK]; len(link) == 4 {
		peer = int(binary.NativeEndian.Uint32(link))
	}
	return own, peer, nil
}

// up is the message that sets a link up, with its MTU where that is not 0.
func up(index int, name string, mtu int) message {
	body := header(unix.IfInfomsg{Index: int32(index), Flags: unix.IFF_UP, Change: unix.IFF_UP})
	if mtu != 0 {
		body = attribute32(body, unix.IFLA_MTU, uint32(mtu))
	}
	return message{kind: unix.RTM_NEWLINK, body: body, what: fmt.Sprintf("set %s up with mtu %d", name, mtu)}
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
