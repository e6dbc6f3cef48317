// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// storm is the least time between two reports of uplinks, routes or addresses:
	// the first change is reported at once, a storm ten times a second.
	storm = 100 * time.Millisecond
	// urgency is the same for a default route that has changed.
	urgency = 5 * time.Millisecond
	// settle is how long after a report everything is looked at once more. The
	// kernel tells of some changes before it makes them: of an IPv4 route that is
	// deleted, of the routes that go with a next hop or with a link that is set
	// down. From Linux 6.12 on a listing does not wait for it: of 1,000 default
	// routes deleted about one was still listed (6.12, 6.18, 7.2; none on 6.1).
	settle = 100 * time.Millisecond
	// retry is the pause before the uplinks are looked for again after the
	// kernel refused to list them.
	retry = time.Second
	// receiveBuffer holds, in bytes, the events of some hundred links that
	// come or go at the same instant.
	receiveBuffer = 4 << 20
)

// Events are what a Watcher calls, one call at a time. All are required.
type Events struct {
	// Uplinks gets the uplinks and flaws whenever they are others than before.
	Uplinks func(Found)
	// Routes says that a route, rule or link has changed in a way that may
	// send packets elsewhere. Routes of OwnProtocol do not count.
	Routes func()
	// Links says that a device which is not an own one has come or gone, or has another
	// name, MAC, MTU or state.
	Links func()
	// Addresses says that a device which is not an own one has got an address
	// or lost one.
	Addresses func()
	// LinkGone gets the index of an own link that has left the namespace.
	LinkGone func(index int)
	// Overrun says that events were lost: own links may be gone unnoticed.
	Overrun func()
}

// Watcher follows the uplinks of one network namespace.
type Watcher struct {
	opts   Options
	ns     netns.NsHandle
	handle netlinksafe.Handle
	socket *nl.NetlinkSocket
	track  *tracker
	found  Found

	storm, settle time.Duration // as the constants, but for tests

	mu      sync.Mutex
	pending pending
	poke    chan struct{} // one token: something is pending
}

// pending is what was received and not yet reported.
type pending struct {
	uplinks, urgent, routes, links, addresses, overrun bool

	news bool // not only a second look

	gone []int
	err  error // the socket is of no more use
}

// Open subscribes to the changes of a namespace and then looks at it, so that
// nothing falls between. The caller closes the Watcher.
func Open(opts Options) (_ *Watcher, err error) {
	opts.setDefaults()
	opts.Names = slices.Clone(opts.Names)
	w := &Watcher{opts: opts, ns: netns.None(), storm: storm, settle: settle, poke: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	if w.ns, err = opts.open(); err != nil {
		return nil, err
	}
	if w.handle, err = newHandle(w.ns); err != nil {
		return nil, err
	}
	if err = w.subscribe(); err != nil {
		return nil, err
	}
	if w.found, err = find(w.handle, opts); err != nil {
		return nil, fmt.Errorf("find uplinks: %w", err)
	}
	return w, nil
}

func (w *Watcher) subscribe() error {
	socket, err := nl.SubscribeAt(w.ns, netns.None(), unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_NEXTHOP)
	if err != nil {
		return fmt.Errorf("subscribe to links, addresses and routes: %w", err)
	}
	w.socket = socket
	// Without CAP_NET_ADMIN in the first user namespace the limit of
	// net.core.rmem_max holds; a smaller buffer means an overrun sooner.
	if socket.SetReceiveBufferSize(receiveBuffer, true) != nil {
		_ = socket.SetReceiveBufferSize(receiveBuffer, false)
	}
	return w.relist()
}

// relist makes the tracker know the links as they are.
func (w *Watcher) relist() error {
	links, err := w.handle.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	w.track = newTracker(w.opts.Own, w.opts.OwnProtocol, links)
	return nil
}

// Found returns the uplinks that Open found, and their flaws. It must not be called
// while Run runs.
func (w *Watcher) Found() Found { return w.found.clone() }

// Close ends what Open began. Run must have returned.
func (w *Watcher) Close() {
	if w.socket != nil {
		w.socket.Close()
	}
	w.handle.Close()
	closeNS(w.ns)
}

// Run reports changes until the context ends, then returns nil. It returns an
// error when the netlink socket fails.
func (w *Watcher) Run(ctx context.Context, events Events) error {
	received := make(chan struct{})
	go func() {
		defer close(received)
		w.receive()
	}()
	defer func() {
		w.socket.Close() // ends receive
		<-received
	}()

	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var todo pending
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.poke:
		case <-timer.C:
		}
		todo.merge(w.take())
		if todo.err != nil {
			return todo.err
		}
		if todo.overrun {
			w.opts.Logger.Warn("netlink events were lost, looking again at everything")
			todo.overrun = false
			events.Overrun()
		}
		for _, index := range todo.gone {
			events.LinkGone(index)
		}
		todo.gone = nil
		if !todo.uplinks && !todo.routes && !todo.links && !todo.addresses {
			continue
		}
		pause := w.storm
		if todo.urgent {
			pause = urgency
		}
		if wait := time.Until(last.Add(pause)); wait > 0 {
			timer.Reset(wait)
			continue
		}
		last = time.Now()
		if todo.addresses {
			todo.addresses = false
			events.Addresses()
		}
		if todo.links {
			todo.links = false
			events.Links()
		}
		if todo.uplinks && !w.report(events) {
			last = time.Now().Add(retry - pause)
			timer.Reset(retry)
			continue
		}
		if todo.routes {
			events.Routes()
		}
		if todo.news {
			again := pending{uplinks: todo.uplinks, urgent: todo.urgent, routes: todo.routes}
			time.AfterFunc(w.settle, func() { w.add(again) })
		}
		todo = pending{}
	}
}

// report looks for the uplinks and hands them on when they have changed. It
// returns false when they could not be read.
func (w *Watcher) report(events Events) bool {
	found, err := find(w.handle, w.opts)
	if err != nil {
		w.opts.Logger.Error("find uplinks", "error", err)
		return false
	}
	if !found.equal(w.found) {
		w.found = found
		events.Uplinks(found.clone())
	}
	return true
}

// receive turns messages into pending changes until the socket is closed.
func (w *Watcher) receive() {
	for {
		messages, from, err := w.socket.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			if err := w.relist(); err != nil {
				w.add(pending{err: fmt.Errorf("after lost netlink events: %w", err)})
				return
			}
			w.add(pending{uplinks: true, routes: true, links: true, addresses: true, overrun: true, news: true})
			continue
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			w.add(pending{err: fmt.Errorf("receive netlink events: %w", err)})
			return
		}
		if from.Pid != 0 {
			continue // not from the kernel
		}
		p := pending{news: true}
		for _, m := range messages {
			c := w.track.read(m)
			p.uplinks = p.uplinks || c.uplinks
			p.urgent = p.urgent || c.urgent
			p.routes = p.routes || c.routes
			p.links = p.links || c.links
			p.addresses = p.addresses || c.addresses
			if c.gone != 0 {
				p.gone = append(p.gone, c.gone)
			}
		}
		if p.uplinks || p.routes || p.links || p.addresses || p.gone != nil {
			w.add(p)
		}
	}
}

func (p *pending) merge(o pending) {
	p.uplinks = p.uplinks || o.uplinks
	p.urgent = p.urgent || o.urgent
	p.routes = p.routes || o.routes
	p.links = p.links || o.links
	p.addresses = p.addresses || o.addresses
	p.overrun = p.overrun || o.overrun
	p.news = p.news || o.news
	p.gone = append(p.gone, o.gone...)
	p.err = errors.Join(p.err, o.err)
}

func (w *Watcher) add(p pending) {
	w.mu.Lock()
	w.pending.merge(p)
	w.mu.Unlock()
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

func (w *Watcher) take() pending {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pending
	w.pending = pending{}
	return p
}
