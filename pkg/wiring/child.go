// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrParent is returned by CreateChild when the parent cannot have the child.
var ErrParent = errors.New("the device cannot have it as its child")

// BroadcastQueueSince is the first version of Linux that lets the length of the queue for
// broadcasts be chosen, by the attribute IFLA_MACVLAN_BC_QUEUE_LEN.
const BroadcastQueueSince = "5.11"

// ErrNoBroadcastQueue is returned by CreateChild on kernels before BroadcastQueueSince.
var ErrNoBroadcastQueue = errors.New("the kernel does not let its length be chosen (Linux before " + BroadcastQueueSince + ")")

const kindMacvlan = "macvlan"

// Modes of macvlan devices as the kernel has them, MACVLAN_MODE_* of linux/if_link.h, by
// the names that ip-link(8) has for them.
const (
	ModePrivate  = "private"
	ModeVEPA     = "vepa"
	ModeBridge   = "bridge"
	ModePassthru = "passthru"
)

var modeNumbers = map[string]uint32{ModePrivate: 1, ModeVEPA: 2, ModeBridge: 4, ModePassthru: 8}

// Child says how a macvlan device of a container is made.
type Child struct {
	// Name in the container, and BornAs which it has while it is made: kernels before 6.15
	// have it on the node first, where the name must be free and nobody's concern.
	Name, BornAs string
	// MAC of 6 bytes. With ModePassthru it is the parent's in any case.
	MAC net.HardwareAddr
	// MTU in bytes, not above the parent's; 0 takes the parent's.
	MTU int
	// Parent is the device that the child rides on: of the node, or where Index is given of the
	// container.
	Parent string
	// Index is what IndexInContainer gives for a child whose parent is in the container; 0 for others.
	Index int
	// Mode is one of the kernel's.
	Mode string
	// BroadcastQueue is how many broadcasts may wait to be given to the children of the
	// parent, in frames. The parent has the most that a child asks for; 0 asks for nothing.
	BroadcastQueue uint32
}

// ChildLink is a macvlan device as it exists.
type ChildLink struct {
	// NetNS is the inode number of the network namespace that it is in; 0 where that was not
	// asked by a path.
	NetNS uint64
	// Number is what the node has for that namespace, until nobody is in it any more: by it
	// and Index the device is found wherever its path has gone, whatever it is called.
	Number int
	Index  int
	MAC    net.HardwareAddr
	// Parent is the interface index of what it rides on, 0 when that is no device of the
	// node.
	Parent int
	// Inside is that of what it rides on in the namespace that it is in itself, 0 when that is
	// none there: then there is a Parent, or somebody in the container has made it.
	Inside int
	Mode   string
}

// firstInContainer is above what the kernel gives by itself: it counts devices from 1.
const firstInContainer = 1 << 30

// IndexInContainer is the interface index of a child whose parent is in the container: no device of
// the node has it, nor has one of any other container that is attached, if number is its own.
func IndexInContainer(number uint16) int { return firstInContainer | int(number) }

// foreign tells whether somebody in the container has made it.
func (l ChildLink) foreign() bool {
	return l.Parent == 0 && (l.Inside == 0 || l.Index < firstInContainer)
}

// Master is a device that a child may ride on.
type Master struct {
	MAC net.HardwareAddr
	// MTU in bytes.
	MTU int
}

// MasterError says why a device can have no child.
type MasterError struct{ Reason string }

func (e *MasterError) Error() string { return e.Reason }

// FindMaster looks for the device of that name. Errors are unix.ENODEV when there is none, and *MasterError.
func FindMaster(at *Namespace, name string) (Master, error) {
	answers, err := at.exchange([]message{getLink(name)})
	if err != nil {
		return Master{}, err
	}
	found, err := readLink(answers[0])
	switch {
	case err != nil:
		return Master{}, fmt.Errorf("look up link %s: %w", name, err)
	case binary.NativeEndian.Uint16(answers[0][2:]) != unix.ARPHRD_ETHER || len(found.mac) != 6:
		return Master{}, &MasterError{"is no Ethernet device"}
	case found.kind == kindMacvlan: // of which the kernel makes the child a sibling
		return Master{}, &MasterError{"is a macvlan device itself: name the device that it rides on"}
	}
	return Master{MAC: found.mac, MTU: found.mtu}, nil
}

