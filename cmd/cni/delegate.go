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

// maxPrinted bounds, in bytes, what is taken of a plugin's stdout, and the same for stderr: a result
// has a few hundred, one with 5,000 routes half of this. Without a bound it would be the memory of
// the runtime, which keeps all that we print.
const maxPrinted = 1 << 20

// printedGrace is how long a process that the plugin has left behind may keep its stdout or stderr
// open after it ended. What the plugin itself has printed is in the pipe by then.
const printedGrace = 2 * time.Second

func (d *delegate) output(ctx context.Context, command string) ([]byte, error) {
	ctx, kill := context.WithCancelCause(ctx)
	defer kill(nil)
	result := &bounded{kill: kill}
	var diagnostics bounded
	process := exec.CommandContext(ctx, d.binary)
	process.Env = append(slices.Clone(d.environ), "CNI_COMMAND="+command)
	process.Stdin = bytes.NewReader(d.config)
	process.Stdout, process.Stderr = result, &diagnostics
	process.WaitDelay = printedGrace
	// A lease must not be taken by what the plugin has started after the DEL that undoes it.
	process.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	process.Cancel = func() error {
		err := unix.Kill(-process.Process.Pid, unix.SIGKILL)
		if errors.Is(err, unix.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
	err := process.Run()
	d.pass(&diagnostics)
	out := result.text.Bytes()
	switch {
	case result.dropped > 0:
		return nil, faultf(types.ErrIOFailure, "ipam %s: %s: killed, because it printed more than %d bytes on stdout", d.name, command, maxPrinted)
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return out, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("ipam %s: %s: %w", d.name, command, ctx.Err())
	case errors.Is(err, unix.ETXTBSY):
		return nil, faultf(types.ErrTryAgainLater, "ipam %s: %s is being written", d.name, d.binary)
	}
	return nil, d.refusal(command, out, err)
}

// refusal is what a plugin that ended with err has printed: an error as section 5 of the specification
// has it, which keeps its code and details, or anything else.
func (d *delegate) refusal(command string, out []byte, err error) *types.Error {
	answer := &types.Error{}
	if json.Unmarshal(out, answer) == nil && answer.Msg != "" {
		answer.Msg = fmt.Sprintf("ipam %s: %s: %s", d.name, command, answer.Msg)
		return answer
	}
	return faultf(types.ErrInternal, "ipam %s: %s: %v, and it said %q", d.name, command, err, clip(bytes.TrimSpace(out)))
}

// pass prints what a plugin has said on stderr. Whoever does not read it any more does not mind.
func (d *delegate) pass(said *bounded) {
	_, _ = d.stderr.Write(said.text.Bytes())
	if said.dropped > 0 {
		_, _ = fmt.Fprintf(d.stderr, "\nipam %s: %d bytes more\n", d.name, said.dropped)
	}
}

// bounded takes what a plugin prints up to maxPrinted. Of more it drops the rest, and ends the plugin
// where it has kill.
type bounded struct {
	text    bytes.Buffer
	dropped int
	kill    context.CancelCauseFunc
}

func (b *bounded) Write(text []byte) (int, error) {
	room := min(len(text), maxPrinted-b.text.Len())
	b.text.Write(text[:room])
	if room < len(text) {
		b.dropped += len(text) - room
		if b.kill != nil {
			b.kill(nil)
		}
	}
	return len(text), nil
}
