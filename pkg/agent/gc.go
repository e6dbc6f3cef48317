// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/tendril-net/tendril/pkg/api"
)

// GC frees the endpoints of a network that are not in the request's list, links
// included. Without a list it frees those whose device and network namespace
// are both gone. What cannot be freed does not stop the rest: the result says
// what was freed even when there is an error.
func (s *Service) GC(_ context.Context, req api.GCRequest) (api.GCResult, error) {
	result := api.GCResult{Freed: []api.Attachment{}}
	if err := checkName("network", req.Network); err != nil {
		return result, err
	}
	valid := make(map[api.Attachment]bool, len(req.Valid))
	for _, a := range req.Valid {
		valid[a] = true
	}
	var errs []error
	for _, r := range s.list(func(r *record) bool { return r.Network == req.Network && !valid[r.Attachment] }) {
		freed, err := s.collect(r.Attachment, req)
		if err != nil {
			errs = append(errs, err)
		}
		if freed {
			result.Freed = append(result.Freed, r.Attachment)
		}
	}
	if req.Valid != nil {
		errs = append(errs, s.collectLinks(valid))
	}
	return result, errors.Join(errs...)
}

// collectLinks removes the devices that no endpoint has and no attachment in the
// list could have: a plugin made them for another IPAM plugin to use, and died
// before it came here. Such an ADD that is under way meanwhile, which the
// specification rules out, fails and is tried again.
func (s *Service) collectLinks(valid map[api.Attachment]bool) error {
	names, err := s.opts.Links.HostLinks()
	if err != nil {
		return err
	}
	keep := make(map[string]bool)
	for a := range valid {
		keep[api.HostIfName(a)] = true
	}
	for _, r := range s.list(func(*record) bool { return true }) {
		keep[r.HostIfName] = true
	}
	var errs []error
	for _, name := range names {
		if keep[name] {
			continue
		}
		s.log.Info("device without endpoint collected", "device", name)
		if err := s.opts.Links.RemoveLink(name); err != nil {
			errs = append(errs, fmt.Errorf("remove device %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Service) collect(a api.Attachment, req api.GCRequest) (bool, error) {
	defer s.locks.lock(a)()
	r := s.lookup(a)
	if r == nil || r.Network != req.Network {
		return false, nil
	}
	if req.Valid == nil {
		gone, err := s.provablyGone(r)
		if err != nil || !gone {
			return false, err
		}
	}
	if err := s.removeDevice(r); err != nil {
		return false, err
	}
	if err := s.remove(r); err != nil {
		return false, err
	}
	s.log.Info("endpoint collected", "container", a.ContainerID, "interface", a.IfName, "network", r.Network)
	return true, nil
}

// provablyGone tells whether nothing is left of the container's interface.
func (s *Service) provablyGone(r *record) (bool, error) {
	gone, err := s.deviceGone(r)
	if err != nil || !gone {
		return false, err
	}
	_, err = os.Stat(r.NetNS)
	return errors.Is(err, fs.ErrNotExist), nil
}

// Networks lists the networks that have endpoints, by name.
func (s *Service) Networks(context.Context) ([]api.Network, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	networks := make([]api.Network, 0, len(s.index.networks))
	for _, n := range s.index.networks {
		networks = append(networks, n)
	}
	sortBy(networks, func(n api.Network) string { return n.Name })
	return networks, nil
}

// NetworkStatus says whether an ADD to the network would succeed.
func (s *Service) NetworkStatus(_ context.Context, given api.Network) (api.Health, error) {
	n, ranges, err := parseNetwork(given)
	if err != nil {
		return api.Health{}, err
	}
	if err := errors.Join(s.checkPassthru(n), s.checkGateways(n, nil)); err != nil {
		return api.Health{}, err
	}
	if _, err := s.findParent(n); err != nil {
		return api.Health{}, err
	}
	if err := s.checkRanges(n, given.Ranges); err != nil {
		return api.Health{}, err
	}
	// What others have made of some containers' bridges keeps no ADD from it.
	health := s.health(func(concern string) bool { return concern != concernBridges && concern != concernPorts })
	if len(ranges) == 0 {
		return health, nil
	}
	if err := s.opts.Leases.Available(n.Name, ranges); err != nil {
		health.OK = false
		health.Reasons = append(health.Reasons, err.Error())
	}
	return health, nil
}
