/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses of both families as v4-mapped IPv6, in network byte order. */
#pragma once

#include <stdbool.h>

#include <linux/types.h>
#include <bpf/bpf_endian.h>

#include "types.h"

/* The headers with these names are not for eBPF. */
#define AF_INET 2
#define AF_INET6 10

static __always_inline __u64 *halves(const struct address *a)
{
	return (__u64 *)a->bytes;
}

static __always_inline __be32 *words(const struct address *a)
{
	return (__be32 *)a->bytes;
}

static __always_inline void set_ipv4(struct address *a, __be32 ipv4)
{
	halves(a)[0] = 0;
	words(a)[2] = bpf_htonl(0xffff);
	words(a)[3] = ipv4;
}

static __always_inline bool same(const struct address *a, const struct address *b)
{
	return halves(a)[0] == halves(b)[0] && halves(a)[1] == halves(b)[1];
}

static __always_inline bool is_zero(const struct address *a)
{
	return !(halves(a)[0] | halves(a)[1]);
}

static __always_inline bool is_ipv4(const struct address *a)
{
	return !halves(a)[0] && words(a)[2] == bpf_htonl(0xffff);
}

/* fe80::/10 */
static __always_inline bool is_ipv6_link_local(const struct address *a)
{
	return (words(a)[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* 224.0.0.0/4 and 255.255.255.255, ff00::/8 */
static __always_inline bool is_multicast(const struct address *a)
{
	if (is_ipv4(a))
		return (words(a)[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) ||
		       words(a)[3] == bpf_htonl(0xffffffff);
	return a->bytes[0] == 0xff;
}

/* Loopback and "this network": never on a wire. */
static __always_inline bool is_martian(const struct address *a)
{
	if (is_ipv4(a))
		return a->bytes[12] == 127 || a->bytes[12] == 0;
	return !halves(a)[0] && (halves(a)[1] == bpf_cpu_to_be64(1) || !halves(a)[1]);
}

static __always_inline bool same_mac(const struct mac *a, const struct mac *b)
{
	return !((*(__u16 *)&a->bytes[0] ^ *(__u16 *)&b->bytes[0]) |
		 (*(__u16 *)&a->bytes[2] ^ *(__u16 *)&b->bytes[2]) |
		 (*(__u16 *)&a->bytes[4] ^ *(__u16 *)&b->bytes[4]));
}

static __always_inline bool same_key(const struct flow_key *a, const struct flow_key *b)
{
	return same(&a->source, &b->source) && same(&a->destination, &b->destination) &&
	       a->source_port == b->source_port && a->destination_port == b->destination_port &&
	       a->ifindex == b->ifindex && a->protocol == b->protocol && a->kind == b->kind;
}
