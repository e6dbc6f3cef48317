// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
)

// newStore is a store on a new file that is not synced: these tests crash
// nothing.
func newStore(tb testing.TB) *Store {
	tb.Helper()
	s := mustOpen(tb, filepath.Join(tb.TempDir(), "state.db"))
	s.db.NoSync = true
	return s
}

func container(i int) Owner { return Owner{fmt.Sprintf("c%d", i), "eth0"} }

// from is a request without wishes.
func from(tb testing.TB, network, ranges string, owner Owner) Request {
	tb.Helper()
	return Request{Network: network, Ranges: mustParse(tb, ranges), Owner: owner}
}

// allocate allocates and returns the addresses alone.
func allocate(tb testing.TB, s *Store, req Request) []string {
	tb.Helper()
	var out []string
	for _, a := range mustAllocate(tb, s, req) {
		out = append(out, a.Prefix.Addr().String())
	}
	return out
}

func mustRelease(tb testing.TB, s *Store, network string, owner Owner) {
	tb.Helper()
	if err := s.Release(network, owner, nil); err != nil {
		tb.Fatal(err)
	}
}

// content is all of a state that decides what happens next.
type content struct {
	Networks map[string]networkContent
	Leases   map[netip.Addr]string
}

type networkContent struct {
	Sets   []RangeSet
	Owners map[Owner][]Address
	Pools  []poolContent
}

type poolContent struct {
	Last     string
	Leased   uint64
	Busy     int
	Released []string
}

func contentOf(s *state) content {
	out := content{make(map[string]networkContent), make(map[netip.Addr]string)}
	for name, n := range s.networks {
		c := networkContent{Sets: n.sets, Owners: make(map[Owner][]Address)}
		for owner, leases := range n.owners {
			c.Owners[owner] = addresses(leases)
		}
		for _, pool := range n.pools {
			p := poolContent{Leased: pool.leased}
			if n.pool(pool.last) == pool {
				p.Last = pool.last.addr().String()
			}
			for _, chunk := range pool.busy {
				p.Busy += chunk.count
			}
			for _, r := range pool.resting.oldest(pool.resting.len()) {
				p.Released = append(p.Released, fmt.Sprint(r.order, " ", r.number.addr()))
			}
			c.Pools = append(c.Pools, p)
		}
		out.Networks[name] = c
	}
	for address, l := range s.leases {
		out.Leases[address] = l.network + " " + l.owner.String()
	}
	return out
}

