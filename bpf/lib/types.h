/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The structs and enums that programs share with each other and with the agent.
 * This is the one place where a layout is written: the Go types are generated
 * from here. Addresses, ports and MACs are in network byte order, all else in
 * the host's. IPv4 is carried as v4-mapped IPv6 (::ffff:a.b.c.d), so one path
 * serves both families; a packet that carries such an address as IPv6 is dropped.
 */
#pragma once

#include <linux/types.h>

struct address {
	__u8 bytes[16];
} __attribute__((aligned(8)));

struct mac {
	__u8 bytes[6];
};

/*
 * One direction of one connection, as the packet meets the datapath. An ICMP
 * echo request has its identifier as source port, an echo reply as destination
 * port; protocols without ports have zeros.
 */
struct flow_key {
	struct address source;
	struct address destination;
	__be16 source_port;
	__be16 destination_port;
	__u32 ifindex; /* the endpoint's host side; 0 for what comes from an uplink */
	__u8 protocol; /* IPPROTO_* */
	__u8 pad[7];
};
_Static_assert(sizeof(struct flow_key) == 48, "flow_key has no hidden padding");

enum action {
	ACTION_NONE,	/* nothing decided: the entry only remembers its flags */
	ACTION_PASS,	/* the host's stack delivers or forwards it */
	ACTION_DELIVER, /* into the endpoint, past the host's stack */
	ACTION_FORWARD, /* out of an uplink, to a neighbour */
};

enum flow_flag {
	FLOW_TRANSLATE_SOURCE = 1 << 0,	     /* address and port replace the source */
	FLOW_TRANSLATE_DESTINATION = 1 << 1, /* address and port replace the destination */
	FLOW_REPLY = 1 << 2,   /* the other end began: never masquerade this direction */
	FLOW_STACK = 1 << 3,   /* the host's stack took part in the other direction */
	FLOW_CLOSING = 1 << 4, /* TCP: its sender sent FIN */
};

/* What was decided for a flow. */
struct flow {
	__u64 packets;		 /* of this decision and those before it; not exact across CPUs */
	__u64 bytes;		 /* of the network layer */
	struct address address;	 /* that replaces the packet's, if a flag says so */
	struct address next_hop; /* ACTION_FORWARD: the neighbour */
	__u32 epoch;		 /* sum of the two epochs it was decided in */
	__u32 decided;		 /* when, in ticks of 2^30 ns of the monotonic clock */
	__u32 out_ifindex;	 /* device, or host side of the receiving endpoint */
	__u32 checksum_diff;	 /* of the addresses: ones' complement sum, new - old */
	__be16 port;		 /* that replaces the packet's */
	__u16 mtu;		 /* of the way out, bytes of the network layer */
	__u16 endpoint;		 /* whose epoch counts besides the node's */
	__u8 action;		 /* enum action */
	__u8 flags;		 /* enum flow_flag */
	struct mac sender;	 /* the only one that may send this */
	struct mac receiver;	 /* ACTION_DELIVER: the endpoint's */
	struct mac gateway;	 /* ACTION_DELIVER: the endpoint's host side's */
	__u8 pad[6];
};
_Static_assert(sizeof(struct flow) == 96, "flow has no hidden padding");

enum translation_state {
	TRANSLATION_OPENING,	 /* nothing came back yet */
	TRANSLATION_ESTABLISHED, /* both ends have spoken */
	TRANSLATION_CLOSING,	 /* TCP: one end sent FIN */
	TRANSLATION_CLOSED,	 /* TCP: both ends sent FIN, or one RST */
};

enum translation_flag {
	TRANSLATION_STACK = 1 << 0,   /* the host's stack forwarded it: replies go back there */
	TRANSLATION_FIN_OUT = 1 << 1, /* the endpoint sent FIN */
	TRANSLATION_FIN_IN = 1 << 2,  /* the world sent FIN */
};

/*
 * A source port that was taken. Two entries stand for one translation: the key
 * as the reply from the world has it (ifindex 0) leads to the endpoint, and is
 * the allocation; the key as the endpoint sends leads to the world's view, and
 * is only a pointer to the other.
 */
struct translation {
	struct address address; /* reply: the endpoint's; pointer: the uplink's */
	__be16 port;
	__u16 endpoint;
	__u32 epoch;   /* of the endpoint when the port was taken */
	__u32 ifindex; /* the endpoint's host side */
	__u32 seen;    /* ticks of 2^30 ns of the monotonic clock, exact to 10 s */
	__u8 state;    /* enum translation_state; of the reply entry */
	__u8 flags;    /* enum translation_flag; of the reply entry */
	__u8 pad[2];
	__u32 slot; /* in allocations; of the reply entry */
};
_Static_assert(sizeof(struct translation) == 40, "translation has no hidden padding");

