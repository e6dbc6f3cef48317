// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/packet"
	"github.com/tendril-net/tendril/internal/socktest"
)

// Bits of a network card's features, from section 5.1.3 of the specification of
// virtio 1.2: the driver may leave out a checksum; the card may have verified it.
const (
	featureCSum      = 0
	featureGuestCSum = 1
)

// A checksum that is wrong when it leaves a container is wrong on the wire, and this
// machine's kernel sees it: else no test here would say anything about checksums.
func testWrongChecksum(t *testing.T, s *site, f family) {
	features := cardFeatures(t)
	if features[featureCSum] != '0' || features[featureGuestCSum] != '0' {
		t.Fatalf("the card deals with checksums itself: features %s", features)
	}

	serving := s.here[host]
	var asked atomic.Int32
	at := socktest.WatchUDP(t, serving.ns, netip.AddrPortFrom(f.of(serving), 0), func(netip.AddrPort) { asked.Add(1) })
	before := s.checksumErrors(t)
	var there netip.AddrPort
	s.peer.swap(t, "serving", at, &there)

	from := s.here[hidden]
	network, header := "ip4:udp", 14+20
	if there.Addr().Is6() {
		network, header = "ip6:udp", 14+40
	}
	raw := socktest.In(t, from.ns, func() (*net.IPConn, error) { return net.ListenIP(network, &net.IPAddr{}) })
	socktest.CloseAtEnd(t, raw)
	anyone := packet.MAC("02:00:00:00:00:01") // the kernel makes this header, and that of IP
	frame := packet.New(packet.Eth(anyone, anyone), packet.IP(f.of(from), there.Addr()),
		packet.UDP(45000, there.Port(), packet.BadChecksum), packet.Payload(100))
	if _, err := raw.WriteTo(frame[header:], &net.IPAddr{IP: there.Addr().AsSlice()}); err != nil {
		t.Fatal(err)
	}

	name := "Udp"
	if there.Addr().Is6() {
		name = "Udp6"
	}
	want := maps.Clone(before)
	want[host+" "+name]++
	nodetest.Eventually(t, "a datagram with a wrong checksum", func() error {
		return nodetest.Unlike(s.checksumErrors(t)[host+" "+name], want[host+" "+name])
	})
	if diff := cmp.Diff(want, s.checksumErrors(t)); diff != "" {
		t.Errorf("wrong checksums that were received, by place (-want +got):\n%s", diff)
	}
	s.peer.swap(t, "done", nil, nil)
	if asked.Load() > 0 {
		t.Error("a datagram with a wrong checksum was delivered")
	}
}

// cardFeatures are the features that the card on the wire and its driver agreed on,
// a digit each.
func cardFeatures(t *testing.T) string {
	t.Helper()
	const networkCard = "0x0001"
	dirs := socktest.Must(filepath.Glob("/sys/bus/virtio/devices/*"))(t)
	for _, dir := range dirs {
		if text := socktest.Must(os.ReadFile(filepath.Join(dir, "device")))(t); strings.TrimSpace(string(text)) == networkCard {
			return string(socktest.Must(os.ReadFile(filepath.Join(dir, "features")))(t))
		}
	}
	t.Fatalf("no network card among the devices %s", dirs)
	return ""
}

// checksumErrors counts what the kernel received with a wrong checksum, where there
// is any, by place and protocol. Tcp is for both families.
func (s *site) checksumErrors(t *testing.T) map[string]int {
	t.Helper()
	counts := make(map[string]int)
	count := func(place, name, value string) {
		protocol, ok := strings.CutSuffix(name, "InCsumErrors")
		if number, err := strconv.Atoi(value); ok && err == nil && number > 0 {
			counts[place+" "+protocol] = number
		}
	}
	for name, place := range s.here {
		lines := strings.Split(place.ns.Run(t, "cat", "/proc/net/snmp"), "\n")
		// A line of names, then one of values.
		for i := 0; i+1 < len(lines); i += 2 {
			names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			for j := range names {
				count(name, strings.TrimSuffix(names[0], ":")+names[j], values[j])
			}
		}
		for line := range strings.Lines(place.ns.Run(t, "cat", "/proc/net/snmp6")) {
			if words := strings.Fields(line); len(words) == 2 {
				count(name, words[0], words[1])
			}
		}
	}
	return counts
}
