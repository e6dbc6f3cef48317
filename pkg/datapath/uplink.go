// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tendril-net/tendril/pkg/maps"
)

// Linger is how long a former uplink is served: longer than an answer takes.
const Linger = 30 * time.Second

// ReconcileUplinks makes the uplinks exactly these. When something changed, every
// decision is taken anew. What is found wrong although the same uplinks were asked
// for last was done by others, and is logged. A device that is no uplink any more
// is served as one for 30 s, as long as it is there; a later call ends that.
func (d *Datapath) ReconcileUplinks(desired []Uplink) (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := slices.EqualFunc(desired, d.uplinks, Uplink.equal)
	changed := false
	defer func() {
		if changed { // also in part
			err = errors.Join(err, d.bumpEpoch(0))
		}
	}()
	want := make(map[uint32]bool)
	for _, u := range desired {
		want[uint32(u.IfIndex)] = true
		found, err := d.ensureUplink(u)
		changed = changed || len(found) > 0
		if err != nil {
			return err
		}
		if len(found) > 0 && known {
			d.log.Warn("uplink repaired", "device", u.Name, "found", strings.Join(found, "; "))
		}
	}
	if err := d.pruneUplinks(want); err != nil {
		return err
	}
	d.uplinks = slices.Clone(desired)
	return nil
}

func (u Uplink) equal(o Uplink) bool {
	return u.Name == o.Name && u.IfIndex == o.IfIndex && u.MTU == o.MTU &&
		slices.Equal(u.MAC, o.MAC) && u.IPv4 == o.IPv4 && u.IPv6 == o.IPv6
}

// ensureUplink makes the datapath serve an uplink and returns what was missing or
// wrong.
func (d *Datapath) ensureUplink(u Uplink) (found []string, err error) {
	value := maps.Interface{
		Ipv4: maps.NewAddress(u.IPv4),
		Ipv6: maps.NewAddress(u.IPv6),
		Mtu:  uint16(min(u.MTU, 65535)),
		Role: maps.RoleUplink,
	}
	if len(u.MAC) == 6 {
		value.Mac = maps.NewMAC(u.MAC)
	}
	// Before the entry, by which programs of its ports have to do with these, if it is a bridge.
	for _, a := range []attachment{{u.IfIndex, fromUplink}, {u.IfIndex, toUplink}} {
		if found, err = d.ensureAttached(found, a, u.Name); err != nil {
			return found, fmt.Errorf("attach uplink %s: %w", u.Name, err)
		}
	}
	return ensureEntry(found, d.maps.Interfaces, uint32(u.IfIndex), value, interfaceEntry(u.IfIndex))
}

// pruneUplinks ends the service of all other uplinks. Decisions to send by one must be
// dead before to_uplink is gone: what the stack sends on for them would leave unhidden.
func (d *Datapath) pruneUplinks(want map[uint32]bool) error {
	attached, err := d.hooks.uplinks.list()
	errs := []error{err}
	former := make(map[int]time.Time)
	stale := make(map[attachment]time.Time)
	for _, a := range attached {
		if a.endpoint() || a.parent() || a.pacer() || want[uint32(a.ifindex)] {
			continue
		}
		since, lingers := d.lingers(a)
		if lingers {
			former[a.ifindex] = since
		} else {
			stale[a] = since
		}
	}
	d.former = former

	var (
		gone    []uint32
		ifindex uint32
		device  maps.Interface
	)
	entries := d.maps.Interfaces.Iterate()
	for entries.Next(&ifindex, &device) {
		if _, lingers := former[int(ifindex)]; device.Role == maps.RoleUplink && !want[ifindex] && !lingers {
			gone = append(gone, ifindex)
		}
	}
	if err := entries.Err(); err != nil {
		return errors.Join(append(errs, fmt.Errorf("read map interfaces: %w", err))...)
	}
	for _, key := range gone {
		errs = append(errs, ignoreMissing(d.maps.Interfaces.Delete(key)))
	}
	if len(gone) > 0 {
		if err := d.bumpEpoch(0); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	for a, since := range stale {
		if err := d.hooks.of(a).detach(a); err != nil {
			errs = append(errs, err)
			former[a.ifindex] = since // its time does not begin again
		}
	}
	return errors.Join(errs...)
}

// lingers tells whether a device that is no uplink any more is still served as one, and
// since when it is none. Answers to what left by it are under way for a while, and only
// from_uplink knows whose they are. The routes may lead back to it, too: what follows
// them before the agent has heard of it is lost where the device is not known.
func (d *Datapath) lingers(a attachment) (since time.Time, lingers bool) {
	// A device that is gone has nothing under way.
	if there, err := d.hooks.of(a).has(a); !there || err != nil {
		return time.Time{}, false
	}
	since, known := d.former[a.ifindex]
	if !known {
		since = d.now()
	}
	return since, d.now().Sub(since) < Linger
}

// Invalidate makes every decision be taken anew by its next packet: routes changed.
func (d *Datapath) Invalidate() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bumpEpoch(0)
}
