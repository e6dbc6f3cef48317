// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/tendril-net/tendril/pkg/maps"
)

// slotsPerRun is SLOTS_PER_RUN of bpf/reclaim.c.
const slotsPerRun = 64

// Purge removes the flows, translations, fragments and policy of endpoints that were
// detached; their ids may be used again afterwards. It waits for the packets that
// are under way, takes some milliseconds for full maps, and other calls go on meanwhile.
func (d *Datapath) Purge(ids []uint16) error {
	if len(ids) > 0 {
		if err := d.grace(); err != nil {
			return err
		}
	}
	gone := make(map[uint16]bool)
	for _, id := range ids {
		gone[id] = true
	}
	alive := make(map[uint32]bool)
	if err := each(d.maps.Interfaces, func(ifindex uint32, _ maps.Interface) bool {
		alive[ifindex] = true
		return true
	}); err != nil {
		return err
	}
	if err := d.endOfClients(alive); err != nil {
		return err
	}
	if _, err := d.Reclaim(); err != nil {
		return err
	}
	var flows []maps.FlowKey
	if err := each(d.maps.Flows, func(key maps.FlowKey, value maps.Flow) bool {
		if gone[value.Endpoint] || key.Ifindex != 0 && !alive[key.Ifindex] {
			flows = append(flows, key)
		}
		return true
	}); err != nil {
		return err
	}
	// A pointer may have lost its translation to a race.
	var pointers []maps.FlowKey
	if err := each(d.maps.Translations, func(key maps.FlowKey, value maps.Translation) bool {
		if pointer := value.Seen == 0; pointer && key.Ifindex != 0 && !alive[key.Ifindex] {
			pointers = append(pointers, key)
		}
		return true
	}); err != nil {
		return err
	}
	var fragments []maps.FragmentKey
	if err := each(d.maps.Fragments, func(key maps.FragmentKey, _ maps.Fragment) bool {
		if key.Ifindex != 0 && !alive[key.Ifindex] {
			fragments = append(fragments, key)
		}
		return true
	}); err != nil {
		return err
	}
	for _, key := range flows {
		if err := ignoreMissing(d.maps.Flows.Delete(key)); err != nil {
			return fmt.Errorf("write map flows: %w", err)
		}
	}
	for _, key := range pointers {
		if err := ignoreMissing(d.maps.Translations.Delete(key)); err != nil {
			return fmt.Errorf("write map translations: %w", err)
		}
	}
	for _, key := range fragments {
		if err := ignoreMissing(d.maps.Fragments.Delete(key)); err != nil {
			return fmt.Errorf("write map fragments: %w", err)
		}
	}
	return d.purgeSubjects(ids)
}

// endOfClients makes dead the connections to mapped ports whose client was an endpoint
// that has no device any more. They count for the endpoint at the other end, which
// lives on, so Reclaim must remove them.
func (d *Datapath) endOfClients(alive map[uint32]bool) error {
	ended := make(map[maps.FlowKey]maps.Translation)
	if err := each(d.maps.Translations, func(key maps.FlowKey, value maps.Translation) bool {
		pointer := value.Seen == 0
		if !pointer && key.Ifindex != 0 && !alive[key.Ifindex] {
			value.Epoch--
			ended[key] = value
		}
		return true
	}); err != nil {
		return err
	}
	for key, value := range ended {
		if err := ignoreMissing(d.maps.Translations.Update(key, value, ebpf.UpdateExist)); err != nil {
			return fmt.Errorf("write map translations: %w", err)
		}
	}
	return nil
}

// context is the beginning of struct __sk_buff that a test run takes.
type context struct {
	Len, PacketType, Mark uint32
}

// Reclaim removes translations that are dead, as the datapath itself does when it
// needs room, and returns how many slots it freed.
func (d *Datapath) Reclaim() (int, error) {
	d.reclaiming.Lock()
	defer d.reclaiming.Unlock()
	freed := 0
	for slot := uint32(0); slot < d.maps.Allocations.MaxEntries(); slot += slotsPerRun {
		n, err := d.programs.byName[reclaim].Run(&ebpf.RunOptions{
			Data:    make([]byte, 14),
			Context: context{Mark: slot},
		})
		if err != nil {
			return freed, fmt.Errorf("run program %s: %w", reclaim, err)
		}
		freed += int(n)
	}
	return freed, nil
}