// inFile is the content of the file.
func inFile(tb testing.TB, db *bbolt.DB) content {
	tb.Helper()
	var s state
	err := db.View(func(tx *bbolt.Tx) (err error) {
		s, err = load(openRecords(tx))
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return contentOf(&s)
}

// sameAsFile fails if memory and file differ.
func sameAsFile(tb testing.TB, s *Store) {
	tb.Helper()
	if diff := cmp.Diff(inFile(tb, s.db), contentOf(&s.state), netips); diff != "" {
		tb.Fatalf("memory differs from the file (-file +memory)\n%s", diff)
	}
}

func TestAllocate(t *testing.T) {
	s := newStore(t)
	req := from(t, "pods", "10.10.0.0/16; fd00:10::/64", container(1))
	got := mustAllocate(t, s, req)
	want := []Address{
		{netip.MustParsePrefix("10.10.0.2/16"), netip.MustParseAddr("10.10.0.1")},
		{netip.MustParsePrefix("fd00:10::2/64"), netip.MustParseAddr("fd00:10::1")},
	}
	if diff := cmp.Diff(want, got, netips); diff != "" {
		t.Errorf("Allocate (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(want, s.Lookup("pods", container(1)), netips); diff != "" {
		t.Errorf("Lookup (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(map[Owner][]Address{container(1): want}, s.Leases("pods"), netips); diff != "" {
		t.Errorf("Leases (-want +got)\n%s", diff)
	}
	canonical, err := Canonical(req.Ranges)
	if err != nil {
		t.Fatal(err)
	}
	pools := []Pool{{"pods", 0, canonical[0], 1, 65533}, {"pods", 1, canonical[1], 1, maxCapacity}}
	if diff := cmp.Diff(pools, s.Pools(), netips); diff != "" {
		t.Errorf("Pools (-want +got)\n%s", diff)
	}

	_, err = s.Allocate(req, nil)
	held := &HeldError{"pods", container(1), want}
	if diff := cmp.Diff(error(held), err, netips); diff != "" {
		t.Errorf("Allocate for an owner that holds leases (-want +got)\n%s", diff)
	}

	for range 2 { // the second finds nothing to do
		mustRelease(t, s, "pods", container(1))
	}
	if got := s.Lookup("pods", container(1)); got != nil {
		t.Errorf("Lookup after Release: got %v", got)
	}
	if got := s.Lookup("unknown", container(1)); got != nil {
		t.Errorf("Lookup in an unknown network: got %v", got)
	}
	if got := allocate(t, s, req); !slices.Equal(got, []string{"10.10.0.3", "fd00:10::3"}) {
		t.Errorf("Allocate after Release: got %v", got)
	}
	sameAsFile(t, s)
}

// What the file remembers is what the process knew: leases, where the walk
// stood, and what was released in which order.
func TestStateSurvivesReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := mustOpen(t, path)
	const ranges = "10.0.0.0/29; fd00::/125" // five and six addresses
	var got []string
	reopen := func() {
		t.Helper()
		before := contentOf(&s.state)
		mustClose(t, s)
		s = mustOpen(t, path)
		if diff := cmp.Diff(before, contentOf(&s.state), netips); diff != "" {
			t.Fatalf("(-before +after)\n%s", diff)
		}
	}
	for i := range 5 {
		got = append(got, allocate(t, s, from(t, "pods", ranges, container(i)))[0])
		reopen()
	}
	for _, i := range []int{3, 1, 4} {
		mustRelease(t, s, "pods", container(i))
		reopen()
	}
	for i := range 3 {
		got = append(got, allocate(t, s, from(t, "pods", ranges, container(10+i)))[0])
		reopen()
	}
	want := []string{"10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.5", "10.0.0.3", "10.0.0.6"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestWanted(t *testing.T) {
	s := newStore(t)
	const ranges = "10.0.0.0/24 - 10.0.0.99, 10.0.7.0/24; fd00::/64"
	wanting := func(owner int, wanted ...string) Request {
		req := from(t, "pods", ranges, container(owner))
		for _, w := range wanted {
			req.Wanted = append(req.Wanted, netip.MustParseAddr(w))
		}
		return req
	}
	for i, test := range []struct{ wanted, want []string }{
		{[]string{"10.0.7.9"}, []string{"10.0.7.9", "fd00::2"}},
		{[]string{"fd00::abcd"}, []string{"10.0.0.2", "fd00::abcd"}},
		{[]string{"fd00::1:0", "::ffff:10.0.0.50"}, []string{"10.0.0.50", "fd00::1:0"}},
		{nil, []string{"10.0.0.3", "fd00::3"}}, // wishes do not move the walk
	} {
		if got := allocate(t, s, wanting(i, test.wanted...)); !slices.Equal(got, test.want) {
			t.Errorf("wanted %v: got %v, want %v", test.wanted, got, test.want)
		}
	}
	// A wish is granted although the address has only just been released.
	mustRelease(t, s, "pods", container(0))
	if got := allocate(t, s, wanting(0, "10.0.7.9", "fd00::2")); !slices.Equal(got, []string{"10.0.7.9", "fd00::2"}) {
		t.Errorf("wanted what was just released: got %v", got)
	}
	sameAsFile(t, s)

	before := contentOf(&s.state)
	addr := netip.MustParseAddr
	refused := func(address, reason string) error { return &NotInRangeError{"pods", addr(address), reason} }
	const nowhere = "it is in none of the ranges, or an address that is never handed out"
	for _, test := range []struct {
		wanted []string
		want   error
	}{
		{[]string{"10.0.7.9"}, &TakenError{Address: addr("10.0.7.9"), Owner: container(0), Network: "pods"}},
		{[]string{"10.0.0.9", "fd00::abcd"}, &TakenError{Address: addr("fd00::abcd"), Owner: container(1), Network: "pods"}},
		{[]string{"10.0.0.1"}, refused("10.0.0.1", "it is a gateway of the network")},
		{[]string{"10.0.7.255"}, refused("10.0.7.255", nowhere)},
		{[]string{"10.0.7.0"}, refused("10.0.7.0", nowhere)},
		{[]string{"fd00::"}, refused("fd00::", nowhere)},
		{[]string{"10.0.0.100"}, refused("10.0.0.100", nowhere)},
		{[]string{"192.0.2.1"}, refused("192.0.2.1", nowhere)},
		{[]string{"fe80::1%eth0"}, refused("fe80::1%eth0", "not an address, or one with a zone")},
		{[]string{"10.0.0.9", "10.0.7.10"}, refused("10.0.7.10", "another address of range set 0 is wanted too, and each set gives one")},
	} {
		_, err := s.Allocate(wanting(99, test.wanted...), nil)
		if diff := cmp.Diff(test.want, err, netips); diff != "" {
			t.Errorf("wanted %v (-want +got)\n%s", test.wanted, diff)
		}
	}
	if diff := cmp.Diff(before, contentOf(&s.state), netips); diff != "" {
		t.Errorf("refusals changed something (-before +after)\n%s", diff)
	}
	sameAsFile(t, s)
}

func TestExhausted(t *testing.T) {
	s := newStore(t)
	const ranges = "10.0.0.0/29; fd00::/126" // five and two addresses
	for i := range 2 {
		if err := s.Available("pods", mustParse(t, ranges)); err != nil {
			t.Fatal(err)
		}
		allocate(t, s, from(t, "pods", ranges, container(i)))
	}
	sets, err := Canonical(mustParse(t, ranges))
	if err != nil {
		t.Fatal(err)
	}
	want := &ExhaustedError{"pods", 1, sets[1], 2}
	_, err = s.Allocate(from(t, "pods", ranges, container(2)), nil)
	if diff := cmp.Diff(error(want), err, netips); diff != "" {
		t.Errorf("Allocate (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(error(want), s.Available("pods", mustParse(t, ranges)), netips); diff != "" {
		t.Errorf("Available (-want +got)\n%s", diff)
	}
	// No address of the set that has some was lost.
	if got := s.Pools()[0].Leased; got != 2 {
		t.Errorf("%d leased in set 0, want 2", got)
	}
	mustRelease(t, s, "pods", container(0))
	if err := s.Available("pods", mustParse(t, ranges)); err != nil {
		t.Error(err)
	}
	if got := allocate(t, s, from(t, "pods", ranges, container(2))); !slices.Equal(got, []string{"10.0.0.4", "fd00::2"}) {
		t.Errorf("got %v", got)
	}
}

func TestBadRequests(t *testing.T) {
	s := newStore(t)
	good := from(t, "pods", "10.0.0.0/24", container(1))
	for name, req := range map[string]Request{
		"no network":          {Ranges: good.Ranges, Owner: good.Owner},
		"no container ID":     {Network: "pods", Ranges: good.Ranges, Owner: Owner{"", "eth0"}},
		"no interface":        {Network: "pods", Ranges: good.Ranges, Owner: Owner{"c", ""}},
		"NUL":                 {Network: "pods\x00", Ranges: good.Ranges, Owner: good.Owner},
		"not UTF-8":           {Network: "pods", Ranges: good.Ranges, Owner: Owner{"\xff", "eth0"}},
		"no ranges":           {Network: "pods", Owner: good.Owner},
		"overlap with itself": {Network: "pods", Ranges: mustParse(t, "10.0.0.0/24; 10.0.0.0/25"), Owner: good.Owner},
	} {
		if got, err := s.Allocate(req, nil); err == nil {
			t.Errorf("%s: got %v, want an error", name, got)
		}
	}
	if diff := cmp.Diff(contentOf(&state{}), contentOf(&s.state)); diff != "" {
		t.Errorf("bad requests changed something (-want +got)\n%s", diff)
	}
	sameAsFile(t, s)
}

// A name that bbolt and JSON have to carry, not one that CNI allows.
func TestOddNames(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := mustOpen(t, path)
	req := from(t, `a/b <&>"`, "10.0.0.0/24", Owner{"\u2028\\", "ünï"})
	want := mustAllocate(t, s, req)
	mustClose(t, s)
	s = mustOpen(t, path)
	if diff := cmp.Diff(want, s.Lookup(req.Network, req.Owner), netips); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// The caller's records and the leases are committed together or not at all.
func TestAlsoRunsInTheSameTransaction(t *testing.T) {
	s := newStore(t)
	bucket := []byte("endpoints")
	endpoints := func() (out []string) {
		if err := s.db.View(func(tx *bbolt.Tx) error {
			if b := tx.Bucket(bucket); b != nil {
				return b.ForEach(func(k, v []byte) error {
					out = append(out, string(k)+" "+string(v))
					return nil
				})
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	put := func(err error) func(*bbolt.Tx, []Address) error {
		return func(tx *bbolt.Tx, a []Address) error {
			if s.Lookup("pods", container(1)) != nil {
				t.Error("the lease is seen before it is committed")
			}
			b, e := tx.CreateBucketIfNotExists(bucket)
			return errors.Join(e, b.Put([]byte("c1"), []byte(a[0].Prefix.String())), err)
		}
	}
	req := from(t, "pods", "10.0.0.0/29", container(1))

	empty := contentOf(&s.state)
	if _, err := s.Allocate(req, put(errRefused)); !errors.Is(err, errRefused) {
		t.Fatalf("got error %v, want that of also", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a panic of also was swallowed")
			}
		}()
		_, _ = s.Allocate(req, func(*bbolt.Tx, []Address) error { panic("also") })
	}()
	if diff := cmp.Diff(empty, contentOf(&s.state), netips); diff != "" || endpoints() != nil {
		t.Errorf("a refused Allocate left %v and (-want +got)\n%s", endpoints(), diff)
	}
	sameAsFile(t, s)

	if _, err := s.Allocate(req, put(nil)); err != nil {
		t.Fatal(err)
	}
	leased := contentOf(&s.state)
	remove := func(err error) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error {
			return errors.Join(tx.Bucket(bucket).Delete([]byte("c1")), err)
		}
	}
	if err := s.Release("pods", container(1), remove(errRefused)); !errors.Is(err, errRefused) {
		t.Fatalf("got error %v, want that of also", err)
	}
	if diff := cmp.Diff(leased, contentOf(&s.state), netips); diff != "" {
		t.Errorf("a refused Release changed something (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"c1 10.0.0.2/29"}, endpoints()); diff != "" {
		t.Errorf("endpoints (-want +got)\n%s", diff)
	}
	sameAsFile(t, s)

	if err := s.Release("pods", container(1), remove(nil)); err != nil {
		t.Fatal(err)
	}
	if endpoints() != nil {
		t.Errorf("Release left %v", endpoints())
	}
	called := false
	if err := s.Release("unknown", container(1), func(*bbolt.Tx) error { called = true; return nil }); err != nil || !called {
		t.Errorf("Release of nothing: error %v, also called: %t", err, called)
	}
	sameAsFile(t, s)
}

// A file that cannot grow refuses the commit; memory stays what the file is,
// and the next request that fits is served.
func TestCommitFails(t *testing.T) {
	s := newStore(t)
	big := make([]byte, 1<<20)
	fill := func(tx *bbolt.Tx, _ []Address) error {
		b, err := tx.CreateBucketIfNotExists([]byte("big"))
		return errors.Join(err, b.Put([]byte("big"), big))
	}
	allocate(t, s, from(t, "pods", "10.0.0.0/24", container(1)))
	s.db.MaxSize = 1 << 16
	before := contentOf(&s.state)
	if _, err := s.Allocate(from(t, "pods", "10.0.0.0/24", container(2)), fill); err == nil {
		t.Fatal("a commit of more than fits succeeded")
	}
	if err := s.Release("pods", container(1), func(tx *bbolt.Tx) error { return fill(tx, nil) }); err == nil {
		t.Fatal("a commit of more than fits succeeded")
	}
	if diff := cmp.Diff(before, contentOf(&s.state), netips); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	sameAsFile(t, s)
	if got := allocate(t, s, from(t, "pods", "10.0.0.0/24", container(2))); !slices.Equal(got, []string{"10.0.0.3"}) {
		t.Errorf("got %v", got)
	}
	sameAsFile(t, s)
}

// Random requests to several networks whose ranges change and touch. After
// each, memory is what the file is and no address is leased that must not be.
func TestRandomRequests(t *testing.T) {
	s := newStore(t)
	random := rand.New(rand.NewPCG(2, 3))
	ranges := []string{
		"10.0.0.0/28", "10.0.0.0/29", "10.0.0.8/29", "10.0.0.0/27 10.0.0.20; fd00::/124", "10.0.0.16/28; fd00::/125",
		"fd00::8/125, fd00::10/125; 10.0.0.32/29", "10.0.0.32/29 - - 10.0.0.33", "10.0.0.34/31; fd00::/120 fd00::20 fd00::2f",
	}
	counts := make(map[string]int)
	for step := range 1000 {
		name := fmt.Sprintf("net%d", random.IntN(4))
		owner := container(random.IntN(12))
		req := from(t, name, ranges[random.IntN(len(ranges))], owner)
		if n := s.networks[name]; n != nil && random.IntN(10) != 0 {
			req.Ranges = n.sets // changes are the exception
		}
		if random.IntN(4) == 0 {
			base := netip.MustParseAddr([]string{"10.0.0.0", "fd00::"}[random.IntN(2)])
			req.Wanted = []netip.Addr{numberOf(base).plus(random.Uint64N(40)).addr()}
		}
		before := contentOf(&s.state)
		var err error
		switch random.IntN(5) {
		case 0:
			if _, err = s.Allocate(req, func(*bbolt.Tx, []Address) error { return errRefused }); err == nil {
				t.Fatal("an error of also was swallowed")
			}
		case 1, 2:
			err = s.Release(name, owner, nil)
		default:
			_, err = s.Allocate(req, nil)
		}
		counts[fmt.Sprintf("%T", err)]++
		if err != nil {
			if diff := cmp.Diff(before, contentOf(&s.state), netips); diff != "" {
				t.Fatalf("step %d: error %v changed something (-before +after)\n%s", step, err, diff)
			}
		}
		sameAsFile(t, s)
		for address, l := range s.leases {
			r := Range{Subnet: l.address.Prefix.Masked(), Gateway: l.address.Gateway}
			r.Start, r.End = hosts(r.Subnet)
			checkAddress(t, []RangeSet{{r}}, r, address)
			for _, n := range s.networks {
				if slices.Contains(n.gateways(), address) {
					t.Fatalf("step %d: %s is leased and a gateway of %s", step, address, n.name)
				}
			}
		}
	}
	for _, outcome := range []string{
		"<nil>", "*ipam.HeldError", "*ipam.ExhaustedError", "*ipam.TakenError", "*ipam.OverlapError",
		"*ipam.NotInRangeError", "*errors.errorString",
	} {
		if counts[outcome] == 0 {
			t.Errorf("no request ended with %s: %v", outcome, counts)
		}
	}
}

// Many goroutines at once: no address has two owners, and all are accounted for.
func TestConcurrentRequests(t *testing.T) {
	s := newStore(t)
	const workers, rounds = 16, 30
	var mu sync.Mutex
	holders := make(map[netip.Addr]Owner)
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for i := range rounds {
				owner := container(w)
				req := from(t, "pods", "10.0.0.0/27; fd00::/64", owner)
				got, err := s.Allocate(req, func(_ *bbolt.Tx, got []Address) error {
					mu.Lock()
					defer mu.Unlock()
					for _, a := range got {
						if other, held := holders[a.Prefix.Addr()]; held {
							return fmt.Errorf("%s is held by %s", a.Prefix.Addr(), other)
						}
						holders[a.Prefix.Addr()] = owner
					}
					return nil
				})
				if err != nil {
					t.Error(err)
					return
				}
				if diff := cmp.Diff(got, s.Lookup("pods", owner), netips); diff != "" {
					t.Errorf("(-want +got)\n%s", diff)
				}
				_ = s.Pools()
				_ = s.Leases("pods")
				if err := s.Available("pods", req.Ranges); err != nil {
					t.Error(err)
				}
				if w%4 == 0 && i == rounds-1 {
					return // keeps its lease
				}
				if err := s.Release("pods", owner, func(*bbolt.Tx) error {
					mu.Lock()
					defer mu.Unlock()
					for _, a := range got {
						delete(holders, a.Prefix.Addr())
					}
					return nil
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	want := make(map[Owner]int)
	for w := 0; w < workers; w += 4 {
		want[container(w)] = 2
	}
	got := make(map[Owner]int)
	for owner, leases := range s.Leases("pods") {
		got[owner] = len(leases)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	sameAsFile(t, s)
}
