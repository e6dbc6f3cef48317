// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
)

const goodLease = `{"network":"pods","containerID":"c1","ifName":"eth0","set":0,"prefix":"10.0.0.2/24","gateway":"10.0.0.1"}`

// Every record that cannot be right stops Open with an error that names it, and
// leaves the file as it was.
func TestOpenVerifiesRecords(t *testing.T) {
	put := func(value string, at ...string) func(*bbolt.Bucket) error {
		return func(b *bbolt.Bucket) error {
			for _, key := range at[:len(at)-1] {
				var err error
				if b, err = b.CreateBucketIfNotExists([]byte(key)); err != nil {
					return err
				}
			}
			return b.Put([]byte(at[len(at)-1]), []byte(value))
		}
	}
	for _, test := range []struct {
		name   string
		change func(*bbolt.Bucket) error
		record string
		reason string
	}{
		{
			"another format", put("2", "format"),
			"ipam/format", `is "2", and this version reads "1" only`,
		},
		{
			"a bucket is missing", func(b *bbolt.Bucket) error { return b.DeleteBucket([]byte("released")) },
			"ipam/released", "is missing",
		},
		{
			"a value instead of a network", put("x", "networks", "stray"),
			"ipam/networks/stray", "is a value, not a bucket",
		},
		{
			"a network without ranges", put("10.0.0.5", "networks", "empty", "cursor/0"),
			"ipam/networks/empty/ranges", "unexpected end of JSON input",
		},
		{
			"ranges that are not canonical", put(`[[{"subnet":"10.7.0.0/24","rangeStart":"10.7.0.2","rangeEnd":"","gateway":"10.7.0.1"}]]`, "networks", "pods", "ranges"),
			"ipam/networks/pods/ranges", "the ranges are not in canonical form",
		},
		{
			"ranges that overlap another network's", put(`[[{"subnet":"10.0.0.0/25","rangeStart":"10.0.0.2","rangeEnd":"10.0.0.126","gateway":"10.0.0.1"}]]`, "networks", "second", "ranges"),
			"ipam/networks/second/ranges", "use range 10.0.0.0/25 (gateway 10.0.0.1) of network second: overlaps range 10.0.0.0/24 (gateway 10.0.0.1) of network pods",
		},
		{
			"a gateway that is leased", func(b *bbolt.Bucket) error {
				return errors.Join(put("10.0.0.5", "networks", "pods", "cursor/0")(b),
					put(`[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.5","rangeEnd":"10.0.0.9","gateway":"10.0.0.2"}]]`, "networks", "pods", "ranges")(b))
			},
			"ipam/networks/pods/ranges", "use gateway 10.0.0.2: leased to container c1 interface eth0 in network pods",
		},
		{
			"an unknown key", put("1", "networks", "pods", "colour"),
			"ipam/networks/pods/colour", "the key is not known",
		},
		{
			"a cursor of no set", put("10.0.0.5", "networks", "pods", "cursor/1"),
			"ipam/networks/pods/cursor/1", "10.0.0.5 is not in range set 1",
		},
		{
			"a cursor out of its set", put("10.0.1.5", "networks", "pods", "cursor/0"),
			"ipam/networks/pods/cursor/0", "10.0.1.5 is not in range set 0",
		},
		{
			"a cursor's number in another form", put("10.0.0.5", "networks", "pods", "cursor/00"),
			"ipam/networks/pods/cursor/00", `"00" is not the number of a range set`,
		},
		{
			"a lease that is cut short", put(goodLease[:50], "leases", "10.0.0.2"),
			"ipam/leases/10.0.0.2", "unexpected end of JSON input",
		},
		{
			"a lease of no address", put(goodLease, "leases", "10.0.0"),
			"ipam/leases/10.0.0", `ParseAddr("10.0.0"): IPv4 address too short`,
		},
		{
			"two owners of one address", put(goodLease, "leases", "::ffff:10.0.0.2"),
			"ipam/leases/::ffff:10.0.0.2", "the address is not written as 10.0.0.2",
		},
		{
			"two owners of one address, spelt otherwise", put(goodLease, "leases", "::ffff:a00:2"),
			"ipam/leases/::ffff:a00:2", "the address is not written as 10.0.0.2",
		},
		{
			"a lease of another address", put(goodLease, "leases", "10.0.0.3"),
			"ipam/leases/10.0.0.3", "its prefix 10.0.0.2/24 is of another address",
		},
		{
			"two addresses of one set", put(`{"network":"pods","containerID":"c1","ifName":"eth0","set":0,"prefix":"10.0.0.3/24","gateway":"10.0.0.1"}`, "leases", "10.0.0.3"),
			"ipam/leases/10.0.0.3", "container c1 interface eth0 holds 10.0.0.2 of range set 0 already",
		},
		{
			"a lease of an unknown network", put(`{"network":"gone","containerID":"c1","ifName":"eth0","set":0,"prefix":"10.0.0.3/24","gateway":"10.0.0.1"}`, "leases", "10.0.0.3"),
			"ipam/leases/10.0.0.3", "its network gone has no record",
		},
		{
			"a lease of nobody", put(`{"network":"pods","containerID":"","ifName":"eth0","set":0,"prefix":"10.0.0.3/24","gateway":"10.0.0.1"}`, "leases", "10.0.0.3"),
			"ipam/leases/10.0.0.3", "check container ID: it is empty",
		},
		{
			"a lease with a gateway elsewhere", put(`{"network":"pods","containerID":"c2","ifName":"eth0","set":0,"prefix":"10.0.0.3/24","gateway":"10.0.1.1"}`, "leases", "10.0.0.3"),
			"ipam/leases/10.0.0.3", "its gateway 10.0.1.1 cannot be that of 10.0.0.3/24",
		},
		{
			"a lease with an unknown key", put(`{"network":"pods","containerID":"c2","ifName":"eth0","set":0,"prefix":"10.0.0.3/24","gateway":"10.0.0.1","x":1}`, "leases", "10.0.0.3"),
			"ipam/leases/10.0.0.3", "the value is not in standard form at byte 104",
		},
		{
			"a released address that is leased", put("10.0.0.2", "released", "\x00\x00\x00\x00\x00\x00\x00\x01"),
			"ipam/released/0000000000000001", "10.0.0.2 is leased to container c1 interface eth0",
		},
		{
			"a released address of no network", put("10.9.0.2", "released", "\x00\x00\x00\x00\x00\x00\x00\x01"),
			"ipam/released/0000000000000001", "10.9.0.2 is in no range of any network",
		},
		{
			"an address released twice", put("10.0.0.9", "released", "\x00\x00\x00\x00\x00\x00\x00\x08"),
			"ipam/released/0000000000000008", "10.0.0.9 was released as number 7 already",
		},
		{
			"a key of another size", put("10.0.0.9", "released", "1"),
			"ipam/released/31", "the key has 1 bytes, not 8",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "state.db")
			s := mustOpen(t, file)
			mustAllocate(t, s, from(t, "pods", "10.0.0.0/24", container(1)))
			if err := s.db.Update(func(tx *bbolt.Tx) error {
				b := tx.Bucket(rootKey)
				return errors.Join(put("10.0.0.9", "released", "\x00\x00\x00\x00\x00\x00\x00\x07")(b), test.change(b))
			}); err != nil {
				t.Fatal(err)
			}
			before := dumpFile(t, s.db)
			_, err := Open(s.db)
			var wrong *RecordError
			if !errors.As(err, &wrong) {
				t.Fatalf("got error %v, want a *RecordError", err)
			}
			if wrong.Record != test.record || wrong.Err.Error() != test.reason {
				t.Errorf("got %s: %q, want %s: %q", wrong.Record, wrong.Err, test.record, test.reason)
			}
			if diff := cmp.Diff(before, dumpFile(t, s.db)); diff != "" {
				t.Errorf("the file has changed (-before +after)\n%s", diff)
			}
		})
	}
}

