/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Source ports for masquerade: taking one, finding it again, and giving it up.
 *
 * Inserting the reply entry with BPF_NOEXIST is the allocation. A translation
 * dies by its timestamp or with its endpoint's epoch; a dead one is removed by
 * whoever wants its port, or by the clock hand that every allocation moves on,
 * so nothing waits for the agent.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "clock.h"
#include "maps.h"
#include "parse.h"
#include "scratch.h"
#include "settings.h"

#define EEXIST 17
#define PORT_TRIES 32
#define FULL_TRIES 4
#define SLOT_TRIES 32
#define HAND_TRIES 4
#define SLOTS_FREED 8

/*
 * Timeouts in seconds. TCP: RFC 5382 REQ-5, 2 h 4 min established and 4 min
 * transitory; opening as Linux keeps SYN_SENT. A closed one keeps its port as
 * long as nobody needs it, in case the RST was forged. UDP: RFC 4787 REQ-5, 5 min once
 * both ends have spoken, at a mapped port once the client has spoken after an answer; 30 s
 * before as Linux. ICMP: RFC 5508 REQ-1, 60 s.
 */
static __always_inline __u32 translation_timeout(__u8 protocol, __u8 state)
{
	if (protocol == IPPROTO_TCP)
		return state == TRANSLATION_OPENING	  ? SECONDS(120)
		       : state == TRANSLATION_ESTABLISHED ? SECONDS(7440)
							  : SECONDS(240);
	if (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6)
		return SECONDS(60);
	return state == TRANSLATION_OPENING ? SECONDS(30) : SECONDS(300);
}

static __always_inline bool translation_alive(const struct translation *t, __u8 protocol)
{
	/* A clock read just before another CPU's may be behind seen. */
	__s32 idle = now() - t->seen;

	return t->epoch == epoch_of(t->endpoint) &&
	       idle <= (__s32)translation_timeout(protocol, t->state);
}

/*
 * Whether its endpoint has gone although its epoch says otherwise: it was taken in that
 * very moment. Whoever wants its key asks.
 */
static __always_inline bool is_orphan(const struct translation *t)
{
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &t->address);

	return !endpoint || endpoint->ifindex != t->ifindex;
}

/* The reply's key of a translation, from the key as the endpoint sends. */
static __always_inline void reply_key(struct flow_key *reply, const struct flow_key *sent,
				      const struct address *address, __be16 port)
{
	__builtin_memset(reply, 0, sizeof(*reply));
	reply->source = sent->destination;
	reply->destination = *address;
	reply->source_port = sent->destination_port;
	reply->destination_port = port;
	reply->protocol = sent->protocol;
}

/* The key as the endpoint sends, from the reply's key and entry. */
static __always_inline void sent_key(struct flow_key *sent, const struct flow_key *reply,
				     const struct translation *t)
{
	__builtin_memset(sent, 0, sizeof(*sent));
	sent->source = t->address;
	sent->source_port = t->port;
	if (t->flags & TRANSLATION_HAIRPIN) {
		sent->destination = reply->destination;
		sent->destination_port = t->mapped;
	} else {
		sent->destination = reply->source;
		sent->destination_port =
			t->flags & TRANSLATION_REMAPPED ? t->mapped : reply->source_port;
	}
	sent->ifindex = t->ifindex;
	sent->protocol = reply->protocol;
}

static __always_inline void held_add(__u32 endpoint, __s32 n)
{
	__u32 *sum = bpf_map_lookup_elem(&held, &endpoint);

	if (sum)
		__sync_fetch_and_add(sum, n);
}

/* Most are not there: to look first takes no lock. */
static __always_inline void flow_forget(const struct flow_key *key)
{
	if (bpf_map_lookup_elem(&flows, key))
		bpf_map_delete_elem(&flows, key);
}

