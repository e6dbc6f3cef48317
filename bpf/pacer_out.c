// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Into the pacer: egress of one of its two devices, before its fq; of the first, what containers
 * send, of the second, what they get. Says of each packet when it leaves (the departure time, which
 * fq keeps), or drops it where that would be too late. The other device, where pacer_in is, gets it
 * then.
 *
 * A packet leaves when those before it, with it, are paid for. Small ones of a flow that has
 * nothing held back go at once, within what small packets may have: a question need not wait
 * behind bulk, and a flow stays in order.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/bandwidth.h"
#include "lib/count.h"

/* The share of the horizon from which on packets that are held back are marked. */
#define MARK_FROM 8

SEC("tc")
int pacer_out(struct __sk_buff *skb)
{
	struct limit_key key;
	enum journey journey;
	struct limit *limit;
	struct wire wire;
	__u64 at, price, departure = 0, *busy;
	__s64 wait, horizon;
	bool late;

	/* What the host itself says here concerns nobody. */
	if (!read_paced(skb, &key, &journey))
		return TC_ACT_SHOT;
	limit = bpf_map_lookup_elem(&bandwidth, &key);
	if (limit) {
		wire = on_wire(skb);
		price = price_of(limit, wire.bytes);
		horizon = (__u64)limit->horizon * NSEC_PER_USEC;
		busy = &limit->busy[bpf_get_hash_recalc(skb) % LIMIT_FLOWS];
		at = bpf_ktime_get_ns();
		bpf_spin_lock(&limit->lock);
		bound_credit(limit, at, limit->burst);
		wait = limit->empty - at;
		late = wire.bytes > BANDWIDTH_BYTES_MAX;
		if (wait <= 0) /* all has left, or was lost with its queue */
			limit->waiting = 0;
		if (wait > 0 &&
		    ((__s64)(*busy - at) > 0 || !small_passes(limit, wire.bytes, price, at))) {
			late = late || wait > horizon ||
			       (__s64)limit->waiting >= (__s64)limit->room;
			departure = limit->empty;
		}
		if (late) {
			limit->dropped += wire.packets;
		} else {
			if (departure) {
				*busy = departure;
				limit->held += wire.packets;
				/* pacer_in takes it back without the lock, and perhaps as segments.
				 */
				__sync_fetch_and_add(&limit->waiting, wire.packets);
				skb->tc_index |= PACED_HELD;
			}
			account_limit(limit, price, &wire);
		}
		bpf_spin_unlock(&limit->lock);
		if (late)
			return drop_beyond(skb, key.direction, journey);
		if (departure && wait > horizon / MARK_FROM)
			mark_congestion(skb, limit);
	}
	/* What the stack brings, and what leaves a container, is counted by others. */
	if (key.direction == LIMIT_INGRESS && journey != TO_CONTAINER)
		count(skb, journey, COUNTER_DELIVERED);
	skb->priority = 0; /* fq holds back nothing of TC_PRIO_CONTROL */
	skb->tstamp = departure;
	return TC_ACT_UNSPEC; /* TC_ACT_OK overwrites tc_index */
}

char _license[] SEC("license") = "Dual BSD/GPL";
