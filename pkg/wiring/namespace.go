// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// threadNamespace is the network namespace of the thread that opens it;
// /proc/self would give that of the process's first thread.
const threadNamespace = "/proc/thread-self/ns/net"

// ErrNotNamespace is returned by Open for a path that is something else.
var ErrNotNamespace = errors.New("not a network namespace")

// Namespace is an open network namespace with an rtnetlink socket in it. It is
// safe for concurrent use.
type Namespace struct {
	path string
	file *os.File

	mu     sync.Mutex // guards socket: a request and its answer belong together
	socket *socket
}

// Open opens the network namespace at path, such as /run/netns/name or
// /proc/PID/ns/net. The error is fs.ErrNotExist when there is nothing at path
// and ErrNotNamespace when there is something else.
func Open(path string) (*Namespace, error) {
	n := &Namespace{path: path}
	var err error
	if n.file, err = os.Open(path); err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	if err := n.Do(n.dial); err != nil {
		_ = n.file.Close()
		return nil, err
	}
	return n, nil
}

// Current opens the network namespace of the calling thread.
func Current() (*Namespace, error) {
	runtime.LockOSThread() // the file and the socket are to be of one thread
	defer runtime.UnlockOSThread()
	n := &Namespace{path: threadNamespace}
	var err error
	if n.file, err = os.Open(threadNamespace); err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	if err := n.dial(); err != nil {
		_ = n.file.Close()
		return nil, err
	}
	return n, nil
}

// Close closes the namespace's file and socket; the namespace itself stays.
func (n *Namespace) Close() error {
	return errors.Join(n.socket.close(), n.file.Close())
}

// Path is what the namespace was opened by.
func (n *Namespace) Path() string { return n.path }

// TryLock locks the namespace (flock) against others that do, until it is closed or the
// process ends. It returns false when somebody else has it.
func (n *Namespace) TryLock() (bool, error) {
	err := unix.Flock(int(n.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock network namespace: %w", err)
	}
	return true, nil
}

// Same says whether both are one namespace, by whatever paths.
func (n *Namespace) Same(other *Namespace) (bool, error) {
	return n.is(other.file)
}

// is tells whether the file is of this namespace.
func (n *Namespace) is(file *os.File) (bool, error) {
	a, err1 := n.file.Stat()
	b, err2 := file.Stat()
	if err := errors.Join(err1, err2); err != nil {
		return false, fmt.Errorf("identify network namespace: %w", err)
	}
	return os.SameFile(a, b), nil
}

// Do runs f on a thread that is inside the namespace. It is the only place
// that switches threads. f must not start goroutines that rely on it.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// A thread that does not find back stays locked and ends with this
		// goroutine: none that is in a wrong namespace is used again.
		runtime.LockOSThread()
		home, err := os.Open(threadNamespace)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open the thread's network namespace: %w", err)
			return
		}
		defer func() { _ = home.Close() }()
		if own, err := n.is(home); err == nil && own { // to enter one's own takes CAP_SYS_ADMIN, too
			runtime.UnlockOSThread()
			done <- f()
			return
		}
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			if errors.Is(err, unix.EINVAL) {
				err = ErrNotNamespace
			}
			done <- fmt.Errorf("enter network namespace %s: %w", n.path, err)
			return
		}
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

func (n *Namespace) dial() (err error) {
	n.socket, err = dial()
	return err
}

// exchange is socket.exchange for callers that share the namespace.
func (n *Namespace) exchange(messages []message) ([][]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.socket.exchange(messages)
}