// CreateChild makes the child, down, in the container's namespace. Errors are ErrTaken when the container has something of that
// name, ErrParent when the parent does not take the child, ErrNoBroadcastQueue, and
// unix.ENODEV when there is no parent.
func CreateChild(host, container *Namespace, c Child) (ChildLink, error) {
	at := host
	if c.Index != 0 {
		at = container
	}
	answers, err := at.exchange([]message{getLink(c.Parent)})
	if err != nil {
		return ChildLink{}, err
	}
	parent, err := readLink(answers[0])
	if err != nil {
		return ChildLink{}, fmt.Errorf("look up link %s: %w", c.Parent, err)
	}
	if c.MTU > parent.mtu {
		return ChildLink{}, fmt.Errorf("make %s with mtu %d a child of %s, whose mtu is %d: %w", c.Name, c.MTU, c.Parent, parent.mtu, ErrParent)
	}
	data := attribute32(nil, unix.IFLA_MACVLAN_MODE, modeNumbers[c.Mode])
	if c.BroadcastQueue != 0 {
		data = attribute32(data, unix.IFLA_MACVLAN_BC_QUEUE_LEN, c.BroadcastQueue)
	}
	info := attributeString(nil, unix.IFLA_INFO_KIND, kindMacvlan)
	info = attribute(info, unix.IFLA_INFO_DATA, data)
	body := linkAttributes(header(unix.IfInfomsg{Index: int32(c.Index)}), c.BornAs, c.MAC, c.MTU)
	body = attribute32(body, unix.IFLA_LINK, uint32(parent.index))
	if c.Index == 0 {
		// Made in the container, the request has newer kernels never show it on the node.
		node, err := container.number(host.file)
		if err != nil {
			return ChildLink{}, err
		}
		body = attribute32(body, unix.IFLA_LINK_NETNSID, uint32(node))
	}
	body = attribute(body, unix.IFLA_LINKINFO, info)
	answers, err = container.exchange([]message{{
		kind: unix.RTM_NEWLINK, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, body: body,
		what: fmt.Sprintf("make %s a child of %s", c.Name, c.Parent),
	}, getLink(c.BornAs)})
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINVAL):
		return ChildLink{}, fmt.Errorf("%w: %w: %s", err, ErrParent, reasonOf(c, parent))
	case err != nil:
		return ChildLink{}, err
	}
	made, err := readLink(answers[1])
	if err == nil && c.BroadcastQueue != 0 && made.data[unix.IFLA_MACVLAN_BC_QUEUE_LEN] == nil {
		err = fmt.Errorf("set the queue for broadcasts: %w", ErrNoBroadcastQueue)
	}
	if err == nil {
		_, err = container.exchange([]message{{
			kind: unix.RTM_NEWLINK, what: "name it " + c.Name,
			body: attributeString(header(unix.IfInfomsg{Index: int32(made.index)}), unix.IFLA_IFNAME, c.Name),
		}})
	}
	if errors.Is(err, unix.EEXIST) {
		err = fmt.Errorf("%w: %w", ErrTaken, err)
	}
	if err != nil {
		return ChildLink{}, errors.Join(fmt.Errorf("make %s a child of %s: %w", c.Name, c.Parent, err), removeLink(container, c.BornAs))
	}
	link := ChildLink{Index: made.index, MAC: made.mac, Parent: parent.index, Mode: c.Mode}
	if c.Index != 0 {
		link.Parent, link.Inside = 0, parent.index
	}
	link.Number, err = host.number(container.file)
	if err == nil {
		link.NetNS, err = inodeOf(container.file)
	}
	return link, err
}

