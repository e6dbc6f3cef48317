// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/uplink"
)

// steps are the instants at which the agent dies in TestCrash: its own
// failpoints, those inside of the datapath told by the call they are in.
var steps = append([]failpoint.Point{"AttachEndpoint", "DetachEndpoint", "never"}, failpoint.Agent...)

// TestCrash kills the agent at each step of ADD and DEL in turn, starts it
// again, and has the runtime do what runtimes do then: DEL, or GC.
func TestCrash(t *testing.T) {
	for _, step := range steps {
		for _, keepLink := range []bool{true, false} {
			for _, cure := range []string{"DEL", "GC", "restart"} {
				if cure == "restart" && keepLink {
					continue // then the container lives, and so does its endpoint
				}
				requests := map[string]api.PrepareRequest{
					"leased": request("c1"), "delegated": delegated("c1", "192.0.2.7/24"), "macvlan": child("c1"),
				}
				for kind, req := range requests {
					req.Network.NoICC = kind == "leased"
					if kind == "macvlan" {
						req.Network.Parent = "lan0.50" // is made
					} else {
						req = withPorts(req, mapped("", 8080, 80, "tcp"), mapped("127.0.0.1", 53, 53, "udp"))
					}
					t.Run(fmt.Sprintf("%s/link kept %v/%s/%s", step, keepLink, cure, kind), func(t *testing.T) {
						testCrash(t, step, keepLink, cure, req)
					})
				}
			}
		}
	}
}

func testCrash(t *testing.T, step failpoint.Point, keepLink bool, cure string, req api.PrepareRequest) {
	w := newWorld(t)
	w.addParent("lan0")
	s, stop := w.boot(t)
	s.crashAt(step)
	w.during = func(call string) {
		if call == string(step) {
			panic(crash{})
		}
	}
	survive(func() {
		if _, err := w.add(s, req); err != nil {
			t.Errorf("ADD: %v", err)
		}
		if err := s.Delete(ctx, req.Attachment); err != nil {
			t.Errorf("DEL: %v", err)
		}
	})
	stop()
	w.during = func(string) {}
	if !keepLink {
		w.unwire(req.Attachment)
		delete(w.netns, "/run/netns/"+req.ContainerID)
	}

	s, _ = w.boot(t)
	// What the new agent holds agrees with what the node holds.
	r := w.remains(t, s)
	if len(r.Attached) != len(r.Endpoints) {
		t.Errorf("%d endpoints, %d attached", len(r.Endpoints), len(r.Attached))
	}
	switch cure {
	case "DEL":
		w.unwire(req.Attachment)
		must(t, s.Delete(ctx, req.Attachment))
	case "GC":
		_, err := s.GC(ctx, api.GCRequest{Network: req.Network.Name, Valid: []api.Attachment{}})
		must(t, err)
		w.unwire(req.Attachment) // of a DEL that had reached the agent already
	}
	must(t, s.purge())
	w.mustRemain(t, s, nothing())

	e, err := w.add(s, req)
	must(t, err)
	if e.ID != 1 {
		t.Errorf("the next ADD has number %d, want 1", e.ID)
	}
	must(t, s.Check(ctx, e.Attachment))
}

// TestAttachFails has the datapath, or what comes after it, fail in the middle of an
// attach. Whatever ends the endpoint then, nothing of it is left.
func TestAttachFails(t *testing.T) {
	refused := errors.New("refused")
	for _, call := range []string{"AttachEndpoint", "AttachEndpoint, half done", "Link, the second time"} {
		for _, stuck := range []bool{false, true} {
			for _, cure := range []string{"DEL", "GC", "ADD again", "tidy", "restart"} {
				t.Run(fmt.Sprintf("%s/detach fails too %v/%s", call, stuck, cure), func(t *testing.T) {
					testAttachFails(t, call, stuck, cure, refused)
				})
			}
		}
	}
}

