// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/api"
)

const holder = "container c1, interface eth0, network pods"

// TestPortTaken has c1 hold a port, and c2 ask for one.
func TestPortTaken(t *testing.T) {
	tests := map[string]struct {
		held, wanted api.PortMapping
		want         string // empty: c2 gets it
	}{
		"the same":                     {mapped("", 80, 80, "tcp"), mapped("", 80, 81, "tcp"), "0.0.0.0:80/tcp is taken by " + holder},
		"all, and one held":            {mapped("127.0.0.1", 80, 80, "tcp"), mapped("", 80, 80, "tcp"), "0.0.0.0:80/tcp is taken by " + holder + ", as 127.0.0.1:80"},
		"one, and all held":            {mapped("", 80, 80, "udp"), mapped("::1", 80, 80, "udp"), "[::1]:80/udp is taken by " + holder + ", as [::]:80"},
		"one and the same":             {mapped("192.0.2.1", 80, 80, "tcp"), mapped("192.0.2.1", 80, 80, "tcp"), "192.0.2.1:80/tcp is taken by " + holder},
		"all, and IPv6 held":           {mapped("::", 80, 80, "tcp"), mapped("", 80, 80, "tcp"), "[::]:80/tcp is taken by " + holder},
		"another address":              {mapped("192.0.2.1", 80, 80, "tcp"), mapped("192.0.2.2", 80, 80, "tcp"), ""},
		"another protocol":             {mapped("", 80, 80, "tcp"), mapped("", 80, 80, "udp"), ""},
		"another family":               {mapped("0.0.0.0", 80, 80, "tcp"), mapped("::", 80, 80, "tcp"), ""},
		"another port to the same one": {mapped("", 80, 80, "tcp"), mapped("", 81, 80, "tcp"), ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, stop := w.boot(t)
			w.mustAdd(t, s, withPorts(request("c1"), test.held))
			stop()
			s, _ = w.boot(t) // who holds what outlives the agent
			before := w.remains(t, s)
			_, err := w.add(s, withPorts(request("c2"), mapped("", 9090, 90, "tcp"), test.wanted))
			if test.want == "" {
				must(t, err)
				return
			}
			want := api.Error{
				Code: api.CodeConflict, Key: "ports[1].hostPort", Value: fmt.Sprint(test.wanted.HostPort), Message: "ports[1].hostPort: " + test.want,
			}
			if d := cmp.Diff(want, faultOf(t, err, api.CodeConflict)); d != "" {
				t.Errorf("refusal (-want +got):\n%s", d)
			}
			w.mustRemain(t, s, before)

			w.unwire(request("c1").Attachment)
			must(t, s.Delete(ctx, request("c1").Attachment))
			w.mustAdd(t, s, withPorts(request("c2"), test.wanted))
		})
	}
}

// A runtime asks each network of a container for all of the container's ports.
func TestPortOfAnotherInterface(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	first, more := mapped("", 80, 80, "tcp"), mapped("", 81, 81, "tcp")
	w.mustAdd(t, s, withPorts(request("c1"), first))
	again := request("c1")
	again.IfName = "eth1"
	added := w.mustAdd(t, s, withPorts(again, first, more))
	if d := cmp.Diff([]api.PortMapping{more}, added.Ports, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("ports of the second interface (-want +got):\n%s", d)
	}
}

// Where the first interface serves one family only, the second serves the other, however
// that was asked for.
func TestPortOfAnotherFamily(t *testing.T) {
	for name, test := range map[string]struct {
		wanted, stored []api.PortMapping
	}{
		"both":              {[]api.PortMapping{mapped("", 80, 80, "tcp")}, []api.PortMapping{mapped("::", 80, 80, "tcp")}},
		"both and one":      {[]api.PortMapping{mapped("", 80, 80, "tcp"), mapped("0.0.0.0", 80, 80, "tcp")}, []api.PortMapping{mapped("::", 80, 80, "tcp")}},
		"both and the free": {[]api.PortMapping{mapped("", 80, 80, "tcp"), mapped("::", 80, 80, "tcp")}, []api.PortMapping{mapped("::", 80, 80, "tcp")}},
		"one address":       {[]api.PortMapping{mapped("192.0.2.1", 80, 80, "tcp"), mapped("2001:db8::1", 80, 80, "tcp")}, []api.PortMapping{mapped("2001:db8::1", 80, 80, "tcp")}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.boot(t)
			w.mustAdd(t, s, withPorts(delegated("c1", "198.51.100.7/24"), mapped("", 80, 80, "tcp")))
			again := request("c1")
			again.IfName = "eth1"
			added := w.mustAdd(t, s, withPorts(again, test.wanted...))
			if d := cmp.Diff(test.stored, added.Ports, equate...); d != "" {
				t.Errorf("ports of the second interface (-want +got):\n%s", d)
			}
			served := w.attached[added.ID].Ports
			if len(served) != 1 || served[0].HostIP.Is4() {
				t.Errorf("the second interface serves %+v, want one port of IPv6", served)
			}
			for _, host := range []string{"0.0.0.0", "::"} {
				_, err := s.Prepare(ctx, withPorts(request("c2"), mapped(host, 80, 80, "tcp")))
				wantCode(t, err, api.CodeConflict)
			}
		})
	}
}

