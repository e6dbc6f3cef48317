// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/ifname"
	"github.com/tendril-net/tendril/internal/mac"
	"github.com/tendril-net/tendril/internal/vlan"
)

// ErrNotBridge is returned by EnsureBridge, EnsureGateways and ConfigureBridged when the
// device of the bridge's name is something else.
var ErrNotBridge = errors.New("not a bridge")

// ErrDuplicate is returned by SettleBridged when another station on the link has said that
// an address is its own.
var ErrDuplicate = errors.New("address is in use on the link")

// ErrOverlap is returned by EnsureGateways when the bridge has another address of one of
// the subnets.
var ErrOverlap = errors.New("subnets overlap")

// Bridge is a Linux bridge of the node, which endpoints are ports of.
type Bridge struct {
	Name string
	// MTU of a bridge that is made, in bytes; 0 takes the kernel's 1500. From its first
	// port on the kernel keeps it at the least of its ports', as it does where nobody
	// has set one by hand.
	MTU int
	// Promisc has the bridge get all frames that its ports see.
	Promisc bool
	// MAC of a bridge that is made; nil takes a random one.
	MAC net.HardwareAddr
	// VLAN, 1 to 4094, is that of the endpoints' ports; 0 leaves them where ports are by
	// themselves.
	VLAN int
	// Filters has the bridge keep its VLANs apart, as it does with VLAN.
	Filters bool
}

// Interface names the node's interface among the ports: the bridge, or its VLAN.
func (b Bridge) Interface() string { return ifname.VLAN(b.Name, b.VLAN) }

// BridgeLink is a bridge as it exists.
type BridgeLink struct {
	Index int
	MAC   net.HardwareAddr
	MTU   int
	// Made says that there was none before, VLANJoined that the bridge itself was not in the
	// VLAN.
	Made, VLANJoined bool
	// VLANMade is the index of the node's interface in the VLAN where there was none, else 0.
	VLANMade int
}

// EnsureBridge returns the bridge of that name, up, and makes it where there is none. One
// that is there is used, not taken over: what it has stays. A device of the name that is no
// bridge is ErrNotBridge. With a VLAN it also makes the node's interface there, and has a
// bridge whose ports are all endpoints' filter VLANs, as with Filters; where that cannot be, the
// error is ErrBridgeVLAN. What was made before an error is returned with it, for RemoveUnusedBridge.
func EnsureBridge(host *Namespace, b Bridge) (BridgeLink, error) {
	found, err := ensureUntagged(host, b)
	switch {
	case err != nil:
	case b.VLAN != 0:
		found.VLANMade, found.VLANJoined, err = ensureBridgeVLAN(host, b)
	case b.Filters:
		err = ensureFilter(host, b)
	}
	return found, err
}

// ensureUntagged is EnsureBridge for all but the VLAN.
func ensureUntagged(host *Namespace, b Bridge) (BridgeLink, error) {
	bridge, err := lookUpBridge(host, b.Name)
	if errors.Is(err, unix.ENODEV) {
		made, err := createBridge(host, b)
		if !errors.Is(err, unix.EEXIST) {
			return made, err
		}
		if bridge, err = lookUpBridge(host, b.Name); err != nil { // somebody else was faster
			return BridgeLink{}, err
		}
	} else if err != nil {
		return BridgeLink{}, err
	}
	if err := raiseBridge(host, b, bridge); err != nil {
		return BridgeLink{}, err
	}
	return BridgeLink{Index: bridge.index, MAC: bridge.mac, MTU: bridge.mtu}, nil
}

// lookUpBridge returns unix.ENODEV when there is no device of the name.
func lookUpBridge(host *Namespace, name string) (link, error) {
	answers, err := host.exchange([]message{getLink(name)})
	if err != nil {
		return link{}, err
	}
	return readBridge(answers[0], name)
}

