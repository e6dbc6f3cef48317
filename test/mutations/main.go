// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"
)

// packageDir has the tests, and the directives that say how the programs are
// compiled. The module root is the working folder.
const packageDir = "pkg/datapath"

// Tests that catch what is wrong with policy, macvlan children and limits of bandwidth, without
// the minutes of all others.
const (
	firewallTests = "TestPolicy$|TestPolicyMore|TestPolicyWays|TestBridge"
	childTests    = "TestChild"
	limitTests    = "TestLimits$|TestLimitBridge"
)

// ownTests are the tests for files that have their own.
var ownTests = map[string]string{
	"lib/policy.h": firewallTests, "lib/track.h": firewallTests,
	"to_parent.c": childTests, "from_parent.c": childTests, "lib/child.h": childTests,
	"lib/bandwidth.h": limitTests,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "mutations: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, args []string) error {
	flags := flag.NewFlagSet("mutations", flag.ContinueOnError)
	only := flags.String("run", "", "only the faults whose names match the `regexp`")
	tests := flags.String("tests", "TestPackets|TestServicesFull|TestScarcity|TestPorts|TestClientOfPortGone|TestChild$|TestChildPorts|"+limitTests+"|"+firewallTests, "the tests that are to catch them, as -run of go test; files that have their own tests meet only these")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	b := &bench{out: out, tests: *tests}
	if b.root, err = os.Getwd(); err != nil {
		return err
	}
	if b.compilers, err = directives(filepath.Join(b.root, packageDir, "generate.go")); err != nil {
		return err
	}
	// What does not pass unharmed proves nothing.
	if caught, err := b.try(ctx, mutation{name: "none", file: "lib/types.h"}); err != nil {
		return err
	} else if caught != "" {
		return fmt.Errorf("tests fail without any fault: %s", caught)
	}
	return b.tryAll(ctx, wanted)
}

// tryAll tries the faults that are wanted, as many at a time as there are
// processors, and prints what caught each.
func (b *bench) tryAll(ctx context.Context, wanted *regexp.Regexp) error {
	var (
		mu        sync.Mutex
		survivors []string
	)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for _, m := range mutations() {
		if !wanted.MatchString(m.name) {
			continue
		}
		group.Go(func() error {
			caught, err := b.try(ctx, m)
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if caught == "" {
				survivors = append(survivors, m.name)
				caught = "SURVIVED"
			}
			fmt.Fprintf(b.out, "%-44s %s\n", m.name, caught)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if survivors != nil {
		return fmt.Errorf("no test caught: %s", strings.Join(survivors, "; "))
	}
	return nil
}

// bench is where faults are tried.
type bench struct {
	out       io.Writer
	root      string
	compilers [][]string
	tests     string
}

var directive = regexp.MustCompile(`(?m)^//go:generate (go tool bpf2go .*)$`)

// word is an argument of a directive, in quotes or not.
var word = regexp.MustCompile(`"[^"]*"|\S+`)

// directives returns the commands that compile the programs.
func directives(file string) ([][]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var commands [][]string
	for _, match := range directive.FindAllStringSubmatch(string(text), -1) {
		var command []string
		for _, w := range word.FindAllString(match[1], -1) {
			command = append(command, strings.Trim(w, `"`))
		}
		commands = append(commands, command)
	}
	if commands == nil {
		return nil, fmt.Errorf("%s has no directive for bpf2go", file)
	}
	return commands, nil
}

// try returns the first test that fails with the fault, or "".
func (b *bench) try(ctx context.Context, m mutation) (caught string, err error) {
	dir, err := os.MkdirTemp("", "mutation-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	sources := filepath.Join(dir, "bpf")
	if err := os.CopyFS(sources, os.DirFS(filepath.Join(b.root, "bpf"))); err != nil {
		return "", err
	}
	if err := m.apply(filepath.Join(sources, m.file)); err != nil {
		return "", err
	}
	overlay, err := b.compile(ctx, dir)
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "datapath.test")
	if text, err := b.command(ctx, "go", "test", "-c", "-overlay", overlay, "-o", binary, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build tests: %w\n%s", err, text)
	}
	tests := cmp.Or(ownTests[m.file], b.tests)
	text, err := b.command(ctx, binary, "-test.failfast", "-test.timeout", "5m", "-test.run", tests).CombinedOutput()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return verdict(text, err)
}

var failed = regexp.MustCompile(`(?m)^ *--- FAIL: (\S+)`)

// verdict takes the innermost test that failed out of the output.
func verdict(text []byte, err error) (string, error) {
	names := failed.FindAllSubmatch(text, -1)
	switch {
	case err == nil:
		return "", nil
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

func (m mutation) apply(file string) error {
	if m.old == m.new {
		return nil
	}
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

// compile compiles the sources below dir as the directives say, and writes a file
// for go's -overlay that puts the programs in the place of those in the package.
func (b *bench) compile(ctx context.Context, dir string) (overlay string, err error) {
	out := filepath.Join(dir, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		return "", err
	}
	for _, words := range b.compilers {
		command := append([]string{"tool", "bpf2go", "-output-dir", out}, words[3:]...)
		for i, w := range command {
			command[i] = strings.Replace(w, "../../bpf/", filepath.Join(dir, "bpf")+"/", 1)
			// A fault may leave a variable without use.
			command[i] = strings.Replace(command[i], "-Werror", "-Wno-unused", 1)
		}
		if text, err := b.command(ctx, "go", command...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("compile: %w\n%s", err, text)
		}
	}
	objects, err := filepath.Glob(filepath.Join(out, "*.o"))
	if err != nil {
		return "", err
	}
	replace := make(map[string]string)
	for _, object := range objects {
		replace[filepath.Join(b.root, packageDir, filepath.Base(object))] = object
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay = filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, text, 0o644)
}

// command is one that runs in the package's folder.
func (b *bench) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = filepath.Join(b.root, packageDir)
	cmd.Env = append(os.Environ(), "TENDRIL_TEST_PRIVILEGED=1")
	return cmd
}
