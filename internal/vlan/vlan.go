// SPDX-License-Identifier: Apache-2.0

// Package vlan has sets of VLANs.
package vlan

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Max is the highest number of a VLAN (IEEE 802.1Q, 9.6); the lowest is 1.
const Max = 4094

// Range are VLANs that follow each other.
type Range struct {
	// First and Last are within it, 1 to Max.
	First int `json:"first"`
	Last  int `json:"last"`
}

func (r Range) String() string {
	if r.First == r.Last {
		return strconv.Itoa(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Fault says why a range is none; "" for one that is.
func (r Range) Fault() string {
	switch {
	case r.First < 1 || r.Last > Max:
		return fmt.Sprintf("is not between 1 and %d", Max)
	case r.First > r.Last:
		return "ends before it begins"
	}
	return ""
}

// Set is a set of VLANs: ranges that are apart, the lowest first.
type Set []Range

// Of returns the set of all that is in the ranges.
func Of(ranges ...Range) Set {
	sorted := slices.SortedFunc(slices.Values(ranges), func(a, b Range) int { return cmp.Compare(a.First, b.First) })
	var set Set
	for _, r := range sorted {
		if end := len(set) - 1; end >= 0 && r.First <= set[end].Last+1 {
			set[end].Last = max(set[end].Last, r.Last)
			continue
		}
		set = append(set, r)
	}
	return set
}

// Has tells whether a VLAN is in the set.
func (s Set) Has(id int) bool {
	return slices.ContainsFunc(s, func(r Range) bool { return r.First <= id && id <= r.Last })
}

// String names some of the VLANs.
func (s Set) String() string {
	const most = 8
	var texts []string
	for _, r := range s[:min(len(s), most)] {
		texts = append(texts, r.String())
	}
	if len(s) > most {
		texts = append(texts, "and others")
	}
	return strings.Join(texts, ", ")
}
