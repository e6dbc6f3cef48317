// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"strconv"
	"strings"
)

// portSet is a set of ports in the form of the kernel's
// net.ipv4.ip_local_reserved_ports: numbers and ranges, separated by commas.
type portSet [1 << 16 / 64]uint64

func parsePorts(text string) (*portSet, error) {
	set := &portSet{}
	for part := range strings.SplitSeq(strings.TrimSpace(text), ",") {
		if part == "" {
			continue
		}
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("parse ports %q: %w", part, err)
		}
		to, err := strconv.ParseUint(last, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("parse ports %q: %w", part, err)
		}
		if to < from {
			return nil, fmt.Errorf("parse ports %q: the first is above the last", part)
		}
		set.add(uint16(from), uint16(to))
	}
	return set, nil
}

// add adds the ports first to last, both included.
func (s *portSet) add(first, last uint16) {
	for port := uint32(first); port <= uint32(last); port++ {
		s[port/64] |= 1 << (port % 64)
	}
}

// remove takes one port out.
func (s *portSet) remove(port uint16) { s[port/64] &^= 1 << (port % 64) }

func (s *portSet) has(port uint32) bool { return s[port/64]&(1<<(port%64)) != 0 }

// union returns the ports of either.
func (s *portSet) union(o *portSet) *portSet {
	u := *s
	for i := range u {
		u[i] |= o[i]
	}
	return &u
}

// both returns the ports that are in s and in o.
func (s *portSet) both(o *portSet) *portSet {
	b := *s
	for i := range b {
		b[i] &= o[i]
	}
	return &b
}

// minus returns the ports of s that are not in o.
func (s *portSet) minus(o *portSet) *portSet {
	d := *s
	for i := range d {
		d[i] &^= o[i]
	}
	return &d
}

func (s *portSet) String() string {
	var parts []string
	for port := uint32(0); port < 1<<16; port++ {
		if !s.has(port) {
			continue
		}
		first := port
		for port+1 < 1<<16 && s.has(port+1) {
			port++
		}
		if first == port {
			parts = append(parts, strconv.Itoa(int(first)))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", first, port))
		}
	}
	return strings.Join(parts, ",")
}
