// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Out of a device that macvlan children ride on: its egress. What a child sends is judged
 * here, and goes to the wire, to another child or to the host; so does what the host sends to
 * a child. The host's other frames cost two failed lookups, and are never changed.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/apply.h"
#include "lib/bridge.h"
#include "lib/child.h"
#include "lib/fragment.h"
#include "lib/frame.h"
#include "lib/link_local.h"
#include "lib/port_answer.h"
#include "lib/track.h"
#include "lib/translation.h"

/* Puts a frame back into the parent, past the wire. Returns a TC action. */
static __always_inline int put_back(struct __sk_buff *skb)
{
	set_mark(skb, MARK_BACK);
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/*
 * Puts a copy of a frame for a group back, which goes out to the wire as well. One that cannot
 * be made is lost, as frames for groups may be.
 */
static __always_inline void put_copy_back(struct __sk_buff *skb, enum mark mark)
{
	__u32 before = skb->mark;

	set_mark(skb, mark);
	bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
	skb->mark = before;
}

/* Puts a copy of what a child sends to a group back for those of the node who get it. */
static __always_inline void share(struct __sk_buff *skb, const struct child *child, bool keeps)
{
	bool host = child->flags & CHILD_HOST;

	/* The kernel gives it to all of them, whoever is not to be sent it. */
	if (child->flags & CHILD_BRIDGED && (keeps || !policy_now()))
		put_copy_back(skb, host ? MARK_BACK : MARK_CHILDREN);
	else if (host)
		put_copy_back(skb, MARK_HOST);
}

/*
 * Out to the wire. A container's own mark is none of the host's business; this one is for
 * the hooks of the device below, where this one is a VLAN.
 */
static __always_inline int leave(struct __sk_buff *skb)
{
	set_mark(skb, MARK_SENT);
	return pass(skb, FROM_CONTAINER, COUNTER_FORWARDED);
}

/* The other child that a child reaches by a MAC; NULL: none is reached by it. */
static __always_inline struct child *
receiver_of(const struct __sk_buff *skb, const struct child *child, const struct mac *receiver)
{
	struct child *other = child_at(skb->ifindex, receiver);

	return other && child->flags & other->flags & CHILD_BRIDGED ? other : NULL;
}

/*
 * A child's frame on its way, judged; keeps says that it is one which a link needs. Returns a
 * TC action.
 */
__noinline int send(struct __sk_buff *skb, __u32 keeps)
{
	struct ethhdr frame;
	struct child *child, *to;
	int action;

	if (bpf_skb_load_bytes(skb, 0, &frame, sizeof(frame)))
		return drop(skb, FROM_CONTAINER, DROP_INVALID);
	child = child_at(skb->ifindex, (struct mac *)frame.h_source);
	if (!child)
		return drop(skb, FROM_CONTAINER, DROP_UNKNOWN_SENDER);
	/* For uplinks: this one, or one below a VLAN device. */
	skb->tc_index = SEEN_TRANSLATED;
	if (is_group((struct mac *)frame.h_dest)) {
		share(skb, child, keeps);
		return leave(skb);
	}
	if (same_mac((struct mac *)frame.h_dest, &child->host_mac)) {
		if (!(child->flags & CHILD_HOST))
			return leave(skb);
		count(skb, FROM_CONTAINER, COUNTER_PASSED);
		return put_back(skb);
	}
	to = receiver_of(skb, child, (struct mac *)frame.h_dest);
	if (!to)
		return leave(skb);
	action = meet_limit_of(skb, to, FROM_CONTAINER);
	if (action != TC_ACT_UNSPEC)
		return action;
	count(skb, FROM_CONTAINER, COUNTER_DELIVERED);
	return put_back(skb);
}

/*
 * Sends the answer of a mapped port on its way. No stack is behind this hook that could have
 * what is left to it: it must not go as it is. What has to wait until the host has found its
 * neighbour leaves by the container's entry for its own next hop, and with the child's MAC, since
 * it still has the route that the container's stack gave it (seen on 6.18); what follows has the
 * host's.
 */
static __always_inline int answer_by(struct __sk_buff *skb, struct packet *packet,
				     struct flow *flow)
{
	if (packet->ttl <= 1)
		return drop(skb, FROM_CONTAINER, DROP_TTL);
	if (packet->length > flow->mtu)
		return drop(skb, FROM_CONTAINER, DROP_NO_UPLINK);
	/* It meets an egress hook of parents again, in the host's name. */
	set_mark(skb, MARK_SENT);
	return apply(skb, packet, flow, FROM_CONTAINER);
}

/* Its own function, since Linux 5.10 bounds the stack of all calls together. */
__noinline int apply_decision(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();

	if (!s)
		return drop(skb, FROM_CONTAINER, DROP_INVALID);
	/* An egress hook cannot reach into a veth pair. */
	if (s->decision.action == ACTION_DELIVER && !is_child(s->decision.out_ifindex))
		s->decision.action = ACTION_RETURN;
	remember(skb);
	return answer_by(skb, &s->packet, &s->decision);
}

/* Decides for scratch->packet, which a child sends. Returns a TC action. */
__noinline int slow_path(struct __sk_buff *skb, __u32 forgotten)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct scratch *s = scratch_get();
	struct ethhdr *ethernet = data;
	struct interface *interface;
	struct child *child, *to;
	struct endpoint *self, *endpoint;
	struct mac receiver;
	bool group, keeps;
	int verdict;

	count(skb, FROM_CONTAINER, COUNTER_DECIDED);
	if (!s || (void *)(ethernet + 1) > data_end)
		return drop(skb, FROM_CONTAINER, DROP_INVALID);
	s->forgotten = forgotten;
	s->epoch = epoch_of(0);
	s->sender = 0;
	__builtin_memcpy(&receiver, ethernet->h_dest, sizeof(receiver));
	child = child_at(skb->ifindex, (struct mac *)ethernet->h_source);
	interface = child ? interface_of(child) : NULL;
	if (!interface || interface->role != INTERFACE_ENDPOINT)
		return drop(skb, FROM_CONTAINER, DROP_UNKNOWN_SENDER);
	to = receiver_of(skb, child, &receiver);
	group = is_group(&receiver);
	keeps = keeps_link(&s->packet);
	self = bpf_map_lookup_elem(&endpoints, &s->packet.key.source);
	if (!self || self->ifindex != s->packet.key.ifindex) {
		if (!is_link_local_talk(&s->packet))
			return drop(skb, FROM_CONTAINER, DROP_SOURCE_ADDRESS);
	} else if (is_martian(&s->packet.key.destination)) {
		return drop(skb, FROM_CONTAINER, DROP_MARTIAN);
	} else if (s->packet.icmp_kind != ICMP_KIND_LINK && !group &&
		   !is_ipv6_link_local(&s->packet.key.destination)) {
		if (is_multicast(&s->packet.key.destination))
			return drop(skb, FROM_CONTAINER, DROP_MARTIAN);
		if (s->packet.fragment)
			fragment_keep(&s->packet);
		/* The host is reached by all that may reach it at all. */
		if (same_mac(&receiver, &child->host_mac) && child->flags & CHILD_HOST &&
		    bpf_map_lookup_elem(&host_addresses, &s->packet.key.destination))
			return send(skb, false);
		__builtin_memset(&s->decision, 0, sizeof(s->decision));
		s->decision.sender = interface->mac;
		s->decision.endpoint = interface->endpoint;
		if (self->flags & ENDPOINT_PORTS) {
			verdict = decide_answer(skb);
			if (verdict)
				return verdict == APPLY ? apply_decision(skb) : verdict;
		}
		lead(&s->decision, to ? to->ifindex : 0, &receiver);
		s->decision.limited = to && to->flags & CHILD_GETS_LIMITED;
		endpoint = bpf_map_lookup_elem(&endpoints, &s->packet.key.destination);
		/* One that has not the address would be asked nothing. */
		if (to && (!endpoint || endpoint->ifindex != to->ifindex) &&
		    !answers_dhcp(&s->packet) && is_kept(to))
			return drop(skb, FROM_CONTAINER, DROP_POLICY_INGRESS);
		/* By the time that others have translated it, they may have hidden who asks. */
		s->later = 0;
		if (is_answer(s))
			s->decision.flags |= FLOW_REPLY;
		verdict = judge_and_track(skb, s);
		if (verdict)
			return refuse(skb, FROM_CONTAINER, verdict);
		/* What the stack sends on, it does by what it knows then. */
		if (!same_mac(&receiver, &child->host_mac))
			remember(skb);
		return send(skb, false);
	}
	/* Talk on the link: policy cannot be asked by address. */
	verdict = check_neighbour(skb, &s->packet, false);
	if (verdict)
		return drop(skb, FROM_CONTAINER, verdict);
	if ((!keeps || answers_dhcp(&s->packet)) && may_not_send_all(interface))
		return drop(skb, FROM_CONTAINER, DROP_POLICY_EGRESS);
	if (!keeps && to && is_kept(to))
		return drop(skb, FROM_CONTAINER, DROP_POLICY_INGRESS);
	return send(skb, keeps);
}

