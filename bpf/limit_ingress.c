// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * To a container that may only get so much, what the host's stack or a bridge sends: egress of
 * the host's side of its veth pair, after to_container. What the datapath delivers past the
 * stack is held to the limit where it is (lib/apply.h). It is attached to no other.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/bandwidth.h"
#include "lib/count.h"

SEC("tc")
int limit_ingress(struct __sk_buff *skb)
{
	return meet_limit(skb, skb->ifindex, LIMIT_INGRESS, TO_CONTAINER);
}

char _license[] SEC("license") = "Dual BSD/GPL";
