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

// pacer is a veth pair of the host that what is limited goes by: in at one end, where fq holds it back
// until the time that pacer_out says, and out at the other, where pacer_in is. What containers send goes
// in at the first, what they get at the second, so that what meets two limits is in two queues: the
// packets of a socket are one flow to fq, of which the first holds up all. It is there while there are
// limits.
type pacer struct {
	// able says that the kernel has fq.
	able bool
	// into are the interface indexes of the ends for each direction of limits; zeros while there
	// is no pair.
	into [2]int
	// foreign is a device of somebody else that has the name of one of the ends.
	foreign string
	// idle says that no limit used it the last time that somebody looked.
	idle bool
}

// pacerDevices are the names of the ends, by direction of limits (maps.LimitIngress,
// maps.LimitEgress), and pacerAlias what they say of themselves.
var pacerDevices = [2]string{"tendril-pacer1", "tendril-pacer0"}

const pacerAlias = "tendril: holds back what is limited"

const (
	// pacerPackets is more than limits let in (their room).
	pacerPackets = 1 << 24
	// pacerFlows is the mask of the hashes by which fq tells apart what no connected socket of
	// the node has sent. A flow whose first packet is not due holds up all that is in it; one
	// takes 128 bytes.
	pacerFlows = 1<<18 - 1
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
	// leastRoom is how many packets are held back at any rate; more are at rates that make
	// more of frames of 1500 bytes.
	leastRoom = 512
)

// horizon is how long a packet is held back at most.
func (l Limit) horizon() time.Duration {
	some := time.Duration(horizonBytes * 8 * float64(time.Second) / float64(l.Rate))
	return min(max(horizon, some), horizonMax)
}

// room is how many packets are held back at most: twice as many as are frames of 1500 bytes.
func (l Limit) room() uint64 {
	frames := float64(l.Rate) * l.horizon().Seconds() / (8 * 1500)
	return uint64(min(max(leastRoom, 2*frames), pacerPackets/256))
}

// haveFQ asks for fq with a setting that there cannot be: the kernel, which loads the module, says that
// it is wrong, or that it knows no fq. Nothing is changed. Where the loopback device has a queueing
// discipline of somebody's, it says neither, and that counts as not.
func haveFQ() bool {
	const loopback, bucketsMax = 1, 18 // as powers of two
	err := setFQ(loopback, unix.NLM_F_CREATE|unix.NLM_F_EXCL, map[int]uint32{nl.TCA_FQ_BUCKETS_LOG: bucketsMax + 1})
	return errors.Is(err, unix.EINVAL)
}

// setFQ gives a device fq for its root, with some settings: all in one request, which the library
// has not.
func setFQ(ifindex, flags int, settings map[int]uint32) error {
	request := nl.NewNetlinkRequest(unix.RTM_NEWQDISC, unix.NLM_F_ACK|flags)
	request.AddData(&nl.TcMsg{
		Family: nl.FAMILY_ALL, Ifindex: int32(ifindex), Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT,
	})
	request.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("fq")))
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	for setting, value := range settings {
		options.AddRtAttr(setting, nl.Uint32Attr(value))
	}
	request.AddData(options)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// pacerFQ are the settings of fq. It keeps departure times and paces nothing by itself: it would
// tell the sockets whose packets it sees to leave pacing to it, and what a container's socket (of
// BBR) says of its packets is gone when they leave the container.
func pacerFQ() map[int]uint32 {
	return map[int]uint32{
		nl.TCA_FQ_RATE_ENABLE: 0, nl.TCA_FQ_PLIMIT: pacerPackets, nl.TCA_FQ_FLOW_PLIMIT: pacerPackets,
		nl.TCA_FQ_ORPHAN_MASK: pacerFlows,
	}
}

// pacerRoot is the root queueing discipline of a device, nil for none, and whether it is ours.
func pacerRoot(end netlink.Link) (root netlink.Qdisc, ours bool, err error) {
	qdiscs, err := netlinksafe.QdiscList(end)
	if err != nil {
		return nil, false, fmt.Errorf("list qdiscs of %s: %w", end.Attrs().Name, err)
	}
	for _, q := range qdiscs {
		if q.Attrs().Parent == netlink.HANDLE_ROOT {
			root = q
		}
	}
	fq, ok := root.(*netlink.Fq)
	return root, ok && fq.Attrs().Handle == netlink.MakeHandle(1, 0), nil
}

