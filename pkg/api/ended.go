// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// EndedName is a folder beside the agent's socket, in which plugins note what they have ended
// without the agent.
const EndedName = "ended"

// maxEnded is the size of a note, in bytes, above which it is none.
const maxEnded = 4096

// Ended are the attachments whose DEL found no agent. The next agent may not see by itself that
// they are over: the container may be there still, and what is in it is not the agent's.
type Ended struct{ dir string }

// EndedBeside returns those of the agent that has this socket.
func EndedBeside(socket string) Ended {
	return Ended{dir: filepath.Join(filepath.Dir(socket), EndedName)}
}

// Note notes that an attachment has ended. Where no agent has ever been, there is nobody to
// tell, which is no error. What could not be read again is not noted.
func (e Ended) Note(a Attachment) error {
	text, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("note the end of an attachment: %w", err)
	}
	if again, ok := decodeEnded(HostIfName(a), text); !ok || again != a {
		return fmt.Errorf("note the end of an attachment: no endpoint is named %.64q, interface %.64q", a.ContainerID, a.IfName)
	}
	if err := os.Mkdir(e.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("note the end of an attachment: %w", err)
	}
	if err := os.WriteFile(e.path(a), text, 0o600); err != nil {
		return fmt.Errorf("note the end of an attachment: %w", err)
	}
	return nil
}

func (e Ended) path(a Attachment) string { return filepath.Join(e.dir, HostIfName(a)) }

// Ended returns when each ended. What is no note is left alone.
func (e Ended) Ended() (map[Attachment]time.Time, error) {
	entries, err := os.ReadDir(e.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what ended without the agent: %w", err)
	}
	ended := make(map[Attachment]time.Time)
	for _, entry := range entries {
		if !entry.Type().IsRegular() {
			continue
		}
		text, at, err := read(filepath.Join(e.dir, entry.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read what ended without the agent: %w", err)
		}
		if a, ok := decodeEnded(entry.Name(), text); err == nil && ok {
			ended[a] = at
		}
	}
	return ended, nil
}

// read returns at most one byte more than a note can have.
func read(path string) (text []byte, at time.Time, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, at, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, at, err
	}
	text, err = io.ReadAll(io.LimitReader(file, maxEnded+1))
	return text, info.ModTime(), err
}

// decodeEnded reads a note in a file of that name. A note is all of the file, and about whom the name
// is of.
func decodeEnded(name string, text []byte) (a Attachment, ok bool) {
	if len(text) > maxEnded || json.Unmarshal(text, &a) != nil || HostIfName(a) != name {
		return Attachment{}, false
	}
	return a, true
}

// Forget forgets those that have not ended again since.
func (e Ended) Forget(ended map[Attachment]time.Time) error {
	for a, at := range ended {
		_, last, err := read(e.path(a))
		if err == nil && last.Equal(at) {
			err = os.Remove(e.path(a))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget what ended without the agent: %w", err)
		}
	}
	return nil
}
