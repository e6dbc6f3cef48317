// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
)

// repairPins puts back what somebody removed or unmounted below bpf-root.
func (s *Service) repairPins() error {
	if err := s.opts.EnsureRoot(); err != nil {
		return err
	}
	return s.opts.Datapath.Repairs.RepairPins()
}

// repairServed puts back what others took from the endpoints that are served, and from their
// bridges.
func (s *Service) repairServed() {
	s.problem(concernBridges, s.repairBridges())
	ports, others := s.repairEndpoints()
	s.problem(concernPorts, ports)
	s.problem("endpoints", others)
}

// repairEndpoints returns what keeps devices from being ports of their bridges, and what else
// cannot be repaired. An endpoint that is whole costs some 40 us (Linux 6.18), most of them for asking
// which filters its device has.
func (s *Service) repairEndpoints() (ports, others error) {
	var errs, astrayErrs []error
	for _, r := range s.list(func(r *record) bool { return r.State == api.Ready }) {
		err := s.repairOne(r)
		if astray := (*portError)(nil); errors.As(err, &astray) {
			astrayErrs = append(astrayErrs, err)
		} else if err != nil {
			errs = append(errs, err)
		}
	}
	return firstOf(astrayErrs), firstOf(errs)
}

// firstOf is one error for many that have one reason, as a rule.
func firstOf(errs []error) error {
	if len(errs) > 1 {
		return fmt.Errorf("%d cannot be repaired; the first: %w", len(errs), errs[0])
	}
	return errors.Join(errs...)
}

// portError is what keeps an endpoint's device from being a port of its bridge.
type portError struct{ err error }

func (e *portError) Error() string { return e.err.Error() }
func (e *portError) Unwrap() error { return e.err }

// repairOne repairs an endpoint unless its device is gone. Under its lock it
// cannot be detached meanwhile.
func (s *Service) repairOne(r *record) error {
	defer s.locks.lock(r.Attachment)()
	if s.lookup(r.Attachment) != r || s.isDetached(r.Attachment) {
		return nil
	}
	if r.isChild() {
		if gone, err := s.isGone(r); err != nil {
			return err
		} else if gone {
			return s.loseChild(r)
		}
	}
	mended, err := s.repairPort(r)
	s.logMended(r, mended)
	var astray error
	if err != nil {
		astray = &portError{fmt.Errorf("repair endpoint %s: %w", recordKey(r.Attachment), err)}
	}
	if r, err = s.relocated(r); err != nil {
		return err
	}
	// An attach that has failed may have left it addresses that policy does not know.
	if err := s.firewall.add(r); err != nil {
		return fmt.Errorf("set policy of endpoint %s: %w", recordKey(r.Attachment), err)
	}
	err = s.opts.Datapath.Endpoints.CheckEndpoint(r.datapath())
	if mismatch := (*datapath.MismatchError)(nil); errors.As(err, &mismatch) {
		gone, lookErr := s.deviceGone(r)
		if gone {
			return nil // the event of its end is on its way
		}
		if lookErr != nil {
			return lookErr
		}
		mended, err = s.opts.Datapath.Repairs.RepairEndpoint(r.datapath())
		s.logMended(r, mended)
	}
	if err != nil {
		return fmt.Errorf("repair endpoint %s: %w", recordKey(r.Attachment), err)
	}
	return astray
}

// logMended tells whose endpoint was repaired, and of what.
func (s *Service) logMended(r *record, mended []string) {
	if len(mended) > 0 {
		s.log.Warn("endpoint repaired", "container", r.ContainerID, "interface", r.IfName, "device", cmp.Or(r.HostIfName, r.Parent), "found", strings.Join(mended, "; "))
	}
}
