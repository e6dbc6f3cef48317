// SPDX-License-Identifier: Apache-2.0

// Command tendril-agent owns the datapath, the leases and the endpoints of a
// node and serves them over a unix socket to tendril-cni and tendril. All it
// makes in the kernel outlives it; `tendril-agent cleanup` removes that.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// environment is what the program uses of its process.
type environment struct {
	ctx            context.Context // ends when the program is to stop
	stdout, stderr io.Writer
	getenv         func(string) string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // the second signal kills
	err := run(environment{ctx: ctx, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}, os.Args[1:])
	var usage *usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "tendril-agent: %v\nRun tendril-agent --help for the flags.\n", err)
		os.Exit(2)
	}
	fmt.Fprintf(os.Stderr, "tendril-agent: %v\n", err)
	os.Exit(1)
}

// usageError is an error of the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }
