// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/pkg/maps"
)

func (e *Endpoint) validate() error {
	switch {
	case e.ID == 0:
		return errors.New("endpoint has no id")
	case e.Bridge < 0 || int64(e.Bridge) > math.MaxInt32:
		return fmt.Errorf("endpoint %d: %d is no interface index of a bridge", e.ID, e.Bridge)
	case e.IfIndex <= 0:
		return fmt.Errorf("endpoint %d has no interface", e.ID)
	case len(e.MAC) != 6 || len(e.HostMAC) != 6:
		return fmt.Errorf("endpoint %d: MACs %q and %q are not of Ethernet", e.ID, e.MAC, e.HostMAC)
	case e.MTU < 68 || e.MTU > 65535:
		return fmt.Errorf("endpoint %d: MTU %d is not within 68 to 65535", e.ID, e.MTU)
	}
	if e.Layer2 && (e.Bridge == 0 || len(e.Addresses)+len(e.Ports) != 0) {
		return fmt.Errorf("endpoint %d has addresses or ports, or no bridge, although it is of layer 2", e.ID)
	}
	for _, a := range e.Addresses {
		if !plain(a) {
			return fmt.Errorf("endpoint %d: %q is no plain address", e.ID, a)
		}
	}
	for _, p := range e.Ports {
		if err := p.validate(); err != nil {
			return fmt.Errorf("endpoint %d: %w", e.ID, err)
		}
	}
	if err := e.validateLimits(); err != nil {
		return err
	}
	if err := e.validateTrunk(); err != nil {
		return err
	}
	if e.Child != nil {
		return e.Child.validate(e)
	}
	return nil
}

func (e *Endpoint) value() maps.Endpoint {
	value := maps.Endpoint{
		Ifindex: uint32(e.IfIndex),
		Id:      e.ID,
		Mtu:     uint16(e.MTU),
		Mac:     maps.NewMAC(e.MAC),
		HostMac: maps.NewMAC(e.HostMAC),
	}
	if e.Masquerade {
		value.Flags |= maps.EndpointMasquerade
	}
	if len(e.Ports) > 0 {
		value.Flags |= maps.EndpointPorts
	}
	if e.Ingress != (Limit{}) {
		value.Flags |= maps.EndpointLimited
	}
	return value
}

func (e *Endpoint) device() maps.Interface {
	link := e.Bridge
	if e.Child != nil {
		link = e.Child.Parent
	}
	device := maps.Interface{
		Mtu: uint16(e.MTU), Endpoint: e.ID, Mac: maps.NewMAC(e.MAC), Role: maps.RoleEndpoint, Bridge: uint32(link),
		HostMac: maps.NewMAC(e.HostMAC),
	}
	if e.Isolated {
		device.Flags |= maps.InterfaceIsolated
	}
	if e.Layer2 {
		device.Flags |= maps.InterfaceLayer2
	}
	return device
}

// attachments are those that the endpoint has to itself.
func (e *Endpoint) attachments() []attachment {
	if e.Child != nil {
		return nil
	}
	all := []attachment{{e.IfIndex, fromContainer}, {e.IfIndex, toContainer}}
	for _, l := range e.limits() {
		if l.Limit != (Limit{}) {
			all = append(all, l.at)
		}
	}
	return all
}

// AttachEndpoint makes the datapath serve an endpoint. It is idempotent. What a
// failure leaves behind is removed by DetachEndpoint.
func (d *Datapath) AttachEndpoint(e Endpoint) error {
	if err := e.validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attachEndpoint(e)
}

func (d *Datapath) attachEndpoint(e Endpoint) error {
	if err := d.ensurePacerOf(e); err != nil {
		return err
	}
	// The maps come first: a program without them would drop everything.
	if err := d.writeEndpoint(e); err != nil {
		return err
	}
	failpoint.Hit(failpoint.AgentAttachMaps)
	if err := d.attachPrograms(e); err != nil {
		return err
	}
	if e.Child != nil {
		if err := d.attachChild(e); err != nil {
			return err
		}
	}
	failpoint.Hit(failpoint.AgentAttachLinks)
	// What others sent to its ports so far was left to the host.
	if e.OnLinkKnown && len(e.Ports) == 0 {
		return nil
	}
	return d.bumpEpoch(0)
}

// writeEndpoint writes what the maps say of an endpoint, but for map children.
func (d *Datapath) writeEndpoint(e Endpoint) error {
	if err := d.maps.Interfaces.Put(uint32(e.IfIndex), e.device()); err != nil {
		return fmt.Errorf("write map interfaces: %w", err)
	}
	if err := d.writeTrunk(e); err != nil {
		return err
	}
	if err := d.writeAddresses(e); err != nil {
		return err
	}
	return errors.Join(d.writePorts(e), d.writeLimits(e))
}

