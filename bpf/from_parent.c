// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Into a device that macvlan children ride on: its ingress. What the wire brings for a child
 * is judged here. What to_parent has put back was judged there.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/apply.h"
#include "lib/bridge.h"
#include "lib/child.h"
#include "lib/fragment.h"
#include "lib/frame.h"
#include "lib/track.h"
#include "lib/translation.h"

/*
 * Hides a frame for a group from the children, to whom the kernel would give it by its MAC.
 * The host's stack goes by the type.
 */
static __always_inline int for_host_alone(struct __sk_buff *skb)
{
	struct child *parent = children_of(skb->ifindex, 0);
	__u32 type = skb->pkt_type;
	struct mac own;

	if (!parent)
		return TC_ACT_UNSPEC;
	own = parent->host_mac;
	if (bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_dest), &own, sizeof(own), 0) ||
	    bpf_skb_change_type(skb, type))
		return drop(skb, TO_CONTAINER, DROP_REWRITE);
	return TC_ACT_UNSPEC;
}

/* What to_parent has put back. Returns a TC action. */
static __always_inline int came_back(struct __sk_buff *skb, enum mark mark)
{
	/* An endpoint's address is believed by this, should the stack send it on. */
	skb->tc_index = SEEN_OWN;
	if (mark == MARK_HOST)
		return for_host_alone(skb);
	if (mark == MARK_CHILDREN && bpf_skb_change_type(skb, PACKET_OTHERHOST))
		return drop(skb, TO_CONTAINER, DROP_REWRITE);
	return TC_ACT_UNSPEC;
}

/* The child that gets a frame for one station; NULL: none. */
static __always_inline struct child *receiver_of(struct __sk_buff *skb, const struct mac *mac)
{
	struct child *to = child_at(skb->ifindex, mac), *parent;

	if (to)
		return to;
	parent = children_of(skb->ifindex, 0);
	if (!parent || !(parent->flags & CHILD_PASSTHRU))
		return NULL;
	/* It has the parent's own, and whatever else comes in. */
	return child_at(skb->ifindex, &parent->host_mac);
}

/* Whether the frame is as one without a tag: VLAN 0 is none, and tells a priority only. */
static __always_inline bool is_untagged(const struct __sk_buff *skb)
{
	return !skb->vlan_present || !(skb->vlan_tci & 0xfff);
}

/*
 * Whether who sends this from the wire says that it is somebody whom the wire does not bring:
 * the host or a child of this link, unless a switch has sent it back, as in the mode vepa it
 * does, or a container that has no link with the wire. Children of another parent may come by a
 * router.
 */
static __always_inline bool is_of_node(struct __sk_buff *skb, const struct scratch *s,
				       const struct child *to)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct ethhdr *ethernet = data;
	struct endpoint *endpoint;
	struct child *child;

	if ((void *)(ethernet + 1) > data_end)
		return true;
	endpoint = bpf_map_lookup_elem(&endpoints, &s->packet.key.source);
	child = child_at(skb->ifindex, (struct mac *)ethernet->h_source);
	if (child)
		return !(child->flags & CHILD_REFLECTED) ||
		       (endpoint && endpoint->ifindex != child->ifindex);
	if (same_mac((struct mac *)ethernet->h_source, &to->host_mac))
		return true;
	if (!endpoint)
		return false;
	return !is_child(endpoint->ifindex) || is_at(endpoint, skb->ifindex, SEEN_OWN);
}

/* Decides for scratch->packet, which the wire brings for a child. Returns a TC action. */
__noinline int slow_path(struct __sk_buff *skb, __u32 forgotten)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct scratch *s = scratch_get();
	struct ethhdr *ethernet = data;
	struct endpoint *endpoint, *source;
	struct child *to;
	int reason;

	count(skb, TO_CONTAINER, COUNTER_DECIDED);
	if (!s || (void *)(ethernet + 1) > data_end)
		return drop(skb, TO_CONTAINER, DROP_INVALID);
	to = receiver_of(skb, (struct mac *)ethernet->h_dest);
	if (!to)
		return TC_ACT_UNSPEC;
	s->forgotten = forgotten;
	s->epoch = epoch_of(0);
	s->sender = s->later = 0;
	endpoint = bpf_map_lookup_elem(&endpoints, &s->packet.key.destination);
	if (!endpoint || endpoint->ifindex != to->ifindex) {
		if (!keeps_link(&s->packet) && !answers_dhcp(&s->packet) && is_kept(to))
			return drop(skb, TO_CONTAINER, DROP_POLICY_INGRESS);
		return pass(skb, TO_CONTAINER, COUNTER_PASSED);
	}
	if (s->packet.icmp_kind == ICMP_KIND_LINK)
		return pass(skb, TO_CONTAINER, COUNTER_PASSED);
	if (is_martian(&s->packet.key.source) || is_multicast(&s->packet.key.source) ||
	    is_of_node(skb, s, to))
		return drop(skb, TO_CONTAINER, DROP_MARTIAN);
	if (s->packet.fragment)
		fragment_keep(&s->packet);
	source = bpf_map_lookup_elem(&endpoints, &s->packet.key.source);
	if (source)
		s->packet.key.ifindex = source->ifindex;
	__builtin_memset(&s->decision, 0, sizeof(s->decision));
	s->decision.endpoint = endpoint->id;
	lead(&s->decision, endpoint->ifindex, (struct mac *)ethernet->h_dest);
	if (is_answer(s))
		s->decision.flags |= FLOW_REPLY;
	reason = judge_and_track(skb, s);
	if (reason)
		return source ? drop(skb, TO_CONTAINER, reason) : refuse(skb, TO_CONTAINER, reason);
	/* What comes back from a switch has the key of what was sent to it. */
	if (!source)
		remember(skb);
	return pass(skb, TO_CONTAINER, COUNTER_PASSED);
}