// A port is the endpoint's from Prepare to DEL or GC, its device or not.
func TestPortTakenUntilGone(t *testing.T) {
	mapping := mapped("", 80, 80, "tcp")
	for name, end := range map[string]func(*world, *Service) error{
		"DEL": func(w *world, s *Service) error {
			w.unwire(request("c1").Attachment)
			return s.Delete(ctx, request("c1").Attachment)
		},
		"GC": func(_ *world, s *Service) error {
			_, err := s.GC(ctx, api.GCRequest{Network: "pods", Valid: []api.Attachment{}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.boot(t)
			refused := func() string {
				t.Helper()
				_, err := s.Prepare(ctx, withPorts(request("c2"), mapping))
				return faultOf(t, err, api.CodeConflict).Message
			}
			e, err := s.Prepare(ctx, withPorts(request("c1"), mapping))
			must(t, err)
			refused()
			e, err = s.Attach(ctx, e.Attachment, api.AttachRequest{HostIfIndex: w.wire(e).Index})
			must(t, err)
			refused()
			w.unwire(e.Attachment)
			s.LinkGone(e.HostIfIndex)
			if got := refused(); !strings.Contains(got, "its device is gone, and its DEL or a GC frees the port") {
				t.Errorf("refusal %q", got)
			}
			must(t, end(w, s))
			w.mustAdd(t, s, withPorts(request("c2"), mapping))
		})
	}
}

// The same container may ask again when its ADD did not finish.
func TestPortsOfUnfinishedADD(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	for range 2 {
		_, err := s.Prepare(ctx, withPorts(request("c1"), mapped("", 80, 80, "tcp")))
		must(t, err)
	}
	if got := w.remains(t, s); got.Claimed != 2 || got.Reserved != "80" {
		t.Errorf("%d ports claimed, want 2; %q reserved, want 80", got.Claimed, got.Reserved)
	}
}

// Ports for which the map has no room are refused before anything is done.
func TestNoRoomForPorts(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	many := func(container string, first uint16, protocol string) api.PrepareRequest {
		ports := make([]api.PortMapping, maxPorts)
		for i := range ports {
			ports[i] = mapped("", first+uint16(i), 80, protocol)
		}
		return withPorts(request(container), ports...)
	}
	for i := range uint16(8) { // of both families
		for _, protocol := range []string{"tcp", "udp"} {
			if i == 7 && protocol == "udp" {
				break
			}
			_, err := s.Prepare(ctx, many(fmt.Sprint(protocol, i), 1+i*maxPorts, protocol))
			must(t, err)
		}
	}
	_, err := s.Prepare(ctx, withPorts(request("small"), mapped("", 50000, 80, "tcp")))
	must(t, err)
	before := w.remains(t, s)
	last := many("last", 40000, "udp")
	_, err = s.Prepare(ctx, last)
	want := api.Error{Code: api.CodeExhausted, Key: "ports", Message: "map ports is full: 122882 of 131072 entries, and 8192 are wanted"}
	if d := cmp.Diff(want, faultOf(t, err, api.CodeExhausted)); d != "" {
		t.Errorf("refusal (-want +got):\n%s", d)
	}
	w.mustRemain(t, s, before)
	// One of loopback takes two, one of them to shut the container's own port.
	last.Ports[0] = mapped("127.0.0.1", 50001, 81, "tcp")
	last.Ports = last.Ports[:maxPorts-1]
	_, err = s.Prepare(ctx, last)
	must(t, err)
}

// Of those that ask for a port at the same time one gets it.
func TestPortTakenAtOnce(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	const many = 16
	errs := make([]error, many)
	var group sync.WaitGroup
	for i := range many {
		group.Go(func() {
			// Every other one without leases, whose transaction is another.
			req := request(fmt.Sprintf("c%d", i))
			if i%2 == 0 {
				req = delegated(req.ContainerID, fmt.Sprintf("198.51.100.%d/24", i+1))
			}
			_, errs[i] = w.add(s, withPorts(req, mapped("0.0.0.0", 80, 80, "tcp")))
		})
	}
	group.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		wantCode(t, err, api.CodeConflict)
	}
	if got := w.remains(t, s); won != 1 || len(got.Endpoints) != 1 || len(got.Attached) != 1 || got.Claimed != 1 {
		t.Errorf("%d got the port, want 1: %+v", won, got)
	}
}

