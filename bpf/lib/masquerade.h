/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The part of a decision that hides an endpoint behind the uplink's address. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "apply.h"
#include "clock.h"
#include "icmp_error.h"
#include "maps.h"
#include "parse.h"
#include "route.h"
#include "scratch.h"
#include "settings.h"
#include "translation.h"

/* In decision->epoch while it is made: the next packet is decided anew. */
#define NOT_REMEMBERED 0xffffffff

/* Whether the packet is one with which its sender begins a TCP connection. */
static __always_inline bool begins_tcp(const struct packet *packet)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Whether the packet answers none, whatever is remembered of its ports. */
static __always_inline bool opens(const struct packet *packet)
{
	return begins_tcp(packet) || asks_for_echo(packet);
}

/*
 * Whether the packet answers, as is remembered of its flow, for as long as a translation would
 * be. kept_with is the endpoint that has its destination, else the sender's: what is kept with
 * another answered one that has left, and not who has the address now. What the stack leads is
 * kept with the sender's.
 */
static __always_inline bool before_says_reply(const struct flow *before,
					      const struct packet *packet, __u32 kept_with)
{
	__u8 protocol = packet->key.protocol;

	if (!before || !(before->flags & FLOW_REPLY) ||
	    (before->endpoint != kept_with && !(before->flags & FLOW_STACK)))
		return false;
	/* A new connection from the endpoint, on the same ports. */
	if (opens(packet))
		return false;
	/* Signed: another CPU's clock may be ahead. */
	return (__s32)(now() - before->decided) <=
	       (__s32)translation_timeout(protocol, TRANSLATION_ESTABLISHED);
}

/* What is known of the flow that the packet belongs to, or that an ICMP error speaks of. */
static __always_inline struct flow *before_this(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();

	if (!s)
		return NULL;
	if (s->packet.icmp_kind != ICMP_KIND_ERROR)
		return s->forgotten ? NULL : bpf_map_lookup_elem(&flows, &s->packet.key);
	if (parse_quote(skb))
		return NULL;
	answer_key(&s->other, &s->quote, s->packet.key.ifindex);
	return bpf_map_lookup_elem(&flows, &s->other);
}

static __always_inline bool masquerades(const struct endpoint *self, const struct packet *packet)
{
	return masquerade && self->flags & ENDPOINT_MASQUERADE &&
	       !excluded(&packet->key.destination);
}

/* A packet that can only be an answer: to a connection that the datapath did not see begin. */
static __always_inline bool begins_with_reply(const struct packet *packet)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK) ||
	       answers_echo(packet);
}

static __always_inline bool can_masquerade(const struct packet *packet)
{
	switch (packet->key.protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		return true;
	case IPPROTO_ICMP:
		return !packet->ipv6 && packet->icmp_kind == ICMP_KIND_NONE;
	case IPPROTO_ICMPV6:
		return packet->ipv6 && packet->icmp_kind == ICMP_KIND_NONE;
	default:
		/* Without ports the host's own packets could not be told from the endpoint's. */
		return false;
	}
}

/*
 * Notes scratch->packet in its translation, and in the decision what follows from
 * that. back is the key of the other direction.
 */
static __always_inline void translation_follow(struct scratch *s, struct translation *t,
					       const struct flow_key *back, bool inbound)
{
	__u8 state = t->state, flags = t->flags;

	translation_note(t, &s->packet, inbound);
	/* Whether the client of a mapped port speaks again, the slow path must see. */
	if (t->flags & ~flags & TRANSLATION_ANSWERED)
		flow_forget(back);
	if (t->flags & (inbound ? TRANSLATION_FIN_IN : TRANSLATION_FIN_OUT))
		s->decision.flags |= FLOW_CLOSING;
	/* Of one that is not open yet, the next packet says whether somebody is there. */
	if (t->flags & TRANSLATION_PORT && t->state == TRANSLATION_OPENING &&
	    s->packet.key.protocol == IPPROTO_TCP)
		s->decision.epoch = NOT_REMEMBERED;
	if (t->state != TRANSLATION_CLOSED)
		return;
	s->decision.epoch = NOT_REMEMBERED;
	if (state != TRANSLATION_CLOSED) {
		bpf_map_delete_elem(&flows, back);
		bpf_map_delete_elem(&flows, &s->packet.key);
	}
}

