// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// recorder is a Service that writes down what it is asked and answers err.
type recorder struct {
	asked []any
	err   error
}

func (r *recorder) ask(what ...any) { r.asked = append(r.asked, what...) }

func (r *recorder) Prepare(_ context.Context, req PrepareRequest) (Endpoint, error) {
	r.ask("prepare", req)
	return Endpoint{Attachment: req.Attachment, State: Pending}, r.err
}

func (r *recorder) Attach(_ context.Context, a Attachment, req AttachRequest) (Endpoint, error) {
	r.ask("attach", a, req)
	return Endpoint{Attachment: a, State: Ready}, r.err
}

func (r *recorder) Delete(_ context.Context, a Attachment) error {
	r.ask("delete", a)
	return r.err
}

func (r *recorder) Endpoint(_ context.Context, a Attachment) (Endpoint, error) {
	r.ask("endpoint", a)
	return Endpoint{Attachment: a}, r.err
}

func (r *recorder) Endpoints(context.Context) ([]Endpoint, error) {
	r.ask("endpoints")
	return nil, r.err
}

func (r *recorder) Check(_ context.Context, a Attachment) error {
	r.ask("check", a)
	return r.err
}

func (r *recorder) Networks(context.Context) ([]Network, error) {
	r.ask("networks")
	return nil, r.err
}

func (r *recorder) SetBandwidth(_ context.Context, a Attachment, b Bandwidth) (Endpoint, error) {
	r.ask("set bandwidth", a, b)
	return Endpoint{Attachment: a, Bandwidth: b}, r.err
}

func (r *recorder) NetworkStatus(_ context.Context, n Network) (Health, error) {
	r.ask("network status", n)
	return Health{OK: true}, r.err
}

func (r *recorder) GC(_ context.Context, req GCRequest) (GCResult, error) {
	r.ask("gc", req)
	return GCResult{Freed: []Attachment{}}, r.err
}

func (r *recorder) Health(context.Context) (Health, error) {
	r.ask("health")
	return Health{OK: true}, r.err
}

func (r *recorder) Status(context.Context) (Status, error) {
	r.ask("status")
	return Status{}, r.err
}

func (r *recorder) Flows(_ context.Context, limit int) ([]Flow, error) {
	r.ask("flows", limit)
	return nil, r.err
}

func (r *recorder) Ports(context.Context) ([]Port, error) {
	r.ask("ports")
	return nil, r.err
}

func (r *recorder) Policies(context.Context) (Firewall, error) {
	r.ask("policies")
	return Firewall{Policies: []Policy{}, Namespaces: []Namespace{}, Endpoints: []EndpointPolicy{}}, r.err
}

func (r *recorder) ApplyPolicies(_ context.Context, req ApplyRequest) (PolicyChange, error) {
	r.ask("apply", req)
	return PolicyChange{DryRun: req.DryRun, Objects: []ObjectChange{}}, r.err
}

func (r *recorder) DeletePolicies(_ context.Context, namespace string, names []string) error {
	r.ask("delete policies", namespace, names)
	return r.err
}

func (r *recorder) Drops(_ context.Context, limit int) ([]Drop, error) {
	r.ask("drops", limit)
	return nil, r.err
}

// serve sends one request to a handler of the service.
func serve(s Service, opts HandlerOptions, method, path, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	NewHandler(s, opts).ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w
}

