/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counters: each packet that meets a journey is counted under one enum counter. */
#pragma once

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

/* GSO packets count as the packets they will be on a wire. */
static __always_inline __u32 segments(const struct __sk_buff *skb)
{
	return skb->gso_segs ?: 1;
}

static __always_inline void count(const struct __sk_buff *skb, enum journey journey,
				  enum counter counter)
{
	__u32 index = journey * COUNTER_PLACES + counter;
	struct count *sum = bpf_map_lookup_elem(&counters, &index);

	if (sum) {
		sum->packets += segments(skb);
		sum->bytes += skb->len;
	}
}

/* Programs of others behind us in the chain, then the stack, have their turn. */
static __always_inline int pass(const struct __sk_buff *skb, enum journey journey,
				enum counter counter)
{
	count(skb, journey, counter);
	return TC_ACT_UNSPEC;
}

static __always_inline int drop(const struct __sk_buff *skb, enum journey journey,
				enum counter reason)
{
	count(skb, journey, reason);
	return TC_ACT_SHOT;
}
