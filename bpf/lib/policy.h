/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What policy says of a flow: one end, the client, began it, and the other, the server, is
 * to be reached. Both ends are asked at once, whichever of them are endpoints of the node.
 * Only maps are read; who began, and what is remembered of that, is track.h's.
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "route.h"
#include "scratch.h"

#define IDENTITY_BITS 160 /* generation and a whole address */

static __always_inline __u32 policy_now(void)
{
	__u32 zero = 0, *generation = bpf_map_lookup_elem(&policy_generation, &zero);

	return generation ? *generation : 0;
}

static __always_inline struct subject *subject_of(__u32 generation, __u32 endpoint)
{
	struct subject_key key = { .generation = generation, .endpoint = endpoint };

	return bpf_map_lookup_elem(&subjects, &key);
}

/* Whether others may not send to the endpoint what they like. */
static __always_inline bool is_guarded_subject(const struct subject *subject)
{
	return subject->ingress || subject->flags & (SUBJECT_NO_OTHERS | SUBJECT_NO_OWN);
}

/* Whether policy has a say in what the endpoint sends or is sent. */
static __always_inline bool is_restricted(const struct subject *subject)
{
	return subject->egress || is_guarded_subject(subject);
}

/* Of an address, which may be an endpoint's of the node. */
static __noinline __u32 identity_of(__u32 generation, const struct subject *subject,
				    const struct address *address)
{
	struct identity_key key = { .length = IDENTITY_BITS, .generation = generation };
	__u32 *identity;

	if (subject && !(subject->flags & SUBJECT_BY_ADDRESS))
		return subject->identity;
	__builtin_memcpy(key.address, address, sizeof(key.address));
	identity = bpf_map_lookup_elem(&identities, &key);
	return identity ? *identity : 0;
}

static __always_inline void count_new_flow(__u64 *number)
{
	if (number)
		__sync_fetch_and_add(number, 1);
}

static __noinline int count_denied(__u32 at)
{
	count_new_flow(bpf_map_lookup_elem(&denied, &at));
	return 0;
}

enum permission {
	PERMISSION_NONE,
	PERMISSION_GIVEN,
	PERMISSION_OPEN, /* the next chunk may give it */
};

/* What one chunk of the set says of scratch->question. The rule is noted in the question. */
__noinline int chunk_permits(struct __sk_buff *skb, __u32 set, __u32 identity, __u32 chunk)
{
	struct policy_key key = { .set = set, .identity = identity, .chunk = chunk };
	struct policy *policy = bpf_map_lookup_elem(&policies, &key);
	struct scratch *s = scratch_get();
	__u16 port;

	if (!policy || !s || !skb)
		return PERMISSION_NONE;
	port = bpf_ntohs(s->question.server_port);
	for (int i = 0; i < POLICY_RANGES; i++) {
		const struct policy_range *range = &policy->ranges[i];

		if (!range->rule ||
		    (range->protocol && (range->protocol != s->question.protocol ||
					 port < range->first || port > range->last)))
			continue;
		s->question.rule = range->rule;
		return PERMISSION_GIVEN;
	}
	return policy->more ? PERMISSION_OPEN : PERMISSION_NONE;
}

/*
 * Whether the set lets through what scratch->question asks for, with the other end being
 * of the identity.
 */
__noinline int set_permits(struct __sk_buff *skb, __u32 set, __u32 identity)
{
	int permission = PERMISSION_OPEN;

#pragma clang loop unroll(disable)
	for (int chunk = 0; chunk < POLICY_CHUNKS && permission == PERMISSION_OPEN; chunk++)
		permission = chunk_permits(skb, set, identity, chunk);
	return permission == PERMISSION_GIVEN;
}

