// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"reflect"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/maps"
)

// Limit is how much an endpoint may send or get. The zero Limit is none.
type Limit struct {
	// Rate in bits of frames per second, at least 1000.
	Rate uint64
	// Burst is the most that passes at once after a silence, as the time that it takes
	// at Rate; above 0.
	Burst time.Duration
}

// leastRate keeps the price of the largest packet (BANDWIDTH_BYTES_MAX) within 63 bits.
const leastRate = 1000

func (l Limit) validate() error {
	switch {
	case l == Limit{}:
		return nil
	case l.Rate < leastRate:
		return fmt.Errorf("a rate of %d bit/s is below %d", l.Rate, leastRate)
	case l.Burst <= 0:
		return fmt.Errorf("a burst of %v is not above 0", l.Burst)
	}
	return nil
}

// costShift is BANDWIDTH_COST_SHIFT of bpf/lib/bandwidth.h.
const costShift = 20

// value is the limit as an entry of the map that has not been used. pacer is the interface index of
// the device that holds packets back, 0 for none.
func (l Limit) value(exempts bool, pacer int) maps.Limit {
	// 8 * 10^9 * 2^20 takes 53 bits; what is divided is rounded to the next.
	high, low := bits.Mul64(8*uint64(time.Second), 1<<costShift)
	low, carry := bits.Add64(low, l.Rate/2, 0)
	cost, _ := bits.Div64(high+carry, low, l.Rate)
	value := maps.Limit{Cost: max(1, cost), Burst: uint64(l.Burst)}
	if exempts {
		value.Exempts = 1
	}
	if pacer != 0 {
		value.Pacer, value.Horizon = uint32(pacer), uint32(l.horizon()/time.Microsecond)
		value.Room = l.room()
	}
	return value
}

// bound is what of an entry says how much may pass, without how much has.
func bound(value maps.Limit) maps.Limit {
	return maps.Limit{
		Cost: value.Cost, Burst: value.Burst, Exempts: value.Exempts, Pacer: value.Pacer, Horizon: value.Horizon, Room: value.Room,
	}
}

// limit is that of one direction of an endpoint.
type limit struct {
	Limit
	key maps.LimitKey
	at  attachment
}

// limits are those of both directions.
func (e *Endpoint) limits() [2]limit {
	key := func(direction uint32) maps.LimitKey {
		return maps.LimitKey{Ifindex: uint32(e.IfIndex), Direction: direction}
	}
	return [2]limit{
		{e.Ingress, key(maps.LimitIngress), attachment{e.IfIndex, limitIngress}},
		{e.Egress, key(maps.LimitEgress), attachment{e.IfIndex, limitEgress}},
	}
}

// isLimited says whether there is a limit in a direction.
func (e *Endpoint) isLimited() bool { return e.Ingress != Limit{} || e.Egress != Limit{} }

// isPaced says whether the pacer, where there is one, holds back what is beyond. What comes by it
// would come in anew at a device of the endpoint's own, which a macvlan child has not.
func (e *Endpoint) isPaced() bool { return e.isLimited() && e.Child == nil }

// pacerOf is the interface index of the device that holds back what is beyond one limit; 0 for none.
func (d *Datapath) pacerOf(e Endpoint, key maps.LimitKey) int {
	if e.isPaced() {
		return d.pacer.into[key.Direction]
	}
	return 0
}

func (e *Endpoint) validateLimits() error {
	for _, l := range e.limits() {
		if err := l.validate(); err != nil {
			return fmt.Errorf("endpoint %d: %w", e.ID, err)
		}
	}
	for _, p := range e.Unshaped {
		if !p.IsValid() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			return fmt.Errorf("endpoint %d: %q is no plain prefix", e.ID, p)
		}
	}
	return nil
}

// limitEntries are the entries of map bandwidth that the endpoint has.
func (d *Datapath) limitEntries(e Endpoint) map[maps.LimitKey]maps.Limit {
	entries := make(map[maps.LimitKey]maps.Limit)
	for _, l := range e.limits() {
		if l.Limit != (Limit{}) {
			entries[l.key] = l.value(len(e.Unshaped) > 0, d.pacerOf(e, l.key))
		}
	}
	return entries
}

