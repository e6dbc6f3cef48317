// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// selector is a label selector that was validated. All requirements must hold;
// without any it selects everything.
type selector []requirement

type requirement struct {
	key    string
	op     metav1.LabelSelectorOperator
	values []string // sorted, each once
}

// newSelector writes what matchLabels says as In with one value, in one order,
// so that selectors that say the same are the same.
func newSelector(from *metav1.LabelSelector) selector {
	var s selector
	for key, value := range from.MatchLabels {
		s = append(s, requirement{key, metav1.LabelSelectorOpIn, []string{value}})
	}
	for _, e := range from.MatchExpressions {
		values := slices.Compact(slices.Sorted(slices.Values(e.Values)))
		s = append(s, requirement{e.Key, e.Operator, values})
	}
	slices.SortFunc(s, func(a, b requirement) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.op, b.op), slices.Compare(a.values, b.values))
	})
	return slices.CompactFunc(s, func(a, b requirement) bool {
		return a.key == b.key && a.op == b.op && slices.Equal(a.values, b.values)
	})
}

func (s selector) matches(labels map[string]string) bool {
	for i := range s {
		if !s[i].matches(labels) {
			return false
		}
	}
	return true
}

func (r *requirement) matches(labels map[string]string) bool {
	value, ok := labels[r.key]
	switch r.op {
	case metav1.LabelSelectorOpIn:
		return ok && r.has(value)
	case metav1.LabelSelectorOpNotIn:
		return !ok || !r.has(value)
	case metav1.LabelSelectorOpExists:
		return ok
	case metav1.LabelSelectorOpDoesNotExist:
		return !ok
	}
	return false
}

func (r *requirement) has(value string) bool {
	_, found := slices.BinarySearch(r.values, value)
	return found
}

// appendTo writes the selector in a form that no other selector has.
func (s selector) appendTo(c *content) {
	c.number(uint64(len(s)))
	for _, r := range s {
		c.text(r.key)
		c.text(string(r.op))
		c.number(uint64(len(r.values)))
		for _, v := range r.values {
			c.text(v)
		}
	}
}

// index finds what selects an endpoint without asking all of thousands of
// selectors: nearly all of them want some label to have some value.
type index[T any] struct {
	byLabel map[label][]indexed[T]
	rest    []indexed[T]
}

type label struct{ key, value string }

type indexed[T any] struct {
	selector selector
	item     T
}

func (x *index[T]) add(s selector, item T) {
	for _, r := range s {
		if r.op == metav1.LabelSelectorOpIn && len(r.values) == 1 {
			if x.byLabel == nil {
				x.byLabel = make(map[label][]indexed[T])
			}
			at := label{r.key, r.values[0]}
			x.byLabel[at] = append(x.byLabel[at], indexed[T]{s, item})
			return
		}
	}
	x.rest = append(x.rest, indexed[T]{s, item})
}

// appendMatches appends what selects these labels, in no order.
func (x *index[T]) appendMatches(to []T, labels map[string]string) []T {
	if x == nil {
		return to
	}
	for key, value := range labels {
		for _, i := range x.byLabel[label{key, value}] {
			if i.selector.matches(labels) {
				to = append(to, i.item)
			}
		}
	}
	for _, i := range x.rest {
		if i.selector.matches(labels) {
			to = append(to, i.item)
		}
	}
	return to
}
