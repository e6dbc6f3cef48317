// SPDX-License-Identifier: Apache-2.0

package packet_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/tendril-net/tendril/internal/packet"
)

// Captured frames can be anything: whatever they are, looking at them must not
// panic, and a summary stays one line.
func FuzzDissect(f *testing.F) {
	for _, test := range frames {
		frame := packet.New(test.stack...)
		if len(frame) > 4096 {
			continue // slow to mutate, and nothing new in it
		}
		f.Add(frame, frame)
		f.Add(frame[:len(frame)/2], frame)
	}
	f.Add([]byte(nil), []byte{0})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		_ = packet.Verify(a)
		if s := packet.Summary(a); strings.Contains(s, "\n") {
			t.Errorf("summary has lines: %q", s)
		}
		if diff := packet.Diff(a, b); (diff == "") != bytes.Equal(a, b) {
			t.Errorf("diff is %q for frames %x and %x", diff, a, b)
		}
		if whole, err := packet.Reassemble(a, b); err == nil {
			_ = packet.Summary(whole)
		}
	})
}