/*
 * Finds or takes the translation for scratch->packet, which leaves by the uplink
 * scratch->decision.out_ifindex, and completes the decision. Returns 0, or minus
 * the counter that says why not.
 */
__noinline int masquerade_source(struct __sk_buff *skb, __u32 endpoint, __u32 flags)
{
	struct scratch *s = scratch_get();
	struct interface *uplink;
	struct translation *t;
	int error;

	if (!s)
		return -DROP_NO_UPLINK_ADDRESS;
	uplink = bpf_map_lookup_elem(&interfaces, &s->decision.out_ifindex);
	if (!uplink)
		return -DROP_NO_UPLINK_ADDRESS;
	s->decision.address = s->packet.ipv6 ? uplink->ipv6 : uplink->ipv4;
	if (is_zero(&s->decision.address))
		return -DROP_NO_UPLINK_ADDRESS;
	if (!can_masquerade(&s->packet))
		return -DROP_UNSUPPORTED_PROTOCOL;
	if (s->packet.fragment == FRAGMENT_LATER && !s->packet.key.source_port)
		return -DROP_FRAGMENT;

	t = translation_find(&s->packet.key, &s->reply);
	if (t && !same(&s->reply.destination, &s->decision.address)) {
		/*
		 * The way out has changed, and no answer would find the old address. TCP
		 * cannot take another in the middle, but the way may come back.
		 */
		if (s->packet.key.protocol == IPPROTO_TCP &&
		    (s->packet.fragment == FRAGMENT_LATER || !begins_tcp(&s->packet)))
			return -DROP_NO_TRANSLATION;
		s->victim = s->reply;
		translation_remove(skb);
		t = NULL;
	}
	/*
	 * A TCP connection begins with SYN. In the middle of one that is not known, the
	 * endpoint may be the one who answers, and another port would tear it down.
	 */
	if (!t && s->packet.key.protocol == IPPROTO_TCP && s->packet.fragment != FRAGMENT_LATER &&
	    !begins_tcp(&s->packet))
		return -DROP_NO_TRANSLATION;
	if (!t) {
		error = translation_take(skb, endpoint, flags);
		if (!error)
			error = translation_point(skb);
		if (error)
			return error;
		/* Unasked, the answer may have been denied. */
		flow_forget(&s->reply);
		t = bpf_map_lookup_elem(&translations, &s->reply);
	}
	if (t)
		translation_follow(s, t, &s->reply, false);
	s->decision.flags |= FLOW_TRANSLATE_SOURCE;
	s->decision.port = s->reply.destination_port;
	s->decision.checksum_diff = address_diff(&s->packet.key.source, &s->decision.address);
	return 0;
}

/*
 * Translates the quote of an ICMP error from an endpoint, which speaks of a packet
 * that the world sent to the uplink's address, and completes the decision.
 */
__noinline int masquerade_error(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct translation *pointer;

	if (!s || parse_quote(skb))
		return -DROP_NO_TRANSLATION;
	answer_key(&s->other, &s->quote, s->packet.key.ifindex);
	pointer = bpf_map_lookup_elem(&translations, &s->other);
	if (!pointer || !same(&s->other.source, &s->packet.key.source))
		return -DROP_NO_TRANSLATION;
	s->to = *pointer;
	if (translate_quote(skb, false))
		return -DROP_REWRITE;
	s->decision.flags |= FLOW_TRANSLATE_SOURCE;
	s->decision.address = s->to.address;
	s->decision.checksum_diff = address_diff(&s->packet.key.source, &s->to.address);
	return 0;
}

/* Whether out_ifindex, unless it is 0, is an endpoint's. */
static __always_inline bool leads_to_endpoint(const struct flow *flow)
{
	return flow->action == ACTION_DELIVER || flow->action == ACTION_BRIDGE ||
	       flow->action == ACTION_LINK;
}

/*
 * Follows a translated connection that closes: the packet has a FIN, or its sender
 * sent one before. What comes after both have sent theirs is the last that is
 * decided by the cache, which would be full of what nobody asks for again.
 */
