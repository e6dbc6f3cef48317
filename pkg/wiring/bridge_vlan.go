// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrBridgeVLAN is returned by EnsureBridge when the bridge cannot have the VLAN.
var ErrBridgeVLAN = errors.New("the bridge cannot have the VLAN")

// tag8021Q is ETH_P_8021Q of linux/if_ether.h, which the VLANs of the node are of.
const tag8021Q = 0x8100

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

// ensureBridgeVLAN has a bridge filter VLANs, and the node take part in that of b by an interface of its
// own. It says whether it has made that. Where it fails it has changed nothing.
func ensureBridgeVLAN(host *Namespace, b Bridge) (made bool, err error) {
	bridge, err := lookUpBridge(host, b.Name)
	if err != nil {
		return false, err
	}
	if err := b.judgeFilter(host, bridge); err != nil {
		return false, err
	}
	name := b.Interface()
	index, err := b.vlanIndex(host, bridge)
	if err != nil {
		return false, err
	}
	if index == 0 {
		index, err = createVLAN(host, VLAN{Name: name, Lower: bridge.index, ID: b.VLAN})
		switch {
		case err == nil:
			made = true
			// What it hears there is not the node's to follow.
			err = prepareIPv6(host, name, false, "accept_ra", "accept_dad")
		case errors.Is(err, ErrTaken):
			if index, err = b.vlanIndex(host, bridge); err == nil && index == 0 { // by another name
				err = fmt.Errorf("make VLAN %s: bridge %s has another device for VLAN %d: %w", name, b.Name, b.VLAN, ErrBridgeVLAN)
			}
		}
	}
	if err == nil {
		messages := []message{vlanOfBridge(unix.RTM_SETLINK, b, bridge.index)}
		if !bridge.filter().on {
			messages = append(messages, filterOn(b.Name, bridge.index))
		}
		_, err = host.exchange(append(messages, up(index, name, 0)))
	}
	if err != nil && made {
		err = errors.Join(err, removeLink(host, name))
	}
	return made && err == nil, err
}

// judgeFilter returns ErrBridgeVLAN when the bridge's own settings are in the way.
func (b Bridge) judgeFilter(host *Namespace, bridge link) error {
	f := bridge.filter()
	switch {
	case !f.known:
		return fmt.Errorf("put VLAN %d on bridge %s: %w: the kernel's bridges do not filter VLANs (CONFIG_BRIDGE_VLAN_FILTERING)",
			b.VLAN, b.Name, ErrBridgeVLAN)
	case f.protocol != tag8021Q:
		return fmt.Errorf("put VLAN %d on bridge %s: %w: its vlan_protocol is %#x, not 802.1Q", b.VLAN, b.Name, ErrBridgeVLAN, f.protocol)
	case f.normal == uint16(b.VLAN):
		return fmt.Errorf("put VLAN %d on bridge %s: %w: ports without a VLAN are in that one (vlan_default_pvid)", b.VLAN, b.Name, ErrBridgeVLAN)
	case f.on:
		return nil
	}
	all, err := links(host)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, isPortOf(bridge.index)) {
		return fmt.Errorf("put VLAN %d on bridge %s: %w: it has ports and does not filter VLANs; it does after "+
			"\"ip link set %s type bridge vlan_filtering 1\", which cuts off ports that need tags", b.VLAN, b.Name, ErrBridgeVLAN, b.Name)
	}
	return nil
}

// vlanIndex returns the index of the node's interface in the VLAN; 0 for none. Another device of
// its name is ErrBridgeVLAN.
func (b Bridge) vlanIndex(host *Namespace, bridge link) (int, error) {
	absent, name := false, b.Interface()
	answers, err := host.exchange([]message{getLinkUnless(&absent, name)})
	if err != nil || absent {
		return 0, err
	}
	found, err := readLink(answers[0])
	switch {
	case err != nil:
		return 0, fmt.Errorf("look up link %s: %w", name, err)
	case found.kind != kindVLAN || found.peer != bridge.index || found.peerNS != noNamespace || found.vlan() != b.VLAN:
		return 0, fmt.Errorf("use %s %s: %w: it is not VLAN %d of bridge %s", kindName(found.kind), name, ErrBridgeVLAN, b.VLAN, b.Name)
	}
	return found.index, nil
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
	return vlanMessage(kind, index, inner, 0, b.VLAN, fmt.Sprintf("put bridge %s into VLAN %d", b.Name, b.VLAN))
}

// intoVLAN are the messages that move a port from the VLAN of new ports to that of b.
func (b Bridged) intoVLAN(bridge link, index int, name string) []message {
	messages := []message{vlanMessage(unix.RTM_SETLINK, index, nil, nl.BRIDGE_VLAN_INFO_PVID|nl.BRIDGE_VLAN_INFO_UNTAGGED, b.VLAN,
		fmt.Sprintf("put %s into VLAN %d", name, b.VLAN))}
	if normal := int(bridge.filter().normal); normal != 0 && !b.PreserveDefaultVLAN {
		leave := vlanMessage(unix.RTM_DELLINK, index, nil, 0, normal, fmt.Sprintf("take %s out of VLAN %d", name, normal))
		leave.tolerate = []unix.Errno{unix.ENOENT}
		messages = append(messages, leave)
	}
	return messages
}

