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
// behind it take nothing of that back, and tell of no number that a VLAN cannot have.
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
		behind := vlansIn([][]byte{slices.Concat(make([]byte, 8), more)})
		for id, flags := range behind {
			if id < 1 || id > 4094 {
				t.Errorf("VLAN %d", id)
			}
			want[id] = flags
		}
		for what, answers := range map[string][][]byte{
			"in one message": {slices.Concat(answer, more)},
			"in several":     {answer, slices.Concat(make([]byte, 8), more), nil, more[:min(len(more), 7)]},
		} {
			if got := vlansIn(answers); !maps.Equal(want, got) {
				t.Errorf("%s (-want +got):\n%s", what, cmp.Diff(want, got))
			}
		}
	})
}
