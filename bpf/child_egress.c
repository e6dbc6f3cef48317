// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Out of a macvlan child whose parent is in the container, too: the child's own egress. The agent
 * cannot reach a hook there: this one, which ADD attaches, leads to the program of parents that the
 * agent has put into child_programs, and what that knows as the parent is the child itself.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/count.h"

SEC("tc")
int child_egress(struct __sk_buff *skb)
{
	bpf_tail_call(skb, &child_programs, CHILD_EGRESS);
	return drop(skb, FROM_CONTAINER, DROP_UNKNOWN_SENDER);
}

char _license[] SEC("license") = "Dual BSD/GPL";
