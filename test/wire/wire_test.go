// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nodetest"
)

// roleVariable is "a" or "b" in the two machines on a wire.
const roleVariable = "TENDRIL_TEST_WIRE"

// TestWire is all that two nodes do with each other. They boot, and start their
// agents, but once.
func TestWire(t *testing.T) {
	role := os.Getenv(roleVariable)
	if role == "" {
		t.Skip("needs two machines on a wire: make test-kernels-wire")
	}
	programs, err := nodetest.Find("../..", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, programs, role)
	s.run(t, journey{"wrong checksum", testWrongChecksum})
	before := s.checksumErrors(t)
	for _, j := range journeys() {
		s.run(t, j)
	}
	if diff := cmp.Diff(before, s.checksumErrors(t)); diff != "" {
		t.Errorf("wrong checksums that were received, by place (-before +after):\n%s", diff)
	}
	s.peer.enter()
	s.peer.swap(t, "the end", nil, nil)
	if drops := s.Drops(t); len(drops) != 0 {
		t.Errorf("packets were dropped: %v", drops)
	}
}

// journey is what both machines do at the same time, family by family.
type journey struct {
	name string
	test func(*testing.T, *site, family)
}

func (s *site) run(t *testing.T, j journey) {
	t.Run(j.name, func(t *testing.T) {
		for _, f := range families() {
			t.Run(f.name, func(t *testing.T) {
				s.peer.enter()
				j.test(t, s, f)
			})
		}
	})
}

// journeys are all there are, with right checksums. A test between two nodes becomes one more line here; what
// it swaps with its like on the other machine keeps the two in step.
func journeys() []journey {
	var list []journey
	for _, w := range ways() {
		list = append(list, journey{w.String(), w.test})
	}
	return append(list,
		journey{"large transfer", testLargeTransfer},
		journey{"path MTU", testPathMTU},
		journey{"mapped ports", testMappedPorts},
	)
}
