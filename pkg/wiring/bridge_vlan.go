// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/ifname"
	"github.com/tendril-net/tendril/internal/vlan"
)

// ErrBridgeVLAN is returned by EnsureBridge when the bridge cannot have the VLAN.
var ErrBridgeVLAN = errors.New("the bridge cannot have the VLAN")

// tag8021Q is ETH_P_8021Q of linux/if_ether.h, which the VLANs of the node are of.
const tag8021Q = 0x8100

// withoutTag are the flags of the VLAN that a device's frames without a tag are in, both ways.
const withoutTag = nl.BRIDGE_VLAN_INFO_PVID | nl.BRIDGE_VLAN_INFO_UNTAGGED

// filter is what a bridge says of VLANs.
type filter struct {
	on bool
	// known is false on a kernel whose bridges do not filter VLANs.
	known bool
	// protocol is the EtherType of its tags.
	protocol uint16
	// normal is the VLAN that new ports are in, untagged; 0 for none.
	normal uint16
}

func (l link) filter() filter {
	var f filter
	if protocol := l.data[unix.IFLA_BR_VLAN_PROTOCOL]; len(protocol) == 2 {
		f.known, f.protocol = true, binary.BigEndian.Uint16(protocol)
	}
	if on := l.data[unix.IFLA_BR_VLAN_FILTERING]; len(on) == 1 {
		f.on = on[0] != 0
	}
	if normal := l.data[unix.IFLA_BR_VLAN_DEFAULT_PVID]; len(normal) == 2 {
		f.normal = binary.NativeEndian.Uint16(normal)
	}
	return f
}

// ensureBridgeVLAN has a bridge filter VLANs, and the node take part in that of b by an interface
// of its own. It returns the index of that if it has made it, and whether the bridge itself was not
// in the VLAN. Where it fails it has changed nothing, but that a bridge whose ports are all endpoints' may
// filter, which they do not notice.
func ensureBridgeVLAN(host *Namespace, b Bridge) (made int, joined bool, err error) {
	bridge, there, err := b.lookUp(host)
	if err != nil {
		return 0, false, err
	}
	if joined, err = b.judge(host, bridge); err != nil {
		return 0, false, err
	}
	if err := b.mustBeVLAN(there, bridge); err != nil {
		return 0, false, err
	}
	name := b.Interface()
	if there.index == 0 {
		there.index, err = createVLAN(host, VLAN{Name: name, Lower: bridge.index, ID: b.VLAN})
		switch {
		case err == nil:
			made = there.index
			// What it hears there is not the node's to follow.
			err = prepareIPv6(host, name, false, "accept_ra", "accept_dad")
		case errors.Is(err, ErrTaken):
			if bridge, there, err = b.lookUp(host); err == nil {
				err = b.mustBeVLAN(there, bridge)
			}
			if err == nil && there.index == 0 { // by another name
				err = fmt.Errorf("make VLAN %s: bridge %s has another device for VLAN %d: %w", name, b.Name, b.VLAN, ErrBridgeVLAN)
			}
		case errors.Is(err, ErrNoVLAN):
			err = fmt.Errorf("%w: %w", err, ErrBridgeVLAN)
		}
	}
	if err == nil {
		var messages []message
		if joined {
			messages = append(messages, vlanOfBridge(unix.RTM_SETLINK, b, bridge.index))
		}
		if !bridge.filter().on {
			messages = append(messages, filterOn(b.Name, bridge.index))
		}
		_, err = host.exchange(append(messages, up(there.index, name, 0)))
	}
	if err == nil && made == 0 {
		err = b.grow(host, there, bridge)
	}
	if err == nil {
		return made, joined, nil
	}
	if joined {
		err = errors.Join(err, b.leaveVLAN(host, bridge.index))
	}
	if made != 0 {
		err = errors.Join(err, RemoveVLAN(host, made))
	}
	return 0, false, err
}

// grow has the node's interface in the VLAN take what the bridge does: the kernel lowers its MTU with
// the bridge's, and never raises it.
func (b Bridge) grow(host *Namespace, there, bridge link) error {
	if there.index == 0 || there.mtu >= bridge.mtu {
		return nil
	}
	_, err := host.exchange([]message{{
		kind: unix.RTM_NEWLINK, body: attribute32(header(unix.IfInfomsg{Index: int32(there.index)}), unix.IFLA_MTU, uint32(bridge.mtu)),
		what:     fmt.Sprintf("set the mtu of %s to %d", b.Interface(), bridge.mtu),
		tolerate: []unix.Errno{unix.ERANGE}, // the bridge's is lower by now
	}})
	return err
}

