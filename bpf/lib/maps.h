/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * All maps: a sentence each on key, value, who writes and who reads. Sizes are
 * the defaults; the agent sets those of flows, translations and allocations
 * from its configuration before it creates them.
 */
#pragma once

#include <stdbool.h>

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

#define ENDPOINTS_MAX 65536

/* Address -> the endpoint that has it. The agent writes, every program reads. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENDPOINTS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

/* Whether an index is that of a macvlan child, which has no device on the host. */
static __always_inline bool is_child(__u32 ifindex)
{
	return ifindex & CHILD_INDEX;
}

/* Whether an index stands for a parent that is in the container. */
static __always_inline bool is_inside(__u32 parent)
{
	return parent >= INSIDE_INDEX;
}

/* Interface index -> what the hook needs to know of it. The agent writes, every program reads. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENDPOINTS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct interface);
} interfaces SEC(".maps");

/* What a macvlan child has for its parent; 0: it is gone. */
static __always_inline __u32 parent_of(const struct endpoint *child)
{
	__u32 ifindex = child->ifindex;
	struct interface *interface = bpf_map_lookup_elem(&interfaces, &ifindex);

	return interface ? interface->bridge : 0;
}

/* Whether a macvlan child's parent is in its container. */
static __always_inline bool is_inside_child(const struct endpoint *child)
{
	return is_inside(parent_of(child));
}

/*
 * Interface index -> the VLANs that its endpoint may send into by their tags; none is there for one
 * that may not. The agent writes, from_container reads.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENDPOINTS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct trunk);
} trunks SEC(".maps");

/*
 * Parent and MAC, namespace or neither -> the macvlan child, or what children have together.
 * The agent writes, the programs of parents read.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 3 * ENDPOINTS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct child_key);
	__type(value, struct child);
} children SEC(".maps");

/*
 * Hook of a macvlan child whose parent is in the container -> the program that works there. The
 * agent writes, the kernel reads.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, CHILD_HOOKS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} child_programs SEC(".maps");

/* Flow -> decision. A cache: the programs write and read, whatever is evicted is decided again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 262144);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* Flow -> translation, two entries each. The programs write, read and reclaim. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_key);
	__type(value, struct translation);
} translations SEC(".maps");

/*
 * The clock on which translations are reclaimed: a new one looks for a slot
 * whose old one is dead, so the table stays usable without any sweep.
 */
struct allocation {
	struct bpf_spin_lock lock; /* of reply */
	__u32 pad;
	struct flow_key reply; /* key of the translation; protocol 0: free */
};

/* Slot -> key of the translation that holds it. The programs write and read. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct allocation);
} allocations SEC(".maps");

/* Endpoint id -> number of translations it holds. The programs count, the agent reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ENDPOINTS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} held SEC(".maps");

/*
 * Endpoint id -> epoch; 0 is the node's. The agent raises them, the programs
 * compare: an entry decided in an older epoch is decided again.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ENDPOINTS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} epochs SEC(".maps");

/* Prefix -> 1, or 0 for not: destinations that are never masqueraded. The agent writes, the slow
 * path reads. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_key);
	__type(value, __u8);
} masquerade_exclude SEC(".maps");

/*
 * Prefix -> 1, or 0 for not: destinations that are left to the host's stack, because other
 * software translates them there. The agent writes, the slow path reads.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_key);
	__type(value, __u8);
} stack_destinations SEC(".maps");

/*
 * Port of the host -> the container's that it leads to. The agent writes, the
 * slow path and the socket programs read.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_key);
	__type(value, struct port);
} ports SEC(".maps");

/*
 * Address -> 1: the host's own, at which mapped ports are reached. The agent writes,
 * the slow path and the socket programs read.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u8);
} host_addresses SEC(".maps");

/*
 * Connected socket -> its peer, for getpeername and for the source of datagrams; it goes
 * with the socket. The socket programs write and read.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket_link);
} peers SEC(".maps");

/*
 * Socket that is not connected and where it sends -> what its process dialled, for the
 * source of datagrams. The socket programs write and read.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct socket_key);
	__type(value, struct socket_peer);
} sockets SEC(".maps");

/* The old and the new have room while one replaces the other. */
#define POLICY_SUBJECTS_MAX (2 * 16384)
#define POLICY_GENERATIONS_MAX 8
#define POLICY_ENTRIES_MAX (2 * 131072)
#define POLICY_RULES_MAX 131072

/* 0 -> the generation of policy that counts; 0: there is none. The agent writes, the slow path
 * reads.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} policy_generation SEC(".maps");

/* Endpoint in a generation -> its sets and identity. The agent writes, the slow path reads. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_SUBJECTS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct subject_key);
	__type(value, struct subject);
} subjects SEC(".maps");

/*
 * Number -> node of the tree that finds the identity of an address. It is made as large as it
 * must be; mapped memory begins with a page, so that each node has a cache line.
 */
struct identity_tree {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__uint(map_flags, BPF_F_INNER_MAP | BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct identity_node);
};

/* Clang would only declare the type of an inner map's value, and not describe it. */
const struct identity_node *const volatile identity_node_type = NULL;

/*
 * Generation -> tree of the identities of addresses that are not known by an endpoint of the node.
 * The agent writes, the slow path reads.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, POLICY_GENERATIONS_MAX);
	__type(key, __u32);
	__array(values, struct identity_tree);
} identities SEC(".maps");

/*
 * Set and identity in a generation -> what is let through, and how often. The agent writes, the
 * slow path reads and counts.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_ENTRIES_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct policy_key);
	__type(value, struct policy);
} policies SEC(".maps");

/* Rule -> number of new flows that it let through in earlier generations. The agent writes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_RULES_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct hit);
} hits SEC(".maps");

/*
 * DENIED_AT -> number of new flows that no rule let through, or that its network shut out. The slow
 * path counts, the agent reads, and clears what another endpoint has left.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * ENDPOINTS_MAX);
	__type(key, __u32);
	__type(value, __u64);
} denied SEC(".maps");

/*
 * Device and direction -> the limit of its endpoint, and how far it has been used. The agent makes
 * the entries, the programs of endpoints that have a limit keep them.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * ENDPOINTS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct limit_key);
	__type(value, struct limit);
} bandwidth SEC(".maps");

/*
 * Prefix of a device's endpoint -> its length + 1, or 0 for not: with whom no limit counts. The
 * agent writes, the programs of endpoints that have a limit read.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct unshaped_key);
	__type(value, __u8);
} unshaped SEC(".maps");

/* Fragmented packet -> the ports of its first fragment. The programs write and read. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

/* Journey * COUNTER_PLACES + counter -> packets and bytes. The programs count, the agent reads. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, JOURNEY_MAX *COUNTER_PLACES);
	__type(key, __u32);
	__type(value, struct count);
} counters SEC(".maps");
