// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * From a container: tcx ingress of the host's side of its veth pair. To another
 * container on the node, to the world through an uplink, or to the host.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/apply.h"
#include "lib/bridge.h"
#include "lib/fragment.h"
#include "lib/frame.h"
#include "lib/link_local.h"
#include "lib/masquerade.h"
#include "lib/port_answer.h"
#include "lib/route.h"
#include "lib/track.h"

/*
 * The stack answers, or has the packet: nothing is remembered. Where there is a policy, it is
 * asked should the stack send the packet on after all.
 */
static __always_inline int leave(struct __sk_buff *skb)
{
	return policy_now() ? pass(skb, FROM_CONTAINER, COUNTER_PASSED)
			    : apply_pass(skb, FROM_CONTAINER, COUNTER_PASSED);
}

/* No TC actions: the packet is for another station of the bridge, or its sender is as one. */
#define BRIDGE -3
#define STATION -4

/*
 * For the host itself, or for a port of it that leads to an endpoint. Returns a TC
 * action or APPLY.
 */
static __always_inline int decide_host(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	int result;

	if (!s)
		return drop(skb, FROM_CONTAINER, DROP_INVALID);
	if (s->packet.icmp_kind == ICMP_KIND_ERROR)
		result = answer_error(skb);
	else
		result = answer(skb);
	if (result > 0)
		result = port_dialled(skb);
	if (result == PORT_OF_ITSELF)
		result = port_hairpin(skb);
	if (result < 0)
		return refuse(skb, FROM_CONTAINER, -result);
	if (result)
		s->decision.action = ACTION_PASS;
	return APPLY;
}

/*
 * Whether the other end has asked for scratch->packet just now, at the sender's own address.
 * What says so in flows may have been evicted since, and the answer must not be
 * masqueraded: it would be as lost as all that follow.
 */
__noinline bool is_asked_for(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct flow *question;

	if (!s || !skb || s->packet.icmp_kind || opens(&s->packet))
		return false;
	back_key(&s->other, &s->packet.key);
	question = bpf_map_lookup_elem(&flows, &s->other);
	return question &&
	       (question->action == ACTION_DELIVER || question->action == ACTION_BRIDGE) &&
	       !is_left_to_bridge(question) &&
	       !(question->flags & (FLOW_TRANSLATE_DESTINATION | FLOW_REPLY)) &&
	       (__s32)(now() - question->decided) <= (__s32)(2 * DECISION_AGE);
}

/* What is known goes on to count; it is written seldom, since other CPUs read it. */
static __always_inline void keep(struct flow *before)
{
	if ((__s32)(now() - before->decided) >= (__s32)DECISION_AGE)
		before->decided = now();
}

/*
 * The stack sends it on, by what it knows then. What is kept is that the endpoint began,
 * for to_container to know the answer.
 */
static __always_inline int pass_on(struct __sk_buff *skb, struct scratch *s, struct flow *before)
{
	if (!(s->decision.flags & FLOW_REPLY) && s->packet.icmp_kind != ICMP_KIND_ERROR) {
		if (before)
			keep(before);
		else
			remember(skb);
	}
	return pass(skb, FROM_CONTAINER, COUNTER_PASSED);
}

/* What goes straight is answered straight, whatever went by the stack before. */
static __always_inline void goes_straight(struct scratch *s)
{
	struct translation *t;

	if (s->decision.flags & FLOW_REPLY ||
	    (s->packet.key.protocol == IPPROTO_TCP && !begins_tcp(&s->packet)))
		return;
	back_key(&s->wanted, &s->packet.key);
	s->wanted.kind = KEY_TRACKED;
	t = tracked(s);
	if (!t || !(t->flags & TRANSLATION_STACK))
		return;
	t->flags &= ~TRANSLATION_STACK;
	s->wanted.kind = KEY_PACKET;
	flow_forget(&s->wanted);
}

