// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"sync"

	"github.com/tendril-net/tendril/pkg/api"
)

// attachmentLocks serializes what is done to one attachment; different ones do
// not wait for each other.
type attachmentLocks struct {
	mu   sync.Mutex
	held map[api.Attachment]*attachmentLock
}

type attachmentLock struct {
	sync.Mutex
	users int // holder and waiters, guarded by attachmentLocks.mu
}

// lock waits for the attachment and returns what unlocks it.
func (l *attachmentLocks) lock(a api.Attachment) (unlock func()) {
	l.mu.Lock()
	if l.held == nil {
		l.held = make(map[api.Attachment]*attachmentLock)
	}
	one := l.held[a]
	if one == nil {
		one = &attachmentLock{}
		l.held[a] = one
	}
	one.users++
	l.mu.Unlock()

	one.Lock()
	return func() {
		one.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(l.held, a)
		}
	}
}
