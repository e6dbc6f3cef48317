/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Macvlan children of a parent. Each is in the kernel's mode vepa, so that whatever it sends
 * leaves by the parent's egress hook, and whatever it is sent comes in by the ingress hook:
 * what one is to say to another, or to the host, is put back into the parent's ingress.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_helpers.h>

#include "apply.h"
#include "bandwidth.h"
#include "bridge.h"
#include "maps.h"
#include "track.h"

#define FIELDS __attribute__((preserve_access_index))

/* The kernel's own; the loader finds the fields in those of the running one. */
struct ns_common {
	unsigned int inum;
} FIELDS;

struct net {
	struct ns_common ns;
} FIELDS;

typedef struct {
	struct net *net;
} FIELDS possible_net_t;

struct sock_common {
	possible_net_t skc_net;
} FIELDS;

struct sock {
	struct sock_common __sk_common;
} FIELDS;

struct net_device {
	possible_net_t nd_net;
} FIELDS;

struct dst_entry {
	struct net_device *dev;
} FIELDS;

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	unsigned long _skb_refdst;
} FIELDS;

#define SKB_DST_NOREF 1UL

static __always_inline __u32 inode_of(struct net *net)
{
	__u32 inode = 0;

	bpf_probe_read_kernel(&inode, sizeof(inode), &net->ns.inum);
	return inode;
}

static __always_inline __u32 netns_of_device(struct net_device *device)
{
	struct net *net = NULL;

	bpf_probe_read_kernel(&net, sizeof(net), &device->nd_net.net);
	return inode_of(net);
}

/*
 * Inode number of the network namespace that a frame on its way out is of; 0: nobody can tell.
 *
 * What a stack has routed, its own or forwarded, carries its route, and that the device which
 * it leaves by: this no process can write, and it lives through segmentation. All else has the
 * socket of the process that wrote it, unless its segmentation has lost that (of a frame
 * from a ring of AF_PACKET it does), or unless a device has brought it in, whose sender may be
 * elsewhere. The kernel's own sockets are lent from namespace to namespace (Linux 5.18 and
 * later), and may have been given back while the frame waited for ARP: the route comes first.
 */
static __noinline __u32 netns_of(struct __sk_buff *skb)
{
	struct sk_buff *buffer = (void *)skb;
	struct net_device *device = NULL;
	struct dst_entry *route;
	struct sock *sock = NULL;
	struct net *net = NULL;
	unsigned long dst = 0;

	bpf_probe_read_kernel(&dst, sizeof(dst), &buffer->_skb_refdst);
	route = (void *)(dst & ~SKB_DST_NOREF);
	if (route)
		bpf_probe_read_kernel(&device, sizeof(device), &route->dev);
	if (device)
		return netns_of_device(device);
	if (skb->ingress_ifindex)
		return 0;
	bpf_probe_read_kernel(&sock, sizeof(sock), &buffer->sk);
	if (!sock)
		return 0;
	bpf_probe_read_kernel(&net, sizeof(net), &sock->__sk_common.skc_net.net);
	return inode_of(net);
}

#define ARP_FRAME_MAX 60 /* the shortest that Ethernet has */

/*
 * Whether a frame may have no sender that can be told: ARP is the kernel's, and has none. What
 * segmentation has left without one says by its length and its protocol that it is none.
 */
static __always_inline bool is_unsigned(const struct __sk_buff *skb, const struct ethhdr *frame)
{
	return frame->h_proto == bpf_htons(ETH_P_ARP) && skb->protocol == bpf_htons(ETH_P_ARP) &&
	       skb->len <= ARP_FRAME_MAX;
}

/* That of the device which a frame comes in or leaves by. */
static __always_inline __u32 netns_here(struct __sk_buff *skb)
{
	struct sk_buff *buffer = (void *)skb;
	struct net_device *device = NULL;

	bpf_probe_read_kernel(&device, sizeof(device), &buffer->dev);
	return netns_of_device(device);
}

static __always_inline struct child *child_at(__u32 parent, const struct mac *mac)
{
	struct child_key key = { .parent = parent, .mac = *mac };

	return bpf_map_lookup_elem(&children, &key);
}

/* What the children of a parent have together, or those of one namespace; NULL: none is there. */
static __always_inline struct child *children_of(__u32 parent, __u32 netns)
{
	struct child_key key = { .parent = parent, .netns = netns };

	return bpf_map_lookup_elem(&children, &key);
}

static __always_inline bool is_group(const struct mac *mac)
{
	return mac->bytes[0] & 1;
}

/* The endpoint that a child is; NULL where the agent has not finished, or has begun to remove it.
 */
static __always_inline struct interface *interface_of(const struct child *child)
{
	__u32 ifindex = child->ifindex;

	return bpf_map_lookup_elem(&interfaces, &ifindex);
}

/*
 * Whether a child is kept from what says nothing that policy could judge. One that is half
 * there is kept from all.
 */
static __always_inline bool is_kept(const struct child *child)
{
	struct interface *interface = interface_of(child);

	return !interface || may_not_be_sent_all(interface);
}

/* Has a frame meet the limit of the child that gets it. Returns TC_ACT_UNSPEC when it may go on. */
static __always_inline int meet_limit_of(struct __sk_buff *skb, const struct child *to,
					 enum journey journey)
{
	if (!(to->flags & CHILD_GETS_LIMITED))
		return TC_ACT_UNSPEC;
	return meet_limit(skb, to->ifindex, LIMIT_INGRESS, journey);
}

/* Fills in a decision for frames to a station of the link, which may be an endpoint. */
static __always_inline void lead(struct flow *decision, __u32 ifindex, const struct mac *receiver)
{
	decision->action = ACTION_LINK;
	decision->out_ifindex = ifindex;
	decision->receiver = *receiver;
}

/*
 * Whether scratch->packet answers what its receiver has asked for not long ago. Told by the
 * cache, for flows that no policy keeps account of.
 */
static __always_inline bool is_answer(struct scratch *s)
{
	struct flow *question;

	if (s->packet.icmp_kind || opens(&s->packet))
		return false;
	back_key(&s->other, &s->packet.key);
	question = bpf_map_lookup_elem(&flows, &s->other);
	return question && question->action == ACTION_LINK && !(question->flags & FLOW_REPLY) &&
	       (__s32)(now() - question->decided) <=
		       (__s32)translation_timeout(s->packet.key.protocol, TRANSLATION_ESTABLISHED);
}

/* Whether the decision is for frames to this station, and made by the programs of parents. */
static __always_inline bool leads_to(const struct flow *flow, const struct mac *receiver)
{
	if (flow->action == ACTION_LINK)
		return same_mac(&flow->receiver, receiver);
	return flow->action == ACTION_DENY || flow->of_port;
}
