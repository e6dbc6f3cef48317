// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/tendril-net/tendril/internal/version"

	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"github.com/tendril-net/tendril/pkg/agent"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/ipam"
	"github.com/tendril-net/tendril/pkg/uplink"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// shutdownTime is how long requests under way may take when the agent stops.
const shutdownTime = 5 * time.Second

// statePath is the state file of a state directory.
func statePath(dir string) string { return filepath.Join(dir, "state.db") }

// node is what the agent of a node has open. Fields are closed in the opposite
// order by close.
type node struct {
	cfg      config
	log      *slog.Logger
	locks    []*lock
	db       *bbolt.DB
	listener net.Listener // API
	metrics  net.Listener // nil when there are none
	host     *agent.Host
	watcher  *uplink.Watcher
	settings *agent.Settings
	datapath *datapath.Datapath
	service  *agent.Service
	// traces are those to remove at close; nil once the agent has begun to work
	// on the node, and for cleanup.
	traces *traces
}

// serve runs the agent until the environment's context ends.
func serve(env environment, cfg config, log *slog.Logger) (err error) {
	saveMemory(env)
	n := &node{cfg: cfg, log: log, traces: &traces{}}
	defer func() { err = errors.Join(err, n.close()) }()
	if err := n.open(env); err != nil {
		return err
	}
	if err := n.start(); err != nil {
		return err
	}
	debug.FreeOSMemory() // loading programs took more than running does
	return n.run(env)
}

// saveMemory keeps the heap small. In a burst of 1,000 ADDs the agent's peak was
// 28 MiB with 50 and 30 MiB with Go's default of 100. What that costs in time was
// not measured. Beyond the limit, which is a goal, the collector runs more often.
// GOGC and GOMEMLIMIT are honoured.
func saveMemory(env environment) {
	if env.getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	if env.getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(24 << 20)
	}
}

// open takes everything that can be refused, before anything in the kernel is
// changed.
func (n *node) open(env environment) error {
	for _, path := range []string{filepath.Dir(n.cfg.Socket), n.cfg.StateDir} {
		n.traces.directory(path)
	}
	if err := n.takeLocks(); err != nil {
		return err
	}
	var err error
	if n.cfg.MetricsAddress != "" {
		if n.metrics, err = net.Listen("tcp", n.cfg.MetricsAddress); err != nil {
			return fmt.Errorf("serve metrics at metrics-address: %w", err)
		}
	}
	// Asked again, for good, by datapath.Open.
	if err := datapath.Available(n.cfg.BPFRoot); err != nil {
		return err
	}
	n.traces.state(statePath(n.cfg.StateDir))
	if n.db, err = agent.OpenState(statePath(n.cfg.StateDir)); err != nil {
		return err
	}
	if n.host, err = agent.OpenHost(""); err != nil {
		return err
	}
	n.watcher, err = uplink.Open(uplink.Options{
		Names:       n.cfg.Uplinks,
		Own:         ownDevice,
		OwnProtocol: wiring.Protocol,
		Logger:      n.log,
	})
	if err != nil {
		return err
	}
	n.listener, err = listenAPI(env, n.cfg.Socket, n.log)
	return err
}

// ownDevice tells whether a device is an endpoint's host side.
func ownDevice(name string) bool { return strings.HasPrefix(name, api.HostIfPrefix) }

// takeLocks makes this the only agent of its socket and state directory; the
// datapath does the same for bpf-root.
func (n *node) takeLocks() error {
	for _, one := range []struct{ path, what, of string }{
		{n.cfg.Socket + ".lock", "socket", n.cfg.Socket},
		{filepath.Join(n.cfg.StateDir, "state.lock"), "state-dir", n.cfg.StateDir},
	} {
		l, err := takeLock(one.path, one.what, one.of)
		if err != nil {
			return err
		}
		n.locks = append(n.locks, l)
	}
	return nil
}

// ensureRoot makes bpf-root be on a bpf file system.
func (n *node) ensureRoot() error {
	mounted, err := ensureBPFFS(n.cfg.BPFRoot)
	if mounted == "" {
		return err
	}
	if n.traces != nil {
		n.traces.mount = mounted
	}
	n.log.Info("bpf file system mounted", "path", mounted)
	return errors.Join(err, agent.RecordMount(n.db, mounted))
}

// start brings kernel and records in order.
func (n *node) start() (err error) {
	n.traces.directory(n.cfg.BPFRoot)
	if err := n.ensureRoot(); err != nil {
		return err
	}
	n.datapath, err = datapath.Open(datapath.Config{
		Root:            n.cfg.BPFRoot,
		FlowsMax:        n.cfg.FlowsMax,
		TranslationsMax: n.cfg.TranslationsMax,
		Masquerade:      n.cfg.Masquerade,
		MasqueradePorts: n.cfg.MasqueradePorts,
		Accept:          n.checkMemory,
		Logger:          n.log,
	})
	if err != nil {
		return fmt.Errorf("open datapath: %w", err)
	}
	n.traces = nil // what is made from here on stays
	if flaw := n.datapath.SocketFlaw(); flaw != "" {
		n.log.Warn("sockets of the host are not all served", "reason", flaw)
	}
	if err := n.datapath.ReconcileStackDestinations(n.cfg.StackDestinations); err != nil {
		return err
	}
	found := n.watcher.Found()
	n.settings = &agent.Settings{DB: n.db, Root: agent.ProcSys, Logger: n.log}
	if err := n.settings.Apply(names(found.Uplinks), n.cfg.MasqueradePorts[0], n.cfg.MasqueradePorts[1]); err != nil {
		return err
	}
	leases, err := ipam.Open(n.db)
	if err != nil {
		return &agent.StateError{Path: n.db.Path(), Reason: "damaged", Err: err}
	}
	n.service = agent.New(agent.Options{
		DB:     n.db,
		Leases: leases,
		Datapath: agent.Datapath{
			Endpoints: n.datapath, Node: n.datapath, Host: n.datapath, Repairs: n.datapath,
			Flows: n.datapath, Stats: n.datapath, Policy: n.datapath, Walk: n.datapath,
		},
		Links:        n.host,
		Parents:      n.host,
		Children:     n.host,
		Ended:        api.EndedBeside(n.cfg.Socket),
		Bridges:      n.host,
		Routes:       n.host,
		Surroundings: n.host,
		Sockets:      n.host,
		Reservations: n.settings,
		Excludes:     n.cfg.MasqueradeExclude,
		PolicyDir:    n.cfg.PolicyDir,
		BPFRoot:      n.cfg.BPFRoot,
		Version:      version.String(),
		Logger:       n.log,
		EnsureRoot:   n.ensureRoot,
	})
	if err := n.service.Start(found); err != nil {
		return err
	}
	n.warn(found.Flaws)
	n.log.Info("node in order", "uplinks", describe(found.Uplinks), "attach", n.datapath.AttachKind(), "socket", n.cfg.Socket)
	return nil
}

// checkMemory refuses to serve a node whose containers are attached while the state
// file knows of none: they would be cut off, and their addresses given out again.
func (n *node) checkMemory(attached []string) error {
	empty, err := agent.Empty(n.db)
	if err != nil || !empty || len(attached) == 0 {
		return err
	}
	return fmt.Errorf("state file %s knows no endpoint, but %d are attached (%s): put the file back, or cut them off with `tendril-agent cleanup --force`",
		n.db.Path(), len(attached), strings.Join(attached, ", "))
}

func names(uplinks []uplink.Uplink) []string {
	names := make([]string, len(uplinks))
	for i, u := range uplinks {
		names[i] = u.Name
	}
	return names
}

// describe is how a log shows the uplinks.
func describe(uplinks []uplink.Uplink) string {
	if len(uplinks) == 0 {
		return "none"
	}
	texts := make([]string, len(uplinks))
	for i, u := range uplinks {
		texts[i] = u.String()
	}
	return strings.Join(texts, ", ")
}

// warn of devices that were to be uplinks. None is an error: they may come later.
func (n *node) warn(flaws []uplink.Flaw) {
	for _, flaw := range flaws {
		n.log.Warn("uplinks: " + flaw.String())
	}
}

// run serves until the context ends or a part fails, then stops in order:
// requests under way are answered, then the background ends.
func (n *node) run(env environment) error {
	notify := newNotifier(env)
	metrics := agent.NewMetrics(n.service)
	servers := []*http.Server{newServer(api.NewHandler(n.service, api.HandlerOptions{
		Observe: metrics.Observe,
		Fault: func(method, path string, err error) {
			n.log.Error("request not served", "method", method, "path", path, "error", err)
		},
	}))}
	listeners := []net.Listener{n.listener}
	if n.metrics != nil {
		servers = append(servers, newServer(metrics.Handler()))
		listeners = append(listeners, n.metrics)
	}

	background, stop := context.WithCancel(context.Background())
	defer stop()
	serving, failed := errgroup.WithContext(env.ctx)
	work, failed := errgroup.WithContext(failed)
	for i, server := range servers {
		serving.Go(func() error {
			if err := server.Serve(listeners[i]); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", listeners[i].Addr(), err)
			}
			return nil
		})
	}
	n.listener, n.metrics = nil, nil // their servers close them
	work.Go(func() error { return n.watcher.Run(background, n.events()) })
	work.Go(func() error { return n.service.Run(background) })
	work.Go(func() error {
		notify.watch(background, func() { _, _ = n.service.Health(background) })
		return nil
	})
	if err := notify.notify("READY=1", "STATUS=serving "+n.cfg.Socket); err != nil {
		n.log.Warn("start not reported", "error", err)
	}
	n.log.Info("serving", "version", version.String())

	<-failed.Done()
	_ = notify.notify("STOPPING=1") // nobody to tell
	n.log.Info("stopping")
	var errs []error
	for _, server := range servers {
		errs = append(errs, shutdown(server))
	}
	errs = append(errs, serving.Wait())
	stop()
	return errors.Join(append(errs, work.Wait())...)
}

func newServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
}

func shutdown(server *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("stop serving: %w", err), server.Close())
	}
	return nil
}

func (n *node) events() uplink.Events {
	return uplink.Events{
		Uplinks: func(found uplink.Found) {
			n.log.Info("uplinks changed", "uplinks", describe(found.Uplinks))
			n.warn(found.Flaws)
			if err := n.settings.AcceptRA(names(found.Uplinks)); err != nil {
				n.log.Error("uplink may lose its default route", "error", err)
			}
			n.service.SetUplinks(found)
		},
		Routes:    n.service.RoutesChanged,
		Links:     n.service.LinksChanged,
		Addresses: n.service.AddressesChanged,
		LinkGone:  n.service.LinkGone,
		Overrun:   n.service.LinksUnknown,
	}
}

// close gives back what open and start took. What is pinned stays, unless the agent
// was refused: then the node is as it was.
func (n *node) close() error {
	var errs []error
	if n.datapath != nil {
		errs = append(errs, n.datapath.Close())
	}
	if n.watcher != nil {
		n.watcher.Close()
	}
	if n.host != nil {
		errs = append(errs, n.host.Close())
	}
	if n.metrics != nil {
		errs = append(errs, n.metrics.Close())
	}
	if n.listener != nil {
		errs = append(errs, n.listener.Close())
	}
	if n.traces != nil {
		errs = append(errs, n.unmount())
	}
	if n.db != nil {
		errs = append(errs, n.db.Close())
	}
	if n.traces != nil {
		errs = append(errs, n.traces.removeState())
	}
	for _, l := range n.locks {
		errs = append(errs, l.release())
	}
	if n.traces != nil {
		n.traces.removeDirectories()
	}
	return errors.Join(errs...)
}
