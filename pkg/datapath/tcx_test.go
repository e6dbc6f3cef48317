// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	stdmaps "maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A pin that is none of ours is named, whatever else is there.
func TestPinsOfTCX(t *testing.T) {
	for name, want := range map[string][]attachment{
		"7-from_container": {{7, "from_container"}},
		"+7-to_uplink":     nil, // its pin would be another
		"07-to_uplink":     nil,
		"0-to_uplink":      nil,
		"7-":               nil,
		"7":                nil,
		"from_container":   nil,
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, nil, 0o600))
		got, err := newTCX(dir).list()
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(attachment{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if want == nil && (err == nil || !strings.Contains(err.Error(), path)) {
			t.Errorf("%s: the error does not name it: %v", name, err)
		}
	}
}

// FuzzAttachmentOf holds the name of a pin against a second reading of it. One that is ours is the pin of what
// was read.
func FuzzAttachmentOf(f *testing.F) {
	programs := slices.Sorted(stdmaps.Keys(objects))
	for _, program := range programs {
		f.Add("7-" + program)
	}
	for _, name := range []string{"", "-", "7", "7-", "07-to_uplink", "+7-to_uplink", "-7-to_uplink", "0-to_uplink", "2147483648-to_uplink", "7-to_uplink-", "7-from_host"} {
		f.Add(name)
	}
	pin := regexp.MustCompile(`^([1-9][0-9]*)-(` + strings.Join(programs, "|") + `)$`)
	f.Fuzz(func(t *testing.T, name string) {
		var want attachment
		if parts := pin.FindStringSubmatch(name); parts != nil {
			if index, err := strconv.Atoi(parts[1]); err == nil && index <= math.MaxInt32 {
				want = attachment{index, parts[2]}
			}
		}
		got, ours := attachmentOf(name)
		if ours != (want != attachment{}) || ours && (got != want || got.pin() != name) {
			t.Errorf("%q is ours: %t, %+v; want %+v", name, ours, got, want)
		}
	})
}