/* What is neither IP nor ARP, and may be for one who is not to be sent it. */
__noinline int strange(struct __sk_buff *skb, __u32 ifindex)
{
	struct child *child, *to;
	struct ethhdr frame;
	int verdict;

	verdict = check_other(skb, ifindex);
	if (verdict)
		return drop(skb, FROM_CONTAINER, verdict);
	if (bpf_skb_load_bytes(skb, 0, &frame, sizeof(frame)))
		return drop(skb, FROM_CONTAINER, DROP_INVALID);
	/* A tag that a process has written stays in the frame until somebody receives it. */
	if (is_tag(frame.h_proto))
		return drop(skb, FROM_CONTAINER, DROP_VLAN);
	child = child_at(skb->ifindex, (struct mac *)frame.h_source);
	to = child ? receiver_of(skb, child, (struct mac *)frame.h_dest) : NULL;
	if (to && is_kept(to))
		return drop(skb, FROM_CONTAINER, DROP_POLICY_INGRESS);
	return send(skb, false);
}

/* What a child sends. Returns a TC action. */
static __always_inline int from_child(struct __sk_buff *skb, __u32 ifindex)
{
	struct scratch *s = scratch_get();
	struct packet *packet;
	void *data, *data_end;
	struct ethhdr *ethernet;
	struct flow *flow;
	int verdict;

	if (skb->vlan_present)
		return drop(skb, FROM_CONTAINER, DROP_VLAN);
	if (!s)
		return drop(skb, FROM_CONTAINER, DROP_INVALID);
	packet = &s->packet;
	switch (parse(skb, s)) {
	case PARSED_IP:
		break;
	case PARSED_ARP:
		verdict = check_arp(skb, ifindex);
		return verdict ? drop(skb, FROM_CONTAINER, verdict) : send(skb, true);
	case PARSED_OTHER:
		return strange(skb, ifindex);
	default:
		return drop(skb, FROM_CONTAINER, DROP_INVALID);
	}
	packet->key.ifindex = ifindex;
	if (packet->fragment)
		fragment_find(packet);
	if (packet->unkeyed)
		return slow_path(skb, asks_for_echo(packet));
	flow = bpf_map_lookup_elem(&flows, &packet->key);
	data = (void *)(long)skb->data;
	data_end = (void *)(long)skb->data_end;
	ethernet = data;
	if (!flow || !current(flow, packet) || (void *)(ethernet + 1) > data_end ||
	    !leads_to(flow, (struct mac *)ethernet->h_dest) ||
	    !same_mac((struct mac *)ethernet->h_source, &flow->sender))
		return slow_path(skb, !flow);
	if (packet->fragment)
		fragment_keep(packet);
	account(skb, flow);
	if (flow->action == ACTION_DENY)
		return drop(skb, FROM_CONTAINER, flow->reason);
	if (flow->flags & (FLOW_TRACKED | FLOW_TRANSLATE_SOURCE) && is_closing(packet, flow))
		follow_translation(packet, flow);
	if (flow->action != ACTION_LINK)
		return answer_by(skb, packet, flow);
	skb->tc_index = SEEN_TRANSLATED;
	if (!flow->out_ifindex)
		return leave(skb);
	verdict = meet_limit_by(skb, flow, FROM_CONTAINER);
	if (verdict != TC_ACT_UNSPEC)
		return verdict;
	count(skb, FROM_CONTAINER, COUNTER_DELIVERED);
	return put_back(skb);
}

