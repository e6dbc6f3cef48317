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
	reclaim       = "reclaim"
)

type programs struct {
	byName map[string]*ebpf.Program
}

func (p *programs) close() error {
	var errs []error
	for _, program := range p.byName {
		errs = append(errs, program.Close())
	}
	return errors.Join(errs...)
}

// Program returns a loaded program by its name, as bpftool shows it, for tests
// and measurements; nil when there is none of that name. The Datapath owns it.
func (d *Datapath) Program(name string) *ebpf.Program { return d.programs.byName[name] }

var objects = map[string]func() (*ebpf.CollectionSpec, error){
	fromContainer: loadFromContainer,
	toContainer:   loadToContainer,
	fromUplink:    loadFromUplink,
	toUplink:      loadToUplink,
	reclaim:       loadReclaim,
}

// loadPrograms loads every program once, with the settings as constants and the
// shared maps in place of its own.
func loadPrograms(cfg Config, shared *maps.Maps) (*programs, error) {
	slots := shared.Allocations.MaxEntries()
	limit := cfg.EndpointTranslations
	if limit == 0 {
		// Half, so that what is looked for at random among them is found.
		limit = max(1, slots/2)
	}
	settings := map[string]any{
		"masquerade":       cfg.Masquerade,
		"port_first":       cfg.MasqueradePorts[0],
		"port_count":       cfg.MasqueradePorts[1] - cfg.MasqueradePorts[0] + 1,
		"endpoint_limit":   limit,
		"allocation_slots": slots,
		"coarse_clock":     haveCoarseClock(),
		"fib_flags":        fibFlags(),
	}
	p := &programs{byName: make(map[string]*ebpf.Program)}
	for name, load := range objects {
		spec, err := load()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("read program %s: %w", name, err), p.close())
		}
		for setting, value := range settings {
			// A program has only the settings that it uses.
			if variable := spec.Variables[setting]; variable != nil {
				if err := variable.Set(value); err != nil {
					return nil, errors.Join(fmt.Errorf("set %s of program %s: %w", setting, name, err), p.close())
				}
			}
		}
		replacements := make(map[string]*ebpf.Map)
		for mapName, m := range shared.All() {
			if own := spec.Maps[mapName]; own != nil {
				own.MaxEntries = m.MaxEntries()
				replacements[mapName] = m
			}
		}
		collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("load program %s: %w", name, err), p.close())
		}
		p.byName[name] = collection.DetachProgram(name)
		collection.Close()
	}
	return p, nil
}
