// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/maps"
)

// pacer is a veth pair of the host that what is limited goes by: in at pacerOut, where fq holds it
// back until the time that pacer_out says, and out at pacerIn. It is there while there are limits.
type pacer struct {
	// able says that the kernel has fq.
	able bool
	// out is the interface index of the first device; 0 while there is no pair.
	out int
	// idle says that no limit used it the last time that somebody looked.
	idle bool
}

// Names of the devices of the pacer.
const (
	pacerOutDevice = "tendril-pacer0"
	pacerInDevice  = "tendril-pacer1"
)

const (
	// pacerPackets is more than limits let in (their spacing).
	pacerPackets = 1 << 24
	// pacerFlows is the mask of the hashes by which fq tells apart what no socket of the
	// node has sent. A flow whose first packet is not due holds up all that is in it.
	pacerFlows = 1<<24 - 1
	// pacerMTU is the most that a veth device has.
	pacerMTU = 65535
	// addrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
	addrGenNone = 1
)

// Of what is held back for one limit: TCP finds its rate with some milliseconds of it, and with the
// largest packet, whatever that takes.
const (
	horizon      = 50 * time.Millisecond
	horizonBytes = 64 << 10
	horizonMax   = 2 * time.Second // fq drops what is to leave in 10 s
	// leastHeld is how many packets are held back at any rate; more are at rates that make
	// more of frames of 1500 bytes.
	leastHeld = 512
)

// horizon is how long a packet is held back at most.
func (l Limit) horizon() time.Duration {
	some := time.Duration(horizonBytes * 8 * float64(time.Second) / float64(l.Rate))
	return min(max(horizon, some), horizonMax)
}

// spacing is the share of the horizon that a packet takes at least, which bounds how many are held
// back: twice as many as are frames of 1500 bytes.
func (l Limit) spacing() time.Duration {
	frames := float64(l.Rate) * l.horizon().Seconds() / (8 * 1500)
	return max(1, time.Duration(float64(l.horizon())/max(leastHeld, 2*frames)))
}

// haveFQ asks for fq with a setting that there cannot be: the kernel, which loads the module, says that
// it is wrong, or that it knows no fq. Nothing is changed. Where the loopback device has a queueing
// discipline of somebody's, it says neither, and that counts as not.
func haveFQ() bool {
	const loopback = 1
	wrong := pacerQdisc(loopback)
	wrong.Buckets = 32 // as a power of two
	err := netlink.QdiscAdd(wrong)
	if err == nil {
		_ = netlink.QdiscDel(wrong)
	}
	return errors.Is(err, unix.EINVAL)
}

// pacerQdisc is fq that keeps departure times and paces nothing by itself: it would tell the
// sockets whose packets it sees to leave pacing to it, and what a container's socket (of BBR) says
// of its packets is gone when they leave the container.
func pacerQdisc(ifindex int) *netlink.Fq {
	return &netlink.Fq{
		QdiscAttrs:  netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		PacketLimit: pacerPackets, FlowPacketLimit: pacerPackets,
	}
}

// addPacerQdisc puts fq in the place of whatever is there.
func addPacerQdisc(out netlink.Link) error {
	fq := pacerQdisc(out.Attrs().Index)
	// Nothing to remove where it is the kernel's own.
	if err := netlink.QdiscDel(&netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: fq.LinkIndex, Parent: netlink.HANDLE_ROOT}}); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	if err := netlink.QdiscAdd(fq); err != nil {
		return err
	}
	// The mask is no setting that the library knows.
	request := nl.NewNetlinkRequest(unix.RTM_NEWQDISC, unix.NLM_F_ACK)
	request.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(fq.LinkIndex), Handle: fq.Handle, Parent: fq.Parent})
	request.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated(fq.Type())))
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_FQ_ORPHAN_MASK, nl.Uint32Attr(pacerFlows))
	request.AddData(options)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// links are the devices of the pacer by name, nil where there are none. What has such a name and is
// no veth device is of somebody else: that is the error.
func (p *pacer) links() (out, in netlink.Link, err error) {
	var found [2]netlink.Link
	for i, name := range []string{pacerOutDevice, pacerInDevice} {
		link, err := netlinksafe.LinkByName(name)
		if absent := (netlink.LinkNotFoundError{}); errors.As(err, &absent) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("look for %s: %w", name, err)
		}
		if link.Type() != "veth" {
			return nil, nil, fmt.Errorf("device %s is a %s of somebody else", name, link.Type())
		}
		found[i] = link
	}
	return found[0], found[1], nil
}

// isPair says whether two devices are there, and are each other's ends.
func isPair(out, in netlink.Link) bool {
	return out != nil && in != nil && out.Attrs().ParentIndex == in.Attrs().Index
}

func (p *pacer) attachments(out, in netlink.Link) []attachment {
	return []attachment{{out.Attrs().Index, pacerOut}, {in.Attrs().Index, pacerIn}}
}

