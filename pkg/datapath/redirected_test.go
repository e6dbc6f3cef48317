// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/maps"
)

// A test run ends with the verdict, and does not say where to a packet was redirected. So programs under test
// write down, before they call a helper for that, what they call it with: in the map redirectedMap, which each of
// them has of its own. It is all that is added to them.
const redirectedMap = "redirected"

// redirected is the call of a helper that redirects. The zero value is none.
type redirected struct {
	helper asm.BuiltinFunc
	device int
	// flags are those of the helper: redirectIn, that the packet comes in there, or none.
	flags uint32
	// nextHop is that of bpf_redirect_neigh.
	nextHop netip.Addr
}

const redirectIn = 1 // BPF_F_INGRESS

func (r redirected) String() string {
	switch {
	case r.helper == 0:
		return "nowhere"
	case r.isWrong():
		return fmt.Sprintf("with flags %#x", r.flags)
	case r.helper == asm.FnRedirectNeigh:
		return fmt.Sprintf("by %s of device %d", r.nextHop, r.device)
	case r.helper == asm.FnRedirectPeer:
		return fmt.Sprintf("to the peer of device %d", r.device)
	case r.flags == redirectIn:
		return fmt.Sprintf("into device %d", r.device)
	}
	return fmt.Sprintf("out of device %d", r.device)
}

// isWrong tells that the helper fails, and the packet is lost.
func (r redirected) isWrong() bool {
	return r.flags > redirectIn || r.flags == redirectIn && r.helper != asm.FnRedirect
}

// Where the value of redirectedMap has what, in bytes.
const (
	redirectedHelper = 0
	redirectedDevice = 4
	redirectedFlags  = 8
	redirectedNeigh  = 12 // struct bpf_redir_neigh
	redirectedSize   = redirectedNeigh + 20
)

// watchRedirects has the programs of a collection write down their redirects.
func watchRedirects(spec *ebpf.CollectionSpec) error {
	spec.Maps[redirectedMap] = &ebpf.MapSpec{Name: redirectedMap, Type: ebpf.Array, KeySize: 4, ValueSize: redirectedSize, MaxEntries: 1}
	for name, program := range spec.Programs {
		watched, err := insertBefore(program.Instructions, writeDown)
		if err != nil {
			return fmt.Errorf("program %s: %w", name, err)
		}
		program.Instructions = watched
	}
	return nil
}

// writeDown is what comes before a call of a helper that redirects. R0 and R5 are no arguments of those, and lost in
// the call.
func writeDown(call asm.Instruction) asm.Instructions {
	helper := asm.BuiltinFunc(call.Constant)
	flags := asm.R2
	switch {
	case !call.IsBuiltinCall():
		return nil
	case helper == asm.FnRedirect || helper == asm.FnRedirectPeer:
	case helper == asm.FnRedirectNeigh:
		flags = asm.R4
	default:
		return nil
	}
	to := asm.LoadMapPtr(asm.R0, 0).WithReference(redirectedMap)
	to.Src = asm.PseudoMapValue
	added := asm.Instructions{
		to,
		asm.StoreImm(asm.R0, redirectedHelper, int64(helper), asm.Word),
		asm.StoreMem(asm.R0, redirectedDevice, asm.R1, asm.Word),
		asm.StoreMem(asm.R0, redirectedFlags, flags, asm.Word),
	}
	if helper == asm.FnRedirectNeigh {
		for at := int16(0); at < redirectedSize-redirectedNeigh; at += 4 {
			added = append(added, asm.LoadMem(asm.R5, asm.R2, at, asm.Word), asm.StoreMem(asm.R0, redirectedNeigh+at, asm.R5, asm.Word))
		}
	}
	return added
}

