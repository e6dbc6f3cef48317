// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
)

// childLater is a request of the driver macvlan whose addresses come by DHCP.
func childLater(container string) api.PrepareRequest {
	req := child(container)
	req.Network.Ranges = nil
	req.AddressesLater = true
	return req
}

func laterAddresses(address string) api.AttachRequest {
	return api.AttachRequest{Addresses: []api.Address{{Address: netip.MustParsePrefix(address), Gateway: netip.MustParseAddr("10.40.0.1")}}}
}

// wantFault is wantMessage for other codes.
func wantFault(t *testing.T, err error, code, want string) {
	t.Helper()
	if got := faultOf(t, err, code).Message; got != want {
		t.Errorf("%s %q, want %q", code, got, want)
	}
}

// TestAddressesLater: an endpoint is served, and known to policy, before it has an address; its
// ports lead to it from then on.
func TestAddressesLater(t *testing.T) {
	w := newWorld(t)
	lan := w.addParent("lan0")
	s, stop := w.boot(t)
	e, err := s.Prepare(ctx, withPorts(childLater("c1"), mapped("", 8080, 80, "tcp")))
	must(t, err)
	_, err = s.Attach(ctx, e.Attachment, laterAddresses("10.40.0.50/24"))
	wantMessage(t, err, "device eth0 is gone from /run/netns/c1")
	device := w.bear(e)
	_, err = s.Attach(ctx, e.Attachment, laterAddresses("10.40.0.50/24"))
	wantFault(t, err, api.CodeInvalid, `addresses "10.40.0.50/24": the endpoint was not attached without them`)
	_, err = s.Attach(ctx, e.Attachment, api.AttachRequest{})
	must(t, err)
	served := datapath.Endpoint{
		ID: 1, IfIndex: datapath.ChildIndex(1), IfName: "lan0", MAC: parsedMAC(e.MAC), HostMAC: lan.MAC, MTU: 1500,
		Child: &datapath.Child{Parent: lan.Index, NetNS: uint32(device.NetNS), Bridged: true, HostAccess: true},
	}
	w.mustServe(t, "without", served)
	must(t, s.Check(ctx, e.Attachment))
	s.tidy()

	for address, want := range map[string]string{
		"fd00:40::50/64": `addresses "fd00:40::50/64": is not of IPv4, as those that come later must be`,
		"127.0.0.1/8":    `addresses "127.0.0.1/8": is in 127.0.0.0/8: loopback addresses`,
		"10.40.0.1/24":   `addresses "10.40.0.1/24": is its own gateway`,
	} {
		_, err = s.Attach(ctx, e.Attachment, laterAddresses(address))
		wantFault(t, err, api.CodeInvalid, want)
	}
	w.mustServe(t, "still without", served)
	other := childElsewhere("c2", "10.40.0.50/24")
	w.mustAdd(t, s, other)
	_, err = s.Attach(ctx, e.Attachment, laterAddresses("10.40.0.50/24"))
	wantFault(t, err, api.CodeConflict, "address 10.40.0.50 is in use by container c2, interface eth0")
	must(t, s.Delete(ctx, other.Attachment))

	for range 2 { // it is idempotent
		got, err := s.Attach(ctx, e.Attachment, laterAddresses("10.40.0.51/24"))
		must(t, err)
		want := e
		want.State, want.Addresses = api.Ready, laterAddresses("10.40.0.51/24").Addresses
		if d := cmp.Diff(want, got, equate...); d != "" {
			t.Errorf("attached (-want +got):\n%s", d)
		}
	}
	_, err = s.Attach(ctx, e.Attachment, laterAddresses("10.40.0.52/24"))
	wantFault(t, err, api.CodeInvalid, `addresses "10.40.0.52/24": the endpoint has 10.40.0.51 already`)
	_, err = s.Attach(ctx, e.Attachment, api.AttachRequest{})
	must(t, err)
	address := netip.MustParseAddr("10.40.0.51")
	served.Addresses = []netip.Addr{address}
	served.Ports = []datapath.Port{{HostIP: netip.IPv4Unspecified(), HostPort: 8080, Protocol: 6, ContainerIP: address, ContainerPort: 80}}
	w.mustServe(t, "with them", served)
	if d := cmp.Diff(served.Addresses, s.firewall.members[1].Addresses, equate...); d != "" {
		t.Errorf("policy knows (-want +got):\n%s", d)
	}
	_, err = s.Prepare(ctx, withPorts(child("c3"), mapped("", 8080, 80, "tcp")))
	wantFault(t, err, api.CodeConflict, "ports[0].hostPort: 0.0.0.0:8080/tcp is taken by container c1, interface eth0, network lan")

	// So does the next agent.
	stop()
	w.attached = make(map[uint16]datapath.Endpoint)
	s, _ = w.boot(t)
	w.mustServe(t, "of the next agent", served)
	w.unwire(e.Attachment)
	must(t, s.Delete(ctx, e.Attachment))
	must(t, s.purge())
	w.mustRemain(t, s, nothing())
}

