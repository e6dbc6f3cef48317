// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/policy"
)

// Bounds of a policyDir.
const (
	maxPolicyFiles = 4096
	maxPolicyBytes = 16 << 20 // of all files together
)

// errBusy says that a file is being written: what it holds now is not all of it.
var errBusy = errors.New("is being written")

// policyDir is a folder of files with objects. It is the home of them: what it holds is
// what counts, also after a reboot.
type policyDir struct{ path string }

// policyStamp is what tells two states of the files apart, by path.
type policyStamp map[string][sha256.Size]byte

func (s policyStamp) equal(o policyStamp) bool { return maps.Equal(s, o) }

// read implements policySource. No folder is an empty one.
func (d *policyDir) read() (policySet, error) {
	set := policySet{objects: &policy.Objects{}, stamp: make(policyStamp)}
	paths, err := d.files()
	if err != nil {
		return policySet{}, err
	}
	var parts []*policy.Objects
	left := int64(maxPolicyBytes)
	for _, path := range paths {
		text, err := readPolicyFile(path, left)
		if err != nil {
			return policySet{}, err
		}
		left -= int64(len(text))
		objects, err := policy.Parse(path, text)
		if err != nil {
			return policySet{}, policyError(err)
		}
		set.stamp[path] = sha256.Sum256(text)
		parts = append(parts, objects)
	}
	if set.objects, err = set.objects.Merge(parts...); err != nil {
		return policySet{}, policyError(err)
	}
	return set, nil
}

// files are the paths of those that count, sorted.
func (d *policyDir) files() ([]string, error) {
	info, err := os.Stat(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, unreadable(err)
	}
	if err := checkOwner(d.path, info); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, unreadable(err)
	}
	var paths []string
	for _, entry := range entries { // they are sorted
		if entry.IsDir() || !isPolicyFile(entry.Name()) {
			continue
		}
		paths = append(paths, filepath.Join(d.path, entry.Name()))
	}
	if len(paths) > maxPolicyFiles {
		return nil, unusable(d.path, fmt.Sprintf("has %d files, and %d are read", len(paths), maxPolicyFiles))
	}
	return paths, nil
}

func isPolicyFile(name string) bool {
	return !strings.HasPrefix(name, ".") && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name))
}

// unusable says what somebody has to mend about a file or the folder.
func unusable(path, reason string) *api.Error {
	return &api.Error{Code: api.CodeInvalid, Key: "policy-dir", Value: path, Message: fmt.Sprintf("use %s: it %s", path, reason)}
}

func unreadable(err error) *api.Error {
	return &api.Error{Code: api.CodeInvalid, Key: "policy-dir", Message: fmt.Sprintf("read policies: %v", err)}
}

// checkOwner refuses what others than the agent's user and root can change.
func checkOwner(path string, info fs.FileInfo) error {
	if info.Mode().Perm()&0o022 != 0 {
		return unusable(path, fmt.Sprintf("has mode %04o: nobody but its owner may be able to write it", info.Mode().Perm()))
	}
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err == nil && stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
		return unusable(path, fmt.Sprintf("belongs to user %d: root must own it", stat.Uid))
	}
	return nil
}

// readPolicyFile reads a file that may have so many bytes, and that nobody writes
// meanwhile.
func readPolicyFile(path string, most int64) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, unreadable(err)
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, unreadable(err)
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, unusable(path, "is no regular file")
	case info.Size() > most:
		return nil, unusable(path, fmt.Sprintf("makes the policies larger than %d bytes together", maxPolicyBytes))
	}
	if err := checkOwner(path, info); err != nil {
		return nil, err
	}
	// Nobody gets a lease to read a file that somebody has open to write, and
	// whoever opens it so waits until we have closed it (fcntl(2), "Leases"). Not
	// all file systems have leases.
	if _, err := unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_RDLCK); errors.Is(err, unix.EAGAIN) {
		return nil, fmt.Errorf("%s %w", path, errBusy)
	}
	text, err := io.ReadAll(io.LimitReader(file, most+1))
	switch {
	case err != nil:
		return nil, unreadable(err)
	case int64(len(text)) > most:
		return nil, unusable(path, fmt.Sprintf("makes the policies larger than %d bytes together", maxPolicyBytes))
	case len(text) == 0:
		// An editor has just emptied it, or a disk was full: not what anybody
		// means by "no policy".
		return nil, unusable(path, "is empty: remove it if it is to say nothing")
	}
	return text, nil
}
