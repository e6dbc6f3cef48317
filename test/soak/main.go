// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	var err error
	// The process starts itself inside its namespaces.
	if len(os.Args) > 1 && os.Args[1] == modeInside {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		context.AfterFunc(ctx, stop) // a second signal ends the process
		err = run(ctx, os.Stdout, os.Stderr, os.Args[2:])
		stop()
	} else {
		err = enter(os.Stderr, os.Args[1:])
	}
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "soak: %v\n", err)
		os.Exit(1)
	}
}

const modeInside = "+inside"

// settings are the command line.
type settings struct {
	// length of the load, without preparation and judgement.
	length time.Duration
	seed   uint64
	// endpoints bounds the guests that there are at a time, streams are those of TCP
	// that must last.
	endpoints, streams int
	// rate is that of questions, in 1/s.
	rate float64
	// bin is a folder of binaries.
	bin string
}

func parse(args []string, stderr io.Writer) (*settings, error) {
	s := &settings{}
	f := flag.NewFlagSet("soak", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.DurationVar(&s.length, "for", time.Hour, "how long the load lasts")
	f.Uint64Var(&s.seed, "seed", 0, "`number` from which random decisions follow; 0 takes any")
	f.IntVar(&s.endpoints, "endpoints", 20, "guests that there are at most")
	f.IntVar(&s.streams, "streams", 32, "streams of TCP that must last")
	f.Float64Var(&s.rate, "rate", 250, "questions in a second")
	f.StringVar(&s.bin, "bin", "bin", "`folder` of tendril-agent, tendril-cni and tendril")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unknown argument %q", f.Arg(0))
	}
	if s.length <= 0 || s.endpoints < 1 || s.streams < 1 || s.rate <= 0 {
		return nil, errors.New("for, endpoints, streams and rate must be positive")
	}
	var err error
	if s.bin, err = filepath.Abs(s.bin); err != nil {
		return nil, err
	}
	return s, nil
}

// random is a source of its own for whoever needs one.
func (s *settings) random(of uint64) *rand.Rand { return rand.New(rand.NewPCG(s.seed, of)) }

// run is the soak, inside of its namespaces.
func run(ctx context.Context, out, stderr io.Writer, args []string) (err error) {
	cfg, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if cfg.seed == 0 {
		cfg.seed = rand.Uint64()
	}
	fmt.Fprintf(out, "soak: for %v, seed %d\n", cfg.length, cfg.seed)
	inherited, err := furnish()
	if err != nil {
		return err
	}
	s := &soak{settings: cfg, inherited: inherited, out: out, root: &scope{}, ledger: newLedger(out), started: time.Now()}
	s.parties.all, s.parties.at = make(map[identity]*party), make(map[identity]*place)
	defer func() {
		s.root.close()
		err = errors.Join(err, s.root.err())
	}()
	if err := s.root.try(s.build); err != nil {
		return fmt.Errorf("build the site: %w%s", err, s.agentLog())
	}
	s.loadAndChange(ctx)
	if err := s.root.try(s.judge); err != nil {
		s.ledger.wrong("judgement", "it could not be completed: %v", err)
	}
	return s.report()
}
