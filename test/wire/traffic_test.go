// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/socktest"
)

// way leads from a place here to a place on the other node, which sees the asker as
// a place here.
type way struct{ from, to, seen string }

func (w way) String() string { return w.from + " to " + w.to }

// ways are all that differ in who asks whom, and in what is done to the source.
func ways() []way {
	return []way{
		{hidden, host, host},
		{hidden, hidden, host},
		{hidden, open, hidden}, // its range is excluded from masquerade
		{open, host, open},
		{open, hidden, open},
		{host, hidden, host},
		{host, open, host},
		{bridged, host, host},
		{host, bridged, host},
		{station, host, station},
		{host, station, host},
	}
}

// service is what a place serves.
type service struct{ UDP, TCP netip.AddrPort }

func serve(t *testing.T, at place, f family) service {
	t.Helper()
	any := netip.AddrPortFrom(f.of(at), 0)
	return service{socktest.ServeUDP(t, at.ns, any), socktest.ServeTCP(t, at.ns, any)}
}

// seen is as whom an asker was seen, with UDP and ICMP by the bytes of payload.
type seen struct {
	UDP, ICMP map[int]netip.Addr
	TCP       netip.Addr
}

// everySize is one that is seen alike with all sizes.
func everySize(as netip.Addr) map[int]netip.Addr {
	all := make(map[int]netip.Addr)
	for _, size := range sizes {
		all[size] = as
	}
	return all
}

// ask asks a service by UDP and TCP, and returns as whom it was seen.
func ask(t *testing.T, from place, there service) seen {
	t.Helper()
	got := seen{UDP: make(map[int]netip.Addr)}
	conn := socktest.DialUDP(t, from.ns, netip.AddrPort{}, there.UDP)
	for _, size := range sizes {
		got.UDP[size] = socktest.AskUDP(t, conn, socktest.Pattern(size)).Addr()
	}
	stream := socktest.DialTCP(t, from.ns, there.TCP)
	got.TCP = stream.Seen.Addr()
	if err := stream.Exchange(socktest.Pattern(1 << 16)); err != nil {
		t.Errorf("64 KiB by TCP there and back: %v", err)
	}
	return got
}

// sizes are the bytes of payload of a datagram or an echo, in the order in which both
// machines go through them. 4000 take three fragments, each way.
var sizes = []int{1, 1400, 4000}

// test asks by each protocol.
func (w way) test(t *testing.T, s *site, f family) {
	from, to := s.here[w.from], s.here[w.to]
	asked := socktest.OpenEcho(t, to.ns, f.of(to))
	var there service
	s.peer.swap(t, "serving", serve(t, to, f), &there)

	as := f.of(s.here[w.seen])
	want := seen{UDP: everySize(as), ICMP: everySize(as), TCP: as}
	got := ask(t, from, there)
	asking := socktest.OpenEcho(t, from.ns, as)
	request, reply := asking.Types()
	for _, size := range sizes {
		if err := asking.Send(there.UDP.Addr(), uint16(size), size); err != nil {
			t.Fatal(err)
		}
		if who, err := asking.Await(reply, uint16(size), size); err != nil || who != there.UDP.Addr() {
			t.Errorf("ICMP echo of %d bytes: the answer came from %s (%v), not from %s", size, who, err, there.UDP.Addr())
		}
	}
	s.peer.swap(t, "asked", nil, nil)
	heard := make(map[int]netip.Addr)
	for _, size := range sizes {
		who, err := asked.Await(request, uint16(size), size)
		if err != nil {
			t.Errorf("ICMP echo of %d bytes: the other machine's does not come: %v", size, err)
		}
		heard[size] = who
	}
	s.peer.swap(t, "heard", heard, &got.ICMP)
	if diff := cmp.Diff(want, got, sameAddress); diff != "" {
		t.Errorf("%s saw %s come from (-want +got):\n%s", there.UDP.Addr(), f.of(from), diff)
	}
}

// Mapped ports of the other node lead to its containers, which see who asks as that comes over the
// wire.
func testMappedPorts(t *testing.T, s *site, f family) {
	node := f.of(s.here[host])
	for _, m := range mappings() {
		serving := s.here[m.place]
		socktest.ServeUDP(t, serving.ns, netip.AddrPortFrom(f.of(serving), publishedUDP))
		socktest.ServeTCP(t, serving.ns, netip.AddrPortFrom(f.of(serving), publishedTCP))
		var there service
		s.peer.swap(t, "serving "+m.place, service{netip.AddrPortFrom(node, m.nodeUDP), netip.AddrPortFrom(node, m.nodeTCP)}, &there)
		for _, w := range []way{{host, m.place, host}, {hidden, m.place, host}, {open, m.place, open}} {
			as := f.of(s.here[w.seen])
			want, got := seen{UDP: everySize(as), TCP: as}, ask(t, s.here[w.from], there)
			if diff := cmp.Diff(want, got, sameAddress); diff != "" {
				t.Errorf("the container behind %s saw %s come from (-want +got):\n%s", there.TCP, w.from, diff)
			}
		}
	}
	s.peer.swap(t, "done", nil, nil)
}

// A megabyte that is masqueraded, and one that is not, arrive whole.
func testLargeTransfer(t *testing.T, s *site, f family) {
	for _, w := range []way{{hidden, host, host}, {open, hidden, open}} {
		var there service
		s.peer.swap(t, w.String(), serve(t, s.here[w.to], f), &there)
		stream := socktest.DialTCP(t, s.here[w.from].ns, there.TCP)
		if got, want := stream.Seen.Addr(), f.of(s.here[w.seen]); got != want {
			t.Errorf("%s: the other machine saw %s, not %s", w, got, want)
		}
		if err := stream.Exchange(socktest.Pattern(1 << 20)); err != nil {
			t.Errorf("%s: 1 MiB there and back: %v", w, err)
		}
	}
	s.peer.swap(t, "done", nil, nil)
}