enum endpoint_flag {
	ENDPOINT_MASQUERADE = 1 << 0, /* what it sends to the world is masqueraded */
};

/* Who has an address. */
struct endpoint {
	__u32 ifindex; /* of the host side */
	__u16 id;
	__u16 mtu;
	struct mac mac;	     /* of the container's interface */
	struct mac host_mac; /* of the host side */
	__u8 flags;	     /* enum endpoint_flag */
	__u8 pad[3];
};
_Static_assert(sizeof(struct endpoint) == 24, "endpoint has no hidden padding");

enum interface_role {
	INTERFACE_NONE,
	INTERFACE_ENDPOINT, /* host side of a container's veth pair */
	INTERFACE_UPLINK,   /* a way to the world */
};

/* What a program needs to know of a device. */
struct interface {
	struct address ipv4; /* uplink: source of masqueraded packets; zero: none */
	struct address ipv6;
	__u16 mtu;
	__u16 endpoint; /* id */
	struct mac mac; /* endpoint: the container's */
	__u8 role;	/* enum interface_role */
	__u8 pad[5];
};
_Static_assert(sizeof(struct interface) == 48, "interface has no hidden padding");

/* A destination prefix in an LPM trie. */
struct prefix_key {
	__u32 length; /* in bits of the v4-mapped form: an IPv4 /8 is 104 */
	__u8 address[16];
};

struct fragment_key {
	struct address source;
	struct address destination;
	__u32 identification;
	__u32 ifindex; /* as in flow_key */
	__u8 protocol;
	__u8 pad[7];
};
_Static_assert(sizeof(struct fragment_key) == 48, "fragment_key has no hidden padding");

/* The ports that only a packet's first fragment carries. */
struct fragment {
	__be16 source_port;
	__be16 destination_port;
	__u32 seen; /* ticks of 2^30 ns of the monotonic clock */
};

enum journey {
	FROM_CONTAINER,
	TO_CONTAINER,
	FROM_UPLINK,
	TO_UPLINK,
	JOURNEY_MAX,
};

/*
 * What became of a packet. The names, in lower case and without prefix, are the
 * names that metrics and the CLI show. Those from DROP_INVALID on are drops.
 */
enum counter {
	COUNTER_PASSED,		     /* left to the host's stack */
	COUNTER_DELIVERED,	     /* redirected into an endpoint */
	COUNTER_FORWARDED,	     /* redirected out of an uplink */
	COUNTER_TRANSLATED_TO_STACK, /* translated, then left to the host's stack */
	COUNTER_TOO_BIG,	     /* left to the host's stack, which fragments or says so */
	COUNTER_DECIDED,	     /* counted besides: the slow path took a decision */
	DROP_INVALID,		     /* lengths, versions or header chains that make no sense */
	DROP_VLAN,		     /* a tagged frame from a container */
	DROP_SOURCE_ADDRESS,	     /* not the sender's own address */
	DROP_SOURCE_MAC,	     /* not the sender's own MAC */
	DROP_NEIGHBOUR, /* ARP, neighbour or router advertisement for what is not the sender's */
	DROP_MARTIAN,	/* a destination or source that no packet may have here */
	DROP_UNKNOWN_SENDER,	   /* the device has no endpoint */
	DROP_NO_UPLINK_ADDRESS,	   /* the uplink has no address of this family */
	DROP_PORTS_EXHAUSTED,	   /* no source port was free for this destination */
	DROP_ENDPOINT_LIMIT,	   /* the endpoint holds as many translations as it may */
	DROP_TRANSLATIONS_FULL,	   /* no room for another translation */
	DROP_UNSUPPORTED_PROTOCOL, /* a protocol that cannot be masqueraded */
	DROP_FRAGMENT,		   /* the first fragment was not seen, so its ports are unknown */
	DROP_NO_TRANSLATION,	   /* an ICMP error for a packet that was never translated */
	DROP_TTL,		   /* a reply that lived too long */
	DROP_REWRITE,		   /* the kernel refused to change the packet */
	DROP_NO_UPLINK, /* to be masqueraded, but routed to a gateway by a device that is no uplink
			 */
	COUNTER_MAX,
};

/* Places for counters of one journey, so that new ones do not move the others. */
#define COUNTER_PLACES 64
_Static_assert(COUNTER_MAX <= COUNTER_PLACES, "every counter has a place");

struct count {
	__u64 packets;
	__u64 bytes; /* of frames */
};
