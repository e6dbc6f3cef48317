/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the agent sets once, when it loads the programs. The verifier sees
 * constants and removes what is off.
 */
#pragma once

#include <stdbool.h>

#include <linux/types.h>

volatile const bool masquerade = true;
volatile const __u16 port_first = 40960; /* of the source ports for masquerade, host byte order */
volatile const __u16 port_count = 24576;
volatile const __u32 endpoint_limit = 32768; /* translations one endpoint may hold */
volatile const __u32 allocation_slots = 65536;
volatile const bool coarse_clock = false;    /* bpf_ktime_get_coarse_ns, since Linux 5.11 */
volatile const __u32 fib_flags = 0;	     /* BPF_FIB_LOOKUP_SKIP_NEIGH, since Linux 6.4 */
volatile const __u32 netns_inode = 0;	     /* of the agent's network namespace; 0 is none's */
volatile const __u32 mark_base = 0x7e4e0000; /* of enum mark; seldom the same on two nodes */
volatile const __u64 netns_cookie = 0;	     /* of the agent's network namespace; 0 is none's */
