// SPDX-License-Identifier: Apache-2.0

// Package datapath loads the programs, keeps them, their maps and their links
// pinned, attaches endpoints and uplinks, and shows what the kernel does. The
// agent is its caller. What Open pins goes on without it: Close drops handles
// and leaves the datapath working.
package datapath
