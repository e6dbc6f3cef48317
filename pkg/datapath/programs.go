// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/tendril-net/tendril/pkg/maps"
)

// Names of the programs, as bpftool shows them.
const (
	fromContainer = "from_container"
	toContainer   = "to_container"
	fromUplink    = "from_uplink"
	toUplink      = "to_uplink"
	fromParent    = "from_parent"
	toParent      = "to_parent"
	childIngress  = "child_ingress"
	childEgress   = "child_egress"
	masterIngress = "master_ingress"
	masterEgress  = "master_egress"
	limitIngress  = "limit_ingress"
	limitEgress   = "limit_egress"
	pacerOut      = "pacer_out"
	pacerIn       = "pacer_in"
	reclaim       = "reclaim"
)

// hostPrograms are those of from_host.c, and the hooks that each is for.
var hostPrograms = map[string]ebpf.AttachType{
	"host_connect4":  ebpf.AttachCGroupInet4Connect,
	"host_connect6":  ebpf.AttachCGroupInet6Connect,
	"host_sendmsg4":  ebpf.AttachCGroupUDP4Sendmsg,
	"host_sendmsg6":  ebpf.AttachCGroupUDP6Sendmsg,
	"host_recvmsg4":  ebpf.AttachCGroupUDP4Recvmsg,
	"host_recvmsg6":  ebpf.AttachCGroupUDP6Recvmsg,
	"host_peername4": ebpf.AttachCgroupInet4GetPeername,
	"host_peername6": ebpf.AttachCgroupInet6GetPeername,
}

// programs are all that is loaded: for packets, one in each object, and those of
// from_host.c for sockets, unless there is no control group to attach them to.
type programs struct {
	byName, host map[string]*ebpf.Program
	settings     map[string]any
	verifierLog  ebpf.ProgramOptions
	edit         func(*ebpf.CollectionSpec) error
}

func (p *programs) close() error {
	var errs []error
	for _, some := range []map[string]*ebpf.Program{p.byName, p.host} {
		for _, program := range some {
			errs = append(errs, program.Close())
		}
	}
	return errors.Join(errs...)
}

// Program returns a loaded program by its name, as bpftool shows it, for tests
// and measurements; nil when there is none of that name. The Datapath owns it.
func (d *Datapath) Program(name string) *ebpf.Program {
	if program := d.programs.byName[name]; program != nil {
		return program
	}
	return d.programs.host[name]
}

var objects = map[string]func() (*ebpf.CollectionSpec, error){
	fromContainer: loadFromContainer,
	toContainer:   loadToContainer,
	fromUplink:    loadFromUplink,
	toUplink:      loadToUplink,
	fromParent:    loadFromParent,
	toParent:      loadToParent,
	childIngress:  loadChildIngress,
	childEgress:   loadChildEgress,
	masterIngress: loadMasterIngress,
	masterEgress:  loadMasterEgress,
	limitIngress:  loadLimitIngress,
	limitEgress:   loadLimitEgress,
	pacerOut:      loadPacerOut,
	pacerIn:       loadPacerIn,
	reclaim:       loadReclaim,
}

// hostObject is from_host.c, with the programs for sockets.
var hostObject = loadFromHost

// loadPrograms loads programs once, with the settings as constants and the shared maps in
// place of their own, but for those that only nodes with a macvlan child or with a limit need. cookie is
// of the agent's network namespace; without it those for sockets are not loaded.
func loadPrograms(cfg Config, shared *maps.Maps, cookie uint64) (*programs, error) {
	slots := shared.Allocations.MaxEntries()
	limit := cfg.EndpointTranslations
	if limit == 0 {
		// Half, so that what is looked for at random among them is found.
		limit = max(1, slots/2)
	}
	inode, err := netnsInode()
	if err != nil {
		return nil, err
	}
	mark, err := markBase(inode)
	if err != nil {
		return nil, err
	}
	settings := map[string]any{
		"masquerade":       cfg.Masquerade,
		"port_first":       cfg.MasqueradePorts[0],
		"port_count":       cfg.MasqueradePorts[1] - cfg.MasqueradePorts[0] + 1,
		"endpoint_limit":   limit,
		"allocation_slots": slots,
		"coarse_clock":     haveCoarseClock(),
		"fib_flags":        fibFlags(),
		"netns_cookie":     cookie,
		"netns_inode":      inode,
		"mark_base":        mark,
	}
	p := &programs{
		byName: make(map[string]*ebpf.Program), host: make(map[string]*ebpf.Program),
		settings: settings, verifierLog: cfg.verifierLog, edit: cfg.edit,
	}
	for name := range objects {
		if a := (attachment{program: name}); a.parent() || a.inContainer() || a.limit() || a.pacer() {
			continue
		}
		if err := p.load(name, shared); err != nil {
			return nil, errors.Join(err, p.close())
		}
	}
	if cookie == 0 {
		return p, nil
	}
	collection, err := p.loadObject("from_host", hostObject, shared)
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	for name := range hostPrograms {
		p.host[name] = collection.DetachProgram(name)
	}
	collection.Close()
	return p, nil
}

func (p *programs) load(name string, shared *maps.Maps) error {
	collection, err := p.loadObject(name, objects[name], shared)
	if err != nil {
		return err
	}
	p.byName[name] = collection.DetachProgram(name)
	collection.Close()
	return nil
}

func (p *programs) loadObject(name string, load func() (*ebpf.CollectionSpec, error), shared *maps.Maps) (*ebpf.Collection, error) {
	spec, err := load()
	if err != nil {
		return nil, fmt.Errorf("read program %s: %w", name, err)
	}
	for setting, value := range p.settings {
		// A program has only the settings that it uses.
		if variable := spec.Variables[setting]; variable != nil {
			if err := variable.Set(value); err != nil {
				return nil, fmt.Errorf("set %s of program %s: %w", setting, name, err)
			}
		}
	}
	if p.edit != nil {
		if err := p.edit(spec); err != nil {
			return nil, fmt.Errorf("edit program %s: %w", name, err)
		}
	}
	replacements := make(map[string]*ebpf.Map)
	for mapName, m := range shared.All() {
		if own := spec.Maps[mapName]; own != nil {
			own.MaxEntries = m.MaxEntries()
			replacements[mapName] = m
		}
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: replacements,
		Programs:        p.verifierLog,
	})
	if err != nil {
		return nil, fmt.Errorf("load program %s: %w", name, err)
	}
	return collection, nil
}
