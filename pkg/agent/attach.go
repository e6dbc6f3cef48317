// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
)

func notFound(a api.Attachment) *api.Error {
	return &api.Error{
		Code:    api.CodeNotFound,
		Message: fmt.Sprintf("container %s has no interface %s here", a.ContainerID, a.IfName),
	}
}

// Attach has the datapath serve an endpoint whose links exist.
func (s *Service) Attach(_ context.Context, a api.Attachment, req api.AttachRequest) (api.Endpoint, error) {
	if err := checkAttachment(a); err != nil {
		return api.Endpoint{}, err
	}
	if req.HostIfIndex < 0 || int64(req.HostIfIndex) > 1<<31-1 {
		return api.Endpoint{}, invalid("hostIfIndex", strconv.Itoa(req.HostIfIndex), "is no interface index")
	}
	defer s.locks.lock(a)()
	s.hit(failpoint.AgentAttachStart)
	r := s.lookup(a)
	if r == nil {
		return api.Endpoint{}, notFound(a)
	}
	if r.isChild() != (req.HostIfIndex == 0) {
		return api.Endpoint{}, invalid("hostIfIndex", strconv.Itoa(req.HostIfIndex),
			"is no device that an endpoint of the driver "+r.Driver+" can have")
	}
	if r.State == api.Ready && r.HostIfIndex != req.HostIfIndex {
		return api.Endpoint{}, &api.Error{
			Code: api.CodeConflict, Key: "hostIfIndex", Value: strconv.Itoa(req.HostIfIndex),
			Message: fmt.Sprintf("endpoint is attached to device %d, not %d", r.HostIfIndex, req.HostIfIndex),
		}
	}
	ready := *r
	ready.State, ready.HostIfIndex = api.Ready, req.HostIfIndex
	if err := s.findChild(&ready); err != nil {
		return api.Endpoint{}, err
	}
	if err := s.checkLink(&ready); err != nil {
		return api.Endpoint{}, err
	}
	if err := s.findBridge(&ready); err != nil {
		return api.Endpoint{}, err
	}
	if len(req.Addresses) > 0 {
		if err := s.takeLater(&ready, req.Addresses); err != nil {
			return api.Endpoint{}, err
		}
	}
	if err := s.addresses.learn(ready.Addresses); err != nil {
		return api.Endpoint{}, err
	}
	if err := s.attach(&ready); err != nil {
		return api.Endpoint{}, err
	}
	s.hit(failpoint.AgentAttachStored)
	return s.withPrograms(ready.Endpoint)
}

// attach is the change of state from pending to ready. What a failure leaves in the
// datapath would lead to whoever has the endpoint's number next, so it is undone.
func (s *Service) attach(ready *record) error {
	before := s.lookup(ready.Attachment)
	serves := before.State == api.Ready && !s.isDetached(ready.Attachment) // the repair sees to that one
	served := ready.datapath()
	if err := s.firewall.add(ready); err != nil {
		return fmt.Errorf("set policy of endpoint %s: %w", recordKey(ready.Attachment), err)
	}
	s.hit(failpoint.AgentAttachPolicy)
	err := s.opts.Datapath.Endpoints.AttachEndpoint(served)
	if err != nil {
		err = attachError(ready, err)
	} else if err = s.keep(ready); err == nil {
		// From here on LinkGone finds the endpoint by its link; what happened
		// before is found by looking again.
		err = s.checkLink(ready)
	}
	var left error
	if err != nil && !serves {
		left = s.opts.Datapath.Endpoints.DetachEndpoint(served)
		if left == nil {
			s.firewall.remove(ready.ID)
		}
		err = errors.Join(err, left)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		delete(s.index.detached, ready.Attachment)
		delete(s.index.half, ready.Attachment)
	case left != nil:
		s.index.half[ready.Attachment] = ready
	case !serves && s.index.records[ready.Attachment].State == api.Ready:
		s.index.detached[ready.Attachment] = true
	}
	return err
}

func attachError(r *record, err error) error {
	if full := (*datapath.FullError)(nil); errors.As(err, &full) {
		return &api.Error{Code: api.CodeExhausted, Message: err.Error()}
	}
	return fmt.Errorf("attach endpoint %s: %w", recordKey(r.Attachment), err)
}

// checkLink compares the host's side of the veth pair, or the macvlan device, with the record. The
// error is an *api.Error of CodeMismatch unless the kernel did not answer.
func (s *Service) checkLink(r *record) error {
	if r.isChild() {
		return s.checkChild(r)
	}
	link, err := s.device(r.HostIfName)
	switch {
	case err != nil:
		return err
	case link.Index != r.HostIfIndex:
		return mismatch(r.HostIfName, "has index %d, not %d", link.Index, r.HostIfIndex)
	case !bytes.Equal(link.MAC, parsedMAC(r.HostMAC)):
		return mismatch(r.HostIfName, "has MAC %s, not %s", link.MAC, r.HostMAC)
	}
	return nil
}

// device reads a device. The error is an *api.Error of CodeMismatch unless the kernel did
// not answer.
func (s *Service) device(name string) (HostLink, error) {
	link, err := s.opts.Links.Link(name)
	switch {
	case errors.Is(err, ErrNoLink):
		return HostLink{}, mismatch(name, "is gone")
	case err != nil:
		return HostLink{}, fmt.Errorf("read device %s: %w", name, err)
	}
	return link, nil
}

