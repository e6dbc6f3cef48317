// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/agent"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// cleanup removes all that agents with this configuration made on the node, and
// puts its settings back. It refuses while an agent runs and, without force,
// while there are endpoints. It can be repeated.
func cleanup(env environment, cfg config, log *slog.Logger, force bool) (err error) {
	n := &node{cfg: cfg, log: log}
	defer func() {
		err = errors.Join(err, n.close())
		// Only directories that nobody else uses are empty.
		_ = os.Remove(filepath.Dir(cfg.Socket))
		_ = os.Remove(cfg.StateDir)
	}()
	if err := n.takeLocks(); err != nil {
		return err
	}
	// An agent with other directories has its endpoints here, too.
	if err := datapath.Idle(); err != nil {
		return fmt.Errorf("%w: stop it first", err)
	}
	if n.host, err = agent.OpenHost(""); err != nil {
		return err
	}
	if err := n.openOldState(force); err != nil {
		return err
	}
	devices, err := n.host.Devices(ownDevice)
	if err != nil {
		return err
	}
	children, err := n.children(force)
	if err != nil {
		return err
	}
	if count := len(devices) + len(children); count > 0 && !force {
		return fmt.Errorf("%d endpoints still exist: stop their containers first, or add --force to cut them off", count)
	}
	for _, device := range devices {
		if err := n.host.RemoveLink(device); err != nil {
			return err
		}
		log.Info("device removed", "device", device)
	}
	for _, child := range children {
		if err := n.host.RemoveChild(child); err != nil {
			return err
		}
		log.Info("macvlan device removed", "mac", child.MAC.String())
	}
	if n.db != nil {
		if err := agent.RemoveVLANs(n.db, n.host); err != nil {
			return err
		}
	}
	mounts, err := n.mounts()
	if err != nil {
		return err
	}
	err = datapath.Remove(cfg.BPFRoot)
	if errors.Is(err, unix.EPERM) && slices.Contains(mounts, filepath.Clean(cfg.BPFRoot)) {
		// The kernel's own entries (maps.debug, progs.debug) go with the mount.
		err = nil
	}
	if err != nil {
		return fmt.Errorf("remove datapath: %w", err)
	}
	if err := n.host.ReconcileUnreachable(nil); err != nil {
		return err
	}
	if err := n.restore(mounts, force); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(filepath.Dir(cfg.Socket), api.EndedName)); err != nil {
		return err
	}
	for _, path := range []string{statePath(cfg.StateDir), cfg.Socket, filepath.Join(filepath.Dir(cfg.Socket), api.BridgeLockName)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	_, err = fmt.Fprintln(env.stdout, "node cleaned up")
	return err
}

// openOldState opens the state file if there is one. A damaged one is given up
// with force: what it had recorded of the node's settings is lost.
func (n *node) openOldState(force bool) (err error) {
	path := statePath(n.cfg.StateDir)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	n.db, err = agent.OpenState(path)
	if damaged := (*agent.StateError)(nil); force && errors.As(err, &damaged) {
		n.log.Warn("state file given up: the node's settings stay as they are", "error", err)
		n.db, err = nil, nil
	}
	return err
}

// children returns the macvlan devices of the containers, with force those whose records can be read.
func (n *node) children(force bool) ([]wiring.ChildLink, error) {
	if n.db == nil {
		return nil, nil
	}
	children, err := agent.ChildrenIn(n.db, n.host)
	if damaged := (*agent.StateError)(nil); force && errors.As(err, &damaged) {
		n.log.Warn("records of the state file given up: devices of these endpoints may stay", "error", err)
		return children, nil
	}
	return children, err
}

// mounts returns the paths at which an agent has mounted a bpf file system.
func (n *node) mounts() ([]string, error) {
	if n.db == nil {
		return nil, nil
	}
	return agent.Mounts(n.db)
}

// restore puts settings and mounts back as the state file has them; with force, those that it can.
func (n *node) restore(mounts []string, force bool) error {
	if n.db == nil {
		return nil
	}
	settings := &agent.Settings{DB: n.db, Root: agent.ProcSys, Logger: n.log}
	if err := settings.Undo(); err != nil {
		if !force {
			return fmt.Errorf("%w; with --force these settings stay as they are", err)
		}
		n.log.Warn("settings of the node given up: they stay as they are", "error", err)
	}
	for _, path := range mounts {
		if err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); err != nil {
			n.log.Warn("bpf file system left mounted: others use it", "path", path, "error", err)
			continue
		}
		n.log.Info("bpf file system unmounted", "path", path)
		_ = os.Remove(path) // ours too unless it is in sysfs, which refuses
	}
	return nil
}
