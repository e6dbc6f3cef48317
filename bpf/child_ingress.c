// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Into a macvlan child whose parent is in the container, too: see child_egress.c. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/count.h"

SEC("tc")
int child_ingress(struct __sk_buff *skb)
{
	bpf_tail_call(skb, &child_programs, CHILD_INGRESS);
	return drop(skb, TO_CONTAINER, DROP_UNKNOWN_SENDER);
}

char _license[] SEC("license") = "Dual BSD/GPL";