// ends are the devices of the pacer, by direction, nil where there are none. foreign names a device of
// somebody else that has such a name.
func (p *pacer) ends() (ends [2]netlink.Link, foreign string, err error) {
	for i, name := range pacerDevices {
		link, err := netlinksafe.LinkByName(name)
		if absent := (netlink.LinkNotFoundError{}); errors.As(err, &absent) {
			continue
		}
		if err != nil {
			return ends, "", fmt.Errorf("look for %s: %w", name, err)
		}
		ends[i] = link
	}
	paired := arePaired(ends)
	for i, end := range ends {
		// One that was made and has no alias yet has its other end.
		if end != nil && !paired && (end.Type() != "veth" || end.Attrs().Alias != pacerAlias) {
			foreign, ends[i] = end.Attrs().Name, nil
		}
	}
	return ends, foreign, nil
}

// arePaired says whether two devices are there, and are each other's ends in this namespace.
func arePaired(ends [2]netlink.Link) bool {
	for i, end := range ends {
		other := ends[1-i]
		if end == nil || other == nil || end.Type() != "veth" || end.Attrs().NetNsID >= 0 || end.Attrs().ParentIndex != other.Attrs().Index {
			return false
		}
	}
	return true
}

func pacerAttachments(ends [2]netlink.Link) (all []attachment) {
	for _, end := range ends {
		all = append(all, attachment{end.Attrs().Index, pacerOut}, attachment{end.Attrs().Index, pacerIn})
	}
	return all
}

// checkPacer compares the pacer with what there should be. A difference is a *MismatchError.
func (d *Datapath) checkPacer() error {
	ends, foreign, err := d.pacer.ends()
	if err != nil {
		return err
	}
	if foreign != "" && foreign == d.pacer.foreign && d.pacer.into == [2]int{} {
		return nil // it has been said, and limits do without
	}
	for i, name := range pacerDevices {
		if !arePaired(ends) || ends[i].Attrs().Index != d.pacer.into[i] {
			return &MismatchError{What: "device " + name}
		}
	}
	for _, end := range ends {
		name, mtu := end.Attrs().Name, end.Attrs().MTU
		if end.Attrs().RawFlags&unix.IFF_UP == 0 {
			return &MismatchError{What: "device " + name, Difference: "is down"}
		}
		if mtu != pacerMTU {
			return &MismatchError{What: "device " + name, Difference: fmt.Sprintf("has MTU %d, want %d", mtu, pacerMTU)}
		}
		root, ours, err := pacerRoot(end)
		if err != nil {
			return err
		}
		if !ours {
			return &MismatchError{What: "qdisc fq on interface " + name}
		}
		if fq := root.(*netlink.Fq); fq.Pacing != 0 || fq.PacketLimit != pacerPackets || fq.FlowPacketLimit != pacerPackets {
			return &MismatchError{What: "qdisc fq on interface " + name, Difference: fmt.Sprintf("has other settings: %v", fq)}
		}
	}
	for _, a := range pacerAttachments(ends) {
		if ok, err := d.hooks.of(a).has(a); err != nil {
			return err
		} else if !ok {
			return a.missing(ends[slices.Index(d.pacer.into[:], a.ifindex)].Attrs().Name)
		}
	}
	return nil
}

// ensurePacer makes the pacer, or what is missing of it, where the kernel has fq.
func (d *Datapath) ensurePacer() error {
	if !d.pacer.able {
		return nil
	}
	d.pacer.idle = false
	err := d.checkPacer()
	if mismatch := (*MismatchError)(nil); !errors.As(err, &mismatch) {
		return err
	}
	if err := d.makePacer(); err != nil {
		return fmt.Errorf("make pacer: %w", err)
	}
	return nil
}

