// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
)

// Pin pins again each map whose pin below dir has been removed, and returns their
// names. The folder is made if absent. Where another map is pinned in the place of
// ours, it stays, and the error says so; the other maps are pinned all the same.
func (m *Maps) Pin(dir string) (pinned []string, err error) {
	spec, err := loadKernel()
	if err != nil {
		return nil, fmt.Errorf("read map specifications: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, layoutDir(spec)), 0o700); err != nil {
		return nil, fmt.Errorf("make folder of maps: %w", err)
	}
	var errs []error
	for name, own := range m.All() {
		missing, err := pin(own, filepath.Join(dir, name))
		errs = append(errs, err)
		if missing && err == nil {
			pinned = append(pinned, name)
		}
	}
	slices.Sort(pinned)
	return pinned, errors.Join(errs...)
}

// pin pins a map unless it is pinned at the path.
func pin(own *ebpf.Map, path string) (missing bool, err error) {
	there, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		defer func() { err = errors.Join(err, there.Close()) }()
		return false, same(own, there, path)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("open pinned map %s: %w", path, err)
	}
	// A handle remembers where it was pinned, and would think that it still is.
	fresh, err := own.Clone()
	if err != nil {
		return true, fmt.Errorf("pin map %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, fresh.Close()) }()
	if err := fresh.Pin(path); err != nil {
		return true, fmt.Errorf("pin map %s: %w", path, err)
	}
	return true, nil
}

// same returns an error unless the kernel knows both maps by one id.
func same(own, there *ebpf.Map, path string) error {
	var ids [2]ebpf.MapID
	for i, m := range []*ebpf.Map{own, there} {
		info, err := m.Info()
		if err != nil {
			return fmt.Errorf("read map %s: %w", path, err)
		}
		ids[i], _ = info.ID() // there is one since Linux 4.13
	}
	if ids[0] != ids[1] {
		return fmt.Errorf("pin %s is of map %d, the agent works with map %d: remove the pin", path, ids[1], ids[0])
	}
	return nil
}
