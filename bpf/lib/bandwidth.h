/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Limits of bandwidth: what becomes of a packet that is beyond what its endpoint may send or get.
 * Where the kernel has fq it goes by the pacer, which holds it back (pacer_out.c). Elsewhere
 * there is no queue, so it is marked (ECN) when the credit runs short, and dropped when there
 * is none.
 *
 * Of limits without a pacer:
 * Measured with TCP over a veth pair, where the round trip is 50 us: no window is small enough
 * for 10 Mbit/s, so whatever the bucket holds is sent at once, the rest of the window is lost,
 * and the sender waits for its timeout of 200 ms or more. What it could not send then is what a
 * shallow bucket withholds: of 100 Mbit/s 30 arrived with a burst of 10 ms. So who has lost a
 * packet just now has credit for that silence too (RECOVERY): from 10 to 1,000 Mbit/s one stream
 * and eight get the rate, within 4 and 3 %, with CUBIC and BBR, with ECN and without. Who was
 * silent by itself has the burst that was asked for, and no more.
 */
#pragma once

#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "address.h"
#include "count.h"
#include "maps.h"
#include "segments.h"

#define BANDWIDTH_COST_SHIFT 20
#define NSEC_PER_USEC 1000

/* Credit in ns, which counts so many ns after a loss. */
#define BANDWIDTH_RECOVERY 400000000ULL
#define BANDWIDTH_RECOVERY_TIME 1000000000LL

/*
 * Small packets go on when the bucket is empty: they are acknowledgements, handshakes and
 * questions, and whoever asks little waits for nobody who asks for much. They have half of the
 * rate for that, with so many ns of credit, and cost what others do, so that the rate holds
 * and neither can keep the other out.
 */
#define BANDWIDTH_SMALL 256
#define BANDWIDTH_SMALL_CREDIT 10000000ULL

/*
 * Of a packet on its wire, so that its price has room in 63 bits. Only one of tiny segments has
 * more, which no stack sends: it is beyond every limit, or one could keep all others waiting for
 * minutes.
 */
#define BANDWIDTH_BYTES_MAX (1U << 20)

/*
 * EtherType of the frame. What a macvlan child sends by AF_PACKET says something else in
 * skb->protocol if it likes; a veth device, or a parent's ingress, would have asked the frame.
 */
static __always_inline __be16 frame_protocol(const struct __sk_buff *skb)
{
	__be16 protocol = 0;

	bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_proto), &protocol, sizeof(protocol));
	return protocol;
}

/*
 * Whether the packet is what a link needs to work: ARP, neighbour and router discovery. No limit
 * counts for it, or a container at its limit would be lost to its neighbours. It is small, and
 * of the link: a router takes one from the hop limit (RFC 4861, section 7.1).
 */
static __always_inline bool is_for_link(const struct __sk_buff *skb)
{
	__u8 hops[2] = {}, type = 0; /* next header, hop limit */
	__be16 protocol = frame_protocol(skb);

	if (skb->len > BANDWIDTH_SMALL)
		return false;
	if (protocol == bpf_htons(ETH_P_ARP))
		return true;
	if (protocol != bpf_htons(ETH_P_IPV6) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, nexthdr), hops,
			       sizeof(hops)) ||
	    hops[0] != IPPROTO_ICMPV6 || hops[1] != 255 ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(struct ipv6hdr), &type, sizeof(type)))
		return false;
	return type >= 133 && type <= 137; /* RFC 4861, section 4 */
}

