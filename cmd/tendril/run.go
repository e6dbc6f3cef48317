// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"

	"github.com/tendril-net/tendril/internal/version"

	"github.com/tendril-net/tendril/pkg/api"
)

const synopsis = `tendril shows the container networking of this node.

Usage:
  tendril status      health, uplinks, address pools, maps and counters
  tendril endpoints   the interfaces of containers
  tendril flows       connections and what the datapath does with them
  tendril ports       ports of the host that lead to containers
  tendril version     versions of tendril and of the agent

Flags:
`

// call is one run of a command.
type call struct {
	environment
	client *api.Client
	json   bool // -o json
	limit  int  // of flows; 0 is the agent's default
}

// commands by name.
func commands() map[string]func(call) error {
	return map[string]func(call) error{
		"status":    status,
		"endpoints": endpoints,
		"flows":     flows,
		"ports":     ports,
		"version":   showVersion,
	}
}

// run is the program. Flags may stand before and behind the command.
func run(env environment, args []string) error {
	flags := flag.NewFlagSet("tendril", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	socket := flags.String("socket", api.DefaultSocket, "unix socket `path` of the agent")
	output := flags.String("o", "table", "output `format`: table or json")
	limit := flags.Int("limit", 0, "list at most `N` flows, up to 100000; 0 is the agent's default of 1000")
	parse := func(args []string) error {
		err := flags.Parse(args)
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(env.stdout, synopsis)
			flags.SetOutput(env.stdout)
			flags.PrintDefaults()
			return err
		}
		if err != nil {
			return &usageError{err.Error()}
		}
		return nil
	}
	if err := parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return &usageError{"no command given"}
	}
	name := flags.Arg(0)
	if name == "help" {
		return parse([]string{"-h"})
	}
	command, ok := commands()[name]
	if !ok {
		return &usageError{fmt.Sprintf("unknown command %q", name)}
	}
	if err := parse(flags.Args()[1:]); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return &usageError{fmt.Sprintf("unknown argument %q", flags.Arg(0))}
	case !slices.Contains([]string{"table", "json"}, *output):
		return &usageError{fmt.Sprintf("-o %q: neither table nor json", *output)}
	case *limit < 0 || *limit > api.MaxFlows:
		return &usageError{fmt.Sprintf("--limit %d: not a number from 1 to %d", *limit, api.MaxFlows)}
	}
	c := call{environment: env, client: api.NewClient(*socket), json: *output == "json", limit: *limit}
	defer c.client.Close()
	return command(c)
}

// printJSON is the output of -o json.
func (c call) printJSON(value any) error {
	encoder := json.NewEncoder(c.stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// versions is the output of `tendril version -o json`.
type versions struct {
	Tendril string `json:"tendril"`
	// Agent is empty when no agent answers.
	Agent string `json:"agent,omitempty"`
}

// showVersion does not need an agent.
func showVersion(c call) error {
	v := versions{Tendril: version.String()}
	if s, err := c.client.Status(c.ctx); err == nil {
		v.Agent = s.Version
	}
	if c.json {
		return c.printJSON(v)
	}
	text := "tendril " + v.Tendril + "\n"
	if v.Agent != "" {
		text += "tendril-agent " + v.Agent + "\n"
	}
	_, err := io.WriteString(c.stdout, text)
	return err
}
