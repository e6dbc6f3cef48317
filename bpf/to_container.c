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
#include "lib/bridge.h"
#include "lib/fragment.h"
#include "lib/frame.h"
#include "lib/port.h"
#include "lib/track.h"
#include "lib/translation.h"

/*
 * What others forward here, to a port that is not for them. An endpoint's address is
 * believed where the endpoint is, and not at another device.
 */
static __always_inline bool is_shut_for(struct __sk_buff *skb, const struct scratch *s,
					const struct endpoint *endpoint)
{
	struct endpoint *sender;

	if (!(endpoint->flags & ENDPOINT_PORTS))
		return false;
	sender = bpf_map_lookup_elem(&endpoints, &s->packet.key.source);
	if (sender && is_at(sender, skb->ingress_ifindex, skb->tc_index))
		return false;
	return sender ? is_guarded(s) : is_shut(skb);
}

/*
 * Whether a neighbour on the endpoint's bridge has sent the packet, and nobody translated it.
 * What an endpoint sends to another goes straight, unless the stack has a hand in it, which may
 * be the bridge's (br_netfilter) and leave its MAC.
 */
static __always_inline bool is_of_neighbour(const struct __sk_buff *skb, const struct scratch *s,
					    const struct endpoint *endpoint)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct ethhdr *ethernet = data;

	return (void *)(ethernet + 1) <= data_end &&
	       !same_mac((struct mac *)ethernet->h_source, &endpoint->host_mac) &&
	       !bpf_map_lookup_elem(&endpoints, &s->packet.key.source);
}

/* Whether an endpoint's address comes from where that endpoint is. */
static __always_inline bool is_own(const struct __sk_buff *skb, const struct scratch *s)
{
	struct endpoint *source = bpf_map_lookup_elem(&endpoints, &s->packet.key.source);

	return source && is_at(source, skb->ingress_ifindex, skb->tc_index);
}

/* Whether an endpoint's address comes from where that endpoint is not. */
static __always_inline bool is_forged(const struct __sk_buff *skb, const struct scratch *s)
{
	struct endpoint *source = bpf_map_lookup_elem(&endpoints, &s->packet.key.source);

	return source && skb->ingress_ifindex &&
	       !is_at(source, skb->ingress_ifindex, skb->tc_index);
}

/* No counter: the packet may pass, and what is known of its flow is known elsewhere. */
#define JUDGED -2

/* Policy for what others forward here. Returns 0, the counter of a drop, or JUDGED. */
static __always_inline int judge_forwarded(struct __sk_buff *skb, struct scratch *s, bool neighbour)
{
	struct endpoint *source = bpf_map_lookup_elem(&endpoints, &s->packet.key.source);
	int reason;

	reason = source ? NOT_TRANSLATED : judge_translated(skb, s);
	if (reason != NOT_TRANSLATED)
		return reason ?: JUDGED;
	s->sender = source ? 0 : forwarded_for(skb);
	s->later = true;
	if (!is_policed(s))
		return 0;
	/* An endpoint's address is believed where the endpoint is. */
	if (source && !is_at(source, skb->ingress_ifindex, skb->tc_index))
		return DROP_MARTIAN;
	s->packet.key.ifindex = source ? source->ifindex : 0;
	/* Counted with its first packet, where that can be told. */
	s->forgotten = begins_tcp(&s->packet);
	reason = judge(skb);
	if (reason || !s->tracks)
		return reason;
	/* The answer would be routed, and leave with the endpoint's address. */
	if (neighbour && !(s->decision.flags & FLOW_REPLY) && source_is_outside(skb))
		return DROP_MARTIAN;
	return -track(skb, 0);
}

/*
 * Policy for what the stack forwards to a group (group), which cannot be judged by address, or what
 * a bridge floods. The sender's side of a bridge was asked at its port. Returns 0, or the counter
 * of a drop.
 */
static __always_inline int judge_group(struct __sk_buff *skb, const struct interface *interface,
				       bool group)
{
	__u32 ifindex = skb->ingress_ifindex;
	struct interface *sender;

	if (!interface)
		return 0;
	sender = group ? bpf_map_lookup_elem(&interfaces, &ifindex) : NULL;
	if (sender && sender->role == INTERFACE_ENDPOINT && !sender->bridge &&
	    may_not_send_all(sender))
		return DROP_POLICY_EGRESS;
	return may_not_be_sent_all(interface) ? DROP_POLICY_INGRESS : 0;
}

