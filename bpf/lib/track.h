/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Policy for packets that are not translated. Rules speak of who begins; answers pass. So
 * who began must be known for as long as the flow lives, and not only to a cache: each flow
 * of an endpoint that policy restricts has an entry of translations, of kind KEY_TRACKED,
 * with the timeouts and bounds of all others. Policy is asked the same question whichever
 * end has sent the packet, so that a change cuts both directions.
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "icmp_error.h"
#include "masquerade.h"
#include "policy.h"
#include "translation.h"

#define OF_HOST -1

/*
 * Whether a packet without a socket is the host's own, in spite of that. Where a packet came in is
 * lost to the fragments that the stack makes of IPv6 which conntrack has put together
 * (ip6_copy_metadata; seen on 6.18): they have neither a device nor a socket. So has what the host
 * sends in the name of no socket, which is never in fragments.
 */
static __always_inline bool is_of_host(const struct __sk_buff *skb, int parsed,
				       const struct packet *packet)
{
	return !skb->ingress_ifindex && parsed >= 0 && !packet->fragment;
}

/*
 * Whether what has come in by a device (0: nobody knows) is an endpoint's own. What a bridge gives
 * to the stack comes in by the bridge, whoever has sent it: there from_container's mark tells, and
 * where it is lost, the packet is.
 */
static __always_inline bool is_at(const struct endpoint *endpoint, __u32 ifindex, __u32 seen)
{
	__u32 port = endpoint->ifindex;
	struct interface *interface;

	if (port == ifindex)
		return true;
	if (seen == SEEN_NOT)
		return false;
	if (!ifindex) /* of a fragment; see is_of_host */
		return true;
	interface = bpf_map_lookup_elem(&interfaces, &port);
	return interface && interface->bridge && interface->bridge == ifindex;
}

/*
 * Id of the endpoint that the stack forwards this packet for, by the device it came in by;
 * 0: none. Where the stack has replaced the source, its address does not tell.
 */
static __always_inline __u32 forwarded_for(const struct __sk_buff *skb)
{
	__u32 ifindex = skb->ingress_ifindex;
	struct interface *interface = bpf_map_lookup_elem(&interfaces, &ifindex);

	return interface && interface->role == INTERFACE_ENDPOINT ? interface->endpoint : 0;
}

/*
 * Whether a hook has decided, and asked policy, as its note (seen) says. Who rules the network of a
 * container of others can write the same: it counts for what came in by a device that has our
 * hooks.
 */
static __always_inline bool was_decided(const struct __sk_buff *skb, __u32 seen)
{
	__u32 ifindex = skb->ingress_ifindex;

	return (seen == SEEN_DECIDED || seen == SEEN_TRANSLATED) && ifindex &&
	       bpf_map_lookup_elem(&interfaces, &ifindex);
}

#define NOT_TRANSLATED -2

/*
 * Policy for scratch->packet if to_uplink has translated it for an endpoint on a bridge, on its way
 * to another of the node. The bridge has no hooks by which was_decided would know it. Returns 0,
 * the counter of a drop, or NOT_TRANSLATED.
 */
static __always_inline int judge_translated(struct __sk_buff *skb, struct scratch *s)
{
	struct endpoint *endpoint;
	struct translation *t;

	if (skb->tc_index != SEEN_TRANSLATED)
		return NOT_TRANSLATED;
	reply_key(&s->wanted, &s->packet.key, &s->packet.key.source, s->packet.key.source_port);
	t = bpf_map_lookup_elem(&translations, &s->wanted);
	endpoint = t ? bpf_map_lookup_elem(&endpoints, &t->address) : NULL;
	if (!endpoint || endpoint->ifindex != t->ifindex ||
	    !is_at(endpoint, skb->ingress_ifindex, SEEN_TRANSLATED))
		return NOT_TRANSLATED;
	if (t->flags & TRANSLATION_PORT)
		ask(s, &s->packet.key.destination, &t->address, t->port);
	else
		ask(s, &t->address, &s->packet.key.destination, s->packet.key.destination_port);
	return police(skb);
}

