/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What has a translation by which it finds an endpoint: answers to what was
 * masqueraded, from the world, and the packets of those who dialled a mapped port,
 * from the world (ifindex 0 in their key) or another endpoint.
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "masquerade.h"
#include "policy.h"

/* The endpoint that a translation leads to, if it is still there. */
static __always_inline struct endpoint *translation_endpoint(const struct translation *t)
{
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &t->address);

	return endpoint && endpoint->ifindex == t->ifindex ? endpoint : NULL;
}

/* An error about a packet that the endpoint sent. Returns 0, 1 when there is none, or minus a
 * counter. */
__noinline int answer_error(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct endpoint *endpoint;
	struct translation *t;
	int reason;

	if (!s || parse_quote(skb))
		return 1;
	answer_key(&s->reply, &s->quote, s->packet.key.ifindex);
	t = bpf_map_lookup_elem(&translations, &s->reply);
	if (!t || !translation_alive(t, s->reply.protocol))
		return 1;
	endpoint = translation_endpoint(t);
	if (!endpoint)
		return 1;
	if (s->packet.ttl <= 1)
		return -DROP_TTL;
	if (t->flags & TRANSLATION_PORT)
		ask(s, &s->quote.key.destination, &t->address, t->port);
	else
		ask(s, &t->address, &s->quote.key.destination, s->quote.key.destination_port);
	s->question.protocol = s->quote.key.protocol;
	reason = police(skb);
	if (reason)
		return -reason;
	deliver(&s->decision, endpoint);
	s->to = *t;
	s->decision.flags = FLOW_TRANSLATE_DESTINATION;
	if (t->flags & TRANSLATION_STACK)
		s->decision.action = ACTION_PASS;
	s->decision.address = s->to.address;
	s->decision.checksum_diff = address_diff(&s->packet.key.destination, &s->to.address);
	if (translate_quote(skb, true))
		return -DROP_REWRITE;
	if (!(s->to.flags & (TRANSLATION_HAIRPIN | TRANSLATION_REMAPPED)))
		return 0;
	s->to.address = s->reply.source;
	if (s->to.flags & TRANSLATION_HAIRPIN) {
		s->decision.flags |= FLOW_HAIRPIN;
		s->to.address = s->reply.destination;
	}
	s->to.port = s->to.mapped;
	return translate_quote(skb, false) ? -DROP_REWRITE : 0;
}

/*
 * Has the answers of a mapped port follow their client: scratch->packet came from the world,
 * and scratch->other is the key of its answer. An RST or SYN may be anybody's.
 */
static __always_inline void client_came_by(struct __sk_buff *skb, struct scratch *s)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct ethhdr *ethernet = data;
	struct translation *pointer;

	if (s->packet.key.ifindex || s->packet.tcp_flags & (TCP_SYN | TCP_RST) ||
	    (void *)(ethernet + 1) > data_end)
		return;
	pointer = bpf_map_lookup_elem(&translations, &s->other);
	if (!pointer || !(pointer->flags & TRANSLATION_PORT) ||
	    (pointer->ifindex == skb->ifindex &&
	     same_mac(&pointer->neighbour, (struct mac *)ethernet->h_source)))
		return;
	pointer->ifindex = skb->ifindex;
	__builtin_memcpy(&pointer->neighbour, ethernet->h_source, sizeof(pointer->neighbour));
	flow_forget(&s->other);
}

/* A packet whose key has a translation. Returns 0, 1 when it has none, or minus a counter. */
__noinline int answer(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct endpoint *endpoint;
	struct translation *t;
	int reason;

	if (!s || !skb)
		return 1;
	t = bpf_map_lookup_elem(&translations, &s->packet.key);
	if (!t || !translation_alive(t, s->packet.key.protocol))
		return 1;
	endpoint = translation_endpoint(t);
	if (!endpoint)
		return 1;
	deliver(&s->decision, endpoint);
	s->decision.flags = FLOW_TRANSLATE_DESTINATION;
	if (t->flags & TRANSLATION_STACK) {
		s->decision.flags |= FLOW_STACK;
		s->decision.action = ACTION_PASS;
	}
	if (t->flags & TRANSLATION_HAIRPIN) {
		s->decision.flags |= FLOW_HAIRPIN;
		s->decision.source_port = t->mapped;
	}
	if (t->flags & TRANSLATION_REMAPPED) {
		s->decision.flags |= FLOW_OTHER_PORT;
		s->decision.source_port = t->mapped;
	}
	s->decision.address = t->address;
	s->decision.port = t->port;
	s->decision.checksum_diff = address_diff(&s->packet.key.destination, &t->address);
	if (t->flags & TRANSLATION_PORT)
		ask(s, &s->packet.key.source, &t->address, t->port);
	else
		ask(s, &t->address, &s->packet.key.source, s->packet.key.source_port);
	reason = police(skb);
	if (reason)
		return -reason;
	sent_key(&s->other, &s->packet.key, t);
	translation_follow(s, t, &s->other, true);
	if (t->flags & TRANSLATION_PORT)
		client_came_by(skb, s);
	return 0;
}
