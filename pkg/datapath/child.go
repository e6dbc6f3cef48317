// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/maps"
)

// Macvlan children. What is attached is their parent, once for all of them; what the
// programs know of it beside the children themselves is what these have together.
//
// Where the parent is in the container, the child itself is what is attached. To attach there takes
// CAP_SYS_ADMIN, which the agent need not have, and the plugin does: it attaches programs that
// lead on to those of parents by map child_programs, and so never have to be replaced. Those
// know the child as its own parent, which it has to itself. The parent gets programs that bring what is
// of the child's addresses to the child.

// insideIndex is INSIDE_INDEX of bpf/lib/types.h.
const insideIndex = 1 << 30

func (c *Child) validate(e *Endpoint) error {
	switch {
	case c.Parent <= 0 || int64(c.Parent) > math.MaxInt32:
		return fmt.Errorf("endpoint %d: %d is no interface index of a parent", e.ID, c.Parent)
	case c.NetNS == 0:
		return fmt.Errorf("endpoint %d has no network namespace", e.ID)
	case e.IfIndex != ChildIndex(e.ID):
		return fmt.Errorf("endpoint %d: a child has index %d, not %d", e.ID, ChildIndex(e.ID), e.IfIndex)
	case e.Bridge != 0:
		return fmt.Errorf("endpoint %d is both a child and a port of a bridge", e.ID)
	case c.InContainer != (c.Parent >= insideIndex):
		return fmt.Errorf("endpoint %d: %d is no interface index of what a child of such a parent has for it", e.ID, c.Parent)
	case c.InContainer && (c.Bridged || c.Reflected || c.HostAccess || len(e.Ports) != 0):
		return fmt.Errorf("endpoint %d: a child of a parent in its container reaches by that alone, and is reached", e.ID)
	}
	return nil
}

// childFlags are those of the entry of an endpoint that is a child.
func (e *Endpoint) childFlags() (flags uint8) {
	c := e.Child
	for flag, set := range map[uint8]bool{
		maps.ChildBridged: c.Bridged, maps.ChildReflected: c.Reflected, maps.ChildHost: c.HostAccess,
		maps.ChildPassthru: c.Passthru || c.InContainer, maps.ChildGetsLimited: e.Ingress != Limit{}, maps.ChildSendsLimited: e.Egress != Limit{},
	} {
		if set {
			flags |= flag
		}
	}
	return flags
}

func parentAttachments(ifindex int) []attachment {
	return []attachment{{ifindex, fromParent}, {ifindex, toParent}}
}

// childEntries are those of map children for these endpoints: one for each, and what
// those of a namespace, and all of a parent, have together.
func childEntries(endpoints map[uint16]Endpoint) map[maps.ChildKey]maps.Child {
	entries := make(map[maps.ChildKey]maps.Child)
	for _, e := range endpoints {
		c := e.Child
		value := maps.Child{
			Ifindex: uint32(e.IfIndex), Netns: c.NetNS, HostMac: maps.NewMAC(e.HostMAC), Flags: e.childFlags(),
		}
		parent := uint32(c.Parent)
		entries[maps.ChildKey{Parent: parent, Mac: maps.NewMAC(e.MAC)}] = value
		for _, key := range []maps.ChildKey{{Parent: parent}, {Parent: parent, Netns: c.NetNS}} {
			entries[key] = maps.Child{HostMac: value.HostMac, Flags: entries[key].Flags | value.Flags}
		}
	}
	return entries
}