// readBridge is readLink for what must be a bridge.
func readBridge(answer []byte, name string) (link, error) {
	bridge, err := readLink(answer)
	if err != nil {
		return link{}, fmt.Errorf("look up link %s: %w", name, err)
	}
	if bridge.kind != "bridge" {
		return bridge, fmt.Errorf("use %s %s: %w", kindName(bridge.kind), name, ErrNotBridge)
	}
	return bridge, nil
}

// kindName names a kind of link as ip-link(8) knows it. A device of a driver's has none.
func kindName(kind string) string {
	if kind == "" {
		return "device"
	}
	return kind
}

// createBridge returns unix.EEXIST when there is a device of the name by now. The bridge
// is born with a MAC of its own: one that is the kernel's choice changes with the ports.
func createBridge(host *Namespace, b Bridge) (BridgeLink, error) {
	own := b.MAC
	if own == nil {
		own = mac.Random()
	}
	body := linkAttributes(header(unix.IfInfomsg{}), b.Name, own, b.MTU)
	body = attribute(body, unix.IFLA_LINKINFO, attributeString(nil, unix.IFLA_INFO_KIND, "bridge"))
	answers, err := host.exchange([]message{{
		kind: unix.RTM_NEWLINK, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, body: body,
		what: "create bridge " + b.Name,
	}, getLink(b.Name)})
	if err != nil {
		return BridgeLink{}, err
	}
	bridge, err := readLink(answers[1])
	if err == nil {
		err = prepareIPv6(host, b.Name, false, "accept_ra", "accept_dad")
	}
	if err == nil {
		err = raiseBridge(host, b, bridge)
	}
	if err != nil {
		return BridgeLink{}, errors.Join(fmt.Errorf("create bridge %s: %w", b.Name, err), removeLink(host, b.Name))
	}
	return BridgeLink{Index: bridge.index, MAC: bridge.mac, MTU: bridge.mtu, Made: true}, nil
}

// RemoveUnusedBridge removes what EnsureBridge has made: the node's interface in the VLAN,
// unless a port is in that by now, and the bridge, unless it has a port or a device on it, or is
// gone. Nobody may be about to give it one: see to that.
func RemoveUnusedBridge(host *Namespace, b Bridge, found BridgeLink) error {
	if found.VLANMade != 0 || found.VLANJoined {
		if err := removeUnusedVLAN(host, b, found); err != nil {
			return err
		}
	}
	if !found.Made {
		return nil
	}
	links, err := links(host)
	if err != nil {
		return err
	}
	there := func(l netlink.Link) bool { return l.Attrs().Index == found.Index && l.Attrs().Name == b.Name }
	if slices.ContainsFunc(links, isPortOf(found.Index)) || slices.ContainsFunc(links, ridesOn(found.Index)) || !slices.ContainsFunc(links, there) {
		return nil
	}
	return removeLink(host, b.Name)
}

func isPortOf(bridge int) func(netlink.Link) bool {
	return func(l netlink.Link) bool { return l.Attrs().MasterIndex == bridge }
}

// ridesOn: a macvlan or VLAN device goes with what it is on. A veth's parent is its peer.
func ridesOn(lower int) func(netlink.Link) bool {
	return func(l netlink.Link) bool { return l.Type() != "veth" && l.Attrs().ParentIndex == lower }
}

// links lists all links of a namespace.
func links(n *Namespace) (all []netlink.Link, err error) {
	err = n.Do(func() error {
		if all, err = netlinksafe.LinkList(); err != nil {
			return fmt.Errorf("list links: %w", err)
		}
		return nil
	})
	return all, err
}

// raiseBridge sets the flags that the bridge lacks, and asks nothing of the kernel where
// it lacks none.
func raiseBridge(host *Namespace, b Bridge, bridge link) error {
	flags := uint32(unix.IFF_UP)
	if b.Promisc {
		flags |= unix.IFF_PROMISC
	}
	if bridge.flags&flags == flags {
		return nil
	}
	_, err := host.exchange([]message{{
		kind: unix.RTM_NEWLINK, body: header(unix.IfInfomsg{Index: int32(bridge.index), Flags: flags, Change: flags}),
		what: fmt.Sprintf("set bridge %s up", b.Name),
	}})
	return err
}

