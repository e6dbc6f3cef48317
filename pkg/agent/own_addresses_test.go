// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

func addrs(texts ...string) []netip.Addr {
	var list []netip.Addr
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

// mustBeTold fails the test unless the datapath knows these addresses of the node.
func (w *world) mustBeTold(t *testing.T, want ...string) {
	t.Helper()
	if d := cmp.Diff(addrs(want...), w.told, equate...); d != "" {
		t.Errorf("host addresses (-want +got):\n%s", d)
	}
}

// TestHostAddresses follows the addresses of a node through the life of an agent.
func TestHostAddresses(t *testing.T) {
	w := newWorld(t)
	w.own = addrs("127.0.0.1", "127.0.0.53", "192.0.2.1", "169.254.20.10", "192.0.2.1", "::1", "fe80::1", "2001:db8::1")
	s, stop := w.boot(t)
	w.mustBeTold(t, "169.254.20.10", "192.0.2.1", "2001:db8::1")

	// 1. An event of an address that comes, one that goes, and one that says nothing.
	w.own = addrs("127.0.0.1", "192.0.2.1", "192.0.2.2")
	s.AddressesChanged()
	w.mustBeTold(t, "192.0.2.1", "192.0.2.2")
	w.told = nil
	s.AddressesChanged()
	if w.told != nil {
		t.Error("the datapath was told what it knows")
	}

	// 2. Nobody has the datapath forget for longer than a minute.
	s.tidy()
	w.mustBeTold(t, "192.0.2.1", "192.0.2.2")

	// 3. What could not be told is told later, and is a problem until then.
	w.fail["ReconcileHostAddresses"] = errors.New("refused")
	w.own = addrs("192.0.2.3")
	s.AddressesChanged()
	if h, _ := s.Health(ctx); h.OK || len(h.Reasons) != 1 || h.Reasons[0] != "host addresses: reconcile host addresses: refused" {
		t.Errorf("health %+v", h)
	}
	delete(w.fail, "ReconcileHostAddresses")
	s.AddressesChanged()
	w.mustBeTold(t, "192.0.2.3")
	if h, _ := s.Health(ctx); !h.OK {
		t.Errorf("health %+v", h)
	}

	// 4. The next agent tells before it serves.
	stop()
	w.own, w.told = addrs("192.0.2.4"), nil
	w.boot(t)
	w.mustBeTold(t, "192.0.2.4")
}

// A gateway that an ADD brings to the node is told before ADD returns; further
// endpoints cost no look at the node, up to the last that goes.
func TestGatewaysAreHostAddresses(t *testing.T) {
	w := newWorld(t)
	w.own = addrs("192.0.2.1")
	s, _ := w.boot(t)
	gateways := func(names ...string) { w.own = append(addrs("192.0.2.1"), addrs(names...)...) }
	looks := w.counted

	one := w.mustAdd(t, s, request("c1"))
	w.mustBeTold(t, "10.10.0.1", "192.0.2.1", "fd00:10::1")
	two := w.mustAdd(t, s, request("c2"))
	w.mustAdd(t, s, delegated("c3", "198.51.100.1/24")) // without a gateway
	must(t, s.Delete(ctx, one.Attachment))
	w.mustBeTold(t, "10.10.0.1", "192.0.2.1", "fd00:10::1")
	gateways("10.10.0.1", "fd00:10::1") // the plugin sets them after it has called Attach
	if got := w.counted - looks; got != 1 {
		t.Errorf("%d looks at the node's addresses, want 1", got)
	}

	gateways()
	must(t, s.Delete(ctx, two.Attachment))
	w.mustBeTold(t, "192.0.2.1")
	if got := w.counted - looks; got != 2 {
		t.Errorf("%d looks at the node's addresses, want 2", got)
	}

	gateways("10.10.0.1", "fd00:10::1")
	w.mustAdd(t, s, request("c4"))
	w.mustBeTold(t, "10.10.0.1", "192.0.2.1", "fd00:10::1")
}

// An endpoint that the datapath could not be told the gateway of is not served.
func TestGatewayRefused(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	e, err := s.Prepare(ctx, request("c1"))
	must(t, err)
	link := w.wire(e)
	w.fail["Addresses"] = errors.New("refused")
	if _, err := s.Attach(ctx, e.Attachment, api.AttachRequest{HostIfIndex: link.Index}); !errors.Is(err, w.fail["Addresses"]) {
		t.Errorf("error %v", err)
	}
	if len(w.attached) != 0 {
		t.Errorf("attached %v", w.attached)
	}
}

func TestHostAddressesOfANamespace(t *testing.T) {
	ns := nstest.New(t, "addresses")
	ns.Run(t, "ip", "link", "set", "lo", "up")
	ns.Run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0p")
	ns.Run(t, "ip", "link", "set", "eth0", "up")
	ns.Run(t, "ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
	ns.Run(t, "ip", "address", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
	ns.Run(t, "ip", "address", "add", "192.0.2.2", "peer", "192.0.2.3", "dev", "eth0p")
	host, err := OpenHost(ns.Path)
	must(t, err)
	t.Cleanup(func() { must(t, host.Close()) })
	got, err := host.Addresses()
	must(t, err)
	got = slices.DeleteFunc(got, netip.Addr.IsLinkLocalUnicast)
	slices.SortFunc(got, netip.Addr.Compare)
	if d := cmp.Diff(addrs("127.0.0.1", "192.0.2.1", "192.0.2.2", "::1", "2001:db8::1"), got, equate...); d != "" {
		t.Errorf("addresses (-want +got):\n%s", d)
	}
}
