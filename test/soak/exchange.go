// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Kinds of exchanges, as the report names them.
const (
	tcp    = "TCP connection"
	udp    = "UDP exchange"
	icmp   = "ICMP echo"
	stream = "stream"
)

// patience bounds an exchange: a new connection comes about within it, whatever
// is done to the node. Within are three SYNs that get lost.
const patience = 15 * time.Second

// choose picks who asks whom.
func (s *soak) choose(random *rand.Rand) (asker *party, at *place) {
	asker = s.parties.pick(random, func(p *party) bool { return !p.floods })
	if asker == nil {
		return nil, nil
	}
	container := func(p *party) bool { return p.container != nil && p != asker && !p.street }
	world := func(p *party) bool { return p.world >= 0 }
	kind := container
	switch roll := random.IntN(10); {
	case asker.street:
		kind = func(p *party) bool { return p.street && p != asker }
	case asker.world >= 0:
	case asker == s.host && roll < 5, asker.container != nil && roll < 4:
		kind = world
	case asker.container != nil && roll < 6:
		kind = func(p *party) bool { return p == s.host }
	}
	target := s.parties.pick(random, kind)
	if target == nil {
		return nil, nil
	}
	at = target.places[random.IntN(len(target.places))]
	if at.anywhere && asker == s.host {
		return nil, nil // a socket of the host would keep the address of another uplink
	}
	return asker, at
}

// ask makes one exchange.
func (s *soak) ask(random *rand.Rand) {
	asker, at := s.choose(random)
	if asker == nil || !asker.enter() {
		return
	}
	defer asker.leave()
	if !at.party.enter() {
		return
	}
	defer at.party.leave()
	c := claim{asker: asker, at: at, before: s.ways.look(), nonce: random.Uint64()}
	started := time.Now()
	var err error
	switch roll := random.IntN(10); {
	case roll < 4:
		c.how = tcp
		err = s.askTCP(&c, random)
	case roll < 8:
		c.how = udp
		err = s.askUDP(&c, random)
	default:
		c.how = icmp
		err = s.askEcho(&c, random)
	}
	switch {
	case errors.Is(err, errNoFlow):
	case err != nil:
		s.failed(c, err)
	default:
		took := time.Since(started)
		s.ledger.took(c.how, took)
		if took > time.Second {
			s.ledger.count(c.how + " that took more than 1 s")
		}
	}
}

// dial connects to a place; both parties close the connection when they leave.
func (s *soak) dial(c *claim, random *rand.Rand) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	giveUp := closer(cancel)
	for _, p := range []*party{c.asker, c.at.party} {
		p.keep(giveUp)
		defer p.drop(giveUp)
	}
	to := netip.AddrPortFrom(c.at.addr, uint16(firstPort+random.IntN(c.at.ports)))
	conn, err := in(c.asker, func() (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "tcp", to.String())
	})
	if err != nil {
		return nil, err
	}
	c.local = unmapped(conn.LocalAddr().(*net.TCPAddr).AddrPort())
	c.asker.keep(conn)
	return conn.(*net.TCPConn), nil
}

type closerFunc struct{ f func() }

func (c *closerFunc) Close() error {
	c.f()
	return nil
}

func closer(f func()) *closerFunc { return &closerFunc{f} }

// askTCP connects, asks up to three times, and closes one way or the other.
func (s *soak) askTCP(c *claim, random *rand.Rand) error {
	conn, err := s.dial(c, random)
	if err != nil {
		return err
	}
	defer c.asker.drop(conn)
	c.at.party.keep(conn)
	defer c.at.party.drop(conn)
	_ = conn.SetDeadline(time.Now().Add(patience))
	for range 1 + random.IntN(3) {
		if err := s.question(c, conn, question, size(random, 40<<10)); err != nil {
			return err
		}
	}
	if random.IntN(8) == 0 {
		_ = conn.SetLinger(0) // with RST
	}
	return nil
}

