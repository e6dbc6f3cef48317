// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/pkg/api"
)

// request is what a server was sent.
type request struct{ Method, Path, Body string }

// serve answers every request on a unix socket with status and body, and
// returns the socket and what came.
func serve(t *testing.T, status int, body string) (string, *[]request) {
	t.Helper()
	var got []request
	socket := serveFunc(t, func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = append(got, request{r.Method, r.URL.RequestURI(), string(text)})
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
	return socket, &got
}

func serveFunc(t *testing.T, handle http.HandlerFunc) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handle, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return socket
}

func newClient(t *testing.T, socket string) *api.Client {
	t.Helper()
	client := api.NewClient(socket)
	t.Cleanup(client.Close)
	return client
}

func TestClientCalls(t *testing.T) {
	attachment := api.Attachment{ContainerID: "c1", IfName: "eth%/0"}
	tests := []struct {
		name   string
		status int
		answer string
		call   func(context.Context, *api.Client) (any, error)
		want   request
		result any
	}{
		{
			"prepare", 200, `{"containerID":"c1","ifName":"eth%/0","id":7,"addresses":[{"address":"10.10.0.5/16","gateway":"10.10.0.1"}]}`,
			func(ctx context.Context, c *api.Client) (any, error) {
				return c.Prepare(ctx, api.PrepareRequest{Attachment: attachment, HostMAC: "02:00:00:00:00:01", Wanted: []netip.Addr{netip.MustParseAddr("10.10.0.5")}})
			},
			request{"POST", "/v1/endpoints", `{"containerID":"c1","ifName":"eth%/0","network":{"name":"","driver":"","ipMasq":false},"netns":"","wanted":["10.10.0.5"],"hostMAC":"02:00:00:00:00:01"}`},
			api.Endpoint{Attachment: attachment, ID: 7, Addresses: []api.Address{{Address: netip.MustParsePrefix("10.10.0.5/16"), Gateway: netip.MustParseAddr("10.10.0.1")}}},
		},
		{
			"attach", 200, `{"id":7}`,
			func(ctx context.Context, c *api.Client) (any, error) {
				return c.Attach(ctx, attachment, api.AttachRequest{HostIfIndex: 5})
			},
			request{"PUT", "/v1/endpoints/c1/eth%25%2F0/attach", `{"hostIfIndex":5}`},
			api.Endpoint{ID: 7},
		},
		{
			"check", 204, ``,
			func(ctx context.Context, c *api.Client) (any, error) { return nil, c.Check(ctx, attachment) },
			request{"POST", "/v1/endpoints/c1/eth%25%2F0/check", ""},
			nil,
		},
		{
			"delete", 204, ``,
			func(ctx context.Context, c *api.Client) (any, error) { return nil, c.Delete(ctx, attachment) },
			request{"DELETE", "/v1/endpoints/c1/eth%25%2F0", ""},
			nil,
		},
		{
			"gc without a list", 200, `{"freed":null}`,
			func(ctx context.Context, c *api.Client) (any, error) {
				return c.GC(ctx, api.GCRequest{Network: "pods"})
			},
			request{"POST", "/v1/gc", `{"network":"pods","valid":null}`},
			api.GCResult{},
		},
		{
			"gc with an empty list", 200, `{"freed":[{"containerID":"c1","ifName":"eth0"}]}`,
			func(ctx context.Context, c *api.Client) (any, error) {
				return c.GC(ctx, api.GCRequest{Network: "pods", Valid: []api.Attachment{}})
			},
			request{"POST", "/v1/gc", `{"network":"pods","valid":[]}`},
			api.GCResult{Freed: []api.Attachment{{ContainerID: "c1", IfName: "eth0"}}},
		},
		{
			"network status", 200, `{"ok":false,"reasons":["no address is left"]}`,
			func(ctx context.Context, c *api.Client) (any, error) {
				return c.NetworkStatus(ctx, api.Network{Name: "pods"})
			},
			request{"POST", "/v1/networks/status", `{"name":"pods","driver":"","ipMasq":false}`},
			api.Health{Reasons: []string{"no address is left"}},
		},
		{
			"health", 200, `{"ok":true}`,
			func(ctx context.Context, c *api.Client) (any, error) { return c.Health(ctx) },
			request{"GET", "/v1/health", ""},
			api.Health{OK: true},
		},
		{
			"status", 200, `{"ok":true,"pid":5}`,
			func(ctx context.Context, c *api.Client) (any, error) { return c.Status(ctx) },
			request{"GET", "/v1/status", ""},
			api.Status{Health: api.Health{OK: true}, PID: 5},
		},
		{
			"endpoints", 200, `[]`,
			func(ctx context.Context, c *api.Client) (any, error) { return c.Endpoints(ctx) },
			request{"GET", "/v1/endpoints", ""},
			[]api.Endpoint{},
		},
		{
			"endpoint", 200, `{"id":7}`,
			func(ctx context.Context, c *api.Client) (any, error) { return c.Endpoint(ctx, attachment) },
			request{"GET", "/v1/endpoints/c1/eth%25%2F0", ""},
			api.Endpoint{ID: 7},
		},
		{
			"flows", 200, `[{"protocol":"tcp"}]`,
			func(ctx context.Context, c *api.Client) (any, error) { return c.Flows(ctx, 10) },
			request{"GET", "/v1/flows?limit=10", ""},
			[]api.Flow{{Protocol: "tcp"}},
		},
		{
			"all flows", 200, `[]`,
			func(ctx context.Context, c *api.Client) (any, error) { return c.Flows(ctx, 0) },
			request{"GET", "/v1/flows", ""},
			[]api.Flow{},
		},
		{
			"prepare with ports", 200, `{"ports":[{"hostIP":"127.0.0.1","hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`,
			func(ctx context.Context, c *api.Client) (any, error) {
				return c.Prepare(ctx, api.PrepareRequest{Ports: []api.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}})
			},
			request{"POST", "/v1/endpoints", `{"containerID":"","ifName":"","network":{"name":"","driver":"","ipMasq":false},"netns":"","ports":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`},
			api.Endpoint{Ports: []api.PortMapping{{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}},
		},
		{
			"ports", 200, `[{"protocol":"udp","host":"[::]:53","container":"[fd00:10::2]:5353","containerID":"c1","ifName":"eth0","network":"pods"}]`,
			func(ctx context.Context, c *api.Client) (any, error) { return c.Ports(ctx) },
			request{"GET", "/v1/ports", ""},
			[]api.Port{{
				Protocol: "udp", Host: netip.MustParseAddrPort("[::]:53"), Container: netip.MustParseAddrPort("[fd00:10::2]:5353"),
				Attachment: api.Attachment{ContainerID: "c1", IfName: "eth0"}, Network: "pods",
			}},
		},
		{
			"policies", 200, `{"policies":[{"namespace":"default","name":"web","rules":[{"summary":"from everybody to TCP 80","hits":7}]}]}`,
			func(ctx context.Context, c *api.Client) (any, error) { return c.Policies(ctx) },
			request{"GET", "/v1/policies", ""},
			api.Firewall{Policies: []api.Policy{{Namespace: "default", Name: "web", Rules: []api.PolicyRule{{Summary: "from everybody to TCP 80", Hits: 7}}}}},
		},
		{
			"apply", 200, `{"dryRun":true,"objects":[{"kind":"NetworkPolicy","namespace":"default","name":"web","change":"created","file":"/f"}]}`,
			func(ctx context.Context, c *api.Client) (any, error) {
				return c.ApplyPolicies(ctx, api.ApplyRequest{Source: "a b.yaml", Text: []byte("kind: x\n"), DryRun: true})
			},
			request{"POST", "/v1/policies?dryRun=true&source=a+b.yaml", "kind: x\n"},
			api.PolicyChange{DryRun: true, Objects: []api.ObjectChange{
				{Kind: "NetworkPolicy", Namespace: "default", Name: "web", Change: api.ObjectCreated, File: "/f"},
			}},
		},
		{
			"delete policy", 204, ``,
			func(ctx context.Context, c *api.Client) (any, error) {
				return nil, c.DeletePolicies(ctx, "de/fault", []string{"a&b", ".."})
			},
			request{"DELETE", "/v1/policies/de%2Ffault?name=a%26b&name=..", ""},
			nil,
		},
		{
			"drops", 200, `[{"reason":"policy_ingress","endpoint":{"containerID":"c1","ifName":"eth0"}}]`,
			func(ctx context.Context, c *api.Client) (any, error) { return c.Drops(ctx, 5) },
			request{"GET", "/v1/drops?limit=5", ""},
			[]api.Drop{{Reason: "policy_ingress", Endpoint: api.Attachment{ContainerID: "c1", IfName: "eth0"}}},
		},
		{
			"networks", 200, `[{"name":"pods","driver":"routed","ipMasq":true}]`,
			func(ctx context.Context, c *api.Client) (any, error) { return c.Networks(ctx) },
			request{"GET", "/v1/networks", ""},
			[]api.Network{{Name: "pods", Driver: "routed", IPMasq: true}},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			socket, got := serve(t, test.status, test.answer)
			result, err := test.call(t.Context(), newClient(t, socket))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]request{test.want}, *got); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.result, result, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

func TestClientRefused(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	tests := []struct {
		name        string
		status      int
		answer      string
		want        api.Error
		unavailable bool
	}{
		{
			"invalid", 400, `{"code":"invalid","message":"subnet overlaps","key":"ipam.ranges[0][0].subnet","value":"10.10.0.0/16"}`,
			api.Error{Code: api.CodeInvalid, Message: "subnet overlaps", Key: "ipam.ranges[0][0].subnet", Value: "10.10.0.0/16"},
			false,
		},
		{
			"unavailable", 503, `{"code":"unavailable","message":"starting"}`,
			api.Error{Code: api.CodeUnavailable, Message: "starting"},
			true,
		},
		{
			"not ours", 404, "404 page not found\n",
			api.Error{Code: api.CodeInternal, Message: `agent answered 404 Not Found: "404 page not found"`},
			false,
		},
		{
			"a proxy's", 503, "try later",
			api.Error{Code: api.CodeUnavailable, Message: `agent answered 503 Service Unavailable: "try later"`},
			true,
		},
		{
			"endless", 500, long,
			api.Error{Code: api.CodeInternal, Message: `agent answered 500 Internal Server Error: "` + long[:64<<10] + `"`},
			false,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			socket, _ := serve(t, test.status, test.answer)
			_, err := newClient(t, socket).Health(t.Context())
			var got *api.Error
			if !errors.As(err, &got) {
				t.Fatalf("want an *api.Error, got %v", err)
			}
			if diff := cmp.Diff(test.want, *got); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if is := errors.Is(err, api.ErrUnavailable); is != test.unavailable {
				t.Errorf("errors.Is ErrUnavailable: want %v, got %v", test.unavailable, is)
			}
		})
	}
}