/* As set_permits, with the rules for everybody besides; counts for whom it is asked. */
__noinline int side_permits(struct __sk_buff *skb, __u32 set, __u32 identity, __u32 at)
{
	struct scratch *s = scratch_get();
	int permits;

	if (!s)
		return false;
	permits = identity && set_permits(skb, set, identity);
	if (!permits)
		permits = set_permits(skb, set, 0);
	if (!s->question.is_new)
		return permits;
	if (permits)
		count_new_flow(bpf_map_lookup_elem(&hits, &s->question.rule));
	else
		count_denied(at);
	return permits;
}

/*
 * Answers scratch->question. Returns 0, or the counter of a drop. An endpoint without a
 * subject is one whose policy is not known here: nobody reaches it, and it reaches nobody.
 */
__noinline int police(struct __sk_buff *skb)
{
	struct endpoint *client_endpoint, *server_endpoint;
	struct subject *client = NULL, *server = NULL;
	__u32 client_id, server_id, generation, identity;
	struct scratch *s = scratch_get();

	if (!s || !skb)
		return DROP_INVALID;
	s->tracks = false;
	generation = policy_now();
	if (!generation)
		return 0;
	client_endpoint = bpf_map_lookup_elem(&endpoints, &s->question.client);
	server_endpoint = bpf_map_lookup_elem(&endpoints, &s->question.server);
	client_id = client_endpoint ? client_endpoint->id : s->question.client_id;
	server_id = server_endpoint ? server_endpoint->id : 0;
	if (client_id == server_id)
		return 0; /* nobody's, or an endpoint's with itself */
	if (client_id) {
		client = subject_of(generation, client_id);
		if (!client)
			return DROP_POLICY_EGRESS;
		s->tracks = is_restricted(client);
	}
	if (server_id) {
		server = subject_of(generation, server_id);
		if (!server)
			return DROP_POLICY_INGRESS;
		if (is_restricted(server))
			s->tracks = true;
	}
	if (!s->tracks)
		return 0;
	/* What others translate has another destination by the time that counts. */
	if (client && client->egress &&
	    (server || !s->question.later || !others_translate(&s->question.server))) {
		identity = identity_of(generation, server, &s->question.server);
		if (!side_permits(skb, client->egress, identity, DENIED_AT(client_id, 1)))
			return DROP_POLICY_EGRESS;
	}
	if (server && server->ingress) {
		identity = identity_of(generation, client, &s->question.client);
		if (!side_permits(skb, server->ingress, identity, DENIED_AT(server_id, 0)))
			return DROP_POLICY_INGRESS;
	}
	if (client && server &&
	    server->flags &
		    (client->network == server->network ? SUBJECT_NO_OWN : SUBJECT_NO_OTHERS)) {
		if (s->question.is_new)
			count_denied(DENIED_AT(server_id, 0));
		return DROP_NETWORK_ISOLATION;
	}
	return 0;
}

/* Whether policy has a say in what the endpoint sends or is sent, if it is one. */
static __always_inline bool is_subject(__u32 generation, __u32 endpoint)
{
	struct subject *subject;

	if (!endpoint)
		return false;
	subject = subject_of(generation, endpoint);
	return !subject || is_restricted(subject);
}

/* Whether policy has a say in scratch->packet; saves to ask who began. */
static __always_inline bool is_policed(const struct scratch *s)
{
	struct endpoint *source, *destination;
	__u32 generation = policy_now();

	if (!generation)
		return false;
	source = bpf_map_lookup_elem(&endpoints, &s->packet.key.source);
	if (is_subject(generation, source ? source->id : s->sender))
		return true;
	destination = bpf_map_lookup_elem(&endpoints, &s->packet.key.destination);
	return destination && is_subject(generation, destination->id);
}

/* Asks for a flow that has not been asked for before, of scratch->packet. */
static __always_inline void ask(struct scratch *s, const struct address *client,
				const struct address *server, __be16 server_port)
{
	s->question.client = *client;
	s->question.server = *server;
	s->question.client_id = 0;
	s->question.server_port = server_port;
	s->question.protocol = s->packet.key.protocol;
	s->question.is_new = false;
	s->question.later = false;
}
