// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * To the world, through the host's stack: tcx egress of an uplink. What the
 * datapath sent here itself is marked and passes. What the stack forwarded for
 * an endpoint (fragments it made, packets others translated) is masqueraded
 * here, so that no endpoint's address leaves unhidden. The host's own packets
 * cost one failed lookup, and are never changed.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/apply.h"
#include "lib/fragment.h"
#include "lib/frame.h"
#include "lib/masquerade.h"
#include "lib/port.h"
#include "lib/track.h"

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
	if (s->to.flags & TRANSLATION_REMAPPED) {
		s->to.address = s->quote.key.source;
		s->to.port = s->to.mapped;
		if (translate_quote(skb, true))
			return drop(skb, TO_UPLINK, DROP_REWRITE);
	}
	skb->tc_index = SEEN_TRANSLATED;
	count(skb, TO_UPLINK, COUNTER_FORWARDED);
	return TC_ACT_UNSPEC;
}

/* Translates scratch->packet as was decided, unless error is minus a counter. */
__noinline int finish(struct __sk_buff *skb, int error)
{
	struct scratch *s = scratch_get();

	if (!s)
		return drop(skb, TO_UPLINK, DROP_INVALID);
	if (error)
		return drop(skb, TO_UPLINK, -error);
	if (translate(skb, &s->packet, SOURCE, &s->decision.address, s->decision.port,
		      s->decision.checksum_diff) ||
	    (s->decision.flags & FLOW_OTHER_PORT &&
	     change_port(skb, &s->packet, DESTINATION, s->decision.source_port)))
		return drop(skb, TO_UPLINK, DROP_REWRITE);
	skb->tc_index = SEEN_TRANSLATED;
	count(skb, TO_UPLINK, COUNTER_FORWARDED);
	return TC_ACT_UNSPEC;
}

/*
 * Whether scratch->packet, an answer of a mapped port, is to leave by another uplink than its
 * client came by: it was too big for that one, and the routes of the stack lead by this.
 */
static __always_inline bool is_astray(const struct __sk_buff *skb, const struct scratch *s)
{
	return !s->local && s->where != skb->ifindex && uplink_at(s->where);
}

/*
 * What leaves as the stack has made it of scratch->packet, which others may have translated:
 * its answer must not reach the endpoint past them. Returns 0, or minus a counter.
 */
static __always_inline int track_stack(struct __sk_buff *skb, struct scratch *s, bool led)
{
	bool answers = s->decision.flags & FLOW_REPLY;
	int error;

	if (s->packet.icmp_kind == ICMP_KIND_ERROR || s->packet.icmp_kind == ICMP_KIND_LINK ||
	    lacks_ports(&s->packet) || (answers && !s->tracks))
		return 0;
	/* Met in its middle, it may have been begun by the other end. */
	if (!led && !s->tracks && s->packet.key.protocol == IPPROTO_TCP &&
	    !begins_tcp(&s->packet)) {
		back_key(&s->wanted, &s->packet.key);
		s->wanted.kind = KEY_TRACKED;
		if (!tracked(s))
			return 0;
	}
	error = track(skb, answers ? 0 : TRANSLATION_STACK);
	/* Without room only an answer that others would translate is lost. */
	return s->tracks ? error : 0;
}

/* Whether scratch->packet is the answer of a mapped port. */
static __always_inline bool answers_port(const struct scratch *s)
{
	struct translation *t = bpf_map_lookup_elem(&translations, &s->packet.key);

	return t && t->flags & TRANSLATION_PORT;
}

/*
 * Whether the endpoint's own frame leaves, and not the stack's: the device is, or was until just
 * now, an uplink, and a port of the endpoint's bridge.
 */
static __always_inline bool is_bridged(const struct __sk_buff *skb, const struct endpoint *endpoint)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	__u32 ifindex = endpoint->ifindex;
	struct ethhdr *ethernet = data;
	struct interface *interface;

	if ((void *)(ethernet + 1) > data_end ||
	    !same_mac((struct mac *)ethernet->h_source, &endpoint->mac))
		return false;
	interface = bpf_map_lookup_elem(&interfaces, &ifindex);
	return interface && interface->bridge;
}