/* The key of what answers scratch->packet, as its destination sends it. */
static __always_inline void back_key(struct flow_key *back, const struct flow_key *key)
{
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &key->destination);

	reply_key(back, key, &key->source, key->source_port);
	back->ifindex = endpoint ? endpoint->ifindex : 0;
}

static __always_inline struct translation *tracked(struct scratch *s)
{
	struct translation *t = bpf_map_lookup_elem(&translations, &s->wanted);

	return t && translation_alive(t, s->wanted.protocol) ? t : NULL;
}

enum direction {
	DIRECTION_BEGINS,
	DIRECTION_ANSWERS,
	DIRECTION_REMEMBERED, /* answers, as only a cache knows */
	DIRECTION_UNKNOWN,    /* in the middle of a connection that nobody has seen begin */
};

/*
 * Whether scratch->packet is of who began or of who answers. Where nothing is tracked the
 * decision's FLOW_REPLY counts, for flows from before there was a policy.
 */
__noinline int direction_of(struct __sk_buff *skb)
{
	struct translation *masqueraded, *t;
	struct scratch *s = scratch_get();
	struct flow *before;

	if (!s || !skb || begins_tcp(&s->packet))
		return DIRECTION_BEGINS;
	back_key(&s->other, &s->packet.key);
	s->wanted = s->packet.key;
	s->wanted.kind = KEY_TRACKED;
	t = asks_for_echo(&s->packet) ? NULL : tracked(s);
	/* Not who has the address now may have asked, but who had it. */
	if (t && t->ifindex == s->other.ifindex)
		return DIRECTION_ANSWERS;
	s->wanted = s->other;
	s->wanted.kind = KEY_TRACKED;
	if (tracked(s)) {
		s->forgotten = false; /* it has been counted */
		return DIRECTION_BEGINS;
	}
	if (asks_for_echo(&s->packet))
		return DIRECTION_BEGINS;
	if (s->decision.flags & FLOW_REPLY)
		return DIRECTION_REMEMBERED;
	if (s->packet.key.protocol != IPPROTO_TCP)
		return DIRECTION_BEGINS;
	before = s->forgotten ? NULL : bpf_map_lookup_elem(&flows, &s->packet.key);
	if (before && !before->unsure)
		return DIRECTION_BEGINS;
	/* What the stack has sent on is in no cache, but what is masqueraded began here. */
	masqueraded = translation_find(&s->packet.key, &s->other);
	return masqueraded && !(masqueraded->flags & TRANSLATION_PORT) ? DIRECTION_BEGINS
								       : DIRECTION_UNKNOWN;
}

/*
 * Makes or follows the tracked entry of scratch->packet, which answers if the decision says
 * FLOW_REPLY. flags are added to the entry's (enum translation_flag). Returns 0, or minus a
 * counter.
 */
__noinline int track(struct __sk_buff *skb, __u32 flags)
{
	struct scratch *s = scratch_get();
	struct endpoint *client;
	struct translation *t;
	int error;

	if (!s)
		return -DROP_TRANSLATIONS_FULL;
	/* Slots know none of protocol 0 (IPv4 has none that is in use). */
	if (!s->packet.key.protocol)
		return 0;
	back_key(&s->other, &s->packet.key);
	s->wanted = s->decision.flags & FLOW_REPLY ? s->packet.key : s->other;
	s->wanted.kind = KEY_TRACKED;
	t = tracked(s);
	if (!t) {
		client = bpf_map_lookup_elem(&endpoints, &s->wanted.destination);
		__builtin_memset(&s->to, 0, sizeof(s->to));
		s->to.address = s->wanted.destination;
		s->to.port = s->wanted.destination_port;
		s->to.ifindex = client ? client->ifindex : 0;
		if (!client)
			client = bpf_map_lookup_elem(&endpoints, &s->wanted.source);
		if (!client)
			return 0;
		s->to.endpoint = client->id;
		s->to.epoch = epoch_of(client->id);
		s->to.seen = now();
		s->to.flags = TRANSLATION_PORT | flags; /* the other end began */
		s->to.kind = KEY_TRACKED;
		error = translation_enter(skb, s->to.endpoint);
		if (error < 0)
			return error;
		/* Unasked, the answer may have been denied. */
		flow_forget(&s->other);
		t = tracked(s);
	}
	if (t) {
		if (flags & ~t->flags) {
			t->flags |= flags;
			flow_forget(&s->other);
		}
		translation_follow(s, t, &s->other, !(s->decision.flags & FLOW_REPLY));
	}
	s->decision.flags |= FLOW_TRACKED;
	return 0;
}

