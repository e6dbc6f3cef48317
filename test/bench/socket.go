// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call makes a system call that may block, without telling the Go scheduler: see
// work. A signal does not end it early. Arguments may be pointers.
//
//go:uintptrescapes
func call(trap uintptr, a1, a2, a3, a4, a5 uintptr) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(trap, a1, a2, a3, a4, a5, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), nil
	}
}

func recv(socket int, into []byte) (int, error) {
	return call(unix.SYS_RECVFROM, uintptr(socket), uintptr(unsafe.Pointer(&into[0])), uintptr(len(into)), 0, 0)
}

func send(socket int, from []byte) (int, error) {
	return call(unix.SYS_SENDTO, uintptr(socket), uintptr(unsafe.Pointer(&from[0])), uintptr(len(from)), unix.MSG_NOSIGNAL, 0)
}

func accept(listener int) (int, error) {
	conn, err := call(unix.SYS_ACCEPT4, uintptr(listener), 0, 0, unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	return conn, noDelay(conn)
}

func closeSocket(socket int) error {
	_, err := call(unix.SYS_CLOSE, uintptr(socket), 0, 0, 0, 0)
	return err
}

func noDelay(conn int) error { return switchOn(conn, unix.IPPROTO_TCP, unix.TCP_NODELAY) }

// switchOn sets an option of a socket to 1.
func switchOn(socket int, level, option uintptr) error {
	on := int32(1)
	_, err := call(unix.SYS_SETSOCKOPT, uintptr(socket), level, option, uintptr(unsafe.Pointer(&on)), unsafe.Sizeof(on))
	return err
}

// raw4 is an IPv4 address as the kernel takes it.
func raw4(at netip.AddrPort) unix.RawSockaddrInet4 {
	// Network byte order in memory.
	port := at.Port()
	return unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port<<8 | port>>8, Addr: at.Addr().As4()}
}

func socket(kind int) (int, error) {
	return call(unix.SYS_SOCKET, unix.AF_INET, uintptr(kind|unix.SOCK_CLOEXEC), 0, 0, 0)
}

// dial returns a connected socket, whose own address is from unless that is none.
func dial(kind int, from netip.Addr, to netip.AddrPort) (int, error) {
	s, err := socket(kind)
	if err != nil {
		return -1, err
	}
	if from.IsValid() {
		if err := bindAddress(s, from); err != nil {
			return -1, fmt.Errorf("bind to %s: %w", from, err)
		}
	}
	address := raw4(to)
	if _, err := call(unix.SYS_CONNECT, uintptr(s), uintptr(unsafe.Pointer(&address)), unsafe.Sizeof(address), 0, 0); err != nil {
		return -1, fmt.Errorf("connect: %w", err)
	}
	if kind == unix.SOCK_STREAM {
		return s, noDelay(s)
	}
	return s, nil
}

// bindAddress gives a socket its address and leaves the port to connect, which knows
// that one port can go to several destinations.
func bindAddress(s int, a netip.Addr) error {
	if err := switchOn(s, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT); err != nil {
		return err
	}
	address := raw4(netip.AddrPortFrom(a, 0))
	_, err := call(unix.SYS_BIND, uintptr(s), uintptr(unsafe.Pointer(&address)), unsafe.Sizeof(address), 0, 0)
	return err
}

// listen returns a socket bound to at, which listens if its kind does.
func listen(kind int, at netip.AddrPort) (int, error) {
	s, err := socket(kind)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, err
	}
	address := raw4(at)
	if _, err := call(unix.SYS_BIND, uintptr(s), uintptr(unsafe.Pointer(&address)), unsafe.Sizeof(address), 0, 0); err != nil {
		return -1, fmt.Errorf("bind: %w", err)
	}
	if kind == unix.SOCK_STREAM {
		return s, unix.Listen(s, 128)
	}
	return s, nil
}

// roomy is a socket's buffer in bytes where nothing may be lost, or wait, for want of room.
const roomy = 8 << 20

// listenPackets returns a UDP socket bound to at, with room for a burst: that must wait for the
// scheduler, not be lost.
func listenPackets(at netip.AddrPort) (int, error) {
	s, err := listen(unix.SOCK_DGRAM, at)
	if err != nil {
		return -1, err
	}
	// FORCE is beyond rmem_max.
	if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, roomy); err != nil {
		return -1, fmt.Errorf("set receive buffer: %w", err)
	}
	return s, nil
}

const (
	batchSize   = 64
	payloadSize = 64 // bytes of a UDP packet
)

// batch is what sendmmsg(2) and recvmmsg(2) take.
type batch struct {
	messages [batchSize]struct {
		unix.Msghdr
		length uint32
		_      [4]byte
	}
	vectors [batchSize]unix.Iovec
	data    [batchSize][payloadSize]byte
}

func newBatch() *batch {
	b := &batch{}
	for i := range b.messages {
		b.vectors[i].Base = &b.data[i][0]
		b.vectors[i].SetLen(payloadSize)
		b.messages[i].Iov = &b.vectors[i]
		b.messages[i].SetIovlen(1)
	}
	return b
}

// receive waits for one packet, and takes as many as there are.
func (b *batch) receive(socket int) (int, error) {
	return call(unix.SYS_RECVMMSG, uintptr(socket), uintptr(unsafe.Pointer(&b.messages[0])), batchSize, unix.MSG_WAITFORONE, 0)
}

func (b *batch) send(socket int) (int, error) {
	return call(unix.SYS_SENDMMSG, uintptr(socket), uintptr(unsafe.Pointer(&b.messages[0])), batchSize, 0, 0)
}
