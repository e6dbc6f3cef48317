// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOverlapWithAnotherNetwork(t *testing.T) {
	for _, test := range []struct {
		name, first, second string
		refused             bool
	}{
		{"the same", "10.0.0.0/24", "10.0.0.0/24", true},
		{"one within the other", "10.0.0.0/16", "10.0.7.0/24", true},
		{"one address", "10.0.0.0/24 - 10.0.0.9", "10.0.0.0/24 10.0.0.9", true},
		{"in other sets and ranges", "10.8.0.0/24; fd00::/64", "10.9.0.0/24, 10.10.0.0/24; fd01::/64, fd00::/120", true},
		{"parts of a subnet", "10.0.0.0/24 - 10.0.0.9", "10.0.0.0/24 10.0.0.10", false},
		{"its gateway in the other's range", "10.0.0.0/24 - 10.0.0.9 10.0.0.100", "10.0.0.0/24 10.0.0.50", true},
		{"the other's gateway in its range", "10.0.0.0/24 10.0.0.50", "10.0.0.0/24 - 10.0.0.9 10.0.0.100", true},
		{"nested with the same gateway", "10.0.0.0/16 10.0.9.0", "10.0.0.0/24", false},
		{"IPv6, neighbours", "fd00::/65", "fd00::8000:0:0:0/65", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStore(t)
			allocate(t, s, from(t, "first", test.first, container(1)))
			second := from(t, "second", test.second, container(2))
			_, err := s.Allocate(second, nil)
			var overlap *OverlapError
			if !test.refused {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.As(err, &overlap) || overlap.Network != "second" || overlap.Other != "first" {
				t.Fatalf("got error %v, want an *OverlapError that names both", err)
			}
			if err := s.Available("second", second.Ranges); !errors.As(err, &overlap) {
				t.Errorf("Available: got error %v, want an *OverlapError", err)
			}
			sameAsFile(t, s)

			// Once the first holds nothing it gives way.
			mustRelease(t, s, "first", container(1))
			allocate(t, s, second)
			sameAsFile(t, s)
			if _, err := s.Allocate(from(t, "first", test.first, container(1)), nil); !errors.As(err, &overlap) {
				t.Errorf("got error %v, want an *OverlapError", err)
			}
		})
	}
}

// Leases from ranges that a network had before stay; new ones come from the new
// ranges; nobody else gets the old addresses until they are released.
func TestRangesChange(t *testing.T) {
	s := newStore(t)
	const before, after = "10.0.0.0/30; fd00::/64", "10.0.0.0/29; fd00:1::/64"
	old := mustAllocate(t, s, from(t, "pods", before, container(1))) // 10.0.0.2
	if got := allocate(t, s, from(t, "pods", after, container(2))); !slices.Equal(got, []string{"10.0.0.3", "fd00:1::2"}) {
		t.Errorf("after the change: got %v", got)
	}
	sameAsFile(t, s)
	if diff := cmp.Diff(old, s.Lookup("pods", container(1)), netips); diff != "" {
		t.Errorf("the old lease (-want +got)\n%s", diff)
	}
	pools := []Pool{
		{"pods", 0, mustCanonical(t, "10.0.0.0/29")[0], 2, 5},
		{"pods", 1, mustCanonical(t, "fd00:1::/64")[0], 1, maxCapacity},
	}
	if diff := cmp.Diff(pools, s.Pools(), netips); diff != "" {
		t.Errorf("Pools (-want +got)\n%s", diff)
	}

	// The old IPv6 range is free for others, but for the address in use.
	var taken *TakenError
	if _, err := s.Allocate(from(t, "gate", "fd00::/64 fd00::9 - fd00::2", container(1)), nil); !errors.As(err, &taken) ||
		!taken.Gateway || taken.Owner != container(1) || taken.Network != "pods" {
		t.Errorf("a gateway that is leased: got error %v, want a *TakenError for it", err)
	}
	const others = "fd00::/126"
	if got := allocate(t, s, from(t, "other", others, container(1))); !slices.Equal(got, []string{"fd00::3"}) {
		t.Errorf("from the old range: got %v", got)
	}
	mustRelease(t, s, "pods", container(1))
	sameAsFile(t, s)
	if got := allocate(t, s, from(t, "other", others, container(2))); !slices.Equal(got, []string{"fd00::2"}) {
		t.Errorf("from the old range, after the release: got %v", got)
	}

	// Back again is no longer possible, and changes nothing.
	var overlap *OverlapError
	if _, err := s.Allocate(from(t, "pods", before, container(3)), nil); !errors.As(err, &overlap) {
		t.Errorf("got error %v, want an *OverlapError", err)
	}
	if got := allocate(t, s, from(t, "pods", after, container(3))); !slices.Equal(got, []string{"10.0.0.4", "fd00:1::3"}) {
		t.Errorf("got %v", got)
	}
	sameAsFile(t, s)
}

// The walk and the rest of released addresses go on through a change of ranges.
func TestRangesChangeKeepsReleasedBack(t *testing.T) {
	s := newStore(t)
	allocate(t, s, from(t, "pods", "10.0.0.0/29", container(1)))        // .2
	allocate(t, s, from(t, "pods", "10.0.0.0/29", container(2)))        // .3
	mustRelease(t, s, "pods", container(2))                             // .3 rests
	got := allocate(t, s, from(t, "pods", "10.0.0.0/28", container(3))) // the walk stood at .3
	mustRelease(t, s, "pods", container(1))
	for i := range 10 {
		got = append(got, allocate(t, s, from(t, "pods", "10.0.0.0/28", container(10+i)))...)
	}
	for i := range 2 {
		got = append(got, allocate(t, s, from(t, "pods", "10.0.0.0/28", container(20+i)))...)
	}
	var want []string
	for _, i := range []int{4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 3, 2} {
		want = append(want, fmt.Sprintf("10.0.0.%d", i))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	sameAsFile(t, s)
}

// Networks that hold nothing are forgotten when there are many, the one that
// was used first before the others.
func TestIdleNetworksAreForgotten(t *testing.T) {
	s := newStore(t)
	allocate(t, s, from(t, "keeps", "10.255.0.0/24", container(1)))
	for i := range maxIdle + 10 {
		name := fmt.Sprintf("job%d", i)
		allocate(t, s, from(t, name, fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255), container(1)))
		mustRelease(t, s, name, container(1))
	}
	known := make(map[string]bool)
	for _, p := range s.Pools() {
		known[p.Network] = true
	}
	want := map[string]bool{"keeps": true}
	for i := range maxIdle {
		want[fmt.Sprintf("job%d", i+10)] = true
	}
	if diff := cmp.Diff(want, known); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	sameAsFile(t, s)
}

var errRefused = errors.New("refused")
