/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Ports of fragments. The first fragment leaves its ports in a map, later ones
 * take them from there. A later fragment that comes before the first keeps zero
 * ports: whoever needs them drops it, whoever does not lets it go.
 */
#pragma once

#include <bpf/bpf_helpers.h>

#include "clock.h"
#include "maps.h"
#include "parse.h"

/* As long as Linux keeps fragments for reassembly (net.ipv4.ipfrag_time). */
#define FRAGMENT_AGE SECONDS(30)

static __always_inline void fragment_key_of(struct fragment_key *key, const struct packet *packet)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->source = packet->key.source;
	key->destination = packet->key.destination;
	key->identification = packet->identification;
	key->ifindex = packet->key.ifindex;
	key->protocol = packet->key.protocol;
}

/* Gives a later fragment the ports of the first, if that has come. */
static __noinline int fragment_find(struct packet *packet)
{
	struct fragment_key key;
	struct fragment *known;

	if (packet->fragment != FRAGMENT_LATER)
		return 0;
	fragment_key_of(&key, packet);
	known = bpf_map_lookup_elem(&fragments, &key);
	if (known && (__s32)(now() - known->seen) <= (__s32)FRAGMENT_AGE) {
		packet->key.source_port = known->source_port;
		packet->key.destination_port = known->destination_port;
	}
	packet->unkeyed = is_icmp(packet) && !has_ports(&packet->key);
	return 0;
}

/* Keeps a first fragment's ports, once its sender is known to be who it says. */
static __noinline int fragment_keep(struct packet *packet)
{
	struct fragment ports = {};
	struct fragment_key key;

	if (packet->fragment != FRAGMENT_FIRST)
		return 0;
	fragment_key_of(&key, packet);
	ports.source_port = packet->key.source_port;
	ports.destination_port = packet->key.destination_port;
	ports.seen = now();
	bpf_map_update_elem(&fragments, &key, &ports, BPF_ANY);
	return 0;
}
