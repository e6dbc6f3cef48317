// SPDX-License-Identifier: Apache-2.0

// Package maps is typed access to the maps that the programs and the agent
// share. Layouts are written in bpf/lib/types.h alone; the Go types are generated
// from it. Package datapath opens the maps and owns them.
package maps
