// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Out of the pacer: ingress of the second of its two devices. What a container has sent comes in
 * anew at its host side; what it is to get goes in.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/apply.h"
#include "lib/bandwidth.h"

SEC("tc")
int pacer_in(struct __sk_buff *skb)
{
	__u32 ifindex = skb->mark;
	__u32 direction = (__u32)(skb->tc_index ^ PACED_BASE) >> PACED_DIRECTION_SHIFT;

	if (!ifindex || direction > LIMIT_EGRESS)
		return TC_ACT_SHOT;
	skb->tstamp = 0;
	if (direction == LIMIT_EGRESS)
		return bpf_redirect(ifindex, BPF_F_INGRESS);
	skb->mark = 0;
	/* Its MAC is not this device's. */
	if (skb->pkt_type == PACKET_OTHERHOST && bpf_skb_change_type(skb, PACKET_HOST))
		return TC_ACT_SHOT;
	return bpf_redirect_peer(ifindex, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
