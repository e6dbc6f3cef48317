// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "kernels: %v\n", err)
		os.Exit(1)
	}
}

// settings are the command line.
type settings struct {
	kernels  []string      // names of the kernels to boot, in this order
	tools    []string      // programs of this host to take along
	with     []string      // files and folders of the module to take along
	tags     string        // build tags
	run      string        // as -run of go test
	skip     string        // as -skip of go test
	timeout  time.Duration // of one package on one kernel
	memory   int           // of the machine, in MiB
	cpus     int
	jobs     int // machines at a time
	verbose  bool
	refresh  bool
	packages []string
}

func parse(args []string, stderr io.Writer) (*settings, error) {
	s := &settings{tools: []string{"dash", "ip", "tc", "nsenter", "ping"}}
	var kernels string
	f := flag.NewFlagSet("kernels", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&kernels, "kernel", strings.Join(matrix(), ","), "kernels to boot, separated by commas")
	f.Func("tool", "take `program` along, with its libraries (repeatable, besides "+strings.Join(s.tools, ", ")+")",
		func(v string) error { s.tools = append(s.tools, v); return nil })
	f.Func("with", "take the file or folder at `path` of the module along (repeatable)",
		func(v string) error { s.with = append(s.with, v); return nil })
	f.StringVar(&s.tags, "tags", "", "build tags")
	f.StringVar(&s.run, "run", "", "run only the tests that match")
	f.StringVar(&s.skip, "skip", "", "leave out the tests that match")
	f.DurationVar(&s.timeout, "timeout", 10*time.Minute, "limit for one package on one kernel")
	f.IntVar(&s.memory, "memory", 2048, "memory of the machine in MiB")
	f.IntVar(&s.cpus, "cpus", 2, "processors of the machine")
	f.IntVar(&s.jobs, "jobs", runtime.NumCPU(), "machines at a time: each keeps one processor of this host busy")
	f.BoolVar(&s.verbose, "v", false, "print all output of all tests as it comes")
	f.BoolVar(&s.refresh, "refresh", false, "fetch the kernels anew")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	s.kernels, s.packages = strings.Split(kernels, ","), f.Args()
	for _, name := range s.kernels {
		if !slices.Contains(matrix(), name) {
			return nil, fmt.Errorf("unknown kernel %q: want one of %s", name, strings.Join(matrix(), ", "))
		}
	}
	if s.jobs < 1 {
		return nil, fmt.Errorf("-jobs %d: want 1 or more", s.jobs)
	}
	if len(s.packages) == 0 {
		return nil, errors.New("no package given")
	}
	return s, nil
}

