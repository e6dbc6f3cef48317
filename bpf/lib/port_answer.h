/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What an endpoint sends to those who have dialled a port of the host that leads to it. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "port.h"
#include "track.h"

/* No TC action: what was decided is to be applied. */
#define APPLY -2

/*
 * An answer at a mapped port of the sender's. Returns a TC action, APPLY, or 0 when it
 * is none.
 */
__noinline int decide_answer(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	int error;

	if (!s || port_answered(skb))
		return 0;
	ask(s, &s->packet.key.destination, &s->packet.key.source, s->answer.source_port);
	s->question.protocol = s->answer.protocol;
	error = police(skb);
	if (error)
		return refuse(skb, FROM_CONTAINER, error);
	s->decision.of_port = true;
	error = port_way(skb);
	if (!error)
		error = port_quote(skb, s);
	return error ? drop(skb, FROM_CONTAINER, -error) : APPLY;
}
