// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrHookTaken is returned by HookChild when something else is in the place of one of its programs.
var ErrHookTaken = errors.New("something else has its place")

// ChildHook is a program of a child whose parent is in the container.
type ChildHook struct {
	// Name as bpftool shows it, and ID, the kernel's number of it.
	Name string
	ID   uint32
	// OnParent says that it is the parent's, Egress that it is for what leaves by the device.
	OnParent, Egress bool
}

// Priority and handle of the filters: before all others, and none that others take.
const (
	childHookPriority = 1
	childHookHandle   = 0x7e4d
)

// HookChild attaches programs to a child, which should be down, and to its parent. Those of the child go
// with it, those of the parent with its last child (UnhookParents). The error is ErrHookTaken when the parent has
// another filter in the place, or a program's number is another's.
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
	if info, err := program.Info(); err != nil || info.Name != h.Name {
		return fmt.Errorf("program %d is not %s: %w", h.ID, h.Name, errors.Join(err, ErrHookTaken))
	}
	filter := h.filter(h.device(child))
	filter.Fd = program.FD()
	err = netlink.FilterReplace(filter)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EINVAL) { // of another kind
		return fmt.Errorf("%w: preference %d: %w", ErrHookTaken, childHookPriority, err)
	}
	return err
}

// UnhookParents takes the programs away from all devices of the namespace at path that have no child any
// more which HookChild was for. That there is no namespace is no error.
func UnhookParents(path string) (err error) {
	container, err := Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNotNamespace) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, container.Close()) }()
	return container.Do(func() error {
		links, err := netlinksafe.LinkList()
		if err != nil {
			return fmt.Errorf("list links in the container: %w", err)
		}
		needed := make(map[int]bool)
		for _, link := range links {
			attrs := link.Attrs()
			if link.Type() == kindMacvlan && attrs.Index >= firstInContainer {
				needed[attrs.Index], needed[attrs.ParentIndex] = true, true
			}
		}
		var errs []error
		for _, link := range links {
			if index := link.Attrs().Index; !needed[index] {
				errs = append(errs, unhook(link))
			}
		}
		return errors.Join(errs...)
	})
}

// unhook takes our programs from a device of the calling thread's namespace, and clsact with the last filter.
func unhook(link netlink.Link) error {
	index := link.Attrs().Index
	found, others := false, false
	for _, hook := range []ChildHook{{}, {Egress: true}} {
		filters, err := netlinksafe.FilterList(link, hook.parent())
		if err != nil {
			return nil // no clsact there, or no device
		}
		for _, filter := range filters {
			if !ours(filter) {
				others = true
				continue
			}
			found = true
			if err := netlink.FilterDel(hook.filter(index)); err != nil && !absent(err) {
				return fmt.Errorf("detach from interface %d in the container: %w", index, err)
			}
		}
	}
	if !found || others {
		return nil
	}
	if err := netlink.QdiscDel(clsact(index)); err != nil && !absent(err) {
		return fmt.Errorf("remove clsact from interface %d in the container: %w", index, err)
	}
	return nil
}

// ours tells whether HookChild has made a filter.
func ours(filter netlink.Filter) bool {
	bpf, ok := filter.(*netlink.BpfFilter)
	return ok && bpf.Priority == childHookPriority && bpf.Handle == childHookHandle
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
	return slices.ContainsFunc(filters, func(f netlink.Filter) bool { return ours(f) && f.(*netlink.BpfFilter).Name == h.Name })
}
