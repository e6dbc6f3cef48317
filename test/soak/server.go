// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// in opens something in the party's namespace.
func in[T any](p *party, open func() (T, error)) (value T, err error) {
	failed := try(func(tb testing.TB) { p.ns.Do(tb, func() { value, err = open() }) })
	return value, errors.Join(failed, err)
}

// serve has a party answer at all its places until it is closed.
func (s *soak) serve(p *party) error {
	for _, at := range p.places {
		for i := range at.ports {
			here := netip.AddrPortFrom(at.addr, uint16(firstPort+i))
			listener, err := in(p, func() (*net.TCPListener, error) { return net.ListenTCP("tcp", net.TCPAddrFromAddrPort(here)) })
			if err != nil {
				return err
			}
			p.keep(listener)
			conn, err := in(p, func() (*net.UDPConn, error) { return net.ListenUDP("udp", net.UDPAddrFromAddrPort(here)) })
			if err != nil {
				return err
			}
			p.keep(conn)
			p.active.Add(2)
			go s.answerTCP(p, at, listener)
			go s.answerUDP(p, at, conn)
		}
	}
	for family := range 2 {
		if !p.address(family).IsValid() {
			continue
		}
		if err := s.listenEcho(p, family); err != nil {
			return err
		}
	}
	return nil
}

// means tells whether a question that arrived at a place was for it. One for
// somebody who has left may arrive at who has his address now.
func (s *soak) means(at *place, m message, from netip.AddrPort, how string) bool {
	if m.target == at.id {
		return true
	}
	if meant := s.parties.placeOf(m.target); at.anywhere && meant != nil && meant.anywhere && meant.addr == at.addr {
		return true
	}
	if s.parties.gone(m.target) || s.parties.gone(m.asker) {
		s.ledger.count("permitted: question for one who left")
		return false
	}
	s.ledger.wrong(mistranslation, "%s: a question of %s for %s came to %s at %s, from %s", how,
		s.parties.nameOf(m.asker), s.parties.nameOf(m.target), at.party.name, at.addr, from)
	return false
}

func (s *soak) answerUDP(p *party, at *place, conn *net.UDPConn) {
	defer p.leave()
	buffer := make([]byte, maxMessage)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an answer
		}
		from = unmapped(from)
		m, err := decode(buffer[:n])
		if err != nil || m.kind != question {
			s.ledger.wrong(mistranslation, "UDP: %d bytes came to %s at %s from %s: %v", n, p.name, at.addr, from, err)
			continue
		}
		if !s.means(at, m, from, "UDP") {
			continue
		}
		s.judgeQuestion(at, m, from)
		_, _ = conn.WriteToUDPAddrPort(answerTo(m, at, from).encode(n), from)
	}
}

// judgeQuestion looks at from where a question came, because its answer may get lost.
func (s *soak) judgeQuestion(at *place, m message, from netip.AddrPort) {
	if asked, ok := s.claims.Load(m.nonce); ok {
		answered := answerTo(m, at, from)
		if err := s.judgeAnswer(asked.(claim), answered); err != nil {
			s.mistaken(answered, err)
		}
	}
}

func answerTo(m message, at *place, from netip.AddrPort) message {
	return message{kind: answer, asker: m.asker, target: at.id, nonce: m.nonce, seen: from}
}

func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func (s *soak) answerTCP(p *party, at *place, listener *net.TCPListener) {
	defer p.leave()
	for {
		conn, err := listener.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || !p.enter() {
			continue
		}
		p.keep(conn)
		go func() {
			defer p.leave()
			defer p.drop(conn)
			s.answerConn(p, at, conn)
		}()
	}
}

// answerConn answers questions until the connection ends, or has become a stream.
func (s *soak) answerConn(p *party, at *place, conn *net.TCPConn) {
	from := unmapped(conn.RemoteAddr().(*net.TCPAddr).AddrPort())
	for {
		_ = conn.SetDeadline(time.Now().Add(2 * patience))
		m, size, err := receive(conn)
		if err != nil {
			if errors.Is(err, errDamaged) {
				s.ledger.wrong(mistranslation, "TCP: to %s at %s from %s: %v", p.name, at.addr, from, err)
			}
			return
		}
		if !s.means(at, m, from, "TCP") {
			return
		}
		s.judgeQuestion(at, m, from)
		if _, err := conn.Write(answerTo(m, at, from).encode(size)); err != nil {
			return
		}
		if m.kind == hello {
			s.answerStream(p, m, conn)
			return
		}
	}
}

// errDamaged is of bytes that arrived and are not what was sent.
var errDamaged = errors.New("damaged")

// receive reads one message.
func receive(r io.Reader) (message, int, error) {
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(r, header); err != nil {
		return message{}, 0, err
	}
	size, err := sizeOf(header)
	if err != nil {
		return message{}, 0, errors.Join(errDamaged, err)
	}
	whole := make([]byte, size)
	copy(whole, header)
	if _, err := io.ReadFull(r, whole[headerSize:]); err != nil {
		return message{}, 0, err
	}
	m, err := decode(whole)
	if err != nil {
		return m, size, errors.Join(errDamaged, err)
	}
	return m, size, nil
}
