// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/ipam"
	"github.com/tendril-net/tendril/pkg/uplink"
)

// ErrNoLink says that the node has no device of a name.
var ErrNoLink = errors.New("no such device")

// Options are what a Service works with. The caller opens it all and closes it
// after Run has returned.
type Options struct {
	// DB is the state file, from OpenState.
	DB *bbolt.DB
	// Leases are those of DB.
	Leases *ipam.Store
	// Datapath serves the endpoints.
	Datapath Datapath
	// Links, Bridges, Parents and Routes are those of the node's network namespace.
	Links   Links
	Bridges Bridges
	Parents Parents
	Routes  Routes
	// Children are the macvlan devices in the containers' namespaces.
	Children Children
	// Ended are those that ended without the agent.
	Ended Ended
	// Surroundings are the addresses of that namespace, Sockets its sockets.
	Surroundings Surroundings
	Sockets      Sockets
	// Reservations keep mapped ports from being chosen for its sockets.
	Reservations Reservations
	// Excludes are destinations that are never masqueraded, besides the
	// subnets of the networks.
	Excludes []netip.Prefix
	// PolicyDir is the folder of policies; "" for none.
	PolicyDir string
	// BPFRoot and Version are shown in Status.
	BPFRoot, Version string
	// EnsureRoot makes BPFRoot be on a bpf file system, should somebody have
	// unmounted it. Nil leaves that to others.
	EnsureRoot func() error
	// Logger gets what happens outside of requests. Nil discards it.
	Logger *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Service implements api.Service.
type Service struct {
	opts    Options
	log     *slog.Logger
	started time.Time
	hit     func(failpoint.Point) // failpoint.Hit, or a test's crash

	locks     attachmentLocks
	ground    *ground
	reserved  *reservedPorts
	addresses *hostAddresses
	firewall  *firewall
	// parenting is held while an endpoint gets a parent, and while a parent goes.
	parenting sync.Mutex

	cannotDisconnect sync.Once

	mu       sync.Mutex // guards what follows
	index    *index
	uplinks  uplink.Found
	problems map[string]error // what is wrong with the node, by concern

	purging sync.Mutex    // one purge at a time
	drained chan struct{} // one token: an id waits to be purged
}

var _ api.Service = (*Service)(nil)

// New returns a Service that knows nothing yet. Start must be called before
// anything else.
func New(opts Options) *Service {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.EnsureRoot == nil {
		opts.EnsureRoot = func() error { return nil }
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	s := &Service{
		opts:     opts,
		log:      opts.Logger,
		started:  opts.Now(),
		hit:      failpoint.Hit,
		index:    newIndex(),
		problems: make(map[string]error),
		drained:  make(chan struct{}, 1),
		ground: &ground{
			routes:      opts.Routes,
			node:        opts.Datapath.Node,
			configured:  opts.Excludes,
			leased:      make(map[netip.Prefix]int),
			unreachable: make(map[netip.Prefix]int),
			excludes:    make(map[exclude]int),
			uplinks:     make(map[string]time.Time),
		},
		reserved:  &reservedPorts{to: opts.Reservations, users: make(map[uint16]int)},
		addresses: &hostAddresses{node: opts.Surroundings, plane: opts.Datapath.Host},
	}
	s.addresses.gateways = s.gateways
	s.firewall = newFirewall(opts, s.problem)
	return s
}

// lookup returns the record of an attachment, nil when there is none. A record
// is never changed: whoever holds it holds a snapshot.
func (s *Service) lookup(a api.Attachment) *record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index.records[a]
}

// put makes a record known that was stored.
func (s *Service) put(r *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index.put(r)
}

// keep stores a record in the place of the one before, and makes it known.
func (s *Service) keep(r *record) error {
	if err := s.opts.DB.Update(func(tx *bbolt.Tx) error { return putRecord(tx, r) }); err != nil {
		return err
	}
	s.put(r)
	return nil
}

// list returns the records for which keep holds, ordered by endpoint id.
func (s *Service) list(keep func(*record) bool) []*record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index.all(keep)
}

// problem records what is wrong with a concern of the node, or that nothing is.
// It is part of Health until then.
func (s *Service) problem(concern string, err error) {
	s.mu.Lock()
	_, before := s.problems[concern]
	if err == nil {
		delete(s.problems, concern)
	} else {
		s.problems[concern] = err
	}
	s.mu.Unlock()
	switch {
	case err != nil:
		s.log.Error("node not in order", "concern", concern, "error", err)
	case before:
		s.log.Info("node in order again", "concern", concern)
	}
}
