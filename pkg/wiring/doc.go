// SPDX-License-Identifier: Apache-2.0

// Package wiring makes, checks and removes what connects a container to its
// node: the veth pair, the bridge, the macvlan device and its VLAN, addresses,
// neighbours and routes on both sides, and the node's routes for addresses that
// nobody has. It speaks rtnetlink to network namespaces that the caller names; the
// CNI plugin wires with it, the agent keeps the node's own routes with it.
//
// Whoever opens a Namespace closes it. Everything else that the package makes
// lives in the kernel and goes with the veth pair, except for the routes of
// EnsureUnreachable, which are removed with RemoveUnreachable, and the bridge
// of EnsureBridge with its addresses, which stays for the next container. The device of
// CreateChild goes with RemoveChild, with its namespace or with its parent; the
// sub-interface of MakeVLAN with RemoveVLAN.
//
// The messages of one step travel together: one send, one receive. Dumps,
// which only checks need, go through netlinksafe.
package wiring
