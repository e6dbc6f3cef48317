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
	return is_beyond(skb, skb->ifindex, LIMIT_EGRESS)
		       ? drop(skb, FROM_CONTAINER, DROP_BANDWIDTH_EGRESS)
		       : TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