/*
 * Whether the way to the endpoint is that to its link, as the routes have it: to a macvlan child
 * by its parent, and to who is on the link of an uplink, since it answers there, and not here.
 */
static __always_inline bool is_reached_by_link(const struct endpoint *endpoint)
{
	__u32 ifindex = endpoint->ifindex;

	return is_child(ifindex) || is_on_uplink(bpf_map_lookup_elem(&interfaces, &ifindex));
}

/*
 * Who is on an uplink is answered by that, and must not be taken for somebody whom the receiver of
 * scratch->packet has dialled: it would be answered by the host.
 */
__noinline int note_uplink(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct endpoint *receiver;

	if (!s || !skb || s->packet.icmp_kind || s->decision.flags & FLOW_REPLY ||
	    !uplink_at(s->bridge))
		return 0;
	receiver = bpf_map_lookup_elem(&endpoints, &s->packet.key.destination);
	if (receiver && receiver->flags & ENDPOINT_MASQUERADE)
		expect_reply(s, receiver);
	return 0;
}

/* Decides for scratch->packet, whose sender is who it says. Returns a TC action or APPLY. */
static __always_inline int decide(struct __sk_buff *skb, bool has_ports)
{
	struct scratch *s = scratch_get();
	struct endpoint *endpoint, *self;
	int error, way, reason;
	struct flow *before;
	bool masked, others;

	if (!s)
		return drop(skb, FROM_CONTAINER, DROP_INVALID);
	if (has_ports) {
		int verdict = decide_answer(skb);

		if (verdict)
			return verdict;
	}
	endpoint = bpf_map_lookup_elem(&endpoints, &s->packet.key.destination);
	if (endpoint && is_reached_by_link(endpoint))
		endpoint = NULL;
	before = before_this(skb);
	if (before_says_reply(before, &s->packet, endpoint ? endpoint->id : s->decision.endpoint)) {
		s->decision.flags = before->flags & (FLOW_REPLY | FLOW_STACK);
		if (s->decision.flags & FLOW_STACK) {
			s->decision.action = ACTION_PASS;
			s->later = true;
			reason = judge_and_track(skb, s);
			return reason ? refuse(skb, FROM_CONTAINER, reason) : APPLY;
		}
	}
	if (endpoint)
		deliver(&s->decision, endpoint);
	others = !endpoint && others_translate(&s->packet.key.destination);
	way = endpoint || others ? WAY_OTHER : route(skb);
	if (way == WAY_STACK)
		return decide_host(skb);
	/* No decision, as after an eviction: the one of the other direction knows. */
	if (!(s->decision.flags & FLOW_REPLY) && is_asked_for(skb))
		s->decision.flags |= FLOW_REPLY;
	self = bpf_map_lookup_elem(&endpoints, &s->packet.key.source);
	if (!self)
		return drop(skb, FROM_CONTAINER, DROP_UNKNOWN_SENDER);
	/* Who asks from a bridge may be hidden by the time that the backend is known. */
	s->later = others && !s->bridge;
	reason = judge(skb);
	masked = !endpoint && !others && masquerades(self, &s->packet) &&
		 !(s->decision.flags & FLOW_REPLY);
	/* The translation of what is masked knows who began. */
	if (!reason && s->tracks && !(masked && way == WAY_UPLINK))
		reason = -track(skb, 0);
	if (reason)
		return refuse(skb, FROM_CONTAINER, reason);
	if (endpoint) {
		if (masquerade && s->bridge)
			note_uplink(skb);
		return APPLY;
	}
	if (others) {
		skb->tc_index = SEEN_LED;
		return pass_on(skb, s, before);
	}
	/* An uplink may be too new for the agent, or the agent gone: nothing leaves unhidden. */
	if (way == WAY_GATEWAY && masked)
		return drop(skb, FROM_CONTAINER, DROP_NO_UPLINK);
	if (way != WAY_UPLINK)
		return pass_on(skb, s, before);
	s->decision.action = ACTION_FORWARD;
	if (!masked) {
		goes_straight(s);
		return APPLY;
	}
	/* The stack answers or fragments it, and must know what it quotes. */
	if (s->packet.icmp_kind == ICMP_KIND_ERROR && s->packet.length > s->decision.mtu)
		return apply_pass(skb, FROM_CONTAINER, COUNTER_TOO_BIG);
	if (s->packet.icmp_kind == ICMP_KIND_ERROR)
		error = masquerade_error(skb);
	else if (begins_with_reply(&s->packet))
		return pass(skb, FROM_CONTAINER, COUNTER_PASSED);
	else
		error = masquerade_source(skb, self->id, 0);
	/* Others may know it, if we do not; what they leave as it is, to_uplink drops. */
	if (error == -DROP_NO_TRANSLATION && s->packet.icmp_kind != ICMP_KIND_ERROR)
		return pass(skb, FROM_CONTAINER, COUNTER_PASSED);
	if (error)
		return drop(skb, FROM_CONTAINER, -error);
	return APPLY;
}

