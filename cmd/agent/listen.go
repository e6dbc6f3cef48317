// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// firstActivated is the descriptor of the first socket that systemd hands over
// (sd_listen_fds(3), SD_LISTEN_FDS_START).
const firstActivated = 3

// listenAPI returns the socket of the API: the one that systemd has opened, or
// a new one at path. The lock of the path is held.
func listenAPI(env environment, path string, log *slog.Logger) (net.Listener, error) {
	listener, err := activated(env)
	if err != nil {
		return nil, err
	}
	if listener != nil {
		log.Info("socket taken over from systemd", "socket", listener.Addr())
		return &rootListener{listener, log}, nil
	}
	if listener, err = listen(path); err != nil {
		return nil, err
	}
	return &rootListener{listener, log}, nil
}

func listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make directory of socket: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect socket: %w", err), listener.Close())
	}
	return listener, nil
}

// removeStale removes a socket that a killed process left: one that nobody
// answers at. Anything else at the path is an error.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("socket %s: there is something else at this path", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = conn.Close()
		return &heldError{what: "socket", path: path}
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("socket %s: find out whether somebody answers: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	return nil
}

// activated returns the socket that systemd has handed over, nil when it has
// not (sd_listen_fds(3)).
func activated(env environment) (*net.UnixListener, error) {
	if handed, err := handedOver(env); !handed {
		return nil, err
	}
	unix.CloseOnExec(firstActivated)
	file := os.NewFile(firstActivated, "activated socket")
	defer func() { _ = file.Close() }() // the listener has a descriptor of its own
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("socket activation: %w", err)
	}
	stream, ok := listener.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("socket activation: %s is no unix socket", listener.Addr()), listener.Close())
	}
	return stream, nil
}

// handedOver says whether systemd has handed over a socket to this process. A parent's
// variables, which name another process, are not for it.
func handedOver(env environment) (bool, error) {
	if env.getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return false, nil
	}
	if count := env.getenv("LISTEN_FDS"); count != "1" {
		return false, fmt.Errorf("socket activation: LISTEN_FDS is %q; one socket is wanted", count)
	}
	return true, nil
}

// rootListener accepts connections from processes of root alone, whatever the
// mode of the socket.
type rootListener struct {
	*net.UnixListener
	log *slog.Logger
}

// Accept implements net.Listener.
func (l *rootListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		peer, err := credentials(conn)
		if err == nil && peer.Uid == 0 {
			return conn, nil
		}
		if err != nil {
			l.log.Warn("connection refused: caller unknown", "error", err)
		} else {
			l.log.Warn("connection refused: caller is not root", "uid", peer.Uid, "pid", peer.Pid)
		}
		_ = conn.Close()
	}
}

func credentials(conn *net.UnixConn) (peer *unix.Ucred, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	control := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return peer, errors.Join(control, err)
}