// checkPacer compares the pacer with what there should be. A difference is a *MismatchError.
func (d *Datapath) checkPacer() error {
	out, in, err := d.pacer.links()
	if err != nil {
		return err
	}
	if !isPair(out, in) || out.Attrs().Index != d.pacer.out {
		return &MismatchError{What: "device " + pacerOutDevice}
	}
	for _, link := range []netlink.Link{out, in} {
		if link.Attrs().RawFlags&unix.IFF_UP == 0 {
			return &MismatchError{What: "device " + link.Attrs().Name, Difference: "is down"}
		}
		if mtu := link.Attrs().MTU; mtu != pacerMTU {
			return &MismatchError{What: "device " + link.Attrs().Name, Difference: fmt.Sprintf("has MTU %d, want %d", mtu, pacerMTU)}
		}
	}
	qdiscs, err := netlinksafe.QdiscList(out)
	if err != nil {
		return fmt.Errorf("list qdiscs of %s: %w", pacerOutDevice, err)
	}
	if !slices.ContainsFunc(qdiscs, func(q netlink.Qdisc) bool {
		fq, ok := q.(*netlink.Fq)
		return ok && fq.Attrs().Parent == netlink.HANDLE_ROOT && fq.Pacing == 0
	}) {
		return &MismatchError{What: "qdisc fq on interface " + pacerOutDevice}
	}
	for _, a := range d.pacer.attachments(out, in) {
		if ok, err := d.hooks.of(a).has(a); err != nil {
			return err
		} else if !ok {
			return a.missing(pacerOutDevice)
		}
	}
	return nil
}

// ensurePacer makes the pacer, or what is missing of it, and returns what was.
func (d *Datapath) ensurePacer() (found string, err error) {
	if !d.pacer.able {
		return "", nil
	}
	err = d.checkPacer()
	mismatch := (*MismatchError)(nil)
	if !errors.As(err, &mismatch) {
		return "", err
	}
	if err := d.makePacer(); err != nil {
		return "", fmt.Errorf("make pacer: %w", err)
	}
	return mismatch.Error(), nil
}

func (d *Datapath) makePacer() (err error) {
	out, in, err := d.pacer.links()
	if err != nil {
		return err
	}
	if !isPair(out, in) {
		if err := d.pacer.remove(); err != nil { // half of one
			return err
		}
		attributes := netlink.NewLinkAttrs()
		attributes.Name = pacerOutDevice
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: pacerInDevice}); err != nil {
			return fmt.Errorf("add %s: %w", pacerOutDevice, err)
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, d.pacer.remove())
			}
		}()
		if out, in, err = d.pacer.links(); err != nil {
			return err
		}
	}
	// The programs come first: the host must not speak by these devices.
	for _, a := range d.pacer.attachments(out, in) {
		if err := d.attach(a); err != nil {
			return err
		}
	}
	if err := addPacerQdisc(out); err != nil {
		return fmt.Errorf("add fq to %s: %w", pacerOutDevice, err)
	}
	for _, link := range []netlink.Link{out, in} {
		name := link.Attrs().Name
		for what, set := range map[string]func() error{
			"MTU":                   func() error { return netlink.LinkSetMTU(link, pacerMTU) },
			"no ARP":                func() error { return netlink.LinkSetARPOff(link) },
			"no link-local address": func() error { return ignoreNoIPv6(netlink.LinkSetIP6AddrGenMode(link, addrGenNone)) },
		} {
			if err := set(); err != nil {
				return fmt.Errorf("set %s of %s: %w", what, name, err)
			}
		}
	}
	for _, link := range []netlink.Link{in, out} {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", link.Attrs().Name, err)
		}
	}
	d.pacer.out = out.Attrs().Index
	return d.repointLimits()
}

// ignoreNoIPv6 is for a node whose kernel has no IPv6, or has it switched off.
func ignoreNoIPv6(err error) error {
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// repointLimits has the limits that are in force use the pacer.
func (d *Datapath) repointLimits() error {
	stale := make(map[maps.LimitKey]maps.Limit)
	if _, err := walk(d.maps.Bandwidth, func(key maps.LimitKey, value maps.Limit) {
		// One that has no horizon yet is about to be written.
		if int(value.Pacer) != d.pacer.out && value.Horizon != 0 {
			value.Pacer = uint32(d.pacer.out)
			stale[key] = value
		}
	}); err != nil {
		return err
	}
	for key, value := range stale {
		if err := d.maps.Bandwidth.Put(key, value); err != nil {
			return fmt.Errorf("write map bandwidth: %w", err)
		}
	}
	return nil
}

// adopt finds out whether there can be a pacer, and finds that which a former agent has made. What
// has the devices' names and is none matters to those alone who ask for a limit.
func (p *pacer) adopt() {
	if out, in, err := p.links(); err == nil && isPair(out, in) {
		p.out = out.Attrs().Index
	}
	p.able = p.out != 0 || haveFQ()
}

// remove removes the pair, or what there is of it, and all that hangs on it.
func (p *pacer) remove() error {
	p.out = 0
	for {
		out, in, err := p.links()
		if err != nil {
			return err
		}
		device := out
		if device == nil {
			device = in
		}
		if device == nil {
			return nil
		}
		if err := netlink.LinkDel(device); err != nil { // the other end goes with it
			return fmt.Errorf("remove %s: %w", device.Attrs().Name, err)
		}
	}
}

// removeIdlePacer removes the pacer when there has been no limit for two calls, the later of which is
// a minute after the other, or the agent's first: what it has held back has left by then.
func (d *Datapath) removeIdlePacer() error {
	if d.pacer.out == 0 {
		return nil
	}
	var key maps.LimitKey
	err := d.maps.Bandwidth.NextKey(nil, &key)
	if err == nil {
		d.pacer.idle = false
		return nil
	}
	if err := ignoreMissing(err); err != nil {
		return fmt.Errorf("read map bandwidth: %w", err)
	}
	if !d.pacer.idle {
		d.pacer.idle = true
		return nil
	}
	d.log.Info("no limit is left: the pacer is removed", "device", pacerOutDevice)
	return d.pacer.remove()
}
