// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * To the world, through the host's stack: tcx egress of an uplink. What the
 * datapath sent here itself is marked and passes. What the stack forwarded for
 * an endpoint (fragments it made, packets others translated) is masqueraded
 * here, so that no endpoint's address leaves unhidden. The host's own packets
 * cost one failed lookup.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/apply.h"
#include "lib/fragment.h"
#include "lib/masquerade.h"
#include "lib/parse.h"

/* The host's stack speaks of a packet that was translated for an endpoint. */
__noinline int host_error(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct translation *pointer;
	struct endpoint *endpoint;

	if (!s || parse_quote(skb))
		return TC_ACT_UNSPEC;
	endpoint = bpf_map_lookup_elem(&endpoints, &s->quote.key.destination);
	if (!endpoint)
		return TC_ACT_UNSPEC;
	answer_key(&s->other, &s->quote, endpoint->ifindex);
	pointer = bpf_map_lookup_elem(&translations, &s->other);
	if (!pointer)
		return TC_ACT_UNSPEC;
	s->to = *pointer;
	if (translate_quote(skb, false))
		return drop(skb, TO_UPLINK, DROP_REWRITE);
	count(skb, TO_UPLINK, COUNTER_FORWARDED);
	return TC_ACT_UNSPEC;
}

/* Masquerades scratch->packet. */
__noinline int slow_path(struct __sk_buff *skb, __u32 seen)
{
	struct scratch *s = scratch_get();
	struct endpoint *endpoint;
	struct flow *before;
	int error;

	if (!s)
		return drop(skb, TO_UPLINK, DROP_INVALID);
	endpoint = bpf_map_lookup_elem(&endpoints, &s->packet.key.source);
	if (!endpoint)
		return TC_ACT_UNSPEC;
	before = bpf_map_lookup_elem(&flows, &s->packet.key);
	if (!masquerades(endpoint, &s->packet) || before_says_reply(before, &s->packet))
		return TC_ACT_UNSPEC;
	__builtin_memset(&s->decision, 0, sizeof(s->decision));
	s->decision.out_ifindex = skb->ifindex;
	if (s->packet.icmp_kind == ICMP_KIND_ERROR)
		error = masquerade_error(skb);
	else if (begins_with_reply(&s->packet))
		return TC_ACT_UNSPEC;
	else
		error = masquerade_source(skb, endpoint->id,
					  seen == SEEN_DECIDED ? 0 : TRANSLATION_STACK);
	if (error)
		return drop(skb, TO_UPLINK, -error);
	if (translate(skb, &s->packet, SOURCE, &s->decision.address, s->decision.port,
		      s->decision.checksum_diff))
		return drop(skb, TO_UPLINK, DROP_REWRITE);
	count(skb, TO_UPLINK, COUNTER_FORWARDED);
	return TC_ACT_UNSPEC;
}

static __always_inline int ask_slow_path(struct __sk_buff *skb, struct packet *packet, __u32 seen)
{
	struct scratch *s = scratch_get();

	if (!s)
		return drop(skb, TO_UPLINK, DROP_INVALID);
	s->packet = *packet;
	return packet->key.ifindex ? slow_path(skb, seen) : host_error(skb);
}

SEC("tc")
int to_uplink(struct __sk_buff *skb)
{
	__u16 seen = skb->tc_index;
	struct packet packet = {};
	struct endpoint *endpoint;

	if (seen)
		skb->tc_index = SEEN_NOT;
	if (seen == SEEN_TRANSLATED || skb->vlan_present || parse(skb, &packet) != PARSED_IP)
		return TC_ACT_UNSPEC;
	endpoint = bpf_map_lookup_elem(&endpoints, &packet.key.source);
	if (endpoint) {
		packet.key.ifindex = endpoint->ifindex;
		if (packet.fragment)
			fragment_ports(&packet);
	} else if (packet.icmp_kind != ICMP_KIND_ERROR) {
		return TC_ACT_UNSPEC;
	}
	return ask_slow_path(skb, &packet, seen);
}

char _license[] SEC("license") = "Dual BSD/GPL";
