// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"
)

// Tests that are to catch faults: allTests those of files that have none of their own.
const (
	firewallTests = "TestPolicy$|TestPolicyMore|TestPolicyWays|TestPolicyRanges|TestIdentityTreeDepth|TestBridge|TestTrunk|TestLayer2"
	childTests    = "TestChild"
	limitTests    = "TestLimits$|TestLimitBridge|TestLimitPorts|TestPacer|TestChildLimit"
	allTests      = "TestPackets|TestServicesFull|TestScarcity|TestPorts|TestClientOfPortGone|TestChild$|TestChildInside|TestChildPorts|" + limitTests + "|" + firewallTests
)

// ownTests are the tests for files that have their own.
var ownTests = map[string]string{
	"from_host.c":  "TestSocketHooks$",
	"lib/frame.h":  "TestNonLinear",
	"reclaim.c":    "TestReclaim",
	"lib/policy.h": firewallTests, "lib/track.h": firewallTests,
	"to_parent.c": childTests, "from_parent.c": childTests, "lib/child.h": childTests, "lib/inside.h": childTests,
	"child_ingress.c": childTests, "child_egress.c": childTests, "master_ingress.c": childTests, "master_egress.c": childTests,
	"lib/bandwidth.h": limitTests, "limit_egress.c": limitTests, "pacer_out.c": limitTests, "pacer_in.c": limitTests,
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
	update := flags.Bool("update", false, "write to "+caughtFile+" which test caught each fault")
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
	dir, err := os.MkdirTemp("", "mutations-")
	if err != nil {
		return err
	}
	err = tryAll(ctx, out, dir, wanted, *update)
	return errors.Join(err, os.RemoveAll(dir))
}

// tryAll tries the faults that are wanted, as many at a time as there are
// processors, and prints what caught each.
func tryAll(ctx context.Context, out io.Writer, dir string, wanted *regexp.Regexp, update bool) error {
	b, err := newBench(ctx, dir)
	if err != nil {
		return err
	}
	last, err := readCaught(caughtFile)
	if err != nil {
		return err
	}
	caught := make(map[string]catch)
	var chosen []mutation
	for _, m := range mutations() {
		caught[m.name] = last[m.name]
		if wanted.MatchString(m.name) {
			chosen = append(chosen, m)
		}
	}
	if err := b.allPass(ctx, chosen, last); err != nil {
		return err
	}
	var (
		mu        sync.Mutex
		survivors []string
	)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for _, m := range chosen {
		group.Go(func() error {
			found, err := b.try(ctx, m, last[m.name])
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			mu.Lock()
			defer mu.Unlock()
			caught[m.name] = found
			if found.Test == "" {
				survivors = append(survivors, m.name)
			}
			fmt.Fprintf(out, "%-44s %s\n", m.name, cmp.Or(found.Test, "SURVIVED"))
			if update {
				return writeCaught(caughtFile, caught)
			}
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

// allPass sees that the tests that caught faults the last time pass without any: what fails
// then too proves nothing.
func (b *bench) allPass(ctx context.Context, chosen []mutation, last map[string]catch) error {
	var patterns []string
	for _, m := range chosen {
		if test := last[m.name].Test; test != "" {
			patterns = append(patterns, pattern(test))
		}
	}
	if patterns == nil {
		return nil
	}
	failure, err := b.firstFailure(ctx, nil, strings.Join(patterns, "|"))
	if err == nil && failure != "" {
		err = fmt.Errorf("%s fails without any fault", failure)
	}
	return err
}

// try returns what catches the fault, nothing if it survives. What did the last time, if
// anything, is tried before all programs are compiled and all tests run.
func (b *bench) try(ctx context.Context, m mutation, last catch) (catch, error) {
	dir, err := b.harm(m)
	if err != nil {
		return catch{}, err
	}
	if last.Test != "" {
		programs, err := b.compile(ctx, dir, m, last.Program)
		if err != nil {
			return catch{}, err
		}
		if failure, err := b.firstFailure(ctx, programs, pattern(last.Test)); failure != "" || err != nil {
			return last, err
		}
	}
	programs, err := b.compile(ctx, dir, m, "")
	if err != nil {
		return catch{}, err
	}
	first, err := b.firstFailure(ctx, programs, cmp.Or(ownTests[m.file], allTests))
	if first == "" || err != nil {
		return catch{}, err
	}
	test, err := b.narrow(ctx, programs, first)
	if err != nil || test == "" {
		return catch{}, cmp.Or(err, fmt.Errorf("%s fails, but not alone, or without a fault too", first))
	}
	program, err := b.decisive(ctx, programs, test)
	return catch{test, program}, err
}

// decisive returns the source of a program that has to have the fault for a test to fail, ""
// where one is not enough.
func (b *bench) decisive(ctx context.Context, programs map[string]string, test string) (string, error) {
	for _, source := range slices.Sorted(maps.Keys(programs)) {
		one := map[string]string{source: programs[source]}
		if failure, err := b.firstFailure(ctx, one, pattern(test)); failure != "" || err != nil {
			return source, err
		}
	}
	return "", nil
}

// narrow returns the innermost test around one that fails with the programs, and passes
// without a fault, when it is alone: some need those before them.
func (b *bench) narrow(ctx context.Context, programs map[string]string, test string) (string, error) {
	for ; test != ""; test = parent(test) {
		harmed, err := b.firstFailure(ctx, programs, pattern(test))
		if err != nil {
			return "", err
		}
		unharmed, err := b.firstFailure(ctx, nil, pattern(test))
		if err != nil {
			return "", err
		}
		if harmed != "" && unharmed == "" {
			return test, nil
		}
	}
	return "", nil
}
