// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * From a process of the host: hooks of its sockets. Who dials a mapped port at a
 * loopback address or at one of the host's own is led to the container when it
 * dials, so its packets need no translation; it is shown the address that it
 * dialled, as its peer and as the source of datagrams. The hooks meet the sockets
 * of the whole machine, and leave those of other network namespaces alone.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lib/address.h"
#include "lib/maps.h"
#include "lib/settings.h"

/* What a hook returns: anything else would refuse what the process asked for. */
#define GO_ON 1

static __always_inline bool is_ours(struct bpf_sock_addr *ctx)
{
	return bpf_get_netns_cookie(ctx) == netns_cookie;
}

static __always_inline bool is_loopback(const struct address *a)
{
	if (is_ipv4(a))
		return a->bytes[12] == 127;
	return !halves(a)[0] && halves(a)[1] == bpf_cpu_to_be64(1);
}

/* Whether it is the unspecified address of a family. */
static __always_inline bool is_unspecified(const struct address *a)
{
	return is_zero(a) || (is_ipv4(a) && !words(a)[3]);
}

static __always_inline void set_ipv6_loopback(struct address *a)
{
	halves(a)[0] = 0;
	halves(a)[1] = bpf_cpu_to_be64(1);
}

/*
 * Puts in the place of an unspecified address what the stack takes it for: the sender's own
 * IPv4 address, if the socket is bound to one, and otherwise loopback. For :: on a socket
 * that is bound to an IPv4 address, that is 127.0.0.1.
 */
static __always_inline void specify(struct address *a, const struct address *source)
{
	if (is_zero(a) && !is_ipv4(source))
		set_ipv6_loopback(a);
	else if (is_ipv4(a) && is_ipv4(source) && words(source)[3])
		*a = *source;
	else
		set_ipv4(a, bpf_htonl(INADDR_LOOPBACK));
}

/* Where a port leads, or NULL: looked up for its address first, then for all of the family. */
static __always_inline const struct port *mapping(const struct socket_peer *dialled, __u8 protocol)
{
	struct port_key key = {
		.address = dialled->address,
		.port = dialled->port,
		.protocol = protocol,
	};
	const struct port *port;

	if (!is_loopback(&key.address) && !bpf_map_lookup_elem(&host_addresses, &key.address))
		return NULL;
	port = bpf_map_lookup_elem(&ports, &key);
	if (!port) {
		if (is_ipv4(&key.address))
			set_ipv4(&key.address, 0);
		else
			halves(&key.address)[1] = halves(&key.address)[0] = 0;
		port = bpf_map_lookup_elem(&ports, &key);
	}
	return port;
}

/* A socket's own end, where it matters, and its peer, if it is connected already. */
struct ends {
	struct address source;
	struct socket_peer peer;
	bool connects; /* to what is dialled now */
};

static __always_inline bool same_peer(const struct socket_peer *a, const struct socket_peer *b)
{
	return a->port == b->port && same(&a->address, &b->address);
}

/* Notes what was dialled to be sent to key; NULL when that is what was dialled. */
static __always_inline void note(const struct socket_key *key, const struct socket_peer *dialled)
{
	const struct socket_peer *known = bpf_map_lookup_elem(&sockets, key);

	if (dialled && (!known || !same_peer(known, dialled)))
		bpf_map_update_elem(&sockets, key, dialled, BPF_ANY);
	else if (!dialled && known)
		bpf_map_delete_elem(&sockets, key);
}

/*
 * Notes whom the socket is connected to from now on, or that it is not led anywhere; dialled
 * is NULL then. Returns false when sockets is to be told: there is no memory for a new link
 * (never is there on x86 without cmpxchg16b since Linux 7), or there was none at the time of
 * one that sockets knows.
 */
