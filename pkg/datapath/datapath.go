// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/tendril-net/tendril/internal/vlan"
	"github.com/tendril-net/tendril/pkg/maps"
)

// Config is what the datapath is loaded with.
type Config struct {
	// Root is bpf-root, a folder on a bpf file system. It is made if absent.
	Root string
	// FlowsMax and TranslationsMax size the maps, in entries; 0 takes the
	// default. A map that is pinned already keeps its size.
	FlowsMax        uint32
	TranslationsMax uint32
	// Masquerade is the node's switch, over that of each endpoint.
	Masquerade bool
	// MasqueradePorts are the first and the last source port, inclusive; zeros
	// take 40960 to 65535.
	MasqueradePorts [2]uint16
	// EndpointTranslations bounds what one endpoint may hold; 0 takes half of all
	// that there is room for.
	EndpointTranslations uint32
	// Attach forces "tcx" or "clsact"; "" takes the better for each device.
	Attach string
	// Accept is asked, before anything that serves is touched, whether to go on with
	// the endpoints' devices that are attached. Its error is Open's. Nil accepts all.
	Accept func(attached []string) error
	// Logger gets what Open and Reconcile find and mend; nil discards it.
	Logger *slog.Logger

	// For tests: verifierLog is how much the kernel is to say of each program that it takes,
	// edit, where it is not nil, changes one before it is loaded.
	verifierLog ebpf.ProgramOptions
	edit        func(*ebpf.CollectionSpec) error
}

// Datapath is the loaded datapath. Its methods may be called from several
// goroutines.
type Datapath struct {
	root     string
	log      *slog.Logger
	maps     *maps.Maps
	programs *programs
	hooks    hookSet
	pacer    pacer
	sockets  *socketHooks
	lock     *os.File
	alone    net.Listener
	// reclaiming is held for a sweep: its program has one working memory a CPU.
	reclaiming sync.Mutex

	// mu orders changes of attachments and of the maps that the agent writes.
	mu sync.Mutex
	// uplinks are those of the last ReconcileUplinks that succeeded.
	uplinks []Uplink
	// policy is what is in the maps of policy, since the first ReconcilePolicy.
	policy writtenPolicy
	// children are the endpoints that are macvlan children, by id.
	children map[uint16]Endpoint
	// former are devices that were uplinks and are still served as such, by index,
	// since when they are none.
	former map[int]time.Time
	now    func() time.Time
	// grace is waitForPrograms.
	grace func() error
}

// Endpoint is what the datapath needs to know of one interface of a container.
type Endpoint struct {
	// ID is 1 to 65535 and unique on the node.
	ID uint16
	// IfIndex and IfName are of the host's side of the veth pair.
	IfIndex int
	IfName  string
	// MAC is the container's, HostMAC that of the host's side.
	MAC, HostMAC net.HardwareAddr
	Addresses    []netip.Addr
	// MTU of the container's interface, in bytes.
	MTU        int
	Masquerade bool
	// Bridge is the interface index of the node's device among the ports of the Linux bridge that
	// the host's side is a port of, which is the bridge or its VLAN; 0 where it is none.
	Bridge int
	// Child is set where the container's interface is a macvlan child of a device of the
	// host: then IfIndex is ChildIndex of ID, IfName the parent's name and HostMAC its MAC.
	Child *Child
	// Isolated leaves to Bridge what the endpoint and others that are isolated send each
	// other; it lets nothing pass.
	Isolated bool
	// Layer2 says that the container has whatever addresses on Bridge: its MAC alone is checked.
	Layer2 bool
	// Trunk are the VLANs of Bridge that the endpoint may send into by tags. None may be one that
	// it is in without.
	Trunk vlan.Set
	// Ports of the host that lead to the endpoint.
	Ports []Port
	// Ingress is how much the endpoint gets at most, Egress how much it sends.
	Ingress, Egress Limit
	// Unshaped are destinations of what it sends, and sources of what it gets, that these
	// do not count for.
	Unshaped []netip.Prefix
	// OnLinkKnown says that no decision can have sent packets for the addresses
	// elsewhere, because a route made them unreachable so far.
	OnLinkKnown bool
}

// Child is what an endpoint has that is a macvlan child.
type Child struct {
	// Parent is the interface index of the device that it rides on. If that is in the container,
	// it is the child's own index there, which is one that no device of the node has.
	Parent int
	// InContainer: its parent is in the container, where no other child is known.
	InContainer bool
	// NetNS is the inode number of the container's network namespace: what its sockets
	// send is known by it.
	NetNS uint32
	// Bridged: it reaches, and is reached by, others of its parent that are Bridged.
	Bridged bool
	// Reflected: a switch sends what it says to others of its parent back to them.
	Reflected bool
	// Passthru: it has the parent to itself, with its MAC, and all that comes in.
	Passthru bool
	// HostAccess: it reaches the host, and the host reaches it.
	HostAccess bool
}

// ChildIndex stands for a macvlan child where other endpoints have the interface index of
// their host side. No device has such an index.
func ChildIndex(id uint16) int { return 1<<31 | int(id) }

// Uplink is a device of the host through which the world is reached.
type Uplink struct {
	Name    string
	IfIndex int
	// MTU in bytes.
	MTU int
	MAC net.HardwareAddr
	// IPv4 and IPv6 are the sources of masqueraded packets; zero for none.
	IPv4, IPv6 netip.Addr
}