// writeChildren makes map children what d.children say, and returns what was different.
func (d *Datapath) writeChildren() (found []string, err error) {
	want := childEntries(d.children)
	var stale []maps.ChildKey
	err = each(d.maps.Children, func(key maps.ChildKey, value maps.Child) bool {
		if wanted, ok := want[key]; !ok {
			stale = append(stale, key)
		} else if wanted == value {
			delete(want, key)
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	for key, value := range want {
		if err := d.maps.Children.Put(key, value); err != nil {
			return nil, fmt.Errorf("write map children: %w", err)
		}
		found = append(found, childEntry(key))
	}
	for _, key := range stale {
		found = append(found, childEntry(key))
	}
	if err := removeAll(d.maps.Children, stale); err != nil {
		return found, fmt.Errorf("remove from map children: %w", err)
	}
	return found, nil
}

// pruneChildren removes from map children what is of none of these endpoints.
func (d *Datapath) pruneChildren(desired []Endpoint) error {
	want := childEntries(childrenOf(desired))
	stale, err := keysWhere[maps.ChildKey, maps.Child](d.maps.Children, func(key maps.ChildKey) bool {
		_, wanted := want[key]
		return !wanted
	})
	return errors.Join(err, removeAll(d.maps.Children, stale))
}

// childrenOf are the children among endpoints, by ID.
func childrenOf(endpoints []Endpoint) map[uint16]Endpoint {
	children := make(map[uint16]Endpoint)
	for _, e := range endpoints {
		if e.Child != nil {
			children[e.ID] = e
		}
	}
	return children
}

func childEntry(key maps.ChildKey) string {
	who := net.HardwareAddr(key.Mac.Bytes[:]).String()
	switch {
	case key.Netns != 0:
		who = fmt.Sprintf("network namespace %d", key.Netns)
	case key.Mac.Bytes == [6]byte{}:
		who = "all"
	}
	return fmt.Sprintf("entry of %s on parent %d in map children", who, key.Parent)
}

// serveParents attaches to the parents of all children, and to no other. Returned is what
// had been missing.
func (d *Datapath) serveParents() (found []string, err error) {
	names := make(map[int]string)
	inContainers := false
	for _, e := range d.children {
		if e.Child.InContainer {
			inContainers = true
		} else {
			names[e.Child.Parent] = e.IfName
		}
	}
	if found, err = d.serveInContainers(found, inContainers); err != nil {
		return found, err
	}
	for ifindex, name := range names {
		for _, a := range parentAttachments(ifindex) {
			if err := d.load(a.program); err != nil {
				return found, lackBTF(err)
			}
			if found, err = d.ensureAttached(found, a, name); err != nil {
				return found, fmt.Errorf("attach parent %s: %w", name, err)
			}
		}
	}
	attached, err := d.hooks.uplinks.list()
	errs := []error{err}
	for _, a := range attached {
		if a.parent() && names[a.ifindex] == "" {
			errs = append(errs, d.hooks.of(a).detach(a))
		}
	}
	return found, errors.Join(errs...)
}

// childSteps are the places of map child_programs, and what works there.
var childSteps = map[uint32]string{maps.ChildIngressHook: fromParent, maps.ChildEgressHook: toParent}

// checkLed tells whether what children in containers are attached to leads to the programs of this
// Datapath. A difference is a *MismatchError.
func (d *Datapath) checkLed() error {
	for hook, name := range childSteps {
		var leads ebpf.ProgramID
		err := d.maps.ChildPrograms.Lookup(hook, &leads)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("read map child_programs: %w", err)
		}
		if own, err := d.programID(name); err != nil {
			return err
		} else if own == 0 || own != leads {
			return &MismatchError{What: fmt.Sprintf("entry of %s in map child_programs", name)}
		}
	}
	return nil
}

// programID is the kernel's number of a program; 0 for one that is not loaded.
func (d *Datapath) programID(name string) (ebpf.ProgramID, error) {
	program := d.programs.byName[name]
	if program == nil {
		return 0, nil
	}
	info, err := program.Info()
	if err != nil {
		return 0, fmt.Errorf("read program %s: %w", name, err)
	}
	id, _ := info.ID()
	return id, nil
}

// serveInContainers makes what checkLed compares so, and adds to found that it was not. Where there are no
// such children nothing leads anywhere.
func (d *Datapath) serveInContainers(found []string, needed bool) ([]string, error) {
	if !needed {
		var errs []error
		for hook := range childSteps {
			errs = append(errs, ignoreMissing(d.maps.ChildPrograms.Delete(hook)))
		}
		return found, errors.Join(errs...)
	}
	err := d.checkLed()
	mismatch := (*MismatchError)(nil)
	if err == nil || !errors.As(err, &mismatch) {
		return found, err
	}
	found = append(found, mismatch.Error())
	for hook, name := range childSteps {
		if err := d.load(name); err != nil {
			return found, lackBTF(err)
		}
		if err := d.maps.ChildPrograms.Put(hook, d.programs.byName[name]); err != nil {
			return found, fmt.Errorf("write map child_programs: %w", err)
		}
	}
	return found, nil
}

// HookInContainer is a program to attach where the parent of a child is in the container.
type HookInContainer struct {
	// Name as bpftool shows it, and ID, the kernel's number of it, which is good for as long as the
	// Datapath is open.
	Name string
	ID   uint32
	// OnParent says that it is the parent's, and not the child's.
	OnParent bool
	// Egress says that it is for what leaves by the device.
	Egress bool
}

func hooksInContainer() []HookInContainer {
	return []HookInContainer{
		{Name: childIngress},
		{Name: childEgress, Egress: true},
		{Name: masterIngress, OnParent: true},
		{Name: masterEgress, OnParent: true, Egress: true},
	}
}

// HooksInContainer loads the programs and returns them.
func (d *Datapath) HooksInContainer() ([]HookInContainer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	hooks := hooksInContainer()
	for i := range hooks {
		if err := d.load(hooks[i].Name); err != nil {
			return nil, err
		}
		id, err := d.programID(hooks[i].Name)
		if err != nil {
			return nil, err
		}
		hooks[i].ID = uint32(id)
	}
	return hooks, nil
}

// attachChild is the part of attachEndpoint that only a child has.
func (d *Datapath) attachChild(e Endpoint) error {
	before, had := d.children[e.ID]
	d.children[e.ID] = e
	_, err := d.writeChildren()
	if err == nil {
		_, err = d.serveParents()
	}
	if err == nil {
		return nil
	}
	delete(d.children, e.ID)
	if had {
		d.children[e.ID] = before
	}
	return err
}

// detachChild is the part of detachEndpoint that only a child has.
func (d *Datapath) detachChild(e Endpoint) error {
	delete(d.children, e.ID)
	_, err := d.writeChildren()
	_, served := d.serveParents()
	return errors.Join(err, served)
}

// checkChild compares what only a child has.
func (d *Datapath) checkChild(e Endpoint) error {
	key := maps.ChildKey{Parent: uint32(e.Child.Parent), Mac: maps.NewMAC(e.MAC)}
	want := childEntries(map[uint16]Endpoint{e.ID: e})[key]
	var value maps.Child
	if err := compare(d.maps.Children, key, &value, want, childEntry(key)); err != nil {
		return err
	}
	if e.Child.InContainer {
		return d.checkLed()
	}
	for _, a := range parentAttachments(e.Child.Parent) {
		if ok, err := d.hooks.of(a).has(a); err != nil {
			return err
		} else if !ok {
			return a.missing(e.IfName)
		}
	}
	return nil
}

// ensureChild makes the datapath serve a child and returns what was missing or wrong.
func (d *Datapath) ensureChild(found []string, e Endpoint) ([]string, error) {
	d.children[e.ID] = e
	wrong, err := d.writeChildren()
	found = append(found, wrong...)
	if err != nil {
		return found, err
	}
	missing, err := d.serveParents()
	return append(found, missing...), err
}

// netnsInode is the inode number of the network namespace of the calling thread.
func netnsInode() (uint32, error) {
	var stat unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &stat); err != nil {
		return 0, fmt.Errorf("look at the own network namespace: %w", err)
	}
	return uint32(stat.Ino), nil
}

// markBase returns the number that the marks of this node begin with, by which programs of parents
// know what others of it have let through: the same for each agent that runs here until the next
// boot, so that programs of two agents understand each other, and seldom another's.
var markBase = func(netns uint32) (uint32, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return 0, fmt.Errorf("choose a mark: %w", err)
	}
	return markOf(boot, netns), nil
}

// markOf leaves out the bits that marks add to their beginning, and that which has a meaning of its own.
func markOf(boot []byte, netns uint32) uint32 {
	const mask, own = 3, 0x1000 // MARK_MASK and MARK_OWN of bpf/lib/apply.h
	sum := fnv.New32a()
	_, _ = sum.Write(binary.NativeEndian.AppendUint32(slices.Clone(boot), netns))
	return max(sum.Sum32()&^(mask|own), mask+1)
}

// lackBTF says in plain words why a program that reads the kernel's own structures was
// not loaded.
func lackBTF(err error) error {
	if err == nil {
		return nil
	}
	if _, missing := os.Stat("/sys/kernel/btf/vmlinux"); errors.Is(missing, os.ErrNotExist) && strings.Contains(err.Error(), "BTF") {
		return fmt.Errorf("the driver macvlan needs a kernel with CONFIG_DEBUG_INFO_BTF: %w", err)
	}
	return err
}
