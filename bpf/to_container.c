// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * To a container, through the host's stack: tcx egress of the host's side of its
 * veth pair. What a process of the host sends needs nothing here: the answer is
 * for an address of the host. What the stack forwards may have been translated
 * by others on its way (a service address, a node port), so its answer must go
 * back the same way.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/apply.h"
#include "lib/fragment.h"
#include "lib/parse.h"
#include "lib/port.h"
#include "lib/translation.h"

/*
 * What others forward here, to a port that is not for them. An endpoint's address is
 * believed where the endpoint is, and not at another device.
 */
static __always_inline bool is_shut_for(struct __sk_buff *skb, const struct packet *packet,
					const struct endpoint *endpoint)
{
	struct endpoint *sender;
	struct scratch *s;

	if (!(endpoint->flags & ENDPOINT_PORTS))
		return false;
	sender = bpf_map_lookup_elem(&endpoints, &packet->key.source);
	if (sender && sender->ifindex == skb->ingress_ifindex)
		return false;
	s = scratch_get();
	if (!s)
		return true;
	s->packet = *packet;
	return sender ? is_guarded(s) : is_shut(skb);
}

/* Notes what the stack forwards. Returns 0, or the counter of a drop. */
static __always_inline int note(struct __sk_buff *skb)
{
	struct flow memory = { .action = ACTION_PASS, .flags = FLOW_REPLY | FLOW_STACK };
	struct packet packet = {};
	struct endpoint *endpoint;
	struct flow_key back = {}, other;
	struct flow *before;

	if (!skb->ingress_ifindex || skb->tc_index == SEEN_DECIDED)
		return 0;
	if (parse(skb, &packet) != PARSED_IP || packet.icmp_kind)
		return 0;
	endpoint = bpf_map_lookup_elem(&endpoints, &packet.key.destination);
	if (!endpoint)
		return 0;
	if (packet.fragment) {
		packet.key.ifindex = skb->ingress_ifindex;
		fragment_find(&packet);
		fragment_keep(&packet);
	}
	if (is_shut_for(skb, &packet, endpoint))
		return DROP_LOOPBACK_ONLY;
	back.source = packet.key.destination;
	back.destination = packet.key.source;
	back.source_port = packet.key.destination_port;
	back.destination_port = packet.key.source_port;
	back.ifindex = endpoint->ifindex;
	back.protocol = packet.key.protocol;
	before = bpf_map_lookup_elem(&flows, &back);
	/* One that goes straight to a neighbour would leave the stack out. */
	if (before && current(before, &packet) &&
	    (before->flags & FLOW_STACK || before->action != ACTION_DELIVER))
		return 0;
	/* Began with the endpoint, and only the cache has forgotten. */
	if (translation_find(&back, &other))
		return 0;
	if (before) {
		memory.packets = before->packets;
		memory.bytes = before->bytes;
	}
	memory.endpoint = endpoint->id;
	memory.sender = endpoint->mac;
	memory.epoch = epoch_sum(endpoint->id);
	memory.decided = now();
	bpf_map_update_elem(&flows, &back, &memory, BPF_ANY);
	return 0;
}

SEC("tc")
int to_container(struct __sk_buff *skb)
{
	int reason = note(skb);

	return reason ? drop(skb, TO_CONTAINER, reason) : pass(skb, TO_CONTAINER, COUNTER_PASSED);
}

char _license[] SEC("license") = "Dual BSD/GPL";
