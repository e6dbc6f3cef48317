// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/uplink"
)

const (
	// tidyInterval is the pause between two looks at what no event announces.
	tidyInterval = time.Minute
	// abandoned is how old a pending endpoint without link is when its plugin
	// must have died: a runtime gives up on an ADD sooner.
	abandoned = 2 * time.Minute
)

// Concerns of the node, as Health names them.
const (
	concernUnfinished = "unfinished endpoints"
	concernEnded      = "endpoints ended without the agent"
)

// Start makes kernel and records equal, after whatever has happened since the
// last agent stopped: unfinished endpoints are undone, those whose device is
// gone released, all others attached again. Nothing else may be called before.
func (s *Service) Start(uplinks uplink.Found) error {
	records, draining, err := loadState(s.opts.DB)
	if err != nil {
		return err
	}
	s.mu.Lock()
	for _, r := range records {
		s.index.put(r)
		s.index.ids.claim(r.ID)
	}
	for _, id := range draining {
		if s.index.ids.claim(id) {
			s.index.ids.drain(id)
		}
	}
	s.uplinks = uplinks
	s.mu.Unlock()

	if err := s.applyUplinks(); err != nil {
		return err
	}
	if err := s.releaseOrphans(); err != nil {
		return err
	}
	if err := s.ground.reset(records); err != nil {
		return err
	}
	if err := s.reserved.reset(records); err != nil {
		return err
	}
	if err := s.addresses.ensure(); err != nil {
		return err
	}
	ended, err := s.opts.Ended.Ended()
	if err != nil {
		return err
	}
	var alive []datapath.Endpoint
	var served, released []*record
	for _, r := range records {
		gone, err := s.isGone(r)
		// One that cannot be looked at keeps no other from having an agent. The repair says so.
		if err != nil && r.isChild() {
			gone, err = false, nil
		}
		gone = gone || ended[r.Attachment].After(r.Created)
		if err == nil && !gone {
			before := *r
			if err = s.place(r); err == nil {
				err = s.keepPlace(&before, r)
			}
		}
		switch {
		case err != nil:
			return err
		case !gone:
			alive, served = append(alive, r.datapath()), append(served, r)
			continue
		}
		s.log.Info("endpoint released", "container", r.ContainerID, "interface", r.IfName, "state", r.State)
		if r.State == api.Pending {
			if err = s.undo(r, false); err != nil && r.isChild() {
				s.problem(concernUnfinished, err) // until it is tidied up
				err = nil
			}
		} else {
			if !ended[r.Attachment].IsZero() { // and may have been out of the plugin's sight
				if left := s.removeDevice(r); left != nil {
					s.log.Warn("device of an endpoint that has ended may be left", "container", r.ContainerID, "interface", r.IfName, "error", left)
				}
			}
			released = append(released, r)
			err = s.release(r) // the datapath forgets it below
		}
		if err != nil {
			return err
		}
	}
	// First: what has an address and no policy of its own is denied by policy where one counts.
	if err := s.opts.Datapath.Node.PruneEndpoints(alive); err != nil {
		return fmt.Errorf("forget endpoints that are gone: %w", err)
	}
	for _, r := range released { // now that whoever connects again is not led to them
		s.disconnect(r)
	}
	// Before anybody can reach them.
	if err := s.firewall.start(served); err != nil {
		return err
	}
	if err := s.opts.Datapath.Node.AttachEndpoints(alive); err != nil {
		return fmt.Errorf("attach endpoints again: %w", err)
	}
	s.problem(concernVLANs, s.dropVLANs())
	s.problem(concernEnded, s.opts.Ended.Forget(ended))
	// With the programs in place, as at an ADD.
	s.repairServed()
	if s.waiting() > 0 {
		s.wakePurge()
	}
	return nil
}

// isGone tells whether an endpoint found in the state file cannot be served.
func (s *Service) isGone(r *record) (bool, error) {
	if r.State == api.Pending {
		return true, nil
	}
	return s.deviceGone(r)
}

// releaseOrphans frees leases that no record speaks of. Both are written in one
// transaction, so there are none unless a file was tampered with.
func (s *Service) releaseOrphans() error {
	seen := make(map[string]bool)
	for _, pool := range s.opts.Leases.Pools() {
		if seen[pool.Network] {
			continue
		}
		seen[pool.Network] = true
		for owner := range s.opts.Leases.Leases(pool.Network) {
			r := s.lookup(api.Attachment{ContainerID: owner.ContainerID, IfName: owner.IfName})
			if r != nil && r.Network == pool.Network {
				continue
			}
			s.log.Warn("lease without endpoint released", "network", pool.Network, "container", owner.ContainerID)
			if err := s.opts.Leases.Release(pool.Network, owner, nil); err != nil {
				return fmt.Errorf("release lease without endpoint: %w", err)
			}
		}
	}
	return nil
}

// Run does what must be done in the background until the context ends.
func (s *Service) Run(ctx context.Context) error {
	var group errgroup.Group
	group.Go(func() error {
		s.purgeLoop(ctx)
		return nil
	})
	group.Go(func() error {
		for sleep(ctx, tidyInterval) {
			s.tidy()
		}
		return nil
	})
	group.Go(func() error {
		s.watchPolicies(ctx)
		return nil
	})
	return group.Wait()
}

