// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Out of the pacer: ingress of the other of its two devices. What a container has sent comes in
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
	__u32 held = skb->tc_index & PACED_HELD;
	struct limit_key key;
	enum journey journey;
	struct limit *limit;

	if (!read_paced(skb, &key, &journey))
		return TC_ACT_SHOT;
	if (held) {
		skb->tc_index &= ~PACED_HELD;
		limit = bpf_map_lookup_elem(&bandwidth, &key);
		if (limit)
			__sync_fetch_and_add(&limit->waiting, -(__u64)segments(skb));
	}
	skb->tstamp = 0;
	if (key.direction == LIMIT_EGRESS)
		return bpf_redirect(key.ifindex, BPF_F_INGRESS);
	skb->mark = 0;
	/* Its MAC is not this device's. */
	if (skb->pkt_type == PACKET_OTHERHOST && bpf_skb_change_type(skb, PACKET_HOST))
		return TC_ACT_SHOT;
	return bpf_redirect_peer(key.ifindex, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