/* Its own function, since Linux 5.10 bounds the stack of all calls together. */
__noinline int apply_decision(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();

	if (!s)
		return drop(skb, FROM_CONTAINER, DROP_INVALID);
	return apply(skb, &s->packet, &s->decision, FROM_CONTAINER);
}

/*
 * An answer for the stack, which led the question here and translated it, maybe, or has to say that
 * it does not fit; sent to where the question seemed to come from, it would pass the stack by.
 */
static __always_inline int to_gateway(struct __sk_buff *skb, struct scratch *s)
{
	struct endpoint *self = bpf_map_lookup_elem(&endpoints, &s->packet.key.source);

	if (!self)
		return drop(skb, FROM_CONTAINER, DROP_UNKNOWN_SENDER);
	if (bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_dest), &self->host_mac,
				sizeof(self->host_mac), 0) ||
	    bpf_skb_change_type(skb, PACKET_HOST))
		return drop(skb, FROM_CONTAINER, DROP_REWRITE);
	return pass(skb, FROM_CONTAINER, COUNTER_PASSED);
}

/* Whether the stack has nothing to say of the packet on its way. */
static __always_inline bool fits(const struct packet *packet, const struct flow *flow)
{
	return packet->ttl > 1 && !is_too_big(packet, flow, FROM_CONTAINER);
}

/*
 * Checks who sent scratch->packet, and decides. Returns a TC action, BRIDGE or STATION. Of a
 * station nothing is ever in the cache, so that all of it comes here.
 */
