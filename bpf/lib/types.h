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

/* What a flow_key stands for; in translations only. */
enum key_kind {
	KEY_PACKET,  /* a packet that is translated */
	KEY_TRACKED, /* the answer to a flow that policy let through: nothing is translated */
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
	__u8 kind;     /* enum key_kind */
	__u8 pad[6];
};
_Static_assert(sizeof(struct flow_key) == 48, "flow_key has no hidden padding");

enum action {
	ACTION_NONE,	/* nothing decided: the entry only remembers its flags */
	ACTION_PASS,	/* the host's stack delivers or forwards it */
	ACTION_DELIVER, /* into the endpoint, past the host's stack */
	ACTION_FORWARD, /* out of an uplink, to a neighbour */
	ACTION_RETURN,	/* out of the uplink that the client came by, to the neighbour it came from
			 */
	ACTION_DENY,	/* policy lets it nowhere: dropped for reason */
	ACTION_BRIDGE,	/* to the station of the same bridge that has the receiver's MAC, as it is:
			   into the endpoint, or, where out_ifindex is 0, by the bridge */
	ACTION_LINK,	/* of or to a macvlan child: to the station that has the receiver's MAC */
};

enum flow_flag {
	FLOW_TRANSLATE_SOURCE = 1 << 0,	     /* address and port replace the source */
	FLOW_TRANSLATE_DESTINATION = 1 << 1, /* address and port replace the destination */
	FLOW_REPLY = 1 << 2,   /* the other end began: never masquerade this direction */
	FLOW_STACK = 1 << 3,   /* the host's stack took part in the other direction */
	FLOW_CLOSING = 1 << 4, /* TCP: its sender sent FIN */
	FLOW_HAIRPIN = 1 << 5, /* source and destination change places, and both have a new port */
	FLOW_OTHER_PORT = 1 << 6, /* source_port replaces the port of the end that is not translated
				   */
	FLOW_TRACKED = 1 << 7,	  /* a tracked entry of translations knows who began */
};

/* What was decided for a flow. */
struct flow {
	__u64 packets;		 /* of this decision and those before it; not exact across CPUs */
	__u64 bytes;		 /* of the network layer */
	struct address address;	 /* that replaces the packet's, if a flag says so */
	struct address next_hop; /* ACTION_FORWARD: the neighbour */
	__u32 epoch;		 /* sum of the two epochs it was decided in */
	__u32 decided;		 /* when, in ticks of 2^30 ns of the monotonic clock */
	__u32 out_ifindex;	 /* device, or host side of the receiving endpoint; ACTION_LINK
				    and _BRIDGE: 0 where the receiver is none */
	__u32 checksum_diff;	 /* of the addresses: ones' complement sum, new - old */
	__be16 port;		 /* that replaces the packet's */
	__u16 mtu;		 /* of the way out, bytes of the network layer */
	__u16 endpoint;		 /* whose epoch counts besides the node's */
	__u8 action;		 /* enum action */
	__u8 flags;		 /* enum flow_flag */
	struct mac sender;	 /* the only one that may send this */
	struct mac receiver;	 /* ACTION_DELIVER: the endpoint's; ACTION_RETURN: the neighbour's;
				    ACTION_BRIDGE, ACTION_LINK: the station's */
	struct mac gateway;	 /* ACTION_DELIVER: the endpoint's host side's; ACTION_RETURN: the
				    uplink's */
	__be16 source_port; /* FLOW_HAIRPIN: of the packet as delivered; port is its other end's.
			       FLOW_OTHER_PORT: see there */
	__u8 reason;	    /* ACTION_DENY: enum counter */
	__u8 unsure;	    /* TCP: when the first packet was seen, it was in the middle */
	__u8 limited; /* ACTION_DELIVER, _BRIDGE, _LINK: the receiver has a limit for what it gets
		       */
	__u8 of_port; /* answers at a mapped port: goes where the client is, whoever it is sent to
		       */
};
_Static_assert(sizeof(struct flow) == 96, "flow has no hidden padding");

enum translation_state {
	TRANSLATION_OPENING,	 /* nothing came back yet */
	TRANSLATION_ESTABLISHED, /* both ends have spoken, of a mapped port the client after it */
	TRANSLATION_CLOSING,	 /* TCP: one end sent FIN */
	TRANSLATION_CLOSED,	 /* TCP: both ends sent FIN, or one RST */
};

