// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"encoding/binary"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// newVLANs writes an RTM_NEWVLAN as the kernel does, of entries of three numbers each: flags, and the first and
// the last VLAN. Between them is what tells of no VLAN of a port. It returns the flags by VLAN, too.
func newVLANs(entries []byte) (answer []byte, in map[int]uint16) {
	answer, in = make([]byte, 8), make(map[int]uint16)
	for ; len(entries) >= 6; entries = entries[6:] {
		flags, first, last := binary.NativeEndian.Uint16(entries), binary.NativeEndian.Uint16(entries[2:]), binary.NativeEndian.Uint16(entries[4:])
		entry := attribute(nil, 1, entries[:4]) // BRIDGE_VLANDB_ENTRY_INFO
		if last != first {
			entry = attribute16(entry, 2, last) // BRIDGE_VLANDB_ENTRY_RANGE
		}
		entry = attribute(entry, 3, []byte{3}) // BRIDGE_VLANDB_ENTRY_STATE
		answer = attribute(answer, 1|unix.NLA_F_NESTED, entry)
		answer = attribute(answer, 2|unix.NLA_F_NESTED, attribute(nil, 1, []byte{7, 7, 7, 7})) // BRIDGE_VLANDB_GLOBAL_OPTIONS
		for id := max(1, int(first)); id <= min(int(last), 4094); id++ {
			in[id] = flags
		}
	}
	return answer, in
}

// FuzzVLANsIn: all that the kernel writes of VLANs is read, in one message and in several. Whatever bytes come
// behind it take nothing of that back, and tell of no number that a VLAN cannot have; what cannot be read is an error
// wherever it is.
func FuzzVLANsIn(f *testing.F) {
	numbers := func(of ...uint16) (entries []byte) {
		for _, n := range of {
			entries = binary.NativeEndian.AppendUint16(entries, n)
		}
		return entries
	}
	for _, entries := range [][]byte{nil, numbers(6, 1, 1), numbers(6, 1, 1, 0, 100, 200, 4, 4094, 4094), numbers(0, 0, 65535), numbers(0, 5, 3)} {
		answer, _ := newVLANs(entries)
		f.Add(entries, answer[8:])
		f.Add(entries, answer[8:max(8, len(answer)-3)])
	}
	f.Add([]byte(nil), []byte{5, 0, 1, 0, 7}) // without padding
	f.Fuzz(func(t *testing.T, entries, more []byte) {
		if len(entries)+len(more) > 1024 {
			t.Skip("slow")
		}
		answer, want := newVLANs(entries)
		behind, wrong := vlansIn([][]byte{slices.Concat(make([]byte, 8), more)})
		for id, flags := range behind {
			if id < 1 || id > 4094 {
				t.Errorf("VLAN %d", id)
			}
			want[id] = flags
		}
		if wrong != nil {
			want = nil
		}
		for what, answers := range map[string][][]byte{
			"in one message": {slices.Concat(answer, more)},
			"in several":     {answer, slices.Concat(make([]byte, 8), more)},
		} {
			got, err := vlansIn(answers)
			if (err != nil) != (wrong != nil) {
				t.Errorf("%s: error %v, and of what comes behind alone %v", what, err, wrong)
			}
			if !maps.Equal(want, got) {
				t.Errorf("%s (-want +got):\n%s", what, cmp.Diff(want, got))
			}
		}
	})
}

// TestMalformedVLANs: what no kernel says is not read as a port that is in no VLAN.
func TestMalformedVLANs(t *testing.T) {
	good, _ := newVLANs([]byte{6, 0, 1, 0, 1, 0})
	message := func(entry []byte) []byte { return attribute(slices.Clone(good), 1, entry) }
	info := attribute(nil, 1, []byte{0, 0, 5, 0})
	for what, c := range map[string]struct {
		answer []byte
		want   string
	}{
		"nothing":            {nil, "malformed answer: attributes "},
		"no whole message":   {good[:7], "malformed answer: attributes "},
		"entry without info": {message(attribute(nil, 3, []byte{3})), "malformed answer: VLAN entry 05 00 03 00 03 00 00 00"},
		"info of 3 bytes":    {message(attribute(nil, 1, []byte{0, 0, 5})), "malformed answer: VLAN entry 07 00 01 00 00 00 05 00"},
		"range of 1 byte":    {message(attribute(info, 2, []byte{9})), "malformed answer: VLAN entry 08 00 01 00 00 00 05 00 05 00 02 00 09 00 00 00"},
		"range cut short":    {message(slices.Concat(info, []byte{6, 0, 2, 0, 9})), "malformed answer: VLAN entry 08 00 01 00 00 00 05 00 06 00 02 00 09"},
		"cut short":          {slices.Concat(good[:8], []byte{9, 0, 1, 0, 1}), "malformed answer: attributes 09 00 01 00 01"},
		"less than a header": {slices.Concat(good[:8], []byte{9, 0}), "malformed answer: attributes 09 00"},
	} {
		found, err := vlansIn([][]byte{good, c.answer})
		got := "no error"
		if err != nil {
			got = err.Error()
		}
		if got != c.want || found != nil {
			t.Errorf("%s: %v, %q, want %q", what, found, got, c.want)
		}
	}
}
