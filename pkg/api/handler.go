// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
)

// MaxBody is the length in bytes of the longest request body that is read, MaxLargeBody that of POST
// /v1/policies and of POST /v1/gc, which has some 100 bytes for each endpoint of the node.
const (
	MaxBody      = 1 << 20
	MaxLargeBody = 16 << 20
)

// Limits of GET /v1/flows?limit=N and of GET /v1/drops?limit=N.
const (
	DefaultFlows = 1000
	MaxFlows     = 100000
)

// Service is what the handler serves. Every error it returns that is or wraps
// an *Error is answered with that error's code, any other as CodeInternal.
type Service interface {
	Attacher
	Inspector
	Networker
	Observer
	PortLister
	PolicyKeeper
	DropLister
}

// Attacher changes endpoints.
type Attacher interface {
	Prepare(context.Context, PrepareRequest) (Endpoint, error)
	Attach(context.Context, Attachment, AttachRequest) (Endpoint, error)
	Delete(context.Context, Attachment) error
	// SetBandwidth gives an endpoint other limits, from now on.
	SetBandwidth(context.Context, Attachment, Bandwidth) (Endpoint, error)
}

// Inspector shows endpoints.
type Inspector interface {
	Endpoint(context.Context, Attachment) (Endpoint, error)
	Endpoints(context.Context) ([]Endpoint, error)
	Check(context.Context, Attachment) error
}

// Networker serves what concerns whole networks.
type Networker interface {
	Networks(context.Context) ([]Network, error)
	NetworkStatus(context.Context, Network) (Health, error)
	GC(context.Context, GCRequest) (GCResult, error)
}

// Observer shows the agent and its datapath.
type Observer interface {
	Health(context.Context) (Health, error)
	Status(context.Context) (Status, error)
	Flows(ctx context.Context, limit int) ([]Flow, error)
}

// PortLister shows the ports of the host that lead to endpoints.
type PortLister interface {
	Ports(context.Context) ([]Port, error)
}

// PolicyKeeper keeps the objects of the firewall.
type PolicyKeeper interface {
	Policies(context.Context) (Firewall, error)
	ApplyPolicies(context.Context, ApplyRequest) (PolicyChange, error)
	// DeletePolicies removes all of the names, or none.
	DeletePolicies(ctx context.Context, namespace string, names []string) error
}

// DropLister shows what policy denies.
type DropLister interface {
	Drops(ctx context.Context, limit int) ([]Drop, error)
}

// HandlerOptions are the optional parts of a handler.
type HandlerOptions struct {
	// Observe is told the operation, the code of its error ("" for success)
	// and how long it took, for each operation that serves a CNI call:
	// prepare, attach, delete, check, gc, status.
	Observe func(operation, code string, took time.Duration)
	// Fault is told what was answered as CodeInternal, for the log.
	Fault func(method, path string, err error)
}

// handler turns HTTP requests into calls of a Service.
type handler struct {
	service Service
	opts    HandlerOptions
}