static __always_inline bool note_peer(struct bpf_sock_addr *ctx, const struct socket_peer *to,
				      const struct socket_peer *dialled)
{
	struct socket_link *link;

	link = bpf_sk_storage_get(&peers, ctx->sk, NULL, dialled ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (!link)
		return false;
	link->to = *to;
	link->dialled = dialled ? *dialled : *to;
	return true;
}

/* As note, for a socket that was connected there once and is not now. */
static __always_inline void note_former_peer(struct bpf_sock_addr *ctx,
					     const struct socket_peer *to,
					     const struct socket_peer *dialled)
{
	struct socket_link *link = bpf_sk_storage_get(&peers, ctx->sk, NULL, 0);

	if (link && same_peer(&link->to, to))
		link->dialled = *dialled;
}

/*
 * A process sends to the address and ctx->user_port. Where a mapped port is meant, both
 * are replaced by the container's, and true is returned.
 *
 * What is bound to a loopback address or to a device has no way to a container, so it is
 * left to find that nobody listens. What a connected socket sends to its peer was led
 * there by connect; most of it comes by no hook, but IPv4 by sockets of IPv6 does. And
 * the peer of a connection stays the one that was dialled, whatever is sent besides.
 */
static __always_inline bool dial(struct bpf_sock_addr *ctx, struct address *address,
				 const struct ends *ends)
{
	struct socket_peer dialled = { .address = *address, .port = ctx->user_port };
	struct socket_peer to = dialled;
	const struct port *port = NULL;
	struct socket_key key = {};

	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return false;
	if (same_peer(&dialled, &ends->peer))
		return false;
	if (is_unspecified(&dialled.address))
		specify(&dialled.address, &ends->source);
	if (!is_loopback(&ends->source) && !ctx->sk->bound_dev_if)
		port = mapping(&dialled, ctx->protocol);
	if (port) {
		to.address = port->address;
		to.port = port->port;
	}
	if ((!ends->connects || !note_peer(ctx, &to, port ? &dialled : NULL)) &&
	    !same_peer(&to, &ends->peer)) {
		note_former_peer(ctx, &to, port ? &dialled : &to);
		key.cookie = bpf_get_socket_cookie(ctx);
		key.address = to.address;
		key.port = to.port;
		note(&key, port ? &dialled : NULL);
	}
	if (!port)
		return false;
	*address = to.address;
	ctx->user_port = to.port;
	return true;
}

static __always_inline int dial_ipv4(struct bpf_sock_addr *ctx, const struct ends *ends)
{
	struct address address;

	set_ipv4(&address, ctx->user_ip4);
	if (dial(ctx, &address, ends))
		ctx->user_ip4 = words(&address)[3];
	return GO_ON;
}

static __always_inline void read_ipv6(struct bpf_sock_addr *ctx, struct address *a)
{
	words(a)[0] = ctx->user_ip6[0];
	words(a)[1] = ctx->user_ip6[1];
	words(a)[2] = ctx->user_ip6[2];
	words(a)[3] = ctx->user_ip6[3];
}

static __always_inline void write_ipv6(struct bpf_sock_addr *ctx, const struct address *a)
{
	ctx->user_ip6[0] = words(a)[0];
	ctx->user_ip6[1] = words(a)[1];
	ctx->user_ip6[2] = words(a)[2];
	ctx->user_ip6[3] = words(a)[3];
}

static __always_inline int dial_ipv6(struct bpf_sock_addr *ctx, const struct ends *ends)
{
	struct address address;

	read_ipv6(ctx, &address);
	if (dial(ctx, &address, ends))
		write_ipv6(ctx, &address);
	return GO_ON;
}

/* Replaces the container's address and ctx->user_port, if that is where the socket was led. */
static __always_inline bool show(struct bpf_sock_addr *ctx, struct address *address)
{
	struct socket_key key = {
		.cookie = bpf_get_socket_cookie(ctx),
		.address = *address,
		.port = ctx->user_port,
	};
	const struct socket_peer to = { .address = *address, .port = ctx->user_port };
	const struct socket_link *link = bpf_sk_storage_get(&peers, ctx->sk, NULL, 0);
	const struct socket_peer *dialled;

	if (link && same_peer(&link->to, &to))
		dialled = &link->dialled;
	else
		dialled = bpf_map_lookup_elem(&sockets, &key);
	if (!dialled)
		return false;
	*address = dialled->address;
	ctx->user_port = dialled->port;
	return true;
}

static __always_inline int show_ipv4(struct bpf_sock_addr *ctx)
{
	struct address address;

	set_ipv4(&address, ctx->user_ip4);
	if (show(ctx, &address))
		ctx->user_ip4 = words(&address)[3];
	return GO_ON;
}

static __always_inline int show_ipv6(struct bpf_sock_addr *ctx)
{
	struct address address;

	read_ipv6(ctx, &address);
	if (show(ctx, &address))
		write_ipv6(ctx, &address);
	return GO_ON;
}

SEC("cgroup/connect4")
int host_connect4(struct bpf_sock_addr *ctx)
{
	struct ends ends = { .connects = true };

	if (!is_ours(ctx))
		return GO_ON;
	set_ipv4(&ends.source, ctx->sk->src_ip4);
	return dial_ipv4(ctx, &ends);
}

SEC("cgroup/connect6")
int host_connect6(struct bpf_sock_addr *ctx)
{
	struct ends ends = { .connects = true };

	if (!is_ours(ctx))
		return GO_ON;
	words(&ends.source)[0] = ctx->sk->src_ip6[0];
	words(&ends.source)[1] = ctx->sk->src_ip6[1];
	words(&ends.source)[2] = ctx->sk->src_ip6[2];
	words(&ends.source)[3] = ctx->sk->src_ip6[3];
	return dial_ipv6(ctx, &ends);
}

SEC("cgroup/sendmsg4")
int host_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct ends ends = {};

	if (!is_ours(ctx))
		return GO_ON;
	set_ipv4(&ends.source, ctx->msg_src_ip4);
	set_ipv4(&ends.peer.address, ctx->sk->dst_ip4);
	ends.peer.port = ctx->sk->dst_port;
	return dial_ipv4(ctx, &ends);
}