var equate = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func TestHandlerRoutes(t *testing.T) {
	a := Attachment{ContainerID: "c1", IfName: "eth0"}
	const prefix = `{"containerID":"c1","ifName":"eth0","id":0,"network":"","driver":"","netns":"",`
	tests := []struct {
		method, path, body string
		status             int
		answer             string
		asked              []any
	}{
		{
			"POST", "/v1/endpoints", `{"containerID":"c1","ifName":"eth0","netns":"/n","network":{"name":"n","driver":"routed","ipMasq":true}}`,
			200, prefix + `"state":"pending","hostIfName":"","mac":"","hostMAC":"","mtu":0,"masquerade":false,"addresses":null,"created":"0001-01-01T00:00:00Z"}`,
			[]any{"prepare", PrepareRequest{Attachment: a, NetNS: "/n", Network: Network{Name: "n", Driver: "routed", IPMasq: true}}},
		},
		{
			"POST", "/v1/endpoints", `{"containerID":"c1","ifName":"eth0","ports":[{"hostIP":"::1","hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":65535,"containerPort":53,"protocol":"udp"}]}`,
			200, prefix + `"state":"pending","hostIfName":"","mac":"","hostMAC":"","mtu":0,"masquerade":false,"addresses":null,"created":"0001-01-01T00:00:00Z"}`,
			[]any{"prepare", PrepareRequest{Attachment: a, Ports: []PortMapping{
				{HostIP: netip.IPv6Loopback(), HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, {HostPort: 65535, ContainerPort: 53, Protocol: "udp"},
			}}},
		},
		{
			"PUT", "/v1/endpoints/c1/eth0/attach", `{"hostIfIndex":7}`,
			200, prefix + `"state":"ready","hostIfName":"","mac":"","hostMAC":"","mtu":0,"masquerade":false,"addresses":null,"created":"0001-01-01T00:00:00Z"}`,
			[]any{"attach", a, AttachRequest{HostIfIndex: 7}},
		},
		{
			"PUT", "/v1/endpoints/c1/eth0/bandwidth", `{"egressRate":1000000,"egressBurst":10000,"unshapedSubnets":["10.0.0.0/8"]}`,
			200, prefix + `"state":"","hostIfName":"","mac":"","hostMAC":"","mtu":0,"masquerade":false,"addresses":null,` +
				`"bandwidth":{"egressRate":1000000,"egressBurst":10000,"unshapedSubnets":["10.0.0.0/8"]},"created":"0001-01-01T00:00:00Z"}`,
			[]any{"set bandwidth", a, Bandwidth{EgressRate: 1_000_000, EgressBurst: 10_000, UnshapedSubnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}},
		},
		{
			"PUT", "/v1/endpoints/c1/eth0/bandwidth", `{"egressRate":"10M"}`, 400,
			`{"code":"invalid","message":"read request: key \"egressRate\": a whole number is wanted, not string","key":"egressRate"}`, nil,
		},
		{"DELETE", "/v1/endpoints/c1/eth0", "", 204, "", []any{"delete", a}},
		{"DELETE", "/v1/endpoints/c1/eth%3F0", "", 204, "", []any{"delete", Attachment{ContainerID: "c1", IfName: "eth?0"}}},
		{"DELETE", "/v1/endpoints/c1/%2E%2E", "", 204, "", []any{"delete", Attachment{ContainerID: "c1", IfName: ".."}}},
		{"POST", "/v1/endpoints/c1/eth0/check", "", 204, "", []any{"check", a}},
		{
			"GET", "/v1/endpoints/c1/eth0", "",
			200, prefix + `"state":"","hostIfName":"","mac":"","hostMAC":"","mtu":0,"masquerade":false,"addresses":null,"created":"0001-01-01T00:00:00Z"}`,
			[]any{"endpoint", a},
		},
		{"GET", "/v1/endpoints", "", 200, `[]`, []any{"endpoints"}},
		{"GET", "/v1/networks", "", 200, `[]`, []any{"networks"}},
		{
			"POST", "/v1/networks/status", `{"name":"n","driver":"routed","ipMasq":false}`, 200, `{"ok":true}`,
			[]any{"network status", Network{Name: "n", Driver: "routed"}},
		},
		{"POST", "/v1/gc", `{"network":"n","valid":null}`, 200, `{"freed":[]}`, []any{"gc", GCRequest{Network: "n"}}},
		{"POST", "/v1/gc", `{"network":"n","valid":[]}`, 200, `{"freed":[]}`, []any{"gc", GCRequest{Network: "n", Valid: []Attachment{}}}},
		{"GET", "/v1/flows", "", 200, `[]`, []any{"flows", 1000}},
		{"GET", "/v1/flows?limit=5", "", 200, `[]`, []any{"flows", 5}},
		{
			"GET", "/v1/flows?limit=100001", "", 400,
			`{"code":"invalid","message":"limit \"100001\": not a number from 1 to 100000","key":"limit","value":"100001"}`, nil,
		},
		{"GET", "/v1/flows?limit=0", "", 400, `{"code":"invalid","message":"limit \"0\": not a number from 1 to 100000","key":"limit","value":"0"}`, nil},
		{"GET", "/v1/ports", "", 200, `[]`, []any{"ports"}},
		{"GET", "/v1/policies", "", 200, `{"policies":[],"namespaces":[],"endpoints":[]}`, []any{"policies"}},
		{
			"POST", "/v1/policies", "kind: NetworkPolicy", 200, `{"dryRun":false,"objects":[]}`,
			[]any{"apply", ApplyRequest{Source: "request", Text: []byte("kind: NetworkPolicy")}},
		},
		{
			"POST", "/v1/policies?source=a%2Fb.yaml&dryRun=true", "", 200, `{"dryRun":true,"objects":[]}`,
			[]any{"apply", ApplyRequest{Source: "a/b.yaml", Text: []byte{}, DryRun: true}},
		},
		{
			"POST", "/v1/policies?dryRun=yes", "", 400,
			`{"code":"invalid","message":"dryRun \"yes\": neither true nor false","key":"dryRun","value":"yes"}`, nil,
		},
		{"DELETE", "/v1/policies/default?name=web&name=db", "", 204, "", []any{"delete policies", "default", []string{"web", "db"}}},
		{"DELETE", "/v1/policies/default", "", 400, `{"code":"invalid","message":"name is missing: whose policy is to be deleted","key":"name"}`, nil},
		{"DELETE", "/v1/policies/default/web", "", 404, `{"code":"not_found","message":"no such operation: DELETE /v1/policies/default/web"}`, nil},
		{"GET", "/v1/drops", "", 200, `[]`, []any{"drops", 1000}},
		{"GET", "/v1/drops?limit=7", "", 200, `[]`, []any{"drops", 7}},
		{"GET", "/v1/drops?limit=x", "", 400, `{"code":"invalid","message":"limit \"x\": not a number from 1 to 100000","key":"limit","value":"x"}`, nil},
		{"GET", "/v1/health", "", 200, `{"ok":true}`, []any{"health"}},
		{"GET", "/v2/health", "", 404, `{"code":"not_found","message":"no such operation: GET /v2/health"}`, nil},
		{"PATCH", "/v1/endpoints", "", 405, `{"code":"method_not_allowed","message":"no such operation: PATCH /v1/endpoints, only GET, HEAD, POST"}`, nil},
		{
			"PUT", "/v1/endpoints/c1/eth0", `{}`, 405,
			`{"code":"method_not_allowed","message":"no such operation: PUT /v1/endpoints/c1/eth0, only DELETE, GET, HEAD"}`, nil,
		},
		{"HEAD", "/v1/health", "", 200, `{"ok":true}`, []any{"health"}}, // net/http keeps the body to itself
		{"GET", "/v1//health", "", 404, `{"code":"not_found","message":"no such operation: GET /v1//health"}`, nil},
		{"GET", "/v1/x/../health", "", 404, `{"code":"not_found","message":"no such operation: GET /v1/x/../health"}`, nil},
		{"GET", "/v1/health/", "", 404, `{"code":"not_found","message":"no such operation: GET /v1/health/"}`, nil},
		{"DELETE", "/v1/endpoints//eth0", "", 404, `{"code":"not_found","message":"no such operation: DELETE /v1/endpoints//eth0"}`, nil},
		{"DELETE", "/v1/endpoints/a%2Fb/eth0", "", 204, "", []any{"delete", Attachment{ContainerID: "a/b", IfName: "eth0"}}},
		{"GET", "/", "", 404, `{"code":"not_found","message":"no such operation: GET /"}`, nil},
		{"POST", "/v1/gc", `{"network":"n","vaild":[]}`, 400, `{"code":"invalid","message":"read request: unknown key \"vaild\"","key":"vaild"}`, nil},
		{"POST", "/v1/gc", `{"network":"n"}{}`, 400, `{"code":"invalid","message":"read request: more than one JSON value"}`, nil},
		{"POST", "/v1/gc", ``, 400, `{"code":"invalid","message":"read request: body is empty"}`, nil},
		{"POST", "/v1/gc", `{"network":`, 400, `{"code":"invalid","message":"read request: body ends in the middle of a JSON value"}`, nil},
		{
			"POST", "/v1/gc", `{"network":n}`, 400,
			`{"code":"invalid","message":"read request: body is no JSON: byte 13: invalid character '}' in literal null (expecting 'u')"}`, nil,
		},
		{"POST", "/v1/gc", `[]`, 400, `{"code":"invalid","message":"read request: body: an object is wanted, not array"}`, nil},
		{
			"PUT", "/v1/endpoints/c1/eth0/attach", `{"hostIfIndex":"7"}`, 400,
			`{"code":"invalid","message":"read request: key \"hostIfIndex\": a whole number is wanted, not string","key":"hostIfIndex"}`, nil,
		},
		{
			"PUT", "/v1/endpoints/c1/eth0/attach", `{"hostIfIndex":7.5}`, 400,
			`{"code":"invalid","message":"read request: key \"hostIfIndex\": a whole number is wanted, not number 7.5","key":"hostIfIndex"}`, nil,
		},
		{
			"POST", "/v1/endpoints", `{"containerID":1}`, 400,
			`{"code":"invalid","message":"read request: key \"containerID\": a string is wanted, not number","key":"containerID"}`, nil,
		},
		{
			"POST", "/v1/endpoints", `{"network":{"ipMasq":"yes"}}`, 400,
			`{"code":"invalid","message":"read request: key \"network.ipMasq\": true or false is wanted, not string","key":"network.ipMasq"}`, nil,
		},
		{
			"POST", "/v1/endpoints", `{"network":{"ranges":{}}}`, 400,
			`{"code":"invalid","message":"read request: key \"network.ranges\": a list is wanted, not object","key":"network.ranges"}`, nil,
		},
		{
			"POST", "/v1/endpoints", `{"network":{"ranges":[[{"subnet":7}]]}}`, 400,
			`{"code":"invalid","message":"read request: key \"network.ranges.subnet\": a string is wanted, not number","key":"network.ranges.subnet"}`, nil,
		},
		{
			"POST", "/v1/endpoints", `{"network":{"ranges":[[{"subnet":"10.0.0.0"}]]}}`, 400,
			`{"code":"invalid","message":"read request: \"10.0.0.0\" is no prefix: no '/'","value":"10.0.0.0"}`, nil,
		},
		{
			"POST", "/v1/endpoints", `{"ports":[{"hostPort":65536}]}`, 400,
			`{"code":"invalid","message":"read request: key \"ports.hostPort\": a whole number is wanted, not number 65536","key":"ports.hostPort"}`, nil,
		},
		{
			"POST", "/v1/endpoints", `{"wanted":["10.0.0"]}`, 400,
			`{"code":"invalid","message":"read request: \"10.0.0\" is no address: IPv4 address too short","value":"10.0.0"}`, nil,
		},
	}
	for _, test := range tests {
		t.Run(test.method+" "+test.path+" "+test.body, func(t *testing.T) {
			r := &recorder{}
			w := serve(r, HandlerOptions{}, test.method, test.path, test.body)
			if w.Code != test.status {
				t.Errorf("status %d, want %d", w.Code, test.status)
			}
			if d := cmp.Diff(test.answer, strings.TrimSpace(w.Body.String())); d != "" {
				t.Errorf("answer (-want +got):\n%s", d)
			}
			if d := cmp.Diff(test.asked, r.asked, equate); d != "" {
				t.Errorf("asked (-want +got):\n%s", d)
			}
		})
	}
}

func TestHandlerAllows(t *testing.T) {
	w := serve(&recorder{}, HandlerOptions{}, "PATCH", "/v1/gc", "")
	if got := w.Header().Get("Allow"); w.Code != http.StatusMethodNotAllowed || got != "POST" {
		t.Errorf("status %d, Allow %q", w.Code, got)
	}
	if w := serve(&recorder{}, HandlerOptions{}, "GET", "/v2/gc", ""); w.Header().Values("Allow") != nil {
		t.Errorf("Allow of an unknown path: %q", w.Header().Values("Allow"))
	}
}

func TestHandlerErrors(t *testing.T) {
	tests := []struct {
		err    error
		status int
		answer Error
	}{
		{&Error{Code: CodeInvalid, Message: "m", Key: "k", Value: "v"}, 400, Error{Code: CodeInvalid, Message: "m", Key: "k", Value: "v"}},
		{&Error{Code: CodeNotFound, Message: "m"}, 404, Error{Code: CodeNotFound, Message: "m"}},
		{&Error{Code: CodeConflict, Message: "m"}, 409, Error{Code: CodeConflict, Message: "m"}},
		{&Error{Code: CodeExhausted, Message: "m"}, 409, Error{Code: CodeExhausted, Message: "m"}},
		{&Error{Code: CodeMismatch, Message: "m"}, 409, Error{Code: CodeMismatch, Message: "m"}},
		{&Error{Code: CodeUnavailable, Message: "m"}, 503, Error{Code: CodeUnavailable, Message: "m"}},
		{errors.New("disk full"), 500, Error{Code: CodeInternal, Message: "disk full"}},
		{fmt.Errorf("store: %w", &Error{Code: CodeConflict, Message: "taken", Key: "k"}), 409, Error{Code: CodeConflict, Message: "store: taken", Key: "k"}},
	}
	for _, test := range tests {
		t.Run(test.err.Error(), func(t *testing.T) {
			var observed, faults []string
			opts := HandlerOptions{
				Observe: func(operation, code string, _ time.Duration) { observed = append(observed, operation, code) },
				Fault:   func(method, path string, err error) { faults = append(faults, method, path, err.Error()) },
			}
			w := serve(&recorder{err: test.err}, opts, "DELETE", "/v1/endpoints/c1/eth0", "")
			var got Error
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(test.answer, got); d != "" || w.Code != test.status {
				t.Errorf("status %d, want %d; answer (-want +got):\n%s", w.Code, test.status, d)
			}
			if d := cmp.Diff([]string{"delete", test.answer.Code}, observed); d != "" {
				t.Errorf("observed (-want +got):\n%s", d)
			}
			if reported := len(faults) > 0; reported != (test.status == 500) {
				t.Errorf("faults %q", faults)
			}
		})
	}
}

func TestHandlerBoundsBodies(t *testing.T) {
	for _, one := range []struct {
		path, body string
		most       int
	}{
		{"/v1/networks/status", `{"name":"n","driver":"routed"}`, MaxBody},
		{"/v1/gc", `{"network":"n","valid":[]}`, MaxLargeBody},
	} {
		fits := one.body[:len(one.body)-1] + strings.Repeat(" ", one.most-len(one.body)) + `}`
		if w := serve(&recorder{}, HandlerOptions{}, "POST", one.path, fits); w.Code/100 != 2 {
			t.Errorf("%s of %d bytes: status %d: %s", one.path, len(fits), w.Code, w.Body)
		}
		for _, body := range []string{
			fits + " ",
			`{"name":"` + strings.Repeat("n", one.most) + `"}`,
		} {
			w := serve(&recorder{}, HandlerOptions{}, "POST", one.path, body)
			want := fmt.Sprintf(`{"code":"invalid","message":"read request: body is longer than %d bytes"}`, one.most)
			if got := strings.TrimSpace(w.Body.String()); w.Code != http.StatusBadRequest || got != want {
				t.Errorf("%s of %d bytes: status %d: %s", one.path, len(body), w.Code, got)
			}
		}
	}
	if w := serve(&recorder{}, HandlerOptions{}, "POST", "/v1/policies", strings.Repeat("#", MaxLargeBody)); w.Code != http.StatusOK {
		t.Errorf("policies of %d bytes: status %d: %s", MaxLargeBody, w.Code, w.Body)
	}
	w := serve(&recorder{}, HandlerOptions{}, "POST", "/v1/policies", strings.Repeat("#", MaxLargeBody+1))
	want := `{"code":"invalid","message":"read request: body is longer than 16777216 bytes"}`
	if got := strings.TrimSpace(w.Body.String()); w.Code != http.StatusBadRequest || got != want {
		t.Errorf("policies of %d bytes: status %d: %s", MaxLargeBody+1, w.Code, got)
	}
}

// FuzzHandler sends any body to every operation that reads one, but for the policies, whose text is
// policy.Parse's. Whatever is not a success is an Error, and the same request twice has the same answer.
func FuzzHandler(f *testing.F) {
	for _, body := range []string{
		`{"containerID":"c1","ifName":"eth0","netns":"/n","network":{"name":"n","driver":"routed","ipMasq":true,"ranges":[[{"subnet":"10.0.0.0/8","gateway":"10.0.0.1"}]]},"wanted":["10.0.0.9"],"labels":{"a":"b"},"ports":[{"hostIP":"::","hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`,
		`{"hostIfIndex":7}`,
		`{"network":"n","valid":[{"containerID":"c1","ifName":"eth0"}]}`,
		`{"name":"n","driver":"routed","ipMasq":false,"ranges":[[{"subnet":"fd00::/64"}]]}`,
		`{"egress":{"rate":1000000,"burst":12500},"ingress":{"rate":1e30}}`,
		`{"network":"n"}{}`, `[]`, `null`, ``, `{"valid":`,
	} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		for _, to := range []struct{ method, path string }{
			{"POST", "/v1/endpoints"},
			{"PUT", "/v1/endpoints/c1/eth0/attach"},
			{"PUT", "/v1/endpoints/c1/eth0/bandwidth"},
			{"POST", "/v1/endpoints/c1/eth0/check"},
			{"POST", "/v1/gc"},
			{"POST", "/v1/networks/status"},
		} {
			w := serve(&recorder{}, HandlerOptions{}, to.method, to.path, body)
			again := serve(&recorder{}, HandlerOptions{}, to.method, to.path, body)
			if w.Code != again.Code || w.Body.String() != again.Body.String() {
				t.Errorf("%s: %d %s, then %d %s", to.path, w.Code, w.Body, again.Code, again.Body)
			}
			if w.Code == http.StatusOK || w.Code == http.StatusNoContent {
				continue
			}
			var fault Error
			if err := json.Unmarshal(w.Body.Bytes(), &fault); err != nil || w.Code != http.StatusBadRequest || fault.Code != CodeInvalid || strings.Contains(fault.Message, "Go ") {
				t.Errorf("%s: status %d: %s", to.path, w.Code, w.Body)
			}
		}
	})
}

