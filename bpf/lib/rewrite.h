/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Changes to packets. Helpers that may move the packet come first, then every
 * header is written through pointers that were checked anew. Transport
 * checksums are left to the kernel's helpers: only they know whether the field
 * holds a whole checksum or, with offload, the pseudo header's alone.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"
#include "parse.h"
#include "types.h"

/* Offset of the checksum in the transport header, or -1. */
static __always_inline int checksum_offset(__u8 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return 16;
	case IPPROTO_UDP:
		return 6;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return 2;
	default:
		return -1; /* SCTP's CRC covers neither addresses nor ports that change */
	}
}

/* For the helpers of checksums: in UDP a checksum of zero says that there is none. */
static __always_inline __u64 zero_is_none(__u8 protocol)
{
	return protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
}

/*
 * Makes the transport checksum right for an address that changes by diff and a
 * port that changes from old to new. Returns 0 or the helper's error.
 *
 * For IPv6 the checksum field balances the address change, so the sum over the
 * packet that a device may have given (CHECKSUM_COMPLETE) stays; kernels without
 * BPF_F_IPV6 (6.16, and stable releases since) change it all the same, which
 * bpf_csum_update takes back. It does nothing for other packets.
 */
static __always_inline int fix_transport_checksum(struct __sk_buff *skb,
						  const struct packet *packet, __u32 diff,
						  __be16 old, __be16 new)
{
	int error, offset = checksum_offset(packet->key.protocol);
	__u64 mangled = zero_is_none(packet->key.protocol);

	if (offset < 0)
		return 0;
	offset += packet->transport;
	if (packet->key.protocol != IPPROTO_ICMP) {
		error = bpf_l4_csum_replace(skb, offset, 0, diff, BPF_F_PSEUDO_HDR | mangled);
		if (error)
			return error;
		if (packet->ipv6)
			bpf_csum_update(skb, diff);
	}
	if (old == new)
		return 0;
	return bpf_l4_csum_replace(skb, offset, old, new, mangled | sizeof(new));
}

enum end {
	SOURCE,
	DESTINATION,
};

/* Offset of the port, or of the identifier that stands for it, in the transport header. */
static __always_inline __u32 port_offset(__u8 protocol, enum end end)
{
	if (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6)
		return 4;
	return end == SOURCE ? 0 : 2;
}

/* Replaces one end of the packet. Returns 0 or a negative error; then the packet is not to be sent.
 */
static __always_inline int translate(struct __sk_buff *skb, const struct packet *packet,
				     enum end end, const struct address *address, __be16 port,
				     __u32 diff)
{
	__be16 old = end == SOURCE ? packet->key.source_port : packet->key.destination_port;
	void *data, *data_end;

	if (packet->fragment != FRAGMENT_LATER) {
		int error = fix_transport_checksum(skb, packet, diff, old, port);

		if (error)
			return error;
		data = (void *)(long)skb->data;
		data_end = (void *)(long)skb->data_end;
		if (old != port) {
			/* The verifier wants to see a bound; the parser's is lower. */
			__be16 *field = data + (packet->transport & 0x7fff) +
					port_offset(packet->key.protocol, end);

			if ((void *)(field + 1) > data_end)
				return -1;
			*field = port;
		}
	} else {
		data = (void *)(long)skb->data;
		data_end = (void *)(long)skb->data_end;
	}
	if (packet->ipv6) {
		struct ipv6hdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > data_end)
			return -1;
		__builtin_memcpy(end == SOURCE ? &ip->saddr : &ip->daddr, address,
				 sizeof(*address));
	} else {
		struct iphdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > data_end)
			return -1;
		if (end == SOURCE)
			ip->saddr = words(address)[3];
		else
			ip->daddr = words(address)[3];
		ip->check = checksum_replace(ip->check, diff);
	}
	return 0;
}

/*
 * Replaces the port of one end of a TCP or UDP packet whose other end was translated; an
 * ICMP error has none. Returns as translate.
 */
static __noinline int change_port(struct __sk_buff *skb, struct packet *packet, __u32 end,
				  __u32 port)
{
	__be16 old = end == SOURCE ? packet->key.source_port : packet->key.destination_port;
	__u32 offset = packet->transport + checksum_offset(packet->key.protocol);
	void *data, *data_end;
	__be16 *field;

	if (packet->fragment == FRAGMENT_LATER || packet->icmp_kind)
		return 0;
	if (bpf_l4_csum_replace(skb, offset, old, port,
				zero_is_none(packet->key.protocol) | sizeof(old)))
		return -1;
	data = (void *)(long)skb->data;
	data_end = (void *)(long)skb->data_end;
	field = data + (packet->transport & 0x7fff) + (end == SOURCE ? 0 : sizeof(old));
	if ((void *)(field + 1) > data_end)
		return -1;
	*field = port;
	return 0;
}

/*
 * Has source and destination change places, which changes no checksum, and gives both
 * a new port, but for an ICMP error. Otherwise the packet is TCP or UDP. Returns as translate.
 */
static __noinline int turn_round(struct __sk_buff *skb, struct packet *packet, __u32 source_port,
				 __u32 destination_port)
{
	__u64 mangled = zero_is_none(packet->key.protocol);
	__u32 offset = packet->transport + checksum_offset(packet->key.protocol);
	void *data, *data_end;

	if (packet->fragment == FRAGMENT_LATER || packet->icmp_kind) {
		data = (void *)(long)skb->data;
		data_end = (void *)(long)skb->data_end;
	} else {
		__be16 *ports;

		if (bpf_l4_csum_replace(skb, offset, packet->key.source_port, source_port,
					mangled | sizeof(__be16)) ||
		    bpf_l4_csum_replace(skb, offset, packet->key.destination_port, destination_port,
					mangled | sizeof(__be16)))
			return -1;
		data = (void *)(long)skb->data;
		data_end = (void *)(long)skb->data_end;
		ports = data + (packet->transport & 0x7fff);
		if ((void *)(ports + 2) > data_end)
			return -1;
		ports[0] = source_port;
		ports[1] = destination_port;
	}
	if (packet->ipv6) {
		struct ipv6hdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > data_end)
			return -1;
		__builtin_memcpy(&ip->saddr, &packet->key.destination, sizeof(ip->saddr));
		__builtin_memcpy(&ip->daddr, &packet->key.source, sizeof(ip->daddr));
	} else {
		struct iphdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > data_end)
			return -1;
		ip->saddr = words(&packet->key.destination)[3];
		ip->daddr = words(&packet->key.source)[3];
	}
	return 0;
}

/* Takes one hop off, as a router does. The caller has seen that more than one is left. */
static __always_inline int decrement_ttl(struct __sk_buff *skb, const struct packet *packet)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;

	if (packet->ipv6) {
		struct ipv6hdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > data_end)
			return -1;
		ip->hop_limit--;
		/* No checksum of the header balances it in the sum that a device gave. */
		bpf_csum_update(skb, (__u16)~bpf_htons(0x0001));
	} else {
		struct iphdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > data_end)
			return -1;
		ip->ttl--;
		ip->check = checksum_replace(ip->check, (__u16)~bpf_htons(0x0100));
	}
	return 0;
}

static __always_inline int set_macs(struct __sk_buff *skb, const struct mac *destination,
				    const struct mac *source)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct ethhdr *ethernet = data;

	if ((void *)(ethernet + 1) > data_end)
		return -1;
	__builtin_memcpy(ethernet->h_dest, destination, sizeof(*destination));
	__builtin_memcpy(ethernet->h_source, source, sizeof(*source));
	return 0;
}