/* Whether the endpoint's limit does not count for whom it speaks with. */
static __always_inline bool is_unshaped(const struct __sk_buff *skb, __u32 ifindex, __u32 direction)
{
	struct unshaped_key key = { .length = 160, .ifindex = ifindex };
	__be16 protocol = frame_protocol(skb);
	struct address address;
	__u32 at;
	__u8 *value;

	if (protocol == bpf_htons(ETH_P_IP)) {
		__be32 ipv4;

		at = direction == LIMIT_EGRESS ? offsetof(struct iphdr, daddr)
					       : offsetof(struct iphdr, saddr);
		if (bpf_skb_load_bytes(skb, ETH_HLEN + at, &ipv4, sizeof(ipv4)))
			return false;
		set_ipv4(&address, ipv4);
	} else if (protocol == bpf_htons(ETH_P_IPV6)) {
		at = direction == LIMIT_EGRESS ? offsetof(struct ipv6hdr, daddr)
					       : offsetof(struct ipv6hdr, saddr);
		if (bpf_skb_load_bytes(skb, ETH_HLEN + at, &address, sizeof(address)))
			return false;
	} else {
		return false;
	}
	__builtin_memcpy(key.address, &address, sizeof(key.address));
	value = bpf_map_lookup_elem(&unshaped, &key);
	return value && *value;
}

/*
 * What the pacer's programs have to know of a packet that goes by it: skb->mark is the ifindex of
 * the endpoint's host side, and skb->tc_index says where it was met. A container that cannot load
 * programs itself cannot set the former: the mark is gone when a packet leaves its network
 * namespace.
 */
#define PACED_BASE 0x7e60
#define PACED_DIRECTION_SHIFT 3
_Static_assert(JOURNEY_MAX <= 1 << PACED_DIRECTION_SHIFT, "a journey has room in tc_index");

/* In tc_index from pacer_out to pacer_in: the packet is one of limit->waiting. */
#define PACED_HELD (1 << (PACED_DIRECTION_SHIFT + 1))
_Static_assert(!(PACED_BASE & ((PACED_HELD << 1) - 1)), "the base leaves room in tc_index");

static __always_inline __u16 paced_index(enum limit_direction direction, enum journey journey)
{
	return PACED_BASE | direction << PACED_DIRECTION_SHIFT | journey;
}

/*
 * Takes apart what the above and the mark say, pacer_out's PACED_HELD aside. False: the packet is
 * none that has met a limit, but what the host itself says here.
 */
static __always_inline bool read_paced(const struct __sk_buff *skb, struct limit_key *key,
				       enum journey *journey)
{
	__u32 where = (skb->tc_index & ~PACED_HELD) ^ PACED_BASE;

	key->ifindex = skb->mark;
	key->direction = where >> PACED_DIRECTION_SHIFT;
	*journey = where & ((1 << PACED_DIRECTION_SHIFT) - 1);
	return key->ifindex && key->direction <= LIMIT_EGRESS;
}

static __always_inline int drop_beyond(const struct __sk_buff *skb, __u32 direction,
				       enum journey journey)
{
	return drop(skb, journey,
		    direction == LIMIT_EGRESS ? DROP_BANDWIDTH_EGRESS : DROP_BANDWIDTH_INGRESS);
}

/* The price of bytes, as time. */
static __always_inline __u64 price_of(const struct limit *limit, __u32 bytes)
{
	return bytes * limit->cost >> BANDWIDTH_COST_SHIFT;
}

/* Whether a small packet may go although there is no credit, which pays for it. Under the lock. */
static __always_inline bool small_passes(struct limit *limit, __u32 bytes, __u64 price, __u64 at)
{
	if (bytes > BANDWIDTH_SMALL)
		return false;
	if ((__s64)(limit->small - (at - BANDWIDTH_SMALL_CREDIT)) < 0)
		limit->small = at - BANDWIDTH_SMALL_CREDIT;
	if ((__s64)(limit->small - at) > 0)
		return false;
	limit->small += 2 * price;
	return true;
}

/* What is no longer there after a silence. Under the lock. */
static __always_inline void bound_credit(struct limit *limit, __u64 at, __u64 credit)
{
	if ((__s64)(limit->empty - (at - credit)) < 0)
		limit->empty = at - credit;
}

static __always_inline void account_limit(struct limit *limit, __u64 price, const struct wire *wire)
{
	limit->empty += price;
	limit->packets += wire->packets;
	limit->bytes += wire->bytes;
}