// watchPolicies has the firewall follow its source until the context ends. What keeps it
// from that may pass.
func (s *Service) watchPolicies(ctx context.Context) {
	for {
		err := s.firewall.source.watch(ctx, func() (again bool) {
			s.problem(concernPolicyFolder, nil)
			return s.firewall.reload()
		})
		if err == nil {
			return
		}
		s.problem(concernPolicyFolder, err)
		if !sleep(ctx, tidyInterval) {
			return
		}
	}
}

// tidy undoes the endpoints of plugins that died between Prepare and Attach,
// puts back what others took from the node, and sweeps the maps.
func (s *Service) tidy() {
	before := s.opts.Now().Add(-abandoned)
	old := func(r *record) bool { return r.State == api.Pending && r.Created.Before(before) }
	var errs []error
	for _, r := range s.list(old) {
		errs = append(errs, s.tidyOne(r))
	}
	s.problem(concernUnfinished, errors.Join(errs...))
	s.problem(concernEnded, s.endThose())
	s.problem("subnets", s.ground.ensure())
	s.problem("reserved ports", s.reserved.ensure())
	s.problem("pins", s.repairPins()) // first: new links are pinned, too
	s.problem("uplinks", s.applyUplinks())
	s.problem("host addresses", s.addresses.ensure())
	s.problem("pacer", s.opts.Datapath.Repairs.RepairPacer())
	s.problem(concernPolicyMaps, s.firewall.tend())
	s.repairServed()
	s.problem("macvlan devices", s.orphans())
	s.problem(concernVLANs, s.dropVLANs())
	s.firewall.reload() // links of policy-dir may lead to where nobody watches
	// The datapath judges by itself what is too old; this keeps the maps small.
	s.problem("sweep", s.opts.Datapath.Flows.Purge(nil))
}

// endThose removes the endpoints of the DELs that did not reach the agent.
func (s *Service) endThose() error {
	ended, err := s.opts.Ended.Ended()
	if err != nil {
		return err
	}
	var errs []error
	for a, at := range ended {
		if err := s.endOne(a, at); err != nil {
			errs = append(errs, err)
			delete(ended, a) // it is tried again
		}
	}
	return errors.Join(append(errs, s.opts.Ended.Forget(ended))...)
}

func (s *Service) endOne(a api.Attachment, at time.Time) error {
	defer s.locks.lock(a)()
	r := s.lookup(a)
	if r == nil || !at.After(r.Created) {
		return nil // another ADD has come since
	}
	s.log.Info("endpoint ended without the agent", "container", r.ContainerID, "interface", r.IfName)
	if err := s.removeDevice(r); err != nil {
		return err
	}
	return s.remove(r)
}

func (s *Service) tidyOne(r *record) error {
	defer s.locks.lock(r.Attachment)()
	if s.lookup(r.Attachment) != r {
		return nil // it has come further, or is gone
	}
	gone, err := s.deviceGone(r)
	if err != nil || !gone {
		return err // its ADD may be at work; DEL or GC frees it
	}
	s.log.Info("unfinished endpoint undone", "container", r.ContainerID, "interface", r.IfName)
	return s.remove(r)
}

// SetUplinks has the datapath use these uplinks.
func (s *Service) SetUplinks(uplinks uplink.Found) {
	s.mu.Lock()
	s.uplinks = uplinks
	s.mu.Unlock()
	s.problem("uplinks", s.applyUplinks())
}

func (s *Service) applyUplinks() error {
	s.mu.Lock()
	wanted := make([]datapath.Uplink, 0, len(s.uplinks.Uplinks))
	for _, u := range s.uplinks.Uplinks {
		wanted = append(wanted, datapath.Uplink(u))
	}
	s.mu.Unlock()
	// Before decisions are taken by them.
	err := s.ground.setUplinks(wanted, s.opts.Now())
	if failed := s.opts.Datapath.Node.ReconcileUplinks(wanted); failed != nil {
		err = errors.Join(err, fmt.Errorf("reconcile uplinks: %w", failed))
	}
	return err
}

// RoutesChanged has every decision of the datapath taken anew.
func (s *Service) RoutesChanged() {
	s.problem("routes", s.opts.Datapath.Flows.Invalidate())
}

// AddressesChanged looks at the addresses of the node again.
func (s *Service) AddressesChanged() {
	s.problem("host addresses", s.addresses.refresh())
}

// LinkGone detaches the endpoint whose device has that index. It keeps its
// leases until DEL, GC or the next start: the container may still be there.
func (s *Service) LinkGone(ifindex int) {
	s.mu.Lock()
	a, ok := s.index.byLink[ifindex]
	s.mu.Unlock()
	if !ok {
		return
	}
	defer s.locks.lock(a)()
	r := s.lookup(a)
	if r == nil || r.HostIfIndex != ifindex {
		return
	}
	if err := s.detach(r); err != nil {
		s.log.Error("device is gone", "container", r.ContainerID, "interface", r.IfName, "error", err)
	}
}

// LinksUnknown looks for the devices of all endpoints, after events were lost.
func (s *Service) LinksUnknown() {
	for _, r := range s.list(func(r *record) bool { return r.State == api.Ready && !r.isChild() }) {
		if gone, err := s.isGone(r); err == nil && gone {
			s.LinkGone(r.HostIfIndex)
		}
	}
}
