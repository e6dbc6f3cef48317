// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Into a device in a container that macvlan children ride on: its ingress. See lib/inside.h. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/count.h"
#include "lib/inside.h"

SEC("tc")
int master_ingress(struct __sk_buff *skb)
{
	struct endpoint *child = NULL;
	struct ethhdr frame;

	if (bpf_skb_load_bytes(skb, 0, &frame, sizeof(frame)))
		return TC_ACT_UNSPEC;
	if (frame.h_proto == bpf_htons(ETH_P_IP))
		child = child_with(skb, IPV4_DESTINATION, false);
	else if (frame.h_proto == bpf_htons(ETH_P_IPV6))
		child = child_with(skb, IPV6_DESTINATION, true);
	/* What has the child's MAC and no tag, the kernel gives to the child alone. */
	if (!child || (!skb->vlan_present && same_mac((struct mac *)frame.h_dest, &child->mac)))
		return TC_ACT_UNSPEC;
	return drop(skb, TO_CONTAINER, DROP_MARTIAN);
}

char _license[] SEC("license") = "Dual BSD/GPL";
