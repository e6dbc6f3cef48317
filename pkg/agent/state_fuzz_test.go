// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"github.com/tendril-net/tendril/internal/ifname"
	"github.com/tendril-net/tendril/pkg/api"
)

// fuzzedState is a state file for many runs, of which none has to outlive a crash.
func fuzzedState(f *testing.F) *bbolt.DB {
	f.Helper()
	db, err := OpenState(filepath.Join(f.TempDir(), "state.db"))
	if err != nil {
		f.Fatal(err)
	}
	db.NoSync = true
	f.Cleanup(func() { _ = db.Close() })
	return db
}

// fill gives a bucket exactly these entries.
func fill(t *testing.T, db *bbolt.DB, bucket []byte, entries map[string][]byte) {
	t.Helper()
	must(t, db.Update(func(tx *bbolt.Tx) error {
		if err := tx.DeleteBucket(bucket); err != nil {
			return err
		}
		b, err := tx.CreateBucket(bucket)
		for key, value := range entries {
			err = errors.Join(err, b.Put([]byte(key), value))
		}
		return err
	}))
}

func encoded(tb testing.TB, value any) []byte {
	tb.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

// FuzzEndpointRecord puts any record beside a right one. Both are read, and the agent can serve from what was
// read, or the error names the record and there is nothing of either.
func FuzzEndpointRecord(f *testing.F) {
	db := fuzzedState(f)
	whole := stored("c1", 7)
	whole.Addresses = []api.Address{{Address: netip.MustParsePrefix("10.10.0.2/24"), Gateway: netip.MustParseAddr("10.10.0.1")}}
	whole.Ports = []api.PortMapping{mapped("", 8080, 80, "tcp")}
	whole.Origin = request("c1").Network
	port := stored("c1", 7)
	port.Driver, port.Bridge, port.Bandwidth.IngressRate = api.DriverBridge, "br0", 1_000_000
	child := stored("c1", 7)
	child.Driver, child.HostIfName, child.Parent, child.Device = api.DriverMacvlan, "", "lan0", childPlace{NetNSInode: 7, Index: 3}
	for _, r := range []*record{whole, port, child, stored("c2", 7), stored("c1", 1)} {
		f.Add("c1/eth0", encoded(f, r))
	}
	text := string(encoded(f, whole))
	for _, edit := range [][2]string{
		{`"02:00:00:00:00:01"`, `"02:00:00:00:00:01:02:03"`},
		{`"10.10.0.2/24"`, `""`},
		{`"routed"`, `"host"`},
		{`"ready"`, `"detached"`},
		{`"hostIfName":"`, `"hostIfName":"x`},
		{`"id":7`, `"id":65536`},
		{`"mtu":1500`, `"mtu":1500,"mtu":null`},
		{`"created":"0001`, `"created":"10001`},
	} {
		f.Add("c1/eth0", []byte(strings.Replace(text, edit[0], edit[1], 1)))
	}
	f.Add("c1/eth0", []byte(text[:len(text)-1]))
	f.Add("c1/eth0", []byte("null"))
	f.Add("c1/eth0\xff", []byte(text))

	const other = "another/eth0"
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		if key == "" || len(key) > bbolt.MaxKeySize || key == other {
			t.Skip("no key of its own")
		}
		beside := stored("another", 1)
		fill(t, db, bucketEndpoints, map[string][]byte{other: encoded(t, beside), key: value})
		records, draining, err := loadState(db)
		if err != nil {
			wrong := (*StateError)(nil)
			if records != nil || draining != nil || !errors.As(err, &wrong) || wrong.Path != db.Path() {
				t.Fatalf("%v, with records %v, draining %v", err, records, draining)
			}
			if !strings.Contains(err.Error(), strconv.Quote(key)) {
				t.Errorf("the error does not name %q: %v", key, err)
			}
			return
		}
		written := make(map[string][]byte)
		x := newIndex()
		for _, r := range records {
			written[string(recordKey(r.Attachment))] = encoded(t, r)
			e := r.datapath()
			if r.ID == 0 || len(e.MAC) != 6 || len(e.HostMAC) != 6 || len(e.Addresses) != len(r.Addresses) {
				t.Errorf("cannot be served: %+v", r)
			}
			if !r.isChild() && !api.IsHostIfName(r.HostIfName) {
				t.Errorf("would remove a device of the node: %q", r.HostIfName)
			}
			_, _ = r.subnets()
			_ = r.subject()
			x.put(r)
		}
		fill(t, db, bucketEndpoints, written)
		again, _, err := loadState(db)
		must(t, err)
		if d := cmp.Diff(records, again, equate...); d != "" {
			t.Errorf("read, written and read again (-first +second):\n%s", d)
		}
		if len(records) != 2 || records[0].ID == records[1].ID {
			t.Errorf("read %d of 2 endpoints: %+v", len(records), records)
		}
		for _, r := range records {
			x.drop(r)
		}
		if x.entries != 0 || len(x.ports) != 0 || len(x.byAddress) != 0 || len(x.byLink) != 0 || len(x.byPlace) != 0 || len(x.records) != 0 {
			t.Errorf("the index is not empty: %+v", x)
		}
	})
}