// insertBefore adds instructions before others. What jumps to one of those jumps to what was added.
func insertBefore(all asm.Instructions, added func(asm.Instruction) asm.Instructions) (asm.Instructions, error) {
	// Jumps count in units of 8 bytes, of which some instructions take two.
	size := func(some ...asm.Instruction) int { return int(asm.Instructions(some).Size() / asm.InstructionSize) }
	var out asm.Instructions
	// Of each jump, its place in out, and where it ended and ends: offsets count from there.
	var jumps []struct{ at, was, is int }
	was, is := 0, 0
	begins := make(map[int]int) // where an instruction began: where it, with what was added, begins
	for _, ins := range all {
		more := added(ins)
		if len(more) > 0 && ins.Symbol() != "" {
			return nil, fmt.Errorf("function %s begins with a redirect", ins.Symbol())
		}
		begins[was] = is
		was += size(ins)
		is += size(more...) + size(ins)
		out = append(append(out, more...), ins)
		if jump := ins.OpCode.JumpOp(); ins.OpCode.Class().IsJump() && jump != asm.Call && jump != asm.Exit {
			if jump == asm.Ja && ins.OpCode.Class() == asm.Jump32Class || ins.Reference() != "" {
				return nil, fmt.Errorf("cannot move the jump %v", ins)
			}
			jumps = append(jumps, struct{ at, was, is int }{len(out) - 1, was, is})
		}
	}
	for _, jump := range jumps {
		ins := &out[jump.at]
		target, ok := begins[jump.was+int(ins.Offset)]
		if !ok {
			return nil, fmt.Errorf("%v leads to no instruction", *ins)
		}
		offset := target - jump.is
		if offset != int(int16(offset)) {
			return nil, fmt.Errorf("%v is too far away now", *ins)
		}
		ins.Offset = int16(offset)
	}
	return out, nil
}

// redirectsOf is the map in which a program writes down its redirects; nil: it redirects nothing.
func redirectsOf(t testing.TB, program *ebpf.Program) *ebpf.Map {
	t.Helper()
	info, err := program.Info()
	must(t, err)
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		must(t, err)
		info, err := m.Info()
		must(t, err)
		if info.Name == redirectedMap {
			t.Cleanup(func() { _ = m.Close() })
			return m
		}
		must(t, m.Close())
	}
	return nil
}

// noRedirect forgets what was written down; takeRedirect copies what is written down now to a place of another map. What
// the stack makes of a copy that a program has sent comes behind it, and may be redirected as well.
func noRedirect(redirects *ebpf.Map) asm.Instructions {
	if redirects == nil {
		return nil
	}
	return asm.Instructions{
		asm.LoadMapValue(asm.R1, redirects.FD(), 0),
		asm.StoreImm(asm.R1, redirectedHelper, 0, asm.Word),
	}
}

func takeRedirect(redirects, to *ebpf.Map, place uint32) (all asm.Instructions) {
	if redirects == nil {
		return nil
	}
	all = asm.Instructions{
		asm.LoadMapValue(asm.R1, redirects.FD(), 0),
		asm.LoadMapValue(asm.R2, to.FD(), place),
	}
	for at := int16(0); at < redirectedSize; at += 4 {
		all = append(all, asm.LoadMem(asm.R3, asm.R1, at, asm.Word), asm.StoreMem(asm.R2, at, asm.R3, asm.Word))
	}
	return all
}

// readRedirected is what was written down.
func readRedirected(value []byte) (r redirected) {
	number := func(at int) uint32 { return binary.NativeEndian.Uint32(value[at:]) }
	r.helper = asm.BuiltinFunc(number(redirectedHelper))
	if r.helper == 0 {
		return redirected{}
	}
	r.device, r.flags = int(number(redirectedDevice)), number(redirectedFlags)
	if r.helper != asm.FnRedirectNeigh {
		return r
	}
	hop := value[redirectedNeigh+4:]
	if number(redirectedNeigh) == unix.AF_INET {
		r.nextHop = netip.AddrFrom4([4]byte(hop[:4]))
	} else {
		r.nextHop = netip.AddrFrom16([16]byte(hop[:16]))
	}
	return r
}