// Addresses that policy could not be told of are not served before it is.
func TestAddressesLaterUnknownToPolicy(t *testing.T) {
	w := newWorld(t)
	w.addParent("lan0")
	s, _ := w.boot(t)
	e := w.mustAdd(t, s, childLater("c1"))
	s.firewall.mu.Lock()
	s.firewall.broken = errBusy
	s.firewall.mu.Unlock()
	_, err := s.Attach(ctx, e.Attachment, laterAddresses("10.40.0.51/24"))
	wantCode(t, err, api.CodeUnavailable)
	s.tidy()
	if got := w.attached[1].Addresses; len(got) != 0 {
		t.Errorf("served with %v", got)
	}
	s.firewall.mu.Lock()
	s.firewall.broken = nil
	s.firewall.mu.Unlock()
	_, err = s.Attach(ctx, e.Attachment, laterAddresses("10.40.0.51/24"))
	must(t, err)
	want := []netip.Addr{netip.MustParseAddr("10.40.0.51")}
	if d := cmp.Diff([][]netip.Addr{want, want}, [][]netip.Addr{w.attached[1].Addresses, s.firewall.members[1].Addresses}, equate...); d != "" {
		t.Errorf("served, and known to policy (-want +got):\n%s", d)
	}
}

// An endpoint that has no address yet is ended like any.
func TestAddressesNeverCome(t *testing.T) {
	for _, end := range []string{"DEL", "GC", "restart"} {
		t.Run(end, func(t *testing.T) {
			w := newWorld(t)
			w.addParent("lan0")
			s, stop := w.boot(t)
			e := w.mustAdd(t, s, childLater("c1"))
			switch end {
			case "DEL":
				must(t, s.Delete(ctx, e.Attachment))
			case "GC":
				_, err := s.GC(ctx, api.GCRequest{Network: "lan", Valid: []api.Attachment{}})
				must(t, err)
			case "restart":
				stop()
				clear(w.children)
				clear(w.netns)
				s, _ = w.boot(t)
			}
			must(t, s.purge())
			w.mustRemain(t, s, nothing())
		})
	}
}

func TestAddressesLaterRefused(t *testing.T) {
	w := newWorld(t)
	w.addParent("lan0")
	s, _ := w.boot(t)
	ranges, routed := childLater("c1"), request("c1")
	ranges.Network.Ranges = child("c1").Network.Ranges
	routed.Network.Ranges, routed.AddressesLater = nil, true
	for _, c := range []struct {
		req  api.PrepareRequest
		want string
	}{
		{ranges, `addressesLater "true": ranges or addresses are given as well`},
		{routed, `addressesLater "true": is of another driver`},
		{withPorts(childLater("c1"), mapped("::1", 8080, 80, "tcp")), `ports[0].hostIP "::1": is of IPv6, and the endpoint has no IPv6 address`},
	} {
		_, err := s.Prepare(ctx, c.req)
		wantFault(t, err, api.CodeInvalid, c.want)
	}
	w.mustRemain(t, s, nothing())
}
