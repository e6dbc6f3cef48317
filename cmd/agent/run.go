// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"strings"

	"github.com/tendril-net/tendril/internal/version"
)

const synopsis = `Usage:
  tendril-agent [--config FILE] [flags]           run the agent of this node
  tendril-agent cleanup [--force] [flags]         remove all that agents made on this node
  tendril-agent --version

Every key of the configuration file is a flag too; a flag wins.

Flags:
`

// run is the program.
func run(env environment, args []string) error {
	cleaning := len(args) > 0 && args[0] == "cleanup"
	if cleaning {
		args = args[1:]
	}
	flags := flag.NewFlagSet("tendril-agent", flag.ContinueOnError)
	flags.SetOutput(env.stderr)
	flags.Usage = func() {
		fmt.Fprint(env.stderr, synopsis)
		flags.PrintDefaults()
	}
	file := flags.String("config", "", "`file` with settings, in YAML")
	var showVersion, force bool
	if cleaning {
		flags.BoolVar(&force, "force", false, "clean up even though endpoints exist or the state file is damaged; their interfaces are removed")
	} else {
		flags.BoolVar(&showVersion, "version", false, "print the version and exit")
	}
	overrides := registerFlags(flags)
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	if showVersion {
		_, err := fmt.Fprintln(env.stdout, "tendril-agent", version.String())
		return err
	}
	cfg, err := loadConfig(*file, overrides)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(env.stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))
	if cleaning {
		return cleanup(env, cfg, log, force)
	}
	return serve(env, cfg, log)
}

// parseFlags keeps the flag package from printing what run's caller prints.
func parseFlags(flags *flag.FlagSet, args []string) error {
	usage, out := flags.Usage, flags.Output()
	flags.Usage = func() {}
	flags.SetOutput(discard{})
	err := flags.Parse(args)
	flags.SetOutput(out)
	switch {
	case errors.Is(err, flag.ErrHelp):
		usage()
		return err
	case err != nil:
		return &usageError{suggestFlag(flags, err)}
	case flags.NArg() > 0:
		return &usageError{fmt.Errorf("unknown argument %q", flags.Arg(0))}
	}
	return nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// suggestFlag adds the nearest flag to the error for one that is not known.
func suggestFlag(flags *flag.FlagSet, err error) error {
	_, name, found := strings.Cut(err.Error(), "flag provided but not defined: -")
	if !found {
		return err
	}
	var known []string
	flags.VisitAll(func(f *flag.Flag) { known = append(known, f.Name) })
	if near := nearest(name, known); near != "" {
		return fmt.Errorf("unknown flag --%s; did you mean --%s?", name, near)
	}
	return fmt.Errorf("unknown flag --%s", name)
}
