// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"fmt"
	"strings"
)

// maxRows bounds how many rows of 16 bytes a diff shows.
const maxRows = 8

// Diff describes how got differs from want: first both in one line, then each
// field of each layer that is not the same, then the bytes. It is "" when they
// are equal. Of layers that only one side has, it shows all fields.
//
//	want: IP 10.0.0.1.40000 > 10.0.0.2.80 ttl 63: Flags [S], seq 1, win 65535, length 0
//	got:  IP 10.0.0.1.40000 > 10.0.0.2.80 ttl 64: Flags [S], seq 1, win 65535, length 0
//	  IPv4.TTL       -63                      +64
//	  IPv4.Checksum  -0x67ce                  +0x66ce
//	  bytes 0010     -00 28 00 00 00 00 3f 06 67 ce 0a 00 00 01 0a 00
//	                 +00 28 00 00 00 00 40 06 66 ce 0a 00 00 01 0a 00
func Diff(want, got []byte) string {
	if bytes.Equal(want, got) {
		return ""
	}
	w, g := dissect(want), dissect(got)
	rows := [][3]string{}
	for _, pair := range align(w.headers, g.headers) {
		rows = append(rows, diffHeader(pair[0], pair[1])...)
	}
	rows = append(rows, diffBytes(want, got)...)
	var widths [2]int
	for _, row := range rows {
		for i := range widths {
			widths[i] = max(widths[i], len(row[i]))
		}
	}
	// A long value on one side must not push the other side out of sight.
	widths[1] = min(widths[1], 24)
	var out strings.Builder
	fmt.Fprintf(&out, "want: %s\ngot:  %s\n", Summary(want), Summary(got))
	for _, row := range rows {
		line := fmt.Sprintf("  %-*s  %-*s %s", widths[0], row[0], widths[1], row[1], row[2])
		if len(row[1]) > widths[1] && row[2] != "" {
			line = fmt.Sprintf("  %-*s  %s\n  %-*s  %s", widths[0], row[0], row[1], widths[0], "", row[2])
		}
		out.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return out.String()
}

// align pairs headers of the same name in order; where one side has headers that
// the other lacks, their partner is nil.
func align(want, got []*header) [][2]*header {
	var pairs [][2]*header
	for len(want) > 0 && len(got) > 0 {
		if want[0].name == got[0].name {
			pairs = append(pairs, [2]*header{want[0], got[0]})
			want, got = want[1:], got[1:]
			continue
		}
		missing, extra := indexOf(want, got[0].name), indexOf(got, want[0].name)
		if extra > 0 && (missing < 0 || extra <= missing) {
			pairs = append(pairs, [2]*header{nil, got[0]})
			got = got[1:]
			continue
		}
		pairs = append(pairs, [2]*header{want[0], nil})
		want = want[1:]
	}
	for _, h := range want {
		pairs = append(pairs, [2]*header{h, nil})
	}
	for _, h := range got {
		pairs = append(pairs, [2]*header{nil, h})
	}
	return pairs
}

func indexOf(headers []*header, name string) int {
	for i, h := range headers {
		if h.name == name {
			return i
		}
	}
	return -1
}

// diffHeader returns name, want and got of each field that differs.
func diffHeader(want, got *header) [][3]string {
	switch {
	case want == nil:
		return [][3]string{{got.name, "", "+" + got.String()}}
	case got == nil:
		return [][3]string{{want.name, "-" + want.String(), ""}}
	}
	var rows [][3]string
	has := map[string]field{}
	for _, f := range got.fields {
		has[f.name] = f
	}
	for _, w := range want.fields {
		g, ok := has[w.name]
		delete(has, w.name)
		name := want.name + "." + w.name
		switch {
		case !ok:
			rows = append(rows, [3]string{name, "-" + w.value(), ""})
		case w.bytes != nil && g.bytes != nil:
			if row, differs := diffData(w.bytes, g.bytes); differs {
				rows = append(rows, [3]string{name, row[0], row[1]})
			}
		case w.text != g.text:
			rows = append(rows, [3]string{name, "-" + w.value(), "+" + g.value()})
		}
	}
	for _, g := range got.fields {
		if _, only := has[g.name]; only {
			rows = append(rows, [3]string{got.name + "." + g.name, "", "+" + g.value()})
		}
	}
	return rows
}

func diffData(want, got []byte) (row [2]string, differs bool) {
	if bytes.Equal(want, got) {
		return row, false
	}
	at := 0
	for at < len(want) && at < len(got) && want[at] == got[at] {
		at++
	}
	describe := func(sign string, b []byte) string {
		if at == len(b) {
			return fmt.Sprintf("%s%d bytes", sign, len(b))
		}
		return fmt.Sprintf("%s%d bytes, 0x%02x at %d", sign, len(b), b[at], at)
	}
	return [2]string{describe("-", want), describe("+", got)}, true
}

// diffBytes returns the rows of 16 bytes that differ, in hexadecimal.
func diffBytes(want, got []byte) [][3]string {
	var rows [][3]string
	more := 0
	for at := 0; at < max(len(want), len(got)); at += 16 {
		w, g := window(want, at), window(got, at)
		switch {
		case bytes.Equal(w, g):
		case len(rows) >= 2*maxRows || len(w) == 0 || len(g) == 0: // one side has ended
			more++
		default:
			rows = append(rows, [3]string{fmt.Sprintf("bytes %04x", at), fmt.Sprintf("-% x", w)},
				[3]string{"", fmt.Sprintf("+% x", g)})
		}
	}
	if more > 0 {
		rows = append(rows, [3]string{fmt.Sprintf("and %d rows more", more)})
	}
	return rows
}

func window(b []byte, at int) []byte {
	return b[min(at, len(b)):min(at+16, len(b))]
}

func (f field) value() string {
	if f.bytes != nil {
		return fmt.Sprintf("%d bytes", len(f.bytes))
	}
	return f.text
}

func (h *header) String() string {
	var all []string
	for _, f := range h.fields {
		all = append(all, f.name+" "+f.value())
	}
	return "{" + strings.Join(all, ", ") + "}"
}