enum translation_flag {
	TRANSLATION_STACK = 1 << 0,    /* the host's stack forwarded it: replies go back there */
	TRANSLATION_FIN_OUT = 1 << 1,  /* the endpoint sent FIN */
	TRANSLATION_FIN_IN = 1 << 2,   /* the other end sent FIN */
	TRANSLATION_PORT = 1 << 3,     /* of a mapped port: the other end began */
	TRANSLATION_ANSWERED = 1 << 4, /* of a mapped port: the endpoint has spoken */
	TRANSLATION_HAIRPIN = 1 << 5,  /* the endpoint speaks to itself by a mapped port */
	TRANSLATION_LOCAL = 1 << 6,    /* of a mapped port: the other end is an endpoint, too */
	TRANSLATION_REMAPPED = 1 << 7, /* of a mapped port: the endpoint sees another client port */
};

/*
 * A source port that was taken, or a connection to a mapped port. Two entries
 * stand for one translation: the key as the packet to the endpoint has it, from
 * the world (ifindex 0) or another endpoint, leads to the endpoint, and is the
 * allocation; the key as the endpoint sends leads to the host's address, and is
 * only a pointer to the other.
 *
 * A flow that policy let through has one entry, of kind KEY_TRACKED: the key is its
 * answer's, address, port and ifindex are those of the end that began.
 */
struct translation {
	struct address address; /* reply: the endpoint's; pointer: the host's */
	__be16 port;
	__u16 endpoint;
	__u32 epoch;   /* of the endpoint when the port was taken */
	__u32 ifindex; /* the endpoint's host side; pointer of a mapped port: where the client is */
	__u32 seen;    /* ticks of 2^30 ns of the monotonic clock, exact to 10 s */
	__u8 state;    /* enum translation_state; of the reply entry */
	__u8 flags;    /* enum translation_flag */
	__be16 mapped; /* TRANSLATION_HAIRPIN: reply: the port of the host; pointer: the endpoint's.
			  TRANSLATION_REMAPPED: reply: the client's as the endpoint sees it;
			  pointer: as it is */
	__u32 slot;    /* in allocations; of the reply entry */
	struct mac neighbour; /* pointer of a mapped port: who handed over the client's packet */
	__u8 kind;	      /* enum key_kind: of its key */
	__u8 pad;
};
_Static_assert(sizeof(struct translation) == 48, "translation has no hidden padding");