__noinline int slow_path(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct scratch *s = scratch_get();
	struct ethhdr *ethernet = data;
	struct interface *interface;
	struct endpoint *self;
	bool bridged;
	int verdict;

	if (!s)
		return drop(skb, FROM_CONTAINER, DROP_INVALID);
	interface = bpf_map_lookup_elem(&interfaces, &s->packet.key.ifindex);
	if (interface && interface->flags & INTERFACE_LAYER2)
		return STATION;
	count(skb, FROM_CONTAINER, COUNTER_DECIDED);
	if ((void *)(ethernet + 1) > data_end)
		return drop(skb, FROM_CONTAINER, DROP_INVALID);
	s->epoch = epoch_of(0);
	s->sender = 0;
	if (!interface || interface->role != INTERFACE_ENDPOINT)
		return drop(skb, FROM_CONTAINER, DROP_UNKNOWN_SENDER);
	if (!same_mac((struct mac *)ethernet->h_source, &interface->mac))
		return drop(skb, FROM_CONTAINER, DROP_SOURCE_MAC);
	self = bpf_map_lookup_elem(&endpoints, &s->packet.key.source);
	if (!self || self->ifindex != s->packet.key.ifindex) {
		if (!is_link_local_talk(&s->packet))
			return drop(skb, FROM_CONTAINER, DROP_SOURCE_ADDRESS);
		verdict = check_neighbour(skb, &s->packet, false);
		if (!verdict && interface->bridge && s->packet.ipv6 &&
		    s->packet.icmp_kind != ICMP_KIND_LINK && may_not_send_all(interface))
			verdict = DROP_POLICY_EGRESS;
		return verdict ? drop(skb, FROM_CONTAINER, verdict) : leave(skb);
	}
	if (s->packet.icmp_kind == ICMP_KIND_LINK) {
		verdict = check_neighbour(skb, &s->packet, false);
		/* Without a mark: should the stack forward it, policy is asked there. */
		return verdict ? drop(skb, FROM_CONTAINER, verdict)
			       : pass(skb, FROM_CONTAINER, COUNTER_PASSED);
	}
	if (is_martian(&s->packet.key.destination))
		return drop(skb, FROM_CONTAINER, DROP_MARTIAN);
	bridged = interface->bridge && skb->pkt_type == PACKET_OTHERHOST;
	if (!bridged && (skb->pkt_type != PACKET_HOST || is_multicast(&s->packet.key.destination) ||
			 is_ipv6_link_local(&s->packet.key.destination) || s->packet.ttl <= 1)) {
		/* Others on the bridge get it, too, and it speaks to nobody that policy knows. */
		if (interface->bridge &&
		    (skb->pkt_type != PACKET_HOST || is_multicast(&s->packet.key.destination)) &&
		    (!keeps_link(&s->packet) || answers_dhcp(&s->packet)) &&
		    may_not_send_all(interface))
			return drop(skb, FROM_CONTAINER, DROP_POLICY_EGRESS);
		return leave(skb);
	}

	if (s->packet.fragment)
		fragment_keep(&s->packet);
	__builtin_memset(&s->decision, 0, sizeof(s->decision));
	s->decision.sender = interface->mac;
	s->decision.endpoint = interface->endpoint;
	s->bridge = interface->bridge;
	if (bridged) {
		verdict = self->flags & ENDPOINT_PORTS ? decide_answer(skb) : 0;
		if (!verdict)
			return BRIDGE;
	} else {
		verdict = decide(skb, self->flags & ENDPOINT_PORTS);
	}
	if (verdict != APPLY)
		return verdict;
	remember(skb);
	return bridged && !fits(&s->packet, &s->decision) ? to_gateway(skb, s)
							  : apply_decision(skb);
}

/*
 * Decides for scratch->packet, which is for another station of the sender's bridge: there
 * policy counts, and nothing is routed or masqueraded. Returns a TC action.
 */
__noinline int bridge_path(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct scratch *s = scratch_get();
	struct ethhdr *ethernet = data;
	struct interface *own, *port;
	struct endpoint *endpoint;
	struct flow *before;
	bool answers, led;
	__u32 ifindex;
	int reason;

	if (!s || (void *)(ethernet + 1) > data_end)
		return drop(skb, FROM_CONTAINER, DROP_INVALID);
	__builtin_memcpy(&s->decision.receiver, ethernet->h_dest, sizeof(s->decision.receiver));
	/* Whom it reaches straight. */
	endpoint = bpf_map_lookup_elem(&endpoints, &s->packet.key.destination);
	if (endpoint) {
		ifindex = endpoint->ifindex;
		port = bpf_map_lookup_elem(&interfaces, &ifindex);
		own = bpf_map_lookup_elem(&interfaces, &s->packet.key.ifindex);
		if (is_child(ifindex) || !are_joined(own, port) ||
		    !same_mac(&s->decision.receiver, &endpoint->mac))
			endpoint = NULL;
	}
	if (endpoint)
		deliver(&s->decision, endpoint);
	before = before_this(skb);
	answers = before_says_reply(before, &s->packet, s->decision.endpoint);
	led = answers && before->flags & FLOW_STACK;
	if (answers || is_asked_for(skb))
		s->decision.flags |= FLOW_REPLY;
	s->later = led;
	reason = judge_and_track(skb, s);
	if (reason)
		return refuse(skb, FROM_CONTAINER, reason);
	if (led) {
		keep(before);
		return to_gateway(skb, s);
	}
	s->decision.action = ACTION_BRIDGE;
	remember(skb);
	return cross(skb, &s->packet, &s->decision);
}

