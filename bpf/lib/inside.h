/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Parents that are in a container, beside their macvlan children. The stack there takes what is for
 * a child's address by any device, and sends by any, as its routes say: whichever way such a packet
 * takes, it is to pass the child's own hooks. All else that the parent sends and gets is the
 * container's.
 */
#pragma once

#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "address.h"
#include "child.h"
#include "link_local.h"
#include "maps.h"
#include "parse.h"

#define TAG_SIZE 4
#define TAGS_MAX 2

/* What lies behind the tags of a frame. */
struct inner {
	__be16 protocol;
	__u16 tags;   /* with that which is kept beside the frame */
	__u32 offset; /* of what follows the Ethernet header, but for ETH_HLEN */
};

/* Looks behind the tags; more than TAGS_MAX no device of a container takes away. */
static __always_inline struct inner behind_tags(struct __sk_buff *skb)
{
	struct inner inner = { .tags = !!skb->vlan_present };

#pragma unroll
	for (int i = 0; i <= TAGS_MAX; i++) {
		if (bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_proto) + i * TAG_SIZE,
				       &inner.protocol, sizeof(inner.protocol)))
			return (struct inner){};
		inner.offset = i * TAG_SIZE;
		if (!is_tag(inner.protocol))
			break;
		inner.tags++;
	}
	return inner;
}

/* The child of a parent in a container that has the address in a frame; NULL: none has it. */
static __always_inline struct endpoint *child_with(struct __sk_buff *skb, __u32 offset, bool ipv6)
{
	struct address address = {};
	struct endpoint *endpoint;
	__be32 ipv4;

	if (ipv6) {
		if (bpf_skb_load_bytes(skb, offset, &address, sizeof(address)))
			return NULL;
	} else {
		if (bpf_skb_load_bytes(skb, offset, &ipv4, sizeof(ipv4)))
			return NULL;
		set_ipv4(&address, ipv4);
	}
	endpoint = bpf_map_lookup_elem(&endpoints, &address);
	return endpoint && is_child(endpoint->ifindex) && is_inside_child(endpoint) ? endpoint
										    : NULL;
}

/* The child that an IP packet is from, or for. */
static __always_inline struct endpoint *child_of_packet(struct __sk_buff *skb,
							const struct inner *inner, bool destination)
{
	__u32 offset = ETH_HLEN + inner->offset;

	if (inner->protocol == bpf_htons(ETH_P_IP))
		return child_with(skb,
				  offset + (destination ? offsetof(struct iphdr, daddr)
							: offsetof(struct iphdr, saddr)),
				  false);
	if (inner->protocol == bpf_htons(ETH_P_IPV6))
		return child_with(skb,
				  offset + (destination ? offsetof(struct ipv6hdr, daddr)
							: offsetof(struct ipv6hdr, saddr)),
				  true);
	return NULL;
}

/* Whether the child is in the container that the frame is in: another's is a station like any. */
static __always_inline bool is_here(struct __sk_buff *skb, const struct endpoint *endpoint)
{
	struct child *child = child_at(parent_of(endpoint), &endpoint->mac);

	return child && child->netns == netns_here(skb);
}
