// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/internal/nstest"
)

// events are what a running Watcher has reported, in channels that a test can
// wait for.
type events struct {
	uplinks chan []Uplink
	flaws   chan []Flaw
	routes  chan struct{}
	addrs   chan struct{}
	links   chan struct{}
	gone    chan int
}

// watch runs a Watcher until the test ends.
func watch(t *testing.T, ns *nstest.NS, names ...string) (*events, []Uplink) {
	t.Helper()
	return watchIn(t, storm, settle, ns, names...)
}

// watchIn is watch with another pause between two reports, and before a second look.
func watchIn(t *testing.T, pause, again time.Duration, ns *nstest.NS, names ...string) (*events, []Uplink) {
	t.Helper()
	w, err := Open(Options{
		NetNS:       ns.Path,
		Names:       names,
		Own:         func(name string) bool { return strings.HasPrefix(name, "own") },
		OwnProtocol: 84,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.storm, w.settle = pause, again
	found := w.Found().Uplinks
	e := &events{uplinks: make(chan []Uplink, 100), flaws: make(chan []Flaw, 100), routes: make(chan struct{}, 100), links: make(chan struct{}, 100), addrs: make(chan struct{}, 100), gone: make(chan int, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- w.Run(ctx, Events{
			Uplinks:   func(f Found) { e.uplinks <- f.Uplinks; e.flaws <- f.Flaws },
			Routes:    func() { e.routes <- struct{}{} },
			Links:     func() { e.links <- struct{}{} },
			Addresses: func() { e.addrs <- struct{}{} },
			LinkGone:  func(index int) { e.gone <- index },
			Overrun:   func() { t.Error("netlink events were lost") },
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		w.Close()
	})
	return e, found
}

// deadline ends a wait for something that never comes.
const deadline = 20 * time.Second

func await[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(deadline):
		t.Fatalf("no event: %s", what)
		panic("unreachable")
	}
}

// awaitUplinks waits until exactly these are reported; on the way there the
// kernel may show others.
func awaitUplinks(t *testing.T, e *events, want ...Uplink) {
	t.Helper()
	var got []Uplink
	end := time.After(deadline)
	for {
		select {
		case got = <-e.uplinks:
			if diff(want, got) == "" {
				return
			}
		case <-end:
			t.Fatalf("uplinks (-want +got):\n%s", diff(want, got))
		}
	}
}

func TestWatchUplinks(t *testing.T) {
	ns := nstest.New(t, "watch")
	a := device(t, ns, "a0")
	ip(t, ns, []string{"addr", "add", "192.0.2.2/24", "dev", "a0"}, []string{"route", "add", "default", "via", "192.0.2.1"})
	a = with(a, "192.0.2.2", "")
	e, found := watch(t, ns)
	if d := diff([]Uplink{a}, found); d != "" {
		t.Fatalf("uplinks at first (-want +got):\n%s", d)
	}

	b := device(t, ns, "b0")
	ip(t, ns, []string{"addr", "add", "2001:db8::2/64", "dev", "b0", "nodad"},
		[]string{"-6", "route", "add", "default", "via", "2001:db8::1", "dev", "b0"})
	b = with(b, "", "2001:db8::2")
	awaitUplinks(t, e, a, b)

	ip(t, ns, []string{"addr", "add", "203.0.113.9/24", "dev", "b0"})
	b = with(b, "203.0.113.9", "")
	awaitUplinks(t, e, a, b)

	ip(t, ns, []string{"link", "set", "a0", "mtu", "1280"})
	a.MTU = 1280
	awaitUplinks(t, e, a, b)

	ip(t, ns, []string{"link", "set", "a0", "down"}) // IPv4 routes go without a message
	awaitUplinks(t, e, b)

	ip(t, ns, []string{"link", "set", "a0", "up"}, []string{"route", "add", "default", "via", "192.0.2.1", "src", "192.0.2.2"})
	awaitUplinks(t, e, a, b)

	ip(t, ns, []string{"link", "del", "b0"})
	awaitUplinks(t, e, a)

	ip(t, ns, []string{"route", "del", "default"})
	awaitUplinks(t, e)
}

// TestWatchUrgent: a default route is reported in the middle of a storm of other changes.
func TestWatchUrgent(t *testing.T) {
	ns := nstest.New(t, "watch")
	a := device(t, ns, "a0")
	e, _ := watchIn(t, time.Hour, settle, ns)
	ip(t, ns, []string{"addr", "add", "192.0.2.2/24", "dev", "a0"}, []string{"route", "add", "198.51.100.0/24", "via", "192.0.2.1"})
	ip(t, ns, []string{"route", "add", "default", "via", "192.0.2.1"})
	awaitUplinks(t, e, with(a, "192.0.2.2", ""))
	ip(t, ns, []string{"route", "del", "default"})
	awaitUplinks(t, e)
}

func TestWatchNamedUplinkThatComesLater(t *testing.T) {
	ns := nstest.New(t, "watch")
	e, found := watch(t, ns, "a0")
	if d := diff(nil, found); d != "" {
		t.Fatalf("uplinks at first (-want +got):\n%s", d)
	}
	a := device(t, ns, "a0")
	awaitUplinks(t, e, a)
}

func TestWatchRoutes(t *testing.T) {
	ns := nstest.New(t, "watch")
	device(t, ns, "a0")
	ip(t, ns, []string{"addr", "add", "192.0.2.2/24", "dev", "a0"})
	e, _ := watchIn(t, storm, time.Hour, ns)
	for _, command := range [][]string{
		{"route", "add", "198.51.100.0/24", "via", "192.0.2.1"},
		{"route", "add", "198.51.100.0/24", "via", "192.0.2.1", "table", "100"},
		{"rule", "add", "from", "198.51.100.0/24", "lookup", "100"},
		{"-6", "rule", "add", "from", "2001:db8::/32", "lookup", "100"},
		{"route", "add", "unreachable", "203.0.113.0/24"},
		{"-6", "route", "add", "blackhole", "2001:db8::/32"},
		{"nexthop", "add", "id", "7", "via", "192.0.2.1", "dev", "a0"},
		{"route", "del", "198.51.100.0/24", "via", "192.0.2.1"},
		{"addr", "add", "198.51.100.9/32", "dev", "lo"},
		{"link", "set", "a0", "down"},
	} {
		for len(e.routes) > 0 { // of the step before
			<-e.routes
		}
		ip(t, ns, command)
		await(t, e.routes, "routes changed by ip "+strings.Join(command, " "))
	}
}

// TestWatchAgain: what a change brings is looked at once more, as the kernel may have told of it too early.
func TestWatchAgain(t *testing.T) {
	ns := nstest.New(t, "watch")
	device(t, ns, "a0")
	ip(t, ns, []string{"addr", "add", "192.0.2.2/24", "dev", "a0"})
	e, _ := watchIn(t, 0, urgency, ns)
	ip(t, ns, []string{"route", "add", "198.51.100.0/24", "via", "192.0.2.1"})
	await(t, e.routes, "route added")
	await(t, e.routes, "route added, second look")
}

func TestWatchAddresses(t *testing.T) {
	ns := nstest.New(t, "watch")
	device(t, ns, "a0")
	e, _ := watch(t, ns)
	for _, command := range [][]string{
		{"addr", "add", "192.0.2.2/24", "dev", "a0"},
		{"addr", "add", "2001:db8::2/64", "dev", "a0", "nodad"},
		{"addr", "del", "192.0.2.2/24", "dev", "a0"},
		{"link", "del", "a0"},
	} {
		for len(e.addrs) > 0 { // of the step before
			<-e.addrs
		}
		ip(t, ns, command)
		await(t, e.addrs, "addresses changed by ip "+strings.Join(command, " "))
	}
}

// Other devices are told of when they come, change and go.
func TestWatchLinks(t *testing.T) {
	ns := nstest.New(t, "watch")
	e, _ := watch(t, ns)
	for _, step := range [][]string{
		{"link", "add", "lan0", "type", "bridge"},
		{"link", "set", "lan0", "name", "lan1"},
		{"link", "set", "lan1", "address", "02:00:00:00:00:07"},
		{"link", "del", "lan1"},
	} {
		ns.Run(t, "ip", step...)
		await(t, e.links, strings.Join(step, " "))
	}
}

func TestWatchOwnLinks(t *testing.T) {
	ns := nstest.New(t, "watch")
	device(t, ns, "own1")
	e, _ := watch(t, ns)
	before, err := ns.Handle.LinkByName("own1")
	if err != nil {
		t.Fatal(err)
	}
	ns.Run(t, "ip", "link", "add", "own2", "type", "veth", "peer", "name", "own2p")
	during, err := ns.Handle.LinkByName("own2")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"own1", "own2"} {
		ns.Run(t, "ip", "link", "del", name)
	}
	// own1p and own2p go with them, and are own devices by their names.
	gone := map[int]bool{}
	for range 4 {
		gone[await(t, e.gone, "own link gone")] = true
	}
	if !gone[before.Attrs().Index] || !gone[during.Attrs().Index] {
		t.Errorf("gone: %v, want %d and %d among them", gone, before.Attrs().Index, during.Attrs().Index)
	}
}

func TestWatchLeavingNamespace(t *testing.T) {
	ns, other := nstest.New(t, "watch"), nstest.New(t, "other")
	own := device(t, ns, "own1")
	e, _ := watch(t, ns)
	ns.Run(t, "ip", "link", "set", "own1", "netns", other.Name)
	if got := await(t, e.gone, "own link moved away"); got != own.IfIndex {
		t.Errorf("gone: %d, want %d", got, own.IfIndex)
	}
}

// TestOverrun fills the socket's buffer while nobody reads it.
func TestOverrun(t *testing.T) {
	ns := nstest.New(t, "watch")
	w, err := Open(Options{NetNS: ns.Path})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.socket.SetReceiveBufferSize(1, true); err != nil { // the kernel's least
		t.Fatal(err)
	}
	a := device(t, ns, "a0")
	ip(t, ns, []string{"route", "add", "default", "dev", "a0"})
	for range 20 {
		ip(t, ns, []string{"link", "set", "a0", "alias", "x"})
	}
	ctx, cancel := context.WithCancel(context.Background())
	overrun := make(chan struct{}, 10)
	uplinks := make(chan []Uplink, 10)
	addresses := make(chan struct{}, 10)
	done := make(chan error, 1)
	go func() {
		done <- w.Run(ctx, Events{
			Uplinks: func(f Found) { uplinks <- f.Uplinks },
			Routes:  func() {}, Links: func() {}, LinkGone: func(int) {},
			Addresses: func() { addresses <- struct{}{} },
			Overrun:   func() { overrun <- struct{}{} },
		})
	}()
	await(t, overrun, "overrun")
	await(t, addresses, "addresses after the overrun")
	got := await(t, uplinks, "uplinks after the overrun")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if d := cmp.Diff([]string{a.Name}, []string{got[0].Name}); d != "" {
		t.Errorf("uplinks (-want +got):\n%s", d)
	}
}

// TestWatchFlaws follows a name that does not exist yet.
func TestWatchFlaws(t *testing.T) {
	ns := nstest.New(t, "watch")
	e, found := watch(t, ns, "later0")
	if len(found) > 0 {
		t.Fatalf("uplinks at first: %v", found)
	}
	awaitFlaws := func(want ...Flaw) {
		t.Helper()
		for {
			if cmp.Diff(want, await(t, e.flaws, "flaws"), cmpopts.EquateEmpty()) == "" {
				return
			}
		}
	}
	later := device(t, ns, "later0")
	awaitFlaws(Flaw{"later0", NoAddress})
	ip(t, ns, []string{"addr", "add", "192.0.2.2/24", "dev", "later0"})
	awaitFlaws()
	awaitUplinks(t, e, with(later, "192.0.2.2", ""))
	ip(t, ns, []string{"link", "del", "later0"})
	awaitFlaws(Flaw{"later0", Absent})
}
