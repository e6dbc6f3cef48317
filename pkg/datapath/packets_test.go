// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"
)

// TestPackets shows packets to the programs one by one, as the kernel would, and
// compares all that becomes of them. The tables are in the files named for their
// matter. Programs are loaded once for all.
func TestPackets(t *testing.T) {
	n := newNode(t, Config{Masquerade: true})
	for _, table := range []struct {
		name string
		test func(*testing.T, *node)
	}{
		{"from container", testFromContainer},
		{"from uplink", testFromUplink},
		{"to container", testToContainer},
		{"to uplink", testToUplink},
		{"services of others", testServices},
		{"ICMP errors", testICMPErrors},
		{"checksums", testChecksums},
		{"fragments", testFragments},
		{"TTL", testTTL},
		{"MTU", testMTU},
		{"translations", testTranslations},
		{"spoofing", testSpoofing},
		{"parsing", testParsing},
		{"passages", testNodePassages},
	} {
		t.Run(table.name, func(t *testing.T) { table.test(t, n) })
	}
}
