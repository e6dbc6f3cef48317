// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// table collects rows and writes them with aligned columns.
type table struct {
	buffer bytes.Buffer
	writer *tabwriter.Writer
}

func newTable(header ...string) *table {
	t := &table{}
	t.writer = tabwriter.NewWriter(&t.buffer, 0, 0, 2, ' ', 0)
	t.row(header...)
	return t
}

// row adds a row; an empty cell shows as "-". Nothing a container chose the
// name of can break the table or drive the terminal.
func (t *table) row(cells ...string) {
	for i, cell := range cells {
		if cell == "" {
			cell = "-"
		}
		cells[i] = printed(cell)
	}
	fmt.Fprintln(t.writer, strings.Join(cells, "\t"))
}

// printed is a text that cannot drive the terminal.
func printed(text string) string { return strings.Map(printable, text) }

func printable(r rune) rune {
	if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
		return '?'
	}
	return r
}

// write prints the table without blanks at the ends of its lines.
func (t *table) write(to io.Writer) error {
	if err := t.writer.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(t.buffer.String()) {
		if _, err := fmt.Fprintln(to, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// part is one of several tables; one without rows is left out.
type part struct {
	*table
	rows int
}

// writeParts prints tables with a blank line between them.
func (c call) writeParts(parts []part) error {
	first := true
	for _, p := range parts {
		if p.rows == 0 {
			continue
		}
		if !first {
			if _, err := fmt.Fprintln(c.stdout); err != nil {
				return err
			}
		}
		first = false
		if err := p.write(c.stdout); err != nil {
			return err
		}
	}
	return nil
}

// count shows a number in at most five letters: 9999, 10.0k, 1.25M.
func count(n uint64) string {
	if n < 10000 {
		return strconv.FormatUint(n, 10)
	}
	return scaled(float64(n), 1000, []string{"k", "M", "G", "T", "P", "E"})
}

// capacity shows how many addresses a pool has. Those of IPv6 subnets are
// counted up to 2^63-1 only.
func capacity(n uint64) string {
	if n >= math.MaxInt64 {
		return "unlimited"
	}
	return count(n)
}

// size shows a number of bytes: 512 B, 1.50 KiB.
func size(n uint64) string {
	if n < 1024 {
		return strconv.FormatUint(n, 10) + " B"
	}
	return scaled(float64(n), 1024, []string{" KiB", " MiB", " GiB", " TiB", " PiB", " EiB"})
}

func scaled(value, step float64, units []string) string {
	unit := -1
	// 999.5 would show as 1000.
	for value >= step || value >= 999.5 && unit >= 0 {
		value /= step
		unit++
	}
	digits := 2
	switch {
	case value >= 99.95:
		digits = 0
	case value >= 9.995:
		digits = 1
	}
	return strconv.FormatFloat(value, 'f', digits, 64) + units[unit]
}

// share shows a part of a whole in percent.
func share(part, whole uint64) string {
	if whole == 0 {
		return ""
	}
	return strconv.FormatFloat(100*float64(part)/float64(whole), 'f', 1, 64) + "%"
}

// age shows a duration by its two largest units: 3d4h, 5m10s.
func age(d time.Duration) string {
	seconds := max(int64(d/time.Second), 0)
	units := []struct {
		name    string
		seconds int64
	}{{"d", 86400}, {"h", 3600}, {"m", 60}, {"s", 1}}
	for i, u := range units {
		if seconds < u.seconds {
			continue
		}
		text := fmt.Sprintf("%d%s", seconds/u.seconds, u.name)
		if i+1 < len(units) {
			if rest := seconds % u.seconds / units[i+1].seconds; rest > 0 {
				text += fmt.Sprintf("%d%s", rest, units[i+1].name)
			}
		}
		return text
	}
	return "0s"
}

// address shows a valid address, and nothing for the zero one.
func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// short shows the beginning of a container ID, as container tools do.
func short(id string) string { return id[:min(len(id), 12)] }