// attachPrograms attaches to an endpoint's own device. The error is errNoDevice when it is gone.
func (d *Datapath) attachPrograms(e Endpoint) error {
	for _, a := range e.attachments() {
		if err := d.attach(a); err != nil {
			return err
		}
	}
	return nil
}

// writeAddresses says of each address of the endpoint who has it.
func (d *Datapath) writeAddresses(e Endpoint) error {
	for _, a := range e.Addresses {
		if err := d.maps.Endpoints.Put(maps.NewAddress(a), e.value()); err != nil {
			return fmt.Errorf("write map endpoints: %w", err)
		}
	}
	return nil
}

// DetachEndpoint ends the service. The device may be gone already; if it is not,
// whatever it sends is dropped; that of a macvlan child must be gone, or it is any station of
// its link. Flows and translations of the endpoint are dead at
// once; Purge removes them.
func (d *Datapath) DetachEndpoint(e Endpoint) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.detachEndpoint(e)
}

func (d *Datapath) detachEndpoint(e Endpoint) error {
	errs := []error{d.removePorts(e), d.removeLimits(e, Endpoint{})}
	for _, a := range e.Addresses {
		errs = append(errs, d.removeAddress(e, maps.NewAddress(a)))
	}
	if e.ID != 0 {
		errs = append(errs, d.bumpEpoch(uint32(e.ID)))
	}
	failpoint.Hit(failpoint.AgentDeleteMaps)
	if e.IfIndex > 0 {
		for _, a := range e.attachments() {
			errs = append(errs, d.hooks.endpoints.abandon(a))
		}
		errs = append(errs, d.removeTrunk(e), ignoreMissing(d.maps.Interfaces.Delete(uint32(e.IfIndex))))
		if e.Child != nil {
			errs = append(errs, d.detachChild(e))
		}
		// What it sends to other endpoints was decided in their epochs, and the
		// node's. As a rule the device has gone before, and nothing is sent.
		absent := netlink.LinkNotFoundError{}
		if _, err := netlink.LinkByIndex(e.IfIndex); e.Child != nil || !errors.As(err, &absent) {
			errs = append(errs, d.bumpEpoch(0))
		}
	}
	failpoint.Hit(failpoint.AgentDeleteLinks)
	return errors.Join(errs...)
}

// removeAddress removes an address unless another endpoint has it by now.
func (d *Datapath) removeAddress(e Endpoint, key maps.Address) error {
	var value maps.Endpoint
	err := d.maps.Endpoints.Lookup(key, &value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read map endpoints: %w", err)
	}
	if value.Id != e.ID {
		return nil
	}
	return ignoreMissing(d.maps.Endpoints.Delete(key))
}

// CheckEndpoint compares the kernel with what AttachEndpoint wrote. A difference
// is a *MismatchError.
func (d *Datapath) CheckEndpoint(e Endpoint) error {
	if err := e.validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var device maps.Interface
	if err := compare(d.maps.Interfaces, uint32(e.IfIndex), &device, e.device(), interfaceEntry(e.IfIndex)); err != nil {
		return err
	}
	for _, a := range e.Addresses {
		var value maps.Endpoint
		if err := compare(d.maps.Endpoints, maps.NewAddress(a), &value, e.value(), addressEntry(a)); err != nil {
			return err
		}
	}
	for key, want := range e.portEntries() {
		var value maps.MappedPort
		if err := compare(d.maps.Ports, key, &value, want, portEntry(key)); err != nil {
			return err
		}
	}
	if err := cmp.Or(append(d.compareLimits(e), d.compareUnshaped(e), d.compareTrunk(e))...); err != nil {
		return err
	}
	for _, a := range e.attachments() {
		ok, err := d.hooks.of(a).has(a)
		if err != nil {
			return err
		}
		if !ok {
			return a.missing(e.IfName)
		}
	}
	if e.Child != nil {
		if err := d.checkChild(e); err != nil {
			return err
		}
	}
	return d.checkPolicy(e.ID)
}

func interfaceEntry(ifindex int) string {
	return fmt.Sprintf("entry of interface %d in map interfaces", ifindex)
}

func addressEntry(a netip.Addr) string { return fmt.Sprintf("entry of %s in map endpoints", a) }

// missing says that the program is not attached to the device of that name.
func (a attachment) missing(device string) error {
	return &MismatchError{What: fmt.Sprintf("program %s on interface %s", a.program, device)}
}

func compare[V comparable](m *ebpf.Map, key any, got *V, want V, what string) error {
	err := m.Lookup(key, got)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return &MismatchError{What: what}
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", what, err)
	}
	if *got != want {
		return &MismatchError{What: what, Difference: difference(reflect.ValueOf(got).Elem(), reflect.ValueOf(&want).Elem())}
	}
	return nil
}