// mismatch says what is wrong with a device.
func mismatch(device, format string, args ...any) error {
	return &api.Error{Code: api.CodeMismatch, Message: fmt.Sprintf("device %s %s", device, fmt.Sprintf(format, args...))}
}

// parsedMAC reads a MAC that was checked before it was stored.
func parsedMAC(text string) net.HardwareAddr {
	mac, _ := net.ParseMAC(text)
	return mac
}

// datapath returns the endpoint as the datapath takes it.
func (r *record) datapath() datapath.Endpoint {
	e := datapath.Endpoint{
		ID:          r.ID,
		IfIndex:     r.HostIfIndex,
		IfName:      r.HostIfName,
		MAC:         parsedMAC(r.MAC),
		HostMAC:     parsedMAC(r.HostMAC),
		MTU:         r.MTU,
		Masquerade:  r.Masquerade,
		Ports:       r.ports(),
		Bridge:      r.bridge,
		Isolated:    r.Origin.Isolated,
		Trunk:       r.VLANTrunk,
		Layer2:      r.Origin.Layer2,
		OnLinkKnown: r.leased() && r.isRouted(), // only routed subnets are unreachable before
		Ingress:     limit(r.Bandwidth.IngressRate, r.Bandwidth.IngressBurst),
		Egress:      limit(r.Bandwidth.EgressRate, r.Bandwidth.EgressBurst),
		Unshaped:    r.Bandwidth.UnshapedSubnets,
	}
	if r.isChild() {
		e.IfIndex, e.IfName, e.Child = datapath.ChildIndex(r.ID), r.Parent, r.child()
	}
	for _, a := range r.Addresses {
		e.Addresses = append(e.Addresses, a.Address.Addr())
	}
	return e
}

// Delete frees all that an endpoint holds. One that is not known is no error,
// nor is an interface name that no endpoint can have.
func (s *Service) Delete(_ context.Context, a api.Attachment) error {
	if err := checkName("containerID", a.ContainerID); err != nil {
		return err
	}
	defer s.locks.lock(a)()
	s.hit(failpoint.AgentDeleteStart)
	r := s.lookup(a)
	if r == nil {
		return nil
	}
	// A DEL need not say where the container is, and what is detached is nobody's to filter.
	if r.isChild() {
		if err := s.removeChild(r); err != nil {
			return err
		}
	}
	if err := s.remove(r); err != nil {
		return err
	}
	s.hit(failpoint.AgentDeleteStored)
	return nil
}

// remove detaches and releases an endpoint. Its lock is held.
func (s *Service) remove(r *record) error {
	if err := s.detach(r); err != nil {
		return err
	}
	return s.release(r)
}

// detach has the datapath serve the endpoint no more, or takes from it what an ADD that
// failed has left.
func (s *Service) detach(r *record) error {
	s.mu.Lock()
	half := s.index.half[r.Attachment]
	s.mu.Unlock()
	switch {
	case half != nil:
		r = half
	case r.State != api.Ready || s.isDetached(r.Attachment):
		return nil
	}
	if err := s.opts.Datapath.Endpoints.DetachEndpoint(r.datapath()); err != nil {
		return fmt.Errorf("detach endpoint %s: %w", recordKey(r.Attachment), err)
	}
	s.firewall.remove(r.ID)
	s.disconnect(r) // who connects again does not come back here
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index.detached[r.Attachment] = true
	delete(s.index.half, r.Attachment)
	return nil
}

func (s *Service) isDetached(a api.Attachment) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index.detached[a]
}

// Check compares what is with what ADD left: the record, the device, the
// leases, the datapath.
func (s *Service) Check(_ context.Context, a api.Attachment) error {
	if err := checkAttachment(a); err != nil {
		return err
	}
	defer s.locks.lock(a)()
	r := s.lookup(a)
	if r == nil {
		return notFound(a)
	}
	if r.State != api.Ready {
		return &api.Error{Code: api.CodeMismatch, Message: fmt.Sprintf("endpoint is %s: its ADD did not finish", r.State)}
	}
	if err := s.checkLink(r); err != nil {
		return err
	}
	if err := s.checkPort(r); err != nil {
		return err
	}
	if err := s.checkLeases(r); err != nil {
		return err
	}
	err := s.opts.Datapath.Endpoints.CheckEndpoint(r.datapath())
	if mismatch := (*datapath.MismatchError)(nil); errors.As(err, &mismatch) {
		return &api.Error{Code: api.CodeMismatch, Message: err.Error()}
	}
	return err
}

func (s *Service) checkLeases(r *record) error {
	if !r.leased() {
		return nil
	}
	held := make(map[netip.Prefix]bool)
	for _, lease := range s.opts.Leases.Lookup(r.Network, owner(r.Attachment)) {
		held[lease.Prefix] = true
	}
	for _, a := range r.Addresses {
		if !held[a.Address] {
			return &api.Error{Code: api.CodeMismatch, Message: fmt.Sprintf("address %s is not leased to the endpoint", a.Address)}
		}
	}
	return nil
}