/* Removes the translation with key scratch->victim: both entries and both decisions. */
__noinline int translation_remove(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct translation *t, *pointer;
	__u32 endpoint;

	if (!s || !skb)
		return 0;
	t = bpf_map_lookup_elem(&translations, &s->victim);
	if (!t)
		return 0;
	sent_key(&s->sent, &s->victim, t);
	endpoint = t->endpoint;
	/* Two may try; who succeeds counts. */
	if (bpf_map_delete_elem(&translations, &s->victim))
		return 0;
	held_add(endpoint, -1);
	if (s->victim.kind == KEY_TRACKED) {
		flow_forget(&s->sent);
		s->sent = s->victim;
		s->sent.kind = KEY_PACKET;
		flow_forget(&s->sent);
		return 1;
	}
	flow_forget(&s->victim);
	pointer = bpf_map_lookup_elem(&translations, &s->sent);
	if (pointer && pointer->port == s->victim.destination_port &&
	    same(&pointer->address, &s->victim.destination)) {
		bpf_map_delete_elem(&translations, &s->sent);
		flow_forget(&s->sent);
	}
	return 1;
}

/*
 * What may be removed to make room, the more the longer room is looked for: dead
 * translations; then those of connections that both ends closed a while ago, or just
 * now, when the last segments may have to be sent again; then those closed by an RST,
 * which may have been forged.
 */
enum need {
	NEED_DEAD,
	NEED_RESTED,
	NEED_FINISHED,
	NEED_CLOSED,
};

#define REST SECONDS(2)
/* Of what goes on by the fast path, seen is as old as a decision gets. */
#define SILENCE (DECISION_AGE + REST)

/* First is for the first attempt. */
static __always_inline enum need need_at(int attempt, enum need first)
{
	return attempt < 1 ? first : attempt < 8 ? NEED_FINISHED : NEED_CLOSED;
}

static __always_inline bool expendable(const struct translation *t, __u8 protocol, enum need need)
{
	const __u8 fins = TRANSLATION_FIN_OUT | TRANSLATION_FIN_IN;
	bool finished = (t->flags & fins) == fins;

	/*
	 * What the world begins, anybody may begin, with as many ports as there are. It is begun
	 * again by the client's next packet; but for TCP, also what has rested for a while is.
	 */
	if (need == NEED_CLOSED && t->flags & TRANSLATION_PORT &&
	    !(t->kind == KEY_TRACKED && t->ifindex) &&
	    (t->state == TRANSLATION_OPENING ||
	     (protocol != IPPROTO_TCP && (__s32)(now() - t->seen) > (__s32)SILENCE)))
		return true;
	if (t->state == TRANSLATION_CLOSED &&
	    (need == NEED_CLOSED || (need == NEED_FINISHED && finished) ||
	     (need == NEED_RESTED && finished && (__s32)(now() - t->seen) > (__s32)REST)))
		return true;
	return !translation_alive(t, protocol);
}

/*
 * Frees slot index when its translation is gone or expendable, and puts
 * scratch->reply there (protocol 0: nothing). Returns 1 when the slot was
 * claimed, or freed; 2 when it was free; 0 when it is in use, and -1 when there
 * is no such slot. A key that was taken again has another slot by then, and what
 * its first one holds is left over.
 */
__noinline int slot_claim(struct __sk_buff *skb, __u32 index, __u32 need)
{
	struct allocation *slot = bpf_map_lookup_elem(&allocations, &index);
	struct scratch *s = scratch_get();
	struct translation *t;
	int claimed = 0;

	if (!s || !slot || !skb)
		return -1;
	bpf_spin_lock(&slot->lock);
	s->victim = slot->reply;
	bpf_spin_unlock(&slot->lock);
	if (s->victim.protocol) {
		t = bpf_map_lookup_elem(&translations, &s->victim);
		if (t && t->slot == index) {
			if (!expendable(t, s->victim.protocol, need))
				return 0;
			translation_remove(skb);
		}
	} else if (!s->reply.protocol) {
		return 2;
	}
	if (s->reply.protocol) {
		t = bpf_map_lookup_elem(&translations, &s->reply);
		if (!t)
			return 0;
		t->slot = index; /* before others can see it in the slot */
	}
	bpf_spin_lock(&slot->lock);
	/* Another CPU may have been faster. */
	if (same_key(&slot->reply, &s->victim)) {
		slot->reply = s->reply;
		claimed = 1;
	}
	bpf_spin_unlock(&slot->lock);
	return claimed;
}

/*
 * Finds a slot for scratch->reply, and frees those of expendable translations on
 * the way. Each CPU has a hand of its own that goes round, as a clock's. Returns
 * 0, or -1 when all that were tried are in use.
 */
