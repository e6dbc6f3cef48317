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

static __noinline int fragment_ports(struct packet *packet)
{
	struct fragment_key key = {
		.source = packet->key.source,
		.destination = packet->key.destination,
		.identification = packet->identification,
		.ifindex = packet->key.ifindex,
		.protocol = packet->key.protocol,
	};
	struct fragment *known;

	if (packet->fragment == FRAGMENT_FIRST) {
		struct fragment ports = {
			.source_port = packet->key.source_port,
			.destination_port = packet->key.destination_port,
			.seen = now(),
		};

		bpf_map_update_elem(&fragments, &key, &ports, BPF_ANY);
		return 0;
	}
	known = bpf_map_lookup_elem(&fragments, &key);
	if (known && (__s32)(now() - known->seen) <= (__s32)FRAGMENT_AGE) {
		packet->key.source_port = known->source_port;
		packet->key.destination_port = known->destination_port;
	}
	return 0;
}
