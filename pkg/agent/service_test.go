// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/uplink"
)

func TestLifeOfAnEndpoint(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t, uplink.Uplink{Name: "eth0", IfIndex: 2, MTU: 1400})
	w.mustRemain(t, s, nothing())

	req := request("c1")
	req.Labels = map[string]string{"app": "web"}
	got, err := s.Prepare(ctx, req)
	must(t, err)
	want := api.Endpoint{
		Attachment: req.Attachment, ID: 1, Network: "pods", Driver: "routed", NetNS: "/run/netns/c1",
		State: api.Pending, HostIfName: api.HostIfName(req.Attachment), MTU: 1400, Masquerade: true,
		Addresses: []api.Address{
			{Address: netip.MustParsePrefix("10.10.0.2/24"), Gateway: netip.MustParseAddr("10.10.0.1")},
			{Address: netip.MustParsePrefix("fd00:10::2/64"), Gateway: netip.MustParseAddr("fd00:10::1")},
		},
		Labels: req.Labels, Created: w.clock,
	}
	if d := cmp.Diff(want, got, append(equate, cmpopts.IgnoreFields(api.Endpoint{}, "MAC", "HostMAC"))...); d != "" {
		t.Errorf("prepared (-want +got):\n%s", d)
	}
	for _, text := range []string{got.MAC, got.HostMAC} {
		if mac, err := net.ParseMAC(text); err != nil || mac[0]&3 != 2 {
			t.Errorf("MAC %s is not of one station and locally administered: %v", text, err)
		}
	}

	link := w.wire(got)
	ready, err := s.Attach(ctx, got.Attachment, api.AttachRequest{HostIfIndex: link.Index})
	must(t, err)
	want = got
	want.State, want.HostIfIndex = api.Ready, link.Index
	if d := cmp.Diff(want, ready, equate...); d != "" {
		t.Errorf("attached (-want +got):\n%s", d)
	}
	mac, _ := net.ParseMAC(got.MAC)
	if d := cmp.Diff(map[uint16]datapath.Endpoint{1: {
		ID: 1, IfIndex: link.Index, IfName: link.Name, MAC: mac, HostMAC: link.MAC, MTU: 1400, Masquerade: true, OnLinkKnown: true,
		Addresses: []netip.Addr{netip.MustParseAddr("10.10.0.2"), netip.MustParseAddr("fd00:10::2")},
	}}, w.attached, equate...); d != "" {
		t.Errorf("datapath (-want +got):\n%s", d)
	}
	must(t, s.Check(ctx, got.Attachment))
	subnets := []netip.Prefix{netip.MustParsePrefix("10.10.0.0/24"), netip.MustParsePrefix("fd00:10::/64")}
	w.mustRemain(t, s, remains{
		Links: []string{link.Name}, Attached: []uint16{1}, Unreachable: subnets, Leases: 2, Endpoints: []api.Attachment{got.Attachment},
		Excludes: []netip.Prefix{subnets[0], netip.MustParsePrefix("172.16.0.0/12"), subnets[1]},
	})
	// Attach is idempotent.
	_, err = s.Attach(ctx, got.Attachment, api.AttachRequest{HostIfIndex: link.Index})
	must(t, err)

	w.unwire(got.Attachment)
	must(t, s.Delete(ctx, got.Attachment))
	must(t, s.Delete(ctx, got.Attachment))
	rest := nothing()
	rest.Draining = []uint16{1}
	w.mustRemain(t, s, rest)
	must(t, s.purge())
	w.mustRemain(t, s, nothing())
}

func TestAttachRefuses(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	_, err := s.Attach(ctx, api.Attachment{ContainerID: "c1", IfName: "eth0"}, api.AttachRequest{HostIfIndex: 5})
	wantCode(t, err, api.CodeNotFound)
	e, err := s.Prepare(ctx, request("c1"))
	must(t, err)
	_, err = s.Attach(ctx, e.Attachment, api.AttachRequest{})
	wantCode(t, err, api.CodeInvalid)
	_, err = s.Attach(ctx, e.Attachment, api.AttachRequest{HostIfIndex: 5})
	wantCode(t, err, api.CodeMismatch) // no device
	link := w.wire(e)
	_, err = s.Attach(ctx, e.Attachment, api.AttachRequest{HostIfIndex: link.Index + 1})
	wantCode(t, err, api.CodeMismatch)
	w.links[link.Name] = HostLink{Name: link.Name, Index: link.Index, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}}
	_, err = s.Attach(ctx, e.Attachment, api.AttachRequest{HostIfIndex: link.Index})
	wantCode(t, err, api.CodeMismatch)
	w.links[link.Name] = link

	w.fail["AttachEndpoint"] = errors.New("refused")
	_, err = s.Attach(ctx, e.Attachment, api.AttachRequest{HostIfIndex: link.Index})
	if !errors.Is(err, w.fail["AttachEndpoint"]) {
		t.Fatalf("error %v", err)
	}
	delete(w.fail, "AttachEndpoint")
	if r := w.remains(t, s); len(r.Attached) != 0 {
		t.Errorf("attached %v after refused attempts", r.Attached)
	}
	_, err = s.Attach(ctx, e.Attachment, api.AttachRequest{HostIfIndex: link.Index})
	must(t, err)
	_, err = s.Attach(ctx, e.Attachment, api.AttachRequest{HostIfIndex: link.Index + 1})
	wantCode(t, err, api.CodeConflict)
}

