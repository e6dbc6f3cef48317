// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ChildHook is a program of a child whose parent is in the container.
type ChildHook struct {
	// Name as bpftool shows it, and ID, the kernel's number of it.
	Name string
	ID   uint32
	// OnParent says that it is the parent's, Egress that it is for what leaves by the device.
	OnParent, Egress bool
}

// Priority and handle of the filters: before all others.
const (
	childHookPriority = 1
	childHookHandle   = 1
)

// HookChild attaches programs to a child, which should be down, and to its parent. Those of the child go
// with it, those of the parent with its last child (RemoveChild). The error is ErrTaken when the parent has
// another filter in the place.
func HookChild(container *Namespace, child ChildLink, hooks []ChildHook) error {
	return container.Do(func() error {
		for _, hook := range hooks {
			if err := hook.attach(child); err != nil {
				return fmt.Errorf("attach %s to interface %d in the container: %w", hook.Name, hook.device(child), err)
			}
		}
		return nil
	})
}

func (h ChildHook) device(child ChildLink) int {
	if h.OnParent {
		return child.Inside
	}
	return child.Index
}

func clsact(index int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

func (h ChildHook) filter(index int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: index, Parent: h.parent(), Handle: childHookHandle, Protocol: unix.ETH_P_ALL, Priority: childHookPriority,
		},
		Name: h.Name, DirectAction: true,
	}
}

func (h ChildHook) attach(child ChildLink) error {
	if err := netlink.QdiscAdd(clsact(h.device(child))); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact: %w", err)
	}
	program, err := ebpf.NewProgramFromID(ebpf.ProgramID(h.ID))
	if err != nil {
		return fmt.Errorf("open program %d: %w", h.ID, err)
	}
	defer func() { _ = program.Close() }()
	filter := h.filter(h.device(child))
	filter.Fd = program.FD()
	err = netlink.FilterReplace(filter)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EINVAL) { // of another kind
		return fmt.Errorf("%w: preference %d: %w", ErrTaken, childHookPriority, err)
	}
	return err
}

// unhookIn is unhookMaster for the namespace at path.
func unhookIn(path string, index int) (err error) {
	container, err := Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, container.Close()) }()
	return unhookMaster(container, index)
}

// unhookMaster takes the parent's programs away unless it has another child that needs them.
func unhookMaster(container *Namespace, index int) error {
	return container.Do(func() error {
		links, err := netlinksafe.LinkList()
		if err != nil {
			return fmt.Errorf("list links in the container: %w", err)
		}
		for _, link := range links {
			attrs := link.Attrs()
			if link.Type() == kindMacvlan && attrs.ParentIndex == index && attrs.Index >= firstInContainer {
				return nil
			}
		}
		others := false
		for _, hook := range []ChildHook{{}, {Egress: true}} {
			err := netlink.FilterDel(hook.filter(index))
			if err != nil && !absent(err) {
				return fmt.Errorf("detach from interface %d in the container: %w", index, err)
			}
			left, err := netlinksafe.FilterList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}, hook.parent())
			others = others || err != nil || len(left) != 0
		}
		if others {
			return nil
		}
		if err := netlink.QdiscDel(clsact(index)); err != nil && !absent(err) {
			return fmt.Errorf("remove clsact from interface %d in the container: %w", index, err)
		}
		return nil
	})
}

// absent tells whether there is no such device, no clsact, or no such filter.
func absent(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT)
}

func (h ChildHook) parent() uint32 {
	if h.Egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

// CheckChildHooks tells whether programs of these names are where HookChild has attached them; the
// error is a *MismatchError when they are not.
func CheckChildHooks(container *Namespace, c Child, hooks []ChildHook) error {
	var differences []string
	err := container.Do(func() error {
		for _, hook := range hooks {
			name := c.Name
			if hook.OnParent {
				name = c.Parent
			}
			link, err := netlink.LinkByName(name)
			if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
				continue // which CheckChild has said
			}
			if err != nil {
				return fmt.Errorf("look up link %s: %w", name, err)
			}
			filters, err := netlinksafe.FilterList(link, hook.parent())
			if err != nil && !absent(err) {
				return fmt.Errorf("list filters of %s: %w", name, err)
			}
			if !hook.among(filters) {
				differences = append(differences, fmt.Sprintf("program %s on %s in the container is missing", hook.Name, name))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return mismatch(differences)
}

func (h ChildHook) among(filters []netlink.Filter) bool {
	for _, filter := range filters {
		bpf, ok := filter.(*netlink.BpfFilter)
		if ok && bpf.Priority == childHookPriority && bpf.Name == h.Name {
			return true
		}
	}
	return false
}