func testAttachFails(t *testing.T, call string, stuck bool, cure string, refused error) {
	w := newWorld(t)
	s, stop := w.boot(t)
	req := withPorts(request("c1"), mapped("", 8080, 80, "tcp"))
	e, err := s.Prepare(ctx, req)
	must(t, err)
	link := w.wire(e)
	w.fail[call] = refused
	if call == "Link, the second time" {
		w.during = func(string) { w.fail["Link"] = refused }
	}
	if stuck {
		w.fail["DetachEndpoint"] = errors.New("stuck")
	}
	_, err = s.Attach(ctx, e.Attachment, api.AttachRequest{HostIfIndex: link.Index})
	if !errors.Is(err, refused) || stuck != errors.Is(err, w.fail["DetachEndpoint"]) {
		t.Errorf("attach: %v", err)
	}
	if got := len(w.remains(t, s).Attached); got != 0 && !stuck {
		t.Errorf("%d endpoints are attached after the attach that failed", got)
	}
	w.during = func(string) {}
	clear(w.fail)
	if cure == "ADD again" {
		if s.lookup(e.Attachment).State == api.Ready {
			w.unwire(e.Attachment)
			must(t, s.Delete(ctx, e.Attachment)) // DEL must come first
		}
		again := w.mustAdd(t, s, req)
		if d := cmp.Diff([]uint16{again.ID}, w.remains(t, s).Attached); d != "" {
			t.Errorf("attached (-want +got):\n%s", d)
		}
		must(t, s.Check(ctx, e.Attachment))
		cure = "DEL"
	}
	switch cure {
	case "DEL":
		w.unwire(e.Attachment)
		must(t, s.Delete(ctx, e.Attachment))
	case "GC":
		_, err := s.GC(ctx, api.GCRequest{Network: "pods", Valid: []api.Attachment{}})
		must(t, err)
	case "tidy":
		w.unwire(e.Attachment)
		w.clock = w.clock.Add(abandoned + 1)
		s.tidy()
		must(t, s.Delete(ctx, e.Attachment)) // a ready one waits for it
	case "restart":
		stop()
		w.unwire(e.Attachment)
		s, _ = w.boot(t)
	}
	must(t, s.purge())
	w.mustRemain(t, s, nothing())
	if len(s.index.half) != 0 || len(s.index.detached) != 0 || s.index.entries != 0 {
		t.Errorf("the index still knows %d half attached, %d detached endpoints and %d entries of ports",
			len(s.index.half), len(s.index.detached), s.index.entries)
	}
}

// TestAttachAgainFails leaves an endpoint that is served to the repair.
func TestAttachAgainFails(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	e := w.mustAdd(t, s, request("c1"))
	w.fail["AttachEndpoint"] = errors.New("refused")
	if _, err := s.Attach(ctx, e.Attachment, api.AttachRequest{HostIfIndex: e.HostIfIndex}); !errors.Is(err, w.fail["AttachEndpoint"]) {
		t.Errorf("attach: %v", err)
	}
	must(t, s.Check(ctx, e.Attachment))
}

// TestRestart keeps what lives and releases what does not.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	s, stop := w.boot(t)
	alive := w.mustAdd(t, s, request("alive"))
	gone := w.mustAdd(t, s, request("gone"))
	replaced := w.mustAdd(t, s, request("replaced"))
	pending, err := s.Prepare(ctx, request("pending"))
	must(t, err)
	w.wire(pending)
	must(t, s.Delete(ctx, w.mustAdd(t, s, request("deleted")).Attachment))
	w.unwire(request("deleted").Attachment)
	stop()
	w.unwire(gone.Attachment)
	w.wire(replaced)

	s, _ = w.boot(t)
	want := nothing()
	want.Endpoints = []api.Attachment{alive.Attachment}
	want.Links = []string{alive.HostIfName, replaced.HostIfName} // one of them is not ours to remove
	if want.Links[0] > want.Links[1] {
		want.Links[0], want.Links[1] = want.Links[1], want.Links[0]
	}
	want.Attached = []uint16{alive.ID}
	want.Leases = 2
	got := w.remains(t, s)
	want.Unreachable, want.Excludes = got.Unreachable, got.Excludes
	want.Draining = []uint16{2, 3, 4, 5}
	w.mustRemain(t, s, want)
	if len(got.Unreachable) != 2 {
		t.Errorf("unreachable routes %v, want those of the network", got.Unreachable)
	}
	must(t, s.Check(ctx, alive.Attachment))
	must(t, s.purge())
	if e := w.mustAdd(t, s, request("next")); e.ID != 2 {
		t.Errorf("next number %d, want 2", e.ID)
	}
}