__noinline int slot_find(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();

	if (!s)
		return -1;
	if (!s->hand)
		s->hand = bpf_get_prandom_u32();
#pragma clang loop unroll(disable)
	for (int i = 0; i < SLOT_TRIES; i++) {
		/* Where many live in a row, which are another CPU's, it jumps. */
		s->hand = i < HAND_TRIES ? s->hand + 1 : bpf_get_prandom_u32();
		if (slot_claim(skb, s->hand % allocation_slots, need_at(i, NEED_RESTED)) == 1)
			return 0;
	}
	return -1;
}

/*
 * Frees a few slots for an endpoint that holds all it may, or for a destination
 * whose ports are all taken. At random: what lies ahead of the hand is free, and an
 * endpoint that holds all it may has half of the slots.
 * Returns whether the endpoint may hold another one.
 */
__noinline int slots_free(struct __sk_buff *skb, __u32 endpoint)
{
	__u32 *holds = bpf_map_lookup_elem(&held, &endpoint);
	struct scratch *s = scratch_get();
	bool wanted;

	if (!s || !holds)
		return false;
	wanted = *holds >= endpoint_limit;
	__builtin_memset(&s->reply, 0, sizeof(s->reply));
	s->freed = 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < SLOT_TRIES && s->freed < SLOTS_FREED; i++) {
		if (slot_claim(skb, bpf_get_prandom_u32() % allocation_slots, NEED_CLOSED) == 1)
			s->freed++;
		if (wanted && *holds < endpoint_limit)
			break;
	}
	return *holds < endpoint_limit;
}

/* What comes as reply, as the host's sockets are asked for it. Returns the size of the tuple. */
static __always_inline __u32 socket_tuple(struct bpf_sock_tuple *tuple,
					  const struct flow_key *reply)
{
	if (is_ipv4(&reply->destination)) {
		tuple->ipv4.saddr = words(&reply->source)[3];
		tuple->ipv4.daddr = words(&reply->destination)[3];
		tuple->ipv4.sport = reply->source_port;
		tuple->ipv4.dport = reply->destination_port;
		return sizeof(tuple->ipv4);
	}
	__builtin_memcpy(tuple->ipv6.saddr, &reply->source, sizeof(tuple->ipv6.saddr));
	__builtin_memcpy(tuple->ipv6.daddr, &reply->destination, sizeof(tuple->ipv6.daddr));
	tuple->ipv6.sport = reply->source_port;
	tuple->ipv6.dport = reply->destination_port;
	return sizeof(tuple->ipv6);
}