func vlanMessage(kind uint16, index int, inner []byte, flags uint16, id int, what string) message {
	info := binary.NativeEndian.AppendUint16(nil, flags) // struct bridge_vlan_info of linux/if_bridge.h
	info = binary.NativeEndian.AppendUint16(info, uint16(id))
	inner = attribute(inner, nl.IFLA_BRIDGE_VLAN_INFO, info)
	body := header(unix.IfInfomsg{Family: unix.AF_BRIDGE, Index: int32(index)})
	return message{kind: kind, body: attribute(body, unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, inner), what: what}
}

// vlansOf returns the VLANs that a port, or a bridge as a device of the node, is in: their
// BRIDGE_VLAN_INFO_* flags by number.
func vlansOf(host *Namespace, index int) (map[int]uint16, error) {
	const entry, entryInfo, entryRange = 1, 1, 2 // BRIDGE_VLANDB_* of linux/if_bridge.h
	const newVLAN = 112                          // RTM_NEWVLAN of linux/rtnetlink.h
	found := make(map[int]uint16)
	err := host.Do(func() error {
		request := nl.NewNetlinkRequest(unix.RTM_GETVLAN, unix.NLM_F_DUMP)
		asked := []byte{unix.AF_BRIDGE, 0, 0, 0} // struct br_vlan_msg
		request.AddRawData(binary.NativeEndian.AppendUint32(asked, uint32(index)))
		answers, err := request.Execute(unix.NETLINK_ROUTE, newVLAN)
		if err != nil {
			return fmt.Errorf("list the VLANs of link %d: %w", index, err)
		}
		for _, answer := range answers {
			if len(answer) < 8 {
				continue
			}
			entries, err := nl.ParseRouteAttr(answer[8:])
			if err != nil {
				return fmt.Errorf("list the VLANs of link %d: %w", index, err)
			}
			for _, e := range entries {
				if e.Attr.Type&^unix.NLA_F_NESTED != entry {
					continue
				}
				of := attributes(e.Value)
				info := of[entryInfo]
				if len(info) != 4 {
					continue
				}
				first := int(binary.NativeEndian.Uint16(info[2:]))
				last := first
				if end := of[entryRange]; len(end) == 2 {
					last = int(binary.NativeEndian.Uint16(end))
				}
				for id := first; id <= last; id++ {
					found[id] = binary.NativeEndian.Uint16(info)
				}
			}
		}
		return nil
	})
	return found, err
}

// vlanFaults says what of a bridge is not as EnsureBridge leaves it for the VLAN.
func (b Bridge) vlanFaults(host *Namespace, bridge link) ([]string, error) {
	if b.VLAN == 0 {
		return nil, nil
	}
	var faults []string
	if !bridge.filter().on {
		faults = append(faults, fmt.Sprintf("bridge %s does not filter VLANs", b.Name))
	}
	in, err := vlansOf(host, bridge.index)
	if err != nil {
		return nil, err
	}
	if _, ok := in[b.VLAN]; !ok {
		faults = append(faults, fmt.Sprintf("bridge %s is not in VLAN %d itself", b.Name, b.VLAN))
	}
	absent, name := false, b.Interface()
	answers, err := host.exchange([]message{getLinkUnless(&absent, name)})
	switch {
	case err != nil:
		return nil, err
	case absent:
		return append(faults, fmt.Sprintf("link %s is missing on the host", name)), nil
	}
	found, err := readLink(answers[0])
	switch {
	case err != nil:
		return nil, fmt.Errorf("look up link %s: %w", name, err)
	case found.vlan() != b.VLAN || found.peer != bridge.index:
		faults = append(faults, fmt.Sprintf("link %s on the host is not VLAN %d of bridge %s", name, b.VLAN, b.Name))
	case found.flags&unix.IFF_UP == 0:
		faults = append(faults, fmt.Sprintf("link %s is down on the host", name))
	}
	return faults, nil
}

// portFaults says what of a port is not as ConfigureBridged leaves it for the VLAN.
func (b Bridged) portFaults(host *Namespace, bridge, side link) ([]string, error) {
	if b.VLAN == 0 {
		return nil, nil
	}
	in, err := vlansOf(host, side.index)
	if err != nil {
		return nil, err
	}
	var faults []string
	const untagged = nl.BRIDGE_VLAN_INFO_PVID | nl.BRIDGE_VLAN_INFO_UNTAGGED
	if in[b.VLAN]&untagged != untagged {
		faults = append(faults, fmt.Sprintf("is not in VLAN %d without a tag", b.VLAN))
	}
	normal := int(bridge.filter().normal)
	if _, stays := in[normal]; stays && normal != 0 && !b.PreserveDefaultVLAN {
		faults = append(faults, fmt.Sprintf("is in VLAN %d as well", normal))
	}
	return faults, nil
}

// removeUnusedVLAN removes the node's interface in a VLAN that no port of the bridge is in.
func removeUnusedVLAN(host *Namespace, b Bridge, bridge int) error {
	all, err := links(host)
	if err != nil {
		return err
	}
	for _, l := range all {
		if !isPortOf(bridge)(l) {
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
	leave := vlanOfBridge(unix.RTM_DELLINK, b, bridge)
	leave.tolerate = []unix.Errno{unix.ENOENT, unix.ENODEV}
	_, err = host.exchange([]message{leave})
	return errors.Join(err, removeLink(host, b.Interface()))
}
