// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// job is a command that a machine runs.
type job struct {
	dir  string
	env  []string // NAME=value
	args []string
}

// script is the job for sh.
func (j job) script() string {
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	line := "cd " + quote(j.dir) + " && exec env"
	for _, word := range append(j.env, j.args...) {
		line += " " + quote(word)
	}
	return line + "\n"
}

// A machine that runs jobs says after each how it ended, among their output: the byte STX,
// which no job prints, and what verdictFormat makes of its exit code.
const (
	verdictMark   = 0x02
	verdictFormat = `\002ended %d\n` // of printf(1)
)

var verdictLine = regexp.MustCompile(`^\x02ended ([0-9]{1,3})\n$`)

// jobsScript runs jobs one after the other, whether or not they fail.
func jobsScript(jobs []job) []byte {
	var text strings.Builder
	for _, j := range jobs {
		fmt.Fprintf(&text, "(\n%s)\nprintf '%s' $?\n", j.script(), verdictFormat)
	}
	return []byte(text.String())
}

// outputs takes the output of a machine apart into that of each of its jobs. What is written
// to it has to be read, job by job.
type outputs struct {
	readers []*io.PipeReader
	writers []*io.PipeWriter // of the jobs that have not ended
	held    []byte           // what may become a verdict
}

func newOutputs(jobs int) *outputs {
	o := &outputs{}
	for range jobs {
		r, w := io.Pipe()
		o.readers, o.writers = append(o.readers, r), append(o.writers, w)
	}
	return o
}

// Write fails when there is output after the last job, or nobody reads any more.
func (o *outputs) Write(text []byte) (int, error) {
	all := len(text)
	for len(text) > 0 {
		if o.held == nil {
			plain, _, found := bytes.Cut(text, []byte{verdictMark})
			if err := o.pass(plain); err != nil {
				return 0, err
			}
			if text = text[len(plain):]; !found {
				break
			}
		}
		line, _, found := bytes.Cut(text, []byte("\n"))
		if !found {
			o.held = append(o.held, text...)
			break
		}
		o.held, text = append(o.held, text[:len(line)+1]...), text[len(line)+1:]
		verdict := verdictLine.FindSubmatch(o.held)
		if verdict == nil || len(o.writers) == 0 {
			return 0, fmt.Errorf("the machine said %q", o.held)
		}
		o.held = nil
		var err error
		if code, _ := strconv.Atoi(string(verdict[1])); code != 0 {
			err = exitError(code)
		}
		o.endJob(err)
	}
	return all, nil
}

func (o *outputs) pass(text []byte) error {
	switch {
	case len(text) == 0:
		return nil
	case len(o.writers) == 0:
		return fmt.Errorf("the machine said after its last job: %q", text)
	}
	_, err := o.writers[0].Write(text)
	return err
}

func (o *outputs) endJob(err error) {
	_ = o.writers[0].CloseWithError(err) // nil is io.EOF
	o.writers = o.writers[1:]
}

// end says how the machine ended to those that read the jobs that had not.
func (o *outputs) end(err error) {
	if err == nil {
		err = errDied
	}
	for len(o.writers) > 0 {
		o.endJob(err)
	}
}

// close lets the machine's output go nowhere.
func (o *outputs) close() {
	for _, r := range o.readers {
		_ = r.Close()
	}
}

// read is a boot for the output of one job.
func (o *outputs) read(i int) boot {
	return func(_ context.Context, out io.Writer) error {
		_, err := io.Copy(out, o.readers[i])
		// Whoever writes must not wait for a reader that has gone.
		_ = o.readers[i].CloseWithError(err)
		return err
	}
}

// boot runs a job to its end, with its output going to out. It returns an exitError when the
// job failed, errDied when the machine stopped before.
type boot func(ctx context.Context, out io.Writer) error
