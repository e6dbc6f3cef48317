// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"maps"
	"net/netip"
	"time"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// parentMAC is that of every parent.
const parentMAC = "02:00:00:00:0c:01"

// addParent makes a device that others can be children of.
func (w *world) addParent(name string) HostLink {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nextIndex++
	w.devices[name] = HostLink{Name: name, Index: w.nextIndex, MAC: parsedMAC(parentMAC), Ethernet: true, MTU: 1500}
	return w.devices[name]
}

// removeParent removes a device, VLANs on it, and their children.
func (w *world) removeParent(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.removeDevice(w.devices[name].Index)
}

// removeDevice is removeParent with w.mu held.
func (w *world) removeDevice(index int) {
	for name, device := range w.devices {
		if device.Index == index {
			delete(w.devices, name)
		} else if device.Lower == index {
			w.removeDevice(device.Index)
		}
	}
	maps.DeleteFunc(w.children, func(_ string, c wiring.ChildLink) bool { return c.Parent == index })
}

// change replaces a device.
func (w *world) change(name string, change func(*HostLink)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	device := w.devices[name]
	delete(w.devices, name)
	change(&device)
	w.devices[device.Name] = device
}

func (w *world) LinkAt(index int) (HostLink, error) {
	if err := w.call("LinkAt"); err != nil {
		return HostLink{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, device := range w.devices {
		if device.Index == index {
			return device, nil
		}
	}
	return HostLink{}, ErrNoLink
}

func (w *world) Users(index int) ([]string, error) {
	if err := w.call("Users"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.users[index], nil
}

func (w *world) MakeVLAN(v wiring.VLAN) (int, error) {
	if err := w.call("MakeVLAN"); err != nil {
		return 0, err
	}
	w.during("MakeVLAN")
	link := w.addParent(v.Name)
	w.change(v.Name, func(l *HostLink) { l.VLAN, l.Lower = v.ID, v.Lower })
	w.during("MakeVLAN, made")
	return link.Index, nil
}

func (w *world) RemoveVLAN(index int) error {
	if err := w.call("RemoveVLAN"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.removeDevice(index)
	return nil
}

// place is where a container's device is.
func place(path, name string) string { return path + " " + name }

func (w *world) Child(path, name string) (wiring.ChildLink, error) {
	if err := w.call("Child"); err != nil {
		return wiring.ChildLink{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if child, ok := w.children[place(path, name)]; ok {
		return child, nil
	}
	return wiring.ChildLink{NetNS: w.netns[path].inode, Number: w.netns[path].number}, ErrNoLink
}

func (w *world) ChildAt(number, index int) (wiring.ChildLink, error) {
	if err := w.call("ChildAt"); err != nil {
		return wiring.ChildLink{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, child := range w.children {
		if child.Number == number && child.Index == index {
			child.NetNS = 0
			return child, nil
		}
	}
	return wiring.ChildLink{Number: number}, ErrNoLink
}

func (w *world) RemoveChild(child wiring.ChildLink) error {
	if err := w.call("RemoveChild"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.children, func(_ string, c wiring.ChildLink) bool { return c.Number == child.Number && c.Index == child.Index })
	return nil
}

func (w *world) Ended() (map[api.Attachment]time.Time, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.ended), w.fail["Ended"]
}

func (w *world) Forget(ended map[api.Attachment]time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for a, at := range ended {
		if w.ended[a].Equal(at) {
			delete(w.ended, a)
		}
	}
	return nil
}

// namespace is a network namespace as the node knows it.
type namespace struct {
	inode  uint64
	number int
}

// bear does what the plugin does between Prepare and Attach of a macvlan device.
func (w *world) bear(e api.Endpoint) wiring.ChildLink {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nextIndex++
	at, known := w.netns[e.NetNS]
	if !known {
		at = namespace{inode: 4026530000 + uint64(w.nextIndex), number: w.nextIndex}
		w.netns[e.NetNS] = at
	}
	child := wiring.ChildLink{
		NetNS: at.inode, Number: at.number, Index: 2, MAC: parsedMAC(e.MAC),
		Parent: w.devices[e.Parent].Index, Mode: api.KernelMode(e.Mode, e.InContainer),
	}
	if e.InContainer {
		child.Index, child.Parent, child.Inside = wiring.IndexInContainer(e.ID), 0, 3
	}
	w.children[place(e.NetNS, e.IfName)] = child
	return child
}

// inside is a request for a child of a device that is in the container.
func inside(container string) api.PrepareRequest {
	req := child(container)
	req.Network.Parent, req.Network.InContainer, req.Network.HostAccess, req.Network.MTU = "eth1", true, false, 1450
	return req
}

// child is a request of the driver macvlan.
func child(container string) api.PrepareRequest {
	req := request(container)
	req.Network.Name, req.Network.Driver, req.Network.IPMasq = "lan", "macvlan", false
	req.Network.Parent, req.Network.Mode, req.Network.HostAccess = "lan0", "bridge", true
	req.Network.Ranges = []api.RangeSet{{{Subnet: netip.MustParsePrefix("10.40.0.0/24")}}, {{Subnet: netip.MustParsePrefix("fd00:40::/64")}}}
	return req
}
