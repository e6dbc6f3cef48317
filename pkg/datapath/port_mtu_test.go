// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/socktest"
)

// TestPortMTU: where one of two endpoints has a smaller MTU, datagrams that are larger reach a mapped port and are
// answered, whatever their sockets make of the path's MTU: no error of the stack's would reach these.
func TestPortMTU(t *testing.T) {
	nstest.NeedKernel(t, "bpf_redirect_peer of more than the peer's MTU", 5, 12)
	for i, narrow := range []string{"client", "server"} {
		t.Run(narrow, func(t *testing.T) {
			nstest.Deal(t, i)
			s := newSite(t, "")
			device, ns := []string{"tdla", "tdlb"}[i], []*nstest.NS{s.a, s.b}[i]
			s.node.Run(t, "ip", "link", "set", device, "mtu", "1400")
			ns.Run(t, "ip", "link", "set", "eth0", "mtu", "1400")
			s.ends[i].MTU = 1400
			s.ends[1].Ports = mappedTo(hostPort, v4().b, v6().b)
			d := s.open(t)
			t.Cleanup(func() { must(t, d.Close()) })
			s.node.Do(t, func() { must(t, d.ReconcileHostAddresses([]netip.Addr{v4().host, v6().host})) })
			for _, f := range []family{v4(), v6()} {
				socktest.ServeUDP(t, s.b, netip.AddrPortFrom(f.b, server))
				for name, how := range map[string]int{"probes": unix.IP_PMTUDISC_DO, "adapts": unix.IP_PMTUDISC_WANT, "cuts": unix.IP_PMTUDISC_DONT} {
					ok := t.Run(f.name+", "+name, func(t *testing.T) {
						conn := socktest.DialUDP(t, s.a, netip.AddrPort{}, netip.AddrPortFrom(f.host, hostPort))
						socktest.Discover(t, conn, how)
						size := 1430 // more than 1400 bytes with headers; less than 1500 with 18 bytes of the answer
						if narrow == "client" {
							size = 1370 // 1398 bytes with headers; more with 18 of the answer
							if f.v6() {
								size -= 20
							}
						}
						for range 2 {
							if got := socktest.AskUDP(t, conn, socktest.Pattern(size)).Addr(); got != f.a {
								t.Errorf("the server saw %s, not %s", got, f.a)
							}
						}
					})
					if !ok {
						return // each of the others would be waited for
					}
				}
			}
		})
	}
}