/*
 * Remembers that what the endpoint sends back to scratch->packet, which is of the world, is an
 * answer, so that it is not masqueraded.
 */
static __always_inline void expect_reply(struct scratch *s, const struct endpoint *endpoint)
{
	struct flow *before;

	__builtin_memset(&s->sent, 0, sizeof(s->sent));
	s->sent.source = s->packet.key.destination;
	s->sent.destination = s->packet.key.source;
	s->sent.source_port = s->packet.key.destination_port;
	s->sent.destination_port = s->packet.key.source_port;
	s->sent.ifindex = endpoint->ifindex;
	s->sent.protocol = s->packet.key.protocol;
	before = bpf_map_lookup_elem(&flows, &s->sent);
	if (before && before->flags & FLOW_REPLY) {
		if ((__s32)(now() - before->decided) >= (__s32)DECISION_AGE) {
			before->decided = now();
			before->epoch = 0;
		}
		return;
	}
	/* Unless it began with the endpoint. */
	if (translation_find(&s->sent, &s->other))
		return;
	__builtin_memset(&s->memory, 0, sizeof(s->memory));
	if (before) {
		s->memory.packets = before->packets;
		s->memory.bytes = before->bytes;
	}
	s->memory.flags = FLOW_REPLY;
	s->memory.endpoint = endpoint->id;
	s->memory.decided = now();
	bpf_map_update_elem(&flows, &s->sent, &s->memory, BPF_ANY);
}

/* Whether the endpoint began the flow that scratch->packet is of, from its own address. */
static __always_inline bool answers_endpoint(struct scratch *s)
{
	struct flow *question;

	if (opens(&s->packet))
		return false;
	back_key(&s->sent, &s->packet.key);
	question = bpf_map_lookup_elem(&flows, &s->sent);
	return question && question->action != ACTION_DENY &&
	       !(question->flags & (FLOW_REPLY | FLOW_TRANSLATE_SOURCE)) &&
	       (__s32)(now() - question->decided) <=
		       (__s32)translation_timeout(s->packet.key.protocol, TRANSLATION_ESTABLISHED);
}

/* Whether the ports that policy may have to know are lost with another fragment. */
static __always_inline bool lacks_ports(const struct packet *packet)
{
	return packet->fragment == FRAGMENT_LATER && !has_ports(&packet->key);
}

/*
 * An ICMP error, scratch->packet, passes if what it speaks of does; and otherwise as
 * something that its sender begins. Returns 0, or the counter of a drop.
 */
__noinline int judge_error(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();

	if (!s)
		return DROP_INVALID;
	/* A router may speak of what it was to forward, an endpoint of what it was sent. */
	if (!parse_quote(skb) && (same(&s->quote.key.destination, &s->packet.key.source) ||
				  !bpf_map_lookup_elem(&endpoints, &s->packet.key.source))) {
		struct endpoint *receiver = bpf_map_lookup_elem(&endpoints, &s->quote.key.source);

		s->wanted = s->quote.key;
		s->wanted.ifindex = receiver ? receiver->ifindex : 0;
		s->wanted.kind = KEY_TRACKED;
		if (tracked(s)) {
			ask(s, &s->quote.key.destination, &s->quote.key.source,
			    s->quote.key.source_port);
			s->question.protocol = s->quote.key.protocol;
			return police(skb);
		}
		back_key(&s->wanted, &s->quote.key);
		s->wanted.kind = KEY_TRACKED;
		if (tracked(s)) {
			ask(s, &s->quote.key.source, &s->quote.key.destination,
			    s->quote.key.destination_port);
			s->question.protocol = s->quote.key.protocol;
			s->question.later = s->later;
			return police(skb);
		}
		/* Of what was masqueraded, the translation knows. */
		answer_key(&s->wanted, &s->quote, s->packet.key.ifindex);
		if (translation_find(&s->wanted, &s->other)) {
			ask(s, &s->packet.key.source, &s->quote.key.source,
			    s->quote.key.source_port);
			s->question.protocol = s->quote.key.protocol;
			return police(skb);
		}
	}
	ask(s, &s->packet.key.source, &s->packet.key.destination, 0);
	s->question.client_id = s->sender;
	return police(skb);
}

