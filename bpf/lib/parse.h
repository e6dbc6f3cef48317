/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a frame to a struct packet. The cursor moves over one header at a time;
 * each parser returns what follows (a protocol number or a PARSED value) or
 * one of the negative values below. Only Ethernet frames are understood.
 */
#pragma once

#include <stdbool.h>
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

#include "address.h"
#include "types.h"

#define PARSE_INVALID -1 /* lengths or versions that make no sense */
#define PARSE_SHORT -2	 /* a header is not in the linear part of the packet */

enum parsed {
	PARSED_IP,    /* packet is filled in */
	PARSED_ARP,   /* nothing is filled in */
	PARSED_OTHER, /* another protocol over Ethernet */
};

enum fragment_kind {
	FRAGMENT_NONE,
	FRAGMENT_FIRST,
	FRAGMENT_LATER, /* has no transport header */
};

enum icmp_kind {
	ICMP_KIND_NONE,	 /* not ICMP, or an echo */
	ICMP_KIND_ERROR, /* quotes another packet */
	ICMP_KIND_LINK,	 /* neighbour discovery and group membership */
	ICMP_KIND_OTHER,
};

struct packet {
	struct flow_key key;  /* ifindex is left to the caller */
	__u32 identification; /* of a fragmented packet, network byte order */
	__u32 length;	 /* of the largest packet it will be on a wire, from the IP header on */
	__u16 transport; /* offset of the transport header in the frame */
	__u8 ttl;	 /* or hop limit */
	__u8 traffic_class;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_kind; /* enum icmp_kind */
	__u8 fragment;	/* enum fragment_kind */
	bool unkeyed;	/* ICMP without identifier: its key does not tell which flow it is of */
	bool ipv6;
};

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define IP_MORE_FRAGMENTS 0x2000
#define IP_OFFSET 0x1fff
#define IPV6_EXTENSIONS_MAX 8
#define EXTENSIONS_END_MAX 0x7fff /* of a frame, for the verifier: all of them are shorter */
#define SCTP_HEADER 12

/* Whether an EtherType is that of a VLAN tag. */
static __always_inline bool is_tag(__be16 protocol)
{
	return protocol == bpf_htons(ETH_P_8021Q) || protocol == bpf_htons(ETH_P_8021AD);
}

struct cursor {
	void *at;
	void *end;
};

/* The first bytes of an IPv6 extension header; none is shorter. */
struct ipv6_extension {
	__u8 next;
	__u8 length; /* in units of 8 bytes, the first not counted; of a fragment reserved */
	/* Only of a fragment. */
	__be16 offset; /* upper 13 bits; bit 0: more follow */
	__be32 identification;
};

static __always_inline int parse_ipv4(struct cursor *c, struct packet *packet, __u32 frame_length)
{
	struct iphdr *ip = c->at;
	__u32 header, total;
	__u16 offset;

	if ((void *)(ip + 1) > c->end)
		return PARSE_SHORT;
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header < sizeof(*ip))
		return PARSE_INVALID;
	/* The total length of a GSO packet may not fit its field. */
	if (packet->length == 0) {
		if (total < header || total > frame_length - ETH_HLEN)
			return PARSE_INVALID;
		packet->length = total;
	}
	set_ipv4(&packet->key.source, ip->saddr);
	set_ipv4(&packet->key.destination, ip->daddr);
	packet->ttl = ip->ttl;
	packet->traffic_class = ip->tos;
	offset = bpf_ntohs(ip->frag_off);
	if (offset & (IP_MORE_FRAGMENTS | IP_OFFSET)) {
		packet->fragment = offset & IP_OFFSET ? FRAGMENT_LATER : FRAGMENT_FIRST;
		packet->identification = ip->id;
	}
	packet->transport = ETH_HLEN + header;
	c->at += header;
	return ip->protocol;
}

static __always_inline __u32 linear_length(const struct __sk_buff *skb)
{
	return (void *)(long)skb->data_end - (void *)(long)skb->data;
}

static __always_inline bool is_extension(__u8 next)
{
	return next == IPPROTO_FRAGMENT || next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING ||
	       next == IPPROTO_DSTOPTS;
}

/* In bytes. */
static __always_inline __u32 extension_length(__u8 type, const struct ipv6_extension *header)
{
	return type == IPPROTO_FRAGMENT ? sizeof(*header) : (header->length + 1) * 8;
}

#define JUMBO_OPTION 0xc204 /* type and length (RFC 2675) */
#define JUMBO_FROM 0x10000

/*
 * Whether the first extension is that which Linux 5.19 and later writes before TCP of more than 64
 * KiB, and takes away when it cuts that (ipv6_has_hopopt_jumbo): it is on no wire.
 */
static __always_inline bool is_jumbo(const struct __sk_buff *skb, __u8 type,
				     const struct ipv6_extension *header)
{
	return skb->gso_size && skb->len - ETH_HLEN > JUMBO_FROM && type == IPPROTO_HOPOPTS &&
	       !header->length && header->offset == bpf_htons(JUMBO_OPTION) &&
	       header->next == IPPROTO_TCP;
}