// dumpFile is every key and value of a bbolt file.
func dumpFile(tb testing.TB, db *bbolt.DB) (out []string) {
	tb.Helper()
	var dump func(path string, b *bbolt.Bucket) error
	dump = func(path string, b *bbolt.Bucket) error {
		return b.ForEach(func(k, v []byte) error {
			if v == nil {
				return dump(path+string(k)+"/", b.Bucket(k))
			}
			out = append(out, path+string(k)+"="+string(v))
			return nil
		})
	}
	if err := db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error { return dump(string(name)+"/", b) })
	}); err != nil {
		tb.Fatal(err)
	}
	return out
}

// What the store writes is what a person reads, and an older file is readable by
// a later version: a change here needs another format number.
func TestRecordsAreStable(t *testing.T) {
	s := newStore(t)
	mustAllocate(t, s, from(t, "pods", "10.0.0.0/24; fd00::/64", container(1)))
	mustAllocate(t, s, from(t, "pods", "10.0.0.0/24; fd00::/64", container(2)))
	mustRelease(t, s, "pods", container(1))
	want := []string{
		`ipam/format=1`,
		`ipam/leases/10.0.0.3={"network":"pods","containerID":"c2","ifName":"eth0","set":0,"prefix":"10.0.0.3/24","gateway":"10.0.0.1"}`,
		`ipam/leases/fd00::3={"network":"pods","containerID":"c2","ifName":"eth0","set":1,"prefix":"fd00::3/64","gateway":"fd00::1"}`,
		`ipam/networks/pods/cursor/0=10.0.0.3`,
		`ipam/networks/pods/cursor/1=fd00::3`,
		`ipam/networks/pods/ranges=[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.2","rangeEnd":"10.0.0.254","gateway":"10.0.0.1"}],` +
			`[{"subnet":"fd00::/64","rangeStart":"fd00::2","rangeEnd":"fd00::ffff:ffff:ffff:ffff","gateway":"fd00::1"}]]`,
		"ipam/released/\x00\x00\x00\x00\x00\x00\x00\x01=10.0.0.2",
		"ipam/released/\x00\x00\x00\x00\x00\x00\x00\x02=fd00::2",
	}
	if diff := cmp.Diff(want, dumpFile(t, s.db)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// A lease record is read only if it is exactly what would be written for it.
func FuzzDecodeLease(f *testing.F) {
	for _, seed := range []struct{ key, value string }{
		{"10.0.0.2", goodLease},
		{"10.0.0.3", goodLease},
		{"10.0.0.2", goodLease + " "},
		{"10.0.0.2", goodLease[:20]},
		{"", ""},
		{"fd00::2", `{"network":"a/b","containerID":"c","ifName":"e","set":7,"prefix":"fd00::2/64","gateway":"fd00::1"}`},
		{"fe80::1%1", `{"network":"n","containerID":"c","ifName":"e","set":-1,"prefix":"fe80::1/64","gateway":"fe80::2%1"}`},
		{"::ffff:1.2.3.4", `{"network":"n","containerID":"\u003c\ufffd","ifName":"e","set":0,"prefix":"::ffff:1.2.3.4/100","gateway":""}`},
		{"10.0.0.2", `{"NETWORK":"pods","containerID":"c1","ifName":"eth0","set":0,"prefix":"10.0.0.2/24","gateway":"10.0.0.1"}`},
		{"10.0.0.2", "null"},
		{"10.0.0.2", "{}"},
		{"0.0.0.0", `{"network":"n","containerID":"c","ifName":"e","set":0,"prefix":"","gateway":""}`},
	} {
		f.Add([]byte(seed.key), []byte(seed.value))
	}
	f.Fuzz(func(t *testing.T, key, value []byte) {
		l, err := decodeLease(key, value)
		if err != nil {
			return
		}
		if err := l.owner.check(); err != nil {
			t.Fatal(err)
		}
		if a := l.address; !a.Prefix.IsValid() || a.Prefix.Addr().Is4In6() || !a.Prefix.Contains(a.Gateway) || l.set < 0 {
			t.Fatalf("accepted %+v", l)
		}
		againKey, againValue, err := encodeLease(l)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(key, againKey) || !slices.Equal(value, againValue) {
			t.Fatalf("accepted %q=%q and wrote %q=%q", key, value, againKey, againValue)
		}
	})
}

// The small records: what is read is what would be written.
func FuzzDecodeCursorAndRested(f *testing.F) {
	f.Add([]byte("cursor/0"), []byte("10.0.0.2"))
	f.Add([]byte("cursor/18446744073709551616"), []byte("fd00::2"))
	f.Add([]byte("cursor/-1"), []byte("fd00::0002"))
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x01"), []byte("10.0.0.2"))
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x00"), []byte("::ffff:10.0.0.2"))
	f.Fuzz(func(t *testing.T, key, value []byte) {
		if set, last, err := decodeCursor(key, value); err == nil {
			k, v := encodeCursor(set, last)
			if !slices.Equal(k, key) || !slices.Equal(v, value) {
				t.Fatalf("accepted %q=%q and wrote %q=%q", key, value, k, v)
			}
		}
		if r, err := decodeRested(key, value); err == nil {
			k, v := encodeRested(r)
			if !slices.Equal(k, key) || !slices.Equal(v, value) {
				t.Fatalf("accepted %q=%q and wrote %q=%q", key, value, k, v)
			}
		}
	})
}

// Ranges as the file holds them: no panic, and only canonical ones are read.
func FuzzDecodeRanges(f *testing.F) {
	f.Add([]byte(`[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.2","rangeEnd":"10.0.0.254","gateway":"10.0.0.1"}]]`))
	f.Add([]byte(`[[{"subnet":"fd00::/64","rangeStart":"fd00::2","rangeEnd":"fd00::ffff:ffff:ffff:ffff","gateway":"fd00::1"}],[]]`))
	f.Add([]byte(`[]`))
	f.Add([]byte(`[null]`))
	f.Fuzz(func(t *testing.T, value []byte) {
		sets, err := decodeRanges(value)
		if err != nil {
			return
		}
		canonical, err := Canonical(sets)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(canonical, sets, netips); diff != "" {
			t.Fatalf("(-canonical +read)\n%s", diff)
		}
	})
}

// Addresses and numbers agree on what comes next, carries included.
func TestNumbers(t *testing.T) {
	for _, text := range []string{"0.0.0.0", "10.0.0.255", "255.255.255.255", "::", "fd00::ffff:ffff:ffff:ffff", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"} {
		a := netip.MustParseAddr(text)
		if got := numberOf(a).addr(); got != a {
			t.Errorf("%s comes back as %s", a, got)
		}
		if next := a.Next(); next.IsValid() {
			if got := numberOf(a).plus(1); got != numberOf(next) {
				t.Errorf("%s + 1 is %v", a, got)
			}
			if got := numberOf(next).minus1(); got != numberOf(a) {
				t.Errorf("%s - 1 is %v", next, got)
			}
		}
	}
}