/* Asks about scratch->packet as one of the end that began, or of the one that answers. */
static __always_inline int judge_as(struct __sk_buff *skb, struct scratch *s, bool answers)
{
	if (answers) {
		ask(s, &s->packet.key.destination, &s->packet.key.source,
		    s->packet.key.source_port);
	} else {
		ask(s, &s->packet.key.source, &s->packet.key.destination,
		    s->packet.key.destination_port);
		s->question.client_id = s->sender;
		/* A fragment whose first was not seen begins nothing that anybody could tell. */
		s->question.is_new = s->forgotten && !lacks_ports(&s->packet);
	}
	s->question.later = s->later;
	return police(skb);
}

/*
 * Whether scratch->packet, between the addresses that it carries, may pass. Its key has the
 * sender's ifindex; scratch->sender and later say what its addresses do not. Notes in the
 * decision whether it answers (FLOW_REPLY), and in scratch->tracks that this must be known
 * later. Returns 0, or the counter of a drop. Overwrites scratch->wanted, other and question.
 */
__noinline int judge(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	int direction, reason;
	bool answers;

	if (!s)
		return DROP_INVALID;
	s->tracks = false;
	if (!is_policed(s))
		return 0;
	if (s->packet.icmp_kind == ICMP_KIND_ERROR) {
		reason = judge_error(skb);
		s->tracks = false;
		return reason;
	}
	direction = direction_of(skb);
	answers = direction == DIRECTION_ANSWERS || direction == DIRECTION_REMEMBERED;
	if (answers)
		s->decision.flags |= FLOW_REPLY;
	else
		s->decision.flags &= ~FLOW_REPLY;
	reason = judge_as(skb, s, answers);
	/* What is tracked needs no other memory, which denials would keep alive. */
	if (reason && direction == DIRECTION_ANSWERS)
		s->decision.flags &= ~FLOW_REPLY;
	/* Either end may have begun: both must have been allowed to. */
	if (!reason && direction == DIRECTION_UNKNOWN)
		reason = judge_as(skb, s, true);
	if (lacks_ports(&s->packet)) {
		s->tracks = false;
		return reason ? DROP_FRAGMENT : 0;
	}
	return reason;
}

/* As judge, and remembers who began; for what is not translated. */
static __always_inline int judge_and_track(struct __sk_buff *skb, struct scratch *s)
{
	int reason = judge(skb);

	return reason || !s->tracks ? reason : -track(skb, 0);
}

/* Drops scratch->packet, and those that follow until policy or their flow changes. */
__noinline int refuse(struct __sk_buff *skb, __u32 journey, __u32 reason)
{
	struct scratch *s = scratch_get();
	struct flow *before;
	__u32 since;

	if (s && (reason == DROP_POLICY_EGRESS || reason == DROP_POLICY_INGRESS ||
		  reason == DROP_NETWORK_ISOLATION)) {
		s->decision.action = ACTION_DENY;
		s->decision.reason = reason;
		s->decision.flags &= FLOW_REPLY;
		s->decision.epoch = 0;
		before = bpf_map_lookup_elem(&flows, &s->packet.key);
		since = before ? before->decided : 0;
		remember(skb);
		/* That it answers is not remembered the longer, the longer it is denied. */
		if (before && s->decision.flags & FLOW_REPLY) {
			before = bpf_map_lookup_elem(&flows, &s->packet.key);
			if (before)
				before->decided = since;
		}
	}
	return drop(skb, journey, reason);
}
