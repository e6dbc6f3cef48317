// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"time"
)

const (
	// purgePause gathers the endpoints that go at about the same time: one
	// purge walks the maps once for all of them.
	purgePause = time.Second
	// purgeBatch bounds the numbers of one purge.
	purgeBatch = 8192
	// purgeRetry is the pause after a purge that was refused.
	purgeRetry = 10 * time.Second
)

// purge removes what the datapath still holds of endpoints that are gone, and
// makes their numbers free. The oldest purgeBatch of them are served.
func (s *Service) purge() error {
	s.purging.Lock()
	defer s.purging.Unlock()
	s.mu.Lock()
	ids := s.index.ids.batch(purgeBatch)
	s.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	err := s.opts.Datapath.Flows.Purge(ids)
	if err == nil {
		err = dropDraining(s.opts.DB, ids)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.index.ids.draining = append(s.index.ids.draining, ids...)
		return fmt.Errorf("purge %d endpoints: %w", len(ids), err)
	}
	s.index.ids.free(ids...)
	return nil
}

// wakePurge tells the background that a number waits.
func (s *Service) wakePurge() {
	select {
	case s.drained <- struct{}{}:
	default: // it has been told
	}
}

// purgeLoop purges in the background.
func (s *Service) purgeLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.drained:
		}
		for pause := purgePause; s.waiting() > 0; {
			if !sleep(ctx, pause) {
				return
			}
			err := s.purge()
			s.problem("purge", err)
			pause = purgePause
			if err != nil {
				pause = purgeRetry
			}
		}
	}
}

// waiting counts the numbers that wait to be purged.
func (s *Service) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.index.ids.draining)
}

// sleep returns false when the context ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
