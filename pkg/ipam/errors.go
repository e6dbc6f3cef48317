// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Errors of OpenFile.
var (
	// ErrInUse: another process has the file open.
	ErrInUse = errors.New("in use by another agent")
	// ErrCorrupt: the file is cut short or not what bbolt wrote.
	ErrCorrupt = errors.New("corrupt state file")
)

// HeldError says that the owner holds leases in the network already. What to do
// is the caller's decision: release them first, or refuse.
type HeldError struct {
	Network   string
	Owner     Owner
	Addresses []Address
}

func (e *HeldError) Error() string {
	held := make([]string, len(e.Addresses))
	for i, a := range e.Addresses {
		held[i] = a.Prefix.Addr().String()
	}
	return fmt.Sprintf("allocate for %s from network %s: holds %s already", e.Owner, e.Network, strings.Join(held, ", "))
}

// ExhaustedError says that every address of a range set is leased.
type ExhaustedError struct {
	Network string
	// Set is the position of the range set.
	Set    int
	Ranges RangeSet
	// Capacity is the number of addresses that the set can hand out.
	Capacity uint64
}

func (e *ExhaustedError) Error() string {
	return fmt.Sprintf("allocate from network %s: range set %d (%s) is exhausted: leased %d of %d addresses",
		e.Network, e.Set, e.Ranges, e.Capacity, e.Capacity)
}

// String lists the ranges.
func (s RangeSet) String() string {
	names := make([]string, len(s))
	for i, r := range s {
		names[i] = r.String()
	}
	return strings.Join(names, ", ")
}

// TakenError says that a certain address cannot be had because it is leased.
type TakenError struct {
	Address netip.Addr
	// Owner holds the lease, in Network.
	Owner   Owner
	Network string
	// Gateway says that the address was not wanted by a container: the ranges
	// name it as their gateway.
	Gateway bool
}

func (e *TakenError) Error() string {
	use := "allocate"
	if e.Gateway {
		use = "use gateway"
	}
	return fmt.Sprintf("%s %s: leased to %s in network %s", use, e.Address, e.Owner, e.Network)
}

// OverlapError says that two networks' ranges overlap: they have an address in
// common, or the gateway of one lies where the other hands out addresses.
type OverlapError struct {
	// Network is the one whose ranges are refused, Other the one that holds
	// leases.
	Network, Other string
	Range          Range
	OtherRange     Range
}

func (e *OverlapError) Error() string {
	return fmt.Sprintf("use range %s (gateway %s) of network %s: overlaps range %s (gateway %s) of network %s",
		e.Range, e.Range.Gateway, e.Network, e.OtherRange, e.OtherRange.Gateway, e.Other)
}

// NotInRangeError says that a wanted address is none that the network could
// hand out.
type NotInRangeError struct {
	Network string
	Address netip.Addr
	// Reason is why not.
	Reason string
}

func (e *NotInRangeError) Error() string {
	return fmt.Sprintf("allocate %s from network %s: %s", e.Address, e.Network, e.Reason)
}

// RecordError says that a record of the state file cannot be right.
type RecordError struct {
	// Record is its path, such as ipam/leases/10.10.0.5.
	Record string
	Err    error
}

func (e *RecordError) Error() string { return fmt.Sprintf("read record %s: %v", e.Record, e.Err) }

// Unwrap returns what is wrong with the record.
func (e *RecordError) Unwrap() error { return e.Err }
