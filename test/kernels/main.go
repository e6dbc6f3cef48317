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
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tendril-net/tendril/internal/nstest"
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
	setups   [][]string    // kernels of the machines that run together, in this order
	wire     bool          // two machines run together, on one wire
	vagrant  bool          // the machines are those of the Vagrantfile
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
	whole    bool // each kernel runs what is dealt to several otherwise
	refresh  bool
	packages []string
}

func parse(args []string, stderr io.Writer) (*settings, error) {
	s := &settings{tools: []string{"dash", "ip", "tc", "nsenter", "ping"}}
	var kernels string
	f := flag.NewFlagSet("kernels", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&kernels, "kernel", "", "kernels to boot, separated by commas, with -wire pairs as in 5.10+7 (default all)")
	f.BoolVar(&s.wire, "wire", false, "boot two machines at a time, of different kernels, with a wire between them")
	f.BoolVar(&s.vagrant, "vagrant", false, "run in the machines of the Vagrantfile")
	f.Func("tool", "take `program` along, with its libraries, to /usr/bin or, of a path, there (repeatable, besides "+strings.Join(s.tools, ", ")+")",
		func(v string) error { s.tools = append(s.tools, v); return nil })
	f.Func("with", "take the file or folder at `path` of the module along (repeatable)",
		func(v string) error { s.with = append(s.with, v); return nil })
	f.StringVar(&s.tags, "tags", "", "build tags")
	f.StringVar(&s.run, "run", "", "run only the tests that match")
	f.StringVar(&s.skip, "skip", "", "leave out the tests that match")
	f.DurationVar(&s.timeout, "timeout", 30*time.Minute, "limit for one package on one kernel")
	f.IntVar(&s.memory, "memory", 2048, "memory of the machine in MiB")
	f.IntVar(&s.cpus, "cpus", 2, "processors of the machine")
	f.IntVar(&s.jobs, "jobs", runtime.NumCPU(), "machines at a time: more than processors take from each other what is cached")
	f.BoolVar(&s.verbose, "v", false, "print all output of all tests as it comes")
	f.BoolVar(&s.whole, "whole", false, "run on each kernel what takes long, too, and is left to some of them otherwise")
	f.BoolVar(&s.refresh, "refresh", false, "fetch the kernels anew")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	var err error
	if s.setups, err = setups(kernels, s.wire); err != nil {
		return nil, err
	}
	s.packages = f.Args()
	if s.wire && s.vagrant {
		return nil, errors.New("-wire and -vagrant: the machines of the Vagrantfile have no wire")
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
	kernels, err := prepare(ctx, s)
	if err != nil {
		return err
	}
	results, err := testAll(ctx, out, s, kernels, programs)
	if err != nil {
		return err
	}
	return summarize(out, results, len(kernels) == len(matrix()))
}

// prepare gets the kernels of all setups ready, by name.
func prepare(ctx context.Context, s *settings) (map[string]*kernel, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find cache: %w", err)
	}
	cache = filepath.Join(cache, "tendril-kernels")
	kernels := make(map[string]*kernel)
	for _, name := range slices.Concat(s.setups...) {
		if kernels[name] != nil {
			continue
		}
		if s.vagrant {
			kernels[name], err = vagrantUp(ctx, cache, name)
		} else {
			kernels[name], err = prepareKernel(ctx, cache, name, s.refresh)
		}
		if err != nil {
			return nil, err
		}
	}
	return kernels, nil
}

// testAll runs the programs in each setup, s.jobs machines at a time. What a setup
// has to say comes in one piece when it has ended, or at once where there is one
// machine at a time.
func testAll(ctx context.Context, out io.Writer, s *settings, kernels map[string]*kernel, programs []program) ([]*result, error) {
	results := make([][]*result, len(s.setups))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(1, s.jobs/len(s.setups[0])))
	var printing sync.Mutex
	// The newest first: it has the most to do, and would be left alone at the end.
	for i, setup := range slices.Backward(s.setups) {
		group.Go(func() error {
			said := &bytes.Buffer{}
			to := io.Writer(said)
			if s.jobs == 1 && !s.wire {
				to = out
			}
			found, err := testSetup(ctx, to, s, seats(setup, kernels), programs)
			if err != nil {
				return err
			}
			results[i] = found
			printing.Lock()
			defer printing.Unlock()
			_, err = out.Write(said.Bytes())
			return err
		})
	}
	err := group.Wait()
	return slices.Concat(results...), err
}

