// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

// echo is a party's raw socket for ICMP of a family. It asks, and sees who asks;
// the kernel answers.
type echo struct {
	*net.IPConn
	types  [2]byte // of request and reply
	family int
	mu     sync.Mutex
	id     uint16
	// idUntil is when another id is taken.
	idUntil time.Time
}

// idLife is how long requests have the same identifier, for which translations stand.
const idLife = 30 * time.Second

// ping is an echo that is under way.
type ping struct {
	claim
	id uint16
	// done gets a value when the reply has come.
	done chan struct{}
}

func (s *soak) listenEcho(p *party, family int) error {
	network, types := "ip4:icmp", [2]byte{8, 0}
	if family == 1 {
		network, types = "ip6:ipv6-icmp", [2]byte{128, 129}
	}
	conn, err := in(p, func() (*net.IPConn, error) { return net.ListenIP(network, &net.IPAddr{}) })
	if err != nil {
		return err
	}
	p.keep(conn)
	e := &echo{IPConn: conn, types: types, family: family}
	p.mu.Lock()
	p.echoes[family] = e
	p.mu.Unlock()
	p.active.Add(1)
	go func() {
		defer p.leave()
		buffer := make([]byte, maxMessage)
		for {
			n, from, err := conn.ReadFromIP(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil || n < 8 {
				continue
			}
			source, _ := netip.AddrFromSlice(from.IP)
			switch text := buffer[:n]; text[0] {
			case types[0]:
				s.sawRequest(p, e, source.Unmap(), text)
			case types[1]:
				s.sawReply(p, source.Unmap(), text)
			}
		}
	}()
	return nil
}

// sawRequest judges a request that a party got, as the answers of UDP are judged.
func (s *soak) sawRequest(p *party, e *echo, from netip.Addr, text []byte) {
	m, err := decode(text[8:])
	if err != nil {
		s.ledger.wrong(mistranslation, "ICMP: a request came to %s from %s: %v", p.name, from, err)
		return
	}
	under, ok := s.pings.Load(m.nonce)
	if !ok {
		s.ledger.count("ICMP messages that came late")
		return
	}
	c := under.(*ping).claim
	var at *place
	for _, one := range p.places {
		if one.id == m.target || one.anywhere && c.at.anywhere && one.family() == e.family {
			at = one
		}
	}
	if at == nil {
		if !s.parties.gone(m.target) && !s.parties.gone(m.asker) {
			s.ledger.wrong(mistranslation, "%s: the request came to %s, from %s", c, p.name, from)
		}
		return
	}
	m.kind, m.target, m.seen = answer, at.id, netip.AddrPortFrom(from, 0)
	if err := s.judgeAnswer(c, m); err != nil {
		s.mistaken(m, err)
	}
}

func (s *soak) sawReply(p *party, from netip.Addr, text []byte) {
	m, err := decode(text[8:])
	if err != nil {
		s.ledger.wrong(mistranslation, "ICMP: a reply came to %s from %s: %v", p.name, from, err)
		return
	}
	under, ok := s.pings.Load(m.nonce)
	if !ok {
		s.ledger.count("ICMP messages that came late")
		return
	}
	asked := under.(*ping)
	id := binary.BigEndian.Uint16(text[4:])
	if asked.asker != p || asked.at.addr != from || id != asked.id {
		s.mistaken(m, fmt.Errorf("%s with identifier %d: the reply came to %s, from %s with identifier %d", asked.claim, asked.id, p.name, from, id))
	}
	select {
	case asked.done <- struct{}{}:
	default: // another came before
	}
}

// askEcho sends requests until a reply comes.
func (s *soak) askEcho(c *claim, random *rand.Rand) error {
	c.asker.mu.Lock()
	e := c.asker.echoes[c.at.family()]
	c.asker.mu.Unlock()
	if e == nil {
		return errNoFlow
	}
	// The kernel chooses the source as it does for a socket of UDP.
	probe, err := in(c.asker, func() (*net.UDPConn, error) {
		return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.at.addr, firstPort)))
	})
	if err != nil {
		return err
	}
	c.local = netip.AddrPortFrom(probe.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), 0)
	_ = probe.Close()
	asked := &ping{claim: *c, id: e.identifier(random), done: make(chan struct{}, 1)}
	s.pings.Store(c.nonce, asked)
	// The target may come to see the request after the asker has seen the reply.
	defer time.AfterFunc(patience, func() { s.pings.Delete(c.nonce) })
	most := 4000
	if size := size(random, most); size < most {
		most = size
	}
	text := append(make([]byte, 8, 8+most), message{kind: question, asker: c.asker.id, target: c.at.id, nonce: c.nonce}.encode(most)...)
	text[0] = e.types[0]
	binary.BigEndian.PutUint16(text[4:], asked.id)
	if e.family == 0 { // for ICMPv6 the kernel does it
		binary.BigEndian.PutUint16(text[2:], checksum(text))
	}
	for range tries {
		if _, err := e.WriteToIP(text, &net.IPAddr{IP: c.at.addr.AsSlice()}); err != nil && errors.Is(err, net.ErrClosed) {
			return err
		}
		timer := time.NewTimer(patience / tries)
		select {
		case <-asked.done:
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if c.asker.leaving.Load() || c.at.party.leaving.Load() {
			break
		}
		s.lost(*c)
	}
	return errors.New("no reply")
}

// identifier is the one to use now.
func (e *echo) identifier(random *rand.Rand) uint16 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now := time.Now(); now.After(e.idUntil) {
		e.id, e.idUntil = uint16(random.Uint32()), now.Add(idLife)
	}
	return e.id
}

// checksum of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
