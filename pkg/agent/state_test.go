// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/uplink"
)

// TestStateFileDamaged cuts the file at many lengths. Each is refused with what
// to do, and none is changed.
func TestStateFileDamaged(t *testing.T) {
	w := newWorld(t)
	s, stop := w.boot(t)
	for i := range 20 {
		w.mustAdd(t, s, request(fmt.Sprintf("c%d", i)))
	}
	stop()
	path := filepath.Join(w.dir, "state.db")
	whole, err := os.ReadFile(path)
	must(t, err)
	for _, length := range []int{1, 100, 4096, 5000, 8192, len(whole) / 2} {
		t.Run(fmt.Sprintf("%d of %d bytes", length, len(whole)), func(t *testing.T) {
			must(t, os.WriteFile(path, whole[:length], 0o600))
			_, err := OpenState(path)
			var damaged *StateError
			if !errors.As(err, &damaged) || damaged.Path != path {
				t.Errorf("error %v", err)
			}
			after, err := os.ReadFile(path)
			must(t, err)
			if d := cmp.Diff(whole[:length], after); d != "" {
				t.Error("the file has changed")
			}
		})
	}
}

func TestStateFileOfAnotherFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := OpenState(path)
	must(t, err)
	must(t, db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put([]byte("format"), []byte("99")) }))
	must(t, db.Close())
	_, err = OpenState(path)
	if wrong := (*StateError)(nil); !errors.As(err, &wrong) {
		t.Errorf("error %v", err)
	}
}

// stored is a record as the state file of an agent may have it.
func stored(container string, id uint16) *record {
	a := api.Attachment{ContainerID: container, IfName: "eth0"}
	return &record{Endpoint: api.Endpoint{
		Attachment: a, ID: id, Driver: api.DriverRouted, State: api.Ready, HostIfName: api.HostIfName(a),
		MAC: "02:00:00:00:00:01", HostMAC: "02:00:00:00:00:02", MTU: 1500,
	}}
}

// A record that no agent can have written is named, with what is wrong with it.
func TestStartRefusesWrongRecords(t *testing.T) {
	spoiled := func(spoil func(r *record)) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error {
			r := stored("c1", 7)
			spoil(r)
			return putRecord(tx, r)
		}
	}
	put := func(bucket []byte, key, value string) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put([]byte(key), []byte(value)) }
	}
	tests := map[string]struct {
		spoil func(tx *bbolt.Tx) error
		want  string
	}{
		"not JSON":       {put(bucketEndpoints, "c1/eth0", "{"), `read endpoint "c1/eth0": unexpected end of JSON input`},
		"another's key":  {put(bucketEndpoints, "c1/eth0", `{"id":1}`), `read endpoint "c1/eth0": the record is another's`},
		"no number":      {spoiled(func(r *record) { r.ID = 0 }), `read endpoint "c1/eth0": the record is another's`},
		"no state":       {spoiled(func(r *record) { r.State = "" }), `read endpoint "c1/eth0": state "" is none`},
		"no driver":      {spoiled(func(r *record) { r.Driver = "ipvlan" }), `read endpoint "c1/eth0": driver "ipvlan" is none`},
		"node's device":  {spoiled(func(r *record) { r.HostIfName = "eth0" }), `read endpoint "c1/eth0": device "eth0" is not its`},
		"child's device": {spoiled(func(r *record) { r.Driver = api.DriverMacvlan }), `read endpoint "c1/eth0": device "tdld72e032fedd9" is not its`},
		"no bridge":      {spoiled(func(r *record) { r.Driver = api.DriverBridge }), `read endpoint "c1/eth0": bridge "" with driver bridge`},
		"routed bridge":  {spoiled(func(r *record) { r.Bridge = "br0" }), `read endpoint "c1/eth0": bridge "br0" with driver routed`},
		"MAC":            {spoiled(func(r *record) { r.MAC = "02:00:00:00:00" }), `read endpoint "c1/eth0": "02:00:00:00:00" is no ethernet address`},
		"long MAC":       {spoiled(func(r *record) { r.HostMAC = "02:00:00:00:00:00:00:01" }), `read endpoint "c1/eth0": "02:00:00:00:00:00:00:01" is no ethernet address`},
		"no address":     {spoiled(func(r *record) { r.Addresses = make([]api.Address, 1) }), `read endpoint "c1/eth0": addresses[0] is none`},
		"one number for two": {
			func(tx *bbolt.Tx) error {
				return errors.Join(putRecord(tx, stored("c1", 7)), putRecord(tx, stored("c2", 7)))
			},
			`read endpoint "c2/eth0": its number 7 is that of "c1/eth0"`,
		},
		"draining key": {put(bucketDraining, "xyz", ""), `read draining endpoint id "xyz": it has 3 bytes`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			db, err := OpenState(filepath.Join(w.dir, "state.db"))
			must(t, err)
			defer func() { must(t, db.Close()) }()
			must(t, db.Update(tt.spoil))
			err = w.service(t, db).Start(uplink.Found{})
			wrong := (*StateError)(nil)
			if !errors.As(err, &wrong) {
				t.Fatalf("error %v", err)
			}
			if d := cmp.Diff(StateError{Path: db.Path(), Reason: "damaged: " + tt.want}, StateError{Path: wrong.Path, Reason: wrong.Reason + ": " + wrong.Err.Error()}); d != "" {
				t.Errorf("error (-want +got):\n%s", d)
			}
		})
	}
}