/* Masquerades scratch->packet. */
__noinline int slow_path(struct __sk_buff *skb, __u32 seen)
{
	struct scratch *s = scratch_get();
	struct endpoint *endpoint;
	struct flow *before;
	int error, reason;
	bool led, forged;

	if (!s)
		return drop(skb, TO_UPLINK, DROP_INVALID);
	endpoint = bpf_map_lookup_elem(&endpoints, &s->packet.key.source);
	if (!endpoint || is_bridged(skb, endpoint))
		return TC_ACT_UNSPEC;
	s->sender = s->later = s->tracks = 0;
	/*
	 * An endpoint's address is believed where the endpoint is: without a policy, too, for what
	 * would leave with an address of the host's and a mapped port.
	 */
	forged = skb->ingress_ifindex && !is_at(endpoint, skb->ingress_ifindex, seen);
	if (forged &&
	    (answers_port(s) ||
	     (endpoint->flags & ENDPOINT_PORTS && s->packet.icmp_kind == ICMP_KIND_ERROR) ||
	     is_policed(s)))
		return drop(skb, TO_UPLINK, DROP_MARTIAN);
	if (endpoint->flags & ENDPOINT_PORTS && !forged) {
		__builtin_memset(&s->decision, 0, sizeof(s->decision));
		if (!port_answered(skb)) {
			ask(s, &s->packet.key.destination, &s->packet.key.source,
			    s->answer.source_port);
			s->question.protocol = s->answer.protocol;
			reason = police(skb);
			if (!reason && is_astray(skb, s))
				reason = DROP_NO_UPLINK;
			return finish(skb, reason ? -reason : port_quote(skb, s));
		}
	}
	/* What others have led here answers nobody, whatever has come from there. */
	led = seen == SEEN_LED && !others_translate(&s->packet.key.destination);
	before = before_this(skb);
	__builtin_memset(&s->decision, 0, sizeof(s->decision));
	s->decision.flags =
		!led && before_says_reply(before, &s->packet, endpoint->id) ? FLOW_REPLY : 0;
	/* What others have translated has its destination only now. */
	reason = seen == SEEN_DECIDED ? 0 : judge(skb);
	if (reason)
		return drop(skb, TO_UPLINK, reason);
	if (!masquerades(endpoint, &s->packet) || s->decision.flags & FLOW_REPLY) {
		error = forged || seen == SEEN_DECIDED ? 0 : track_stack(skb, s, led);
		return error ? drop(skb, TO_UPLINK, -error) : TC_ACT_UNSPEC;
	}
	__builtin_memset(&s->decision, 0, sizeof(s->decision));
	s->decision.out_ifindex = skb->ifindex;
	if (s->packet.icmp_kind == ICMP_KIND_ERROR)
		error = masquerade_error(skb);
	else if (begins_with_reply(&s->packet))
		/* Nobody asked, or all have forgotten: it must not leave as it is. */
		error = -DROP_NO_TRANSLATION;
	else
		error = masquerade_source(skb, endpoint->id,
					  seen == SEEN_DECIDED ? 0 : TRANSLATION_STACK);
	return finish(skb, error);
}

/*
 * A socket of the host was bound into the range after all, or the host's ping has
 * the identifier of an endpoint's: the host goes first, and the endpoint's flow
 * gets another port with its next packet.
 */
__noinline int host_claims(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();

	/* What was forwarded is not the host's own; a mark may have been lost on the way. */
	if (!s || skb->ingress_ifindex)
		return TC_ACT_UNSPEC;
	reply_key(&s->victim, &s->packet.key, &s->packet.key.source, s->packet.key.source_port);
	translation_remove(skb);
	return TC_ACT_UNSPEC;
}

static __always_inline bool in_range(__be16 port)
{
	return (__u16)(bpf_ntohs(port) - port_first) < port_count;
}

/*
 * What the stack forwards for an endpoint, whose address it has replaced. Returns a TC
 * action.
 */
__noinline int judge_hidden(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	int reason;

	if (!s)
		return drop(skb, TO_UPLINK, DROP_INVALID);
	__builtin_memset(&s->decision, 0, sizeof(s->decision));
	s->later = 0;
	reason = judge(skb);
	return reason ? drop(skb, TO_UPLINK, reason) : TC_ACT_UNSPEC;
}

SEC("tc")
int to_uplink(struct __sk_buff *skb)
{
	__u16 seen = skb->tc_index;
	struct endpoint *endpoint;
	struct packet *packet;
	__u32 sender = 0;
	struct scratch *s;

	/* The mark stays: a device below this one may be an uplink too. */
	if (seen == SEEN_TRANSLATED || skb->vlan_present)
		return TC_ACT_UNSPEC;
	s = scratch_get();
	if (!s || parse(skb, s) != PARSED_IP)
		return TC_ACT_UNSPEC;
	packet = &s->packet;
	endpoint = bpf_map_lookup_elem(&endpoints, &packet->key.source);
	/* What a macvlan child sends is the business of to_parent, also where the node is its
	 * router. */
	if (endpoint && is_child(endpoint->ifindex) &&
	    (is_inside_child(endpoint) || is_at(endpoint, skb->ifindex, SEEN_OWN)))
		return TC_ACT_UNSPEC;
	if (endpoint) {
		packet->key.ifindex = endpoint->ifindex;
		if (packet->fragment) {
			fragment_find(packet);
			fragment_keep(packet);
		}
	} else {
		if (skb->ingress_ifindex && seen != SEEN_DECIDED && policy_now())
			sender = forwarded_for(skb);
		if (!sender && packet->icmp_kind != ICMP_KIND_ERROR &&
		    !in_range(packet->key.source_port))
			return TC_ACT_UNSPEC;
	}
	s->sender = sender;
	s->forgotten = false;
	if (endpoint)
		return slow_path(skb, seen);
	if (sender)
		return judge_hidden(skb);
	return packet->icmp_kind == ICMP_KIND_ERROR ? host_error(skb) : host_claims(skb);
}

char _license[] SEC("license") = "Dual BSD/GPL";
