// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// busyPause is after how long a file is looked at again that somebody had open to write.
// No event tells of its end.
const busyPause = 50 * time.Millisecond

// kubeletData is the link that kubelet replaces when files of a ConfigMap change. The
// files lead there.
const kubeletData = "..data"

// watch implements policySource.
func (d *policyDir) watch(ctx context.Context, changed func() (again bool)) error {
	for ctx.Err() == nil {
		if err := d.watchOne(ctx, changed); err != nil {
			return fmt.Errorf("watch %s: %w", d.path, err)
		}
	}
	return nil
}

// watchOne is watch until the folder may be another one. Watches are of folders, not of
// paths, and fsnotify mixes them up when a path comes back while it goes.
func (d *policyDir) watchOne(ctx context.Context, changed func() (again bool)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer func() { _ = w.Close() }()
	if err := d.arm(w); err != nil {
		return err
	}
	var timer <-chan time.Time // runs while a file is busy
	look := func() {
		if timer = nil; changed() {
			timer = time.After(busyPause)
		}
	}
	for look(); ; {
		var seen concern
		select {
		case <-ctx.Done():
			return nil
		case event := <-w.Events:
			seen = d.concerns(event)
		case err := <-w.Errors:
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				return nil // events were lost
			}
			return err
		case <-timer:
			seen = concernsFiles
		}
		// What has come meanwhile is seen by the same look.
		for more := true; more; {
			select {
			case event := <-w.Events:
				seen = max(seen, d.concerns(event))
			default:
				more = false
			}
		}
		switch seen {
		case concernsFolder:
			return nil
		case concernsFiles:
			look()
		}
	}
}

// arm watches the folder and all those above it, as far as they exist: there it is told
// when the folder comes, goes or is another. From above, so that what comes meanwhile is
// either there or told of.
func (d *policyDir) arm(w *fsnotify.Watcher) error {
	var paths []string
	for path := d.path; ; path = filepath.Dir(path) {
		paths = append(paths, path)
		if path == filepath.Dir(path) {
			break
		}
	}
	for _, path := range slices.Backward(paths) {
		err := w.Add(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// concern is what an event tells of.
type concern int

const (
	concernsNothing concern = iota
	concernsFiles           // they may hold something else
	concernsFolder          // it may be another one
)

func (d *policyDir) concerns(event fsnotify.Event) concern {
	switch {
	case event.Name == d.path || strings.HasPrefix(d.path, strings.TrimSuffix(event.Name, "/")+"/"):
		if event.Op == fsnotify.Write {
			return concernsNothing // of a folder it says nothing
		}
		return concernsFolder
	case filepath.Dir(event.Name) != d.path:
		return concernsNothing
	}
	if name := filepath.Base(event.Name); name == kubeletData || isPolicyFile(name) {
		return concernsFiles
	}
	return concernsNothing
}