// NewHandler returns the API of a service, below /v1/.
func NewHandler(service Service, opts HandlerOptions) http.Handler {
	if opts.Observe == nil {
		opts.Observe = func(string, string, time.Duration) {}
	}
	if opts.Fault == nil {
		opts.Fault = func(string, string, error) {}
	}
	h := &handler{service: service, opts: opts}
	mux := http.NewServeMux()
	for _, route := range []struct {
		pattern   string
		operation string // empty: not part of a CNI call
		serve     func(*http.Request) (any, error)
	}{
		{"POST /v1/endpoints", "prepare", h.prepare},
		{"PUT /v1/endpoints/{container}/{interface}/attach", "attach", h.attach},
		{"DELETE /v1/endpoints/{container}/{interface}", "delete", h.delete},
		{"PUT /v1/endpoints/{container}/{interface}/bandwidth", "", h.setBandwidth},
		{"POST /v1/endpoints/{container}/{interface}/check", "check", h.check},
		{"POST /v1/gc", "gc", h.gc},
		{"POST /v1/networks/status", "status", h.networkStatus},
		{"GET /v1/endpoints", "", h.endpoints},
		{"GET /v1/endpoints/{container}/{interface}", "", h.endpoint},
		{"GET /v1/networks", "", h.networks},
		{"GET /v1/flows", "", h.flows},
		{"GET /v1/ports", "", h.ports},
		{"GET /v1/policies", "", h.policies},
		{"POST /v1/policies", "", h.applyPolicies},
		{"DELETE /v1/policies/{namespace}", "", h.deletePolicies},
		{"GET /v1/drops", "", h.drops},
		{"GET /v1/health", "", h.health},
		{"GET /v1/status", "", h.status},
	} {
		mux.HandleFunc(route.pattern, func(w http.ResponseWriter, r *http.Request) {
			h.run(w, r, route.operation, route.serve)
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fault, allow := refuse(mux, r)
		if fault == nil {
			mux.ServeHTTP(w, r)
			return
		}
		if allow != "" {
			w.Header().Set("Allow", allow)
		}
		write(w, statusOf(fault.Code), fault)
	})
}

// refuse returns how to answer a request that the mux has no operation for: in our
// words, and without the redirects that it would send. allow is the header of that
// name (RFC 9110, section 10.2.1).
func refuse(mux *http.ServeMux, r *http.Request) (fault *Error, allow string) {
	serves := func(method string) bool {
		asked := *r
		asked.Method = method
		_, pattern := mux.Handler(&asked)
		return pattern != ""
	}
	escaped := r.URL.EscapedPath()
	clean := path.Clean(escaped) == escaped // else it would be redirected
	if clean && serves(r.Method) {
		return nil, ""
	}
	fault = &Error{Code: CodeNotFound, Message: fmt.Sprintf("no such operation: %s %s", r.Method, r.URL.Path)}
	var methods []string
	for _, method := range []string{http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut} {
		if clean && serves(method) {
			methods = append(methods, method)
		}
	}
	if methods == nil {
		return fault, ""
	}
	allow = strings.Join(methods, ", ")
	fault.Code = CodeMethod
	fault.Message += ", only " + allow
	return fault, allow
}

// run serves one request. A nil answer is 204 No Content.
func (h *handler) run(w http.ResponseWriter, r *http.Request, operation string, serve func(*http.Request) (any, error)) {
	most := int64(MaxBody)
	if r.Pattern == "POST /v1/policies" || r.Pattern == "POST /v1/gc" {
		most = MaxLargeBody
	}
	r.Body = http.MaxBytesReader(w, r.Body, most)
	started := time.Now()
	answer, err := serve(r)
	code := ""
	if err != nil {
		fault := asError(err)
		code = fault.Code
		if code == CodeInternal {
			h.opts.Fault(r.Method, r.URL.Path, err)
		}
		write(w, statusOf(code), fault)
	} else if answer == nil {
		w.WriteHeader(http.StatusNoContent)
	} else {
		write(w, http.StatusOK, answer)
	}
	if operation != "" {
		h.opts.Observe(operation, code, time.Since(started))
	}
}

func asError(err error) *Error {
	var fault *Error
	if !errors.As(err, &fault) {
		return &Error{Code: CodeInternal, Message: err.Error()}
	}
	answer := *fault
	answer.Message = err.Error() // with what the error was wrapped in
	return &answer
}

func statusOf(code string) int {
	switch code {
	case CodeInvalid:
		return http.StatusBadRequest
	case CodeNotFound:
		return http.StatusNotFound
	case CodeMethod:
		return http.StatusMethodNotAllowed
	case CodeConflict, CodeExhausted, CodeMismatch:
		return http.StatusConflict
	case CodeUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// write answers with JSON. What cannot be written has nobody to read it.
func write(w http.ResponseWriter, status int, answer any) {
	var body bytes.Buffer
	if err := json.NewEncoder(&body).Encode(answer); err != nil {
		http.Error(w, fmt.Sprintf(`{"code":%q,"message":"encode answer"}`, CodeInternal), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes())
}

func attachment(r *http.Request) Attachment {
	return Attachment{ContainerID: r.PathValue("container"), IfName: r.PathValue("interface")}
}

func (h *handler) prepare(r *http.Request) (any, error) {
	var req PrepareRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return h.service.Prepare(r.Context(), req)
}

func (h *handler) attach(r *http.Request) (any, error) {
	var req AttachRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return h.service.Attach(r.Context(), attachment(r), req)
}

func (h *handler) delete(r *http.Request) (any, error) {
	return nil, h.service.Delete(r.Context(), attachment(r))
}

func (h *handler) setBandwidth(r *http.Request) (any, error) {
	var req Bandwidth
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return h.service.SetBandwidth(r.Context(), attachment(r), req)
}

func (h *handler) check(r *http.Request) (any, error) {
	return nil, h.service.Check(r.Context(), attachment(r))
}

func (h *handler) gc(r *http.Request) (any, error) {
	var req GCRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return h.service.GC(r.Context(), req)
}

func (h *handler) networkStatus(r *http.Request) (any, error) {
	var req Network
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return h.service.NetworkStatus(r.Context(), req)
}

func (h *handler) endpoints(r *http.Request) (any, error) {
	return list(h.service.Endpoints(r.Context()))
}

func (h *handler) endpoint(r *http.Request) (any, error) {
	return h.service.Endpoint(r.Context(), attachment(r))
}

func (h *handler) networks(r *http.Request) (any, error) {
	return list(h.service.Networks(r.Context()))
}

func (h *handler) ports(r *http.Request) (any, error) {
	return list(h.service.Ports(r.Context()))
}

func (h *handler) flows(r *http.Request) (any, error) {
	limit, err := limitOf(r)
	if err != nil {
		return nil, err
	}
	return list(h.service.Flows(r.Context(), limit))
}

func (h *handler) drops(r *http.Request) (any, error) {
	limit, err := limitOf(r)
	if err != nil {
		return nil, err
	}
	return list(h.service.Drops(r.Context(), limit))
}

func limitOf(r *http.Request) (int, error) {
	given := r.URL.Query().Get("limit")
	if given == "" {
		return DefaultFlows, nil
	}
	n, err := strconv.Atoi(given)
	if err != nil || n < 1 || n > MaxFlows {
		return 0, &Error{
			Code: CodeInvalid, Key: "limit", Value: given,
			Message: fmt.Sprintf("limit %q: not a number from 1 to %d", given, MaxFlows),
		}
	}
	return n, nil
}

func (h *handler) policies(r *http.Request) (any, error) { return h.service.Policies(r.Context()) }

// maxSource bounds the name of a text, in bytes: PATH_MAX.
const maxSource = 4096

func (h *handler) applyPolicies(r *http.Request) (any, error) {
	query := r.URL.Query()
	req := ApplyRequest{Source: cmp.Or(query.Get("source"), "request")}
	if len(req.Source) > maxSource {
		return nil, &Error{Code: CodeInvalid, Key: "source", Message: fmt.Sprintf("source is longer than %d bytes", maxSource)}
	}
	switch given := query.Get("dryRun"); given {
	case "", "false":
	case "true":
		req.DryRun = true
	default:
		return nil, &Error{Code: CodeInvalid, Key: "dryRun", Value: given, Message: fmt.Sprintf("dryRun %q: neither true nor false", given)}
	}
	var err error
	if req.Text, err = io.ReadAll(r.Body); err != nil {
		message := err.Error()
		if tooLong := (*http.MaxBytesError)(nil); errors.As(err, &tooLong) {
			message = fmt.Sprintf("body is longer than %d bytes", tooLong.Limit)
		}
		return nil, &Error{Code: CodeInvalid, Message: "read request: " + message}
	}
	return h.service.ApplyPolicies(r.Context(), req)
}

func (h *handler) deletePolicies(r *http.Request) (any, error) {
	names := r.URL.Query()["name"]
	if len(names) == 0 {
		return nil, &Error{Code: CodeInvalid, Key: "name", Message: "name is missing: whose policy is to be deleted"}
	}
	return nil, h.service.DeletePolicies(r.Context(), r.PathValue("namespace"), names)
}

func (h *handler) health(r *http.Request) (any, error) { return h.service.Health(r.Context()) }

func (h *handler) status(r *http.Request) (any, error) { return h.service.Status(r.Context()) }

// list makes an empty list an empty JSON array, never null.
func list[T any](items []T, err error) (any, error) {
	if items == nil {
		items = []T{}
	}
	return items, err
}
