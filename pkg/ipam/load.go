// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"net/netip"

	"go.etcd.io/bbolt"
)

// load reads all records and verifies that they belong together.
func load(r records) (state, error) {
	s := state{networks: make(map[string]*network), leases: make(map[netip.Addr]lease)}
	if err := s.loadNetworks(r.networks); err != nil {
		return state{}, err
	}
	if err := s.loadLeases(r.leases); err != nil {
		return state{}, err
	}
	if err := s.loadReleased(r.released); err != nil {
		return state{}, err
	}
	return s, s.verify()
}

func (s *state) loadNetworks(b *bbolt.Bucket) error {
	return b.ForEach(func(key, value []byte) error {
		record := "ipam/networks/" + string(key)
		if value != nil {
			return &RecordError{record, errors.New("is a value, not a bucket")}
		}
		if err := checkName("network", string(key)); err != nil {
			return &RecordError{record, err}
		}
		b := b.Bucket(key)
		sets, err := decodeRanges(b.Get(rangesKey))
		if err != nil {
			return &RecordError{record + "/ranges", err}
		}
		n := newNetwork(string(key), sets)
		s.networks[n.name] = n
		return b.ForEach(func(key, value []byte) error {
			if string(key) == string(rangesKey) {
				return nil
			}
			set, last, err := decodeCursor(key, value)
			if err == nil && (set >= len(n.pools) || n.pool(last) != n.pools[set]) {
				err = fmt.Errorf("%s is not in range set %d", value, set)
			}
			if err != nil {
				return &RecordError{record + "/" + string(key), err}
			}
			n.pools[set].last = last
			return nil
		})
	})
}

func (s *state) loadLeases(b *bbolt.Bucket) error {
	return b.ForEach(func(key, value []byte) error {
		l, err := decodeLease(key, value)
		if err == nil {
			err = s.addLease(l)
		}
		if err != nil {
			return &RecordError{"ipam/leases/" + string(key), err}
		}
		return nil
	})
}

func (s *state) addLease(l lease) error {
	n := s.networks[l.network]
	if n == nil {
		return fmt.Errorf("its network %s has no record", l.network)
	}
	for _, other := range n.owners[l.owner] {
		if other.set == l.set {
			return fmt.Errorf("%s holds %s of range set %d already", l.owner, other.address.Prefix.Addr(), l.set)
		}
	}
	at := numberOf(l.address.Prefix.Addr())
	if pool := s.poolOf(at); pool != nil {
		pool.take(choice{number: at})
	}
	n.addLease(l)
	s.leases[l.address.Prefix.Addr()] = l
	return nil
}

func (s *state) loadReleased(b *bbolt.Bucket) error {
	return b.ForEach(func(key, value []byte) error {
		r, err := decodeRested(key, value)
		if err == nil {
			err = s.addRested(r)
		}
		if err != nil {
			return &RecordError{fmt.Sprintf("ipam/released/%x", key), err}
		}
		return nil
	})
}

func (s *state) addRested(r rested) error {
	if l, leased := s.leases[r.number.addr()]; leased {
		return fmt.Errorf("%s is leased to %s", r.number.addr(), l.owner)
	}
	pool := s.poolOf(r.number)
	if pool == nil {
		return fmt.Errorf("%s is in no range of any network", r.number.addr())
	}
	if order := pool.resting.order(r.number); order != 0 {
		return fmt.Errorf("%s was released as number %d already", r.number.addr(), order)
	}
	pool.rest(r)
	s.order = r.order // keys come in order
	return nil
}

// verify checks what Allocate guarantees of any two networks.
func (s *state) verify() error {
	networks := s.byName()
	for i, n := range networks {
		record := "ipam/networks/" + n.name + "/ranges"
		for _, other := range networks[:i] {
			if mine, others, found := n.overlap(other); found {
				return &RecordError{record, &OverlapError{n.name, other.name, mine, others}}
			}
		}
		for _, gateway := range n.gateways() {
			if l, leased := s.leases[gateway]; leased {
				return &RecordError{record, &TakenError{gateway, l.owner, l.network, true}}
			}
		}
	}
	return nil
}
