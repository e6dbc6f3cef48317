/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The fast path: whether a decision holds for a packet, and doing what it says. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "bandwidth.h"
#include "clock.h"
#include "count.h"
#include "rewrite.h"
#include "settings.h"

/*
 * Tells the datapath's later hooks, through skb->tc_index, that it has seen the
 * packet. tc_index starts as 0 and lives through the stack and its fragmentation.
 * The first hook clears it, so nobody outside can forge it. Another program on the
 * same hook that ends the chain overwrites it: a lost mark costs speed, or an ICMP
 * error's way, and must never cost a translation.
 */
enum seen {
	SEEN_NOT = 0,
	SEEN_DECIDED = 0x7e40,	  /* left to the stack although known: record nothing */
	SEEN_TRANSLATED = 0x7e41, /* as it shall leave the node */
	SEEN_LED = 0x7e42,	  /* left to others, who translate where it goes */
	SEEN_OWN = 0x7e43,	  /* of an endpoint on a bridge, which others use, too */
};

/*
 * What the programs of parents tell each other through skb->mark, which lives through a
 * redirect, and is gone before a stack or a container could see it. The numbers begin with one
 * of the node's, for others use marks, too; a container may set that of what it sends, and find it
 * out. So to_parent believes none without tc_index.
 */
enum mark {
	MARK_BACK,     /* put back: for a child, for the host, or for a group of both */
	MARK_CHILDREN, /* put back: for a group, without the host */
	MARK_HOST,     /* put back: for a group, the host alone */
	MARK_SENT,     /* judged: as it shall leave the node */
	MARK_MASK = 3,
};

static __always_inline bool is_marked(const struct __sk_buff *skb)
{
	return (skb->mark & ~(__u32)MARK_MASK) == mark_base;
}

static __always_inline void set_mark(struct __sk_buff *skb, enum mark mark)
{
	skb->mark = mark_base | mark;
}

/*
 * Whether a program of parents has judged the frame before, and marked it. A container may set the
 * mark of what it sends, and try all there are; it cannot set tc_index.
 */
static __always_inline bool was_judged(const struct __sk_buff *skb)
{
	return is_marked(skb) && skb->tc_index == SEEN_TRANSLATED;
}

/*
 * In skb->mark, from the port of a bridge that is an uplink to the program of that: the endpoint's
 * own note in tc_index is to be believed. It is lost on the way out of another's network namespace,
 * as tc_index is not. No mark_base has it. With br_netfilter rules of the host may add to the mark
 * in between, such as those of kube-proxy, so it is one bit and the others are kept.
 */
#define MARK_OWN 0x1000

/* linux/if_packet.h: no header of BPF's includes it. */
#define PACKET_HOST 0
#define PACKET_OTHERHOST 3
#define PACKET_LOOPBACK 5

