// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/tendril-net/tendril/internal/nstest"
)

// testBigTCP: of TCP beyond 64 KiB, which has an extension header of IPv6 until it is cut, every segment has
// room on its way.
func testBigTCP(t *testing.T, s *site, d *Datapath) {
	nstest.NeedKernel(t, "TCP of more than 64 KiB", 5, 19)
	for _, device := range []struct {
		ns   *nstest.NS
		name string
	}{{s.a, "eth0"}, {s.node, "tdla"}, {s.node, "tdlb"}, {s.b, "eth0"}} {
		device.ns.Run(t, "ip", "link", "set", device.name, "gso_max_size", "180000", "gro_max_size", "180000")
	}
	var listener net.Listener
	var client net.Conn
	var err error
	s.b.Do(t, func() { listener, err = net.Listen("tcp", netip.AddrPortFrom(v6().b, server).String()) })
	must(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	type outcome struct {
		bytes int64
		err   error
	}
	got := make(chan outcome, 1)
	go func() {
		connection, err := listener.Accept()
		if err != nil {
			got <- outcome{err: err}
			return
		}
		defer func() { _ = connection.Close() }()
		bytes, err := io.Copy(io.Discard, connection)
		got <- outcome{bytes, err}
	}()
	s.a.Do(t, func() { client, err = net.Dial("tcp", listener.Addr().String()) })
	must(t, err)
	defer func() { _ = client.Close() }()
	must(t, client.SetDeadline(time.Now().Add(patience)))
	const bytes = 16 << 20
	_, err = client.Write(make([]byte, bytes))
	must(t, err)
	must(t, client.Close())
	if is, want := <-got, (outcome{bytes: bytes}); is != want {
		t.Errorf("got %d bytes, %v, want %d", is.bytes, is.err, bytes)
	}
	counters, err := d.Counters()
	must(t, err)
	for _, c := range counters {
		if c.Reason == "too_big" && c.Packets > 0 {
			t.Errorf("%d packets are too big for %s", c.Packets, c.Journey)
		}
	}
}
