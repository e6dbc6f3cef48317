// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * From a container that may only send so much: ingress of the host's side of its veth pair,
 * before from_container, so that no way leads round it. It is attached to no other.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/bandwidth.h"
#include "lib/count.h"

SEC("tc")
int limit_egress(struct __sk_buff *skb)
{
	/*
	 * The pacer has held this back: of what a container has just sent the mark is 0.
	 * from_container clears both. What has lost its mark, to a program of somebody's before
	 * this one, would go round for ever.
	 */
	if (skb->tc_index == paced_index(LIMIT_EGRESS, FROM_CONTAINER))
		return skb->mark == skb->ifindex ? TC_ACT_UNSPEC
						 : drop(skb, FROM_CONTAINER, DROP_BANDWIDTH_EGRESS);
	return meet_limit(skb, skb->ifindex, LIMIT_EGRESS, FROM_CONTAINER);
}

char _license[] SEC("license") = "Dual BSD/GPL";
