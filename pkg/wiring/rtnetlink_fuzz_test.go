// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzReplies: whatever a receive brings, it is read to its end, tells of no message that was not sent, and
// an answer's attributes are parts of it.
func FuzzReplies(f *testing.F) {
	const first = 7
	answer := func(kind, flags uint16, seq uint32, body ...byte) []byte {
		return pad(append(header(unix.NlMsghdr{Len: uint32(unix.SizeofNlMsghdr + len(body)), Type: kind, Flags: flags, Seq: seq}), body...))
	}
	refused := make([]byte, 4+unix.SizeofNlMsghdr)
	copy(refused, []byte{0xff, 0xff, 0xff, 0xff}) // -EPERM
	said := attributeString(slices.Clone(refused), 1, "not so")
	link := attributeString(make([]byte, unix.SizeofIfInfomsg), unix.IFLA_IFNAME, "eth0")
	for _, seed := range [][]byte{
		nil,
		answer(unix.NLMSG_ERROR, 0, first+1, 0, 0, 0, 0),
		slices.Concat(answer(unix.RTM_NEWLINK, 0, first, link...), answer(unix.NLMSG_ERROR, 0, first+1, refused...)),
		answer(unix.NLMSG_ERROR, 0x200, first, said...),
		answer(unix.NLMSG_ERROR, 0, first-1, 0),
		answer(unix.NLMSG_ERROR, 0, first, 0, 0)[:17],
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		messages := []message{{what: "ask", asks: true}, {what: "change", tolerate: []unix.Errno{unix.EEXIST}}}
		r := replies{messages: messages, first: first, answers: make([][]byte, len(messages))}
		before := slices.Clone(input)
		done, err := r.read(input)
		if done && err != nil {
			t.Errorf("done, and %v", err)
		}
		if !slices.Equal(before, input) {
			t.Error("what was received is another now")
		}
		for _, a := range r.answers {
			total := 0
			for _, value := range attributes(a) {
				total += unix.SizeofRtAttr + len(value)
			}
			if len(a) > len(input) || total > len(a) {
				t.Errorf("%d bytes of attributes in an answer of %d, of %d that were received", total, len(a), len(input))
			}
		}
	})
}
