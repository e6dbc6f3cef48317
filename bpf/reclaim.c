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

#define SLOTS_PER_RUN 64

SEC("tc")
int reclaim(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();

	if (!s)
		return 0;
	__builtin_memset(&s->reply, 0, sizeof(s->reply));
	s->freed = 0;
	for (__u32 i = 0; i < SLOTS_PER_RUN; i++) {
		int slot = slot_claim(skb, skb->mark + i, NEED_DEAD);

		if (slot < 0)
			break;
		if (slot == 1)
			s->freed++;
	}
	return s->freed;
}

char _license[] SEC("license") = "Dual BSD/GPL";
