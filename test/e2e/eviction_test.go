// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/pkg/maps"
)

// TestAnswerAfterEviction: the world asks a masqueraded container at its own address, and
// the cache forgets that the other direction is an answer before it is given.
func TestAnswerAfterEviction(t *testing.T) {
	s := running(t)
	c := s.Attach(t, "c", s.pods)
	nodetest.Route(t, s.world, []string{pods4, "via", uplink4.String()}, []string{pods6, "via", uplink6.String()})
	at := serveUDP(t, c.NS, netip.AddrPortFrom(c.IPv4, 0))
	conn := dialUDP(t, s.world, netip.AddrPort{}, at)
	askUDP(t, conn, pattern(100))
	flows := s.Map(t, "flows")
	closeAtEnd(t, flows)
	var key maps.FlowKey
	var value maps.Flow
	var notes []maps.FlowKey
	for walk := flows.Iterate(); walk.Next(&key, &value); {
		if key.Ifindex != 0 && key.Protocol == 17 {
			notes = append(notes, key)
		}
	}
	for _, k := range notes {
		if err := flows.Delete(k); err != nil { // as a full LRU does
			t.Fatal(err)
		}
	}
	if got, err := tryUDP(conn, pattern(100), nodetest.Patience); err != nil {
		t.Errorf("answer: %v, %v", got, err)
	}
}