/* As host_uses. Two functions, as the verifier knows two types of sockets. */
__noinline int host_uses_tcp(struct __sk_buff *skb, __u32 connected)
{
	struct scratch *s = scratch_get();
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *socket;
	bool uses;

	if (!s)
		return true;
	socket = bpf_skc_lookup_tcp(skb, &tuple, socket_tuple(&tuple, &s->reply),
				    BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return false;
	uses = !connected || socket->dst_port;
	bpf_sk_release(socket);
	return uses;
}

__noinline int host_uses_udp(struct __sk_buff *skb, __u32 connected)
{
	struct scratch *s = scratch_get();
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *socket;
	bool uses;

	if (!s)
		return true;
	socket = bpf_sk_lookup_udp(skb, &tuple, socket_tuple(&tuple, &s->reply),
				   BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return false;
	uses = !connected || socket->dst_port;
	bpf_sk_release(socket);
	return uses;
}

/*
 * Whether a socket of the host would take what comes as scratch->reply; if connected,
 * only one that is connected to its source.
 */
static __always_inline bool host_uses(struct __sk_buff *skb, __u8 protocol, __u32 connected)
{
	if (protocol == IPPROTO_TCP)
		return host_uses_tcp(skb, connected);
	return protocol == IPPROTO_UDP && host_uses_udp(skb, connected);
}

static __always_inline bool belongs_to(const struct translation *t, const struct flow_key *sent)
{
	return t->ifindex == sent->ifindex && t->port == sent->source_port &&
	       same(&t->address, &sent->source);
}

/*
 * What a packet tells of the state; keeps the translation alive. inbound says that
 * it is for the endpoint.
 */
static __always_inline void translation_note(struct translation *t, const struct packet *packet,
					     bool inbound)
{
	bool mapped = t->flags & TRANSLATION_PORT;
	bool by_beginner = inbound == mapped;
	bool tcp = packet->key.protocol == IPPROTO_TCP;

	t->seen = now();
	if (packet->icmp_kind == ICMP_KIND_ERROR)
		return;
	/*
	 * A SYN is answered whoever has sent it, and so is a datagram that asks once, so for a
	 * mapped port it counts that the client speaks again.
	 */
	if (t->state == TRANSLATION_OPENING && !by_beginner) {
		if (mapped)
			t->flags |= TRANSLATION_ANSWERED;
		else
			t->state = TRANSLATION_ESTABLISHED;
	}
	if (packet->fragment == FRAGMENT_LATER)
		return;
	if (!tcp) {
		if (by_beginner && t->flags & TRANSLATION_ANSWERED)
			t->state = TRANSLATION_ESTABLISHED;
		return;
	}
	if (packet->tcp_flags & TCP_RST) {
		t->state = TRANSLATION_CLOSED;
	} else if (packet->tcp_flags & TCP_FIN) {
		t->flags |= inbound ? TRANSLATION_FIN_IN : TRANSLATION_FIN_OUT;
		t->state = t->flags & TRANSLATION_FIN_IN && t->flags & TRANSLATION_FIN_OUT
				   ? TRANSLATION_CLOSED
				   : TRANSLATION_CLOSING;
	} else if (by_beginner && packet->tcp_flags & TCP_SYN) {
		if (t->state >= TRANSLATION_CLOSING) {
			t->state = TRANSLATION_OPENING;
			t->flags &=
				~(TRANSLATION_FIN_IN | TRANSLATION_FIN_OUT | TRANSLATION_ANSWERED);
		}
	} else if (by_beginner && t->state == TRANSLATION_OPENING &&
		   t->flags & TRANSLATION_ANSWERED) {
		t->state = TRANSLATION_ESTABLISHED;
	} else if (!inbound && t->state == TRANSLATION_CLOSED &&
		   !(t->flags & (TRANSLATION_FIN_IN | TRANSLATION_FIN_OUT))) {
		/* The endpoint goes on after an RST: the RST was not for it. */
		t->state = TRANSLATION_ESTABLISHED;
	}
}

/* The reply's key, from the key as the endpoint sends and the entry it leads to. */
static __always_inline void found_key(struct flow_key *reply, const struct flow_key *sent,
				      const struct translation *pointer)
{
	reply_key(reply, sent, &pointer->address, pointer->port);
	if (pointer->flags & TRANSLATION_LOCAL)
		reply->ifindex = pointer->ifindex;
	if (pointer->flags & TRANSLATION_REMAPPED)
		reply->source_port = pointer->mapped;
	if (pointer->flags & TRANSLATION_HAIRPIN) {
		reply->ifindex = sent->ifindex;
		reply->source = sent->source;
		reply->source_port = pointer->mapped;
	}
}

/* Finds the translation that the flow has. Returns its reply entry, with its key in reply. */
static __always_inline struct translation *translation_find(const struct flow_key *sent,
							    struct flow_key *reply)
{
	struct translation *pointer = bpf_map_lookup_elem(&translations, sent), *t;

	if (!pointer)
		return NULL;
	found_key(reply, sent, pointer);
	t = bpf_map_lookup_elem(&translations, reply);
	return t && belongs_to(t, sent) && translation_alive(t, sent->protocol) ? t : NULL;
}

/* Where the port of the host leads that is the destination of key; NULL: it is not mapped. */
static __always_inline struct port *port_find(const struct flow_key *key)
{
	struct port_key at = {
		.address = key->destination,
		.port = key->destination_port,
		.protocol = key->protocol,
	};
	struct port *port = bpf_map_lookup_elem(&ports, &at);

	if (!port) {
		if (is_ipv4(&at.address))
			words(&at.address)[3] = 0;
		else
			__builtin_memset(&at.address, 0, sizeof(at.address));
		port = bpf_map_lookup_elem(&ports, &at);
	}
	return port;
}

/* Whether the port in scratch->reply is mapped, and not to the sender of scratch->packet. */
static __always_inline bool is_others_port(const struct scratch *s)
{
	struct port *port = port_find(&s->reply);

	return port && (port->port != s->packet.key.source_port ||
			!same(&port->address, &s->packet.key.source));
}

/*
 * Tries to take port first + candidate for scratch->to, at the address in
 * scratch->decision; need says whose it may be.
 * Returns 1 when it is taken, with the reply's key in scratch->reply, 0 when
 * somebody has it, and -1 when there is no room for another translation.
 */
__noinline int port_try(struct __sk_buff *skb, __u32 candidate, __u32 need)
{
	struct scratch *s = scratch_get();
	struct translation *old;
	long error;

	if (!s)
		return 0;
	s->pointer.address = s->decision.address;
	s->pointer.port = bpf_htons((__u16)(port_first + candidate));
	found_key(&s->reply, &s->packet.key, &s->pointer);
	if (is_others_port(s))
		return 0;
	old = bpf_map_lookup_elem(&translations, &s->reply);
	if (old) {
		if (!expendable(old, s->reply.protocol, need) && !is_orphan(old))
			return 0;
		s->victim = s->reply;
		translation_remove(skb);
	}
	if (host_uses(skb, s->reply.protocol, false))
		return 0;
	error = bpf_map_update_elem(&translations, &s->reply, &s->to, BPF_NOEXIST);
	if (!error)
		return 1;
	return error == -EEXIST ? 0 : -1;
}

/* Whether there is a translation with key scratch->wanted. */
__noinline bool is_wanted_alive(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct translation *t;

	if (!s || !skb)
		return false;
	t = bpf_map_lookup_elem(&translations, &s->wanted);
	return t && translation_alive(t, s->wanted.protocol) &&
	       (s->wanted.kind == KEY_TRACKED || !is_orphan(t));
}

#define ENTER_ATTEMPTS 3

/*
 * Makes scratch->wanted lead to scratch->to, for the endpoint. Returns 0 with the key in
 * scratch->reply, 1 when it leads somewhere already, or minus a counter.
 */
__noinline int translation_enter(struct __sk_buff *skb, __u32 endpoint)
{
	__u32 *holds = bpf_map_lookup_elem(&held, &endpoint);
	struct scratch *s = scratch_get();
	int error = 0;

	if (!s || !holds)
		return -DROP_TRANSLATIONS_FULL;
	if (*holds >= endpoint_limit && !slots_free(skb, endpoint))
		return -DROP_ENDPOINT_LIMIT;
#pragma clang loop unroll(disable)
	for (int i = 0; i < ENTER_ATTEMPTS; i++) {
		error = bpf_map_update_elem(&translations, &s->wanted, &s->to, BPF_NOEXIST);
		if (!error)
			break;
		if (error == -EEXIST) {
			if (is_wanted_alive(skb))
				break;
			s->victim = s->wanted;
			translation_remove(skb);
		} else {
			/* Full, perhaps of the dead. */
			slots_free(skb, endpoint);
		}
	}
	s->reply = s->wanted;
	if (error)
		return error == -EEXIST ? 1 : -DROP_TRANSLATIONS_FULL;
	held_add(endpoint, 1);
	if (slot_find(skb)) {
		s->victim = s->reply;
		translation_remove(skb);
		return -DROP_TRANSLATIONS_FULL;
	}
	return 0;
}

/* Ranges with fewer ports than this are not divided. */
#define PORTS_DIVIDED 64

/*
 * Whether port first + candidate is one of the endpoint's. Three quarters of them
 * are, another choice for each endpoint: whoever takes all it can get towards a
 * destination leaves some to every other. SCTP, which cannot choose, is not held to it.
 */
static __always_inline bool port_for(__u32 endpoint, __u32 candidate)
{
	__u32 mixed = (endpoint << 16 | candidate) * 0x9e3779b1;

	mixed = (mixed ^ mixed >> 15) * 0x85ebca77;
	return port_count < PORTS_DIVIDED || mixed >> 30;
}

/* One of the endpoint's ports at random, most of the time. */
static __always_inline __u16 port_at_random(__u32 endpoint)
{
	__u32 random = bpf_get_prandom_u32();
	__u16 candidate = (random & 0xffff) % port_count;

	return port_for(endpoint, candidate) ? candidate : (random >> 16) % port_count;
}

/*
 * Tries ports for scratch->to, its own first. Returns as port_try. SCTP keeps its
 * own or gets none: its checksum cannot be corrected.
 */
__noinline int ports_try(struct __sk_buff *skb, __u32 endpoint, __u32 tries)
{
	struct scratch *s = scratch_get();
	__u16 candidate;
	int taken;

	if (!s)
		return 0;
	candidate = bpf_ntohs(s->packet.key.source_port) - port_first;
	if (s->packet.key.protocol == IPPROTO_SCTP)
		return port_try(skb, candidate, NEED_CLOSED);
	/* Whoever is called at a port calls from it: its peers know it by that. */
	reply_key(&s->reply, &s->packet.key, &s->decision.address, s->packet.key.source_port);
	if (!s->pointer.flags && port_find(&s->reply)) {
		taken = port_try(skb, candidate, NEED_CLOSED);
		if (taken)
			return taken;
	}
	if (candidate >= port_count || !port_for(endpoint, candidate))
		candidate = port_at_random(endpoint);
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < PORT_TRIES && i < tries; i++) {
		if (port_for(endpoint, candidate)) {
			taken = port_try(skb, candidate, need_at(i, NEED_DEAD));
			if (taken)
				return taken;
		}
		candidate = port_at_random(endpoint);
	}
	return 0;
}

/*
 * Takes a port for the flow of scratch->packet, which has none, at the address
 * in scratch->decision: the flow's own port if that is one of the endpoint's and free,
 * else one of a bounded number of others. SCTP keeps its own or gets none: its
 * checksum cannot be corrected. flags are enum translation_flag. Returns 0 with
 * the reply's key in scratch->reply, or minus the counter that says why not.
 */
__noinline int translation_take(struct __sk_buff *skb, __u32 endpoint, __u32 flags)
{
	__u32 *holds = bpf_map_lookup_elem(&held, &endpoint);
	struct scratch *s = scratch_get();
	int taken;

	if (!s || !holds)
		return -DROP_TRANSLATIONS_FULL;
	__builtin_memset(&s->to, 0, sizeof(s->to));
	s->to.address = s->packet.key.source;
	s->to.port = s->packet.key.source_port;
	s->to.endpoint = endpoint;
	s->to.epoch = epoch_of(endpoint);
	s->to.ifindex = s->packet.key.ifindex;
	s->to.seen = now();
	s->to.flags = flags;
	__builtin_memset(&s->pointer, 0, sizeof(s->pointer));
	s->pointer.endpoint = endpoint;
	s->pointer.ifindex = s->packet.key.ifindex;
	if (flags & TRANSLATION_HAIRPIN) {
		s->to.mapped = s->packet.key.destination_port;
		s->pointer.flags = TRANSLATION_HAIRPIN;
		s->pointer.mapped = s->port.port;
	}

	if (*holds >= endpoint_limit && !slots_free(skb, endpoint))
		return -DROP_ENDPOINT_LIMIT;
	taken = ports_try(skb, endpoint, PORT_TRIES);
	if (taken < 0) {
		/* Full, perhaps of the dead. */
		slots_free(skb, endpoint);
		taken = ports_try(skb, endpoint, FULL_TRIES);
	}
	if (taken != 1) {
		slots_free(skb, endpoint);
		return taken ? -DROP_TRANSLATIONS_FULL : -DROP_PORTS_EXHAUSTED;
	}
	held_add(endpoint, 1);
	if (slot_find(skb)) {
		s->victim = s->reply;
		translation_remove(skb);
		return -DROP_TRANSLATIONS_FULL;
	}
	return 0;
}

/*
 * Makes the flow of scratch->packet lead to the translation just taken, which is
 * in scratch->reply. Returns 0, or minus a counter.
 */
__noinline int translation_point(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();

	if (!s)
		return -DROP_TRANSLATIONS_FULL;
	s->pointer.address = s->reply.destination;
	s->pointer.port = s->reply.destination_port;
	if (!bpf_map_update_elem(&translations, &s->packet.key, &s->pointer, BPF_NOEXIST))
		return 0;
	/* Either a packet of this flow was faster on another CPU ... */
	if (translation_find(&s->packet.key, &s->other) &&
	    same(&s->other.destination, &s->reply.destination)) {
		s->victim = s->reply;
		translation_remove(skb);
		s->reply = s->other;
		return 0;
	}
	/* ... or the pointer of a dead translation was left. */
	if (!bpf_map_update_elem(&translations, &s->packet.key, &s->pointer, BPF_ANY))
		return 0;
	s->victim = s->reply;
	translation_remove(skb);
	return -DROP_TRANSLATIONS_FULL;
}
