// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Removes dead translations. The agent runs it now and then, and after endpoints
 * have left, to keep the maps small; the datapath reclaims what it needs itself.
 * skb->mark is the first slot; SLOTS_PER_RUN are looked at.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/translation.h"

#define SLOTS_PER_RUN 256

SEC("tc")
int reclaim(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	int freed = 0;

	if (!s)
		return 0;
	s->reply.protocol = 0;
	for (__u32 i = 0; i < SLOTS_PER_RUN; i++) {
		int slot = slot_claim(skb, skb->mark + i);

		if (slot < 0)
			break;
		freed += slot == 1;
	}
	return freed;
}

char _license[] SEC("license") = "Dual BSD/GPL";
