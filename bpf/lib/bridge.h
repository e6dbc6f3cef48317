/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is special about an endpoint whose host side is a port of a Linux bridge: it has
 * neighbours on its link. The host side has the MAC of the bridge, so that what is for the
 * gateway is for the device (PACKET_HOST), and is routed as any endpoint's; what is for
 * another station (PACKET_OTHERHOST) stays on the bridge.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_helpers.h>

#include "apply.h"
#include "count.h"
#include "parse.h"
#include "policy.h"

/* Whether policy has a say in what the endpoint sends. */
static __always_inline bool may_not_send_all(const struct interface *interface)
{
	__u32 generation = policy_now();
	struct subject *subject;

	if (!generation)
		return false;
	subject = subject_of(generation, interface->endpoint);
	return !subject || subject->egress;
}

/* Whether others may not send to the endpoint what they like. */
static __always_inline bool may_not_be_sent_all(const struct interface *interface)
{
	__u32 generation = policy_now();
	struct subject *subject;

	if (!generation)
		return false;
	subject = subject_of(generation, interface->endpoint);
	return !subject || is_guarded_subject(subject);
}

/*
 * Whether the packet is what a link needs to work, whatever policy says: neighbour discovery,
 * group membership, and DHCP as far as it is broadcast. Who may not send to all is no server of
 * that.
 */
static __always_inline bool keeps_link(const struct packet *packet)
{
	const struct flow_key *key = &packet->key;

	if (packet->icmp_kind == ICMP_KIND_LINK)
		return true;
	if (packet->ipv6 || !is_multicast(&key->destination))
		return false;
	return key->protocol == IPPROTO_IGMP ||
	       (key->protocol == IPPROTO_UDP && words(&key->destination)[3] == 0xffffffff &&
		((key->source_port == bpf_htons(68) && key->destination_port == bpf_htons(67)) ||
		 (key->source_port == bpf_htons(67) && key->destination_port == bpf_htons(68))));
}

/*
 * Whether a DHCP server answers a client, which may be to the address that the client is to have.
 * It may come to a child that is kept from all else for what is not its own; the child's stack does
 * not take it yet.
 */
static __always_inline bool answers_dhcp(const struct packet *packet)
{
	return !packet->ipv6 && packet->key.protocol == IPPROTO_UDP &&
	       packet->key.source_port == bpf_htons(67) &&
	       packet->key.destination_port == bpf_htons(68);
}

/* 01-80-c2-00-00-0x: bridges talk to each other by these (IEEE 802.1Q, 8.6.3). */
static __always_inline bool is_for_bridges(const __u8 *mac)
{
	return mac[0] == 0x01 && mac[1] == 0x80 && mac[2] == 0xc2 && !mac[3] && !mac[4] &&
	       mac[5] < 0x10;
}

/*
 * Whether an endpoint may send this, of which no address is asked. Returns 0, or the counter of
 * the drop. A container without neighbours may say what it likes: the
 * stack alone hears it.
 */
static __noinline int check_other(struct __sk_buff *skb, __u32 ifindex)
{
	struct interface *interface;
	struct ethhdr ethernet;

	interface = bpf_map_lookup_elem(&interfaces, &ifindex);
	if (!interface || !interface->bridge)
		return 0;
	if (bpf_skb_load_bytes(skb, 0, &ethernet, sizeof(ethernet)))
		return DROP_INVALID;
	if (!same_mac((struct mac *)ethernet.h_source, &interface->mac))
		return DROP_SOURCE_MAC;
	if (is_for_bridges(ethernet.h_dest))
		return DROP_MARTIAN;
	if (may_not_send_all(interface))
		return DROP_POLICY_EGRESS;
	return 0;
}

/*
 * Whether an endpoint may send by the tag that a packet has. Returns 0, or the counter of the drop.
 * Its own VLAN is in no trunk: a tag must not lead round what is asked of packets without one, nor
 * may the bridge take the tag for none, as it does with VLAN 0, and with one that is not of 802.1Q.
 * Where the bridge takes the tag away, another behind it would count.
 */
static __noinline int check_tag(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, id = skb->vlan_tci & VLAN_ID_MASK;
	struct trunk *trunk = bpf_map_lookup_elem(&trunks, &ifindex);
	struct interface *interface;
	__be16 inner;

	if (!trunk || skb->vlan_proto != bpf_htons(ETH_P_8021Q) ||
	    !(trunk->vlans[id / 64] >> id % 64 & 1))
		return DROP_VLAN;
	interface = bpf_map_lookup_elem(&interfaces, &ifindex);
	if (!interface || !interface->bridge)
		return DROP_UNKNOWN_SENDER;
	if (bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_proto), &inner, sizeof(inner)))
		return DROP_INVALID;
	if (is_tag(inner))
		return DROP_VLAN;
	return 0;
}

/*
 * Whether a decision is for packets such as this: one for the gateway, or one for another
 * station.
 */
static __always_inline bool suits(const struct __sk_buff *skb, const struct flow *flow,
				  const struct ethhdr *ethernet)
{
	if (skb->pkt_type == PACKET_HOST)
		return flow->action != ACTION_BRIDGE;
	if (skb->pkt_type != PACKET_OTHERHOST)
		return false;
	if (flow->action == ACTION_BRIDGE)
		return same_mac((struct mac *)ethernet->h_dest, &flow->receiver);
	return flow->action == ACTION_DENY || flow->of_port;
}

/*
 * Whether what one port sends may go straight into another. Two ports that are isolated are
 * left to the bridge, which lets nothing pass between them.
 */
static __always_inline bool are_joined(const struct interface *from, const struct interface *to)
{
	return from && to && from->bridge == to->bridge &&
	       !(from->flags & to->flags & INTERFACE_ISOLATED);
}

/* Into the other port, as the bridge would; what it would drop, or knows alone, is left to it. */
static __always_inline int cross(struct __sk_buff *skb, const struct packet *packet,
				 const struct flow *flow)
{
	int action;

	if (is_left_to_bridge(flow))
		return pass(skb, FROM_CONTAINER, COUNTER_PASSED);
	if (packet->length > flow->mtu)
		return pass(skb, FROM_CONTAINER, COUNTER_TOO_BIG);
	action = meet_limit_by(skb, flow, FROM_CONTAINER);
	if (action != TC_ACT_UNSPEC)
		return action;
	/* The stack of the receiver would drop it as another's. */
	if (bpf_skb_change_type(skb, PACKET_HOST))
		return drop(skb, FROM_CONTAINER, DROP_REWRITE);
	count(skb, FROM_CONTAINER, COUNTER_DELIVERED);
	return bpf_redirect_peer(flow->out_ifindex, 0);
}