/*
 * Checks scratch->packet, whose sender is a station of the bridge (is_station). Returns a TC
 * action. To the node, which masquerades for its endpoints and translates their answers, it does
 * not speak as another of them, nor as the node itself.
 */
__noinline int station_path(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	int verdict;

	if (!s)
		return drop(skb, FROM_CONTAINER, DROP_INVALID);
	verdict = check_other(skb, s->packet.key.ifindex);
	if (!verdict && is_martian(&s->packet.key.destination))
		verdict = DROP_MARTIAN;
	if (!verdict)
		verdict = check_neighbour(skb, &s->packet, true);
	/* The node hears groups and broadcast, too. */
	if (!verdict && skb->pkt_type != PACKET_OTHERHOST &&
	    is_others(&s->packet.key.source, s->packet.key.ifindex))
		verdict = DROP_SOURCE_ADDRESS;
	return verdict ? drop(skb, FROM_CONTAINER, verdict)
		       : pass(skb, FROM_CONTAINER, COUNTER_PASSED);
}

static __always_inline int ask_slow_path(struct __sk_buff *skb, struct scratch *s, bool forgotten)
{
	int verdict;

	s->forgotten = forgotten;
	verdict = slow_path(skb);
	/* Called from here, since the kernel bounds the depth of calls to 8. */
	if (verdict == STATION)
		return station_path(skb);
	return verdict == BRIDGE ? bridge_path(skb) : verdict;
}

/*
 * A packet for the host, or one that had no way. If somebody gave it one, by a device
 * that may be no uplink, and the agent does not know or is not there, the stack would
 * send it out with the endpoint's address.
 */
static __always_inline int pass_again(struct __sk_buff *skb, struct scratch *s, struct flow *flow)
{
	s->forgotten = false;
	if (has_way(skb))
		return ask_slow_path(skb, s, false);
	account(skb, flow);
	return pass(skb, FROM_CONTAINER, COUNTER_PASSED);
}

/*
 * Both directions of a connection between endpoints go when it closes: with the
 * first packet that comes after a FIN of its own and one of the other end. Otherwise the cache
 * would be full of what nobody asks for again, and every connection would pay for an eviction.
 */
static __noinline int follow_close(struct packet *packet, struct flow *flow)
{
	struct flow_key back = {};
	struct flow *other;

	if (packet->tcp_flags & TCP_SYN) {
		flow->flags &= ~FLOW_CLOSING;
		return 0;
	}
	if ((flow->action != ACTION_DELIVER && flow->action != ACTION_BRIDGE) ||
	    packet->fragment == FRAGMENT_LATER)
		return 0;
	back.source = packet->key.destination;
	back.destination = packet->key.source;
	back.source_port = packet->key.destination_port;
	back.destination_port = packet->key.source_port;
	back.ifindex = flow->out_ifindex;
	back.protocol = IPPROTO_TCP;
	other = bpf_map_lookup_elem(&flows, &back);
	if (packet->tcp_flags & TCP_RST) {
		/* It may be forged: who began stays known. */
		flow->action = ACTION_NONE;
		if (other)
			other->action = ACTION_NONE;
		return 0;
	}
	if (packet->tcp_flags & TCP_FIN) {
		flow->flags |= FLOW_CLOSING;
		return 0;
	}
	if (other && !(other->flags & FLOW_CLOSING))
		return 0;
	bpf_map_delete_elem(&flows, &packet->key);
	bpf_map_delete_elem(&flows, &back);
	return 0;
}

/*
 * Marks what a bridge gives to the stack, where a neighbour's packets look the same, as those of
 * an endpoint that is a station are to. Where the bridge is an uplink, too, its program is told
 * to believe the mark.
 */
