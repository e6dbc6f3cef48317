// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

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
	must(os.Mkdir(filepath.Join(e.dir, "folder"), 0o700))
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

// FuzzEnded puts any file among the notes. It is one if it says all of whom its name is of, and hides no other.
// Whatever can be noted is read again, once, and forgotten without a trace.
func FuzzEnded(f *testing.F) {
	c1 := Attachment{ContainerID: "c1", IfName: "eth0"}
	for _, text := range []string{
		`{"containerID":"c1","ifName":"eth0"}`,
		`{"ifName":"eth0","containerID":"c1","more":7}`,
		`{"containerID":"c1","ifName":"eth0"`,
		`{"containerID":"c1","ifName":"eth0"}}`,
		`{"containerID":"c1","ifName":"eth0","ifName":7}`,
		`{"containerID":"c1","ifName":"eth1"}`,
		`{"containerID":"c1","ifName":"eth0"}` + strings.Repeat(" ", maxEnded),
		`null`, ``, `[]`,
	} {
		f.Add(HostIfName(c1), []byte(text), "c1", "eth0")
	}
	f.Add("notes", []byte(`{"containerID":"c1","ifName":"eth0"}`), "c\xff", "eth0")
	f.Add("", []byte(nil), strings.Repeat("c", maxEnded), "eth/0")
	f.Fuzz(func(t *testing.T, name string, text []byte, container, interfaceName string) {
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		list := func(e Ended) map[Attachment]time.Time {
			t.Helper()
			ended, err := e.Ended()
			must(err)
			return ended
		}
		e := EndedBeside(filepath.Join(t.TempDir(), "agent.sock"))
		other := Attachment{ContainerID: "another", IfName: "eth0"}
		must(e.Note(other))
		want := map[Attachment]time.Time{other: list(e)[other]}
		if path := filepath.Join(e.dir, name); filepath.Dir(path) == e.dir && name != HostIfName(other) && os.WriteFile(path, text, 0o600) == nil {
			info, err := os.Stat(path)
			must(err)
			var said Attachment
			if json.Unmarshal(text, &said) == nil && len(text) <= maxEnded && HostIfName(said) == name {
				want[said] = info.ModTime()
			}
		}
		if diff := cmp.Diff(want, list(e)); diff != "" {
			t.Errorf("with %.100q in file %q (-want +got):\n%s", text, name, diff)
		}

		a := Attachment{ContainerID: container, IfName: interfaceName}
		before := list(e)
		must(e.Forget(before))
		err := e.Note(a)
		noted := list(e)
		written, encodeErr := json.Marshal(a)
		must(encodeErr)
		if can := utf8.ValidString(container) && utf8.ValidString(interfaceName) && len(written) <= maxEnded; can != (err == nil) {
			t.Errorf("note %.100q: %v", a, err)
		}
		delete(noted, a)
		if len(noted) != 0 || (err == nil) != (len(list(e)) == 1) {
			t.Errorf("noted %.100q: %v, and then there are %d", a, err, len(list(e)))
		}
		must(e.Forget(list(e)))
		if left := list(e); len(left) != 0 {
			t.Errorf("forgotten, and still there: %v", left)
		}
	})
}