// strays says what is wrong with where a packet was redirected to, by what the maps say of the devices there: whoever
// has the frame's MAC gets it, by the way that its kind of endpoint takes.
func (n *node) strays(got result) error {
	to, kind := got.to, got.to.helper
	if (got.verdict == redirect) != (kind != 0) {
		return fmt.Errorf("verdict %d, and it is redirected %v", got.verdict, to)
	}
	reason := ""
	for name := range got.counts {
		if _, counted, _ := strings.Cut(name, " "); counted != "decided" {
			reason = counted
		}
	}
	receiver, sender := got.out[:6], got.out[6:12]
	comesIn, fits := to.flags == redirectIn, false
	isBack := got.program == toParent && to.device == got.device
	switch {
	case kind == 0:
		return nil
	case to.isWrong():
	case got.program == pacerIn && kind == asm.FnRedirectPeer:
		fits = to.device == int(got.run.mark) && got.run.seen&^pacedHeld != pacedSent
	case got.program == pacerIn:
		fits = to.device == int(got.run.mark) && got.run.seen&^pacedHeld == pacedSent && comesIn
	case got.program == masterEgress:
		fits = !comesIn && n.isChild(to.device, sender)
	case got.program == masterIngress:
		fits = comesIn && n.isChild(to.device, receiver)
	case kind == asm.FnRedirectNeigh:
		fits = reason == "forwarded" && n.interfaceAt(to.device).Role == maps.RoleUplink
	case kind == asm.FnRedirectPeer:
		fits = reason == "delivered" && n.isEndpoint(to.device, receiver)
	case comesIn && n.isChild(to.device, receiver):
		fits = reason == "delivered" || isBack && (reason == "passed" || reason == "host")
	case comesIn: // for the host
		child, ok := n.childOf(to.device, sender)
		fits = isBack && reason == "passed" && ok && child.Flags&maps.ChildHost != 0 && bytes.Equal(child.HostMac.Bytes[:], receiver)
	case reason == "forwarded":
		fits = n.interfaceAt(to.device).Role == maps.RoleUplink || got.program == toParent && n.isEndpoint(to.device, receiver)
	case reason == "":
		key := maps.LimitKey{Ifindex: got.want.mark, Direction: maps.LimitIngress}
		if got.want.seen == pacedSent {
			key.Direction = maps.LimitEgress
		}
		var limit maps.Limit
		fits = n.maps.Bandwidth.Lookup(key, &limit) == nil && limit.Pacer != 0 && to.device == int(limit.Pacer)
	}
	if !fits {
		return fmt.Errorf("%s: it is %s, and redirected %v", got.program, reason, to)
	}
	if kind != asm.FnRedirectNeigh {
		return nil
	}
	receives := see(got.out, got.gsoSize != 0).dst
	if want := n.nextHop(to.device, receives); to.nextHop != want {
		return fmt.Errorf("%s: it is for %s, next hop %s, and redirected %v", got.program, receives, want, to)
	}
	return nil
}

// nextHop is who is next on the way to an address by a device. There are routes without a router by the other device to
// one address, and to endpoints by the bridge that they are ports of, where that is an uplink.
func (n *node) nextHop(device int, to netip.Addr) netip.Addr {
	f := v4()
	if to.Is6() {
		f = v6()
	}
	link, _ := f.host.Prefix(f.link())
	isPort := func(e Endpoint) bool { return e.Bridge == device && slices.Contains(e.Addresses, to) }
	if link.Contains(to) || to == f.elsewhere && device == n.other.Attrs().Index || slices.ContainsFunc([]Endpoint{n.a, n.b, n.c}, isPort) {
		return to
	}
	return f.router
}

func (n *node) interfaceAt(device int) (found maps.Interface) {
	_ = n.maps.Interfaces.Lookup(uint32(device), &found) // none is none's
	return found
}

// isEndpoint tells whether a device is the host's side of the one with a MAC, isChild whether it is the parent of a child.
func (n *node) isEndpoint(device int, mac []byte) bool {
	at := n.interfaceAt(device)
	return at.Role == maps.RoleEndpoint && bytes.Equal(at.Mac.Bytes[:], mac)
}

func (n *node) isChild(parent int, mac []byte) bool {
	_, ok := n.childOf(parent, mac)
	return ok
}

func (n *node) childOf(parent int, mac []byte) (child maps.Child, ok bool) {
	key := maps.ChildKey{Parent: uint32(parent)}
	copy(key.Mac.Bytes[:], mac)
	err := n.maps.Children.Lookup(key, &child)
	return child, err == nil
}
