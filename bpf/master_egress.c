// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Out of a device in a container that macvlan children ride on: its egress. What a child has sent
 * was judged at its own, and is marked. See lib/inside.h.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/apply.h"
#include "lib/inside.h"

SEC("tc")
int master_egress(struct __sk_buff *skb)
{
	struct endpoint *child = NULL;
	struct ethhdr frame;

	if (was_judged(skb)) {
		skb->mark = 0;
		return TC_ACT_UNSPEC;
	}
	if (bpf_skb_load_bytes(skb, 0, &frame, sizeof(frame)))
		return TC_ACT_UNSPEC;
	if (frame.h_proto == bpf_htons(ETH_P_IP))
		child = child_with(skb, IPV4_SOURCE, false);
	else if (frame.h_proto == bpf_htons(ETH_P_ARP))
		child = child_with(skb, ARP_SENDER, false);
	else if (frame.h_proto == bpf_htons(ETH_P_IPV6))
		child = child_with(skb, IPV6_SOURCE, true);
	return child ? drop(skb, FROM_CONTAINER, DROP_SOURCE_MAC) : TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
