// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// DefaultSocket is where the agent listens unless it is told otherwise.
const DefaultSocket = "/run/tendril/agent.sock"

// callTimeout bounds one call, connecting included. It is what a container
// runtime may lose on a hung agent; a busy agent answers in milliseconds.
const callTimeout = 30 * time.Second

// ErrUnavailable is what errors.Is finds in the error of a call that no agent
// answered: the socket is missing or refuses, the agent went away before it
// answered, or it answered that it cannot serve now.
var ErrUnavailable = errors.New("agent is not available")

// Is makes an answer of CodeUnavailable an ErrUnavailable.
func (e *Error) Is(target error) bool {
	return target == ErrUnavailable && e.Code == CodeUnavailable
}

// Client calls the agent. Its methods return an *Error when the agent refused
// and an error that is ErrUnavailable when there is no agent. It is safe for
// concurrent use.
type Client struct {
	transport *http.Transport
	socket    string
	// maxAnswer is the constant, but in tests.
	maxAnswer int64
}

// What is read of an answer at most, in bytes. The longest, 100,000 flows or 65,535 endpoints, have
// less than 100 MB.
const (
	maxAnswer = 256 << 20
	maxHeader = 64 << 10
)

// NewClient returns a client of the agent that listens on socket, a path. It
// connects with the first call. Close it after use.
func NewClient(socket string) *Client {
	dialer := &net.Dialer{}
	return &Client{
		socket:    socket,
		maxAnswer: maxAnswer,
		transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", socket)
			},
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxHeader,
		},
	}
}

// Close drops idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Prepare asks for an endpoint: leases, names and numbers.
func (c *Client) Prepare(ctx context.Context, req PrepareRequest) (Endpoint, error) {
	return call[Endpoint](ctx, c, http.MethodPost, "/v1/endpoints", req)
}

// Attach tells the agent that the endpoint's links exist.
func (c *Client) Attach(ctx context.Context, a Attachment, req AttachRequest) (Endpoint, error) {
	return call[Endpoint](ctx, c, http.MethodPut, endpointPath(a)+"/attach", req)
}

// SetBandwidth gives an endpoint other limits, and returns it with those that are in force.
func (c *Client) SetBandwidth(ctx context.Context, a Attachment, b Bandwidth) (Endpoint, error) {
	return call[Endpoint](ctx, c, http.MethodPut, endpointPath(a)+"/bandwidth", b)
}

// Check asks whether the agent's record, the lease and the datapath are as ADD
// left them.
func (c *Client) Check(ctx context.Context, a Attachment) error {
	_, err := call[none](ctx, c, http.MethodPost, endpointPath(a)+"/check", nil)
	return err
}

// Delete frees all that the agent holds for the attachment. It is no error
// when that is nothing.
func (c *Client) Delete(ctx context.Context, a Attachment) error {
	_, err := call[none](ctx, c, http.MethodDelete, endpointPath(a), nil)
	return err
}

// GC frees what is not in the request.
func (c *Client) GC(ctx context.Context, req GCRequest) (GCResult, error) {
	return call[GCResult](ctx, c, http.MethodPost, "/v1/gc", req)
}

// NetworkStatus says whether an ADD to the network would succeed.
func (c *Client) NetworkStatus(ctx context.Context, n Network) (Health, error) {
	return call[Health](ctx, c, http.MethodPost, "/v1/networks/status", n)
}

// Health says whether the agent works.
func (c *Client) Health(ctx context.Context) (Health, error) {
	return call[Health](ctx, c, http.MethodGet, "/v1/health", nil)
}

// Status returns the agent at a glance.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Endpoints lists all endpoints.
func (c *Client) Endpoints(ctx context.Context) ([]Endpoint, error) {
	return call[[]Endpoint](ctx, c, http.MethodGet, "/v1/endpoints", nil)
}

// Endpoint returns one endpoint; an *Error of CodeNotFound when there is none.
func (c *Client) Endpoint(ctx context.Context, a Attachment) (Endpoint, error) {
	return call[Endpoint](ctx, c, http.MethodGet, endpointPath(a), nil)
}

// Flows lists at most limit flows, 1 to 100000; 0 takes the agent's default.
func (c *Client) Flows(ctx context.Context, limit int) ([]Flow, error) {
	path := "/v1/flows"
	if limit != 0 {
		path += "?limit=" + strconv.Itoa(limit)
	}
	return call[[]Flow](ctx, c, http.MethodGet, path, nil)
}

// Ports lists the ports of the host that lead to endpoints.
func (c *Client) Ports(ctx context.Context) ([]Port, error) {
	return call[[]Port](ctx, c, http.MethodGet, "/v1/ports", nil)
}

// Policies returns the policy of the node and what it comes to.
func (c *Client) Policies(ctx context.Context) (Firewall, error) {
	return call[Firewall](ctx, c, http.MethodGet, "/v1/policies", nil)
}