SEC("cgroup/sendmsg6")
int host_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct ends ends = {};

	if (!is_ours(ctx))
		return GO_ON;
	words(&ends.source)[0] = ctx->msg_src_ip6[0];
	words(&ends.source)[1] = ctx->msg_src_ip6[1];
	words(&ends.source)[2] = ctx->msg_src_ip6[2];
	words(&ends.source)[3] = ctx->msg_src_ip6[3];
	words(&ends.peer.address)[0] = ctx->sk->dst_ip6[0];
	words(&ends.peer.address)[1] = ctx->sk->dst_ip6[1];
	words(&ends.peer.address)[2] = ctx->sk->dst_ip6[2];
	words(&ends.peer.address)[3] = ctx->sk->dst_ip6[3];
	ends.peer.port = ctx->sk->dst_port;
	return dial_ipv6(ctx, &ends);
}

SEC("cgroup/recvmsg4")
int host_recvmsg4(struct bpf_sock_addr *ctx)
{
	return is_ours(ctx) ? show_ipv4(ctx) : GO_ON;
}

SEC("cgroup/recvmsg6")
int host_recvmsg6(struct bpf_sock_addr *ctx)
{
	return is_ours(ctx) ? show_ipv6(ctx) : GO_ON;
}

SEC("cgroup/getpeername4")
int host_peername4(struct bpf_sock_addr *ctx)
{
	return is_ours(ctx) ? show_ipv4(ctx) : GO_ON;
}

SEC("cgroup/getpeername6")
int host_peername6(struct bpf_sock_addr *ctx)
{
	return is_ours(ctx) ? show_ipv6(ctx) : GO_ON;
}

char _license[] SEC("license") = "Dual BSD/GPL";
