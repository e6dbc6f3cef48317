// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/socktest"
)

// A container behind the other node has a smaller MTU than the wire. That node's
// kernel fragments what it may, and complains of what it may not, which reaches the
// asking container, masqueraded or not.
func testPathMTU(t *testing.T, s *site, f family) {
	var there netip.AddrPort
	s.peer.swap(t, "serving", serve(t, s.here[narrow], f).UDP, &there)
	for _, w := range []way{{hidden, narrow, host}, {open, narrow, open}} {
		want := f.of(s.here[w.seen])
		dial := func(how int, sizes ...int) {
			conn := socktest.DialUDP(t, s.here[w.from].ns, netip.AddrPort{}, there)
			socktest.Discover(t, conn, how)
			for _, size := range sizes {
				if got := socktest.AskUDP(t, conn, socktest.Pattern(size)).Addr(); got != want {
					t.Errorf("%s: UDP of %d bytes was seen to come from %s, not %s", w, size, got, want)
				}
			}
		}
		if there.Addr().Is4() {
			dial(unix.IP_PMTUDISC_DONT, 1400, 4000)
		}
		strict := socktest.DialUDP(t, s.here[w.from].ns, netip.AddrPort{}, there)
		socktest.Discover(t, strict, unix.IP_PMTUDISC_DO)
		if _, err := strict.Write(socktest.Pattern(1400)); err != nil {
			t.Fatalf("%s: before the MTU is known: %v", w, err)
		}
		_ = strict.SetReadDeadline(time.Now().Add(nodetest.Patience))
		if n, err := strict.Read(make([]byte, 2000)); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("%s: a datagram of 1400 bytes, not to be fragmented: got %d bytes, %v, want %v", w, n, err, unix.EMSGSIZE)
		}
		if got := socktest.PathMTU(t, strict); got != narrowMTU {
			t.Errorf("%s: the asking socket knows an MTU of %d, not %d", w, got, narrowMTU)
		}
		// From now on the asking container fragments by itself.
		dial(unix.IP_PMTUDISC_WANT, 1200, 1400, 4000)
	}
	s.peer.swap(t, "done", nil, nil)
}
