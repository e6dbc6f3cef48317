// SPDX-License-Identifier: Apache-2.0

package wiring_test

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/wiring"
)

// masterName is a device of the container.
const masterName = "eth1"

// insideChild is the child of number of that device.
func insideChild(number uint16) wiring.Child {
	c := testChild()
	c.Parent, c.Mode, c.Index = masterName, wiring.ModeBridge, wiring.IndexInContainer(number)
	c.MAC = net.HardwareAddr{2, 0, 0, 0, 1, byte(number)}
	if number > 1 {
		c.Name, c.BornAs = "eth2", "tdl0123456789ac"
	}
	return c
}

// insideHooks are programs that let all pass.
func insideHooks(t *testing.T) []wiring.ChildHook {
	t.Helper()
	hooks := []wiring.ChildHook{
		{Name: "child_in"},
		{Name: "child_out", Egress: true},
		{Name: "parent_in", OnParent: true},
		{Name: "parent_out", OnParent: true, Egress: true},
	}
	for i := range hooks {
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: hooks[i].Name, Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
		})
		must(t, err)
		t.Cleanup(func() { must(t, program.Close()) })
		info, err := program.Info()
		must(t, err)
		id, _ := info.ID()
		hooks[i].ID = uint32(id)
	}
	return hooks
}

// filters are the programs of a device of the container, by the side that each is on.
func (p pair) filters(t *testing.T, device string) (names []string) {
	t.Helper()
	for _, side := range []string{"ingress", "egress"} {
		for _, line := range strings.Split(p.containerNS.Run(t, "tc", "filter", "show", "dev", device, side), "\n") {
			if _, rest, ok := strings.Cut(line, " handle 0x7e4d "); ok {
				names = append(names, side+" "+strings.Fields(rest)[0])
			}
		}
	}
	return names
}

// A child of a device in the container has an index that tells it from all devices of the node; its
// programs, and those of the device, come and go with it.
func TestChildInContainer(t *testing.T) {
	p, _ := newParent(t)
	p.containerNS.Run(t, "ip", "link", "add", masterName, "up", "type", "veth", "peer", "name", "far")
	c, hooks := insideChild(1), insideHooks(t)
	made, err := wiring.CreateChild(p.node, p.container, c)
	must(t, err)
	want := wiring.ChildLink{
		NetNS: inodeOf(t, p.containerNS.Path), Number: numberOf(t, p.nodeNS, p.containerNS), Index: 1<<30 + 1, MAC: c.MAC,
		Inside: indexOf(t, p.containerNS, masterName), Mode: wiring.ModeBridge,
	}
	if diff := cmp.Diff(want, made); diff != "" {
		t.Errorf("made (-want +got):\n%s", diff)
	}
	found, err := wiring.FindChild(p.node, p.containerNS.Path, "eth0")
	must(t, err)
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
	must(t, wiring.HookChild(p.container, made, hooks))
	must(t, wiring.HookChild(p.container, made, hooks)) // once more
	_, err = wiring.ConfigureChild(p.container, "eth0", made, testHoused())
	must(t, err)
	must(t, errors.Join(wiring.CheckChild(p.node, p.container, c, testHoused()), wiring.CheckChildHooks(p.container, c, hooks)))

	second, err := wiring.CreateChild(p.node, p.container, insideChild(2))
	must(t, err)
	must(t, wiring.HookChild(p.container, second, hooks))
	compare := func(what, device string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, p.filters(t, device)); diff != "" {
			t.Errorf("%s, programs of %s (-want +got):\n%s", what, device, diff)
		}
	}
	compare("at first", "eth0", "ingress child_in", "egress child_out")
	compare("at first", masterName, "ingress parent_in", "egress parent_out")
	remove := func(names ...string) {
		t.Helper()
		must(t, errors.Join(wiring.RemoveChild(p.node, p.containerNS.Path, names...), wiring.UnhookParents(p.containerNS.Path)))
	}
	remove("eth0")
	compare("with one child", masterName, "ingress parent_in", "egress parent_out")

	p.containerNS.Run(t, "tc", "filter", "del", "dev", masterName, "egress", "pref", "1")
	p.containerNS.Run(t, "tc", "filter", "del", "dev", "eth2", "ingress", "pref", "1")
	mismatch := (*wiring.MismatchError)(nil)
	if err := wiring.CheckChildHooks(p.container, insideChild(2), hooks); !errors.As(err, &mismatch) {
		t.Errorf("spoilt: %v", err)
	} else if diff := cmp.Diff([]string{
		"program child_in on eth2 in the container is missing", "program parent_out on eth1 in the container is missing",
	}, mismatch.Differences); diff != "" {
		t.Errorf("spoilt (-want +got):\n%s", diff)
	}
	for range 2 {
		remove("eth2")
		compare("without children", masterName)
	}
	if out := p.containerNS.Run(t, "tc", "qdisc", "show", "dev", masterName); strings.Contains(out, "clsact") {
		t.Errorf("without children: %s", out)
	}
}

// What others have on the device stays; and what somebody in the container has made is no child of ours.
func TestChildInContainerBeside(t *testing.T) {
	p, _ := newParent(t)
	hooks := insideHooks(t)
	p.containerNS.Run(t, "ip", "link", "add", masterName, "up", "type", "veth", "peer", "name", "far")
	p.containerNS.Run(t, "ip", "link", "add", "link", masterName, "name", "eth2", "type", "macvlan", "mode", "bridge")
	p.containerNS.Run(t, "tc", "qdisc", "add", "dev", masterName, "clsact")
	others := func(preference uint16, protocol uint16) {
		t.Helper()
		program, err := ebpf.NewProgramFromID(ebpf.ProgramID(hooks[0].ID))
		must(t, err)
		defer func() { must(t, program.Close()) }()
		must(t, p.containerNS.Handle.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: indexOf(t, p.containerNS, masterName), Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: protocol, Priority: preference,
			},
			Fd: program.FD(), Name: "others", DirectAction: true,
		}))
	}
	others(7, unix.ETH_P_ALL)
	others(1, unix.ETH_P_ALL) // of which there may be several
	made, err := wiring.CreateChild(p.node, p.container, insideChild(1))
	must(t, err)
	must(t, wiring.HookChild(p.container, made, hooks))
	must(t, errors.Join(wiring.RemoveChild(p.node, p.containerNS.Path, "eth0", "eth2"), wiring.UnhookParents(p.containerNS.Path)))
	if out := p.containerNS.Run(t, "tc", "filter", "show", "dev", masterName, "ingress"); !strings.Contains(out, "pref 7 bpf") || strings.Contains(out, "parent_in") {
		t.Errorf("filters: %s", out)
	}
	p.containerNS.Run(t, "ip", "link", "show", "eth2")

	p.containerNS.Run(t, "tc", "filter", "del", "dev", masterName, "ingress", "pref", "1")
	others(1, unix.ETH_P_IP)
	made, err = wiring.CreateChild(p.node, p.container, insideChild(1))
	must(t, err)
	if err := wiring.HookChild(p.container, made, hooks); !errors.Is(err, wiring.ErrHookTaken) {
		t.Errorf("beside another filter of the preference: %v", err)
	}
	_, err = wiring.FindMaster(p.container, "eth9")
	if !errors.Is(err, unix.ENODEV) {
		t.Errorf("no master: %v", err)
	}
}
