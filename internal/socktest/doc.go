// SPDX-License-Identifier: Apache-2.0

// Package socktest makes the sockets of tests: servers for UDP, TCP and ICMP that
// say from where they were asked, and those who ask them. Tests of pkg/datapath,
// test/e2e and test/wire call it; whatever is opened is closed when its test ends.
//
// A socket belongs to the network namespace of the thread that made it, and may be
// used from any. Addresses are in host form: an IPv4 one is never v4-mapped.
package socktest
