// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
)

// scope is what nodetest and nstest take for a test: what they make lives until the
// scope is closed, and what they find wrong is the error of try. Methods that are not
// written here do not exist.
type scope struct {
	testing.TB
	mu       sync.Mutex
	cleanups []func()
	errs     []error
}

// try runs f, which may end itself as tests do, and returns what went wrong.
// Of calls that run at the same time one may return what another met.
func (s *scope) try(f func(tb testing.TB)) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(s)
	}()
	<-done
	return s.err()
}

// try is scope.try for what leaves nothing behind.
func try(f func(tb testing.TB)) error {
	s := &scope{}
	err := s.try(f)
	s.close()
	return errors.Join(err, s.err())
}

// err returns what went wrong so far, and forgets it.
func (s *scope) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := errors.Join(s.errs...)
	s.errs = nil
	return err
}

// close runs what was registered for the end, the last first.
func (s *scope) close() {
	s.mu.Lock()
	cleanups := s.cleanups
	s.cleanups = nil
	s.mu.Unlock()
	for _, f := range slices.Backward(cleanups) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			f()
		}()
		<-done
	}
}

func (s *scope) add(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs = append(s.errs, errors.New(text))
}

// Helper and what follows are testing.TB's.
func (s *scope) Helper() {}

// Error notes a failure.
func (s *scope) Error(args ...any) { s.add(fmt.Sprint(args...)) }

// Errorf notes a failure.
func (s *scope) Errorf(format string, args ...any) { s.add(fmt.Sprintf(format, args...)) }

// Fatal notes a failure and ends the goroutine.
func (s *scope) Fatal(args ...any) {
	s.Error(args...)
	runtime.Goexit()
}

// Fatalf notes a failure and ends the goroutine.
func (s *scope) Fatalf(format string, args ...any) {
	s.Errorf(format, args...)
	runtime.Goexit()
}

// Failed is never true: logs are not printed at the end, the report has them.
func (s *scope) Failed() bool { return false }

// Context lives on.
func (s *scope) Context() context.Context { return context.Background() }

// Cleanup registers what close runs.
func (s *scope) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

// TempDir makes a folder that close removes.
func (s *scope) TempDir() string {
	dir, err := os.MkdirTemp(home, "")
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			s.Error(err)
		}
	})
	return dir
}
