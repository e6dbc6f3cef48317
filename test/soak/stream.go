// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

// streamPatience bounds how long a stream may stall: a TCP whose packets were
// dropped for some seconds, while its way was another, doubles its pauses.
const streamPatience = 45 * time.Second

// maxChunk fits into the buffers of both ends.
const maxChunk = 32 << 10

// keys of what the asker of a stream sends and gets.
func streamKeys(m message) (up, down key) {
	return newKey(uint64(m.asker), uint64(m.target), m.nonce, 1), newKey(uint64(m.asker), uint64(m.target), m.nonce, 2)
}

// answerStream verifies what comes, and sends as much.
func (s *soak) answerStream(p *party, m message, conn *net.TCPConn) {
	up, down := streamKeys(m)
	buffer, scratch := make([]byte, maxChunk), make([]byte, maxChunk)
	for offset := uint64(0); ; {
		_ = conn.SetReadDeadline(time.Time{})
		n, err := conn.Read(buffer)
		if err != nil {
			return
		}
		if err := up.check(buffer[:n], offset, scratch); err != nil {
			s.ledger.wrong(mistranslation, "stream from %s to %s at %s: %v", s.parties.nameOf(m.asker), p.name, conn.LocalAddr(), err)
			return
		}
		down.fill(buffer[:n], offset)
		_ = conn.SetWriteDeadline(time.Now().Add(streamPatience))
		if _, err := conn.Write(buffer[:n]); err != nil {
			return
		}
		offset += uint64(n)
	}
}

// pause is how long a stream rests between two chunks.
type pause struct{ least, most time.Duration }

// Most streams are lively. Idle ones are forgotten by the map of flows, and
// must find their way all the same.
var (
	lively = pause{50 * time.Millisecond, 500 * time.Millisecond}
	idle   = pause{15 * time.Second, 100 * time.Second}
)

// holdStream keeps a stream until ctx ends or a party leaves. It runs in a
// goroutine of its own, for which both parties were entered.
func (s *soak) holdStream(ctx context.Context, asker *party, at *place, rest pause, random *rand.Rand) {
	defer asker.leave()
	defer at.party.leave()
	c := claim{how: stream, asker: asker, at: at, before: s.ways.look(), nonce: random.Uint64()}
	conn, err := s.dial(&c, random)
	if err != nil {
		s.failed(c, err)
		return
	}
	defer asker.drop(conn)
	at.party.keep(conn)
	defer at.party.drop(conn)
	_ = conn.SetDeadline(time.Now().Add(streamPatience))
	if err := s.question(&c, conn, hello, headerSize+random.IntN(1000)); err != nil {
		s.failed(c, err)
		return
	}
	unusual := s.ways.uncertain(c.before, at) || !s.ways.usual(c.before, at)
	s.alive.Add(1)
	defer s.alive.Add(-1)
	err = s.exchangeChunks(ctx, conn, message{asker: asker.id, target: at.id, nonce: c.nonce}, rest, random)
	if err == nil {
		s.ledger.count("streams that lasted")
		return
	}
	if errors.Is(err, errDamaged) {
		s.ledger.wrong(mistranslation, "%s: %v", c, err)
		return
	}
	// A change of ways is no excuse, as each is undone in time; but a stream that
	// began meanwhile stays on a way that has ended.
	if unusual {
		s.ledger.count("permitted: stream that began on a way that has ended")
		return
	}
	c.before = s.ways.look()
	c.before.changing = [3]bool{}
	s.failed(c, err)
}

func (s *soak) exchangeChunks(ctx context.Context, conn *net.TCPConn, m message, rest pause, random *rand.Rand) error {
	up, down := streamKeys(m)
	buffer, scratch := make([]byte, maxChunk), make([]byte, maxChunk)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for offset := uint64(0); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		chunk := buffer[:1+random.IntN(1<<(4+random.IntN(12)))]
		up.fill(chunk, offset)
		_ = conn.SetDeadline(time.Now().Add(streamPatience))
		if _, err := conn.Write(chunk); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, chunk); err != nil {
			return err
		}
		if err := down.check(chunk, offset, scratch); err != nil {
			return errors.Join(errDamaged, err)
		}
		offset += uint64(len(chunk))
		s.streamed.Add(uint64(len(chunk)))
		timer.Reset(rest.least + time.Duration(random.Int64N(int64(rest.most-rest.least))))
	}
}
