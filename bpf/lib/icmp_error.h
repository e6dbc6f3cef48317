/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP errors carry the packet they speak of. When that packet was translated,
 * so must the quote be, or its sender does not know it again. A quote may end
 * after 8 bytes of its transport header (RFC 792), and its checksum may be
 * absent or zero; the error's own checksum covers all that changes inside.
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"
#include "parse.h"
#include "rewrite.h"
#include "scratch.h"

#define ICMP_HEADER 8
#define QUOTE_EXTENSIONS_MAX 4

/* Where the packet ends in its frame, which may be longer. */
static __always_inline __u32 packet_end(const struct __sk_buff *skb, const struct packet *packet)
{
	return skb->gso_size ? skb->len : ETH_HLEN + packet->length;
}

/*
 * Fills scratch->quote from scratch->packet. Returns 0, or -1 when the quote is
 * too short or a later fragment, and so names no flow, and when it is of what somebody
 * else than the error's receiver has sent: that tells nobody anything.
 */
__noinline int parse_quote(struct __sk_buff *skb)
{
	struct scratch *s = scratch_get();
	struct quote *quote;
	__u8 ports[8];
	__u32 offset;

	if (!s)
		return -1;
	quote = &s->quote;
	offset = s->packet.transport + ICMP_HEADER;
	__builtin_memset(quote, 0, sizeof(*quote));
	quote->network = offset;
	if (s->packet.ipv6) {
		struct ipv6hdr ip;
		__u8 next;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 6)
			return -1;
		__builtin_memcpy(&quote->key.source, &ip.saddr, sizeof(ip.saddr));
		__builtin_memcpy(&quote->key.destination, &ip.daddr, sizeof(ip.daddr));
		if (is_ipv4(&quote->key.source) || is_ipv4(&quote->key.destination))
			return -1;
		next = ip.nexthdr;
		offset += sizeof(ip);
#pragma clang loop unroll(disable)
		for (int i = 0; i < QUOTE_EXTENSIONS_MAX; i++) {
			struct ipv6_extension extension;

			if (!is_extension(next))
				break;
			if (bpf_skb_load_bytes(skb, offset, &extension, sizeof(extension)))
				return -1;
			if (next == IPPROTO_FRAGMENT && extension.offset & bpf_htons(0xfff8))
				return -1;
			offset += extension_length(next, &extension);
			next = extension.next;
		}
		quote->key.protocol = next;
	} else {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 4 ||
		    ip.ihl < 5 || ip.frag_off & bpf_htons(IP_OFFSET))
			return -1;
		set_ipv4(&quote->key.source, ip.saddr);
		set_ipv4(&quote->key.destination, ip.daddr);
		quote->key.protocol = ip.protocol;
		offset += ip.ihl * 4;
	}
	quote->transport = offset;
	if (!same(&quote->key.source, &s->packet.key.destination))
		return -1;
	if (offset + sizeof(ports) > packet_end(skb, &s->packet) ||
	    bpf_skb_load_bytes(skb, offset, ports, sizeof(ports)))
		return -1;
	switch (quote->key.protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		quote->key.source_port = *(__be16 *)&ports[0];
		quote->key.destination_port = *(__be16 *)&ports[2];
		return 0;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (ports[0] == (s->packet.ipv6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO))
			quote->key.source_port = *(__be16 *)&ports[4];
		else if (ports[0] == (s->packet.ipv6 ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY))
			quote->key.destination_port = *(__be16 *)&ports[4];
		else
			return -1;
		return 0;
	default:
		return 0; /* without ports */
	}
}

/* The key of the flow that answers the quoted packet. */
static __always_inline void answer_key(struct flow_key *key, const struct quote *quote,
				       __u32 ifindex)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->source = quote->key.destination;
	key->destination = quote->key.source;
	key->source_port = quote->key.destination_port;
	key->destination_port = quote->key.source_port;
	key->protocol = quote->key.protocol;
	key->ifindex = ifindex;
}

/* Replaces two bytes of the quote, and corrects the error's checksum, at offset checksum, for it.
 */
__noinline int quote_store(struct __sk_buff *skb, __u32 checksum, __u32 offset, __u32 old_value,
			   __u32 new_value)
{
	__be16 old = old_value, new = new_value;

	if (old == new)
		return 0;
	return bpf_skb_store_bytes(skb, offset, &new, sizeof(new), 0) ||
	       bpf_l4_csum_replace(skb, checksum, old, new, sizeof(new));
}

/* Changes a checksum inside the quote for data that changed by diff. */
__noinline int quote_fix(struct __sk_buff *skb, __u32 checksum, __u32 offset, __u32 diff,
			 __u32 may_be_absent)
{
	__u16 old, new;

	/* UDP may be without. */
	if (bpf_skb_load_bytes(skb, offset, &old, sizeof(old)) || (may_be_absent && !old))
		return 0;
	new = checksum_replace(old, diff);
	if (may_be_absent && !new)
		new = 0xffff;
	return quote_store(skb, checksum, offset, old, new);
}

/*
 * Replaces one end of the packet quoted in scratch->quote by scratch->to. The
 * error's own addresses are left to the caller. Returns 0, or non-zero when the
 * packet is spoiled.
 */
__noinline int translate_quote(struct __sk_buff *skb, __u32 source)
{
	struct scratch *s = scratch_get();
	int offset_in_transport;
	__u32 diff, at, error;
	struct quote *quote;
	__be16 port;

	if (!s)
		return -1;
	quote = &s->quote;
	port = source ? quote->key.source_port : quote->key.destination_port;
	diff = address_diff(source ? &quote->key.source : &quote->key.destination, &s->to.address);
	error = s->packet.transport + 2; /* its checksum */
	at = quote->network;
	if (s->packet.ipv6) {
		at += source ? 8 : 24;
		if (bpf_skb_store_bytes(skb, at, &s->to.address, 16, 0))
			return -1;
	} else {
		at += source ? 12 : 16;
		if (bpf_skb_store_bytes(skb, at, &s->to.address.bytes[12], 4, 0))
			return -1;
	}
	if (bpf_l4_csum_replace(skb, error, 0, diff, 0))
		return -1;
	if (!s->packet.ipv6 && quote_fix(skb, error, quote->network + 10, diff, false))
		return -1;
	if (quote_store(skb, error,
			quote->transport +
				port_offset(quote->key.protocol, source ? SOURCE : DESTINATION),
			port, s->to.port))
		return -1;
	offset_in_transport = checksum_offset(quote->key.protocol);
	if (offset_in_transport < 0 ||
	    quote->transport + offset_in_transport + sizeof(__be16) > packet_end(skb, &s->packet))
		return 0;
	if (quote->key.protocol == IPPROTO_ICMP)
		diff = 0;
	/* No carry is lost: each part is folded first. */
	diff = checksum_fold(diff) + checksum_fold(half_diff(port, s->to.port));
	return quote_fix(skb, error, quote->transport + offset_in_transport, diff,
			 quote->key.protocol == IPPROTO_UDP);
}
