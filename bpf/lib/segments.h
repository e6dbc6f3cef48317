/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a GSO packet is on a wire: a frame for each of its segments, with all of its headers, but
 * for those within a tunnel.
 * skb->wire_len does not say: where a packet comes in it is skb->len on most kernels.
 */
#pragma once

#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "parse.h"

/* Tags in a frame before its IP header that are looked behind. */
#define SEGMENT_TAGS_MAX 2

struct wire {
	__u32 packets;
	__u32 bytes; /* from the Ethernet header on */
};

/* Offset of what follows the Ethernet header and tags of a frame. */
static __always_inline __u32 network_offset(const struct __sk_buff *skb)
{
	__u32 offset = ETH_HLEN;
	__be16 protocol;

#pragma unroll
	for (int i = 0; i < SEGMENT_TAGS_MAX; i++) {
		if (bpf_skb_load_bytes(skb, offset - sizeof(protocol), &protocol,
				       sizeof(protocol)) ||
		    !is_tag(protocol))
			break;
		offset += 4;
	}
	return offset;
}

/* Bytes of headers in front of each segment of a GSO packet. What cannot be read counts as 0. */
__noinline int segment_headers(struct __sk_buff *skb)
{
	__u32 offset = network_offset(skb);
	struct ipv6_extension extension;
	__u8 version = 0, next = 0, words = 0, jumbo = 0;

	bpf_skb_load_bytes(skb, offset, &version, sizeof(version));
	if (version >> 4 == 4) {
		bpf_skb_load_bytes(skb, offset + offsetof(struct iphdr, protocol), &next,
				   sizeof(next));
		offset += (version & 0xf) * 4;
	} else {
		bpf_skb_load_bytes(skb, offset + offsetof(struct ipv6hdr, nexthdr), &next,
				   sizeof(next));
		offset += sizeof(struct ipv6hdr);
#pragma clang loop unroll(disable)
		for (int i = 0; i < IPV6_EXTENSIONS_MAX && is_extension(next); i++) {
			if (bpf_skb_load_bytes(skb, offset, &extension, sizeof(extension)))
				break;
			if (i == 0 && is_jumbo(skb, next, &extension))
				jumbo = sizeof(extension);
			offset += extension_length(next, &extension);
			next = extension.next;
		}
	}
	switch (next) {
	case IPPROTO_TCP:
		bpf_skb_load_bytes(skb, offset + 12, &words, sizeof(words));
		return offset - jumbo + (words >> 4) * 4;
	case IPPROTO_SCTP:
		return offset + SCTP_HEADER;
	default:
		return offset + sizeof(struct udphdr);
	}
}

/*
 * What a packet will be on a wire. Of one that a packet socket has written, the kernel may not have
 * counted the segments yet.
 */
static __always_inline struct wire on_wire(struct __sk_buff *skb)
{
	struct wire wire = { .packets = 1, .bytes = skb->len };
	__u32 headers, size = skb->gso_size;
	__u64 bytes;

	if (!size)
		return wire;
	headers = segment_headers(skb);
	if (skb->gso_segs)
		wire.packets = skb->gso_segs;
	else if (headers < skb->len)
		wire.packets = (skb->len - headers + size - 1) / size;
	bytes = wire.bytes + (__u64)(wire.packets - 1) * headers;
	wire.bytes = bytes < ~0U ? bytes : ~0U;
	return wire;
}
