// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// What a shell makes of jobs comes back job by job, in whichever pieces it comes.
func TestOutputs(t *testing.T) {
	jobs := []job{
		{dir: "/", env: []string{"A=it's"}, args: []string{"sh", "-c", `echo "$A" and; printf 'no end'`}},
		{dir: "/", args: []string{"sh", "-c", "echo two; exit 3"}},
		{dir: "/not there", args: []string{"true"}},
		{dir: "/", args: []string{"true"}},
	}
	type ended struct{ Output, Err string }
	text, err := exec.CommandContext(t.Context(), "sh", "-c", string(jobsScript(jobs))).Output()
	if err != nil {
		t.Fatal(err)
	}
	dies := []byte("\x02ended 0\nhalf\x02en")
	for _, tt := range []struct {
		name string
		text []byte
		want []ended
	}{
		{"all end", text, []ended{{"it's and\nno end", ""}, {"two\n", "exit status 3"}, {"", "exit status 2"}, {"", ""}}},
		{"the machine dies", dies, []ended{{"", ""}, {"half", errDied.Error()}, {"", errDied.Error()}, {"", errDied.Error()}}},
	} {
		for name, pieces := range map[string]func(io.Reader) io.Reader{"one": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "halves": iotest.HalfReader} {
			t.Run(tt.name+" "+name, func(t *testing.T) {
				o := newOutputs(len(jobs))
				wrote := make(chan error, 1)
				go func() {
					_, err := io.Copy(struct{ io.Writer }{o}, pieces(bytes.NewReader(tt.text)))
					o.end(nil)
					wrote <- err
				}()
				var got []ended
				for i := range jobs {
					var e ended
					text := &bytes.Buffer{}
					if err := o.read(i)(t.Context(), text); err != nil {
						e.Err = err.Error()
					}
					e.Output = text.String()
					got = append(got, e)
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("jobs (-want +got):\n%s", diff)
				}
				if err := <-wrote; err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestOutputsNotUnderstood(t *testing.T) {
	for name, text := range map[string]string{
		"no verdict":         "\x02begun\n",
		"one more verdict":   "\x02ended 0\n\x02ended 0\n",
		"output after a job": "\x02ended 0\nmore",
	} {
		t.Run(name, func(t *testing.T) {
			o := newOutputs(1)
			go func() { _ = o.read(0)(t.Context(), io.Discard) }()
			if _, err := o.Write([]byte(text)); err == nil || errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("got %v, want an error that says so", err)
			}
			o.close()
		})
	}
}

func TestUntilFails(t *testing.T) {
	ctx, end := context.WithCancelCause(t.Context())
	o := newOutputs(1)
	go func() { _ = o.read(0)(t.Context(), io.Discard) }()
	w := untilFails{o, end}
	if n, err := w.Write([]byte("fine\n")); n != 5 || err != nil || ctx.Err() != nil {
		t.Errorf("wrote %d, %v; ended with %v", n, err, context.Cause(ctx))
	}
	_, err := w.Write([]byte("\x02begun\n"))
	if err == nil || !errors.Is(context.Cause(ctx), err) {
		t.Errorf("failed with %v; ended with %v", err, context.Cause(ctx))
	}
	o.close()
}