enum endpoint_flag {
	ENDPOINT_MASQUERADE = 1 << 0, /* what it sends to the world is masqueraded */
	ENDPOINT_PORTS = 1 << 1,      /* ports of the host lead to it */
	ENDPOINT_LIMITED = 1 << 2,    /* bandwidth has a limit for what it gets */
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

/* Of a limit: which packets of the endpoint it is for, as the container sees it. */
enum limit_direction {
	LIMIT_INGRESS, /* that the container gets */
	LIMIT_EGRESS,  /* that it sends */
};

struct limit_key {
	__u32 ifindex;	 /* of the host side */
	__u32 direction; /* enum limit_direction */
};

#define LIMIT_FLOWS 32

/*
 * A limit, as a bucket of credit that is kept as time: what was not sent while the clock went
 * on. So nothing has to fill the bucket, and it is never looked at between packets.
 */
struct limit {
	struct bpf_spin_lock lock; /* of what programs write */
	__u32 exempts;		   /* 1: unshaped is to be asked */
	__u32 pacer;		   /* ifindex of the device that holds packets back; 0: none does */
	__u32 horizon;		   /* how long it holds one back at most, us */
	__u64 cost;		   /* of a byte, in units of 2^-20 ns */
	__u64 burst;		   /* most credit after a silence, ns */
	__u64 room;		   /* how many packets are held back at most */
	__u64 empty;	  /* when the bucket is empty, ns of the monotonic clock; later than now: it
			     is overdrawn */
	__u64 small;	  /* as empty, of what small packets have when that is overdrawn */
	__u64 dropped_at; /* when a packet was dropped last, same clock */
	__u64 packets;	  /* within the limit */
	__u64 bytes;	  /* of their frames */
	__u64 marked;	  /* of packets: as having met congestion (ECN) */
	__u64 dropped;	  /* packets beyond the limit */
	__u64 held;	  /* of packets: for later */
	__u64 waiting;	  /* of held: that have not left */
	__u64 busy[LIMIT_FLOWS]; /* until when a packet of a flow is held back, by hash, same clock
				  */
};
_Static_assert(sizeof(struct limit) == 112 + 8 * LIMIT_FLOWS, "limit has no hidden padding");

/* Whom a limit does not count, in an LPM trie. */
struct unshaped_key {
	__u32 length; /* in bits, of ifindex and v4-mapped form: an IPv4 /8 is 136 */
	__u32 ifindex;
	__u8 address[16];
};

enum interface_role {
	INTERFACE_NONE,
	INTERFACE_ENDPOINT, /* host side of a container's veth pair */
	INTERFACE_UPLINK,   /* a way to the world */
};

enum interface_flag {
	INTERFACE_ISOLATED = 1 << 0, /* the bridge lets nothing pass to others with it */
	INTERFACE_LAYER2 = 1 << 1,   /* the container has addresses that nobody here knows */
};

/* What a program needs to know of a device. */
struct interface {
	struct address ipv4; /* uplink: source of masqueraded packets; zero: none */
	struct address ipv6;
	__u16 mtu;
	__u16 endpoint; /* id */
	struct mac mac; /* endpoint: the container's; uplink: its own */
	__u8 role;	/* enum interface_role */
	__u8 flags;	/* enum interface_flag */
	__u32 bridge;	/* endpoint: whose link it shares with others: the node's device among the
			   ports of a bridge, or the parent of a macvlan child; 0: none */
	struct mac host_mac; /* endpoint: as struct endpoint has it */
	__u8 pad[2];
};
_Static_assert(sizeof(struct interface) == 56, "interface has no hidden padding");

/* The VLANs whose tags an endpoint may send: bit n % 64 of word n / 64 is VLAN n. */
#define VLAN_ID_MASK 0xfff
#define TRUNK_WORDS ((VLAN_ID_MASK + 1) / 64)

struct trunk {
	__u64 vlans[TRUNK_WORDS];
};

/*
 * In the place of an interface index, with the endpoint's id: it is a macvlan child, and
 * has no device on the host. Indices of devices are positive.
 */
#define CHILD_INDEX 0x80000000

/*
 * In the place of a parent's index, or above it, where the parent is in the container: the child's
 * own index there, by which it is its own parent. No device of the node has such an index.
 */
#define INSIDE_INDEX 0x40000000

enum child_flag {
	CHILD_BRIDGED = 1 << 0,	  /* reaches and is reached by others of the parent that are, too */
	CHILD_REFLECTED = 1 << 1, /* a switch sends back what it says to others of the parent */
	CHILD_HOST = 1 << 2,	  /* reaches the host, and is reached by it */
	CHILD_PASSTHRU = 1 << 3,  /* gets all that the parent does */
	CHILD_GETS_LIMITED = 1 << 4,  /* bandwidth has a limit for what it gets */
	CHILD_SENDS_LIMITED = 1 << 5, /* and for what it sends */
};

/*
 * What rides on a parent. Either a MAC is given, or the inode number of a network namespace,
 * or neither for the parent itself.
 */
struct child_key {
	__u32 parent; /* interface index */
	__u32 netns;
	struct mac mac;
	__u8 pad[2];
};
_Static_assert(sizeof(struct child_key) == 16, "child_key has no hidden padding");

/* Of a MAC, the endpoint; of a namespace or parent, what its children have together. */
struct child {
	__u32 ifindex;	     /* CHILD_INDEX and the endpoint's id */
	__u32 netns;	     /* inode number of its network namespace */
	struct mac host_mac; /* the parent's */
	__u8 flags;	     /* enum child_flag */
	__u8 pad;
};
_Static_assert(sizeof(struct child) == 16, "child has no hidden padding");

/* The places of map child_programs. */
enum child_hook {
	CHILD_INGRESS, /* from_parent */
	CHILD_EGRESS,  /* to_parent */
	CHILD_HOOKS,
};

enum port_flag {
	/*
	 * The key is an endpoint's own address and port, which only loopback addresses of the
	 * host lead to: the world shall not reach it by a route either. It leads nowhere.
	 */
	PORT_LOOPBACK_ONLY = 1 << 0,
};

/*
 * A port of the host. The address is one of the host's, or the unspecified one of
 * a family for all of them.
 */
struct port_key {
	struct address address;
	__be16 port;
	__u8 protocol; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 flags;    /* enum port_flag */
	__u8 pad[4];
};
_Static_assert(sizeof(struct port_key) == 24, "port_key has no hidden padding");

/* Where a port of the host leads. */
struct port {
	struct address address; /* the endpoint's */
	__be16 port;
	__u16 endpoint; /* id */
	__u8 pad[4];
};
_Static_assert(sizeof(struct port) == 24, "port has no hidden padding");

/* A socket of the host, and where it really sends. */
struct socket_key {
	__u64 cookie;
	struct address address;
	__be16 port;
	__u8 pad[6];
};
_Static_assert(sizeof(struct socket_key) == 32, "socket_key has no hidden padding");

/* What a process of the host dialled. */
struct socket_peer {
	struct address address;
	__be16 port;
	__u8 pad[6];
};
_Static_assert(sizeof(struct socket_peer) == 24, "socket_peer has no hidden padding");

/* The peer of a connected socket of the host: where it really is, and what was dialled. */
struct socket_link {
	struct socket_peer to;
	struct socket_peer dialled;
};
_Static_assert(sizeof(struct socket_link) == 48, "socket_link has no hidden padding");

/*
 * Policy. A set is a number for the rules that hold for an endpoint in one direction, 0
 * where none restricts it; an identity is one for all addresses that rules treat alike, 0
 * for those that no rule names. All that policy says is written for a generation, and one
 * number tells which generation counts: the change of all is one write. In a generation,
 * what a set lets an identity do never changes, and neither number is used again.
 */
struct subject_key {
	__u32 generation;
	__u32 endpoint; /* id */
};

enum subject_flag {
	SUBJECT_NO_OTHERS = 1 << 0,  /* no endpoint of another network reaches it */
	SUBJECT_NO_OWN = 1 << 1,     /* no other endpoint of its network reaches it */
	SUBJECT_BY_ADDRESS = 1 << 2, /* the identity of each of its addresses is in identities */
};

/* What policy says of an endpoint. */
struct subject {
	__u32 ingress; /* set */
	__u32 egress;  /* set */
	__u32 identity;
	__u32 network; /* number of its network */
	__u32 flags;   /* enum subject_flag */
};

#define IDENTITY_KEYS 8	  /* of a node: it fills a cache line */
#define IDENTITY_STEPS 24 /* to the identity of an address, at most: 6 for each of 4 words */

enum identity_next {
	IDENTITY_NODE = 1u << 31, /* a node follows, the lower bits are its number */
	IDENTITY_WORD = 1u << 30, /* and it has keys for the address's next 32 bits */
};

/*
 * A node of the tree that finds an address's identity, 32 bits of the address at a time, in
 * the host's byte order. What follows is next of the last key that is not above these bits.
 */
struct identity_node {
	__u32 keys[IDENTITY_KEYS]; /* ascending, at first 0 or what leads here; unused: all ones */
	__u32 next[IDENTITY_KEYS]; /* an identity, or enum identity_next; unused: as the last used
				    */
};
_Static_assert(sizeof(struct identity_node) == 64, "identity_node fills a cache line");

/* Numbers of the two nodes that the search begins with, for 1 and for 4 words. */
#define IDENTITY_ROOT_IPV4 0
#define IDENTITY_ROOT_IPV6 1

struct policy_key {
	__u32 generation;
	__u32 set;
	__u32 identity; /* 0: of the rules for everybody; in chunk 0 divided by POLICY_RANGES */
	__u32 chunk;	/* 0, 1, ...: ranges that do not fit one value */
};

/* Destination ports that a rule lets through. */
struct policy_range {
	__u64 rule;  /* 0: no range */
	__u64 flows; /* new ones that it let through */
	__u16 first;
	__u16 last;
	__u8 protocol; /* IPPROTO_*; 0: each, and ports do not matter */
	__u8 more;     /* the next chunk goes on */
	__u8 pad[2];
};
_Static_assert(sizeof(struct policy_range) == 24, "policy_range has no hidden padding");

#define POLICY_RANGES 16 /* of a value of policies */
#define POLICY_CHUNKS 33 /* of a pair of set and identity: 513 ranges */

/*
 * Chunk 0 has the first range of each of as many identities, because most have one, and few
 * lines of a cache serve many then. The others have more ranges of one identity.
 */
struct policy {
	struct policy_range ranges[POLICY_RANGES];
};

/* What a rule let through in generations that have gone. */
struct hit {
	__u64 flows;
	__u32 generation; /* the last that is in flows */
	__u32 pad;
};
_Static_assert(sizeof(struct hit) == 16, "hit has no hidden padding");

/* Where denied counts for an endpoint, by its id: 0 ingress, 1 egress. */
#define DENIED_AT(endpoint, egress) ((__u32)(endpoint) << 1 | (egress))

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
	COUNTER_HOST,		     /* between the host and its container: no policy is asked */
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
	DROP_NO_UPLINK,	 /* to be masqueraded, but routed to a gateway by a device that is no uplink
			  */
	DROP_PORT_CLASH, /* an answer at a mapped port could not be told from another's */
	DROP_LOOPBACK_ONLY,	/* from outside, to a port that only loopback addresses lead to */
	DROP_POLICY_EGRESS,	/* no rule of the sender's policies lets its endpoint begin this */
	DROP_POLICY_INGRESS,	/* no rule of the receiver's policies lets others begin this */
	DROP_NETWORK_ISOLATION, /* the receiver's network is shut for that of the sender */
	DROP_BANDWIDTH_EGRESS,	/* beyond the limit of what its sender may send */
	DROP_BANDWIDTH_INGRESS, /* beyond the limit of what its receiver may get */
	COUNTER_MAX,
};

/* Places for counters of one journey, so that new ones do not move the others. */
#define COUNTER_PLACES 64
_Static_assert(COUNTER_MAX <= COUNTER_PLACES, "every counter has a place");

struct count {
	__u64 packets;
	__u64 bytes; /* of frames */
};