static __noinline int mark_own(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct interface *interface = bpf_map_lookup_elem(&interfaces, &ifindex);

	if (!interface || !interface->bridge || is_station(skb, interface))
		return 0;
	if (!skb->tc_index)
		skb->tc_index = SEEN_OWN;
	if (skb->pkt_type == PACKET_HOST && is_on_uplink(interface))
		skb->mark |= MARK_OWN;
	return 0;
}

/*
 * As check_arp. A station that policy forbids to send sends no ARP either: it might answer for
 * others.
 */
static __noinline int check_arp_of(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct interface *interface = bpf_map_lookup_elem(&interfaces, &ifindex);
	int verdict = check_arp(skb, ifindex);

	return !verdict && interface && is_station(skb, interface) ? check_other(skb, ifindex)
								   : verdict;
}

/* Returns a TC action. */
static __always_inline int take(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct packet *packet;
	void *data, *data_end;
	struct ethhdr *ethernet;
	struct flow *flow;
	int verdict;

	if (!s)
		return drop(skb, FROM_CONTAINER, DROP_INVALID);
	packet = &s->packet;
	if (skb->tc_index) {
		skb->tc_index = SEEN_NOT;
		/* Of what the pacer held back; of what a container has just sent it is 0. */
		skb->mark = 0;
	}
	if (skb->vlan_present) {
		verdict = check_tag(skb);
		if (verdict)
			return drop(skb, FROM_CONTAINER, verdict);
	}
	switch (parse(skb, s)) {
	case PARSED_IP:
		break;
	case PARSED_ARP:
		verdict = check_arp_of(skb);
		return verdict ? drop(skb, FROM_CONTAINER, verdict)
			       : pass(skb, FROM_CONTAINER, COUNTER_PASSED);
	case PARSED_OTHER:
		verdict = check_other(skb, skb->ifindex);
		return verdict ? drop(skb, FROM_CONTAINER, verdict)
			       : pass(skb, FROM_CONTAINER, COUNTER_PASSED);
	default:
		return drop(skb, FROM_CONTAINER, DROP_INVALID);
	}
	packet->key.ifindex = skb->ifindex;
	if (skb->vlan_present)
		return station_path(skb);
	if (packet->fragment)
		fragment_find(packet);
	if (packet->unkeyed)
		return ask_slow_path(skb, s, asks_for_echo(packet));

	flow = bpf_map_lookup_elem(&flows, &packet->key);
	data = (void *)(long)skb->data;
	data_end = (void *)(long)skb->data_end;
	ethernet = data;
	if (!flow || !current(flow, packet) || (void *)(ethernet + 1) > data_end ||
	    !suits(skb, flow, ethernet) ||
	    !same_mac((struct mac *)ethernet->h_source, &flow->sender))
		return ask_slow_path(skb, s, !flow);
	if (packet->fragment)
		fragment_keep(packet);
	if (flow->action == ACTION_PASS && !(flow->flags & FLOW_REPLY))
		return pass_again(skb, s, flow);
	/* The stack is to have it, and not the station that it is sent to. */
	if (flow->of_port && skb->pkt_type != PACKET_HOST && !fits(packet, flow))
		return ask_slow_path(skb, s, false);
	account(skb, flow);
	verdict = flow->action == ACTION_BRIDGE ? cross(skb, packet, flow)
						: apply(skb, packet, flow, FROM_CONTAINER);
	if (flow->flags & (FLOW_TRANSLATE_SOURCE | FLOW_TRANSLATE_DESTINATION | FLOW_TRACKED)) {
		if (is_closing(packet, flow))
			follow_translation(packet, flow);
	} else if (packet->key.protocol == IPPROTO_TCP && flow->action != ACTION_DENY &&
		   (packet->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) ||
		    flow->flags & FLOW_CLOSING)) {
		follow_close(packet, flow);
	}
	return verdict;
}

SEC("tc")
int from_container(struct __sk_buff *skb)
{
	int verdict = take(skb);

	if (verdict == TC_ACT_UNSPEC)
		mark_own(skb);
	return verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