/*
 * Policy for scratch->packet, which the host's stack forwards to a child. Returns 0, or the
 * counter of a drop.
 */
__noinline int judge_forwarded(struct __sk_buff *skb, __u32 seen)
{
	struct scratch *s = scratch_get();
	struct endpoint *source;
	int reason;

	if (!s)
		return DROP_INVALID;
	__builtin_memset(&s->decision, 0, sizeof(s->decision));
	s->epoch = epoch_of(0);
	source = bpf_map_lookup_elem(&endpoints, &s->packet.key.source);
	reason = source ? NOT_TRANSLATED : judge_translated(skb, s);
	if (reason != NOT_TRANSLATED)
		return reason;
	s->sender = source ? 0 : forwarded_for(skb);
	s->later = true;
	if (!is_policed(s))
		return 0;
	/* An endpoint's address is believed where the endpoint is. */
	if (source && !is_at(source, skb->ingress_ifindex, seen))
		return DROP_MARTIAN;
	s->packet.key.ifindex = source ? source->ifindex : 0;
	/* Counted with its first packet, where that can be told. */
	s->forgotten = begins_tcp(&s->packet);
	return judge_and_track(skb, s);
}

/* What the host forwards to a child. Returns 0, the counter of a drop, or OF_HOST. */
static __always_inline int forwarded(struct __sk_buff *skb, __u32 to, __u32 seen, bool of_host)
{
	struct scratch *s = scratch_get();
	struct endpoint *endpoint;
	struct interface *interface;
	struct packet *packet;
	int parsed;

	interface = bpf_map_lookup_elem(&interfaces, &to);
	if (!interface)
		return DROP_POLICY_INGRESS;
	if (!s)
		return DROP_INVALID;
	packet = &s->packet;
	parsed = parse(skb, s);
	if (of_host && is_of_host(skb, parsed, packet))
		return OF_HOST;
	if (parsed != PARSED_IP)
		return parsed != PARSED_ARP && may_not_be_sent_all(interface) ? DROP_POLICY_INGRESS
									      : 0;
	endpoint = bpf_map_lookup_elem(&endpoints, &packet->key.destination);
	if ((!endpoint || endpoint->ifindex != to) && may_not_be_sent_all(interface))
		return DROP_POLICY_INGRESS;
	if (packet->fragment) {
		packet->key.ifindex = skb->ingress_ifindex;
		fragment_find(packet);
		fragment_keep(packet);
	}
	return judge_forwarded(skb, seen);
}