func TestClientUnavailable(t *testing.T) {
	dir := t.TempDir()
	refusing := filepath.Join(dir, "refusing.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: refusing})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false) // as a killed agent leaves it
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	hangUp := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	half := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, `{"ok":`)
	}
	for _, test := range []struct{ name, socket string }{
		{"missing", filepath.Join(dir, "missing.sock")},
		{"refusing", refusing},
		{"hangs up", serveFunc(t, hangUp)},
		{"dies while it answers", serveFunc(t, half)},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := newClient(t, test.socket).Health(t.Context())
			if !errors.Is(err, api.ErrUnavailable) {
				t.Fatalf("want ErrUnavailable, got %v", err)
			}
			if !strings.Contains(err.Error(), test.socket) {
				t.Errorf("the error does not name the socket %s: %v", test.socket, err)
			}
		})
	}
}

// A slow agent is there: nothing may be concluded.
func TestClientCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	socket := serveFunc(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	_, err := newClient(t, socket).Health(ctx)
	if !errors.Is(err, context.Canceled) || errors.Is(err, api.ErrUnavailable) {
		t.Errorf("want context.Canceled and not ErrUnavailable, got %v", err)
	}
}

func TestClientNonsense(t *testing.T) {
	socket, _ := serve(t, 200, `{"ok":"perhaps"}`)
	_, err := newClient(t, socket).Health(t.Context())
	if err == nil || errors.Is(err, api.ErrUnavailable) || !strings.Contains(err.Error(), "decode answer to GET /v1/health") {
		t.Errorf("want an error of decoding, got %v", err)
	}
}

// Who changes the protocol keeps nobody waiting for the end of its connection.
func TestClientAnotherProtocol(t *testing.T) {
	socket := serveFunc(t, func(w http.ResponseWriter, _ *http.Request) {
		connection, text, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = connection.Close() }()
		_, _ = text.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
		_ = text.Flush()
		_, _ = io.Copy(io.Discard, text) // until the client has gone
	})
	_, err := newClient(t, socket).Status(t.Context())
	want := &api.Error{Code: api.CodeInternal, Message: `agent answered 101 Switching Protocols: ""`}
	var got *api.Error
	if !errors.As(err, &got) {
		t.Fatalf("error %v", err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("error (-want +got):\n%s", d)
	}
}

func TestHostIfName(t *testing.T) {
	for _, test := range []struct {
		of   api.Attachment
		want string
	}{
		// The first 48 bits of SHA-256 of "c1/eth0".
		{api.Attachment{ContainerID: "c1", IfName: "eth0"}, "tdld72e032fedd9"},
		{api.Attachment{ContainerID: "c1", IfName: "eth1"}, "tdlbc0ebb024044"},
	} {
		if got := api.HostIfName(test.of); got != test.want {
			t.Errorf("%v: want %s, got %s", test.of, test.want, got)
		}
	}
}
