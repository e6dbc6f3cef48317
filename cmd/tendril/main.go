// SPDX-License-Identifier: Apache-2.0

// Command tendril shows what the agent of a node knows: its status, its
// endpoints, the flows of its datapath, the ports that lead to containers, the
// policies and what they deny. It applies and deletes policies.
//
// It exits with 0 when all is well, 1 when something is not, 2 when it was
// called wrongly and 3 when no agent answers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/api"
)

// environment is what the program uses of its process.
type environment struct {
	ctx            context.Context
	stdin          io.Reader
	stdout, stderr io.Writer
	now            func() time.Time
}

// Exit codes.
const (
	exitError       = 1
	exitUsage       = 2
	exitUnavailable = 3
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	env := environment{ctx: ctx, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, now: time.Now}
	os.Exit(exitCode(env, run(env, os.Args[1:])))
}

// exitCode reports an error and returns the code that stands for it.
func exitCode(env environment, err error) int {
	var usage *usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(env.stderr, "tendril: %v\nRun tendril --help for the commands and flags.\n", err)
		return exitUsage
	case errors.Is(err, fs.ErrPermission):
		fmt.Fprintf(env.stderr, "tendril: %v\nOnly root may talk to the agent: try again with sudo.\n", err)
		return exitUnavailable
	case errors.Is(err, api.ErrUnavailable):
		fmt.Fprintf(env.stderr, "tendril: %v\nIs tendril-agent running (systemctl status tendril-agent)? "+
			"Does it listen elsewhere (--socket)?\n", err)
		return exitUnavailable
	}
	fmt.Fprintf(env.stderr, "tendril: %v\n", err)
	return exitError
}

// usageError is an error of the command line.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }
