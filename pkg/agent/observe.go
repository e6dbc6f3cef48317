// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/uplink"
)

func sortBy[T any, K cmp.Ordered](items []T, key func(T) K) {
	slices.SortFunc(items, func(a, b T) int { return cmp.Compare(key(a), key(b)) })
}

// Health says whether the agent can serve an ADD.
func (s *Service) Health(context.Context) (api.Health, error) {
	return s.health(func(string) bool { return true }), nil
}

// health is the state of those concerns that count.
func (s *Service) health(counts func(concern string) bool) api.Health {
	s.mu.Lock()
	defer s.mu.Unlock()
	health := api.Health{OK: true}
	for _, concern := range slices.Sorted(maps.Keys(s.problems)) {
		if counts(concern) {
			health.OK = false
			health.Reasons = append(health.Reasons, fmt.Sprintf("%s: %v", concern, s.problems[concern]))
		}
	}
	return health
}

// Status returns the agent at a glance.
func (s *Service) Status(ctx context.Context) (api.Status, error) {
	health, err := s.Health(ctx)
	if err != nil {
		return api.Status{}, err
	}
	status := api.Status{
		Health:    health,
		Version:   s.opts.Version,
		PID:       os.Getpid(),
		Started:   s.started.UTC(),
		Kernel:    kernelRelease(),
		Attach:    s.opts.Datapath.Stats.AttachKind(),
		Bandwidth: s.opts.Datapath.Stats.BandwidthKind(),
		BPFRoot:   s.opts.BPFRoot,
		Uplinks:   []api.Uplink{},
		Pools:     s.pools(),
		Maps:      []api.Map{},
		Counters:  []api.Counter{},
	}
	s.mu.Lock()
	status.Endpoints = len(s.index.records)
	status.Uplinks = append(status.Uplinks, uplinks(s.uplinks)...)
	s.mu.Unlock()
	usages, err := s.opts.Datapath.Stats.Maps()
	if err != nil {
		return api.Status{}, fmt.Errorf("read map usage: %w", err)
	}
	for _, m := range usages {
		one := api.Map{Name: m.Name, Capacity: m.Capacity, Memory: m.Memory}
		if !m.Array {
			one.Entries = &m.Entries
		}
		status.Maps = append(status.Maps, one)
	}
	counters, err := s.opts.Datapath.Stats.Counters()
	if err != nil {
		return api.Status{}, fmt.Errorf("read counters: %w", err)
	}
	for _, c := range counters {
		status.Counters = append(status.Counters, api.Counter{Journey: c.Journey, Reason: c.Reason, Dropped: c.Dropped, Packets: c.Packets, Bytes: c.Bytes})
	}
	return status, nil
}

// uplinks lists the uplinks with their states, then the devices that are none.
func uplinks(found uplink.Found) []api.Uplink {
	flaws := make(map[string]uplink.Kind)
	for _, f := range found.Flaws {
		flaws[f.Device] = f.Kind
	}
	list := make([]api.Uplink, 0, len(found.Uplinks)+len(found.Flaws))
	for _, u := range found.Uplinks {
		state := cmp.Or(string(flaws[u.Name]), api.UplinkUsed)
		delete(flaws, u.Name)
		list = append(list, api.Uplink{Name: u.Name, State: state, IfIndex: u.IfIndex, MTU: u.MTU, IPv4: u.IPv4, IPv6: u.IPv6})
	}
	for _, f := range found.Flaws {
		if _, none := flaws[f.Device]; none {
			list = append(list, api.Uplink{Name: f.Device, State: string(f.Kind)})
		}
	}
	return list
}

func (s *Service) pools() []api.Pool {
	pools := []api.Pool{}
	for _, p := range s.opts.Leases.Pools() {
		pool := api.Pool{Network: p.Network, Leased: p.Leased, Capacity: p.Capacity}
		for _, r := range p.Ranges {
			pool.Ranges = append(pool.Ranges, r.String())
		}
		pools = append(pools, pool)
	}
	return pools
}

func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}

// Endpoints lists all endpoints, by id.
func (s *Service) Endpoints(context.Context) ([]api.Endpoint, error) {
	records := s.list(func(*record) bool { return true })
	endpoints := make([]api.Endpoint, 0, len(records))
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range records {
		endpoints = append(endpoints, s.index.shown(r))
	}
	return endpoints, nil
}

// Endpoint returns one endpoint.
func (s *Service) Endpoint(_ context.Context, a api.Attachment) (api.Endpoint, error) {
	if err := checkAttachment(a); err != nil {
		return api.Endpoint{}, err
	}
	r := s.lookup(a)
	if r == nil {
		return api.Endpoint{}, notFound(a)
	}
	s.mu.Lock()
	shown := s.index.shown(r)
	s.mu.Unlock()
	return s.withPrograms(shown)
}

// withPrograms adds what the plugin attaches and compares.
func (s *Service) withPrograms(e api.Endpoint) (api.Endpoint, error) {
	if !e.InContainer {
		return e, nil
	}
	hooks, err := s.opts.Datapath.Endpoints.HooksInContainer()
	if err != nil {
		return api.Endpoint{}, fmt.Errorf("load programs of endpoint %s: %w", recordKey(e.Attachment), err)
	}
	for _, h := range hooks {
		e.Programs = append(e.Programs, api.Program(h))
	}
	return e, nil
}

// Ports lists the ports of the host that lead to endpoints, by endpoint id.
func (s *Service) Ports(context.Context) ([]api.Port, error) {
	served := s.list(func(r *record) bool { return r.State == api.Ready && len(r.Ports) > 0 })
	ports := []api.Port{}
	for _, r := range served {
		if s.isDetached(r.Attachment) {
			continue
		}
		for _, p := range r.ports() {
			ports = append(ports, api.Port{
				Protocol:   datapath.ProtocolName(p.Protocol),
				Host:       netip.AddrPortFrom(p.HostIP, p.HostPort),
				Container:  netip.AddrPortFrom(p.ContainerIP, p.ContainerPort),
				Attachment: r.Attachment, Network: r.Network,
			})
		}
	}
	return ports, nil
}

// Flows lists at most limit flows of the datapath.
func (s *Service) Flows(_ context.Context, limit int) ([]api.Flow, error) {
	flows, err := s.opts.Datapath.Flows.Flows(limit)
	if err != nil {
		return nil, fmt.Errorf("read flows: %w", err)
	}
	answer := make([]api.Flow, 0, len(flows))
	for _, f := range flows {
		answer = append(answer, flow(f))
	}
	return answer, nil
}

func flow(f datapath.Flow) api.Flow {
	a := api.Flow{
		Protocol:    datapath.ProtocolName(f.Protocol),
		Source:      f.Source,
		Destination: f.Destination,
		IfIndex:     f.IfIndex,
		Action:      f.Action,
		OutIfIndex:  f.OutIfIndex,
		NextHop:     f.NextHop,
		Packets:     f.Packets,
		Bytes:       f.Bytes,
		Idle:        f.Idle,
		Current:     f.Current,
	}
	switch {
	case f.TranslatesSource:
		a.Translated = &api.Translation{End: "source", To: f.To}
	case f.TranslatesDestination:
		a.Translated = &api.Translation{End: "destination", To: f.To}
	}
	return a
}
