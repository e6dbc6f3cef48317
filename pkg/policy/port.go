// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// portRange is a range of ports of a protocol; protocol 0 is all there is.
type portRange struct {
	protocol    uint8
	first, last uint16
}

const lastPort = 65535

// portName is a port of the server that a rule names.
type portName struct {
	protocol uint8
	name     string
}

func (n portName) compare(other portName) int {
	return cmp.Or(cmp.Compare(n.protocol, other.protocol), cmp.Compare(n.name, other.name))
}

// ports are what a rule says of ports: none given are all protocols. Both lists
// are sorted and have nothing twice.
func ports(given []networkingv1.NetworkPolicyPort) (ranges []portRange, names []portName) {
	if len(given) == 0 {
		return []portRange{{0, 0, lastPort}}, nil
	}
	for _, p := range given {
		protocol := protocolOf(p.Protocol)
		switch {
		case p.Port == nil:
			ranges = append(ranges, portRange{protocol, 0, lastPort})
		case p.Port.Type == intstr.String:
			names = append(names, portName{protocol, p.Port.StrVal})
		default:
			r := portRange{protocol, uint16(p.Port.IntVal), uint16(p.Port.IntVal)}
			if p.EndPort != nil {
				r.last = uint16(*p.EndPort)
			}
			ranges = append(ranges, r)
		}
	}
	slices.SortFunc(names, portName.compare)
	return normal(ranges), slices.Compact(names)
}

// protocolOf returns 0 for a protocol that policies do not know.
func protocolOf(p *corev1.Protocol) uint8 {
	if p == nil {
		return TCP
	}
	switch *p {
	case corev1.ProtocolTCP:
		return TCP
	case corev1.ProtocolUDP:
		return UDP
	case corev1.ProtocolSCTP:
		return SCTP
	}
	return 0
}

// normal sorts ranges of one rule and joins those that touch. It may change
// what it is given.
func normal(ranges []portRange) []portRange {
	slices.SortFunc(ranges, func(a, b portRange) int {
		return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.first, b.first), cmp.Compare(b.last, a.last))
	})
	out := ranges[:0]
	for _, r := range ranges {
		if n := len(out); n > 0 && out[n-1].protocol == r.protocol && int(r.first) <= int(out[n-1].last)+1 {
			out[n-1].last = max(out[n-1].last, r.last)
			continue
		}
		out = append(out, r)
	}
	return out
}

// union joins two lists of ranges; neither is changed.
func union(a, b []portRange) []portRange {
	if len(b) == 0 {
		return a
	}
	return normal(slices.Concat(a, b))
}

// resolve finds the ports that a server has under the names; nil if none.
func resolve(names []portName, has []NamedPort) []portRange {
	var ranges []portRange
	for _, n := range names {
		for _, p := range has {
			if p.Name == n.name && p.Protocol == n.protocol {
				ranges = append(ranges, portRange{p.Protocol, p.Port, p.Port})
			}
		}
	}
	return normal(ranges)
}

func writeRanges(c *content, ranges []portRange) {
	c.number(uint64(len(ranges)))
	for _, r := range ranges {
		c.number(uint64(r.protocol))
		c.number(uint64(r.first))
		c.number(uint64(r.last))
	}
}

func writeNames(c *content, names []portName) {
	c.number(uint64(len(names)))
	for _, n := range names {
		c.number(uint64(n.protocol))
		c.text(n.name)
	}
}