// question asks on a connection and judges the answer.
func (s *soak) question(c *claim, conn *net.TCPConn, kind kind, size int) error {
	s.claims.Store(c.nonce, *c)
	defer s.claims.Delete(c.nonce)
	m := message{kind: kind, asker: c.asker.id, target: c.at.id, nonce: c.nonce}
	if _, err := conn.Write(m.encode(size)); err != nil {
		return err
	}
	got, _, err := receive(conn)
	if errors.Is(err, errDamaged) {
		s.mistaken(got, err)
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.judgeAnswer(*c, got); err != nil {
		s.mistaken(got, err)
	}
	return nil
}

// size is mostly small, and at most most.
func size(random *rand.Rand, most int) int {
	if random.IntN(10) > 0 {
		most = 1400
	}
	return headerSize + random.IntN(most-headerSize)
}

// flow is a connected socket of UDP.
type flow struct {
	*net.UDPConn
	at *place
	mu sync.Mutex
	// asked are the questions that were not answered, or were asked again: each time may have its answer.
	asked map[uint64]bool
}

const (
	// flowsKept is how many flows a party keeps.
	flowsKept = 6
	// freshFlows bounds the new flows to the world in 1/s, because each holds its
	// port for 5 minutes.
	freshFlows = 1.5
	// tries of a UDP exchange and an ICMP echo share the patience.
	tries = 5
)

// errNoFlow says that there is no flow to ask on, and may be none now.
var errNoFlow = errors.New("no flow")

// askUDP asks on an old flow or a new one. An old one may lead to another place.
func (s *soak) askUDP(c *claim, random *rand.Rand) error {
	f, err := s.flow(c, random)
	if err != nil {
		return err
	}
	if !f.mu.TryLock() {
		return errNoFlow // another asks on it
	}
	defer f.mu.Unlock()
	c.local = unmapped(f.LocalAddr().(*net.UDPAddr).AddrPort())
	text := message{kind: question, asker: c.asker.id, target: c.at.id, nonce: c.nonce}.encode(size(random, 9000))
	f.asked[c.nonce] = true
	s.claims.Store(c.nonce, *c)
	defer s.claims.Delete(c.nonce)
	for try := range tries {
		if _, err = f.Write(text); err == nil { // else it is an ICMP error about the one before
			err = s.hear(c, f, time.Now().Add(patience/tries))
		}
		if err == nil && try == 0 {
			delete(f.asked, c.nonce)
		}
		switch {
		case err == nil, c.asker.leaving.Load(), c.at.party.leaving.Load():
			return err
		case errors.Is(err, net.ErrClosed):
			return errNoFlow // another had been chosen to go
		}
		s.lost(*c)
	}
	return err
}

// hear waits for the answer.
func (s *soak) hear(c *claim, f *flow, until time.Time) error {
	_ = f.SetReadDeadline(until)
	buffer := make([]byte, maxMessage)
	for {
		n, err := f.Read(buffer)
		if err != nil {
			return err
		}
		m, err := decode(buffer[:n])
		if err == nil && m.nonce != c.nonce && f.asked[m.nonce] {
			s.ledger.count("UDP answers that came late")
			continue
		}
		if err == nil {
			err = s.judgeAnswer(*c, m)
		}
		if err != nil {
			s.mistaken(m, err)
		}
		return nil
	}
}

// flow finds a flow of the asker, and changes the claim's place to the flow's, or
// makes one.
func (s *soak) flow(c *claim, random *rand.Rand) (*flow, error) {
	p := c.asker
	p.mu.Lock()
	var old []*flow
	for _, f := range p.flows {
		if !f.at.party.leaving.Load() {
			old = append(old, f)
		}
	}
	p.mu.Unlock()
	translated := p.hidden && c.at.party.world >= 0 && !c.at.plain
	if len(old) > 0 && (random.IntN(3) > 0 || translated && !s.fresh.take()) {
		f := old[random.IntN(len(old))]
		c.at = f.at
		return f, nil
	}
	if len(old) == 0 && translated && !s.fresh.take() {
		return nil, errNoFlow
	}
	to := netip.AddrPortFrom(c.at.addr, uint16(firstPort+random.IntN(c.at.ports)))
	conn, err := in(p, func() (*net.UDPConn, error) { return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to)) })
	if err != nil {
		return nil, err
	}
	f := &flow{UDPConn: conn, at: c.at, asked: make(map[uint64]bool)}
	p.keep(f)
	p.mu.Lock()
	p.flows = append(p.flows, f)
	var over *flow
	if len(p.flows) > flowsKept {
		i := random.IntN(flowsKept)
		over = p.flows[i]
		p.flows = slices.Delete(p.flows, i, i+1)
	}
	p.mu.Unlock()
	if over != nil {
		over.mu.Lock() // its exchange is over
		p.drop(over)
		over.mu.Unlock()
	}
	return f, nil
}

// budget gives out what comes at a rate.
type budget struct {
	mu   sync.Mutex
	rate float64
	next time.Time
}

// take tells whether there is one.
func (b *budget) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := time.Now(); b.next.After(now) {
		return false
	} else if earliest := now.Add(-5 * time.Second); b.next.Before(earliest) {
		b.next = earliest
	}
	b.next = b.next.Add(time.Duration(float64(time.Second) / b.rate))
	return true
}
