// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tendril-net/tendril/pkg/api"
)

// fakeAgent implements the API in memory, with fixed answers: the n-th
// endpoint has the n-th address after the gateway of each range set and MACs
// that end in its number.
type fakeAgent struct {
	socket string
	server *http.Server

	mu        sync.Mutex
	count     uint16
	endpoints map[api.Attachment]api.Endpoint
	// failures are answers to give instead, by "METHOD verb", where verb is
	// the last word of the path's pattern: "POST endpoints", "PUT attach".
	failures map[string]failure
	// onCall, where it is set, hears of each request after its effect and
	// before its answer.
	onCall func(verb string, r *http.Request)
	// calls are the requests in order: "POST /v1/endpoints {...}".
	calls []string
}

type failure struct {
	status int
	answer api.Error
	// done says that the request has its effect all the same, hang up that
	// the connection is cut instead of answered.
	done, hangUp bool
}

func startAgent(tb testing.TB, dir string) *fakeAgent {
	tb.Helper()
	a := &fakeAgent{
		socket: filepath.Join(dir, "agent.sock"), endpoints: make(map[api.Attachment]api.Endpoint),
		failures: make(map[string]failure),
	}
	mux := http.NewServeMux()
	for pattern, handle := range map[string]func(*http.Request) (any, error){
		"POST /v1/endpoints":                            a.prepare,
		"PUT /v1/endpoints/{container}/{ifName}/attach": a.attach,
		"POST /v1/endpoints/{container}/{ifName}/check": a.check,
		"GET /v1/endpoints/{container}/{ifName}":        a.endpoint,
		"DELETE /v1/endpoints/{container}/{ifName}":     a.remove,
		"POST /v1/gc":              a.gc,
		"POST /v1/networks/status": a.status,
	} {
		verb := pattern[:strings.Index(pattern, " ")+1] + strings.TrimSuffix(pattern[strings.LastIndex(pattern, "/")+1:], "/")
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { a.serve(w, r, verb, handle) })
	}
	listener, err := net.Listen("unix", a.socket)
	if err != nil {
		tb.Fatal(err)
	}
	a.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = a.server.Serve(listener) }()
	return a
}

func (a *fakeAgent) stop() { _ = a.server.Close() }

func (a *fakeAgent) serve(w http.ResponseWriter, r *http.Request, verb string, handle func(*http.Request) (any, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, r.Method+" "+r.URL.Path)
	planned, fails := a.failures[verb]
	if fails && !planned.done {
		a.answer(w, planned.status, planned.answer, planned.hangUp)
		return
	}
	answer, err := handle(r)
	if a.onCall != nil {
		a.onCall(verb, r)
	}
	switch refused := (*api.Error)(nil); {
	case fails:
		a.answer(w, planned.status, planned.answer, planned.hangUp)
	case errors.As(err, &refused):
		a.answer(w, map[string]int{api.CodeNotFound: 404, api.CodeInvalid: 400, api.CodeMismatch: 409}[refused.Code], refused, false)
	case answer == nil:
		w.WriteHeader(http.StatusNoContent)
	default:
		a.answer(w, http.StatusOK, answer, false)
	}
}

func (a *fakeAgent) answer(w http.ResponseWriter, status int, body any, hangUp bool) {
	if hangUp {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func (a *fakeAgent) prepare(r *http.Request) (any, error) {
	var req api.PrepareRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return nil, &api.Error{Code: api.CodeInvalid, Message: err.Error()}
	}
	a.count++
	e := api.Endpoint{
		Attachment: req.Attachment, ID: a.count, Network: req.Network.Name, Driver: req.Network.Driver, Bridge: req.Network.Bridge,
		NetNS: req.NetNS, State: api.Pending, HostIfName: api.HostIfName(req.Attachment), MAC: req.MAC, HostMAC: req.HostMAC,
		MTU: req.Network.MTU, Masquerade: req.Network.IPMasq, Addresses: req.Addresses, Labels: req.Labels,
		NamedPorts: req.NamedPorts, Ports: req.Ports,
	}
	if e.MAC == "" {
		e.MAC = fmt.Sprintf("02:00:00:00:01:%02x", a.count)
	}
	if e.HostMAC == "" {
		e.HostMAC = fmt.Sprintf("02:00:00:00:00:%02x", a.count)
	}
	if e.MTU == 0 {
		e.MTU = 1500
	}
	for _, set := range req.Network.Ranges {
		gateway := set[0].Gateway
		if !gateway.IsValid() {
			gateway = set[0].Subnet.Masked().Addr().Next()
		}
		address := gateway
		for range a.count {
			address = address.Next()
		}
		for _, wanted := range req.Wanted {
			if set[0].Subnet.Contains(wanted) {
				address = wanted
			}
		}
		e.Addresses = append(e.Addresses, api.Address{Address: netip.PrefixFrom(address, set[0].Subnet.Bits()), Gateway: gateway})
	}
	if e.Driver == api.DriverMacvlan {
		e.HostIfName, e.Parent, e.Mode, e.HostAccess = "", req.Network.Parent, req.Network.Mode, req.Network.HostAccess
		e.InContainer = req.Network.InContainer
	}
	a.endpoints[req.Attachment] = e
	return e, nil
}

func attachmentOf(r *http.Request) api.Attachment {
	return api.Attachment{ContainerID: r.PathValue("container"), IfName: r.PathValue("ifName")}
}

func (a *fakeAgent) endpoint(r *http.Request) (any, error) {
	e, ok := a.endpoints[attachmentOf(r)]
	if !ok {
		return nil, &api.Error{Code: api.CodeNotFound, Message: "there is no endpoint " + r.PathValue("container")}
	}
	return e, nil
}

func (a *fakeAgent) attach(r *http.Request) (any, error) {
	var req api.AttachRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return nil, &api.Error{Code: api.CodeInvalid, Message: err.Error()}
	}
	if _, err := a.endpoint(r); err != nil {
		return nil, err
	}
	e := a.endpoints[attachmentOf(r)]
	e.State, e.HostIfIndex = api.Ready, req.HostIfIndex
	if req.Addresses != nil {
		e.Addresses = req.Addresses
	}
	a.endpoints[e.Attachment] = e
	return e, nil
}

func (a *fakeAgent) check(r *http.Request) (any, error) {
	_, err := a.endpoint(r)
	return nil, err
}

func (a *fakeAgent) remove(r *http.Request) (any, error) {
	delete(a.endpoints, attachmentOf(r))
	return nil, nil
}

// gc frees nothing for an absent list: all links of a test are there.
func (a *fakeAgent) gc(r *http.Request) (any, error) {
	var req api.GCRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return nil, &api.Error{Code: api.CodeInvalid, Message: err.Error()}
	}
	result := api.GCResult{}
	keep := make(map[api.Attachment]bool)
	for _, valid := range req.Valid {
		keep[valid] = true
	}
	for attachment := range a.endpoints {
		if req.Valid != nil && !keep[attachment] {
			delete(a.endpoints, attachment)
			result.Freed = append(result.Freed, attachment)
		}
	}
	return result, nil
}

func (a *fakeAgent) status(*http.Request) (any, error) {
	return api.Health{OK: true}, nil
}
