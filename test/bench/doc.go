// SPDX-License-Identifier: Apache-2.0

// Command bench measures tendril beside a bare veth pair and beside the CNI
// reference plugins, on this machine and in this run. `make bench` is its
// caller; it needs root.
//
//	./test/bench/run [-quick] [-json] [-only SECTION,...] [-traffic KIND,...] [-beside FOLDER] [flags]
//
// What is compared takes turns (A B C A B C ...) in short windows, 10 s for each
// figure in sum, so that a machine that becomes slower becomes so for all. What
// counts are ratios of medians. Beside each stand the extremes of the samples
// and the quartiles of the ratios within each round: where these are far apart,
// the machine was busy and the ratio says little.
//
//   - packet: the programs under BPF_PROG_TEST_RUN, for packets of established
//     flows. A program changes the packet, so each repetition first writes the
//     changed fields anew; the cost of that, measured with an empty program,
//     is subtracted.
//   - same-node: container to container. Sender and receiver of "throughput"
//     and "packets" have a CPU each; both ends of "request-response" and
//     "connect" share one, as on two CPUs these depend on where the scheduler
//     puts the ends.
//   - masquerade: container to a peer behind the uplink, with no way back but
//     to the node's address. The bare pair has the peer at its other end.
//   - ports: a peer behind the uplink to a mapped port of the node, which has no
//     other, beside a node that has 10,000 of them (-ports), 100 for a container.
//     The chain has 1 and 1,000.
//   - policy: what rules cost. Packets of established flows with 1 and with 100,000
//     rules, four for each of 25,000 CIDRs: the programs as in section packet, and
//     traffic from container to container. The first packet of a flow from outside,
//     with 1 and with 10,000 rules of a CIDR each: the program sees another client each
//     time, at random one of any rule's, so what it looks up is seldom in the CPU's
//     caches; one client beside says how much that is. How long 10,000 rules take
//     from their text to what the programs ask, with 100 endpoints. At last, traffic from
//     outside with 1 and with 10,000 CIDRs, as policy and as rules of netfilter where
//     packets are forwarded: "nft" and "iptables" with a rule for each CIDR, "nft-set"
//     with a set of them. Each lets established connections through first; UDP that
//     nobody answers is none to conntrack. "packets" come from the CIDR in the middle.
//     Programs and loading are measured on one node, which gets the policies in turn,
//     traffic on a node each; none has an agent meanwhile.
//   - bandwidth: what arrives of 10, 100 and 1,000 Mbit/s, to and from a limited container, with
//     the world and with another container of the node at the other end; in bytes of frames, by
//     CUBIC and UDP, and how much UDP was sent. What arrives of 50 Mbit/s in the first second after
//     a pause. The 99th percentile of the round trips of a small connection beside a stream in that
//     limit: of bytes sent every 2 ms, whatever has become of the ones before; and how much of the
//     limit the stream gets. Then containers without a limit, on a node that has limits of others
//     beside one that has none. "bandwidth" is the reference plugin of that
//     name behind ptp, "htb" HTB in the places where that plugin has TBF; all are asked for a
//     burst of 10 ms. Windows are four to ten times as long as others, rounds three at most.
//   - cni: latency of ADD and DEL, each plugin executed as container runtimes do;
//     again for containers with 1 and with 100 mapped ports. The chain maps 100
//     in a tenth of the rounds only.
//   - memory: the agent and its maps with 1,000 endpoints.
//
// Beside the plugins stand "raw", the bare pair, and "redirect": a program that
// knows nothing and redirects all to the other container, which is what any
// datapath on veth pairs costs at least. "bridge" is the reference plugin of that name alone,
// and "tendril-bridge" tendril with its driver bridge. -beside adds another build of tendril.
//
// "packets" are UDP with 64 bytes of payload, counted where they arrive.
// "connect" is connect, one byte there, one byte back, and a close begun by the
// client. Its side keeps TIME_WAIT, so connections go to 16 ports of the server
// in turn, or to one from 16 addresses of the client, in section policy 256: otherwise it
// would run out of source ports.
//
// The command runs in mount, PID and network namespaces of its own, with tmpfs
// on /run. All that it makes, processes included, goes with them, also when it
// is killed.
package main
