// SPDX-License-Identifier: Apache-2.0

// Command tendril-cni is the CNI plugin: a container runtime runs it for each
// ADD, DEL, CHECK, GC, STATUS and VERSION, as the CNI specification says, in
// its versions 0.3.0 to 1.1.0. It asks the agent for an endpoint, or another
// IPAM plugin for addresses, wires the container with netlink, has the agent
// attach the datapath, and prints the result. It keeps no state of its own,
// and undoes what it did when anything fails.
//
// It neither uses the reference skeleton (skel), which answers every fault of
// a configuration with one of two codes and looks at CNI_NETNS only after ADD,
// nor package invoke, which passes on the process's environment instead of
// that of the call and links OpenTelemetry into a program that lives for
// milliseconds.
package main