// unshapedEntries are those of map unshaped.
func (e *Endpoint) unshapedEntries() map[maps.UnshapedKey]uint8 {
	entries := make(map[maps.UnshapedKey]uint8)
	if !e.isLimited() {
		return entries
	}
	for _, p := range e.Unshaped {
		if maps.CoversIPv4(p) {
			entries[maps.NewUnshapedKey(e.IfIndex, netip.PrefixFrom(netip.IPv4Unspecified(), 0))] = 0
		}
	}
	for _, p := range e.Unshaped {
		key := maps.NewUnshapedKey(e.IfIndex, p)
		entries[key] = maps.UnshapedValue(key)
	}
	return entries
}

func limitEntry(key maps.LimitKey) string {
	direction := "ingress"
	if key.Direction == maps.LimitEgress {
		direction = "egress"
	}
	return fmt.Sprintf("%s entry of interface %d in map bandwidth", direction, key.Ifindex)
}

func unshapedEntry(key maps.UnshapedKey) string {
	return fmt.Sprintf("entry of %s and interface %d in map unshaped", maps.UnshapedPrefix(key), key.Ifindex)
}

// compareLimit is compare for what an entry says, whatever has passed. The zero value is no
// limit, which has no entry.
func (d *Datapath) compareLimit(key maps.LimitKey, want maps.Limit) error {
	var got maps.Limit
	none := want == maps.Limit{}
	err := d.maps.Bandwidth.Lookup(key, &got)
	switch {
	case errors.Is(err, ebpf.ErrKeyNotExist) && none:
		return nil
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return &MismatchError{What: limitEntry(key)}
	case err != nil:
		return fmt.Errorf("read %s: %w", limitEntry(key), err)
	case none:
		return &MismatchError{What: limitEntry(key), Difference: "is there without a limit"}
	}
	if got = bound(got); got != want {
		return &MismatchError{What: limitEntry(key), Difference: difference(reflect.ValueOf(got), reflect.ValueOf(want))}
	}
	return nil
}

// compareLimits compares both directions.
func (d *Datapath) compareLimits(e Endpoint) (errs []error) {
	if e.isPaced() && d.pacer.able {
		errs = append(errs, d.checkPacer())
	}
	wanted := d.limitEntries(e)
	for _, l := range e.limits() {
		errs = append(errs, d.compareLimit(l.key, wanted[l.key]))
	}
	return errs
}

// compareUnshaped is compare for a trie, where a lookup is answered by a shorter prefix, too:
// so the values are different.
func (d *Datapath) compareUnshaped(e Endpoint) error {
	for key, want := range e.unshapedEntries() {
		var got uint8
		if err := compare(d.maps.Unshaped, key, &got, want, unshapedEntry(key)); err != nil {
			return err
		}
	}
	return nil
}

func (d *Datapath) unshapedOf(wanted func(maps.UnshapedKey) bool) (map[maps.UnshapedKey]uint8, error) {
	have := make(map[maps.UnshapedKey]uint8)
	_, err := walk(d.maps.Unshaped, func(key maps.UnshapedKey, value uint8) {
		if wanted(key) {
			have[key] = value
		}
	})
	return have, err
}

// writeLimits makes the entries of an endpoint's limits, whose pacer is there if it can be. How much has
// been used of one that stays as it is stays, too.
func (d *Datapath) writeLimits(e Endpoint) error {
	for key, value := range e.unshapedEntries() {
		if err := d.maps.Unshaped.Put(key, value); err != nil {
			return d.unshapedError(e, err)
		}
	}
	for key, value := range d.limitEntries(e) {
		err := d.compareLimit(key, value)
		if err == nil {
			continue
		}
		if mismatch := (*MismatchError)(nil); !errors.As(err, &mismatch) {
			return err
		}
		if err := d.maps.Bandwidth.Put(key, value); err != nil {
			return fmt.Errorf("write map bandwidth: %w", err)
		}
	}
	return nil
}

// unshapedError is what writing to map unshaped has failed with, as a *FullError if it was for
// want of room.
func (d *Datapath) unshapedError(e Endpoint, err error) error {
	if !errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("write map unshaped: %w", err)
	}
	others, err := d.unshapedOf(func(key maps.UnshapedKey) bool { return int(key.Ifindex) != e.IfIndex })
	return errors.Join(&FullError{
		Map: "unshaped", Entries: len(others), Max: int(d.maps.Unshaped.MaxEntries()), Wanted: len(e.unshapedEntries()),
	}, err)
}

