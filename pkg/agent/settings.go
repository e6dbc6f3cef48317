// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"go.etcd.io/bbolt"
)

// ProcSys is where the settings of the reader's own network namespace are.
const ProcSys = "/proc/sys"

// Paths below /proc/sys.
const (
	pathForward4      = "net/ipv4/ip_forward"
	pathForward6      = "net/ipv6/conf/all/forwarding"
	pathReservedPorts = "net/ipv4/ip_local_reserved_ports"
	pathLocalPorts    = "net/ipv4/ip_local_port_range"
)

func pathAcceptRA(device string) string { return "net/ipv6/conf/" + device + "/accept_ra" }

// Settings are the kernel's settings of the node that forwarding needs. Each
// that is changed is written down first with what it was, and Undo puts that
// back. A setting that was right already is not ours and never touched.
type Settings struct {
	// DB is the state file.
	DB *bbolt.DB
	// Root is ProcSys, or a test's directory.
	Root string
	// Logger gets each change.
	Logger *slog.Logger

	mu         sync.Mutex // guards what follows, and the reserved ports
	masquerade portSet    // what Apply was given
	reserved   *portSet   // what was reserved last; nil: not yet known
}

// setting is a value that was replaced.
type setting struct {
	Previous string `json:"previous"`
	Written  string `json:"written"`
}

// Apply has the node forward both families and keep the ports first to last
// away from its own sockets, of which some must be left. Devices are the uplinks; see
// AcceptRA.
func (s *Settings) Apply(devices []string, first, last uint16) error {
	if err := s.checkPorts(first, last); err != nil {
		return err
	}
	// Before forwarding: the kernel drops the default routes that router
	// advertisements gave when a node with accept_ra=1 becomes a router.
	if err := s.AcceptRA(devices); err != nil {
		return err
	}
	if err := s.set(pathForward4, "1"); err != nil {
		return err
	}
	if err := s.set(pathForward6, "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // a kernel without IPv6 has no such setting
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.masquerade = portSet{}
	s.masquerade.add(first, last)
	mapped, err := mappedPorts(s.DB) // whose agent was another one
	if err != nil {
		return err
	}
	return s.reserve(mapped, slog.LevelInfo)
}

// AcceptRA has devices that accept router advertisements go on doing so while
// the node forwards: 1 means "unless forwarding" (ip-sysctl, accept_ra).
func (s *Settings) AcceptRA(devices []string) error {
	for _, device := range devices {
		value, err := s.read(pathAcceptRA(device))
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6, or the device is gone
		}
		if err != nil {
			return err
		}
		if value != "1" {
			continue
		}
		if err := s.set(pathAcceptRA(device), "2"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// set writes a setting that has another value, and its record before it.
func (s *Settings) set(path, value string) error {
	current, err := s.read(path)
	if err != nil || current == value {
		return err
	}
	old, err := s.recorded(path)
	if err != nil {
		return err
	}
	change := setting{Previous: current, Written: value}
	if old != nil {
		change.Previous = old.Previous
	}
	if err := s.record(path, &change); err != nil {
		return err
	}
	if err := s.write(path, value); err != nil {
		return err
	}
	s.Logger.Info("setting changed", "setting", path, "from", current, "to", value)
	return nil
}

// Undo puts back what Apply and AcceptRA replaced. What somebody else has
// changed since is left as it is; of the reserved ports only ours are freed.
func (s *Settings) Undo() error {
	var paths []string
	err := s.DB.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketSettings).ForEach(func(key, _ []byte) error {
			paths = append(paths, string(key))
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	var errs []error
	// The order of the paths has forwarding of IPv6 ("all") before accept_ra
	// of devices that sort behind it; either order is safe, because a node
	// that does not forward accepts with 1 and with 2.
	for _, path := range paths {
		if err := s.undo(path); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Settings) undo(path string) error {
	old, err := s.recorded(path)
	if err != nil {
		return err
	}
	current, err := s.read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s.record(path, nil) // the device is gone, and its settings with it
	}
	if err != nil {
		return err
	}
	value := old.Previous
	switch {
	case path == pathReservedPorts:
		present, err := parsePorts(current)
		if err != nil {
			return fmt.Errorf("read setting %s: %w", path, err)
		}
		ours, err := old.ports()
		if err != nil {
			return fmt.Errorf("read setting %s: %w", path, err)
		}
		value = present.minus(ours).String()
	case current != old.Written:
		s.Logger.Warn("setting left as it is: changed by somebody else", "setting", path, "value", current, "ours", old.Written)
		value = current
	}
	if value != current {
		if err := s.write(path, value); err != nil {
			return err
		}
		s.Logger.Info("setting restored", "setting", path, "from", current, "to", value)
	}
	return s.record(path, nil)
}

// maxReserved is how long the list of reserved ports can be, in bytes: it names
// every other port, and ends a line.
const maxReserved = 1<<15*len("65535,") + 1

func (s *Settings) read(path string) (string, error) {
	file, err := os.Open(filepath.Join(s.Root, path))
	if err != nil {
		return "", fmt.Errorf("read setting: %w", err)
	}
	defer func() { _ = file.Close() }()
	size := 4096
	if path == pathReservedPorts {
		// The kernel gives it to one read only, and cuts what has no room: the
		// next is at the end (proc_do_large_bitmap).
		size = maxReserved
	}
	text := make([]byte, size)
	n, err := file.Read(text)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read setting: %w", err)
	}
	return strings.TrimSpace(string(text[:n])), nil
}

func (s *Settings) write(path, value string) error {
	// A line end, because the kernel ignores a write of no bytes.
	file, err := os.OpenFile(filepath.Join(s.Root, path), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return fmt.Errorf("write setting: %w", err)
	}
	_, err = file.WriteString(value + "\n")
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("write setting %s to %q: %w", path, value, err)
	}
	return nil
}

// decodeSetting reads what record wrote. Half of it is nothing to put back.
func decodeSetting(path string, value []byte) (*setting, error) {
	var text struct {
		Previous, Written *string
	}
	err := json.Unmarshal(value, &text)
	switch {
	case err != nil:
		return nil, err
	case text.Previous == nil || text.Written == nil:
		return nil, errors.New("previous or written is missing")
	case !filepath.IsLocal(path):
		return nil, errors.New("no setting is there")
	}
	return &setting{Previous: *text.Previous, Written: *text.Written}, nil
}

// recorded returns what is written down of a setting, nil when nothing is.
func (s *Settings) recorded(path string) (old *setting, err error) {
	err = s.DB.View(func(tx *bbolt.Tx) error {
		value := tx.Bucket(bucketSettings).Get([]byte(path))
		if value == nil {
			return nil
		}
		old, err = decodeSetting(path, value)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read record of setting %s: %w", path, err)
	}
	return old, nil
}

// record writes a change down, or forgets it when it is nil.
func (s *Settings) record(path string, change *setting) error {
	err := s.DB.Update(func(tx *bbolt.Tx) error {
		if change == nil {
			return tx.Bucket(bucketSettings).Delete([]byte(path))
		}
		value, err := json.Marshal(change)
		if err != nil {
			return err
		}
		return tx.Bucket(bucketSettings).Put([]byte(path), value)
	})
	if err != nil {
		return fmt.Errorf("record setting %s: %w", path, err)
	}
	return nil
}