// Open loads the programs, adopts what is pinned below cfg.Root, and replaces
// the programs of attached links in place, so that no packet is lost. It holds a
// lock on cfg.Root until Close. Errors are *LockedError, *KernelError and
// *maps.IncompatibleError besides those of the kernel and of cfg.Accept; a node that is
// refused is as it was, but for cfg.Root.
func Open(cfg Config) (_ *Datapath, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MasqueradePorts == [2]uint16{} {
		cfg.MasqueradePorts = [2]uint16{40960, 65535}
	}
	if cfg.MasqueradePorts[0] == 0 || cfg.MasqueradePorts[0] > cfg.MasqueradePorts[1] {
		return nil, fmt.Errorf("masquerade ports %d to %d are no range", cfg.MasqueradePorts[0], cfg.MasqueradePorts[1])
	}
	d := &Datapath{root: cfg.Root, log: cfg.Logger, now: time.Now, grace: waitForPrograms, children: make(map[uint16]Endpoint)}
	refused := true
	defer func() {
		if err != nil && refused && d.maps != nil {
			err = errors.Join(err, d.maps.Undo())
		}
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return nil, fmt.Errorf("make bpf-root: %w", err)
	}
	if d.lock, err = lock(cfg.Root); err != nil {
		return nil, err
	}
	if d.alone, err = alone(); err != nil {
		return nil, err
	}
	if err := checkKernel(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(cfg.Root, "maps"), 0o700); err != nil {
		return nil, fmt.Errorf("make folder of maps: %w", err)
	}
	d.maps, err = maps.Open(filepath.Join(cfg.Root, "maps"), maps.Sizes{Flows: cfg.FlowsMax, Translations: cfg.TranslationsMax})
	if err != nil {
		return nil, err
	}
	for _, kept := range d.maps.Kept {
		d.log.Warn("pinned map keeps its size: a new one counts after a reboot or after `tendril-agent cleanup`",
			"map", kept.Map, "configured", kept.Wanted, "pinned", kept.Has)
	}
	d.sockets = newSocketHooks(filepath.Join(cfg.Root, socketLinks))
	if d.programs, err = loadPrograms(cfg, d.maps, d.sockets.cookie); err != nil {
		return nil, err
	}
	if d.hooks, err = newHooks(cfg.Attach, filepath.Join(cfg.Root, "links")); err != nil {
		return nil, err
	}
	d.pacer.adopt()
	if err := d.accept(cfg); err != nil {
		return nil, err
	}
	refused = false // from here on the programs are at work
	if err := d.upgrade(); err != nil {
		return nil, err
	}
	if _, err := d.sockets.attach(d.programs.host, true); err != nil {
		return nil, err
	}
	return d, nil
}

// accept asks the caller about what is attached.
func (d *Datapath) accept(cfg Config) error {
	if cfg.Accept == nil {
		return nil
	}
	attached, err := d.Attached()
	if err != nil {
		return err
	}
	return cfg.Accept(attached)
}

// Close drops all handles and the lock. What is pinned stays and works on.
func (d *Datapath) Close() error {
	var errs []error
	if d.hooks.uplinks != nil {
		errs = append(errs, d.hooks.uplinks.close(), d.hooks.endpoints.close())
	}
	if d.sockets != nil {
		errs = append(errs, d.sockets.close())
	}
	if d.programs != nil {
		errs = append(errs, d.programs.close())
	}
	errs = append(errs, d.policy.tree.Close())
	if d.maps != nil {
		errs = append(errs, d.maps.Close())
	}
	if d.alone != nil {
		errs = append(errs, d.alone.Close())
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

// AttachKind is how uplinks are attached: "tcx" or "clsact". Endpoints are
// attached by clsact filters unless Config.Attach says otherwise.
func (d *Datapath) AttachKind() string { return d.hooks.uplinks.kind() }

// upgrade puts this version's programs in the place of those that are attached.
func (d *Datapath) upgrade() error {
	attached, err := d.hooks.list()
	if err != nil {
		return err
	}
	for _, a := range attached {
		if err := d.attach(a); err != nil {
			if errors.Is(err, errNoDevice) {
				d.log.Info("device of a pinned link is gone", "ifindex", a.ifindex, "program", a.program)
				if err := d.hooks.of(a).detach(a); err != nil {
					return err
				}
				continue
			}
			return err
		}
	}
	led := false
	for hook := range childSteps {
		var id ebpf.ProgramID
		led = led || d.maps.ChildPrograms.Lookup(hook, &id) == nil
	}
	if _, err := d.serveInContainers(nil, led); err != nil {
		return err
	}
	if len(attached) > 0 || led {
		d.log.Info("replaced programs in place", "links", len(attached), "in containers", led)
		// What the new programs would decide otherwise, they decide now.
		return d.bumpEpoch(0)
	}
	return nil
}

// Remove detaches the programs and removes the pins below root, which must not be
// in use, and root itself unless somebody else pins there or it is mounted.
func Remove(root string) error {
	if _, err := os.Stat(root); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	held, err := lock(root)
	if err != nil {
		return err
	}
	defer func() { _ = held.Close() }()
	only, err := alone()
	if err != nil {
		return err
	}
	defer func() { _ = only.Close() }()
	// With its programs: without them the host's stack would get what is held back.
	removed := (&pacer{}).remove()
	for _, h := range []hooks{&clsact{}, newTCX(filepath.Join(root, "links"))} {
		attached, err := h.list()
		if err != nil {
			return err
		}
		for _, a := range attached {
			if err := h.detach(a); err != nil {
				return err
			}
		}
	}
	if err := (&socketHooks{dir: filepath.Join(root, socketLinks), held: make(map[string]link.Link)}).detach(); err != nil {
		return err
	}
	// Nothing else: the folder may be one that others pin in, too.
	for _, name := range []string{"maps", "links", socketLinks} {
		if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
			return fmt.Errorf("remove pins: %w", err)
		}
	}
	_ = os.Remove(root)
	return removed
}
