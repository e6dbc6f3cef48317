// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/uplink"
)

func TestGC(t *testing.T) {
	alive := filepath.Join(t.TempDir(), "netns")
	must(t, os.WriteFile(alive, nil, 0o600))
	// c1: all is there. c2: device gone. c3: device and namespace gone. c4: in another network.
	attachments := func(names ...string) []api.Attachment {
		list := []api.Attachment{}
		for _, name := range names {
			list = append(list, api.Attachment{ContainerID: name, IfName: "eth0"})
		}
		return list
	}
	tests := map[string]struct {
		valid []api.Attachment
		want  []api.Attachment
	}{
		"no list":    {nil, attachments("c3")},
		"empty list": {attachments(), attachments("c1", "c2", "c3")},
		"list":       {attachments("c1", "c3", "unknown"), attachments("c2")},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.boot(t)
			for _, container := range []string{"c1", "c2", "c3"} {
				req := request(container)
				if container != "c3" {
					req.NetNS = alive
				}
				e := w.mustAdd(t, s, req)
				if container != "c1" {
					w.unwire(e.Attachment)
				}
			}
			w.mustAdd(t, s, delegated("c4", "192.0.2.4/24"))
			got, err := s.GC(ctx, api.GCRequest{Network: "pods", Valid: test.valid})
			must(t, err)
			if d := cmp.Diff(api.GCResult{Freed: test.want}, got); d != "" {
				t.Errorf("freed (-want +got):\n%s", d)
			}
			if got := len(w.remains(t, s).Endpoints); got != 4-len(test.want) {
				t.Errorf("%d endpoints are left, want %d", got, 4-len(test.want))
			}
			for _, a := range test.want {
				if _, err := w.Link(api.HostIfName(a)); !errors.Is(err, ErrNoLink) {
					t.Errorf("device of %s is left: %v", a.ContainerID, err)
				}
			}
		})
	}
}

func TestGCGoesOnAfterAnError(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	w.mustAdd(t, s, request("c1"))
	pending, err := s.Prepare(ctx, request("c2"))
	must(t, err)
	w.fail["DetachEndpoint"] = errors.New("refused") // only what is ready is detached
	got, err := s.GC(ctx, api.GCRequest{Network: "pods", Valid: []api.Attachment{}})
	if !errors.Is(err, w.fail["DetachEndpoint"]) {
		t.Errorf("error %v", err)
	}
	if d := cmp.Diff([]api.Attachment{pending.Attachment}, got.Freed); d != "" {
		t.Errorf("freed (-want +got):\n%s", d)
	}
}

func TestNetworkStatus(t *testing.T) {
	w := newWorld(t)
	s, _ := w.boot(t)
	status := func(n api.Network) api.Health {
		t.Helper()
		h, err := s.NetworkStatus(ctx, n)
		must(t, err)
		return h
	}
	if d := cmp.Diff(api.Health{OK: true}, status(tiny("c").Network)); d != "" {
		t.Errorf("empty network (-want +got):\n%s", d)
	}
	w.mustAdd(t, s, tiny("c1"))
	w.mustAdd(t, s, tiny("c2"))
	if h := status(tiny("c").Network); h.OK || len(h.Reasons) != 1 {
		t.Errorf("full network: %+v", h)
	}
	w.fail["ReconcileUplinks"] = errors.New("refused")
	s.SetUplinks(uplink.Found{})
	if h := status(delegated("c", "192.0.2.1/24").Network); h.OK || len(h.Reasons) != 1 {
		t.Errorf("node not in order: %+v", h)
	}
	delete(w.fail, "ReconcileUplinks")
	s.SetUplinks(uplink.Found{})
	if h := status(podNetwork()); !h.OK {
		t.Errorf("node in order again: %+v", h)
	}
	bad := podNetwork()
	bad.Driver = "drivr"
	_, err := s.NetworkStatus(ctx, bad)
	wantCode(t, err, api.CodeInvalid)
}

// A device that a plugin made before it died, and never told of, goes with a list;
// without one it stays, as its ADD may be at work.
func TestGCRemovesDevicesWithoutEndpoint(t *testing.T) {
	const orphan = "tdl0123456789ab"
	for name, test := range map[string]struct {
		valid []api.Attachment
		stays bool
	}{
		"with a list":    {[]api.Attachment{}, false},
		"without a list": {nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.boot(t)
			w.mu.Lock()
			w.links[orphan] = HostLink{Name: orphan, Index: 77}
			w.mu.Unlock()
			if _, err := s.GC(ctx, api.GCRequest{Network: "pods", Valid: test.valid}); err != nil {
				t.Fatal(err)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if _, stays := w.links[orphan]; stays != test.stays {
				t.Errorf("device without endpoint is there: %t, want %t", stays, test.stays)
			}
		})
	}
}
