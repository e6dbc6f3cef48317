/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is parsed of a packet, and the working memory of the slow path. Its parts are global
 * functions, so that the verifier looks at each once and not at every combination; on Linux 5.10
 * such a function takes the packet and numbers only, and all else goes by way of this.
 * It belongs to one program on one CPU, where nothing else of the program runs meanwhile: TC
 * programs run with bottom halves off, which nothing preempts but on PREEMPT_RT.
 * Nothing that apply or cross calls may write packet: the fast path reads it after them.
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "parse.h"
#include "types.h"

struct quote {
	struct flow_key key; /* of the packet as an ICMP error quotes it; ifindex 0 */
	__u16 network;	     /* offset of its IP header in the frame */
	__u16 transport;
	__u8 pad[4];
};

/* What policy is asked: may one end have begun a flow to the other. */
struct question {
	struct address client; /* who began */
	struct address server;
	__u32 client_id; /* of the endpoint that began, where its address does not tell; or 0 */
	__be16 server_port;
	__u8 protocol;
	__u8 is_new; /* of a flow not known so far: to be counted */
	__u8 later;  /* others translate the server's address, and policy is asked once more */
	__u8 pad[3];
};

struct scratch {
	struct packet packet;
	struct flow decision;
	struct flow memory;	/* of another flow than packet's */
	struct flow_key reply;	/* of the translation in hand */
	struct flow_key other;	/* of another one for the same flow */
	struct flow_key victim; /* of the one to remove */
	struct flow_key sent;	/* of its pointer */
	struct flow_key answer; /* as an endpoint answers at a mapped port */
	__u32 tracks;		/* policy: who began must be known later */
	__u32 sender;		/* id of the endpoint that sent packet; 0: its address tells */
	__u32 later;		/* others may translate packet's destination: it is judged again */
	struct flow_key wanted; /* of an entry to make, or to look for */
	struct question question;
	struct address prefixed; /* end of the question whose identity is looked for by prefixes */
	struct quote quote;
	__u32 forgotten;      /* flows is known to have nothing for packet */
	__u32 freed;	      /* slots, by the sweep */
	__u32 epoch;	      /* the node's, from before anything was looked at */
	__u32 hand;	      /* where the search for a slot has come to; 0: not begun */
	__u32 where;	      /* device by which the client of a mapped port is reached */
	struct mac neighbour; /* who handed over that client's packet */
	__u8 pad[2];
	__u32 local;		    /* that client is an endpoint */
	__u32 bridge;		    /* that packet comes from; 0: none */
	struct translation to;	    /* the one to take, or what a quote is translated to */
	struct translation pointer; /* to the one to take */
	struct port port;	    /* where the port of the host leads that packet is for */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

static __always_inline struct scratch *scratch_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}