static __noinline int follow_translation(struct packet *packet, struct flow *flow)
{
	bool inbound = flow->flags & FLOW_TRANSLATE_DESTINATION, fin = packet->tcp_flags & TCP_FIN;
	struct flow_key back = {};
	struct translation *t;

	if (packet->fragment == FRAGMENT_LATER)
		return 0;
	if (fin)
		flow->flags |= FLOW_CLOSING;
	if (flow->flags & FLOW_TRACKED) {
		struct flow_key key = packet->key;

		back.source = packet->key.destination;
		back.destination = packet->key.source;
		back.source_port = packet->key.destination_port;
		back.destination_port = packet->key.source_port;
		back.ifindex = leads_to_endpoint(flow) ? flow->out_ifindex : 0;
		back.protocol = packet->key.protocol;
		inbound = !(flow->flags & FLOW_REPLY);
		if (inbound)
			key = back;
		key.kind = KEY_TRACKED;
		t = bpf_map_lookup_elem(&translations, &key);
		if (!t)
			return 0;
	} else if (inbound) {
		t = bpf_map_lookup_elem(&translations, &packet->key);
		if (!t)
			return 0;
		sent_key(&back, &packet->key, t);
	} else {
		t = translation_find(&packet->key, &back);
		if (!t)
			return 0;
	}
	translation_note(t, packet, inbound);
	if (fin || t->state != TRANSLATION_CLOSED)
		return 0;
	bpf_map_delete_elem(&flows, &packet->key);
	bpf_map_delete_elem(&flows, &back);
	return 0;
}

/* Whether the packet is one for follow_translation. */
static __always_inline bool is_closing(const struct packet *packet, const struct flow *flow)
{
	return packet->key.protocol == IPPROTO_TCP &&
	       (packet->tcp_flags & TCP_FIN || flow->flags & FLOW_CLOSING);
}

/* Whether the endpoint that the decision delivers scratch->packet to is there. */
static __always_inline bool receiver_is_there(const struct scratch *s)
{
	const struct address *address = s->decision.flags & FLOW_TRANSLATE_DESTINATION
						? &s->decision.address
						: &s->packet.key.destination;
	struct endpoint *endpoint;

	if (s->decision.action != ACTION_DELIVER || s->decision.flags & FLOW_HAIRPIN)
		return true;
	endpoint = bpf_map_lookup_elem(&endpoints, address);
	return endpoint && endpoint->ifindex == s->decision.out_ifindex;
}

/*
 * Keeps a decision for the packets that follow. Errors are decided each by itself, and
 * a closed connection is followed packet by packet. What has the key of an echo request
 * without identifier is the reply's.
 */
__noinline int remember(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct flow *before;

	if (!s || s->packet.icmp_kind == ICMP_KIND_ERROR || s->decision.epoch == NOT_REMEMBERED ||
	    (s->packet.unkeyed && asks_for_echo(&s->packet)))
		return 0;
	before = s->forgotten ? NULL : bpf_map_lookup_elem(&flows, &s->packet.key);
	s->decision.unsure = s->packet.key.protocol == IPPROTO_TCP && !begins_tcp(&s->packet) &&
			     (s->decision.action == ACTION_DENY ||
			      !(s->decision.flags & (FLOW_REPLY | FLOW_TRACKED)));
	if (before) {
		s->decision.packets = before->packets;
		s->decision.bytes = before->bytes;
		if (s->decision.action != ACTION_DENY)
			s->decision.unsure &= before->unsure;
	}
	account(skb, &s->decision);
	s->decision.epoch = s->epoch + epoch_of(s->decision.endpoint);
	/* Had it gone before its epoch was read, the decision would outlive it. */
	if (!receiver_is_there(s))
		return 0;
	s->decision.decided = now();
	bpf_map_update_elem(&flows, &s->packet.key, &s->decision, BPF_ANY);
	return 0;
}

static __always_inline void deliver(struct flow *decision, const struct endpoint *to)
{
	decision->action = ACTION_DELIVER;
	decision->out_ifindex = to->ifindex;
	decision->mtu = to->mtu;
	decision->receiver = to->mac;
	decision->gateway = to->host_mac;
	decision->endpoint = to->id;
	decision->limited = !!(to->flags & ENDPOINT_LIMITED);
}
