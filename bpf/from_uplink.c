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
#include "lib/frame.h"
#include "lib/masquerade.h"
#include "lib/port.h"
#include "lib/track.h"

/*
 * Whether scratch->packet answers what the endpoint sent by way of the stack, or speaks of
 * it: others may have translated that, and have to translate it back.
 */
__noinline bool answers_stack(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct translation *t;

	if (!s)
		return false;
	if (s->packet.icmp_kind != ICMP_KIND_ERROR)
		s->wanted = s->packet.key;
	else if (parse_quote(skb))
		return false;
	else
		answer_key(&s->wanted, &s->quote, 0);
	s->wanted.kind = KEY_TRACKED;
	t = tracked(s);
	return t && t->flags & TRANSLATION_STACK;
}

/* Whether the source of scratch->packet may be in the world. */
static __always_inline bool is_from_outside(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();

	return s && !is_martian(&s->packet.key.source) && !is_multicast(&s->packet.key.source) &&
	       !bpf_map_lookup_elem(&endpoints, &s->packet.key.source) && source_is_elsewhere(skb);
}

/* For an endpoint's own address. Returns 0, or minus a counter. */
static __always_inline int to_endpoint(struct __sk_buff *skb, struct scratch *s,
				       const struct endpoint *endpoint)
{
	bool error = s->packet.icmp_kind == ICMP_KIND_ERROR, stack;
	int reason;

	if (!is_from_outside(skb))
		return -DROP_MARTIAN;
	if (endpoint->flags & ENDPOINT_PORTS && is_shut(skb))
		return -DROP_LOOPBACK_ONLY;
	deliver(&s->decision, endpoint);
	stack = answers_stack(skb);
	if (stack && opens(&s->packet)) {
		stack = false;
		s->decision.epoch = NOT_REMEMBERED;
	}
	if (!error && (stack || answers_endpoint(s)))
		s->decision.flags = FLOW_REPLY;
	reason = judge(skb);
	if (!reason && !error && (stack || s->tracks))
		reason = -track(skb, 0);
	if (reason)
		return -reason;
	if (stack)
		s->decision.action = ACTION_PASS;
	if (!error && !(s->decision.flags & FLOW_REPLY))
		expect_reply(s, endpoint);
	return 0;
}

/* Its own function, since Linux 5.10 bounds the stack of all calls together. */
__noinline int apply_decision(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();

	if (!s)
		return drop(skb, FROM_UPLINK, DROP_INVALID);
	return apply(skb, &s->packet, &s->decision, FROM_UPLINK);
}

/* Has the decision follow the translation of scratch->packet. Returns 0, 1 or minus a counter. */
static __always_inline int answered(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();

	if (!s)
		return 1;
	return s->packet.icmp_kind == ICMP_KIND_ERROR ? answer_error(skb) : answer(skb);
}

/* As port_dialled, for a macvlan child that dials a port of the host, as any endpoint may. */
static __always_inline int dialled_by_child(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct endpoint *child;
	int result;

	if (!s)
		return 1;
	child = bpf_map_lookup_elem(&endpoints, &s->packet.key.source);
	if (!child)
		return 1;
	s->packet.key.ifindex = child->ifindex;
	result = answered(skb);
	return result > 0 ? port_dialled(skb) : result;
}

__noinline int slow_path(struct __sk_buff *skb, __u32 forgotten)
{
	struct scratch *s = scratch_get();
	bool of_child = is_marked(skb), is_own = skb->tc_index;
	struct endpoint *endpoint;
	int result;

	if (!s || s->packet.icmp_kind == ICMP_KIND_LINK)
		return TC_ACT_UNSPEC;
	s->forgotten = forgotten;
	s->epoch = epoch_of(0);
	s->sender = 0;
	s->later = false;
	__builtin_memset(&s->decision, 0, sizeof(s->decision));
	result = answered(skb);
	/* Of an endpoint's own packet its port has asked all else. */
	if (result > 0 && is_own)
		return TC_ACT_UNSPEC;
	if (result > 0) {
		endpoint = bpf_map_lookup_elem(&endpoints, &s->packet.key.destination);
		/* From or to a macvlan child: its parent is where policy is asked. */
		if (endpoint && (of_child || is_child(endpoint->ifindex)))
			return TC_ACT_UNSPEC;
		if (endpoint)
			result = to_endpoint(skb, s, endpoint);
		else if (of_child)
			result = dialled_by_child(skb);
		else if (port_find(&s->packet.key) && is_from_outside(skb))
			result = port_dialled(skb);
		if (result > 0)
			return TC_ACT_UNSPEC;
	}
	/* What is marked does not ask the cache. */
	if (of_child)
		s->decision.epoch = NOT_REMEMBERED;
	if (result < 0)
		return of_child ? drop(skb, FROM_UPLINK, -result)
				: refuse(skb, FROM_UPLINK, -result);
	count(skb, FROM_UPLINK, COUNTER_DECIDED);
	remember(skb);
	return apply_decision(skb);
}

SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	struct packet *packet;
	struct scratch *s;
	struct flow *flow;
	int verdict;

	/* For a VLAN device, and what is noted for its program, too; VLAN 0 is this device's. */
	if (skb->vlan_present) {
		if (skb->tc_index && !(skb->vlan_tci & VLAN_ID_MASK))
			skb->tc_index = SEEN_NOT;
		return TC_ACT_UNSPEC;
	}
	if (skb->tc_index) {
		if (skb->mark & MARK_OWN)
			skb->mark &= ~(__u32)MARK_OWN;
		else
			skb->tc_index = SEEN_NOT;
	}
	/* For another host. */
	if (skb->pkt_type != PACKET_HOST)
		return TC_ACT_UNSPEC;
	s = scratch_get();
	if (!s || parse(skb, s) != PARSED_IP)
		return TC_ACT_UNSPEC;
	packet = &s->packet;
	if (packet->fragment) {
		fragment_find(packet);
		fragment_keep(packet);
	}
	if (packet->unkeyed)
		return slow_path(skb, asks_for_echo(packet));
	flow = is_marked(skb) ? NULL : bpf_map_lookup_elem(&flows, &packet->key);
	/* One for frames of the link is of the other hooks of this device. */
	if (!flow || !current(flow, packet) || flow->action == ACTION_LINK)
		return slow_path(skb, !flow);
	account(skb, flow);
	verdict = apply(skb, packet, flow, FROM_UPLINK);
	if (flow->flags & (FLOW_TRANSLATE_DESTINATION | FLOW_TRACKED) && is_closing(packet, flow))
		follow_translation(packet, flow);
	return verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
