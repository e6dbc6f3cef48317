// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// impostor listens where an agent should, and answers each request in the same way.
type impostor struct {
	socket string
	answer atomic.Pointer[func(io.Writer)]
}

func (i *impostor) answers(text []byte) {
	write := func(to io.Writer) { _, _ = to.Write(text) }
	i.answer.Store(&write)
}

func startImpostor(tb testing.TB) *impostor {
	tb.Helper()
	i := &impostor{socket: filepath.Join(tb.TempDir(), "agent.sock")}
	listener, err := net.Listen("unix", i.socket)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if request, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				_, _ = io.Copy(io.Discard, request.Body)
				(*i.answer.Load())(conn)
			}
			_ = conn.Close()
		}
	}()
	return i
}

// call has a client of its own do one call.
func (i *impostor) call(ctx context.Context, do func(context.Context, *Client) (any, error)) (any, error) {
	client := NewClient(i.socket)
	defer client.Close()
	client.transport.DisableKeepAlives = true // else it logs what is behind the answer
	return do(ctx, client)
}

func response(status, headers, body string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s", status, len(body), headers, body)
}

// clientCalls are one of each kind: for a value, for a list, with a body, without an answer.
var clientCalls = []struct {
	request string
	do      func(context.Context, *Client) (any, error)
	decode  func([]byte) (any, error)
}{
	{"GET /v1/endpoints/c1/eth0", func(ctx context.Context, c *Client) (any, error) {
		return c.Endpoint(ctx, Attachment{ContainerID: "c1", IfName: "eth0"})
	}, decodeAs[Endpoint]},
	{"GET /v1/flows", func(ctx context.Context, c *Client) (any, error) { return c.Flows(ctx, 0) }, decodeAs[[]Flow]},
	{"POST /v1/gc", func(ctx context.Context, c *Client) (any, error) { return c.GC(ctx, GCRequest{Network: "n"}) }, decodeAs[GCResult]},
	{"DELETE /v1/endpoints/c1/eth0", func(ctx context.Context, c *Client) (any, error) {
		return none{}, c.Delete(ctx, Attachment{ContainerID: "c1", IfName: "eth0"})
	}, func([]byte) (any, error) { return none{}, nil }},
}

func decodeAs[T any](text []byte) (any, error) {
	var whole, nothing T
	if err := json.Unmarshal(text, &whole); err != nil {
		return nothing, err
	}
	return whole, nil
}

// readAnswer is an own reading of an answer: its status, and its body unless that is cut. ok says whether
// it is an answer at all.
func readAnswer(raw []byte, method string) (status int, body []byte, cut, ok bool) {
	from := bufio.NewReader(bytes.NewReader(raw))
	for {
		answer, err := http.ReadResponse(from, &http.Request{Method: method})
		if err != nil {
			return 0, nil, false, false
		}
		if answer.StatusCode/100 == 1 && answer.StatusCode != http.StatusSwitchingProtocols {
			continue // announces another
		}
		body, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		return answer.StatusCode, body, err != nil, true
	}
}

