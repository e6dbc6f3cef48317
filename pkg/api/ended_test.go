// SPDX-License-Identifier: Apache-2.0

package api

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestEnded(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	e := EndedBeside(filepath.Join(dir, "agent.sock"))
	a, b := Attachment{ContainerID: "a", IfName: "eth0"}, Attachment{ContainerID: "b", IfName: "eth0"}
	want := func(what string, attachments ...Attachment) map[Attachment]time.Time {
		t.Helper()
		ended, err := e.Ended()
		must(err)
		got := make(map[Attachment]bool)
		for one, at := range ended {
			got[one] = !at.IsZero()
		}
		expected := make(map[Attachment]bool)
		for _, one := range attachments {
			expected[one] = true
		}
		if d := cmp.Diff(expected, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
		return ended
	}
	want("before any")
	must(e.Note(a))
	must(e.Note(a))
	must(e.Note(b))
	both := want("both", a, b)
	// What is no note is nobody's end.
	must(os.WriteFile(filepath.Join(e.dir, "notes"), []byte(`{"containerID":"c","ifName":"eth0"}`), 0o600))
	must(os.WriteFile(filepath.Join(e.dir, "empty"), nil, 0o600))
	want("beside others", a, b)
	later := both[b].Add(time.Second)
	must(os.Chtimes(e.path(b), later, later)) // it has ended again
	must(e.Forget(both))
	must(e.Forget(both))
	if got := want("one forgotten", b)[b]; !got.Equal(later) {
		t.Errorf("ended at %s, want %s", got, later)
	}
	// Where no agent has been, there is nobody to tell.
	nowhere := EndedBeside(filepath.Join(dir, "nowhere", "agent.sock"))
	must(nowhere.Note(a))
	if _, err := os.Stat(filepath.Join(dir, "nowhere")); !os.IsNotExist(err) {
		t.Errorf("a folder was made: %v", err)
	}
}
