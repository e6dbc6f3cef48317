// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Into a device in a container that macvlan children ride on: its ingress. What is for a child's
 * address and has not its MAC goes to the child: to its ingress, and not past it. See lib/inside.h.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/count.h"
#include "lib/inside.h"

SEC("tc")
int master_ingress(struct __sk_buff *skb)
{
	struct inner inner = behind_tags(skb);
	struct endpoint *child = child_of_packet(skb, &inner, true);
	struct mac receiver;

	if (!child)
		return TC_ACT_UNSPEC;
	if (bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_dest), &receiver, sizeof(receiver)))
		return drop(skb, TO_CONTAINER, DROP_INVALID);
	/* The kernel gives it to the child, be that one of a VLAN. */
	if (same_mac(&receiver, &child->mac) || !is_here(skb, child))
		return TC_ACT_UNSPEC;
	/* A device of the container takes it, and the stack for its own. */
	if (inner.tags)
		return drop(skb, TO_CONTAINER, DROP_VLAN);
	receiver = child->mac;
	if (bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_dest), &receiver, sizeof(receiver),
				0))
		return drop(skb, TO_CONTAINER, DROP_REWRITE);
	/* By its index the child is its own parent. */
	return bpf_redirect(parent_of(child), BPF_F_INGRESS);
}

char _license[] SEC("license") = "Dual BSD/GPL";