// ApplyPolicies keeps objects. An *Error of CodeInvalid names the object and has
// the path of the field as its key.
func (c *Client) ApplyPolicies(ctx context.Context, req ApplyRequest) (PolicyChange, error) {
	query := url.Values{}
	if req.Source != "" {
		query.Set("source", req.Source)
	}
	if req.DryRun {
		query.Set("dryRun", "true")
	}
	path := "/v1/policies"
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return call[PolicyChange](ctx, c, http.MethodPost, path, yamlText(req.Text))
}

// DeletePolicies removes NetworkPolicies that were applied: all of the names, or none.
func (c *Client) DeletePolicies(ctx context.Context, namespace string, names []string) error {
	query := url.Values{"name": names}
	_, err := call[none](ctx, c, http.MethodDelete, "/v1/policies/"+segment(namespace)+"?"+query.Encode(), nil)
	return err
}

// Drops lists at most limit flows that are denied now; limit is as for Flows.
func (c *Client) Drops(ctx context.Context, limit int) ([]Drop, error) {
	path := "/v1/drops"
	if limit != 0 {
		path += "?limit=" + strconv.Itoa(limit)
	}
	return call[[]Drop](ctx, c, http.MethodGet, path, nil)
}

// Networks lists the networks that have endpoints.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	return call[[]Network](ctx, c, http.MethodGet, "/v1/networks", nil)
}

func endpointPath(a Attachment) string {
	return "/v1/endpoints/" + segment(a.ContainerID) + "/" + segment(a.IfName)
}

// segment is a name as one segment of a path. The dots are escaped where they are
// all of it: "." and ".." would be taken for directories.
func segment(name string) string {
	if name == "." || name == ".." {
		return strings.ReplaceAll(name, ".", "%2E")
	}
	return url.PathEscape(name)
}

// none is the body of an answer that has none.
type none struct{}

// yamlText is a body that is sent as it is.
type yamlText []byte

// call sends one request; body is nil, a yamlText, or what is sent as JSON. With an error there is
// no answer, not even a part of one.
func call[T any](ctx context.Context, c *Client, method, path string, body any) (answer T, err error) {
	var sent io.Reader
	kind := "application/json"
	if text, asItIs := body.(yamlText); asItIs {
		sent, kind = bytes.NewReader(text), "application/yaml"
	} else if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return answer, fmt.Errorf("encode request %s %s: %w", method, path, err)
		}
		sent = bytes.NewReader(text)
	}
	bounded, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(bounded, method, "http://tendril"+path, sent)
	if err != nil {
		return answer, fmt.Errorf("build request %s %s: %w", method, path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", kind)
	}
	// Not by an http.Client, which would go where a redirect leads: an agent sends nobody elsewhere.
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return answer, c.transportError(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode < http.StatusOK || resp.StatusCode >= http.StatusMultipleChoices {
		return answer, decodeError(resp)
	}
	limited := io.LimitReader(resp.Body, c.maxAnswer+1)
	if _, empty := any(answer).(none); empty {
		_, _ = io.Copy(io.Discard, limited) // so that the connection is used again
		return answer, nil
	}
	text, err := io.ReadAll(limited)
	switch {
	case err != nil:
		return answer, fmt.Errorf("read answer to %s %s: %w", method, path, c.transportError(ctx, err))
	case int64(len(text)) > c.maxAnswer:
		return answer, fmt.Errorf("read answer to %s %s: it is longer than %d bytes", method, path, c.maxAnswer)
	}
	var decoded T
	if err := json.Unmarshal(text, &decoded); err != nil {
		return answer, fmt.Errorf("decode answer to %s %s: %w", method, path, err)
	}
	return decoded, nil
}

// transportError tells an agent that is not there from one that is slow: only
// the first is ErrUnavailable. A caller may take "not there" for an answer,
// as DEL does, because an agent looks around when it starts; a slow one will
// not.
func (c *Client) transportError(ctx context.Context, err error) error {
	var timeout net.Error
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("call agent at %s: %w", c.socket, ctx.Err())
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("call agent at %s: no answer within %v", c.socket, callTimeout)
	}
	return fmt.Errorf("call agent at %s: %w: %w", c.socket, ErrUnavailable, err)
}

// maxErrorBody bounds what is read of an answer that is not a success.
const maxErrorBody = 64 << 10

func decodeError(resp *http.Response) error {
	var text []byte
	var err error
	// Who changes the protocol has the connection itself for a body: no time ends a read of that.
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, err = io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	}
	answer := &Error{}
	if err == nil {
		err = json.Unmarshal(text, answer)
	}
	if err == nil && answer.Code != "" && answer.Message != "" {
		return answer
	}
	// Whoever answered is not an agent of ours, or its handler broke.
	code := CodeInternal
	if resp.StatusCode == http.StatusServiceUnavailable {
		code = CodeUnavailable
	}
	status := strings.TrimSpace(strconv.Itoa(resp.StatusCode) + " " + http.StatusText(resp.StatusCode))
	return &Error{Code: code, Message: fmt.Sprintf("agent answered %s: %q", status, bytes.TrimSpace(text))}
}
