// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// packageDir has the tests, and the directives that say how the programs are
// compiled. The module root is the working folder.
const packageDir = "pkg/datapath"

// programsVariable lists folders with programs that the tests take in place of those that
// they were built with.
const programsVariable = "TENDRIL_TEST_PROGRAMS"

// bench is where faults are tried.
type bench struct {
	root, dir string
	// tests is the test binary.
	tests     string
	compilers []compiler
}

// compiler makes one object of one source.
type compiler struct {
	source  string
	command []string
	// reads are the files of bpf/ that it comes from.
	reads map[string]bool
}

// newBench builds the tests in a folder, which is for all that the bench writes.
func newBench(ctx context.Context, dir string) (*bench, error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	b := &bench{root: root, dir: dir, tests: filepath.Join(dir, "datapath.test")}
	generator, err := b.command(ctx, "go", "tool", "-n", "bpf2go").Output()
	if err != nil {
		return nil, fmt.Errorf("build bpf2go: %w", err)
	}
	b.compilers, err = directives(root, strings.TrimSpace(string(generator)))
	if err != nil {
		return nil, err
	}
	if text, err := b.command(ctx, "go", "test", "-c", "-o", b.tests, ".").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build tests: %w\n%s", err, text)
	}
	return b, nil
}

var directive = regexp.MustCompile(`(?m)^//go:generate go tool bpf2go (.*)$`)

// word is an argument of a directive, in quotes or not.
var word = regexp.MustCompile(`"[^"]*"|\S+`)

// directives returns what compiles the programs.
func directives(root, generator string) ([]compiler, error) {
	file := filepath.Join(root, packageDir, "generate.go")
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var compilers []compiler
	for _, match := range directive.FindAllStringSubmatch(string(text), -1) {
		command := []string{generator}
		for _, w := range word.FindAllString(match[1], -1) {
			// A fault may leave a variable without use.
			command = append(command, strings.Replace(strings.Trim(w, `"`), "-Werror", "-Wno-unused", 1))
		}
		c := compiler{source: filepath.Base(command[len(command)-1]), command: command[:len(command)-1], reads: make(map[string]bool)}
		if err := c.read(filepath.Join(root, "bpf"), c.source); err != nil {
			return nil, err
		}
		compilers = append(compilers, c)
	}
	if compilers == nil {
		return nil, fmt.Errorf("%s has no directive for bpf2go", file)
	}
	return compilers, nil
}

var include = regexp.MustCompile(`(?m)^#include "(.*)"$`)

// read notes a file of dir and all that it includes.
func (c *compiler) read(dir, name string) error {
	if c.reads[name] {
		return nil
	}
	c.reads[name] = true
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	for _, match := range include.FindAllSubmatch(text, -1) {
		if err := c.read(dir, filepath.Join(filepath.Dir(name), string(match[1]))); err != nil {
			return err
		}
	}
	return nil
}

// harm returns a folder with the sources of the programs, and the fault in them.
func (b *bench) harm(m mutation) (string, error) {
	dir, err := os.MkdirTemp(b.dir, "fault-")
	if err != nil {
		return "", err
	}
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(b.root, "bpf"))); err != nil {
		return "", err
	}
	return dir, m.apply(filepath.Join(dir, m.file))
}

// compile compiles what harm has made, of one source or, with "", of all that the fault
// concerns, and returns a folder for each program, by its source.
func (b *bench) compile(ctx context.Context, sources string, m mutation, only string) (map[string]string, error) {
	programs := make(map[string]string)
	for _, c := range b.compilers {
		if !c.reads[m.file] || only != "" && only != c.source {
			continue
		}
		dir, err := os.MkdirTemp(b.dir, "program-")
		if err != nil {
			return nil, err
		}
		args := append([]string{"-output-dir", dir}, c.command[1:]...)
		if text, err := b.command(ctx, c.command[0], append(args, filepath.Join(sources, c.source))...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("compile: %w\n%s", err, text)
		}
		programs[c.source] = dir
	}
	return programs, nil
}

func (m mutation) apply(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := m.applicable(string(text)); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(strings.Replace(string(text), m.old, m.new, 1)), 0o644)
}

// applicable tells whether the file still has the one place that the fault changes.
func (m mutation) applicable(text string) error {
	if n := strings.Count(text, m.old); n != 1 {
		return fmt.Errorf("bpf/%s has its text %d times, not once", m.file, n)
	}
	return nil
}

// firstFailure runs tests with the programs of some folders, and without a fault in all others,
// and returns the first that fails, or "".
func (b *bench) firstFailure(ctx context.Context, programs map[string]string, tests string) (string, error) {
	folders := strings.Join(slices.Collect(maps.Values(programs)), string(filepath.ListSeparator))
	cmd := b.command(ctx, b.tests, "-test.failfast", "-test.timeout", "5m", "-test.run", tests)
	cmd.Env = append(cmd.Environ(), "TENDRIL_TEST_PRIVILEGED=1", programsVariable+"="+folders)
	text, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return verdict(text, err)
}

var failed = regexp.MustCompile(`(?m)^ *--- FAIL: (\S+)`)

// verdict takes the innermost test that failed out of the output.
func verdict(text []byte, err error) (string, error) {
	names := failed.FindAllSubmatch(text, -1)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "", nil
	case !errors.As(err, &exit):
		return "", err
	case bytes.Contains(text, []byte("load program")):
		return "", fmt.Errorf("the kernel refuses the program, which no packet has to find:\n%s", text)
	case names == nil:
		return "", fmt.Errorf("run tests: %w\n%s", err, text)
	}
	// A subtest comes after the test that it is part of.
	deepest := names[0][1]
	for _, name := range names[1:] {
		if !bytes.HasPrefix(name[1], append(deepest, '/')) {
			break
		}
		deepest = name[1]
	}
	return string(deepest), nil
}

// command is one that runs in the package's folder.
func (b *bench) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = filepath.Join(b.root, packageDir)
	return cmd
}