/*
 * Notes scratch->packet, which the stack forwards, unless it was decided. Returns 0, or the counter
 * of a drop.
 */
__noinline int note(struct __sk_buff *skb, __u32 decided)
{
	struct scratch *s = scratch_get();
	struct endpoint *endpoint;
	struct flow *before;
	struct interface *interface;
	__u32 ifindex = skb->ifindex;
	bool bridged, group, neighbour, outside;
	int reason;

	if (!s)
		return DROP_INVALID;
	group = is_multicast(&s->packet.key.destination);
	endpoint = bpf_map_lookup_elem(&endpoints, &s->packet.key.destination);
	interface = bpf_map_lookup_elem(&interfaces, &ifindex);
	bridged = interface && interface->bridge;
	/* What a link needs, nobody forwards to another. */
	if ((bridged || group) && (!endpoint || endpoint->ifindex != ifindex))
		return bridged && keeps_link(&s->packet) ? 0 : judge_group(skb, interface, group);
	if (!endpoint || decided)
		return 0;
	/* A station's answer to a solicitation, and its own to see whether one is there still. */
	if (bridged && s->packet.icmp_kind == ICMP_KIND_LINK)
		return 0;
	if (!s->packet.icmp_kind && is_shut_for(skb, s, endpoint))
		return DROP_LOOPBACK_ONLY;
	__builtin_memset(&s->decision, 0, sizeof(s->decision));
	s->epoch = epoch_of(0);
	neighbour = bridged && is_of_neighbour(skb, s, endpoint);
	outside = neighbour && is_on_uplink(interface);
	reason = judge_forwarded(skb, s, neighbour && !outside);
	if (reason == JUDGED)
		return 0;
	/* What has a tag, or what another has forged, asks for no note. */
	if (reason || skb->vlan_present || s->packet.icmp_kind || answers_echo(&s->packet))
		return reason;
	/* The answer to a neighbour stays on the bridge, but for one to the world by the host. */
	if (neighbour) {
		if (outside && masquerade && endpoint->flags & ENDPOINT_MASQUERADE &&
		    !(s->decision.flags & FLOW_REPLY) && !answers_endpoint(s))
			expect_reply(s, endpoint);
		return 0;
	}
	if (is_forged(skb, s) || (skb->tc_index == SEEN_DECIDED && is_own(skb, s)))
		return 0;
	/* Policy knows that the endpoint began. */
	if (s->decision.flags & FLOW_REPLY)
		return 0;
	back_key(&s->sent, &s->packet.key);
	before = bpf_map_lookup_elem(&flows, &s->sent);
	/* One that goes straight to a neighbour would leave the stack out. */
	if (before && current(before, &s->packet) &&
	    (before->flags & FLOW_STACK ||
	     (before->action != ACTION_DELIVER && before->action != ACTION_BRIDGE)))
		return 0;
	/* Began with the endpoint, which left it to the stack, or to its bridge. */
	if (before && (before->action == ACTION_NONE || is_left_to_bridge(before)) &&
	    !(before->flags & FLOW_REPLY) && !begins_tcp(&s->packet) &&
	    (__s32)(now() - before->decided) <=
		    (__s32)translation_timeout(s->packet.key.protocol, TRANSLATION_ESTABLISHED))
		return 0;
	/* Began with the endpoint, and only the cache has forgotten. */
	if (translation_find(&s->sent, &s->other))
		return 0;
	__builtin_memset(&s->memory, 0, sizeof(s->memory));
	if (before) {
		s->memory.packets = before->packets;
		s->memory.bytes = before->bytes;
	}
	s->memory.action = ACTION_PASS;
	s->memory.flags = FLOW_REPLY | FLOW_STACK | (s->decision.flags & FLOW_TRACKED);
	s->memory.endpoint = endpoint->id;
	s->memory.sender = endpoint->mac;
	s->memory.epoch = s->epoch + epoch_of(endpoint->id);
	s->memory.decided = now();
	bpf_map_update_elem(&flows, &s->sent, &s->memory, BPF_ANY);
	return 0;
}

