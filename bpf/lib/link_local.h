/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What stays on the link between a container and the host: ARP, neighbour
 * discovery, group membership, DHCP. It is never translated and never leaves
 * the node; a container may speak for its own addresses only, but for a station of a
 * bridge, which may for all that are nobody's here.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_helpers.h>

#include "count.h"
#include "maps.h"
#include "parse.h"

/* RFC 826, for Ethernet and IPv4. linux/if_arp.h needs a C library. */
struct arp {
	struct ethhdr ethernet;
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	struct mac sender_mac;
	__u8 sender[4];
	struct mac target_mac;
	__u8 target[4];
} __attribute__((packed));

static __always_inline bool owns(const struct address *address, __u32 ifindex)
{
	struct endpoint *owner = bpf_map_lookup_elem(&endpoints, address);

	return owner && owner->ifindex == ifindex;
}

/* Whether an address is the host's, or that of another endpoint than a device's. */
static __always_inline bool is_others(const struct address *address, __u32 ifindex)
{
	struct endpoint *owner = bpf_map_lookup_elem(&endpoints, address);

	return owner ? owner->ifindex != ifindex : !!bpf_map_lookup_elem(&host_addresses, address);
}

/*
 * Whether what an endpoint sends may come from addresses that nobody here knows: on a trunk, or
 * because it has no others. It is a station of the link, then, as one that is no endpoint.
 */
static __always_inline bool is_station(const struct __sk_buff *skb,
				       const struct interface *interface)
{
	return skb->vlan_present || interface->flags & INTERFACE_LAYER2;
}

/*
 * Whether an endpoint may send this, which is ARP. Returns 0, or the counter of the drop. A
 * sender of zeros probes an address (RFC 5227): it claims nothing yet.
 */
static __noinline int check_arp(struct __sk_buff *skb, __u32 ifindex)
{
	struct interface *interface;
	struct address sender;
	struct arp arp;
	__be32 ipv4;

	if (bpf_skb_load_bytes(skb, 0, &arp, sizeof(arp)) || arp.hardware != bpf_htons(1) ||
	    arp.protocol != bpf_htons(ETH_P_IP) || arp.hardware_length != 6 ||
	    arp.protocol_length != 4)
		return DROP_INVALID;
	interface = bpf_map_lookup_elem(&interfaces, &ifindex);
	if (!interface || interface->role != INTERFACE_ENDPOINT)
		return DROP_UNKNOWN_SENDER;
	if (!same_mac((struct mac *)arp.ethernet.h_source, &interface->mac) ||
	    !same_mac(&arp.sender_mac, &interface->mac))
		return DROP_SOURCE_MAC;
	__builtin_memcpy(&ipv4, arp.sender, sizeof(ipv4));
	set_ipv4(&sender, ipv4);
	if (ipv4 &&
	    (is_station(skb, interface) ? is_others(&sender, ifindex) : !owns(&sender, ifindex)))
		return DROP_NEIGHBOUR;
	return 0;
}

/*
 * Whether a packet whose source is no address of an endpoint is talk on the link:
 * from a link-local or no address, to the link or a group. DHCP, for which an
 * address may not be known yet, is let through to the host.
 */
static __always_inline bool is_link_local_talk(const struct packet *packet)
{
	const struct flow_key *key = &packet->key;

	if (!packet->ipv6)
		return words(&key->source)[3] == 0 && is_multicast(&key->destination) &&
		       key->protocol == IPPROTO_UDP && key->source_port == bpf_htons(68) &&
		       key->destination_port == bpf_htons(67);
	if (!is_ipv6_link_local(&key->source) && !is_zero(&key->source))
		return false;
	return is_multicast(&key->destination) || is_ipv6_link_local(&key->destination) ||
	       packet->icmp_kind == ICMP_KIND_LINK;
}

/*
 * Whether a container may send this message of neighbour discovery (RFC 4861).
 * Returns 0, or the counter of the drop. Advertisements for link-local addresses
 * are let through: only the container knows its own. A station may be a router.
 */
static __noinline int check_neighbour(struct __sk_buff *skb, const struct packet *packet,
				      bool station)
{
	struct address target;

	if (packet->icmp_kind != ICMP_KIND_LINK)
		return 0;
	if (!packet->ipv6)
		return DROP_NEIGHBOUR; /* an ICMP redirect */
	/* A solicitation says who has its source. */
	if (station && is_others(&packet->key.source, packet->key.ifindex))
		return DROP_NEIGHBOUR;
	switch (packet->icmp_type) {
	case ICMPV6_ROUTER_ADVERTISEMENT:
		return station ? 0 : DROP_NEIGHBOUR;
	case ICMPV6_REDIRECT:
		return DROP_NEIGHBOUR;
	case ICMPV6_NEIGHBOUR_ADVERTISEMENT:
		if (bpf_skb_load_bytes(skb, packet->transport + 8, &target, sizeof(target)))
			return DROP_INVALID;
		if (!is_ipv6_link_local(&target) &&
		    (station ? is_others(&target, packet->key.ifindex)
			     : !owns(&target, packet->key.ifindex)))
			return DROP_NEIGHBOUR;
	}
	return 0;
}
