// SPDX-License-Identifier: Apache-2.0

// Package uplink finds the devices of a network namespace through which the
// world is reached, and follows them: the ethernet devices that carry a default
// route of the main table, or those that the configuration names. For each it
// chooses, per family, the source address that masqueraded packets carry.
//
// The agent opens one Watcher per namespace and owns it. The Watcher holds one
// netlink socket for all that it follows, so that events arrive in the order in
// which the kernel made them. Besides the uplinks it reports that routing has
// changed, which makes decisions of the datapath stale, and that a device of
// the agent's own is gone.
package uplink
