/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Ports of the host that lead to endpoints. Who dials one, from the world or from an
 * endpoint, keeps its address, and the connection is a translation that began at the
 * other end: the same entries, timeouts and bounds. Only an endpoint that dials itself
 * must see another's address than its own, and gets the host's, with a port as for
 * masquerade.
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "answer.h"
#include "masquerade.h"
#include "route.h"

static __always_inline bool is_host(const struct address *address)
{
	return bpf_map_lookup_elem(&host_addresses, address);
}

/* Whether the key, of a connection to a mapped port, is that of an endpoint that was. */
static __always_inline bool client_has_gone(const struct flow_key *key)
{
	struct endpoint *client;

	if (!key->ifindex)
		return false;
	client = bpf_map_lookup_elem(&endpoints, &key->source);
	return !client || client->ifindex != key->ifindex;
}

#define REMAP_TRIES 8
#define REMAP_FIRST 1024

/*
 * The client of scratch->reply may lead to scratch->to already, by another address or port
 * of the host, and an answer could not be told from the other's. Then the endpoint sees
 * another port of the client's. Where that would not be right, port_point decides.
 */
__noinline int port_remap(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct translation *t;
	__be16 port;

	if (!s || !skb)
		return 0;
	sent_key(&s->answer, &s->reply, &s->to);
	t = translation_find(&s->answer, &s->other);
	if (!t || same_key(&s->other, &s->reply) || t->state == TRANSLATION_CLOSED ||
	    (!(t->flags & TRANSLATION_PORT) && s->other.protocol != IPPROTO_TCP) ||
	    client_has_gone(&s->other))
		return 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < REMAP_TRIES; i++) {
		port = bpf_htons(REMAP_FIRST + bpf_get_prandom_u32() % (65536 - REMAP_FIRST));
		s->answer.destination_port = port;
		if (bpf_map_lookup_elem(&translations, &s->answer))
			continue;
		s->to.flags |= TRANSLATION_REMAPPED;
		s->to.mapped = port;
		s->pointer.flags |= TRANSLATION_REMAPPED;
		s->pointer.mapped = s->reply.source_port;
		break;
	}
	return 0;
}

/*
 * Has what the endpoint will answer lead to the translation just entered, which is in
 * scratch->reply. Returns 0, or minus a counter.
 */
__noinline int port_point(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct translation *t;
	bool weaker;

	if (!s)
		return -DROP_TRANSLATIONS_FULL;
	sent_key(&s->answer, &s->reply, &s->to);
	s->pointer.address = s->reply.destination;
	s->pointer.port = s->reply.destination_port;
	if (!bpf_map_update_elem(&translations, &s->answer, &s->pointer, BPF_NOEXIST))
		return 0;
	t = translation_find(&s->answer, &s->other);
	if (t && !same_key(&s->other, &s->reply)) {
		/*
		 * The client's port leads to this port of the endpoint by another of the
		 * host, and an answer could not be told from the other's. What the endpoint
		 * began itself gives way, so that its peers may call it.
		 */
		weaker = expendable(t, s->other.protocol, NEED_CLOSED) ||
			 client_has_gone(&s->other) ||
			 (!(t->flags & TRANSLATION_PORT) && s->other.protocol != IPPROTO_TCP);
		s->victim = weaker ? s->other : s->reply;
		translation_remove(skb);
		if (!weaker)
			return -DROP_PORT_CLASH;
	}
	if (!bpf_map_update_elem(&translations, &s->answer, &s->pointer, BPF_ANY))
		return 0;
	s->victim = s->reply;
	translation_remove(skb);
	return -DROP_TRANSLATIONS_FULL;
}

/* Returned where an endpoint dials a port that leads to itself. */
#define PORT_OF_ITSELF 2

/*
 * A packet for a mapped port, from a client that has dialled it just now. Completes
 * the decision; returns 0, 1 when the port is not mapped, PORT_OF_ITSELF, or minus a
 * counter.
 */
