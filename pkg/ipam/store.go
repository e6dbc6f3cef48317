// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"go.etcd.io/bbolt"
)

// Owner is who holds a lease: one interface of one container.
type Owner struct{ ContainerID, IfName string }

// String is the form "container abc interface eth0".
func (o Owner) String() string { return "container " + o.ContainerID + " interface " + o.IfName }

func (o Owner) check() error {
	if err := checkName("container ID", o.ContainerID); err != nil {
		return err
	}
	return checkName("interface name", o.IfName)
}

// checkName refuses what could not be read back from the file as it was.
func checkName(what, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("check %s: it is empty", what)
	case !utf8.ValidString(name) || strings.ContainsRune(name, 0) || len(name) > 1024:
		return fmt.Errorf("check %s %q: it is not UTF-8 text of at most 1024 bytes without NUL", what, name)
	}
	return nil
}

// Address is an address that is leased.
type Address struct {
	// Prefix is the address with the prefix length of its subnet.
	Prefix netip.Prefix
	// Gateway of the range the address was taken from.
	Gateway netip.Addr
}

// Store hands out leases and keeps them in a bbolt file. It is safe for
// concurrent use. One Store at most may use a file.
type Store struct {
	db *bbolt.DB
	// writer is held by whoever changes the state, from looking at it to the
	// end of the transaction. It comes before bbolt's own lock and before mu.
	writer sync.Mutex
	// mu guards the state. A writer takes it only for the moment after the
	// commit, so readers never wait for the file.
	mu sync.RWMutex
	state
}

// state is the file's content as it is needed in memory.
type state struct {
	networks map[string]*network
	// leases has every lease of every network.
	leases map[netip.Addr]lease
	// order is the highest order that a released address was given.
	order uint64
	// clock counts commits that used a network.
	clock uint64
}