// TestAttachToVanishingLink removes the device after it was looked at first.
func TestAttachToVanishingLink(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	e, err := s.Prepare(ctx, request("c1"))
	must(t, err)
	link := w.wire(e)
	w.during = func(call string) {
		if call == "AttachEndpoint" {
			w.unwire(e.Attachment)
			s.LinkGone(link.Index) // the event comes before the endpoint is known by its link
		}
	}
	_, err = s.Attach(ctx, e.Attachment, api.AttachRequest{HostIfIndex: link.Index})
	wantCode(t, err, api.CodeMismatch)
	if len(w.attached) != 0 {
		t.Errorf("attached %v", w.attached)
	}
}

func TestCheckFinds(t *testing.T) {
	tests := map[string]struct {
		spoil func(*world, *Service, api.Endpoint)
		code  string
	}{
		"endpoint gone":      {func(_ *world, s *Service, e api.Endpoint) { _ = s.Delete(ctx, e.Attachment) }, api.CodeNotFound},
		"device gone":        {func(w *world, _ *Service, e api.Endpoint) { w.unwire(e.Attachment) }, api.CodeMismatch},
		"device replaced":    {func(w *world, _ *Service, e api.Endpoint) { w.wire(e) }, api.CodeMismatch},
		"datapath different": {func(w *world, _ *Service, _ api.Endpoint) { w.fail["CheckEndpoint"] = &datapath.MismatchError{} }, api.CodeMismatch},
		"lease gone": {func(_ *world, s *Service, e api.Endpoint) {
			_ = s.opts.Leases.Release(e.Network, owner(e.Attachment), nil)
		}, api.CodeMismatch},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.boot(t)
			e := w.mustAdd(t, s, request("c1"))
			must(t, s.Check(ctx, e.Attachment))
			test.spoil(w, s, e)
			wantCode(t, s.Check(ctx, e.Attachment), test.code)
		})
	}
	t.Run("unfinished", func(t *testing.T) {
		w := newWorld(t)
		s, _ := w.boot(t)
		e, err := s.Prepare(ctx, request("c1"))
		must(t, err)
		wantCode(t, s.Check(ctx, e.Attachment), api.CodeMismatch)
	})
}

func TestDeleteThatIsRefusedKeepsTheEndpoint(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	e := w.mustAdd(t, s, request("c1"))
	before := w.remains(t, s)
	w.fail["DetachEndpoint"] = errors.New("refused")
	if err := s.Delete(ctx, e.Attachment); !errors.Is(err, w.fail["DetachEndpoint"]) {
		t.Fatalf("error %v", err)
	}
	delete(w.fail, "DetachEndpoint")
	w.mustRemain(t, s, before)
	must(t, s.Delete(ctx, e.Attachment))
}

func TestNumbersAreDenseAndPurgedBeforeReuse(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	for i := range 3 {
		w.mustAdd(t, s, request(fmt.Sprintf("c%d", i)))
	}
	must(t, s.Delete(ctx, request("c1").Attachment))
	if e := w.mustAdd(t, s, request("c3")); e.ID != 4 {
		t.Errorf("number %d before the purge of 2, want 4", e.ID)
	}
	w.fail["Purge"] = errors.New("refused")
	if err := s.purge(); !errors.Is(err, w.fail["Purge"]) {
		t.Errorf("error %v", err)
	}
	if e := w.mustAdd(t, s, request("c4")); e.ID != 5 {
		t.Errorf("number %d after a purge that failed, want 5", e.ID)
	}
	delete(w.fail, "Purge")
	must(t, s.purge())
	if e := w.mustAdd(t, s, request("c5")); e.ID != 2 {
		t.Errorf("number %d after the purge, want 2", e.ID)
	}
}

func TestNumbersRunOut(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	s.mu.Lock()
	for i := range s.index.ids.taken {
		s.index.ids.taken[i] = ^uint64(0)
	}
	s.index.ids.drain(9)
	s.mu.Unlock()
	// The one that drains is purged at once.
	if e := w.mustAdd(t, s, request("c1")); e.ID != 9 {
		t.Errorf("number %d, want 9", e.ID)
	}
	if d := cmp.Diff([]uint16{9}, w.purged); d != "" {
		t.Errorf("purged (-want +got):\n%s", d)
	}
	_, err := s.Prepare(ctx, request("c2"))
	wantCode(t, err, api.CodeExhausted)
}