// filters tells whether the bridge is to keep VLANs apart.
func (b Bridge) filters() bool { return b.VLAN != 0 || b.Filters }

// ensureFilter has a bridge filter VLANs, as ensureBridgeVLAN does.
func ensureFilter(host *Namespace, b Bridge) error {
	bridge, err := lookUpBridge(host, b.Name)
	if err != nil {
		return err
	}
	if _, err := b.judge(host, bridge); err != nil || bridge.filter().on {
		return err
	}
	_, err = host.exchange([]message{filterOn(b.Name, bridge.index)})
	return err
}

// mustFilter returns ErrBridgeVLAN when the bridge does not keep VLANs apart, and is to.
func (b Bridge) mustFilter(f filter) error {
	if !b.filters() {
		return nil
	}
	if err := b.canFilter(f); err != nil || f.on {
		return err
	}
	return b.refuse("it does not filter VLANs")
}

// canFilter returns ErrBridgeVLAN when it can not.
func (b Bridge) canFilter(f filter) error {
	switch {
	case !f.known:
		return b.refuse("the kernel's bridges do not filter VLANs (CONFIG_BRIDGE_VLAN_FILTERING)")
	case f.protocol != tag8021Q:
		return b.refuse(fmt.Sprintf("its vlan_protocol is %#x, not 802.1Q", f.protocol))
	case b.VLAN != 0 && f.normal == uint16(b.VLAN):
		return b.refuse("ports without a VLAN are in that one (vlan_default_pvid)")
	}
	return nil
}

func (b Bridge) refuse(why string) error {
	if b.VLAN == 0 {
		return fmt.Errorf("put a trunk on bridge %s: %w: %s", b.Name, ErrBridgeVLAN, why)
	}
	return fmt.Errorf("put VLAN %d on bridge %s: %w: %s", b.VLAN, b.Name, ErrBridgeVLAN, why)
}

// judge returns ErrBridgeVLAN when the bridge's own settings are in the way, and otherwise
// whether the bridge itself has yet to join the VLAN, where there is one.
func (b Bridge) judge(host *Namespace, bridge link) (joins bool, err error) {
	f := bridge.filter()
	if err := b.canFilter(f); err != nil {
		return false, err
	}
	in, err := vlansOf(host, bridge.index)
	if err != nil {
		return false, err
	}
	flags, there := in[b.VLAN]
	if flags&withoutTag != 0 {
		return false, b.refuse("the bridge itself is in that one without a tag")
	}
	if f.on {
		return !there, nil
	}
	all, err := links(host)
	if err != nil {
		return false, err
	}
	for _, l := range all {
		if !isPortOf(bridge.index)(l) {
			continue
		}
		notices, err := noticesFilter(host, l, in, int(f.normal))
		if err != nil {
			return false, err
		}
		if notices {
			return false, b.refuse(fmt.Sprintf("it has ports (%s) and does not filter VLANs; it does after "+
				"\"ip link set %s type bridge vlan_filtering 1\", which may cut off such a port", l.Attrs().Name, b.Name))
		}
	}
	return !there, nil
}

// noticesFilter tells whether a port may be cut off where its bridge, which is in such VLANs itself,
// begins to filter. An endpoint needs no tags but those of its trunk, and goes on in the VLAN that its
// frames are in without one, which is its own, or that of the bridge.
func noticesFilter(host *Namespace, port netlink.Link, bridge map[int]uint16, normal int) (bool, error) {
	if !ifname.IsHost(port.Attrs().Name) {
		return true, nil
	}
	in, err := vlansOf(host, port.Attrs().Index)
	if err != nil {
		return false, err
	}
	for id, flags := range in {
		if flags&nl.BRIDGE_VLAN_INFO_PVID != 0 {
			return id == normal && bridge[id]&nl.BRIDGE_VLAN_INFO_UNTAGGED == 0, nil
		}
	}
	return len(in) == 0, nil // one with a trunk alone has no more without the filter
}