// program is the test binary of one package.
type program struct {
	path   string // of the package, relative to the module root
	binary string // absolute
	// testdata is the package's, relative to the module root, "" where it has none.
	testdata string
	root     string // of the module
}

// build compiles the tests of every package.
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
		if _, err := os.Stat(filepath.Join(dir, "testdata")); err == nil {
			p.testdata = filepath.Join(path, "testdata")
		}
		programs = append(programs, p)
	}
	return programs, nil
}

// job runs a program at a seat.
func (p program) job(s *settings, at seat) job {
	j := job{
		dir: path.Join(moduleDir, p.path),
		// There is memory enough to collect garbage seldom, which is a quarter of what tests cost here.
		env: []string{"TENDRIL_TEST_PRIVILEGED=1", "GOGC=800"},
		args: []string{
			"./" + filepath.Base(p.binary), "-test.v=test2json", "-test.timeout=" + s.timeout.String(),
			"-test.run=" + s.run, "-test.skip=" + s.skip,
		},
	}
	if s.whole {
		j.env = append(j.env, nstest.Whole+"=1")
	}
	if at.port != nil {
		j.env = append(j.env, "TENDRIL_TEST_WIRE="+at.port.role)
	}
	return j
}

// test runs the programs at a seat, one after the other. A failing test is no error of test's.
func test(ctx context.Context, out io.Writer, s *settings, at seat, programs []program) ([]*result, error) {
	// A binary gives up first, and says where it stood.
	limit := s.timeout + time.Minute
	var jobs []job
	for _, p := range programs {
		jobs = append(jobs, p.job(s, at))
	}
	boots := make([]boot, len(programs))
	console := ""
	if s.vagrant {
		for i, p := range programs {
			boots[i] = remote{at.kernel, p, jobs[i], limit}.run
		}
	} else {
		dir := filepath.Join(programs[0].root, "bin/kernels/machines", at.title())
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		m := machine{
			kernel: at.kernel, memory: s.memory, cpus: s.cpus, timeout: limit * time.Duration(len(programs)), port: at.port,
			initrd: filepath.Join(dir, "initrd"), console: filepath.Join(dir, "console"),
		}
		console = m.console
		if err := writeImage(ctx, m.initrd, at.kernel, programs, s, jobsScript(jobs)); err != nil {
			return nil, fmt.Errorf("make initramfs: %w", err)
		}
		defer func() { _ = os.Remove(m.initrd) }()
		said := newOutputs(len(programs))
		for i := range programs {
			boots[i] = said.read(i)
		}
		limited, cancel := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			said.end(m.boot(limited, said))
		}()
		defer func() {
			cancel()
			said.close()
			<-ended
		}()
	}
	var results []*result
	for i, p := range programs {
		fmt.Fprintf(out, "=== %s on Linux %s\n", p.path, at.release)
		r := &result{kernel: at.title(), pkg: p.path}
		if err := r.take(ctx, out, s.verbose, p, boots[i]); err != nil {
			return nil, fmt.Errorf("test %s on Linux %s: %w", p.path, at.name, err)
		}
		if r.died && (i == 0 || !results[i-1].died) {
			messages, _ := os.ReadFile(console)
			fmt.Fprintf(out, "%s\n", messages)
		}
		fmt.Fprintln(out, r.line())
		results = append(results, r)
	}
	return results, nil
}

// take takes in how p goes.
func (r *result) take(ctx context.Context, out io.Writer, verbose bool, p program, run boot) error {
	dir := filepath.Join(filepath.Dir(p.binary), r.kernel)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	convert := exec.CommandContext(ctx, "go", "tool", "test2json", "-t", "-p", p.path)
	convert.Dir, convert.Stderr = p.root, os.Stderr
	output, err := convert.StdinPipe()
	if err != nil {
		return err
	}
	events, err := convert.StdoutPipe()
	if err != nil {
		return err
	}
	if err := convert.Start(); err != nil {
		return err
	}
	started := time.Now()
	ran := make(chan error, 1)
	go func() {
		ran <- run(ctx, io.MultiWriter(log, output))
		_ = output.Close() // ends test2json, and with it the events
	}()
	if err := r.read(events, out, verbose); err != nil {
		return err
	}
	if err := convert.Wait(); err != nil {
		return fmt.Errorf("read test output: %w", err)
	}
	r.end(<-ran, time.Since(started))
	return ctx.Err()
}