/*
 * Walks by offsets, which the verifier need not know: with pointers it follows each chain
 * by itself, and all that comes after.
 */
static __always_inline int skip_extensions(struct __sk_buff *skb, struct cursor *c,
					   struct packet *packet, __u8 next)
{
	__u32 offset = packet->transport, linear = linear_length(skb);
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		struct ipv6_extension header;

		if (offset + sizeof(header) > linear)
			return PARSE_SHORT;
		if (bpf_skb_load_bytes(skb, offset, &header, sizeof(header)))
			return PARSE_SHORT;
		if (i == 0 && is_jumbo(skb, next, &header))
			packet->length -= sizeof(header);
		offset += extension_length(next, &header);
		if (next == IPPROTO_FRAGMENT) {
			/* An atomic fragment (RFC 6946) is whole. */
			if (header.offset & bpf_htons(0xfff9))
				packet->fragment = header.offset & bpf_htons(0xfff8)
							   ? FRAGMENT_LATER
							   : FRAGMENT_FIRST;
			packet->identification = header.identification;
		}
		next = header.next;
		if (packet->fragment == FRAGMENT_LATER || !is_extension(next))
			break;
	}
	if (i == IPV6_EXTENSIONS_MAX)
		return PARSE_INVALID;
	if (offset > linear || offset > EXTENSIONS_END_MAX)
		return PARSE_SHORT;
	packet->transport = offset;
	/* Read again: what the verifier knows of it is the same then, however many there were. */
	barrier();
	offset = packet->transport;
	if (offset > EXTENSIONS_END_MAX)
		return PARSE_SHORT;
	c->at = (void *)(long)skb->data + offset;
	return next;
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct cursor *c,
				      struct packet *packet, bool thoroughly)
{
	struct ipv6hdr *ip = c->at;
	__u32 total;

	if ((void *)(ip + 1) > c->end)
		return PARSE_SHORT;
	total = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (ip->version != 6)
		return PARSE_INVALID;
	if (packet->length == 0) {
		if (total > skb->len - ETH_HLEN)
			return PARSE_INVALID;
		packet->length = total;
	}
	__builtin_memcpy(&packet->key.source, &ip->saddr, sizeof(struct address));
	__builtin_memcpy(&packet->key.destination, &ip->daddr, sizeof(struct address));
	/* Such an address would pass for an IPv4 one. */
	if (is_ipv4(&packet->key.source) || is_ipv4(&packet->key.destination))
		return PARSE_INVALID;
	packet->ipv6 = true;
	packet->ttl = ip->hop_limit;
	packet->traffic_class = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	c->at += sizeof(*ip);
	packet->transport = ETH_HLEN + sizeof(*ip);
	if (!is_extension(ip->nexthdr))
		return ip->nexthdr;
	return thoroughly ? skip_extensions(skb, c, packet, ip->nexthdr) : PARSE_SHORT;
}

/* RFC 792 and RFC 4443 share the layout. linux/icmp.h needs a C library, so the names are here. */
struct icmp {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 identifier; /* of an echo */
	__be16 sequence;
};

enum icmp_type {
	ICMP_ECHOREPLY = 0,
	ICMP_DEST_UNREACH = 3,
	ICMP_REDIRECT = 5,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETERPROB = 12,
	ICMPV6_DEST_UNREACH = 1,
	ICMPV6_PARAMPROB = 4,
	ICMPV6_ECHO_REQUEST = 128,
	ICMPV6_ECHO_REPLY = 129,
	ICMPV6_MLD_QUERY = 130,
	ICMPV6_ROUTER_ADVERTISEMENT = 134,
	ICMPV6_NEIGHBOUR_ADVERTISEMENT = 136,
	ICMPV6_REDIRECT = 137,
	ICMPV6_MLD2_REPORT = 143,
};

static __always_inline bool has_ports(const struct flow_key *key)
{
	return key->source_port || key->destination_port;
}

static __always_inline int parse_icmp(struct cursor *c, struct packet *packet)
{
	struct icmp *icmp = c->at;

	if ((void *)(icmp + 1) > c->end)
		return PARSE_SHORT;
	packet->icmp_type = icmp->type;
	switch (icmp->type) {
	case ICMP_ECHO:
		packet->key.source_port = icmp->identifier;
		break;
	case ICMP_ECHOREPLY:
		packet->key.destination_port = icmp->identifier;
		break;
	case ICMP_DEST_UNREACH:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETERPROB:
		packet->icmp_kind = ICMP_KIND_ERROR;
		break;
	case ICMP_REDIRECT:
		packet->icmp_kind = ICMP_KIND_LINK;
		break;
	default:
		packet->icmp_kind = ICMP_KIND_OTHER;
	}
	packet->unkeyed = !has_ports(&packet->key);
	return sizeof(*icmp);
}

