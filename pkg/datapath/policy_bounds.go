// SPDX-License-Identifier: Apache-2.0

package datapath

// PolicyEntryRanges is how many ranges of a pair one entry of PolicyEntries holds.
const PolicyEntryRanges = rangesPerEntry
