// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"go.etcd.io/bbolt"
)

// The records, all in the top-level bucket "ipam". Addresses are text and
// values JSON, so `bbolt get` shows what a person can read.
//
//	format                       the layout's number
//	networks/NAME/ranges         canonical range sets
//	networks/NAME/cursor/SET     address that the walk through the set gave last
//	leases/ADDRESS               leaseRecord
//	released/ORDER               address that rests; ORDER is big-endian
//
// Leases are keyed by nothing but the address: a node routes it to one place,
// so two networks cannot both lease it, whatever became of their ranges.
var (
	rootKey     = []byte("ipam")
	formatKey   = []byte("format")
	networksKey = []byte("networks")
	leasesKey   = []byte("leases")
	releasedKey = []byte("released")
	rangesKey   = []byte("ranges")
)

// format is what this version writes, and all that it reads.
const format = "1"

const cursorPrefix = "cursor/"

// records are the open buckets of one transaction.
type records struct{ networks, leases, released *bbolt.Bucket }

func openRecords(tx *bbolt.Tx) records {
	root := tx.Bucket(rootKey)
	return records{root.Bucket(networksKey), root.Bucket(leasesKey), root.Bucket(releasedKey)}
}

// createRecords creates what is missing of the buckets in a writable
// transaction, and checks the format of those that are there.
func createRecords(tx *bbolt.Tx) (records, error) {
	root := tx.Bucket(rootKey)
	if root == nil {
		var err error
		if root, err = tx.CreateBucket(rootKey); err != nil {
			return records{}, err
		}
		if err = root.Put(formatKey, []byte(format)); err != nil {
			return records{}, err
		}
		for _, key := range [][]byte{networksKey, leasesKey, releasedKey} {
			if _, err = root.CreateBucket(key); err != nil {
				return records{}, err
			}
		}
	}
	if got := root.Get(formatKey); string(got) != format {
		return records{}, &RecordError{"ipam/format", fmt.Errorf("is %q, and this version reads %q only", got, format)}
	}
	r := openRecords(tx)
	for _, b := range []struct {
		name   string
		bucket *bbolt.Bucket
	}{{"networks", r.networks}, {"leases", r.leases}, {"released", r.released}} {
		if b.bucket == nil {
			return records{}, &RecordError{"ipam/" + b.name, errors.New("is missing")}
		}
	}
	return r, nil
}

// leaseRecord is the value of a lease; its key is the address again.
type leaseRecord struct {
	Network     string       `json:"network"`
	ContainerID string       `json:"containerID"`
	IfName      string       `json:"ifName"`
	Set         int          `json:"set"`
	Prefix      netip.Prefix `json:"prefix"`
	Gateway     netip.Addr   `json:"gateway"`
}

func encodeLease(l lease) (key, value []byte, err error) {
	value, err = json.Marshal(leaseRecord{
		l.network, l.owner.ContainerID, l.owner.IfName,
		l.set, l.address.Prefix, l.address.Gateway,
	})
	return []byte(l.address.Prefix.Addr().String()), value, err
}

func decodeLease(key, value []byte) (lease, error) {
	address, err := decodeAddr(key)
	if err != nil {
		return lease{}, err
	}
	var r leaseRecord
	if err := decodeStrictly(value, &r); err != nil {
		return lease{}, err
	}
	l := lease{r.Network, Owner{r.ContainerID, r.IfName}, r.Set, Address{r.Prefix, r.Gateway}}
	switch {
	case r.Prefix.Addr() != address:
		return lease{}, fmt.Errorf("its prefix %s is of another address", r.Prefix)
	case !r.Prefix.Contains(r.Gateway) || r.Gateway == address:
		return lease{}, fmt.Errorf("its gateway %s cannot be that of %s", r.Gateway, r.Prefix)
	case r.Set < 0:
		return lease{}, fmt.Errorf("its range set is number %d", r.Set)
	}
	if err := checkName("network", r.Network); err != nil {
		return lease{}, err
	}
	return l, l.owner.check()
}

func decodeRanges(value []byte) ([]RangeSet, error) {
	var sets []RangeSet
	if err := decodeStrictly(value, &sets); err != nil {
		return nil, err
	}
	canonical, err := complete(sets)
	if err != nil {
		return nil, err
	}
	if len(sets) == 0 || !equalSets(sets, canonical) {
		return nil, errors.New("the ranges are not in canonical form")
	}
	return sets, nil
}

func encodeCursor(set int, last number) (key, value []byte) {
	return []byte(cursorPrefix + strconv.Itoa(set)), []byte(last.addr().String())
}

func decodeCursor(key, value []byte) (set int, last number, err error) {
	text, ok := strings.CutPrefix(string(key), cursorPrefix)
	if !ok {
		return 0, number{}, errors.New("the key is not known")
	}
	set, err = strconv.Atoi(text)
	if err != nil || set < 0 || strconv.Itoa(set) != text {
		return 0, number{}, fmt.Errorf("%q is not the number of a range set", text)
	}
	address, err := decodeAddr(value)
	return set, numberOf(address), err
}

func encodeRested(r rested) (key, value []byte) {
	return binary.BigEndian.AppendUint64(nil, r.order), []byte(r.number.addr().String())
}

func decodeRested(key, value []byte) (rested, error) {
	if len(key) != 8 {
		return rested{}, fmt.Errorf("the key has %d bytes, not 8", len(key))
	}
	r := rested{order: binary.BigEndian.Uint64(key)}
	if r.order == 0 {
		return rested{}, errors.New("the key is zero")
	}
	address, err := decodeAddr(value)
	r.number = numberOf(address)
	return r, err
}

// decodeAddr accepts nothing but the standard form, so an address has one
// spelling and cannot be the key of two records.
func decodeAddr(text []byte) (netip.Addr, error) {
	a, err := netip.ParseAddr(string(text))
	if err != nil {
		return netip.Addr{}, err
	}
	if plain := a.Unmap().WithZone(""); plain.String() != string(text) {
		return netip.Addr{}, fmt.Errorf("the address is not written as %s", plain)
	}
	return a, nil
}

// decodeStrictly accepts nothing but what json.Marshal makes of a T: a record
// with more, less or other things in it was not written by this version.
func decodeStrictly[T any](value []byte, into *T) error {
	if err := json.Unmarshal(value, into); err != nil {
		return err
	}
	again, err := json.Marshal(*into)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, value) {
		at := 0
		for at < min(len(again), len(value)) && again[at] == value[at] {
			at++
		}
		return fmt.Errorf("the value is not in standard form at byte %d", at)
	}
	return nil
}