// lookUp returns the bridge, and what has the name of the node's interface in the VLAN; the zero link
// for nothing.
func (b Bridge) lookUp(host *Namespace) (bridge, there link, err error) {
	absent, name := false, b.Interface()
	answers, err := host.exchange([]message{getLink(b.Name), getLinkUnless(&absent, name)})
	if err != nil {
		return link{}, link{}, err
	}
	if bridge, err = readBridge(answers[0], b.Name); err != nil || absent {
		return bridge, link{}, err
	}
	if there, err = readLink(answers[1]); err != nil {
		return bridge, link{}, fmt.Errorf("look up link %s: %w", name, err)
	}
	return bridge, there, nil
}

// mustBeVLAN returns ErrBridgeVLAN when another device has the name of the node's interface.
func (b Bridge) mustBeVLAN(there, bridge link) error {
	if there.index == 0 || b.isVLAN(there, bridge) {
		return nil
	}
	return fmt.Errorf("use %s %s: %w: it is not VLAN %d of bridge %s with its MAC",
		kindName(there.kind), b.Interface(), ErrBridgeVLAN, b.VLAN, b.Name)
}

// isVLAN tells whether a link is the node's interface in the VLAN. Its MAC is the bridge's: by that
// the datapath tells what is for the node.
func (b Bridge) isVLAN(l, bridge link) bool {
	protocol := l.data[unix.IFLA_VLAN_PROTOCOL]
	return l.vlan() == b.VLAN && l.peer == bridge.index && l.peerNS == noNamespace && bytes.Equal(l.mac, bridge.mac) &&
		len(protocol) == 2 && binary.BigEndian.Uint16(protocol) == tag8021Q
}

// vlan is the number of a VLAN; 0 for another kind of link.
func (l link) vlan() int {
	if id := l.data[unix.IFLA_VLAN_ID]; l.kind == kindVLAN && len(id) == 2 {
		return int(binary.NativeEndian.Uint16(id))
	}
	return 0
}

// filterOn is the message that has a bridge filter VLANs.
func filterOn(name string, index int) message {
	info := attributeString(nil, unix.IFLA_INFO_KIND, "bridge")
	info = attribute(info, unix.IFLA_INFO_DATA, attribute(nil, unix.IFLA_BR_VLAN_FILTERING, []byte{1}))
	return message{
		kind: unix.RTM_NEWLINK, body: attribute(header(unix.IfInfomsg{Index: int32(index)}), unix.IFLA_LINKINFO, info),
		what: fmt.Sprintf("have bridge %s filter VLANs", name),
	}
}

// vlanOfBridge is the message by which the bridge as the node's own device joins the VLAN or, with
// RTM_DELLINK, leaves it.
func vlanOfBridge(kind uint16, b Bridge, index int) message {
	const self = 2 // BRIDGE_FLAGS_SELF of linux/if_bridge.h
	inner := attribute16(nil, nl.IFLA_BRIDGE_FLAGS, self)
	what := "put bridge %s into VLAN %d"
	if kind == unix.RTM_DELLINK {
		what = "take bridge %s out of VLAN %d"
	}
	return vlanMessage(kind, index, inner, 0, vlan.Range{First: b.VLAN, Last: b.VLAN}, fmt.Sprintf(what, b.Name, b.VLAN))
}

// leaveVLAN takes the bridge itself out of the VLAN.
func (b Bridge) leaveVLAN(host *Namespace, index int) error {
	leave := vlanOfBridge(unix.RTM_DELLINK, b, index)
	leave.tolerate = []unix.Errno{unix.ENOENT, unix.ENODEV}
	_, err := host.exchange([]message{leave})
	return err
}

// untagged are the VLANs that the port is to be in without a tag, its own first; none where it is
// left in what the bridge has for new ports.
func (b Bridged) untagged(f filter) []int {
	normal := int(f.normal)
	if b.Trunk.Has(normal) { // since then, or on purpose without PreserveDefaultVLAN
		normal = 0
	}
	switch {
	case b.VLAN == 0 && (len(b.Trunk) == 0 || normal == 0):
		return nil
	case b.VLAN == 0:
		return []int{normal}
	case b.PreserveDefaultVLAN && normal != 0 && normal != b.VLAN: // that has been changed since
		return []int{b.VLAN, normal}
	}
	return []int{b.VLAN}
}

// judgeTrunk returns ErrBridgeVLAN when a new port would be in a VLAN of its trunk without a tag:
// what it sends with the tag would be among what it sends without.
func (b Bridged) judgeTrunk(f filter) error {
	if normal := int(f.normal); b.Trunk.Has(normal) && (b.VLAN == 0 || b.PreserveDefaultVLAN) {
		return b.bridge().refuse(fmt.Sprintf("ports are in VLAN %d of the trunk without a tag (vlan_default_pvid)", normal))
	}
	return nil
}

