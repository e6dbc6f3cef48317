// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"net/netip"
)

// Bandwidth is what an endpoint may get (ingress) and send (egress), in the words of the
// reference plugin bandwidth.
type Bandwidth struct {
	// IngressRate and EgressRate are in bits of Ethernet frames per second, from MinRate to
	// MaxRate; 0 is no limit.
	IngressRate int64 `json:"ingressRate,omitempty"`
	EgressRate  int64 `json:"egressRate,omitempty"`
	// IngressBurst and EgressBurst are how many bits pass at once after a silence. 0 with a
	// rate takes DefaultBurst; one that takes longer than MaxBurst at the rate is lowered to that,
	// and one without a rate is nothing.
	IngressBurst int64 `json:"ingressBurst,omitempty"`
	EgressBurst  int64 `json:"egressBurst,omitempty"`
	// UnshapedSubnets are whom the limits do not count for: destinations of what the
	// endpoint sends, as it sends it, and sources of what it gets. At most MaxUnshaped.
	UnshapedSubnets []netip.Prefix `json:"unshapedSubnets,omitempty"`
}

// Bounds of a Bandwidth: rates as Kubernetes has them, in bits per second, and bursts in
// milliseconds of the rate.
const (
	MinRate      = 1_000
	MaxRate      = 1_000_000_000_000_000
	DefaultBurst = 10
	MaxBurst     = 250
	MaxUnshaped  = 256
)

// RateFault says why a rate cannot be one of a Bandwidth; empty if it can.
func RateFault(rate int64) string {
	if rate == 0 || (rate >= MinRate && rate <= MaxRate) {
		return ""
	}
	return fmt.Sprintf("is not 0, which is no limit, or from %d to %d bits per second", MinRate, int64(MaxRate))
}

// IsZero says that nothing is limited.
func (b Bandwidth) IsZero() bool {
	return b.IngressRate == 0 && b.EgressRate == 0 && b.IngressBurst == 0 && b.EgressBurst == 0 && len(b.UnshapedSubnets) == 0
}