// What went while no agent was there is forgotten before a policy counts: without one of its own it would be told of
// as denied by policy.
func TestRestartForgetsBeforePolicyCounts(t *testing.T) {
	w := newWorld(t)
	w.keep(t, "web.yaml", isolate("web", "web"))
	s, stop := w.boot(t)
	alive, gone := w.mustAdd(t, s, app("alive", "web")), w.mustAdd(t, s, app("gone", "web"))
	stop()
	w.unwire(gone.Attachment)
	var served [][]uint16
	w.during = func(call string) {
		if call == "ReconcilePolicy" {
			served = append(served, slices.Sorted(maps.Keys(w.attached)))
		}
	}
	w.boot(t)
	if diff := cmp.Diff([][]uint16{{alive.ID}}, served); diff != "" {
		t.Errorf("served when a policy came to count (-want +got):\n%s", diff)
	}
}

// A MAC that somebody has changed is CHECK's affair: the container lives, and its address is given to nobody else.
func TestRestartWithAnotherMAC(t *testing.T) {
	w := newWorld(t)
	s, stop := w.boot(t)
	e := w.mustAdd(t, s, request("alive"))
	before := w.remains(t, s)
	stop()
	link := w.links[e.HostIfName]
	link.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 9}
	w.links[e.HostIfName] = link
	s, _ = w.boot(t)
	w.mustRemain(t, s, before)
	wantCode(t, s.Check(ctx, e.Attachment), api.CodeMismatch)
}

func TestLinkGoneWhileRunning(t *testing.T) {
	for name, tell := range map[string]func(*Service, api.Endpoint){
		"event":       func(s *Service, e api.Endpoint) { s.LinkGone(e.HostIfIndex) },
		"lost events": func(s *Service, _ api.Endpoint) { s.LinksUnknown() },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.boot(t)
			e, other := w.mustAdd(t, s, request("c1")), w.mustAdd(t, s, request("c2"))
			w.unwire(e.Attachment)
			tell(s, e)
			tell(s, e)
			r := w.remains(t, s)
			if len(r.Attached) != 1 || r.Attached[0] != other.ID {
				t.Errorf("attached %v, want only %d", r.Attached, other.ID)
			}
			if len(r.Endpoints) != 2 || r.Leases != 4 {
				t.Errorf("%d endpoints with %d leases, want 2 with 4 until DEL", len(r.Endpoints), r.Leases)
			}
			wantCode(t, s.Check(ctx, e.Attachment), api.CodeMismatch)
			shown, err := s.Endpoint(ctx, e.Attachment)
			must(t, err)
			want := e
			want.State = api.Detached
			if d := cmp.Diff(want, shown, equate...); d != "" {
				t.Errorf("endpoint without device (-want +got):\n%s", d)
			}
			_, err = s.Prepare(ctx, request("c1"))
			wantCode(t, err, api.CodeConflict)
			if health, err := s.Health(ctx); err != nil || !health.OK {
				t.Errorf("health %+v, %v", health, err)
			}
			s.tidy() // serves nobody who is gone
			if d := cmp.Diff([]uint16{other.ID}, w.remains(t, s).Attached); d != "" {
				t.Errorf("attached after the tidy (-want +got):\n%s", d)
			}
			must(t, s.Delete(ctx, e.Attachment))
			if got := len(w.remains(t, s).Endpoints); got != 1 {
				t.Errorf("%d endpoints, want 1", got)
			}
		})
	}
}

// TestDetachedAndItsDeviceAgain attaches an endpoint whose device came back.
func TestDetachedAndItsDeviceAgain(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	e := w.mustAdd(t, s, request("c1"))
	link := w.links[e.HostIfName]
	w.unwire(e.Attachment)
	s.LinkGone(e.HostIfIndex)
	w.links[e.HostIfName] = link
	again, err := s.Attach(ctx, e.Attachment, api.AttachRequest{HostIfIndex: link.Index})
	must(t, err)
	if d := cmp.Diff(e, again, equate...); d != "" {
		t.Errorf("attached again (-want +got):\n%s", d)
	}
	shown, err := s.Endpoint(ctx, e.Attachment)
	must(t, err)
	if d := cmp.Diff(e, shown, equate...); d != "" {
		t.Errorf("endpoint (-want +got):\n%s", d)
	}
}