func (d *Datapath) makePacer() (err error) {
	ends, foreign, err := d.pacer.ends()
	if err != nil {
		return err
	}
	d.pacer.foreign = foreign
	if foreign != "" {
		d.log.Warn("limits are held without a queue: a device of somebody else has the name of the pacer's", "device", foreign)
		d.pacer.into = [2]int{}
		return d.repointLimits()
	}
	if !arePaired(ends) {
		if err := d.pacer.remove(); err != nil { // half of one
			return err
		}
		attributes := netlink.NewLinkAttrs()
		attributes.Name = pacerDevices[maps.LimitEgress]
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: pacerDevices[maps.LimitIngress]}); err != nil {
			return fmt.Errorf("add %s: %w", attributes.Name, err)
		}
		defer func() {
			if err != nil { // the bucket drops less than a device that is gone
				err = errors.Join(err, d.pacer.remove(), d.repointLimits())
			}
		}()
		if ends, _, err = d.pacer.ends(); err != nil {
			return err
		}
		if !arePaired(ends) {
			return fmt.Errorf("somebody has renamed or removed %s", attributes.Name)
		}
	}
	// The programs come first: the host must not speak by these devices.
	for _, a := range pacerAttachments(ends) {
		if err := d.attach(a); err != nil {
			return err
		}
	}
	for _, end := range ends {
		if err := setPacerEnd(end); err != nil {
			return err
		}
	}
	for i, end := range ends {
		if err := netlink.LinkSetUp(end); err != nil {
			return fmt.Errorf("set %s up: %w", end.Attrs().Name, err)
		}
		d.pacer.into[i] = end.Attrs().Index
	}
	return d.repointLimits()
}

// setPacerEnd makes one of the devices what it should be. An fq that holds packets back keeps them.
func setPacerEnd(end netlink.Link) error {
	index, name := end.Attrs().Index, end.Attrs().Name
	root, ours, err := pacerRoot(end)
	if err != nil {
		return err
	}
	if root != nil && !ours {
		err := netlink.QdiscDel(root)
		// The kernel's own, which has no handle, cannot be removed, and need not be.
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("remove qdisc %s of %s: %w", root.Type(), name, err)
		}
	}
	if err := setFQ(index, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, pacerFQ()); err != nil {
		return fmt.Errorf("set fq of %s: %w", name, err)
	}
	for _, setting := range []struct {
		what string
		set  func() error
	}{
		{"alias", func() error { return netlink.LinkSetAlias(end, pacerAlias) }},
		{"MTU", func() error { return netlink.LinkSetMTU(end, pacerMTU) }},
		{"no ARP", func() error { return netlink.LinkSetARPOff(end) }},
		{"no link-local address", func() error { return ignoreNoIPv6(netlink.LinkSetIP6AddrGenMode(end, addrGenNone)) }},
	} {
		if err := setting.set(); err != nil {
			return fmt.Errorf("set %s of %s: %w", setting.what, name, err)
		}
	}
	return nil
}

// ignoreNoIPv6 is for a node whose kernel has no IPv6, or has it switched off.
func ignoreNoIPv6(err error) error {
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// repointLimits has the limits that are in force, and have been held back so far, use the pacer as it is.
func (d *Datapath) repointLimits() error {
	stale := make(map[maps.LimitKey]maps.Limit)
	if _, err := walk(d.maps.Bandwidth, func(key maps.LimitKey, value maps.Limit) {
		if into := uint32(d.pacer.into[key.Direction&1]); value.Pacer != 0 && value.Pacer != into {
			value.Pacer = into
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

// adopt finds out whether there can be a pacer, and finds that which a former agent has made.
func (p *pacer) adopt() {
	if ends, _, err := p.ends(); err == nil && arePaired(ends) {
		for i, end := range ends {
			p.into[i] = end.Attrs().Index
		}
	}
	p.able = p.into != [2]int{} || haveFQ()
}

// remove removes the pair, or what there is of it, and all that hangs on it. What is of somebody
// else stays.
func (p *pacer) remove() error {
	ends, _, err := p.ends()
	if err != nil {
		return err
	}
	for _, end := range ends {
		if end == nil {
			continue
		}
		// The other end goes with it.
		if err := netlink.LinkDel(end); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove %s: %w", end.Attrs().Name, err)
		}
	}
	p.into, p.idle = [2]int{}, false
	return nil
}

// removeIdlePacer removes the pacer when there has been no limit for two calls, which are a minute
// apart: what it has held back has left by then.
func (d *Datapath) removeIdlePacer() error {
	used := false
	if _, err := walk(d.maps.Bandwidth, func(_ maps.LimitKey, value maps.Limit) { used = used || value.Pacer != 0 }); err != nil {
		return err
	}
	if used {
		d.pacer.idle = false
		return nil
	}
	if !d.pacer.idle {
		d.pacer.idle = true
		return nil
	}
	return d.pacer.remove()
}
