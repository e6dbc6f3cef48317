// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
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
	// broken is why there is no pair though there should be one, or the pair is not as it should be.
	broken error
	// repaired is when a lost pair was last made anew.
	repaired time.Time
	// idle says that no limit used it the last time that somebody looked.
	idle bool
}

// pacerDevices are the names of the ends, by direction of limits (maps.LimitIngress,
// maps.LimitEgress), and pacerAlias what they say of themselves.
var pacerDevices = [2]string{"tendril-pacer1", "tendril-pacer0"}

const pacerAlias = "tendril: holds back what is limited"

const (
	// pacerHandle is the handle 1: of the queueing discipline.
	pacerHandle = 1 << 16
	// pacerPackets is more than limits let in (their room).
	pacerPackets = 1 << 24
	// pacerFlows is the mask of the hashes by which fq tells apart what no connected socket of
	// the node has sent. A flow whose first packet is not due holds up all that is in it; one
	// takes 128 bytes.
	pacerFlows = 1<<18 - 1
	// pacerHorizon is how late a packet may leave at most: beyond it fq drops it. It is fq's default.
	pacerHorizon = 5 * horizonMax
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
	horizonMax   = 2 * time.Second
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
	err := setFQ(loopback, unix.NLM_F_CREATE|unix.NLM_F_EXCL, fqSetting{"buckets", nl.TCA_FQ_BUCKETS_LOG, bucketsMax + 1})
	return errors.Is(err, unix.EINVAL)
}

// fqSetting is one of fq that is a number, by the name that tc(8) gives it; "pacing" 0 is its nopacing.
type fqSetting struct {
	name      string
	attribute int
	value     uint32
}

// setFQ gives a device fq for its root, with some settings: all in one request, which the library
// has not.
func setFQ(ifindex, flags int, settings ...fqSetting) error {
	request := nl.NewNetlinkRequest(unix.RTM_NEWQDISC, unix.NLM_F_ACK|flags)
	request.AddData(&nl.TcMsg{
		Family: nl.FAMILY_ALL, Ifindex: int32(ifindex), Handle: pacerHandle, Parent: netlink.HANDLE_ROOT,
	})
	request.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("fq")))
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	for _, s := range settings {
		options.AddRtAttr(s.attribute, nl.Uint32Attr(s.value))
	}
	request.AddData(options)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// pacerFQ are the settings of fq. It keeps departure times and paces nothing by itself: it would
// tell the sockets whose packets it sees to leave pacing to it, and what a container's socket (of
// BBR) says of its packets is gone when they leave the container.
func pacerFQ() []fqSetting {
	return []fqSetting{
		{"limit", nl.TCA_FQ_PLIMIT, pacerPackets},
		{"flow_limit", nl.TCA_FQ_FLOW_PLIMIT, pacerPackets},
		{"orphan_mask", nl.TCA_FQ_ORPHAN_MASK, pacerFlows},
		{"horizon", nl.TCA_FQ_HORIZON, uint32(pacerHorizon / time.Microsecond)},
		{"pacing", nl.TCA_FQ_RATE_ENABLE, 0},
	}
}

// rootQdisc is the root queueing discipline of a device that somebody has set.
type rootQdisc struct {
	kind   string
	handle uint32
	// settings are those of fq that are a number, by attribute.
	settings map[int]uint32
}

// isPacer says whether it is an fq of ours, whatever its settings.
func (q *rootQdisc) isPacer() bool {
	return q != nil && q.kind == "fq" && q.handle == pacerHandle
}

// differs names the settings that are not those of the pacer, with what they are and should be.
func (q *rootQdisc) differs() string {
	var all []string
	for _, s := range pacerFQ() {
		if got, ok := q.settings[s.attribute]; !ok || got != s.value {
			all = append(all, fmt.Sprintf("has %s %d, not %d", s.name, got, s.value))
		}
	}
	return strings.Join(all, ", ")
}

// pacerRoot asks for the root queueing discipline of one device, nil for none but the kernel's own, or no
// device. The library would list those of all devices, and knows not all that is set.
func pacerRoot(end netlink.Link) (*rootQdisc, error) {
	// An answer comes only where its echo is asked for; whoever listens for changes of qdiscs gets it, too.
	// The kernel's own has no handle, and is not shown while the device is down (5.10 to 7).
	request := nl.NewNetlinkRequest(unix.RTM_GETQDISC, unix.NLM_F_ECHO|unix.NLM_F_ACK)
	request.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(end.Attrs().Index), Parent: netlink.HANDLE_ROOT})
	messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWQDISC)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || err == nil && len(messages) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask for root qdisc of %s: %w", end.Attrs().Name, err)
	}
	if len(messages[0]) < nl.SizeofTcMsg {
		return nil, fmt.Errorf("ask for root qdisc of %s: an answer of %d bytes", end.Attrs().Name, len(messages[0]))
	}
	q := &rootQdisc{handle: nl.DeserializeTcMsg(messages[0]).Handle, settings: make(map[int]uint32)}
	if q.handle == 0 {
		return nil, nil
	}
	attributes, err := nl.ParseRouteAttrAsMap(messages[0][nl.SizeofTcMsg:])
	if err != nil {
		return nil, fmt.Errorf("read root qdisc of %s: %w", end.Attrs().Name, err)
	}
	q.kind = string(bytes.TrimRight(attributes[nl.TCA_KIND].Value, "\x00"))
	if !q.isPacer() {
		return q, nil
	}
	options, err := nl.ParseRouteAttrAsMap(attributes[nl.TCA_OPTIONS].Value)
	if err != nil {
		return nil, fmt.Errorf("read fq of %s: %w", end.Attrs().Name, err)
	}
	for setting, option := range options {
		if len(option.Value) == 4 {
			q.settings[int(setting)] = nl.NativeEndian().Uint32(option.Value)
		}
	}
	return q, nil
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

