/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Time in ticks of the monotonic clock, and the epochs of decisions. */
#pragma once

#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "settings.h"

/*
 * A tick is 2^30 ns, 1.07 s: eBPF has no cheap division, and this needs none.
 * What is compared is a tick or less off.
 */
#define TICK_SHIFT 30
#define SECONDS(n) ((__u32)((n) * 1000000000ULL >> TICK_SHIFT))

/*
 * A decision is taken anew after so long, so that a change of routes
 * shows even when no agent lives to raise the epoch, and so that a translation
 * in use is seen to be. Must be less than every timeout of a translation.
 */
#define DECISION_AGE SECONDS(10)

/* The coarse clock costs a third of the other: it reads no hardware. */
static __always_inline __u32 now(void)
{
	return (coarse_clock ? bpf_ktime_get_coarse_ns() : bpf_ktime_get_ns()) >> TICK_SHIFT;
}

static __always_inline __u32 epoch_of(__u32 endpoint)
{
	__u32 *epoch = bpf_map_lookup_elem(&epochs, &endpoint);

	return epoch ? *epoch : 0;
}

/* Both parts only grow, so equal sums mean that neither has changed. */
static __always_inline __u32 epoch_sum(__u32 endpoint)
{
	return epoch_of(0) + epoch_of(endpoint);
}