// However many ports an endpoint has, the state file is written as often and the
// host's sockets are looked at as often.
func TestManyPortsCostOneTransaction(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	written := func() (id int) {
		must(t, s.opts.DB.View(func(tx *bbolt.Tx) error {
			id = tx.ID()
			return nil
		}))
		return id
	}
	cost := func(req api.PrepareRequest) [3]int {
		before := [3]int{written(), w.dumps, w.reservings}
		w.mustAdd(t, s, req)
		return [3]int{written() - before[0], w.dumps - before[1], w.reservings - before[2]}
	}
	var many []api.PortMapping
	for port := range uint16(100) {
		many = append(many, mapped("", 8000+port, 1+port, "tcp"))
	}
	none := cost(request("c0"))
	if d := cmp.Diff([3]int{none[0], 0, 0}, none); d != "" {
		t.Errorf("transactions, looks at sockets, reservations without a port (-want +got):\n%s", d)
	}
	if d := cmp.Diff([3]int{none[0], 1, 1}, cost(withPorts(request("c1"), mapped("", 80, 80, "tcp")))); d != "" {
		t.Errorf("transactions, looks at sockets, reservations for a port (-want +got):\n%s", d)
	}
	if d := cmp.Diff([3]int{none[0], 1, 1}, cost(withPorts(request("c2"), many...))); d != "" {
		t.Errorf("transactions, looks at sockets, reservations for 100 ports (-want +got):\n%s", d)
	}
}

// TestPortOfASocket has a process of the host hold a port.
func TestPortOfASocket(t *testing.T) {
	socket := func(at string, v6Only bool) BoundSocket {
		return BoundSocket{Addr: netip.MustParseAddrPort(at), V6Only: v6Only, Inode: 7}
	}
	tests := map[string]struct {
		protocol uint8
		held     BoundSocket
		wanted   api.PortMapping
		want     string // empty: the container gets it
	}{
		"all":                      {unix.IPPROTO_TCP, socket("0.0.0.0:80", false), mapped("", 80, 80, "tcp"), "0.0.0.0:80/tcp is taken by process nginx (pid 5) at 0.0.0.0:80"},
		"one of all":               {unix.IPPROTO_UDP, socket("0.0.0.0:80", false), mapped("192.0.2.1", 80, 80, "udp"), "192.0.2.1:80/udp is taken by process nginx (pid 5) at 0.0.0.0:80"},
		"all, and one held":        {unix.IPPROTO_UDP, socket("127.0.0.53:80", false), mapped("", 80, 80, "udp"), "0.0.0.0:80/udp is taken by process nginx (pid 5) at 127.0.0.53:80"},
		"IPv4 by an IPv6 socket":   {unix.IPPROTO_TCP, socket("[::]:80", false), mapped("0.0.0.0", 80, 80, "tcp"), "0.0.0.0:80/tcp is taken by process nginx (pid 5) at [::]:80"},
		"one of IPv4 by IPv6":      {unix.IPPROTO_TCP, socket("[::]:80", false), mapped("127.0.0.1", 80, 80, "tcp"), "127.0.0.1:80/tcp is taken by process nginx (pid 5) at [::]:80"},
		"IPv6":                     {unix.IPPROTO_TCP, socket("[::1]:80", false), mapped("::", 80, 80, "tcp"), "[::]:80/tcp is taken by process nginx (pid 5) at [::1]:80"},
		"IPv6 alone":               {unix.IPPROTO_TCP, socket("[::]:80", true), mapped("0.0.0.0", 80, 80, "tcp"), ""},
		"one of IPv6":              {unix.IPPROTO_TCP, socket("[::1]:80", false), mapped("0.0.0.0", 80, 80, "tcp"), ""},
		"another address":          {unix.IPPROTO_TCP, socket("192.0.2.1:80", false), mapped("192.0.2.2", 80, 80, "tcp"), ""},
		"another port":             {unix.IPPROTO_TCP, socket("0.0.0.0:81", false), mapped("", 80, 80, "tcp"), ""},
		"the other protocol's":     {unix.IPPROTO_TCP, socket("0.0.0.0:80", false), mapped("", 80, 80, "udp"), ""},
		"the other family's":       {unix.IPPROTO_TCP, socket("0.0.0.0:80", false), mapped("::", 80, 80, "tcp"), ""},
		"a process that is hidden": {unix.IPPROTO_TCP, BoundSocket{Addr: netip.MustParseAddrPort("0.0.0.0:80"), Inode: 8}, mapped("", 80, 80, "tcp"), "0.0.0.0:80/tcp is taken by a socket of the host at 0.0.0.0:80"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.boot(t)
			w.processes[7] = "process nginx (pid 5)"
			w.sockets[test.protocol] = []BoundSocket{socket("0.0.0.0:443", false), test.held}
			before := w.remains(t, s)
			_, err := w.add(s, withPorts(request("c1"), test.wanted))
			if test.want == "" {
				must(t, err)
				return
			}
			want := api.Error{Code: api.CodeConflict, Key: "ports[0].hostPort", Value: "80", Message: "ports[0].hostPort: " + test.want}
			if d := cmp.Diff(want, faultOf(t, err, api.CodeConflict)); d != "" {
				t.Errorf("refusal (-want +got):\n%s", d)
			}
			w.mustRemain(t, s, before)
		})
	}
}