__noinline int port_dialled(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct endpoint *endpoint;
	struct port *port;
	__u32 epoch;
	int error;

	if (!s || s->packet.icmp_kind)
		return 1;
	if (s->packet.key.protocol != IPPROTO_TCP && s->packet.key.protocol != IPPROTO_UDP)
		return 1;
	if (s->packet.tcp_flags & TCP_RST)
		return 1;
	port = port_find(&s->packet.key);
	if (!port || !is_host(&s->packet.key.destination))
		return 1;
	s->port = *port;
	/* Before the endpoint, which may go meanwhile. */
	epoch = epoch_of(s->port.endpoint);
	endpoint = bpf_map_lookup_elem(&endpoints, &s->port.address);
	if (!endpoint || endpoint->id != s->port.endpoint)
		return 1;
	s->reply = s->packet.key;
	if (host_uses(skb, s->reply.protocol, true))
		return 1;
	if (endpoint->ifindex == s->packet.key.ifindex)
		return PORT_OF_ITSELF;
	s->decision.endpoint = s->port.endpoint;
	ask(s, &s->packet.key.source, &s->port.address, s->port.port);
	s->question.is_new = s->forgotten;
	error = police(skb);
	if (error)
		return -error;
	__builtin_memset(&s->to, 0, sizeof(s->to));
	s->to.address = s->port.address;
	s->to.port = s->port.port;
	s->to.endpoint = endpoint->id;
	s->to.epoch = epoch;
	s->to.ifindex = endpoint->ifindex;
	s->to.seen = now();
	s->to.flags = TRANSLATION_PORT;
	if (s->packet.key.ifindex)
		s->to.flags |= TRANSLATION_LOCAL;
	s->pointer = s->to;
	s->pointer.seen = 0;
	s->pointer.epoch = 0;
	s->pointer.ifindex = s->packet.key.ifindex ?: skb->ifindex;
	if (bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_source), &s->pointer.neighbour,
			       sizeof(s->pointer.neighbour)))
		return 1;
	port_remap(skb);
	s->wanted = s->packet.key;
	error = translation_enter(skb, s->port.endpoint);
	if (!error)
		error = port_point(skb);
	if (error < 0)
		return error;
	/* The client may have reached the endpoint at its own address, and been answered as it is.
	 */
	flow_forget(&s->answer);
	return answer(skb);
}

/*
 * The sender of scratch->packet dials itself, by the port in scratch->port. Completes
 * the decision; returns 0, or minus a counter.
 */
__noinline int port_hairpin(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct endpoint *self;
	struct translation *t;
	int error;

	if (!s)
		return -DROP_TRANSLATIONS_FULL;
	self = bpf_map_lookup_elem(&endpoints, &s->packet.key.source);
	if (!self)
		return -DROP_UNKNOWN_SENDER;
	deliver(&s->decision, self);
	t = translation_find(&s->packet.key, &s->reply);
	if (!t) {
		s->decision.address = s->packet.key.destination;
		error = translation_take(skb, self->id, TRANSLATION_HAIRPIN);
		if (!error)
			error = translation_point(skb);
		if (error)
			return error;
		t = bpf_map_lookup_elem(&translations, &s->reply);
	}
	s->decision.flags = FLOW_HAIRPIN | FLOW_TRANSLATE_SOURCE;
	s->decision.address = s->reply.destination;
	s->decision.source_port = s->reply.destination_port;
	s->decision.port = s->reply.source_port;
	if (t)
		translation_follow(s, t, &s->reply, false);
	return 0;
}

/*
 * What an endpoint sends, as an answer of a mapped port or an error about what came to
 * one. Sets where the client is, and completes the rest of the decision but for its
 * way. Returns 0, or 1 when it is none.
 */