// EnsureGateways gives the node's interface of a bridge that is up the addresses by which
// containers reach the node, each with the length of its subnet, and returns once they are in
// use. Where one is missing, another address of its subnet is ErrOverlap, or with force is taken
// away. Those of IPv6 that are link-local do not count.
//
// It does not wait for the duplicate address detection of an address that somebody else
// gave: that begins with the bridge's first port.
func EnsureGateways(host *Namespace, b Bridge, gateways []netip.Prefix, force bool) error {
	_, err := ensureGateways(host, b, gateways, force)
	return err
}

// ensureGateways also returns which of the addresses were missing.
func ensureGateways(host *Namespace, b Bridge, gateways []netip.Prefix, force bool) (missing []netip.Prefix, err error) {
	name := b.Interface()
	bridge, err := addressesOfBridge(host, b)
	if err != nil {
		return nil, err
	}
	var inUse []message // ask which addresses are in use
	for _, gateway := range gateways {
		there, ok := bridge.addresses[gateway]
		if !ok {
			missing = append(missing, gateway)
		}
		if gateway.Addr().Is6() && (!ok || there.Flags&unix.IFA_F_NODAD != 0) {
			inUse = append(inUse, lookUpRoute(gateway.Addr(), 0))
		}
	}
	if len(missing) != 0 {
		messages, err := bridge.makeRoom(gateways, missing, force)
		if err != nil {
			return missing, err
		}
		for _, gateway := range gateways {
			// Those that are there too: an IPv4 address takes later ones of its subnet with it.
			add := address(unix.RTM_NEWADDR, bridge.index, name, gateway, unix.RT_SCOPE_UNIVERSE)
			add.tolerate = []unix.Errno{unix.EEXIST}
			messages = append(messages, add)
		}
		if inUse != nil {
			err = prepareIPv6(host, name, true)
		}
		if err == nil {
			_, err = host.exchange(messages)
		}
		if err != nil {
			return missing, err
		}
	}
	if inUse == nil {
		return missing, nil
	}
	return missing, wait{
		messages: inUse,
		ready: func(answers [][]byte) bool {
			return !slices.ContainsFunc(answers, func(answer []byte) bool { return !addressReady(answer) })
		},
		what: name + ": an address is not in use",
	}.until(host, time.Now().Add(settleTimeout))
}

// BridgeAddresses are those of the node's interface of a bridge, but for the link-local ones of
// IPv6.
func BridgeAddresses(host *Namespace, b Bridge) ([]netip.Prefix, error) {
	bridge, err := addressesOfBridge(host, b)
	all := slices.SortedFunc(maps.Keys(bridge.addresses), netip.Prefix.Compare)
	return slices.DeleteFunc(all, func(p netip.Prefix) bool { return p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() }), err
}

// addressed is the node's interface of a bridge with the addresses that it has.
type addressed struct {
	index     int
	name      string
	addresses map[netip.Prefix]netlink.Addr
}

func addressesOfBridge(host *Namespace, b Bridge) (addressed, error) {
	name, kind, fault := b.Interface(), "bridge", ErrNotBridge
	if b.VLAN != 0 {
		kind, fault = kindVLAN, ErrBridgeVLAN
	}
	found := addressed{name: name, addresses: make(map[netip.Prefix]netlink.Addr)}
	err := host.Do(func() error {
		bridge, err := netlinksafe.LinkByName(name)
		if absent := (netlink.LinkNotFoundError{}); errors.As(err, &absent) {
			err = unix.ENODEV
		}
		if err != nil {
			return fmt.Errorf("look up link %s: %w", name, err)
		}
		if bridge.Type() != kind {
			return fmt.Errorf("use %s %s: %w", kindName(bridge.Type()), name, fault)
		}
		found.index = bridge.Attrs().Index
		list, err := netlinksafe.AddrList(bridge, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list addresses of %s: %w", name, err)
		}
		for _, a := range list {
			if prefix, ok := prefixOf(a.IPNet, netlink.FAMILY_ALL); ok {
				found.addresses[prefix] = a
			}
		}
		return nil
	})
	return found, err
}

