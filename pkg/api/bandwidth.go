// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/netip"
	"slices"
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

// IsZero says that nothing is limited.
func (b Bandwidth) IsZero() bool {
	return b.IngressRate == 0 && b.EgressRate == 0 && b.IngressBurst == 0 && b.EgressBurst == 0 && len(b.UnshapedSubnets) == 0
}

// Equal compares all of both.
func (b Bandwidth) Equal(other Bandwidth) bool {
	return b.IngressRate == other.IngressRate && b.EgressRate == other.EgressRate &&
		b.IngressBurst == other.IngressBurst && b.EgressBurst == other.EgressBurst &&
		slices.Equal(b.UnshapedSubnets, other.UnshapedSubnets)
}
