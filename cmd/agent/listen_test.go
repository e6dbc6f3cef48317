// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
)

// await waits until a condition holds that no event announces.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !holds(); {
		if time.Now().After(end) {
			t.Fatalf("not seen: %s", what)
		}
		time.Sleep(time.Millisecond) //nolint:forbidigo // what is asked for is seen by asking the agent only
	}
}

// dialAs connects as another user, on a thread that ends after it.
func dialAs(t *testing.T, address string, uid int) net.Conn {
	t.Helper()
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked
		// The raw call changes this thread alone.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- result{err: errno}
			return
		}
		conn, err := net.Dial("unix", address)
		done <- result{conn, err}
	}()
	r := <-done
	must(t, r.err)
	t.Cleanup(func() { _ = r.conn.Close() })
	return r.conn
}

func TestOnlyRootIsServed(t *testing.T) {
	nstest.Root(t)
	address := "@" + strings.ReplaceAll(t.TempDir(), "/", "-") // an abstract socket has no mode
	inner, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	must(t, err)
	var log output
	listener := &rootListener{inner, slog.New(slog.NewTextHandler(&log, nil))}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("served"))
			_ = conn.Close()
		}
	}()
	defer func() {
		must(t, listener.Close())
		<-served
	}()
	nobody, err := io.ReadAll(dialAs(t, address, 65534))
	must(t, err)
	root, err := io.ReadAll(dialAs(t, address, 0))
	must(t, err)
	if len(nobody) != 0 || string(root) != "served" {
		t.Errorf("nobody got %q and root %q", nobody, root)
	}
	if got := log.String(); !strings.Contains(got, "caller is not root") || !strings.Contains(got, "uid=65534") {
		t.Errorf("log: %s", got)
	}
}