/*
 * Whether somebody in a container, or nobody, says that this is the host's, or who else than
 * a child has sent it. What a device has brought in is the host's to send on.
 */
static __always_inline bool is_forged(struct __sk_buff *skb, const struct child *parent,
				      const struct ethhdr *frame)
{
	__u32 netns = netns_of(skb);

	if (netns == netns_inode)
		return false;
	if (!netns)
		return !skb->ingress_ifindex && !is_unsigned(skb, frame);
	return same_mac((struct mac *)frame->h_source, &parent->host_mac) ||
	       children_of(skb->ifindex, netns);
}

/* What no child sends. Returns a TC action. */
static __always_inline int from_host(struct __sk_buff *skb, const struct ethhdr *frame, bool judged)
{
	struct child *parent = children_of(skb->ifindex, 0), *to;
	const struct mac *receiver = (const struct mac *)frame->h_dest;
	__u16 seen = skb->tc_index;
	int reason, action;
	bool host;

	/* Of a VLAN device: that is another link. */
	if (!parent || skb->vlan_present)
		return TC_ACT_UNSPEC;
	if (!judged && is_forged(skb, parent, frame))
		return drop(skb, FROM_CONTAINER, DROP_SOURCE_MAC);
	/* Children that somebody else has made are stations like any. */
	host = same_mac((struct mac *)frame->h_source, &parent->host_mac);
	if (is_group(receiver)) {
		/* What it forwards to a group cannot be judged by address. */
		if (host && parent->flags & CHILD_HOST && (!skb->ingress_ifindex || !policy_now()))
			put_copy_back(skb, MARK_CHILDREN);
		return TC_ACT_UNSPEC;
	}
	to = child_at(skb->ifindex, receiver);
	if (!to || (host ? !judged && !(to->flags & CHILD_HOST) : !(to->flags & CHILD_BRIDGED)))
		return TC_ACT_UNSPEC;
	reason = 0;
	/* A socket of the host's. */
	if (host && !judged && !skb->ingress_ifindex && skb->sk)
		reason = OF_HOST;
	/* What another hook has translated was judged there. */
	else if (!judged && (!host || !was_decided(skb, seen)))
		reason = forwarded(skb, to->ifindex, seen, host);
	if (reason > 0)
		return drop(skb, TO_CONTAINER, reason);
	action = meet_limit_of(skb, to, TO_CONTAINER);
	if (action != TC_ACT_UNSPEC)
		return action;
	count(skb, TO_CONTAINER, reason ? COUNTER_HOST : COUNTER_PASSED);
	return put_back(skb);
}