/* Whether policy has a say in what this device's endpoint is sent. */
static __always_inline bool is_restricted_device(const struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, generation = policy_now();
	struct interface *interface;
	struct subject *subject;

	if (!generation)
		return false;
	interface = bpf_map_lookup_elem(&interfaces, &ifindex);
	if (!interface)
		return true;
	subject = subject_of(generation, interface->endpoint);
	return !subject || is_restricted(subject);
}

/*
 * The bridge that the device is a port of, where policy has to know who has sent what no device has
 * brought in. NULL: that is the host.
 */
static __always_inline struct interface *doubtful(const struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct interface *interface;

	if (skb->ingress_ifindex || !policy_now())
		return NULL;
	interface = bpf_map_lookup_elem(&interfaces, &ifindex);
	return interface && interface->bridge ? interface : NULL;
}

/*
 * Whether what doubtful doubts, with scratch->packet as what was parsed, is the host's. Who has a
 * macvlan or ipvlan device on the bridge, in whatever namespace, has it send as the host does, with
 * sockets of that namespace (seen on 6.18). Its MAC tells, and with ipvlan, which has the bridge's,
 * its address.
 */
__noinline int is_hosts_own(struct __sk_buff *skb, __u32 parsed)
{
	const struct interface *interface = doubtful(skb);
	struct scratch *s = scratch_get();
	const struct address *source, *destination;
	struct ethhdr frame;

	if (!s || !interface || bpf_skb_load_bytes(skb, 0, &frame, sizeof(frame)))
		return false;
	source = &s->packet.key.source;
	destination = &s->packet.key.destination;
	if (same_mac((struct mac *)frame.h_source, &interface->host_mac) &&
	    (parsed != PARSED_IP || is_martian(source) ||
	     (is_ipv6_link_local(source) &&
	      (is_ipv6_link_local(destination) || is_multicast(destination))) ||
	     bpf_map_lookup_elem(&host_addresses, source)))
		return true;
	/* Its owner may have written what hooks write. */
	skb->tc_index = SEEN_NOT;
	return false;
}

/* Whether what is neither IP nor ARP is kept from the endpoint: policy cannot be asked. */
static __always_inline bool is_kept_from_others(const struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct interface *interface = bpf_map_lookup_elem(&interfaces, &ifindex);

	return interface && interface->bridge && may_not_be_sent_all(interface);
}

/* What the stack has forwarded. Returns 0, the counter of a drop, or OF_HOST. */
static __always_inline int forwarded(struct __sk_buff *skb)
{
	bool decided = was_decided(skb, skb->tc_index);
	struct scratch *s = scratch_get();
	struct packet *packet;
	int parsed;

	if (!s)
		return DROP_INVALID;
	packet = &s->packet;
	parsed = parse(skb, s);
	if (!skb->ingress_ifindex && (skb->sk || is_of_host(skb, parsed, packet)) &&
	    (!doubtful(skb) || is_hosts_own(skb, parsed)))
		return OF_HOST;
	switch (parsed) {
	case PARSED_IP:
		break;
	case PARSED_ARP:
		return 0;
	case PARSED_OTHER:
		return is_kept_from_others(skb) ? DROP_POLICY_INGRESS : 0;
	default:
		/* Nobody can tell what it is, or whether it may pass. */
		return !decided && is_restricted_device(skb) ? DROP_INVALID : 0;
	}
	if (packet->fragment) {
		packet->key.ifindex = skb->ingress_ifindex;
		fragment_find(packet);
		fragment_keep(packet);
	}
	return note(skb, decided);
}

SEC("tc")
int to_container(struct __sk_buff *skb)
{
	int reason;

	/* A socket of the host's. */
	if (!skb->ingress_ifindex && skb->sk && !doubtful(skb))
		return pass(skb, TO_CONTAINER, COUNTER_HOST);
	reason = forwarded(skb);
	if (reason == OF_HOST)
		return pass(skb, TO_CONTAINER, COUNTER_HOST);
	return reason ? drop(skb, TO_CONTAINER, reason) : pass(skb, TO_CONTAINER, COUNTER_PASSED);
}

char _license[] SEC("license") = "Dual BSD/GPL";