// missing is which of the devices is not the one that limits use, "" for none.
func (p *pacer) missing(ends [2]netlink.Link) string {
	for i, name := range pacerDevices {
		if ends[i] == nil || ends[i].Attrs().Index != p.into[i] {
			return name
		}
	}
	if !arePaired(ends) {
		return pacerDevices[0]
	}
	return ""
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
	if missing := d.pacer.missing(ends); missing != "" {
		return &MismatchError{What: "device " + missing}
	}
	for _, end := range ends {
		name, mtu := end.Attrs().Name, end.Attrs().MTU
		if end.Attrs().RawFlags&unix.IFF_UP == 0 {
			return &MismatchError{What: "device " + name, Difference: "is down"}
		}
		if mtu != pacerMTU {
			return &MismatchError{What: "device " + name, Difference: fmt.Sprintf("has MTU %d, not %d", mtu, pacerMTU)}
		}
		root, err := pacerRoot(end)
		if err != nil {
			return err
		}
		if !root.isPacer() {
			return &MismatchError{What: "qdisc fq on interface " + name}
		}
		if differs := root.differs(); differs != "" {
			return &MismatchError{What: "qdisc fq on interface " + name, Difference: differs}
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
	return d.makePacer()
}

// ensurePacerOf is ensurePacer, for an endpoint whose limits use it.
func (d *Datapath) ensurePacerOf(e Endpoint) error {
	if !e.isPaced() {
		return nil
	}
	return d.ensurePacer()
}

// repairPause is the least time between two pairs that are made anew because the kernel has told of the end
// of the last one: somebody may remove each.
const repairPause = 5 * time.Second

// RepairPacer puts back what somebody has done to the pair that limits use, which stops those who have one:
// to be called whenever a link has changed. It is logged. What it puts right is not wrong the next time, so
// that its own changes of links come to an end; a pair that is lost again within seconds is left to
// RepairEndpoint. The error is also that for which there is no pair though there should be one.
func (d *Datapath) RepairPacer() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pacer.into == [2]int{} {
		return d.pacer.broken
	}
	err := d.checkPacer()
	found := (*MismatchError)(nil)
	if !errors.As(err, &found) {
		return err
	}
	if d.now().Sub(d.pacer.repaired) < repairPause {
		return nil
	}
	if used, err := d.pacerUsed(); err != nil || !used {
		return err
	}
	d.pacer.repaired = d.now()
	if err := d.makePacer(); err != nil {
		return err
	}
	d.log.Warn("the devices that limits hold packets back with were repaired", "found", found.Error())
	return nil
}

// makePacer makes the pacer, or what is missing of it. Where that fails there is none, and limits do
// without: the bucket drops less than a device that is gone.
func (d *Datapath) makePacer() (err error) {
	ends, foreign, err := d.pacer.ends()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make pacer: %w", err), d.pacer.remove(), d.repointLimits())
		}
		d.pacer.broken = err
	}()
	d.pacer.foreign = foreign
	if foreign != "" {
		d.log.Warn("limits are held without a queue: a device of somebody else has the name of the pacer's", "device", foreign)
		d.pacer.into = [2]int{}
		return d.repointLimits()
	}
	if !arePaired(ends) {
		if err := d.pacer.remove(); err != nil { // half of one, or one with other names
			return err
		}
		attributes := netlink.NewLinkAttrs()
		attributes.Name = pacerDevices[maps.LimitEgress]
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: pacerDevices[maps.LimitIngress]}); err != nil {
			return fmt.Errorf("add %s: %w", attributes.Name, err)
		}
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
	root, err := pacerRoot(end)
	if err != nil {
		return err
	}
	if root != nil && !root.isPacer() {
		other := &netlink.GenericQdisc{QdiscType: root.kind, QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: root.handle, Parent: netlink.HANDLE_ROOT}}
		if err := netlink.QdiscDel(other); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove qdisc %s of %s: %w", root.kind, name, err)
		}
	}
	if err := setFQ(index, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, pacerFQ()...); err != nil {
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
	all := ends[:]
	for _, index := range p.into { // whatever somebody calls it now
		if end, err := netlink.LinkByIndex(index); err == nil && end.Type() == "veth" && end.Attrs().Alias == pacerAlias {
			all = append(all, end)
		}
	}
	for _, end := range all {
		if end == nil {
			continue
		}
		// The other end goes with it.
		if err := netlink.LinkDel(end); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove %s: %w", end.Attrs().Name, err)
		}
	}
	p.into, p.idle, p.broken = [2]int{}, false, nil
	return nil
}

// pacerUsed says whether there is a limit that uses the pacer.
func (d *Datapath) pacerUsed() (used bool, err error) {
	_, err = walk(d.maps.Bandwidth, func(_ maps.LimitKey, value maps.Limit) { used = used || value.Pacer != 0 })
	return used, err
}

// removeIdlePacer removes the pacer when there has been no limit for two calls, which are a minute
// apart: what it has held back has left by then.
func (d *Datapath) removeIdlePacer() error {
	used, err := d.pacerUsed()
	if err != nil {
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
