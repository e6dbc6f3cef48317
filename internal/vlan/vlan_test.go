// SPDX-License-Identifier: Apache-2.0

package vlan_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/vlan"
)

func TestOf(t *testing.T) {
	for _, test := range []struct {
		ranges []vlan.Range
		want   vlan.Set
		text   string
	}{
		{nil, nil, ""},
		{[]vlan.Range{{7, 7}}, vlan.Set{{7, 7}}, "7"},
		{[]vlan.Range{{20, 29}, {1, 1}, {30, 31}, {25, 27}}, vlan.Set{{1, 1}, {20, 31}}, "1, 20-31"},
		{[]vlan.Range{{1, vlan.Max}, {3, 3}}, vlan.Set{{1, vlan.Max}}, "1-4094"},
		{
			[]vlan.Range{{1, 1}, {3, 3}, {5, 5}, {7, 7}, {9, 9}, {11, 11}, {13, 13}, {15, 15}, {17, 17}},
			vlan.Set{{1, 1}, {3, 3}, {5, 5}, {7, 7}, {9, 9}, {11, 11}, {13, 13}, {15, 15}, {17, 17}},
			"1, 3, 5, 7, 9, 11, 13, 15, and others",
		},
	} {
		got := vlan.Of(test.ranges...)
		if diff := cmp.Diff(test.want, got); diff != "" || got.String() != test.text {
			t.Errorf("%v is %q (-want +got):\n%s", test.ranges, got, diff)
		}
	}
}

func TestHas(t *testing.T) {
	set := vlan.Of(vlan.Range{First: 2, Last: 3}, vlan.Range{First: 9, Last: 9})
	var got []int
	for id := range vlan.Max + 2 {
		if set.Has(id) {
			got = append(got, id)
		}
	}
	if diff := cmp.Diff([]int{2, 3, 9}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestFault(t *testing.T) {
	for r, want := range map[vlan.Range]string{
		{1, vlan.Max}: "", {9, 9}: "", {0, 9}: "is not between 1 and 4094", {9, 4095}: "is not between 1 and 4094", {9, 8}: "ends before it begins",
	} {
		if got := r.Fault(); got != want {
			t.Errorf("%s %q, want %q", r, got, want)
		}
	}
}