/*
 * Only a packet whose sender understands it is marked (RFC 3168). The helper believes
 * skb->protocol, and would write into a tag that is in the frame, and into what follows it.
 */
static __always_inline void mark_congestion(struct __sk_buff *skb, struct limit *limit)
{
	__be16 protocol = frame_protocol(skb);

	if (is_tag(protocol) || protocol != skb->protocol)
		return;
	if (bpf_skb_ecn_set_ce(skb) > 0)
		__sync_fetch_and_add(&limit->marked, segments(skb));
}

/*
 * Whether a packet that no pacer holds back is beyond a limit. Where one holds back others, the
 * credit is used up as long as any waits: what goes past it does while they would not be too late.
 */
static __always_inline bool is_beyond(struct __sk_buff *skb, struct limit *limit)
{
	struct wire wire = on_wire(skb);
	__u64 at, price = price_of(limit, wire.bytes), credit = limit->burst;
	__s64 overdrawn, most = limit->pacer ? (__u64)limit->horizon * NSEC_PER_USEC : 0;
	bool beyond, mark;

	at = bpf_ktime_get_ns();
	bpf_spin_lock(&limit->lock);
	/* Another CPU may have read its clock later, and come first. */
	if ((__s64)(at - limit->dropped_at) < BANDWIDTH_RECOVERY_TIME &&
	    credit < BANDWIDTH_RECOVERY)
		credit = BANDWIDTH_RECOVERY;
	bound_credit(limit, at, credit);
	overdrawn = limit->empty - at;
	beyond = wire.bytes > BANDWIDTH_BYTES_MAX ||
		 (overdrawn > most && !small_passes(limit, wire.bytes, price, at));
	mark = !beyond && overdrawn > -(__s64)(limit->burst / 2);
	if (beyond) {
		limit->dropped_at = at;
		limit->dropped += wire.packets;
	} else {
		account_limit(limit, price, &wire);
	}
	bpf_spin_unlock(&limit->lock);
	if (mark)
		mark_congestion(skb, limit);
	return beyond;
}

/*
 * Whether a frame is for the container at a device alone. A bridge floods what is for groups, and
 * for stations that it does not know: the pacer would deliver that as if it were the container's.
 */
static __always_inline bool is_for(const struct __sk_buff *skb, __u32 ifindex)
{
	struct interface *interface = bpf_map_lookup_elem(&interfaces, &ifindex);
	struct mac receiver;

	return interface && !bpf_skb_load_bytes(skb, 0, &receiver, sizeof(receiver)) &&
	       same_mac(&receiver, &interface->mac);
}

/*
 * Has the packet meet the limit of the endpoint at a device. Returns TC_ACT_UNSPEC when it may
 * go on at once, and is counted for the limit; otherwise what becomes of it: it is dropped, or
 * goes by the pacer.
 */
__noinline int meet_limit(struct __sk_buff *skb, __u32 ifindex, __u32 direction, __u32 journey)
{
	struct limit_key key = { .ifindex = ifindex, .direction = direction };
	struct limit *limit = bpf_map_lookup_elem(&bandwidth, &key);

	if (!limit || is_for_link(skb) || (limit->exempts && is_unshaped(skb, ifindex, direction)))
		return TC_ACT_UNSPEC;
	if (limit->pacer && (journey != TO_CONTAINER || is_for(skb, ifindex))) {
		skb->mark = ifindex;
		skb->tc_index = paced_index(direction, journey);
		return bpf_redirect(limit->pacer, 0);
	}
	return is_beyond(skb, limit) ? drop_beyond(skb, direction, journey) : TC_ACT_UNSPEC;
}

/* The same for what a decision delivers, and the limit of who gets it. */
static __always_inline int meet_limit_by(struct __sk_buff *skb, const struct flow *flow,
					 enum journey journey)
{
	if (!flow->limited)
		return TC_ACT_UNSPEC;
	return meet_limit(skb, flow->out_ifindex, LIMIT_INGRESS, journey);
}