// intoVLAN are the messages that put a port into the VLANs of b, and take it out of others.
func (b Bridged) intoVLAN(bridge link, index int, name string, others vlan.Set) []message {
	f := bridge.filter()
	if normal := int(f.normal); b.VLAN != 0 && normal != 0 && normal != b.VLAN && !b.PreserveDefaultVLAN && !b.Trunk.Has(normal) {
		others = append(slices.Clone(others), vlan.Range{First: normal, Last: normal}) // where a port begins
	}
	var messages []message
	put := func(r vlan.Range, flags uint16, what string) {
		messages = append(messages, vlanMessage(unix.RTM_SETLINK, index, nil, flags, r, fmt.Sprintf("put %s into VLAN %s%s", name, r, what)))
	}
	for i, id := range b.untagged(f) {
		flags := uint16(nl.BRIDGE_VLAN_INFO_UNTAGGED)
		if i == 0 {
			flags = withoutTag
		}
		put(vlan.Range{First: id, Last: id}, flags, "")
	}
	for _, r := range b.Trunk {
		put(r, 0, " by its tag")
	}
	for _, r := range others {
		leave := vlanMessage(unix.RTM_DELLINK, index, nil, 0, r, fmt.Sprintf("take %s out of VLAN %s", name, r))
		leave.tolerate = []unix.Errno{unix.ENOENT}
		messages = append(messages, leave)
	}
	return messages
}

func vlanMessage(kind uint16, index int, inner []byte, flags uint16, r vlan.Range, what string) message {
	// struct bridge_vlan_info of linux/if_bridge.h
	info := func(flags uint16, id int) {
		value := binary.NativeEndian.AppendUint16(nil, flags)
		inner = attribute(inner, nl.IFLA_BRIDGE_VLAN_INFO, binary.NativeEndian.AppendUint16(value, uint16(id)))
	}
	if r.First == r.Last {
		info(flags, r.First)
	} else {
		info(flags|nl.BRIDGE_VLAN_INFO_RANGE_BEGIN, r.First)
		info(flags|nl.BRIDGE_VLAN_INFO_RANGE_END, r.Last)
	}
	body := header(unix.IfInfomsg{Family: unix.AF_BRIDGE, Index: int32(index)})
	return message{kind: kind, body: attribute(body, unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, inner), what: what}
}

// vlansOf returns the VLANs that a port, or a bridge as a device of the node, is in: their
// BRIDGE_VLAN_INFO_* flags by number. What is gone, or no port any more, is in none.
func vlansOf(host *Namespace, index int) (map[int]uint16, error) {
	const newVLAN = 112 // RTM_NEWVLAN of linux/rtnetlink.h
	var found map[int]uint16
	err := host.Do(func() error {
		request := nl.NewNetlinkRequest(unix.RTM_GETVLAN, unix.NLM_F_DUMP)
		asked := []byte{unix.AF_BRIDGE, 0, 0, 0} // struct br_vlan_msg
		request.AddRawData(binary.NativeEndian.AppendUint32(asked, uint32(index)))
		answers, err := request.Execute(unix.NETLINK_ROUTE, newVLAN)
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) { // gone, or a port no more
			return nil
		}
		if err != nil {
			return fmt.Errorf("list the VLANs of link %d: %w", index, err)
		}
		if found, err = vlansIn(answers); err != nil {
			return fmt.Errorf("list the VLANs of link %d: %w", index, err)
		}
		return nil
	})
	return found, err
}

// vlansIn reads messages of RTM_NEWVLAN. What it cannot read is an error: there may be VLANs in it, and that a
// port is in one of another's network is a fault.
func vlansIn(answers [][]byte) (map[int]uint16, error) {
	const fixed = 8                              // struct br_vlan_msg
	const entry, entryInfo, entryRange = 1, 1, 2 // BRIDGE_VLANDB_* of linux/if_bridge.h
	found := make(map[int]uint16)
	for _, answer := range answers {
		if len(answer) < fixed || !areWhole(answer[fixed:]) {
			return nil, fmt.Errorf("malformed answer: attributes % x", answer[min(len(answer), fixed):])
		}
		for kind, value := range eachAttribute(answer[fixed:]) {
			if kind != entry {
				continue
			}
			of := attributes(value)
			info := of[entryInfo] // struct bridge_vlan_info
			end, isRange := of[entryRange]
			if !areWhole(value) || len(info) != 4 || isRange && len(end) != 2 {
				return nil, fmt.Errorf("malformed answer: VLAN entry % x", value)
			}
			first := int(binary.NativeEndian.Uint16(info[2:]))
			last := first
			if isRange {
				last = int(binary.NativeEndian.Uint16(end))
			}
			for id := max(first, 1); id <= min(last, vlan.Max); id++ {
				found[id] = binary.NativeEndian.Uint16(info)
			}
		}
	}
	return found, nil
}

