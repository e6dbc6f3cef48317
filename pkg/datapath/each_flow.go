// SPDX-License-Identifier: Apache-2.0

package datapath

import "github.com/tendril-net/tendril/pkg/maps"

// EachFlow calls f for the entries of the flow cache, in no order, until it returns
// false. It takes no more memory than one batch, however many there are.
func (d *Datapath) EachFlow(f func(Flow) bool) error {
	now, err := ticks()
	if err != nil {
		return err
	}
	epochs, err := d.epochs()
	if err != nil {
		return err
	}
	return each(d.maps.Flows, func(key maps.FlowKey, value maps.Flow) bool {
		one := newFlow(key, value, now, epochs)
		if value.Action == maps.ActionDeny && int(value.Reason) < len(d.maps.CounterNames) {
			one.Reason = d.maps.CounterNames[value.Reason]
		}
		return f(one)
	})
}