func TestManyAtOnce(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	const count = 100
	var group sync.WaitGroup
	for i := range count {
		group.Go(func() {
			req := request(fmt.Sprintf("c%d", i))
			e, err := w.add(s, req)
			if err != nil {
				t.Error(err)
				return
			}
			if i%2 == 0 {
				w.unwire(e.Attachment)
				s.LinkGone(e.HostIfIndex)
				if err := s.Delete(ctx, e.Attachment); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	r := w.remains(t, s)
	if len(r.Endpoints) != count/2 || len(r.Attached) != count/2 || r.Leases != count {
		t.Errorf("%d endpoints, %d attached, %d leases; want %d, %d, %d",
			len(r.Endpoints), len(r.Attached), r.Leases, count/2, count/2, count)
	}
	_, err := s.GC(ctx, api.GCRequest{Network: "pods", Valid: []api.Attachment{}})
	must(t, err)
	must(t, s.purge())
	w.mustRemain(t, s, nothing())
}

func TestStatusAndLists(t *testing.T) {
	w := newWorld(t)
	up := uplink.Uplink{Name: "eth0", IfIndex: 2, MTU: 1500, IPv4: netip.MustParseAddr("192.0.2.2")}
	s, _ := w.boot(t, up)
	w.mustAdd(t, s, tiny("c1"))
	w.mustAdd(t, s, delegated("c2", "192.0.2.7/24"))
	bare := uplink.Uplink{Name: "eth1", IfIndex: 3, MTU: 1400}
	s.SetUplinks(uplink.Found{
		Uplinks: []uplink.Uplink{up, bare},
		Flaws:   []uplink.Flaw{{Device: "eht2", Kind: uplink.Absent}, {Device: "eth1", Kind: uplink.NoAddress}},
	})
	fill := uint64(3)
	got, err := s.Status(ctx)
	must(t, err)
	want := api.Status{
		Health: api.Health{OK: true}, Version: "v0.0.0-test", PID: os.Getpid(), Started: w.clock, Kernel: kernelRelease(),
		Attach: "tcx", Bandwidth: "token-bucket", BPFRoot: "/sys/fs/bpf/tendril", Endpoints: 2,
		Uplinks: []api.Uplink{
			{Name: "eth0", State: "used", IfIndex: 2, MTU: 1500, IPv4: up.IPv4},
			{Name: "eth1", State: "no address", IfIndex: 3, MTU: 1400},
			{Name: "eht2", State: "absent"},
		},
		Pools: []api.Pool{{Network: "tiny", Ranges: []string{"10.20.0.8-10.20.0.9"}, Leased: 1, Capacity: 2}},
		Maps:  []api.Map{{Name: "epochs", Capacity: 65536, Memory: 4096}, {Name: "flows", Entries: &fill, Capacity: 1024, Memory: 4096}},
		Counters: []api.Counter{
			{Journey: "from_container", Reason: "forwarded", Packets: 7, Bytes: 700},
			{Journey: "from_container", Reason: "source_address", Dropped: true, Packets: 2, Bytes: 84},
		},
	}
	if d := cmp.Diff(want, got, equate...); d != "" {
		t.Errorf("status (-want +got):\n%s", d)
	}
	networks, err := s.Networks(ctx)
	must(t, err)
	canonical := tiny("c1").Network
	canonical.Ranges[0][0].Gateway = netip.MustParseAddr("10.20.0.1")
	if d := cmp.Diff([]api.Network{delegated("c2", "192.0.2.7/24").Network, canonical}, networks, equate...); d != "" {
		t.Errorf("networks (-want +got):\n%s", d)
	}
	flows, err := s.Flows(ctx, 1)
	must(t, err)
	if d := cmp.Diff([]api.Flow{{
		Protocol: "udp", Action: "forward",
		Translated: &api.Translation{End: "source", To: netip.MustParseAddrPort("192.0.2.1:40960")},
	}}, flows, equate...); d != "" {
		t.Errorf("flows (-want +got):\n%s", d)
	}
	s.RoutesChanged()
	if w.invalidated != 1 {
		t.Errorf("decisions were invalidated %d times, want once", w.invalidated)
	}
}

// Nothing can be under a name that is refused, and DEL of nothing succeeds.
func TestDeleteOfANameThatCannotBe(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	for _, name := range []string{"eth%d", "all", "..", "a/b", "a-name-of-16-byt", ""} {
		must(t, s.Delete(ctx, api.Attachment{ContainerID: "c1", IfName: name}))
	}
	wantCode(t, s.Delete(ctx, api.Attachment{ContainerID: "../c1", IfName: "eth0"}), api.CodeInvalid)
}