// An endpoint is named rather than a socket: a runtime may hold the port as well.
func TestPortOfAnEndpointAndASocket(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	w.mustAdd(t, s, withPorts(request("c1"), mapped("", 80, 80, "tcp")))
	w.sockets[unix.IPPROTO_TCP] = []BoundSocket{{Addr: netip.MustParseAddrPort("0.0.0.0:80")}}
	_, err := s.Prepare(ctx, withPorts(request("c2"), mapped("", 80, 80, "tcp")))
	if got := faultOf(t, err, api.CodeConflict).Message; !strings.Contains(got, holder) {
		t.Errorf("refusal %q does not name %s", got, holder)
	}
}

// A kernel that tells nothing of its sockets is no reason to map no port; one that
// fails is.
func TestPortsWithoutSockets(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	w.fail["Bound"] = fmt.Errorf("list sockets: %w", errors.ErrUnsupported)
	w.fail["Disconnect"] = w.fail["Bound"]
	req := withPorts(request("c1"), mapped("", 80, 80, "tcp"))
	w.mustAdd(t, s, req)
	must(t, s.Delete(ctx, req.Attachment))
	before := w.remains(t, s)
	w.fail["Bound"] = errors.New("refused")
	if _, err := s.Prepare(ctx, req); !errors.Is(err, w.fail["Bound"]) {
		t.Errorf("error %v", err)
	}
	w.mustRemain(t, s, before)
}

// What sockets of the host had with the ports of an endpoint ends with it, and with
// nothing else.
func TestSocketsDisconnected(t *testing.T) {
	req := withPorts(request("c1"), mapped("", 8080, 80, "tcp"), mapped("0.0.0.0", 8081, 80, "tcp"), mapped("127.0.0.1", 53, 5353, "udp"))
	want := map[string][]string{"tcp": {"10.10.0.2:80", "[fd00:10::2]:80"}, "udp": {"10.10.0.2:5353"}}
	for name, end := range map[string]func(*Service, api.Endpoint) error{
		"DEL": func(s *Service, e api.Endpoint) error { return s.Delete(ctx, e.Attachment) },
		"GC": func(s *Service, _ api.Endpoint) error {
			_, err := s.GC(ctx, api.GCRequest{Network: "pods", Valid: []api.Attachment{}})
			return err
		},
		"its device gone": func(s *Service, e api.Endpoint) error {
			s.LinkGone(e.HostIfIndex)
			return s.Delete(ctx, e.Attachment)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.boot(t)
			e, other := w.mustAdd(t, s, req), w.mustAdd(t, s, delegated("c2", "198.51.100.1/24"))
			must(t, s.Delete(ctx, other.Attachment))
			if len(w.cut) != 0 {
				t.Errorf("disconnected for an endpoint without ports: %v", w.cut)
			}
			w.unwire(e.Attachment)
			must(t, end(s, e))
			if d := cmp.Diff(want, w.cut); d != "" {
				t.Errorf("disconnected (-want +got):\n%s", d)
			}
		})
	}
	t.Run("restart", func(t *testing.T) {
		w := newWorld(t)
		s, stop := w.boot(t)
		e := w.mustAdd(t, s, req)
		stop()
		w.unwire(e.Attachment)
		w.boot(t)
		if d := cmp.Diff(want, w.cut); d != "" {
			t.Errorf("disconnected (-want +got):\n%s", d)
		}
	})
}
