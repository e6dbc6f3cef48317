// SPDX-License-Identifier: Apache-2.0

// Package agent is the service behind the API: it owns the endpoints of a
// node, from the intent that is recorded before the first side effect to the
// release of the last number, and keeps kernel and records equal.
//
// cmd/agent opens what a Service needs (the state file, the leases, the
// datapath, the host's netlink), hands it over in Options, and closes it after
// the Service. Records and leases live in one bbolt file, so each step of ADD
// and DEL is one transaction; what a crash leaves between two of them is undone
// or completed by Start.
//
// Policy is a part of it (firewall): objects come from a source, pkg/policy makes
// tables of them and of the endpoints, and the datapath is told before it serves an
// endpoint and after it has ceased to.
//
// Locks are taken in this order: the lock of one attachment, that of the host's
// routes (ground), those of the firewall, that of the index. The index lock is never held over a call
// to the kernel or the disk.
package agent