func TestTidyRepairs(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	whole, taken, gone := w.mustAdd(t, s, request("c1")), w.mustAdd(t, s, request("c2")), w.mustAdd(t, s, request("c3"))
	w.unpinned = true
	delete(w.attached, taken.ID)
	delete(w.attached, gone.ID)
	w.unwire(gone.Attachment) // the event is on its way
	s.tidy()
	if w.unpinned {
		t.Error("the pins were not repaired")
	}
	if d := cmp.Diff([]uint16{taken.ID}, w.repaired); d != "" {
		t.Errorf("repaired (-want +got):\n%s", d)
	}
	must(t, s.Check(ctx, whole.Attachment))
	must(t, s.Check(ctx, taken.Attachment))

	delete(w.attached, whole.ID)
	delete(w.attached, taken.ID)
	refused := errors.New("refused")
	w.fail["RepairPins"], w.fail["RepairEndpoint"] = refused, refused
	s.tidy()
	health, err := s.Health(ctx)
	must(t, err)
	if d := cmp.Diff(api.Health{Reasons: []string{
		"endpoints: 2 cannot be repaired; the first: repair endpoint c1/eth0: refused", "pins: refused",
	}}, health); d != "" {
		t.Errorf("health (-want +got):\n%s", d)
	}
	clear(w.fail)
	s.tidy()
	if health, err := s.Health(ctx); err != nil || !health.OK {
		t.Errorf("health after all was repaired: %+v, %v", health, err)
	}
}

// TestPacerLost has the devices of limits looked at by whatever may tell of their end.
func TestPacerLost(t *testing.T) {
	for name, look := range map[string]func(*Service){
		"a link has changed": (*Service).LinksChanged, "a minute later": (*Service).tidy,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.boot(t)
			w.fail["RepairPacer"] = errors.New("refused")
			look(s)
			health, err := s.Health(ctx)
			must(t, err)
			if d := cmp.Diff(api.Health{Reasons: []string{"pacer: refused"}}, health); d != "" {
				t.Errorf("health (-want +got):\n%s", d)
			}
			clear(w.fail)
			look(s)
			if health, err := s.Health(ctx); err != nil || !health.OK {
				t.Errorf("health after the repair: %+v, %v", health, err)
			}
		})
	}
}

// TestTidyAndDelete deletes an endpoint that the tidy is about to repair.
func TestTidyAndDelete(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	e := w.mustAdd(t, s, request("c1"))
	r := s.lookup(e.Attachment)
	must(t, s.Delete(ctx, e.Attachment))
	must(t, s.repairOne(r))
	if w.repaired != nil {
		t.Errorf("repaired %v, which is deleted", w.repaired)
	}
}

func TestTidy(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t, uplink.Uplink{Name: "eth0", IfIndex: 2, MTU: 1500})
	old, err := s.Prepare(ctx, request("old"))
	must(t, err)
	wired, err := s.Prepare(ctx, request("wired"))
	must(t, err)
	w.wire(wired)
	ready := w.mustAdd(t, s, request("ready"))
	w.clock = w.clock.Add(abandoned + 1)
	young, err := s.Prepare(ctx, request("young"))
	must(t, err)
	clear(w.unreachable) // somebody flushed the routes
	w.uplinks = nil      // and detached programs
	s.tidy()
	var left []string
	for _, a := range w.remains(t, s).Endpoints {
		left = append(left, a.ContainerID)
	}
	if want := []string{ready.ContainerID, wired.ContainerID, young.ContainerID}; fmt.Sprint(left) != fmt.Sprint(want) {
		t.Errorf("left %v, want %v and not %s", left, want, old.ContainerID)
	}
	if len(w.unreachable) != 2 {
		t.Errorf("unreachable routes %v, want two again", w.unreachable)
	}
	if len(w.uplinks) != 1 {
		t.Errorf("uplinks %v, want one again", w.uplinks)
	}
}