// reasonOf guesses why the kernel has refused: it says no more than EBUSY or EINVAL.
func reasonOf(c Child, parent link) string {
	switch {
	case parent.master != 0:
		return c.Parent + " is a port of a bridge, a bond or the like"
	case c.Mode == ModePassthru:
		return "with mode passthru it must be the only child, and there is another"
	}
	return "it has a child of mode passthru, or something else takes all its frames"
}

// Housed is all that a container with a macvlan device is given.
type Housed struct {
	// MTU in bytes; 0 leaves it as it is.
	MTU int
	// Addresses with the length of their subnet, which is on the link.
	Addresses []netip.Prefix
	Routes    []Route
}

func (h Housed) station(name string, index int) station {
	return station{name: name, index: index, mtu: h.MTU, addresses: h.Addresses, routes: h.Routes}
}

// RaiseChild sets a child up that has no addresses yet.
func RaiseChild(container *Namespace, name string, child ChildLink) error {
	_, err := station{name: name, index: child.Index}.inhabit(container)
	return err
}

// ConfigureChild gives the child its addresses and routes and sets it up. It returns the
// routes that the container has now, as Configure does.
func ConfigureChild(container *Namespace, name string, child ChildLink, h Housed) ([]Route, error) {
	routes, err := h.station(name, child.Index).inhabit(container)
	if err != nil {
		return nil, fmt.Errorf("configure the container's side: %w", err)
	}
	return routes, nil
}

// SettleChild is Settle for what ConfigureChild made. That the parent is down, or has no
// carrier, may be so for long: it is not waited for.
func SettleChild(container *Namespace, name string, h Housed) error {
	return settle(container, name, h.station("", 0).ipv6(), time.Now().Add(settleTimeout))
}

// CheckChild compares the child with what CreateChild and ConfigureChild made of c and h,
// as Check does, and looks at the parent.
func CheckChild(host, container *Namespace, c Child, h Housed) error {
	seen, err := observe(container, c.Name, h.Routes)
	if err != nil {
		return err
	}
	differences := seen.compare(" in the container", kindMacvlan, c.Name, c.MAC, h.MTU)
	if seen.link != nil && seen.link.Type() == kindMacvlan {
		found, err := FindChild(host, container.Path(), c.Name)
		if err != nil {
			return err
		}
		different, err := found.compare(host, container, c)
		if err != nil {
			return err
		}
		differences = append(differences, different...)
	}
	return mismatch(append(differences, h.station(c.Name, 0).compare(seen)...))
}

// compare judges what only a macvlan device has.
func (l ChildLink) compare(host, container *Namespace, c Child) (differences []string, err error) {
	at, where, ridesOn := host, "on the host", l.Parent
	if c.Index != 0 {
		at, where, ridesOn = container, "in the container", l.Inside
	}
	get := getLink(c.Parent)
	get.tolerate = []unix.Errno{unix.ENODEV}
	answers, err := at.exchange([]message{get})
	if err != nil {
		return nil, err
	}
	if c.Index != 0 && l.Index != c.Index {
		differences = append(differences, fmt.Sprintf("link %s in the container has index %d, not %d", c.Name, l.Index, c.Index))
	}
	if answers[0] == nil {
		differences = append(differences, fmt.Sprintf("link %s is missing %s", c.Parent, where))
	} else if parent, err := readLink(answers[0]); err != nil {
		return nil, fmt.Errorf("look up link %s: %w", c.Parent, err)
	} else if parent.index != ridesOn {
		differences = append(differences, fmt.Sprintf("link %s in the container is no child of %s", c.Name, c.Parent))
	}
	if l.Mode != c.Mode {
		differences = append(differences, fmt.Sprintf("mode of %s in the container is %s, not %s", c.Name, l.Mode, c.Mode))
	}
	return differences, nil
}

