/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reading a frame, quickly if it is like nearly all of them, and thoroughly if not. The
 * thorough way is a function of its own, which the verifier looks at once; inlined before
 * all that a program does, it made up four fifths of the programs' verification.
 */
#pragma once

#include <bpf/bpf_helpers.h>

#include "parse.h"
#include "scratch.h"

#define PULLED 256 /* bytes of a frame that are made linear: as many as headers may take */

/*
 * Fills scratch->packet. Headers outside of the linear part are pulled into it, but never
 * those of a GSO packet: pulling a part of a fraglist one crashes kernels before 6.16.
 * Senders and drivers keep the headers of GSO packets linear; a packet that does not is
 * refused.
 */
__noinline int parse_thoroughly(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	__u32 linear, wanted;
	int parsed;

	if (!s)
		return PARSE_INVALID;
	linear = linear_length(skb);
	wanted = skb->len < PULLED ? skb->len : PULLED;
	if (!skb->gso_size && linear < wanted && bpf_skb_pull_data(skb, wanted))
		return PARSE_INVALID;
	__builtin_memset(&s->packet, 0, sizeof(s->packet));
	parsed = parse_headers(skb, &s->packet, true);
	return parsed == PARSE_SHORT ? PARSE_INVALID : parsed;
}

/*
 * Fills s->packet, and returns an enum parsed or PARSE_INVALID. Pointers into the frame do not
 * outlive it. A packet on the stack would have the verifier follow each kind of it through all that
 * a program does: what is in a map is unknown to it.
 */
static __always_inline int parse(struct __sk_buff *skb, struct scratch *s)
{
	int parsed;

	__builtin_memset(&s->packet, 0, sizeof(s->packet));
	parsed = parse_headers(skb, &s->packet, false);
	return parsed == PARSE_SHORT ? parse_thoroughly(skb) : parsed;
}