// FuzzHandlerRequest sends requests with any method, path and query. None is answered by a redirect, by a
// failure of the agent or in words that are not ours.
func FuzzHandlerRequest(f *testing.F) {
	f.Add("GET", "/v1/flows", "limit=10")
	f.Add("GET", "/v1/drops", "limit=-1&limit=99999999999999999999")
	f.Add("DELETE", "/v1/policies/default", "name=a&name=")
	f.Add("POST", "/v1/policies", "source=a%2Fb&dryRun=maybe")
	f.Add("DELETE", "/v1/endpoints/..%2F/eth0", "")
	f.Add("GET", "/v1//endpoints/./c1", "%zz")
	f.Fuzz(func(t *testing.T, method, path, query string) {
		r := &http.Request{
			Method: method, URL: &url.URL{Path: path, RawQuery: query}, Host: "tendril", Header: http.Header{},
			Body: http.NoBody, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		}
		w := httptest.NewRecorder()
		NewHandler(&recorder{}, HandlerOptions{}).ServeHTTP(w, r)
		if w.Code == http.StatusOK || w.Code == http.StatusNoContent {
			return
		}
		var fault Error
		if err := json.Unmarshal(w.Body.Bytes(), &fault); err != nil || fault.Code == CodeInternal || statusOf(fault.Code) != w.Code || fault.Message == "" {
			t.Errorf("%q %q ?%q: status %d: %s", method, path, query, w.Code, w.Body)
		}
	})
}
