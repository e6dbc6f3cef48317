// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Out of a device in a container that macvlan children ride on: its egress. What a child has sent
 * was judged at its own, and is marked. What the stack sends by this one with a child's address is
 * the child's to send. See lib/inside.h.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/apply.h"
#include "lib/child.h"
#include "lib/inside.h"

/*
 * Whether ARP claims a child's address that is of another container: this one's stack speaks for
 * all of its addresses by each of its devices, and what the answer to that brings meets
 * master_ingress.
 */
static __always_inline bool claims_anothers(struct __sk_buff *skb, const struct inner *inner)
{
	struct endpoint *endpoint =
		child_with(skb, offsetof(struct arp, sender) + inner->offset, false);
	struct ethhdr frame;

	if (!endpoint)
		return false;
	if (inner->tags || bpf_skb_load_bytes(skb, 0, &frame, sizeof(frame)))
		return true;
	return !is_here(skb, endpoint) || (!netns_of(skb) && !is_unsigned(skb, &frame));
}

SEC("tc")
int master_egress(struct __sk_buff *skb)
{
	struct endpoint *child;
	struct inner inner;
	struct mac sender;

	/* The mark stays: this may be a VLAN of another such device. */
	if (was_judged(skb))
		return TC_ACT_UNSPEC;
	inner = behind_tags(skb);
	if (inner.protocol == bpf_htons(ETH_P_ARP))
		return claims_anothers(skb, &inner) ? drop(skb, FROM_CONTAINER, DROP_NEIGHBOUR)
						    : TC_ACT_UNSPEC;
	child = child_of_packet(skb, &inner, false);
	if (!child || !is_here(skb, child))
		return TC_ACT_UNSPEC;
	if (inner.tags)
		return drop(skb, FROM_CONTAINER, DROP_VLAN);
	sender = child->mac;
	if (bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_source), &sender, sizeof(sender), 0))
		return drop(skb, FROM_CONTAINER, DROP_REWRITE);
	/* By its index the child is its own parent. */
	return bpf_redirect(parent_of(child), 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
