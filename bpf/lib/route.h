/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where the host's routing tables and rules send a packet. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "parse.h"
#include "scratch.h"
#include "settings.h"

/* A packet this small fits every route, so the answer tells the route's MTU. */
#define SMALLEST_PACKET 20

enum way {
	WAY_UPLINK,  /* decision's next_hop, out_ifindex and mtu are set */
	WAY_STACK,   /* to the host itself, or nowhere: the stack knows, and it may be remembered */
	WAY_OTHER,   /* by a device or in a manner that is not ours: the stack, each time */
	WAY_GATEWAY, /* as WAY_OTHER, to a gateway: out into the world, by a way that is not
			followed */
};

/* What is known of a device that is an uplink; NULL: it is none. */
static __always_inline struct interface *uplink_at(__u32 ifindex)
{
	struct interface *interface = bpf_map_lookup_elem(&interfaces, &ifindex);

	return interface && interface->role == INTERFACE_UPLINK ? interface : NULL;
}

/*
 * Whether who is at this port is on the link of an uplink: a neighbour there is of the world, and
 * what others on the node send it goes by that link, as to all who are there.
 */
static __always_inline bool is_on_uplink(const struct interface *port)
{
	return port && port->bridge && uplink_at(port->bridge);
}

/* Fills in who sends to whom; ifindex is where the packet came in, or would have. */
static __always_inline void fib_question(struct bpf_fib_lookup *fib, const struct address *source,
					 const struct address *destination, __u32 ifindex)
{
	fib->tot_len = SMALLEST_PACKET;
	fib->ifindex = ifindex;
	if (is_ipv4(destination)) {
		fib->family = AF_INET;
		fib->ipv4_src = words(source)[3];
		fib->ipv4_dst = words(destination)[3];
	} else {
		fib->family = AF_INET6;
		__builtin_memcpy(fib->ipv6_src, source, sizeof(fib->ipv6_src));
		__builtin_memcpy(fib->ipv6_dst, destination, sizeof(fib->ipv6_dst));
	}
}

/* Asks the routing tables and rules for a packet as it arrived on the host side that its key names.
 */
static __always_inline long fib_ask(struct __sk_buff *skb, const struct packet *packet,
				    struct bpf_fib_lookup *fib)
{
	fib->l4_protocol = packet->key.protocol;
	fib->sport = packet->key.source_port;
	fib->dport = packet->key.destination_port;
	fib_question(fib, &packet->key.source, &packet->key.destination, packet->key.ifindex);
	if (packet->ipv6)
		fib->flowinfo = bpf_htonl((__u32)packet->traffic_class << 20);
	else
		fib->tos = packet->traffic_class;
	return bpf_fib_lookup(skb, fib, sizeof(*fib), fib_flags);
}

/*
 * Whether scratch->packet, which was left to the stack for the host or for want of a
 * route, has a way now: it must not take that as it is.
 */
__noinline bool has_way(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct bpf_fib_lookup fib = {};

	return !s || fib_ask(skb, &s->packet, &fib) != BPF_FIB_LKUP_RET_NOT_FWDED;
}

/* Has the decision lead by an uplink, as the routing tables have answered. */
static __always_inline void take_way(struct scratch *s, const struct bpf_fib_lookup *fib,
				     const struct interface *out)
{
	s->decision.out_ifindex = fib->ifindex;
	/* Kernels before 5.12, and a missing neighbour before 6.4, leave the field as it was. */
	s->decision.mtu = fib->tot_len == SMALLEST_PACKET ? out->mtu : fib->tot_len;
	if (fib->family == AF_INET)
		set_ipv4(&s->decision.next_hop, fib->ipv4_dst);
	else
		__builtin_memcpy(&s->decision.next_hop, fib->ipv6_dst, sizeof(fib->ipv6_dst));
}

/* Asks for scratch->packet, as it arrived on the host side that its key names. */
__noinline int route(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct bpf_fib_lookup fib = {};
	struct interface *out;
	long result;

	if (!s)
		return WAY_OTHER;
	result = fib_ask(skb, &s->packet, &fib);
	if (result == BPF_FIB_LKUP_RET_NOT_FWDED)
		return WAY_STACK;
	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return WAY_OTHER;
	out = uplink_at(fib.ifindex);
	if (!out) {
		if (s->packet.ipv6)
			return __builtin_memcmp(fib.ipv6_dst, &s->packet.key.destination,
						sizeof(fib.ipv6_dst))
				       ? WAY_GATEWAY
				       : WAY_OTHER;
		return fib.family != AF_INET || fib.ipv4_dst != words(&s->packet.key.destination)[3]
			       ? WAY_GATEWAY
			       : WAY_OTHER;
	}
	take_way(s, &fib, out);
	return WAY_UPLINK;
}

#define FIB_OUTPUT 2 /* BPF_FIB_LOOKUP_OUTPUT */

/*
 * Asks for scratch->packet with the source in scratch->decision, by way of one uplink.
 * Returns WAY_UPLINK, or WAY_OTHER when no route leads there.
 */
__noinline int route_back(struct __sk_buff *skb, __u32 ifindex)
{
	struct interface *out = uplink_at(ifindex);
	struct scratch *s = scratch_get();
	struct bpf_fib_lookup fib = {};
	long result;

	if (!s || !out)
		return WAY_OTHER;
	fib_question(&fib, &s->decision.address, &s->packet.key.destination, ifindex);
	result = bpf_fib_lookup(skb, &fib, sizeof(fib), fib_flags | FIB_OUTPUT);
	if ((result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH) ||
	    fib.ifindex != ifindex)
		return WAY_OTHER;
	take_way(s, &fib, out);
	return WAY_UPLINK;
}

/* Asks for the way back to scratch->packet's source. Whether there is one, by a device. */
static __always_inline bool source_way(struct __sk_buff *skb, const struct scratch *s,
				       struct bpf_fib_lookup *fib)
{
	long result;

	fib_question(fib, &s->packet.key.destination, &s->packet.key.source, skb->ifindex);
	result = bpf_fib_lookup(skb, fib, sizeof(*fib), fib_flags);
	return result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH;
}

/* Whether the host would send to the packet's source by way of a device, not to itself or nowhere.
 */
__noinline int source_is_elsewhere(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct bpf_fib_lookup fib = {};

	return s && source_way(skb, s, &fib);
}

/* Whether the host would send to the packet's source by way of an uplink. */
__noinline int source_is_outside(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct bpf_fib_lookup fib = {};

	return !s || (source_way(skb, s, &fib) && uplink_at(fib.ifindex));
}

/* Whether a trie says 1 of an address. 0 is for IPv4, where a prefix of IPv6 covers it. */
static __noinline bool is_in(void *trie, const struct address *address)
{
	struct prefix_key key = { .length = 128 };
	__u8 *value;

	__builtin_memcpy(key.address, address, sizeof(key.address));
	value = bpf_map_lookup_elem(trie, &key);
	return value && *value;
}

static __always_inline bool others_translate(const struct address *destination)
{
	return is_in(&stack_destinations, destination);
}

static __always_inline bool excluded(const struct address *destination)
{
	return is_in(&masquerade_exclude, destination);
}
