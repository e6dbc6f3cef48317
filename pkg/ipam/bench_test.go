// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// 99 % of the addresses that a /16 can hand out.
const nearlyFull = 64878

// BenchmarkPool is one release and one allocation in a pool by itself.
func BenchmarkPool(b *testing.B) {
	for _, subnet := range []string{"10.10.0.0/16", "10.0.0.0/8", "fd00:10::/64", "fd00::/16"} {
		for _, leases := range []int{1000, nearlyFull} {
			b.Run(fmt.Sprintf("%s/%d-leased", subnet, leases), func(b *testing.B) {
				pool := newNetwork("n", mustCanonical(b, subnet)).pools[0]
				taken := make([]number, leases)
				for i := range taken {
					taken[i] = mustTake(b, pool)
				}
				released := uint64(0)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					old := &taken[i*7919%len(taken)] // a prime: no two ends of a lease are neighbours
					released++
					for _, r := range pool.crowded(1) {
						pool.wake(r.number)
					}
					pool.free(rested{*old, released})
					*old = mustTake(b, pool)
				}
			})
		}
	}
}

// BenchmarkPoolWalk is an allocation for which the walk has to pass over all
// that is leased of a /16, because the address behind it is the only free one.
func BenchmarkPoolWalk(b *testing.B) {
	pool := newNetwork("n", mustCanonical(b, "10.10.0.0/16")).pools[0]
	var first number
	for i := range pool.capacity {
		if n := mustTake(b, pool); i == 0 {
			first = n
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		pool.leased--
		pool.clearBusy(first)
		pool.last = first
		mustTake(b, pool)
	}
}

// BenchmarkAllocate is an Allocate, and BenchmarkRelease a Release, as the agent
// does them: the whole transaction in a file on tmpfs.
func BenchmarkAllocate(b *testing.B) { benchmarkStore(b, true) }
func BenchmarkRelease(b *testing.B)  { benchmarkStore(b, false) }

func benchmarkStore(b *testing.B, allocate bool) {
	for _, dir := range []string{"/dev/shm", os.TempDir()} {
		for _, noSync := range []bool{false, true} {
			for _, leases := range []int{1000, nearlyFull} {
				b.Run(fmt.Sprintf("%s/noSync=%t/%d-leased", dir, noSync, leases), func(b *testing.B) {
					dir, err := os.MkdirTemp(dir, "ipam") //nolint:usetesting // which file system it is on is the point
					if err != nil {
						b.Fatal(err)
					}
					b.Cleanup(func() { _ = os.RemoveAll(dir) })
					s := mustOpen(b, filepath.Join(dir, "state.db"))
					req := Request{Network: "pods", Ranges: ranges(b, "10.10.0.0/16")}
					owner := func(i int) Owner { return Owner{fmt.Sprintf("%064d", i), "eth0"} }
					s.db.NoSync = true
					for i := range leases {
						req.Owner = owner(i)
						mustAllocate(b, s, req)
					}
					s.db.NoSync = noSync
					for i := 0; b.Loop(); i++ {
						req.Owner = owner(i * 7919 % leases)
						if allocate {
							b.StopTimer()
						}
						if err := s.Release("pods", req.Owner, nil); err != nil {
							b.Fatal(err)
						}
						if allocate {
							b.StartTimer()
						} else {
							b.StopTimer()
						}
						mustAllocate(b, s, req)
						b.StartTimer()
					}
				})
			}
		}
	}
}

// BenchmarkOpen is what an agent's start costs with a full /16.
func BenchmarkOpen(b *testing.B) {
	path := filepath.Join(b.TempDir(), "state.db")
	s := mustOpen(b, path)
	s.db.NoSync = true
	for i := range nearlyFull {
		mustAllocate(b, s, Request{"pods", ranges(b, "10.10.0.0/16"), Owner{fmt.Sprintf("%064d", i), "eth0"}, nil})
	}
	mustClose(b, s)
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			db, err := OpenFile(path, FileOptions{})
			if err != nil {
				b.Fatal(err)
			}
			if err := db.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			mustClose(b, mustOpen(b, path))
		}
	})
}

func mustCanonical(tb testing.TB, subnets ...string) []RangeSet {
	tb.Helper()
	sets, err := Canonical(ranges(tb, subnets...))
	if err != nil {
		tb.Fatal(err)
	}
	return sets
}

// ranges makes a range set of each subnet.
func ranges(tb testing.TB, subnets ...string) []RangeSet {
	tb.Helper()
	var sets []RangeSet
	for _, s := range subnets {
		sets = append(sets, RangeSet{{Subnet: netip.MustParsePrefix(s)}})
	}
	return sets
}

func mustTake(tb testing.TB, pool *addressSet) number {
	tb.Helper()
	c, ok := pool.choose()
	if !ok {
		tb.Fatal("the pool is exhausted")
	}
	pool.take(c)
	return c.number
}

// mustOpen opens a store on a file; its end is mustClose or the test's.
func mustOpen(tb testing.TB, path string) *Store {
	tb.Helper()
	db, err := OpenFile(path, FileOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	s, err := Open(db)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func mustClose(tb testing.TB, s *Store) {
	tb.Helper()
	if err := s.db.Close(); err != nil {
		tb.Fatal(err)
	}
}

func mustAllocate(tb testing.TB, s *Store, req Request) []Address {
	tb.Helper()
	got, err := s.Allocate(req, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return got
}
