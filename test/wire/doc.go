// SPDX-License-Identifier: Apache-2.0

// Package wire tests two nodes on one wire, each a machine of test/kernels with a
// kernel of its own: real frames, real checksums, and whatever the kernels do
// differently. `make test-kernels-wire` is the caller; anywhere else the test is
// skipped.
//
// Both machines run the same test at the same time and do the same in it: each
// serves, and asks what the other serves. So each kernel is tested as the node that
// masquerades and as the one that looks on. They keep step by a connection between
// the nodes' own addresses (see peer); a machine that fails hangs up, and the other
// does not wait for it.
package wire