// FindChild looks for the macvlan device of that name in the network namespace at path. It
// does not enter it, which would take CAP_SYS_ADMIN. Errors are fs.ErrNotExist when there is
// nothing at path, ErrNotNamespace when there is something else, and unix.ENODEV when the
// namespace, of which ChildLink tells then, has no such device.
func FindChild(host *Namespace, path, name string) (ChildLink, error) {
	file, err := os.Open(path)
	if err != nil {
		return ChildLink{}, fmt.Errorf("open network namespace: %w", err)
	}
	defer func() { _ = file.Close() }()
	number, err := host.number(file)
	if err != nil {
		return ChildLink{}, err
	}
	inode, err := inodeOf(file)
	if err != nil {
		return ChildLink{}, err
	}
	child, err := host.child(number, getLink(name))
	child.NetNS = inode
	if err != nil {
		return child, fmt.Errorf("find macvlan device %s in %s: %w", name, path, err)
	}
	return child, nil
}

// FindChildAt looks for the macvlan device of that index in the network namespace of that
// number, which may be another's when that has gone. The error is unix.ENODEV when there is no
// such device, or no such namespace.
func FindChildAt(host *Namespace, number, index int) (ChildLink, error) {
	child, err := host.child(number, getLinkAt(index))
	if errors.Is(err, unix.EINVAL) { // the kernel's word for a number that is nobody's
		err = unix.ENODEV
	}
	if err != nil {
		return child, fmt.Errorf("find macvlan device %d in network namespace %d: %w", index, number, err)
	}
	return child, nil
}

// child asks for a macvlan device in another namespace.
func (n *Namespace) child(number int, get message) (ChildLink, error) {
	child := ChildLink{Number: number}
	own, err := n.number(n.file)
	if err != nil {
		return child, err
	}
	get.body = attribute32(get.body, unix.IFLA_TARGET_NETNSID, uint32(number))
	answers, err := n.exchange([]message{get})
	if err != nil {
		return child, err
	}
	found, err := readLink(answers[0])
	if err == nil && found.kind != kindMacvlan {
		err = unix.ENODEV
	}
	if err != nil {
		return child, err
	}
	child.Index, child.MAC, child.Mode = found.index, found.mac, nameOfMode(found)
	// What the kernel says of the parent's namespace is by the node's numbers, too.
	switch {
	case found.peerNS == own && number != own:
		child.Parent = found.peer
	case found.peerNS == noNamespace || found.peerNS == number:
		child.Inside = found.peer
	}
	return child, nil
}

func nameOfMode(l link) string {
	value := l.data[unix.IFLA_MACVLAN_MODE]
	if len(value) != 4 {
		return ""
	}
	for name, number := range modeNumbers {
		if number == binary.NativeEndian.Uint32(value) {
			return name
		}
	}
	return "source" // the only other one
}

// RemoveChild removes the children of these names from the network namespace at path: one
// whose maker died may have its first name. That there is none, or no namespace, is no
// error; what somebody in the container has made stays.
func RemoveChild(host *Namespace, path string, names ...string) error {
	for _, name := range names {
		child, err := FindChild(host, path, name)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, ErrNotNamespace):
			continue
		case err != nil:
			return err
		case child.foreign():
			continue
		}
		if err := RemoveFound(host, child); err != nil {
			return err
		}
	}
	return nil
}

// RemoveFound removes what FindChild or FindChildAt has found. That it is gone by now is no
// error.
func RemoveFound(host *Namespace, child ChildLink) error {
	body := header(unix.IfInfomsg{Index: int32(child.Index)})
	_, err := host.exchange([]message{{
		kind: unix.RTM_DELLINK, body: attribute32(body, unix.IFLA_TARGET_NETNSID, uint32(child.Number)),
		what:     fmt.Sprintf("remove macvlan device %d from network namespace %d", child.Index, child.Number),
		tolerate: []unix.Errno{unix.ENODEV, unix.EINVAL}, // of a number that is nobody's
	}})
	return err
}