// ensureLimits puts an endpoint's limits in order, and adds to found what was there instead.
func (d *Datapath) ensureLimits(found []string, e Endpoint) ([]string, error) {
	before := len(found)
	for _, err := range append(d.compareLimits(e), d.compareUnshaped(e)) {
		if mismatch := (*MismatchError)(nil); errors.As(err, &mismatch) {
			found = append(found, mismatch.Error())
		} else if err != nil {
			return found, err
		}
	}
	if len(found) == before {
		return found, nil
	}
	errs := []error{d.ensurePacerOf(e), d.writeLimits(e)}
	for _, l := range e.limits() {
		if l.Limit == (Limit{}) {
			errs = append(errs, ignoreMissing(d.maps.Bandwidth.Delete(l.key)))
		}
	}
	return found, errors.Join(errs...)
}

// removeLimits removes the entries of an endpoint's limits, but for those that another
// description of it has.
func (d *Datapath) removeLimits(e, but Endpoint) error {
	var errs []error
	limits, unshaped := d.limitEntries(but), but.unshapedEntries()
	for key := range d.limitEntries(e) {
		if _, stays := limits[key]; !stays {
			errs = append(errs, ignoreMissing(d.maps.Bandwidth.Delete(key)))
		}
	}
	for key := range e.unshapedEntries() {
		if _, stays := unshaped[key]; !stays {
			errs = append(errs, ignoreMissing(d.maps.Unshaped.Delete(key)))
		}
	}
	return errors.Join(errs...)
}

// SetLimits has an attached endpoint, which was as before says, have the limits, and
// exemptions, of another description of it. A limit that is not as before begins anew, with all
// of its burst. On failure it has some of both.
func (d *Datapath) SetLimits(before, e Endpoint) error {
	if err := e.validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.ensurePacerOf(e); err != nil {
		return err
	}
	if err := d.writeLimits(e); err != nil {
		return err
	}
	if err := d.writeAddresses(e); err != nil {
		return err
	}
	epoch := uint32(e.ID)
	if e.Child != nil {
		// What others of its parent send it was decided in their epochs.
		epoch = 0
		if err := d.attachChild(e); err != nil {
			return err
		}
	} else if err := d.attachLimits(e); err != nil {
		return err
	}
	// What delivers to it was decided in its epoch; a program that runs meanwhile may have
	// read the endpoint as it was, and the epoch as it is.
	if err := errors.Join(d.bumpEpoch(epoch), d.grace(), d.bumpEpoch(epoch)); err != nil {
		return err
	}
	return d.removeLimits(before, e)
}

// attachLimits has the programs of an endpoint's limits, and no others, at its device.
func (d *Datapath) attachLimits(e Endpoint) error {
	for _, l := range e.limits() {
		var err error
		if l.Limit != (Limit{}) {
			err = d.attach(l.at)
		} else {
			err = d.hooks.of(l.at).detach(l.at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pruneLimits removes entries of limits that no endpoint has, and their programs, of those that are
// attached to endpoints' devices.
func (d *Datapath) pruneLimits(desired []Endpoint, attached []attachment) error {
	limits := make(map[maps.LimitKey]bool)
	programs := make(map[attachment]bool)
	unshaped := make(map[maps.UnshapedKey]bool)
	for _, e := range desired {
		for _, a := range e.attachments() {
			programs[a] = true
		}
		for key := range d.limitEntries(e) {
			limits[key] = true
		}
		for key := range e.unshapedEntries() {
			unshaped[key] = true
		}
	}
	var stale []maps.LimitKey
	if _, err := walk(d.maps.Bandwidth, func(key maps.LimitKey, _ maps.Limit) {
		if !limits[key] {
			stale = append(stale, key)
		}
	}); err != nil {
		return err
	}
	others, err := d.unshapedOf(func(key maps.UnshapedKey) bool { return !unshaped[key] })
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range attached {
		if a.limit() && !programs[a] {
			errs = append(errs, d.hooks.endpoints.detach(a))
		}
	}
	for _, key := range stale {
		errs = append(errs, ignoreMissing(d.maps.Bandwidth.Delete(key)))
	}
	for key := range others {
		errs = append(errs, ignoreMissing(d.maps.Unshaped.Delete(key)))
	}
	if len(limits) == 0 && len(stale) == 0 {
		d.pacer.idle = true // and has been before this agent
	}
	return errors.Join(errors.Join(errs...), d.removeIdlePacer())
}

// BandwidthKind is how limits are kept. "fq" holds packets back until they are due, and drops what
// would be too late. "token-bucket", where the kernel has no fq, has no queue: what is beyond a limit
// is marked (ECN) first, and dropped when that does not do.
func (d *Datapath) BandwidthKind() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pacer.able && d.pacer.foreign == "" {
		return "fq"
	}
	return "token-bucket"
}
