// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

// delegate is the IPAM plugin that ipam.type names, to be run as section 4 of
// the specification says: with the same environment and configuration.
type delegate struct {
	name    string
	binary  string
	environ []string
	config  []byte
	// version of the configuration, which a result may leave out.
	version string
	stderr  io.Writer
}

// delegate finds the IPAM plugin in CNI_PATH.
func (p *plugin) delegate() (*delegate, error) {
	d := &delegate{name: p.config.ipamType, config: p.stdinText, version: p.config.version, stderr: p.stderr}
	d.environ = slices.DeleteFunc(slices.Clone(p.environ), func(pair string) bool {
		return strings.HasPrefix(pair, "CNI_COMMAND=")
	})
	for _, dir := range filepath.SplitList(p.call.path) {
		if dir == "" {
			continue
		}
		path := filepath.Join(dir, d.name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			d.binary = path
			return d, nil
		}
	}
	return nil, faultf(types.ErrInvalidEnvironmentVariables, "CNI_PATH: there is no plugin %q, the ipam.type, in %q", d.name, p.call.path)
}

// add runs ADD and returns the addresses, routes and DNS settings.
func (d *delegate) add(ctx context.Context) (*current.Result, error) {
	out, err := d.output(ctx, "ADD")
	if err != nil {
		return nil, err
	}
	return d.result(out)
}

// result reads what the plugin printed for ADD.
func (d *delegate) result(out []byte) (*current.Result, error) {
	// Plugins older than 1.0.0 need not say their result's version.
	var fields map[string]json.RawMessage
	err := json.Unmarshal(out, &fields)
	if err == nil && fields == nil {
		err = errors.New("null")
	}
	// What is no list, the library refuses.
	if item := nullIn(object{fields: fields, faults: &faults{}}); item != "" {
		err = fmt.Errorf("%s is null", item)
	}
	if err == nil {
		if version, ok := fields["cniVersion"]; !ok || empty(version) {
			fields["cniVersion"], _ = json.Marshal(d.version) // a string
			out, err = json.Marshal(fields)
		}
	}
	var result types.Result
	if err == nil {
		result, err = create.CreateFromBytes(out)
	}
	var converted *current.Result
	if err == nil {
		converted, err = current.GetResult(result)
	}
	if err != nil {
		return nil, faultf(types.ErrDecodingFailure, "ipam %s: decode result %q: %v", d.name, clip(out), unwrapped(err))
	}
	return converted, nil
}

// run runs a command that has no result.
func (d *delegate) run(ctx context.Context, command string) error {
	_, err := d.output(ctx, command)
	return err
}

// maxPrinted bounds, in bytes, what a plugin prints on stdout, and the same for stderr. A result
// has a few hundred, one with 5,000 routes half of this; the runtime keeps all of stderr in memory.
const maxPrinted = 1 << 20

// printedGrace is how long a process that the plugin has left behind may keep its stdout or stderr
// open after it ended. What the plugin itself has printed is in the pipe by then.
const printedGrace = 2 * time.Second

func (d *delegate) output(ctx context.Context, command string) ([]byte, error) {
	ctx, kill := context.WithCancelCause(ctx)
	defer kill(nil)
	var out bytes.Buffer
	process := exec.CommandContext(ctx, d.binary)
	process.Env = append(slices.Clone(d.environ), "CNI_COMMAND="+command)
	process.Stdin = bytes.NewReader(d.config)
	process.Stdout = &bounded{name: "stdout", to: &out, kill: kill}
	process.Stderr = &bounded{name: "stderr", to: d.stderr, kill: kill}
	process.WaitDelay = printedGrace
	err := process.Run()
	var excess *excessError
	switch {
	case errors.As(context.Cause(ctx), &excess):
		return nil, faultf(types.ErrIOFailure, "ipam %s: %s: %v", d.name, command, excess)
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return out.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("ipam %s: %s: %w", d.name, command, ctx.Err())
	case errors.Is(err, unix.ETXTBSY):
		return nil, faultf(types.ErrTryAgainLater, "ipam %s: %s is being written", d.name, d.binary)
	}
	answer := &types.Error{}
	if json.Unmarshal(out.Bytes(), answer) == nil && answer.Msg != "" {
		answer.Msg = fmt.Sprintf("ipam %s: %s: %s", d.name, command, answer.Msg)
		return nil, answer
	}
	return nil, faultf(types.ErrInternal, "ipam %s: %s: %v, and it said %q", d.name, command, err, clip(bytes.TrimSpace(out.Bytes())))
}

// bounded passes on what a plugin prints, and has it killed when that is more than maxPrinted.
type bounded struct {
	name    string
	to      io.Writer
	printed int
	kill    context.CancelCauseFunc
}

// Write does not mind when nobody reads the diagnostics any more: the command goes on without.
func (b *bounded) Write(text []byte) (int, error) {
	if len(text) > maxPrinted-b.printed {
		err := &excessError{stream: b.name}
		b.kill(err)
		return 0, err
	}
	b.printed += len(text)
	_, _ = b.to.Write(text)
	return len(text), nil
}

// excessError says that a plugin was killed for what it printed.
type excessError struct{ stream string }

func (e *excessError) Error() string {
	return fmt.Sprintf("killed, because it printed more than %d bytes on %s", maxPrinted, e.stream)
}
