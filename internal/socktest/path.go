// SPDX-License-Identifier: Apache-2.0

package socktest

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// Discover sets how a socket deals with the path's MTU: how is one of
// unix.IP_PMTUDISC_*, which mean the same for both families.
func Discover(tb testing.TB, conn *net.UDPConn, how int) {
	tb.Helper()
	Control(tb, conn, func(fd int) error {
		if is4(conn) {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, how)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, how)
	})
}

// PathMTU is what a connected socket knows of its path's MTU, in bytes.
func PathMTU(tb testing.TB, conn *net.UDPConn) int {
	tb.Helper()
	mtu := 0
	Control(tb, conn, func(fd int) (err error) {
		if is4(conn) {
			mtu, err = unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU)
		} else {
			mtu, err = unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU)
		}
		return err
	})
	return mtu
}

func is4(conn *net.UDPConn) bool {
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().Is4()
}
