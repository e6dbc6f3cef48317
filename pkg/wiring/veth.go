// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// ErrTaken is returned by CreateVeth when one of the two names is in use.
var ErrTaken = errors.New("interface name is taken")

const vethInfoPeer = 1 // VETH_INFO_PEER of linux/veth.h

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
	made, err := readLink(answers[1])
	if err != nil {
		// Not known is not made: take the pair back.
		return Links{}, errors.Join(fmt.Errorf("look up %s: %w", v.HostName, err), RemoveVeth(host, v.HostName))
	}
	return Links{Veth: v, HostIndex: made.index, Index: made.peer}, nil
}

// taken finds out which of the two names the kernel meant.
func taken(host *Namespace, v Veth, cause error) error {
	where, name := "container", v.Name
	if exists, err := LinkExists(host, v.HostName); err == nil && exists {
		where, name = "host", v.HostName
	}
	return fmt.Errorf("create %s in the %s: %w: %w", name, where, ErrTaken, cause)
}

// IsPair tells whether the two names are the sides of one veth pair.
func IsPair(host, container *Namespace, hostName, name string) (bool, error) {
	var sides [2]link
	for i, one := range []struct {
		in   *Namespace
		name string
	}{{host, hostName}, {container, name}} {
		absent := false
		answers, err := one.in.exchange([]message{getLinkUnless(&absent, one.name)})
		if err != nil || absent {
			return false, err
		}
		if sides[i], err = readLink(answers[0]); err != nil {
			return false, fmt.Errorf("look up link %s: %w", one.name, err)
		}
	}
	a, b := sides[0], sides[1]
	return a.kind == "veth" && b.kind == "veth" && a.peer == b.index && b.peer == a.index, nil
}

// RemoveVeth removes the pair whose host side has the name. That nothing has
// it is no error.
func RemoveVeth(host *Namespace, hostName string) error { return removeLink(host, hostName) }