func TestMounts(t *testing.T) {
	db, err := OpenState(filepath.Join(t.TempDir(), "state.db"))
	must(t, err)
	defer func() { must(t, db.Close()) }()
	must(t, RecordMount(db, "/sys/fs/bpf"))
	must(t, RecordMount(db, "/sys/fs/bpf"))
	got, err := Mounts(db)
	must(t, err)
	if d := cmp.Diff([]string{"/sys/fs/bpf"}, got); d != "" {
		t.Errorf("mounts (-want +got):\n%s", d)
	}
	must(t, ForgetMount(db, "/sys/fs/bpf"))
	must(t, ForgetMount(db, "/never"))
	if got, err := Mounts(db); err != nil || got != nil {
		t.Errorf("mounts that were forgotten: %v, %v", got, err)
	}
}

// FuzzPrepare parses any body as the API would. What is valid can be stored and
// read back.
func FuzzPrepare(f *testing.F) {
	for _, req := range []api.PrepareRequest{request("c1"), tiny("c2"), delegated("c3", "192.0.2.1/24"), bridged("c4")} {
		body, err := json.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var req api.PrepareRequest
		if json.Unmarshal(body, &req) != nil {
			return
		}
		in, err := parsePrepare(req)
		if err != nil {
			if fault := (*api.Error)(nil); !errors.As(err, &fault) || fault.Code != api.CodeInvalid {
				t.Fatalf("error %v", err)
			}
			return
		}
		r := &record{Origin: in.network, Endpoint: api.Endpoint{Attachment: in.attachment, Bridge: in.network.Bridge, Addresses: in.addresses, Labels: in.labels, NetNS: in.netns}}
		stored, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		back := &record{}
		if err := json.Unmarshal(stored, back); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(r, back, equate...); d != "" {
			t.Errorf("stored and read back (-stored +read):\n%s", d)
		}
	})
}

func TestHost(t *testing.T) {
	ns := nstest.New(t, "host")
	h, err := OpenHost(ns.Path)
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	if _, err := h.Link("tdl0"); !errors.Is(err, ErrNoLink) {
		t.Errorf("Link of nothing: %v", err)
	}
	must(t, h.RemoveLink("tdl0"))
	ns.Run(t, "ip", "link", "add", "tdl0", "address", "02:00:00:00:00:07", "type", "veth", "peer", "name", "peer0")
	got, err := h.Link("tdl0")
	must(t, err)
	link, err := ns.Handle.LinkByName("tdl0")
	must(t, err)
	want := HostLink{Name: "tdl0", Index: link.Attrs().Index, MAC: parsedMAC("02:00:00:00:00:07"), Ethernet: true, MTU: 1500}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("link (-want +got):\n%s", d)
	}
	devices, err := h.Devices(func(name string) bool { return name == "tdl0" })
	must(t, err)
	if d := cmp.Diff([]string{"tdl0"}, devices); d != "" {
		t.Errorf("devices (-want +got):\n%s", d)
	}
	must(t, h.RemoveLink("tdl0"))
	if _, err := h.Link("tdl0"); !errors.Is(err, ErrNoLink) {
		t.Errorf("Link of a removed device: %v", err)
	}

	a, b, c := netip.MustParsePrefix("10.10.0.0/16"), netip.MustParsePrefix("fd00:10::/64"), netip.MustParsePrefix("10.20.0.0/16")
	must(t, h.AddUnreachable(a))
	must(t, h.AddUnreachable(a))
	must(t, h.AddUnreachable(c))
	must(t, h.ReconcileUnreachable([]netip.Prefix{a, b}))
	must(t, h.RemoveUnreachable(c))
	routes := ns.Run(t, "ip", "route", "show", "type", "unreachable") + ns.Run(t, "ip", "-6", "route", "show", "type", "unreachable")
	if d := cmp.Diff("unreachable 10.10.0.0/16 proto 84 metric 4294967295 \nunreachable fd00:10::/64 dev lo proto 84 metric 4294967295 pref medium\n", routes); d != "" {
		t.Errorf("routes (-want +got):\n%s", d)
	}
}