// makeRoom returns the messages that take away what is in the way of the missing ones of
// the gateways.
func (a addressed) makeRoom(gateways, missing []netip.Prefix, force bool) ([]message, error) {
	var messages []message
	for _, other := range slices.SortedFunc(maps.Keys(a.addresses), netip.Prefix.Compare) {
		at := slices.IndexFunc(missing, other.Overlaps)
		if at < 0 || slices.Contains(gateways, other) || other.Addr().Is6() && other.Addr().IsLinkLocalUnicast() {
			continue
		}
		if !force {
			return nil, fmt.Errorf("add address %s to %s, which has %s: %w", missing[at], a.name, other, ErrOverlap)
		}
		remove := address(unix.RTM_DELADDR, a.index, a.name, other, unix.RT_SCOPE_UNIVERSE)
		remove.tolerate = []unix.Errno{unix.EADDRNOTAVAIL} // gone with another of its subnet
		messages = append(messages, remove)
	}
	return messages, nil
}

// Bridged is all that a container of the driver "bridge" is given.
type Bridged struct {
	// Bridge whose port the host's side becomes, and the VLAN that it is in, untagged; 0 leaves
	// it in what the bridge has for new ports.
	Bridge string
	VLAN   int
	// Trunk are the VLANs that it is in as well, by tags. None may be one that it is in without:
	// that is ErrBridgeVLAN.
	Trunk vlan.Set
	// PreserveDefaultVLAN leaves the port in that as well: what others send there reaches it.
	PreserveDefaultVLAN bool
	// Hairpin lets the bridge send a frame back by the port that it came from.
	Hairpin bool
	// Isolated keeps the bridge from passing anything between this port and others that
	// are isolated.
	Isolated bool
	// DAD has the container ask the link whether somebody else has its IPv6 addresses (RFC
	// 4862, 5.4), for which SettleBridged waits.
	DAD bool
	// MTU of both sides in bytes; 0 leaves them as they are.
	MTU int
	// Addresses with the length of their subnet, which is on the link.
	Addresses []netip.Prefix
	Routes    []Route
	// Down leaves the container's side down, and without addresses: somebody else sets it up.
	Down bool
	// Gateways are the addresses that EnsureGateways has given the bridge, for CheckBridged.
	Gateways []netip.Prefix
}

// bridge is the bridge as far as it matters to its ports.
func (b Bridged) bridge() Bridge {
	return Bridge{Name: b.Bridge, VLAN: b.VLAN, Filters: len(b.Trunk) != 0}
}

func (b Bridged) station(name string, index int) station {
	return station{
		name: name, index: index, mtu: b.MTU, addresses: b.Addresses, routes: b.Routes, doubted: b.DAD,
		heedsRouters: len(b.Addresses) == 0, // it has no other way to an address and a route
	}
}

// ConfigureBridged makes the host's side a port of the bridge, gives the container's its
// addresses and routes and sets both up, but for one that is to be down. It returns the routes that the container has now,
// as Configure does. The error is unix.ENODEV when there is no such bridge.
//
// The neighbours are left to ARP and neighbour discovery, which a bridge carries.
func ConfigureBridged(host, container *Namespace, links Links, b Bridged) ([]Route, error) {
	if err := join(host, links, b, membership{}); err != nil {
		return nil, fmt.Errorf("configure the host's side: %w", err)
	}
	if b.Down {
		return nil, nil
	}
	routes, err := b.station(links.Name, links.Index).inhabit(container)
	if err != nil {
		return nil, fmt.Errorf("configure the container's side: %w", err)
	}
	return routes, nil
}

