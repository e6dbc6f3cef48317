// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
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
  tendril drops       flows that policy denies, and which policy
  tendril version     versions of tendril and of the agent

  tendril endpoints set-bandwidth CONTAINER [INTERFACE]
                      hold what a container gets or sends to a rate, from now on;
                      CONTAINER is the beginning of its ID

  tendril policy list [CONTAINER]        the policies, or what applies to containers
                                         whose ID begins so
  tendril policy apply -f FILE           keep the objects of a file; - is standard input
  tendril policy apply -f FILE --dry-run say what that would change
  tendril policy delete [-n NAMESPACE] NAME...

Flags:
`

// call is one run of a command.
type call struct {
	environment
	client *api.Client
	json   bool // -o json
	limit  int  // of flows; 0 is the agent's default
	// args are those behind the command.
	args []string
	// file and dryRun are of policy apply, namespace of policy delete.
	file      string
	dryRun    bool
	namespace string
	// bandwidth is what endpoints set-bandwidth is to change.
	bandwidth bandwidthFlags
}

// command is what can be called.
type command struct {
	run func(call) error
	// least and most are the numbers of arguments behind it.
	least, most int
	// what the first of them is; "" is a NAME.
	what string
	// flags are those that only some commands have.
	flags []string
}

// manyArguments is a number that nobody reaches.
const manyArguments = 1 << 20

// commands by name.
func commands() map[string]command {
	return map[string]command{
		"status":    {run: status},
		"endpoints": {run: endpoints},
		"flows":     {run: flows},
		"ports":     {run: ports},
		"drops":     {run: drops},
		"version":   {run: showVersion},
		"endpoints set-bandwidth": {
			run: setBandwidth, least: 1, most: 2, what: "CONTAINER",
			flags: []string{"ingress-rate", "ingress-burst", "egress-rate", "egress-burst"},
		},
		"policy list":   {run: policyList, most: 1},
		"policy apply":  {run: policyApply, flags: []string{"f", "dry-run"}},
		"policy delete": {run: policyDelete, least: 1, most: manyArguments, flags: []string{"n"}},
	}
}

// commandOf finds the command in the arguments, and what stands behind it.
func commandOf(args []string) (name string, c command, rest []string, err error) {
	if len(args) == 0 {
		return "", command{}, nil, &usageError{"no command given"}
	}
	all := commands()
	name, rest = args[0], args[1:]
	if name == "policy" {
		if len(rest) == 0 {
			return "", command{}, nil, &usageError{"policy: list, apply or delete?"}
		}
		name, rest = "policy "+rest[0], rest[1:]
	}
	if name == "endpoints" && len(rest) > 0 && rest[0] == "set-bandwidth" {
		name, rest = "endpoints set-bandwidth", rest[1:]
	}
	c, ok := all[name]
	if !ok {
		return "", command{}, nil, &usageError{fmt.Sprintf("unknown command %q", name)}
	}
	if len(rest) > c.most {
		return "", command{}, nil, &usageError{fmt.Sprintf("unknown argument %q", rest[c.most])}
	}
	if len(rest) < c.least {
		return "", command{}, nil, &usageError{fmt.Sprintf("%s: a %s is missing", name, cmp.Or(c.what, "NAME"))}
	}
	return name, c, rest, nil
}

// run is the program. Flags may stand before and behind the command.
func run(env environment, args []string) error {
	flags := flag.NewFlagSet("tendril", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	socket := flags.String("socket", api.DefaultSocket, "unix socket `path` of the agent")
	output := flags.String("o", "table", "output `format`: table or json")
	limit := flags.Int("limit", 0, "list at most `N` flows, up to 100000; 0 is the agent's default of 1000")
	file := flags.String("f", "", "`file` with the objects of policy apply; - is standard input")
	dryRun := flags.Bool("dry-run", false, "policy apply changes nothing and says what it would change")
	namespace := flags.String("n", "default", "`namespace` of policy delete")
	var bandwidth bandwidthFlags
	bandwidth.define(flags)
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
	var words []string // command and arguments, without the flags between them
	for {
		if err := parse(args); err != nil {
			return err
		}
		if flags.NArg() == 0 {
			break
		}
		words, args = append(words, flags.Arg(0)), flags.Args()[1:]
	}
	if len(words) > 0 && words[0] == "help" {
		return parse([]string{"-h"})
	}
	name, command, rest, err := commandOf(words)
	if err != nil {
		return err
	}
	var stray string
	flags.Visit(func(f *flag.Flag) {
		common := []string{"socket", "o", "limit"}
		if !slices.Contains(common, f.Name) && !slices.Contains(command.flags, f.Name) {
			stray = f.Name
		}
	})
	switch {
	case stray != "":
		return &usageError{fmt.Sprintf("-%s is no flag of %s", stray, name)}
	case !slices.Contains([]string{"table", "json"}, *output):
		return &usageError{fmt.Sprintf("-o %q: neither table nor json", *output)}
	case *limit < 0 || *limit > api.MaxFlows:
		return &usageError{fmt.Sprintf("--limit %d: not a number from 1 to %d", *limit, api.MaxFlows)}
	}
	c := call{
		environment: env, client: api.NewClient(*socket), json: *output == "json", limit: *limit,
		args: rest, file: *file, dryRun: *dryRun, namespace: *namespace, bandwidth: bandwidth,
	}
	defer c.client.Close()
	return command.run(c)
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