// Open reads the leases of a file and verifies them. An error that says which
// record is wrong is a *RecordError; the file is unchanged then. A file without
// leases gets the buckets that it needs.
func Open(db *bbolt.DB) (*Store, error) {
	s := &Store{db: db}
	err := db.Update(func(tx *bbolt.Tx) (err error) {
		r, err := createRecords(tx)
		if err == nil {
			s.state, err = load(r)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open leases in %s: %w", db.Path(), err)
	}
	return s, nil
}

// Request asks for one address from each range set of a network.
type Request struct {
	// Network is the network's name, 1 to 1024 bytes.
	Network string
	// Ranges are the network's range sets; Canonical is applied to them.
	Ranges []RangeSet
	// Owner of the leases. Both its parts have 1 to 1024 bytes.
	Owner Owner
	// Wanted are addresses to take instead of any, at most one of each set.
	Wanted []netip.Addr
}

// Allocate takes one address per range set, in the order of the sets. It runs
// also, unless that is nil, in the transaction that stores the leases: both are
// committed together or not at all, and then nothing has changed. An error of
// also is returned as it is.
//
// Errors: *RangeError, *HeldError if the owner holds leases in the network,
// *NotInRangeError, *TakenError, *ExhaustedError, *OverlapError.
//
// The calling goroutine has no transaction of the file open. also may call
// Lookup, Leases and Pools, which show the state before, and nothing else of
// the Store.
func (s *Store) Allocate(req Request, also func(*bbolt.Tx, []Address) error) ([]Address, error) {
	if err := checkName("network", req.Network); err != nil {
		return nil, err
	}
	if err := req.Owner.check(); err != nil {
		return nil, err
	}
	s.writer.Lock()
	defer s.writer.Unlock()

	if n := s.networks[req.Network]; n != nil && len(n.owners[req.Owner]) > 0 {
		return nil, &HeldError{req.Network, req.Owner, addresses(n.owners[req.Owner])}
	}
	change, err := s.prepare(req.Network, req.Ranges)
	if err != nil {
		return nil, err
	}
	choices, err := s.choose(change.next, req.Wanted)
	if err != nil {
		return nil, err
	}
	leases := make([]lease, len(choices))
	for i, c := range choices {
		r, _ := change.next.find(c.number)
		leases[i] = lease{
			req.Network, req.Owner, i,
			Address{netip.PrefixFrom(c.number.addr(), r.Subnet.Bits()), r.Gateway},
		}
	}
	taken := addresses(leases)

	err = s.commit(func(tx *bbolt.Tx) error {
		r := openRecords(tx)
		if err := change.write(r); err != nil {
			return err
		}
		cursors := r.networks.Bucket([]byte(req.Network))
		for i, c := range choices {
			if err := writeLease(r, cursors, leases[i], c); err != nil {
				return err
			}
		}
		return nil
	}, func(tx *bbolt.Tx) error {
		if also == nil {
			return nil
		}
		return also(tx, slices.Clone(taken))
	})
	if err != nil {
		return nil, err
	}

	// The transaction is committed: memory follows.
	s.mu.Lock()
	defer s.mu.Unlock()
	change.apply(&s.state)
	for i, c := range choices {
		change.next.pools[i].take(c)
		change.next.addLease(leases[i])
		s.leases[c.number.addr()] = leases[i]
	}
	s.touch(change.next)
	return taken, nil
}

// writeLease stores a lease and what its choice changes in the pool.
func writeLease(r records, cursors *bbolt.Bucket, l lease, c choice) error {
	key, value, err := encodeLease(l)
	if err != nil {
		return err
	}
	if err := r.leases.Put(key, value); err != nil {
		return err
	}
	if c.walked {
		return cursors.Put(encodeCursor(l.set, c.number))
	}
	if c.order != 0 {
		key, _ := encodeRested(rested{c.number, c.order})
		return r.released.Delete(key)
	}
	return nil
}

// choose picks an address of each pool, the wanted ones where there are any.
func (s *Store) choose(n *network, wanted []netip.Addr) ([]choice, error) {
	choices := make([]choice, len(n.pools))
	chosen := make([]bool, len(n.pools))
	for _, a := range wanted {
		plain := a.Unmap()
		refuse := func(reason string, args ...any) ([]choice, error) {
			return nil, &NotInRangeError{n.name, a, fmt.Sprintf(reason, args...)}
		}
		if !a.IsValid() || a.Zone() != "" {
			return refuse("not an address, or one with a zone")
		}
		r, pool := n.find(numberOf(plain))
		switch {
		case r == nil && slices.Contains(n.gateways(), plain):
			return refuse("it is a gateway of the network")
		case r == nil:
			return refuse("it is in none of the ranges, or an address that is never handed out")
		}
		i := slices.Index(n.pools, pool)
		if chosen[i] {
			return refuse("another address of range set %d is wanted too, and each set gives one", i)
		}
		c, ok := pool.chooseWanted(numberOf(plain))
		if !ok {
			l := s.leases[plain]
			return nil, &TakenError{Address: plain, Owner: l.owner, Network: l.network}
		}
		choices[i], chosen[i] = c, true
	}
	for i, pool := range n.pools {
		if chosen[i] {
			continue
		}
		c, ok := pool.choose()
		if !ok {
			return nil, exhausted(n, i)
		}
		choices[i] = c
	}
	return choices, nil
}

func exhausted(n *network, set int) error {
	return &ExhaustedError{n.name, set, n.sets[set], n.pools[set].capacity}
}

// Release ends all leases that the owner holds in the network. It runs also,
// unless that is nil, in the transaction that removes them, and whether there
// were any or not. The rules for also are those of Allocate.
func (s *Store) Release(name string, owner Owner, also func(*bbolt.Tx) error) error {
	s.writer.Lock()
	defer s.writer.Unlock()

	var leases []lease
	if n := s.networks[name]; n != nil {
		leases = n.owners[owner]
	}
	if len(leases) == 0 && also == nil {
		return nil
	}
	// An address goes back to the pool that would hand it out now. That may
	// be another network's, or none, if the ranges changed in between.
	type homecoming struct {
		pool *addressSet
		rested
	}
	var back []homecoming
	returns := make(map[*addressSet]int)
	for _, l := range leases {
		at := numberOf(l.address.Prefix.Addr())
		if pool := s.poolOf(at); pool != nil {
			back = append(back, homecoming{pool, rested{at, s.order + uint64(len(back)) + 1}})
			returns[pool]++
		}
	}
	var awake []homecoming
	for pool, count := range returns {
		for _, r := range pool.crowded(count) {
			awake = append(awake, homecoming{pool, r})
		}
	}

	err := s.commit(func(tx *bbolt.Tx) error {
		r := openRecords(tx)
		for _, l := range leases {
			if err := r.leases.Delete([]byte(l.address.Prefix.Addr().String())); err != nil {
				return err
			}
		}
		for _, h := range back {
			if err := r.released.Put(encodeRested(h.rested)); err != nil {
				return err
			}
		}
		for _, h := range awake {
			key, _ := encodeRested(h.rested)
			if err := r.released.Delete(key); err != nil {
				return err
			}
		}
		return nil
	}, also)
	if err != nil {
		return err
	}

	// The transaction is committed: memory follows.
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range awake {
		h.pool.wake(h.number)
	}
	for _, h := range back {
		h.pool.free(h.rested)
		s.order = h.order
	}
	for _, l := range leases {
		delete(s.leases, l.address.Prefix.Addr())
	}
	if n := s.networks[name]; n != nil {
		delete(n.owners, owner)
		s.touch(n)
	}
	return nil
}

// commit runs write and also in one transaction.
func (s *Store) commit(write, also func(*bbolt.Tx) error) error {
	var refused error
	written := false
	err := s.db.Update(func(tx *bbolt.Tx) error {
		if err := write(tx); err != nil {
			return err
		}
		written = true
		if also != nil {
			refused = also(tx)
		}
		return refused
	})
	if err == nil || refused != nil {
		return err
	}
	if written {
		// The commit itself was refused by the file system. Where it
		// stopped decides which state the file is in: ask the file.
		err = errors.Join(err, s.reload())
	}
	return fmt.Errorf("store leases in %s: %w", s.db.Path(), err)
}

// reload replaces the state by the file's.
func (s *Store) reload() error {
	var fresh state
	err := s.db.View(func(tx *bbolt.Tx) (err error) {
		fresh, err = load(openRecords(tx))
		return err
	})
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.state = fresh
	}
	return err
}

// poolOf is the pool of any network that hands out the address, or nil. There
// is one at most: networks that are known do not overlap.
func (s *state) poolOf(at number) *addressSet {
	for _, n := range s.networks {
		if pool := n.pool(at); pool != nil {
			return pool
		}
	}
	return nil
}

func (s *state) touch(n *network) {
	s.clock++
	n.used = s.clock
}
