// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// clsact attaches by filters of a clsact qdisc. The kernel
// holds the program as long as the filter is there; nothing is pinned. Priority
// and handle are fixed, so attaching again replaces in one step.
type clsact struct{}

const (
	// An endpoint's device is ours alone: nothing may come before the checks
	// of its packets but its limit, and that of what it gets comes after them.
	limitEgressPriority  = 1
	endpointPriority     = 2
	limitIngressPriority = 3
	// On an uplink it is one that nobody else has, so as to replace no filter
	// of others.
	uplinkPriority = 0x7e4d
	// Of a parent that is an uplink, too: what children send is judged before the uplink's
	// program believes who sends it, and what comes in meets that first.
	toParentPriority   = uplinkPriority - 1
	fromParentPriority = uplinkPriority + 1
	filterHandle       = 1
)

func (a attachment) priority() uint16 {
	switch {
	case a.program == limitEgress:
		return limitEgressPriority
	case a.program == limitIngress:
		return limitIngressPriority
	case a.endpoint(), a.pacer():
		return endpointPriority
	case a.program == toParent:
		return toParentPriority
	case a.program == fromParent:
		return fromParentPriority
	}
	return uplinkPriority
}

func (*clsact) kind() string { return "clsact" }

func (*clsact) filter(a attachment) *netlink.BpfFilter {
	parent := uint32(netlink.HANDLE_MIN_EGRESS)
	if a.ingress() {
		parent = netlink.HANDLE_MIN_INGRESS
	}
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: a.ifindex,
			Parent:    parent,
			Handle:    filterHandle,
			Protocol:  unix.ETH_P_ALL,
			Priority:  a.priority(),
		},
		Name:         a.program,
		DirectAction: true,
	}
}

func clsactQdisc(ifindex int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}}
}

func (c *clsact) attach(a attachment, program *ebpf.Program) error {
	if err := netlink.QdiscAdd(clsactQdisc(a.ifindex)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact to interface %d: %w", a.ifindex, deviceError(err))
	}
	return c.replace(a, program)
}

// replace has the program at the device, where clsact is, instead of what it had there.
func (c *clsact) replace(a attachment, program *ebpf.Program) error {
	filter := c.filter(a)
	filter.Fd = program.FD()
	if err := netlink.FilterReplace(filter); err != nil {
		return fmt.Errorf("attach %s to interface %d: %w", a.program, a.ifindex, deviceError(err))
	}
	return nil
}

// deviceError is errNoDevice where that is what the kernel says.
func deviceError(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return errNoDevice
	}
	return err
}

func (c *clsact) detach(a attachment) error {
	err := netlink.FilterDel(c.filter(a))
	// ENODEV: no device; EINVAL: no clsact; ENOENT: no such filter.
	if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("detach %s from interface %d: %w", a.program, a.ifindex, err)
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := netlinksafe.FilterList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: a.ifindex}}, parent)
		if err != nil || len(filters) > 0 {
			return nil // the device has gone, or others use the qdisc
		}
	}
	if err := netlink.QdiscDel(clsactQdisc(a.ifindex)); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove clsact from interface %d: %w", a.ifindex, err)
	}
	return nil
}

// abandon leaves the filter where it is: it goes with the device, and until then
// the program drops what nobody has any more.
func (*clsact) abandon(attachment) error { return nil }

func (c *clsact) has(a attachment) (bool, error) {
	want := c.filter(a)
	filters, err := netlinksafe.FilterList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: a.ifindex}}, want.Parent)
	if err != nil {
		return false, nil // no clsact there, or no device
	}
	for _, f := range filters {
		b, ok := f.(*netlink.BpfFilter)
		if ok && b.Priority == want.Priority && b.Name == a.program {
			return true, nil
		}
	}
	return false, nil
}

// pin has nothing to do: the kernel holds the program by its filter.
func (*clsact) pin() ([]string, error) { return nil, nil }

func (*clsact) close() error { return nil }

func (c *clsact) list() ([]attachment, error) {
	links, err := netlinksafe.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var attached []attachment
	for _, l := range links {
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			filters, err := netlinksafe.FilterList(l, parent)
			if err != nil {
				continue // no clsact there, or the device has gone meanwhile
			}
			for _, f := range filters {
				b, ok := f.(*netlink.BpfFilter)
				if !ok || objects[b.Name] == nil {
					continue
				}
				if a := (attachment{ifindex: l.Attrs().Index, program: b.Name}); b.Priority == a.priority() {
					attached = append(attached, a)
				}
			}
		}
	}
	return attached, nil
}
