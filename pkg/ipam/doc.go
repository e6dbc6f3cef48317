// SPDX-License-Identifier: Apache-2.0

// Package ipam hands out addresses from ranges and remembers who holds them.
// The agent calls it; it imports no sibling.
//
//   - range.go: what a range is, its defaults, what makes it invalid.
//   - pool.go, resting.go: which address comes next (pure).
//   - network.go, prepare.go: the pools of a network and their change.
//   - store.go, query.go, load.go, record.go: leases in memory and in a bbolt file.
//   - file.go, page.go: opening that file, or saying what is wrong with it.
//
// The caller owns the bbolt file: OpenFile opens it, Open reads the leases in
// it, and the caller closes it when it no longer uses the Store. The package
// keeps to the top-level bucket "ipam"; all others are the caller's.
//
// # Networks come and go
//
// A network's ranges are those of its latest Allocate. When they change, leases
// from the old ones stay valid and new ones come from the new. Two networks
// whose ranges overlap cannot both hold leases; a network without leases, which
// nobody tells the agent is gone, gives way to one that needs its addresses.
//
// # Surviving kill -9
//
// What a transaction wrote is in the page cache, which outlives the process, and
// bbolt writes the meta page that makes it count last, so at any instruction the
// file holds the old state or the new. Nothing has to be synced for that. The
// file is opened with syncing on nevertheless: on tmpfs, where it belongs,
// fdatasync does nothing and cost nothing that could be measured, and on a disk
// it makes a power cut harmless too.
package ipam
