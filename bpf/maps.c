// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The maps and types alone: what the agent's typed access is generated from. */
#include "lib/maps.h"

/* Kept in the type information although no map holds them. */
const enum action *unused_action __attribute__((unused));
const enum flow_flag *unused_flow_flag __attribute__((unused));
const enum translation_state *unused_translation_state __attribute__((unused));
const enum translation_flag *unused_translation_flag __attribute__((unused));
const enum limit_direction *unused_limit_direction __attribute__((unused));
const enum endpoint_flag *unused_endpoint_flag __attribute__((unused));
const enum child_flag *unused_child_flag __attribute__((unused));
const enum child_hook *unused_child_hook __attribute__((unused));
const enum port_flag *unused_port_flag __attribute__((unused));
const enum interface_role *unused_interface_role __attribute__((unused));
const enum interface_flag *unused_interface_flag __attribute__((unused));
const enum key_kind *unused_key_kind __attribute__((unused));
const enum subject_flag *unused_subject_flag __attribute__((unused));
const enum identity_next *unused_identity_next __attribute__((unused));
const enum journey *unused_journey __attribute__((unused));
const enum counter *unused_counter __attribute__((unused));
