// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	var err error
	// The process starts itself: inside its namespaces, and for each end of a
	// connection.
	switch mode, args := mode(os.Args[1:]); mode {
	case modeWorker:
		err = work(os.Stdout, args)
	case modeInside:
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		err = run(ctx, os.Stdout, os.Stderr, args)
		stop()
	default:
		err = enter(os.Stderr, args)
	}
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

const (
	modeInside = "+inside"
	modeWorker = "+worker"
)

func mode(args []string) (string, []string) {
	if len(args) > 0 && (args[0] == modeInside || args[0] == modeWorker) {
		return args[0], args[1:]
	}
	return "", args
}

// settings are the command line.
type settings struct {
	json bool
	only []string
	// traffic and against limit sections of traffic to some of it, and to some of
	// what tendril is compared with.
	traffic []string
	against []string
	rounds  int
	// window is how long one sample of traffic takes, after the warm-up.
	window time.Duration
	// repeat is how often a program runs for one sample.
	repeat int
	// calls is how many ADDs and DELs each plugin gets.
	calls     int
	endpoints int
	// ports is how many a node has mapped that has many.
	ports int
	// tendril and plugins are folders of binaries.
	tendril, plugins string
	// beside is a folder of other binaries of tendril, "" for none.
	beside string
	// hold waits before the end, for a look at what is there.
	hold bool
}

func parse(args []string, stderr io.Writer) (*settings, error) {
	s := &settings{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	quick := f.Bool("quick", false, "short windows and few rounds: a look, not a measurement")
	f.BoolVar(&s.json, "json", false, "print JSON instead of the table")
	only := f.String("only", strings.Join(sectionNames(), ","), "`sections` to run, separated by commas")
	kinds := f.String("traffic", strings.Join(trafficNames(), ","), "kinds of `traffic` to send, separated by commas")
	against := f.String("against", strings.Join(others(), ","), "`names` of what to compare with, separated by commas")
	f.IntVar(&s.rounds, "rounds", 21, "samples of each figure")
	f.DurationVar(&s.window, "window", 500*time.Millisecond, "length of a sample of traffic")
	f.IntVar(&s.repeat, "repeat", 1_000_000, "runs of a program for one sample")
	f.IntVar(&s.calls, "calls", 40, "ADDs and DELs of each plugin")
	f.IntVar(&s.endpoints, "endpoints", 1000, "endpoints of section memory")
	f.IntVar(&s.ports, "ports", 10_000, "mapped ports of section ports")
	f.StringVar(&s.tendril, "tendril", "bin", "`folder` of tendril-agent and tendril-cni")
	f.StringVar(&s.beside, "beside", "", "`folder` of another build of tendril, to compare with")
	f.StringVar(&s.plugins, "plugins", "/usr/lib/cni", "`folder` of the reference plugins")
	f.BoolVar(&s.hold, "hold", false, "wait for SIGINT before everything is removed")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unknown argument %q", f.Arg(0))
	}
	if *quick {
		s.rounds, s.window, s.calls = min(s.rounds, 7), min(s.window, 200*time.Millisecond), min(s.calls, 10)
	}
	if s.rounds < 1 || s.calls < 1 || s.repeat < 1 || s.endpoints < 1 || s.window <= 0 {
		return nil, errors.New("rounds, calls, repeat, endpoints and window must be positive")
	}
	if s.ports < 2 || s.ports > maxPorts {
		return nil, fmt.Errorf("ports must be between 2 and %d", maxPorts)
	}
	var err error
	if s.only, err = some(*only, sectionNames()); err != nil {
		return nil, fmt.Errorf("-only: %w", err)
	}
	if s.traffic, err = some(*kinds, trafficNames()); err != nil {
		return nil, fmt.Errorf("-traffic: %w", err)
	}
	if s.against, err = some(*against, others()); err != nil {
		return nil, fmt.Errorf("-against: %w", err)
	}
	for _, folder := range []*string{&s.tendril, &s.beside} {
		if *folder == "" {
			continue
		}
		if *folder, err = filepath.Abs(*folder); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// others are what tendril is compared with.
func others() []string {
	return []string{rawVeth, redirect, chain, ptp, bridge, nftRules, nftSet, iptables, limited, htb}
}

// some splits a list of names, each of which must be known.
func some(list string, known []string) ([]string, error) {
	names := strings.Split(list, ",")
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("unknown name %q: want some of %s", name, strings.Join(known, ", "))
		}
	}
	return names, nil
}

// section is one part of the benchmark.
type section struct {
	name string
	run  func(*bench, context.Context) error
}

func sections() []section {
	return []section{
		{"packet", (*bench).packet},
		{"same-node", (*bench).sameNode},
		{"masquerade", (*bench).masquerade},
		{"ports", (*bench).mappedPorts},
		{"policy", (*bench).firewall},
		{"bandwidth", (*bench).bandwidth},
		{"cni", (*bench).cni},
		{"memory", (*bench).memory},
	}
}

func sectionNames() []string {
	var names []string
	for _, s := range sections() {
		names = append(names, s.name)
	}
	return names
}

// bench is a run under way.
type bench struct {
	*settings
	log  io.Writer
	book book
	// candidates are there once a section needs them.
	candidates []*candidate
}

// run is the benchmark, inside of its namespaces.
func run(ctx context.Context, out, log io.Writer, args []string) (err error) {
	s, err := parse(args, log)
	if err != nil {
		return err
	}
	if err := furnish(); err != nil {
		return err
	}
	b := &bench{settings: s, log: log}
	defer func() { err = errors.Join(err, b.close()) }()
	for _, one := range sections() {
		if !slices.Contains(s.only, one.name) {
			continue
		}
		if err := one.run(b, ctx); err != nil {
			return fmt.Errorf("section %s: %w", one.name, err)
		}
	}
	if s.hold {
		fmt.Fprintf(log, "bench: holding; nsenter --all --target PID gets in, SIGINT ends it\n")
		<-ctx.Done()
	}
	report := b.book.report()
	if s.json {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(report)
	}
	return report.print(out)
}

// progress tells whoever waits what is under way.
func (b *bench) progress(format string, args ...any) {
	fmt.Fprintf(b.log, "bench: "+format+"\n", args...)
}
