// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
)

// parseBandwidth checks what was asked for, and returns what of it is in force. notes say what
// is not as it was asked for.
func parseBandwidth(b api.Bandwidth) (_ api.Bandwidth, notes []string, err error) {
	for _, d := range []struct {
		name        string
		rate, burst *int64
	}{
		{"ingress", &b.IngressRate, &b.IngressBurst},
		{"egress", &b.EgressRate, &b.EgressBurst},
	} {
		rate, burst := *d.rate, *d.burst
		value := func(n int64) string { return strconv.FormatInt(n, 10) }
		switch {
		case api.RateFault(rate) != "":
			return b, nil, invalid("bandwidth."+d.name+"Rate", value(rate), api.RateFault(rate))
		case burst < 0:
			return b, nil, invalid("bandwidth."+d.name+"Burst", value(burst), "is not 0, which takes a default, or a number of bits")
		case rate == 0 && burst > 0:
			*d.burst = 0
			notes = append(notes, fmt.Sprintf("%sBurst %d without %sRate limits nothing", d.name, burst, d.name))
		case rate > 0 && burst == 0:
			*d.burst = bitsIn(rate, api.DefaultBurst)
			notes = append(notes, fmt.Sprintf("%sBurst is %d, %d ms of %sRate %d", d.name, *d.burst, api.DefaultBurst, d.name, rate))
		case rate > 0 && burst > bitsIn(rate, api.MaxBurst):
			*d.burst = bitsIn(rate, api.MaxBurst)
			notes = append(notes, fmt.Sprintf("%sBurst %d is lowered to %d, %d ms of %sRate %d", d.name, burst, *d.burst, api.MaxBurst, d.name, rate))
		}
	}
	if len(b.UnshapedSubnets) > api.MaxUnshaped {
		return b, nil, invalid("bandwidth.unshapedSubnets", strconv.Itoa(len(b.UnshapedSubnets)), fmt.Sprintf("are more than %d", api.MaxUnshaped))
	}
	var unshaped []netip.Prefix
	for i, p := range b.UnshapedSubnets {
		if !p.IsValid() || p.Addr().Is4In6() {
			return b, nil, invalid(fmt.Sprintf("bandwidth.unshapedSubnets[%d]", i), p.String(), "is no prefix of IPv4 or IPv6")
		}
		unshaped = append(unshaped, p.Masked())
	}
	b.UnshapedSubnets = unshaped
	return b, notes, nil
}

// bitsIn is how much passes at a rate in so many milliseconds, and at least one bit.
func bitsIn(rate, milliseconds int64) int64 { return max(1, rate*milliseconds/1000) }

// limit is what the datapath takes, of a rate and a burst that are in force.
func limit(rate, burst int64) datapath.Limit {
	if rate == 0 {
		return datapath.Limit{}
	}
	// At most api.MaxBurst milliseconds: a float is exact to the nanosecond.
	took := time.Duration(float64(burst) / float64(rate) * float64(time.Second))
	return datapath.Limit{Rate: uint64(rate), Burst: max(1, took)}
}

// SetBandwidth gives an endpoint other limits. The record comes first: an agent that dies
// between the two finds in it what the datapath is to have.
func (s *Service) SetBandwidth(_ context.Context, a api.Attachment, wanted api.Bandwidth) (api.Endpoint, error) {
	if err := checkAttachment(a); err != nil {
		return api.Endpoint{}, err
	}
	defer s.locks.lock(a)()
	before := s.lookup(a)
	if before == nil {
		return api.Endpoint{}, notFound(a)
	}
	inForce, notes, err := parseBandwidth(wanted)
	if err != nil {
		return api.Endpoint{}, err
	}
	r := *before
	r.Bandwidth = inForce
	if err := s.keep(&r); err != nil {
		return api.Endpoint{}, err
	}
	if before.State == api.Ready && !s.isDetached(a) {
		if err := s.opts.Datapath.Endpoints.SetLimits(before.datapath(), r.datapath()); err != nil {
			err = fmt.Errorf("set bandwidth: %w", attachError(&r, err))
			return api.Endpoint{}, errors.Join(err, s.opts.Datapath.Endpoints.SetLimits(r.datapath(), before.datapath()), s.keep(before))
		}
	}
	s.noteBandwidth(&r, notes)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index.shown(&r), nil
}

// noteBandwidth logs what of an endpoint's bandwidth is not as it was asked for.
func (s *Service) noteBandwidth(r *record, notes []string) {
	for _, note := range notes {
		s.log.Info("bandwidth completed", "container", r.ContainerID, "interface", r.IfName, "what", note)
	}
}
