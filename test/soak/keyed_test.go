// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A stream is the same in whatever pieces it is made.
func TestKeyFill(t *testing.T) {
	k := newKey(1, 2)
	want := make([]byte, 1000)
	k.fill(want, 0)
	for _, piece := range []int{1, 3, 7, 8, 64, 999} {
		got := make([]byte, len(want))
		for at := 0; at < len(got); at += piece {
			k.fill(got[at:min(at+piece, len(got))], uint64(at))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("in pieces of %d (-want +got):\n%s", piece, diff)
		}
	}
}

// What is not the stream's is noticed, and where it begins.
func TestKeyCheck(t *testing.T) {
	const offset = 5
	k := newKey(1, 2)
	scratch := make([]byte, 100)
	for _, test := range []struct {
		name  string
		spoil func(b []byte) []byte
		want  string
	}{
		{"nothing", func(b []byte) []byte { return b }, ""},
		{"one bit", func(b []byte) []byte { b[90] ^= 1; return b[:91] }, "byte 95 and what follows is 06, not 07"},
		{"another offset", func(b []byte) []byte { k.fill(b[:2], offset+1); return b[:2] }, "byte 5 and what follows is 8e e6, not 6f 8e"},
		{"another stream", func(b []byte) []byte { newKey(2, 1).fill(b[:2], offset); return b[:2] }, "byte 5 and what follows is 6b b9, not 6f 8e"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := make([]byte, 100)
			k.fill(b, offset)
			got := ""
			if err := k.check(test.spoil(b), offset, scratch); err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