/* Whether the decision may be applied as it is. */
static __always_inline bool current(const struct flow *flow, const struct packet *packet)
{
	/* Whether a connection that is followed may begin, or ends at once, is decided each time.
	 */
	if (packet->tcp_flags & (TCP_SYN | TCP_RST) &&
	    flow->flags & (FLOW_TRANSLATE_SOURCE | FLOW_TRANSLATE_DESTINATION | FLOW_TRACKED))
		return false;
	/* A SYN that is denied says nothing of an answer with the same ports, nor that of it. */
	if (flow->action == ACTION_DENY && packet->key.protocol == IPPROTO_TCP &&
	    (flow->unsure || (packet->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN))
		return false;
	return flow->action != ACTION_NONE && flow->epoch == epoch_sum(flow->endpoint) &&
	       (__s32)(now() - flow->decided) < (__s32)DECISION_AGE;
}

/* Whether the receiver is a station of the sender's bridge that is not reached straight. */
static __always_inline bool is_left_to_bridge(const struct flow *flow)
{
	return flow->action == ACTION_BRIDGE && !flow->out_ifindex;
}

static __always_inline void account(const struct __sk_buff *skb, struct flow *flow)
{
	flow->packets += segments(skb);
	flow->bytes += skb->len - ETH_HLEN;
}

static __always_inline int apply_pass(struct __sk_buff *skb, enum journey journey,
				      enum counter counter)
{
	if (skb->tc_index != SEEN_DECIDED)
		skb->tc_index = SEEN_DECIDED;
	return pass(skb, journey, counter);
}

/* Into a macvlan child, by the ingress of its parent. Returns a TC action. */
static __noinline int into_child(struct __sk_buff *skb, __u32 journey, __u32 ifindex)
{
	struct interface *interface = bpf_map_lookup_elem(&interfaces, &ifindex);

	if (!interface)
		return drop(skb, journey, DROP_NO_TRANSLATION);
	count(skb, journey, COUNTER_DELIVERED);
	set_mark(skb, MARK_BACK);
	return bpf_redirect(interface->bridge, BPF_F_INGRESS);
}

/*
 * Whether the stack is to answer that the packet is larger than its way. Where endpoints of the
 * node speak by a port of the host no size is asked: the stack would tell the sender of ends that
 * it does not know, and what it cuts meets no hook that could translate it. An endpoint takes what
 * is larger than what it sends (from Linux 5.12 on: before, bpf_redirect_peer drops it, as
 * is_skb_forwardable has it; seen on 5.10).
 */
static __always_inline bool is_too_big(const struct packet *packet, const struct flow *flow,
				       enum journey journey)
{
	bool by_port = journey == FROM_CONTAINER && flow->action == ACTION_DELIVER &&
		       flow->flags & (FLOW_TRANSLATE_SOURCE | FLOW_TRANSLATE_DESTINATION);

	return packet->length > flow->mtu && !by_port;
}

/*
 * Sends the packet on its way. What is too big for the way, or at the end of its
 * life, is left to the stack, which answers the sender; a reply from the world
 * is translated before, so that the answer quotes what the stack can place.
 */
static __always_inline int apply(struct __sk_buff *skb, struct packet *packet, struct flow *flow,
				 enum journey journey)
{
	int action;

	if (flow->action == ACTION_DENY)
		return drop(skb, journey, flow->reason);
	if (journey == FROM_CONTAINER && flow->flags & FLOW_HAIRPIN) {
		if (packet->ttl <= 1)
			return drop(skb, journey, DROP_TTL);
		if (turn_round(skb, packet, flow->source_port, flow->port))
			return drop(skb, journey, DROP_REWRITE);
	} else if (flow->flags & FLOW_TRANSLATE_DESTINATION) {
		/* The stack would answer for an address of its own. */
		if (packet->ttl <= 1)
			return drop(skb, journey, DROP_TTL);
		if (translate(skb, packet, DESTINATION, &flow->address, flow->port,
			      flow->checksum_diff))
			return drop(skb, journey, DROP_REWRITE);
		if (flow->flags & FLOW_OTHER_PORT &&
		    change_port(skb, packet, SOURCE, flow->source_port))
			return drop(skb, journey, DROP_REWRITE);
		if (flow->action == ACTION_PASS) {
			skb->tc_index = SEEN_DECIDED;
			return pass(skb, journey, COUNTER_TRANSLATED_TO_STACK);
		}
		if (is_too_big(packet, flow, journey))
			return apply_pass(skb, journey, COUNTER_TOO_BIG);
	} else {
		if (flow->action == ACTION_PASS)
			return pass(skb, journey, COUNTER_PASSED);
		if (packet->ttl <= 1)
			return apply_pass(skb, journey, COUNTER_PASSED);
		if (is_too_big(packet, flow, journey))
			return apply_pass(skb, journey, COUNTER_TOO_BIG);
		if (flow->flags & FLOW_TRANSLATE_SOURCE &&
		    translate(skb, packet, SOURCE, &flow->address, flow->port, flow->checksum_diff))
			return drop(skb, journey, DROP_REWRITE);
		if (flow->flags & FLOW_OTHER_PORT &&
		    change_port(skb, packet, DESTINATION, flow->source_port))
			return drop(skb, journey, DROP_REWRITE);
	}
	if (decrement_ttl(skb, packet))
		return drop(skb, journey, DROP_REWRITE);

	if (flow->action == ACTION_FORWARD) {
		struct bpf_redir_neigh neighbour = {};

		/* An IPv4 destination may lie behind an IPv6 neighbour (RFC 5549). */
		if (is_ipv4(&flow->next_hop)) {
			neighbour.nh_family = AF_INET;
			neighbour.ipv4_nh = words(&flow->next_hop)[3];
		} else {
			neighbour.nh_family = AF_INET6;
			__builtin_memcpy(neighbour.ipv6_nh, &flow->next_hop,
					 sizeof(flow->next_hop));
		}
		skb->tc_index = SEEN_TRANSLATED;
		count(skb, journey, COUNTER_FORWARDED);
		return bpf_redirect_neigh(flow->out_ifindex, &neighbour, sizeof(neighbour), 0);
	}
	/* For an endpoint, those who look at the frame want it; the kernel has placed it already.
	 */
	if (set_macs(skb, &flow->receiver, &flow->gateway))
		return drop(skb, journey, DROP_REWRITE);
	if (journey == FROM_CONTAINER && flow->action == ACTION_RETURN) {
		skb->tc_index = SEEN_TRANSLATED;
		count(skb, journey, COUNTER_FORWARDED);
		return bpf_redirect(flow->out_ifindex, 0);
	}
	action = meet_limit_by(skb, flow, journey);
	if (action != TC_ACT_UNSPEC)
		return action;
	if (is_child(flow->out_ifindex))
		return into_child(skb, journey, flow->out_ifindex);
	/*
	 * What answers past the node, from a port of a bridge, is sent to another station. Older
	 * kernels leave the type as it is (seen on 5.10), and the stack there would drop it.
	 */
	if (skb->pkt_type != PACKET_HOST && bpf_skb_change_type(skb, PACKET_HOST))
		return drop(skb, journey, DROP_REWRITE);
	count(skb, journey, COUNTER_DELIVERED);
	return bpf_redirect_peer(flow->out_ifindex, 0);
}
