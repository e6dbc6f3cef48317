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

/* Whether it is the same at all addresses of the endpoint, if that is one of the node. */
static __always_inline bool has_identity(const struct subject *subject)
{
	return subject && !(subject->flags & SUBJECT_BY_ADDRESS);
}

/* How many keys of a node are not above bits. There are no branches to guess wrong. */
static __always_inline __u32 keys_until(const struct identity_node *node, __u32 bits)
{
	__u64 above = (__u64)bits + 1;
	__u32 n = 0;

#pragma unroll
	for (int i = 0; i < IDENTITY_KEYS; i++)
		n += (node->keys[i] - above) >> 63;
	return n;
}

/* The identity that prefixes give one end of scratch->question. */
__noinline __u32 prefix_identity(struct __sk_buff *skb, __u32 generation, __u32 server)
{
	void *tree = bpf_map_lookup_elem(&identities, &generation);
	__u32 at = IDENTITY_ROOT_IPV6, word = 0;
	struct scratch *s = scratch_get();

	if (!tree || !s || !skb)
		return 0;
	/*
	 * Of both families and ends in one place, or the verifier walks four ways; on the stack a
	 * place that varies can be read since Linux 5.12 only.
	 */
	s->prefixed = server ? s->question.server : s->question.client;
	if (is_ipv4(&s->prefixed)) {
		at = IDENTITY_ROOT_IPV4;
		words(&s->prefixed)[0] = words(&s->prefixed)[3];
	}
#pragma clang loop unroll(disable)
	for (int step = 0; step < IDENTITY_STEPS; step++) {
		struct identity_node *node = bpf_map_lookup_elem(tree, &at);
		__u32 next;

		if (!node)
			return 0;
		next = keys_until(node, bpf_ntohl(words(&s->prefixed)[word & 3]));
		next = node->next[(next - 1) % IDENTITY_KEYS];
		if (!(next & IDENTITY_NODE))
			return next;
		if (next & IDENTITY_WORD)
			word++;
		at = next & ~(IDENTITY_NODE | IDENTITY_WORD);
	}
	return 0;
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

/* What a range says of scratch->question. It counts the flow that it lets through. */
static __always_inline int range_permits(const struct scratch *s, struct policy_range *range,
					 __u16 port)
{
	if (!range->rule)
		return PERMISSION_NONE;
	if (range->protocol &&
	    (range->protocol != s->question.protocol || port < range->first || port > range->last))
		return range->more ? PERMISSION_OPEN : PERMISSION_NONE;
	if (s->question.is_new)
		count_new_flow(&range->flows);
	return PERMISSION_GIVEN;
}

/* What one chunk of the set says of scratch->question. */
__noinline int chunk_permits(struct __sk_buff *skb, __u32 generation, __u32 set, __u32 identity,
			     __u32 chunk)
{
	struct policy_key key = { .generation = generation, .set = set, .chunk = chunk };
	int permission = PERMISSION_NONE;
	struct scratch *s = scratch_get();
	struct policy *policy;
	__u16 port;

	if (!s || !skb)
		return PERMISSION_NONE;
	key.identity = chunk ? identity : identity / POLICY_RANGES;
	policy = bpf_map_lookup_elem(&policies, &key);
	if (!policy)
		return PERMISSION_NONE;
	port = bpf_ntohs(s->question.server_port);
	if (!chunk)
		return range_permits(s, &policy->ranges[identity % POLICY_RANGES], port);
	for (int i = 0; i < POLICY_RANGES && permission != PERMISSION_GIVEN; i++)
		permission = range_permits(s, &policy->ranges[i], port);
	return permission;
}

/*
 * Whether the set lets through what scratch->question asks for, with the other end being
 * of the identity.
 */
__noinline int set_permits(struct __sk_buff *skb, __u32 generation, __u32 set, __u32 identity)
{
	int permission = PERMISSION_OPEN;

#pragma clang loop unroll(disable)
	for (int chunk = 0; chunk < POLICY_CHUNKS && permission == PERMISSION_OPEN; chunk++)
		permission = chunk_permits(skb, generation, set, identity, chunk);
	return permission == PERMISSION_GIVEN;
}

/* As set_permits, with the rules for everybody besides; counts for whom it is refused. */
__noinline int side_permits(struct __sk_buff *skb, __u32 generation, __u32 set, __u32 identity,
			    __u32 at)
{
	struct scratch *s = scratch_get();

	if (!s)
		return false;
	if (identity && set_permits(skb, generation, set, identity))
		return true;
	if (set_permits(skb, generation, set, 0))
		return true;
	if (s->question.is_new)
		count_denied(at);
	return false;
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
		identity = has_identity(server) ? server->identity
						: prefix_identity(skb, generation, true);
		if (!side_permits(skb, generation, client->egress, identity,
				  DENIED_AT(client_id, 1)))
			return DROP_POLICY_EGRESS;
	}
	if (server && server->ingress) {
		identity = has_identity(client) ? client->identity
						: prefix_identity(skb, generation, false);
		if (!side_permits(skb, generation, server->ingress, identity,
				  DENIED_AT(server_id, 0)))
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
