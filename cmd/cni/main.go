// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"
)

// environment is all that the plugin has from outside.
type environment struct {
	ctx            context.Context
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	// environ is what a delegated plugin inherits.
	environ []string
}

func main() {
	// A runtime that gives up sends SIGTERM before SIGKILL, if anything: use
	// the time to undo.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	// When it has gone, and nobody reads stderr, the call is still to be brought to its end.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	env := environment{ctx: ctx, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv, environ: os.Environ()}
	if info, err := os.Stdin.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		env.stdin = bytes.NewReader(nil) // a person at a terminal, who has nothing to say
	}
	err := run(env, os.Args[1:])
	stop()
	if err != nil {
		os.Exit(1)
	}
}

// supported are the versions of the specification in which the plugin answers.
func supported() []string {
	return []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}
}

// run does one CNI operation. The error it returns is printed already, on
// stdout, as the specification wants it.
func run(env environment, args []string) error {
	if len(args) != 0 || env.getenv("CNI_COMMAND") == "" {
		return about(env, args)
	}
	err := operate(env)
	if err != nil {
		answer := cniError(err)
		text, _ := json.MarshalIndent(answer, "", "    ") // a struct of strings
		_, _ = fmt.Fprintf(env.stdout, "%s\n", text)
		return answer
	}
	return nil
}

// about answers a person who runs the plugin by hand.
func about(env environment, args []string) error {
	build := "unknown version"
	if info, ok := debug.ReadBuildInfo(); ok {
		build = info.Main.Version
	}
	_, _ = fmt.Fprintf(env.stderr, "tendril-cni %s: a CNI plugin; container runtimes run it with CNI_COMMAND set\n"+
		"CNI protocol versions supported: %s\n", build, strings.Join(supported(), ", "))
	if len(args) == 0 || slices.Contains([]string{"-h", "--help", "--version", "version"}, args[0]) {
		return nil
	}
	_, _ = fmt.Fprintf(env.stderr, "tendril-cni: unexpected argument %q\n", args[0])
	return faultf(types.ErrInvalidEnvironmentVariables, "unexpected argument %q", args[0])
}

// operation is one command of the specification.
type operation struct {
	// since is the first version that has the command.
	since string
	// strict refuses configuration that the others overlook: what ADD
	// refused, DEL must still be able to clean up after.
	strict bool
	// attachment says that the command is about one.
	attachment bool
	run        func(p *plugin) error
}

func operations() map[string]operation {
	return map[string]operation{
		"ADD":    {since: "0.1.0", strict: true, attachment: true, run: (*plugin).add},
		"CHECK":  {since: "0.4.0", strict: true, attachment: true, run: (*plugin).check},
		"DEL":    {since: "0.1.0", attachment: true, run: (*plugin).del},
		"GC":     {since: "1.1.0", run: (*plugin).gc},
		"STATUS": {since: "1.1.0", strict: true, run: (*plugin).status},
	}
}

// plugin is one call.
type plugin struct {
	environment
	call   call
	config config
	// stdinText is the configuration as it came, for delegated plugins.
	stdinText []byte
}

func operate(env environment) error {
	command := env.getenv("CNI_COMMAND")
	op, known := operations()[command]
	if !known && command != "VERSION" {
		return faultf(types.ErrInvalidEnvironmentVariables, "CNI_COMMAND: unknown command %q", command)
	}
	text, err := readConfig(env.stdin)
	if err != nil {
		return err
	}
	if command == "VERSION" {
		return printVersions(env.stdout, text)
	}
	if err := checkVersion(text, command, op.since); err != nil {
		return err
	}
	p := &plugin{environment: env, stdinText: text}
	if p.call, err = parseCall(env.getenv, command, op.attachment); err != nil {
		return err
	}
	if p.config, err = parseConfig(text, op.strict); err != nil {
		return err
	}
	if op.strict && !p.config.delegated() {
		if err := p.call.refuseUnknown(); err != nil {
			return err
		}
	}
	return op.run(p)
}

// maxConfig bounds the configuration; one with a prevResult has a few KiB, a
// GC on a large node 100 bytes for each attachment.
const maxConfig = 16 << 20

func readConfig(from io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(from, maxConfig+1))
	if err != nil {
		return nil, faultf(types.ErrIOFailure, "read configuration from stdin: %v", err)
	}
	if len(text) > maxConfig {
		return nil, faultf(types.ErrIOFailure, "read configuration from stdin: it is larger than %d bytes", maxConfig)
	}
	return text, nil
}

// printVersions answers VERSION. A runtime may give no configuration, then the
// newest version is named.
func printVersions(to io.Writer, text []byte) error {
	given, err := create.DecodeVersion(text)
	if err != nil || !slices.Contains(supported(), given) {
		given = version.Current()
	}
	err = json.NewEncoder(to).Encode(struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}{given, supported()})
	if err != nil {
		return faultf(types.ErrIOFailure, "write versions: %v", err)
	}
	return nil
}

func checkVersion(text []byte, command, since string) error {
	given, err := create.DecodeVersion(text)
	if err != nil {
		return faultf(types.ErrDecodingFailure, "decode configuration: %v", unwrapped(err))
	}
	if !slices.Contains(supported(), given) {
		return &types.Error{
			Code:    types.ErrIncompatibleCNIVersion,
			Msg:     fmt.Sprintf("cniVersion: %q is not supported", given),
			Details: "supported are " + strings.Join(supported(), ", "),
		}
	}
	if ok, err := version.GreaterThanOrEqualTo(given, since); err != nil || !ok {
		return faultf(types.ErrIncompatibleCNIVersion, "cniVersion: %s has no %s, which came with %s", given, command, since)
	}
	return nil
}
