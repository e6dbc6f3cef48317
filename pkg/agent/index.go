// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"

	"github.com/tendril-net/tendril/pkg/api"
)

// index is the state file in memory, by what it is asked for. Records in it are
// never changed, only replaced. It is not safe for concurrent use.
type index struct {
	records   map[api.Attachment]*record
	byAddress map[netip.Addr]api.Attachment
	byLink    map[int]api.Attachment    // interface index of ready endpoints
	byPlace   map[[2]int]api.Attachment // childPlace.at, by whom was attached there last
	detached  map[api.Attachment]bool
	half      map[api.Attachment]*record // what a failed attach has left in the datapath
	networks  map[string]api.Network     // as the latest record has them
	ports     portTable
	entries   int // of map ports
	ids       *idPool
}

func newIndex() *index {
	return &index{
		records:   make(map[api.Attachment]*record),
		byAddress: make(map[netip.Addr]api.Attachment),
		byLink:    make(map[int]api.Attachment),
		byPlace:   make(map[[2]int]api.Attachment),
		detached:  make(map[api.Attachment]bool),
		half:      make(map[api.Attachment]*record),
		networks:  make(map[string]api.Network),
		ports:     make(portTable),
		ids:       newIDPool(),
	}
}

// put adds or replaces a record.
func (x *index) put(r *record) {
	if known, ok := x.networks[r.Network]; ok && reflect.DeepEqual(known, r.Origin) {
		r.Origin = known // a thousand endpoints share one copy of the ranges
	} else {
		x.networks[r.Network] = r.Origin
	}
	if old := x.records[r.Attachment]; old != nil {
		x.ports.remove(old)
		x.entries -= old.portEntries()
	}
	x.ports.add(r)
	x.entries += r.portEntries()
	x.records[r.Attachment] = r
	for _, a := range r.Addresses {
		x.byAddress[a.Address.Addr()] = r.Attachment
	}
	switch {
	case r.State != api.Ready:
	case !r.isChild():
		x.byLink[r.HostIfIndex] = r.Attachment
	default:
		holder := x.records[x.byPlace[r.Device.at()]]
		if holder == nil || holder.Created.Before(r.Created) {
			x.byPlace[r.Device.at()] = r.Attachment
		}
	}
}

// drop removes a record; its id is left to the caller.
func (x *index) drop(r *record) {
	x.ports.remove(r)
	x.entries -= r.portEntries()
	delete(x.records, r.Attachment)
	delete(x.detached, r.Attachment)
	delete(x.half, r.Attachment)
	if x.byPlace[r.Device.at()] == r.Attachment {
		delete(x.byPlace, r.Device.at())
	}
	for _, a := range r.Addresses {
		delete(x.byAddress, a.Address.Addr())
	}
	if x.byLink[r.HostIfIndex] == r.Attachment {
		delete(x.byLink, r.HostIfIndex)
	}
	for _, other := range x.records {
		if other.Network == r.Network {
			return
		}
	}
	delete(x.networks, r.Network)
}

// shown is an endpoint as others see it. The state file does not know what is
// detached: it is found out again at each start.
func (x *index) shown(r *record) api.Endpoint {
	e := r.Endpoint
	if e.State == api.Ready && x.detached[r.Attachment] {
		e.State = api.Detached
	}
	return e
}

// all returns the records for which keep holds, ordered by endpoint id.
func (x *index) all(keep func(*record) bool) []*record {
	var found []*record
	for _, r := range x.records {
		if keep(r) {
			found = append(found, r)
		}
	}
	slices.SortFunc(found, func(a, b *record) int { return cmp.Compare(a.ID, b.ID) })
	return found
}
