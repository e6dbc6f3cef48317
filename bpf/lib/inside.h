/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Parents that are in a container, beside their macvlan children: the stack there takes what is for
 * a child's address by any device, and may send with it by any. What a child is asked must not be
 * got round by its parent. All else that this sends and gets is the container's own.
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
#include "link_local.h"
#include "maps.h"

/* Where the addresses are that a frame is from and for; ARP has none for whom it is of use here. */
enum address_offset {
	IPV4_SOURCE = ETH_HLEN + offsetof(struct iphdr, saddr),
	IPV4_DESTINATION = ETH_HLEN + offsetof(struct iphdr, daddr),
	IPV6_SOURCE = ETH_HLEN + offsetof(struct ipv6hdr, saddr),
	IPV6_DESTINATION = ETH_HLEN + offsetof(struct ipv6hdr, daddr),
	ARP_SENDER = offsetof(struct arp, sender),
};

/* The child of a parent in a container that has the address in a frame; NULL: none has it. */
static __always_inline struct endpoint *child_with(struct __sk_buff *skb, __u32 offset, bool ipv6)
{
	struct address address = {};
	struct interface *interface;
	struct endpoint *endpoint;
	__be32 ipv4;
	__u32 ifindex;

	if (ipv6) {
		if (bpf_skb_load_bytes(skb, offset, &address, sizeof(address)))
			return NULL;
	} else {
		if (bpf_skb_load_bytes(skb, offset, &ipv4, sizeof(ipv4)))
			return NULL;
		set_ipv4(&address, ipv4);
	}
	endpoint = bpf_map_lookup_elem(&endpoints, &address);
	if (!endpoint || !is_child(endpoint->ifindex))
		return NULL;
	ifindex = endpoint->ifindex;
	interface = bpf_map_lookup_elem(&interfaces, &ifindex);
	return interface && is_inside(interface->bridge) ? endpoint : NULL;
}