// membership is what there is of the host's side as a port of the bridge.
type membership struct {
	// joined says that it is one.
	joined bool
	// others are VLANs that it is in, and is not to be.
	others vlan.Set
}

// join makes the host's side a port as b has it.
func join(host *Namespace, links Links, b Bridged, before membership) error {
	bridge, err := lookUpBridge(host, b.Bridge)
	if err != nil {
		return err
	}
	if !before.joined {
		// Since EnsureBridge somebody may have made the bridge anew.
		if err := errors.Join(b.bridge().mustFilter(bridge.filter()), b.judgeTrunk(bridge.filter())); err != nil {
			return err
		}
	}
	index, name := links.HostIndex, links.HostName
	if err := prepareIPv6(host, name, false, "accept_ra"); err != nil {
		return err
	}
	// A MAC that nobody has set follows the ports as they come and go; to set it ends that.
	// The entry keeps the bridge from forgetting the container, whose frames
	// it does not see where the datapath takes them, and from flooding what is for it.
	messages := []message{noLinkLocal(index, name), {
		kind: unix.RTM_NEWLINK,
		body: attribute(header(unix.IfInfomsg{Index: int32(bridge.index)}), unix.IFLA_ADDRESS, bridge.mac),
		what: "fix the MAC of bridge " + b.Bridge,
	}, master(index, bridge.index, fmt.Sprintf("make %s a port of bridge %s", name, b.Bridge))}
	station := attribute(header(unix.NdMsg{
		Family: unix.AF_BRIDGE, Ifindex: int32(index), State: unix.NUD_NOARP, Flags: unix.NTF_MASTER,
	}), unix.NDA_LLADDR, links.MAC)
	if b.bridge().filters() {
		// A port begins in the VLAN of new ones: it is down until it is where it belongs, and
		// no port if it cannot get there.
		if !before.joined {
			messages = append([]message{down(index, name)}, messages...)
		}
		messages = append(messages, b.intoVLAN(bridge, index, name, before.others)...)
		if _, err := host.exchange(messages); err != nil {
			if !before.joined {
				_, undone := host.exchange([]message{master(index, 0, "take "+name+" out of bridge "+b.Bridge)})
				err = errors.Join(err, undone)
			}
			return err
		}
		messages = nil
	}
	stations := [][]byte{station} // in all VLANs that there are
	if untagged := b.untagged(bridge.filter()); untagged != nil {
		stations = nil
		for _, id := range untagged {
			stations = append(stations, attribute16(slices.Clone(station), unix.NDA_VLAN, uint16(id)))
		}
	}
	for _, known := range stations {
		messages = append(messages, message{
			kind: unix.RTM_NEWNEIGH, flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, body: known,
			what: fmt.Sprintf("tell bridge %s of %s", b.Bridge, links.MAC),
		})
	}
	for _, one := range []struct {
		wanted bool
		kind   uint16
		what   string
	}{{b.Hairpin, unix.IFLA_BRPORT_MODE, "set hairpin mode of "}, {b.Isolated, unix.IFLA_BRPORT_ISOLATED, "isolate "}} {
		if one.wanted {
			body := header(unix.IfInfomsg{Family: unix.AF_BRIDGE, Index: int32(index)})
			body = attribute(body, unix.IFLA_PROTINFO|unix.NLA_F_NESTED, attribute(nil, one.kind, []byte{1}))
			messages = append(messages, message{kind: unix.RTM_SETLINK, body: body, what: one.what + name})
		}
	}
	if _, err = host.exchange(append(messages, up(index, name, b.MTU))); err != nil || b.VLAN == 0 {
		return err
	}
	of := b.bridge()
	bridge, there, err := of.lookUp(host)
	if err == nil {
		err = of.mustBeVLAN(there, bridge)
	}
	if err != nil {
		return err
	}
	return of.grow(host, there, bridge)
}

