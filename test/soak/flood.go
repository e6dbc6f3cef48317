// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// floodBatch flows are open at a time, floodPause apart.
	floodBatch = 100
	floodPause = 100 * time.Millisecond
	// closedPort answers nobody.
	closedPort = 6999
)

// flood has the flooder ask on many new flows. It may be refused, nobody else may,
// and what is answered must be its own.
func (s *soak) flood(ctx context.Context, random *rand.Rand) {
	kind := []int{unix.SOCK_DGRAM, unix.SOCK_DGRAM, unix.SOCK_STREAM}[random.IntN(3)]
	at := s.parties.pick(random, func(p *party) bool { return p.world >= 0 }).places[0]
	port := firstPort + random.IntN(at.ports)
	to := at.addr
	switch random.IntN(4) {
	case 0:
		port = closedPort
	case 1:
		to = netip.MustParseAddr("198.51.100.9") // where nobody is
	}
	for range 5 + random.IntN(30) {
		if !rest(ctx, floodPause) {
			return
		}
		nonce, count := random.Uint64(), 0
		err := try(func(tb testing.TB) {
			s.flooder.ns.Do(tb, func() { count = s.floodOnce(kind, at, netip.AddrPortFrom(to, uint16(port)), nonce) })
		})
		if err != nil {
			s.ledger.wrong("flood", "%v", err)
			return
		}
		s.ledger.add("flows of the flood", floodBatch)
		s.ledger.add("flows of the flood that were answered", count)
	}
}

// floodOnce opens a batch of flows, and returns how many were answered. It runs on
// a thread in the flooder's namespace, where system calls do not wait.
func (s *soak) floodOnce(kind int, at *place, to netip.AddrPort, nonce uint64) (answered int) {
	var target unix.Sockaddr = &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
	family := unix.AF_INET6
	if to.Addr().Is4() {
		target, family = &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}, unix.AF_INET
	}
	fds := make([]int, 0, floodBatch)
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	before := s.ways.look()
	for i := range uint64(floodBatch) {
		fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			s.ledger.wrong("flood", "open a socket: %v", err)
			return answered
		}
		fds = append(fds, fd)
		if err := unix.Connect(fd, target); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			continue // there may be no way
		}
		if kind == unix.SOCK_DGRAM {
			_, _ = unix.Write(fd, message{kind: question, asker: s.flooder.id, target: at.id, nonce: nonce + i}.encode(100))
		}
	}
	if kind == unix.SOCK_STREAM {
		return s.floodConnected(fds)
	}
	polls := make([]unix.PollFd, len(fds))
	for i, fd := range fds {
		polls[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	buffer := make([]byte, maxMessage)
	for until := time.Now().Add(floodPause); time.Now().Before(until) && answered < len(fds); {
		if _, err := unix.Poll(polls, int(floodPause.Milliseconds())); err != nil {
			continue
		}
		for i := range polls {
			if polls[i].Revents == 0 {
				continue
			}
			n, err := unix.Read(fds[i], buffer)
			if err != nil {
				polls[i].Fd = -1 // an ICMP error
				continue
			}
			answered++
			s.judgeFlood(claim{how: udp, asker: s.flooder, at: at, before: before, nonce: nonce + uint64(i)}, fds[i], buffer[:n])
		}
	}
	return answered
}

func (s *soak) judgeFlood(c claim, fd int, text []byte) {
	switch own, _ := unix.Getsockname(fd); own := own.(type) {
	case *unix.SockaddrInet4:
		c.local = netip.AddrPortFrom(netip.AddrFrom4(own.Addr), uint16(own.Port))
	case *unix.SockaddrInet6:
		c.local = netip.AddrPortFrom(netip.AddrFrom16(own.Addr), uint16(own.Port))
	}
	m, err := decode(text)
	if err == nil {
		err = s.judgeAnswer(c, m)
	}
	if err != nil {
		s.mistaken(m, err)
	}
}

// floodConnected waits a moment and counts the connections that came about.
func (s *soak) floodConnected(fds []int) (made int) {
	rest(context.Background(), floodPause)
	for _, fd := range fds {
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && info.State == unix.BPF_TCP_ESTABLISHED {
			made++
		}
	}
	return made
}
