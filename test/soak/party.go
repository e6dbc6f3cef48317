// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
)

// party is somebody who asks and answers: a container, the host, a world or the neighbour.
type party struct {
	id   identity
	name string
	ns   *nstest.NS
	// container is nil for others; hidden says that the world sees it as the uplink.
	container *nodetest.Container
	hidden    bool
	// world is that of an uplink, 0 or 1, and -1 for all others.
	world int
	// street says that it is on the street, and reaches who is there, and nobody else.
	street bool
	// floods says that it asks more than anybody may.
	floods bool
	// places are where it answers.
	places []*place
	// lasts says that it is there for the whole run.
	lasts bool
	// leaving is set before anything is done to it that may break what it does.
	leaving atomic.Bool
	// scope is that of all that was made for it.
	scope *scope

	mu     sync.Mutex
	closed bool
	open   map[io.Closer]bool
	// active are the goroutines that use it.
	active sync.WaitGroup
	// flows are sockets of UDP that are used again, by way to their place.
	flows []*flow
	// echoes are its sockets for ICMP, by family (0 IPv4, 1 IPv6).
	echoes [2]*echo
}

// place is an address at which a party answers. Each has an identity of its own.
type place struct {
	id    identity
	party *party
	addr  netip.Addr
	// ports answer on TCP and UDP, and firstPort is the first of them.
	ports int
	// plain says that containers are seen there with their own addresses.
	plain bool
	// anywhere says that the place is in both worlds, and that the default route
	// says which is meant.
	anywhere bool
}

// firstPort is outside of the range for masquerade and for the host's sockets.
const firstPort = 7000

func (p *place) family() int {
	if p.addr.Is4() {
		return 0
	}
	return 1
}

// address of the party in a family; zero where it has none.
func (p *party) address(family int) netip.Addr {
	for _, at := range p.places {
		if at.family() == family {
			return at.addr
		}
	}
	return netip.Addr{}
}

// enter keeps the party from being closed until leave; false when it is.
func (p *party) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.active.Add(1)
	return true
}

func (p *party) leave() { p.active.Done() }

// keep has something closed with the party, at once if that is.
func (p *party) keep(c io.Closer) {
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.open[c] = true
	}
	p.mu.Unlock()
	if closed {
		_ = c.Close()
	}
}

// drop closes what was kept.
func (p *party) drop(c io.Closer) {
	p.mu.Lock()
	delete(p.open, c)
	p.mu.Unlock()
	_ = c.Close()
}

// close ends what the party does. It has left the list of all parties.
func (p *party) close() error {
	p.leaving.Store(true)
	p.mu.Lock()
	p.closed = true
	open := p.open
	p.open = nil
	p.mu.Unlock()
	for c := range open {
		_ = c.Close()
	}
	p.active.Wait()
	p.scope.close()
	return p.scope.err()
}

// parties are all that are there, and those that were.
type parties struct {
	mu sync.RWMutex
	// present can be asked.
	present []*party
	// all also has those that left, by the identities of party and places.
	all map[identity]*party
	// at are the places that were ever there.
	at  map[identity]*place
	ids identity
}

// identify gives identities to a party and its places.
func (p *parties) identify(who *party) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ids++
	who.id, who.open = p.ids, make(map[io.Closer]bool)
	p.all[who.id] = who
	for _, at := range who.places {
		p.ids++
		at.id, at.party = p.ids, who
		p.all[at.id], p.at[at.id] = who, at
	}
}

// join lets a party that answers be asked.
func (p *parties) join(who *party) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.present = append(p.present, who)
}

// part takes a party from the list.
func (p *parties) part(who *party) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, one := range p.present {
		if one == who {
			p.present = append(p.present[:i:i], p.present[i+1:]...)
			return
		}
	}
}

// pick chooses a present party that fits; nil when none does.
func (p *parties) pick(random *rand.Rand, fits func(*party) bool) *party {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if len(p.present) == 0 {
		return nil
	}
	start := random.IntN(len(p.present))
	for i := range p.present {
		if one := p.present[(start+i)%len(p.present)]; fits(one) {
			return one
		}
	}
	return nil
}

// list returns those present that fit.
func (p *parties) list(fits func(*party) bool) []*party {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var some []*party
	for _, one := range p.present {
		if fits(one) {
			some = append(some, one)
		}
	}
	return some
}

// gone tells whether the party of an identity leaves or has left.
func (p *parties) gone(id identity) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	who := p.all[id]
	return who != nil && who.leaving.Load()
}

func (p *parties) nameOf(id identity) string {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if who := p.all[id]; who != nil {
		return who.name
	}
	return "nobody"
}

// placeOf an identity, or nil.
func (p *parties) placeOf(id identity) *place {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.at[id]
}