// master is the message that makes a link the port of another, or of none.
func master(index, of int, what string) message {
	return message{
		kind: unix.RTM_NEWLINK, body: attribute32(header(unix.IfInfomsg{Index: int32(index)}), unix.IFLA_MASTER, uint32(of)), what: what,
	}
}

// CheckBridged compares both sides with what ConfigureBridged made of v and b, as Check
// does, and looks at the bridge.
func CheckBridged(host, container *Namespace, v Veth, b Bridged) error {
	inContainer, err := observe(container, v.Name, b.Routes)
	if err != nil {
		return err
	}
	inContainer.idle = b.Down
	onHost, err := observe(host, v.HostName, nil)
	if err != nil {
		return err
	}
	differences := inContainer.compare(" in the container", "veth", v.Name, v.MAC, b.MTU)
	differences = append(differences, onHost.compare(" on the host", "veth", v.HostName, v.HostMAC, v.MTU)...)
	ofBridge, err := b.compareBridge(host, v.HostName)
	if err != nil {
		return err
	}
	differences = append(differences, ofBridge...)
	if len(b.Gateways) != 0 {
		name := b.bridge().Interface()
		bridge, err := observe(host, name, nil)
		if err != nil {
			return err
		}
		for _, gateway := range b.Gateways {
			differences = append(differences, bridge.compareAddress("gateway address", " on the host", name, gateway)...)
		}
	}
	differences = append(differences, b.station(v.Name, 0).compare(inContainer)...)
	return mismatch(differences)
}

// compareBridge judges the bridge, and the host's side as a port of it.
func (b Bridged) compareBridge(host *Namespace, hostName string) ([]string, error) {
	messages := []message{getLink(b.Bridge), getLink(hostName)}
	for i := range messages {
		messages[i].tolerate = []unix.Errno{unix.ENODEV}
	}
	answers, err := host.exchange(messages)
	if err != nil {
		return nil, err
	}
	if answers[0] == nil {
		return []string{"bridge " + b.Bridge + " is missing on the host"}, nil
	}
	bridge, err := readLink(answers[0])
	if err != nil {
		return nil, fmt.Errorf("look up link %s: %w", b.Bridge, err)
	}
	if bridge.kind != "bridge" {
		return []string{fmt.Sprintf("link %s on the host is a %s, not a bridge", b.Bridge, kindName(bridge.kind))}, nil
	}
	var differences []string
	if bridge.flags&unix.IFF_UP == 0 {
		differences = append(differences, fmt.Sprintf("link %s is down on the host", b.Bridge))
	}
	faults, err := b.bridge().vlanFaults(host)
	if err != nil {
		return nil, err
	}
	differences = append(differences, faults...)
	if answers[1] == nil {
		return differences, nil // Which is said of the link itself.
	}
	side, err := readLink(answers[1])
	switch {
	case err != nil:
		return nil, fmt.Errorf("look up link %s: %w", hostName, err)
	case side.master != bridge.index:
		differences = append(differences, fmt.Sprintf("%s is not a port of bridge %s on the host", hostName, b.Bridge))
	case b.Hairpin && !side.port.hairpin:
		differences = append(differences, fmt.Sprintf("hairpin mode of %s is off on the host", hostName))
	case b.Isolated && !side.port.isolated:
		differences = append(differences, fmt.Sprintf("port %s is not isolated on the host", hostName))
	}
	if side.master == bridge.index {
		if faults, _, err = b.portFaults(host, bridge, side); err != nil {
			return nil, err
		}
		for _, fault := range faults {
			differences = append(differences, fmt.Sprintf("port %s %s on the host", hostName, fault))
		}
	}
	return differences, nil
}