func run(ctx context.Context, out io.Writer, args []string) error {
	s, err := parse(args, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	programs, err := build(ctx, s)
	if err != nil {
		return err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return fmt.Errorf("find cache: %w", err)
	}
	cache = filepath.Join(cache, "tendril-kernels")

	var kernels []*kernel
	for _, name := range s.kernels {
		k, err := prepareKernel(ctx, cache, name, s.refresh)
		if err != nil {
			return err
		}
		kernels = append(kernels, k)
	}
	results, err := testAll(ctx, out, s, kernels, programs)
	if err != nil {
		return err
	}
	return summarize(out, results, len(s.kernels) == len(matrix()))
}

// testAll runs each program on each kernel, s.jobs machines at a time. What one
// has to say comes in one piece when it has ended, or at once where there is one
// at a time.
func testAll(ctx context.Context, out io.Writer, s *settings, kernels []*kernel, programs []program) ([]*result, error) {
	results := make([]*result, len(kernels)*len(programs))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(s.jobs)
	var printing sync.Mutex
	// Those of one program side by side: the longest come first.
	for i, p := range programs {
		for j, k := range kernels {
			group.Go(func() error {
				said := &bytes.Buffer{}
				to := io.Writer(said)
				if s.jobs == 1 {
					to = out
				}
				fmt.Fprintf(to, "=== %s on Linux %s\n", p.path, k.release)
				r, err := test(ctx, to, s, k, p)
				if err != nil {
					return fmt.Errorf("test %s on Linux %s: %w", p.path, k.name, err)
				}
				fmt.Fprintln(to, r.line())
				results[j*len(programs)+i] = r
				printing.Lock()
				defer printing.Unlock()
				_, err = out.Write(said.Bytes())
				return err
			})
		}
	}
	return results, group.Wait()
}

// program is the test binary of one package.
type program struct {
	path   string // of the package, relative to the module root
	binary string // absolute
	files  []string
	root   string // of the module
}

// build compiles the tests of every package. Files that a machine gets are the
// binary, the package's testdata and what -with names.
func build(ctx context.Context, s *settings) ([]program, error) {
	list := exec.CommandContext(ctx, "go", append([]string{"list", "-f", "{{.Module.Dir}}\t{{.Dir}}"}, s.packages...)...)
	list.Stderr = os.Stderr
	lines, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("list packages: %w", err)
	}
	var programs []program
	for line := range strings.Lines(string(lines)) {
		root, dir, _ := strings.Cut(strings.TrimSpace(line), "\t")
		path, err := filepath.Rel(root, dir)
		if err != nil {
			return nil, err
		}
		p := program{path: path, root: root, binary: filepath.Join(root, "bin/kernels", path, filepath.Base(path)+".test")}
		if err := os.RemoveAll(filepath.Dir(p.binary)); err != nil {
			return nil, err
		}
		compile := exec.CommandContext(ctx, "go", "test", "-c", "-ldflags=-s -w", "-tags", s.tags, "-o", p.binary, ".")
		compile.Dir = dir
		compile.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := compile.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build tests of %s: %w\n%s", path, err, text)
		}
		if _, err := os.Stat(p.binary); err != nil {
			return nil, fmt.Errorf("package %s has no tests", path)
		}
		p.files = append(p.files, s.with...)
		if _, err := os.Stat(filepath.Join(dir, "testdata")); err == nil {
			p.files = append(p.files, filepath.Join(path, "testdata"))
		}
		programs = append(programs, p)
	}
	return programs, nil
}

// test runs p on k. A failing test is no error of test's.
func test(ctx context.Context, out io.Writer, s *settings, k *kernel, p program) (*result, error) {
	dir := filepath.Join(filepath.Dir(p.binary), k.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	m := machine{
		kernel: k, memory: s.memory, cpus: s.cpus,
		timeout: s.timeout + time.Minute, // the binary gives up first, and says where it stood
		initrd:  filepath.Join(dir, "initrd"), console: filepath.Join(dir, "console"), code: filepath.Join(dir, "code"),
	}
	job := job{
		dir: filepath.Join(moduleDir, p.path),
		env: []string{"TENDRIL_TEST_PRIVILEGED=1"},
		args: []string{
			"./" + filepath.Base(p.binary), "-test.v=test2json", "-test.timeout=" + s.timeout.String(),
			"-test.run=" + s.run, "-test.skip=" + s.skip,
		},
	}
	if err := writeImage(ctx, m.initrd, k, p, s.tools, job); err != nil {
		return nil, fmt.Errorf("make initramfs: %w", err)
	}
	defer func() { _ = os.Remove(m.initrd) }()

	log, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	convert := exec.CommandContext(ctx, "go", "tool", "test2json", "-t", "-p", p.path)
	convert.Dir, convert.Stderr = p.root, os.Stderr
	output, err := convert.StdinPipe()
	if err != nil {
		return nil, err
	}
	events, err := convert.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := convert.Start(); err != nil {
		return nil, err
	}
	started := time.Now()
	booted := make(chan error, 1)
	go func() {
		booted <- m.boot(ctx, io.MultiWriter(log, output))
		_ = output.Close() // ends test2json, and with it the events
	}()
	r := &result{kernel: k.name, pkg: p.path}
	if err := r.read(events, out, s.verbose); err != nil {
		return nil, err
	}
	if err := convert.Wait(); err != nil {
		return nil, fmt.Errorf("read test output: %w", err)
	}
	r.end(<-booted, time.Since(started))
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if r.died {
		messages, _ := os.ReadFile(m.console)
		fmt.Fprintf(out, "%s\n", messages)
	}
	return r, nil
}