static __always_inline int parse_icmpv6(struct cursor *c, struct packet *packet)
{
	struct icmp *icmp = c->at;

	if ((void *)(icmp + 1) > c->end)
		return PARSE_SHORT;
	packet->icmp_type = icmp->type;
	switch (icmp->type) {
	case ICMPV6_ECHO_REQUEST:
		packet->key.source_port = icmp->identifier;
		break;
	case ICMPV6_ECHO_REPLY:
		packet->key.destination_port = icmp->identifier;
		break;
	case ICMPV6_DEST_UNREACH ... ICMPV6_PARAMPROB:
		packet->icmp_kind = ICMP_KIND_ERROR;
		break;
	case ICMPV6_MLD_QUERY ... ICMPV6_REDIRECT:
	case ICMPV6_MLD2_REPORT:
		packet->icmp_kind = ICMP_KIND_LINK;
		break;
	default:
		packet->icmp_kind = ICMP_KIND_OTHER;
	}
	packet->unkeyed = !has_ports(&packet->key);
	return sizeof(*icmp);
}

/* Whether it is of the ICMP of its family, in any fragment. */
static __always_inline bool is_icmp(const struct packet *packet)
{
	return packet->key.protocol == (packet->ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
}

static __always_inline bool asks_for_echo(const struct packet *packet)
{
	return packet->fragment != FRAGMENT_LATER && is_icmp(packet) &&
	       packet->icmp_type == (packet->ipv6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO);
}

/* A later fragment of an echo reply is told by the ports of the first. */
static __always_inline bool answers_echo(const struct packet *packet)
{
	if (!is_icmp(packet))
		return false;
	if (packet->fragment == FRAGMENT_LATER)
		return !packet->key.source_port && packet->key.destination_port;
	return packet->icmp_type == (packet->ipv6 ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY);
}

/* Returns the length of the header that is repeated in every segment of a GSO packet. */
static __always_inline int parse_transport(struct cursor *c, struct packet *packet)
{
	struct {
		__be16 source, destination;
	} *ports = c->at;
	struct tcphdr *tcp = c->at;
	int length;

	switch (packet->key.protocol) {
	case IPPROTO_TCP:
		if ((void *)(tcp + 1) > c->end)
			return PARSE_SHORT;
		packet->tcp_flags = ((__u8 *)tcp)[13];
		packet->key.source_port = tcp->source;
		packet->key.destination_port = tcp->dest;
		if (tcp->doff < 5)
			return PARSE_INVALID;
		return tcp->doff * 4;
	case IPPROTO_UDP:
		length = sizeof(struct udphdr);
		break;
	case IPPROTO_SCTP:
		length = SCTP_HEADER;
		break;
	case IPPROTO_ICMP:
		return packet->ipv6 ? 0 : parse_icmp(c, packet);
	case IPPROTO_ICMPV6:
		return packet->ipv6 ? parse_icmpv6(c, packet) : 0;
	default:
		return 0;
	}
	if (c->at + length > c->end)
		return PARSE_SHORT;
	packet->key.source_port = ports->source;
	packet->key.destination_port = ports->destination;
	return length;
}

/*
 * Fills packet, which the caller has zeroed, from headers in the linear part of the frame.
 * Returns an enum parsed or a negative value; not thoroughly, PARSE_SHORT also where IPv6
 * has extensions.
 */
static __always_inline int parse_headers(struct __sk_buff *skb, struct packet *packet,
					 bool thoroughly)
{
	struct cursor c = { (void *)(long)skb->data, (void *)(long)skb->data_end };
	struct ethhdr *ethernet = c.at;
	int next, length;

	if ((void *)(ethernet + 1) > c.end)
		return PARSE_SHORT;
	c.at = ethernet + 1;
	packet->length = skb->gso_size;
	switch (ethernet->h_proto) {
	case bpf_htons(ETH_P_IP):
		next = parse_ipv4(&c, packet, skb->len);
		break;
	case bpf_htons(ETH_P_IPV6):
		next = parse_ipv6(skb, &c, packet, thoroughly);
		break;
	case bpf_htons(ETH_P_ARP):
		return PARSED_ARP;
	default:
		return PARSED_OTHER;
	}
	if (next < 0)
		return next;
	packet->key.protocol = next;
	/* What is to be cut into segments has a transport header. */
	if (packet->fragment == FRAGMENT_LATER)
		return skb->gso_size || (__u32)packet->transport - ETH_HLEN > packet->length
			       ? PARSE_INVALID
			       : PARSED_IP;
	length = parse_transport(&c, packet);
	if (length < 0)
		return length;
	if (skb->gso_size)
		packet->length += packet->transport - ETH_HLEN + length;
	else if ((__u32)(packet->transport - ETH_HLEN + length) > packet->length)
		return PARSE_INVALID; /* the headers go on behind the end of the packet */
	return PARSED_IP;
}