__noinline int port_answered(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct translation *t;

	if (!s)
		return 1;
	s->answer = s->packet.key;
	if (s->packet.icmp_kind == ICMP_KIND_ERROR) {
		if (parse_quote(skb))
			return 1;
		answer_key(&s->answer, &s->quote, s->packet.key.ifindex);
		if (!same(&s->answer.source, &s->packet.key.source))
			return 1;
	}
	t = bpf_map_lookup_elem(&translations, &s->answer);
	if (!t || !(t->flags & TRANSLATION_PORT))
		return 1;
	s->where = t->ifindex;
	s->neighbour = t->neighbour;
	s->local = t->flags & TRANSLATION_LOCAL;
	t = translation_find(&s->answer, &s->reply);
	if (!t || client_has_gone(&s->reply))
		return 1;
	s->decision.flags = FLOW_TRANSLATE_SOURCE;
	if (t->flags & TRANSLATION_REMAPPED) {
		s->decision.flags |= FLOW_OTHER_PORT;
		s->decision.source_port = s->reply.source_port;
	}
	s->decision.address = s->reply.destination;
	s->decision.port = s->reply.destination_port;
	s->decision.checksum_diff = address_diff(&s->packet.key.source, &s->decision.address);
	translation_follow(s, t, &s->reply, false);
	return 0;
}

/* Translates the quote of an error that port_answered has found. Returns 0, or minus a counter. */
static __always_inline int port_quote(struct __sk_buff *skb, struct scratch *s)
{
	if (s->packet.icmp_kind != ICMP_KIND_ERROR)
		return 0;
	s->to.address = s->decision.address;
	s->to.port = s->decision.port;
	s->decision.port = 0;
	if (translate_quote(skb, false))
		return -DROP_REWRITE;
	if (!(s->decision.flags & FLOW_OTHER_PORT))
		return 0;
	s->decision.flags &= ~FLOW_OTHER_PORT;
	s->to.address = s->reply.source;
	s->to.port = s->reply.source_port;
	return translate_quote(skb, true) ? -DROP_REWRITE : 0;
}

/*
 * The way of an answer to its client: by the uplink that the client came by. The routing
 * tables say who is next there; where they know another way only, whoever handed over the
 * client's packet is. Returns 0, or minus a counter: as it is it must not go.
 */
__noinline int port_way(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct interface *uplink;
	struct endpoint *client;

	if (!s)
		return -DROP_NO_UPLINK;
	if (s->local) {
		client = bpf_map_lookup_elem(&endpoints, &s->packet.key.destination);
		if (!client)
			return -DROP_NO_TRANSLATION;
		deliver(&s->decision, client);
		return 0;
	}
	s->decision.action = ACTION_FORWARD;
	if (route_back(skb, s->where) == WAY_UPLINK)
		return 0;
	uplink = uplink_at(s->where);
	if (!uplink)
		return route(skb) == WAY_UPLINK ? 0 : -DROP_NO_UPLINK;
	s->decision.action = ACTION_RETURN;
	s->decision.out_ifindex = s->where;
	s->decision.mtu = uplink->mtu;
	s->decision.receiver = s->neighbour;
	s->decision.gateway = uplink->mac;
	return 0;
}

/* Whether scratch->packet is for a port of an endpoint that only loopback addresses lead to. */
static __always_inline bool is_guarded(const struct scratch *s)
{
	struct port_key at = {};

	at.address = s->packet.key.destination;
	at.port = s->packet.key.destination_port;
	at.protocol = s->packet.key.protocol;
	at.flags = PORT_LOOPBACK_ONLY;
	return bpf_map_lookup_elem(&ports, &at);
}

/*
 * Whether scratch->packet comes from outside to a port of the endpoint that was mapped
 * to loopback addresses only. Who is in the same cluster may have it: an address that
 * nobody is masqueraded towards.
 */
__noinline int is_shut(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();

	if (!s || !skb)
		return true;
	return is_guarded(s) && !excluded(&s->packet.key.source);
}
