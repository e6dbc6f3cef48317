/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Internet checksums (RFC 1071, RFC 1624): differences are new - old, unfolded. */
#pragma once

#include <linux/types.h>

#include "types.h"

static __always_inline __u16 checksum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* The checksum field that stands for old after its data changed by diff. */
static __always_inline __u16 checksum_replace(__u16 old, __u32 diff)
{
	__u32 sum = (__u16)~old;

	/* Folded first, so that no carry is lost. */
	return ~checksum_fold(sum + checksum_fold(diff));
}

static __always_inline __u32 address_diff(struct address *from, struct address *to)
{
	return bpf_csum_diff((__be32 *)from, sizeof(*from), (__be32 *)to, sizeof(*to), 0);
}

static __always_inline __u32 half_diff(__u16 from, __u16 to)
{
	return (__u32)(__u16)~from + to;
}
