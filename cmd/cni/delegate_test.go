// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/tendril-net/tendril/pkg/api"
)

// An IPAM plugin may print a MiB of a result, and not a byte more; of its diagnostics as much is passed on.
// Nothing of the run is left.
func TestBoundOfDelegate(t *testing.T) {
	type outcome struct {
		Out, Diagnostics int
		Err              string
	}
	const printed = 1 << 20
	for _, tt := range []struct {
		name        string
		out, errors int
		want        outcome
	}{
		{name: "both at the bound", out: printed, errors: printed, want: outcome{Out: printed, Diagnostics: printed}},
		{name: "stdout", out: printed + 1, want: outcome{Err: "ipam theirs: ADD: killed, because it printed more than 1048576 bytes on stdout"}},
		{name: "stderr", errors: printed + 7, want: outcome{Diagnostics: printed + len("\nipam theirs: 7 bytes more\n")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			script := fmt.Sprintf("#!/bin/sh\nhead -c %d /dev/zero\nhead -c %d /dev/zero >&2\n", tt.out, tt.errors)
			binary := filepath.Join(t.TempDir(), "theirs")
			if err := os.WriteFile(binary, []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			var diagnostics bytes.Buffer
			d := &delegate{name: "theirs", binary: binary, environ: os.Environ(), stderr: &diagnostics}
			out, err := d.output(t.Context(), "ADD")
			got := outcome{Out: len(out)}
			if err != nil {
				got.Err = err.Error()
			} else {
				got.Diagnostics = diagnostics.Len()
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A runtime that has gone reads no diagnostics. A DEL without an agent has some, before it leaves its note.
func TestDelOutlivesRuntime(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "agent.sock")
	config := filepath.Join(dir, "net.json")
	text := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"pods","socket":%q,"ipam":{"type":"tendril"}}`, socket)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	stdin, err := os.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close() }()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = write.Close() }()
	if err := read.Close(); err != nil {
		t.Fatal(err)
	}
	process := exec.CommandContext(t.Context(), "tendril-cni")
	process.Env = append(os.Environ(), "CNI_COMMAND=DEL", "CNI_CONTAINERID=nobody", "CNI_IFNAME=eth0")
	process.Stdin, process.Stderr = stdin, write
	if out, err := process.Output(); err != nil {
		t.Errorf("DEL: %v, and it said %q", err, out)
	}
	ended, err := api.EndedBeside(socket).Ended()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]api.Attachment{{ContainerID: "nobody", IfName: "eth0"}}, slices.Collect(maps.Keys(ended))); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
}

// What an IPAM plugin prints is refused where it is no result, and an item of it that is null is named.
func TestResultOfDelegate(t *testing.T) {
	d := &delegate{name: "theirs", version: "0.4.0"}
	for out, want := range map[string]string{
		``:                                       `ipam theirs: decode result "": unexpected end of JSON input`,
		`null`:                                   `ipam theirs: decode result "null": null`,
		`{"cniVersion": "1.0.0", "ips": [null]}`: `ipam theirs: decode result "{\"cniVersion\": \"1.0.0\", \"ips\": [null]}": ips[0] is null`,
		`{"ips": [{"version": "4", "address": "10.0.0.1/8"}, null]}`:                    `ipam theirs: decode result "{\"ips\": [{\"version\": \"4\", \"address\": \"10.0.0.1/8\"}, null]}": ips[1] is null`,
		`{"ips": [{"version": "4", "address": "10.0.0.1/8"}], "routes": [null]}`:        `ipam theirs: decode result "{\"ips\": [{\"version\": \"4\", \"address\": \"10.0.0.1/8\"}], \"routes\": [null]}": routes[0] is null`,
		`{"ips": [{"version": "4", "address": "10.0.0.1/8"}], "interfaces": [null]}`:    `ipam theirs: decode result "{\"ips\": [{\"version\": \"4\", \"address\": \"10.0.0.1/8\"}], \"interfaces\": [null]}": interfaces[0] is null`,
		`{"cniVersion": "0.2.0", "ip4": null}`:                                          ``,
		`{"ips": [{"version": "4", "address": "10.0.0.1/8", "gateway": "10.0.0.254"}]}`: ``,
	} {
		result, err := d.result([]byte(out))
		got := ""
		if err != nil {
			got = err.Error()
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", out, diff)
		}
		if (err == nil) == (result == nil) {
			t.Errorf("%s: result %v with error %v", out, result, err)
		}
	}
}

// FuzzResultOfDelegate holds for all that an IPAM plugin may print: no panic, neither there nor in what reads
// the result; a refusal has a message and is of the code that the specification has for it.
func FuzzResultOfDelegate(f *testing.F) {
	for _, seed := range []string{
		`{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.1/8","gateway":"::1","interface":7}],"routes":[{"dst":"::/0","gw":"10.0.0.1","mtu":-1,"table":1}]}`,
		`{"ips":[{"version":"6","address":"fd00::1/64"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":[""]}}`,
		`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.1/8","routes":[{"dst":"0.0.0.0/0"}]},"ip6":null}`,
		`{"ips":[null],"routes":[null],"interfaces":[null]}`, `{"cniVersion":7}`, `{"ips":{}}`, `[]`, `null`, ``,
	} {
		f.Add([]byte(seed), "0.4.0")
		f.Add([]byte(seed), "1.1.0")
	}
	f.Fuzz(func(t *testing.T, out []byte, version string) {
		d := &delegate{name: "theirs", version: version}
		result, err := d.result(out)
		if err != nil {
			if answer := cniError(err); answer.Msg == "" || answer.Code != types.ErrDecodingFailure {
				t.Errorf("an error without message or of another code: %+v", answer)
			}
			return
		}
		for _, ip := range result.IPs {
			_ = prefixOf(ip.Address)
		}
		_ = ipamRoutes(result)
		for _, version := range supported() {
			if _, err := result.GetAsVersion(version); err != nil {
				t.Errorf("convert to %s: %v", version, err)
			}
		}
		if _, err := json.Marshal(result); err != nil {
			t.Errorf("print: %v", err)
		}
	})
}

// FuzzRefusalOfDelegate has an IPAM plugin fail, and print anything. What is printed of that can be read again, is
// of one line, and says who failed at what. An error of the specification keeps its code and details; anything else
// is quoted.
func FuzzRefusalOfDelegate(f *testing.F) {
	for _, out := range []string{
		`{"cniVersion":"1.1.0","code":11,"msg":"no address is free","details":"of 10.0.0.0/8"}`,
		`{"code":0,"msg":"x"}`, `{"code":-1,"msg":"x"}`, `{"code":"7","msg":"x"}`, `{"code":1e3,"msg":"x"}`, `{"code":7,"msg":""}`,
		`{"code":7,"msg":"a\nb","details":"c\nd"}`, `{"msg":null}`, `{"MSG":"x"}`, `{"code":7,"msg":"x"} more`, `[]`, `null`, "a\nb\x00\xff", ``,
	} {
		f.Add([]byte(out), uint(7), "no address\nis free", "of 10.0.0.0/8")
	}
	f.Add([]byte("{"), uint(0), "\xff", "")
	f.Add(bytes.Repeat([]byte("no "), 100), uint(0), "", "")
	f.Fuzz(func(t *testing.T, out []byte, code uint, msg, details string) {
		const began = "ipam theirs: ADD: "
		d := &delegate{name: "theirs"}
		check := func(out []byte, said types.Error) {
			t.Helper()
			want := types.Error{Code: types.ErrInternal, Msg: began + fmt.Sprintf("exit status 1, and it said %q", clip(bytes.TrimSpace(out)))}
			if said.Msg != "" {
				want = types.Error{Code: said.Code, Msg: began + strings.ReplaceAll(said.Msg, "\n", "; "), Details: said.Details}
			}
			printed, err := json.Marshal(cniError(d.refusal("ADD", out, errors.New("exit status 1"))))
			var got types.Error
			if err := errors.Join(err, json.Unmarshal(printed, &got)); err != nil {
				t.Fatalf("%q became %s: %v", out, printed, err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%q (-want +got):\n%s", out, diff)
			}
		}
		var said types.Error
		if json.Unmarshal(out, &said) != nil {
			said = types.Error{}
		}
		check(out, said)

		text := func(s string) string { return string([]rune(s)) } // JSON has no others
		said = types.Error{Code: code, Msg: text(msg), Details: text(details)}
		written, err := json.Marshal(said)
		if err != nil {
			t.Fatal(err)
		}
		check(written, said)
	})
}
