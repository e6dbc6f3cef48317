// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// root is the root of the repository.
const root = "../.."

// page is one file of the documentation.
type page struct {
	// path from the root, with slashes.
	path  string
	lines []string
}

// block is a fenced block of a page.
type block struct {
	// kind is what stands behind the fence, such as "sh install".
	kind string
	// line is the number of the fence.
	line int
	text string
}

func pages(tb testing.TB) []page {
	tb.Helper()
	paths, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		tb.Fatal(err)
	}
	var all []page
	for _, path := range append([]string{filepath.Join(root, "README.md")}, paths...) {
		relative, err := filepath.Rel(root, path)
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, readPage(tb, filepath.ToSlash(relative)))
	}
	return all
}

func readPage(tb testing.TB, path string) page {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		tb.Fatal(err)
	}
	return page{path: path, lines: strings.Split(string(text), "\n")}
}

func (p page) blocks(tb testing.TB) []block {
	tb.Helper()
	var all []block
	open := false
	for i, line := range p.lines {
		fence, found := strings.CutPrefix(line, "```")
		switch {
		case found && !open:
			all = append(all, block{kind: fence, line: i + 1})
			open = true
		case found:
			open = false
		case open:
			all[len(all)-1].text += line + "\n"
		}
	}
	if open {
		tb.Fatalf("%s:%d: the block has no end", p.path, all[len(all)-1].line)
	}
	return all
}

// prose is the page without its blocks: a "#" in there is no heading.
func (p page) prose() []string {
	var lines []string
	open := false
	for _, line := range p.lines {
		if strings.HasPrefix(line, "```") {
			open = !open
			line = ""
		}
		if open {
			line = ""
		}
		lines = append(lines, line)
	}
	return lines
}

// section is the text below a heading, up to the next one of any level.
func (p page) section(tb testing.TB, heading string) []string {
	tb.Helper()
	lines := p.prose()
	at := slices.Index(lines, heading)
	if at < 0 {
		tb.Fatalf("%s has no heading %q", p.path, heading)
	}
	lines = lines[at+1:]
	if end := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, "#") }); end >= 0 {
		lines = lines[:end]
	}
	return lines
}

// table returns the cells of the table in a section whose first header cell is
// as given.
func (p page) table(tb testing.TB, heading, first string) [][]string {
	tb.Helper()
	var rows [][]string
	in := false
	for _, line := range p.section(tb, heading) {
		if !strings.HasPrefix(line, "|") {
			in = false
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case cells[0] == first:
			in = true
		case in && !strings.HasPrefix(cells[0], "---"):
			rows = append(rows, cells)
		}
	}
	if rows == nil {
		tb.Fatalf("%s has no table of %q below %q", p.path, first, heading)
	}
	return rows
}

var codeSpan = regexp.MustCompile("`([^`]*)`")

// codes are the texts between backticks.
func codes(text string) []string {
	var all []string
	for _, match := range codeSpan.FindAllStringSubmatch(text, -1) {
		all = append(all, match[1])
	}
	return all
}

var (
	link      = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	notAnchor = regexp.MustCompile(`[^\p{L}\p{N}_\- ]`)
)

// anchors are the fragments by which headings are linked to, as forges make them.
func (p page) anchors() []string {
	var all []string
	for _, line := range p.prose() {
		if heading := strings.TrimLeft(line, "#"); heading != line {
			text := notAnchor.ReplaceAllString(strings.ToLower(strings.TrimSpace(heading)), "")
			all = append(all, strings.ReplaceAll(text, " ", "-"))
		}
	}
	return all
}

// TestLinks follows each link of a page to a file or a heading of the repository.
func TestLinks(t *testing.T) {
	for _, p := range append(pages(t), readPage(t, "CHANGELOG.md"), readPage(t, "CONTRIBUTING.md")) {
		for _, match := range link.FindAllStringSubmatch(strings.Join(p.prose(), " "), -1) {
			target, anchor, _ := strings.Cut(match[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			to := p.path
			if target != "" {
				to = filepath.ToSlash(filepath.Join(filepath.Dir(p.path), target))
			}
			if _, err := os.Stat(filepath.Join(root, to)); err != nil {
				t.Errorf("%s: link to %s: %v", p.path, match[1], err)
				continue
			}
			if anchor != "" && !slices.Contains(readPage(t, to).anchors(), anchor) {
				t.Errorf("%s: link to %s: no such heading", p.path, match[1])
			}
		}
	}
}