/* What the wire brings for a child. Returns a TC action. */
static __always_inline int to_child(struct __sk_buff *skb, const struct child *to)
{
	struct scratch *s = scratch_get();
	struct packet *packet;
	void *data, *data_end;
	struct ethhdr *ethernet;
	struct flow *flow;
	int parsed;

	if (!s)
		return drop(skb, TO_CONTAINER, DROP_INVALID);
	packet = &s->packet;
	parsed = is_untagged(skb) ? parse(skb, s) : PARSED_OTHER;
	if (parsed == PARSED_ARP)
		return pass(skb, TO_CONTAINER, COUNTER_PASSED);
	if (parsed != PARSED_IP) {
		if (is_kept(to))
			return drop(skb, TO_CONTAINER,
				    parsed == PARSED_OTHER ? DROP_POLICY_INGRESS : DROP_INVALID);
		return pass(skb, TO_CONTAINER, COUNTER_PASSED);
	}
	if (packet->fragment)
		fragment_find(packet);
	if (packet->unkeyed)
		return slow_path(skb, asks_for_echo(packet));
	flow = bpf_map_lookup_elem(&flows, &packet->key);
	data = (void *)(long)skb->data;
	data_end = (void *)(long)skb->data_end;
	ethernet = data;
	if (!flow || !current(flow, packet) || (void *)(ethernet + 1) > data_end ||
	    !leads_to(flow, (struct mac *)ethernet->h_dest))
		return slow_path(skb, !flow);
	if (packet->fragment)
		fragment_keep(packet);
	account(skb, flow);
	if (flow->action == ACTION_DENY)
		return drop(skb, TO_CONTAINER, flow->reason);
	if (flow->flags & FLOW_TRACKED && is_closing(packet, flow))
		follow_translation(packet, flow);
	return pass(skb, TO_CONTAINER, COUNTER_PASSED);
}

/* What the wire brings for a group, children among it. Returns a TC action. */
static __always_inline int to_group(struct __sk_buff *skb)
{
	struct child *parent;
	struct scratch *s;
	int parsed;

	/*
	 * The kernel gives it to all children, whoever is not to be sent it. What is of a VLAN
	 * is for its device; where there is none, no stack takes it.
	 */
	if (!policy_now() || !is_untagged(skb))
		return TC_ACT_UNSPEC;
	s = scratch_get();
	if (!s)
		return drop(skb, TO_CONTAINER, DROP_INVALID);
	parsed = parse(skb, s);
	if (parsed == PARSED_ARP || (parsed == PARSED_IP && keeps_link(&s->packet)))
		return TC_ACT_UNSPEC;
	parent = children_of(skb->ifindex, 0);
	if (parent && parent->flags & CHILD_PASSTHRU)
		return drop(skb, TO_CONTAINER, DROP_POLICY_INGRESS);
	return for_host_alone(skb);
}

SEC("tc")
int from_parent(struct __sk_buff *skb)
{
	bool inside = is_inside(skb->ifindex);
	struct mac receiver;
	struct child *to;
	int verdict;

	/* The stack's own copy of what it has sent to a group: it has no Ethernet header. */
	if (skb->pkt_type == PACKET_LOOPBACK)
		return TC_ACT_UNSPEC;
	if (is_marked(skb)) {
		__u32 mark = skb->mark & MARK_MASK;

		skb->mark = 0;
		/* To one in a container nothing is put back, and there a process can set it. */
		if (mark != MARK_SENT && !inside)
			return came_back(skb, mark);
	}
	/* An uplink's program has cleared it, and may have set it since. */
	if (skb->tc_index && !uplink_at(skb->ifindex))
		skb->tc_index = SEEN_NOT;
	if (bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_dest), &receiver, sizeof(receiver)))
		return TC_ACT_UNSPEC;
	if (inside && !children_of(skb->ifindex, 0))
		return drop(skb, TO_CONTAINER, DROP_UNKNOWN_SENDER);
	if (is_group(&receiver))
		return to_group(skb);
	to = receiver_of(skb, &receiver);
	if (!to)
		return TC_ACT_UNSPEC;
	verdict = to_child(skb, to);
	/* What is tagged is a VLAN device's, which may be the host's, and no child's. */
	return verdict == TC_ACT_UNSPEC && is_untagged(skb) ? meet_limit_of(skb, to, TO_CONTAINER)
							    : verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
