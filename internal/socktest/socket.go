// SPDX-License-Identifier: Apache-2.0

package socktest

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
)

// Must ends the test on an error.
func Must[T any](value T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return value
	}
}

// In makes something in a namespace.
func In[T any](tb testing.TB, ns *nstest.NS, f func() (T, error)) T {
	tb.Helper()
	var value T
	var err error
	ns.Do(tb, func() { value, err = f() })
	return Must(value, err)(tb)
}

// CloseAtEnd closes c when the test ends, if nobody has by then.
func CloseAtEnd(tb testing.TB, c io.Closer) {
	tb.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			tb.Error(err)
		}
	})
}

// roomy are the bytes of a socket's buffers where not one datagram may be lost
// for want of room.
const roomy = 32 << 20

// enlarge gives a socket room for roomy bytes each way.
func enlarge(tb testing.TB, c syscall.Conn) {
	tb.Helper()
	Control(tb, c, func(fd int) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, roomy),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, roomy))
	})
}

// Control runs f on a socket's descriptor; its error ends the test.
func Control(tb testing.TB, c syscall.Conn, f func(fd int) error) {
	tb.Helper()
	raw := Must(c.SyscallConn())(tb)
	var inner error
	if err := errors.Join(raw.Control(func(fd uintptr) { inner = f(int(fd)) }), inner); err != nil {
		tb.Fatal(err)
	}
}

// Pattern is a payload in which bytes that were lost or moved show.
func Pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8*31)
	}
	return b
}