// vlanFaults says what of a bridge is not as EnsureBridge leaves it for its VLANs.
func (b Bridge) vlanFaults(host *Namespace) (faults []string, err error) {
	if !b.filters() {
		return nil, nil
	}
	bridge, there, err := b.lookUp(host)
	if err != nil {
		return nil, err
	}
	if !bridge.filter().on {
		faults = append(faults, fmt.Sprintf("bridge %s does not filter VLANs", b.Name))
	}
	if b.VLAN == 0 {
		return faults, nil
	}
	in, err := vlansOf(host, bridge.index)
	if err != nil {
		return nil, err
	}
	if flags, ok := in[b.VLAN]; !ok || flags&withoutTag != 0 {
		faults = append(faults, fmt.Sprintf("bridge %s is not in VLAN %d itself with a tag", b.Name, b.VLAN))
	}
	name := b.Interface()
	switch {
	case there.index == 0:
		faults = append(faults, fmt.Sprintf("link %s is missing on the host", name))
	case !b.isVLAN(there, bridge):
		faults = append(faults, fmt.Sprintf("link %s on the host is not VLAN %d of bridge %s with its MAC", name, b.VLAN, b.Name))
	case there.flags&unix.IFF_UP == 0:
		faults = append(faults, fmt.Sprintf("link %s is down on the host", name))
	}
	return faults, nil
}

// portFaults says what of a port is not as ConfigureBridged leaves it for its VLANs, and which
// others the port is in.
func (b Bridged) portFaults(host *Namespace, bridge, side link) (faults []string, others vlan.Set, err error) {
	if !b.bridge().filters() {
		return nil, nil, nil
	}
	in, err := vlansOf(host, side.index)
	if err != nil {
		return nil, nil, err
	}
	untagged := b.untagged(bridge.filter())
	for i, id := range untagged {
		flags, there := in[id]
		switch {
		case i == 0 && flags&withoutTag != withoutTag:
			faults = append(faults, fmt.Sprintf("is not in VLAN %d without a tag", id))
		case !there:
			faults = append(faults, fmt.Sprintf("is not in VLAN %d as well", id))
		}
	}
	var amiss []vlan.Range
	for _, r := range b.Trunk {
		for id := r.First; id <= r.Last; id++ {
			if flags, there := in[id]; !there || flags&withoutTag != 0 {
				amiss = append(amiss, vlan.Range{First: id, Last: id})
			}
		}
	}
	if amiss != nil {
		faults = append(faults, fmt.Sprintf("is not in VLAN %s of its trunk with a tag", vlan.Of(amiss...)))
	}
	if untagged == nil {
		return faults, nil, nil
	}
	var surplus []vlan.Range
	for id := range in {
		if !slices.Contains(untagged, id) && !b.Trunk.Has(id) {
			surplus = append(surplus, vlan.Range{First: id, Last: id})
		}
	}
	if others = vlan.Of(surplus...); others != nil {
		faults = append(faults, "is in VLANs it is not to be in: "+others.String())
	}
	return faults, others, nil
}

// removeUnusedVLAN removes what was made of a VLAN that no port of the bridge is in, and no device
// of the node on its interface there.
func removeUnusedVLAN(host *Namespace, b Bridge, made BridgeLink) error {
	all, err := links(host)
	if err != nil || made.VLANMade != 0 && slices.ContainsFunc(all, ridesOn(made.VLANMade)) {
		return err
	}
	for _, l := range all {
		if !isPortOf(made.Index)(l) {
			continue
		}
		in, err := vlansOf(host, l.Attrs().Index)
		if err != nil {
			return err
		}
		if _, used := in[b.VLAN]; used {
			return nil
		}
	}
	if made.VLANJoined {
		err = b.leaveVLAN(host, made.Index)
	}
	if made.VLANMade != 0 {
		err = errors.Join(err, RemoveVLAN(host, made.VLANMade))
	}
	return err
}
