// SPDX-License-Identifier: Apache-2.0

package main

// mutation is one fault: the only place in a file of bpf/ where old stands gets new.
type mutation struct {
	name     string
	file     string
	old, new string
}

func mutations() []mutation {
	return []mutation{
		{"checksum without its carry", "lib/checksum.h", "~checksum_fold(sum + checksum_fold(diff))", "~(__u16)(sum + checksum_fold(diff))"},
		{"IPv4 checksum not updated for the TTL", "lib/rewrite.h", "		ip->check = checksum_replace(ip->check, (__u16)~bpf_htons(0x0100));\n", ""},
		{"IPv4 checksum not updated for the address", "lib/rewrite.h", "		ip->check = checksum_replace(ip->check, diff);\n", ""},
		{"TTL not decremented", "lib/apply.h", "if (decrement_ttl(skb, packet))", "if (0)"},
		{"TTL of 1 goes on", "lib/apply.h", "		if (packet->ttl <= 1)\n			return apply_pass", "		if (packet->ttl < 1)\n			return apply_pass"},
		{"zero checksum of UDP not kept", "lib/rewrite.h", "protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0", "0"},
		{"pseudo header of ICMPv6 forgotten", "lib/rewrite.h", "packet->key.protocol != IPPROTO_ICMP)", "packet->key.protocol != IPPROTO_ICMP && packet->key.protocol != IPPROTO_ICMPV6)"},
		{"old port left in the packet", "lib/rewrite.h", "			*field = port;\n", "			(void)*field;\n"},
		{"ports written into later fragments", "lib/rewrite.h", "	if (packet->fragment != FRAGMENT_LATER) {", "	if (1) {"},
		{
			"ports of fragments confused", "lib/fragment.h",
			"packet->key.source_port = known->source_port;", "packet->key.source_port = known->destination_port;",
		},
		{"fragments told apart by addresses alone", "lib/fragment.h", "	key->identification = packet->identification;\n", ""},
		{"fragments never forgotten", "lib/fragment.h", "if (known && (__s32)(now() - known->seen) <= (__s32)FRAGMENT_AGE) {", "if (known) {"},
		{"MTU off by one", "lib/apply.h", "			return apply_pass(skb, journey, COUNTER_TOO_BIG);\n		if (flow->flags", "			;\n		if (flow->flags"},
		{"prefix of an exclude too short", "lib/route.h", "	struct prefix_key key = { .length = 128 };", "	struct prefix_key key = { .length = 127 };"},
		{"next hop is the destination", "lib/route.h", "set_ipv4(&s->decision.next_hop, fib->ipv4_dst);", "s->decision.next_hop = s->packet.key.destination;"},
		{"way that appeared later", "lib/route.h", "fib_ask(skb, &s->packet, &fib) != BPF_FIB_LKUP_RET_NOT_FWDED", "fib_ask(skb, &s->packet, &fib) == 99"},
		{"port range begins too early", "lib/translation.h", "bpf_htons((__u16)(port_first + candidate))", "bpf_htons((__u16)(port_first + candidate - 1))"},
		{"port range ends too late", "lib/translation.h", "	if (candidate >= port_count ||", "	if (candidate > port_count ||"},
		{"all ports for every endpoint", "lib/translation.h", "port_count < PORTS_DIVIDED || mixed >> 30", "mixed != 1"},
		{"sockets of the host ignored", "lib/translation.h", "	if (host_uses(skb, s->reply.protocol, false))\n		return 0;\n", ""},
		{"endpoint's epoch ignored", "lib/clock.h", "return epoch_of(0) + epoch_of(endpoint);", "return epoch_of(0) + 0 * endpoint;"},
		{"translation outlives its endpoint", "lib/translation.h", "return t->epoch == epoch_of(t->endpoint) &&\n	      ", "return"},
		{"translation without its count", "lib/translation.h", "	held_add(endpoint, -1);\n", ""},
		{"decision outlives its translation", "lib/translation.h", "	flow_forget(&s->victim);\n", ""},
		{"RST not noted", "lib/translation.h", "if (packet->tcp_flags & TCP_RST) {", "if (0) {"},
		{"FIN not noted by the fast path", "lib/masquerade.h", "	translation_note(t, packet, inbound);\n	if (fin ||", "	if (fin ||"},
		{"closed connection not forgotten", "lib/masquerade.h", "	if (fin || t->state != TRANSLATION_CLOSED)\n		return 0;\n", "	if (1)\n		return 0;\n"},
		{"connection decided anew while it closes", "lib/masquerade.h", "	if (t->flags & (inbound ? TRANSLATION_FIN_IN : TRANSLATION_FIN_OUT))\n		s->decision.flags |= FLOW_CLOSING;\n", ""},
		{"another's address accepted", "from_container.c", "if (!self || self->ifindex != s->packet.key.ifindex) {", "if (!self) {"},
		{"MAC not compared by the fast path", "from_container.c", "!same_mac((struct mac *)ethernet->h_source, &flow->sender))", "0)"},
		{"MACs compared in part", "lib/address.h", " |\n		 (*(__u16 *)&a->bytes[4] ^ *(__u16 *)&b->bytes[4])", ""},
		{"advertisement for another's address", "lib/link_local.h", "!is_ipv6_link_local(&target) && !owns(&target, packet->key.ifindex)", "0"},
		{"v4-mapped address in IPv6", "lib/parse.h", "	if (is_ipv4(&packet->key.source) || is_ipv4(&packet->key.destination))\n		return PARSE_INVALID;\n", ""},
		{"header beyond the packet's end", "lib/parse.h", "(__u32)(packet->transport - ETH_HLEN + length) > packet->length", "0"},
		{"header of SCTP cut", "lib/parse.h", "		length = SCTP_HEADER;", "		length = sizeof(struct udphdr);"},
		{"quote behind the packet's end", "lib/icmp_error.h", "offset + sizeof(ports) > packet_end(skb, &s->packet) ||", ""},
		{"error too big for its way", "from_container.c", "	if (s->packet.icmp_kind == ICMP_KIND_ERROR && s->packet.length > s->decision.mtu)", "	if (0)"},
		{"atomic fragment taken for the first", "lib/parse.h", "if (fragment->offset & bpf_htons(0xfff9))", "if (1)"},
		{"martian source from the world", "from_uplink.c", "!is_martian(&s->packet.key.source) && ", ""},
		{"endpoint's own source from the world", "from_uplink.c", "!bpf_map_lookup_elem(&endpoints, &s->packet.key.source) && ", ""},
		{"tagged frame from the world", "from_uplink.c", "if (skb->vlan_present || ", "if ("},
		{"quote's IPv4 checksum", "lib/icmp_error.h", "!s->packet.ipv6 && quote_fix(skb, error, quote->network + 10, diff, false)", "0"},
		{"quote's absent UDP checksum", "lib/icmp_error.h", "(may_be_absent && !old)", "0"},
		{"quote's port at the other end", "lib/icmp_error.h", "port_offset(quote->key.protocol, source ? SOURCE : DESTINATION)", "port_offset(quote->key.protocol, source ? DESTINATION : SOURCE)"},
		{"packet of a segment counted as one", "lib/apply.h", "flow->packets += segments(skb);", "flow->packets += 1;"},
		{"what the stack forwards leaves unhidden", "to_uplink.c", "		error = -DROP_NO_TRANSLATION;\n	else", "		return TC_ACT_UNSPEC;\n	else"},
		{"port of all addresses for those of others", "lib/port.h", "!port || !is_host(&s->packet.key.destination)", "!port"},
		{"port of one address for all", "lib/translation.h", "	struct port *port = bpf_map_lookup_elem(&ports, &at);\n\n	if (!port) {", "	struct port *port = NULL;\n\n	if (!port) {"},
		{"another's port taken for masquerade", "lib/translation.h", "	if (is_others_port(s))\n		return 0;\n", ""},
		{"SYN answered by anybody opens a port's connection", "lib/translation.h", "		if (mapped)", "		if (0)"},
		{"datagram answered once is a stream", "lib/translation.h", "if (by_beginner && t->flags & TRANSLATION_ANSWERED)\n", "if (t->flags & TRANSLATION_ANSWERED)\n"},
		{"stream at a mapped port not noticed", "lib/masquerade.h", "	if (t->flags & ~flags & TRANSLATION_ANSWERED)\n		flow_forget(back);\n", "	(void)flags;\n"},
		{"silent stream keeps its place", "lib/translation.h", "(protocol != IPPROTO_TCP && (__s32)(now() - t->seen) > (__s32)SILENCE)", "0"},
		{"host's connection to an endpoint ends when its port is mapped", "lib/port.h", "	if (host_uses(skb,", "	if (!s->packet.key.ifindex && host_uses(skb,"},
		{"two ports of the host for one answer", "lib/port.h", "		if (!weaker)\n			return -DROP_PORT_CLASH;\n", ""},
		{"answer masqueraded after eviction", "from_container.c", "masked && is_asked_for(skb)", "false && is_asked_for(skb)"},
		{"answer of a port masqueraded", "from_container.c", "	if (has_ports) {", "	if (0) {"},
		{"answer of a port by the stack", "to_uplink.c", "	if (endpoint->flags & ENDPOINT_PORTS) {", "	if (0) {"},
		{"answer by another uplink than the question's", "lib/port.h", "	if (route_back(skb, s->where) == WAY_UPLINK)\n		return 0;\n", "	if (route(skb) == WAY_UPLINK)\n		return 0;\n"},
		{"client that has gone", "lib/port.h", "if (!t || client_has_gone(&s->reply))", "if (!t)"},
		{"shut port open by a route", "from_uplink.c", "if (endpoint->flags & ENDPOINT_PORTS && is_shut(skb))", "if (0)"},
		{"shut port open by the stack", "to_container.c", "	if (is_shut_for(skb, &packet, endpoint))\n		return DROP_LOOPBACK_ONLY;\n", ""},
		{"ports exchanged for a packet to itself", "lib/rewrite.h", "		ports[0] = source_port;\n		ports[1] = destination_port;", "		ports[1] = source_port;\n		ports[0] = destination_port;"},
		{"quote's port of a mapped one left in the error", "lib/port.h", "	s->decision.port = 0;\n", ""},
		{"host's socket does not get its port back", "to_uplink.c", "	translation_remove(skb);\n", ""},
	}
}
