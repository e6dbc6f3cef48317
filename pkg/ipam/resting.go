// SPDX-License-Identifier: Apache-2.0

package ipam

// rested is one address that was released.
type rested struct {
	number number
	// order counts releases: what has a lower one was released earlier. A
	// count and not a time, because clocks jump.
	order uint64
}

// resting is a queue of released addresses that wait for their next use, the
// one that was released first in front. All operations are constant in time
// but for a compaction now and then.
type resting struct {
	// queue holds what is in orders and entries that are not any more; the
	// first is never one of these.
	queue  []rested
	orders map[number]uint64
}

func (q *resting) len() int { return len(q.orders) }

// order is when the address was released, or 0 if it does not rest.
func (q *resting) order(n number) uint64 { return q.orders[n] }

// push appends an address. Its order is higher than all that are there.
func (q *resting) push(r rested) {
	if q.orders == nil {
		q.orders = make(map[number]uint64)
	}
	q.queue = append(q.queue, r)
	q.orders[r.number] = r.order
}

// remove takes an address out, wherever it is.
func (q *resting) remove(n number) {
	delete(q.orders, n)
	for len(q.queue) > 0 && !q.valid(q.queue[0]) {
		q.queue = q.queue[1:]
	}
	if len(q.queue) > 2*len(q.orders)+64 {
		q.queue = q.oldest(len(q.orders))
	}
}

// oldest returns the count addresses that were released first, or all if there
// are fewer.
func (q *resting) oldest(count int) []rested {
	out := make([]rested, 0, min(count, q.len()))
	for _, r := range q.queue {
		if len(out) == cap(out) {
			break
		}
		if q.valid(r) {
			out = append(out, r)
		}
	}
	return out
}

func (q *resting) valid(r rested) bool { return q.orders[r.number] == r.order }