// FuzzClient has somebody else answer in the agent's place. Each call returns all of what was answered, or an
// error and nothing of it; only what is no whole answer is taken for an agent that is not there.
func FuzzClient(f *testing.F) {
	for _, answer := range [][]byte{
		response("200 OK", "Content-Type: application/json\r\n", `{"containerID":"c1","ifName":"eth0","id":7,"addresses":[{"address":"10.10.0.5/16","gateway":"10.10.0.1"}],"created":"2026-01-02T03:04:05Z"}`),
		response("200 OK", "", `[{"protocol":"tcp"}]`),
		response("200 OK", "", `{"freed":[{"containerID":"c1","ifName":"eth0"}]}`),
		response("200 OK", "", `{"addresses":[{"address":"10.10.0.5/16","gateway":"nobody"}]}`),
		response("200 OK", "", `{"id":7,"created":"yesterday"}`),
		response("200 OK", "", `{"id":70000}`),
		response("200 OK", "", `{"id":7}{}`),
		response("200 OK", "", `null`),
		response("200 OK", "", ``),
		response("299 ", "Content-Encoding: gzip\r\n", `{"id":7}`),
		response("400 Bad Request", "", `{"code":"invalid","message":"subnet overlaps","key":"ipam.ranges[0][0].subnet","value":"10.10.0.0/16"}`),
		response("404 Not Found", "", `{"code":"not_found"}`),
		response("404 Not Found", "", `{"code":"not_found","message":7}`),
		response("503 Service Unavailable", "", `later`),
		response("302 Found", "Location: /v1/health\r\n", `{"id":7}`),
		response("302 Found", "Location: http://[::1\r\n", ``),
		[]byte("HTTP/1.1 204 No Content\r\n\r\n"),
		[]byte("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"id\":7}"),
		[]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{\"id\":7}"),
		[]byte("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}"),
		[]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
		[]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0"),
		[]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n{\"id\":7}"),
		[]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n{\"id\":7}"),
		[]byte("HTTP/1.0 200\r\n\r\n{\"id\":7}"),
		[]byte("SSH-2.0-OpenSSH_9.6\r\n"),
		nil,
	} {
		f.Add(answer)
	}
	agent := startImpostor(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > maxHeader/2 {
			t.Skip("longer than what is told apart here")
		}
		agent.answers(slices.Clone(raw))
		for _, call := range clientCalls {
			got, err := agent.call(t.Context(), call.do)
			method, _, _ := strings.Cut(call.request, " ")
			status, body, cut, ok := readAnswer(raw, method)
			want, decodeErr := call.decode(body)
			var refused *Error
			switch isError := errors.As(err, &refused); {
			case err != nil && (err.Error() == "" || len(err.Error()) > 8*maxHeader):
				t.Errorf("%s: an error of %d bytes", call.request, len(err.Error()))
			case !ok:
				if !errors.Is(err, ErrUnavailable) || isError {
					t.Errorf("%s: no answer at all gives %v", call.request, err)
				}
			case status == http.StatusSwitchingProtocols: // what follows is of whatever protocol
				if !isError || !strings.HasPrefix(refused.Message, "agent answered 101 Switching Protocols: ") {
					t.Errorf("%s: another protocol gives %v", call.request, err)
				}
			case status/100 != 2:
				if diff := cmp.Diff(wantRefusal(status, body, cut), refused); diff != "" {
					t.Errorf("%s: status %d (-want +got):\n%s", call.request, status, diff)
				}
			case want == none{}:
				if err != nil {
					t.Errorf("%s: %v", call.request, err)
				}
			case cut:
				if !errors.Is(err, ErrUnavailable) || !strings.HasPrefix(err.Error(), "read answer to "+call.request+": ") {
					t.Errorf("%s: half an answer gives %v", call.request, err)
				}
			case (err != nil) != (decodeErr != nil), errors.Is(err, ErrUnavailable), isError:
				t.Errorf("%s: %q gives %v", call.request, body, err)
			case err != nil && !strings.HasPrefix(err.Error(), "decode answer to "+call.request+": "):
				t.Errorf("%s: the error does not say whose answer: %v", call.request, err)
			}
			if err != nil {
				want, _ = call.decode(nil)
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})); diff != "" {
				t.Errorf("%s (-want +got):\n%s", call.request, diff)
			}
		}
	})
}

// wantRefusal is what an answer that is no success comes to.
func wantRefusal(status int, body []byte, cut bool) *Error {
	said := &Error{}
	if !cut && json.Unmarshal(body, said) == nil && said.Code != "" && said.Message != "" {
		return said
	}
	code := CodeInternal
	if status == http.StatusServiceUnavailable {
		code = CodeUnavailable
	}
	return &Error{Code: code, Message: fmt.Sprintf("agent answered %s: %q", strings.TrimSpace(fmt.Sprintf("%d %s", status, http.StatusText(status))), bytes.TrimSpace(body))}
}

// An answer has a bound, and one without end is not read to it.
func TestClientBound(t *testing.T) {
	agent := startImpostor(t)
	endpoint := func(ctx context.Context, c *Client) (any, error) {
		c.maxAnswer = 100
		return c.Endpoint(ctx, Attachment{ContainerID: "c1", IfName: "eth0"})
	}
	const excess = "read answer to GET /v1/endpoints/c1/eth0: it is longer than 100 bytes"
	for _, tt := range []struct {
		name   string
		answer func(io.Writer)
		want   Endpoint
		err    string
	}{
		{
			name:   "at the bound",
			answer: func(to io.Writer) { _, _ = to.Write(response("200 OK", "", `{"id":7}`+strings.Repeat(" ", 92))) },
			want:   Endpoint{ID: 7},
		},
		{
			name:   "one byte more",
			answer: func(to io.Writer) { _, _ = to.Write(response("200 OK", "", `{"id":7}`+strings.Repeat(" ", 93))) },
			err:    excess,
		},
		{
			name: "without end",
			answer: func(to io.Writer) {
				_, err := io.WriteString(to, "HTTP/1.1 200 OK\r\n\r\n")
				for err == nil {
					_, err = io.WriteString(to, strings.Repeat(" ", 4096))
				}
			},
			err: excess,
		},
	} {
		agent.answer.Store(&tt.answer)
		got, err := agent.call(t.Context(), endpoint)
		message := ""
		if err != nil {
			message = err.Error()
		}
		if diff := cmp.Diff(tt.err, message); diff != "" {
			t.Errorf("%s: error (-want +got):\n%s", tt.name, diff)
		}
		if diff := cmp.Diff(any(tt.want), got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