// PruneEndpoints forgets all endpoints but these, as an agent that starts does with what went
// while none was there: entries and programs of others are removed, but for the programs of parents,
// which AttachEndpoints removes. Those that are served go on to be.
func (d *Datapath) PruneEndpoints(desired []Endpoint) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	addresses := make(map[maps.Address]bool)
	devices := make(map[uint32]bool)
	for _, e := range desired {
		if err := e.validate(); err != nil {
			return err
		}
		devices[uint32(e.IfIndex)] = true
		for _, a := range e.Addresses {
			addresses[maps.NewAddress(a)] = true
		}
	}
	attached, err := d.hooks.endpoints.list()
	if err != nil {
		return err
	}
	if err := d.pruneTrunks(desired); err != nil {
		return err
	}
	if err := d.prune(addresses, devices, attached); err != nil {
		return err
	}
	if err := d.pruneChildren(desired); err != nil {
		return err
	}
	if n, err := d.prunePorts(desired); err != nil {
		return err
	} else if n > 0 {
		d.log.Info("pruned ports of the host that lead to no endpoint", "entries", n)
	}
	return d.pruneLimits(desired, attached)
}

// AttachEndpoints attaches all endpoints of a node, as an agent that starts does after
// PruneEndpoints. Those that are served go on to be. A device that is gone is no error: containers end at
// any time, and whoever follows the links will say so.
func (d *Datapath) AttachEndpoints(desired []Endpoint) error {
	for _, e := range desired {
		if err := e.validate(); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.children = childrenOf(desired)
	if slices.ContainsFunc(desired, func(e Endpoint) bool { return e.isPaced() }) {
		if err := d.ensurePacer(); err != nil { // RepairPacer tells of it until it is there
			d.log.Warn("limits are held without a queue", "error", err)
		}
	}
	for _, e := range desired {
		err := d.writeEndpoint(e)
		failpoint.Hit(failpoint.AgentAttachMaps)
		if err == nil {
			err = d.attachPrograms(e)
		}
		if err != nil && !errors.Is(err, errNoDevice) {
			return fmt.Errorf("attach endpoint %d on %s: %w", e.ID, e.IfName, err)
		}
		failpoint.Hit(failpoint.AgentAttachLinks)
	}
	if _, err := d.writeChildren(); err != nil {
		return err
	}
	if _, err := d.serveParents(); err != nil {
		return err
	}
	return d.bumpEpoch(0)
}

// Attached returns the names of the devices that exist and are served as endpoints.
func (d *Datapath) Attached() ([]string, error) {
	var names []string
	err := each(d.maps.Interfaces, func(ifindex uint32, device maps.Interface) bool {
		if device.Role != maps.RoleEndpoint {
			return true
		}
		if link, err := netlink.LinkByIndex(int(ifindex)); err == nil {
			names = append(names, link.Attrs().Name)
		}
		return true
	})
	slices.Sort(names)
	return names, err
}

func (d *Datapath) prune(addresses map[maps.Address]bool, devices map[uint32]bool, attached []attachment) error {
	var (
		staleAddresses []maps.Address
		staleEndpoints []uint32
		staleDevices   []uint32
		address        maps.Address
		endpoint       maps.Endpoint
		ifindex        uint32
		device         maps.Interface
	)
	entries := d.maps.Endpoints.Iterate()
	for entries.Next(&address, &endpoint) {
		if !addresses[address] {
			staleAddresses = append(staleAddresses, address)
			staleEndpoints = append(staleEndpoints, uint32(endpoint.Id))
		}
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read map endpoints: %w", err)
	}
	entries = d.maps.Interfaces.Iterate()
	for entries.Next(&ifindex, &device) {
		if device.Role == maps.RoleEndpoint && !devices[ifindex] {
			staleDevices = append(staleDevices, ifindex)
		}
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read map interfaces: %w", err)
	}
	var errs []error
	for _, key := range staleAddresses {
		errs = append(errs, ignoreMissing(d.maps.Endpoints.Delete(key)))
	}
	for _, id := range staleEndpoints {
		errs = append(errs, d.bumpEpoch(id))
	}
	for _, key := range staleDevices {
		errs = append(errs, ignoreMissing(d.maps.Interfaces.Delete(key)))
	}
	for _, a := range attached {
		if a.endpoint() && !devices[uint32(a.ifindex)] {
			errs = append(errs, d.hooks.endpoints.abandon(a))
		}
	}
	if n := len(staleAddresses) + len(staleDevices); n > 0 {
		d.log.Info("pruned what no endpoint has", "entries", n)
	}
	return errors.Join(errs...)
}

// bumpEpoch makes every decision of the endpoint be taken anew; 0 is the node.
func (d *Datapath) bumpEpoch(endpoint uint32) error {
	var epoch uint32
	if err := d.maps.Epochs.Lookup(endpoint, &epoch); err != nil {
		return fmt.Errorf("read map epochs: %w", err)
	}
	if err := d.maps.Epochs.Put(endpoint, epoch+1); err != nil {
		return fmt.Errorf("write map epochs: %w", err)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}
