// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * From the world: tcx ingress of an uplink. Answers to what was masqueraded are
 * translated back; packets for an endpoint's own address are delivered; all else
 * is the host's and is left untouched.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/apply.h"
#include "lib/fragment.h"
#include "lib/masquerade.h"
#include "lib/parse.h"

/* An error about a packet that was masqueraded. Returns 0, 1 when there is none, or minus a
 * counter. */
__noinline int answer_error(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct endpoint *endpoint;
	struct translation *t;

	if (!s || parse_quote(skb) || !same(&s->quote.key.source, &s->packet.key.destination))
		return 1;
	answer_key(&s->reply, &s->quote, 0);
	t = bpf_map_lookup_elem(&translations, &s->reply);
	if (!t || !translation_alive(t, s->reply.protocol))
		return 1;
	endpoint = bpf_map_lookup_elem(&endpoints, &t->address);
	if (!endpoint || endpoint->ifindex != t->ifindex)
		return 1;
	if (s->packet.ttl <= 1)
		return -DROP_TTL;
	deliver(&s->decision, endpoint);
	s->to = *t;
	s->decision.flags = FLOW_TRANSLATE_DESTINATION;
	if (t->flags & TRANSLATION_STACK)
		s->decision.action = ACTION_PASS;
	s->decision.address = s->to.address;
	s->decision.checksum_diff = address_diff(&s->packet.key.destination, &s->to.address);
	return translate_quote(skb, true) ? -DROP_REWRITE : 0;
}

/* An answer to what was masqueraded. Returns 0, or 1 when it is none. */
__noinline int answer(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct endpoint *endpoint;
	struct translation *t;
	__u8 state;

	if (!s || !skb)
		return 1;
	t = bpf_map_lookup_elem(&translations, &s->packet.key);
	if (!t || !translation_alive(t, s->packet.key.protocol))
		return 1;
	endpoint = bpf_map_lookup_elem(&endpoints, &t->address);
	if (!endpoint || endpoint->ifindex != t->ifindex)
		return 1;
	state = t->state;
	translation_note(t, &s->packet, true);
	deliver(&s->decision, endpoint);
	s->decision.flags = FLOW_TRANSLATE_DESTINATION;
	if (t->flags & TRANSLATION_FIN_IN)
		s->decision.flags |= FLOW_CLOSING;
	if (t->flags & TRANSLATION_STACK) {
		s->decision.flags |= FLOW_STACK;
		s->decision.action = ACTION_PASS;
	}
	s->decision.address = t->address;
	s->decision.port = t->port;
	s->decision.checksum_diff = address_diff(&s->packet.key.destination, &t->address);
	if (t->state == TRANSLATION_CLOSED) {
		s->decision.epoch = NOT_REMEMBERED;
		if (state != TRANSLATION_CLOSED) {
			sent_key(&s->other, &s->packet.key, t);
			bpf_map_delete_elem(&flows, &s->other);
			bpf_map_delete_elem(&flows, &s->packet.key);
		}
	}
	return 0;
}

/* Remembers that what the endpoint sends back is an answer, so that it is not masqueraded. */
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
	__builtin_memset(&s->decision, 0, sizeof(s->decision));
	if (before) {
		s->decision.packets = before->packets;
		s->decision.bytes = before->bytes;
	}
	s->decision.flags = FLOW_REPLY;
	s->decision.endpoint = endpoint->id;
	s->decision.decided = now();
	bpf_map_update_elem(&flows, &s->sent, &s->decision, BPF_ANY);
}

__noinline int slow_path(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct endpoint *endpoint;
	int result;

	if (!s || s->packet.icmp_kind == ICMP_KIND_LINK)
		return TC_ACT_UNSPEC;
	s->epoch = epoch_of(0);
	__builtin_memset(&s->decision, 0, sizeof(s->decision));
	if (s->packet.icmp_kind == ICMP_KIND_ERROR)
		result = answer_error(skb);
	else
		result = answer(skb);
	if (result < 0)
		return drop(skb, FROM_UPLINK, -result);
	if (result) {
		endpoint = bpf_map_lookup_elem(&endpoints, &s->packet.key.destination);
		if (!endpoint)
			return TC_ACT_UNSPEC;
		if (is_martian(&s->packet.key.source) || is_multicast(&s->packet.key.source) ||
		    bpf_map_lookup_elem(&endpoints, &s->packet.key.source) ||
		    !source_is_elsewhere(skb))
			return drop(skb, FROM_UPLINK, DROP_MARTIAN);
		if (s->packet.icmp_kind != ICMP_KIND_ERROR)
			expect_reply(s, endpoint);
		__builtin_memset(&s->decision, 0, sizeof(s->decision));
		deliver(&s->decision, endpoint);
	}
	count(skb, FROM_UPLINK, COUNTER_DECIDED);
	remember(skb, s);
	return apply(skb, &s->packet, &s->decision, FROM_UPLINK);
}

static __always_inline int ask_slow_path(struct __sk_buff *skb, struct packet *packet,
					 bool forgotten)
{
	struct scratch *s = scratch_get();

	if (!s)
		return TC_ACT_UNSPEC;
	s->packet = *packet;
	s->forgotten = forgotten;
	return slow_path(skb);
}

SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct flow *flow;
	int verdict;

	if (skb->tc_index)
		skb->tc_index = SEEN_NOT;
	/* Tagged frames are for a VLAN device, the others for another host. */
	if (skb->vlan_present || ETHERNET_BROADCAST_OR_OTHER(skb))
		return TC_ACT_UNSPEC;
	if (parse(skb, &packet) != PARSED_IP)
		return TC_ACT_UNSPEC;
	if (packet.fragment) {
		fragment_find(&packet);
		fragment_keep(&packet);
	}
	if (packet.icmp_kind)
		return ask_slow_path(skb, &packet, false);
	flow = bpf_map_lookup_elem(&flows, &packet.key);
	if (!flow || !current(flow, &packet))
		return ask_slow_path(skb, &packet, !flow);
	account(skb, flow);
	verdict = apply(skb, &packet, flow, FROM_UPLINK);
	if (flow->flags & FLOW_TRANSLATE_DESTINATION && is_closing(&packet, flow))
		follow_translation(&packet, flow);
	return verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