/*
 * Whether the frame, with the MAC of a child that has it from its parent, is of one of the VLAN
 * devices that are the host's and have it from there, too.
 */
static __always_inline bool is_of_hosts_vlan(const struct __sk_buff *skb, const struct child *child,
					     __u32 netns, const struct ethhdr *frame)
{
	return child->flags & CHILD_PASSTHRU && skb->vlan_present &&
	       (netns == netns_inode || (!netns && is_unsigned(skb, frame)));
}

SEC("tc")
int to_parent(struct __sk_buff *skb)
{
	bool judged = was_judged(skb);
	struct child *child;
	struct ethhdr frame;
	__u32 netns;

	if (judged)
		skb->mark = 0;
	if (bpf_skb_load_bytes(skb, 0, &frame, sizeof(frame)))
		return TC_ACT_UNSPEC;
	child = judged ? NULL : child_at(skb->ifindex, (struct mac *)frame.h_source);
	/* There is no host at one in a container. */
	if (!child && is_inside(skb->ifindex))
		return drop(skb, FROM_CONTAINER, DROP_SOURCE_MAC);
	if (!child)
		return from_host(skb, &frame, judged);
	netns = netns_of(skb);
	if (is_of_hosts_vlan(skb, child, netns, &frame))
		return TC_ACT_UNSPEC;
	if (netns != child->netns && (netns || !is_unsigned(skb, &frame)))
		return drop(skb, FROM_CONTAINER, DROP_SOURCE_MAC);
	if (child->flags & CHILD_SENDS_LIMITED) {
		int action = meet_limit(skb, child->ifindex, LIMIT_EGRESS, FROM_CONTAINER);

		if (action != TC_ACT_UNSPEC)
			return action;
	}
	return from_child(skb, child->ifindex);
}

char _license[] SEC("license") = "Dual BSD/GPL";