// FuzzSettingRecord has any record of a setting undone, beside a right one. Either the setting becomes what the
// record says, or the error names it, and setting and record stay as they are. The right one is undone.
func FuzzSettingRecord(f *testing.F) {
	for _, value := range []string{
		`{"previous":"0","written":"1"}`, `{"previous":"0"}`, `{"written":"1"}`, `{"previous":null,"written":"1"}`,
		`{"previous":"0","written":"1","more":7}`, `{"previous":0,"written":1}`, `{"previous":"","written":"1"}`, `null`, `{}`, ``, `{"previous":"0","written":"1"`,
	} {
		f.Add(pathForward4, "1", []byte(value))
	}
	f.Add(pathReservedPorts, "80,40960-65535", []byte(`{"previous":"80","written":"80,40960-65535"}`))
	f.Add(pathReservedPorts, "80,40960-65535", []byte(`{"previous":"80","written":"80,40960-99999"}`))
	f.Add(pathReservedPorts, "80,x", []byte(`{"previous":"80","written":"80,40960-65535"}`))
	f.Add("../outside", "1", []byte(`{"previous":"0","written":"1"}`))

	db, root := fuzzedState(f), filepath.Join(f.TempDir(), "sys")
	s := &Settings{DB: db, Root: root, Logger: slog.New(slog.DiscardHandler)}
	f.Fuzz(func(t *testing.T, path, current string, value []byte) {
		current = strings.TrimSpace(current)
		if path != pathForward4 && path != pathReservedPorts && path != "../outside" || len(current) > 1000 {
			t.Skip("no such setting")
		}
		for path, text := range map[string]string{path: current, pathForward6: "1"} {
			file := filepath.Join(root, path)
			must(t, os.MkdirAll(filepath.Dir(file), 0o700))
			must(t, os.WriteFile(file, []byte(text+"\n"), 0o600))
		}
		fill(t, db, bucketSettings, map[string][]byte{path: value, pathForward6: []byte(`{"previous":"0","written":"1"}`)})
		want, record := undoneSetting(path, current, value), []byte(nil)
		err := s.Undo()
		if want == nil {
			want, record = &current, value
			if err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("%s, recorded as %q: the error does not name it: %v", path, value, err)
			}
		} else {
			must(t, err)
		}
		if d := cmp.Diff(node{path: strings.TrimSpace(*want), pathForward6: "0"}, readNode(t, root, path, pathForward6)); d != "" {
			t.Errorf("%s was %q, recorded as %q (-want +got):\n%s", path, current, value, d)
		}
		must(t, db.View(func(tx *bbolt.Tx) error {
			if got := tx.Bucket(bucketSettings).Get([]byte(path)); string(got) != string(record) {
				t.Errorf("the record of %s is %q, want %q", path, got, record)
			}
			return nil
		}))
	})
}

// undoneSetting is what a setting is to become by its record; nil where the record, or the setting, cannot be
// understood.
func undoneSetting(path, current string, value []byte) *string {
	var recorded map[string]any
	if json.Unmarshal(value, &recorded) != nil || path == "../outside" {
		return nil
	}
	previous, ok1 := recorded["previous"].(string)
	written, ok2 := recorded["written"].(string)
	if !ok1 || !ok2 {
		return nil
	}
	if path != pathReservedPorts {
		if current != written {
			return &current
		}
		return &previous
	}
	present, err1 := parsePorts(current)
	before, err2 := parsePorts(previous)
	after, err3 := parsePorts(written)
	if errors.Join(err1, err2, err3) != nil {
		return nil
	}
	left := present.minus(after.minus(before)).String()
	return &left
}

// FuzzVLANRecord puts any record of a VLAN beside a right one, which is read. So is the other, or it is none.
func FuzzVLANRecord(f *testing.F) {
	f.Add("eth0.50", []byte{0, 0, 0, 7})
	f.Add("eth0.50", []byte(nil))
	f.Add("eth0.50", []byte{0, 0, 7})
	f.Add("eth0.50", []byte{0, 0, 0, 0})
	f.Add("eth0.50", []byte{0x80, 0, 0, 0})
	f.Add("eth0.50", []byte("0\n"))
	f.Add("eth0", []byte{0, 0, 0, 7})
	f.Add("eth0.050", []byte{0, 0, 0, 7})
	f.Add("a-device-of-16.1", []byte(nil))
	f.Add("eth%d.50\xff", []byte(nil))

	const other = "lan0.50"
	db := fuzzedState(f)
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		if name == "" || len(name) > bbolt.MaxKeySize || name == other {
			t.Skip("no key of its own")
		}
		want := map[string]int{other: 9}
		fill(t, db, bucketVLANs, map[string][]byte{other: {0, 0, 0, 9}, name: value})
		index, ok := new(big.Int).SetBytes(value).Int64(), len(value) == 0 || len(value) == 4
		_, id, named := ifname.VLANOf(name)
		if ok = ok && named && id != 0 && api.ParentNameFault(name) == "" && (index != 0 || len(value) == 0) && index <= math.MaxInt32; ok {
			want[name] = int(index)
		}
		made, err := madeVLANs(db)
		must(t, err)
		if d := cmp.Diff(want, made); d != "" {
			t.Errorf("VLAN %q, recorded as %q (-want +got):\n%s", name, value, d)
		}
	})
}
